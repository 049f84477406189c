"""Kernel machines against dense float64 algebra written apart, scipy's multivariate normal, and n explicit refits."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deq_enn.machines import cholesky
from deq_enn.machines.block_rows import FileRows, Layout, MemoryRows, exact_product, form, product
from deq_enn.machines.conjugate_gradients import NoConvergence, Nystrom, conjugate_gradients
from deq_enn.machines.regression import Prediction, choose_ridge, coarse_to_fine, fit, leave_one_out, one_hot_targets
from deq_enn.machines.scores import bootstrap_difference, calibration_error, class_probabilities, score
from deq_enn.utils.team import Team
from tests.helpers.forks import free_port
from tests.helpers.kernel_rank import CLASSES, HEIGHT, Dense, N, found_by, make_problem


@pytest.fixture(scope="module")
def problem():
    return make_problem()


def formed(blocks, kernel, height=HEIGHT, n=N):
    rows = MemoryRows(Layout(n, height))
    form(blocks, kernel, rows)
    return rows


def whole(rows):
    """The symmetric matrix that block rows are the lower triangle of."""
    n = rows.layout.n
    out = np.zeros((n, n))
    for i in range(rows.layout.blocks):
        r = rows.layout.rows(i)
        out[r, : r.stop] = rows.read(i).numpy()
    return np.tril(out) + np.tril(out, -1).T


def dense_posterior(K, noise, y, first_test):
    """Mean of the one-hot targets and unscaled variance at the samples from first_test on, in float64 by numpy."""
    Y = np.eye(CLASSES)[y]
    mean = Y.mean(0)
    A = K[:first_test, :first_test] + noise * np.eye(first_test)
    cross = K[first_test:, :first_test]
    variance = np.diag(K)[first_test:] + noise - np.einsum("ij,ji->i", cross, np.linalg.solve(A, cross.T))
    return cross @ np.linalg.solve(A, Y - mean) + mean, variance


def test_layout_covers_the_triangle_once_and_evenly():
    for size in (1, 2, 3, 5):
        layouts = [Layout(10_000, 333, rank, size) for rank in range(size)]
        assert sorted(i for layout in layouts for i in layout.owned) == list(range(layouts[0].blocks))
        held = [layout.nbytes for layout in layouts]
        assert sum(held) == Layout(10_000, 333).nbytes and max(held) < 1.1 * min(held)
    assert Layout(10_000, 333).rows(30) == slice(9990, 10_000)


@pytest.mark.parametrize("strip", [360, 40])  # a diagonal block in one piece, or in several
def test_block_rows_hold_the_kernel_and_multiply(problem, monkeypatch, strip):
    square, *_, kernels = problem
    monkeypatch.setattr("deq_enn.machines.block_rows.STRIP", strip)
    rows = formed(square, "ntk")
    np.testing.assert_allclose(whole(rows), kernels["ntk"][:N, :N], rtol=1e-7)
    V = torch.randn(N, 4, dtype=torch.float64)
    np.testing.assert_allclose(product(rows, V), whole(rows) @ V.numpy(), rtol=1e-11, atol=1e-11)
    exact = kernels["ntk"][:N, :N] @ V.numpy()
    np.testing.assert_allclose(exact_product(square, "ntk", V), exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel, ridge", [("ck", 1e-2), ("ntk", 1e-4)])
def test_predictions_equal_a_dense_float64_solve(problem, kernel, ridge):
    square, cross, y, _, kernels = problem
    noise = ridge * np.diag(kernels[kernel]).mean()
    mean, variance = dense_posterior(kernels[kernel], noise, y.numpy(), N)
    kept = formed(square, kernel)
    errors = {}
    for name, options in (("float32", {}), ("kept", {"kept": kept}), ("exact", {"exact": True, "refinements": 6})):
        machine = fit(square, kept.copy(), y, CLASSES, kernel, ridge, **options)
        found = machine.predict(cross)
        errors[name] = np.abs(found.mean.numpy() - mean).max()
        np.testing.assert_allclose(found.variance / machine.scale2, variance, rtol=3e-3 if ridge < 1e-3 else 1e-4)
    # refinement on the stored kernel stops at the rounding of its entries, on exact tiles at that of float64
    assert errors["exact"] < 1e-11 < errors["kept"] < 1e-2 and errors["exact"] < 1e-3 * errors["float32"]
    assert machine.residual < 1e-10


def test_evidence_and_scale_are_those_of_the_multivariate_normal(problem):
    square, _, y, _, kernels = problem
    machine = fit(square, formed(square, "ck"), y, CLASSES, "ck", 0.03)
    Y = one_hot_targets(y, CLASSES)[0].numpy()
    A = kernels["ck"][:N, :N] + machine.noise * np.eye(N)

    def evidence(scale2):
        return sum(stats.multivariate_normal.logpdf(Y[:, c], cov=scale2 * A) for c in range(CLASSES)) / N

    assert machine.log_evidence == pytest.approx(evidence(machine.scale2), abs=1e-5)
    assert evidence(machine.scale2) > max(evidence(0.98 * machine.scale2), evidence(1.02 * machine.scale2))


def test_predictive_density_is_the_conditional_of_the_joint_normal(problem):
    """log p(targets of one test sample | training targets) as a difference of two joint log densities."""
    square, cross, y, y_test, kernels = problem
    machine = fit(square, formed(square, "ck"), y, CLASSES, "ck", 0.03)
    Y = one_hot_targets(y, CLASSES)[0].numpy()
    places = [0, 5, 11]
    expected = []
    for t in places:
        index = [*range(N), N + t]
        A = machine.scale2 * (kernels["ck"][np.ix_(index, index)] + machine.noise * np.eye(N + 1))
        target = np.eye(CLASSES)[y_test[t]] - machine.mean.numpy()
        expected.append(
            sum(
                stats.multivariate_normal.logpdf(np.append(Y[:, c], target[c]), cov=A)
                - stats.multivariate_normal.logpdf(Y[:, c], cov=A[:N, :N])
                for c in range(CLASSES)
            )
        )
    found = machine.predict(cross)
    part = Prediction(found.mean[places], found.variance[places])
    assert score(part, y_test[places])["log_density"] == pytest.approx(np.mean(expected), abs=2e-4)


def test_leave_one_out_equals_n_refits(problem):
    square, _, y, _, kernels = problem
    n = 100
    blocks = Dense(*(torch.from_numpy(K[:n, :n]) for K in kernels.values()))
    rows = formed(blocks, "ck", n=n, height=30)
    machine = fit(blocks, rows.copy(), y[:n], CLASSES, "ck", 0.03, kept=rows)
    Y = one_hot_targets(y[:n], CLASSES)[0].numpy()
    A = kernels["ck"][:n, :n] + machine.noise * np.eye(n)
    expected = []
    for i in range(n):
        rest = np.delete(np.arange(n), i)
        expected.append(Y[i] - A[i, rest] @ np.linalg.solve(A[np.ix_(rest, rest)], Y[rest]))
    np.testing.assert_allclose(leave_one_out(machine), expected, atol=1e-4)


def test_held_out_rows_are_predicted_from_the_factor_of_all(problem):
    """What the choice of the ridge rests on: the last samples predicted by the others, from one factor."""
    square, _, y, _, kernels = problem
    rows = formed(square, "ck")
    ridges, size = (1e-3, 1e-1, 1.0, 10.0, 1000.0), 300
    targets = one_hot_targets(y, CLASSES)[0]
    chosen, table = choose_ridge(rows, targets, 1.0, ridges, size)
    first, Y = 240, targets.numpy()
    for row in table:
        A = kernels["ck"][:first, :first] + row["ridge"] * np.eye(first)
        errors = Y[first:size] - kernels["ck"][first:size, :first] @ np.linalg.solve(A, Y[:first])
        assert row["mse"] == pytest.approx((errors**2).mean(), rel=1e-4)
        right = (Y[first:size] - errors).argmax(1) == y[first:size].numpy()
        assert row["accuracy"] == pytest.approx(right.mean())
    assert chosen == min(table, key=lambda row: row["mse"])["ridge"] and chosen not in (ridges[0], ridges[-1])
    np.testing.assert_allclose(whole(rows), kernels["ck"][:N, :N], rtol=1e-6)  # untouched
    factor = cholesky.factorise(rows.copy(), 0.1)
    _, variances = cholesky.held_out(factor, cholesky.forward(factor, targets), 333)
    _, expected = dense_posterior(kernels["ck"][:N, :N], 0.1, y.numpy()[:333], 333)
    np.testing.assert_allclose(variances, expected, rtol=1e-4)


@pytest.mark.parametrize("size", range(2, 15))
def test_the_least_of_a_falling_and_rising_error_is_found_without_trying_every_ridge(size):
    ridges = [10.0**k for k in range(size)]
    for least in range(size):
        for refused in range(size - 1):  # ridges too small to factorise the kernel with
            tried = []

            def evaluate(some):
                tried.extend(some)
                return [
                    {"ridge": r, "mse": abs(ridges.index(r) - least - 0.2)} for r in some if ridges.index(r) >= refused
                ]

            table = coarse_to_fine(ridges[::-1], evaluate)
            found = min(table, key=lambda row: row["mse"])["ridge"]
            assert found == ridges[max(least, refused)], (least, refused)
            assert [row["ridge"] for row in table] == sorted(tried)[-len(table) :]
            assert len(tried) == len(set(tried)) <= (size + 1) // 2 + 2
    assert coarse_to_fine(ridges, lambda some: []) == []


def test_duplicates_without_a_ridge_are_named(problem):
    square, _, y, _, kernels = problem
    index = [*range(50), 7]
    blocks = Dense(*(torch.from_numpy(K[np.ix_(index, index)]) for K in kernels.values()))
    with pytest.raises(ValueError, match="not positive definite at sample 50 .*duplicate.*--ridge"):
        fit(blocks, formed(blocks, "ck", n=51), y[index], CLASSES, "ck", 0.0)
    with pytest.raises(ValueError, match="ridge must be 0 or positive"):
        fit(blocks, formed(blocks, "ck", n=51), y[index], CLASSES, "ck", -1.0)
    assert fit(blocks, formed(blocks, "ck", n=51), y[index], CLASSES, "ck", 0.1).log_evidence < 0


# on disk -----------------------------------------------------------------------------------------------------------


def test_a_killed_formation_goes_on_from_its_finished_rows(problem, tmp_path):
    square, cross, y, _, kernels = problem
    layout = Layout(N, HEIGHT)

    class Killed(Dense):
        def tile(self, rows, cols, kernel, out=None):
            if rows.stop > 2 * HEIGHT + 5:
                raise KeyboardInterrupt
            return super().tile(rows, cols, kernel, out)

    kept = FileRows(layout, tmp_path / "kernel.rows", "key")
    with pytest.raises(KeyboardInterrupt):
        form(Killed(*square.kernels.values()), "ck", MemoryRows(layout), kept)
    kept.close()
    again = FileRows(layout, tmp_path / "kernel.rows", "key")
    assert [i for i in range(layout.blocks) if again.has(i)] == [0, 1]
    rows, counted = MemoryRows(layout), Dense(*square.kernels.values())
    form(counted, "ck", rows, again)
    np.testing.assert_allclose(whole(rows), kernels["ck"][:N, :N], rtol=1e-6)
    assert np.array_equal(whole(again), whole(rows))
    whole_count = Dense(*square.kernels.values())
    form(whole_count, "ck", MemoryRows(layout))
    assert 0 < counted.entries < whole_count.entries
    again.close()
    assert not FileRows(layout, tmp_path / "kernel.rows", "another key").has(0)
    (tmp_path / "kernel.json").write_text("{ torn")
    torn = FileRows(layout, tmp_path / "kernel.rows", "key")
    assert not torn.has(0)
    torn.remove()
    assert not list(tmp_path.iterdir())


def test_a_factor_on_disk_is_that_in_memory_and_goes_on_too(problem, tmp_path):
    square, cross, y, _, kernels = problem
    layout = Layout(N, HEIGHT)
    rows, factor = (FileRows(layout, tmp_path / name, "key") for name in ("kernel.rows", "factor.rows"))
    form(square, "ck", rows)
    machine = fit(square, rows, y, CLASSES, "ck", 0.03, kept=rows, factor=factor)
    kept = formed(square, "ck")
    in_memory = fit(square, kept.copy(), y, CLASSES, "ck", 0.03, kept=kept)
    assert torch.equal(machine.weights, in_memory.weights)
    for one, other in zip(vars(machine.predict(cross)).values(), vars(in_memory.predict(cross)).values()):
        assert torch.equal(one, other)
    factor.close()
    again = FileRows(layout, tmp_path / "factor.rows", "key")
    assert all(again.has(i) for i in range(layout.blocks))
    form(square, "ck", rows)  # nothing to do
    assert torch.equal(fit(square, rows, y, CLASSES, "ck", 0.03, kept=rows, factor=again).weights, machine.weights)


def test_a_disk_without_room_says_so_first(tmp_path):
    with pytest.raises(ValueError, match=r"takes .* GB on disk .* are free.*--save_path"):
        FileRows(Layout(20_000_000), tmp_path / "kernel.rows", "key")
    assert not list(tmp_path.iterdir())


# conjugate gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 40, 150, 1000])
def test_conjugate_gradients_solve_whatever_the_preconditioner(problem, rank):
    square, _, y, _, kernels = problem
    rows = formed(square, "ck")
    Y = one_hot_targets(y, CLASSES)[0]
    preconditioner = Nystrom(rows, square.diagonal()[0], 0.03, rank)
    X, iterations = conjugate_gradients(rows, 0.03, Y, preconditioner)
    expected = np.linalg.solve(whole(rows) + 0.03 * np.eye(N), Y.numpy())
    np.testing.assert_allclose(X, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
    assert iterations < {1: 200, 40: 90, 150: 40, 1000: 4}[rank]


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
    alone = found_by(Team())
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert sorted(one["held"] for one in found) == [2, 3] and alone["held"] == 5
    assert sum(one["entries"] for one in found) == alone["entries"]  # the kernel is not formed by each of them
    for one in found:
        assert one["ridge"] == alone["ridge"]
        np.testing.assert_allclose(one["table"], alone["table"], rtol=1e-5)
        for name in ("preconditioned", "weights", "mean", "scale2"):
            np.testing.assert_allclose(one[name], alone[name], rtol=1e-5, atol=1e-7)
    # and what the factor gives
    square, cross, y, *_ = make_problem()
    kept = formed(square, "ck")
    machine = fit(square, kept.copy(), y, CLASSES, "ck", alone["ridge"], kept=kept)
    np.testing.assert_allclose(alone["mean"], machine.predict(cross).mean, atol=1e-7)
    assert alone["scale2"] == pytest.approx(machine.scale2, rel=1e-6)
    assert choose_ridge(kept, one_hot_targets(y, CLASSES)[0], 1.0, (0.01, 0.1, 1.0), 300)[0] == alone["ridge"]


# what is reported --------------------------------------------------------------------------------------------------


def test_class_probabilities_are_frequencies_of_draws():
    mean = torch.tensor([[0.5, 0.2, -0.1], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    variance = torch.tensor([0.1, 2.0, 0.01], dtype=torch.float64)
    p = class_probabilities(Prediction(mean, variance)).exp()
    noise = torch.randn(200_000, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    draws = mean + variance.sqrt()[:, None] * noise
    frequency = torch.nn.functional.one_hot(draws.argmax(2), 3).double().mean(0)
    assert torch.allclose(p, frequency, atol=4 * 0.5 / math.sqrt(200_000))
    assert torch.allclose(p[1], torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-12)
    # two classes: P = Phi((mean_0 - mean_1)/sqrt(2 v)), far into the tail
    two = class_probabilities(Prediction(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([0.04]).double()))
    assert two[0, 0].item() == pytest.approx(stats.norm.logcdf(-1 / math.sqrt(0.08)), rel=1e-3)


def test_calibration_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]).double().log()
    # bins: {0.9, 0.9} accuracy 1/2, {0.6} accuracy 1, {0.7} accuracy 0
    assert calibration_error(p, torch.tensor([0, 1, 0, 0])) == pytest.approx((2 * 0.4 + 0.4 + 0.7) / 4)


def test_bootstrap_interval_is_that_of_resampled_images():
    random = np.random.default_rng(0)
    first = torch.from_numpy(random.random(500) < 0.9)
    second = torch.from_numpy(random.random(500) < 0.8) | (first & torch.from_numpy(random.random(500) < 0.5))
    difference, low, high = bootstrap_difference(first, second)
    index = random.integers(500, size=(20_000, 500))
    means = (first.numpy().astype(float) - second.numpy())[index].mean(1)
    assert difference == pytest.approx((first.double() - second.double()).mean().item())
    np.testing.assert_allclose((low, high), np.quantile(means, [0.025, 0.975]), atol=0.003)
    assert low < difference < high
