"""The kernel machine as scikit-learn's classifiers are used, against a dense solve."""

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch

from deq_enn import ACTIVATIONS, KernelMachine, adapt, conv_kernels, implicit_kernels
from deq_enn.machines import regression
from deq_enn.machines.estimator import NotFitted
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.deq import DEQ


def samples(n=60, p=4, classes=3):
    g = np.random.default_rng(0)
    y = np.arange(n) % classes
    X = g.normal(size=(n, p)) + 3 * np.eye(p)[y]
    return X / np.sqrt((X**2).sum(1).mean()), np.array(["ant", "bee", "cat"])[y]


@pytest.mark.slow
def test_it_is_kernel_ridge_regression():
    X, y = samples()
    machine = KernelMachine(activation=ACTIVATIONS["tanh"], sigma_a2=0.3, ridge=0.01).fit(X[:40], y[:40])
    K = implicit_kernels(
        torch.from_numpy(X), ACTIVATIONS["tanh"], 0.3, tau0=float(np.sqrt((X[:40] ** 2).sum(1).mean()))
    )
    K = K[0].numpy()
    Y = (y[:40, None] == np.unique(y)).astype(float)
    noise = 0.01 * np.diag(K)[:40].mean()
    expected = K[40:, :40] @ np.linalg.solve(K[:40, :40] + noise * np.eye(40), Y - Y.mean(0)) + Y.mean(0)
    assert np.allclose(machine.decision_function(X[40:]), expected, atol=1e-4)
    assert (machine.predict(X[40:]) == np.unique(y)[expected.argmax(1)]).all()


@pytest.mark.slow
def test_the_conventions():
    X, y = samples()
    machine = KernelMachine(layers=[ACTIVATIONS["relu"]], kernel="ntk")
    with pytest.raises(NotFitted):
        machine.predict(X)
    assert machine.fit(X, y) is machine and machine.n_features_in_ == 4
    assert machine.classes_.tolist() == ["ant", "bee", "cat"] and machine.score(X, y) > 0.9
    p = machine.predict_proba(X)
    assert (
        p.shape == (60, 3) and np.allclose(p.sum(1), 1) and (machine.classes_[p.argmax(1)] == machine.predict(X)).all()
    )
    again = KernelMachine(**machine.get_params())
    assert (again.fit(X, y).predict(X) == machine.predict(X)).all()
    assert (pickle.loads(pickle.dumps(machine)).decision_function(X) == machine.decision_function(X)).all()
    assert machine.set_params(ridge=1.0) is machine and machine.get_params()["ridge"] == 1.0
    two = KernelMachine(DEQ(ACTIVATIONS["tanh"], 4, 8, 2, 0.2)).fit(X, y == "bee")
    assert two.decision_function(X).shape == (60,) and two.predict(X).dtype == bool


def test_so_many_samples_choose_the_ridge_as_it_is_told(monkeypatch):
    X, y = samples()
    sizes, leading = [], regression.leading
    monkeypatch.setattr(regression, "leading", lambda rows, size: sizes.append(size) or leading(rows, size))
    for size in (20, 50, 1000, None):
        KernelMachine(activation="tanh", ridge_size=size).fit(X, y)
    assert sizes == [20, 50, len(X), len(X)]
    monkeypatch.setattr(regression, "CHOICE", 12)
    KernelMachine(activation="tanh").fit(X, y)
    assert sizes[4:] == [12, len(X) // 3]


@pytest.mark.parametrize(
    "settings, change, words",
    [
        ({}, {}, "give one of network, layers and activation"),
        ({"kernel": "rbf"}, {}, "kernel must be"),
        ({"ridge": "none"}, {}, "ridge must be"),
        ({"ridge_size": 4}, {}, "ridge_size must be None or an integer of at least 5, got 4"),
        ({"ridge_size": 1e4}, {}, "ridge_size must be None or an integer of at least 5, got 10000.0"),
        ({}, {"y": np.zeros(60)}, "one class"),
        ({}, {"y": np.zeros(3)}, "one label a row"),
        ({}, {"y": None}, "requires y"),
        ({}, {"y": np.linspace(0, 1, 60)}, "continuous"),
        ({}, {"X": np.full((60, 4), np.nan)}, "NaN"),
        ({}, {"X": np.zeros(60)}, "must be an .n, p. matrix, got shape .60,.. Reshape"),
        ({}, {"X": np.zeros((60, 0))}, r"0 feature\(s\)"),
        ({}, {"X": np.zeros((0, 3))}, r"0 sample\(s\)"),
        ({}, {"X": np.ones((60, 4)) * 1j}, "Complex data"),
        ({}, {"X": scipy.sparse.eye(60)}, "sparse input is not supported"),
    ],
)
def test_what_cannot_be_fitted_says_so(settings, change, words):
    X, y = samples()
    known = {} if words.startswith("give") else {"activation": ACTIVATIONS["tanh"]}
    with pytest.raises(ValueError, match=words):
        KernelMachine(**known, **settings).fit(change.get("X", X), change.get("y", y))
    with pytest.raises(ValueError, match="no parameter 'width'"):
        KernelMachine().set_params(width=3)


def test_an_activation_may_be_a_name_a_function_or_a_module():
    X, y = samples(n=12)
    outputs = [
        KernelMachine(**given, ridge=0.1).fit(X, y).decision_function(X)
        for given in ({"activation": ACTIVATIONS["swish"]}, {"activation": "swish"}, {"activation": torch.nn.SiLU()})
    ]
    assert (outputs[0] == outputs[1]).all() and (outputs[0] == outputs[2]).all()
    layers = [KernelMachine(layers=given, ridge=0.1).fit(X, y).predict(X) for given in (["relu"], [torch.relu])]
    assert (layers[0] == layers[1]).all()


def test_scikit_learn_clones_it():
    clone = pytest.importorskip("sklearn.base").clone
    assert clone(KernelMachine(activation=ACTIVATIONS["tanh"])).activation is not None


def test_the_decision_of_two_classes_is_in_the_order_of_their_probabilities_and_no_batch_changes_it():
    X, y = samples()
    machine = KernelMachine(activation="tanh", ridge=0.1).fit(X, y == "bee")
    odds, p = machine.decision_function(X), machine.predict_proba(X)
    assert np.allclose(odds, np.log(p[:, 1] / p[:, 0])) and ((odds > 0) == machine.predict(X)).all()
    alone = np.concatenate([machine.predict_proba(row[None]) for row in X])
    assert np.allclose(alone, p, rtol=1e-9, atol=1e-10)


def test_tensors_are_taken_as_arrays_are():
    X, y = samples()
    expected = KernelMachine(activation="tanh", ridge=0.1).fit(X, y == "bee").decision_function(X)
    tensors = torch.from_numpy(X).requires_grad_(), torch.from_numpy(y == "bee")
    assert (KernelMachine(activation="tanh", ridge=0.1).fit(*tensors).decision_function(tensors[0]) == expected).all()
    short = KernelMachine(activation="tanh", ridge=0.1).fit(tensors[0].bfloat16(), tensors[1])
    assert np.abs(short.decision_function(X) - expected).max() < 0.1


def test_the_score_is_that_of_one_label_a_row():
    X, y = samples()
    machine = KernelMachine(activation="tanh", ridge=0.1).fit(X, y)
    with pytest.warns(UserWarning, match="column-vector"):
        assert machine.score(X, y[:, None]) == machine.score(X, y)
    with pytest.raises(ValueError, match="one label a row"):
        machine.score(X, y[:1])


@pytest.mark.parametrize("n", [60, pytest.param(2600, marks=pytest.mark.slow)])
def test_torchs_default_type_changes_nothing(n, request):
    X, y = samples(n)
    expected = KernelMachine(activation="tanh", ridge=0.1).fit(X, y).decision_function(X[:20])
    request.getfixturevalue("double_by_default")
    assert (KernelMachine(activation="tanh", ridge=0.1).fit(X, y).decision_function(X[:20]) == expected).all()


def test_rows_are_images_where_the_network_is_convolutional():
    X, y = np.random.default_rng(0).normal(size=(24, 9)), np.arange(24) % 2
    deq = ConvDEQ("relu", (1, 3, 3), 4, 2, 0.2)
    machine = KernelMachine(deq, ridge=0.1).fit(X[:20], y[:20])
    K = conv_kernels(torch.from_numpy(X).view(24, 1, 3, 3), "relu", 0.2, tau0=deq.tau0)[0].numpy()
    Y = (y[:20, None] == [0, 1]) - 0.5
    A = K[:20, :20] + 0.1 * np.diag(K)[:20].mean() * np.eye(20)
    expected = K[20:, :20] @ np.linalg.solve(A, Y) + 0.5
    assert np.allclose(machine._predicted(X[20:]).mean, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"rows of 9 entries, an image \(1, 3, 3\) each; got 8"):
        KernelMachine(deq, ridge=0.1).fit(X[:, :8], y)


def test_a_network_without_a_kernel_is_refused():
    X, y = samples()
    for network in (torch.nn.Linear(4, 3), adapt(DEQ("tanh", 4, 8, 3, 0.2))):
        with pytest.raises(ValueError, match="is no DEQ or explicit network"):
            KernelMachine(network).fit(X, y)


def test_a_fit_that_fails_leaves_the_machine_as_it_was():
    X, y = samples()
    machine = KernelMachine(activation="tanh", ridge=0.1).fit(X, y)
    expected = machine.predict(X)
    with pytest.raises(ValueError, match="0 or positive"):
        machine.set_params(ridge=-1.0).fit(X[:, :2], y == "bee")
    assert (machine.predict(X) == expected).all()
