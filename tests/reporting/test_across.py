"""Claims over several experiments: each answer where it is known, one adjustment over all, and what is drawn."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from deq_enn.reporting import across, logs
from deq_enn.reporting.statistics import holm
from scripts import summarize
from tests.reporting.test_protocols import NOISE, own, write


@pytest.fixture
def three(tmp_path):
    """The paper's claim on one data set, its contrary by another rate, and three seeds of a third."""
    write(tmp_path / "a", (0.0, 2.0))
    write(tmp_path / "a", (1.0, 2.0), dim=128)
    write(tmp_path / "b", (-1.0, -2.0), **own())
    write(tmp_path / "c", (0.0, 0.4), seeds=3, dataset="mnist", opt="adam")
    return tmp_path


def by_name(experiments):
    return {
        (claim.words.split(" to ")[0].split(" than ")[0], across.named(experiments[index]), dim): cell
        for claim in across.survey(experiments)
        for index, cells in claim.cells.items()
        for dim, cell in cells.items()
    }


def test_each_claim_in_each_experiment(three):
    experiments = logs.load([three])
    cells = by_name(experiments)
    sgd, rates, adam = (
        "Gaussian mixture, SGD, 3 epochs",
        "Gaussian mixture, SGD, own rates, 3 epochs",
        "MNIST, Adam, 3 epochs",
    )
    equal = {key[1:]: cell.holds for key, cell in cells.items() if "equal" in key[0]}
    assert equal == {(sgd, 64): True, (sgd, 128): False, (rates, 64): False, (adam, 64): None}
    worse = {key[1:]: cell.holds for key, cell in cells.items() if "worse" in key[0]}
    assert worse == {(sgd, 64): True, (sgd, 128): True, (rates, 64): False, (adam, 64): True}
    few = next(cell for key, cell in cells.items() if "equal" in key[0] and key[1] == adam)
    assert few.seeds == 3 and not few.enough and few.words.startswith("3 seeds, ")


@pytest.mark.parametrize("gap", [0.1, 0.125, 0.15, 0.2])
def test_p_values_are_adjusted_over_the_widths_of_an_experiment(tmp_path, gap):
    """What is significant alone, and not beside two widths without a difference, is open there."""
    for name, gaps in (("alone", [gap]), ("beside", [gap, 0.0, 0.0])):
        for number, each in enumerate(gaps):
            write(tmp_path / name, (0.0, each), dim=64 * 2**number)
        values = []
        for each in gaps:
            a, u = (90 - shift - 0.1 * np.roll(NOISE, 3 * index) for index, shift in ((0, 0.0), (2, each)))
            values.append(float(ttest_rel(a, u).pvalue))
        cells = by_name(logs.load([tmp_path / name]))
        cell = next(cell for key, cell in cells.items() if "worse" in key[0] and key[2] == 64)
        assert (cell.holds is True) == (holm(values)[0] < 0.05)


@pytest.mark.slow
def test_the_summary_has_the_table_and_the_figure(three, capsys):
    summarize.main([str(three), "--output_path", str(three / "out")])
    text = capsys.readouterr().out
    assert "Which claim holds where, by width" in text and "![claims](claims.png)" in text
    assert "holds, 0.00 : 2.00" in text
    assert (three / "out" / "claims.png").stat().st_size > 1000
    summarize.main([str(three / "a"), "--output_path", str(three / "alone")])
    assert "Which claim" not in capsys.readouterr().out and not (three / "alone" / "claims.png").exists()


def test_a_large_difference_is_told_from_few_seeds_too(tmp_path):
    write(tmp_path, (3.0, 3.0), seeds=3)
    cells = by_name(logs.load([tmp_path]))
    cell = next(cell for key, cell in cells.items() if "equal" in key[0])
    assert cell.seeds == 3 and cell.holds is False and cell.words.startswith("fails, +2.9")
