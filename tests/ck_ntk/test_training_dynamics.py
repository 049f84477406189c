"""Training dynamics: the same batches for every network, distances, a killed script, divergence, command line."""

import argparse
import json
import math
from types import SimpleNamespace

import pytest
import torch

from ck_ntk import training_dynamics as td
from ck_ntk.common import training_curves
from deq_enn.data.datasets import Dataset
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.training.loop import FullTask
from deq_enn.training.run_files import Config
from scripts.reproduction import findings
from tests.conftest import ROOT


def toy(n=640, p=20, classes=4, tests=200):
    """Classes on the axes with noise, centred and scaled as data_prepare.py does."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n + tests) % classes
    X = torch.randn(n + tests, p, generator=g) / p**0.5
    X[torch.arange(n + tests), y] += 0.7
    X -= X[:n].mean(0)
    X /= X[:n].square().sum(1).mean().sqrt()
    return Dataset("toy", X[:n], y[:n], X[n:], y[n:], classes, None)


def config(model, **settings):
    return Config(**{"dataset": "toy", "model": model, "dim": 64, "lr": 0.3, "epoch": 1, "batch_size": 32, **settings})


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The script on toy data: three networks, two points an epoch, kernels of few samples, its runs in tmp_path."""
    monkeypatch.setattr(td, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(td, "POINTS", 2)
    monkeypatch.setattr(td, "PROBE", 6)
    monkeypatch.setattr(td, "NETWORKS", {name: td.NETWORKS[name] for name in ("deq", "ntk", "unmatched")})
    monkeypatch.setattr("deq_enn.data.datasets.load_dataset", lambda name, path: toy(256))

    def go(**settings):
        return td.main(
            argparse.Namespace(
                device="cpu",
                **{"dim": [16], "epoch": 1, "dataset_path": None, "lr": [0.3, 1.0], "seeds": 1, **settings},
            )
        )

    return go


# -- networks and runs -------------------------------------------------------------------------------------------


@pytest.mark.long
def test_empirical_kernels_are_those_of_the_coefficients():
    """Wide networks at random inputs of norm 1, against the theory: what is trained, and how the input is scaled."""
    X = torch.nn.functional.normalize(torch.randn(40, 40, generator=torch.Generator().manual_seed(1)))
    S = (X @ X.T)[torch.tril(torch.ones(40, 40), -1) > 0]
    for name in (name for name in td.NETWORKS if not name.endswith("_rescaled")):  # those are the same networks
        models = [td.build(name, 40, 400, 3, 1.0, seed) for seed in range(4)]
        K, theory = sum(td.tangent_kernel(model, X) for model in models) / 4, td.tangent_coefficients(models[0])
        assert K.diagonal().mean().item() == pytest.approx(theory.diag, rel=0.1), name
        off = K[torch.tril(torch.ones(40, 40), -1) > 0]
        slope, curvature = torch.linalg.lstsq(torch.stack([S, S**2], 1), off[:, None]).solution[:, 0].tolist()
        assert (slope, curvature) == (pytest.approx(theory.c1, rel=0.1), pytest.approx(theory.c3, rel=0.1)), name


@pytest.mark.slow
def test_all_networks_of_a_seed_see_the_same_batches(monkeypatch):
    monkeypatch.setattr(td, "PROBE", 2)  # its kernel is not what this is about
    seen = []
    epoch = FullTask.epoch
    monkeypatch.setattr(FullTask, "epoch", lambda task, rows: seen.append(rows) or epoch(task, rows))
    orders = {}
    for name in ("deq", "ntk", "ck_1_rescaled", "unmatched_centred"):
        for seed in (0, 1):
            seen.clear()
            run = td.train_network(config(name, seed=seed, epoch=2, dim=16), toy(256), 1.0)
            orders[name, seed] = torch.cat(seen)
            assert [record["samples"] for record in run["curve"]] == [len(rows) for rows in seen]
    for (name, seed), order in orders.items():
        assert torch.equal(order, orders["deq", seed]), name
        for half in order.split(256):  # each epoch is a pass over all samples
            assert torch.equal(half.sort().values, torch.arange(256))
    assert not torch.equal(orders["deq", 0][:256], orders["deq", 0][256:])
    assert not torch.equal(orders["deq", 0], orders["deq", 1])


def test_a_centred_network_starts_from_zero_with_the_same_gradients():
    data = toy()
    for name in ("deq", "ntk_cubic"):
        model = td.build(name, 20, 32, 4, 1.0, 0)
        centred = td.centred(model)
        assert centred(data.X_test).abs().max() == 0
        assert {id(w) for w in centred.parameters()} == {id(w) for w in model.parameters()}
        with torch.no_grad():
            start = model(data.X_test)
            model.readout.weight += 0.1
            change = model(data.X_test) - start
            torch.testing.assert_close(centred(data.X_test), change)


@pytest.mark.long
def test_the_ntk_match_is_the_nearest_where_training_is_lazy():
    data, runs = toy(), {}
    for name in ("deq", "ntk", "ntk_cubic", "ck_1", "ck_2", "unmatched"):
        runs[name] = [
            td.train_network(config(name + "_centred", dim=256, lr=1.0, seed=seed), data, 1.0) for seed in (0, 1)
        ]
    cell = td.compare(runs)
    result = {name: row["distance"] for name, row in cell["networks"].items()}
    assert result["deq"] == 0 and cell["drop"] > 0.4
    for name in ("ntk", "ntk_cubic"):
        assert 4 * result[name] < min(result["ck_1"], result["ck_2"], result["unmatched"]), result
    assert all(0 < row["weight_change"] < 0.1 and row["kernel_change"] < 0.3 for row in cell["networks"].values())


# -- distances ---------------------------------------------------------------------------------------------------


def runs_of(*curves):
    return [
        {
            "model": "deq",
            "seed": seed,
            "lr": 1.0,
            "start": {"test_loss": 3.0},
            "test_accuracy": 0.5,
            "stopped": "",
            "weight_change": 0.1,
            "kernel_change": 0.2,
            "seconds_an_epoch": 2.0 * (seed + 1),
            "curve": [{"train_loss": x, "test_accuracy": 1 - x / 4} for x in curve],
        }
        for seed, curve in enumerate(curves)
    ]


def test_distance_is_the_rms_of_the_difference_of_mean_curves():
    deq = runs_of([2, 1.5, 1], [2.2, 1.5, 1])
    assert training_curves.distance(deq, deq, "train_loss") == (0, 0)
    for size in (0.1, 0.3):
        shifted = runs_of([2 + size, 1.5, 1 - size], [2.2 + size, 1.5, 1 - size])
        result, error = training_curves.distance(shifted, deq, "train_loss")
        assert result == pytest.approx(size * math.sqrt(2 / 3)) and error < 1e-9
        row = td.compare({"deq": deq, "ntk": shifted})["networks"]["ntk"]
        assert row["distance"] == pytest.approx(result / 2) and row["cost"] == 1  # the DEQ's loss falls from 3 to 1
        assert row["accuracy_distance"] == pytest.approx(result / 4)
    # opposite differences are noise: no distance of the means, a standard error
    opposite = runs_of([2.1, 1.6, 1.1], [2.1, 1.4, 0.9])
    assert training_curves.distance(opposite, deq, "train_loss") == (pytest.approx(0, abs=1e-12), pytest.approx(0.1))


def test_what_stopped_is_compared_up_to_there():
    deq = runs_of([2, 1.5, 1], [2, 1.5, 1])
    stopped = runs_of([2.3, 1.8, 7], [2.3])
    stopped[1] |= {"stopped": "the loss is no longer finite", "weight_change": math.nan}
    cell = td.compare({"deq": deq, "ntk": stopped})
    row = cell["networks"]["ntk"]
    assert row["distance"] == pytest.approx(0.3 / 2) and row["curve"] == pytest.approx([2.3])
    assert row["train_loss"] == 7
    assert row["stopped"] == [{"seed": 1, "after": 0.1, "why": "the loss is no longer finite"}]
    assert json.loads(json.dumps(td.finite_only(cell), allow_nan=False))["networks"]["ntk"]["weight_change"] is None


# -- the script --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_divergence_and_a_lost_equilibrium_are_results(monkeypatch):
    run = td.train_network(config("ntk_cubic", lr=1e4), toy(), 1.0)
    assert "finite" in run["stopped"] and "test_accuracy" not in run and len(run["curve"]) < td.POINTS
    run = td.train_network(config("deq", lr=1e4), toy(), 1.0)
    assert "equilibrium" in run["stopped"]
    evaluate, calls = FullTask.evaluate, []

    def lost(task):
        calls.append(1)
        if len(calls) > 2:
            raise ConvergenceError("the equilibrium diverged", None)
        return evaluate(task)

    monkeypatch.setattr(FullTask, "evaluate", lost)
    run = td.train_network(config("deq"), toy(), 1.0)
    assert run["stopped"] == "the equilibrium diverged" and len(run["curve"]) == 1 and run["weight_change"] > 0


@pytest.mark.slow
def test_a_killed_script_goes_on_to_the_same_numbers(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(td.time, "process_time", lambda: 0.0)  # costs are times, and not compared
    monkeypatch.setattr(td, "draw", lambda *_: None)
    train, done = td.train_network, []

    def killed(*args):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(args[0])
        return train(*args)

    monkeypatch.setattr(td, "train_network", killed)
    with pytest.raises(KeyboardInterrupt):
        small()
    monkeypatch.setattr(td, "train_network", lambda *args: done.append(args[0]) or train(*args))
    _, numbers = small()
    assert len(done) == len(set(done)) == 3 * 3  # columns, networks: nothing done twice
    table = capsys.readouterr().out
    assert table.count("NTK-matched") == 1 + 3 and "width 16, centred" in table
    monkeypatch.setattr(td, "RUNS", tmp_path / "others")
    assert small()[1] == numbers
    assert json.dumps(numbers, allow_nan=False)
    # another setting is another run
    before = len(done)
    small(seeds=2)
    assert len(done) == before + 3 * 3
    victim = next((tmp_path / "others").glob("ntk_16*"))
    victim.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        small()


@pytest.mark.slow
def test_a_table_and_figure_of_networks_that_diverge(small, capsys):
    _, numbers = small(lr=[0.3, 1e4], seeds=1)
    assert "stopped after 0.0 epochs" in capsys.readouterr().out
    numbers = json.loads(json.dumps(numbers, allow_nan=False))
    table = findings.training_table(numbers)  # of the report of scripts/reproduce.py
    assert table.header == ["network", "lr 0.3, centred", "lr 0.3", "lr 10000"]
    assert [row[0] for row in table.rows] == [td.NETWORKS["ntk"], td.NETWORKS["unmatched"]]
    assert "–" in (row[3] for row in table.rows)
    assert findings.training_finding(numbers, "").startswith("``: at width 16 and a learning rate of 0.3 ")


@pytest.fixture
def start(forks):
    return lambda *flags: SimpleNamespace(**forks.run(*flags, program="ck_ntk/training_dynamics.py", cwd=str(ROOT)))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lr", "0"], "positive and finite"),
        (["--lr", "fast"], "--lr"),
        (["--lr", "nan"], "positive and finite"),
        (["--lr"], "--lr"),
        (["--seeds", "0"], "positive"),
        (["--dim", "-1"], "positive"),
        (["--epoch", "0"], "positive"),
        (["--wrong"], "--wrong"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(start, tmp_path, flags, message):
    done = start(*flags, "--output_path", str(tmp_path / "figures"))
    assert done.status == 2 and done.err.count("\n") == 1 and message in done.err
    assert not list(tmp_path.iterdir())


def test_missing_data_is_one_line(start, tmp_path):
    done = start("--dataset_path", str(tmp_path / "none"), "--output_path", str(tmp_path / "figures"))
    assert done.status == 2 and done.err.count("\n") == 1 and "no such" in done.err
    assert not list(tmp_path.iterdir())
