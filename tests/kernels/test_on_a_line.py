"""Samples of one attribute, whose kernels are read from a table of two norms and a sign."""

import pytest
import torch

from deq_enn.kernels import blocks
from deq_enn.kernels.exact import explicit_blocks, explicit_kernels, implicit_blocks, implicit_kernels
from deq_enn.kernels.parallel.on_a_line import LineTable
from deq_enn.kernels.parallel.tabulated import NotSmooth
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.utils.random import generator
from tests.helpers.pair_quadrature import BY_HAND, pair_expectation

SIGMA_A2 = 0.3


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
@pytest.mark.parametrize("name", ["tanh", "elu", "hardtanh", "softsign", "selu"])
@pytest.mark.slow
def test_they_are_those_of_pairs_one_by_one(name, monkeypatch):
    X, f, kernels = attribute(90), ACTIVATIONS[name], {}
    for many in (1, 10**9):
        monkeypatch.setattr(blocks, "MANY", many)
        kernels[many] = [
            *implicit_kernels(X, f, SIGMA_A2),
            implicit_kernels(X, f, SIGMA_A2, trained="aA")[1],
            *explicit_kernels(X, [f, f]),
            explicit_kernels(X, [f], trained="frozen_first")[1],
        ]
    for kernel, expected in zip(kernels[1], kernels[10**9], strict=True):
        assert torch.equal(kernel, kernel.T) and torch.equal(kernel.diagonal(), expected.diagonal())
        compared(kernel, expected, [expected.diagonal()] * 2)
        assert torch.linalg.eigvalsh(kernel)[0] > -1e-10 * kernel.max()


def test_they_are_those_of_nested_quadrature(monkeypatch):
    monkeypatch.setattr(blocks, "MANY", 1)
    X, activation, (f, df) = attribute(12), ACTIVATIONS["tanh"], BY_HAND["tanh"]
    ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
    Lambda = SIGMA_A2 * ck + (1 - SIGMA_A2) * X @ X.T
    for i, j in ((6, 8), (3, 7), (9, 11)):
        args = (), Lambda[i, i].item(), Lambda[j, j].item(), Lambda[i, j].item()
        G, dot = pair_expectation(f, *args), pair_expectation(df, *args)
        assert ck[i, j].item() == pytest.approx(G, rel=1e-9)
        tangent = (G + (1 - SIGMA_A2) * (X @ X.T)[i, j].item() * dot) / (1 - SIGMA_A2 * dot)
        assert ntk[i, j].item() == pytest.approx(tangent, rel=1e-9)


def test_other_samples_parts_and_pairs_have_the_entries_of_the_matrix(monkeypatch):
    """Other columns may be there, as long as they are zero."""
    monkeypatch.setattr(blocks, "MANY", 1)
    x = attribute(40)
    X = torch.cat([torch.zeros_like(x), x], 1)
    for make in (
        lambda *other: implicit_blocks(X, "tanh", SIGMA_A2, "aAB", 1.0, *other),
        lambda *other: explicit_blocks(X, ["tanh"], "all", *other),
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


def test_what_is_not_smooth_or_has_more_attributes_is_computed_pair_by_pair(monkeypatch):
    def noted(self, _, x, name):
        self.x = x
        made.append(name)

    made = []
    monkeypatch.setattr(LineTable, "__init__", noted)
    monkeypatch.setattr(LineTable, "tile", lambda self, rows, cols: torch.ones(2, 20, 20, dtype=torch.float64))
    monkeypatch.setattr(blocks, "MANY", 1)
    x = attribute(20)
    implicit_kernels(torch.cat([x, 1e-3 * x.flip(0)], 1), "tanh", SIGMA_A2)
    implicit_kernels(torch.cat([x[:19], 0 * x[:1]]), "tanh", SIGMA_A2)
    for quick in ("relu", "erf"):
        implicit_kernels(x, quick, SIGMA_A2)
    assert not made
    implicit_kernels(x, "tanh", SIGMA_A2)
    assert made == ["a DEQ of tanh"]


def test_where_no_table_is_accurate_the_pairs_are_computed(monkeypatch):
    def refuse(self, *_):
        raise NotSmooth("as it is")

    monkeypatch.setattr(LineTable, "__init__", refuse)
    monkeypatch.setattr(blocks, "MANY", 1)
    X = attribute(12)
    kernels = implicit_kernels(X, "tanh", SIGMA_A2)
    monkeypatch.setattr(blocks, "MANY", 10**9)
    for kernel, expected in zip(kernels, implicit_kernels(X, "tanh", SIGMA_A2)):
        assert torch.equal(kernel, expected)


def test_relu_keeps_parallel_samples_parallel_in_every_layer():
    """Their kernels are a b/2^L and (L + 1) a b/2^L; an angle of 1e-8 would show in the second."""
    x = torch.logspace(-1, 0.5, 40, dtype=torch.float64)[:, None]
    ck, ntk = explicit_kernels(x, ["relu"] * 3)
    torch.testing.assert_close(ck, x @ x.T / 8, rtol=1e-10, atol=0)
    torch.testing.assert_close(ntk, 4 * x @ x.T / 8, rtol=1e-10, atol=0)
