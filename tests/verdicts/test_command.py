"""The verdict from the command line: what it prints, writes and refuses."""

import errno
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from deq_enn.networks.export import rebuild
from deq_enn.verdicts import command as gateway, exact_kernels
from deq_enn.verdicts.at_initialisation import VerdictAtInitialisation
from deq_enn.verdicts.losses import measurements
from tests.conftest import ROOT


def refused(capsys, tmp_path, *argv):
    """The one line on stderr; nothing may have been written."""
    with pytest.raises(SystemExit) as stop:
        gateway.main([*map(str, argv), "--output_path", str(tmp_path / "out")])
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    err = capsys.readouterr().err
    assert err.startswith("deq-enn verdict: error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "argv, words",
    [
        ((), "--activation"),
        (("--activation", "swush"), "swush"),
        (("--activation", "swish", "--dataset", "npz"), "--dataset_path"),
        (("--activation", "swish", "--budget", "6 hours"), "--budget"),
        (("--activation", "swish", "--tolerance", "-1"), "--tolerance"),
        (("--activation", "swish", "--device", "cuda:99"), "CUDA device"),
        (("--activation", "selu", "--asquare", "0.9"), "sigma_a^2"),  # no stable equilibrium
        (("--activation", "swish", "--dataset", "npz", "--dataset_path", "no_such_file.npz"), "no_such_file.npz"),
        (("--activation", "relu", "--pool"), "--kernel_size"),
        (("--activation", "relu", "--seen", "100"), "--seen: it is for a trained DEQ"),
        (("--activation", "relu", "--checkpoint", "x.pt", "--for", "draw"), "--for: not with --checkpoint"),
        (("--activation", "relu", "--checkpoint", "x.pt", "--risk", "10%"), "--risk: not with --checkpoint"),
        (("--activation", "relu", "--risk", "0.5"), "--risk: must be between 0 and 0.5, such as 0.1 or 10%, got '0.5'"),
        (("--activation", "relu", "--risk", "60%"), "--risk: must be between 0 and 0.5"),
        (("--activation", "relu", "--risk", "little"), "--risk: must be between 0 and 0.5"),
        (("--activation", "relu", "--kernel_size", "3"), "needs images, of mnist"),
        (("--activation", "relu", "--kernel_size", "4", "--dataset", "mnist"), "odd"),
        (("--activation", "relu", "--kernel_size", "3", "--dataset", "mnist", "--checkpoint", "x.pt"), "--checkpoint"),
    ],
)
@pytest.mark.slow
def test_bad_flags_are_one_line(capsys, tmp_path, argv, words):
    assert words in refused(capsys, tmp_path, *argv)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(X_train=np.full((60, 5), np.nan)), "NaN"),
        (dict(y_train=np.zeros(60, int), y_test=np.zeros(30, int)), "at least two classes"),
        (dict(X_train=np.eye(9, 5), y_train=np.arange(9) % 3), "too few"),
    ],
)
def test_bad_files_are_one_line(capsys, tmp_path, small_npz, change, words):
    path = tmp_path / "bad.npz"
    np.savez(path, **dict(np.load(small_npz)) | change)
    assert words in refused(capsys, tmp_path, "--activation", "swish", "--dataset", "npz", "--dataset_path", path)


def test_the_output_must_be_a_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        gateway.main(["--activation", "swish", "--output_path", str(tmp_path / "file")])
    assert "is a file, not a folder" in capsys.readouterr().err


def test_the_old_spelling_of_the_output_is_taken_and_said_to_be_old(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        gateway.main(["--activation", "swish", "--output", str(tmp_path / "file")])
    said, error = capsys.readouterr().err.splitlines()
    assert said == "deq-enn verdict: --output is now --output_path" and "is a file, not a folder" in error


def test_help_and_bad_flags_do_not_import_torch():
    code = (
        "import sys; sys.argv = ['verdict', {}]; from deq_enn.verdicts import command\ntry: command.main()\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    for flag, status in (("--help", "0"), ("--no_such_flag", "2")):
        done = subprocess.run([sys.executable, "-c", code.format(repr(flag))], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == f"{status} False"


def flags_of(path, out, *more):
    data = ["--dataset", "npz", "--dataset_path", str(path)]
    return [*data, "--activation", "tanh", "--dim", "48", "--budget", "0.3s", "--output_path", str(out), *more]


def test_a_run_prints_a_table_and_writes_what_it_found(capsys, tmp_path, small_npz):
    gateway.main(flags_of(small_npz, tmp_path / "out", "--tolerance", "20", "--risk", "12%"))
    out = capsys.readouterr().out
    assert "60 training samples" in out and "plain, depth 1" in out and "replace: " in out
    read = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert read["answer"] == "replace" and read["settings"]["dataset"] == "npz" and read["chosen"] in out
    assert read["settings"]["risk"] == 0.12 and "that it loses more than 20." in out
    risks = [(each["risk"], each["draw_risk"]) for each in read["candidates"] if each["loss"] is not None]
    assert risks and all(0 <= risk <= 1 for pair in risks for risk in pair)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"verdict.json", "verdict.png", "verdict.html"}


@pytest.mark.slow
def test_a_convolutional_deq_is_judged_and_its_replacement_written(few_candidates, capsys, tmp_path, small_npz):
    assert "its rows are no images" in refused(
        capsys, tmp_path, *flags_of(small_npz, tmp_path / "none")[:6], "--kernel_size", "3"
    )
    g, y = np.random.default_rng(0), np.arange(90) % 2
    X = g.normal(size=(90, 2, 2)).astype("f4")
    X[:, 0] += 4 * y[:, None]
    parts = dict(X_train=X[:60], y_train=y[:60], X_test=X[60:], y_test=y[60:])
    np.savez(tmp_path / "images.npz", **parts)
    flags = flags_of(tmp_path / "images.npz", tmp_path / "out", "--kernel_size", "3", "--tolerance", "30")
    gateway.main([*flags, "--export", str(tmp_path / "enn.pt")])
    out = capsys.readouterr().out
    assert "60 training images of 1 x 2 x 2; convolutional DEQ of tanh" in out and "of 3x3" in out
    read = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert read["settings"]["kernel_size"] == 3 and read["answer"] == "replace"
    scores = rebuild(tmp_path / "enn.pt")(torch.from_numpy(X[60:]).flatten(1))
    assert (scores.argmax(1).numpy() == y[60:]).mean() > 0.8


@pytest.mark.slow
def test_what_is_printed_to_a_full_disk_is_printed_after_the_files(
    few_candidates, capsys, monkeypatch, tmp_path, small_npz
):
    class Full(io.StringIO):
        def write(self, text):
            if "plain, depth 1" in text:  # the table
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(text)

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(SystemExit) as stop:
        gateway.main(flags_of(small_npz, tmp_path / "out"))
    assert stop.value.code == 1 and "the files are written" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"verdict.json", "verdict.png", "verdict.html"}


@pytest.mark.slow
def test_a_verdict_that_cannot_be_written_is_printed_all_the_same(
    few_candidates, capsys, monkeypatch, tmp_path, small_npz
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gateway, "write_verdict", full)
    with pytest.raises(SystemExit) as stop:
        gateway.main(flags_of(small_npz, tmp_path / "out"))
    captured = capsys.readouterr()
    assert stop.value.code == 1 and "No space left" in captured.err and "plain, depth 1" in captured.out


@pytest.mark.slow
def test_a_file_without_labels_or_test_set(few_candidates, capsys, tmp_path, small_npz):
    arrays = dict(np.load(small_npz))
    np.savez(tmp_path / "unlabelled.npz", X_train=arrays["X_train"])
    gateway.main(flags_of(tmp_path / "unlabelled.npz", tmp_path / "out"))
    assert "There are no labels" in capsys.readouterr().out
    np.savez(tmp_path / "train.npz", X_train=arrays["X_train"], y_train=arrays["y_train"])
    gateway.main(flags_of(tmp_path / "train.npz", tmp_path / "out"))
    assert "loss, points" in capsys.readouterr().out


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "place, name, calls, known",
    [
        (exact_kernels.ExactKernels, "_compared", 0, False),
        (exact_kernels, "from_kernel", 2, True),
        (measurements.Measurements, "measure", 0, True),
        (VerdictAtInitialisation, "measure_costs", 0, True),
    ],
)
@pytest.mark.slow
def test_an_interrupted_run_prints_what_it_knows_and_writes_nothing(
    few_candidates, capsys, tmp_path, small_npz, monkeypatch, place, name, calls, known
):
    """By a Ctrl-C in the call of `name` after so many others."""
    work, left = getattr(place, name), [calls]

    def interrupted(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return work(*args)

    monkeypatch.setattr(place, name, interrupted)
    with pytest.raises(SystemExit) as stop:
        gateway.main(flags_of(small_npz, tmp_path / "out"))
    captured = capsys.readouterr()
    assert stop.value.code == 130 and captured.err.count("\n") == 1 and "interrupted" in captured.err
    assert "known so far" in captured.out and ("plain, depth 1" in captured.out) == known
    assert not (tmp_path / "out").exists()
