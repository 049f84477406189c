"""The verdict on a user's own module from the command line, its page, and the network that it writes."""

import json
import re
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch

from deq_enn.unrolling.result import StepCandidate, StepVerdict
from deq_enn.unrolling.sources import load_module
from deq_enn.verdicts import command
from tests.conftest import ROOT
from tests.unrolling.modules import K, P
from tests.unrolling.test_by_steps import blobs, trained

MODULE = """
import torch
from deq_enn import FixedPoint

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.A, self.B, self.readout = torch.nn.Linear(16, 16), torch.nn.Linear(6, 16), torch.nn.Linear(16, 3)
        self.solve = FixedPoint()
        self.A.weight.data.mul_(0.5)
    def forward(self, x):
        u = self.B(x.mean(1)) + self.A.bias
        return self.readout(self.solve(lambda z, W, u: torch.tanh(z @ W.T + u), torch.tanh(u), self.A.weight, u))

def build():
    torch.manual_seed(0)
    return Mine()

number = 3

def broken():
    raise RuntimeError("no")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A module in a file, its trained weights, and samples of a shape of their own."""
    tmp_path = tmp_path_factory.mktemp("mine")
    (tmp_path / "mine.py").write_text(MODULE, "utf-8")
    (X, y), (X_test, y_test) = blobs(200, 2, P), blobs(300, 2, P, seed=1)
    X[:, 1], X_test[:, 1] = X[:, 0], X_test[:, 0]
    module, _ = load_module(f"{tmp_path}/mine.py:build")
    trained(module, X, y)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    arrays = dict(X_train=X, y_train=y, X_test=X_test, y_test=y_test)
    np.savez(tmp_path / "mine.npz", **{name: value.numpy() for name, value in arrays.items()})
    return tmp_path, module, X_test


def flags(folder, *more):
    return [
        "--module", f"{folder}/mine.py:build", "--weights", f"{folder}/w.pt", "--dataset", "npz",
        "--dataset_path", f"{folder}/mine.npz", "--output_path", f"{folder}/out", "--budget", "3s", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_module_of_ones_own_is_judged_and_what_replaces_it_is_written(files, capsys):
    folder, module, X_test = files
    command.main(flags(folder, "--tolerance", "20", "--export", f"{folder}/enn.pt"))
    printed = capsys.readouterr().out
    assert f"{folder}/mine.py:build: the code of this file is run" in printed and "replace: " in printed
    result = json.loads((folder / "out" / "verdict.json").read_text("utf-8"))
    assert result["form"] == "steps" and result["settings"]["shape"] == [2, P] and result["module"]["name"] == "Mine"
    page = (folder / "out" / "verdict.html").read_text("utf-8")
    assert (
        "Replace it by" in page and "What it costs" in page and (folder / "out" / "verdict.png").stat().st_size > 2000
    )
    program = torch.export.load(folder / "enn.pt2").module()
    said = json.loads((folder / "enn.json").read_text("utf-8"))
    assert said["name"] == result["chosen"] and said["format"] == "program"
    accuracies = {c["name"]: c["accuracy"] for c in result["candidates"]}
    for rows in (1, 7, 300):
        outputs = program(X_test[:rows])
        assert outputs.shape == (rows, K)
    y_test = torch.from_numpy(np.load(folder / "mine.npz")["y_test"])
    assert accuracies[said["name"]] == pytest.approx(100 * (outputs.argmax(1) == y_test).double().mean().item())


@pytest.mark.parametrize(
    "change, message",
    (
        (("--module", "{}/none.py:build"), "there is no file"),
        (("--module", "{}/mine.py:nothing"), "mine.py defines no nothing"),
        (("--module", "{}/mine.py:number"), r"number\(\) fails \(TypeError"),
        (("--module", "{}/mine.py:broken"), r"broken\(\) fails \(RuntimeError: no\)"),
        (("--module", "mine"), "give path/to/file.py:build"),
        (("--weights", "{}/mine.py"), "holds no weights that can be read without unpickling"),
        (("--weights", "{}/none.pt"), "argument --weights: there is no file .*none.pt"),
        (("--weights", "{}/foreign.pt"), "does not fit the module"),
        (("--sample_shape", "5", "5"), "a sample has 12 entries"),
        (("--dataset", "mnist", "--samples", "raw"), "--samples raw is for files of your own"),
        (("--activation", "relu"), "argument --activation: not with --module"),
        (("--asquare", "0.5"), "argument --asquare: not with --module"),
        (("--asquare", "0.2"), "argument --asquare: not with --module"),  # the default, but given
        (("--for", "mean"), "argument --for: not with --module"),
        (("--for", "draw"), "argument --for: not with --module"),
        (("--risk", "10%"), "argument --risk: not with --module"),
        (("--classes", "0", "1"), "--classes is not for samples as the file has them"),
    ),
)
def test_bad_flags_are_one_line_and_nothing_is_written(files, capsys, change, message):
    folder = files[0]
    torch.save({"other.weight": torch.zeros(2)}, folder / "foreign.pt")
    with pytest.raises(SystemExit) as caught:
        command.main(flags(folder, "--output_path", f"{folder}/bad", *(word.format(folder) for word in change)))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (folder / "bad" / "verdict.json").exists()


def test_a_module_needs_held_out_samples(files, capsys):
    folder = files[0]
    np.savez(folder / "alone.npz", X=np.zeros((60, 2, P)), y=np.arange(60) % 3)
    with pytest.raises(SystemExit):
        command.main(flags(folder, "--dataset_path", str(folder / "alone.npz")))
    assert "no held-out samples" in capsys.readouterr().err


def test_flags_are_answered_without_torch():
    code = "import sys; from deq_enn.verdicts.command import main\ntry: main(['--module', 'x', '--dim', '4'])\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and "not with --module" in done.stderr


def test_labels_that_are_not_those_of_the_outputs_are_not_written(monkeypatch):
    handed = []
    monkeypatch.setattr(
        StepVerdict, "export", lambda self, *given: handed.append(given) or {"files": ["enn.pt"], "skipped": None}
    )
    chosen = StepCandidate("2 of its steps", "stopped", 2, 90.0, 99.0, 0.3, 0.0, (-0.1, 0.1))
    for count, labels in ((2, ("a", "b")), (10, None)):
        verdict = StepVerdict("replace", [], (chosen,), chosen, {}, {"classes": count}, 1.0)
        lines = command.write_network(verdict, Namespace(export="enn.pt"), (None, 1.0, ("a", "b")))
        assert handed.pop() == ("enn.pt", None, 1.0, labels)
        assert ("the 2 labels of the data are not written: the module has 10 outputs" in lines) == (labels is None)
