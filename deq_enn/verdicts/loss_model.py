"""The loss of a network in the place of a DEQ, with its interval, from small measurements of it.

Loss: accuracy of the DEQ less that of the network, in percentage points, each with its ridge readout, in expectation
over the seeds of the weights. It is measured with width m and n samples, by leave-one-out (`leave_one_out.py`), and
wanted at a width and a number of samples that may be too dear to be measured. Between the two stands a Gaussian process
with a mean of zero over

    u = log(1 + n/m),   w = log n:

n/m is what decides how far the readout of m random features is from kernel ridge regression, whose difference, exact,
is a point at u = 0. A loss is in proportion to d, the samples, in percent, that only one of the two networks has right.
The covariance is amplitude^2 d d' exp(-|du|/length_u - |dw|/length_w): the nearest measurements count, and what was not
measured is unknown by amplitude times d. The amplitude is decided by the measurements themselves, a scale mixture. A
loss that is not known is thereby drawn to zero, which is also what is due to the luckiest of several candidates. d is
measured with the loss; elsewhere log d is linear in log m and log n, with priors on the slopes.

A measurement's own error has two parts. Samples: the spread of the difference over samples, of which seeds of the
weights take their share away, and which measurements on the same samples have in common. Seeds: the spread of the mean
difference. What leave-one-out on these samples and the readout on all of them may differ by is the constant `floor`.

References: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 2; Kennedy & O'Hagan, J. R.
Stat. Soc. B 63 (2001), for the discrepancy of a computer model.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

LEVEL = 0.90  # of the intervals


@dataclass(frozen=True)
class Discrepancy:
    """The constants of the interval; amplitude, spread, lengths, floor and seeds are set as docs/calibration.md says.

    amplitude : prior standard deviation of a loss, as a share of d. spread : of the logarithm to base 2 of what
        multiplies it.
    length_u, length_w : over which the loss is correlated, see above.
    floor : standard deviation of what no measurement here tells, in points.
    seeds : prior standard deviation of the loss of one seed, as a share of d; weight : of this prior, in seeds.
    common : prior share of the variance over samples that all seeds have in common.
    shared : correlation of the samples' part of the error at different widths.
    slope_m, slope_n : prior means of d log d / d log m and d log d / d log n; slopes : their standard deviation;
        scatter : of log d about the line.
    """

    amplitude: float = 0.25
    spread: float = 1.2
    length_u: float = 2.1
    length_w: float = 25.0
    floor: float = 0.052
    seeds: float = 0.064
    weight: float = 2.0
    common: float = 0.05
    shared: float = 0.7
    slope_m: float = -0.35
    slope_n: float = -0.1
    slopes: float = 0.2
    scatter: float = 0.15


CONSTANTS = Discrepancy()


@dataclass(frozen=True)
class Measured:
    """The loss at one width (math.inf: the exact kernel) and number of samples, and the variances of its error.

    apart : d, samples that only one of the two has right, in percent.
    one : variance of the difference on one sample with one seed; common : its part that all seeds have.
    of_samples : of the loss, from the samples. of_one_seed : of the loss of one seed, from the weights.
    """

    width: float
    count: int
    loss: float
    seeds: int
    apart: float
    one: float
    common: float
    of_samples: float
    of_one_seed: float

    @property
    def of_seeds(self) -> float:
        return self.of_one_seed / self.seeds

    def supposed(self, width: int, count: int, seeds: int, apart: float) -> "Measured":
        """What a measurement elsewhere would know, if its samples and seeds spread in proportion to this one's."""
        ratio = apart / self.apart
        of_samples = ratio * (self.common + (self.one - self.common) / seeds) / count
        return replace(
            self,
            width=width,
            count=count,
            seeds=seeds,
            apart=apart,
            of_samples=of_samples,
            of_one_seed=ratio**2 * self.of_one_seed,
        )


@dataclass(frozen=True)
class Interval:
    """mean, and the quantiles low and high that hold the loss with probability LEVEL."""

    mean: float
    low: float
    high: float


def measured(width: float, differences: np.ndarray, group: np.ndarray, constants: Discrepancy = CONSTANTS) -> Measured:
    """Of the differences of being right.

    Parameters
    ----------
    differences : (seeds, n), 1 where the DEQ alone is right, -1 where the network alone is.
    group : (n,) integers, the same for copies of a sample.
    """
    seeds, n = differences.shape
    each = 100 * differences.mean(0)
    loss, one = each.mean(), (100 * differences).var(1).mean()
    # one more sample on which they differ, since there may be some where none was seen
    apart, unseen = 100 * (np.abs(differences).mean() + 1 / n), (100 / n) ** 2 / seeds
    of_samples = (np.bincount(group, each - loss) ** 2).sum() / n**2 + unseen
    if math.isinf(width):
        return Measured(width, n, loss, seeds, apart, one, one, of_samples, 0.0)
    common, of_one = constants.common * one, (constants.seeds * apart) ** 2
    if seeds > 1:
        means = 100 * differences.mean(1)
        rest = ((100 * differences - each - means[:, None] + loss) ** 2).sum() / ((seeds - 1) * (n - 1))
        common = max(each.var() - rest / seeds, 0.0)
        found = max(means.var(ddof=1) - rest / n, 0.0)  # without what the samples alone make of one seed's mean
        of_one = (constants.weight * of_one + (seeds - 1) * found) / (constants.weight + seeds - 1)
    return Measured(width, n, loss, seeds, apart, one, common, of_samples, of_one)


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


def expected_apart(points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS) -> float:
    """d at this width and number of samples, by the line through log d of the measurements of finite width."""
    finite = [p for p in points if not math.isinf(p.width)]
    if not finite or math.isinf(width):
        return max((p.apart for p in points), default=5.0)
    x = np.array([[math.log(p.width / width), math.log(p.count / count)] for p in finite])
    slopes = np.array([constants.slope_m, constants.slope_n])
    y = np.log([p.apart for p in finite]) - x @ slopes
    # the covariance of y given the value at the target, which has a flat prior
    covariance = constants.scatter**2 * np.eye(len(x)) + constants.slopes**2 * x @ x.T
    weights = np.linalg.solve(covariance, np.ones(len(x)))
    return float(np.exp(weights @ y / weights.sum()))


class Posterior:
    """The loss at a width and number of samples, given measurements at others (none: the prior).

    Attributes
    ----------
    weights, means, variances : of the Gaussians whose mixture it is, one for each amplitude.
    log_evidence : of the measurements, by which constants can be compared.
    """

    def __init__(self, points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS):
        powers = np.arange(-3, 4)  # a loss is at most d
        self.target, self.constants = (width, count), constants
        self.apart = expected_apart(points, width, count, constants)
        self.amplitudes2 = (constants.amplitude * 2.0**powers) ** 2  # of loss/d
        log_weights = -0.5 * (powers / constants.spread) ** 2
        log_weights -= np.logaddexp.reduce(log_weights)
        self.means, self.variances = np.zeros(len(powers)), self.amplitudes2 * self.apart**2
        if points:
            losses = np.array([p.loss for p in points])
            for k, (root, across) in enumerate(self._factors(points)):
                y, c = (np.linalg.solve(root, v) for v in (losses, across))
                self.means[k], self.variances[k] = c @ y, self.variances[k] - c @ c
                log_weights[k] -= 0.5 * y @ y + np.log(root.diagonal()).sum() + 0.5 * len(y) * math.log(2 * math.pi)
        self.log_evidence = float(np.logaddexp.reduce(log_weights))
        self.weights = np.exp(log_weights - self.log_evidence)

    def _factors(self, points):
        """For each amplitude the Cholesky factor of the measurements' covariance, and theirs with the target."""
        at = _coordinates([(p.width, p.count) for p in points])
        d = np.array([p.apart for p in points])
        among = _correlation(at, at, self.constants) * np.outer(d, d)
        across = _correlation(at, _coordinates([self.target]), self.constants)[:, 0] * d * self.apart
        errors = _error_covariance(points, self.constants)
        return [(np.linalg.cholesky(a2 * among + errors), a2 * across) for a2 in self.amplitudes2]

    @property
    def variance(self) -> float:
        """Mean of those of the mixture."""
        return float(self.weights @ self.variances) + self.constants.floor**2

    def variance_given(self, points: list[Measured]) -> float:
        """What the variance would be with these measurements instead, whatever they find."""
        explained = [((c := np.linalg.solve(root, across)) @ c) for root, across in self._factors(points)]
        return float(self.weights @ (self.amplitudes2 * self.apart**2 - explained)) + self.constants.floor**2

    def interval(self) -> Interval:
        deviations = np.sqrt(np.maximum(self.variances, 0) + self.constants.floor**2)
        ends = (self.means - 9 * deviations).min(), (self.means + 9 * deviations).max()

        def quantile(level):
            return brentq(lambda x: self.weights @ ndtr((x - self.means) / deviations) - level, *ends, xtol=1e-6)

        return Interval(float(self.weights @ self.means), quantile((1 - LEVEL) / 2), quantile((1 + LEVEL) / 2))


def predict(points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS) -> Interval:
    """The loss at this width and number of samples, given measurements at others."""
    return Posterior(points, width, count, constants).interval()


def width_from(points: list[Measured], count: int, tolerance: float, constants: Discrepancy = CONSTANTS) -> int | None:
    """The least power of two from 32 to 65,536 from which on the upper end of the interval is below the tolerance."""
    found = None
    for width in (2**k for k in range(16, 4, -1)):
        if not predict(points, width, count, constants).high < tolerance:
            break
        found = width
    return found


def nearest(points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS) -> Measured:
    """The measurement of finite width that is correlated most with one at this width and number of samples."""
    finite = [p for p in points if not math.isinf(p.width)]
    at = _coordinates([(p.width, p.count) for p in finite])
    return finite[int(_correlation(at, _coordinates([(width, count)]), constants)[:, 0].argmax())]
