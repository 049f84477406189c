"""A user's function with declared kinks may be linear between them: then its kernels have the closed forms of such.

Wherever a Gaussian variable of the samples' scales reaches, its derivative is looked at on a grid that is fine about
each kink, and the function is compared there with the one that has these slopes. So it is not taken for another
function: the closed forms integrate the very values that a quadrature would see.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from deq_enn.theory.activations import Activation, piecewise_linear

REACH = 14.0  # standard deviations, beyond which there is exp(-98) of a Gaussian variable
_EVEN = 2000  # points of an interval between two kinks
_GRADED = 40  # points more towards each end, each half as far from it as the one before
ROUNDING = 64 * torch.finfo(torch.float64).eps  # error of a value, relative to its size


def between_kinks(
    activation: Activation, kinks: Sequence[float], reach: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns points (kinks + 1, points) between -reach, the sorted kinks and reach, and f and f' there."""
    edges = torch.tensor([-reach, *kinks, reach], dtype=torch.float64)
    graded = 0.5 ** torch.arange(2, 2 + _GRADED, dtype=torch.float64)
    places = torch.cat([graded.flip(0), (torch.arange(_EVEN, dtype=torch.float64) + 0.5) / _EVEN, 1 - graded])
    x = edges[:-1, None] + edges.diff()[:, None] * places
    values, slopes = (each(x.flatten()).detach().view_as(x) for each in (activation.fn, activation.derivative))
    return x, values, slopes


def with_slopes(activation: Activation, scale: float) -> Activation:
    """Returns the activation with its slopes where it is piecewise linear, else as it is.

    scale : the largest scale at which the activation is asked for.
    """
    if activation.slopes or not activation.kinks:
        return activation
    reach = REACH * scale
    kinks = sorted({k for k in activation.kinks if abs(k) < reach})
    x, values, slopes = between_kinks(activation, kinks, reach)
    own = slopes[:, _GRADED + _EVEN // 2]
    largest = own.abs().max()
    if not bool(((slopes - own[:, None]).abs() <= ROUNDING * largest).all()):  # NaN is not, either
        return activation
    bends = [(k, i) for i, k in enumerate(kinks) if abs(own[i + 1] - own[i]) > ROUNDING * largest]
    kept = [own[0].item(), *(own[i + 1].item() for _, i in bends)]
    at_zero = activation.fn(torch.zeros(1, dtype=torch.float64)).item()
    same = piecewise_linear(activation.name, (k for k, _ in bends), kept, at_zero)
    apart = (same.fn(x) - values).abs()
    if not bool((apart <= ROUNDING * len(kinks) * (values.abs() + largest * reach)).all()):
        return activation
    return replace(activation, kinks=same.kinks, slopes=same.slopes)
