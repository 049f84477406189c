"""What undecided intervals are made of, and what an ideal verdict would say."""

import numpy as np
import pytest
import torch

from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.losses.points import CONSTANTS
from scripts.calibration import limits, verdicts
from scripts.calibration.outcomes import loss_and_error
from tests.helpers.intervals import gaussian


@pytest.fixture
def drawn():
    """A verdict's record of a network that is right on the samples of a share p_s in draw s, and its outcome."""
    rng = np.random.default_rng(0)

    def right(shares, n):
        return rng.uniform(size=(len(shares), n)) < np.array(shares)[:, None]

    shares = 0.8 + 0.01 * rng.normal(size=40)
    differences = right(0 * shares + 0.8, 2000).astype(int) - right(shares, 2000)
    raw = verdicts.raw_point(32, differences[:3], np.arange(2000), own=0)
    candidate = {"name": "a", "points": [raw]}
    record = {"case": "c", "width": 32, "n": 2000, "candidates": [candidate, {"name": "not drawn", "points": []}]}
    truth = [torch.from_numpy(right(each, 4000)) for each in (0 * shares + 0.8, shares)]
    return record, {"case": "c", "seeds": 40, "networks": {"a": loss_and_error(*truth)}}


def test_an_ideal_verdict_has_the_mean_and_the_spread_of_what_happened(drawn):
    record, outcome = drawn
    (known,) = limits.limits_of(record, [outcome])
    own = next(point for point in verdicts.points_of(record["candidates"][0]["points"]) if point.own)
    error = CONSTANTS.dependence * own.of_samples
    assert known.sampling.mean == own.loss and known.sampling.high - own.loss == pytest.approx(Z_90 * error**0.5)
    spread, mean = outcome["networks"]["a"]["seed_sd"] ** 2, outcome["networks"]["a"]["loss"]
    precision = 1 / spread + 1 / error
    assert known.ideal.mean == pytest.approx((mean / spread + own.loss / error) / precision)
    assert known.ideal.high - known.ideal.mean == pytest.approx(Z_90 / precision**0.5)
    widths = [each.high - each.low for each in (known.sampling, known.now, known.all_draws)]
    assert widths == sorted(widths, reverse=True)  # each knows more
    (without,) = limits.limits_of(record, [outcome | {"networks": {}}])
    assert without.ideal is None and without.now == known.now


def test_answers_by_intervals():
    below, between, above = gaussian(0, -0.1, 0.4), gaussian(0.4, 0.1, 0.7), gaussian(1.3, 0.6, 2)
    assert [limits.said(each) for each in ([above, below], [above, between], [above])] == [
        "replace",
        "undecided",
        "keep",
    ]
