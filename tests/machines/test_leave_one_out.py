"""Leaving samples out in closed form against refitting without them, and its ridge against that of a readout."""

import pytest
import torch

from deq_enn.machines import leave_one_out, precise_readout
from deq_enn.machines.copies import copies
from deq_enn.machines.leave_one_out import Targets, from_features, from_kernel
from deq_enn.machines.readout import RIDGES
from deq_enn.utils.deadline import OutOfTime, deadline
from deq_enn.utils.random import generator
from tests.conftest import Ticks


def samples(n, p=12, classes=3, seed=0):
    g = generator("verdict parts", seed)
    y = torch.randint(classes, (n,), generator=g)
    X = torch.randn(n, p, generator=g)
    X[:, :classes] += 1.5 * torch.nn.functional.one_hot(y, classes)
    return X / X.square().sum(1).mean().sqrt(), y


def refitted(F, y, classes, copies, ridge):
    """Predictions of each sample by a readout that is solved without it and its copies; the plain way."""
    F = F.double()
    Y = torch.nn.functional.one_hot(y, classes).double()
    Y = Y - Y.mean(0)
    noise = ridge * F.square().sum() / len(F)
    out = torch.empty_like(Y)
    for i in range(len(F)):
        keep = copies != copies[i]
        A = F[keep].T @ F[keep] + noise * torch.eye(F.shape[1], dtype=torch.float64)
        out[i] = F[i] @ torch.linalg.solve(A, F[keep].T @ Y[keep])
    return out


@pytest.mark.parametrize("width", [20, 150])  # fewer and more than the samples: normal equations, and the kernel
@pytest.mark.parametrize("copied", [None, 0.0, 0.01])
def test_leaving_out_in_closed_form_is_refitting(width, copied):
    X, y = samples(80)
    if copied is not None:
        X[40:60], X[60:70] = X[:20], X[:10]  # twice and three times, with labels of their own
        X[40:] += copied / 12**0.5 * torch.randn(40, 12, generator=generator("moved"))
    groups = copies(X)
    assert len(groups.unique()) == (80 if copied is None else 50)
    F = torch.tanh(X @ torch.randn(12, width, generator=generator("features")))
    result = from_features(F, Targets(y, 3, groups))
    expected = refitted(F, y, 3, groups, result.ridge)
    torch.testing.assert_close(result.predicted, expected, rtol=1e-6, atol=1e-8)
    mean = torch.nn.functional.one_hot(y, 3).double().mean(0)
    assert torch.equal(result.right, (expected + mean).argmax(1) == y)
    if copied == 0:  # without being told of the copies it does not leave them out
        blind = from_features(F, Targets(y, 3)).predicted
        assert (blind - expected)[:10].abs().max() > 1e-3


def test_the_kernel_and_the_normal_equations_agree():
    X, y = samples(90)
    F = torch.tanh(X @ torch.randn(12, 60, generator=generator("features"))).double()
    primal, dual = from_features(F, Targets(y, 3)), from_kernel(F @ F.T, Targets(y, 3))
    assert primal.ridge == dual.ridge
    torch.testing.assert_close(primal.predicted, dual.predicted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("width", [20, 80])  # fewer and more than the samples
@pytest.mark.parametrize("grouped", [False, True])
def test_the_ridge_predicts_left_out_samples_best(width, grouped):
    """Of all ridges, each tried by refitting without each sample or group, whatever the order of the samples."""
    X, y = samples(40)
    F = torch.tanh(X @ torch.randn(12, width, generator=generator("features"))).double()
    copies = torch.arange(40) // 2 if grouped else torch.arange(40)
    Y = Targets(y, 3).Y
    errors = {ridge: (refitted(F, y, 3, copies, ridge) - Y).square().mean().item() for ridge in RIDGES}
    result = from_features(F, Targets(y, 3, copies))
    assert result.ridge == min(errors, key=lambda ridge: errors[ridge]) and 1e-8 < result.ridge < 100
    order = torch.randperm(40, generator=generator("another order"))
    again = from_features(F[order], Targets(y[order], 3, copies[order]))
    assert again.ridge == result.ridge and torch.equal(again.right, result.right[order])


def test_of_many_samples_some_choose_the_ridge(monkeypatch):
    X, y = samples(50)
    F = torch.tanh(X @ torch.randn(12, 20, generator=generator("features"))).double()
    whole = from_features(F, Targets(y, 3))
    monkeypatch.setattr(leave_one_out, "BATCH", 8)
    monkeypatch.setattr(leave_one_out, "TOGETHER", 100)  # entries: one ridge at a time
    torch.testing.assert_close(from_features(F, Targets(y, 3)).predicted, whole.predicted)
    monkeypatch.setattr(leave_one_out, "CHOICE", 24)
    errors = {
        ridge: (refitted(F, y, 3, torch.arange(50), ridge) - Targets(y, 3).Y)[:24].square().mean() for ridge in RIDGES
    }
    assert from_features(F, Targets(y, 3)).ridge == min(errors, key=lambda ridge: errors[ridge])


@pytest.mark.parametrize("width", [30, 900])
def test_a_long_regression_looks_at_the_deadline(width):
    """Before each dense solve, and between parts of the samples; the first look is in time, and the second is not."""
    n = 5000 if width == 30 else 850
    _, y = samples(n)
    F = torch.randn(n, width, generator=generator("features"))
    with deadline(Ticks(1.0), 1.5), pytest.raises(OutOfTime):
        from_features(F, Targets(y, 3))


@pytest.mark.parametrize("width", [20, 150])
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("machine", [from_features, precise_readout.leave_one_out])
def test_features_that_are_all_zero_say_the_commonest_class(machine, width, copied):
    """As where every signal dies in an activation's dead zone."""
    y = torch.arange(80) % 3 // 2
    targets = Targets(y, 2, torch.arange(80) // 2 if copied else None)
    said = machine(torch.zeros(80, width, dtype=torch.float64), targets)
    assert torch.equal(said.right, y == 0) and said.faintest == 0


def test_the_samples_that_choose_the_ridge_are_the_first_whatever_their_groups_are_called(monkeypatch):
    """Groups are called by the first row of a file, which may be sorted by its labels."""
    monkeypatch.setattr(leave_one_out, "CHOICE", 30)
    X, y = samples(120)
    F = torch.tanh(X @ torch.randn(12, 20, generator=generator("features"))).double()
    names = torch.randperm(120, generator=generator("names"))
    tables = [
        leave_one_out.from_features(F, Targets(y, 3, copies_of)).ridge for copies_of in (None, names, 5 * names - 7)
    ]
    assert len(set(tables)) == 1
    called = Targets(y, 3, names)
    assert torch.equal(torch.cat([group.flatten() for group in called.groups]), torch.arange(120))
    twice = Targets(y, 3, torch.tensor([9, 4, 9, 4, *range(100, 216)]))
    assert [group.tolist()[:2] for group in twice.groups] == [[[4], [5]], [[0, 2], [1, 3]]]


def test_the_faintest_direction_is_a_share_of_the_mean_squared_norm():
    X, y = samples(90)
    F = 10 * torch.tanh(X @ torch.randn(12, 20, generator=generator("features"))).double()
    least = torch.linalg.eigvalsh(F.T @ F)[0] / F.square().sum(1).mean()
    assert from_features(F, Targets(y, 3)).faintest == pytest.approx(least.item(), rel=1e-6)


def test_the_error_of_a_ridge_is_the_mean_of_the_samples_that_choose(monkeypatch):
    monkeypatch.setattr(leave_one_out, "CHOICE", 20)
    monkeypatch.setattr(leave_one_out, "BATCH", 20)
    X, y = samples(90)
    K, targets = (X @ X.T).double(), Targets(y, 3)
    strengths, Q = torch.linalg.eigh(K)
    directions = leave_one_out.Directions(Q.__getitem__, strengths, Q.T @ targets.Y, 1.0, True, True)
    (row,) = directions.table(targets, [0.1])
    errors = (targets.Y - directions.left_out(targets, [0.1]).predicted)[:20]
    assert row["mse"] == pytest.approx(errors.square().mean().item())
