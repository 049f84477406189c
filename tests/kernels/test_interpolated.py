"""Interpolated kernels against the exact ones, entry by entry, for every kind of network and for awkward samples."""

from functools import partial

import pytest
import torch

from deq_enn.kernels import interpolated
from deq_enn.kernels.interpolated import Interpolated
from deq_enn.machines.block_rows import Layout, MemoryRows, form
from deq_enn.machines.regression import fit
from deq_enn.machines.run import blocks_of
from deq_enn.networks.build import build_model
from deq_enn.theory.activations import ACTIVATIONS


def samples(n, p=30, spread=0.2, common=1.0, seed=0):
    """Rows of mean squared norm about 1, with norms spread lognormally and cosines about common^2/(1 + common^2)."""
    random = torch.Generator().manual_seed(seed)
    X = torch.randn(n, p, generator=random) + common * torch.randn(p, generator=random)
    X *= torch.exp(spread * torch.randn(n, 1, generator=random))
    return X / X.square().sum(1).mean().sqrt()


def relative_error(result, exact, rows, columns):
    return ((result - exact).abs() / torch.outer(rows.sqrt(), columns.sqrt())).max().item()


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "model, activation, kernel",
    [("inn", None, "ck"), ("tanh_inn", None, "ntk"), ("h_tanh_enn", None, "ck"), ("unmatched_enn", "relu", "ntk")],
)
def test_every_entry_is_exact_to_float32(model, activation, kernel):
    depth = 3 if model == "unmatched_enn" else None
    network = build_model(model, 30, 1, 3, 0.2, 1.0, 0, ACTIVATIONS.get(activation), depth=depth)
    X, other = samples(220), samples(150, seed=1)
    make = partial(blocks_of, network)
    whole, which = slice(None), kernel == "ntk"
    square = Interpolated(make, X)
    exact, diagonal = square.exact.tile(whole, whole, kernel), square.diagonal()[which]
    assert relative_error(square.tile(whole, whole, kernel), exact, diagonal, diagonal) < 5e-7
    assert any(square._tables.values())  # or this compares the exact tiles with themselves
    cross = Interpolated(make, X, other)
    assert (
        relative_error(
            cross.tile(whole, whole, kernel), cross.exact.tile(whole, whole, kernel), cross.diagonal()[which], diagonal
        )
        < 5e-7
    )
    part = torch.empty(40, 100)  # beside the diagonal, into a given array
    square.tile(slice(60, 100), slice(30, 130), kernel, out=part)
    assert relative_error(part, exact[60:100, 30:130], diagonal[60:100], diagonal[30:130]) < 5e-7


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "model, kernel", [("inn", "ntk"), ("tanh_inn", "ck"), ("h_tanh_enn", "ck"), ("h_tanh_enn", "ntk")]
)
@pytest.mark.slow
def test_no_reach_is_given_up_for_norms_like_those_of_images(model, kernel):
    """Log norms in an interval of half length 0.37, as MNIST has them; a table that is None costs exact pairs."""
    X = samples(60)
    X *= torch.exp(torch.linspace(-0.37, 0.37, 60) - X.norm(dim=1).log())[:, None]
    blocks = Interpolated(partial(blocks_of, build_model(model, 30, 1, 3, 0.2)), X)
    assert all(blocks._table(kernel, reach) for reach in interpolated.REACHES if reach < 0.999)


@pytest.mark.few(2)
@pytest.mark.parametrize("network", ["deq", "matched_enn", "unmatched_enn"])
@pytest.mark.long
def test_only_nearly_parallel_pairs_are_computed_exactly(network, monkeypatch):
    """Samples in five bundles, as a trained network's features are: most tiles have cosines next to 1 in them."""
    depth, kernel = 3 if network == "unmatched_enn" else None, "ntk"
    network = build_model(network, 30, 1, 3, 0.2, 1.0, 0, ACTIVATIONS["relu"], kernel=kernel, depth=depth)
    random = torch.Generator().manual_seed(0)
    X = torch.randn(5, 30, generator=random).repeat(60, 1)
    X += 0.02 * torch.rand(300, 1, generator=random) * torch.randn(300, 30, generator=random)
    X *= torch.exp(0.1 * torch.randn(300, 1, generator=random)) / X.norm(dim=1, keepdim=True)
    whole = slice(None)
    blocks = Interpolated(partial(blocks_of, network), X)
    exact, diagonal = blocks.exact.tile(whole, whole, kernel), blocks.diagonal()[1]
    counts, entries = [], blocks.exact.entries
    monkeypatch.setattr(blocks.exact, "entries", lambda i, j, kernel: counts.append(len(i)) or entries(i, j, kernel))
    monkeypatch.setattr(blocks.exact, "tile", None)
    assert relative_error(blocks.tile(whole, whole, kernel), exact, diagonal, diagonal) < 5e-7
    cosines = torch.nn.functional.normalize(X.double()) @ torch.nn.functional.normalize(X.double()).T
    cosines.fill_diagonal_(0)
    assert sum(counts) <= (cosines > 0.998).sum() and (cosines > 0.99999).sum() > 0


@pytest.mark.slow
def test_parallel_samples_and_equal_norms(monkeypatch):
    """Duplicates, opposites and scaled copies go through the exact tiles; one norm for all is a scale of no length."""
    network = build_model("tanh_inn", 30, 1, 3, 0.5)
    X = samples(60)
    X = torch.cat([X, X[:3], -X[3:5], 1.5 * X[5:7]])
    whole = slice(None)
    blocks = Interpolated(partial(blocks_of, network), X)
    exact, diagonal = blocks.exact.tile(whole, whole, "ck"), blocks.diagonal()[0]
    assert relative_error(blocks.tile(whole, whole, "ck"), exact, diagonal, diagonal) < 5e-7
    monkeypatch.setattr(interpolated, "TILE", 10)  # now most tiles have no such pair
    assert relative_error(blocks.tile(whole, whole, "ck"), exact, diagonal, diagonal) < 5e-7
    assert any(blocks._tables.values())
    Y = X / X.norm(dim=1, keepdim=True)
    blocks = Interpolated(partial(blocks_of, network), Y)
    diagonal = blocks.diagonal()[1]
    exact = blocks.exact.tile(whole, whole, "ntk")
    assert relative_error(blocks.tile(whole, whole, "ntk"), exact, diagonal, diagonal) < 5e-7


@pytest.mark.slow
def test_a_kernel_that_is_not_smooth_enough_is_computed_exactly(monkeypatch):
    network = build_model("inn", 30, 1, 3, 0.2)
    X = samples(50)
    monkeypatch.setattr(interpolated, "DEGREE", 3)
    blocks = Interpolated(partial(blocks_of, network), X)
    whole = slice(None)
    torch.testing.assert_close(blocks.tile(whole, whole, "ck"), blocks.exact.tile(whole, whole, "ck").float())
    assert set(blocks._tables.values()) == {None}


@pytest.mark.slow
def test_predictions_move_by_less_than_they_mean():
    """A machine of the interpolated kernel against one of the exact kernel refined in float64."""
    network = build_model("tanh_inn", 30, 1, 3, 0.2)
    X, other = samples(450, common=0.5), samples(100, common=0.5, seed=1)
    y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
    make = partial(blocks_of, network)
    means = []
    for blocks, cross, options in (
        (Interpolated(make, X), Interpolated(make, X, other), {}),
        (make(X), make(X, other), {"exact": True}),
    ):
        rows = MemoryRows(Layout(450))
        form(blocks, "ck", rows)
        means.append(fit(blocks, rows, y, 3, "ck", 1e-4, **options).predict(cross).mean)
    assert (means[0] - means[1]).abs().max() < 2e-4
