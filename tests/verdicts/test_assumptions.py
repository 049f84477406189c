"""The numbers behind each assumption of the theory, on data where they are known."""

import math

import numpy as np
import pytest
import torch

from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.utils.random import generator
from deq_enn.verdicts import assumptions


def test_gaussian_data_concentrate_as_gaussian_data_do():
    p = 300
    X = torch.randn(800, p, generator=generator("white")) / math.sqrt(p)
    found = assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, X)
    c = found["concentration"]
    assert c["norm_spread"] == pytest.approx(math.sqrt(2 / p), rel=0.1) and c["dimensions"] == pytest.approx(p, rel=0.2)
    assert c["cosine"] == pytest.approx(1 / math.sqrt(p), rel=0.03)
    assert c["cosine_largest"] == pytest.approx(c["gaussian"]["cosine_largest"], rel=0.2)
    assert not found["fails"]
    spread = X * torch.exp(0.6 * torch.randn(800, 1, generator=generator("norms")))
    spread /= spread.square().sum(1).mean().sqrt()
    (low,) = assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, spread)["fails"]
    assert "norms do not concentrate" in low
    parallel = X + 0.1 * torch.ones(p) / math.sqrt(p) * 10
    assert any("orthogonal" in s for s in assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, parallel)["fails"])


def test_stability_is_that_of_the_worst_sample():
    norms2 = np.array([1e-4, 1.0])  # of tanh, the slope is largest where the sample is small
    found = assumptions.stability(ACTIVATIONS["tanh"], 0.9, 1.0, norms2)
    assert found["growth"] < found["growth_largest"] < 1 and found["lipschitz"] == pytest.approx(2 * math.sqrt(0.9))
    with pytest.raises(ValueError, match="no stable"):
        assumptions.stability(ACTIVATIONS["selu"], 0.9, 1.0, np.array([1e-3, 1.0]))
