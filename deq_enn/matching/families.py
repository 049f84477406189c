"""The explicit network with the conjugate or tangent kernel of a DEQ, for any activation, in closed form.

Layers xi + q e(xi) + r o(xi) (`curved_layers`) have the four coefficients of a DEQ where q and r solve the equations of
`layer_equations`. Of all solutions `match` takes the one whose kernel is nearest to the DEQ's beyond the four
(`norm_response`), whatever its number of kinks. The error of a width-m network is `width_error`'s.

How the match depends on tau_0 and sigma_a^2. The kinks and signs taken still change at some values, where several
networks are about equally near to the DEQ, or where the nearest begin or end (`layer_equations`). In CK, tau_0
from 0.5 to 1.5, sigma_a^2 = 0.2, 60 MNIST images, the kernel of gelu and swish then steps by at most 0.012 in
relative spectral norm, and lies within 0.01 of the DEQ's on either side. For gelu in NTK, and at sigma_a^2 = 0.8 in
CK, steps of 0.015 and 0.02 remain. Another number of layers is a step too.

Families. "piecewise": piecewise-linear layers with 2K kinks, K <= 4. "hermite": cubic layers. "l_relu" and "hard_tanh":
the paper's. A DEQ trained in (a, A, B) is matched by a net with all weights trained; one trained in (a, A), its input
weights B frozen, by a net with W_1 frozen.

"auto" takes the paper's networks where they match, then the fewest layers, and piecewise-linear before cubic: a cubic
layer grows like the cube of its input where SGD leaves the Gaussian regime, and its finite-width error has heavy tails.
One layer more is taken where fewer leave the answer to the norm off by more than a third and it halves that.

Which DEQs are matched. Seen: every activation of the registry on a grid of sigma_a^2 < 0.25 and tau_0; and 1,740 random
ones of them with sigma_a^2 < 0.97, tau_0 in (0.1, 10), CK and NTK, all but seven of sin, whose E[phi'] is zero to
rounding there. In the conjugate kernel nothing obstructs but c1 = 0 and a depth above six, where gamma^2 is near
tau_0^2 alpha_1 + tau_0^4 alpha_3 (`layer_equations` has the proof). In the tangent kernel there is no such proof: a
nearly linear DEQ trained in (a, A) may take three linear layers, and one with too small a diagonal would be refused.

Reference: Ling et al., ICML 2024 (Theorems 1 to 3, Examples 1 and 2).
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import brentq

from deq_enn.matching import one_layer_tanh, two_layer_lrelu
from deq_enn.matching.curved_layers import absolute_value, bases_of
from deq_enn.matching.equations import Place, curve, is_odd, one_layer, roots, scale_free
from deq_enn.matching.search import two_layers
from deq_enn.names import FAMILIES
from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import (
    KernelCoefficients,
    MatchError,
    explicit_ck,
    explicit_ntk,
    implicit_ck,
    implicit_ntk,
)
from deq_enn.theory.finite_width import fluctuation
from deq_enn.theory.norm_sensitivity import explicit_response, implicit_response, mismatch

EXPLICIT_TRAINED = {"aAB": "all", "aA": "frozen_first"}  # what of the explicit net is trained when these of the DEQ are

_TOLERANCE = 1e-10
_NEAR = 0.35  # the mismatch above which one more layer may be taken, if it halves it


@dataclass(frozen=True)
class Match:
    """An explicit network and the DEQ kernel it reproduces.

    layers : activations of the hidden layers, centred at their input scales.
    target, achieved : coefficients of the DEQ, and of `layers` as `explicit_ck` or `explicit_ntk` recomputes them.
    residual : the largest relative error of diag and c1, and error of tau_0^2 c2/c1 and tau_0^2 c3/c1.
    family, kernel : as found, as asked.
    trained : what of the explicit net is: "readout" for the CK; "all" or "frozen_first", as `explicit_ntk` has it.
    parameters : one dict a layer. Slopes and kinks, or, for cubic layers, gain (x + q h_2 + r h_3) at the scale tau.
    fluctuation : m times the mean squared relative error of the kernel at width m (see `fluctuation`).
    mismatch : how far the kernel's answer to the norm of a sample is from the DEQ's (see `norm_response`).
    passed_over : why no other family tried before does, or this one with fewer layers, one clause each.
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
    activation: Activation,
    sigma_a2: float,
    tau0: float = 1.0,
    kernel: str = "ck",
    family: str = "auto",
    trained: str = "aAB",
) -> Match:
    """The shallow explicit network whose kernel has the DEQ's four coefficients, to machine precision.

    Parameters
    ----------
    activation : of the DEQ; it is centred at tau_* here.
    sigma_a2, tau0 : weight variance sigma_a^2 and data scale tau_0.
    kernel : "ck" to match the training of the readout, "ntk" the training of the weights.
    family : the kind of layers, see the module's docstring; "auto" takes the first that matches of the paper's two,
        one layer, two, three, and piecewise-linear before cubic.
    trained : "aAB" or "aA", what of the DEQ is trained; only the tangent kernel asks.

    Raises
    ------
    MatchError : the family cannot; names the condition that binds, the values, and what could be tried.
    ValueError : the DEQ has no kernel (no fixed point, moments not finite, activation not elementwise).
    """
    if kernel not in ("ck", "ntk"):
        raise ValueError(f"kernel must be 'ck' or 'ntk', got {kernel!r}")
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if trained not in EXPLICIT_TRAINED:
        raise ValueError(f"trained must be 'aA' or 'aAB', got {trained!r}")
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
    best, passed_over = None, {}  # family -> its nearest miss
    for name, depth in _ATTEMPTS:
        if family not in ("auto", name):
            continue
        if best and depth > len(best.layers) + 1:
            break
        try:
            layers, parameters = _SOLVERS[name](target, tau0, mode, depth, goal)
            achieved = explicit_ck(layers, tau0) if kernel == "ck" else explicit_ntk(layers, tau0, mode)
            residual = _residual(target, achieved, tau0)
            if not residual < _TOLERANCE:
                raise MatchError(f"{name} layers stop at a residual of {residual:.2g}")
        except MatchError as error:
            if name not in passed_over or _gap(error) <= _gap(passed_over[name]):
                passed_over[name] = error
            continue
        missed = mismatch(goal, explicit_response(layers, tau0, mode))
        if not best or missed < best.mismatch / 2:
            best = Match(
                layers,
                target,
                achieved,
                residual,
                name,
                kernel,
                mode,
                tau0,
                parameters,
                sum(fluctuation(layers, tau0, mode)),
                missed,
                tuple(map(str, passed_over.values())),
            )
        if best.mismatch < _NEAR:
            break
    if best:
        return best
    raise MatchError(
        f"no {'explicit' if family == 'auto' else family} network matches the {kernel.upper()} of "
        f"{activation.name} at sigma_a^2 = {sigma_a2:g}, tau_0 = {tau0:g}: "
        f"{'; '.join(map(str, passed_over.values()))}. Try "
        + ("a larger tau_0 or trained='aAB'" if family == "auto" else "family='auto'")
    )


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
# the families: (target, tau0, trained, depth, goal) -> layers and their parameters, or a MatchError


def _solve(family, most_ramps, target, tau0, trained, depth, goal):
    """Two curved layers of `depth`, or one of one, with any number of kinks and the others at any place."""
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


def _solve_hard_tanh(target, tau0, trained, depth, goal):
    ratio, c2, c3 = scale_free(target, tau0)
    if not is_odd(target, tau0):
        raise MatchError(
            f"a hard tanh is odd and has c2 = c3 = 0, the target has tau_0^2 c2/c1 = {c2:.6g} and "
            f"tau_0^2 c3/c1 = {c3:.6g}"
        )
    if trained != "all":  # with its only layer frozen, the tangent kernel is the conjugate one
        found = one_layer_tanh.match(target, tau0)
        return found.layers, (dict(a=found.a, c=found.c),)
    # clip(x, -c, c) at u = c/tau_0 has mu = 1/erf(u/sqrt 2): kappa^2/(tau_0^2 beta_1) = (N + mu)/2 grows as u falls

    def excess(u):
        inside = math.erf(u / math.sqrt(2))
        return one_layer_tanh._excess_ratio(u) + math.erfc(u / math.sqrt(2)) / inside - 2 * (ratio - 1)

    low, high = 0.3, 8.0  # a sharper step would do, but its few sloping units make the finite-width error explode
    if not excess(low) > 0 > excess(high):
        raise MatchError(
            f"a hard tanh with c >= {low} tau_0 has kappa^2/(tau_0^2 beta_1) in (1, "
            f"{ratio + excess(low) / 2:.4g}), the target has {ratio:.9g}"
        )
    u = brentq(excess, low, high, xtol=1e-16, rtol=4 * 2.0**-52)
    found = one_layer_tanh.HardTanhMatch(math.sqrt(target.c1 / 2) / math.erf(u / math.sqrt(2)), u * tau0)
    return found.layers, (dict(a=found.a, c=found.c),)


def _solve_l_relu(target, tau0, trained, depth, goal):
    if trained == "readout":
        found = min(
            two_layer_lrelu.solutions(target, tau0, _TOLERANCE),
            key=lambda match: sum(fluctuation(match.layers, tau0, trained)),
        )
        return found.layers, (dict(a=found.a1, b=found.b1), dict(a=found.a2, b=found.b2))
    # xi + q e has two parameters in two layers: c2 and c3 fix them, and the diagonal is what it is
    place, basis = Place(trained, 2), absolute_value()
    scaled = tuple(place.c1 * value for value in scale_free(target, tau0))
    shares = (
        []
        if is_odd(target, tau0)
        else roots(lambda s: curve(place, basis, basis, scaled, s)[2], np.linspace(0, 1, 65)[:-1])
    )
    if not shares:
        raise MatchError("no pair of leaky-ReLU layers has this beta_2/beta_3")
    has = []
    for share in shares:
        first = basis.moments(math.sqrt(share * scaled[2] / place.weights(0)[0]), 0.0)
        second = basis.moments(math.sqrt((1 - share) * scaled[2] / place.weights(1)[0] * first[0]), 0.0)
        a, b = place.diagonal(first)
        has.append((a * second[0] + b * second[1]) / place.c1)
    raise MatchError(
        f"two leaky-ReLU layers with this c2 and c3 have diag/(tau_0^2 c1) = "
        f"{' or '.join(f'{value:.9g}' for value in has)}, the target has {scaled[0] / place.c1:.9g}"
    )


_SOLVERS = {
    "hard_tanh": _solve_hard_tanh,
    "l_relu": _solve_l_relu,
    "piecewise": partial(_solve, "piecewise", 4),
    "hermite": partial(_solve, "hermite", 1),
}
_ATTEMPTS = [
    ("hard_tanh", 1),
    ("l_relu", 2),
    ("piecewise", 1),
    ("hermite", 1),
    ("piecewise", 2),
    ("hermite", 2),
    ("piecewise", 3),
    ("hermite", 3),
    ("hermite", 4),
    ("hermite", 5),
    ("hermite", 6),
]
