"""What the calibration keeps of a verdict, and leave-one-out beside new samples."""

import math

import numpy as np
import pytest

from deq_enn.verdicts.losses.measurements import of_this_case
from deq_enn.verdicts.losses.points import CONSTANTS, measured
from scripts.calibration import left_out, verdicts
from scripts.calibration.cases import sets_constants
from scripts.calibration.fresh import FreshCase


def test_the_constants_of_a_record_are_those_of_its_verdict():
    rng = np.random.default_rng(0)
    passes = {(32, 200): rng.integers(-1, 2, (3, 200)), (math.inf, 100): rng.integers(-1, 2, (1, 100))}
    raw = [measured(width, d, np.arange(d.shape[1])) for (width, _), d in passes.items()]
    points = [verdicts.raw_point(w, d, np.arange(n), 1 if w == 32 else None) for (w, n), d in passes.items()]
    made = verdicts.constants_of({"candidates": [{"points": points}]})
    assert made == of_this_case(raw, CONSTANTS) != CONSTANTS
    assert verdicts.constants_of({}) == CONSTANTS


def test_leave_one_out_is_held_against_new_samples():
    """A readout on noise hardly depends on single samples: leave-one-out varies as independent samples do."""
    case = FreshCase("bits", "relu", 0.2, 32, 500)
    assert left_out.Repeat("bits", "relu", 0.2, 32, 500, 3).name == f"{case.name}, draw 3"
    kept = left_out.held_against_new_samples(case, None, 2)
    first, second = kept["draws"]
    assert first.keys() == second.keys() == {"plain, depth 1", "plain, depth 2", "plain, depth 3"}
    assert first["plain, depth 1"] != second["plain, depth 1"]
    assert {
        chosen.width <= left_out.WIDEST and sets_constants(chosen.name) for chosen in left_out.repeated_cases()
    } == {True}
    rng = np.random.default_rng(0)
    draws = [
        {name: {"left_out": x, "new": y + 0.5, "variance": 1.0, "new_variance": 1.0} for name, x, y in zip("ab", *each)}
        for each in rng.normal(0, [[[2**0.5], [1]]], (4000, 2, 2))  # of twice the variance of independent samples
    ]
    made_up = {"case": "made up", "draws": draws}
    assert left_out.dependence(made_up) == pytest.approx(2 + 0.25, abs=0.1)
    assert left_out.bias(made_up) == (pytest.approx(-0.5, abs=0.06), pytest.approx((3 / 2 / 4000) ** 0.5, rel=0.1))


def test_the_most_memory_is_that_since_it_was_forgotten():
    if verdicts.forget_peak() is None:
        pytest.skip("no /proc")
    large = np.ones(40_000_000)  # 305 MiB
    assert large[-1] == 1 and verdicts.peak_mib() > 305
    del large
    before = verdicts.forget_peak()
    small = np.ones(1_000_000)
    assert small[-1] == 1 and verdicts.peak_mib() < before + 100
