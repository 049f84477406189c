"""Readouts that are trained side by side are those that are trained alone."""

from dataclasses import replace

import pytest
import torch

from deq_enn.data.datasets import Dataset
from deq_enn.networks.build import build_model
from deq_enn.training.learning_rate import with_own_rate
from deq_enn.training.loop import run
from deq_enn.training.readout import Readouts, ReadoutTask
from deq_enn.training.run_files import Config


@pytest.fixture(scope="module")
def data():
    random = torch.Generator().manual_seed(0)
    y = torch.randint(3, (510,), generator=random)
    X = torch.randn(3, 10, generator=random)[y] + torch.randn(510, 10, generator=random)
    return Dataset("toy", X[:310], y[:310], X[310:], y[310:], 3, None)


def config(**changes):
    return Config("toy", "relu_enn", 24, lr=0.1, epoch=3, batch_size=40, own_rate=True, **changes)


def make_model():
    return build_model("relu_enn", 10, 24, 3, 0.2)


@pytest.mark.parametrize("opt", ["sgd", "adam"])
def test_readouts_side_by_side_are_those_alone(data, opt):
    """Also where the last batch is a short one, and where one of them is lost."""
    task = ReadoutTask(make_model(), data, config(opt=opt), "cpu")
    rates, order = [0.003, 0.1, float("inf"), 1.0], torch.randperm(310, generator=torch.Generator().manual_seed(1))
    readouts = Readouts(task, rates)
    assert not task.weight.any()
    for epoch in range(2):
        finite = readouts.epoch(order.roll(epoch)[:250])
    assert finite.tolist() == [True, True, False, True]
    accuracies, losses = readouts.evaluate(order[250:])
    for i, rate in enumerate(rates):
        if rate == float("inf"):
            continue
        task.begin(replace(task.config, lr=rate))
        for epoch in range(2):
            task.epoch(order.roll(epoch)[:250])
        torch.testing.assert_close(readouts.weights[3 * i : 3 * i + 3], task.weight.detach(), rtol=1e-4, atol=1e-6)
        logits, y = task.train[order[250:]] @ task.weight.detach().T, task.y_train[order[250:]]
        assert accuracies[i].item() == pytest.approx((logits.argmax(1) == y).double().mean().item())
        assert losses[i].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-5)


def test_features_of_the_choice_serve_the_run(data, tmp_path):
    """With them it has the numbers of a run that computes them itself, and says how long they took."""
    chosen, task = with_own_rate(config(), data, make_model, tmp_path, tmp_path)
    assert task is not None
    task.seconds = 1000.0
    with_them = run(chosen, data, make_model, tmp_path / "with", tmp_path / "with", prepared=task)
    without = run(chosen, data, make_model, tmp_path / "without", tmp_path / "without")
    assert with_them.seconds > 1000 > without.seconds

    def numbers(result):
        return [{name: value for name, value in record.items() if name != "seconds"} for record in result.history]

    assert numbers(with_them) == numbers(without)
