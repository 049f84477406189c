"""The loss of a network in the place of a DEQ, with its interval, from small measurements of it.

Loss: accuracy of the DEQ less that of the network, in percentage points, each with its ridge readout, in expectation
over the seeds of the weights. It is measured with width m and n samples, by leave-one-out (`leave_one_out.py`), and
wanted at a width and a number of samples that may be too dear to be measured. Between the two stands a Gaussian process
with a mean of zero over

    u = log(1 + n/m),   w = log n:

n/m is what decides how far the readout of m random features is from kernel ridge regression, whose difference, exact,
is a point at u = 0. The covariance is amplitude^2 exp(-|du|/length_u - |dw|/length_w), so that the nearest measurements
count and what was not measured is unknown by as much as the amplitude, which the measurements themselves decide: a
scale mixture, with a prior of a few tenths of a point. A loss that is not known is thereby drawn to zero, which is also
what is due to the luckiest of several candidates.

A measurement's own error has three parts. Samples: the spread of the difference over samples, of which seeds of the
weights take their share away, and which measurements on the same samples have in common. Seeds: the spread of the mean
difference. Discrepancy: what leave-one-out on these samples and the readout on all of them may differ by.

References: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 2; Kennedy & O'Hagan, J. R.
Stat. Soc. B 63 (2001), for the discrepancy of a computer model.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

LEVEL = 0.90  # of the intervals


@dataclass(frozen=True)
class Discrepancy:
    """The constants of the interval, in percentage points where they have a unit.

    amplitude : prior standard deviation of a loss. spread : of the logarithm to base 2 of what multiplies it.
    length_u, length_w : over which the loss is correlated, see above.
    floor : standard deviation of what no measurement here tells.
    seeds : prior standard deviation of the loss of one seed, as a share of the samples that the two networks of a seed
        tell apart; weight : of this prior, in seeds.
    shared : correlation of the samples' part of the error at different widths.
    """

    amplitude: float = 0.5
    spread: float = 1.5
    length_u: float = 3.0
    length_w: float = 3.0
    floor: float = 0.05
    seeds: float = 0.04
    weight: float = 2.0
    shared: float = 0.7


CONSTANTS = Discrepancy()


@dataclass(frozen=True)
class Measured:
    """The loss at one width (math.inf: the exact kernel) and number of samples, and the variance of its error."""

    width: float
    count: int
    loss: float
    of_samples: float
    of_seeds: float
    seeds: int


@dataclass(frozen=True)
class Interval:
    """mean, and the quantiles low and high that hold the loss with probability LEVEL."""

    mean: float
    low: float
    high: float


def measured(width: float, differences: np.ndarray, group: np.ndarray,
             constants: Discrepancy = CONSTANTS) -> Measured:
    """Of the differences of being right.

    Parameters
    ----------
    differences : (seeds, n), 1 where the DEQ alone is right, -1 where the network alone is.
    group : (n,) integers, the same for copies of a sample.
    """
    seeds, n = differences.shape
    each = 100 * differences.mean(0)
    loss = each.mean()
    # one more sample on which they differ, since there may be some where none was seen
    of_samples = (np.bincount(group, each - loss)**2).sum() / n**2 + (100 / n)**2 / seeds
    if math.isinf(width):
        return Measured(width, n, loss, of_samples, 0.0, seeds)
    of_one = (constants.seeds * 100 * np.abs(differences).mean())**2
    if seeds > 1:
        means = 100 * differences.mean(1)
        rest = (100 * differences - each - means[:, None] + loss)**2
        noise = rest.sum() / ((seeds - 1) * (n - 1)) / n  # of the mean of one seed, from samples alone
        found = max(means.var(ddof=1) - noise, 0.0)
        of_one = (constants.weight * of_one + (seeds - 1) * found) / (constants.weight + seeds - 1)
    return Measured(width, n, loss, of_samples, of_one / seeds, seeds)


def _coordinates(points):
    return np.array([[math.log1p(n / m), math.log(n)] for m, n in points])


def _correlation(a, b, constants):
    u, w = (np.abs(np.subtract.outer(a[:, k], b[:, k])) for k in (0, 1))
    return np.exp(-u / constants.length_u - w / constants.length_w)


def _error_covariance(points, constants):
    n = np.array([p.count for p in points], float)
    common = constants.shared * np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))
    np.fill_diagonal(common, 1.0)
    of_samples = np.sqrt([p.of_samples for p in points])
    return common * np.outer(of_samples, of_samples) + np.diag([p.of_seeds for p in points])


def predict(points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS) -> Interval:
    """The loss at this width and number of samples, given measurements at others (none: the prior)."""
    powers = np.arange(-3, 7)
    log_weights = -0.5 * (powers / constants.spread)**2
    amplitudes2 = (constants.amplitude * 2.0**powers)**2
    means, variances = np.zeros(len(powers)), amplitudes2.copy()
    if points:
        at = _coordinates([(p.width, p.count) for p in points])
        among = _correlation(at, at, constants)
        across = _correlation(at, _coordinates([(width, count)]), constants)[:, 0]
        errors, losses = _error_covariance(points, constants), np.array([p.loss for p in points])
        for k, amplitude2 in enumerate(amplitudes2):
            root = np.linalg.cholesky(amplitude2 * among + errors)
            y, c = (np.linalg.solve(root, v) for v in (losses, amplitude2 * across))
            means[k], variances[k] = c @ y, amplitude2 - c @ c
            log_weights[k] -= 0.5 * y @ y + np.log(root.diagonal()).sum()
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    deviations = np.sqrt(np.maximum(variances, 0) + constants.floor**2)

    def quantile(level):
        low, high = (means - 9 * deviations).min(), (means + 9 * deviations).max()
        return brentq(lambda x: weights @ ndtr((x - means) / deviations) - level, low, high, xtol=1e-6)

    return Interval(float(weights @ means), quantile((1 - LEVEL) / 2), quantile((1 + LEVEL) / 2))


def width_from(points: list[Measured], count: int, tolerance: float, constants: Discrepancy = CONSTANTS) -> int | None:
    """The least power of two from 32 to 65,536 from which on the upper end of the interval is below the tolerance."""
    found = None
    for width in (2**k for k in range(16, 4, -1)):
        if not predict(points, width, count, constants).high < tolerance:
            break
        found = width
    return found
