"""Samples of one attribute, whose kernels are read from a table of two norms and a sign."""

import pytest
import torch

from deq_enn.kernels import blocks
from deq_enn.kernels.exact import explicit_blocks, explicit_kernels, implicit_blocks, implicit_kernels
from deq_enn.kernels.parallel.on_a_line import LineTable
from deq_enn.kernels.parallel.tabulated import NotSmooth
from deq_enn.theory.activations import ACTIVATIONS, from_function
from deq_enn.utils.random import generator
from tests.helpers.pair_quadrature import BY_HAND, pair_expectation

SIGMA_A2 = 0.3


@pytest.fixture
def tables(monkeypatch):
    """A function that says whether samples on a line have a table, however many it takes; at first they have."""

    def wanted(yes):
        for name in ("MANY", "MANY_QUICK"):
            monkeypatch.setattr(blocks, name, 1 if yes else 10**12)
        monkeypatch.setattr(blocks, "SHARE", 10**6)

    wanted(True)
    return wanted


def attribute(n):
    """Of both signs, some of it repeated and opposite."""
    x = torch.randn(n, 1, generator=generator("attribute"), dtype=torch.float64)
    x[:3], x[3:6] = x[6:9], -x[6:9]
    return x


def compared(kernel, expected, diagonals):
    scale = torch.outer(*(d.sqrt() for d in diagonals))
    assert ((kernel - expected).abs() <= 1e-10 * scale).all()
    assert not torch.equal(kernel, expected)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["tanh", "elu", "hardtanh", "softsign", "selu", "relu", "gelu", "erf", "sin", "mish"])
def test_they_are_those_of_pairs_one_by_one(name, tables):
    X, f, kernels = attribute(60), ACTIVATIONS[name], {}
    for yes in (True, False):
        tables(yes)
        kernels[yes] = [
            *implicit_kernels(X, f, SIGMA_A2),
            implicit_kernels(X, f, SIGMA_A2, trained="aA")[1],
            *explicit_kernels(X, [f, f]),
            explicit_kernels(X, [f], trained="frozen_first")[1],
        ]
    for kernel, expected in zip(kernels[True], kernels[False], strict=True):
        assert torch.equal(kernel, kernel.T) and torch.equal(kernel.diagonal(), expected.diagonal())
        compared(kernel, expected, [expected.diagonal()] * 2)
        assert torch.linalg.eigvalsh(kernel)[0] > -1e-10 * kernel.max()


def test_they_are_those_of_nested_quadrature(tables):
    X, activation, (f, df) = attribute(12), ACTIVATIONS["tanh"], BY_HAND["tanh"]
    ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
    Lambda = SIGMA_A2 * ck + (1 - SIGMA_A2) * X @ X.T
    for i, j in ((6, 8), (3, 7), (9, 11)):
        args = (), Lambda[i, i].item(), Lambda[j, j].item(), Lambda[i, j].item()
        G, dot = pair_expectation(f, *args), pair_expectation(df, *args)
        assert ck[i, j].item() == pytest.approx(G, rel=1e-9)
        tangent = (G + (1 - SIGMA_A2) * (X @ X.T)[i, j].item() * dot) / (1 - SIGMA_A2 * dot)
        assert ntk[i, j].item() == pytest.approx(tangent, rel=1e-9)


SPREADS = {
    "one norm": [1.0, -1.0],
    "two norms": [1.0, 2.0],
    "whole numbers": list(range(1, 6)),
    "of one sign": [0.3, 0.5, 1.1, 1.2, 1.9],
    "tiny": [1e-6, 2e-6, -3e-6, 2.5e-6],
    "large": [1000.0, 1500.0, -1800.0, 1200.0],
    "next to one another": [1.0, 1.0 + 1e-12, -1.0 - 3e-12],
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["relu", "hardtanh", "tanh", "gelu"])
@pytest.mark.parametrize("spread", SPREADS)
def test_norms_may_be_spread_in_any_way(spread, name, tables):
    X, f = torch.tensor(SPREADS[spread], dtype=torch.float64).repeat(3)[:, None], ACTIVATIONS[name]
    own = explicit_blocks(X, [f])
    assert own._table_on_a_line() is not None
    kernels = own.both(), implicit_kernels(X, f, 0.05)
    tables(False)
    for pair, other in zip(kernels, (explicit_kernels(X, [f]), implicit_kernels(X, f, 0.05))):
        for kernel, expected in zip(pair, other):
            scale = expected.diagonal().sqrt()
            assert ((kernel - expected).abs() <= 1e-10 * torch.outer(scale, scale)).all()


def test_norms_that_no_node_is_near_have_the_kernels_too(tables):
    """The smaller ones are those at which a DEQ of gelu, tiny as all are, begins to differ from a linear one."""
    X = torch.tensor([3e-7, -1e-7, 1e-10, -1e-10], dtype=torch.float64)[:, None]
    table, _ = implicit_kernels(X, "gelu", 0.05)
    tables(False)
    expected, _ = implicit_kernels(X, "gelu", 0.05)
    compared(table, expected, [expected.diagonal()] * 2)


def test_one_sample_on_a_line(tables):
    ck, _ = implicit_kernels(torch.ones(1, 1), "tanh", SIGMA_A2)
    assert ck.shape == (1, 1) and ck.item() == implicit_blocks(torch.ones(1, 1), "tanh", SIGMA_A2).diagonal()[0].item()


@pytest.mark.parametrize("name", ["tanh", "elu"])
def test_other_samples_parts_and_pairs_have_the_entries_of_the_matrix(name, tables):
    """Other columns may be there, as long as they are zero."""
    x = attribute(40)
    X = torch.cat([torch.zeros_like(x), x], 1)
    for make in (
        lambda *other: implicit_blocks(X, name, SIGMA_A2, "aAB", 1.0, *other),
        lambda *other: explicit_blocks(X, [name], "all", *other),
    ):
        ck, ntk = make().both()
        compared(
            make(X[:7]).both()[0][:, 7:],
            make(X[:7] * (1 + 1e-12)).both()[0][:, 7:],
            [ck.diagonal()[:7], ck.diagonal()[7:]],
        )
        torch.testing.assert_close(make(X[:7]).both()[1][:, 7:], ntk[:7, 7:], rtol=1e-10, atol=1e-12)
        i, j = torch.tensor([0, 5, 11]), torch.tensor([9, 39, 3])
        torch.testing.assert_close(make().entries(i, j), ck[i, j], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(make().tile(slice(3, 9), slice(0, 5), "ntk"), ntk[3:9, :5], rtol=1e-12, atol=1e-14)


def test_tiles_of_any_size_have_the_same_entries(tables, monkeypatch):
    X = attribute(70)
    whole = implicit_blocks(X, "relu", SIGMA_A2)
    ck, ntk = whole.both()
    monkeypatch.setattr(blocks, "TILE", 16)
    for kernel, other in zip((ck, ntk), whole.both()):
        torch.testing.assert_close(kernel, other, rtol=1e-12, atol=1e-14)


def counted(monkeypatch):
    """The numbers of pairs of each sign that tables ask for."""
    asked = {1.0: 0, -1.0: 0}
    make = blocks.Blocks._on_the_line

    def noted(self, norms, count):
        diagonals, values = make(self, norms, count)

        def counting(i, j, sign):
            asked[sign] += len(i)
            return values(i, j, sign)

        return diagonals, counting

    monkeypatch.setattr(blocks.Blocks, "_on_the_line", noted)
    return asked


def test_an_odd_activation_needs_one_sign_and_a_matrix_of_a_few_thousand_pairs_not_more_of_them(monkeypatch):
    asked = counted(monkeypatch)
    explicit_blocks(attribute(200), ["tanh"])._table_on_a_line()
    assert 0 < 20 * asked[-1.0] < asked[1.0] < 4_000
    explicit_blocks(attribute(200), ["gelu"])._table_on_a_line()
    assert asked[-1.0] > 1_000


def test_what_has_more_attributes_or_few_pairs_is_computed_pair_by_pair(tables, monkeypatch):
    def noted(self, *given):
        made.append(given[-2])
        raise NotSmooth("as it is")

    made = []
    monkeypatch.setattr(LineTable, "__init__", noted)
    x = attribute(20)
    implicit_kernels(torch.cat([x, 1e-3 * x.flip(0)], 1), "tanh", SIGMA_A2)
    implicit_kernels(torch.cat([x[:19], 0 * x[:1]]), "tanh", SIGMA_A2)
    monkeypatch.setattr(blocks, "MANY_QUICK", 10**6)
    for quick in ("relu", "erf"):
        implicit_kernels(x, quick, SIGMA_A2)
    assert not made
    explicit_kernels(x, ["relu"])  # there all pairs are parallel in every layer
    implicit_kernels(x, "tanh", SIGMA_A2)
    assert made == ["a network of relu", "a DEQ of tanh"]


def test_where_no_table_is_accurate_the_pairs_are_computed(tables, monkeypatch):
    X = attribute(12)
    steps = from_function(lambda x: torch.tanh(x) + 0.1 * (x - 0.3).abs() + 0.1 * (x - 0.4).abs(), None, (0.3, 0.4))
    own = explicit_blocks(X, [steps])
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "SHARE", 20)  # kinks meet where the norms are as 3 to 4, too: it would ask for more
        assert own._table_on_a_line() is None
        kernels = own.both()
    tables(False)
    for kernel, expected in zip(kernels, explicit_kernels(X, [steps])):
        assert torch.equal(kernel, expected)


def test_a_correlation_above_1_by_rounding_takes_no_more_terms(tables):
    tables(False)
    own = explicit_blocks(torch.linspace(0.5, 1.0, 40)[:, None], ["swish", "swish"])
    own.both()
    assert max(max(pair.tables) for pair, *_ in own.stack) <= 128


def test_relu_keeps_parallel_samples_parallel_in_every_layer():
    """Their kernels are a b/2^L and (L + 1) a b/2^L; an angle of 1e-8 would show in the second."""
    x = torch.logspace(-1, 0.5, 40, dtype=torch.float64)[:, None]
    ck, ntk = explicit_kernels(x, ["relu"] * 3)
    torch.testing.assert_close(ck, x @ x.T / 8, rtol=1e-10, atol=0)
    torch.testing.assert_close(ntk, 4 * x @ x.T / 8, rtol=1e-10, atol=0)
