"""A DEQ and an explicit network are compared seed by seed: intervals, tests of a difference and of equality, Holm.

The networks of one seed share data, order and first-layer weights, so their accuracies are compared seed by seed. An
interval that holds 0 does not show that two networks are equal: three seeds will do for that. Equality within a margin
is shown by two one-sided tests (TOST): that the mean difference is above -margin, and that it is below +margin.

References: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987), two one-sided tests; Holm, Scand. J. Stat. 6 (1979).
"""

import math
from dataclasses import dataclass

from deq_enn.reporting.style import mean_std

MARGIN = 0.5  # percentage points within which accuracies count as equal
ROUNDING = 1e-9  # standard error in points below which seeds agree to the last digit
LEAST_SEEDS = 8  # number of seeds below which equality is not claimed


@dataclass(frozen=True)
class Paired:
    """The differences, one a seed, have a `mean` and `half`, half the width of the 95% interval of the paired t.

    half, p_difference and p_equality are NaN for a single seed.
    """

    n: int
    mean: float
    half: float
    half_90: float
    p_difference: float
    p_equality: float

    @property
    def enough(self) -> bool:
        """Says whether there are seeds enough to claim equality."""
        return self.n >= LEAST_SEEDS


def compare(values: dict[int, float], others: dict[int, float], margin: float = MARGIN) -> Paired | None:
    """Compares {seed: value} with another over the seeds that both have; returns None if they share no seed.

    p_difference is two-sided, of a mean of 0. p_equality is the larger of the two one-sided ones, so that it is below
    5% exactly where the 90% interval lies inside (-margin, margin).
    """
    differences = [values[seed] - others[seed] for seed in values if seed in others]
    if not differences:
        return None
    mean, std = mean_std(differences)
    n = len(differences)
    if n == 1:
        return Paired(1, mean, math.nan, math.nan, math.nan, math.nan)
    from scipy.special import stdtr, stdtrit  # scipy.stats.t's own, without the half second that its import takes

    error = std / math.sqrt(n)

    def above(distance):
        """Returns the p-value of a mean this far above the bound; where all seeds agree it is 0 or 1.

        That few seeds agree to the last digit may be chance, as accuracies are counts: then it is 1.
        """
        if error > ROUNDING:
            return float(stdtr(n - 1, -distance / error))
        return float(distance <= 0 or n < LEAST_SEEDS)

    return Paired(
        n,
        mean,
        float(stdtrit(n - 1, 0.975)) * error,
        float(stdtrit(n - 1, 0.95)) * error,
        min(1.0, 2 * above(abs(mean))),
        max(above(margin + mean), above(margin - mean)),
    )


def holm(p_values: list[float]) -> list[float]:
    """Returns Holm's adjusted p-values: below a level, they are significant at it with all tested together."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def in_words(
    paired: Paired, p_difference: float, p_equality: float, margin: float = MARGIN, level: float = 0.05
) -> str:
    """Says what the adjusted p-values show; both answers may hold, as a small difference can be a sure one."""
    if not paired.enough:
        return f"not enough seeds ({paired.n} of {LEAST_SEEDS})"
    answers = [f"equal within {margin:g}"] if p_equality < level else []
    answers += ["higher" if paired.mean > 0 else "lower"] if p_difference < level else []
    return ", yet ".join(answers) or "undecided"
