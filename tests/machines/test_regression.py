"""Kernel machines against dense float64 algebra written apart, and scipy's multivariate normal."""

import numpy as np
import pytest
import torch
from scipy import stats

from deq_enn.machines import cholesky, regression
from deq_enn.machines.block_rows import FileRows, Layout, form
from deq_enn.machines.regression import choose_ridge, fit, one_hot_targets
from tests.helpers.kernel_rank import CLASSES, HEIGHT, Dense, N, formed, whole


def dense_posterior(K, noise, y, first_test):
    """Mean of the one-hot targets and unscaled variance at the samples from first_test on, in float64 by numpy."""
    Y = np.eye(CLASSES)[y]
    mean = Y.mean(0)
    A = K[:first_test, :first_test] + noise * np.eye(first_test)
    cross = K[first_test:, :first_test]
    variance = np.diag(K)[first_test:] + noise - np.einsum("ij,ji->i", cross, np.linalg.solve(A, cross.T))
    return cross @ np.linalg.solve(A, Y - mean) + mean, variance


@pytest.mark.parametrize("kernel, ridge", [("ck", 1e-2), ("ntk", 1e-4)])
def test_predictions_equal_a_dense_float64_solve(problem, kernel, ridge):
    square, cross, y, _, kernels = problem
    noise = ridge * np.diag(kernels[kernel]).mean()
    mean, variance = dense_posterior(kernels[kernel], noise, y.numpy(), N)
    kept = formed(square, kernel)
    errors = {}
    for name, options in (("float32", {}), ("kept", {"kept": kept}), ("exact", {"exact": True, "refinements": 6})):
        machine = fit(square, kept.copy(), y, CLASSES, kernel, ridge, **options)
        prediction = machine.predict(cross)
        errors[name] = np.abs(prediction.mean.numpy() - mean).max()
        np.testing.assert_allclose(prediction.variance / machine.scale2, variance, rtol=3e-3 if ridge < 1e-3 else 1e-4)
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


def test_more_samples_may_choose_than_search_the_grid(problem, monkeypatch):
    square, _, y, *_ = problem
    rows, targets, ridges = formed(square, "ck"), one_hot_targets(y, CLASSES)[0], [10.0**k for k in range(-6, 4)]
    whole = dict.fromkeys(ridges)
    for size in (20, 300):
        part, first = regression.leading(rows, size), size - size // 5
        errors = {r: regression.held_out_errors(part, targets, r, first)[0] for r in ridges}
        whole[size] = min(errors, key=errors.get)
    monkeypatch.setattr(regression, "CHOICE", 20)
    sizes = []
    leading = regression.leading
    monkeypatch.setattr(regression, "leading", lambda rows, size: sizes.append(size) or leading(rows, size))
    assert choose_ridge(rows, targets, 1.0, ridges, 20)[0] == whole[20] and sizes == [20]
    chosen, table = choose_ridge(rows, targets, 1.0, ridges, 300)
    assert chosen == whole[300] != whole[20] and sizes == [20, 20, 300]
    assert [row["ridge"] for row in table] == sorted(row["ridge"] for row in table) and 3 <= len(table) < 8
    assert table[-1]["mse"] == errors[table[-1]["ridge"]]


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


def test_duplicates_without_a_ridge_are_named(problem):
    square, _, y, _, kernels = problem
    index = [*range(50), 7]
    blocks = Dense(*(torch.from_numpy(K[np.ix_(index, index)]) for K in kernels.values()))
    with pytest.raises(ValueError, match="not positive definite at sample 50 .*duplicate.*--ridge"):
        fit(blocks, formed(blocks, "ck", n=51), y[index], CLASSES, "ck", 0.0)
    with pytest.raises(ValueError, match="ridge must be 0 or positive"):
        fit(blocks, formed(blocks, "ck", n=51), y[index], CLASSES, "ck", -1.0)
    assert fit(blocks, formed(blocks, "ck", n=51), y[index], CLASSES, "ck", 0.1).log_evidence < 0


def test_a_factor_on_disk_is_that_in_memory_and_goes_on_too(problem, tmp_path):
    square, cross, y, _, kernels = problem
    layout = Layout(N, HEIGHT)
    rows, factor = (FileRows(layout, tmp_path / name, "key") for name in ("kernel.rows", "factor.rows"))
    form(square, "ck", rows)
    machine = fit(square, rows, y, CLASSES, "ck", 0.03, kept=rows, factor=factor)
    kept = formed(square, "ck")
    in_memory = fit(square, kept.copy(), y, CLASSES, "ck", 0.03, kept=kept)
    assert torch.equal(machine.weights, in_memory.weights)
    on_disk, expected = machine.predict(cross), in_memory.predict(cross)
    assert torch.equal(on_disk.mean, expected.mean) and torch.equal(on_disk.variance, expected.variance)
    factor.close()
    again = FileRows(layout, tmp_path / "factor.rows", "key")
    assert all(again.has(i) for i in range(layout.blocks))
    form(square, "ck", rows)  # nothing to do
    assert torch.equal(fit(square, rows, y, CLASSES, "ck", 0.03, kept=rows, factor=again).weights, machine.weights)
