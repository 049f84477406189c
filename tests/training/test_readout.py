"""Readouts that are trained side by side are those that are trained alone; features are those of the equilibrium."""

from dataclasses import replace

import pytest
import torch

from deq_enn.data.datasets import Dataset
from deq_enn.networks.build import build_model
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import Anderson, Picard
from deq_enn.training import readout
from deq_enn.training.learning_rate import with_own_rate
from deq_enn.training.loop import run
from deq_enn.training.readout import Readouts, ReadoutTask, extract_features
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


@pytest.mark.parametrize("sigma_a2, act", [(0.2, "relu"), (0.2, "tanh"), (0.8, "relu"), (0.5, "hardtanh")])
def test_equilibria_that_are_begun_in_bfloat16_are_as_exact(monkeypatch, sigma_a2, act):
    """Rows of any size, of which one is zero, are held against float64; most products are no longer in float32."""
    X = torch.randn(60, 30, generator=torch.Generator().manual_seed(0)) / 30**0.5
    X *= torch.logspace(-3, 3, 60)[:, None]
    X[7] = 0
    deq = DEQ(act, 30, 200, 3, sigma_a2=sigma_a2)
    exact = DEQ(act, 30, 200, 3, sigma_a2=sigma_a2, solver=Picard(1e-13, 2000)).double().features(X.double()).detach()
    monkeypatch.setattr(readout, "SHORT_WIDTH", 200)
    errors, in_float32 = {}, {}
    for short in (False, True):
        monkeypatch.setattr(readout, "has_fast_bfloat16", lambda device, short=short: short)
        with torch.profiler.profile() as profile:
            features, products = extract_features(deq, X)
        errors[short] = ((features - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-9)).max().item()
        in_float32[short] = sum(event.count for event in profile.key_averages() if event.key == "aten::addmm")
        assert products >= in_float32[short]
    assert errors[True] < max(2 * errors[False], 1e-6) and in_float32[True] < in_float32[False] / 2


def test_equilibria_are_begun_in_bfloat16_where_that_is_faster_and_nothing_else_was_asked_for(monkeypatch):
    monkeypatch.setattr(readout, "SHORT_WIDTH", 16)
    monkeypatch.setattr(readout, "has_fast_bfloat16", lambda device: True)
    wide = {"activation": "relu", "p": 4, "n_classes": 2, "sigma_a2": 0.2}
    short_A = readout._short(DEQ(dim=16, **wide), "cpu")
    assert short_A is not None and short_A.dtype == torch.bfloat16
    asked = Anderson(), Picard(tol=1e-5), Picard(strict=False)
    others = DEQ(dim=15, **wide), DEQ(dim=16, **wide).double(), *(DEQ(dim=16, solver=s, **wide) for s in asked)
    assert not any(readout._short(model, "cpu") is not None for model in others)
    monkeypatch.setattr(readout, "has_fast_bfloat16", lambda device: False)
    assert readout._short(DEQ(dim=16, **wide), "cpu") is None
