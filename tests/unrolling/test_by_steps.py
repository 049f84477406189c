"""The verdict on modules as they are: its numbers are true, its answer follows, and what it cannot judge it says."""

import json
import math

import pytest
import torch
from torch import nn

from deq_enn import DEQ, verdict
from deq_enn.matching.families import match
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.fixed_point import FixedPoint, Picard
from deq_enn.training.optimizers import OPTIMIZERS
from deq_enn.unrolling import by_steps, students
from deq_enn.unrolling.by_steps import VerdictBySteps
from deq_enn.unrolling.decision import Known, decide
from deq_enn.unrolling.export import export
from deq_enn.unrolling.judged import Part, outputs_of
from deq_enn.unrolling.result import StepCandidate
from deq_enn.unrolling.rivals import rivals
from deq_enn.unrolling.steppers import stopped
from deq_enn.unrolling.timing import compared
from deq_enn.utils.random import generator
from deq_enn.verdicts.after_training import begin
from tests.conftest import Ticks, one_line
from tests.unrolling.modules import ByHand, Foreign, K, M, P, TwoEquilibria, by_hand


def blobs(n, *shape, seed=0):
    """Samples of K classes whose first entries say which, most of the time."""
    g = generator("unrolled blobs", seed, *shape)
    y = torch.randint(K, (n,), generator=g)
    X = torch.randn(n, *shape, generator=g)
    X.flatten(1)[:, :K] += 2.5 * nn.functional.one_hot(y, K)
    return X, y


def trained(module, X, y, steps=6, rate=0.1):
    optimizer = OPTIMIZERS["sgd"](module.parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = module(X)
        nn.functional.cross_entropy(outputs[0] if isinstance(outputs, tuple) else outputs, y).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture(scope="module")
def samples():
    return blobs(300, P), blobs(400, P, seed=1)


@pytest.fixture(scope="module")
def foreign(samples):
    torch.manual_seed(0)
    return trained(Foreign(), *samples[0])


def judge(module, samples, budget=2.0, **settings):
    (X, y), held = samples
    making = VerdictBySteps(module, X, y, held=held, budget=budget, clock=Ticks(0.02), **settings)
    making.run()
    return making.conclude()


@pytest.mark.slow
def test_every_number_is_that_of_the_network_it_names(foreign, samples):
    before = {name: value.clone() for name, value in foreign.state_dict().items()}
    result = judge(foreign, samples, budget=4.0, tolerance=0.5)
    X, y = samples[1]
    own = outputs_of(foreign, X).argmax(1)
    assert result.module["accuracy"] == pytest.approx(100 * (own == y).double().mean().item())
    assert {"stopped", "refitted", "distilled", "explicit"} <= {c.kind for c in result.candidates}
    for c in result.candidates:
        says = outputs_of(c.network, X).argmax(1)
        assert c.accuracy == pytest.approx(100 * (says == y).double().mean().item())
        assert c.agreement == pytest.approx(100 * (says == own).double().mean().item())
        assert c.loss == pytest.approx(result.module["accuracy"] - c.accuracy)
        assert c.interval[0] < c.loss < c.interval[1]
        if c.kind == "stopped":
            assert torch.equal(outputs_of(stopped(foreign, c.k), X), outputs_of(c.network, X))
    assert all(torch.equal(value, before[name]) for name, value in foreign.state_dict().items())
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["form"] == "steps" and read["answer"] == result.answer and result.answer in result.table()


def candidate(kind, k, low, high, saved=3.0, seen=10_000):
    cost = {"batch": 1.0 / saved, "saved": {"row": saved, "batch": saved, "step": saved}}
    return StepCandidate(
        f"{kind} {k}", kind, k, 90.0, 95.0, 0.3, (low + high) / 2, (low, high), seen, seen / 1000, cost=cost
    )


KNOWN = Known(tolerance=0.5, accuracy=90.0, frequent=10.0, held=1000, labelled=True, passes=3.0)


@pytest.mark.parametrize(
    "candidates, answer, chosen",
    (
        ([], "undecided", None),
        ([candidate("stopped", 2, 0.6, 1.0), candidate("stopped", 4, -0.1, 0.2)], "replace", 4),
        # more steps fail: those with fewer do not count, whatever they say
        ([candidate("stopped", 2, -0.1, 0.2), candidate("stopped", 4, 0.3, 0.8)], "undecided", None),
        # the faster one, of two kinds
        ([candidate("stopped", 4, -0.1, 0.2), candidate("distilled", 1, 0.0, 0.4, 9.0)], "replace", 1),
        ([candidate("stopped", 4, -0.1, 0.2, saved=0.9)], "keep", None),
        ([candidate("stopped", 24, -0.1, 0.2, saved=1.4)], "keep", None),  # as good, but hardly faster
        ([candidate("stopped", 4, 1.0, 2.0)], "undecided", None),  # nothing was trained
        ([candidate("distilled", 4, 1.0, 2.0), candidate("explicit", None, 0.6, 2.0)], "keep", None),
        ([candidate("distilled", 4, 1.0, 2.0), candidate("explicit", None, 0.6, 2.0, seen=900)], "undecided", None),
        ([candidate("distilled", 4, 1.0, 2.0), candidate("explicit", None, 0.4, 2.0)], "undecided", None),
        # networks that were trained, and are slow, are no reason to wait for others
        ([candidate("distilled", 1, 1.0, 2.0), candidate("explicit", None, 0.6, 2.0, 1.0, 900)], "keep", None),
        ([candidate("distilled", 1, 1.0, 2.0, 1.2), candidate("explicit", None, 0.6, 2.0)], "keep", None),
        ([candidate("stopped", 1, -0.1, 0.2, 1.4), candidate("explicit", None, 0.6, 2.0)], "keep", None),
        ([candidate("stopped", 2, -0.1, 0.2, 1.4), candidate("explicit", None, 0.6, 2.0)], "undecided", None),
        ([candidate("explicit", None, -8.0, -6.0)], "undecided", None),  # an alarm
        ([candidate("explicit", 1, -6.0, -2.0)], "replace", 1),
        ([candidate("explicit", 1, -12.0, 0.1)], "replace", 1),  # perhaps nothing is gained
    ),
)
def test_the_answer_follows_the_intervals(candidates, answer, chosen):
    said, network, reason = decide(candidates, KNOWN)
    assert said == answer and (network and network.k) == chosen and all(reason)
    assert ("an alarm" in " ".join(reason)) == (bool(candidates) and candidates[0].loss == -7.0)


def test_a_module_that_has_learnt_nothing_is_not_replaced():
    known = Known(0.5, 11.0, 10.0, 1000, True, 3.0)
    said, chosen, reason = decide([candidate("stopped", 4, -0.1, 0.2)], known)
    assert said == "undecided" and chosen is None and "it has learnt nothing, or the labels" in reason[0]


def test_steps_that_save_little_are_named_where_the_module_is_kept():
    trained = [candidate("distilled", 4, 1.0, 2.0), candidate("explicit", None, 0.6, 2.0)]
    said, _, reason = decide([candidate("stopped", 24, -0.1, 0.2, saved=1.4), *trained], KNOWN)
    assert said == "keep" and reason[-1].startswith(
        "As good, but not 1.5 times as fast: stopped 24. The module takes 1.4"
    )
    said, _, reason = decide([candidate("stopped", 24, -0.1, 0.2, saved=0.9), *trained], KNOWN)
    assert said == "keep" and len(reason) == 1


def test_the_sentences_say_what_was_tried():
    slow = [candidate("distilled", 1, 1.0, 2.0, saved=1.0)]
    said, _, reason = decide([*slow, candidate("explicit", None, 0.6, 2.0)], KNOWN)
    assert said == "keep" and reason[0].startswith("The only faster network loses more than 0.5 points; the best: with")
    assert "no network distilled to a few steps was tried" in decide([candidate("stopped", 4, 1.0, 2.0)], KNOWN)[2][0]


class Delayed(nn.Module):
    """A state that the input enters at one end and leaves at the other, LENGTH cells on: so many steps it takes."""

    LENGTH = 20

    def __init__(self):
        super().__init__()
        self.readout = nn.Linear(K, K)
        self.fixed_point = FixedPoint(Picard(max_steps=100, strict=False))

    def forward(self, x):
        u = nn.functional.pad(x[:, None, :K], (0, 0, 0, self.LENGTH - 1))
        z = self.fixed_point(lambda z, u: nn.functional.pad(z[:, :-1], (0, 0, 1, 0)) + u, torch.zeros_like(u), u)
        return self.readout(z[:, -1])


def test_more_steps_are_tried_where_twelve_lose_too_much(samples):
    (X, y), held = samples
    making = VerdictBySteps(trained(Delayed(), X, y), X, y, held=held, budget=60.0, tolerance=1.0, clock=Ticks(0.02))
    making.parts = making._measure_module()
    making.per_row = math.inf  # whatever the machine is doing
    making._measure_stopped()
    losses = {c.k: c.loss for c in making.candidates}
    assert list(losses) == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48] and making._good_steps() == 24
    assert losses[16] > 20 and losses[24] == losses[48] == 0


@pytest.mark.slow
def test_students_come_nearer_and_a_refitted_layer_is_the_ridge_regression(samples):
    (X, y), (X_test, _) = samples
    torch.manual_seed(2)
    module = trained(TwoEquilibriaOfRows(), X, y)
    fit, choose = (Part(Z, outputs_of(module, Z), outputs_of(module, Z).argmax(1)) for Z in (X, X_test))
    distance = lambda network: (outputs_of(network, X_test) - choose.outputs).square().mean().item()
    layer = students.last_linear(module, X[:2])
    assert layer == "readout"
    plain = stopped(module, 1)
    refitted = students.refitted(stopped(module, 1, shared=False), layer, fit, choose)
    F = students.features_of(plain, layer, X)
    F1 = torch.cat([F, torch.ones(len(F), 1, dtype=F.dtype)], 1)
    least = torch.linalg.lstsq(F1, fit.outputs.double()).solution
    torch.testing.assert_close(refitted.readout.weight, least[:-1].T.float(), rtol=0.05, atol=0.05)
    assert distance(refitted) < distance(plain)
    settings = dict(seconds=2.0, clock=Ticks(0.02))
    for consistent in (False, True):
        student = students.distilled(module, 1, fit, choose, consistent=consistent, **settings)
        assert distance(student.network) < 0.5 * distance(plain) and student.seen > 0
    assert torch.equal(outputs_of(stopped(module, 1), X_test), outputs_of(plain, X_test))  # the module is as it was
    with pytest.raises(ValueError, match="steps= does not say where the iteration is"):
        students.distilled(module, 1, fit, choose, steps=lambda m, k: nn.Linear(P, K), consistent=True, **settings)


class Single(nn.Module):
    """A DEQ of ours with one score, of the second of two classes; squeezed, as many write it."""

    def __init__(self):
        super().__init__()
        self.deq, self.readout = DEQ("tanh", P, M, M, 0.8), nn.Linear(M, 1)

    def forward(self, x):
        return self.readout(self.deq(x)).squeeze()


def test_the_last_layer_of_a_single_score_is_refitted(samples):
    (X, _), (X_test, _) = samples
    module = Single()
    fit, choose = (Part(Z, outputs_of(module, Z), outputs_of(module, Z).argmax(1)) for Z in (X, X_test))
    layer = students.last_linear(module, X[:2])
    assert layer == "readout"
    plain = stopped(module, 1)
    refitted = students.refitted(stopped(module, 1, shared=False), layer, fit, choose)
    error = lambda network: (outputs_of(network, X_test) - choose.outputs).square().mean().item()
    assert error(refitted) < 0.8 * error(plain) and not outputs_of(refitted, X_test)[:, 0].any()


def test_a_module_that_squeezes_its_outputs_is_never_asked_for_a_single_row(samples):
    (X, _), _ = samples
    rows = torch.cat([X, X])[:513]
    assert outputs_of(Single(), rows).shape == (513, 2)
    with pytest.raises(ValueError, match="outputs must be one row of scores a sample"):
        outputs_of(Single(), X[:1])
    with pytest.raises(ValueError, match="outputs for 1 samples have 3 rows"):
        outputs_of(nn.Sequential(nn.Linear(P, K), nn.Flatten(0)), X[:1])


def test_an_export_has_a_label_for_each_class(samples, tmp_path):
    (X, _), _ = samples
    for network, labels in ((nn.Linear(P, K), ["a", "b"]), (nn.Linear(P, 1), ["a"]), (nn.Linear(P, K), ["a"] * 3)):
        with pytest.raises(ValueError, match="labels must be a list of . different ones"):
            export(network, tmp_path / "enn.pt", X[:4], labels=labels)
    assert not list(tmp_path.iterdir())


class TwoEquilibriaOfRows(nn.Module):
    """A DEQ of ours and its own readout, whose first step is far from the equilibrium."""

    def __init__(self):
        super().__init__()
        self.deq, self.readout = DEQ("tanh", P, M, M, 0.8), nn.Linear(M, K)

    def forward(self, x):
        return self.readout(self.deq(x))


def test_rivals_have_the_modules_sizes(samples):
    (X, _), _ = samples
    named = {rival.name: rival.make() for rival in rivals(Foreign(), X, K)}
    assert named.keys() == {f"{d} fully connected layer{'s' * (d > 1)} of {M}" for d in (1, 2, 3)}
    images = torch.zeros(4, 1, 8, 8)
    named = {rival.name: rival.make() for rival in rivals(TwoEquilibria(), images, K)}
    assert "2 convolutions of 8 channels" in named and "1 fully connected layer of 24" in named
    assert all(network.eval()(images).shape == (4, K) for network in named.values())
    deq = DEQ("tanh", P, M, K, 0.2)
    matched = rivals(deq, X, K)[0]
    assert matched.kind == "matched" and len(matched.make().weights[0]) == M
    assert rivals(deq, torch.zeros(9, P, dtype=torch.int64), K) == []


def test_a_trained_convolutional_deq_has_its_match_among_its_rivals():
    """That of the random DEQ with its mean squares: twice the weights A are four times sigma_a^2."""
    images = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    deq = ConvDEQ("relu", (2, 6, 6), 40, K, 0.2, padding="circular", readout="pool")
    with torch.no_grad():
        deq.A *= 2 / deq.A.square().mean().sqrt()
        deq.B *= 1 / deq.B.square().mean().sqrt()
    first = rivals(deq, images, K)[0]
    assert first.name == "matched in NTK, 2 convolutions of 40 channels, 3 x 3, then 1 x 1"
    enn, tau0 = first.make(), images.square().mean().sqrt().item()
    assert enn.input_scale == pytest.approx(2)  # sigma_b^2 = 0.8, which a DEQ of sigma_a^2 = 0.8 has as 0.2
    expected = match("relu", 0.8, 2 * tau0, kernel="ntk").layers
    x = torch.linspace(-2, 2, 9)
    for layer, other in zip(enn.layers, expected, strict=True):
        torch.testing.assert_close(layer.fn(x), other.fn(x), rtol=1e-4, atol=1e-5)
    assert enn(images).shape == (20, K) and enn.sees == "pool" and enn.padding == "circular"
    with torch.no_grad():
        deq.A *= 2
    assert "matched" not in {rival.kind for rival in rivals(deq, images, K)}


@pytest.mark.slow
def test_costs_are_in_units_of_the_module():
    slow, x = DEQ("tanh", P, 256, K, 0.9), torch.randn(64, P, generator=generator("costs"))
    report = compared(slow, {"few": stopped(slow, 1)}, x, 0.05)
    assert report["few"]["saved"]["batch"] > 1.5 and report[""]["saved"]["batch"] == 1.0
    assert report["few"]["parameters"] == report[""]["parameters"] and report["few"]["memory"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, shape, steps",
    ((TwoEquilibria(), (1, 8, 8), None), (ByHand(), (7, P), by_hand), (DEQ("relu", P, M, K, 0.3).double(), (P,), None)),
)
def test_any_form_and_shape(module, shape, steps):
    (X, y), held = blobs(120, *shape), blobs(200, *shape, seed=1)
    making = begin(module, X, y, held=held, steps=steps or (lambda m, k: stopped(m, k)), budget=0.5, clock=Ticks(0.01))
    assert isinstance(making, VerdictBySteps)
    making.run()
    result = making.conclude()
    assert result.candidates and result.candidates[0].kind == "stopped" and result.seconds < 0.7


@pytest.mark.slow
def test_the_budget_is_kept_and_what_had_no_time_is_said(foreign, samples):
    result = judge(foreign, samples, budget=2.0, tolerance=1e-6)
    assert result.untried and result.seconds < 2.2
    assert "no time was left" in " ".join(result.untried.values())


@pytest.mark.slow
def test_without_labels_the_module_is_followed(foreign, samples):
    (X, _), (X_test, _) = samples
    result = verdict(foreign, X, held=(X_test, None), budget=0.6, tolerance=5.0, clock=Ticks(0.01))
    assert result.module["accuracy"] == 100 and "There are no labels" in result.reason[0]
    assert result.candidates[0].loss == pytest.approx(100 - result.candidates[0].agreement)


class Random(Foreign):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class Batch(Foreign):
    def forward(self, x):
        return super().forward(x - 3 * x.mean(0))


class Pixels(Foreign):
    def forward(self, x):
        return super().forward(x)[0][:, :, None]


class Deaf(Foreign):
    def _solved(self, f, start):
        return start, None


@pytest.mark.parametrize(
    "change, message",
    (
        (dict(module=nn.Linear(P, K)), "Linear cannot be stopped after k steps"),
        (dict(module=Random()), "Random's forward is random even in evaluation mode"),
        (dict(module=Batch()), "Batch's outputs for a sample depend on the others"),
        (dict(module=Pixels()), r"outputs must be one row of scores a sample, \(n, classes\); got shape \(64, 3, 1\)"),
        (dict(module=Deaf()), "after 1 and 2 its outputs are those of the whole iteration"),
        (dict(held=None), "no held-out samples"),
        (dict(held="train"), "300 of the 300 held-out samples are rows of X"),
        (dict(y=torch.full((300,), 3)), "y has the label 3, and the module has 3 outputs"),
        (dict(y=torch.full((300,), 0.5)), "y must be labels 0, 1, .*, whole numbers; got float32"),
        (dict(y=torch.full((300,), math.inf)), "y must be labels 0, 1, .*, whole numbers; got float32"),
        (dict(y=torch.zeros(299)), r"y must have one label a sample, \(300,\); got shape \(299,\)"),
        (dict(y=None), "must both have labels, or neither"),
        (dict(X=torch.full((300, P), math.nan)), "X has NaN or infinite entries, first in row 0"),
        (dict(X="whole", held="whole"), r"fails on samples of shape \(64, 6\) .*hand in floats if it takes floats"),
        (dict(X=torch.zeros(20, P), y=torch.zeros(20)), "X has 20 samples, too few"),
        (dict(X=torch.zeros(300, P + 1)), "they must agree"),
    ),
)
def test_what_cannot_be_judged_is_one_line(foreign, samples, change, message):
    (X, y), held = samples
    given = dict(module=foreign, X=X, y=y, held=held) | change
    if given["held"] == "train":
        given["held"] = X, y
    if given["held"] == "whole":
        given["X"], given["held"] = (9 * X).long(), ((9 * held[0]).long(), held[1])
    with pytest.raises(ValueError, match=message) as caught:
        VerdictBySteps(given["module"], given["X"], given["y"], held=given["held"])
    assert one_line(caught)


def test_a_module_in_training_mode_is_judged_in_evaluation_mode(samples):
    (X, y), held = samples
    module = nn.Sequential(Foreign(), Unpacked(), nn.Dropout(0.5)).train()
    with pytest.warns(UserWarning, match="Sequential is in training mode: it is judged in evaluation mode"):
        VerdictBySteps(module, X, y, held=held)
    assert module.training and module[2].training


@pytest.mark.parametrize(
    "change, message",
    (
        (dict(budget=math.nan), "budget and tolerance must be positive and finite, got nan"),
        (dict(budget=math.inf), "budget and tolerance must be positive and finite, got inf"),
        (dict(budget=-1.0), "budget and tolerance must be positive and finite, got -1"),
        (dict(tolerance=-1.0), "budget and tolerance must be positive and finite, got 60.0 and -1.0"),
        (dict(seen=0), "seen, the samples that the DEQ passed in its training, must be positive, got 0"),
        (dict(seen=math.nan), "must be positive, got nan"),
        (dict(risk=0.5), "risk must be between 0 and 0.5, a probability, got 0.5"),
        (dict(decide_on="luck"), "decide_on must be 'draw' or 'mean', got 'luck'"),
    ),
)
def test_a_request_that_means_nothing_is_refused(foreign, samples, change, message):
    (X, y), held = samples
    with pytest.raises(ValueError, match=message):
        verdict(foreign, X, y, held=held, **{"budget": 60.0} | change)


def test_timing_leaves_a_module_in_training_mode_as_it_was(samples):
    (X, _), _ = samples
    module = nn.Sequential(nn.BatchNorm1d(P), DEQ("tanh", P, M, K, 0.2)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = compared(module, {}, X, 1.0, Ticks(0.1))
    assert report[""]["step"] is not None and module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


class Slow(nn.Module):
    """z = r z + 1 with r the first entry of a sample, which 50 steps find where it is not near 1."""

    def __init__(self):
        super().__init__()
        self.readout, self.solve = nn.Linear(1, K), FixedPoint(Picard(max_steps=50))

    def forward(self, x):
        return self.readout(self.solve(lambda z, r: r * z + 1, torch.ones(len(x), 1), x[:, :1])) / x[:, 1:2]


@pytest.mark.parametrize(
    "column, value, message",
    (
        (0, 0.99, r"fails on samples of shape .*did not converge.*FixedPoint\(Anderson\(\)\) may find it"),
        (1, 0.0, "Slow's outputs are not finite for 1 of 400 samples: leave those out"),
    ),
)
def test_samples_beyond_those_that_are_tried_first_may_have_no_equilibrium(column, value, message):
    X, X_test = (torch.rand(n, 2, generator=generator("slow", n)) * 0.5 + 0.1 for n in (300, 400))
    X_test[200, column] = value
    making = VerdictBySteps(Slow(), X, held=(X_test, None), budget=60.0, clock=Ticks(1e-6))
    with pytest.raises(ValueError, match=message) as caught:
        making.run()
    assert one_line(caught)


class ByLambda(TwoEquilibriaOfRows):
    """Its copies have a step that leads back to the weights of the first, as a lambda is not copied."""

    def __init__(self):
        super().__init__()
        self.step = lambda z, W, u: torch.tanh(z @ self.deq.A.T / M + u)

    def forward(self, x):
        u = x @ self.deq.B.T
        return self.readout(self.deq.fixed_point(self.step, torch.tanh(u), self.deq.A, u))


def test_a_module_has_no_gradients_afterwards_whatever_its_copies_lead_to(samples):
    (X, y), held = samples
    module = ByLambda()
    making = VerdictBySteps(module, X, y, held=held, budget=2.0, tolerance=1e-9, clock=Ticks(0.01))
    making._measure_rivals = making._measure_cost = lambda: None
    module.readout.weight.grad = torch.ones_like(module.readout.weight)
    making.run()
    assert any(candidate.kind == "distilled" for candidate in making.candidates)
    assert module.deq.A.grad is None and module.readout.weight.grad.eq(1).all()


class Unpacked(nn.Module):
    def forward(self, outputs):
        return outputs[0]


def test_our_trained_deq_is_judged_as_it_is(samples):
    (X, y), held = samples
    deq = trained(DEQ("tanh", P, M, K, 0.2), X, y, steps=5, rate=0.5)
    assert isinstance(begin(deq, X, y, held=held), VerdictBySteps)
    assert not isinstance(begin(deq, X, y), VerdictBySteps)
    deq.fixed_point = FixedPoint(Picard(tol=1e-7))
    assert not isinstance(begin(deq, X, y, held=held, solver=Picard()), VerdictBySteps)
    assert by_steps.LADDER[0] == 1
