"""`python -m deq_enn`: the four commands by name, and answers to --help and bad flags without anything heavy."""

import re
import runpy
import subprocess
import sys

import pytest

from deq_enn.__main__ import COMMANDS
from tests.conftest import ROOT

PROGRAM = """
import sys
from deq_enn.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
else:
    code = 0
print("heavy:", [name for name in ("torch", "numpy", "scipy", "matplotlib") if name in sys.modules], code)
"""


def call(*argv):
    return subprocess.run([sys.executable, "-c", PROGRAM, *argv], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_bad_flags_load_nothing_heavy(command):
    done = call(command, "--help")
    assert done.stdout.endswith("heavy: [] 0\n") and "--activation" in done.stdout and not done.stderr
    done = call(command, "--asquare", "2")
    assert done.stdout == "heavy: [] 2\n" and done.stderr.count("\n") == 1 and "error: " in done.stderr


@pytest.mark.parametrize(
    "argv, words", [([], "no command given"), (["verdikt"], "unknown command 'verdikt'"), (["-x"], "'-x'")]
)
def test_an_unknown_command_is_one_line(argv, words):
    done = call(*argv)
    assert done.stdout == "heavy: [] 2\n" and words in done.stderr and done.stderr.count("\n") == 1
    assert all(command in done.stderr for command in COMMANDS)


HELPERS = sorted(path for folder in ("scripts/*", "ck_ntk/common") for path in ROOT.glob(f"{folder}/[!_]*.py"))


def test_a_module_that_is_no_command_says_what_to_run(monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    assert len(HELPERS) > 20
    for path in HELPERS:
        monkeypatch.setattr(sys, "argv", [str(path)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(path), run_name="__main__")
        assert re.fullmatch(
            rf"{path.name} is (a part of scripts/\w+.py: run that|shared by .* run one of .*)", stop.value.code
        )


@pytest.mark.parametrize("redirection", ("| true", "> /dev/full", ">&-"))
def test_help_that_nobody_reads_is_no_failure(redirection):
    command = f"{sys.executable} -m deq_enn --help {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr


def test_help_lists_the_commands():
    done = call("--help")
    assert all(f"\n    {command} " in done.stdout for command in COMMANDS) and done.stdout.endswith("heavy: [] 0\n")


@pytest.mark.parametrize("doorway", ["train.py", "model.py", "utils.py"])
def test_a_doorway_that_is_no_program_names_the_one_that_is(doorway):
    done = subprocess.run([sys.executable, doorway, "--lr", "1"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0 and not done.stdout
    assert done.stderr.startswith(f"{doorway} has names to import") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "doorway", ["data_prepare.py", "gaussian_integration.py", "one_layer_tanh.py", "two_layer_lrelu.py"]
)
def test_a_doorway_that_is_a_program_refuses_a_flag_without_torch(doorway):
    command = [sys.executable, "-X", "importtime", doorway, "--no_such_flag"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and f"{doorway}: error:" in done.stderr
    assert "deq_enn.utils.arguments" in done.stderr and not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
