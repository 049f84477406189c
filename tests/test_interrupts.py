"""Ctrl-C while a command begins: from its first lines on it ends without a traceback, and leaves nothing behind."""

import ast
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

COMMANDS = {
    "scripts/summarize.py": ["scripts/summarize.py", "nowhere"],
    "deq_enn": ["-m", "deq_enn", "match", "--activation", "tanh", "--asquare", "0.2"],
}
DOORS = [
    path
    for folder in (".", "scripts", "ck_ntk")
    for path in sorted((ROOT / folder).glob("*.py"))
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.slow
def test_ctrl_c_at_any_time_of_the_start(name):
    """Twenty times; a frame of our own files in what Python prints means that they were caught unprepared.

    Python's own start is not ours to change: up to the first lines of the command, or the package's with -m. It
    may lose the signal ("Failed checking if argv[0] is an import path entry"): then the command runs to its end.
    """
    for delay in range(20):
        process = subprocess.Popen(
            [sys.executable, *COMMANDS[name]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        time.sleep(0.015 * delay)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        ours = re.findall(rf'File "{re.escape(str(ROOT))}/(?!\.venv)(.*)", line (\d+)', err)
        late = [place for place in ours if int(place[1]) > 1 and place[0] != "deq_enn/__init__.py"]
        assert not late, f"after {15 * delay} ms: {err}"
        if "Traceback" not in err:  # or it was over, with a wrong folder in the case of summarize
            assert process.returncode in (130, -signal.SIGINT, 2 if "summarize" in name else 0), err


def test_every_command_begins_with_these_lines():
    expected = """
import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program
"""
    assert len(DOORS) > 30
    for path in DOORS:
        text = path.read_text(encoding="utf-8")
        begin = ast.parse(text).body[0].end_lineno
        assert "".join(text.splitlines(keepends=True)[begin:]).startswith(expected), path
