"""The verdict on DEQs that were trained, from Python and from the command line, and the network that it writes."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deq_enn.data.datasets import load_dataset
from deq_enn.networks.deq import DEQ
from deq_enn.networks.export import rebuild
from deq_enn.networks.fixed_point import Picard
from deq_enn.networks.trained_deq import adapt
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.training.loop import run
from deq_enn.training.run_files import Config, checkpoint_path
from deq_enn.unrolling.by_steps import VerdictBySteps
from deq_enn.utils.random import generator
from deq_enn.verdicts import api, command as gateway
from deq_enn.verdicts.after_training import VerdictAfterTraining, begin
from deq_enn.verdicts.at_initialisation import VerdictAtInitialisation
from deq_enn.verdicts.decision import Decision
from deq_enn.verdicts.page import write
from tests.conftest import Ticks, one_line


@pytest.fixture(scope="module")
def blobs():
    """900 samples of three classes."""
    g = generator("trained blobs")
    y = torch.randint(3, (900,), generator=g)
    X = torch.randn(900, 20, generator=g)
    X[:, :3] += 2.0 * F.one_hot(y, 3)
    X -= X.mean(0)
    return X / X.square().sum(1).mean().sqrt(), y


def trained(blobs, steps, rate, activation="tanh"):
    (X, y), deq = blobs, DEQ(ACTIVATIONS[activation], 20, 32, 3, 0.2, seed=1)
    optimizer = torch.optim.SGD(deq.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(deq(X[:600]), y[:600]).backward()
        optimizer.step()
    return deq


@pytest.fixture(scope="module")
def moved(blobs):
    return trained(blobs, 120, 3.0)


class Module(torch.nn.Module):
    """z = activation(A z + B x), as nn.Linear draws them, but for the scale of B."""

    def __init__(self, activation, bias):
        super().__init__()
        torch.manual_seed(3)
        self.A, self.B = torch.nn.Linear(32, 32, bias=False), torch.nn.Linear(20, 32, bias=bias)
        self.B.weight.data.mul_(5)
        self.activation, self.readout = activation, torch.nn.Linear(32, 3)


@pytest.mark.slow
def test_a_deq_as_it_was_drawn_is_not_looked_at(blobs):
    assert isinstance(begin(DEQ(ACTIVATIONS["tanh"], 20, 32, 3, 0.2), *blobs), VerdictAtInitialisation)
    assert isinstance(begin(trained(blobs, 1, 0.1), *blobs), VerdictAfterTraining)


@pytest.mark.slow
def test_weights_that_hardly_moved_have_the_verdict_of_random_ones(blobs):
    outcome = api.verdict(trained(blobs, 2, 0.05), *blobs, budget=1.0, tolerance=5.0, clock=Ticks())
    assert not outcome.drift["left"] and outcome.drift["sigma_a2"] == pytest.approx(0.2, rel=0.2)
    assert "cannot be told from random ones" in outcome.reason[0] and "at initialisation" in outcome.reason[0]
    assert outcome.candidates[0].distance["ck"]["relative"] > 0 and outcome.settings["sigma_a2"] == 0.2


@pytest.mark.slow
def test_weights_that_have_moved_have_a_measured_loss(blobs, moved):
    (X, y), deq = blobs, moved
    outcome = api.verdict(
        deq, X[:600], y[:600], held=(X[600:], y[600:]), budget=1.0, tolerance=4.0, clock=Ticks(), solver=Picard()
    )
    assert outcome.drift["left"] and "have left the random regime" in outcome.reason[0]
    assert outcome.deq["held"] == 300
    assert outcome.deq["accuracy"] == pytest.approx(100 * (deq(X[600:]).argmax(1) == y[600:]).double().mean().item())
    best = outcome.candidates[0]
    assert best.replacement.chosen_by == max(candidate.replacement.chosen_by for candidate in outcome.candidates)
    low, high = best.loss_interval
    assert outcome.answer == ("replace" if high < 4 else "keep" if low > 4 else "undecided")
    assert (outcome.chosen is best) == (outcome.answer == "replace")
    read = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    assert read["candidates"][0]["agreement"] == best.replacement.agreement and read["drift"]["left"]
    assert best.name in outcome.table() and outcome.answer in outcome.table() and best.cost["inference"] > 0


@pytest.mark.slow
def test_the_answer_follows_the_interval_of_the_best(few_candidates, blobs, moved):
    making = begin(moved, *blobs, tolerance=4.0, budget=1.0, clock=Ticks())
    assert making.conclude().answer == "undecided"  # as after an interruption
    making.run()
    for interval, answer in (((-1.0, 3.9), "replace"), ((4.1, 9.0), "keep"), ((3.0, 5.0), "undecided")):
        making.losses.replacements[0].loss_interval = interval
        outcome = making.conclude()
        assert outcome.answer == answer and (outcome.chosen is None) == (answer != "replace")


@pytest.mark.slow
def test_modules_of_other_makers(few_candidates, blobs):
    X, y = blobs
    verdict = lambda *given: api.verdict(*given, budget=1.0, tolerance=5.0, clock=Ticks())
    first = verdict(Module(torch.nn.Tanh(), bias=False), X, y)
    assert not first.drift["left"] and first.settings["sigma_a2"] == pytest.approx(1 / 3, rel=0.1)
    assert "at initialisation" in first.reason[0] and first.candidates[0].distance["ck"]
    for module, why in (
        (Module(torch.nn.Tanh(), bias=True), "it has a bias"),
        (Module(torch.relu, bias=False), "its activation is not centred"),
    ):
        outcome = verdict(module, X, y)
        assert why in outcome.reason[0] and outcome.candidates[0].replacement
        assert len(outcome.table().splitlines()) > 4
    # scaled samples and a scaled B are the same network
    module = Module(torch.nn.Tanh(), bias=False)
    module.B.weight.data.mul_(10)
    again = verdict(module, X / 10, y)
    candidate, other = (outcome.candidates[0].distance["ck"]["relative"] for outcome in (first, again))
    assert candidate == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
def test_weights_beyond_the_theory_are_measured(blobs, tmp_path):
    """A shift ends after so many steps; its entries in random places make circles, in which the state grows."""
    module = Module(torch.relu, bias=False)
    module.A.weight.data.copy_(torch.diag(torch.full((31,), 1.5), 1))
    outcome = api.verdict(module, *blobs, budget=1.0, clock=Ticks())
    assert outcome.drift["left"] and not outcome.drift["settle"] and "left the random regime" in outcome.reason[0]
    assert outcome.settings["sigma_a2"] > 2 and {candidate.kind for candidate in outcome.candidates} == {"plain"}
    json.dumps(outcome.to_dict(), allow_nan=False)
    write(outcome.to_dict(), tmp_path)


@pytest.mark.slow
def test_without_labels_the_deqs_classes_are_followed(few_candidates, blobs, moved):
    outcome = api.verdict(moved, blobs[0], budget=1.0, clock=Ticks())
    assert "no labels" in " ".join(outcome.reason) and outcome.deq["accuracy"] == 100


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda X, y: (X, y - 1), "labels of a trained DEQ are 0, 1, .*got -1"),
        (lambda X, y: (X, y + 1), "labels go up to 3, and the DEQ has 3 outputs"),
        (lambda X, y: (X[:40], y[:40]), "40 samples are too few"),
        (lambda X, y: (X[:, :4], y), r"\(n, 20\)"),
        (lambda X, y: (X * np.nan, y), "NaN or infinite"),
    ],
)
def test_what_cannot_be_used_is_refused(blobs, moved, change, message):
    with pytest.raises(ValueError, match=message):
        api.verdict(moved, *change(*blobs), budget=2.0)
    with pytest.raises(ValueError, match="both have labels, or neither"):
        begin(moved, *blobs, held=(blobs[0] + 1, None))


class Scaling(Module):
    """A module whose forward scales its samples first."""

    def forward(self, x):
        z = torch.zeros(len(x), 32)
        for _ in range(100):
            z = self.activation(self.A(z) + self.B((x - 0.2) * 3))
        return self.readout(z)


class Tripled(DEQ):
    def features(self, x):
        return super().features(3 * x)


def test_another_network_than_the_users_is_never_judged(blobs):
    for deq in (Scaling(torch.nn.Tanh(), bias=True), Tripled("tanh", 20, 32, 3, 0.2)):
        with pytest.raises(ValueError, match="outputs differ by .*, relative .*on these samples") as caught:
            begin(deq, *blobs)
        assert "\n" not in str(caught.value)
        assert ("judged as it is: steps=" in str(caught.value)) == isinstance(deq, Scaling)


def test_a_readout_of_several_layers_is_judged_as_it_is_or_refused(blobs):
    (X, y), deq = blobs, DEQ("tanh", 20, 32, 3, 0.2)
    deq.readout = torch.nn.Sequential(deq.readout, torch.nn.Softmax(1))
    with pytest.raises(ValueError, match="its readout must be an nn.Linear, got Sequential"):
        begin(deq, X, y)  # its weights are as drawn
    with torch.no_grad():
        deq.A.mul_(0.9)
    assert isinstance(begin(deq, X[:600], y[:600], held=(X[600:], y[600:])), VerdictBySteps)
    with pytest.raises(ValueError, match="held"):
        begin(deq, X, y)
    unlike = "its readout must be an nn.Linear, got Sequential.*judged as it is, with the solver that it has"
    for held in ({}, {"held": (X[600:], y[600:])}):  # a solver that would not be used
        with pytest.raises(ValueError, match=unlike):
            begin(deq, X[:600], y[:600], solver=Picard(), **held)
    with pytest.raises(ValueError, match="with steps= a module is judged as it is, with the solver that it has"):
        begin(torch.nn.Linear(20, 3), X[:600], y[:600], steps=lambda module, k: module, solver=Picard())
    with pytest.raises(ValueError, match="its readout must be an nn.Linear, got Sequential"):
        adapt(deq, X)


@pytest.mark.parametrize("name, what", [("A", "nothing to iterate"), ("B", "the same of every sample")])
def test_weights_that_are_zero_are_named(blobs, moved, name, what):
    deq = copy.deepcopy(moved)
    with torch.no_grad():
        getattr(deq, name).zero_()
    with pytest.raises(ValueError, match=f"all entries of the DEQ's {name} are 0: .*{what}") as caught:
        VerdictAfterTraining(deq, *blobs)
    assert one_line(caught)


def test_a_readout_that_was_never_fitted_has_a_verdict(few_candidates, blobs, moved):
    deq = copy.deepcopy(moved)
    with torch.no_grad():
        deq.readout.weight.zero_()
    result = api.verdict(deq, *blobs, budget=2.0, clock=Ticks(0.01))
    assert result.answer == "undecided" and "readout was never fitted" in " ".join(result.reason)


def test_a_large_gain_is_an_alarm_and_no_recommendation(few_candidates, blobs, moved):
    making = begin(moved, *blobs, tolerance=4.0, budget=1.0, clock=Ticks())
    making.run()
    best = making.losses.replacements[0]
    for loss, interval, answer in ((-53.0, (-55.0, -51.0), "undecided"), (-3.0, (-4.0, -2.0), "replace")):
        best.loss, best.loss_interval = loss, interval
        outcome = making.conclude()
        assert outcome.answer == answer and ("an alarm" in " ".join(outcome.reason)) == (answer == "undecided")


@pytest.mark.slow
def test_what_is_exported_is_what_was_measured(few_candidates, blobs, moved, tmp_path):
    (X, y), held = (blobs[0][:600], blobs[1][:600]), (blobs[0][600:], blobs[1][600:])
    outcome = api.verdict(moved, X, y, held=held, budget=1.0, tolerance=4.9, clock=Ticks(), solver=Picard())
    assert outcome.answer == "replace"
    outcome = pickle.loads(pickle.dumps(outcome))
    outcome.export(tmp_path / "enn.pt", torch.full((20,), 0.5), 2.0)
    with torch.no_grad():
        says = rebuild(tmp_path / "enn.pt")(2 * held[0] + 0.5).argmax(1)
    assert 100 * (says == held[1]).double().mean().item() == pytest.approx(outcome.chosen.replacement.first_accuracy)
    outcome.answer, outcome.chosen = "keep", None
    with pytest.raises(ValueError, match="other.pt is not written: the answer is keep"):
        outcome.export(tmp_path / "other.pt")


@pytest.mark.slow
def test_the_network_of_a_module_with_random_weights_takes_its_samples(few_candidates, blobs, tmp_path, monkeypatch):
    """The DEQ of the theory takes the samples times the gain of the module's B."""
    X, y = blobs
    making = begin(Module(torch.nn.Tanh(), bias=False), X, y, budget=1.0, tolerance=50.0, clock=Ticks())
    making.run()
    outcome = making.conclude()
    assert outcome.answer == "replace" and making.as_random is not None
    written = pickle.loads(pickle.dumps(outcome))
    assert written.maker.samples is None
    written.export(tmp_path / "enn.pt")
    enn, readout = written.maker.fitted
    with torch.no_grad():
        expected = readout.predict(enn, X * making.deq.gain).mean
        torch.testing.assert_close(rebuild(tmp_path / "enn.pt")(X).double(), expected, rtol=1e-3, atol=1e-4)
    assert (expected.argmax(1) == y).double().mean() > 0.8


# the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data file, and the checkpoint of a run of 20 epochs on it."""
    folder = tmp_path_factory.mktemp("trained")
    g = np.random.default_rng(0)
    y = np.arange(900) % 3
    X = (3 + g.normal(size=(900, 12)) + 2 * np.eye(12)[y]).astype("f4")
    np.savez(folder / "data.npz", X_train=X[:500], y_train=y[:500], X_test=X[500:], y_test=y[500:])
    config = Config("npz", "inn", 24, 1.0, 20, 50, train="full")
    run(
        config,
        load_dataset("npz", folder / "data.npz"),
        lambda: DEQ(ACTIVATIONS["relu"], 12, 24, 3, 0.2),
        folder,
        folder,
    )
    return folder, checkpoint_path(config, folder)


def command(files, *flags):
    folder, _ = files
    gateway.main(["--dataset", "npz", "--dataset_path", str(folder / "data.npz"), "--activation", "relu", *flags])


@pytest.fixture
def no_page(monkeypatch):
    """What is looked at is the network alone."""
    monkeypatch.setattr("deq_enn.verdicts.page.write", lambda *_: ())


@pytest.mark.slow
def test_a_checkpoint_is_judged_and_its_replacement_written(files, tmp_path, capsys):
    folder, checkpoint = files
    out = "--output_path", str(tmp_path), "--export", str(tmp_path / "enn.pt")
    command(files, "--checkpoint", str(checkpoint), "--budget", "1s", "--tolerance", "90", *out)
    said = capsys.readouterr().out
    outcome = json.loads((tmp_path / "verdict.json").read_text())
    assert outcome["answer"] == "replace" and f"exported {outcome['chosen']}" in said
    names = {path.name for path in tmp_path.iterdir()}
    assert {"verdict.png", "verdict.html", "enn.pt", "enn.json", "enn.pt2"} <= names
    raw = np.load(folder / "data.npz")
    program = torch.export.load(tmp_path / "enn.pt2").module()
    with torch.no_grad():
        classes = program(torch.from_numpy(raw["X_test"])).argmax(1).numpy()
    chosen = next(candidate for candidate in outcome["candidates"] if candidate["name"] == outcome["chosen"])
    assert outcome["form"] == "steps"  # measured on these very samples, or on as many of them as there was time for
    whole = outcome["settings"]["held"] == len(raw["y_test"])
    assert 100 * (classes == raw["y_test"]).mean() == pytest.approx(chosen["accuracy"], abs=1e-3 if whole else 10)
    assert (classes == raw["y_test"]).mean() > 0.6


@pytest.mark.slow
def test_the_network_of_an_untrained_deq_is_written_for_rows_as_they_are(no_page, files, tmp_path, capsys):
    folder, _ = files
    out = "--output_path", str(tmp_path), "--export", str(tmp_path / "new" / "enn.pt")
    command(files, "--dim", "64", "--budget", "1s", "--tolerance", "50", *out)
    outcome = json.loads((tmp_path / "verdict.json").read_text())
    assert outcome["answer"] == "replace" and outcome["chosen"] in capsys.readouterr().out
    raw = np.load(folder / "data.npz")
    with torch.no_grad():
        classes = rebuild(tmp_path / "new" / "enn.pt")(torch.from_numpy(raw["X_test"])).argmax(1).numpy()
    assert (classes == raw["y_test"]).mean() > 0.7
    state = torch.load(tmp_path / "new" / "enn.pt", weights_only=True)
    np.testing.assert_allclose(state["mean"], raw["X_train"].mean(0), rtol=1e-5)


@pytest.mark.slow
def test_where_nothing_is_chosen_nothing_is_written(no_page, few_candidates, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(VerdictAtInitialisation, "decide", lambda self: Decision("keep", None, ["No."]))
    command(
        files, "--dim", "16", "--budget", "0.3s", "--output_path", str(tmp_path), "--export", str(tmp_path / "enn.pt")
    )
    assert "enn.pt is not written: the answer is keep" in capsys.readouterr().out
    assert not (tmp_path / "enn.pt").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--export", "enn.onnx"], "argument --export: the file must end in .pt, got enn.onnx"),
        (["--export", "{folder}/data.npz/enn.pt"], "argument --export: .*data.npz is a file, not a folder"),
        (["--checkpoint", "{folder}/no.pt"], "argument --checkpoint: there is no file .*no.pt"),
        (["--checkpoint", "{folder}/data.npz"], "data.npz is no checkpoint of main.py"),
        (["--checkpoint", "{checkpoint}", "--dim", "32"], "--dim 32: the DEQ of .* has width 24; leave --dim out"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(files, flags, message, capsys, tmp_path):
    folder, checkpoint = files
    with pytest.raises(SystemExit) as caught:
        command(
            files,
            "--output_path",
            str(tmp_path),
            *(flag.format(folder=folder, checkpoint=checkpoint) for flag in flags),
        )
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and re.search(message, error)


@pytest.mark.slow
def test_an_export_that_cannot_be_made_is_an_error(no_page, few_candidates, files, tmp_path, capsys):
    raw = np.load(files[0] / "data.npz")
    np.savez(tmp_path / "unlabelled.npz", X_train=raw["X_train"])
    flags = "--dataset_path", str(tmp_path / "unlabelled.npz"), "--dim", "16", "--budget", "0.3s"
    with pytest.raises(SystemExit) as caught:
        command(files, *flags, "--output_path", str(tmp_path), "--export", str(tmp_path / "enn.pt"))
    assert caught.value.code == 2 and "a readout is fitted to labels" in capsys.readouterr().err


def test_a_loop_by_hand_is_told_how_it_can_be_judged(blobs):
    X, y = blobs
    for module in (torch.nn.Linear(X.shape[1], 3), torch.nn.Sequential()):
        with pytest.raises(ValueError, match="it has no A, B, .*Nor can it be stopped .*: steps=my_") as caught:
            api.verdict(module, X[:300], y[:300], held=(X[300:], y[300:]))
        assert one_line(caught)
    with pytest.raises(ValueError, match="the seed must be a whole number from 0 on, got -1"):
        api.verdict(DEQ("tanh", X.shape[1], 8, 3, 0.2), X, y, seed=-1)
    assert json.dumps(begin(DEQ("tanh", X.shape[1], 8, 3, 0.2), X, y, seed=np.int64(3)).seed) == "3"
    with pytest.raises(ValueError, match=r"budget \(in seconds\) must be a number, got '60s'"):
        api.verdict(DEQ("tanh", X.shape[1], 8, 3, 0.2), X, y, budget="60s")
    with pytest.raises(ValueError, match="the width must be a whole number from 1 on, got 2.5"):
        api.verdict(DEQ("tanh", X.shape[1], 8, 3, 0.2), X, y, width=2.5)
