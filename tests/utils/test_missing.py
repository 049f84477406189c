"""A program says in one line which of its requirements is not installed; a user's own keeps its traceback."""

import re
import subprocess
import sys

import pytest

from deq_enn.utils import missing
from tests.conftest import ROOT

PROGRAMS = [
    ("main.py", "main.py"),
    ("data_prepare.py", "data_prepare.py"),
    ("-m deq_enn verdict --activation relu", "deq-enn"),
    ("ck_ntk/ck_gmm_matching.py", "ck_gmm_matching.py"),
    ("scripts/pretrain_vgg.py", "pretrain_vgg.py"),
    ("scripts/bench.py", "bench.py"),
]


def bare(*arguments, cwd=ROOT):
    """Runs Python without the packages that were installed."""
    return subprocess.run([sys.executable, "-S", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("command, name", PROGRAMS)
def test_a_program_without_torch_says_what_to_install(command, name):
    done = bare(*command.split())
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert re.match(f"{name}: failed: the package \\w+ is not installed in .*bash scripts/venv.sh", done.stderr)


def test_help_needs_nothing():
    assert bare("main.py", "--help").returncode == 0


def test_a_users_own_program_keeps_its_traceback(tmp_path):
    assert "Traceback" in bare("-c", "from deq_enn import DEQ").stderr
    (tmp_path / "main.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom deq_enn import DEQ\n")
    assert "Traceback" in bare("main.py", cwd=tmp_path).stderr


def test_a_users_own_program_keeps_its_hook():
    code = "import sys; before = sys.excepthook; import deq_enn; sys.exit(sys.excepthook is not before)"
    assert bare("-c", code).returncode == 0


def test_a_module_that_is_no_requirement_keeps_its_traceback():
    done = bare("-c", "import sys; sys.argv = ['main.py']; import deq_enn; import pandas")
    assert "Traceback" in done.stderr and "pandas" in done.stderr


def test_the_requirements_are_those_of_the_file():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    required = [re.split("[>=]", line.split("#")[0])[0].strip() for line in lines]
    assert set(filter(None, required)) >= set(missing.REQUIRED)


def test_once_installed_the_advice_is_pips(monkeypatch, tmp_path):
    monkeypatch.setattr(missing, "ROOT", str(tmp_path))
    assert missing.advice("torch").endswith("run pip install torch")
