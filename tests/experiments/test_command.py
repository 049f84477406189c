"""The real command line: what it prints, what it writes, and what bad data and bad values get."""

import json
import struct
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from deq_enn.data import datasets
from deq_enn.experiments import command, grid
from deq_enn.networks import build
from tests.helpers.forks import DIVERGES, at


@pytest.fixture
def call(forks, tmp_path):
    """main.py run in tmp_path, as `forks` runs it: status, out and err."""
    return lambda *argv, **more: SimpleNamespace(**forks.run(*argv, cwd=str(tmp_path), **more))


def refused(capsys, tmp_path, *argv):
    """In this process: the one line on stderr; nothing may have been written."""
    with pytest.raises(SystemExit) as stop:
        command.main([*map(str, (*argv, *at(tmp_path)))])
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "ckpt").exists()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("main.py: error: ") and captured.err.count("\n") == 1
    return captured.err


def npz(path, **changes):
    g = np.random.default_rng(0)
    arrays = dict(
        X_train=g.normal(size=(60, 5)).astype("f4"),
        y_train=np.arange(60) % 3,
        X_test=g.normal(size=(30, 5)).astype("f4"),
        y_test=np.arange(30) % 3,
    )
    arrays.update(changes)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


@pytest.fixture
def base(tmp_path):
    return "--dataset", "npz", "--dataset_path", npz(tmp_path / "good.npz"), "--batch_size", 10, "--device", "cpu"


def test_bad_values_that_need_the_data_or_the_device(base, call, capsys, tmp_path):
    too_large = refused(capsys, tmp_path, *base, "--batch_size", 61)
    assert "--batch_size 61 is larger than the training set of 60" in too_large
    assert "CUDA device" in refused(capsys, tmp_path, *base, "--device", "cuda:99")
    assert "not one that torch knows" in refused(capsys, tmp_path, *base, "--device", "abacus")
    (tmp_path / "flat.py").write_text("def flat(x):\n    return 0 * x\n")
    flat = refused(capsys, tmp_path, *base, "--model", "deq", "--activation", tmp_path / "flat.py:flat")
    assert "deq: the activation is constant at the scale of these data" in flat
    (tmp_path / "file").touch()
    for flag in ("--output_path", "--save_path"):
        done = call("--epoch", "1", flag, tmp_path / "file" / "below")
        assert done.status == 2 and "is a file, not a folder" in done.err


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(y_test=None), "y_test"),
        (dict(X_train=np.full((60, 5), np.nan)), "X_train"),
        (dict(X_test=np.ones((30, 4))), "X_test"),
        (dict(y_train=np.arange(59) % 3), "y_train"),
        (dict(X_train=np.array([{"a": 1}] * 60, dtype=object)), "X_train"),
    ],
)
def test_bad_npz(capsys, tmp_path, changes, words):
    path = npz(tmp_path / "bad.npz", **changes)
    message = refused(capsys, tmp_path, "--dataset", "npz", "--dataset_path", path)
    assert words in message and "bad.npz" in message


def test_bad_dataset_folders(capsys, tmp_path):
    assert "nowhere" in refused(capsys, tmp_path, "--dataset", "mnist", "--dataset_path", tmp_path / "nowhere")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for name in names:
        images = "images" in name
        head = struct.pack(">4I", 2051, 4, 28, 28) if images else struct.pack(">2I", 2049, 4)
        (raw / name).write_bytes(head + bytes(range(4)) * (784 if images else 1))
    whole = (raw / names[0]).read_bytes()
    (raw / names[0]).write_bytes(whole[:-1])
    assert names[0] in refused(capsys, tmp_path, "--dataset", "mnist", "--dataset_path", tmp_path)
    (raw / names[0]).write_bytes(b"\0\0\0\1" + whole[4:])
    message = refused(capsys, tmp_path, "--dataset", "mnist", "--dataset_path", tmp_path)
    assert names[0] in message and "no idx file" in message
    (tmp_path / "vgg.pth").write_bytes(b"no weights")
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    refused(capsys, tmp_path, "--dataset", "cifar10", "--dataset_path", tmp_path, "--vgg_path", tmp_path / "vgg.pth")


def test_beyond_the_assumption_warns_and_goes_on(base, call, tmp_path):
    done = call(*base, "--model", "tanh_inn", "--dim", 32, "--epoch", 1, "--asquare", 0.3)
    assert done.status == 0 and "warning: sigma_a^2 = 0.3 is not below 1/(4 L^2) = 0.25" in done.err
    assert json.loads((tmp_path / "results" / "32_test_tanh_inn_npz.json").read_text())


def test_warnings_are_one_line(base, capsys, monkeypatch, tmp_path):
    whole = datasets.load_dataset

    def warned(*args, **settings):
        warnings.warn("the features could not be kept")
        return whole(*args, **settings)

    monkeypatch.setattr(grid, "load_dataset", warned)
    command.main([*map(str, (*base, "--model", "relu_enn", "--dim", 4, "--epoch", 1, *at(tmp_path)))])
    assert capsys.readouterr().err == "main.py: warning: the features could not be kept\n"


def test_an_equilibrium_that_does_not_converge_fails_with_advice(base, call, tmp_path):
    done = call(*base, *DIVERGES)
    assert done.status == 1
    assert "relative residual" in done.err and "smaller sigma_a^2" in done.err and "Traceback" not in done.err
    assert (tmp_path / "results" / "256_test_relu_enn_npz.json").exists()  # what was computed is kept


def test_a_loss_that_explodes_fails_and_keeps_the_logs(base, call):
    done = call(*base, "--model", "relu_enn", "--dim", 16, "--epoch", 3, "--lr", 1e30, "--train", "full")
    assert done.status == 1 and "take a smaller --lr" in done.err and done.err.count("\n") == 1


def test_the_grid_its_table_and_its_figure(base, call, tmp_path):
    flags = *base, "--dim", 16, 32, "--seed", 0, 1, "--epoch", 2
    done = call(*flags)
    assert done.status == 0, done.err
    assert done.err == ""  # progress bars are silent where nobody watches
    for name in build.MODELS:
        assert f"\n{name:<13}" in done.out
        for dim in (16, 32):
            for folder in ("", "seed_1"):
                values = json.loads((tmp_path / "results" / folder / f"{dim}_test_{name}_npz.json").read_text())
                assert len(values) == 2
    assert "a1 = " in done.out and "root = 1" in done.out and "tau_0 = 1" in done.out
    png = (tmp_path / "results" / "accuracy_npz.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 2000
    # the table's numbers are the logs'
    line = next(line for line in done.out.splitlines() if line.startswith("inn  "))
    result = [tmp_path / "results" / folder / "16_test_inn_npz.json" for folder in ("", "seed_1")]
    last = [100 * json.loads(log.read_text())[-1] for log in result]
    assert f"{sum(last) / 2:.2f} ± {abs(last[0] - last[1]) / 2**0.5:.2f}" in line
    # another configuration in the same folder is refused before anything is touched
    before = {p: p.read_bytes() for p in (tmp_path / "results").rglob("*") if p.is_file()}
    clash = call(*flags, "--lr", 0.5)
    assert clash.status == 2 and "another configuration" in clash.err
    assert before == {p: p.read_bytes() for p in (tmp_path / "results").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_any_activation_from_a_users_file(base, call, tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ndef bent(x):\n    return x + 0.3 * torch.cos(x)\n")
    models = "--model", "deq", "matched_enn", "unmatched_enn", "--activation", "mine.py:bent"
    flags = *base, *models, "--dim", 16, "--epoch", 1
    done = call(*flags)
    assert done.status == 0, done.err
    assert (tmp_path / "results" / "16_test_matched_enn-bent-ck_npz.json").exists()
    deq, enn = (
        dict(pair.split(" = ") for pair in line.split("  ") if " = " in pair) for line in done.out.splitlines()[1:3]
    )
    assert all(abs(float(deq[k]) - float(enn[k])) < 1e-5 for k in ("gamma2", "alpha1", "alpha2", "alpha3"))
    assert float(enn["residual"]) < 1e-10 and "layer 2: {" in done.out
    full = call(*flags, "--train", "full", "--lr", 0.05, "--output_path", "full")
    assert full.status == 0 and "kernel = ntk" in full.out
    assert call(*flags, "--activation", "mine.py:bend").err.endswith("called bend\n")
    (tmp_path / "mine.py").write_text("import torch\ndef bent(x):\n    return x + 0.2 * torch.cos(x)\n")
    edited = call(*flags, "--resume")  # of the same name, and another activation
    assert edited.status == 2 and "another configuration" in edited.err


@pytest.mark.slow
def test_a_run_does_not_import_a_compiler(base, call):
    """torch._dynamo takes two seconds, most of a small run; here whoever imports it fails."""
    for opt, train in (("sgd", "readout"), ("adam", "full")):
        small = "--model", "inn", "--dim", 4, "--epoch", 1, "--opt", opt, "--lr", 0.1, "--train", train
        done = call(*base, *small, "--output_path", train, setup="import sys; sys.modules['torch._dynamo'] = None")
        assert (done.status, done.err) == (0, "")


@pytest.mark.slow
def test_real_mnist(call, real_data, tmp_path):
    """Two classes of the real images: the matched network follows its DEQ."""
    images = "--dataset", "mnist", "--dataset_path", real_data, "--classes", 6, 8, "--device", "cpu"
    done = call(*images, "--model", "inn", "l_relu_enn", "--dim", 128, "--epoch", 2)
    assert done.status == 0, done.err
    accuracy = [
        json.loads((tmp_path / "results" / f"128_test_{name}_mnist.json").read_text())[-1]
        for name in ("inn", "l_relu_enn")
    ]
    assert min(accuracy) > 0.95 and abs(accuracy[0] - accuracy[1]) < 0.02
    assert "11769 training and 1932 test samples, p = 784, 2 classes" in done.out


def test_a_figure_that_cannot_be_written_is_one_line_and_costs_no_result(tmp_path, capsys):
    (tmp_path / "accuracy_gmm.png" / "in the way").mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        small = "--model tanh_enn --dim 8 --epoch 1 --output_path {0} --save_path {0}/ckpt"
        command.main(small.format(tmp_path).split())
    captured = capsys.readouterr()
    assert stop.value.code == 1 and "accuracy_gmm.png" in captured.err and captured.err.count("\n") == 1
    assert (tmp_path / "8_test_tanh_enn_gmm.json").exists() and "tanh_enn" in captured.out
