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
    One more sample is taken to differ: where no difference was seen there may still be a few. Chance that belongs to a
    seed and a sample counts in the variances over both, so that intervals of several seeds are a little too wide.
    """
    differences = 100 * (right.double() - others.double())
    seeds, n = differences.shape
    each = differences.mean(0)
    variance = each.var().item() / n + (100 / n) ** 2 / seeds
    if seeds > 1:
        variance += differences.mean(1).var().item() / seeds
    loss, half = each.mean().item(), Z_90 * math.sqrt(variance)
    return loss, (loss - half, loss + half)
