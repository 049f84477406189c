"""The tables of scripts/calibrate.py report on the blind rounds: what was asked for, by kind, and what is undecided."""

if __name__ == "__main__":
    raise SystemExit("rounds.py is a part of scripts/calibrate.py: run that")

from collections.abc import Iterator

from deq_enn.reporting.markdown import row
from deq_enn.verdicts.result import RISK
from scripts.calibration.analysis import Held, joined
from scripts.calibration.blind import blind_cases, second_blind_cases
from scripts.calibration.fresh import KINDS
from scripts.calibration.limits import limits_of, said as answer_by
from scripts.calibration.rows import (
    ANSWERS,
    COVERAGE,
    answers_row,
    asked_for,
    at_risk,
    confusion,
    coverage_row,
    head_of,
    large,
    limits_kept,
)

TITLES = {"draw": "one draw", "mean": "mean over draws"}
FIRST_RISK = 0.05  # of the first blind round, in which a 90% interval on one side of the tolerance decided


def _dealt() -> tuple[set[str], set[str]]:
    """Returns the names of the cases that were dealt for the first and for the second blind round."""
    first, second = ({case.name for case in deal()} for deal in (blind_cases, second_blind_cases))
    return first, second


def _made_again(packed: dict) -> dict:
    """Returns the records with the verdicts that were made again in the place of those before."""
    return packed | {"verdicts": packed.get("again", [])}


def by_todays_code(packed: dict) -> list[Held]:
    """Returns the cases of both blind rounds for the user's own draw, those of the first as it was made again."""
    first, second = _dealt()
    again, after = (joined(records, of="draw") for records in (_made_again(packed), packed))
    return [case for case in again if case.case in first] + [case for case in after if case.case in second]


def blind_rounds(packed: dict, later: dict[str, list[Held]]) -> Iterator[str]:
    """Returns lines on each blind round: the first as it was answered and as it was made again, and the second.

    later : {"draw": cases, "mean": cases} of `packed`.
    """
    (first, second), again = _dealt(), _made_again(packed)
    rounds: dict[str, dict[str, list[Held]]] = {of: {} for of in TITLES}
    for of, title in TITLES.items():
        held, made_again = later[of], joined(again, of=of)
        rounds[of] = {
            f"first, at a risk of {100 * FIRST_RISK:g}%": at_risk([c for c in held if c.case in first], FIRST_RISK),
            "first, made again": [case for case in made_again if case.case in first],
            "second": [case for case in held if case.case in second],
        }
        for name, cases in rounds[of].items():
            if cases:
                yield f"\n## Blind rounds: {name}, {title}\n"
                made, dealt = again if "again" in name else packed, second if name == "second" else first
                risk = RISK if made is again or dealt is second else FIRST_RISK
                yield from _round(cases, f"of the {title}", made, dealt, risk)
    for of, title in TITLES.items():
        before, made_again, after = rounds[of].values()
        both = {"both, the first as it was answered": before + after}
        both |= {"both, the first made again": made_again + after} if made_again else {}
        columns = {name: cases for name, cases in (rounds[of] | both).items() if cases}
        if columns:
            yield f"\n## Blind rounds: what was asked for, {title}\n"
            yield from asked_for(columns)


def _round(held: list[Held], what: str, packed: dict, names: set[str], risk: float):
    """Returns lines on cases that nothing was set by and nobody had looked at. names : of all that were dealt."""
    yield head_of("kind of data", *ANSWERS)
    for kind in KINDS:
        if cases := [case for case in held if case.kind == kind]:
            yield answers_row(kind, cases)
    yield answers_row("all", held)
    yield "\n" + head_of("all", *COVERAGE)
    yield coverage_row("all", held)
    yield from confusion("all", held)
    yield f"- large losses: {large(held)}"
    yield from limits_kept(held, what)
    run = [record for record in packed["outcomes"] if record["case"] in names]
    none = sum(not record["networks"] for record in run)
    yield f"- of {len(names)} dealt {len(run)} were run; in {none} some DEQ has no equilibrium, which leaves no truth"
    if undecided := [case for case in held if case.answer == "undecided"]:
        yield ""
        yield from undecided_rows(undecided, packed, risk)


def undecided_rows(cases: list[Held], packed: dict, risk: float = RISK) -> Iterator[str]:
    """Returns half the width of the best candidate's interval, of all and of each part, and what each would say."""
    records = {record["case"]: record for record in packed["verdicts"]}
    yield head_of(
        "case", "what happened", "half width", "all draws", "ideal", "samples alone", "all draws say", "ideal says"
    )
    for case in cases:
        limits = limits_of(records[case.case], packed["outcomes"])
        known = [each for each in limits if each.ideal is not None]
        if not known:  # the draw itself was measured for none
            yield row(case.case, case.happened, *6 * ["-"])
            continue
        best = min(known, key=lambda each: each.now.risk)
        parts = best.now, best.all_draws, best.ideal, best.sampling
        halves = [f"{(part.high - part.low) / 2:.2f}" for part in parts]
        answers = answer_by([each.all_draws for each in limits], risk), answer_by([each.ideal for each in known], risk)
        yield row(case.case, case.happened, *halves, *answers)
