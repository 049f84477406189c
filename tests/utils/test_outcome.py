"""How a command ends where what it prints reaches nobody."""

import re
import subprocess
import sys
import warnings

import pytest

from deq_enn.utils.arguments import OneLineParser
from deq_enn.utils.interrupts import SilentEnd
from deq_enn.utils.outcome import one_line
from tests.conftest import ROOT

PROGRAM = """
import sys
from deq_enn.utils.arguments import OneLineParser
from deq_enn.utils.interrupts import SilentEnd
from deq_enn.utils.outcome import one_line
with one_line(OneLineParser(prog="NAME")):
    for _ in range(3):
        print("a line", flush=True)
        sys.stdout.flush()
    print("a warning", file=sys.stderr)
    open(sys.argv[1], "w").write("whole")
    print("the last line, which is flushed at the end")
"""


@pytest.mark.parametrize(
    "redirection, status, words",
    [
        ("| true", 0, "a warning\n"),
        (">&-", 0, "a warning\n"),
        (">&- 2>&-", 0, ""),
        ("2>&1 | true", 0, ""),
        ("> /dev/full", 1, "a warning\nNAME: failed: the files are written, but not all could be printed (No space"),
    ],
)
def test_the_files_are_whole_whatever_becomes_of_the_output(tmp_path, redirection, status, words):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = f"{sys.executable} {tmp_path}/program.py {tmp_path}/out {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(words) and done.stderr.count("\n") == words.count("\n") + (status == 1)
    assert (tmp_path / "out").read_text() == "whole"


def test_a_warning_of_several_lines_is_one_line(capsys):
    with one_line(OneLineParser(prog="NAME")):
        warnings.warn("first\n    second")
    assert capsys.readouterr().err == "NAME: warning: first second\n"


@pytest.mark.parametrize("status", (0, 3, None))
def test_a_users_function_that_ends_the_program_is_a_failure(capsys, status):
    """A function of an activation file that calls sys.exit(0) ended main.py with status 0 and nothing written."""
    with pytest.raises(SystemExit) as caught, one_line(OneLineParser(prog="NAME")):
        sys.exit(status)
    assert caught.value.code == 1
    assert re.match("NAME: failed: a function of yours ends the program .SystemExit", capsys.readouterr().err)


def test_ends_of_its_own_keep_their_status(capsys):
    parser = OneLineParser(prog="NAME")
    for end, status in ((lambda: parser.exit(130, "interrupted\n"), 130), (lambda: parser.error("bad"), 2)):
        with pytest.raises(SystemExit) as caught, one_line(parser):
            end()
        assert caught.value.code == status
    with pytest.raises(SystemExit) as caught, one_line(OneLineParser(prog="NAME")):
        raise SilentEnd(1)
    assert caught.value.code == 1 and capsys.readouterr().err == "interrupted\nNAME: error: bad\n"
