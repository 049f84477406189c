"""`--lr auto`: the rate is that of the best held-out training samples, and no test sample has a part in it."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from deq_enn.data.datasets import Dataset
from deq_enn.experiments import command
from deq_enn.experiments.accuracy_report import print_rates
from deq_enn.networks.build import build_model
from deq_enn.reporting.records import read_metrics
from deq_enn.training import learning_rate, run_files
from deq_enn.training.learning_rate import STEP, choose_rate, split, with_own_rate
from deq_enn.training.loop import run
from deq_enn.training.run_files import Config, RunFiles, check_output


@pytest.fixture(scope="module")
def data():
    random = torch.Generator().manual_seed(0)
    y = torch.randint(3, (700,), generator=random)
    X = 0.5 * torch.randn(3, 10, generator=random)[y] + torch.randn(700, 10, generator=random)
    X /= X.square().sum(1).mean().sqrt()
    return Dataset("toy", X[:500], y[:500], X[500:], y[500:], 3, None)


def config(**changes):
    return Config("toy", "relu_enn", 16, lr=0.0, epoch=2, batch_size=50, own_rate=True, **changes)


def make_model():
    return build_model("relu_enn", 10, 16, 3, 0.2)


def test_the_split_is_of_training_samples_alone(data):
    parts = split(data, 0)
    rows = torch.cat([parts.X_train, parts.X_test])
    assert len(parts.X_test) == 100 and len(rows.unique(dim=0)) == 500
    assert torch.equal(rows.unique(dim=0), data.X_train.unique(dim=0))
    assert not torch.equal(split(data, 1).X_test, parts.X_test)


@pytest.mark.parametrize("train", ["readout", "full"])
def test_it_is_the_rate_of_the_best_run_on_the_held_out_samples(data, train, tmp_path):
    """Each entry of the table equals an ordinary run whose test samples are the held-out ones."""
    rate, table = choose_rate(config(train=train), data, make_model)
    tried = [row["lr"] for row in table]
    assert tried == sorted(tried) and rate in tried
    for row in table[::3]:
        plain = replace(config(train=train), lr=row["lr"], own_rate=False)
        last = run(plain, split(data, 0), make_model, tmp_path, tmp_path).history[-1]
        assert last["test_accuracy"] == row["validation_accuracy"]
        assert last["test_loss"] == pytest.approx(row["validation_loss"], rel=1e-6)
    best = max(table, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert rate == best["lr"]
    other = replace(data, X_test=-data.X_test, y_test=data.y_test.roll(1))
    assert choose_rate(config(train=train), other, make_model) == (rate, table)


def test_the_grid_goes_on_where_its_end_is_best(data, monkeypatch):
    rate, table = choose_rate(config(), data, make_model)
    monkeypatch.setitem(learning_rate.GRIDS, ("readout", "sgd"), (-6, -5))  # rates far too small
    low, table = choose_rate(config(), data, make_model)
    assert STEP**-5 < low and len(table) == 2 + learning_rate.FURTHER
    monkeypatch.setitem(learning_rate.GRIDS, ("full", "sgd"), (60, 61))
    with pytest.raises(ValueError, match="diverges at every rate.*--lr"):
        choose_rate(config(train="full"), data, make_model)


@pytest.mark.parametrize("limit, chosen", [(1.2, -1), (50, 2), (1e9, 1 + learning_rate.FURTHER)])
def test_a_rate_next_to_divergence_is_not_taken(data, monkeypatch, limit, chosen):
    """The larger the better up to a limit: on all samples training at the last good rate may diverge."""

    def attempt(rate):
        return {"lr": rate, "validation_accuracy": rate / 1e6, "validation_loss": 1.0} if rate < limit else None

    monkeypatch.setattr(learning_rate, "_networks", lambda *_: lambda rates: {rate: attempt(rate) for rate in rates})
    rate, table = choose_rate(config(train="full"), data, make_model)
    assert rate == STEP**chosen and all(row["lr"] < limit for row in table)


def test_the_choice_is_kept_and_does_not_enter_the_key(data, tmp_path, monkeypatch):
    first, task = with_own_rate(config(), data, make_model, tmp_path, tmp_path)
    assert task.config == first and not task.weight.any()
    assert first.lr > 0 and first.key == config().key != replace(first, own_rate=False).key
    monkeypatch.setattr(learning_rate, "choose_rate", lambda *_: (123.0, []))
    assert with_own_rate(config(), data, make_model, tmp_path, tmp_path, resume=True) == (first, None)
    assert (
        with_own_rate(config(), data, make_model, tmp_path, tmp_path)[0].lr == 123.0
    )  # without --resume it is begun again


def test_a_log_alone_says_which_rate_was_chosen(data, tmp_path):
    """Logs are kept without checkpoints: a finished run need not have its features for its rate to be known."""
    chosen = replace(config(), lr=0.7)
    run(chosen, data, make_model, tmp_path / "out", tmp_path / "first")
    args = data, make_model, tmp_path / "out", tmp_path / "second"
    assert with_own_rate(config(), *args, resume=True) == (chosen, None)
    assert with_own_rate(config(), *args)[0].lr != 0.7


def test_a_choice_does_not_depend_on_the_threads(data, monkeypatch):
    """Groups of rates are trained on a thread each, and are the same groups on one."""
    groups, readouts = [], learning_rate.Readouts
    monkeypatch.setattr(
        learning_rate, "Readouts", lambda task, rates: groups.append(tuple(rates)) or readouts(task, rates)
    )
    before, tables, trained = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tables.append(choose_rate(config(), data, make_model))
            trained.append(sorted(groups))
            groups.clear()
    finally:
        torch.set_num_threads(before)
    assert tables[0] == tables[1] and trained[0] == trained[1]
    assert {len(group) for group in trained[0]} >= {learning_rate.TOGETHER}


@pytest.mark.slow
def test_a_longer_run_goes_on_where_its_own_rate_is_that_of_the_shorter_one(data, tmp_path, monkeypatch):
    def go(epoch, rate):
        monkeypatch.setattr(learning_rate, "choose_rate", lambda *_: (rate, []))
        chosen = replace(config(), epoch=epoch)
        chosen, _ = with_own_rate(chosen, data, make_model, tmp_path / "out", tmp_path / "save", resume=True)
        check_output([chosen], tmp_path / "out", resume=True)
        return run(chosen, data, make_model, tmp_path / "out", tmp_path / "save", resume=True)

    shorter, longer, other = go(1, 0.5), go(2, 0.5), go(3, 0.7)
    assert longer.history[0] == shorter.history[0] != other.history[0]
    lines = [line for line in read_metrics(tmp_path / "out") if line["event"] == "run"]
    assert [(line["config"]["epoch"], line["config"]["lr"], line["resumed_at"]) for line in lines] == [
        *((1, 0.5, 0), (2, 0.5, 1), (3, 0.7, 0))
    ]


def test_the_rates_that_are_printed_are_those_of_these_runs(tmp_path, capsys):
    for of_data, seed, rate in (("mine", 0, 1.0), ("mine", 1, 3.0), ("others", 0, 10.0)):
        chosen = replace(config(data=of_data, seed=seed), lr=rate)
        RunFiles(chosen, tmp_path / "out", tmp_path / "save").note("run", config=chosen.record())
    runs = [config(data="mine", seed=seed) for seed in (0, 1, 2)]  # of the last there is no log
    print_rates(Namespace(output_path=tmp_path / "out", dim=[16], seed=[0, 1, 2]), runs)
    assert capsys.readouterr().out.splitlines()[-1].split() == ["relu_enn", "1", "3"]


@pytest.mark.slow
def test_the_gateway_runs_resumes_and_prints_the_rates(tmp_path, capsys):
    flags = [
        "--model",
        "relu_enn",
        "tanh_enn",
        "--dim",
        "16",
        "--epoch",
        "1",
        "--lr",
        "auto",
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path / "out"),
        "--save_path",
        str(tmp_path / "save"),
    ]
    command.main(flags)
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["config"]["model"]: line["config"]["lr"] for line in lines if line["event"] == "run"}
    tail = printed.split("learning rates chosen")[1]
    assert all(f"{rate:.3g}" in tail for rate in rates.values()) and all(rate > 0 for rate in rates.values())
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    command.main([*flags, "--resume"])
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    with pytest.raises(SystemExit):  # the folder's logs are those of chosen rates
        command.main([*flags[:8], "1", *flags[9:]])
    assert "another configuration" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--model", "linear_pcdeq_1", "--lr", "auto"])
    assert "--lr: auto is not for a positive concave DEQ" in capsys.readouterr().err


def test_a_run_of_many_epochs_is_not_looked_for_as_each_of_fewer(tmp_path, monkeypatch):
    long = replace(config(), epoch=10**9)
    monkeypatch.setattr(run_files, "shorter", lambda _: pytest.fail("a billion keys are made"))
    check_output([long], tmp_path, resume=True)
    assert RunFiles(long, tmp_path, tmp_path).restore("cpu") is None


def test_metrics_are_read_once_for_all_runs_and_again_where_they_have_changed(tmp_path, monkeypatch):
    read, real = [], run_files.read_metrics
    monkeypatch.setattr(run_files, "read_metrics", lambda path: read.append(path) or real(path))
    files = [RunFiles(config(seed=seed), tmp_path, tmp_path) for seed in (0, 1, 2)]
    for single in files:
        single.note("run", config=single.config.record())
    for number in (1, 2):
        for single in files:
            mine = run_files.records_of(single.config.key, tmp_path)
            assert [r["seed"] for r in mine] == [single.config.seed] * (1 + (number == 2 and single is files[0]))
        assert len(read) == number
        files[0].note("run", config=files[0].config.record())
    assert run_files.records_of("none", tmp_path / "nowhere") == []
