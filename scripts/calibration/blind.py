"""Oversampled rows that may set constants, dealt as the fresh cases of scripts/calibrate.py are.

Only two of the fresh cases have oversampled rows and a truth, and neither may set constants.
"""

if __name__ == "__main__":
    raise SystemExit("blind.py is a part of scripts/calibrate.py: run that")

from scripts.calibration.cases import Case, sets_constants
from scripts.calibration.fresh import WIDTHS, FreshCase, dealt, fresh_cases, shuffled

SEED = 2028
NARROW = 128  # largest width of the oversampled rows
DEALT = 4  # times as many cases are dealt, as about half of them may set constants
COPIES = 10  # cases of oversampled rows that may set constants


def copies_cases() -> list[Case]:
    """Oversampled rows that may set constants, narrow ones first."""
    seen = {case.name for case in fresh_cases()}
    new = _many({"oversampled": COPIES}, SEED + 1, NARROW)
    kept = [case for case in new if sets_constants(case.name) and case.name not in seen][:COPIES]
    return sorted(kept, key=lambda case: (case.width, case.digest))


def _many(counts, seed, widest) -> list[FreshCase]:
    """DEALT times as many cases, in the order in which they were dealt, in the shares of widths of the fresh cases."""
    total = DEALT * sum(counts.values())
    narrow = {width: count for width, count in WIDTHS.items() if width <= widest}
    deck = [width for width, count in narrow.items() for _ in range(count)]
    some = shuffled(deck * (total // len(deck) + 1), "some widths", seed)[:total]
    widths = {width: some.count(width) for width in narrow}
    return list(dealt({name: DEALT * count for name, count in counts.items()}, widths, seed).values())
