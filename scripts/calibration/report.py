"""The tables of scripts/calibrate.py report, as lines of Markdown."""

if __name__ == "__main__":
    raise SystemExit("report.py is a part of scripts/calibrate.py: run that")

import math

import numpy as np
from scipy.stats import rankdata, spearmanr

from deq_enn.reporting.markdown import row
from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.losses.points import CONSTANTS
from scripts.calibration.analysis import TOLERANCE, Held, joined, matched_alone
from scripts.calibration.blind import blind_cases, copies_cases, second_blind_cases
from scripts.calibration.cases import sets_constants
from scripts.calibration.fresh import KINDS
from scripts.calibration.left_out import bias, dependence
from scripts.calibration.more_samples import LEAST, fresh_twins
from scripts.calibration.rounds import TITLES, blind_rounds, undecided_rows
from scripts.calibration.rows import (
    ANSWERS,
    COVERAGE,
    answers_row,
    confusion,
    coverage_row,
    head_of,
    large,
    limits_kept,
    risk_lines,
)

DATA = {name for names in KINDS.values() for name in names}  # of all but the first cases


def report_lines(packed: dict):
    """Returns all that is known: of the fresh cases, of the deals that came after, and of the first 131."""
    yield from later_cases(packed)
    if packed.get("left_out"):
        yield "\n## Leave-one-out beside new samples\n"
        yield from _left_out(packed["left_out"])
    held = [case for case in joined(packed) if case.data not in DATA]
    yield "\n## The first 131 cases, mean over draws\n"
    yield from tables(held, packed["sgd"])


def later_cases(packed: dict):
    """Returns lines on all but the first 131 cases: the fresh ones, the blind rounds, and those with more samples."""
    copies, blind = ({case.name for case in deal()} for deal in (copies_cases, blind_cases))
    dealt = copies | blind | {case.name for case in second_blind_cases()}
    later = {of: [case for case in joined(packed, of=of) if case.data in DATA] for of in TITLES}
    for of, held in later.items():
        if fresh := [case for case in held if case.n < LEAST and case.case not in dealt]:
            yield f"\n## Fresh cases, {TITLES[of]}\n"
            yield from _fresh(fresh, f"of the {TITLES[of]}")
        if some := [case for case in held if case.case in copies]:
            yield f"\n## More oversampled rows, which set constants, {TITLES[of]}\n"
            yield from (head_of("data", *COVERAGE), coverage_row("oversampled rows", some))
    yield from blind_rounds(packed, later)
    others = [case for case in later["draw"] if case.case not in dealt]
    if undecided := [case for case in others if case.answer == "undecided"]:
        yield "\n## What is undecided, one draw\n"
        yield from undecided_rows(undecided, packed)
    if any(case.n >= LEAST for case in others):
        yield "\n## By number of samples, one draw\n"
        yield from _by_samples({case.case: case for case in others})
        yield from _half_widths()
    for of, held in later.items():
        yield f"\n## Answers at other risks, {TITLES[of]}\n"
        yield from _at_risks(held, blind, dealt - copies - blind)


def _at_risks(held: list[Held], blind: set[str], second: set[str]):
    groups = _halves([case for case in held if case.n < LEAST and case.case not in blind | second])
    groups["6,000 samples or more"] = [case for case in held if case.n >= LEAST]
    groups["blind round"] = [case for case in held if case.case in blind]
    groups["second blind round"] = [case for case in held if case.case in second]
    for name, cases in groups.items():
        if cases:
            yield from (*risk_lines(name, cases), "")


def _halves(held):
    return {
        "sets constants": [case for case in held if sets_constants(case.case)],
        "reports": [case for case in held if not sets_constants(case.case)],
    }


def _fresh(held: list[Held], what: str):
    yield head_of("half", *COVERAGE)
    for name, cases in (_halves(held) | {"all": held}).items():
        yield coverage_row(name, cases)
    yield "\n" + head_of("kind of data, both halves", *COVERAGE)
    for kind in KINDS:
        if cases := [case for case in held if case.kind == kind]:
            yield coverage_row(kind, cases)
    for name, cases in (_halves(held) | {"all": held}).items():
        yield from confusion(name, cases)
    yield f"- large losses: {large(_halves(held)['reports'])}"
    yield from limits_kept(held, what)


def _half_widths():
    """Returns half the width of an interval that rests on the samples alone, in points."""
    numbers = 1000, 3000, 10_000, 60_000
    yield "\n" + head_of("samples in which the two differ, %", *(f"n = {n:,}" for n in numbers))
    for apart in (1, 5, 10, 25):
        halves = (Z_90 * math.sqrt(CONSTANTS.dependence * 100 * apart / n) for n in numbers)
        yield row(f"{apart}", *(f"{half:.2f}" for half in halves))


def _by_samples(draws: dict[str, Held]):
    """Returns tables of the same DEQs with few and with many samples, where both have a verdict and an outcome."""
    large, small = [], []
    for name, twin in fresh_twins().items():
        if name in draws and twin in draws:
            large.append(draws[name])
            small.append(draws[twin])
    yield head_of("samples", *ANSWERS)
    every = [case for case in draws.values() if case.n >= LEAST]
    for cases in (small, large, every) if len(every) > len(large) else (small, large):
        yield answers_row(f"{min(case.n for case in cases):,} to {max(case.n for case in cases):,}", cases)
    yield "\n- " + ", ".join(f"{case.case} ({case.happened})" for case in large if case.answer == "undecided")
    yield "\n" + head_of("more samples: kind of data", *COVERAGE)
    for kind in KINDS:
        if cases := [case for case in large if case.kind == kind]:
            yield coverage_row(kind, cases)
    for name, cases in (("few samples", small), ("more samples", large)):
        yield from confusion(name, cases)


def _left_out(records: list[dict]):
    """Says how much more leave-one-out varies about the loss on new samples than independent samples would."""
    yield head_of("case", "draws", "variance, by that of independent samples", "too much, points")
    for record in records:
        off, error = bias(record)
        draws = len(record["draws"])
        yield row(record["case"], f"{draws}", f"{dependence(record):.2f}", f"{off:+.2f} ± {error:.2f}")
    each = np.array([dependence(record) for record in records])
    low, high = np.quantile(np.random.default_rng(0).choice(each, (2000, len(each))).mean(1), [0.025, 0.975])
    off = [bias(record)[0] / bias(record)[1] for record in records]
    yield (
        f"\n- variance, in the mean over {len(each)} cases: {each.mean():.2f} ({low:.2f} to {high:.2f}), median "
        f"{np.median(each):.2f}"
    )
    yield f"- too much, in errors of its own: {np.mean(off):+.2f} on average, {np.std(off):.2f} in size"


def tables(held: list[Held], sgd: list[dict]):
    """Returns lines of Markdown on the first cases."""
    halves = _halves(held)
    yield head_of("half", *COVERAGE)
    for name, cases in halves.items():
        yield coverage_row(name, cases)
    reporting = halves["reports"]
    for title, key in (
        ("data", lambda case: case.kind),
        ("data set", lambda case: case.data),
        ("width", lambda case: f"{case.width}"),
    ):
        yield "\n" + head_of(f"{title} (reports)", *COVERAGE)
        for value in sorted({key(case) for case in reporting}, key=lambda v: (len(v), v) if title == "width" else v):
            yield coverage_row(value, [case for case in reporting if key(case) == value])
    for name, cases in halves.items():
        yield from confusion(name, cases)
        yield from confusion(f"{name}, matched networks alone", matched_alone(cases))
    yield from _alone(halves)
    yield from _by_sgd(held, sgd)


def _alone(halves):
    """Says what one number alone would have said: a line through the constants half, held against the other."""
    columns = "rank correlation", "area under ROC", "median error, points", "replaced", "wrong"
    yield "\n" + head_of("predictor alone", *columns)
    values = {
        name: [(candidate.scores, candidate.loss) for case in cases for candidate in case.trained]
        for name, cases in halves.items()
    }
    for score in next(iter(values["reports"]))[0]:
        (x, y), (x_new, y_new) = (
            np.array([(scores[score], loss) for scores, loss in part]).T for part in values.values()
        )
        above = y_new > TOLERANCE
        area = (rankdata(x_new)[above].mean() - (above.sum() + 1) / 2) / (~above).sum() if 0 < above.sum() else math.nan
        slope, offset = (1.0, 0.0) if score == "the verdict" else np.linalg.lstsq(np.stack([x, x**0], 1), y)[0]
        error = np.median(np.abs(slope * x_new + offset - y_new))
        threshold = _threshold(halves["sets constants"], score)
        said = [chosen for case in halves["reports"] if (chosen := _below(case, score, threshold))]
        wrong = sum(candidate.lost_too_much for candidate in said)
        numbers = spearmanr(x_new, y_new).statistic, area, error
        replaced = f"{len(said)} of {len(halves['reports'])}"
        yield row(score, *(f"{number:.2f}" for number in numbers), replaced, f"{wrong}")
    for kind in ("plain, depth 1", "plain, depth 2"):
        always = [candidate for case in halves["reports"] for candidate in case.trained if candidate.name == kind]
        wrong = sum(candidate.lost_too_much for candidate in always)
        yield row(f"always {kind}", "", "", "", f"{len(always)} of {len(halves['reports'])}", f"{wrong}")


def _below(case, score, threshold):
    """Returns the cheapest trained candidate whose score is below the threshold, or None."""
    accepted = [candidate for candidate in case.trained if candidate.scores[score] < threshold]
    return min(accepted, key=lambda candidate: (candidate.work, candidate.scores[score]), default=None)


def _threshold(held, score):
    """Returns the largest below which at most 3% of the replacements are wrong."""
    best = -math.inf
    for threshold in sorted({candidate.scores[score] for case in held for candidate in case.trained}):
        said = [chosen for case in held if (chosen := _below(case, score, threshold))]
        if said and sum(candidate.lost_too_much for candidate in said) <= 0.03 * len(said):
            best = threshold
    return best


def _by_sgd(held, sgd):
    """Returns losses by SGD beside those of the exact readout."""
    losses = {
        (case.case, candidate.name): candidate
        for case in held
        for candidate in case.candidates
        if candidate.loss is not None
    }
    for train, title in (("readout", "readouts by SGD"), ("full", "all weights by SGD")):
        pairs = [
            (record["case"], name, _mean_difference(record["runs"], name), losses[record["case"], name])
            for record in sgd
            if record["train"] == train
            for name in record["runs"]
            if (record["case"], name) in losses
        ]
        if not pairs:
            continue
        by_sgd, exact = np.array([p[2][0] for p in pairs]), np.array([p[3].loss for p in pairs])
        error = np.array([math.hypot(p[2][1], p[3].error) for p in pairs])
        apart = by_sgd - exact
        yield (
            f"\n{title}: {len(pairs)} losses of {len({p[0] for p in pairs})} cases; less those of the exact readout "
            f"{apart.mean():+.2f} on average, RMS {math.sqrt((apart**2).mean()):.2f} (of their errors "
            f"{math.sqrt((error**2).mean()):.2f}), correlation {np.corrcoef(by_sgd, exact)[0, 1]:.2f}"
        )
        for case, name, (loss, own), candidate in pairs:
            yield f"- {case}, {name}: {loss:+.2f} ± {own:.2f}; exact {candidate.loss:+.2f} ± {candidate.error:.2f}"


def _mean_difference(runs, name):
    d = np.array([a["accuracy"] - b["accuracy"] for a, b in zip(runs["deq"], runs[name])])
    return d.mean(), d.std(ddof=1) / math.sqrt(len(d))
