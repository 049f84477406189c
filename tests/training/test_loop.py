import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch

from deq_enn.data.datasets import Dataset
from deq_enn.networks.build import build_model
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.reporting.records import read_metrics
from deq_enn.training import loop
from deq_enn.training.loop import FullTask, TrainingError, run
from deq_enn.training.optimizers import OPTIMIZERS
from deq_enn.training.readout import ReadoutTask
from deq_enn.training.run_files import Config, RunFiles, check_output, log_path

BASE = Config(dataset="toy", model="l_relu_enn", dim=16, lr=0.5, epoch=4, batch_size=32)


def toy(n=150, p=6, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    X = torch.randn(n, p, generator=g) * 0.3
    X[torch.arange(n), y] += 1
    X -= X[:100].mean(0)
    X /= X[:100].square().sum(1).mean().sqrt()
    return Dataset("toy", X[:100], y[:100], X[100:], y[100:], classes, None)


def model_of(config):
    return build_model(config.model, 6, config.dim, 3, config.asquare, 1.0, config.seed)


def go(config, tmp_path, **options):
    return run(config, toy(), lambda: model_of(config), tmp_path / "out", tmp_path / "ckpt", **options)


@pytest.mark.parametrize("opt, kind", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_readout_training_is_torchs_own(tmp_path, opt, kind):
    """The written-out gradient against autograd with the same order, in float32."""
    config = replace(BASE, opt=opt, lr=0.3)
    data, model = toy(), model_of(config)
    result = go(config, tmp_path)
    z, z_test = (model.features(X).detach() for X in (data.X_train, data.X_test))
    linear = torch.nn.Linear(16, 3, bias=False)
    torch.nn.init.zeros_(linear.weight)
    optimizer = kind(linear.parameters(), lr=0.3)
    for epoch, record in enumerate(result.history, 1):
        losses, hits = 0.0, 0
        for index in torch.randperm(100, generator=loop.generator(0, "order", epoch)).split(32):
            loss = torch.nn.functional.cross_entropy(linear(z[index]), data.y_train[index])
            hits += (linear(z[index]).argmax(1) == data.y_train[index]).sum().item()
            losses += loss.item() * len(index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert record["train_loss"] == pytest.approx(losses / 100, rel=1e-4)
        assert record["train_accuracy"] == pytest.approx(hits / 100)
        test_loss = torch.nn.functional.cross_entropy(linear(z_test), data.y_test).item()
        assert record["test_loss"] == pytest.approx(test_loss, rel=1e-4)
        assert record["test_accuracy"] == pytest.approx((linear(z_test).argmax(1) == data.y_test).float().mean().item())


def stepped(make):
    """A weight after six steps, before the last three of which the optimizer's state is written and read; the state."""
    g, state, hooked = torch.Generator().manual_seed(0), None, []
    weight = torch.nn.Parameter(torch.randn(3, 4, generator=g))
    for _ in range(2):
        optimizer = make([weight], lr=0.1, weight_decay=0.02, fused=True)
        if state:
            optimizer.load_state_dict(state)
        optimizer.register_step_post_hook(lambda *_: hooked.append(1))
        for _ in range(3):
            optimizer.zero_grad()
            (weight * torch.randn(3, 4, generator=g)).sin().sum().backward()
            optimizer.step()
        state = optimizer.state_dict()
    assert len(hooked) == 6 and not weight.grad.requires_grad
    return weight.detach(), state


@pytest.mark.parametrize(
    "opt, kind", [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers_without_the_compiler_are_torchs_own_to_the_bit(opt, kind):
    (weight, state), (expected, expected_state) = stepped(OPTIMIZERS[opt]), stepped(kind)
    assert torch.equal(weight, expected)
    assert state["param_groups"] == expected_state["param_groups"]
    for key, value in expected_state["state"].get(0, {}).items():
        assert value is state["state"][0][key] is None or torch.equal(value, state["state"][0][key])


@pytest.mark.parametrize("name", ["inn", "l_relu_enn"])
def test_full_training_moves_every_weight_and_learns(tmp_path, name):
    config = replace(BASE, model=name, train="full", lr=0.2, epoch=12)
    model = model_of(config)
    before = [p.detach().clone() for p in model.parameters()]
    result = run(config, toy(), lambda: model, tmp_path / "out", tmp_path / "ckpt")
    assert all((p - q).abs().max() > 1e-4 for p, q in zip(model.parameters(), before))
    assert result.history[-1]["train_loss"] < 0.7 * result.history[0]["train_loss"]
    if name == "inn":
        assert result.history[0]["forward_iterations"] > 3 and result.history[0]["backward_iterations"] > 3


def test_logs_metrics_and_names(tmp_path):
    go(BASE, tmp_path)
    go(replace(BASE, seed=3), tmp_path)
    out = tmp_path / "out"
    for folder in (out, out / "seed_3"):
        for split in ("train", "test"):
            values = json.loads((folder / f"16_{split}_l_relu_enn_toy.json").read_text())
            assert len(values) == 4 and all(0 <= v <= 1 for v in values)
    records = read_metrics(out)
    assert [r["event"] for r in records] == (["run"] + ["epoch"] * 4) * 2
    assert records[0]["config"]["lr"] == 0.5 and records[0]["theory"]["root"] == 1 and "alpha1" in records[0]["theory"]
    assert {"train_loss", "test_loss", "seconds", "seed"} <= set(records[1])
    # the test accuracy counts every sample: 50 of them, the last batch included
    assert all(
        abs(50 * v - round(50 * v)) < 1e-9 for v in json.loads((out / "16_test_l_relu_enn_toy.json").read_text())
    )


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.json")}


@pytest.mark.parametrize(
    "mode, name, opt", [("readout", "l_relu_enn", "adam"), ("full", "inn", "adam"), ("readout", "inn", "sgd")]
)
@pytest.mark.slow
def test_stopped_at_any_write_a_run_resumes_to_the_same_bytes(tmp_path, monkeypatch, mode, name, opt):
    config = replace(BASE, train=mode, model=name, opt=opt, lr=0.05)
    go(config, tmp_path / "whole")
    expected = snapshot(tmp_path / "whole" / "out")
    original = os.replace
    for fatal in range(1, 12):  # die instead of the k-th rename: checkpoint, train log, test log, checkpoint, ...
        count = 0

        def dying(a, b):
            nonlocal count
            count += 1
            if count == fatal:
                raise KeyboardInterrupt
            original(a, b)

        folder = tmp_path / str(fatal)
        monkeypatch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            go(config, folder)
        monkeypatch.setattr(os, "replace", original)
        result = go(config, folder, resume=True)
        assert snapshot(folder / "out") == expected and len(result.history) == 4
        epochs = [r["epoch"] for r in read_metrics(folder / "out") if r["event"] == "epoch"]
        assert set(epochs) == {1, 2, 3, 4}
        assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bytes(forks, small_npz, tmp_path):
    """SIGKILL halfway through the writes; test_kills.py does it everywhere, this sees what is printed."""

    def start(name, *argv, **more):
        return forks.run(
            "--model",
            "relu_enn",
            "tanh_inn",
            "--dim",
            8,
            "--epoch",
            6,
            "--device",
            "cpu",
            "--dataset",
            "npz",
            "--dataset_path",
            small_npz,
            "--batch_size",
            16,
            "--output_path",
            tmp_path / name / "out",
            "--save_path",
            tmp_path / name / "ckpt",
            *argv,
            **more,
        )

    whole = start("whole")
    assert whole["status"] == 0
    killed = start("killed", fault="kill", at=whole["moments"] // 2)
    assert killed["status"] == -signal.SIGKILL
    epochs = [record for record in read_metrics(tmp_path / "killed" / "out") if record["event"] == "epoch"]
    assert 3 < len(epochs) < 12
    done, again = start("killed", "--resume"), start("killed", "--resume")
    assert done["status"] == again["status"] == 0
    assert snapshot(tmp_path / "killed" / "out") == snapshot(tmp_path / "whole" / "out")

    def strip(text):
        return [line.split(" s")[0] for line in text.splitlines()]

    assert strip(again["out"]) == strip(done["out"])


def test_finished_runs_are_skipped_under_resume(tmp_path):
    first = go(BASE, tmp_path)
    again = run(BASE, toy(), lambda: pytest.fail("rebuilt"), tmp_path / "out", tmp_path / "ckpt", resume=True)
    assert again == first


def test_a_finished_run_is_taken_into_another_folder_of_logs_as_often_as_one_likes(tmp_path):
    go(BASE, tmp_path)
    for _ in range(2):
        check_output([BASE], tmp_path / "other", resume=True)  # at the second time these logs are somebody's
        run(BASE, toy(), lambda: pytest.fail("rebuilt"), tmp_path / "other", tmp_path / "ckpt", resume=True)
    lines = read_metrics(tmp_path / "other")
    assert [line["config"] for line in lines if line["event"] == "run"] == [BASE.record()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [*range(1, BASE.epoch + 1)]


def test_a_finished_run_needs_no_checkpoint(tmp_path):
    """Its logs, copied without the weights, are enough; for more epochs they are not."""
    first = go(BASE, tmp_path)
    before = snapshot(tmp_path / "out")
    for file in (tmp_path / "ckpt").iterdir():
        file.unlink()
    again = run(BASE, toy(), lambda: pytest.fail("rebuilt"), tmp_path / "out", tmp_path / "ckpt", resume=True)
    assert again == first and snapshot(tmp_path / "out") == before
    assert len(go(replace(BASE, epoch=5), tmp_path, resume=True).history) == 5
    assert [r["resumed_at"] for r in read_metrics(tmp_path / "out") if r["event"] == "run"] == [0, 0]


def test_same_command_twice_gives_the_same_bytes(tmp_path):
    go(BASE, tmp_path)
    before = snapshot(tmp_path / "out")
    check_output([BASE], tmp_path / "out")
    go(BASE, tmp_path)
    assert snapshot(tmp_path / "out") == before


def test_logs_of_another_configuration_are_refused_by_name(tmp_path):
    go(BASE, tmp_path)
    other = replace(BASE, lr=0.25)
    with pytest.raises(ValueError, match="16_test_l_relu_enn_toy.json is the log of another configuration"):
        check_output([other], tmp_path / "out")
    check_output([replace(other, dim=17), replace(other, seed=1), replace(other, model="inn")], tmp_path / "out")
    (tmp_path / "out" / "metrics.jsonl").unlink()  # nobody can tell whose log it is
    with pytest.raises(ValueError, match="another configuration"):
        check_output([BASE], tmp_path / "out")


def test_keys_of_configurations():
    """A key names a checkpoint: that of an earlier version must still be found, and that of changed code must not."""
    assert BASE.key == "85d8de682e4833a0"
    assert len({BASE.key, replace(BASE, code="a").key, replace(BASE, code="b").key, replace(BASE, lr=0.25).key}) == 4


def test_two_runs_share_a_folder(tmp_path):
    go(BASE, tmp_path)
    before = (tmp_path / "out" / "16_test_l_relu_enn_toy.json").read_bytes()
    go(replace(BASE, model="inn"), tmp_path)
    assert (tmp_path / "out" / "16_test_l_relu_enn_toy.json").read_bytes() == before
    assert len({r["run"] for r in read_metrics(tmp_path / "out")}) == 2


def test_a_loss_that_is_no_number_stops_and_keeps_the_logs(tmp_path, monkeypatch):
    epoch = ReadoutTask.epoch
    monkeypatch.setattr(
        ReadoutTask,
        "epoch",
        lambda self, order: {
            **epoch(self, order),
            **(
                {"train_loss": math.nan}
                if len(
                    json.loads(
                        log_path(BASE, tmp_path / "out", "test").read_text()
                        if log_path(BASE, tmp_path / "out", "test").exists()
                        else "[]"
                    )
                )
                == 2
                else {}
            ),
        },
    )
    with pytest.raises(TrainingError, match="became nan in epoch 3; take a smaller --lr .it was 0.5"):
        go(BASE, tmp_path)
    assert len(json.loads(log_path(BASE, tmp_path / "out", "test").read_text())) == 2


def test_full_training_that_blows_up_is_noticed(tmp_path):
    with pytest.raises(TrainingError, match="smaller --lr"):
        go(replace(BASE, train="full", lr=1e18, model="l_relu_enn"), tmp_path)


@pytest.mark.parametrize("name", ["inn", "tanh_inn"])
def test_an_equilibrium_lost_to_the_rate_is_put_down_to_the_rate(tmp_path, name):
    with pytest.raises(
        TrainingError,
        match=r"the steps of epoch 1 lost the equilibrium, which the initial weights have"
        r" .*; take a smaller --lr \(it was 1e\+30\)",
    ) as caught:
        go(replace(BASE, train="full", lr=1e30, model=name), tmp_path)
    assert "sigma_a" not in str(caught.value)


def test_an_equilibrium_lost_in_a_later_epoch_is_put_down_to_the_rate_and_keeps_the_logs(tmp_path, monkeypatch):
    config = replace(BASE, train="full", lr=0.1, model="tanh_inn")
    epoch = FullTask.epoch

    def blown_up(self, order):
        if self.epochs_seen == 2:
            with torch.no_grad():
                self.model.A.mul_(1e3)
        self.epochs_seen += 1
        return epoch(self, order)

    monkeypatch.setattr(FullTask, "epoch", blown_up)
    monkeypatch.setattr(FullTask, "epochs_seen", 0, raising=False)
    with pytest.raises(TrainingError, match="the steps of epoch 3 lost the equilibrium.* logs up to epoch 2 are kept"):
        go(config, tmp_path)
    assert len(json.loads(log_path(config, tmp_path / "out", "test").read_text())) == 2


@pytest.mark.parametrize("mode", ["readout", "full"])
def test_an_equilibrium_that_the_initial_weights_lack_is_put_down_to_sigma_a(tmp_path, mode):
    with pytest.raises(ConvergenceError, match=r"take a smaller sigma_a\^2 \(--asquare, now 0.99999\)"):
        go(replace(BASE, train=mode, lr=1e-3, model="tanh_inn", asquare=0.99999, dim=256), tmp_path)


def test_damaged_checkpoint(tmp_path):
    go(BASE, tmp_path)
    path = next((tmp_path / "ckpt").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged .*: delete it"):
        go(replace(BASE), tmp_path, resume=True)


@pytest.mark.parametrize("change", [{"history": [1, 2]}, {"history": [{"epoch": 2}]}, {"history": 3}, {"history": []}])
def test_a_checkpoint_of_something_else_is_damaged(tmp_path, change):
    go(replace(BASE, epoch=1), tmp_path)
    path = next((tmp_path / "ckpt").iterdir())
    torch.save(torch.load(path) | change, path)
    with pytest.raises(ValueError, match="is damaged .*: delete it"):
        go(replace(BASE, epoch=1), tmp_path, resume=True)


def test_a_line_that_is_no_record_is_passed_over(tmp_path):
    go(replace(BASE, epoch=1), tmp_path)
    with open(tmp_path / "out" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write("5\n[]\nnull\n")
    assert all(isinstance(record, dict) for record in read_metrics(tmp_path / "out"))
    assert len(go(replace(BASE, epoch=1), tmp_path, resume=True).history) == 1


@pytest.mark.parametrize("mode", ["readout", "full"])
def test_more_epochs_go_on_from_fewer(tmp_path, mode):
    """To the bytes of a run that had them from the start."""
    config = replace(BASE, train=mode, epoch=3)
    go(config, tmp_path / "whole")
    go(replace(config, epoch=2), tmp_path)
    check_output([config], tmp_path / "out", resume=True)
    with pytest.raises(ValueError, match="another configuration"):
        check_output([config], tmp_path / "out")
    result = go(config, tmp_path, resume=True)
    assert [record["epoch"] for record in result.history] == [1, 2, 3]
    for path in (tmp_path / "whole" / "out").glob("*.json"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
    go(config, tmp_path / "anew", resume=True)
    (tmp_path / "anew" / "ckpt").rename(tmp_path / "ckpt3")
    go(replace(config, epoch=2), tmp_path / "anew")
    go(config, tmp_path / "anew", resume=True, lengthen=False)  # as a worker that may be the second to have the run
    resumed = [
        [r["resumed_at"] for r in read_metrics(folder) if r["event"] == "run"]
        for folder in (tmp_path / "out", tmp_path / "anew" / "out")
    ]
    assert resumed == [[0, 2], [0, 0, 0]]


def test_a_checkpoint_that_would_run_code_does_not(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    go(BASE, tmp_path)
    torch.save({"history": Evil(), "setup_seconds": 0.0}, next((tmp_path / "ckpt").iterdir()))
    with pytest.raises(ValueError, match="damaged"):
        go(BASE, tmp_path, resume=True)
    assert not (tmp_path / "owned").exists()


def test_a_torn_metrics_line_is_passed_over(tmp_path):
    go(BASE, tmp_path)
    with open(tmp_path / "out" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "epo')
    go(replace(BASE, seed=1), tmp_path)
    assert len(read_metrics(tmp_path / "out")) == 10


def test_of_equally_good_epochs_the_first_has_the_best_weights(tmp_path):
    files = RunFiles(Config("toy", "inn", 4, lr=1.0, epoch=3, batch_size=9, train="full"), tmp_path, tmp_path)
    for epoch, accuracy in enumerate((0.5, 0.9, 0.9), 1):
        record = {"epoch": epoch, "seconds": 0.0, "train_accuracy": 0.0, "test_accuracy": accuracy}
        files.epoch_done(record, {"model": {"epoch": torch.tensor(epoch)}})
    assert torch.load(files.best, weights_only=True)["epoch"] == 2
