"""The diagonals of the exact kernels are made of an activation's moments at the samples' pre-activation scales.

Each sample's pre-activation is Gaussian, and its standard deviation is the sample's scale. The moments of the
activation are smooth functions of the scale, so that a Chebyshev interpolant in its logarithm replaces an integral for
each sample. Where scales spread too widely for one polynomial, the interval is halved.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import chebyshev

from deq_enn.theory.activations import Activation
from deq_enn.theory.brackets import root_between
from deq_enn.theory.equilibrium import check_stable, jump_places
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.deadline import check

CHUNK = 4_096  # scales at which an interpolant is evaluated at once, so that its arrays stay in a core's cache
_EPS = np.finfo(np.float64).eps


class OfScale:
    """This interpolates `table`, (N,) scales -> (N, k) values, on the interval [low, high] of scales.

    Parameters
    ----------
    floor : (scales (N,), values) -> (N, k) or (N, 1), magnitudes below which a column's relative error does not count.
    samples : (n,) scales where it will be evaluated; pieces of the interval without any of them are left out.
    degree : the only one that is tried, for a table that takes as long for many scales as for few.

    Raises
    ------
    ValueError : the table is not smooth, even on pieces whose ends differ by a hundredth.
    """

    def __init__(
        self,
        table: Callable[[np.ndarray], np.ndarray],
        low: float,
        high: float,
        name: str,
        floor: Callable[[np.ndarray, np.ndarray], np.ndarray],
        samples: np.ndarray | None = None,
        degree: int | None = None,
    ):
        self.pieces = []  # (left, right, coefficients (degree + 1, k)) in log s, from left to right
        waiting = [(math.log(low * (1 - 1e-6)), math.log(high * (1 + 1e-6)))]  # every interval has a length
        where = None if samples is None else np.log(samples)
        while waiting:
            if self.pieces:
                check()
            left, right = waiting.pop()
            if where is not None and not ((where >= left) & (where <= right)).any():
                continue
            coefficients = self._fit(table, left, right, floor, degree)
            if coefficients is not None:
                self.pieces.append((left, right, coefficients))
            elif right - left < 0.01:
                raise ValueError(
                    f"activation {name}: its Gaussian moments vary too quickly over the scales "
                    f"{math.exp(left):.3g} to {math.exp(right):.3g} of these samples"
                )
            else:
                middle = (left + right) / 2
                waiting += [(middle, right), (left, middle)]

    @staticmethod
    def _fit(table, left, right, floor, only):
        # each degree's nodes are among the next one's, and `gaussian_moments` keeps the moments there
        for degree in [only] if only else (4, 8, 16, 32, 64) if right - left < 0.1 else (8, 16, 32, 64):
            if degree > 8 * (right - left) + 32 and not only:
                break  # a higher degree does not help on a short piece that is not smooth
            nodes = chebyshev.chebpts2(degree + 1)
            scales = np.exp((left + right + (right - left) * nodes) / 2)
            values = table(scales)
            coefficients = np.linalg.solve(chebyshev.chebvander(nodes, degree), values)
            size = np.maximum(np.abs(values), floor(scales, values)).max(0)
            if (np.abs(coefficients[-2:]).max(0) <= 1e-13 * size).all():
                return coefficients[: int((np.abs(coefficients) > 1e-15 * size).any(1).nonzero()[0].max(initial=0)) + 1]
        return None

    def locate(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number of the piece that each scale falls into, and its place there from -1 to 1."""
        log_s = np.log(s)
        piece = np.searchsorted([left for left, *_ in self.pieces], log_s, side="right").clip(1, len(self.pieces)) - 1
        left, right = (np.array([p[side] for p in self.pieces])[piece] for side in (0, 1))
        return piece, ((2 * log_s - left - right) / (right - left)).clip(-1, 1)

    def __call__(self, s: np.ndarray, derivative: bool = False) -> np.ndarray:
        """Returns values (n, k) at scales (n,), or their derivatives in log s."""
        out = np.empty((len(s), self.pieces[0][2].shape[1]))
        for start in range(0, len(s), CHUNK):
            some = slice(start, start + CHUNK)
            self._fill(out[some], s[some], derivative)
        return out

    def _fill(self, out, s, derivative):
        piece, u = self.locate(s)
        for number, (left, right, coefficients) in enumerate(self.pieces):
            if (here := piece == number).any():
                if derivative:
                    coefficients = chebyshev.chebder(coefficients) * (2 / (right - left))
                out[here] = chebyshev.chebval(u[here], coefficients).T


@dataclass(frozen=True)
class Scales:
    """These are the samples' scales s and the moments of an activation there, all (n,) float64 arrays.

    mean = E[f] (minus the centring constant), variance = Var[f], d1 = E[f'], d2 = E[f''], d1_sq = E[f'^2].

    A sample whose pre-activation is 0 for all weights has no scale. It has the mean f(0) and the variance 0, and for
    the rest those of the least scale: they only enter multiplied by 0.
    """

    s: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    d1: np.ndarray
    d2: np.ndarray
    d1_sq: np.ndarray

    @property
    def second(self) -> np.ndarray:
        """Returns E[(f - centre)^2] at each scale."""
        return self.variance + self.mean**2


class KinkedMoments:
    """This has the moments of `moments_between` for f = const + m x + h |x|, whose scale is a factor of f - const.

    So they are exact at any scale, however small beside others.
    """

    def __init__(self, activation: Activation):
        self.const, self.at_1 = _at_zero(activation), gaussian_moments(activation, 1.0)

    def __call__(self, s: np.ndarray, derivative: bool = False) -> np.ndarray:
        """Returns values (n, 5) at scales (n,), or their derivatives in log s."""
        m, none = self.at_1, np.zeros_like(s)
        linear, square = (m.mean - self.const) * s, m.variance * s**2
        if derivative:
            return np.stack([linear, 2 * square, none, -m.d2 / s, none], 1)
        return np.stack([self.const + linear, square, none + m.d1, m.d2 / s, none + m.d1_sq], 1)


class SmallMoments:
    """This has the moments of `moments_between` for a function that is nearly 0 at 0, from an interpolant.

    Its variance is interpolated over the squared scale, so that it keeps its digits where a scale is far below others.
    """

    def __init__(self, interpolant: OfScale):
        self.interpolant = interpolant

    def __call__(self, s: np.ndarray, derivative: bool = False) -> np.ndarray:
        """Returns values (n, 5) at scales (n,), or their derivatives in log s."""
        values = self.interpolant(s, derivative)
        if derivative:
            values[:, 1] += 2 * self.interpolant(s)[:, 1]
        values[:, 1] *= s**2
        return values


def moments_between(
    activation: Activation, low: float, high: float, samples: np.ndarray | None = None
) -> OfScale | KinkedMoments | SmallMoments:
    """Returns (mean, variance, E[f'], E[f''], E[f'^2]) of an activation as it is, as functions of its scale.

    Raises ValueError for an activation with a jump, whose E[f'^2] is infinite. `OfScale` explains `samples`.
    """
    if activation.slopes and activation.kinks in ((), (0.0,)) and not gaussian_moments(activation, 1.0).jumps:
        return KinkedMoments(activation)

    def table(scales):
        moments = [gaussian_moments(activation, s) for s in scales]
        for m in moments:
            if m.jumps:
                raise ValueError(
                    f"the tangent kernel of {activation.name} is infinite, {jump_places(m.jumps)}: "
                    "E[f'^2] is; coefficients.explicit_ck has the conjugate kernel of a network with it"
                )
        values = np.array([[m.mean, m.variance, m.d1, m.d2, m.d1_sq] for m in moments])
        if small:
            values[:, 1] /= scales**2
        return values

    def floor(scales, values):
        square = scales**2 if small else 1.0
        size = np.sqrt(values[:, 1] * square + values[:, 0] ** 2)
        return np.stack([size, size**2 / square, size / scales, size / scales**2, 0 * size], 1)

    at_low = gaussian_moments(activation, low)
    small = at_low.mean**2 <= at_low.variance
    interpolant = OfScale(table, low, high, activation.name, floor, samples)
    return SmallMoments(interpolant) if small else interpolant


def explicit_scales(activation: Activation, s: np.ndarray) -> Scales:
    """Returns the moments at given scales (n,), of which some may be 0, of the activation as it is."""
    zero = s == 0
    if zero.any():
        s = np.where(zero, s[~zero].min(initial=np.inf), s) if not zero.all() else np.ones_like(s)
    scales = Scales(s, *moments_between(activation, s.min(), s.max(), s)(s).T)
    np.maximum(scales.variance, 0.0, out=scales.variance)  # of tiny scales beside others it is rounding
    if zero.any():
        scales.mean[zero], scales.variance[zero] = _at_zero(activation), 0.0
    return scales


def _at_zero(activation: Activation) -> float:
    return activation.fn(torch.zeros(1, dtype=torch.float64)).item()


def implicit_scales(activation: Activation, sigma_a2: float, norms2: np.ndarray, centre: float) -> Scales:
    """Solves s^2 = sigma_a^2 E[(f(s xi) - centre)^2] + sigma_b^2 |x|^2 for each of the squared norms (n,), not all 0.

    Raises
    ------
    ValueError : there is no such s, or not a stable one, or sigma_a^2 E[f'^2] is not below 1 at one of them: then the
        equilibrium is not stable, and the tangent kernel is infinite.
    """
    if not norms2.all():
        return _with_zeros(activation, sigma_a2, norms2, centre)
    low, high = (_scale_of(activation, sigma_a2, norm2, centre) for norm2 in (norms2.min(), norms2.max()))
    at_low = gaussian_moments(activation, low)
    if at_low.jumps:
        check_stable(activation, sigma_a2, at_low.d1_sq, at_low.jumps)
    moments = moments_between(activation, low, high)
    s = _scales_between(activation, sigma_a2, norms2, centre, moments, low, high)
    mean, *others = moments(s).T
    scales = Scales(s, mean - centre, *others)
    check_stable(activation, sigma_a2, scales.d1_sq.max())
    return scales


def _with_zeros(activation, sigma_a2, norms2, centre):
    """Returns the scales where some squared norms are 0: for these the limit of ever smaller norms."""
    zero = norms2 == 0
    others = implicit_scales(activation, sigma_a2, norms2[~zero], centre)
    least = others.s.min()

    def excess(s):
        m = gaussian_moments(activation, s)
        return sigma_a2 * (m.variance + (m.mean - centre) ** 2) - s * s

    low = high = 1e-12 * least
    while excess(high) > 0 and high < 2 * least:  # the scale grows with the norm
        low, high = high, 2 * high
    index = others.s.argmin()
    if high == low:  # f(0) = centre: the equilibrium is 0
        values = [least, 0.0, 0.0, others.d1[index], others.d2[index], others.d1_sq[index]]
    else:
        s = root_between(excess, low, high, xtol=1e-14 * low)
        m = gaussian_moments(activation, s)
        values = [s, m.mean - centre, m.variance, m.d1, m.d2, m.d1_sq]
        check_stable(activation, sigma_a2, m.d1_sq, m.jumps)
    whole = []
    for value, other in zip(values, (others.s, others.mean, others.variance, others.d1, others.d2, others.d1_sq)):
        whole.append(np.full(len(norms2), value))
        whole[-1][~zero] = other
    return Scales(*whole)


def _no_fixed_point(activation, sigma_a2, kind=""):
    return ValueError(
        f"the diagonal of the kernel has no {kind}fixed point for activation {activation.name} at sigma_a^2 = "
        f"{sigma_a2:g}: sigma_a^2 E[phi(s xi)^2] outgrows s^2; take a smaller sigma_a^2"
    )


def _scale_of(activation, sigma_a2, norm2, centre) -> float:
    """Returns the scale of one sample, by a bracket of its equation."""
    sigma_b2 = 1 - sigma_a2

    def excess(s):
        m = gaussian_moments(activation, s)
        return sigma_a2 * (m.variance + (m.mean - centre) ** 2) + sigma_b2 * norm2 - s * s

    low = high = math.sqrt(sigma_b2 * norm2)
    while excess(high) > 0:
        low, high = high, 2 * high
        if high > 1e8 * math.sqrt(norm2) + 1e8 * abs(centre):
            raise _no_fixed_point(activation, sigma_a2)
    return root_between(excess, low, high, xtol=1e-14 * low) if high > low else low


def _scales_between(activation, sigma_a2, norms2, centre, moments, low, high):
    """Returns the scales of all samples, which lie between those of the least and of the largest norm."""

    def second_moment(s):  # and its derivative in log s
        (mean, variance, *_), (d_mean, d_variance, *_) = moments(s).T, moments(s, derivative=True).T
        mean = mean - centre
        return variance + mean**2, d_variance + 2 * mean * d_mean

    grid = np.geomspace(low, high, 65)
    if (2 * grid**2 <= sigma_a2 * second_moment(grid)[1]).any():
        raise _no_fixed_point(activation, sigma_a2, "stable ")
    # s^2 increases with |x|^2; Newton's method in log s begins on the line between the two ends
    sigma_b2, spread = 1 - sigma_a2, max(np.log(norms2.max() / norms2.min()), _EPS)
    log_s = np.log(low) + np.log(high / low) * np.log(norms2 / norms2.min()) / spread
    size = np.inf
    for _ in range(100):
        s = np.exp(log_s)
        value, slope = second_moment(s)
        step = (s * s - sigma_a2 * value - sigma_b2 * norms2) / (2 * s * s - sigma_a2 * slope)
        log_s = np.clip(log_s - step, np.log(low), np.log(high))
        before, size = size, np.abs(step).max()
        if size < 4 * _EPS or size < 1e-12 and size > before / 2:  # the rest is rounding
            break
    return np.exp(log_s)
