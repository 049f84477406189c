"""The diagonal of a convolutional kernel is made of an activation's moments at the scales of all pixels.

In a convolutional DEQ the variance q(p) of the pre-activation at a pixel p of an image is that of its window,

    q = M [sigma_a^2 E[phi(sqrt(q) xi)^2] + sigma_b^2 S],    S(p) = |x(p)|^2/c,

with M the mean over the window. Newton's method solves it for all pixels of all images at once.

A pixel may be 0 in every image, and so may its window. Its q is what the equation says: positive where phi(0) is not 0,
or where something reaches it from other pixels.
"""

import math

import numpy as np
import torch

from deq_enn.kernels.box_filter import BoxFilter, WindowEquation
from deq_enn.kernels.sample_scales import KinkedMoments, OfScale, Scales, SmallMoments, moments_between
from deq_enn.theory.activations import Activation
from deq_enn.theory.equilibrium import check_stable
from deq_enn.theory.gaussian import gaussian_moments

_EPS = np.finfo(np.float64).eps
_STEPS = 500  # Newton or plain steps at most
_ROUNDED = 1e-11  # residual, relative to an image's largest q, below which one that does not shrink is rounding
_TINY = 1e-12  # share of the largest scale; scales below it have the moments of that one


class _Moments:
    """This is E[phi^2] at scales of pixels, and its derivative in q = scale^2. The table grows where it must."""

    def __init__(self, activation: Activation, centre: float):
        self.activation, self.centre = activation, centre
        self.low = self.high = 0.0
        self.table: OfScale | KinkedMoments | SmallMoments | None = None

    def covering(self, s: np.ndarray) -> OfScale | KinkedMoments | SmallMoments:
        """Returns the table of moments on an interval that holds these scales."""
        low, high = s.min(), s.max()
        if self.table is None or low < self.low or high > self.high:
            self.low = min(self.low, low / 1.25) if self.low else low / 1.25
            self.high = max(self.high, 1.25 * high)
            self.table = moments_between(self.activation, self.low, self.high)
        return self.table

    def second(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns E[phi^2] and its derivative in q, of the shape of q > 0."""
        s = np.sqrt(q.reshape(-1))
        s = np.maximum(s, _TINY * s.max())
        table = self.covering(s)
        (mean, variance, *_), (d_mean, d_variance, *_) = table(s).T, table(s, derivative=True).T
        mean = mean - self.centre
        slope = (d_variance + 2 * mean * d_mean) / (2 * s * s)
        return (variance + mean**2).reshape(q.shape), slope.reshape(q.shape)


def implicit_pixel_scales(
    activation: Activation, sigma_a2: float, base: np.ndarray, centre: float, tau: float, M: BoxFilter
) -> Scales:
    """Solves q = sigma_a^2 M E[phi(sqrt(q) xi)^2] + base at all pixels.

    Parameters
    ----------
    base : (h, w, n), sigma_b^2 M S, not 0 everywhere.
    centre : phi = f - centre. tau : a scale to begin with.

    Returns
    -------
    Scales of h w n entries, pixel by pixel, in the order of `base.reshape(-1)`.

    Raises
    ------
    ValueError : the equation has no solution, or not a stable one, or sigma_a^2 E[f'^2] is not below 1 at a pixel.
    """
    check_stable(activation, sigma_a2, (at_tau := gaussian_moments(activation, tau)).d1_sq, at_tau.jumps)
    at_zero = activation.fn(torch.zeros(1, dtype=torch.float64)).item() - centre
    # an image without any input, and phi(0) = 0, has the equilibrium 0
    alive = base.any((0, 1)) | (abs(at_zero) > 1e-14 * math.sqrt(at_tau.variance))
    moments = _Moments(activation, centre)
    q = np.zeros_like(base)
    q[..., alive] = _solve(activation, sigma_a2, base[..., alive], at_tau.variance, moments, M)
    s = np.sqrt(q).reshape(-1)
    positive = s > 0
    least = max(s[positive].min(), _TINY * s.max())
    some = np.maximum(s, least)
    mean, variance, d1, d2, d1_sq = moments.covering(some)(some).T
    check_stable(activation, sigma_a2, d1_sq.max())
    return Scales(s, np.where(positive, mean - centre, 0.0), np.where(positive, variance, 0.0), d1, d2, d1_sq)


def _solve(activation, sigma_a2, base, variance, moments, M):
    """Returns q for images that have one which is not 0."""

    def filtered(x):
        return M(torch.from_numpy(x)).numpy()

    q = base + sigma_a2 * variance * filtered(np.ones_like(base))
    best = math.inf
    for _ in range(_STEPS):
        value, slope = moments.second(q)
        if not np.isfinite(value).all() or q.max() > 1e16 * (base.max() + variance):
            raise ValueError(
                f"the diagonal of the convolutional kernel has no fixed point for activation {activation.name} at "
                f"sigma_a^2 = {sigma_a2:g}: sigma_a^2 E[phi^2] outgrows the pixels' variance; take a smaller sigma_a^2"
            )
        residual = base + sigma_a2 * filtered(value) - q
        size = np.abs(residual / q.max((0, 1))).max()
        if size <= 4 * _EPS or size >= best / 2 and size <= _ROUNDED:
            return q
        step = residual
        if sigma_a2 * np.abs(slope).max() < 0.95 and size < 2 * best:
            step = WindowEquation(M, sigma_a2, torch.from_numpy(slope))(torch.from_numpy(residual), 1e-6).numpy()
        best = min(best, size)
        new = q + step
        q = np.where(new > 0, new, q + residual)  # a plain step stays positive
    raise ValueError(
        f"the diagonal of the convolutional kernel of {activation.name} at sigma_a^2 = {sigma_a2:g} did not converge "
        f"in {_STEPS} steps; images far smaller than others take many: leave these out, or take a smaller sigma_a^2"
    )
