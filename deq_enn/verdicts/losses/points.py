"""What a pass has measured of a loss: its value, and the variances of its error; and the constants of the model of it.

`losses.model` says what the parts of the error are, and leads from measurements to the loss that is asked for.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deq_enn.verdicts.losses.spread import variance_of_draws


@dataclass(frozen=True)
class Discrepancy:
    """These are the constants of the model. docs/calibration.md says how they were set.

    amplitude : prior standard deviation of a loss, as a share of d.
    spread : prior standard deviation of the amplitude's logarithm to base 2.
    length_u, length_w : correlation lengths of the loss in u and w.
    floor : standard deviation of the error that no measurement shows, in points.
    relative : the same as a share of the loss.
    seeds : prior standard deviation of the loss over seeds, as a share of d (`losses.spread`).
    pooled : weight of that prior, in seeds, beside what all candidates show (`measurements.of_this_case`).
    weight : weight of both together beside what one candidate shows, in seeds.
    decay : how fast one draw's deviation from the mean changes with n: its correlation is (n/n')^decay.
    common : prior share of the sampling variance that averaging over seeds does not reduce.
    dependence : variance of the mean over samples left out in turn, by that of as many independent samples.
    shared : correlation of the sampling errors at different widths.
    slope_m, slope_n : prior means of d log d / d log m and d log d / d log n.
    slopes : prior standard deviation of both slopes.
    scatter : standard deviation of log d about the line, a factor e or more away.
    """

    amplitude: float = 0.25
    spread: float = 1.2
    length_u: float = 2.1
    length_w: float = 25.0
    floor: float = 0.052
    relative: float = 0.05
    seeds: float = 0.08
    pooled: float = 5.0
    weight: float = 5.0
    decay: float = 1.0
    common: float = 0.05
    dependence: float = 1.3
    shared: float = 0.5
    slope_m: float = -0.35
    slope_n: float = -0.1
    slopes: float = 0.4
    scatter: float = 0.3


CONSTANTS = Discrepancy()


@dataclass(frozen=True)
class Measured:
    """This is the loss measured at one width and number of samples, with the variances of its error.

    width : math.inf stands for the exact kernel.
    count : number of samples. loss : in points, averaged over `seeds` draws of the weights.
    apart : d, the samples in percent that only one of the two networks classifies correctly.
    of_one_sample : variance of the accuracy difference over samples, for one seed.
    common : the part of it that averaging over seeds does not reduce.
    of_samples : variance of the loss due to the samples.
    of_one_seed : variance of the loss of one seed, due to its weights, as it is estimated.
    own : whether the weights are those of the DEQ and the network that the user has.
    seen, noise : variance of the means of the seeds as it was seen, and the part that the samples add to it in
        expectation.
    """

    width: float
    count: int
    loss: float
    seeds: int
    apart: float
    of_one_sample: float
    common: float
    of_samples: float
    of_one_seed: float
    own: bool = False
    seen: float = 0.0
    noise: float = 0.0

    @property
    def of_seeds(self) -> float:
        """Returns the variance of the loss due to the draws of the weights."""
        return self.of_one_seed / self.seeds

    def supposed(self, width: int, count: int, seeds: int, apart: float) -> "Measured":
        """Returns the measurement to expect elsewhere, if its errors scale with d as this one's do."""
        ratio = apart / self.apart
        of_samples = ratio * (self.common + (self.of_one_sample - self.common) / seeds) / count
        return replace(
            self,
            width=width,
            count=count,
            seeds=seeds,
            apart=apart,
            of_samples=of_samples,
            of_one_seed=ratio**2 * self.of_one_seed,
            own=False,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields ready for JSON: an infinite width is "inf", and the key of `of_one_sample` is "one"."""
        return {
            "one" if name == "of_one_sample" else name: value if math.isfinite(value) else "inf"
            for name, value in vars(self).items()
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Measured":
        """Returns the measurement that `to_dict` made these fields of."""
        renamed = {"of_one_sample" if name == "one" else name: value for name, value in fields.items()}
        renamed["width"] = float(renamed["width"])
        return cls(**renamed)


def measured(
    width: float,
    differences: np.ndarray,
    group: np.ndarray,
    constants: Discrepancy = CONSTANTS,
    like: Measured | None = None,
    own: bool = False,
) -> Measured:
    """Returns the loss and its variances, from which of the two networks classifies which sample correctly.

    Parameters
    ----------
    differences : (seeds, n), 1 where only the DEQ is right, -1 where only the network is, 0 elsewhere.
    group : (n,) integers, the same for samples that are left out together.
    like : the measurement of more seeds, from which the variance over seeds and the common part are taken.
    own : of the user's own draw.
    """
    seeds, n = differences.shape
    each = 100 * differences.mean(0)
    loss, of_one_sample = each.mean(), (100 * differences).var(1).mean()
    # one more sample is taken to differ: where no difference was seen there may still be a few
    apart, unseen = 100 * (np.abs(differences).mean() + 1 / n), (100 / n) ** 2 / seeds
    of_samples = (np.bincount(group, each - loss) ** 2).sum() / n**2 + unseen
    if math.isinf(width):
        return Measured(width, n, loss, seeds, apart, of_one_sample, of_one_sample, of_samples, 0.0)
    if like is not None:
        shown = dict(loss=loss, seeds=seeds, apart=apart, of_one_sample=of_one_sample, of_samples=of_samples)
        return replace(like, **shown, own=own)
    common = seen = noise = 0.0
    if seeds > 1:
        means = 100 * differences.mean(1)
        rest = 100 * differences - each - means[:, None] + loss
        common = max(each.var() - (rest**2).sum() / ((seeds - 1) * (n - 1)) / seeds, 0.0)
        seen = means.var(ddof=1)
        # what the samples add to the mean of a seed, those of a group together
        noise = sum((np.bincount(group, seed) ** 2).sum() for seed in rest) / n**2 / (seeds - 1)
    raw = Measured(width, n, loss, seeds, apart, of_one_sample, common, of_samples, 0.0, own, seen, noise)
    return estimated(raw, constants)


def estimated(point: Measured, constants: Discrepancy) -> Measured:
    """Returns the measurement with its variance over seeds by these constants, and the common part of one seed."""
    if math.isinf(point.width):
        return point
    prior = (constants.seeds * point.apart) ** 2
    if point.seeds == 1:
        return replace(point, common=constants.common * point.of_one_sample, of_one_seed=prior)
    spread = variance_of_draws(prior, constants.weight, [point.seen], [point.seeds - 1], [point.noise])
    return replace(point, of_one_seed=spread)
