"""Copies and near copies among samples."""

import pytest
import torch

from deq_enn.machines import copies as module
from deq_enn.machines.copies import copies, find_duplicate, first_copies
from deq_enn.utils.random import generator


def test_rows_are_compared_and_not_their_hashes_alone(monkeypatch):
    X = torch.randn(50, 4, generator=generator("rows"))
    X[30], X[40], X[41] = X[12], X[30], 0.0
    X[42] = -X[41]  # -0 is 0
    expected = torch.arange(50)
    expected[30], expected[40], expected[42] = 12, 12, 41
    assert torch.equal(first_copies(X), expected)
    monkeypatch.setattr(module, "hash", lambda data: 0, raising=False)  # all hashes collide
    assert torch.equal(first_copies(X), expected)
    assert find_duplicate(X) == (12, 30) and find_duplicate(X[:30]) is None


@pytest.mark.parametrize("dimensions", [1, 2, 3, 100])
def test_neighbours_in_few_dimensions_are_not_copies(dimensions):
    X = torch.randn(3000, dimensions, generator=generator("few")) @ torch.randn(
        dimensions, 100, generator=generator("embedded")
    )
    first = copies(X)
    assert (first != torch.arange(3000)).double().mean() < 0.1
    assert (first[first] == first).all()
    X[2000:] = X[:1000] + 0.001 * X[:1000].norm(dim=1, keepdim=True) / 10 * torch.randn(1000, 100)
    if dimensions == 100:
        assert torch.equal(copies(X), torch.arange(3000) % 2000)
