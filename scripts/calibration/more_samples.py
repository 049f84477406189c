"""The fresh cases of scripts/calibrate.py once more, with 6,000 to 10,000 samples in place of 1,000 to 3,000.

They tell how many samples a decision takes. A case has the data, the DEQ and the width of a fresh one, and samples of
its own. It sets no constant. The truth is that of the user's own draw on 10,000 to 30,000 test samples, as data that
are drawn have as many as one likes. Two other seeds give the mean, which is too few to judge it by.
"""

if __name__ == "__main__":
    raise SystemExit("more_samples.py is a part of scripts/calibrate.py: run that")

from dataclasses import dataclass

from scripts.calibration.cases import Case
from scripts.calibration.fresh import KINDS, FreshCase, fresh_cases

SAMPLES = {1000: 6000, 1500: 7000, 2000: 8000, 3000: 10_000}  # number of samples of a fresh case: here
LEAST = 6000  # samples of a case of this file, at least; the other fresh cases have fewer
NARROW, WIDEST = 64, 128  # widths up to which cases come first, and up to which there are any
FEW_TESTS, TESTS = 10_000, 30_000  # test samples in few dimensions and of images, and of other data
SEEDS = 2  # of the weights, beside the user's own


@dataclass(frozen=True)
class LargeCase(FreshCase):
    """This is a case of this file."""

    @property
    def tests(self) -> int:
        few = *KINDS["few dimensions"], *KINDS["Fashion-MNIST"]
        return FEW_TESTS if self.data in few else TESTS

    @property
    def seeds(self) -> int:
        return SEEDS


def large_cases() -> list[Case]:
    """Returns all of them, narrow ones first, in the order of the fresh cases: any first part is a fair sample."""
    return sorted(_with_more_samples(), key=lambda case: case.width > NARROW)


def fresh_twins() -> dict[str, str]:
    """Returns {name of a case: name of the fresh one that it is, with more samples}."""
    return {case.name: fresh.name for case, fresh in _with_more_samples().items()}


def _with_more_samples() -> dict[LargeCase, Case]:
    return {
        LargeCase(case.data, case.activation, case.sigma_a2, case.width, SAMPLES[case.n]): case
        for case in fresh_cases()
        if case.width <= WIDEST
    }
