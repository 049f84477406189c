"""The shell scripts say what they take, and compute nothing, where they are asked for help or given too little."""

import subprocess

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    "argv, status, words",
    [
        (["figures.sh", "--help"], 0, "scripts/figures.sh [--dataset_path DIR]"),
        (["figures.sh", "--dataset_path"], 2, "figures.sh: error: --dataset_path needs a folder"),
        (["figures.sh", "--seeds", "1", "--output_path"], 2, "figures.sh: error: --output_path needs a folder"),
        (["kernel_machines.sh", "--help"], 0, "kernel_machines.sh DATASET ACTIVATION"),
        (["kernel_machines.sh", "mnist"], 2, "error: give DATASET ACTIVATION"),
        (["kernel_machines.sh", "--resume", "relu"], 2, "error: give DATASET ACTIVATION"),
        (["sweep.sh", "--help"], 2, "run scripts/mnist.sh, fashion_mnist.sh or cifar10.sh"),
    ],
)
def test_help_and_too_little(argv, status, words):
    done = subprocess.run(["bash", f"scripts/{argv[0]}", *argv[1:]], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status and words in (done.stderr if status else done.stdout)


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-images.idx3-ubyte.gz"])
def test_the_figures_look_for_mnist_where_its_reader_does(tmp_path, place, file):
    code = """eval "$(sed -n '/^images() {/,/^}/p;/^if images/p' scripts/figures.sh)
        echo there; else echo skipped; fi" """
    for expected in ("skipped", "there"):
        done = subprocess.run(["bash", "-c", f"data={tmp_path}\n{code}"], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.strip() == expected, done.stderr
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / file).touch()
