"""Gaussian expectations and moments, Hermite coefficients.

Everything downstream (tau, the kernel coefficients, the matching, the exact kernels) sees an activation only
through the integrals of this file. All of it is float64. An expectation over xi ~ N(0, 1) is a sum over panels that end
at the kinks of the integrand, narrow towards them and towards 0, and are halved until they agree with themselves;
sampling a grid across a kink, as is often done, stops at about 1e-4.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from deq_enn.theory.activations import Activation, Elementwise
from deq_enn.theory.quadrature import EPS, adapt, graded, lobatto


# ---------------------------------------------------------------------------------------------------------------
# expectations
def expectation(f: Elementwise, kinks=()) -> float:
    """E[f(xi)] for xi ~ N(0, 1), absolute error at most 1e-12 (relative, where E|f| exceeds 1).

    Parameters
    ----------
    f : elementwise function on a float64 tensor.
    kinks : points where f is not smooth. Those left out are found by bisection, at some cost.

    Raises
    ------
    ValueError : f is not finite, not elementwise, varies too quickly, or grows too fast.

    Notes
    -----
    f is sampled: a peak away from 0 and from the kinks is seen only if it is wider than about 1e-2. Panels narrow to
    1e-12 about 0 and the kinks, and there any peak is seen.
    """
    return expectations(lambda xi: (f(xi),), kinks)[0]


def expectations(f: Callable[[torch.Tensor], Sequence[torch.Tensor]], kinks=()) -> list[float]:
    """`expectation` of each of the functions that f returns the values of, on panels that resolve all of them."""

    def rows(x):
        values = f(torch.from_numpy(x))
        if any(not isinstance(y, torch.Tensor) or y.shape != x.shape for y in values):
            raise ValueError("the function is not elementwise: it must map a tensor to a tensor of the same shape")
        return np.stack([y.detach().numpy() for y in values])

    # a panel's nodes lie so close at its ends that one of the next finer panel's width is seen there
    panels, _ = adapt(rows, graded({0.0, *kinks}, 256.0 ** -np.arange(1, 6)), 1.0)
    return [sums.sum() for sums in panels.sums(panels.values)]


def centre(activation: Activation, tau: float) -> Activation:
    """phi(x) = f(x) - E[f(tau xi)], the constant fixed; an activation already centred at tau is returned as it is."""
    mean = expectation(lambda x: activation.fn(tau * x), [k / tau for k in activation.kinks])
    if abs(mean) < 1e-15:
        return activation
    fn = activation.fn
    return replace(activation, fn=lambda x: fn(x) - mean)


# ---------------------------------------------------------------------------------------------------------------
# moments
_AGREE = 1e-10  # of d1: a function and its derivative must agree to this


@dataclass(frozen=True)
class GaussianMoments:
    """Moments at tau*xi, xi ~ N(0, 1), of an activation f centred at tau: phi = f - E[f(tau xi)].

    mean = E[f], variance = E[phi^2], d1 = E[phi'], d2 = E[phi''], d1_sq = E[phi'^2], sq_dd = E[(phi^2)''], where the
    derivatives are those of distributions: a jump counts in each. jumps : the places where f jumps; if there is one,
    d1_sq is infinite.
    """

    mean: float
    variance: float
    d1: float
    d2: float
    d1_sq: float
    sq_dd: float
    jumps: tuple[float, ...] = ()


def gaussian_moments(activation: Activation, tau: float) -> GaussianMoments:
    """Moments of the activation centred at tau. `tau` > 0 is the standard deviation of the pre-activation.

    Relative error about 1e-12, where no cancellation interferes (of E|f'|, say, in d1). Where tau is small, d2 has an
    error of about 1e-17 d1/tau as well, the rounding of the derivative.

    Raises
    ------
    ValueError : the function has no finite moments, varies too quickly at this scale (sin at 1e5), or `derivative` is
        not that of `fn`: its integral is compared with `fn` panel by panel, and d1 with Stein's E[xi f(tau xi)]/tau.

    Notes
    -----
    Where f is continuous: d1 = E[f'], and by Stein's lemma, E[g'(tau xi)] = E[xi g(tau xi)]/tau, d2 = E[xi f']/tau and
    sq_dd = 2 E[xi phi f']/tau, so that the kinks of a piecewise-linear activation contribute as they must. phi is
    the integral of f' where that is f - f(0) to rounding, as it keeps the digits which f - f(0) loses at small tau.

    Where f jumps: d1 = E[xi phi]/tau, d2 = E[(xi^2 - 1) phi]/tau^2 and sq_dd = E[(xi^2 - 1) phi^2]/tau^2, which hold
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

    # the integral of df from 0, outwards panel by panel: f less this is constant but for jumps
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
    """Panels on which f, f' and f'^2 are resolved and f is the integral of f' but for jumps; the rounding of f there;
    and whether the two part in so many places that they do not belong together."""

    def integrands(xi):
        x = torch.from_numpy(tau * xi)
        f, df = activation.fn(x), activation.derivative(x)
        if f.shape != x.shape or df.shape != x.shape:
            raise ValueError(f"activation {activation.name} is not elementwise")
        f, df = f.detach().numpy(), df.detach().numpy()
        with np.errstate(over="ignore"):  # what is not finite is refused
            return np.stack([f, df, df * df])

    bound = activation.lipschitz if math.isfinite(activation.lipschitz) else 0.0

    def rounding(panels, largest):  # of f, of its argument, and of intermediate values such as the exp(x) in elu
        f, df, _ = panels.values
        return 64 * EPS * (abs(f) + tau * abs(df * panels.x) + bound + np.minimum(bound * tau * abs(panels.x), largest))

    def inspect(panels, scale):
        # the interpolant of f', and whether its integral is f
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
    """The integral of f' over x = tau xi, from the left end of each panel to each of its nodes."""
    return tau * (panels.right - panels.left)[:, None] / 2 * (panels.values[1] @ lobatto().integral.T)


def _places(activation, tau, jumps):
    """Where the function jumps, in x: the declared kink or 0 if it is one, each place once."""
    found = []
    for place in (tau * jumps).tolist():
        place = next((k for k in (0.0, *activation.kinks) if abs(place - k) < 1e-11 * tau), place)
        if not found or place - found[-1] > 1e-11 * tau:
            found.append(place)
    return tuple(found)
