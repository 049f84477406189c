"""This file computes Gaussian expectations and the moments of activations, all in float64.

Everything downstream (tau, the kernel coefficients, the matching, the exact kernels) sees an activation only
through such integrals. An expectation over xi ~ N(0, 1) is a sum over panels. They end at the kinks of the integrand,
narrow towards the kinks and towards 0, and are cut until coarse and fine panels agree. Sampling a grid across a kink,
as is often done, stops at an error of about 1e-4.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise, Shifted, unshifted
from deq_enn.theory.quadrature import EPS, adapt, graded, lobatto


# ---------------------------------------------------------------------------------------------------------------
# expectations
def expectation(f: Elementwise, kinks: Iterable[float] = ()) -> float:
    """Returns E[f(xi)] for xi ~ N(0, 1), to an absolute 1e-12 (relative, where E|f| exceeds 1).

    Parameters
    ----------
    f : elementwise function on a float64 tensor.
    kinks : points where f is not smooth. Bisection locates those that are left out, at some cost.

    Raises
    ------
    ValueError : f is not finite, not elementwise, varies too quickly, or grows too fast.

    Notes
    -----
    f is only sampled, so that a peak away from 0 and from the kinks is seen only if it is wider than about 1e-2. About
    0 and the kinks panels narrow to 1e-12, and any peak is seen there.
    """
    return expectations(lambda xi: (f(xi),), kinks)[0]


def expectations(f: Callable[[torch.Tensor], Sequence[torch.Tensor]], kinks: Iterable[float] = ()) -> list[float]:
    """Returns the expectation of each function whose values f returns, on panels that resolve all of them."""

    def rows(x):
        values = f(torch.from_numpy(x))
        if any(not isinstance(y, torch.Tensor) or y.shape != x.shape for y in values):
            raise ValueError("the function is not elementwise: it must map a tensor to a tensor of the same shape")
        return np.stack([y.detach().numpy() for y in values])

    # nodes are so dense at the ends of a panel that it sees a peak as narrow as the next finer panel
    panels, _ = adapt(rows, graded({0.0, *kinks}, 256.0 ** -np.arange(1, 6)), 1.0)
    return [sums.sum() for sums in panels.sums(panels.values)]


def centre(activation: Activation, tau: float) -> Activation:
    """Returns phi(x) = f(x) - E[f(tau xi)]; an activation already centred at tau is returned as it is."""
    mean = expectation(lambda x: activation.fn(tau * x), [k / tau for k in activation.kinks])
    if abs(mean) < 1e-15:
        return activation
    return replace(activation, fn=Shifted(activation.fn, -mean))


def centred_layers(activations: Iterable[Activation], tau0: float) -> list[Activation]:
    """Returns the layers of a network with these activations, each centred at the scale of its own input."""
    layers, tau = [], tau0
    for activation in activations:
        layers.append(centre(activation, tau))
        tau = math.sqrt(gaussian_moments(activation, tau).variance)
    return layers


# ---------------------------------------------------------------------------------------------------------------
# moments
_AGREE = 1e-10  # share of d1 to which a function and its derivative must agree


@dataclass(frozen=True)
class GaussianMoments:
    """These are the moments at tau xi, xi ~ N(0, 1), of an activation f centred at tau: phi = f - E[f(tau xi)].

    mean = E[f], variance = E[phi^2], d1 = E[phi'], d2 = E[phi''], d1_sq = E[phi'^2], sq_dd = E[(phi^2)''], where the
    derivatives are those of distributions, so that a jump counts in each. jumps has the places where f jumps; if there
    is any, d1_sq is infinite.
    """

    mean: float
    variance: float
    d1: float
    d2: float
    d1_sq: float
    sq_dd: float
    jumps: tuple[float, ...] = ()


def gaussian_moments(activation: Activation, tau: float) -> GaussianMoments:
    """Returns the moments of the activation centred at tau > 0, the standard deviation of the pre-activation.

    Their relative error is about 1e-12, where nothing cancels (as E|f'| may in d1). Where tau is small, d2 also has an
    error of about 1e-17 d1/tau, the rounding of the derivative.

    Raises
    ------
    ValueError : the function has no finite moments, varies too quickly at this scale (sin at 1e5), or `derivative` is
        not that of `fn`: its integral is compared with `fn` panel by panel, and d1 with Stein's E[xi f(tau xi)]/tau.

    Notes
    -----
    If f is continuous, d1 = E[f']. By Stein's lemma, E[g'(tau xi)] = E[xi g(tau xi)]/tau, d2 = E[xi f']/tau and
    sq_dd = 2 E[xi phi f']/tau, so that the kinks of a piecewise-linear activation contribute as they must. phi is taken
    as the integral of f' wherever that is f - f(0) to rounding: it keeps the digits that f - f(0) loses at small tau.

    If f jumps, d1 = E[xi phi]/tau, d2 = E[(xi^2 - 1) phi]/tau^2 and sq_dd = E[(xi^2 - 1) phi^2]/tau^2, which hold
    for any f, and d1_sq = inf. A jump that makes less than 1e-10 of d1 is taken for rounding.
    """
    if not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be positive and finite, got {tau}")
    return _moments(activation, float(tau))


@lru_cache(maxsize=8192)  # a match asks for tau_*, and for the moments of each layer, several times
def _moments(activation, tau):
    panels, noise, spread = _resolve(activation, tau)
    x, weights, (f, df, df_sq) = panels.x, panels.weights, panels.values

    def mean_of(values):
        return float(np.vdot(weights, values))

    # the integral of df from 0 outwards, panel by panel; f minus this is constant apart from jumps
    integral, zero = _antiderivative(panels, tau), np.searchsorted(panels.left, 0.0)
    ends = integral[:, -1]
    integral += np.concatenate([-np.cumsum(ends[:zero][::-1])[::-1], [0.0], np.cumsum(ends[zero:-1])])[:, None]
    shifted = f - f[zero, 0]
    gap, density = (shifted - integral).reshape(-1), panels.density.reshape(-1)[1:] / tau
    steps = (gap[1:] - gap[:-1]) * density  # what each makes of d1
    tolerance = _AGREE * mean_of(abs(df))
    jump = abs(steps) > tolerance + 2 * density * noise.reshape(-1)[1:]

    slope, d1 = mean_of(df), mean_of(x * shifted) / tau
    if spread or abs(slope + steps[jump].sum() - d1) > tolerance + mean_of((1 + abs(x)) * noise) / tau:
        at = np.unravel_index(np.argmax(abs(shifted - integral) * panels.density), x.shape)
        raise ValueError(
            f"activation {activation.name}: its derivative is not that of its function. From x = 0 to "
            f"{tau * x[at]:.6g} the function grows by {shifted[at]:.12g}, the integral of the derivative by "
            f"{integral[at]:.12g}; at scale {tau:.6g}, E[f'] = {slope:.12g}, while by Stein's lemma "
            f"E[xi f(tau xi)]/tau = {d1:.12g}"
        )

    mean = mean_of(f)
    if jump.any():
        phi, curved = f - mean, (x * x - 1) / tau**2
        return GaussianMoments(
            mean,
            mean_of(phi**2),
            d1,
            mean_of(curved * phi),
            math.inf,
            mean_of(curved * phi**2),
            _places(activation, tau, (x.reshape(-1)[1:] + x.reshape(-1)[:-1])[jump] / 2),
        )
    phi = np.where(abs(gap.reshape(x.shape)) <= noise, integral, shifted)
    phi = phi - mean_of(phi)
    return GaussianMoments(
        mean, mean_of(phi**2), slope, mean_of(x * (df - slope)) / tau, mean_of(df_sq), 2 * mean_of(x * phi * df) / tau
    )


def _resolve(activation, tau):
    """Returns panels that resolve f, f' and f'^2, the rounding of f there, and whether f and f' belong together.

    On the panels f is the integral of f' apart from jumps. Where the two part in many places, they do not belong
    together.
    """

    def integrands(xi):
        x = torch.from_numpy(tau * xi)
        f, df = activation.fn(x), activation.derivative(x)
        if f.shape != x.shape or df.shape != x.shape:
            raise ValueError(f"activation {activation.name} is not elementwise")
        f, df = f.detach().numpy(), df.detach().numpy()
        with np.errstate(over="ignore"):  # what is not finite is refused
            return np.stack([f, df, df * df])

    bound = activation.lipschitz if math.isfinite(activation.lipschitz) else 0.0
    added = abs(unshifted(activation.fn)[1])  # the constant that centres f; what it is added to is about as large

    def rounding(panels, largest):  # that of f, of its argument, and of intermediate values such as the exp(x) in elu
        f, df, _ = panels.values
        inner = bound + np.minimum(bound * tau * abs(panels.x), largest)
        return 64 * EPS * (abs(f) + added + tau * abs(df * panels.x) + inner)

    def inspect(panels, scale):
        # whether f' is resolved by its interpolant, and whether the integral of that is f
        tail = abs(panels.values[1] @ lobatto().spectrum[-2:].T).max(1) * (panels.right - panels.left)
        gap = panels.values[0] - _antiderivative(panels, tau)
        gap = (gap.max(1) - gap.min(1)) * panels.density.max(1)
        noise = (rounding(panels, largest) * panels.density).max(1)
        return tail * panels.density.max(1) > 1e-12 * scale[1], gap > 0.01 * _AGREE * tau * scale[1] + noise

    # the activation varies on a scale of 1 in x, about 0 and about its kinks
    steps = () if activation.slopes else 2.0 ** np.arange(math.ceil(math.log2(max(tau, 1.0)))) / tau
    edges = graded({0.0, *(k / tau for k in activation.kinks)}, steps)
    try:
        largest = abs(integrands(np.linspace(-38, 38, 39))[0]).max() if tau > 1 else math.inf
        panels, spread = adapt(integrands, edges, np.array([bound, 0.0, 0.0]), inspect)
    except ValueError as error:
        raise ValueError(f"activation {activation.name} at scale {tau:.6g}: {error}") from None
    return panels, rounding(panels, largest), spread


def _antiderivative(panels, tau):
    """Returns the integral of f' over x = tau xi, from the left end of each panel to each of its nodes."""
    return tau * (panels.right - panels.left)[:, None] / 2 * (panels.values[1] @ lobatto().integral.T)


def _places(activation, tau, jumps):
    """Returns each place x where the function jumps once; where that is a declared kink or 0, exactly that."""
    places = []
    for place in (tau * jumps).tolist():
        place = next((k for k in (0.0, *activation.kinks) if abs(place - k) < 1e-11 * tau), place)
        if not places or place - places[-1] > 1e-11 * tau:
            places.append(place)
    return tuple(places)
