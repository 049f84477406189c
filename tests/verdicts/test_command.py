"""The verdict from the command line and from Python: what it answers, writes and refuses."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.utils.random import generator
from deq_enn.verdicts import api, at_initialisation, command as gateway, measurements
from deq_enn.verdicts.at_initialisation import Inquiry
from deq_enn.verdicts.loss_model import Interval
from deq_enn.verdicts.page import write
from deq_enn.verdicts.result import Candidate
from tests.conftest import ROOT, Ticks


@pytest.fixture(scope="module")
def blobs():
    """600 samples of three classes that a narrow network gets right most of the time."""
    g = generator("blobs")
    y = torch.randint(3, (600,), generator=g)
    X = torch.randn(600, 20, generator=g)
    X[:, :3] += 2.0 * torch.nn.functional.one_hot(y, 3)
    X -= X.mean(0)
    return X / X.square().sum(1).mean().sqrt(), y


@pytest.fixture(scope="module")
def deq():
    return DEQ(ACTIVATIONS["tanh"], 20, 64, 3, 0.2)


@pytest.fixture(scope="module")
def found(deq, blobs):
    return api.verdict(deq, *blobs, budget=1.0, tolerance=5.0, clock=Ticks())


def test_what_a_verdict_holds(found, blobs):
    assert found.answer in ("replace", "keep", "undecided") and all(found.reason)
    names = [one.name for one in found.candidates]
    assert "matched ck: 1 hard_tanh" in names and "plain, depth 3" in names and len(set(names)) == len(names)
    for one in found.candidates:
        low, high = one.loss_interval
        assert low < one.loss < high
        for kernel in ("ck", "ntk"):
            d = one.distance[kernel]
            assert 0 <= d["with_factor"] <= d["relative"] + 1e-12 and d["factor"] > 0
        assert 0 <= one.alignment <= 1 and 0 <= one.infinite["accuracy"] <= 1
        assert one.infinite["interval"][0] <= one.infinite["difference"] <= one.infinite["interval"][1]
        enn = one.build(20, 16, 3, seed=5)
        assert isinstance(enn, ENN) and len(enn.weights) == one.depth == len(one.layers)
        assert torch.equal(enn.weights[0], DEQ(ACTIVATIONS["tanh"], 20, 16, 3, 0.2, seed=5).B)
    matched = next(one for one in found.candidates if one.name == "matched ck: 1 hard_tanh")
    plain = next(one for one in found.candidates if one.name == "plain, depth 3")
    assert matched.distance["ck"]["relative"] < plain.distance["ck"]["relative"] / 5
    assert found.settings["n"] == 600 and found.settings["width"] == 64 and found.settings["classes"] == 3
    assert not found.drift


def test_a_verdict_is_ready_for_json_and_for_a_terminal(found):
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["answer"] == found.answer and len(read["candidates"]) == len(found.candidates)
    assert {p["width"] for p in read["candidates"][0]["measured"]} >= {"inf", 32}
    table = found.table()
    assert all(one.name in table for one in found.candidates) and found.answer in table
    assert max(map(len, table.splitlines()[:-1])) <= 132


def test_the_measured_loss_is_that_of_exact_readouts(deq, blobs):
    """Of the worst candidate, against readouts of other seeds that are tested on other samples."""
    from deq_enn.machines.readout import solve

    X, y = blobs
    train, test = (X[:300], y[:300]), (X[300:], y[300:])
    found = [one for one in at_initialisation.networks(deq, 1.0)[0] if one.name == "plain, depth 3"]
    ladder = measurements.Ladder(
        deq, found, *train, torch.randperm(300, generator=generator("order")), torch.arange(300), 3
    )
    losses = []
    for seed in range(12):
        ladder.measure(16, 300)
        networks = DEQ(ACTIVATIONS["tanh"], 20, 16, 3, 0.2, seed=seed), found[0].build(20, 16, 3, seed)
        right = [(solve(n, *train, 3)[0].predict(n, test[0]).mean.argmax(1) == test[1]).double() for n in networks]
        losses.append(100 * (right[0] - right[1]).mean().item())
    (point,) = ladder.points(found[0].name)
    assert point.seeds == 12 and point.loss > 3  # three layers of 16 units lose much
    error = math.sqrt(point.of_samples + point.of_seeds + np.var(losses) / 11)
    assert error < 2 and abs(point.loss - np.mean(losses)) < 2.5 * error
    interval = ladder.posterior(found[0].name, 16).interval()
    assert interval.low < np.mean(losses) + 2 * error and interval.high > np.mean(losses) - 2 * error


@pytest.mark.slow
def test_without_labels_the_kernels_decide(deq, blobs):
    found = api.verdict(deq, blobs[0], budget=0.5, clock=Ticks())
    assert found.answer == "replace" and found.chosen.distance["ck"]["with_factor"] < at_initialisation.NEAR
    assert "no labels" in " ".join(found.reason) and found.chosen.loss is None
    json.dumps(found.to_dict(), allow_nan=False)


# ---------------------------------------------------------------------------------------------------------------
# the answer, given the intervals


def candidate(name, depth, mean, low, high):
    one = Candidate(name, "plain", None, None, depth, (), 1.0, None, {"ck": {"with_factor": 0.1}})
    one.interval = Interval(mean, low, high)
    return one


@pytest.fixture
def judged(deq, blobs, monkeypatch):
    def judge(*candidates, tolerance=0.5):
        work = Inquiry(deq, *blobs, tolerance=tolerance)
        work.candidates = list(candidates)
        work.ladder = type(
            "Measured", (), {"passes": {(64, 600): {}}, "accuracy": {}, "equilibria": lambda *_: (0, 0)}
        )()
        monkeypatch.setattr(work, "_interval", lambda one: one.interval)
        return work

    return judge


def test_the_cheapest_that_is_good_enough_is_chosen(judged):
    cheap, dear = candidate("cheap", 1, 0.2, -0.1, 0.45), candidate("dear", 2, -1, -1.2, -0.8)
    answer, chosen, _ = judged(dear, cheap)._answer()
    assert (answer, chosen) == ("replace", cheap)
    cheap.interval = Interval(0.2, -0.1, 0.55)
    assert judged(dear, cheap)._answer()[:2] == ("replace", dear)
    twin = candidate("twin", 2, -0.5, -0.6, -0.4)
    assert judged(twin, dear)._answer()[1] is dear  # of those that cost the same the least loss


def test_keep_needs_every_candidate_to_be_above_and_undecided_says_what_is_missing(judged):
    bad, open_ = candidate("bad", 1, 2, 1, 3), candidate("open", 2, 0.6, 0.2, 1.0)
    work = judged(bad)
    work.applies = {"fails": ["the norms are spread"]}
    answer, chosen, reason = work._answer()
    assert (answer, chosen) == ("keep", None) and "The norms are spread." in reason
    answer, chosen, reason = judged(bad, open_)._answer()
    assert (answer, chosen) == ("undecided", None) and "open" in reason[0] and "more time" in reason[1]


def test_what_is_measured_next_may_still_be_the_answer(judged):
    sure, cheaper, dearer = (
        candidate("sure", 2, 0, -0.3, 0.2),
        candidate("cheaper", 1, 0.4, 0, 0.8),
        candidate("dearer", 3, 0.4, 0, 0.8),
    )
    assert judged(sure, cheaper, dearer)._open() == ["cheaper"]
    cheaper.interval = Interval(2, 1, 3)
    assert judged(sure, cheaper, dearer)._open() == ["sure"]
    sure.interval = Interval(0, -0.1, 0.1)
    assert judged(sure, cheaper, dearer)._open() == ["dearer"]
    dearer.interval = Interval(0, -0.1, 0.1)
    assert judged(sure, cheaper, dearer)._open() == []


def test_a_pass_that_takes_too_long_makes_do_with_less(deq, blobs):
    """Each look at the clock takes a second."""
    X, y = blobs
    found, _ = at_initialisation.networks(deq, 1.0)
    now = iter(range(1000))
    ladder = measurements.Ladder(
        deq, found, X.repeat(4, 1), y.repeat(4), torch.arange(2400), torch.arange(2400), 3, clock=lambda: next(now)
    )
    ladder.deadline = 5
    ladder.measure(16, 2400)
    (width, count), networks = *ladder.passes.keys(), *ladder.passes.values()
    assert width == 16 and 512 <= count < 2400 and count % measurements.BATCH == 0
    assert 1 <= len(networks) < len(found)
    assert len(ladder.points(found[0].name)) == 1 and ladder.points(found[-1].name) == []


@pytest.mark.slow
def test_a_narrow_width_without_an_equilibrium_is_passed_over(few_candidates, deq, blobs, monkeypatch):
    measure = measurements.Ladder.measure

    def fails_at_32(self, width, *rest):
        if width == 32:
            raise ConvergenceError("the equilibrium diverged", None)
        return measure(self, width, *rest)

    monkeypatch.setattr(measurements.Ladder, "measure", fails_at_32)
    found = api.verdict(deq, *blobs, budget=1.0, clock=Ticks())
    assert {point.width for point in found.candidates[0].measured} >= {64} and found.settings["samples"] > 0


@pytest.mark.slow
def test_seeds_without_an_equilibrium_are_told_and_passed_over(blobs):
    X, y = blobs
    deq = DEQ(ACTIVATIONS["relu"], 20, 16, 3, 0.9)
    ladder = measurements.Ladder(
        deq, at_initialisation.networks(deq, 1.0)[0][-1:], X, y, torch.arange(600), torch.arange(600), 3
    )
    tries, first = 6, ladder.first_seed
    for _ in range(tries):
        try:
            ladder.measure(16, 600)
        except ConvergenceError:
            pass
    expected = set()
    for seed in range(first, first + tries):
        one = DEQ(ACTIVATIONS["relu"], 20, 16, 3, 0.9, seed=seed, solver=measurements.SOLVER)
        try:
            one.features(X)
        except ConvergenceError:
            expected.add(seed)
    assert ladder.drawn[16] == set(range(first, first + tries)) and ladder.without[16] == expected
    assert 0 < len(expected) < tries and len(ladder.accuracy[16, 600]) == tries - len(expected)
    assert ladder.equilibria(16) == (tries, len(expected)) and ladder.settles(16)


@pytest.mark.slow
def test_a_deq_without_an_equilibrium_at_its_width_has_a_verdict(tmp_path, blobs):
    found = api.verdict(DEQ(ACTIVATIONS["erf"], 20, 16, 3, 0.99), *blobs, budget=1.0)
    draws = found.deq["draws"]
    assert draws["width"] == 16 and 1 <= draws["drawn"] == draws["without_equilibrium"] <= measurements.DRAWS
    assert found.answer == "undecided" and found.chosen is None
    said = f"no equilibrium at width 16 ({draws['drawn']} of {draws['drawn']} draws"
    assert said in found.reason[0] and "--dim" in found.reason[0] and "--asquare" in found.reason[0]
    for one in found.candidates:
        assert one.loss is None and one.infinite and one.distance["ck"]["relative"] > 0
    assert said in found.table()
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    pages = [path.read_text() for path in map(Path, write(numbers, tmp_path)) if path.suffix == ".html"]
    assert said in pages[0]


def test_infinite_width_alone_decides_nothing(judged):
    work = judged(candidate("good", 1, 0.0, -0.3, 0.3))
    assert work._answer()[0] == "replace"
    work.ladder.passes = {(math.inf, 150): {}}
    answer, chosen, reason = work._answer()
    assert answer == "undecided" and chosen is None and "--budget" in reason[0]


def test_a_deq_that_has_an_equilibrium_at_some_seeds_is_judged_by_those(judged):
    work = judged(candidate("good", 1, 0.2, -0.1, 0.4))
    work.ladder.equilibria = lambda width: (5, 2)
    answer, chosen, reason = work._answer()
    assert answer == "replace" and "(2 of 5 draws" in reason[0] and "draws that have one" in reason[1]


# ---------------------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda X, y: (X[:20], y[:20]), "too few"),
        (lambda X, y: (X, y[:-1]), "one label a row"),
        (lambda X, y: (X, 0 * y), "all labels are 0"),
        (lambda X, y: (X, y + 0.5), "integers"),
        (lambda X, y: (X[:, :7], y), r"\(n, 20\)"),
        (lambda X, y: (torch.where(torch.arange(600)[:, None] == 33, float("nan"), X), y), "row 33"),
        (lambda X, y: (0 * X, y), "zero"),
    ],
)
def test_samples_that_cannot_be_used(deq, blobs, change, words):
    with pytest.raises(ValueError, match=words):
        api.verdict(deq, *change(*blobs), budget=1.0)


def test_what_is_not_a_deq(blobs):
    with pytest.raises(ValueError, match="Linear is not a DEQ.*activation"):
        api.verdict(torch.nn.Linear(20, 3), *blobs)


def refused(capsys, tmp_path, *argv):
    """The one line on stderr; nothing may have been written."""
    with pytest.raises(SystemExit) as stop:
        gateway.main([*map(str, argv), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    err = capsys.readouterr().err
    assert err.startswith("deq-enn verdict: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "argv, words",
    [
        ((), "--activation"),
        (("--activation", "swush"), "swush"),
        (("--activation", "swish", "--dataset", "npz"), "--dataset_path"),
        (("--activation", "swish", "--budget", "6 hours"), "--budget"),
        (("--activation", "swish", "--tolerance", "-1"), "--tolerance"),
        (("--activation", "selu", "--asquare", "0.9"), "sigma_a^2"),  # no stable equilibrium
        (("--activation", "swish", "--dataset", "npz", "--dataset_path", "no_such_file.npz"), "no_such_file.npz"),
    ],
)
def test_bad_flags_are_one_line(capsys, tmp_path, argv, words):
    assert words in refused(capsys, tmp_path, *argv)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(X_train=np.full((60, 5), np.nan)), "NaN"),
        (dict(y_train=np.zeros(60, int), y_test=np.zeros(30, int)), "at least two classes"),
        (dict(X_train=np.eye(9, 5), y_train=np.arange(9) % 3), "too few"),
    ],
)
def test_bad_files_are_one_line(capsys, tmp_path, small_npz, change, words):
    path = tmp_path / "bad.npz"
    np.savez(path, **dict(np.load(small_npz)) | change)
    assert words in refused(capsys, tmp_path, "--activation", "swish", "--dataset", "npz", "--dataset_path", path)


def test_the_output_must_be_a_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        gateway.main(["--activation", "swish", "--output", str(tmp_path / "file")])
    assert "is a file, not a folder" in capsys.readouterr().err


def test_help_and_bad_flags_do_not_import_torch():
    code = (
        "import sys; sys.argv = ['verdict', {}]; from deq_enn.verdicts import command\ntry: command.main()\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    for flag, status in (("--help", "0"), ("--no_such_flag", "2")):
        done = subprocess.run([sys.executable, "-c", code.format(repr(flag))], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == f"{status} False"


# ---------------------------------------------------------------------------------------------------------------
# runs


def flags_of(path, out, *more):
    data = ["--dataset", "npz", "--dataset_path", str(path)]
    return [*data, "--activation", "tanh", "--dim", "48", "--budget", "0.3s", "--output", str(out), *more]


def test_a_run_prints_a_table_and_writes_what_it_found(capsys, tmp_path, small_npz):
    gateway.main(flags_of(small_npz, tmp_path / "out", "--tolerance", "20"))
    out = capsys.readouterr().out
    assert "60 training samples" in out and "plain, depth 1" in out and "replace: " in out
    read = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert read["answer"] == "replace" and read["settings"]["dataset"] == "npz" and read["chosen"] in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"verdict.json", "verdict.png", "verdict.html"}


@pytest.mark.slow
def test_a_file_without_labels_or_test_set(few_candidates, capsys, tmp_path, small_npz):
    arrays = dict(np.load(small_npz))
    np.savez(tmp_path / "unlabelled.npz", X_train=arrays["X_train"])
    gateway.main(flags_of(tmp_path / "unlabelled.npz", tmp_path / "out"))
    assert "There are no labels" in capsys.readouterr().out
    np.savez(tmp_path / "train.npz", X_train=arrays["X_train"], y_train=arrays["y_train"])
    gateway.main(flags_of(tmp_path / "train.npz", tmp_path / "out"))
    assert "loss, points" in capsys.readouterr().out


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "place, name, calls, known",
    [
        (Inquiry, "_compared", 0, False),
        (at_initialisation, "from_kernel", 2, True),
        (measurements.Ladder, "measure", 0, True),
        (Inquiry, "_costs", 0, True),
    ],
)
def test_an_interrupted_run_prints_what_it_knows_and_writes_nothing(
    few_candidates, capsys, tmp_path, small_npz, monkeypatch, place, name, calls, known
):
    """By a Ctrl-C in the call of `name` after so many others."""
    work, left = getattr(place, name), [calls]

    def interrupted(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return work(*args)

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(SystemExit) as stop:
        gateway.main(flags_of(small_npz, tmp_path / "out"))
    captured = capsys.readouterr()
    assert stop.value.code == 130 and captured.err.count("\n") == 1 and "interrupted" in captured.err
    assert "known so far" in captured.out and ("plain, depth 1" in captured.out) == known
    assert not (tmp_path / "out").exists()
