"""The loss of a network in the place of a DEQ is predicted here, with its interval, from small measurements of it.

The loss is the accuracy of the DEQ less that of the network, in percentage points, each with its ridge readout, in
expectation over the seeds of the weights. It is measured by leave-one-out (`machines.leave_one_out`) at widths m and
numbers of samples n that are cheap. It is wanted at a width and a number of samples that may be too expensive to
measure. A Gaussian process with mean zero connects the two. Its inputs are

    u = log(1 + n/m),   w = log n.

The ratio n/m decides how far the readout of m random features is from kernel ridge regression. The loss of the exact
kernels is therefore a measurement too, at u = 0.

A loss scales with d, the share of samples (in percent) that only one of the two networks classifies correctly. The
covariance of two losses is amplitude^2 d d' exp(-|du|/length_u - |dw|/length_w). So the nearest measurements count
most, and far from all of them the loss is uncertain by amplitude times d. The measurements themselves decide the
amplitude: the prior is a mixture of seven amplitudes. The mean of zero shrinks a loss that is poorly known towards
zero. That is also the right correction for picking the luckiest of several candidates. d is measured with the loss;
elsewhere log d is linear in log m and log n, with priors on the slopes, and what that leaves uncertain of d widens the
interval.

A measurement has two errors of its own.

Sampling error: how much the accuracy difference varies from sample to sample. Averaging over seeds reduces part of it;
the rest is common to all measurements on the same samples, which the covariance takes into account. The samples that
are left out in turn share all others, so that their mean varies more than that of independent ones: `dependence`.

Seed error: how much the mean difference varies from one draw of the weights to the next (`losses.spread`).

The loss of one draw of the weights differs from the mean by the seed error of that draw alone. Where the very draw that
the user has was measured, its own result tells most of that; else it is one more variance.

A third error shows in no measurement: leave-one-out on these samples may differ from the readout on all of them. Its
standard deviation is the constant `floor`, and for a large loss the share `relative` of it.

References: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 2; Kennedy & O'Hagan, J. R.
Stat. Soc. B 63 (2001), for the discrepancy of a computer model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from deq_enn.verdicts.losses.points import CONSTANTS, Discrepancy, Measured

LEVEL = 0.90  # probability that an interval holds the loss
UNMEASURED = 20.0  # d of a network of which nothing is known at finite width, in percent
AMPLITUDES = np.arange(-3, 4)  # powers of two of the mixture's amplitudes, about Discrepancy.amplitude


@dataclass(frozen=True)
class Interval:
    """This has the mean of a loss, the quantiles low and high that hold it with probability LEVEL, and its risk.

    risk : probability that the loss is above the tolerance that was named.
    """

    mean: float
    low: float
    high: float
    risk: float


def coordinates(places: Sequence[tuple[float, int]]) -> np.ndarray:
    """Returns (u, w) of each (width, number of samples), as rows."""
    return np.array([[math.log1p(n / m), math.log(n)] for m, n in places])


def correlation(a: np.ndarray, b: np.ndarray, constants: Discrepancy) -> np.ndarray:
    """Returns the prior correlations of the losses, in units of d, at two lists of `coordinates`."""
    u, w = (np.abs(np.subtract.outer(a[:, k], b[:, k])) for k in (0, 1))
    return np.exp(-u / constants.length_u - w / constants.length_w)


def _error_covariance(points, constants):
    """Returns the covariance of the errors: a part of the samples that all share, the rest of them, and the seeds.

    Measurements of the user's own draw share the rest and the seed as well, as they are of the same weights, and of the
    first only what averaging over seeds does not reduce.
    """
    n = np.array([p.count for p in points], float)
    near = np.sqrt(np.minimum.outer(n, n) / np.maximum.outer(n, n))
    of_samples = constants.dependence * np.array([p.of_samples for p in points])
    shared = constants.dependence * np.array(
        [min(p.common / p.count, p.of_samples) if p.own else constants.shared * p.of_samples for p in points]
    )
    widths = np.array([p.width if p.own else -1 - k for k, p in enumerate(points)])
    same = np.equal.outer(widths, widths)  # for others than own draws the diagonal alone
    rest, seeds = np.sqrt(of_samples - shared), np.sqrt([p.of_seeds for p in points])
    covariance = near * np.outer(np.sqrt(shared), np.sqrt(shared))
    return covariance + same * (near * np.outer(rest, rest) + near ** (2 * constants.decay) * np.outer(seeds, seeds))


def log_apart(
    points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS
) -> tuple[float, float]:
    """Returns the mean and the variance of log d at this width and number of samples.

    The mean is on the line fitted to log d of the points of finite width. At a place that was measured, d is known.
    """
    finite = [p for p in points if not math.isinf(p.width)]
    if math.isinf(width) or not finite:  # where exact kernels agree, networks of finite width need not
        largest = max((p.apart for p in points), default=UNMEASURED)
        return math.log(largest if math.isinf(width) else UNMEASURED), 0.0
    x = np.array([[math.log(p.width / width), math.log(p.count / count)] for p in finite])
    slopes = np.array([constants.slope_m, constants.slope_n])
    y = np.log([p.apart for p in finite]) - x @ slopes
    counted = 100 / np.array([p.apart * p.count * p.seeds for p in finite])  # of so many samples that differ
    about_line = constants.scatter**2 * np.minimum(np.abs(x).sum(1), 1)
    # the covariance of y given the value at the target, which has a flat prior
    covariance = np.diag(counted + about_line) + constants.slopes**2 * x @ x.T
    weights = np.linalg.solve(covariance, np.ones(len(x)))
    return float(weights @ y / weights.sum()), float(1 / weights.sum())


def expected_apart(points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS) -> float:
    """Returns d at this width and number of samples, in percent."""
    return math.exp(log_apart(points, width, count, constants)[0])


class Posterior:
    """This is the distribution of the loss at a width and number of samples, given measurements at others.

    Without measurements it is the prior. It is a mixture of Gaussians, one for each amplitude.

    Parameters
    ----------
    draw : whether the loss is that of one draw of the weights, the user's own where a point is `own`, and not the mean.

    Attributes
    ----------
    weights, means, variances : of the Gaussians, for the expected d. log_variance : of log d.
    log_evidence : log probability of the measurements, by which constants can be compared.
    """

    def __init__(
        self, points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS, draw: bool = False
    ):
        self.target, self.constants, self.draw = (width, count), constants, draw
        mean, self.log_variance = self._log_apart(points)
        self.apart = math.exp(mean)
        self.of_draw = self._variance_of_draw(points) if draw else 0.0
        self.amplitudes2 = (constants.amplitude * 2.0**AMPLITUDES) ** 2  # of loss/d, whose size is at most 1
        log_weights = -0.5 * (AMPLITUDES / constants.spread) ** 2
        log_weights -= np.logaddexp.reduce(log_weights)
        self.means, self.variances = np.zeros(len(AMPLITUDES)), self._prior_variances()
        if points:
            losses = np.array([p.loss for p in points])
            for k, (root, across) in enumerate(self._factors(points)):
                y, c = (np.linalg.solve(root, v) for v in (losses, across))
                self.means[k], self.variances[k] = c @ y, self.variances[k] - c @ c
                log_weights[k] -= 0.5 * y @ y + np.log(root.diagonal()).sum() + 0.5 * len(y) * math.log(2 * math.pi)
        self.log_evidence = float(np.logaddexp.reduce(log_weights))
        self.weights = np.exp(log_weights - self.log_evidence)

    def _log_apart(self, points):
        """Returns what `log_apart` does; where the draw that is asked for was measured, its own d counts."""
        own = [p for p in points if p.own and p.width == self.target[0]] if self.draw else []
        return log_apart(own or points, *self.target, self.constants)

    def _variance_of_draw(self, points):
        """Returns the variance over draws of the weights, as a share of d^2 that is that of the nearest measurement."""
        if all(math.isinf(p.width) for p in points):
            return (self.constants.seeds * self.apart) ** 2
        own = [p for p in points if p.own and p.width == self.target[0]]
        closest = nearest(own or points, *self.target, self.constants)
        return closest.of_one_seed * (self.apart / closest.apart) ** 2

    def _factors_of_apart(self):
        """Returns lognormal factors of mean 1 by which d may be off its expectation (5,), and their probabilities."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(5)
        return np.exp(math.sqrt(self.log_variance) * nodes - self.log_variance / 2), weights / weights.sum()

    def _prior_variances(self):
        return self.amplitudes2 * self.apart**2 + self.of_draw

    def _factors(self, points):
        """Returns, by amplitude, the Cholesky factor of the points' covariance and their covariance with the target."""
        at = coordinates([(p.width, p.count) for p in points])
        d = np.array([p.apart for p in points])
        among = correlation(at, at, self.constants) * np.outer(d, d)
        across = correlation(at, coordinates([self.target]), self.constants)[:, 0] * d * self.apart
        errors, of_draw = _error_covariance(points, self.constants), self._of_own_draw(points)
        return [(np.linalg.cholesky(a2 * among + errors), a2 * across + of_draw) for a2 in self.amplitudes2]

    def _of_own_draw(self, points):
        """Returns the covariance of the points and the target that comes from their being of the same draw."""
        width, count = self.target
        return np.array(
            [
                math.sqrt(self.of_draw * p.of_one_seed) * min(p.count / count, count / p.count) ** self.constants.decay
                if p.own and p.width == width
                else 0.0
                for p in points
            ]
        )

    @property
    def variance(self) -> float:
        """Returns the mean variance of the Gaussians, with that of d and `floor`."""
        return self._mean_variance(self.variances, self.log_variance)

    def variance_given(self, points: list[Measured]) -> float:
        """Returns the variance to expect if these were the measurements; their losses do not enter it."""
        explained = [((c := np.linalg.solve(root, across)) @ c) for root, across in self._factors(points)]
        return self._mean_variance(self._prior_variances() - explained, self._log_apart(points)[1])

    def _mean_variance(self, variances, log_variance):
        of_apart = math.expm1(log_variance) * (variances + self.means**2)  # of a lognormal factor of mean 1
        return float(self.weights @ (variances + of_apart)) + self.constants.floor**2

    def interval(self, tolerance: float) -> Interval:
        """Returns the mean, the central interval of probability LEVEL and the risk, with what no measurement shows."""
        factors, shares = self._factors_of_apart()
        weights, means = np.outer(shares, self.weights).ravel(), np.outer(factors, self.means).ravel()
        variances = np.outer(factors**2, np.maximum(self.variances, 0)).ravel()
        deviations = np.sqrt(variances + self.constants.floor**2 + (self.constants.relative * means) ** 2)
        lower, upper = (means - 9 * deviations).min(), (means + 9 * deviations).max()

        def quantile(level):
            def excess(x):
                return weights @ ndtr((x - means) / deviations) - level

            return cast(float, brentq(excess, lower, upper, xtol=1e-6))

        risk = float(weights @ ndtr((means - tolerance) / deviations))
        return Interval(float(weights @ means), quantile((1 - LEVEL) / 2), quantile((1 + LEVEL) / 2), risk)


def predict(
    points: list[Measured],
    width: float,
    count: int,
    constants: Discrepancy = CONSTANTS,
    draw: bool = False,
    tolerance: float = 0.0,
) -> Interval:
    """Returns the interval of the loss at this width and number of samples, given measurements at others.

    draw : as of `Posterior`. tolerance : in points, of the risk.
    """
    return Posterior(points, width, count, constants, draw).interval(tolerance)


def width_from(
    points: list[Measured], count: int, tolerance: float, risk: float, constants: Discrepancy = CONSTANTS
) -> int | None:
    """Returns the least width from which on the mean loss is above the tolerance with less than this risk.

    It is one of 32, 64, ..., 65,536, or None, as where nothing of finite width was measured.
    """
    least = None
    if all(math.isinf(point.width) for point in points):
        return least
    for width in (2**k for k in range(16, 4, -1)):
        if not predict(points, width, count, constants, tolerance=tolerance).risk < risk:
            break
        least = width
    return least


def nearest(points: list[Measured], width: float, count: int, constants: Discrepancy = CONSTANTS) -> Measured:
    """Returns the measurement of finite width whose loss is most correlated with the one here."""
    finite = [p for p in points if not math.isinf(p.width)]
    at = coordinates([(p.width, p.count) for p in finite])
    return finite[int(correlation(at, coordinates([(width, count)]), constants)[:, 0].argmax())]
