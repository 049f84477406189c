"""Matches for data of another scale, and answers to the norm of a sample, against the exact kernels."""

import math

import pytest
import torch

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.matching.families import match
from deq_enn.matching.other_scale import layers_at_scale
from deq_enn.networks.build import matched_enn
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.norm_sensitivity import explicit_response, implicit_response
from deq_enn.utils.random import generator


def mixture(n=120, p=150):
    X = torch.randn(n, p, generator=generator("off centre"), dtype=torch.float64) / math.sqrt(p)
    X[::2] = math.sqrt(1 + 8 / math.sqrt(p)) * X[::2] + 2 / p
    return X / X.square().sum(1).mean().sqrt()


def error(A, B):
    return (torch.linalg.matrix_norm(A - B, 2) / torch.linalg.matrix_norm(A, 2)).item()


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "name, kernel, scale",
    [
        ("relu", "ck", 0.5),
        ("relu", "ck", 2.0),
        ("relu", "ck", 10.0),
        ("swish", "ck", 2.0),
        ("elu", "ck", 0.5),
        ("softplus", "ck", 2.0),
        ("relu", "ntk", 2.0),
        ("swish", "ntk", 2.0),
        ("relu", "ck", 1.02),
    ],
)
@pytest.mark.slow
def test_matched_enn_has_the_kernel_of_the_deq_as_it_is_centred(name, kernel, scale):
    X = scale * mixture()
    deq = DEQ(ACTIVATIONS[name], X.shape[1], 8, 2, 0.2, tau0=1.0, seed=3)
    index = ("ck", "ntk").index(kernel)
    exact = implicit_kernels(X, deq.activation, 0.2, tau0=deq.tau0)[index]
    enn = matched_enn(deq, X, kernel)
    assert enn.tau0 == pytest.approx(scale) and error(exact, explicit_kernels(X, enn.layers)[index]) < 0.06
    # the match of a DEQ that is centred at the scale of X is another network
    if scale != 1.02:
        assert error(exact, explicit_kernels(X, match(deq.activation, 0.2, scale, kernel).layers)[index]) > 0.15


@pytest.mark.slow
def test_the_network_itself_has_that_kernel():
    X = 2 * mixture(20)
    deq = DEQ(ACTIVATIONS["relu"], X.shape[1], 3000, 2, 0.2, seed=3)
    centred = ENN(match(deq.activation, 0.2, 2.0).layers, X.shape[1], 3000, 2, 2.0, seed=3)
    with torch.no_grad():
        G, S, T = (network.features(X.float()).double() for network in (deq, matched_enn(deq, X), centred))
    assert error(G @ G.T, S @ S.T) < 0.15 and error(G @ G.T, T @ T.T) > 0.3


def test_an_activation_without_a_mean_is_matched_at_any_scale():
    for tau0 in (0.1, 30.0):
        layers = match(ACTIVATIONS["tanh"], 0.2, tau0).layers
        assert layers_at_scale(layers, ACTIVATIONS["tanh"], 0.2, tau0, 1.0) == layers


def test_too_far_is_refused_with_what_to_do():
    deq = DEQ(ACTIVATIONS["gelu"], 150, 8, 2, 0.2)
    with pytest.raises(ValueError, match=r"tau_0 = 0.5, .*centred at 1, .*tau0=0.5, or give it the data times 2"):
        matched_enn(deq, 0.5 * mixture(), "ntk")


# ---------------------------------------------------------------------------------------------------------------


def numeric_response(kernel, tau0, c1):
    """(u, v) of a function of data that gives a kernel, by central differences of its entries."""

    def rows(norm2, cosine):
        return torch.tensor([[math.sqrt(norm2), 0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64) * tau0

    def linear(norm2, h=1e-3):
        return (kernel(rows(norm2, h))[0, 1] - kernel(rows(norm2, -h))[0, 1]).item() / math.sqrt(norm2)

    h = 1e-3
    up, down = (kernel(rows(1 + e, 0.0))[0, 0].item() for e in (h, -h))
    return (up - down) / (2 * h * tau0**2) / c1, (math.log(linear(1 + h)) - math.log(linear(1 - h))) / (2 * h)


@pytest.mark.few(3)
@pytest.mark.parametrize("name, sigma_a2, tau0", [("selu", 0.4, 0.7), ("swish", 0.2, 1.3), ("tanh", 0.5, 1.0)])
@pytest.mark.parametrize(
    "kernel, trained, mode", [("ck", "aAB", "readout"), ("ntk", "aAB", "all"), ("ntk", "aA", "frozen_first")]
)
def test_answers_to_the_norm_are_those_of_the_exact_kernels(name, sigma_a2, tau0, kernel, trained, mode):
    result, index = match(ACTIVATIONS[name], sigma_a2, tau0, kernel, trained=trained), ("ck", "ntk").index(kernel)
    deq = numeric_response(
        lambda X: implicit_kernels(X, ACTIVATIONS[name], sigma_a2, trained, tau0)[index], tau0, result.target.c1
    )
    assert implicit_response(ACTIVATIONS[name], sigma_a2, tau0, kernel, trained) == pytest.approx(deq, abs=2e-5)
    enn = numeric_response(
        lambda X: explicit_kernels(X, result.layers, "all" if mode == "readout" else mode)[index],
        tau0,
        result.target.c1,
    )
    assert explicit_response(result.layers, tau0, mode) == pytest.approx(enn, abs=2e-5)
    assert result.mismatch == pytest.approx(math.hypot(deq[0] - enn[0], 4 * (deq[1] - enn[1])), abs=1e-4)
