"""Positive concave DEQs as main.py trains them: schedule, best weights, resumption, refusals, a whole run."""

import json
from dataclasses import replace

import pytest
import torch

from deq_enn.data.datasets import Dataset
from deq_enn.experiments import command
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.training import loop
from deq_enn.training.loop import PcDEQTask, run
from deq_enn.training.optimizers import OPTIMIZERS
from deq_enn.training.run_files import Config, best_path
from deq_enn.utils.random import generator
from tests.helpers.image_files import write_svhn
from tests.networks.test_pcdeq import small_problem


def toy_digits():
    x, y = small_problem((1, 28, 28), n=80)
    return Dataset("toy", x[:60].flatten(1), y[:60], x[60:].flatten(1), y[60:], 2)


CONFIG = Config(
    dataset="toy",
    model="linear_pcdeq_1",
    dim=80,
    lr=0.01,
    epoch=4,
    batch_size=16,
    opt="adamw",
    train="pcdeq",
    activation="tanh",
    weight_decay=0.1,
    milestone=2,
    aug=True,
)


def train_toy(folder, config=CONFIG, **options):
    networks = []

    def make():
        networks.append(build_pcdeq(config.model, config.activation, (1, 28, 28), 2, config.seed))
        return networks[0]

    return run(config, toy_digits(), make, folder / "out", folder / "ckpt", **options), networks[0]


def test_training_is_adamw_with_a_milestone_and_logs_iterations(tmp_path, monkeypatch):
    rates, decays, kind = [], [], OPTIMIZERS["adamw"]
    step = kind.step

    def spy(self, *args):
        rates.append(self.param_groups[0]["lr"])
        decays.append(self.param_groups[0]["weight_decay"])
        return step(self, *args)

    monkeypatch.setattr(kind, "step", spy)
    result, network = train_toy(tmp_path)
    assert issubclass(kind, torch.optim.AdamW)
    assert rates == pytest.approx([0.01] * 8 + [0.001] * 8) and set(decays) == {0.1}  # 4 batches of 60, 4 epochs
    assert all(r["forward_iterations"] >= 1 and r["backward_iterations"] >= 1 for r in result.history)
    layer = network.equilibria[0]
    assert layer.inner.parametrizations.weight.original1.min() == 0 <= layer.inner.weight.min()


def test_the_best_weights_are_kept(tmp_path):
    config = replace(CONFIG, epoch=6, lr=0.03)
    result, network = train_toy(tmp_path, config)
    accuracies = [r["test_accuracy"] for r in result.history]
    network.load_state_dict(torch.load(best_path(config, tmp_path / "ckpt"), weights_only=True))
    data = toy_digits()
    with torch.no_grad():
        accuracy = (network.eval()(data.X_test).argmax(1) == data.y_test).double().mean().item()
    assert accuracy == pytest.approx(max(accuracies)) and accuracies[-1] <= max(accuracies)


@pytest.mark.slow
def test_more_epochs_go_on_from_fewer(tmp_path):
    """Over the milestone, with the images and the best weights of a run that had them from the start."""
    config = replace(CONFIG, epoch=3)
    whole, _ = train_toy(tmp_path / "whole", config)
    train_toy(tmp_path, replace(CONFIG, epoch=1))
    longer, _ = train_toy(tmp_path, config, resume=True)
    for record, expected in zip(longer.history, whole.history, strict=True):
        assert {k: v for k, v in record.items() if k != "seconds"} == {
            k: v for k, v in expected.items() if k != "seconds"
        }
    best, expected = (torch.load(best_path(config, at / "ckpt")) for at in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(best[key], expected[key]) for key in expected)


@pytest.mark.slow
def test_a_resumed_run_writes_the_same_numbers(tmp_path, monkeypatch):
    config = replace(CONFIG, epoch=5, milestone=3)  # killed in epoch 4: the resumed run itself must lower the rate
    whole, network = train_toy(tmp_path / "whole", config)
    plain, _ = train_toy(tmp_path / "plain", replace(config, aug=False))
    assert whole.history[0]["train_loss"] != plain.history[0]["train_loss"]
    real, calls = loop.PcDEQTask.epoch, []

    def killed(self, order):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, order)

    monkeypatch.setattr(loop.PcDEQTask, "epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "parts", config)
    monkeypatch.setattr(loop.PcDEQTask, "epoch", real)
    parts, resumed = train_toy(tmp_path / "parts", config, resume=True)

    def numbers(result):
        return [{k: v for k, v in r.items() if k != "seconds"} for r in result.history]

    assert numbers(parts) == numbers(whole)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), resumed.state_dict().values()))


# ---------------------------------------------------------------------------------------------------------------
# the command line


def refused(capsys, tmp_path, *argv):
    with pytest.raises(SystemExit) as stop:
        command.main([*map(str, argv), "--output_path", str(tmp_path / "out"), "--save_path", str(tmp_path / "ckpt")])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "out").exists()
    return captured.err


@pytest.mark.slow
def test_bad_input_gets_one_line(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    write_svhn(tmp_path / "data", n=80)
    svhn = ("--dataset", "svhn", "--dataset_path", tmp_path / "data")
    for argv, words in [
        ((*svhn, "--model", "linear_pcdeq_2", "--activation", "relu6"), "linear_pcdeq_2 has sigmoid; got 'relu6'"),
        (
            (*svhn, "--model", "multi_conv_pcdeq_1", "--activation", "sigmoid"),
            "has one of tanh, softsign, relu6; got 'sigmoid'",
        ),
        (("--dataset", "gmm", "--preset", "two_class", "--model", "linear_pcdeq_1"), "1x28x28 or 3x32x32, got 1600"),
        ((*svhn, "--model", "linear_pcdeq_1", "linear_pcdeq_2"), "trained alone"),
        ((*svhn, "--model", "linear_pcdeq_1", "--dim", "64"), "--dim: not a setting of linear_pcdeq_1"),
        ((*svhn, "--model", "inn", "--aug"), "--aug: not a setting of inn"),
        ((*svhn, "--model", "linear_pcdeq_1", "--weight_decay", "-1"), "--weight_decay"),
        ((*svhn, "--model", "linear_pcdeq_1", "--milestone", "0"), "--milestone"),
        ((*svhn, "--model", "linear_pcdeq_1", "--batch_size", "1"), "take 2 or more"),
    ]:
        assert words in refused(capsys, tmp_path, *argv)
    (tmp_path / "data" / "test_32x32.mat").write_bytes(b"")
    assert "test_32x32.mat" in refused(capsys, tmp_path, *svhn, "--model", "linear_pcdeq_1")


def test_a_whole_run_and_its_resumption(capsys, tmp_path):
    write_svhn(tmp_path, n=80)
    argv = [
        "--dataset",
        "svhn",
        "--dataset_path",
        tmp_path,
        "--model",
        "linear_pcdeq_2",
        "--epoch",
        2,
        "--batch_size",
        32,
        "--aug",
        "--milestone",
        1,
        "--weight_decay",
        0.03,
        "--output_path",
        tmp_path / "out",
        "--save_path",
        tmp_path / "ckpt",
    ]
    command.main([*map(str, argv)])
    printed = capsys.readouterr().out
    assert "weights = 253450" in printed and "linear_pcdeq_2" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "80_train_linear_pcdeq_2_svhn.json",
        "80_test_linear_pcdeq_2_svhn.json",
        "metrics.jsonl",
        "accuracy_svhn.png",
    }
    config = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])["config"]
    expected = {
        "activation": "sigmoid",
        "weight_decay": 0.03,
        "milestone": 1,
        "aug": True,
        "opt": "adamw",
        "lr": 7e-4,
        "dim": 80,
    }
    assert expected.items() <= config.items()
    log = (tmp_path / "out" / "80_test_linear_pcdeq_2_svhn.json").read_text()
    assert f"{100 * json.loads(log)[-1]:.2f} ± 0.00" in printed  # the last epoch's, whatever the best was
    command.main([*map(str, argv), "--resume"])
    assert (tmp_path / "out" / "80_test_linear_pcdeq_2_svhn.json").read_text() == log


def test_precise_statistics_are_those_of_the_weights_as_they_are(tmp_path):
    """The first normalisation has means of what the first layer gives, over batches; training does not notice."""
    plain, _ = train_toy(tmp_path / "plain")
    result, network = train_toy(tmp_path / "precise", replace(CONFIG, precise_bn=3))
    for before, after in zip(plain.history, result.history):
        assert before["train_loss"] == after["train_loss"] and before["test_loss"] != after["test_loss"]
    order = torch.randperm(60, generator=generator(CONFIG.seed, "statistics", CONFIG.epoch))
    with torch.no_grad():
        batches = [network[1](toy_digits().X_train[rows]) for rows in order.split(CONFIG.batch_size)[:3]]
    torch.testing.assert_close(network[2].running_mean, torch.stack([z.mean(0) for z in batches]).mean(0))
    torch.testing.assert_close(network[2].running_var, torch.stack([z.var(0) for z in batches]).mean(0))
    assert network[2].momentum == 0.1
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(network.eval()(toy_digits().X_test), toy_digits().y_test)
    assert loss.item() == pytest.approx(result.history[-1]["test_loss"], rel=1e-5)


def test_precise_statistics_are_resumed_to_the_same_numbers(tmp_path):
    config = replace(CONFIG, precise_bn=2)
    whole, _ = train_toy(tmp_path / "whole", config)
    train_toy(tmp_path / "parts", replace(config, epoch=2))
    parts, _ = train_toy(tmp_path / "parts", config, resume=True)
    for a, b in zip(whole.history, parts.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert config.label == "linear_pcdeq_1-precise-bn" and "precise_bn" not in CONFIG.record()


def test_a_single_sample_is_no_batch_of_its_own_where_units_are_normalised(tmp_path, monkeypatch):
    """60 samples in batches of 59: one is left, which has no variance."""
    seen, batch = [], PcDEQTask.batch
    monkeypatch.setattr(
        PcDEQTask, "batch", lambda task, index: seen.append(sorted(index.tolist())) or batch(task, index)
    )
    result, _ = train_toy(tmp_path, replace(CONFIG, epoch=1, batch_size=59, precise_bn=2))
    assert seen == [[*range(60)]] and len(result.history) == 1


def test_statistics_of_single_images_are_estimated(tmp_path):
    config = replace(CONFIG, model="single_conv_pcdeq_1", epoch=1, batch_size=1, precise_bn=3)
    _, network = train_toy(tmp_path, config)
    assert all(layer.num_batches_tracked == 3 for layer in network if isinstance(layer, torch.nn.BatchNorm2d))
