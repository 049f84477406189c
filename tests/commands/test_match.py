"""`python -m deq_enn match`: the numbers that it prints are those of the match."""

import json

import pytest
import torch

from deq_enn.commands import match as match_command
from deq_enn.matching.families import match
from deq_enn.networks.layers import make_layer
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import explicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.finite_width import implicit_fluctuation


def printed(capsys, *argv):
    match_command.main([*map(str, argv)])
    captured = capsys.readouterr()
    return captured.out, captured.err


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        match_command.main([*map(str, argv)])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("deq-enn match: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(
    "argv, words",
    [
        (
            ["--activation", "relu"],
            ["family l_relu:", "a = 1.22564362, b = 0.754049231", "a = 0.926118703, b = 0.000957369008", "gamma^2 = "],
        ),
        (["--activation", "tanh"], ["by 1 layer x", "a = 0.764296679, c = 1.19648533", "alpha_2 = 0, alpha_3 = 0"]),
        (
            ["--activation", "gelu", "--family", "hermite", "--asquare", "0.1"],
            ["by 2 layers x", " x^3", "the DEQ's own: "],
        ),
        (["--activation", "swish", "--kernel", "ntk"], ["kappa^2 = ", "beta_3 = ", "tangent kernel", "passed over: "]),
    ],
)
def test_a_match_in_words(capsys, argv, words):
    out, err = printed(capsys, *argv)
    assert not [word for word in words if word not in out], out
    assert err == "" or err.startswith("deq-enn match: warning: sigma_a^2")


def test_a_match_in_json_is_the_match(capsys):
    numbers = json.loads(printed(capsys, "--activation", "swish", "--asquare", 0.15, "--tau0", 0.8, "--json")[0])
    swish = ACTIVATIONS["swish"]
    expected = match(swish, 0.15, 0.8)
    assert numbers["deq"]["tau"] == get_tau(swish, 0.15, 0.8)
    assert numbers["deq"]["coefficients"]["gamma^2"] == expected.target.diag
    assert numbers["deq"]["fluctuation"] == sum(implicit_fluctuation(swish, 0.15, 0.8))
    said = numbers["match"]
    assert (said["family"], said["residual"]) == (expected.family, expected.residual)
    layers = [make_layer(layer["name"], layer) for layer in said["layers"]]
    x = torch.linspace(-3, 3, 31, dtype=torch.float64)
    for layer, other in zip(layers, expected.layers, strict=True):
        torch.testing.assert_close(layer.fn(x), other.fn(x), rtol=1e-12, atol=1e-12)
    assert explicit_ck(layers, 0.8).c3 == pytest.approx(expected.target.c3, rel=1e-10)


def test_the_own_activation_as_a_formula(capsys):
    out, _ = printed(capsys, "--activation", "tanh", "--family", "own")
    assert "family own:\n  sigma_1: 0.977056677 tanh(0.9814704 x)\n" in out
    out, _ = printed(capsys, "--activation", "sigmoid", "--family", "own", "--kernel", "ntk")
    assert "sigma_1: 0.998631785 sigmoid(0.902958604 x) - 0.499315893\n" in out


def test_the_tangent_kernel_in_json(capsys):
    numbers = json.loads(printed(capsys, "--activation", "erf", "--kernel", "ntk", "--json")[0])
    target = implicit_ntk(ACTIVATIONS["erf"], 0.2)
    assert numbers["deq"]["coefficients"]["kappa^2"] == target.diag and numbers["deq"]["fluctuation"] is None


def test_a_function_of_a_file(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("import torch\ndef bent(x):\n    return torch.tanh(x) + 0.1 * x\n")
    out, _ = printed(capsys, "--activation", tmp_path / "mine.py:bent", "--asquare", 0.1)
    assert out.startswith("DEQ of bent, sigma_a^2 = 0.1, tau_0 = 1: tau_* = ")


@pytest.mark.slow
def test_what_cannot_be_matched_is_one_line(capsys, tmp_path):
    assert "a hard tanh is odd" in refused(capsys, "--activation", "relu", "--family", "hard_tanh")
    assert "there is no file" in refused(capsys, "--activation", tmp_path / "none.py:f")
    assert "unknown activation 'swosh'" in refused(capsys, "--activation", "swosh")
    (tmp_path / "even.py").write_text("import torch\ndef even(x):\n    return x * x\n")
    (tmp_path / "steep.py").write_text("def steep(x):\n    return 3 * x\n")
    assert "no tau_*" in refused(capsys, "--activation", tmp_path / "steep.py:steep", "--asquare", 0.5)
    assert "no linear part" in refused(capsys, "--activation", tmp_path / "even.py:even", "--asquare", 0.01)
    for argv, words in (
        (["--activation", "relu", "--asquare", "1"], "between 0 and 1"),
        (["--activation", "relu", "--tau0", "0"], "positive and finite"),
        (["--activation", "relu", "--tau0", "1e-300"], "between 1e-70 and 1e70"),
        (["--activation", "relu", "--tau0", "1e300"], "between 1e-70 and 1e70"),
        (["--activation", "relu", "--family", "cubic"], "invalid choice"),
        ([], "--activation"),
    ):
        assert words in refused(capsys, *argv)
