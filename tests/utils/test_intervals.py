"""The interval of a loss covers it as often as it says, and the quantiles are the normal law's."""

import math
from statistics import NormalDist

import pytest
import torch

from deq_enn.utils.intervals import Z_90, Z_95, paired_loss
from deq_enn.utils.random import generator


def test_quantiles():
    assert [NormalDist().inv_cdf(p) for p in (0.95, 0.975)] == pytest.approx([Z_90, Z_95], rel=1e-14)


def test_the_formula_for_a_single_network():
    """mean and variance of n differences -1, 0, 1, of which one more is taken to differ."""
    right = torch.arange(200) < 180
    others = (torch.arange(200) >= 16) & (torch.arange(200) < 190)  # 16 lost, 10 gained
    loss, interval = paired_loss(right, others[None])
    variance = (26 / 200 - 0.03**2) / 199 + 1 / 200**2
    half = 100 * Z_90 * math.sqrt(variance)
    assert loss == pytest.approx(3.0) and interval == pytest.approx((3 - half, 3 + half))


@pytest.mark.parametrize("seeds, most", [(1, 0.94), (2, 0.96)])
def test_it_holds_the_loss_in_90_of_100(seeds, most):
    """Networks that are right more often where the first is. Chance of a seed and a sample counts twice."""
    g, covered = generator("paired", seeds), 0
    loss = 100 * (0.9 - 0.9 * 0.93 - 0.1 * 0.45)
    for _ in range(500):
        right = torch.rand(500, generator=g) < 0.9
        share = torch.where(right, 0.93, 0.45)
        low, high = paired_loss(right, torch.rand(seeds, 500, generator=g) < share)[1]
        covered += low < loss < high
    assert 0.86 < covered / 500 < most


def test_networks_that_never_differ():
    same = torch.ones(400, dtype=torch.bool)
    assert paired_loss(same, same[None])[1] == pytest.approx((-Z_90 / 4, Z_90 / 4))
