"""Copies and near copies among samples."""

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from deq_enn.machines import copies as module
from deq_enn.machines.copies import copies, find_duplicate, first_copies, repeated
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


def of_few_values(kind, n, draw):
    """Rows of which a new one is likely to be a copy."""
    if kind == "bits, one-hot":
        return torch.nn.functional.one_hot(torch.randint(2, (n, 8), generator=draw), 2).flatten(1).float()
    if kind == "ten bits":
        return torch.randint(2, (n, 10), generator=draw).float()
    if kind == "categories":
        share = torch.tensor([0.5, 0.25, 0.15, 0.1])
        attributes = torch.multinomial(share, 5 * n, True, generator=draw).view(n, 5)
        return torch.nn.functional.one_hot(attributes, 4).flatten(1).float()
    if kind == "two digits":
        return (2.5 * torch.randn(n, 3, generator=draw)).round()
    return torch.randn(40, 30, generator=generator("atoms"))[torch.randint(40, (n,), generator=draw)]  # "words"


@pytest.mark.parametrize("kind", ["bits, one-hot", "ten bits", "categories", "two digits", "words"])
@pytest.mark.parametrize("n", [600, 3000])
def test_rows_of_few_values_come_again(kind, n):
    X = of_few_values(kind, n, generator("recur", kind))
    result = repeated(X - X.mean(0))
    assert result.recur and torch.equal(result.left_out, torch.arange(n)) and result.samples > 0.05 * n
    X_new = of_few_values(kind, n, generator("recur", kind, "new"))
    share = len(set(map(tuple, X_new.tolist())) & set(map(tuple, X.tolist()))) / len(set(map(tuple, X_new.tolist())))
    assert share > 0.05  # of the different new rows are among the old ones, as was said


def copied(kind, n, draw):
    """Rows that somebody has copied, of which new samples have no copy."""
    third = torch.randn(n // 3, 20, generator=draw)
    if kind == "oversampled":
        return third[torch.randint(n // 3, (n,), generator=draw)]
    if kind == "three times":
        return third.repeat(3, 1)
    if kind == "discrete, three times":
        return (2.5 * third[:, :3]).round().unique(dim=0).repeat(3, 1)
    if kind == "one continuous column":
        X = torch.cat([third[:, :1], (third[:, 1:4] > 0).float()], 1)
        return X[torch.randint(n // 3, (n,), generator=draw)]
    if kind == "black and white images":
        X = (torch.randn(n // 3, 15, generator=draw) @ torch.randn(15, 400, generator=draw) > 3).float()
        return X[torch.randint(n // 3, (n,), generator=draw)]
    return third.repeat(3, 1) + 0.001 * torch.randn(n // 3 * 3, 20, generator=draw)  # "moved a little"


@pytest.mark.parametrize(
    "kind",
    [
        "oversampled",
        "three times",
        "discrete, three times",
        "one continuous column",
        "black and white images",
        "moved a little",
    ],
)
def test_rows_that_were_copied_do_not(kind):
    X = copied(kind, 1500, generator("copied", kind))
    result = repeated(X)
    assert not result.recur and torch.equal(result.left_out, copies(X)) and result.samples > 0.5 * len(X)


def test_samples_without_copies_are_left_out_alone():
    X = torch.randn(500, 30, generator=generator("no copies"))
    result = repeated(X)
    assert result.samples == 0 and not result.recur and torch.equal(result.left_out, torch.arange(500))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_rows_of_any_floats(dtype):
    X = torch.randn(60, 20, generator=generator("floats")).half().to(dtype)
    X[40] = X[30] + 2**-8  # a near copy
    assert repeated(X).first.tolist() == [*range(40), 30, *range(41, 60)]


@pytest.mark.parametrize("rate", [0.004, 0.011, 0.02, 0.3, 2.0])
@pytest.mark.parametrize("factor, even", [(0.6, False), (0.4, True)])
def test_numbers_of_copies_are_held_against_those_of_independent_draws(rate, factor, even):
    """Near a mean of 1 the variance of independent draws is small too: hardly any row comes more than twice."""
    k = np.arange(1, 60)
    law = poisson.pmf(k, rate) / poisson.sf(0, rate)
    mean = k @ law
    variance = factor * ((k - mean) ** 2 @ law)
    large = variance / (mean - 1) + mean  # counts of 1, and some of this, have the mean and the variance
    count = torch.ones(10**6, dtype=torch.float64)
    count[: round(1e6 * (mean - 1) / (large - 1))] = large
    assert module._too_even(count) == even


def test_rows_of_few_values_that_hardly_come_twice_come_again():
    for seed in (23, 47, 51):
        X = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (2700, 9))).double()
        result = repeated(X)
        assert 0.01 * 2700 <= result.samples < 0.02 * 2700 and result.recur
