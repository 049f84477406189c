"""A sample that is zero has kernels: those of ever smaller samples, and of networks that are drawn."""

from functools import partial

import pytest
import torch

from deq_enn.kernels.exact import explicit_kernels, implicit_blocks, implicit_kernels
from deq_enn.kernels.interpolated import Interpolated
from deq_enn.networks.deq import DEQ
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.utils.random import generator

X = torch.nn.functional.normalize(torch.randn(6, 30, dtype=torch.float64, generator=generator("samples")))
SMALL = 1e-7 * torch.nn.functional.normalize(torch.randn(2, 30, dtype=torch.float64, generator=generator("small")))
WITH_ZEROS = torch.cat([X[:3], 0 * SMALL, X[3:]])
WITH_SMALL = torch.cat([X[:3], SMALL, X[3:]])


def close(kernels, limits):
    for kernel, limit in zip(kernels, limits):
        assert (kernel - limit).abs().max() < 3e-7 * limit.abs().max()


@pytest.mark.few(1)
@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["relu", "tanh", "swish", "hardtanh", "sigmoid", "erf", "softsign", "elu"])
@pytest.mark.slow
def test_the_limit_of_small_samples(name):
    activation = ACTIVATIONS[name]
    limit = implicit_kernels(WITH_SMALL, activation, 0.2, "aA", 1.0)
    zeros = implicit_kernels(WITH_ZEROS, activation, 0.2, "aA", 1.0)
    close(zeros, limit)
    others = [0, 1, 2, 5, 6, 7]
    for kernel, alone in zip(zeros, implicit_kernels(X, activation, 0.2, "aA", 1.0)):
        torch.testing.assert_close(kernel[others][:, others], alone, rtol=1e-11, atol=1e-12)
    for depth in (1, 3):
        for trained in ("all", "frozen_first"):
            close(*(explicit_kernels(Z, [activation] * depth, trained) for Z in (WITH_ZEROS, WITH_SMALL)))
    between = implicit_kernels(X, activation, 0.2, "aAB", 1.0, WITH_ZEROS)
    whole = implicit_kernels(WITH_ZEROS, activation, 0.2, "aAB", 1.0)
    for part, kernel in zip(between, whole):
        torch.testing.assert_close(part[3:5], kernel[3:5][:, others], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "selu"])
def test_where_the_equilibrium_is_zero_so_are_the_kernels(name):
    for trained in ("aA", "aAB"):
        for kernel in implicit_kernels(WITH_ZEROS, ACTIVATIONS[name], 0.2, trained, 1.0):
            assert not kernel[3:5].any() and not kernel[:, 3:5].any() and kernel[0, 0] > 0


@pytest.mark.parametrize("name", ["relu", "swish"])
def test_networks_that_are_drawn_agree(name):
    m = 3000
    deq = DEQ(ACTIVATIONS[name], 30, m, 2, 0.2)
    with torch.no_grad():
        z = deq.features(WITH_ZEROS[:5].float()).double()
    ck, _ = implicit_kernels(WITH_ZEROS[:5], ACTIVATIONS[name], 0.2, tau0=1.0)
    assert (z @ z.T - ck).abs().max() < 6 / m**0.5 * ck[0, 0] and ck[3, 3] > 0.01


@pytest.mark.parametrize("kernel", ["ck", "ntk"])
@pytest.mark.slow
def test_interpolated_kernels(kernel):
    Z = torch.cat(
        [WITH_ZEROS, torch.nn.functional.normalize(torch.randn(40, 30, generator=generator("more")).double())]
    )

    def error(blocks):
        exact = blocks.exact.tile(slice(None), slice(None), kernel)
        return (blocks.tile(slice(None), slice(None), kernel) - exact).abs().max() / exact.abs().max()

    for name in ("relu", "tanh"):
        make = partial(lambda X, other, f: implicit_blocks(X, f, 0.2, "aAB", 1.0, other), f=ACTIVATIONS[name])
        assert error(Interpolated(make, Z)) < 5e-7 and error(Interpolated(make, Z, WITH_ZEROS)) < 5e-7


@pytest.mark.parametrize("name", ["elu", "softsign", "tanh", "erf", "sin"])
def test_a_small_sample_keeps_its_digits_beside_a_large_parallel_one(name):
    """Its variance was right to 1e-13 of the largest; Newton's method then did not end for erf and sin."""
    X = torch.tensor([[1e-6], [2e-6], [-1.0]], dtype=torch.float64)
    f = ACTIVATIONS[name]
    for kernels in (lambda X: implicit_kernels(X, f, 0.3, tau0=1.0), lambda X: explicit_kernels(X, [f])):
        for kernel, alone in zip(kernels(X), kernels(X[:2])):
            torch.testing.assert_close(kernel[:2, :2], alone, rtol=1e-11, atol=0)


def test_one_attribute_that_is_zero_in_one_of_many_samples():
    x = torch.linspace(-2, 2, 201, dtype=torch.float64)[:, None]  # enough for a table
    x[100] = 0
    some = torch.arange(0, 201, 25)
    for many, few in zip(
        implicit_kernels(x, ACTIVATIONS["elu"], 0.3, tau0=1.0),
        implicit_kernels(x[some], ACTIVATIONS["elu"], 0.3, tau0=1.0),
    ):
        torch.testing.assert_close(many[some][:, some], few, rtol=1e-8, atol=1e-10)
