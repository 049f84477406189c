"""A DEQ with any activation has an explicit network with its conjugate or tangent kernel, computed here in closed form.

Layers xi + q e(xi) + r o(xi) (`curved_layers`) have the four coefficients of a DEQ where q and r solve the equations of
`equations.py`. There are many solutions. `match` takes the one whose kernel is nearest to the DEQ's beyond the four
(`norm_sensitivity`), whatever its number of kinks. `finite_width` has the error of a network of width m.

The match depends on tau_0 and sigma_a^2. The number of kinks and the signs change at some values, where several
networks are about equally near to the DEQ, or where the nearest begin or end (`equations`). On 60 MNIST images in CK,
for tau_0 from 0.5 to 1.5 and sigma_a^2 = 0.2, the kernel of gelu and swish then steps by at most 0.012 in relative
spectral norm, and lies within 0.01 of the DEQ's on either side. For gelu in NTK, and at sigma_a^2 = 0.8 in CK, steps of
0.015 and 0.02 remain. The kernel also steps where the number of layers changes.

There are five families. "piecewise" has piecewise-linear layers with 2K kinks, K <= 4, and "hermite" has cubic layers.
"own" has one layer of the DEQ's own activation, rescaled, where that is odd (`own_activation`). "l_relu" and
"hard_tanh" are the paper's. A DEQ trained in (a, A, B) is matched by a network with all weights trained. A
DEQ trained in (a, A), its input weights B frozen, is matched by a network with W_1 frozen.

"auto" takes the paper's networks where they match, then the fewest layers, and piecewise-linear before cubic. For an
odd activation "own" is nearer than the paper's hard tanh, though not simpler; "auto" takes it where the others leave a
mismatch above a third, and it halves that. A cubic layer grows like the cube of its input where SGD leaves the Gaussian
regime, and its finite-width error has heavy tails. One more layer is taken if fewer leave a mismatch above a third, and
if it halves the mismatch.

These DEQs were seen to be matched: every activation of the registry on a grid of sigma_a^2 < 0.25 and tau_0, and 2,765
of 2,800 random cases with sigma_a^2 < 0.99 and tau_0 in (0.1, 10), CK and NTK. Of the rest 11 are of sin, whose E[phi']
is zero to rounding there, and 24 have no stable equilibrium (`ck_ntk/matching_map.py --random 100`). In the conjugate
kernel only two things obstruct: c1 = 0, and a depth above six, where gamma^2 is near tau_0^2 alpha_1 + tau_0^4 alpha_3
(`equations` has the proof). In the tangent kernel there is no such proof. A nearly linear DEQ trained in (a, A) may
take three linear layers, and one with too small a diagonal would be refused.

Reference: Ling et al., ICML 2024 (Theorems 1 to 3, Examples 1 and 2).
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from deq_enn.matching import one_layer_tanh, own_activation, two_layer_lrelu
from deq_enn.matching.curved_layers import absolute_value, bases_of
from deq_enn.matching.equations import Place, curve, is_odd, one_layer, roots, scale_free
from deq_enn.matching.search import two_layers
from deq_enn.names import FAMILIES
from deq_enn.theory.activations import Activation
from deq_enn.theory.brackets import root_between
from deq_enn.theory.coefficients import (
    KernelCoefficients,
    MatchError,
    explicit_ck,
    explicit_ntk,
    implicit_ck,
    implicit_ntk,
)
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.finite_width import fluctuation
from deq_enn.theory.norm_sensitivity import explicit_response, implicit_response, mismatch
from deq_enn.theory.recognise import recognise
from deq_enn.utils.deadline import check

# from the trained weights of the DEQ to those of the explicit network, as `explicit_ntk` names them
EXPLICIT_TRAINED = {"aAB": "all", "aA": "frozen_first"}

_TOLERANCE = 1e-10  # residual above which coefficients do not count as matched
_NEAR = 0.35  # mismatch above which one more layer may be taken, if it halves the mismatch


@dataclass(frozen=True)
class Match:
    """A match is an explicit network together with the DEQ kernel that it reproduces.

    layers : activations of the hidden layers, centred at their input scales.
    target, achieved : coefficients of the DEQ, and of `layers` as `explicit_ck` or `explicit_ntk` recomputes them.
    residual : the largest relative error of diag and c1, and error of tau_0^2 c2/c1 and tau_0^2 c3/c1.
    family : that of the layers. kernel : "ck" or "ntk", as asked for.
    trained : the explicit network's trained weights: "readout" for the CK; "all" or "frozen_first" for the NTK.
    parameters : one dict for each layer: slopes and kinks, or of a cubic layer gain (x + q h_2 + r h_3) at scale tau.
    fluctuation : m times the mean squared relative error of an entry of the kernel at width m, that off the diagonal
        plus that on it (see `finite_width.fluctuation`).
    mismatch : how far the kernel's answer to the norm of a sample is from the DEQ's (see `norm_sensitivity.mismatch`).
    passed_over : why the families tried before do not match, or this one with fewer layers, one clause each.
    """

    layers: tuple[Activation, ...]
    target: KernelCoefficients
    achieved: KernelCoefficients
    residual: float
    family: str
    kernel: str
    trained: str
    tau0: float
    parameters: tuple[dict, ...]
    fluctuation: float
    mismatch: float
    passed_over: tuple[str, ...] = ()


def match(
    activation: Activation | str | Elementwise,
    sigma_a2: float,
    tau0: float = 1.0,
    kernel: str = "ck",
    family: str = "auto",
    trained: str = "aAB",
) -> Match:
    """Finds the shallow explicit network whose kernel has the DEQ's four coefficients, to machine precision.

    Parameters
    ----------
    activation : of the DEQ, or its name, or a torch function; it is centred at tau_* here.
    sigma_a2, tau0 : weight variance sigma_a^2 and data scale tau_0.
    kernel : "ck" to match the training of the readout, "ntk" the training of the weights.
    family : the kind of layers, see the module's docstring. "auto" takes the first that matches of the paper's two, one
        layer, two, three, and piecewise-linear before cubic.
    trained : "aAB" or "aA", the trained weights of the DEQ, which matter to the tangent kernel only.

    Raises
    ------
    MatchError : the family has no match; names the condition that binds, the values, and what could be tried.
    ValueError : the DEQ has no kernel (no fixed point, moments not finite, activation not elementwise).
    OutOfTime : the search has looked at a deadline (`utils.deadline`), and it has passed.
    """
    activation = recognise(activation)
    _check(kernel, family, trained)
    task = _task(activation, sigma_a2, tau0, kernel, trained)
    best, passed_over = task.search([attempt for attempt in _ATTEMPTS if family in ("auto", attempt[0])])
    if best:
        return task.match_of(best)
    raise MatchError(
        f"no {'explicit' if family == 'auto' else family} network matches the {kernel.upper()} of "
        f"{activation.name} at sigma_a^2 = {sigma_a2:g}, tau_0 = {tau0:g}: {'; '.join(passed_over)}. Try "
        + ("a larger tau_0 or trained='aAB'" if family == "auto" else "family='auto'")
    )


def _check(kernel, family, trained):
    if kernel not in ("ck", "ntk"):
        raise ValueError(f"kernel must be 'ck' or 'ntk', got {kernel!r}")
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if trained not in EXPLICIT_TRAINED:
        raise ValueError(f"trained must be 'aA' or 'aAB', got {trained!r}")


@dataclass(frozen=True)
class _Candidate:
    """A network that matches, with attributes as those of `Match`."""

    layers: tuple[Activation, ...]
    parameters: tuple[dict, ...]
    achieved: KernelCoefficients
    residual: float
    family: str
    mismatch: float
    passed_over: tuple[str, ...]


@dataclass(frozen=True)
class _Task:
    """A network with these coefficients is looked for, whose (u, v) is as near as can be to the DEQ's, the goal."""

    activation: Activation
    tau: float  # scale tau_* of the DEQ
    target: KernelCoefficients
    goal: tuple[float, float]
    tau0: float
    kernel: str
    trained: str  # weights of the explicit network

    def search(self, attempts) -> tuple[_Candidate | None, tuple[str, ...]]:
        """Returns the best candidate, and why families do not match; ends where one more layer would not pay."""
        best, misses = None, {}  # from a family to its nearest miss
        for family, depth in attempts:
            if best and depth > len(best.layers) + 1:
                break
            check()
            try:
                candidate = self.attempt(family, depth, misses)
            except MatchError as error:
                if family not in misses or _gap(error) <= _gap(misses[family]):
                    misses[family] = error
                continue
            if not best or candidate.mismatch < best.mismatch / 2:
                best = candidate
            if best.mismatch < _NEAR:
                break
        return best, _clauses(misses)

    def attempt(self, family, depth, misses) -> _Candidate:
        """Returns the best network of one family and depth; a MatchError says why there is none."""
        layers, parameters = _SOLVERS[family](self, depth)
        if self.kernel == "ck":
            achieved = explicit_ck(layers, self.tau0)
        else:
            achieved = explicit_ntk(layers, self.tau0, self.trained)
        residual = _residual(self.target, achieved, self.tau0)
        if not residual < _TOLERANCE:
            raise MatchError(f"{family} layers stop at a residual of {residual:.2g}")
        missed = mismatch(self.goal, explicit_response(layers, self.tau0, self.trained))
        return _Candidate(layers, parameters, achieved, residual, family, missed, _clauses(misses))

    def match_of(self, candidate: _Candidate) -> Match:
        """Returns the match that a candidate is."""
        return Match(
            target=self.target,
            kernel=self.kernel,
            trained=self.trained,
            tau0=self.tau0,
            fluctuation=sum(fluctuation(candidate.layers, self.tau0, self.trained)),
            **vars(candidate),
        )


def _clauses(misses):
    return tuple(map(str, misses.values()))


def _task(activation, sigma_a2, tau0, kernel, trained) -> _Task:
    if kernel == "ck":
        target, mode = implicit_ck(activation, sigma_a2, tau0), "readout"
    else:
        target, mode = implicit_ntk(activation, sigma_a2, tau0, trained), EXPLICIT_TRAINED[trained]
    if not target.c1 * tau0**2 > 1e-12 * abs(target.diag):
        raise MatchError(
            f"the kernel of {activation.name} at sigma_a^2 = {sigma_a2:g}, tau_0 = {tau0:g} has no linear "
            f"part (c1 = {target.c1:.3g}, diag = {target.diag:.3g}): the activation is constant or even "
            "there, and no family here matches that; add a linear term"
        )
    goal = implicit_response(activation, sigma_a2, tau0, kernel, trained)
    return _Task(activation, get_tau(activation, sigma_a2, tau0), target, goal, tau0, kernel, mode)


def _gap(error):
    return getattr(error, "gap", math.inf)


def _residual(target, achieved, tau0):
    unit = tau0**2 / target.c1
    return max(
        abs(achieved.diag / target.diag - 1),
        abs(achieved.c1 / target.c1 - 1),
        abs(achieved.c2 - target.c2) * unit,
        abs(achieved.c3 - target.c3) * unit,
    )


# ---------------------------------------------------------------------------------------------------------------
# the families' solvers: (task, depth) -> layers and their parameters, or a MatchError


def _solve(family, most_ramps, task, depth):
    """Solves for two curved layers among `depth`, or for one alone, with any number of kinks and at any place."""
    target, tau0, trained, goal = task.target, task.tau0, task.trained, task.goal
    families, others = [bases_of(family, ramps) for ramps in range(1, most_ramps + 1)], depth - 2
    if depth == 1:
        return one_layer(Place(trained, 1), sum(families, ()), target, tau0, goal)
    places = (
        [Place(trained, 2, bends=others)]
        if trained == "readout"
        else [
            Place(trained, 2, before, between, others - before - between)
            for before in range(others + 1)
            for between in range(others + 1 - before)
        ]
    )
    return two_layers(places, families, target, tau0, goal)


def _solve_own(task, depth):
    return own_activation.solve(task.activation, task.tau, task.target, task.tau0, task.trained)


def _solve_hard_tanh(task, depth):
    target, tau0, trained = task.target, task.tau0, task.trained
    ratio, c2, c3 = scale_free(target, tau0)
    if not is_odd(target, tau0):
        raise MatchError(
            f"a hard tanh is odd and has c2 = c3 = 0, the target has tau_0^2 c2/c1 = {c2:.6g} and "
            f"tau_0^2 c3/c1 = {c3:.6g}"
        )
    if trained != "all":  # with its only layer frozen, the tangent kernel is the conjugate one
        return _hard_tanh(one_layer_tanh.match(target, tau0))
    # clip(x, -c, c) at u = c/tau_0 has mu = 1/erf(u/sqrt 2): kappa^2/(tau_0^2 beta_1) = (N + mu)/2 grows as u falls

    def excess(u):
        inside = math.erf(u / math.sqrt(2))
        return one_layer_tanh.excess_ratio(u) + math.erfc(u / math.sqrt(2)) / inside - 2 * (ratio - 1)

    low, high = (
        0.3,
        8.0,
    )  # a sharper step would match too, but its few sloping units make the finite-width error explode
    if not excess(low) > 0 > excess(high):
        raise MatchError(
            f"a hard tanh with c >= {low} tau_0 has kappa^2/(tau_0^2 beta_1) in (1, "
            f"{ratio + excess(low) / 2:.4g}), the target has {ratio:.9g}"
        )
    u = root_between(excess, low, high, xtol=1e-16)
    a = math.sqrt(target.c1 / 2) / math.erf(u / math.sqrt(2))
    return _hard_tanh(one_layer_tanh.HardTanhMatch(a, u * tau0))


def _hard_tanh(solution):
    return solution.layers, (dict(a=solution.a, c=solution.c),)


def _solve_l_relu(task, depth):
    target, tau0, trained = task.target, task.tau0, task.trained
    if trained == "readout":
        pair = min(
            two_layer_lrelu.solutions(target, tau0, _TOLERANCE),
            key=lambda solution: sum(fluctuation(solution.layers, tau0, trained)),
        )
        return pair.layers, (dict(a=pair.a1, b=pair.b1), dict(a=pair.a2, b=pair.b2))
    # two layers xi + q e have two parameters: c2 and c3 fix them, and nothing is left to set the diagonal
    place, basis = Place(trained, 2), absolute_value()
    diag, c2, c3 = (place.c1 * value for value in scale_free(target, tau0))
    scaled = diag, c2, c3
    shares = (
        []
        if is_odd(target, tau0)
        else roots(lambda s: curve(place, basis, basis, scaled, s)[2], np.linspace(0, 1, 65)[:-1])
    )
    if not shares:
        raise MatchError("no pair of leaky-ReLU layers has this beta_2/beta_3")
    diagonals = []
    for share in shares:
        first = basis.moments(math.sqrt(share * scaled[2] / place.weights(0)[0]), 0.0)
        second = basis.moments(math.sqrt((1 - share) * scaled[2] / place.weights(1)[0] * first[0]), 0.0)
        a, b = place.diagonal(first)
        diagonals.append((a * second[0] + b * second[1]) / place.c1)
    raise MatchError(
        f"two leaky-ReLU layers with this c2 and c3 have diag/(tau_0^2 c1) = "
        f"{' or '.join(f'{value:.9g}' for value in diagonals)}, the target has {scaled[0] / place.c1:.9g}"
    )


_SOLVERS = {
    "hard_tanh": _solve_hard_tanh,
    "l_relu": _solve_l_relu,
    "piecewise": partial(_solve, "piecewise", 4),
    "hermite": partial(_solve, "hermite", 1),
    "own": _solve_own,
}
_ATTEMPTS = [
    ("hard_tanh", 1),
    ("l_relu", 2),
    ("piecewise", 1),
    ("hermite", 1),
    ("own", 1),
    ("piecewise", 2),
    ("hermite", 2),
    ("piecewise", 3),
    ("hermite", 3),
    ("hermite", 4),
    ("hermite", 5),
    ("hermite", 6),
]
