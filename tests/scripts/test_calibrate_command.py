"""The command calibrate.py: what it refuses, and which cases its figure has."""

from types import SimpleNamespace

import pytest

from scripts import calibrate
from scripts.calibration import figure


@pytest.mark.parametrize("budget", ["-1", "0", "nan", "soon"])
def test_a_budget_is_a_time(capsys, budget):
    with pytest.raises(SystemExit) as stop:
        calibrate.main(["verdicts", "--budget", budget])
    assert stop.value.code == 2 and "argument --budget: must be a positive time" in capsys.readouterr().err


def test_the_figure_has_the_first_cases_alone(monkeypatch, tmp_path):
    drawn = []
    for panel in ("_losses", "_coverages"):
        monkeypatch.setattr(figure, panel, lambda ax, held: drawn.append(held))
    monkeypatch.setattr(figure, "matched_alone", lambda held: held)
    monkeypatch.setattr(figure, "_answers", lambda ax, held, alone: drawn.append(held))
    first, fresh = SimpleNamespace(data="mnist"), SimpleNamespace(data="rings")
    figure.draw([first, fresh], tmp_path / "figure.png")
    assert drawn == [[first]] * 3
