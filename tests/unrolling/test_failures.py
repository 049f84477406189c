"""What fails in a user's module while it is judged ends no verdict, or ends it in one line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deq_enn import KernelMachine, load_dataset, verdict
from deq_enn.machines.copies import repeated
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import FixedPoint, Picard
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.networks.trained_deq import adapt
from deq_enn.unrolling import students
from deq_enn.unrolling.by_steps import LADDER, VerdictBySteps
from deq_enn.unrolling.decision import decide
from deq_enn.unrolling.judged import Part, check_apart, check_module, outputs_of, quality, said_of, samples
from deq_enn.unrolling.rivals import FullyConnected, Rival, rivals, trained
from deq_enn.unrolling.steppers import stopped
from deq_enn.unrolling.timing import compared
from deq_enn.utils.random import generator
from tests.conftest import Ticks, one_line
from tests.helpers.second_device import second_device
from tests.unrolling.modules import K, M, P
from tests.unrolling.test_by_steps import KNOWN, blobs, candidate

BLOCKS = 5  # steps for which a `Limited` has a block each


class Limited(nn.Module):
    """A loop by hand whose steps have parts of their own, so that it can make no more than it has parts."""

    def __init__(self):
        super().__init__()
        self.lift, self.cell, self.readout = nn.Linear(P, M), nn.Linear(M, M), nn.Linear(M, K)
        self.blocks, self.most = nn.ModuleList(nn.Tanh() for _ in range(BLOCKS)), BLOCKS

    def forward(self, x):
        u = self.lift(x)
        z = torch.zeros_like(u)
        for k in range(self.most):
            z = self.blocks[k](0.3 * self.cell(z) + u)
        return self.readout(z)


def first_steps(module, k):
    module.most = k
    return module


def test_a_number_of_steps_that_fails_is_said_and_the_others_are_measured():
    (X, y), held = blobs(100, P), blobs(100, P, seed=1)
    making = VerdictBySteps(Limited(), X, y, held=held, steps=first_steps, budget=60.0, clock=Ticks(0.001))
    making._measure_refitted = making._measure_students = making._measure_rivals = making._measure_cost = lambda: None
    making.run()
    measured, failed = [k for k in LADDER if k <= BLOCKS], [k for k in LADDER if k > BLOCKS]
    assert [c.k for c in making.candidates] == measured
    assert list(making.untried) == [f"{k} of its steps" for k in failed]
    assert making.untried[f"{failed[0]} of its steps"] == f"IndexError: index {BLOCKS} is out of range"


def test_samples_on_which_a_forward_fails_are_one_line():
    module = nn.Sequential(nn.Embedding(10, M), nn.Flatten(), nn.Linear(4 * M, K))
    tokens = torch.randint(10, (600, 4))
    assert said_of(module, tokens).shape == (600, K)
    tokens[-1, 0] = 10  # far behind those that are tried first
    with pytest.raises(ValueError, match="Sequential's forward fails .*IndexError: index out of range") as caught:
        said_of(module, tokens)
    assert one_line(caught)


class ReadOut(nn.Module):
    """A DEQ whose readout is called by the name of its argument, `times` times a pass."""

    def __init__(self, times):
        super().__init__()
        self.lift, self.cell, self.readout = nn.Linear(P, M), nn.Linear(M, M), nn.Linear(M, K)
        self.solve, self.times = FixedPoint(Picard(tol=1e-4)), times

    def forward(self, x):
        u = self.lift(x)
        z = self.solve(lambda z: torch.tanh(0.2 * self.cell(z) + u), torch.tanh(u))
        return [self.readout(input=z) for _ in range(self.times)]


def test_a_last_layer_that_is_used_once_is_refitted_however_it_is_called():
    (X, _), module = blobs(100, P), ReadOut(1)
    part = Part(X, outputs_of(module, X), torch.zeros(len(X), dtype=torch.int64))
    assert students.last_linear(module, X[:2]) == "readout"
    assert students.features_of(module, "readout", X).shape == (100, M)
    students.refitted(module, "readout", part, part)
    torch.testing.assert_close(outputs_of(module, X), part.outputs, rtol=1e-3, atol=1e-3)


def test_a_layer_that_is_used_twice_is_no_last_layer():
    assert students.last_linear(ReadOut(2), blobs(2, P)[0]) is None


def test_whatever_the_answer_it_is_said_that_there_are_no_labels():
    for networks in ([candidate("stopped", 4, -0.1, 0.2, saved=0.9)], [candidate("stopped", 4, -0.1, 0.2)]):
        assert "There are no labels" in decide(networks, replace(KNOWN, labelled=False))[2][0]


def test_scores_of_any_size_have_a_cross_entropy():
    scores = torch.tensor([[3e38, -3e38], [-3e38, 3e38]])
    part = Part(torch.zeros(2, P), scores, torch.tensor([0, 0]))
    accuracy, agreement, entropy = quality(scores, part)
    assert (accuracy, agreement) == (50, 100) and entropy == pytest.approx(3e38)


def test_arrays_of_any_strides_and_byte_order():
    X, _ = blobs(60, P)
    for array in (X.numpy()[::-1, ::-1], X.flip(0, 1).numpy().astype(">f4"), np.asfortranarray(X.flip(0, 1).numpy())):
        assert torch.equal(samples(array, nn.Linear(P, K)), X.flip(0, 1))


def test_a_layer_whose_output_is_changed_in_place_is_no_last_layer():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.readout = nn.Linear(P, K)

        def forward(self, x):
            return self.readout(x).add_(torch.arange(K))

    assert students.last_linear(Shifted(), blobs(2, P)[0]) is None


def test_weights_without_numbers_are_refused():
    (X, y), held = blobs(100, P), blobs(100, P, seed=1)
    for refuse in (
        lambda module: VerdictBySteps(module, X, y, held=held),
        adapt,
        lambda module: verdict(module, X, y, held=held),
    ):
        with pytest.raises(ValueError, match="DEQ's A is on the device meta, which holds no numbers") as caught:
            refuse(DEQ("relu", P, M, K, 0.2).to("meta"))
        assert one_line(caught)


def test_networks_in_a_deqs_place_leave_the_random_numbers_of_gpus_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    before = torch.get_rng_state()
    networks = [rival.make() for rival in rivals(DEQ("relu", P, M, K, 0.2), blobs(100, P)[0], K)]
    assert networks and build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_short_floats_are_trained(dtype):
    """Adam's own steps of float16 divide by squares that are 0."""
    X, y = blobs(300, P)
    part = Part(X.to(dtype), torch.empty(0), y)
    rival = Rival("", "explicit", lambda: FullyConnected(P, M, 1, K).to(dtype))
    network = trained(rival, part, part, seconds=5.0, clock=Ticks(0.01)).network
    assert network.readout.weight.dtype == dtype
    assert (outputs_of(network, part.X).argmax(1) == y).double().mean() > 0.8


def test_networks_are_trained_where_gradients_cannot_be():
    with torch.inference_mode():
        (X, y), held = blobs(100, P), blobs(100, P, seed=1)
        making = VerdictBySteps(ReadOut(1), X, y, held=held, budget=60.0, clock=Ticks(0.01))
        making._measure_stopped = making._measure_refitted = making._measure_rivals = making._measure_cost = lambda: (
            None
        )
        making.run()
    assert [c.kind for c in making.candidates[1:]] == ["distilled", "consistent"] * 2 + ["distilled"] * 2


def test_a_hook_that_makes_optimizer_steps_is_not_called():
    """As where an optimizer works during the backward pass, to save the memory of the gradients."""
    module, (X, _) = ReadOut(1), blobs(64, P)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: p.data.sub_(p.grad))
    report = compared(module, {"one step": stopped(module, 1)}, X, 0.1)
    assert report[""]["step"] and report["one step"]["step"]
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before))


def test_torchs_default_device_may_be_another(monkeypatch):
    """As after `torch.set_default_device("cuda")`, where samples and generators of the CPU stay there."""
    (X, y), held, module = blobs(100, P), blobs(100, P, seed=1), ReadOut(1)
    with second_device(monkeypatch) as device, torch.device(device):
        assert DEQ("tanh", P, M, K, 0.2)(X.to(device)).device == device and repeated(X).samples == 0
        assert KernelMachine(activation="tanh", ridge=0.1).fit(X, y).score(X, y) > 0.9
        assert load_dataset("gmm").n_classes == 4 and adapt(DEQ("tanh", P, M, K, 0.2), X)
        making = VerdictBySteps(module, X.numpy(), y.numpy(), held=held, budget=60.0, clock=Ticks(0.001))
        part = Part(X, outputs_of(module, X), making.y)
        students.refitted(module, "readout", part, part)


def test_a_forward_that_is_random_now_and_then_is_refused():
    class Rare(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.05, training=True))

    X = torch.randn(100, P, generator=generator("rare"))
    with pytest.raises(ValueError, match="Rare's forward is random even in evaluation mode"):
        check_module(Rare(P, K), X)


def test_more_than_a_tenth_of_the_rows_held_out_may_not_be_training_rows():
    X = torch.randn(110, P, generator=generator("apart"))
    check_apart(X[:60], X[55:105])
    with pytest.raises(ValueError, match="6 of the 50 held-out samples are rows of X"):
        check_apart(X[:60], X[54:104])
