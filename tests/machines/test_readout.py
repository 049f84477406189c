"""The readout from normal equations against least squares on all features at once, and against the kernel machine."""

import copy

import numpy as np
import pytest
import torch

from deq_enn.machines import precise_readout, readout as ridge_features
from deq_enn.machines.block_rows import Layout, MemoryRows, form
from deq_enn.machines.readout import solve
from deq_enn.machines.regression import fit, one_hot_targets
from deq_enn.machines.scores import score
from deq_enn.networks.build import build_model
from tests.helpers.kernel_rank import Dense


@pytest.fixture(scope="module")
def problem():
    """A network of width 40, 900 samples in random order with labels, and 100 others."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(3, (1000,), generator=random)
    X = torch.randn(3, 12, generator=random)[y] * 0.4 + torch.randn(1000, 12, generator=random)
    X /= X.square().sum(1).mean().sqrt()
    return build_model("inn", 12, 40, 3, 0.2), X[:900], y[:900], X[900:], y[900:]


def features(model, X):
    with torch.no_grad():
        return model.features(X).double().numpy()


def test_the_readout_is_that_of_stacked_least_squares(problem):
    model, X, y, X_test, _ = problem
    readout, table = solve(model, X, y, 3, [1e-3])
    F, Y = features(model, X), one_hot_targets(y, 3)[0].numpy()
    noise = 1e-3 * (F**2).sum(1).mean()
    assert readout.noise == pytest.approx(noise, rel=1e-5) and table == []
    stacked = np.vstack([F, np.sqrt(noise) * np.eye(40)])
    expected = np.linalg.lstsq(stacked, np.vstack([Y, np.zeros((40, 3))]), rcond=None)[0]
    np.testing.assert_allclose(readout.weights, expected, rtol=1e-3, atol=1e-4)  # float32 features, in other batches
    mean = features(model, X_test) @ expected + readout.mean.numpy()
    np.testing.assert_allclose(readout.predict(model, X_test).mean, mean, atol=1e-4)


def test_it_is_the_kernel_machine_of_its_features(problem):
    """Mean, variance, scale and evidence in weight space are those in function space."""
    model, X, y, X_test, y_test = problem
    readout, _ = solve(model, X, y, 3, [0.02])
    F, F_test = (torch.from_numpy(features(model, Z)) for Z in (X, X_test))
    K, cross = F @ F.T, F_test @ F.T
    square = Dense(K, K)
    rows = MemoryRows(Layout(900, 250))
    form(square, "ck", rows)
    machine = fit(square, rows, y, 3, "ck", 0.02, kept=rows.copy(), exact=True)
    assert readout.scale2 == pytest.approx(machine.scale2, rel=1e-4)
    assert readout.log_evidence == pytest.approx(machine.log_evidence, abs=1e-3)
    single = machine.predict(Dense(cross, cross, (F_test.square().sum(1),) * 2))
    other = readout.predict(model, X_test)
    np.testing.assert_allclose(other.mean, single.mean, atol=1e-4)
    np.testing.assert_allclose(other.variance, single.variance, rtol=1e-3)
    for name, value in score(single, y_test).items():
        assert score(other, y_test)[name] == pytest.approx(value, abs=1e-3), name


def test_the_ridge_is_chosen_on_the_held_out_fifth(problem):
    model, X, y, *_ = problem
    ridges = [1e-4, 1e-2, 1e-1, 1.0, 10.0]
    readout, table = solve(model, X, y, 3, ridges)
    F, Y = features(model, X), one_hot_targets(y, 3)[0].numpy()
    expected = []
    for ridge in ridges:
        noise = ridge * (F[:720] ** 2).sum(1).mean()
        w = np.linalg.solve(F[:720].T @ F[:720] + noise * np.eye(40), F[:720].T @ Y[:720])
        expected.append(((Y[720:] - F[720:] @ w) ** 2).mean())
    np.testing.assert_allclose([row["mse"] for row in table], expected, rtol=1e-4)
    assert readout.ridge == ridges[int(np.argmin(expected))]
    spoiled = torch.cat([y[:720], y[720:].roll(1)])  # only the choice sees the held-out labels apart
    assert [row["mse"] for row in solve(model, X, spoiled, 3, ridges)[1]] > [row["mse"] for row in table]


def test_batches_do_not_matter_and_memory_is_that_of_the_gram(problem, monkeypatch):
    model, X, y, *_ = problem
    first, _ = solve(model, X, y, 3, [1e-2])
    monkeypatch.setattr(ridge_features, "BATCH", 77)
    second, _ = solve(model, X, y, 3, [1e-2])
    np.testing.assert_allclose(first.weights, second.weights, rtol=1e-3, atol=1e-4)


def test_without_a_ridge_there_is_no_variance_and_singular_equations_say_so(problem):
    model, X, y, X_test, y_test = problem
    readout, _ = solve(model, X, y, 3, [0.0])
    assert set(score(readout.predict(model, X_test), y_test)) == {"accuracy", "mse"}
    twice = torch.cat([X[:15], X[:15]])
    with pytest.raises(ValueError, match="singular at ridge 0.*--ridge"):
        solve(model, twice, torch.cat([y[:15], y[:15]]), 3, [0.0])


def test_where_all_targets_are_the_same_nothing_varies_and_scores_are_finite(problem):
    """As of few training samples, which may be of one class."""
    model, X, _, X_test, y_test = problem
    same, wide = torch.ones(len(X), dtype=torch.int64), copy.deepcopy(model).double()
    precise, _ = precise_readout.solve_precisely(wide, X.double(), same, 3)
    for readout in (solve(model, X, same, 3)[0], precise):
        assert readout.scale2 == 0 and readout.log_evidence is None
        scores = score(readout.predict(wide, X_test.double()), y_test)
        assert len(scores) == 6 and np.isfinite([*scores.values()]).all()
        assert scores["accuracy"] == (y_test == 1).double().mean()
    blocks, rows = Dense(torch.eye(5).double(), torch.eye(5).double()), MemoryRows(Layout(5))
    form(blocks, "ck", rows)
    machine = fit(blocks, rows, same[:5], 3, "ck", 0.1)
    assert machine.scale2 == 0 and machine.log_evidence is None and not machine.weights.any()


def test_an_input_that_is_not_finite_is_named_and_not_the_ridge():
    enn = build_model("l_relu_enn", 12, 8, 3, 0.2)
    X = torch.ones(30, 12)
    X[29, 0] = torch.nan
    with pytest.raises(ValueError, match="the input has NaN or infinite entries, first in row 29"):
        solve(enn, X, torch.arange(30) % 3, 3)


def test_one_sample_chooses_no_ridge():
    model = build_model("tanh_enn", 4, 8, 2, 0.2)
    with pytest.raises(ValueError, match="two samples or more, got 1"):
        solve(model, torch.ones(1, 4), torch.tensor([0]), 2)
    assert solve(model, torch.ones(1, 4), torch.tensor([0]), 2, [0.1])[0].ridge == 0.1
