"""One process at a time works in a folder, and no living process's temporary files are removed."""

import contextlib
import subprocess
import sys

import pytest

from deq_enn.experiments import command
from deq_enn.utils.files import atomic_write, sweep
from deq_enn.utils.locks import locked
from tests.conftest import ROOT

HOLDER = """
import sys
from deq_enn.utils.files import atomic_write
from deq_enn.utils.locks import locked
folder, parts = sys.argv[1], sys.argv[2:] or None
with locked(folder, "output_path", parts), atomic_write(folder + "/log") as file:
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder, *parts):
    """Another process that holds the folder, or parts of it, and writes a file there."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *parts],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_is_refused_until_the_first_ends_or_is_killed(capsys, tmp_path):
    folder = tmp_path / "out"
    with holder(folder) as first:
        with pytest.raises(ValueError, match=f"process {first.pid} on .* is at work in .*pass another --output_path"):
            with locked(folder, "output_path"):
                pass
        with locked(folder, "save_path"):  # the same folder for something else
            pass
        with pytest.raises(SystemExit) as stop:
            command.main(["--output_path", str(folder), "--save_path", str(tmp_path / "ckpt")])
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
        sweep(folder / "log")
        assert len([*folder.glob(".log.*.tmp")]) == 1  # it is alive
        first.kill()
        first.wait()
        sweep(folder / "log")
        with locked(folder, "output_path"):
            assert [path.name for path in folder.iterdir()] == [".output_path.lock"]
    assert not [*folder.iterdir()]


def test_processes_share_a_folder_with_different_parts(tmp_path):
    with holder(tmp_path, "a", "b"):
        with locked(tmp_path, "output_path", ["c"]):
            pass
        for part in (["b", "c"], None):
            with pytest.raises(ValueError, match="another process is at work"), locked(tmp_path, "output_path", part):
                pass


def test_a_folder_made_for_nothing_is_removed(tmp_path):
    with locked(tmp_path / "a" / "b", "output_path"):
        pass
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b", "output_path"), atomic_write(tmp_path / "a" / "log"):
        pass
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["log"]
