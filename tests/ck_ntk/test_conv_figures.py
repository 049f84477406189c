"""The figures of convolutional kernels: what they compute, and that their scripts run."""

import argparse
import json

import numpy as np
import pytest
from matplotlib import pyplot as plt

from ck_ntk import conv_matching, conv_mixture, resolvent_network
from ck_ntk.common import conv_networks
from deq_enn.theory.activations import ACTIVATIONS


@pytest.mark.slow
def test_distances_order_the_candidates():
    x = conv_networks.mixture(16, 20, 4, 0)
    rows = conv_networks.distances(x, ACTIVATIONS["relu"], 0.5)
    raw = {name: (row[0], row[2]) for name, row in rows.items()}
    for t in (1, 2, 3):
        assert all(a < b for a, b in zip(raw[f"resolvent {t}"], raw[f"unrolled {t}"]))
    assert raw["resolvent 3"][0] < 1e-3 and raw["matched"][0] < 0.05 < raw["plain 2"][0]
    # distances with the best factor are no larger than without, up to what centring changes
    assert all(row[1] < 2 * row[0] + 1e-3 for row in rows.values())


def test_closed_form_of_a_mixture_comes_closer_with_n():
    errors = [
        conv_mixture.errors(conv_networks.mixture(n, round(1.25 * n), 4, 0), ACTIVATIONS["relu"], 0.5) for n in (16, 64)
    ]
    for k in (0, 1):
        assert errors[1][k] < 0.6 * errors[0][k] and errors[1][k] < 0.03
        assert errors[1][k] < 0.3 * errors[1][2 + k]  # the quadratic terms matter


@pytest.mark.slow
def test_scripts_run(tmp_path, monkeypatch):
    settings = argparse.Namespace(
        output_path=tmp_path,
        dataset_path="none",
        dataset=["mixture"],
        activation=["relu"],
        asquare=[0.5, 0.9],
        samples=16,
    )
    figure, numbers = conv_matching.main(settings)
    plt.close(figure)
    assert set(numbers["distances"]["relu"]["mixture"]) == {"0.5", "0.9"}
    kept = json.loads((tmp_path / "conv_matching_16.partial.json").read_text())
    monkeypatch.setattr(conv_networks, "distances", None)  # what is kept is not computed again
    figure, again = conv_matching.main(settings)
    plt.close(figure)
    assert again == numbers and len(kept) == 2
    figure, numbers = conv_mixture.main(argparse.Namespace(n=[16, 32], seeds=2, asquare=0.5))
    plt.close(figure)
    assert np.mean(numbers["errors"]["relu, CK"][1]) < np.mean(numbers["errors"]["relu, CK"][0])
    monkeypatch.setattr(resolvent_network, "NEAR_ONE", (0.9,))
    monkeypatch.setattr(conv_networks, "draw", lambda name, path, n: conv_networks.mixture(n, 4, 5, 0))
    figure, numbers = resolvent_network.main(
        argparse.Namespace(dataset_path="none", dataset="mnist", samples=16, steps=3)
    )
    plt.close(figure)
    for case in numbers["convolutional"].values():
        rate = case["rates"]["resolvent"]
        for before, after in zip(case["errors"]["resolvent"], case["errors"]["resolvent"][1:]):
            assert after[0] < 1.2 * rate * before[0]
