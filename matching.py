"""The explicit network with the conjugate or tangent kernel of a DEQ, for any activation, in closed form.

Write layer l at its input scale as sigma_l(tau xi) = tau (xi + q e(xi) + r o(xi)), xi ~ N(0, 1), with e even of unit
second Hermite coefficient and o odd without a linear part: E[sigma'] is 1 and E[sigma''] = sqrt(2) q/tau. With N, mu, w
for E[sigma^2]/tau^2, E[sigma'^2] and E[(sigma^2)'']/2, all three quadratic in (q, r), the conjugate kernel is

    alpha_1 = 1,   gamma^2 = tau_0^2 prod_l N_l,   tau_0^2 alpha_3 = sum_l y_l,
    tau_0^2 alpha_2 = sum_l y_l prod_{k<l} w_k^2/2

where y_l = q_l^2/prod_{k<l} N_k. A gain on the last layer sets alpha_1, so three numbers remain to be met. The tangent
kernel has integer weights in the same sums: with b = 1, or 0 if the first of the L layers is frozen, beta_1 = L + b,
y_l counts L-l+1 + 2(l-1+b) times in beta_3 and L-l+1 times in beta_2; kappa_l^2 = tau_l^2 + kappa_{l-1}^2 mu_l.

Two layers have (q_1, r_1, q_2, r_2) for three equations. Given the share of layer 1 in c3, y_2 follows from c3, w_1
from c2, r_1 from w_1 (a quadratic), r_2^2 from the diagonal (linear): nothing is iterated, nothing guessed. Where
r_2^2 >= 0 there is a match; of this curve of matches the one with the smallest finite-width error (`fluctuation`) is
taken. One layer does where c2 and c3 are zero (an odd activation) or stand as one layer has them (2 alpha_2 = alpha_3,
6 beta_2 = beta_3). Where two layers have too large a diagonal whatever the share, a linear layer ahead of, between or
behind them helps, in the tangent kernel only: it changes the integer weights. One is enough for every DEQ of the
registry trained in (a, A, B); a nearly linear one trained in (a, A) may take up to three.

Families. "hermite": e = h_2, o = h_3, cubic layers. "piecewise": the slope of e is the Lloyd-Max quantiser of xi with
2K + 1 levels, the staircase nearest to h_2'; o is a soft threshold at one of its K thresholds; K <= 4 is as small as
the target allows. "l_relu" and "hard_tanh": the paper's. A DEQ trained in (a, A, B) is matched by a net with all
weights trained; one trained in (a, A), its input weights B frozen, by a net with W_1 frozen.

"auto" takes piecewise-linear layers before cubic ones of the same depth. Their finite-width errors differ by a tenth or
so, to the advantage of either, but a cubic layer grows like the cube of its input where SGD leaves the Gaussian regime,
and its error has heavy tails.

References: Ling et al., ICML 2024 (Theorems 1 to 3, Examples 1 and 2); Max, IRE Trans. Inf. Theory 6 (1960).
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from typing import Sequence

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr

import one_layer_tanh
import two_layer_lrelu
from coefficients import KernelCoefficients, MatchError, explicit_ck, explicit_ntk, implicit_ck, implicit_ntk
from gaussian_integration import Activation, expectation, gaussian_moments, piecewise_linear
from names import FAMILIES

EXPLICIT_TRAINED = {"aAB": "all", "aA": "frozen_first"}  # what of the explicit net is trained when these of the DEQ are

_TOLERANCE = 1e-10
_ZERO = 1e-13  # c2 and c3 below it, in scale-free units, are those of an odd activation


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
    passed_over: tuple[str, ...] = ()


def match(activation: Activation, sigma_a2: float, tau0: float = 1.0, kernel: str = "ck", family: str = "auto",
          trained: str = "aAB") -> Match:
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
        raise MatchError(f"the kernel of {activation.name} at sigma_a^2 = {sigma_a2:g}, tau_0 = {tau0:g} has no linear "
                         f"part (c1 = {target.c1:.3g}, diag = {target.diag:.3g}): the activation is constant or even "
                         "there, and no family here matches that; add a linear term")
    passed_over = {}  # family -> its nearest miss
    for name, depth in _ATTEMPTS:
        if family not in ("auto", name) or (depth > 2 and kernel == "ck"):
            continue
        try:
            layers, parameters = _SOLVERS[name](target, tau0, mode, depth)
            achieved = explicit_ck(layers, tau0) if kernel == "ck" else explicit_ntk(layers, tau0, mode)
            residual = _residual(target, achieved, tau0)
            if not residual < _TOLERANCE:
                raise MatchError(f"{name} layers stop at a residual of {residual:.2g}")
        except MatchError as error:
            if name not in passed_over or _gap(error) <= _gap(passed_over[name]):
                passed_over[name] = error
            continue
        return Match(layers, target, achieved, residual, name, kernel, mode, tau0, parameters,
                     sum(fluctuation(layers, tau0, mode)), tuple(map(str, passed_over.values())))
    raise MatchError(f"no {'explicit' if family == 'auto' else family} network matches the {kernel.upper()} of "
                     f"{activation.name} at sigma_a^2 = {sigma_a2:g}, tau_0 = {tau0:g}: "
                     f"{'; '.join(map(str, passed_over.values()))}. Try "
                     + ("a larger tau_0 or trained='aAB'" if family == "auto" else "family='auto'"))


class _TooLarge(MatchError):
    """The least diagonal a family can have with this c2 and c3 is 1 + gap times the target's."""

    def __init__(self, gap, message):
        super().__init__(message)
        self.gap = gap


def _gap(error):
    return getattr(error, "gap", math.inf)


def _residual(target, achieved, tau0):
    unit = tau0**2 / target.c1
    return max(abs(achieved.diag / target.diag - 1), abs(achieved.c1 / target.c1 - 1),
               abs(achieved.c2 - target.c2) * unit, abs(achieved.c3 - target.c3) * unit)


# ---------------------------------------------------------------------------------------------------------------
# finite width

def fluctuation(layers: Sequence[Activation], tau0: float = 1.0, trained: str = "all") -> tuple[float, float]:
    """m E[(K^_ij - K_ij)^2]/K_ii^2 at width m to leading order in 1/m, for i != j and for i = j.

    Parameters
    ----------
    trained : "readout" for the conjugate kernel, "all" or "frozen_first" for the tangent kernel.

    Notes
    -----
    For inputs of norm tau_0, orthogonal where i != j (high-dimensional data nearly are), and Gaussian weights. Given
    the layer before, a Gram entry is a mean over m independent units; its noise is carried on to first order. Off the
    diagonal only the noise of the forward Gram matrices survives, sum_l (v_l tau_l^2 prod_{k>l} E[sigma_k']^2)^2 with
    v_l = 1 for the conjugate kernel and L-l+1 for the tangent kernel: a nearly linear first layer is best. On the
    diagonal fourth moments enter. tests/test_matching.py holds both against sampled networks.
    """
    columns, tau = [], tau0
    for layer in layers:
        m = gaussian_moments(layer, tau)
        kinks = [k / tau for k in layer.kinks]
        f = lambda xi: (layer.fn(tau * xi) - m.mean) / (tau * m.d1)   # noqa: E731
        g = lambda xi: layer.derivative(tau * xi) / m.d1              # noqa: E731
        columns.append((m.variance / (tau * m.d1)**2, m.d1_sq / m.d1**2, m.sq_dd / 2 / m.d1**2,
                        expectation(lambda xi: g(xi)**2 * (xi**2 - 1) / 2, kinks),
                        expectation(lambda xi: f(xi)**4, kinks), expectation(lambda xi: (f(xi) * g(xi))**2, kinks),
                        expectation(lambda xi: g(xi)**4, kinks)))
        tau = math.sqrt(m.variance)
    return _fluctuation(columns, trained)


def _fluctuation(layers, trained):
    """The same from (N, mu, w, nu, f4, f2g2, g4) of each layer; arrays of networks broadcast.

    With f = sigma/(tau E[sigma']) and g = sigma'/E[sigma'] the seven are E[f^2], E[g^2], E[(f^2)'']/2, E[(g^2)'']/2,
    E[f^4], E[f^2 g^2], E[g^4].
    """
    tangent = trained != "readout"
    scales, kappas = [1.0], [1.0 if trained == "all" else 0.0]   # tau_l^2, kappa_l^2 in units where E[sigma'] = 1
    for N, mu, *_ in layers:
        scales.append(scales[-1] * N)
        kappas.append(scales[-1] + kappas[-1] * mu if tangent else scales[-1])
    off = on = 0.0
    forward, backward, depth = 1.0, 1.0, len(layers)   # dK/d|x_l|^2 and the squared norm of dK's backward signal
    for l in range(depth, 0, -1):
        N, mu, w, nu, f4, f2g2, g4 = layers[l - 1]
        scale = scales[l - 1]
        off = off + ((depth - l + 1 if tangent else 1) * scales[l])**2
        gain = kappas[l - 1] * backward if tangent else 0.0
        on = on + ((forward * scale)**2 * (f4 - N**2) + 2 * forward * gain * scale * (f2g2 - N * mu)
                   + gain**2 * (3 * g4 - mu**2))
        backward = backward * mu
        forward = w * forward + (backward + gain * nu / scale if tangent else 0.0)
    return off / kappas[-1]**2, on / kappas[-1]**2


# ---------------------------------------------------------------------------------------------------------------
# layers xi + q e + r o

class _Basis:
    """The functions (xi, e, o), their derivatives, and every moment of xi + q e + r o as a form in (1, q, r)."""

    def __init__(self, kinks=()):
        edges = np.unique(np.concatenate([np.arange(-13.0, 14.0), kinks, np.negative(kinks)]))
        x, weight = np.polynomial.legendre.leggauss(20)  # exact to rounding: polynomials times a Gaussian on each panel
        half = np.diff(edges) / 2
        xi = ((edges[:-1] + half)[:, None] + half[:, None] * x).ravel()
        weight = (half[:, None] * weight).ravel() * np.exp(-xi**2 / 2) / math.sqrt(2 * math.pi)
        f, g = self._functions(xi, weight)
        ff, gg = (np.einsum("ix,jx->ijx", a, a).reshape(9, -1) for a in (f, g))
        second = weight * (xi**2 - 1) / 2  # E[F''(xi)]/2 = E[F (xi^2 - 1)]/2
        self._quadratic = ff @ weight, gg @ weight, ff @ second, gg @ second
        self._quartic = [(a * weight) @ b.T for a, b in ((ff, ff), (ff, gg), (gg, gg))]
        self.N, self.mu, self.w = (form.reshape(3, 3) for form in self._quadratic[:3])

    def moments(self, q, r, fourth=True):
        """(N, mu, w, nu), and (f4, f2g2, g4), as `_fluctuation` takes them, of xi + q e + r o."""
        a = np.stack(np.broadcast_arrays(1.0, q, r), -1)
        aa = (a[..., :, None] * a[..., None, :]).reshape(*a.shape[:-1], 9)
        found = [aa @ form for form in self._quadratic]
        if fourth:
            found += [((aa @ form) * aa).sum(-1) for form in self._quartic]
        return found


class _Cubic(_Basis):
    name = "cubic layers"

    def _functions(self, xi, weight):
        return (np.stack([xi, (xi**2 - 1) / math.sqrt(2), (xi**3 - 3 * xi) / math.sqrt(6)]),
                np.stack([xi**0, math.sqrt(2) * xi, math.sqrt(1.5) * (xi**2 - 1)]))

    def layer(self, index, q, r, tau, gain):
        a2, a3 = q / math.sqrt(2), r / math.sqrt(6)

        def fn(x):
            x = x / tau
            return gain * tau * (x * (1 - 3 * a3 + x * (a2 + x * a3)) - a2)

        def derivative(x):
            x = x / tau
            return gain * (1 - 3 * a3 + x * (2 * a2 + 3 * a3 * x))

        return Activation(f"cubic_{index}", fn, derivative), dict(gain=gain, q=q, r=r, tau=tau)


class _Piecewise(_Basis):
    """Kinks on either side of 0, where the slope of e jumps; o is a soft threshold at the kink numbered `knee`."""

    def __init__(self, kinks, jumps, knee):
        self.kinks, self.jumps, self.knee = np.asarray(kinks), np.asarray(jumps), knee
        self.name = f"piecewise-linear layers with {2 * len(kinks)} kinks"
        super().__init__(self.kinks)

    def _functions(self, xi, weight):
        sign, size = np.sign(xi), np.abs(xi)
        ramps = np.maximum(size - self.kinks[:, None], 0)
        steps = sign * (size > self.kinks[:, None])
        e, de = self.jumps @ ramps, self.jumps @ steps
        self.mean, self.unit = e @ weight, 1 / (e * (xi**2 - 1) / math.sqrt(2) @ weight)
        o, do = sign * ramps[self.knee], sign * steps[self.knee]
        self.linear = do @ weight
        return (np.stack([xi, self.unit * (e - self.mean), o - self.linear * xi]),
                np.stack([xi**0, self.unit * de, do - self.linear]))

    def layer(self, index, q, r, tau, gain):
        even = q * self.unit * np.cumsum(self.jumps)
        odd = 1 + r * ((np.arange(len(self.kinks)) >= self.knee) - self.linear)
        inner = 1 - r * self.linear
        slopes = gain * np.concatenate([(odd - even)[::-1], [inner], odd + even])
        kinks = tau * np.concatenate([-self.kinks[::-1], self.kinks])
        value = float(-gain * tau * q * self.unit * self.mean)
        layer = piecewise_linear(f"piecewise_{index}", kinks, slopes, value)
        return layer, dict(kinks=layer.kinks, slopes=layer.slopes, value_at_zero=value)


@lru_cache(maxsize=None)
def _quantiser(ramps):
    """The positive thresholds and levels of the Lloyd-Max quantiser of N(0, 1) with 2 ramps + 1 levels."""
    levels = np.linspace(1.0, 2.0, ramps)
    for _ in range(2000):  # Lloyd's iteration contracts: a log-concave density has one fixed point
        before = levels
        thresholds = (np.append(0.0, levels[:-1]) + levels) / 2
        edges = np.append(thresholds, np.inf)
        levels = np.diff(np.exp(-edges**2 / 2)) / math.sqrt(2 * math.pi) / np.diff(ndtr(-edges))
        if np.abs(levels - before).max() < 1e-15:
            break
    return thresholds, levels


@lru_cache(maxsize=None)
def _bases(family, ramps):
    if family == "hermite":
        return (_Cubic(),)
    thresholds, levels = _quantiser(ramps)
    return tuple(_Piecewise(thresholds, np.diff(levels, prepend=0.0), knee) for knee in range(ramps))


@lru_cache(maxsize=None)
def _absolute_value():
    return _Piecewise([0.0], [1.0], 0)


def _linear_layer(index, gain):
    return piecewise_linear(f"linear_{index}", (), (gain,)), dict(kinks=(), slopes=(gain,), value_at_zero=0.0)


# ---------------------------------------------------------------------------------------------------------------
# the equations

@dataclass(frozen=True)
class _Place:
    """One or two curved layers among linear ones, and how the kernel's sums weigh them. Scale-free: tau_0 = 1."""

    trained: str
    curved: int
    before: int = 0
    between: int = 0
    behind: int = 0

    @property
    def depth(self):
        return self.curved + self.before + self.between + self.behind

    @property
    def start(self):
        """kappa^2 ahead of the first curved layer, which is beta_1 there."""
        return self.before + (self.trained == "all")

    @property
    def c1(self):
        return 1 if self.trained == "readout" else self.depth + (self.trained == "all")

    def weights(self, which):
        """How often y of the curved layer numbered `which`, 0 or 1, counts in c3 and in c2."""
        if self.trained == "readout":
            return 1.0, 0.5
        ahead = which * (1 + self.between)
        after = self.depth - self.before - ahead  # layers from this one on
        return after + 2.0 * (self.start + ahead), after / 2

    def diagonal(self, *first):
        """(a, b) in diag = a N + b mu of the last curved layer, given the moments of the one before it, if any."""
        scale, kappa = 1.0, self.start
        for N, mu, *_ in first:
            scale, kappa = scale * N, scale * N * (1 + self.between) + kappa * mu
        return (scale, 0.0) if self.trained == "readout" else ((1 + self.behind) * scale, kappa)

    def describe(self, bases):
        linear = [f"{n} linear {'one' if n == 1 else 'ones'} {where}" for n, where in
                  ((self.before, "ahead"), (self.between, "between"), (self.behind, "behind")) if n]
        return " and ".join([f"{('one of the', 'two')[self.curved - 1]} {bases[0].name}", *linear])


def _scale_free(target, tau0):
    return target.diag / (target.c1 * tau0**2), target.c2 * tau0**2 / target.c1, target.c3 * tau0**2 / target.c1


def _is_odd(target, tau0):
    return max(_scale_free(target, tau0)[1:]) < _ZERO


def _build(place, bases, q, r, target, tau0):
    linear, curved = [None], list(zip(bases, q, r))
    order = linear * place.before + curved[:1] + linear * place.between + curved[1:] + linear * place.behind
    layers, tau = [], tau0
    for index, item in enumerate(order, 1):
        gain = math.sqrt(target.c1 / place.c1) if index == len(order) else 1.0
        if item is None:
            layers.append(_linear_layer(index, gain))
        else:
            basis, q_l, r_l = item
            layers.append(basis.layer(index, float(q_l), float(r_l), tau, gain))
            tau *= math.sqrt(basis.moments(q_l, r_l)[0])
    return tuple(layer for layer, _ in layers), tuple(parameters for _, parameters in layers)


def _closing(place, basis, first, q, diag):
    """r^2 of the last curved layer from the diagonal, and the least diagonal, that with r = 0."""
    a, b = place.diagonal(*first)
    least = a * (1 + q * q * basis.N[1, 1]) + b * (1 + q * q * basis.mu[1, 1])
    return (diag - least) / (a * basis.N[2, 2] + b * basis.mu[2, 2]), least


def _one_layer(place, bases, target, tau0):
    diag, c2, c3 = (place.c1 * value for value in _scale_free(target, tau0))
    in_c3, in_c2 = place.weights(0)
    if _is_odd(target, tau0):
        c2 = c3 = 0.0
    elif abs(c3 * in_c2 / in_c3 - c2) > _ZERO * place.c1:
        raise MatchError(f"one layer of any kind has c2/c3 = {in_c2 / in_c3:.6g}, the target has {c2 / c3:.9g}")
    q, found = math.sqrt(c3 / in_c3), []
    for basis in bases:
        r2, least = _closing(place, basis, (), q, diag)
        if r2 < -1e-14 * diag:
            raise _too_large(place, bases, least, diag)
        for r in (math.sqrt(max(r2, 0.0)), -math.sqrt(max(r2, 0.0))):
            found.append((sum(_fluctuation([basis.moments(q, r)], place.trained)), basis, r))
    _, basis, r = min(found, key=lambda item: item[0])
    return _build(place, [basis], [q], [r], target, tau0)


def _too_large(place, bases, least, diag):
    return _TooLarge(least / diag - 1, f"{place.describe(bases)} with this c2 and c3 have diag/(tau_0^2 c1) >= "
                                       f"{least / place.c1:.9g}, the target has {diag / place.c1:.9g}")


def _curve(place, first, second, scaled, share):
    """The two layers of which the first makes the given share of c3.

    Returns (q_1, r_1, q_2, r_2^2), the least diagonal, and the w that layer 1 has at r_1 = 0 less the w_1 that c2 asks
    for. Where no layer has that w_1, r_1 is NaN, and so is what follows from it.
    """
    diag, c2, c3 = scaled
    (A, C), (B, D) = place.weights(0), place.weights(1)
    y1, y2 = share * c3 / A, (1 - share) * c3 / B
    q1 = np.sqrt(y1)
    with np.errstate(invalid="ignore", divide="ignore"):
        w1 = np.sqrt((c2 - C * y1) / (D * y2))
        # w = 1 + y w_ee + 2 r w_xo + r^2 w_oo = w_1. The root nearer 0; the other layer has hardly a linear part.
        excess = 1 + y1 * first.w[1, 1] - w1
        b = first.w[0, 2]
        r1 = -excess / (b + np.sqrt(b * b - first.w[2, 2] * excess))
        moments = first.moments(q1, r1, fourth=False)
        q2 = np.sqrt(y2 * moments[0])
        r2_squared, least = _closing(place, second, [moments], q2, diag)
    return (q1, r1, q2, r2_squared), least, excess


def _shares(place, first, second, scaled):
    """A grid of shares in [0, 1), fine where r_1 = 0: a nearly linear DEQ has its matches in a narrow window there."""
    grid, steps = np.linspace(0, 1, 65)[:-1], np.geomspace(1e-8, 0.1, 57)
    centres = _roots(lambda share: _curve(place, first, second, scaled, share)[2], grid)
    grid = np.concatenate([grid, steps, 1 - steps, *(c * np.concatenate([[1], 1 + steps, 1 - steps]) for c in centres)])
    grid = np.unique(grid[grid < 1])
    for _ in range(2):  # and finer where the diagonal is least, so that no window falls between two points
        at = np.argmin(np.nan_to_num(_curve(place, first, second, scaled, grid)[1], nan=np.inf))
        around = np.linspace(grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)], 33)
        grid = np.unique(np.concatenate([grid, around]))
    return grid


def _roots(f, grid):
    values = f(grid)
    return [brentq(f, left, right, xtol=1e-17, rtol=1e-15)
            for left, right, u, v in zip(grid, grid[1:], values, values[1:]) if u * v < 0]


def _two_layers(place, bases, target, tau0):
    if _is_odd(target, tau0):
        raise MatchError("an odd activation is matched by one layer")
    scaled = tuple(place.c1 * value for value in _scale_free(target, tau0))
    straight = [(1.0, 1.0, 1.0, 0.0, 3.0, 1.0, 1.0)]  # the moments of a linear layer

    def cost(first, second, share):
        """Finite-width error, (2, shares), for r_2 > 0 and r_2 < 0."""
        (q1, r1, q2, r2_squared), *_ = _curve(place, first, second, scaled, share)
        r2 = np.sqrt(np.where(r2_squared >= 0, r2_squared, np.nan))
        return np.array([sum(_fluctuation([*straight * place.before, first.moments(q1, r1), *straight * place.between,
                                           second.moments(q2, r), *straight * place.behind], place.trained))
                         for r in (r2, -r2)])

    best, floor = None, math.inf
    for first, second in product(bases, bases):
        share = _shares(place, first, second, scaled)
        (*_, r2_squared), least, _ = _curve(place, first, second, scaled, share)
        floor = np.fmin(floor, np.fmin.reduce(least))
        feasible = np.flatnonzero(r2_squared >= 0)
        if not len(feasible):
            continue
        costs = cost(first, second, share[feasible])
        sign, at = np.unravel_index(np.argmin(costs), costs.shape)
        if best is None or costs[sign, at] < best[0]:
            best = costs[sign, at], first, second, sign, share, feasible[at]
    if best is None and math.isfinite(floor):
        raise _too_large(place, bases, floor, scaled[0])
    if best is None:
        raise MatchError(f"{place.describe(bases)} cannot have c2/c3 = {scaled[1] / scaled[2]:.6g} with tau_0^2 c3/c1 "
                         f"= {scaled[2] / place.c1:.6g}: no first layer has the w that it takes")
    value, first, second, sign, grid, at = best
    share, left, right = grid[at], grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)]
    # between grid points, so that parameters vary smoothly with the target
    refined = minimize_scalar(lambda s: np.nan_to_num(cost(first, second, s)[sign], nan=1e300), bounds=(left, right),
                              method="bounded", options=dict(xatol=1e-6 * (right - left), maxiter=40))
    if refined.fun < value:
        share = refined.x
    (q1, r1, q2, r2_squared), *_ = _curve(place, first, second, scaled, share)
    return _build(place, [first, second], [q1, q2], [r1, (-1)**sign * math.sqrt(r2_squared)], target, tau0)


# ---------------------------------------------------------------------------------------------------------------
# the families: (target, tau0, trained, depth) -> layers and their parameters, or a MatchError

def _solve(family, most_ramps, target, tau0, trained, depth):
    """Two curved layers of `depth`, or one of one: the fewest kinks first, then any place for the linear layers."""
    misses, linear = [], depth - 2
    places = [_Place(trained, 1)] if depth == 1 else [
        _Place(trained, 2, before, between, linear - before - between)
        for before in range(linear + 1) for between in range(linear + 1 - before)]
    for ramps in range(1, most_ramps + 1):
        for place in places:
            try:
                return (_one_layer if depth == 1 else _two_layers)(place, _bases(family, ramps), target, tau0)
            except MatchError as error:
                misses.append(error)
    raise min(misses, key=_gap)


def _solve_hard_tanh(target, tau0, trained, depth):
    ratio, c2, c3 = _scale_free(target, tau0)
    if not _is_odd(target, tau0):
        raise MatchError(f"a hard tanh is odd and has c2 = c3 = 0, the target has tau_0^2 c2/c1 = {c2:.6g} and "
                         f"tau_0^2 c3/c1 = {c3:.6g}")
    if trained != "all":  # with its only layer frozen, the tangent kernel is the conjugate one
        found = one_layer_tanh.match(target, tau0)
        return found.layers, (dict(a=found.a, c=found.c),)
    # clip(x, -c, c) at u = c/tau_0 has mu = 1/erf(u/sqrt 2): kappa^2/(tau_0^2 beta_1) = (N + mu)/2 grows as u falls

    def excess(u):
        inside = math.erf(u / math.sqrt(2))
        return one_layer_tanh._excess_ratio(u) + math.erfc(u / math.sqrt(2)) / inside - 2 * (ratio - 1)

    low, high = 0.3, 8.0  # a sharper step would do, but its few sloping units make the finite-width error explode
    if not excess(low) > 0 > excess(high):
        raise MatchError(f"a hard tanh with c >= {low} tau_0 has kappa^2/(tau_0^2 beta_1) in (1, "
                         f"{ratio + excess(low) / 2:.4g}), the target has {ratio:.9g}")
    u = brentq(excess, low, high, xtol=1e-16, rtol=4 * 2.0**-52)
    found = one_layer_tanh.HardTanhMatch(math.sqrt(target.c1 / 2) / math.erf(u / math.sqrt(2)), u * tau0)
    return found.layers, (dict(a=found.a, c=found.c),)


def _solve_l_relu(target, tau0, trained, depth):
    if trained == "readout":
        found = min(two_layer_lrelu.solutions(target, tau0, _TOLERANCE),
                    key=lambda match: sum(fluctuation(match.layers, tau0, trained)))
        return found.layers, (dict(a=found.a1, b=found.b1), dict(a=found.a2, b=found.b2))
    # xi + q e has two parameters in two layers: c2 and c3 fix them, and the diagonal is what it is
    place, basis = _Place(trained, 2), _absolute_value()
    scaled = tuple(place.c1 * value for value in _scale_free(target, tau0))
    shares = [] if _is_odd(target, tau0) else _roots(lambda s: _curve(place, basis, basis, scaled, s)[2],
                                                     np.linspace(0, 1, 65)[:-1])
    if not shares:
        raise MatchError("no pair of leaky-ReLU layers has this beta_2/beta_3")
    has = []
    for share in shares:
        first = basis.moments(math.sqrt(share * scaled[2] / place.weights(0)[0]), 0.0)
        second = basis.moments(math.sqrt((1 - share) * scaled[2] / place.weights(1)[0] * first[0]), 0.0)
        a, b = place.diagonal(first)
        has.append((a * second[0] + b * second[1]) / place.c1)
    raise MatchError(f"two leaky-ReLU layers with this c2 and c3 have diag/(tau_0^2 c1) = "
                     f"{' or '.join(f'{value:.9g}' for value in has)}, the target has {scaled[0] / place.c1:.9g}")


_SOLVERS = {"hard_tanh": _solve_hard_tanh, "l_relu": _solve_l_relu,
            "piecewise": partial(_solve, "piecewise", 4), "hermite": partial(_solve, "hermite", 1)}
_ATTEMPTS = [("hard_tanh", 1), ("l_relu", 2), ("piecewise", 1), ("hermite", 1), ("piecewise", 2), ("hermite", 2),
             ("piecewise", 3), ("hermite", 3), ("hermite", 4), ("hermite", 5), ("hermite", 6)]
