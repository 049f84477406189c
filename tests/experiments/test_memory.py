"""What a run takes is known before it is made, and what there is is read from the machine and its control groups."""

import re

import pytest
import torch

from deq_enn.experiments import command, grid as grid_module
from deq_enn.experiments.flags import parse_arguments
from deq_enn.names import GENERAL, MODELS
from deq_enn.utils import devices


def test_a_control_group_bounds_what_is_there(tmp_path):
    def write(folder, limit, use, statistics, names):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in zip(names.split(), (limit, use, statistics)):
            (tmp_path / folder / f"memory.{name}").write_text(text)

    first, second = "limit_in_bytes usage_in_bytes stat", "max current stat"  # versions of control groups
    membership = tmp_path / "cgroup"
    membership.write_text("12:cpu,cpuacct:/x\n4:memory:/job/step\n0::/user/app\n")
    write("memory/job/step", "1000", "400", "cache 1\ntotal_inactive_file 50\n", first)
    write("memory/job", "700", "500", "total_inactive_file 0\n", first)
    write("user/app", "max", "3", "inactive_file 1\n", second)
    write("user", "900", "100", "inactive_file 10\n", second)
    assert sorted(devices._control_groups(tmp_path, membership)) == [200, 650, 810]
    assert devices._control_groups(tmp_path, tmp_path / "none") == []


def test_available_is_about_what_the_machine_has(monkeypatch):
    result = devices.available()
    assert 10**7 < result < 10**14
    monkeypatch.setattr(devices, "_control_groups", lambda: [12345])
    assert devices.available("cpu") == 12345


def test_sizes_are_shown_for_a_reader():
    shown = [devices.shown(size) for size in (12, 1500, 999.7e6, 4.001e14, 5e20)]
    assert shown == ["12 B", "1.5 kB", "1 GB", "400 TB", "500000 PB"]


@pytest.mark.parametrize("train, opt", [("readout", "sgd"), ("full", "adam"), ("full", "sgd")])
@pytest.mark.few(1)
def test_what_is_counted_are_the_tensors_that_there_are(train, opt):
    """Against the parameters, their gradients and the optimizer's state of networks that were built and trained."""
    arguments = parse_arguments(
        ["--model", *MODELS, *GENERAL, "--activation", "swish", "--train", train, "--opt", opt, "--dim", "24"]
    )[1]
    made = grid_module.GRIDS[train](arguments)
    made.load(torch.device("cpu"))
    for config in made.configs():
        parts = made.memory(config)
        model = made.network(config.model, config.dim, 0)
        held = sum(p.nbytes for p in model.parameters())
        assert parts["weights"] == held
        if train == "readout":
            assert parts["features"] == model.features(torch.cat([made.data.X_train, made.data.X_test])).nbytes
        else:
            optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[opt](model.parameters(), lr=0.1)
            model(made.data.X_train[:8]).sum().backward()
            optimizer.step()
            assert parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())
            state = [value for values in optimizer.state.values() for value in values.values()]
            assert parts["optimizer"] == sum(value.nbytes for value in state if torch.is_tensor(value) and value.ndim)


@pytest.mark.parametrize(
    "flags",
    [
        ("--dim", "10000000"),
        ("--dim", "10000000", "--train", "full", "--model", "tanh_inn"),
        ("--dim", "8", "3000000", "--model", "relu_enn"),
        ("--dim", "10000000", "--model", "matched_enn", "--activation", "tanh"),
    ],
)
def test_a_width_that_cannot_fit_is_refused_before_anything_is_written(capsys, tmp_path, flags):
    with pytest.raises(SystemExit) as stop:
        command.main([*flags, "--device", "cpu", "--output_path", str(tmp_path / "out"), "--save_path", str(tmp_path)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1 and not [*tmp_path.iterdir()]
    assert re.search(
        r"--dim \d+000000: \w+ takes at least [\d.]+ [GTP]B of memory \(weights [\d.]+ [GTP]B, .*\), and "
        r"[\d.]+ GB are free: take a smaller width",
        said.err,
    )


@pytest.mark.slow
def test_a_finished_run_needs_no_memory(capsys, tmp_path, monkeypatch):
    argv = [
        "--model",
        "tanh_enn",
        "--dim",
        "8",
        "--epoch",
        "1",
        "--device",
        "cpu",
        "--output_path",
        str(tmp_path),
        "--save_path",
        str(tmp_path),
    ]
    command.main(argv)
    monkeypatch.setattr(grid_module, "available", lambda device: 1000)
    command.main([*argv, "--resume"])
    with pytest.raises(SystemExit):
        command.main(argv)
    assert "and 1 kB are free" in capsys.readouterr().err


def test_runs_that_do_not_fit_at_the_same_time_are_refused(capsys, tmp_path, monkeypatch):
    argv = [*"--model tanh_enn relu_enn --dim 8 --epoch 1 --device cpu --output_path".split(), str(tmp_path / "out")]
    monkeypatch.setattr(grid_module, "available", lambda device: 600_000)  # each takes 327 kB
    with pytest.raises(SystemExit):
        command.main([*argv, "--save_path", str(tmp_path), "--processes", "2"])
    assert "--processes 2: the largest runs take at least 653 kB of memory at the same time" in capsys.readouterr().err
    command.main([*argv, "--save_path", str(tmp_path)])
