"""The rows of the tables of scripts/calibrate.py report, and the sentences below them, on any list of cases."""

if __name__ == "__main__":
    raise SystemExit("rows.py is a part of scripts/calibrate.py: run that")

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import beta

from deq_enn.reporting.markdown import head, row
from scripts.calibration.analysis import Held, answer, coverage, mean_score

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
RISKS = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2)  # at which answers are looked at
LARGE = 2.0  # points from which on a loss is large
COVERAGE = ("cases", "coverage, %", "its 95% interval", "as measured", "too low", "too high", "score", "median width")


def rate(yes: int, of: int) -> str:
    """Returns a share in % with its 95% interval (Clopper and Pearson)."""
    if not of:
        return "none of 0"
    low = beta.ppf(0.025, yes, of - yes + 1) if yes else 0.0
    high = beta.ppf(0.975, yes + 1, of - yes) if yes < of else 1.0
    return f"{yes} of {of}, {100 * yes / of:.0f}% ({100 * low:.0f}% to {100 * high:.0f}%)"


def head_of(*names):
    """Returns the first lines of a table whose columns but the first are numbers."""
    return head(*names, right=range(1, len(names)))


def coverage_row(name, cases):
    """Returns a line on the intervals of these cases, in the columns of COVERAGE."""
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
    """Returns a line on the answers of these cases, in the columns of ANSWERS."""
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
    """Returns a table of answers and what happened, and the rates of those that were wrong."""
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
    """Tells time and memory, and every answer that was wrong."""
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
    """Says how much too small large losses are predicted, and how many are covered."""
    large = [candidate for case in cases for candidate in case.trained if candidate.loss > LARGE]
    if not large:
        return "none"
    slope = sum(c.mean * c.loss for c in large) / sum(c.loss**2 for c in large)
    covered = rate(sum(c.covered for c in large), len(large))
    return f"above {LARGE:g} points, predicted / measured {slope:.2f}, covered {covered}"


def covered_between(held: list[Held], draws: int = 2000) -> tuple[float, float]:
    """Returns the 95% interval of the coverage in %, by the bootstrap over cases."""
    each = np.array([np.mean([candidate.covered for candidate in case.trained]) for case in held if case.trained])
    draw = np.random.default_rng(0).choice(each, (draws, len(each)))
    low, high = np.quantile(100 * draw.mean(1), [0.025, 0.975]).tolist()
    return low, high


def spread(held: list[Held]) -> str:
    """Returns that interval as text."""
    return "{:.0f} to {:.0f}".format(*covered_between(held))


def asked_for(columns: dict[str, list[Held]]) -> Iterator[str]:
    """Returns a table of what was asked of the verdict, with a column for each list of cases."""
    yield head_of("asked for", *columns)
    limits: dict[str, Callable[[list[Held]], str]] = {
        "cases": lambda cases: f"{len(cases)}",
        "85% to 97% of all losses are covered": lambda c: f"{coverage(c)['covered']:.0f}% ({spread(c)})",
        "and of the chosen ones": lambda c: _rate_of(_replaced(c), lambda case: case.chosen.covered),
        "*replace* is wrong in at most 3%": lambda c: _rate_of(_replaced(c), lambda case: case.wrong),
        "*keep* where it is right, in at least half": lambda c: _rate_of(_so(c, "all above"), _said("keep")),
        "*keep* never where it is wrong": lambda c: _rate_of(
            [case for case in c if case.answer == "keep"], lambda case: case.happened == "some below"
        ),
        "*undecided* at most 15%": lambda cases: _rate_of(cases, _said("undecided")),
        "seconds over the budget, at most": lambda cases: f"{max(case.overrun for case in cases):+.2f}",
        "memory, MiB at most": lambda cases: f"{max(case.peak_mib or 0.0 for case in cases):.0f}",
    }
    for name, limit in limits.items():
        yield row(name, *map(limit, columns.values()))


def _rate_of(cases, true):
    return rate(sum(map(true, cases)), len(cases))


def _replaced(cases):
    """Returns the cases whose chosen network was trained."""
    return [case for case in cases if case.answer == "replace" and case.wrong is not None]


def _so(cases, happened):
    return [case for case in cases if case.happened == happened]


def _said(answer):
    return lambda case: case.answer == answer


def at_risk(held: list[Held], risk: float) -> list[Held]:
    """Returns the cases as they are answered at this risk."""
    said = [answer(case.candidates, case.majority, risk) for case in held]
    return [replace(case, answer=told, chosen=chosen) for case, (told, chosen) in zip(held, said)]


def risk_lines(title: str, held: list[Held]) -> Iterator[str]:
    """Returns a table with a line for each risk: what is said, the risk that is told, and how many answers are wrong.

    The mean risk that is told should be no less than the share of replacements that are wrong.
    """
    columns = "undecided", "replace", "mean risk told, %", "wrong", "keep, where right", "wrong keep"
    yield head_of(f"{title}: risk, %", "cases", *columns)
    for risk in RISKS:
        cases = at_risk(held, risk)
        replaced = [case for case in cases if case.chosen is not None]
        kept = [case for case in cases if case.answer == "keep"]
        right = [case for case in cases if case.happened == "all above"]
        told = [case.chosen.risk for case in cases if case.chosen is not None]
        yield row(
            f"{100 * risk:g}",
            f"{len(cases)}",
            f"{sum(case.answer == 'undecided' for case in cases)}",
            f"{len(replaced)}",
            f"{100 * np.mean(told):.1f}" if told else "-",
            f"{sum(bool(case.wrong) for case in replaced)} of {sum(case.wrong is not None for case in replaced)}",
            f"{sum(case.answer == 'keep' for case in right)} of {len(right)}",
            f"{sum(case.happened == 'some below' for case in kept)} of {len(kept)}",
        )
