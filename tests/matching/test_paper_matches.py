"""The two examples of the paper: two_layer_lrelu.py and one_layer_tanh.py."""

import math
from dataclasses import astuple, replace

import pytest
import torch

from deq_enn.matching import one_layer_tanh, two_layer_lrelu
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import KernelCoefficients, MatchError, explicit_ck, implicit_ck

GRID = [(s, t) for s in (0.01, 0.05, 0.1, 0.2, 0.24) for t in (0.3, 0.7, 1.0, 3.0)]


def worst(layers, target, tau0):
    return max(abs(a - b) for a, b in zip(astuple(explicit_ck(layers, tau0)), astuple(target)))


@pytest.mark.parametrize("sigma_a2, tau0", GRID)
@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_both_l_relu_roots_meet_all_four_equations(name, sigma_a2, tau0):
    target = implicit_ck(ACTIVATIONS[name], sigma_a2, tau0)
    result = two_layer_lrelu.solutions(target, tau0)
    assert [m.root for m in result] == [1, 2] and two_layer_lrelu.match(target, tau0) == result[0]
    for match in result:
        assert worst(match.layers, target, tau0) < 1e-12
    assert result[0].a1 - result[0].b1 < result[1].a1 - result[1].b1


@pytest.mark.parametrize("sigma_a2, tau0", GRID)
@pytest.mark.parametrize("name", ["tanh", "erf", "softsign", "hardtanh"])
def test_hard_tanh_meets_all_four_equations(name, sigma_a2, tau0):
    target = implicit_ck(ACTIVATIONS[name], sigma_a2, tau0)
    assert worst(one_layer_tanh.match(target, tau0).layers, target, tau0) < 1e-12


def test_published_numbers():
    first, second = two_layer_lrelu.solutions(implicit_ck(ACTIVATIONS["relu"], 0.2))
    assert astuple(first)[:4] == pytest.approx((1.22564, 0.75405, 0.92612, 0.00096), abs=5e-6)
    assert astuple(second)[:4] == pytest.approx((1.70969, 0.00677, 0.67141, 0.39784), abs=6e-6)
    match = one_layer_tanh.match(implicit_ck(ACTIVATIONS["tanh"], 0.2))
    assert (match.a, match.c) == pytest.approx((0.764297, 1.196485), abs=5e-7)


def test_layers_are_the_functions_they_say():
    m = two_layer_lrelu.match(implicit_ck(ACTIVATIONS["relu"], 0.1, 0.8), 0.8)
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    for layer, a, b in zip(m.layers, (m.a1, m.a2), (m.b1, m.b2)):
        torch.testing.assert_close(layer.fn(x), torch.maximum(a * x, b * x) - (a - b) * 0.8 / math.sqrt(2 * math.pi))
    h = one_layer_tanh.match(implicit_ck(ACTIVATIONS["tanh"], 0.1, 0.8), 0.8)
    torch.testing.assert_close(h.layers[0].fn(x), h.a * x.clamp(-h.c, h.c))


def test_tau_1_by_the_hard_tanh_formula_would_miss():
    # the authors' code centres layer 2 with a scale computed for another activation, through a shadowed name
    target = implicit_ck(ACTIVATIONS["relu"], 0.2)
    m = two_layer_lrelu.match(target)
    wrong = replace(m, tau1=0.9).layers[1]
    with pytest.raises(ValueError, match="layer 2 .* not centred"):
        explicit_ck((m.layers[0], wrong))


@pytest.mark.parametrize(
    "name, words",
    [("elu", "gamma.2"), ("swish", "gamma.2 = tau_0.2 alpha_1"), ("gelu", "gamma.2"), ("tanh", "gamma.2")],
)
def test_what_l_relu_layers_cannot_match(name, words):
    with pytest.raises(MatchError, match=words):
        two_layer_lrelu.match(implicit_ck(ACTIVATIONS[name], 0.2))


def test_l_relu_without_an_admissible_root():
    k = 0.25 - 1 / (2 * math.pi)
    P, Q = 1.0, 1.5  # P < Q
    target = KernelCoefficients(0.2 * (1 + k * P), 0.2, 0.2 * P / (8 * math.pi), 0.2 * Q / (4 * math.pi))
    with pytest.raises(MatchError, match="every root of the cubic"):
        two_layer_lrelu.match(target)


@pytest.mark.parametrize(
    "target, words",
    [
        (implicit_ck(ACTIVATIONS["relu"], 0.2), "alpha_2 = 0"),
        (KernelCoefficients(0.2, 0.2, 0.0, 0.0), r"\(1, pi/2\), the target has 1"),
        (KernelCoefficients(0.32, 0.2, 0.0, 0.0), r"the target has 1.6"),
        (KernelCoefficients(0.32, 0.0, 0.0, 0.0), "alpha_1 > 0"),
    ],
)
def test_what_a_hard_tanh_cannot_match(target, words):
    with pytest.raises(MatchError, match=words):
        one_layer_tanh.match(target)
