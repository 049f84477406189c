"""The rows of the tables of scripts/calibrate.py report, and the sentences below them, on any list of cases."""

if __name__ == "__main__":
    raise SystemExit("rows.py is a part of scripts/calibrate.py: run that")

import numpy as np
from scipy.stats import beta

from deq_enn.reporting.markdown import head, row
from scripts.calibration.analysis import Held, coverage, mean_score

HAPPENED = ("some below", "too near", "all above", "DEQ no better")
ANSWERS = (
    "cases",
    "undecided",
    "of these too near to tell",
    "keep, where right",
    "wrong replace",
    "wrong keep",
    "chosen covered",
    "coverage, %",
    "its 95% interval",
    "median width",
)
LARGE = 2.0  # points from which on a loss is large
COVERAGE = ("cases", "coverage, %", "its 95% interval", "as measured", "too low", "too high", "score", "median width")


def rate(yes: int, of: int) -> str:
    """A share in % with its 95% interval (Clopper and Pearson)."""
    if not of:
        return "none of 0"
    low = beta.ppf(0.025, yes, of - yes + 1) if yes else 0.0
    high = beta.ppf(0.975, yes + 1, of - yes) if yes < of else 1.0
    return f"{yes} of {of}, {100 * yes / of:.0f}% ({100 * low:.0f}% to {100 * high:.0f}%)"


def head_of(*names):
    """The first lines of a table whose columns but the first are numbers."""
    return head(*names, right=range(1, len(names)))


def coverage_row(name, cases):
    c = coverage(cases)
    width = np.median([candidate.high - candidate.low for case in cases for candidate in case.trained])
    return row(
        name,
        f"{len(cases)}",
        f"{c['covered']:.0f}",
        spread(cases),
        *(f"{c[key]:.0f}" for key in ("as measured", "above", "below")),
        f"{mean_score(cases):.2f}",
        f"{width:.2f}",
    )


def answers_row(name, cases):
    undecided = [case for case in cases if case.answer == "undecided"]
    above = [case for case in cases if case.happened == "all above"]
    replaced = [case for case in cases if case.answer == "replace" and case.wrong is not None]
    kept = [case for case in cases if case.answer == "keep"]
    widths = [candidate.high - candidate.low for case in cases for candidate in case.trained]
    return row(
        name,
        f"{len(cases)}",
        f"{len(undecided)}, {100 * len(undecided) / len(cases):.0f}%",
        f"{sum(case.happened == 'too near' for case in undecided)}",
        f"{sum(case.answer == 'keep' for case in above)} of {len(above)}",
        f"{sum(case.wrong for case in replaced)} of {len(replaced)}",
        f"{sum(case.happened == 'some below' for case in kept)} of {len(kept)}",
        f"{sum(case.chosen.covered for case in replaced)} of {len(replaced)}",
        f"{coverage(cases)['covered']:.0f}",
        spread(cases),
        f"{np.median(widths):.2f}",
    )


def confusion(name, cases):
    yield "\n" + head_of(f"{name}: answer", *HAPPENED)
    for said in ("replace", "undecided", "keep", "majority"):
        counts = [sum(case.answer == said and case.happened == what for case in cases) for what in HAPPENED]
        yield row(said, *map(str, counts))
    replaced = [case for case in cases if case.answer == "replace"]
    trained = [case for case in replaced if case.wrong is not None]
    kept = [case for case in cases if case.answer == "keep"]
    yield f"\n- wrong replace: {rate(sum(case.wrong for case in trained), len(trained))}" + (
        f"; {len(replaced) - len(trained)} chosen ones not trained" if len(replaced) > len(trained) else ""
    )
    yield f"- replaced where the DEQ is no better: {sum(case.happened == 'DEQ no better' for case in trained)}"
    yield f"- wrong keep: {rate(sum(case.happened == 'some below' for case in kept), len(kept))}"
    above = [case for case in cases if case.happened == "all above"]
    kept_rightly = sum(case.answer == "keep" for case in above)
    yield f"- keep, where every network loses too much: {rate(kept_rightly, len(above))}"
    worse = [case for case in cases if case.happened == "DEQ no better"]
    told = sum(case.answer == "majority" for case in worse)
    yield f"- majority, where the DEQ is no better: {rate(told, len(worse))}"
    wrong = [case for case in cases if case.answer == "majority" and case.happened != "DEQ no better"]
    yield f"- majority, where the DEQ is better: {len(wrong)} of {len(cases)}"
    yield f"- undecided: {rate(sum(case.answer == 'undecided' for case in cases), len(cases))}"
    yield f"- the chosen network's interval covers: {rate(sum(case.chosen.covered for case in trained), len(trained))}"


def limits_kept(held: list[Held], what: str):
    """Time, memory, and every answer that was wrong."""
    late = [case.overrun for case in held]
    yield f"- seconds over the budget: {max(late):+.2f} at most, {np.median(late):+.2f} in the middle"
    peaks = [case.peak_mib for case in held if case.peak_mib is not None]
    if peaks:
        yield f"- memory, in {len(peaks)} cases: {max(peaks):.0f} MiB at most, {np.median(peaks):.0f} in the middle"
    for case in held:
        if case.answer == "replace" and case.wrong or case.answer == "keep" and case.happened == "some below":
            loss = f", {case.chosen.name} lost {case.chosen.loss:+.1f} ± {case.chosen.error:.1f}" if case.chosen else ""
            yield f"- wrong: {case.answer} of {case.case} {what}{loss}"


def large(cases):
    """How much too small large losses are predicted, and how many are covered."""
    large = [candidate for case in cases for candidate in case.trained if candidate.loss > LARGE]
    if not large:
        return "none"
    slope = sum(c.mean * c.loss for c in large) / sum(c.loss**2 for c in large)
    covered = rate(sum(c.covered for c in large), len(large))
    return f"above {LARGE:g} points, predicted / measured {slope:.2f}, covered {covered}"


def spread(held, draws=2000):
    """Half the width of the 95% interval of the coverage, by the bootstrap over cases."""
    each = np.array([np.mean([candidate.covered for candidate in case.trained]) for case in held if case.trained])
    draw = np.random.default_rng(0).choice(each, (draws, len(each)))
    low, high = np.quantile(100 * draw.mean(1), [0.025, 0.975])
    return f"{low:.0f} to {high:.0f}"
