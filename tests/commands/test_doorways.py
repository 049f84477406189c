"""Doorways that are programs: what they print are the numbers of the package, and what is wrong is one line."""

import re

import pytest

from deq_enn.commands import doorways
from deq_enn.data import command as data_command
from deq_enn.data.datasets import load_dataset
from deq_enn.matching import one_layer_tanh, two_layer_lrelu
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import implicit_ck
from deq_enn.theory.gaussian import gaussian_moments

NUMBER = re.compile(r"(\w+) = ([-+.e\d]+)")


def numbers(text):
    return [{name: float(value) for name, value in NUMBER.findall(line)} for line in text.splitlines()]


def refused(capsys, program, *argv):
    with pytest.raises(SystemExit) as stop:
        program([*map(str, argv)])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("asquare, tau0", [(0.2, 1.0), (0.1, 0.7)])
def test_the_roots_of_the_leaky_relu_layers(capsys, asquare, tau0):
    doorways.leaky_relu(["--asquare", str(asquare), "--tau0", str(tau0)])
    out = capsys.readouterr().out
    roots = two_layer_lrelu.solutions(implicit_ck(ACTIVATIONS["relu"], asquare, tau0), tau0)
    assert out.count("\n") == len(roots) and out.count(", taken") == 1
    for said, root in zip(numbers(out), roots):
        assert said == pytest.approx({name: getattr(root, name) for name in ("a1", "b1", "a2", "b2")}, rel=1e-8)


def test_the_hard_tanh(capsys):
    doorways.hard_tanh(["--asquare", "0.3"])
    match = one_layer_tanh.match(implicit_ck(ACTIVATIONS["tanh"], 0.3))
    assert numbers(capsys.readouterr().out) == [pytest.approx({"a": match.a, "c": match.c}, rel=1e-8)]


def test_the_moments_of_an_activation(capsys):
    doorways.moments(["--activation", "swish", "--tau", "0.9"])
    moments = gaussian_moments(ACTIVATIONS["swish"], 0.9)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0]: float(line[-1]) for line in lines} == pytest.approx(
        {name: getattr(moments, name) for name in doorways.MOMENTS}, rel=1e-12
    )


def test_a_data_set_in_numbers(capsys, small_npz):
    data_command.main(["--dataset", "npz", "--dataset_path", str(small_npz)])
    out = capsys.readouterr().out
    data = load_dataset("npz", small_npz)
    spread = data.X_train.double().square().sum(1).std()
    for words in (
        "npz: n = 60 training and 30 test samples, p = 5, 3 classes",
        f"tau_0 = 1, by centring and dividing by {data.scale:.6g}",
        f"standard deviation {spread:.4g} (mean 1)",
    ):
        assert words in out


def test_what_is_wrong_is_one_line(capsys, tmp_path):
    assert "two_layer_lrelu.py: error: argument --asquare" in refused(capsys, doorways.leaky_relu, "--asquare", 1)
    assert "one_layer_tanh.py: error: argument --tau0" in refused(capsys, doorways.hard_tanh, "--tau0", "nan")
    assert "unknown activation 'swosh'" in refused(capsys, doorways.moments, "--activation", "swosh")
    assert "gaussian_integration.py: error: " in refused(capsys, doorways.moments, "--activation", "sin", "--tau", 1e5)
    assert "data_prepare.py: error: " in refused(capsys, data_command.main, "--dataset", "npz")
    words = refused(capsys, data_command.main, "--dataset", "npz", "--dataset_path", tmp_path / "none.npz")
    assert "none.npz" in words


@pytest.mark.parametrize(
    "argv, words",
    [
        pytest.param(["two_layer_lrelu.py", "--asquare", "0.2"], "a1 = 1.22564362", marks=pytest.mark.slow),
        pytest.param(["one_layer_tanh.py"], "a = 0.764296679", marks=pytest.mark.long),
        pytest.param(["gaussian_integration.py", "--activation", "relu"], "E[f]", marks=pytest.mark.long),
        pytest.param(["data_prepare.py"], "gmm: n = 6000", marks=pytest.mark.long),
        pytest.param(["data_prepare.py", "--help"], "The code lives in `deq_enn/data/`", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_doorway_from_another_folder(forks, tmp_path, argv, words):
    done = forks.run(*argv[1:], program=argv[0], cwd=str(tmp_path), fresh=True)
    assert done["status"] == 0 and words in done["out"] and not done["err"]
