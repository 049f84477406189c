"""The loss of accuracy of one network beside another on the same samples, with its interval, and normal quantiles.

This is the loss of networks that are what they are: they have been fitted, and only the samples are drawn, and a few
seeds of the second network. Other questions have estimators of their own, which say how they differ:
`reporting.statistics.compare` (trainings seed by seed), `machines.scores.bootstrap_difference` (two predictions, with
no normal law), `verdicts.losses.points.measured` (leave-one-out, where copies are left out together, for a
prediction at other widths) and `verdicts.losses.classes` (measures that are no mean over samples).
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Z_90 = 1.6448536269514722  # standard deviations on either side of the mean that hold 90% of a normal law
Z_95 = 1.959963984540054  # standard deviations on either side of the mean that hold 95% of a normal law


def paired_loss(right: "torch.Tensor", others: "torch.Tensor") -> tuple[float, tuple[float, float]]:
    """Returns the accuracy of a network less that of another, in points, and its 90% interval over samples and seeds.

    Parameters
    ----------
    right, others : (n,) and (seeds, n) of bool, whether each is right on the same samples.

    Notes
    -----
    The numbers of samples that only the first has right, and that only the other has, are taken as Poisson's, each with
    the interval k + z^2/2 ± z sqrt(k + z^2/4) of its score, and their difference has the interval of both (Zou &
    Donner, Statistics in Medicine 27 (2008)). So it holds where few samples differ, and mostly one way. What seeds
    differ by is added, with the quantile of Student's t of as many degrees of freedom as both have together (Welch,
    1947). Chance that belongs to a seed and a sample counts in both.
    """
    differences = right.double() - others.double()
    seeds, n = differences.shape
    each = differences.mean(0)
    lost, gained = (_score_limits(part.square().sum().item()) for part in (each.clamp_min(0), each.clamp_max(0)))
    of_seeds = differences.mean(1).var().item() * n**2 / seeds if seeds > 1 else 0.0
    total, loss = each.square().sum().item(), 100 * each.mean().item()
    wider = _quantile((total + 1, of_seeds), seeds - 1) / Z_90
    if total:  # of n samples, so that a large loss varies less than Poisson's law would have it
        wider *= math.sqrt(max(1 - each.sum().item() ** 2 / (n * total), 1 / n))
    low, high = (
        100 / n * wider * math.sqrt(down**2 + up**2 + Z_90**2 * of_seeds)
        for down, up in ((lost[0], gained[1]), (gained[0], lost[1]))
    )
    return loss, (loss - low, loss + high)


def _score_limits(count: float) -> tuple[float, float]:
    """Returns how far the 90% limits of a Poisson law's mean lie below and above its count."""
    root = Z_90 * math.sqrt(count + Z_90**2 / 4)
    return root - Z_90**2 / 2, root + Z_90**2 / 2


def _quantile(variances: tuple[float, float], degrees: int) -> float:
    """Returns the 95% quantile for a sum of two variances, of which the second has so many degrees of freedom."""
    first, second = variances
    if not second:
        return Z_90
    from scipy.special import stdtrit

    return float(stdtrit(degrees * ((first + second) / second) ** 2, 0.95))
