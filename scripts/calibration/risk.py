"""What the answers of scripts/calibrate.py would be at other risks than the one that verdicts take by default."""

if __name__ == "__main__":
    raise SystemExit("risk.py is a part of scripts/calibrate.py: run that")

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from deq_enn.reporting.markdown import row
from scripts.calibration.analysis import Held, answer
from scripts.calibration.rows import head_of

RISKS = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2)


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
