"""Convolutional networks through main.py: what is trained is what the modules say, and bad flags get one line."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from deq_enn.data.datasets import load_dataset
from deq_enn.experiments import command
from deq_enn.experiments.convolutions import Convolutions, as_images
from deq_enn.experiments.exact_grid import KernelGrid
from deq_enn.experiments.flags import parse_arguments
from deq_enn.kernels.conv import conv_kernels
from deq_enn.matching import convolutional
from deq_enn.networks.conv_enn import build_conv
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_image_tau0
from deq_enn.utils.team import Team
from tests.experiments.test_command import refused
from tests.helpers.forks import at

CONV = "--activation", "relu", "--model", "conv_deq", "matched_conv_enn", "plain_conv"


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """The distance of a match is measured on few."""
    monkeypatch.setattr(convolutional, "SAMPLE", 5)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two classes of images (6, 5) of two channels: a bar across, or a bar down, at any place, with noise."""
    g, sets = np.random.default_rng(0), {}
    for part, n in (("train", 90), ("test", 40)):
        y = np.arange(n) % 2
        X = 0.3 * g.normal(size=(n, 2, 6, 5))
        for x, label in zip(X, y):
            place = g.integers(5)
            x[(slice(None), place) if label else (slice(None), slice(None), place)] += 1
        sets |= {f"X_{part}": X.astype("f4"), f"y_{part}": y}
    path = tmp_path_factory.mktemp("conv") / "bars.npz"
    np.savez(path, **sets)
    return path


def base(images):
    return "--dataset", "npz", "--dataset_path", images, "--device", "cpu"


def call(folder, *argv):
    command.main([*map(str, (*argv, *at(folder)))])


def files(folder):
    return {p.name: p.read_bytes() for p in (folder / "out").rglob("*") if p.is_file()}


def records(folder, event="epoch"):
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return {(line["model"], line["dim"]): line for line in lines if line["event"] == event}


@pytest.mark.slow
def test_the_readout_of_each_network_beside_a_dense_one(images, tmp_path, capsys):
    flags = (*base(images), *CONV, "deq", "--dim", 2, 4, "--depth", 1, 3, "--epoch", 2, "--batch_size", 10)
    call(tmp_path, *flags)
    printed = capsys.readouterr().out
    assert "plain_conv 3" in printed and "tau_0 of the images = 0.88" in printed and "dim 4" in printed
    logs = files(tmp_path)
    for name in ("conv_deq-relu", "matched_conv_enn-relu-ck", "plain_conv-relu-depth1", "plain_conv-relu-depth3"):
        assert {f"{dim}_{split}_{name}_npz.json" for dim in (2, 4) for split in ("train", "test")} <= logs.keys()
    assert logs["accuracy_npz.png"][:4] == b"\x89PNG"
    runs = records(tmp_path, "run")
    assert runs["conv_deq-relu", 4]["config"]["padding"] == "zero"
    assert runs["conv_deq-relu", 4]["theory"]["image_shape"] == [2, 6, 5]
    assert 0 < runs["matched_conv_enn-relu-ck", 4]["theory"]["distance"] < 0.1
    assert records(tmp_path)["conv_deq-relu", 4]["train_loss"] < 0.69
    call(tmp_path, *flags, "--resume")
    assert capsys.readouterr().out == printed and files(tmp_path) == logs


@pytest.mark.slow
def test_every_weight_is_trained_and_a_killed_run_goes_on(images, tmp_path, monkeypatch):
    flags = (*base(images), *CONV, "--dim", 4, "--padding", "circular", "--train", "full", "--lr", 0.5)
    flags += ("--batch_size", 15, "--match", "ck")
    call(tmp_path / "whole", *flags, "--epoch", 3)
    call(tmp_path / "parts", *flags, "--epoch", 2)
    call(tmp_path / "parts", *flags, "--epoch", 3, "--resume")
    whole, parts = (
        {name: log for name, log in files(tmp_path / folder).items() if name.endswith("npz.json")}
        for folder in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 6 and "4_test_conv_deq-relu-circular_npz.json" in whole
    epoch = records(tmp_path / "whole")["conv_deq-relu-circular", 4]
    assert epoch["train_loss"] < 0.69 and epoch["forward_iterations"] > 2 and epoch["backward_iterations"] > 2


@pytest.mark.slow
def test_the_best_readout_of_a_finite_network(images, tmp_path):
    flags = (*base(images), *CONV[:4], "--dim", 3, "--train", "ridge", "--ridge", 0.1, "--kernel_size", 5, "--pool")
    call(tmp_path, *flags)
    data = load_dataset("npz", images)
    own = as_images(data)
    tau0 = estimate_image_tau0(own.X_train, 5)
    network = build_conv("conv_deq", (2, 6, 5), 3, 2, 0.2, "relu", tau0, kernel_size=5, readout="pool")
    with torch.no_grad():
        F, F_test = network.features(own.X_train).double(), network.features(own.X_test).double()
    Y = torch.nn.functional.one_hot(own.y_train, 2).double()
    A = F.T @ F + 0.1 * F.square().sum(1).mean() * torch.eye(3)
    predicted = F_test @ torch.linalg.solve(A, F.T @ (Y - Y.mean(0))) + Y.mean(0)
    record = records(tmp_path)["conv_deq-relu-k5-pool-ridge", 3]
    assert record["test_accuracy"] == (predicted.argmax(1) == own.y_test).double().mean()


def test_at_infinite_width_it_is_a_dense_solve_and_a_day_is_said(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deq_enn.kernels.images.foretold.DAY", 1e-9)
    flags = (*base(images), *CONV, "--train", "kernel", "--match", "ntk", "--ridge", 0.05)
    call(tmp_path, *(flag for flag in flags if flag != "matched_conv_enn"))
    told = capsys.readouterr().err
    assert all(f"this kernel of {size} x 90 images will take about" in told for size in (90, 40))
    own = as_images(load_dataset("npz", images))
    _, K = conv_kernels(own.X_train, ACTIVATIONS["relu"], 0.2)
    _, cross = conv_kernels(own.X_train, ACTIVATIONS["relu"], 0.2, other=own.X_test)
    Y = torch.nn.functional.one_hot(own.y_train, 2).double()
    A = K + 0.05 * K.diagonal().mean() * torch.eye(len(K))
    predicted = cross @ torch.linalg.solve(A, Y - Y.mean(0)) + Y.mean(0)
    record = records(tmp_path)["conv_deq-relu-ntk-kernel", "inf"]
    assert record["test_accuracy"] == (predicted.argmax(1) == own.y_test).double().mean()
    error = (torch.nn.functional.one_hot(own.y_test, 2) - predicted).square().mean().item()
    assert record["test_mse"] == pytest.approx(error, rel=1e-5)
    plain = records(tmp_path)["plain_conv-relu-ntk-kernel", "inf"]
    assert plain["test_mse"] != pytest.approx(error, rel=1e-3)


def test_a_kernel_of_images_works_on_a_gpu_that_it_fits_into(images, tmp_path, monkeypatch):
    _, arguments = parse_arguments([*map(str, (*base(images), *CONV, "--train", "kernel", *at(tmp_path)))])
    grid = KernelGrid(arguments)
    grid.load(torch.device("cpu"))
    gpu, config = torch.device("cuda"), grid.configs()[0]
    for free in (1e12, 1e6):
        monkeypatch.setattr("deq_enn.experiments.exact_grid.available", lambda device=None: free if device else 1e12)
        assert grid.works_on(config, gpu, Team()) == (gpu if free > 1e9 else torch.device("cpu"))


def test_images_take_the_place_of_rows_or_stand_beside_them(images):
    rows = load_dataset("npz", images)
    before = rows.X_train.clone()
    beside = as_images(rows)
    assert torch.equal(rows.X_train, before) and beside.X_train.square().mean().item() == pytest.approx(1, rel=1e-5)
    file = np.load(images)["X_train"]
    mean = rows.mean.view(2, 6, 5)
    expected = (torch.from_numpy(file) - mean) / rows.scale * 60**0.5
    torch.testing.assert_close(beside.X_train, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(as_images(rows, keep=False).X_train, beside.X_train) and not torch.equal(rows.X_train, before)


@pytest.mark.parametrize("readout", ["flatten", "pool"])
@pytest.mark.slow
def test_memory_counts_the_weights_that_there_are(images, readout, monkeypatch):
    monkeypatch.setattr(convolutional, "FEWEST", 1)
    monkeypatch.setattr(convolutional, "SAMPLE", 2)
    arguments = Namespace(
        model=["conv_deq", "matched_conv_enn", "plain_conv"], kernel_size=3, padding="zero", pool=readout == "pool"
    )
    vars(arguments).update(match="ck", family="auto", asquare=0.2)
    own = Convolutions(arguments, "relu", load_dataset("npz", images), keep=True)
    for model in arguments.model:
        config = Namespace(model=model, dim=7, depth=0, train="full", opt="sgd", batch_size=10)
        weights = sum(p.numel() for p in own.network(model, 7, 0).parameters())
        assert own.memory(config)["weights"] == 4 * weights
        assert own.cost(Namespace(**vars(config) | {"epoch": 1})) > 0


@pytest.mark.parametrize(
    "argv, words",
    [
        (CONV, "--dataset: a convolutional network needs images"),
        ((*CONV, "--dataset", "cifar10"), "cifar10_images, svhn, npz; got cifar10"),
        (("--model", "conv_deq", "--dataset", "mnist"), "--activation: conv_deq needs one"),
        (("--model", "inn", "--pool"), "--pool: only conv_deq, matched_conv_enn, plain_conv have one"),
        (("--model", "inn", "--kernel_size", 3), "--kernel_size: only conv_deq"),
        ((*CONV, "--kernel_size", 4), "must be an odd whole number such as 3, got '4'"),
        ((*CONV, "--padding", "same"), "--padding: invalid choice: 'same'"),
        ((*CONV[:-1], "--dataset", "mnist", "--depth", 2), "--depth: only relu_enn"),
        ((*CONV, "linear_pcdeq_1", "--dataset", "mnist"), "a positive concave DEQ is trained alone"),
    ],
)
def test_bad_flags(capsys, tmp_path, argv, words):
    assert words in refused(capsys, tmp_path, *argv)


def test_bad_data(images, capsys, tmp_path):
    arrays = dict(np.load(images))
    np.savez(tmp_path / "rows.npz", **{k: v.reshape(len(v), -1) if k[0] == "X" else v for k, v in arrays.items()})
    rows = "--dataset", "npz", "--dataset_path", tmp_path / "rows.npz", "--batch_size", 10
    assert "rows of npz are no images, which conv_deq needs" in refused(capsys, tmp_path, *CONV, *rows)
    circular = "--padding", "circular", "--kernel_size", 7, "--batch_size", 10
    message = refused(capsys, tmp_path, *CONV, *base(images), *circular)
    assert "kernel_size = 7 is larger than the images of 6 x 5 pixels" in message
