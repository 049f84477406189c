"""The interval of a loss covers it as often as it says, and the quantiles are the normal law's."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import binom

from deq_enn.utils.intervals import Z_90, Z_95, paired_loss
from deq_enn.utils.random import generator


def test_quantiles():
    assert [NormalDist().inv_cdf(p) for p in (0.95, 0.975)] == pytest.approx([Z_90, Z_95], rel=1e-14)


def test_the_formula_for_a_single_network():
    """Each count by itself has the interval of the test that inverts it, and the difference both of them."""
    right = torch.arange(200) < 180
    others = (torch.arange(200) >= 16) & (torch.arange(200) < 190)  # 16 lost, 10 gained
    loss, interval = paired_loss(right, others[None])
    limits = {}
    for k in (16, 10):  # of |k - mean| = z sqrt(mean)
        limits[k] = sorted(np.roots([1, -2 * k - Z_90**2, k * k]))
    low = 6 - math.hypot(16 - limits[16][0], limits[10][1] - 10)
    high = 6 + math.hypot(limits[16][1] - 16, 10 - limits[10][0])
    narrower = math.sqrt(1 - 6**2 / (200 * 26))
    expected = 3 + narrower * (low / 2 - 3), 3 + narrower * (high / 2 - 3)
    assert loss == pytest.approx(3.0) and interval == pytest.approx(expected)


@pytest.mark.parametrize("n", [330, 400, 500, 1000, 2000, 10_000])
def test_a_loss_of_the_tolerance_is_seldom_called_less_where_only_the_other_network_errs(n):
    """The exact chance, of the binomial law: 19% at 330 samples by the normal law, where 5% is meant."""
    right, tolerance = torch.ones(n, dtype=torch.bool), 0.5
    chance = 0.0
    for k in range(n):
        if paired_loss(right, (torch.arange(n) >= k)[None])[1][1] >= tolerance:
            break
        chance += binom.pmf(k, n, (tolerance + 0.001) / 100)
    assert chance < 0.05


@pytest.mark.parametrize(
    "n, lost, gained", [(400, 0.03, 0.03), (2000, 0.01, 0.01), (1000, 0.013, 0.01), (300, 0.4, 0.1)]
)
def test_both_sides_miss_as_often_where_both_networks_err(n, lost, gained):
    draws = np.random.default_rng(n).multinomial(n, [lost, gained, 1 - lost - gained], size=2000)
    (counts, times), missed = np.unique(draws[:, :2], axis=0, return_counts=True), np.zeros(2)
    for (first, second), often in zip(counts, times):
        right, index = torch.ones(n, dtype=torch.bool), torch.arange(n)
        right[first : first + second] = False
        low, high = paired_loss(right, ((index >= first) & right | (index < first + second) & ~right)[None])[1]
        missed += often * np.array([low > 100 * (lost - gained), high < 100 * (lost - gained)])
    assert (abs(missed / 2000 - 0.05) < 0.016).all()


@pytest.mark.parametrize("seeds, spread", [(2, 0.5), (3, 1.0), (3, 2.0), (5, 2.0)])
def test_few_seeds_that_differ_have_wide_intervals(seeds, spread):
    """A normal quantile covers 72% of the losses of two seeds and 80% of three, where they differ by 2 points."""
    g, covered, loss = generator("few seeds", seeds, spread), 0, 3.0
    for _ in range(300):
        right = torch.rand(2000, generator=g) < 0.9
        share = (loss + spread * torch.randn(seeds, 1, generator=g)) / 100 + 0.04
        others = torch.where(
            right, torch.rand(seeds, 2000, generator=g) >= share / 0.9, torch.rand(2000, generator=g) < 0.4
        )
        low, high = paired_loss(right, others)[1]
        covered += low < loss < high
    assert 0.84 < covered / 300 < 0.97


@pytest.mark.parametrize("seeds, most", [(1, 0.94), (2, 0.98)])
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
    assert paired_loss(same, same[None])[1] == pytest.approx((-(Z_90**2) / 4, Z_90**2 / 4))  # 2.7 samples of 400
