"""The figure of accuracy against steps: its numbers are those of the networks, on small samples."""

from types import SimpleNamespace

import pytest
import torch

from ck_ntk import steps
from deq_enn.utils.random import generator
from tests.conftest import Ticks


@pytest.mark.slow
def test_more_steps_come_nearer_and_trained_ones_are_better(monkeypatch):
    monkeypatch.setattr(steps, "STEPS", (1, 2, 12))
    monkeypatch.setattr(steps, "TRAINED", (1,))
    train = steps.train
    monkeypatch.setattr(steps, "train", lambda *given: 8.0 + 0 * train(*given))  # seconds of the clock below
    monkeypatch.setattr("time.process_time", Ticks(0.01))
    g = generator("steps figure")
    y = torch.randint(3, (900,), generator=g)
    X = torch.randn(900, 8, generator=g) + 2 * torch.nn.functional.one_hot(y, 8)
    X /= X.square().sum(1).mean().sqrt()
    args = SimpleNamespace(epoch=4, dim=[32])
    numbers = steps.study("tanh:0.8", (X[:600], y[:600]), (X[600:], y[600:]), 3, args)
    agreement = {way: {k: at[1] for k, at in numbers[way].items()} for way in steps.WAYS}
    assert numbers["accuracy"] > 80 and agreement["stopped"][1] < agreement["stopped"][12] > 97
    assert agreement["distilled"][1] > agreement["stopped"][1]
    assert numbers["from scratch"][1][0] > 60 and set(numbers["saved"]) == {"1", "2", "12"}
    assert len(steps.draw({"tanh:0.8": numbers}).axes) == 2


def test_a_deq_that_nobody_knows_is_one_line():
    with pytest.raises(
        ValueError, match="--deqs nothing:0.5: give activation:sigma_a2, or a positive concave DEQ"
    ) as e:
        steps.make("nothing:0.5", 8, 3, 16, 1.0)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(deqs=["tanh:0.5", "nothing:0.5"]), "--deqs nothing:0.5: give"),
        (dict(deqs=["tanh:0.5", "linear_pcdeq_1:relu"]), "linear_pcdeq_1 cannot use"),
        (dict(samples=31), "--samples 31: mnist has 30 training samples"),
        (dict(dim=[16, 32]), "--dim 16 32: this figure has one width"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_first_deq_is_trained(monkeypatch, change, words):
    data = SimpleNamespace(X_train=torch.ones(30, 784), n_classes=3)
    monkeypatch.setattr("deq_enn.data.datasets.load_dataset", lambda *_: data)
    monkeypatch.setattr(steps, "train", None)
    args = dict(dataset="mnist", dataset_path="", samples=30, dim=[16], deqs=["tanh:0.5"], epoch=1)
    with pytest.raises(ValueError, match=words) as error:
        steps.main(SimpleNamespace(**args | change))
    assert "\n" not in str(error.value)
