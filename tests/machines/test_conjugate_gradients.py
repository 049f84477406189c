"""Conjugate gradients and their preconditioner against dense algebra, and two ranks against one process."""

import numpy as np
import pytest
import torch
from tqdm import tqdm

from deq_enn.kernels.exact import implicit_kernels
from deq_enn.machines import regression
from deq_enn.machines.block_rows import Layout, MemoryRows, form, product
from deq_enn.machines.conjugate_gradients import (
    MOST,
    TOLERANCE,
    NoConvergence,
    Nystrom,
    _round,
    choose_ridge_shared,
    conjugate_gradients,
)
from deq_enn.machines.regression import choose_ridge, fit, one_hot_targets
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team
from tests.helpers.forks import free_port
from tests.helpers.kernel_rank import CLASSES, HEIGHT, Dense, N, formed, make_problem, solved_by, whole


@pytest.mark.parametrize("rank", [1, 40, 150, 1000])
def test_conjugate_gradients_solve_whatever_the_preconditioner(problem, rank):
    square, _, y, _, kernels = problem
    rows = formed(square, "ck")
    Y = one_hot_targets(y, CLASSES)[0]
    preconditioner = Nystrom(rows, square.diagonal()[0], 0.03, rank)
    X, iterations = conjugate_gradients(rows, 0.03, Y, preconditioner)
    expected = np.linalg.solve(whole(rows) + 0.03 * np.eye(N), Y.numpy())
    np.testing.assert_allclose(X, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    assert iterations < {1: 260, 40: 90, 150: 40, 1000: 4}[rank]
    bar = tqdm(disable=True)
    _, in_float64 = _round(rows, 0.03, Y, preconditioner, Team(), TOLERANCE, torch.float64, MOST, bar)
    assert in_float64 < {1: 200, 40: 90, 150: 40, 1000: 4}[rank]  # what the rounds cost stays small


def test_rounds_that_do_not_help_go_on_in_float64(problem, monkeypatch):
    """Products a third as large as they should be stand for those of a kernel whose condition float32 cannot follow."""
    square, _, y, _, _ = problem
    rows, Y, dtypes = formed(square, "ck"), one_hot_targets(y, CLASSES)[0], []

    def off(rows, weights):
        dtypes.append(weights.dtype)
        result = product(rows, weights)
        return result / 3 if weights.dtype == torch.float32 else result

    monkeypatch.setattr("deq_enn.machines.conjugate_gradients.product", off)
    X, _ = conjugate_gradients(rows, 0.03, Y, Nystrom(rows, square.diagonal()[0], 0.03, 150))
    expected = np.linalg.solve(whole(rows) + 0.03 * np.eye(N), Y.numpy())
    np.testing.assert_allclose(X, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    assert dtypes[0] == torch.float32 and dtypes.count(torch.float64) > 10


def test_no_ridge_and_few_samples():
    """The preconditioner holds the whole kernel there, and its rounding is more than what is left."""
    X = torch.randn(200, 10, generator=generator("few"), dtype=torch.float64) / 10**0.5
    K = implicit_kernels(X, "tanh", 0.2)[0]
    rows = formed(Dense(K, K), "ck", n=200)
    Y = one_hot_targets(torch.arange(200) % 2, 2)[0]
    weights, iterations = conjugate_gradients(rows, 0.0, Y, Nystrom(rows, K.diagonal(), 0.0))
    assert iterations < 30 and torch.linalg.norm(K @ weights - Y) < 1e-4 * Y.norm()


def test_what_is_no_number_ends_the_iterations(problem):
    rows = formed(problem[0], "ck")
    with pytest.raises(NoConvergence, match="a residual of nan after 2 iterations"):
        conjugate_gradients(rows, 0.1, torch.ones(N, 1).double(), lambda V: V * torch.nan)


def test_the_preconditioner_is_the_inverse_of_its_matrix(problem):
    square, *_, kernels = problem
    K, rank = kernels["ck"][:N, :N], 130  # between two block rows
    preconditioner = Nystrom(formed(square, "ck"), torch.from_numpy(np.diag(K).copy()), 0.1, rank)
    jitter = 1e-7 * np.diag(K)[:rank].mean()
    low = K[:, :rank] @ np.linalg.solve(K[:rank, :rank] + jitter * np.eye(rank), K[:rank])
    delta = 0.1 + np.clip(np.diag(K - low), 0, None).mean() + jitter
    V = np.random.default_rng(1).normal(size=(N, 2))
    expected = np.linalg.solve(low + delta * np.eye(N), V)
    np.testing.assert_allclose(preconditioner(torch.from_numpy(V)), expected, atol=2e-3)


@pytest.mark.parametrize("rank", [40, 300])
def test_samples_that_are_almost_the_same_have_a_preconditioner(problem, rank):
    """As features of trained networks are: the kernel's rank, to rounding, is far below the preconditioner's."""
    _, _, y, _, _ = problem
    few = torch.from_numpy(np.random.default_rng(2).normal(size=(N, 5)))
    rows = MemoryRows(Layout(N, HEIGHT))
    form(Dense(few @ few.T, few @ few.T), "ck", rows)
    stored = whole(rows).astype(np.float64)
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(stored[:rank, :rank] + 1e-7 * np.diag(stored)[:rank].mean() * np.eye(rank))
    Y = one_hot_targets(y, CLASSES)[0]
    preconditioner = Nystrom(rows, torch.from_numpy(np.diag(stored).copy()), 0.03, rank)
    X, iterations = conjugate_gradients(rows, 0.03, Y, preconditioner)
    expected = np.linalg.solve(stored + 0.03 * np.eye(N), Y.numpy())
    np.testing.assert_allclose(X, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert iterations < 20


def test_conjugate_gradients_that_cannot_reach_the_tolerance_say_so(problem, monkeypatch):
    square, _, y, _, _ = problem
    monkeypatch.setattr("deq_enn.machines.conjugate_gradients.MOST", 2)
    rows = formed(square, "ck")
    with pytest.raises(NoConvergence, match="after 2 iterations.*--ridge"):
        conjugate_gradients(rows, 1e-3, one_hot_targets(y, CLASSES)[0], lambda V: V)


def test_ranks_find_what_one_process_finds(forks, tmp_path):
    """Two ranks, each with half of the block rows: the same ridge, weights and predictions."""
    port = str(free_port())
    ranks = forks.ranks(
        *(
            {"program": "tests/helpers/kernel_rank.py", "argv": [str(rank), "2", port, str(tmp_path)]}
            for rank in range(2)
        )
    )
    assert all(rank["status"] == 0 for rank in ranks), ranks
    alone = solved_by(Team())
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert sorted(result["held"] for result in results) == [2, 3] and alone["held"] == 5
    assert sum(result["entries"] for result in results) == alone["entries"]  # the kernel is not formed by each of them
    for result in results:
        assert result["ridge"] == alone["ridge"]
        np.testing.assert_allclose(result["table"], alone["table"], rtol=1e-5)
        for name in ("preconditioned", "weights", "mean", "scale2"):
            np.testing.assert_allclose(result[name], alone[name], rtol=1e-5, atol=1e-7)
    # and what the factor gives
    square, cross, y, *_ = make_problem()
    kept = formed(square, "ck")
    machine = fit(square, kept.copy(), y, CLASSES, "ck", alone["ridge"], kept=kept)
    np.testing.assert_allclose(alone["mean"], machine.predict(cross).mean, atol=1e-7)
    assert alone["scale2"] == pytest.approx(machine.scale2, rel=1e-6)
    assert choose_ridge(kept, one_hot_targets(y, CLASSES)[0], 1.0, (0.01, 0.1, 1.0), 300)[0] == alone["ridge"]


def test_ranks_choose_the_ridge_on_few_and_then_on_many_samples_as_one_process_does(monkeypatch):
    square, _, y, *_ = make_problem()
    rows, targets, ridges = formed(square, "ck"), one_hot_targets(y, CLASSES)[0], [10.0**k for k in range(-6, 4)]
    monkeypatch.setattr(regression, "CHOICE", 20)
    alone, shared = (choose(rows, targets, 1.0, ridges, 300) for choose in (choose_ridge, choose_ridge_shared))
    assert shared[0] == alone[0] and len(shared[1]) < 8
    np.testing.assert_allclose([[*row.values()] for row in shared[1]], [[*row.values()] for row in alone[1]], rtol=1e-9)
