"""The numbers behind each assumption of the theory, on data where they are known."""

import math

import numpy as np
import pytest
import torch

from deq_enn.networks.deq import DEQ
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.utils.random import generator
from deq_enn.verdicts import assumptions
from deq_enn.verdicts.after_training import begin
from deq_enn.verdicts.assumptions import check_data, names_of_classes
from tests.conftest import one_line


@pytest.mark.slow
def test_gaussian_data_concentrate_as_gaussian_data_do():
    p = 300
    X = torch.randn(800, p, generator=generator("white")) / math.sqrt(p)
    result = assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, X)
    c = result["concentration"]
    assert c["norm_spread"] == pytest.approx(math.sqrt(2 / p), rel=0.1) and c["dimensions"] == pytest.approx(p, rel=0.2)
    assert c["cosine"] == pytest.approx(1 / math.sqrt(p), rel=0.03)
    assert c["cosine_largest"] == pytest.approx(c["gaussian"]["cosine_largest"], rel=0.2)
    assert not result["fails"]
    spread = X * torch.exp(0.6 * torch.randn(800, 1, generator=generator("norms")))
    spread /= spread.square().sum(1).mean().sqrt()
    (low,) = assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, spread)["fails"]
    assert "norms do not concentrate" in low
    parallel = X + 0.1 * torch.ones(p) / math.sqrt(p) * 10
    assert any("orthogonal" in s for s in assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, parallel)["fails"])


def test_the_spread_of_a_few_samples_is_that_of_their_pairs():
    result = assumptions.concentration(torch.tensor([[1.0, 0], [1, 1], [0, 1], [0, 0]]), 1.0)
    assert result["cosine"] == pytest.approx(math.sqrt((0.5 + 0 + 0.5) / 3))  # zero has no angle
    assert result["cosine_largest"] == pytest.approx(math.sqrt(0.5)) and result["norm_farthest"] == 1
    assert result["norm_mean"] == 0 and result["norm_spread"] == pytest.approx(math.sqrt(2 / 3))


def test_stability_is_that_of_the_worst_sample():
    norms2 = np.array([1e-4, 1.0])  # of tanh, the slope is largest where the sample is small
    result = assumptions.stability(ACTIVATIONS["tanh"], 0.9, 1.0, norms2)
    assert result["growth"] < result["growth_largest"] < 1 and result["lipschitz"] == pytest.approx(2 * math.sqrt(0.9))
    with pytest.raises(ValueError, match="no stable"):
        assumptions.stability(ACTIVATIONS["selu"], 0.9, 1.0, np.array([1e-3, 1.0]))


X = torch.randn(200, 6, generator=generator("samples"))
DEQ6 = DEQ(ACTIVATIONS["tanh"], 6, 8, 3, 0.2)


def trained():
    deq = DEQ(ACTIVATIONS["tanh"], 6, 8, 3, 0.2)
    with torch.no_grad():
        deq.A.mul_(3)
    return deq


@pytest.mark.parametrize("name", ["strings", "column", "objects", "list", "bytes of numbers"])
def test_labels_of_many_forms(name):
    labels = np.arange(200) % 3
    strings = np.array(["a", "b", "c"])[labels]
    y = {
        "strings": strings,
        "column": strings[:, None],
        "objects": strings.astype(object),
        "list": strings.tolist(),
        "bytes of numbers": labels.astype(np.uint8)[:, None],
    }[name]
    _, coded, classes = check_data(X, y, 6)
    assert coded is not None and coded.tolist() == labels.tolist() and classes == 3
    assert names_of_classes(y) == (("a", "b", "c") if name != "bytes of numbers" else None)


def test_classes_are_called_what_their_labels_are():
    assert names_of_classes(torch.tensor([7, 3, 7])) == names_of_classes([[3.0], [7.0]]) == (3, 7)
    assert names_of_classes(None) is None and names_of_classes(torch.arange(3)) is None


@pytest.mark.parametrize(
    "y, words",
    [
        (np.arange(200), "200 of the 200 labels are seen once"),
        ([*range(150), *[0] * 50], "149 of the 200 labels are seen once"),
        ([f"row {i}" for i in range(200)], "200 of the 200 labels"),
        (["a"] * 200, "all labels are a"),
        ([1, "a"] * 100, "at least|array of numbers|integers"),
        ([None] * 200, "array of numbers|integers"),
        (np.zeros(200, complex), "integers"),
        (np.eye(3)[np.arange(200) % 3], "one label a row"),
    ],
)
def test_labels_without_an_accuracy(y, words):
    if isinstance(y, list) and y[:2] == [1, "a"]:
        y = np.array(y, object)
    with pytest.raises(ValueError, match=words) as error:
        begin(DEQ6, X, y)
    one_line(error)


def test_samples_that_are_no_numbers():
    for wrong in ([["a"] * 6] * 200, [[None] * 6] * 200, np.full((200, 6), "1.x")):
        with pytest.raises(ValueError, match="X must be an array of numbers|NaN") as error:
            check_data(wrong, None, 6)
        one_line(error)


@pytest.mark.parametrize("deq", [DEQ6, trained()], ids=["drawn", "trained"])
@pytest.mark.parametrize("held", [X, X[:2], X.numpy(), (X,), "X"])
def test_held_is_a_pair(deq, held):
    with pytest.raises(ValueError, match=r"held must be a pair \(X_test, y_test\)") as error:
        begin(deq, X, torch.arange(200) % 3, held=held)
    one_line(error)


def test_a_trained_deq_has_outputs_and_no_names():
    with pytest.raises(ValueError, match="in the order of its outputs; got strings") as error:
        begin(trained(), X, np.array(["a", "b", "c"])[np.arange(200) % 3])
    one_line(error)


def test_samples_may_have_any_strides_and_byte_order():
    X = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    for odd in (X[::-1], X[::-1].astype(">f4")):
        assert torch.equal(check_data(odd, None, 3)[0], torch.from_numpy(X[::-1].copy()))
