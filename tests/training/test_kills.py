"""Killed, out of disk space or interrupted anywhere: the same command with --resume ends in the same files."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter

import pytest

from deq_enn.reporting.records import read_metrics
from tests.conftest import ROOT
from tests.helpers.forks import FORKED, at

JOBS = {
    "grid": ("--model", "inn", "relu_enn", "--dim", 8, "--seed", 0, 1, "--epoch", 3, "--opt", "adam", "--lr", 0.1),
    "full": (
        "--model",
        "inn",
        "l_relu_enn",
        "--dim",
        8,
        "--epoch",
        4,
        "--opt",
        "adam",
        "--lr",
        0.05,
        "--train",
        "full",
    ),
}
JOBS["pool"] = (*JOBS["grid"], "--processes", 2)  # whose workers a fault strikes as well
DIED = "main.py: failed: a worker process died (killed, or out of memory)"
TINY = "--model", "tanh_enn", "--dim", 4, "--epoch", 1
RESUME = "the same command with --resume goes on from here\n"


@pytest.fixture(scope="module")
def base(small_npz):
    return "--dataset", "npz", "--dataset_path", small_npz, "--batch_size", 16, "--device", "cpu"


def start(forks, argv, **fault):
    return forks.run(*argv, setup=FORKED, **fault)


def left(folder):
    """All that a run leaves, counted: files, accuracy logs and best weights to the byte; metrics, but for times."""
    files = {
        (str(path.relative_to(folder)), path.read_bytes() if path.name.endswith((".json", ".best.pt")) else b"")
        for path in folder.rglob("*")
        if path.is_file()
    }
    records = [
        json.dumps({k: v for k, v in r.items() if k != "seconds"})
        for r in read_metrics(folder / "out")
        if r["event"] == "epoch"
    ]
    return Counter(files) + Counter(records)


def check_left(folder, expected):
    there = left(folder)
    assert (there - expected, expected - there) == ({}, {})


@pytest.fixture(scope="module")
def whole(forks, base, tmp_path_factory):
    """What undisturbed runs leave, and their write points and seconds."""
    undisturbed = {}
    for job, argv in JOBS.items():
        folder = tmp_path_factory.mktemp(job)
        result = start(forks, [*base, *argv, *at(folder)])
        assert result["status"] == 0, result
        undisturbed[job] = left(folder), result["moments"], result["seconds"]
    assert undisturbed["pool"][0] == undisturbed["grid"][0]
    return undisturbed


@pytest.mark.parametrize(
    "job, kills",
    [
        ("full", 2),
        ("pool", 1),
        *(pytest.param(job, kills, marks=pytest.mark.slow) for job, kills in (("grid", 3), ("pool", 2))),
        *(pytest.param(job, 14, marks=pytest.mark.long) for job in JOBS),
    ],
)
def test_killed_at_random_moments_it_goes_on_to_the_same_files(forks, base, whole, tmp_path, job, kills):
    expected, points, seconds = whole[job]
    draw, done, folders = random.Random(f"{job} {kills}"), 0, 0
    while done < kills:
        folder, resume, finished = tmp_path / str(folders), (), False
        folders += 1
        while not finished:
            # at a write point, most of which are between two halves of a file, or at any time
            fault = (
                (
                    {"fault": "kill", "at": draw.randint(1, points)}
                    if draw.random() < 0.7
                    else {"kill_after": draw.uniform(0, seconds)}
                )
                if done < kills
                else {}
            )
            result = start(forks, [*base, *JOBS[job], *at(folder), *resume], **fault)
            finished = result["status"] == 0
            struck = result["status"] == -signal.SIGKILL or job == "pool" and DIED in result["err"]
            assert finished or struck, result
            done += struck
            resume = ("--resume",)
            assert not [line for line in result["err"].splitlines() if not line.startswith("main.py: ")]
        check_left(folder, expected)


@pytest.mark.parametrize(
    "job, times",
    [("grid", 3), ("full", 2), *(pytest.param(job, 30, marks=pytest.mark.long) for job in ("grid", "full"))],
)
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_nothing(forks, base, whole, tmp_path, job, times):
    expected, points, _ = whole[job]
    for k in random.Random(job).sample(range(1, points - 3), times):  # the last ones are the figure's
        folder = tmp_path / str(k)
        argv = [*base, *JOBS[job], *at(folder)]
        failed = forks.run(*argv, fault="full", at=k)
        assert failed["status"] == 1 and failed["err"].count("\n") == 1, failed
        assert failed["err"].startswith("main.py: failed: ") and "No space left on device" in failed["err"]
        assert str(folder) in failed["err"] and failed["err"].endswith(RESUME)
        assert not [*folder.rglob(".*")]
        assert forks.run(*argv, "--resume")["status"] == 0
        check_left(folder, expected)


@pytest.mark.slow
def test_a_small_disk(forks, base, whole, tmp_path):
    """A file system of 16 kB, which two checkpoints and logs fill."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        argv = [*base, *JOBS["full"], *at(place)]
        failed = forks.run(*argv)
        assert failed["status"] == 1 and failed["err"].count("\n") == 1, failed
        assert f"could not be written (No space left on device); {RESUME}" in failed["err"]
        assert not [*place.rglob(".*")]
        again = forks.run(*argv, "--resume")
        assert again["status"] == 1 and again["err"] == failed["err"]
        subprocess.run(["mount", "-o", "remount,size=10m", place], check=True)
        assert forks.run(*argv, "--resume")["status"] == 0
        check_left(place, whole["full"][0])
    finally:
        subprocess.run(["umount", place], check=True)


# ---------------------------------------------------------------------------------------------------------------
# Ctrl-C


@pytest.mark.few(1)
@pytest.mark.parametrize("job", ["grid", "full"])
@pytest.mark.slow
def test_ctrl_c_at_a_write_is_one_line_and_costs_nothing(forks, base, whole, tmp_path, job):
    expected, points, _ = whole[job]
    for k in random.Random(job).sample(range(1, points + 1), 3):
        argv = [*base, *JOBS[job], *at(tmp_path / str(k))]
        stopped = forks.run(*argv, fault="ctrl_c", at=k)
        assert (stopped["status"], stopped["err"]) == (130, f"main.py: interrupted; {RESUME}")
        assert not [*tmp_path.rglob(".*")]
        assert forks.run(*argv, "--resume")["status"] == 0
        check_left(tmp_path / str(k), expected)


CTRL_C = "import signal\ndef ctrl_c(*args, **kwargs):\n    signal.raise_signal(signal.SIGINT)\n"


@pytest.mark.parametrize(
    "setup",
    [
        "import matplotlib.figure; matplotlib.figure.Figure.savefig = ctrl_c",
        "import matplotlib.lines; matplotlib.lines.Line2D.draw = ctrl_c",
        # where Python prints an exception and goes on
        "import matplotlib.figure, weakref\ndef savefig(*args, **kwargs):\n    o = set(); w = weakref.ref(o, ctrl_c)\n"
        "    del o\nmatplotlib.figure.Figure.savefig = savefig",
    ],
    ids=["savefig", "draw", "callback"],
)
def test_ctrl_c_during_the_figure_is_one_line(forks, base, whole, tmp_path, setup):
    argv = [*base, *JOBS["grid"], *at(tmp_path)]
    stopped = forks.run(*argv, setup=CTRL_C + setup)
    assert (stopped["status"], stopped["err"]) == (130, f"main.py: interrupted; {RESUME}")
    assert "test accuracy in %" in stopped["out"]
    assert whole["grid"][0] - left(tmp_path) == {("out/accuracy_npz.png", b""): 1}


def test_a_second_ctrl_c_does_not_wait(forks, base, tmp_path):
    """The first is unwinding, which takes long."""
    setup = CTRL_C + (
        "import matplotlib.figure, time\ndef savefig(*args, **kwargs):\n    try:\n        ctrl_c()\n"
        "    finally:\n        ctrl_c(); time.sleep(1000)\nmatplotlib.figure.Figure.savefig = savefig"
    )
    stopped = forks.run(*base, *TINY, *at(tmp_path), setup=setup)
    assert (stopped["status"], stopped["err"]) == (130, f"main.py: interrupted; {RESUME}")


def test_ctrl_c_comes_too_late_when_all_is_done(forks, base, tmp_path):
    done = forks.run(
        *base, *TINY, *at(tmp_path), finalize=True, setup=CTRL_C + "import atexit; atexit.register(ctrl_c)"
    )
    assert (done["status"], done["err"]) == (0, "")


def test_a_background_process_is_not_interrupted(forks, base, tmp_path):
    done = forks.run(
        *base,
        *TINY,
        *at(tmp_path),
        fault="ctrl_c",
        at=2,
        setup="import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    )
    assert (done["status"], done["err"]) == (0, "")


@pytest.mark.parametrize("module", ["deq_enn.experiments.flags", "torch._utils"])
def test_ctrl_c_during_imports_is_one_line(tmp_path, module):
    code = (
        CTRL_C
        + f"""
import runpy, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            ctrl_c()
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_path("main.py", run_name="__main__")
"""
    )
    stopped = subprocess.run(
        [sys.executable, "-c", code, *map(str, at(tmp_path))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "RANK"},
    )
    assert (stopped.returncode, stopped.stderr) == (130, f"main.py: interrupted; {RESUME}")


def test_what_a_power_cut_has_left_is_written_again(forks, base, tmp_path):
    flags, log = (*base, *TINY, *at(tmp_path)), tmp_path / "out" / "4_test_tanh_enn_npz.json"
    assert forks.run(*flags, setup=FORKED)["status"] == 0
    expected = log.read_bytes()
    log.write_bytes(b"")
    with open(tmp_path / "out" / "metrics.jsonl", "ab") as metrics:
        metrics.write(b"\xff\x00")
    assert forks.run(*flags, "--resume", setup=FORKED)["status"] == 0 and log.read_bytes() == expected
