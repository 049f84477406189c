"""More deals of the fresh cases of scripts/calibrate.py: two blind rounds, and oversampled rows to set constants by.

Each blind round was dealt, and the deal was kept, after the last change of the verdict and before any of its cases was
run. It has the kinds of the fresh cases in about their shares, only cases that report by the hash of their names, and
none that is wider than 512. Whatever of it was run is reported. The second was dealt once the verdict decided by a risk
of 10%, which was set on other cases.

Only two of the fresh cases have oversampled rows and a truth, and neither may set constants. So more of that kind were
dealt that may.
"""

if __name__ == "__main__":
    raise SystemExit("blind.py is a part of scripts/calibrate.py: run that")

from scripts.calibration.cases import Case, sets_constants
from scripts.calibration.fresh import SIGMA_A2, WIDTHS, FreshCase, affordable, dealt, fresh_cases, shuffled
from scripts.calibration.more_samples import large_cases

SEED, SECOND_SEED = 2028, 2057  # of the first round, and of the second
# data set: number of its cases in the blind round
COUNTS = {
    "rings": 4,
    "shells": 2,
    "spirals": 4,
    "checkerboard": 3,
    "parity": 3,
    "chance": 1,
    "bits": 3,
    "table": 3,
    "rounded": 2,
    "oversampled": 5,
    "rare": 2,
    "unequal": 3,
    "tails": 5,
    "roll": 3,
    "curve": 2,
    "fashion": 4,
    "fashion_tops": 1,
}
WIDEST, NARROW = 512, 128  # largest width of the blind round, and of the oversampled rows
DEALT = 4  # times as many cases are dealt, as about half of them may set constants
# like the rolls that were added to the fresh cases: odd activations with a large sigma_a^2, of narrow DEQs
ROLLS = 8
ODD = "tanh softsign erf sin hardtanh asinh bump".split()
LARGE = [s for s in SIGMA_A2 if 0.5 <= s <= 0.95]
COPIES = 10  # cases of oversampled rows that may set constants


def blind_cases() -> list[Case]:
    """Returns all of the first blind round, narrow ones first, as these are cheap."""
    return _blind(SEED, {case.name for case in fresh_cases()})


def second_blind_cases() -> list[Case]:
    """Returns all of the second blind round, narrow ones first."""
    before = *fresh_cases(), *blind_cases(), *copies_cases(), *large_cases()
    return _blind(SECOND_SEED, {case.name for case in before})


def copies_cases() -> list[Case]:
    """Returns oversampled rows that may set constants, narrow ones first."""
    seen = {case.name for case in fresh_cases()}
    new = _many({"oversampled": COPIES}, SEED + 1, NARROW)
    kept = [case for case in new if sets_constants(case.name) and case.name not in seen][:COPIES]
    return sorted(kept, key=lambda case: (case.width, case.digest))


def _blind(seed, seen) -> list[Case]:
    """Returns a round that this seed deals. seen : names of cases that are none of it."""
    reporting = [case for case in _many(COUNTS, seed, WIDEST) if _reports(case, seen)]
    kept = [case for name, count in COUNTS.items() for case in [c for c in reporting if c.data == name][:count]]
    names = seen | {case.name for case in kept}
    rolls = [case for case in _rolls(seed) if _reports(case, names)][:ROLLS]
    return sorted(kept + rolls, key=lambda case: (case.width, case.digest))


def _reports(case, seen):
    return not sets_constants(case.name) and case.name not in seen


def _many(counts, seed, widest) -> list[FreshCase]:
    """Returns DEALT times as many cases as are dealt, in their order, in the shares of widths of the fresh cases."""
    total = DEALT * sum(counts.values())
    narrow = {width: count for width, count in WIDTHS.items() if width <= widest}
    deck = [width for width, count in narrow.items() for _ in range(count)]
    some = shuffled(deck * (total // len(deck) + 1), "some widths", seed)[:total]
    widths = {width: some.count(width) for width in narrow}
    return list(dealt({name: DEALT * count for name, count in counts.items()}, widths, seed).values())


def _rolls(seed) -> list[FreshCase]:
    """Returns DEALT times as many rolls as are wanted, none of them twice."""
    decks = {"activation": ODD, "sigma_a2": LARGE, "width": [32, 64, 64, 128], "n": [1500, 2000, 2000, 3000]}
    columns = [shuffled(deck * DEALT * ROLLS, f"rolls, {name}", seed) for name, deck in decks.items()]
    return list(dict.fromkeys(affordable("roll", *row) for row in zip(*columns)))
