"""ck_ntk/pcdeq_convergence.py: the rate that is fitted, and which layers stop converging."""
import sys

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "ck_ntk"))
import pcdeq_convergence

# ---------------------------------------------------------------------------------------------------------------
# the figure

def test_fitted_rate_of_a_geometric_sequence_and_of_a_finite_one():
    assert pcdeq_convergence.fitted_rate([3 * 0.7**k for k in range(30)]) == pytest.approx(0.7)
    assert pcdeq_convergence.fitted_rate([1.0, 0.5, 1e-3, 0.0]) == 0


@pytest.mark.parametrize("index", range(5))
def test_the_rate_seen_is_that_of_the_jacobian_and_below_the_bound(index):
    name, s, W, b = pcdeq_convergence.random_layers()[index]
    record = pcdeq_convergence.study(name, s, 0.7 * W, b)
    assert record["converged"] and record["radius"] == pytest.approx(0.7)
    assert record["rate"] == pytest.approx(record["jacobian_radius"], rel=0.03)
    assert name == "plain" or record["rate"] <= record["bound"] + 1e-3


def test_only_the_plain_deq_stops_converging():
    for name, s, W, b in pcdeq_convergence.random_layers():
        record = pcdeq_convergence.study(name, s, 5.0 * W, b)
        assert record["converged"] == (name != "plain")
