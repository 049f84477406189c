"""Readouts by singular values: against least squares of stacked rows, refitting, and the normal equations."""

import numpy as np
import pytest
import torch

from deq_enn.machines import precise_readout
from deq_enn.machines.leave_one_out import Targets, from_features
from deq_enn.machines.precise_readout import features, leave_one_out, solve_precisely, too_small
from deq_enn.machines.readout import solve
from deq_enn.networks.build import build_model
from deq_enn.utils.random import generator


def smooth(n, width):
    """Features of the plane, nearly dependent, and two classes in rings, which need the faint directions."""
    g = generator("precise", n, width)
    X = 2 * torch.rand(n, 2, generator=g, dtype=torch.float64) - 1
    W = torch.randn(2, width, generator=g, dtype=torch.float64)
    b = torch.randn(width, generator=g, dtype=torch.float64)
    return torch.tanh(0.5 * X @ W + b), (4 * X.norm(dim=1) % 2 < 1).long()


def refitted(F, Y, groups, ridge):
    """Predictions of each sample by least squares of rows stacked on the ridge's, without the sample and its copies."""
    noise = ridge * F.square().sum().item() / len(F)
    eye = np.sqrt(noise) * np.eye(F.shape[1])
    out = np.empty(Y.shape)
    for i in range(len(F)):
        keep = groups != groups[i]
        stacked, wanted = np.vstack([F[keep], eye]), np.vstack([Y[keep], np.zeros((F.shape[1], Y.shape[1]))])
        out[i] = F[i].numpy() @ np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    return out


@pytest.mark.parametrize("n, width", [(90, 40), (60, 80)])
@pytest.mark.parametrize("grouped", [False, True])
def test_leaving_out_is_refitting_where_the_ridge_is_tiny(monkeypatch, n, width, grouped):
    F, y = smooth(n, width)
    groups = torch.arange(n) // (3 if grouped else 1)
    targets = Targets(y, 2, groups)
    for ridge in (1e-10, 1e-6, 1e-2):
        monkeypatch.setattr(precise_readout, "RIDGES", (ridge,))
        result = leave_one_out(F, targets)
        expected = refitted(F, targets.Y.numpy(), groups.numpy(), ridge)
        np.testing.assert_allclose(result.predicted, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_large_ridge_is_that_of_the_normal_equations():
    g = generator("rough")
    X, y = torch.randn(200, 6, generator=g, dtype=torch.float64), torch.randint(3, (200,), generator=g)
    F = torch.tanh(X @ torch.randn(6, 30, generator=g, dtype=torch.float64))
    plain, precise = from_features(F, Targets(y, 3)), leave_one_out(F, Targets(y, 3))
    assert plain.ridge == pytest.approx(precise.ridge) and not too_small(plain.ridge, 200, 30)
    torch.testing.assert_close(plain.predicted, precise.predicted, rtol=1e-6, atol=1e-8)


def test_features_that_are_nearly_dependent_need_it():
    F, y = smooth(1500, 100)
    targets = Targets(y, 2)
    plain, precise = from_features(F.float(), targets), leave_one_out(F, targets)
    assert too_small(plain.ridge, 1500, 100, plain.faintest) and precise.ridge < 1e-12
    assert precise.right.double().mean() > plain.right.double().mean() + 0.2


def test_a_ridge_that_is_small_because_none_is_needed_does_not():
    """Few features that are far from dependent, and many samples: no small ridge changes anything."""
    g = generator("none needed")
    X = torch.randn(2000, 8, generator=g, dtype=torch.float64)
    y = (X[:, 0] + 0.1 * torch.randn(2000, generator=g) > 0).long()
    plain, precise = from_features(X.float(), Targets(y, 2)), leave_one_out(X, Targets(y, 2))
    assert plain.faintest > 1 and not too_small(1e-8, 2000, 8, plain.faintest)
    assert torch.equal(plain.right, precise.right)


def test_the_readout_is_that_of_least_squares():
    g = generator("solve precisely")
    X, y = torch.randn(300, 3, generator=g), torch.randint(2, (300,), generator=g)
    for width in (30, 400):
        model = build_model("inn", 3, width, 2, 0.2).double()
        readout, table = solve_precisely(model, X.double(), y, 2)
        assert readout.ridge == min(table, key=lambda row: row["mse"])["ridge"] and len(table) == 41
        F = features(model, X.double())
        assert readout.ridge == leave_one_out(F, Targets(y, 2)).ridge
        Y = torch.nn.functional.one_hot(y, 2).double()
        noise = readout.ridge * F.square().sum().item() / 300
        assert readout.noise == pytest.approx(noise)
        stacked = np.vstack([F, np.sqrt(noise) * np.eye(width)])
        wanted = np.vstack([Y - Y.mean(0), np.zeros((width, 2))])
        expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
        np.testing.assert_allclose(readout.weights, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())
        normal, _ = solve(model, X.double(), y, 2, [readout.ridge])
        ours, theirs = (each.predict(model, X[:20].double()) for each in (readout, normal))
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-4)
        assert readout.log_evidence == pytest.approx(normal.log_evidence, rel=1e-5)


@pytest.mark.parametrize("n, width", [(15, 30), (60, 20)])
def test_variances_hold_where_the_ridge_is_at_the_rounding(monkeypatch, n, width):
    """What is left of the targets is then of the order of the ridge, and no difference of numbers of order 1."""
    for seed in range(5):
        g = generator("tiny ridge", n, seed)
        X = torch.randn(n, 5, generator=g, dtype=torch.float64)
        model = build_model("tanh_enn", 5, width, 2, 0.2).double()
        F, Y = features(model, X), torch.nn.functional.one_hot((X[:, 0] > 0).long(), 2).double()
        Y = Y - Y.mean(0)
        for ridge in (1e-18, 1e-6, 1.0):
            if width < n and ridge < 1e-8:
                continue  # F F^T + lambda I is singular to rounding, so that there is nothing to hold it against
            monkeypatch.setattr(precise_readout, "RIDGES", (ridge,))
            readout, _ = solve_precisely(model, X, (X[:, 0] > 0).long(), 2)
            K = F @ F.T + readout.noise * torch.eye(n, dtype=torch.float64)
            expected = (Y * torch.linalg.solve(K, Y)).sum().item() / (2 * n)
            assert readout.scale2 == pytest.approx(expected, rel=1e-6)
            evidence = -(np.log(2 * np.pi * expected) + 1 + torch.logdet(K).item() / n)
            assert readout.log_evidence == pytest.approx(evidence, rel=1e-6)
            new = features(model, X[:3] + 0.5)
            left = (new @ new.T).diagonal() - (new @ F.T @ torch.linalg.solve(K, F @ new.T)).diagonal()
            variance = expected * (left + readout.noise)
            got = readout.predict(model, X[:3] + 0.5).variance
            np.testing.assert_allclose(got, variance, rtol=1e-5, atol=1e-9)


def test_a_ridge_is_too_small_only_where_features_are_nearly_dependent_and_fit():
    assert too_small(1e-7, 1000, 100, 9e-5) and not too_small(1e-7, 1000, 100, 1.1e-4)
    assert not too_small(1e-6, 1000, 100) and too_small(1e-7, 25_000, 1000) and not too_small(1e-7, 25_001, 1000)
