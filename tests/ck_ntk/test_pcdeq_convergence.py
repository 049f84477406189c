"""ck_ntk/pcdeq_convergence.py: the rate that is fitted, which layers stop converging, and the script."""

import argparse
import json

import pytest

from ck_ntk import pcdeq_convergence
from ck_ntk.common import convergence_rates
from scripts.reproduction import findings
from tests.training.test_pcdeq_training import toy_digits


def test_fitted_rate_of_a_geometric_sequence_and_of_a_finite_one():
    assert convergence_rates.fitted_rate([3 * 0.7**k for k in range(30)]) == pytest.approx(0.7)
    assert convergence_rates.fitted_rate([1.0, 0.5, 1e-3, 0.0]) == 0


@pytest.mark.parametrize("index", range(5))
def test_the_rate_seen_is_that_of_the_jacobian_and_below_the_bound(index):
    name, s, W, b = convergence_rates.random_layers()[index]
    record = convergence_rates.study(name, s, 0.7 * W, b)
    assert record["converged"] and record["radius"] == pytest.approx(0.7)
    assert record["rate"] == pytest.approx(record["jacobian_radius"], rel=0.03)
    assert name == "plain" or record["rate"] <= record["bound"] + 1e-3


@pytest.mark.slow
def test_only_the_plain_deq_stops_converging():
    for name, s, W, b in convergence_rates.random_layers():
        record = convergence_rates.study(name, s, 5.0 * W, b)
        assert record["converged"] == (name != "plain")


@pytest.mark.slow
def test_the_scripts_numbers_and_panels(monkeypatch, capsys):
    """On toy digits; and the report of scripts/reproduce.py can read what it writes."""
    monkeypatch.setattr("deq_enn.data.datasets.load_dataset", lambda *_: toy_digits())
    monkeypatch.setattr(pcdeq_convergence, "RADII", [0.1, 0.5, 10.0])
    monkeypatch.setattr(convergence_rates, "STEPS", 150)
    figure, numbers = pcdeq_convergence.main(argparse.Namespace(dataset_path=None, epoch=1, device="cpu"))
    assert len(figure.axes) == 3
    layers = list(pcdeq_convergence.LOOKS)
    printed, numbers = capsys.readouterr().out, json.loads(json.dumps(numbers))
    assert all(f"trained  {layer}" in printed for layer in layers[:-1])
    assert [r["layer"] for r in numbers["trained"]] == layers[:-1] == convergence_rates.ACTIVATIONS
    assert set(numbers["rates"]) == set(layers) and 0.9 < numbers["plain_converges_up_to"] < 2
    assert len(numbers["rates"]["tanh"]) == 3 and len(numbers["rates"]["plain"]) == 2
    assert len(findings.pcdeq_table(numbers).rows) == 4
    assert "every positive concave layer converges" in findings.pcdeq_finding(numbers, "")
