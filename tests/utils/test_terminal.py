"""A terminal that knows ASCII alone, and a locale that would write files so."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from deq_enn.utils.files import atomic_write
from tests.conftest import ROOT

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}


def run(*argv, **environment):
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=os.environ | ASCII | environment, capture_output=True, text=True
    )


def test_text_is_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "page.html"
    program = (
        "import sys; from deq_enn.utils.files import atomic_write\n"
        "with atomic_write(sys.argv[1], 'w') as file: file.write('\\u03c3 \\u2212 \\xb1')"
    )
    result = run("-c", program, str(path))
    assert result.returncode == 0, result.stderr
    assert path.read_bytes() == "σ − ±".encode()
    with atomic_write(path, "a+") as file:
        assert file.encoding == "utf-8"


def test_what_is_not_shown_is_spelled():
    program = (
        "from deq_enn.utils.arguments import OneLineParser\n"
        "parser = OneLineParser(prog='p', description='\\u03c3_a\\xb2')\n"
        "print('94.2 \\xb1 0.3 \\u2260'); parser.print_help()\nparser.error('\\u2260')"
    )
    result = run("-c", program)
    assert result.returncode == 2 and result.stdout.startswith("94.2 +- 0.3 \\u2260\n")
    assert "sigma_a^2" in result.stdout and result.stderr == "p: error: \\u2260\n"
    assert (
        "94.2 ± 0.3 ≠".encode()
        in subprocess.run(  # nothing is spelled where everything can be shown
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            capture_output=True,
        ).stdout
    )


@pytest.mark.long
def test_a_grid_and_a_verdict_in_ascii(tmp_path):
    """The table of several seeds has a plus-minus, and the page of a verdict every sign of the paper."""
    rng, out = np.random.default_rng(0), tmp_path / "out"
    X, y = rng.normal(size=(90, 20)), np.arange(90) % 2
    np.savez(tmp_path / "a.npz", X_train=X[:60] + y[:60, None], y_train=y[:60], X_test=X[60:], y_test=y[60:])
    data = ["--dataset", "npz", "--dataset_path", str(tmp_path / "a.npz"), "--output_path", str(out)]
    argv = ["--model", "l_relu_enn", "--dim", "8", "--epoch", "1", "--batch_size", "20", "--seed", "0", "1"]
    result = run("main.py", *data, *argv, "--save_path", str(tmp_path / "save"))
    assert result.returncode == 0, result.stderr
    assert " +- " in result.stdout and (out / "accuracy_npz.png").exists()
    result = run("-m", "deq_enn", "verdict", *data, "--activation", "relu", "--budget", "2s")
    assert result.returncode == 0, result.stderr
    assert "σ" in (out / "verdict.html").read_text("utf-8")
    assert json.loads((out / "verdict.json").read_text("utf-8"))["answer"]
