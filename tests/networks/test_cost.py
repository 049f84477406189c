"""Memory against the allocator's own record; that a measurement leaves the networks as they were, and its budget."""

import copy
import json
import time

import pytest
import torch

from deq_enn.networks import cost
from deq_enn.networks.build import build_model
from deq_enn.networks.cost import costs, peak_bytes


@pytest.fixture(scope="module")
def pair():
    return tuple(build_model(name, 20, 64, 3, 0.2) for name in ("inn", "l_relu_enn"))


X = torch.nn.functional.normalize(torch.randn(700, 20, generator=torch.Generator().manual_seed(0)))


def test_the_peak_is_of_what_is_held_at_once():
    kept, outside = [], torch.ones(1000)

    def call():
        kept.append(torch.ones(1000))  # 4 kB that stay
        torch.ones(2000)  # 8 kB, gone at once
        a = torch.ones(1000)
        a.view(10, 100).t().add_(1)  # no more than a
        outside.mul_(2)  # nothing, as it was there

    assert peak_bytes(call) == 12_000
    assert peak_bytes(lambda: outside.view(-1).add_(1)) == 0


@pytest.mark.parametrize("job", cost.JOBS)
def test_the_peak_is_the_allocators(pair, job):
    from torch.profiler import ProfilerActivity, profile

    for network in pair:
        call = cost.JOBS[job](network, X)
        network.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            call()
        held = most = 0
        events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        network.zero_grad()
        assert most > 1000 and peak_bytes(call) == pytest.approx(most, rel=0.01, abs=600)


@pytest.mark.slow
def test_costs_of_all_jobs_and_the_networks_are_as_before(pair):
    for network in pair:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)
    before = [p.detach().clone() for network in pair for p in network.parameters()]
    result = json.loads(json.dumps(costs(*pair, X, budget=0.3)))
    parameters = [p for network in pair for p in network.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, parameters))
    assert all((p.grad == 7).all() for p in parameters)
    assert result["rows"] == {"inference": 1, "features": 512, "training_step": 128}
    assert result["width"] == 64
    for job in cost.JOBS:
        assert result["ratios"][job] == result["seconds"][job]["deq"] / result["seconds"][job]["enn"] > 0
        low, high = result["ranges"][job]
        assert 0 < low <= high
        for name, network in zip(("deq", "enn"), pair):
            assert result["memory"][job][name] > sum(4 * p.numel() for p in network.parameters())
    # the features of 512 rows are 512 * 64 floats, held beside the layer before or the injection
    assert result["memory"]["features"]["enn"] >= 4 * (64 * 20 + 64 * 64 + 3 * 64) + 2 * 4 * 512 * 64
    assert result["ratios"]["memory"] == result["memory"]["features"]["deq"] / result["memory"]["features"]["enn"]


def test_a_training_step_makes_every_gradient(pair):
    for network in pair:
        network.zero_grad()
        cost.training_step(network, X)()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.slow
def test_the_ratio_is_that_of_the_work():
    """Of networks that wait, so that the machine's load does not matter."""

    class Waits(torch.nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds, self.readout, self.calls = seconds, torch.nn.Linear(5, 2, bias=False), 0

        def features(self, x):
            self.calls += 1
            time.sleep(self.seconds)
            return x

        def forward(self, x):
            return self.readout(self.features(x))

    slow, fast = Waits(0.02), Waits(0.002)
    ratios = costs(slow, fast, torch.randn(30, 5), budget=0.25)["ratios"]
    assert all(ratios[job] > 1.5 for job in cost.JOBS) and ratios["memory"] == 1
    # without any time each job is done once for its memory and twice for its time
    for network in (slow, fast):
        network.calls, network.seconds = 0, 0.01
    result = costs(slow, fast, torch.randn(30, 5), budget=0)
    assert slow.calls == fast.calls == 3 * len(cost.JOBS)
    assert result["rows"]["features"] == 30 and result["spread"]["inference"] == {"deq": None, "enn": None}


def test_a_cost_that_varies_is_measured_again_and_told_with_its_range(monkeypatch):
    """Another program takes the machine away during one turn of the second network."""
    turns, calls = [], {"slow": 0, "fast": 0}

    class Turn:
        def __init__(self, median):
            self.median = median

    class Timer:
        def __init__(self, *_, globals, **__):
            self.name = globals["call"]

        def blocked_autorange(self, min_run_time):
            time.sleep(0.01)
            turns.append(self.name)
            calls[self.name] += 1
            disturbed = self.name == "fast" and calls["fast"] == 2
            return Turn({"slow": 8.0, "fast": 2.0}[self.name] * (50 if disturbed else 1))

    monkeypatch.setattr("torch.utils.benchmark.Timer", Timer)
    measured = cost._measure(["slow", "fast"], 0.055)
    assert len(measured[0]) > 3 and cost._range(measured) == (0.08, 4.0)
    assert sorted(turn.median for turn in measured[1])[len(measured[1]) // 2] == 2.0
    assert turns[:4] == ["slow", "fast"] * 2


def test_frozen_weights_and_gradients_that_are_off(pair):
    deq, enn = (copy.deepcopy(network) for network in pair)
    deq.A.requires_grad_(False)
    with torch.no_grad():
        cost.training_step(deq, X)()
        cost.training_step(enn, X)()
    assert deq.A.grad is None and all(p.grad is not None for p in (deq.B, *enn.parameters()))
