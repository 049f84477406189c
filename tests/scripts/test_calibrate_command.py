"""The command calibrate.py: what it refuses, and which cases its figure has."""

import pytest

from scripts import calibrate
from scripts.calibration import figure
from scripts.calibration.blind import blind_cases, second_blind_cases
from scripts.calibration.rounds import by_todays_code


@pytest.mark.parametrize("budget", ["-1", "0", "nan", "soon"])
def test_a_budget_is_a_time(capsys, budget):
    with pytest.raises(SystemExit) as stop:
        calibrate.main(["verdicts", "--budget", budget])
    assert stop.value.code == 2 and "argument --budget: must be a positive time" in capsys.readouterr().err


def test_the_figure_has_the_blind_rounds(tmp_path):
    """All hundred cases of the packed file, each once, and their answers are those of the table."""
    packed = calibrate.read_packed(calibrate.PACKED)
    held = by_todays_code(packed)
    blind = {case.name for deal in (blind_cases, second_blind_cases) for case in deal()}
    assert len(held) == len({case.case for case in held}) == 100 and {case.case for case in held} <= blind
    said = [case.answer for case in held if case.happened != "DEQ no better"]
    assert [said.count(answer) for answer in figure.ANSWERS[:3]] == [71, 15, 3]
    figure.draw(held[:5], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1_000
