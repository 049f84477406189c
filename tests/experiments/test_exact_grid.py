"""main.py with --train kernel and --train ridge: logs, table, figure, --resume, kills, memory, and what is refused."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deq_enn.experiments import command, exact_grid, exact_report
from deq_enn.experiments.accuracy_report import entry_looks
from deq_enn.kernels.exact import explicit_kernels
from deq_enn.machines import block_rows, regression, run
from deq_enn.machines.copies import find_duplicate
from deq_enn.machines.regression import one_hot_targets
from deq_enn.machines.run import Plan, blocks_of, plan, subset
from deq_enn.networks.build import build_model
from deq_enn.networks.enn import ENN
from deq_enn.reporting.style import mean_std
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_tau0
from tests.helpers.second_device import second_device

P, N, M = 15, 420, 150


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A .npz of three classes, whose test samples are not normalised like the training ones."""
    random = np.random.default_rng(0)
    y = random.integers(3, size=N + M)
    X = (0.6 * random.normal(size=(3, P))[y] + random.normal(size=(N + M, P))).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "good.npz"
    np.savez(path, X_train=X[:N], y_train=y[:N], X_test=X[N:], y_test=y[N:])
    return path


def call(folder, data, *flags):
    command.main(
        [
            "--dataset",
            "npz",
            "--dataset_path",
            str(data),
            "--device",
            "cpu",
            "--output_path",
            str(folder / "out"),
            "--save_path",
            str(folder / "save"),
            *map(str, flags),
        ]
    )


def fails(capsys, *arguments, status=2):
    with pytest.raises(SystemExit) as stop:
        call(*arguments)
    message = capsys.readouterr().err
    assert stop.value.code == status and message.startswith("main.py: ") and "Traceback" not in message
    return message


def records(folder):
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return {line["model"]: line for line in lines if line["event"] == "epoch"}


@pytest.mark.slow
@pytest.mark.parametrize("free", [1e12, 1e6])
def test_a_kernel_machine_works_on_a_gpu_that_its_kernel_fits_into(data, tmp_path, monkeypatch, free):
    monkeypatch.setattr("deq_enn.experiments.exact_grid.available", lambda device=None: free if device else 1e12)
    flags = ["--dataset", "npz", "--dataset_path", data, "--train", "kernel", "--model", "inn", "--ridge", 0.05]
    flags += ["--train_size", 60, "--output_path", tmp_path / "out", "--save_path", tmp_path / "save"]
    with second_device(monkeypatch) as gpu:
        monkeypatch.setattr("deq_enn.utils.devices.get_device", lambda name: gpu)
        command.main([*map(str, flags)])
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    where = [line["device"] for line in lines if line["event"] == "run"]
    assert where == (["cpu"] if free < 1e9 else [str(gpu)])


def test_a_machine_from_the_command_line_is_a_dense_solve(data, tmp_path, capsys):
    """Accuracy and error of the NTK machine of a DEQ against the whole kernel and numpy's solve."""
    from deq_enn.data.datasets import load_dataset
    from deq_enn.kernels.exact import implicit_kernels

    call(tmp_path, data, "--train", "kernel", "--match", "ntk", "--model", "inn", "--ridge", 0.05, "--train_size", 300)
    record = records(tmp_path)["inn-ntk-kernel-n300"]
    d = load_dataset("npz", data)
    order = subset(N, 300, 0)
    X, y = d.X_train[order], d.y_train[order]
    deq = build_model("inn", P, 1, 3, 0.2, estimate_tau0(d.X_train))
    _, K = implicit_kernels(X, deq.activation, 0.2, tau0=deq.tau0)
    _, cross = implicit_kernels(X, deq.activation, 0.2, tau0=deq.tau0, other=d.X_test)
    Y, mean = one_hot_targets(y, 3)
    A = K.numpy() + 0.05 * K.diagonal().mean().item() * np.eye(300)
    predicted = cross.numpy() @ np.linalg.solve(A, Y.numpy()) + mean.numpy()
    assert record["test_accuracy"] == (predicted.argmax(1) == d.y_test.numpy()).mean()
    assert record["test_mse"] == pytest.approx(((np.eye(3)[d.y_test] - predicted) ** 2).mean(), rel=1e-5)
    fitted = K.numpy() @ np.linalg.solve(A, Y.numpy()) + mean.numpy()
    assert record["train_accuracy"] == (fitted.argmax(1) == y.numpy()).mean()
    assert record["noise"] == pytest.approx(0.05 * K.diagonal().mean().item()) and record["ridge_table"] == []
    result = json.loads((tmp_path / "out" / "inf_predicted_inn-ntk-kernel-n300_npz.json").read_text())
    assert result == {"predicted": predicted.argmax(1).tolist(), "labels": d.y_test.tolist()}


@pytest.mark.slow
def test_the_grid_its_table_figure_resume_and_refusal(data, tmp_path, capsys):
    flags = (
        "--train",
        "kernel",
        "--model",
        "deq",
        "matched_enn",
        "unmatched_enn",
        "--activation",
        "relu",
        "--depth",
        1,
        3,
        "--train_size",
        100,
        200,
        "--seed",
        0,
        1,
    )
    call(tmp_path, data, *flags)
    printed = capsys.readouterr().out
    assert "CK at infinite width" in printed and "unmatched_enn 3" in printed and "n = 200" in printed
    assert re.search(r"unmatched_enn 1 +[+-]\d\.\d\d  \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]", printed)
    for split in ("train", "test", "predicted"):
        for folder in ("", "seed_1"):
            for name in ("deq-relu", "matched_enn-relu", "unmatched_enn-relu-depth1", "unmatched_enn-relu-depth3"):
                assert (tmp_path / "out" / folder / f"inf_{split}_{name}-ck-kernel-n100_npz.json").exists()
    assert (tmp_path / "out" / "kernel-ck_npz.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list((tmp_path / "save").glob("*.kernel*"))  # the kernels' own files are gone
    mean, _ = mean_std(
        [
            100 * json.loads((tmp_path / "out" / f / "inf_test_deq-relu-ck-kernel-n200_npz.json").read_text())[0]
            for f in ("", "seed_1")
        ]
    )
    line = next(line for line in printed.splitlines() if line.startswith("deq   ") and "±" in line)
    assert f"{mean:.2f} ± " in line
    single, other = (
        json.loads((tmp_path / "out" / f / "inf_predicted_deq-relu-ck-kernel-n100_npz.json").read_text())
        for f in ("", "seed_1")
    )
    assert single["predicted"] != other["predicted"]  # each seed has a subset of its own
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    call(tmp_path, data, *flags, "--resume")
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before
    assert capsys.readouterr().out == printed
    assert "another configuration" in fails(capsys, tmp_path, data, *flags, "--asquare", 0.1)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_subsets_are_nested_and_differ_by_seed():
    assert torch.equal(subset(100, 30, 5), subset(100, 60, 5)[:30]) and len(subset(100, 100, 5).unique()) == 100
    assert not torch.equal(subset(100, 30, 5), subset(100, 30, 6))


@pytest.mark.slow
def test_blocks_are_those_of_the_network_with_its_scales(data):
    """The kernel of an unmatched network, whose input is scaled, against features of a wide one."""
    X = torch.randn(6, P, generator=torch.Generator().manual_seed(0)) / P**0.5
    for name in ("relu_enn", "l_relu_enn", "inn"):
        model = build_model(name, P, 3000, 3, 0.2)
        blocks = blocks_of(model, X)
        with torch.no_grad():
            F = model.features(X).double()
        ck = blocks.tile(slice(None), slice(None), "ck")
        assert torch.allclose(F @ F.T, ck, atol=0.1 * ck.max().item()), name
        cross = blocks_of(model, X[:4], X[4:])
        assert torch.allclose(
            cross.tile(slice(None), slice(None), "ntk"),
            blocks.tile(slice(None), slice(None), "ntk")[4:, :4],
            rtol=1e-10,
        )


def test_the_number_of_samples_that_choose_the_ridge_is_a_setting_of_the_run(data, tmp_path):
    for size in (60, 400, 10**6):  # a million is all
        call(tmp_path / str(size), data, "--train", "kernel", "--model", "inn", "--ridge_size", size)

    def log_of(size):
        return [*map(json.loads, (tmp_path / str(size) / "out" / "metrics.jsonl").read_text().splitlines())]

    logs = [log_of(size) for size in (60, 400, 10**6)]
    assert [log[0]["config"]["ridge_size"] for log in logs] == [60, 400, 10**6]
    assert len({log[0]["run"] for log in logs}) == 3
    few, many, all_of_them = ({row["ridge"]: row["mse"] for row in log[1]["ridge_table"]} for log in logs)
    both = few.keys() & many.keys()
    assert both and all(few[ridge] != many[ridge] for ridge in both)
    call(tmp_path / "420", data, "--train", "kernel", "--model", "inn", "--ridge_size", N)
    assert {row["ridge"]: row["mse"] for row in log_of(N)[1]["ridge_table"]} == all_of_them


def test_a_third_of_many_samples_choose_the_ridge(data, tmp_path, monkeypatch):
    flags = "--train", "kernel", "--model", "inn"
    monkeypatch.setattr(regression, "CHOICE", 100)
    for number, (more, size) in enumerate(
        [
            ([], 140),
            (["--ridge_size", 100], None),  # has the key that runs had when so many were the default
            (["--ridge_size", 400], 400),
            (["--train_size", 200], None),
            (["--ridge", 0.1], None),
        ]
    ):
        call(tmp_path / str(number), data, *flags, *more)
        start, end = map(json.loads, (tmp_path / str(number) / "out" / "metrics.jsonl").read_text().splitlines())
        assert start["config"].get("ridge_size") == size, more
        if number < 3:
            asked = size or 100
            call(tmp_path / f"{number} asked", data, *flags, "--ridge_size", asked)
            rows = (tmp_path / f"{number} asked" / "out" / "metrics.jsonl").read_text().splitlines()
            assert json.loads(rows[-1])["ridge_table"] == end["ridge_table"]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_finished_tiles(data, tmp_path, capsys, monkeypatch):
    flags = ("--train", "kernel", "--model", "inn", "--ridge", "auto")
    monkeypatch.setattr(run, "HEIGHT", 120)
    call(tmp_path / "whole", data, *flags)
    write, written = block_rows.FileRows.write, []

    def killed(self, i, values):
        if i == 2:
            raise KeyboardInterrupt
        write(self, i, values)

    with monkeypatch.context() as patch:
        patch.setattr(block_rows.FileRows, "write", killed)
        assert "--resume" in fails(capsys, tmp_path / "killed", data, *flags, status=130)
    monkeypatch.setattr(
        block_rows.FileRows, "write", lambda self, i, values: (written.append(i), write(self, i, values))
    )
    call(tmp_path / "killed", data, *flags, "--resume")
    assert written == [2, 3]
    logs = [{p.name: p.read_bytes() for p in (tmp_path / f / "out").glob("*.json")} for f in ("whole", "killed")]
    assert logs[0] == logs[1] and len(logs[0]) == 3
    assert [p.suffix for p in (tmp_path / "killed" / "save").iterdir()] == [".pt"]
    # without --resume what a killed run left is removed, not trusted
    with monkeypatch.context() as patch:
        patch.setattr(block_rows.FileRows, "write", killed)
        fails(capsys, tmp_path / "killed", data, *flags, "--train_size", 400, status=130)
    written.clear()
    call(tmp_path / "killed", data, *flags, "--train_size", 400)
    assert written == [0, 1, 2, 3]


@pytest.mark.parametrize("lost", ["weights", "weights and predictions"])
def test_a_finished_run_is_taken_from_its_logs(data, tmp_path, monkeypatch, lost):
    flags = "--train", "ridge", "--model", "inn", "--dim", 16, "--resume"
    call(tmp_path, data, *flags)
    kept = {file: file.read_bytes() for file in (tmp_path / "out").glob("*.json")}
    shutil.rmtree(tmp_path / "save")
    if "predictions" in lost:
        (tmp_path / "out" / "16_predicted_inn-ridge_npz.json").unlink()
    else:
        monkeypatch.delattr(exact_grid.RidgeGrid, "solve")
    for _ in range(2):
        call(tmp_path, data, *flags)
        assert {file: file.read_bytes() for file in (tmp_path / "out").glob("*.json")} == kept


def test_a_disk_that_fills_up_is_one_line_and_loses_nothing(data, tmp_path, capsys, monkeypatch):
    flags = ("--train", "kernel", "--model", "inn", "--ridge", 0.1)
    monkeypatch.setattr(run, "HEIGHT", 120)
    real, calls = os.pwrite, []

    def full(*arguments):
        calls.append(memoryview(arguments[1]).nbytes > 100)  # not the lock of the folder
        if sum(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(block_rows.os, "pwrite", full)
        message = fails(capsys, tmp_path, data, *flags, status=1)
    assert re.search(r"failed: \S+\.kernel could not be written \(No space left on device\); .*--resume", message)
    finished = json.loads(next((tmp_path / "save").glob("*.json")).read_text())["finished_rows"]
    assert finished == [0, 1]
    call(tmp_path, data, *flags, "--resume")
    assert "inn-ck-kernel" in records(tmp_path)


@pytest.mark.slow
def test_a_kernel_on_disk_gives_what_memory_gives(data, tmp_path, monkeypatch):
    flags = ("--train", "kernel", "--model", "tanh_inn", "--ridge", 0.01)
    monkeypatch.setattr(run, "HEIGHT", 120)
    call(tmp_path / "memory", data, *flags)
    monkeypatch.setattr(exact_grid, "plan", lambda *_: Plan(False, 120, 0))
    call(tmp_path / "disk", data, *flags)
    single, other = (records(tmp_path / folder)["tanh_inn-ck-kernel"] for folder in ("memory", "disk"))
    assert single["in_memory"] and not other["in_memory"]
    for name in ("train_accuracy", "scale2", "log_evidence", *(name for name in single if name.startswith("test_"))):
        assert single[name] == other[name], name
    assert [p.suffix for p in (tmp_path / "disk" / "save").iterdir()] == [".pt"]


def test_plans_fit_and_what_does_not_is_refused_with_both_sizes():
    roomy, tight = plan(60_000, 10_000, 784, 20e9), plan(60_000, 10_000, 784, 5e9)
    assert roomy.in_memory and 7.2e9 < roomy.needed < 12e9
    assert not tight.in_memory and tight.needed <= 5e9 and tight.height >= 360
    assert plan(60_000, 10_000, 784, 9.5e9, size=2).in_memory
    with pytest.raises(
        ValueError,
        match=r"60000 samples takes 11.\d GB of memory, or 4.\d* GB with its kernel of 7.33 "
        r"GB on disk, and --memory allows 2 GB: allow more, or .* --train_size",
    ):
        plan(60_000, 10_000, 784, 2e9)


def test_bad_input_is_one_line_and_nothing_is_written(data, tmp_path, capsys):
    def refused(*flags):
        message = fails(capsys, tmp_path, data, *flags)
        assert not (tmp_path / "out").exists()
        return message

    kernel = ("--train", "kernel", "--model", "inn")
    assert "--memory allows 0.1 GB" in refused(*kernel, "--memory", "100M")
    assert "must be auto, or 0 or positive" in refused(*kernel, "--ridge", "-1")
    assert "auto stands alone" in refused(*kernel, "--ridge", "auto", 1)
    assert "a single --ridge is not chosen" in refused(*kernel, "--ridge", 1, "--ridge_size", 9)
    assert "--ridge_size: a ridge is chosen on 5 training samples or more" in refused(*kernel, "--ridge_size", 4)
    assert "--ridge_size" in refused("--train", "ridge", "--ridge_size", 9)
    assert "--train_size 421 is larger than the training set of 420" in refused(*kernel, "--train_size", 421)
    assert "at least 5 training samples" in refused(*kernel, "--train_size", 4)
    assert "--dim: not a setting of --train kernel" in refused(*kernel, "--dim", 4)
    assert "--memory: not a setting of --train ridge" in refused("--train", "ridge", "--memory", "1G")
    assert "--depth: only relu_enn" in refused(*kernel, "--depth", 2)
    assert "must be a number with M, G or T" in refused(*kernel, "--memory", "8")
    assert "a value is given twice" in refused(*kernel, "--ridge", 1, 1)


def test_duplicates_with_ridge_zero_are_named(tmp_path, capsys):
    random = np.random.default_rng(1)
    X, y = random.normal(size=(40, P)).astype(np.float32), random.integers(2, size=40)
    X[31], y[:2] = X[12], (0, 1)
    np.savez(tmp_path / "twice.npz", X_train=X, y_train=y, X_test=X[:10], y_test=y[:10])
    flags = ("--train", "kernel", "--model", "inn", "--ridge")
    message = fails(capsys, tmp_path, tmp_path / "twice.npz", *flags, 0)
    assert re.search(r"training samples \d+ and \d+ are the same: with --ridge 0", message)
    call(tmp_path, tmp_path / "twice.npz", *flags, 1e-3)
    assert find_duplicate(torch.from_numpy(X)) == (12, 31) and find_duplicate(torch.from_numpy(X[:31])) is None


@pytest.mark.slow
def test_exact_readouts_run_into_the_kernels_line(data, tmp_path, capsys):
    common = ("--model", "inn", "relu_enn", "--train_size", 300)
    call(tmp_path, data, "--train", "kernel", "--model", "inn", "--train_size", 100)  # not the limit of these
    call(tmp_path, data, "--train", "kernel", *common)
    machines = records(tmp_path)
    call(tmp_path, data, "--train", "ridge", *common, "--dim", 4, 600, "--seed", 0, 1)
    printed = capsys.readouterr().out
    assert "exact readouts" in printed and "m = 600, n = 300" in printed
    wide, other, narrow = (
        json.loads((tmp_path / "out" / f"{name}_test_inn-ridge-n300_npz.json").read_text())[0]
        for name in ("600", "seed_1/600", "4")
    )
    limit = machines["inn-ck-kernel-n300"]["test_accuracy"]
    assert abs((wide + other) / 2 - limit) < 0.05 < limit - narrow
    lines = []
    real = exact_report.limits
    exact_report.limits = lambda *arguments: lines.append(real(*arguments)) or lines[-1]
    try:
        call(tmp_path, data, "--train", "ridge", *common, "--dim", 4, 600, "--seed", 0, 1, "--resume")
    finally:
        exact_report.limits = real
    assert lines == [{"inn": limit, "relu_enn": machines["relu_enn-ck-kernel-n300"]["test_accuracy"]}]
    assert (tmp_path / "out" / "ridge-ck_npz.png").exists()


@pytest.mark.slow
def test_the_table_of_a_folder_is_markdown_with_paired_intervals(data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(command.__file__).parent / "scripts")
    from scripts import kernel_table

    flags = ("--train", "kernel", "--model", "inn", "relu_enn", "--ridge", 0.1, "--train_size")
    for sizes in ((60, 200), (100,)):
        call(tmp_path, data, *flags, *sizes)
    lines = "\n".join(kernel_table.table(tmp_path / "out")).splitlines()
    assert lines[1] == "**CK, networks of the paper, npz**"
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[3:]}
    result = records(tmp_path)
    for name in ("inn", "relu_enn"):  # of the largest size alone
        record = result[f"{name}-ck-kernel-n200"]
        assert cells[name][:3] == ["200", "0.1", f"{100 * record['test_accuracy']:.2f}"]
    first, second = (result[f"{name}-ck-kernel-n200"]["test_accuracy"] for name in ("inn", "relu_enn"))
    difference = 100 * (first - second)
    assert cells["relu_enn"][3].startswith(f"{difference:+.2f} [") and cells["inn"][3] == ""
    with pytest.raises(ValueError, match="no kernel machines; make them with main.py --train kernel"):
        list(kernel_table.table(tmp_path))


def test_the_table_has_ck_before_ntk_and_networks_in_order():
    from scripts import kernel_table

    root = Path(kernel_table.__file__).resolve().parents[1]
    places = list(kernel_table.machines(root / "docs" / "logs" / "kernels-mnist-relu"))
    assert [kernel for kernel, _, _ in places] == ["ck"] * 5 + ["ntk"] * 5
    networks = ["deq", "matched_enn", "unmatched_enn 1", "unmatched_enn 2", "unmatched_enn 3"]
    assert [network for _, _, network in places] == 2 * networks


def test_no_two_networks_of_a_figure_look_alike():
    """Also as points, which have no lines: conv_deq, its match and three depths had too few looks."""
    arguments = SimpleNamespace(activation="relu", match="ck")
    for family in (("conv_deq", "matched_conv_enn", "plain_conv"), ("deq", "matched_enn", "unmatched_enn")):
        names = [*family[:2], *(f"{family[2]} {depth}" for depth in (1, 2, 3))]
        looks = entry_looks(arguments, names).values()
        assert len({(look["color"], exact_report.MARKERS[look["linestyle"]]) for look in looks}) == 5
        plain = [look["color"] for look in looks][2:]
        assert len({*plain, next(iter(looks))["color"]}) == 4


def test_a_plan_has_room_for_the_samples_that_choose_the_ridge():
    given = 60_000, 10_000, 784, 1e12
    assert plan(*given) == plan(*given, choice=20_000)
    passing = 4 * 1024 * 60_000 + 8 * 1024 * 8192  # predicting a batch, which takes more than 8,000 samples do
    assert plan(*given).needed - plan(*given, choice=8_000).needed == pytest.approx(4 * 20_000**2 - passing)


def test_kernels_between_two_sets_have_both_at_the_scale_of_the_input():
    draw = torch.Generator().manual_seed(0)
    X, other = torch.randn(9, 5, generator=draw).double(), torch.randn(4, 5, generator=draw).double()
    network = ENN([ACTIVATIONS["tanh"]], 5, 8, 3, input_scale=0.5)
    whole = explicit_kernels(0.5 * torch.cat([X, other]), network.layers)
    for blocks, both in zip(blocks_of(network, X, other).both(), whole):
        torch.testing.assert_close(blocks, both[9:, :9])
