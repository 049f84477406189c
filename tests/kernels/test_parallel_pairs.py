"""Pairs of samples that are parallel, opposite, or nearly so."""

import math

import pytest
import torch
from scipy import integrate, special

from deq_enn.data.mixtures import two_class
from deq_enn.kernels.exact import explicit_blocks, explicit_kernels, implicit_blocks, implicit_kernels
from deq_enn.kernels.pair_functions import PiecewiseLinear
from deq_enn.theory.activations import ACTIVATIONS, piecewise_linear
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.random import generator
from tests.helpers.pair_quadrature import BY_HAND, EVERY, correlated, pair_expectation

SIGMA_A2 = 0.2


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [*ACTIVATIONS, "clipped"])
@pytest.mark.slow
def test_parallel_opposite_and_repeated_samples(name):
    activation = {a.name: a for a in EVERY}[name]
    base = correlated(0.6, -0.3)
    X = torch.cat([base, base, -base[:2], 2 * base[:1], base[:1] * (1 + 1e-9)])
    ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
    layers = [activation, activation]
    for kernel in (ck, ntk, *explicit_kernels(X, layers)):
        assert torch.equal(kernel, kernel.T)
        torch.testing.assert_close(
            kernel[:3, 3:6], kernel[:3, :3], rtol=1e-11, atol=1e-13
        )  # a copy is the sample itself
        torch.testing.assert_close(kernel[3:6, 6:], kernel[:3, 6:], rtol=1e-11, atol=1e-13)
        assert torch.linalg.eigvalsh(kernel)[0] > -1e-11 * kernel.max()


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["elu", "softsign", "hardtanh", "tanh", "relu", "clipped"])
@pytest.mark.parametrize("cosine", [0.9995, -0.9995])
def test_nearly_parallel_samples_under_quadrature(name, cosine):
    activation = {a.name: a for a in EVERY}[name]
    f, df = BY_HAND[name]
    X = correlated(cosine)
    (a, c), (_, b) = (X @ X.T).tolist()
    ck, ntk = explicit_kernels(X, [activation])
    expected, dot = (pair_expectation(h, activation.kinks, a, b, c) for h in (f, df))
    assert ck[0, 1].item() == pytest.approx(expected, rel=1e-10)
    assert ntk[0, 1].item() == pytest.approx(expected + c * dot, rel=1e-9)
    if cosine > 0:
        ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
        mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(X))).mean
        Lambda = (SIGMA_A2 * ck + (1 - SIGMA_A2) * X @ X.T).tolist()
        G = pair_expectation(lambda x: f(x) - mean, activation.kinks, Lambda[0][0], Lambda[1][1], Lambda[0][1])
        dot = pair_expectation(df, activation.kinks, Lambda[0][0], Lambda[1][1], Lambda[0][1])
        assert ck[0, 1].item() == pytest.approx(G, rel=1e-10)
        assert ntk[0, 1].item() == pytest.approx((G + 0.8 * c * dot) / (1 - SIGMA_A2 * dot), rel=1e-9)


@pytest.mark.slow
def test_the_pairs_set_aside_do_not_change_the_others():
    X = torch.cat([two_class(100, generator("aside"))[0], 3 * two_class(100, generator("aside"))[0][:5]])
    for name in ("elu", "relu"):
        for part, whole in zip(
            implicit_kernels(X[:100], ACTIVATIONS[name], SIGMA_A2, tau0=1.0),
            implicit_kernels(X, ACTIVATIONS[name], SIGMA_A2, tau0=1.0),
        ):
            torch.testing.assert_close(part, whole[:100, :100], rtol=1e-12, atol=1e-14)


@pytest.mark.few(1)
@pytest.mark.parametrize("kink", [6.4, 12.0])
def test_parallel_samples_keep_their_digits_where_the_function_begins_far_out(kink):
    late = piecewise_linear("late", (kink,), (0.0, 1.0))
    X = torch.tensor([[1.0, 0.0], [1.02, 0.0], [math.cos(1e-4), math.sin(1e-4)]], dtype=torch.float64)
    ck, _ = explicit_kernels(X, [late])
    scaled, _ = integrate.quad(
        lambda x: (x - kink) * (1.02 * x - kink) * math.exp((kink - x) * (kink + x) / 2), kink, kink + 6, epsrel=1e-12
    )
    expected = scaled * math.exp(-(kink**2) / 2) / math.sqrt(2 * math.pi)
    assert ck[0, 1].item() == pytest.approx(expected, rel=1e-9, abs=0)
    # the derivative in the correlation is E[f'(u) f'(v)]
    loss = (1 - math.cos(1e-4)) * special.erfc(kink / math.sqrt(2)) / 2
    assert 1 - ck[0, 2].item() / ck[0, 0].item() == pytest.approx(loss / ck[0, 0].item(), rel=1e-2)


@pytest.mark.parametrize("kinks, slopes", [((-1.0, 1.0), (0.0, 1.0, 0.0)), ((0.5,), (0.2, 1.0))])
def test_many_nearly_parallel_pairs_are_as_exact_together(kinks, slopes, monkeypatch):
    """Quadrature along the correlation, which all pairs of a tile share, against that in the plane, pair by pair."""
    activation = piecewise_linear("kinked", kinks, slopes)
    closeness = torch.tensor([1e-4, 2e-6], dtype=torch.float64)
    angles = torch.cat([torch.zeros(1, dtype=torch.float64), torch.acos(1 - closeness)])
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    X = torch.cat([directions, 1.003 * directions])
    together, one_by_one = [], []
    for result, cut in ((together, PiecewiseLinear.cut), (one_by_one, 0.9999)):
        monkeypatch.setattr(PiecewiseLinear, "cut", cut)
        result += explicit_kernels(X, [activation])
    for a, b in zip(together, one_by_one):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
        assert not torch.equal(a, b)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["relu", "hardtanh", "tanh", "erf", "sin"])
def test_entries_of_a_list_of_pairs_are_those_of_the_matrix(name):
    activation = {a.name: a for a in EVERY}[name]
    X = two_class(60, generator("entries"))[0]
    X = torch.cat([X, X[:2] * 1.1, -X[2:3]])  # some are parallel or opposite
    i, j = (torch.randint(len(X), (300,), generator=generator("pairs", side)) for side in (0, 1))
    i, j = i[i != j], j[i != j]
    i, j = torch.cat([i, torch.arange(3)]), torch.cat([j, torch.arange(60, 63)])
    for blocks in (
        implicit_blocks(X, activation, SIGMA_A2),
        explicit_blocks(X, [activation] * 2),
        explicit_blocks(X, [activation], other=X + 0.1),
    ):
        for kernel, whole in zip(("ck", "ntk"), blocks.both()):
            torch.testing.assert_close(blocks.entries(i, j, kernel), whole[i, j], rtol=1e-10, atol=1e-12)


def test_a_list_of_one_pair_by_the_series():
    X, row, column = two_class(20, generator("entries"))[0], torch.tensor([3]), torch.tensor([7])
    for blocks in implicit_blocks(X, "tanh", SIGMA_A2), explicit_blocks(X, ["tanh"]):
        torch.testing.assert_close(blocks.entries(row, column), blocks.both()[0][row, column], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["tanh", "softsign"])
def test_an_odd_activation_has_odd_kernels_between_small_opposite_samples(name):
    """Their mean squared difference was right to 1e-13 of that of large ones, and the kernel to 1e-8 of its size."""
    x = torch.logspace(-4, 0.5, 12, dtype=torch.float64)[:, None]
    for ck, ntk in (implicit_kernels(torch.cat([x, -x]), name, SIGMA_A2), explicit_kernels(torch.cat([x, -x]), [name])):
        for kernel in (ck, ntk):
            torch.testing.assert_close(kernel[:12, 12:], -kernel[:12, :12], rtol=1e-10, atol=0)
