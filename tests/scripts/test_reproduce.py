"""The driver of every stage: with fake stages, and once with real ones from end to end."""

import json
import os
import signal
import sys
from pathlib import Path
from subprocess import PIPE, Popen, run
from types import SimpleNamespace

import numpy as np
import pytest

from scripts import report, reproduce
from scripts.reproduction import machine, stages
from scripts.reproduction.stages import Stage
from tests.conftest import ROOT
from tests.scripts.test_report import tables_of


@pytest.fixture(autouse=True)
def rate_of_the_machine(monkeypatch):
    """Two seconds that these stages do not take."""
    monkeypatch.setattr(machine, "machine_rate", lambda: 1.5)


def fake(folder, name, code="", kind="figure", data="gmm", cost=10.0):
    """A stage that counts its runs in NAME.count and leaves NAME.out behind."""
    script = folder / f"{name}.py"
    script.write_text(
        f"import sys, pathlib, time, json\nhere = pathlib.Path({str(folder)!r})\n"
        f"with (here / '{name}.count').open('a') as f: f.write('x')\n{code}\n"
        f"(here / '{name}.out').touch()\n"
    )
    return Stage(name, kind, [sys.executable, str(script)], [folder / f"{name}.out"], cost, data, str(folder / name))


def arguments(folder, **more):
    return SimpleNamespace(
        **{"output_path": folder / "out", "dataset_path": None, "processes": 1, "quick": True, "seeds": 3, **more}
    )


def count(folder, name):
    file = folder / f"{name}.count"
    return len(file.read_text()) if file.exists() else 0


def records(folder):
    return json.loads((folder / "out" / "stages.json").read_text())["stages"]


def test_a_failing_stage_does_not_stop_the_others(tmp_path, capsys):
    bad = "print('main.py: error: no such thing\\ntorchrun has its say', file=sys.stderr); sys.exit(2)"
    stages = [
        fake(tmp_path, "first"),
        fake(tmp_path, "broken", bad),
        fake(tmp_path, "crash", "raise OSError('no space')"),
        fake(tmp_path, "last"),
    ]
    assert not reproduce.reproduce(stages, arguments(tmp_path))
    result = records(tmp_path)
    assert [(name, record["status"]) for name, record in result.items()] == [
        ("first", "done"),
        ("broken", "failed"),
        ("crash", "failed"),
        ("last", "done"),
    ]
    assert result["broken"]["error"] == "main.py: error: no such thing (exit status 2)"
    assert result["crash"]["error"] == "OSError: no space (exit status 1)"
    page = report.write_report(tmp_path / "out")
    text = page.read_text() + page.with_suffix(".md").read_text()
    assert text.count("no such thing (exit status 2)") >= 2
    assert "OSError: no space" in text and "2 done, 2 failed" in text


def test_finished_stages_are_passed_over_and_others_are_not(tmp_path, capsys):
    stages = [
        fake(tmp_path, "good"),
        fake(tmp_path, "moody", "if not (here / 'repaired').exists(): sys.exit('broken')"),
    ]
    assert not reproduce.reproduce(stages, arguments(tmp_path))
    (tmp_path / "repaired").touch()
    assert reproduce.reproduce(stages, arguments(tmp_path))
    assert (count(tmp_path, "good"), count(tmp_path, "moody")) == (1, 2)
    assert "good: finished before" in capsys.readouterr().err and records(tmp_path)["moody"]["error"] == ""
    (tmp_path / "good.out").unlink()  # its output is lost
    reproduce.reproduce(stages, arguments(tmp_path))
    # another command
    other = Stage("moody", "figure", [*stages[1].command, "--n", "5"], stages[1].outputs, 10.0)
    reproduce.reproduce([stages[0], other], arguments(tmp_path))
    assert (count(tmp_path, "good"), count(tmp_path, "moody")) == (2, 3)
    # the old spelling of a flag is no other command
    records_file = tmp_path / "out" / "stages.json"
    old = records_file.read_text().replace('"--n"', '"--width"')
    records_file.write_text(old)
    renamed = Stage("moody", "figure", [*stages[1].command, "--dim", "5"], stages[1].outputs, 10.0)
    reproduce.reproduce([stages[0], renamed], arguments(tmp_path))
    assert '"--width"' in old and count(tmp_path, "moody") == 3
    # the number of processes is no part of the task: the same logs from more of them
    command = [*stages[0].command, "--processes", "2"]
    shared = Stage("good", "figure", command, stages[0].outputs, 10.0)
    reproduce.reproduce([shared], arguments(tmp_path))
    assert count(tmp_path, "good") == 2


def test_the_plan_is_said_first(tmp_path, capsys):
    reproduce.reproduce(
        [fake(tmp_path, name, cost=cost) for name, cost in (("a", 40.0), ("b", 2360.0))], arguments(tmp_path)
    )
    lines = capsys.readouterr().err.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["a", "about", "1:00", "1.5", "MB"],
        ["b", "about", "59:00", "1.5", "MB"],
    ]
    assert lines[2].startswith("plan: 2 stages, about 1.0 hours") and lines[2].endswith(f"3.0 MB in {tmp_path / 'out'}")
    assert lines[3].startswith("[1/2] a: about 1:00, all that is left about 1:00:00")
    reproduce.reproduce([fake(tmp_path, "a", cost=40.0)], arguments(tmp_path))  # finished: nothing is planned
    assert "plan" not in capsys.readouterr().err


def test_data_that_is_not_there_is_skipped_with_its_reason(tmp_path, capsys, monkeypatch):
    from deq_enn.data import datasets

    def no_network(path, folder, name):
        raise datasets.DataError(f"{path}: no {name} found and its download failed (no network)")

    monkeypatch.setattr("deq_enn.data.images._download_mnist", no_network)
    stages = [
        fake(tmp_path, "digits", data="mnist"),
        fake(tmp_path, "photos", data="cifar10"),
        fake(tmp_path, "more_digits", data="mnist"),
        fake(tmp_path, "mixture"),
    ]
    assert reproduce.reproduce(stages, arguments(tmp_path, dataset_path=tmp_path))  # a skipped stage is no failure
    result = records(tmp_path)
    assert [result[s.name]["status"] for s in stages] == ["skipped"] * 3 + ["done"] and not count(tmp_path, "digits")
    said = capsys.readouterr().err
    assert said.count("no mnist found") == 1 and "more_digits: skipped, as digits\n" in said
    assert "no mnist found" in result["digits"]["error"] and "cifar-10-batches-py" in result["photos"]["error"]
    assert "no mnist found" in report.write_report(tmp_path / "out").with_suffix(".md").read_text()


WHEN_STARTED = """
import os, pathlib, threading, time
started = pathlib.Path({folder!r}, "started")

def signal_myself():
    while not started.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), {kind})

threading.Thread(target=signal_myself, daemon=True).start()
"""


@pytest.mark.slow
def test_an_interrupted_stage_ends_in_one_line_and_goes_on(forks, tmp_path):
    """Ctrl-C reaches the stage too, which has a process group of its own."""
    slow = (
        "(here / 'pid').write_text(str(__import__('os').getpid()))\n"
        "if not (here / 'again').exists():\n    (here / 'started').touch()\n    time.sleep(60)"
    )
    fake(tmp_path, "before"), fake(tmp_path, "slow", slow)
    driver = tmp_path / "driver.py"
    driver.write_text(
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\n"
        "import pathlib\nfrom scripts import reproduce\nfrom scripts.reproduction import machine, stages\n"
        "machine.machine_rate = lambda: 1.0\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "reproduce.plan = lambda a: [stages.Stage(n, 'figure', [sys.executable, str(here / f'{n}.py')]"
        ", [here / f'{n}.out'], 10.0) for n in ('before', 'slow')]\n"
        "reproduce.main(['--output_path', str(here / 'out')])\n"
    )
    for kind in (signal.SIGINT, signal.SIGTERM):
        (tmp_path / "started").unlink(missing_ok=True)
        done = forks.run(program=str(driver), setup=WHEN_STARTED.format(folder=str(tmp_path), kind=int(kind)))
        assert done["status"] == 130 and done["out"] == "" and "Traceback" not in done["err"]
        assert done["err"].splitlines()[-1] == "reproduce.sh: interrupted in slow; the same command goes on from here"
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
        assert records(tmp_path)["slow"]["status"] == "interrupted" and not (tmp_path / "out" / "report.html").exists()
    (tmp_path / "again").touch()
    done = forks.run(program=str(driver))
    assert done["status"] == 0 and done["out"] == f"{tmp_path / 'out' / 'report.html'}\n"
    assert (count(tmp_path, "before"), count(tmp_path, "slow")) == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "redirection, status", [("2>&1 | true", 0), ("2>/dev/full | true", 0), ("2>&- | true", 0), (">/dev/full 2>&-", 1)]
)
def test_a_reader_that_has_gone_does_not_stop_the_stages(tmp_path, redirection, status):
    (tmp_path / "program.py").write_text(f"""
import sys
from pathlib import Path
sys.path.insert(0, "{ROOT}")
from scripts import reproduce
from scripts.reproduction import machine
from tests.scripts.test_reproduce import fake
machine.machine_rate = lambda: 1.5
reproduce.plan = lambda a: [fake(Path("{tmp_path}"), name) for name in ("first", "last")]
reproduce.main(["--output_path", "{tmp_path / "out"}"])
""")
    command = f"{sys.executable} {tmp_path / 'program.py'} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (status, "")
    assert [count(tmp_path, name) for name in ("first", "last")] == [1, 1] and (tmp_path / "out/report.html").exists()


def test_a_failure_of_a_stage_that_is_no_longer_planned_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "plan", lambda a: [fake(tmp_path, "stage")])
    reproduce.main(["--output_path", str(tmp_path / "out")])
    stages = records(tmp_path)
    stages["gone"] = stages["stage"] | {"status": "failed"}
    (tmp_path / "out" / "stages.json").write_text(json.dumps({"stages": stages}))
    reproduce.main(["--output_path", str(tmp_path / "out")])
    del stages["gone"]["status"]
    (tmp_path / "out" / "stages.json").write_text(json.dumps({"stages": stages}))
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--output_path", str(tmp_path / "out")])
    assert stop.value.code == 2


def test_a_failure_is_status_1_and_bad_input_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "plan", lambda a: [fake(tmp_path, "broken", "sys.exit('broken pipe')")])
    (tmp_path / "file").touch()
    for argv, status, words in (
        (["--output_path", str(tmp_path / "out")], 1, "not every stage succeeded"),
        (["--output_path", str(tmp_path / "file")], 2, "is a file, not a folder"),
        (["--dataset_path", str(tmp_path / "no")], 2, "no such folder"),
        (["--processes", "0"], 2, "positive whole number"),
        (["--fast"], 2, "--fast"),
    ):
        with pytest.raises(SystemExit) as stop:
            reproduce.main(argv)
        assert stop.value.code == status and words in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "out" / "stages.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--output_path", str(tmp_path / "out")])
    assert stop.value.code == 2 and "stages.json is damaged" in capsys.readouterr().err


HOLDER = (
    "import sys; from deq_enn.utils.locks import locked\nwith locked(sys.argv[1], 'stages'): print(flush=True); input()"
)


def test_two_do_not_make_the_stages_of_one_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "plan", lambda a: [fake(tmp_path, "stage")])
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out")]
    with Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE) as other:
        other.stdout.readline()
        with pytest.raises(SystemExit) as stop:
            reproduce.main(["--output_path", str(tmp_path / "out")])
        other.kill()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "at work in" in error and "--output_path" in error
    assert not (tmp_path / "stage.count").exists()


@pytest.mark.slow
def test_memory_counts_a_childs_child(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "POLL", 0.1)
    stage = fake(
        tmp_path,
        "hungry",
        "import subprocess\nsubprocess.run([sys.executable, '-c', "
        "'import time; x = bytearray(2 * 10**8); time.sleep(0.6)'])",
    )
    status, _, peak = reproduce.run_stage(stage, 1, tmp_path / "log", lambda *_: None)
    assert status == 0 and 2e8 < peak < 4e8


@pytest.mark.slow
def test_a_small_sweep_from_end_to_end(forks, tmp_path, monkeypatch, capsys):
    """The real commands: one sweep on the mixture and one figure, and their report; the second time nothing is run."""
    real = reproduce.subprocess.Popen

    def forked(command, cwd=None, stdout=None, **more):
        if command[0] != sys.executable:  # git, uname
            return real(command, cwd=cwd, stdout=stdout, **more)
        done = forks.run(*command[2:], program=command[1], cwd=str(cwd))
        stdout.write((done["out"] + done["err"]).encode())
        return SimpleNamespace(poll=lambda: done["status"], returncode=done["status"])

    monkeypatch.setattr(reproduce.subprocess, "Popen", forked)
    monkeypatch.setattr(stages, "QUICK_DIMS", (8,))
    monkeypatch.setattr(stages, "QUICK_EPOCHS", 1)
    monkeypatch.setattr(stages, "QUICK_FIGURE_FLAGS", ["--n", "32", "64", "--seeds", "1", "--spectrum", "32"])
    real_plan = reproduce.plan
    names = "gmm_one_layer_matching", "gmm-sgd"
    monkeypatch.setattr(reproduce, "plan", lambda a: [s for s in real_plan(a) if s.name in names])
    for words in ("done after", "finished before"):
        reproduce.main(["--quick", "--output_path", str(tmp_path), "--processes", "1", "--seeds", "2"])
        captured = capsys.readouterr()
        assert captured.err.count(words) == 2 and captured.out == f"{tmp_path / 'report.html'}\n"
    text = (tmp_path / "report.md").read_text()
    assert "Gaussian mixture, SGD" in text and "2 done" in text
    assert "main.py --dataset gmm --dim 8 --seed 0 1 --epoch 1 --opt sgd --lr 1" in text
    _, [row] = next(v for k, v in tables_of(text).items() if k.startswith("Test accuracy"))
    files = [tmp_path / "gmm-sgd" / folder / "8_test_inn_gmm.json" for folder in ("", "seed_1")]
    stage = next(s for s in real_plan(arguments(tmp_path, output_path=tmp_path, seeds=2)) if s.name == "gmm-sgd")
    kept = [f for folder in (stage.folder, tmp_path / "checkpoints") for f in Path(folder).rglob("*.*")]
    size = sum(f.stat().st_size for f in kept if f.suffix not in (".png", ".pdf"))
    assert size < machine.disk(stage) - machine.FIGURE < 8 * size
    last = [100 * json.loads(file.read_text())[-1] for file in files]
    assert row[1] == f"{np.mean(last):.2f} ± {np.std(last, ddof=1):.2f}"
