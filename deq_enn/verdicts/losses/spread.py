"""This estimates how far draws of the weights spread, where what is seen of it holds the noise of the samples too.

The means of S draws, each over the same n samples, vary by the spread of the draws, whose variance B is asked for, and
by what the samples add to each mean, whose expected variance N is known. With few samples, or many copies, N is many
times B, and what is seen less N is mostly chance, however many draws there are. So B has a prior, and is drawn away
from it as far as the draws really tell of it:

    seen ~ (B + N) chi2(S - 1) / (S - 1),    B ~ scaled inverse chi2.

Its posterior has no closed form, and is summed on a grid. Without noise, its mean is the weighted mean of the prior's
and of what was seen.

Reference: Gelman et al., Bayesian Data Analysis, 3rd edition, 2013, sections 2.6 and 5.4.
"""

from collections.abc import Sequence

import numpy as np

STEP = 0.05  # distance of two points of the grid, in log B
MARGIN = 8.0  # distance of the grid's ends from all that is seen or supposed, in log B


def variance_of_draws(
    prior: float, weight: float, seen: Sequence[float], freedom: Sequence[float], noise: Sequence[float]
) -> float:
    """Returns the posterior mean of the variance B of draws, from variances of their means that hold noise.

    Parameters
    ----------
    prior, weight : mean of B before any draw is seen, and for how many degrees of freedom it stands.
    seen, freedom : variances of the means of draws, all of the same B, and their degrees of freedom.
    noise : the part of each that the samples add in expectation, N.
    """
    if not len(seen):
        return prior
    v, f, N = (np.asarray(values, float) for values in (seen, freedom, noise))
    ends = np.log(np.append(v[v > 0], prior))
    log_B = np.arange(ends.min() - MARGIN, ends.max() + MARGIN, STEP)
    B = np.exp(log_B)
    total = B[:, None] + N
    # two degrees of freedom more than `weight`, so that the mean of the prior is `prior`
    log_density = -(weight + 2) / 2 * log_B - weight * prior / (2 * B) - 0.5 * (f * (np.log(total) + v / total)).sum(1)
    density = np.exp(log_density - log_density.max())
    return float(density @ B / density.sum())
