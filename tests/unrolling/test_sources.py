"""Modules of a user's file and DEQs of checkpoints: what is loaded is what was there, and what is wrong is one line."""

import pickle
import sys
from pathlib import Path

import pytest
import torch

from deq_enn.data.datasets import load_dataset
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.deq import DEQ, as_drawn
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.training.loop import run
from deq_enn.training.run_files import Config, best_path, checkpoint_path
from deq_enn.unrolling import sources
from deq_enn.unrolling.sources import EQUILIBRIUM, load_any, load_checkpoint, load_module
from tests.conftest import one_line


def test_a_file_imports_those_beside_it(tmp_path):
    (tmp_path / "beside_it.py").write_text("import torch\nlayer = torch.nn.Linear(2, 3)\n", "utf-8")
    (tmp_path / "late_beside.py").write_text("bias = 7.0\n", "utf-8")
    (tmp_path / "mine.py").write_text(
        "from beside_it import layer\ndef build():\n    import late_beside\n"
        "    layer.bias.data.fill_(late_beside.bias)\n    return layer\n",
        "utf-8",
    )
    path = [*sys.path]
    module, steps = load_module(f"{tmp_path}/mine.py:build")
    assert module.bias.tolist() == [7.0] * 3 and steps is None and sys.path == path


def test_a_file_that_changes_the_working_folder_leaves_it_to_other_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "else where").mkdir()
    text = "import os, torch\nos.chdir('else where')\nbuild = lambda: torch.nn.Linear(2, 3)\n"
    (tmp_path / "my.own file.py").write_text(text, "utf-8")
    weights = torch.nn.Linear(2, 3).state_dict()
    torch.save(weights, "w.pt")
    module, _ = load_module("my.own file.py:build", "w.pt")
    assert torch.equal(module.weight, weights["weight"]) and Path.cwd() == tmp_path


@pytest.mark.parametrize("prefix", ("", "module.", "_orig_mod.", "_orig_mod.module."))
def test_weights_are_those_of_the_module_whatever_it_was_wrapped_in(tmp_path, prefix):
    (tmp_path / "mine.py").write_text("import torch\nbuild = lambda: torch.nn.Linear(2, 3)\n", "utf-8")
    trained = torch.nn.Linear(2, 3)
    state = {prefix + name: value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    module, _ = load_module(f"{tmp_path}/mine.py:build", tmp_path / "w.pt")
    assert torch.equal(module.weight, trained.weight) and torch.equal(module.bias, trained.bias)


@pytest.mark.parametrize("status", ("", "0", "'no GPU'"))
def test_a_build_that_ends_the_program_is_an_error(tmp_path, status):
    (tmp_path / "ends.py").write_text(f"import sys\ndef build():\n    sys.exit({status})\n", "utf-8")
    with pytest.raises(ValueError, match=r"build\(\) ends the program \(SystemExit: "):
        load_module(f"{tmp_path}/ends.py:build")


def test_the_checkpoint_of_a_run(small_npz, tmp_path):
    data = load_dataset("npz", small_npz)
    for training in ("full", "readout"):
        config = Config("npz", "inn", 16, 0.1, 2, 20, train=training)
        run(config, data, lambda: DEQ(ACTIVATIONS["relu"], 5, 16, 3, 0.2), tmp_path / training, tmp_path / training)
    folder = tmp_path / "full"
    path = checkpoint_path(Config("npz", "inn", 16, 0.1, 2, 20, train="full"), folder)
    deq = load_checkpoint(path, ACTIVATIONS["relu"], 0.2)
    state = torch.load(path, weights_only=True)
    assert torch.equal(deq.A, state["model"]["A"]) and not as_drawn(deq)
    correct = (deq(data.X_test).argmax(1) == data.y_test).double().mean().item()
    assert correct == pytest.approx(state["history"][-1]["test_accuracy"])
    best = load_checkpoint(
        best_path(Config("npz", "inn", 16, 0.1, 2, 20, train="full"), folder), ACTIVATIONS["relu"], 0.2
    )
    assert best.B.shape == (16, 5)
    readout = checkpoint_path(Config("npz", "inn", 16, 0.1, 2, 20), tmp_path / "readout")
    (tmp_path / "other.pt").write_bytes(pickle.dumps({"model": 1}, 2)[:-4])
    torch.save({"model": {"B": torch.ones(2, 2)}}, tmp_path / "half.pt")
    for path, message in (
        (readout, "holds a readout alone"),
        (tmp_path / "other.pt", "is no checkpoint of main.py"),
        (tmp_path / "half.pt", "it has no A, readout.weight; a network of your own goes by --module"),
        (tmp_path / "no.pt", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_checkpoint(path, ACTIVATIONS["relu"], 0.2)
        assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_says_what_to_do(tmp_path):
    deq = DEQ("tanh", 6, 16, 3, 0.2).state_dict()
    conv = ConvDEQ("tanh", (1, 2, 3), 5, 3, 0.2).state_dict()
    key = f"3{EQUILIBRIUM}"
    for state, message in (
        ({"model": conv}, "is of a convolutional DEQ.* --module FILE.py:build --weights"),
        ({"model": torch.zeros(3)}, "it has no A, B, readout.weight"),
        (deq | {"A": None}, "it has no A; "),
        (deq | {"B": torch.zeros(3)}, "its A, B and readout are no matrices"),
        (deq | {"A": torch.zeros(3, 3)}, "size mismatch for A"),
        (deq | {"more": torch.zeros(3)}, 'Unexpected key.* "more"'),
        ({key: torch.zeros(4, 4)}, "it has other layers"),
        ({key: "x"}, "it has other layers"),
        ({"0.weight": torch.zeros(80, 784), key: torch.zeros(80, 80), "n": torch.zeros(())}, "it has other layers"),
        ({"0.weight": torch.zeros(80, 99), key: torch.zeros(80, 80)}, "its images have a shape that is not known"),
        ({"0.weight": torch.zeros(80, 784), key: torch.zeros(80, 80)}, "Error.* in loading"),
    ):
        torch.save(state, tmp_path / "c.pt")
        with pytest.raises(ValueError, match=message) as caught:
            load_any(tmp_path / "c.pt", "tanh", 0.2)
        assert "c.pt is " in one_line(caught) and "--module FILE.py:build" in str(caught.value)


def test_checkpoints_of_positive_concave_deqs(tmp_path):
    for name, s in (("linear_pcdeq_1", "softsign"), ("multi_conv_pcdeq_2", "sigmoid")):
        network = build_pcdeq(name, s, (1, 28, 28), 7, seed=3).eval()
        for state in (network.state_dict(), {"model": network.state_dict(), "epochs": 2}):
            torch.save(state, tmp_path / "p.pt")
            again = load_any(tmp_path / "p.pt", s, 0.2)
            x = torch.randn(2, 784, generator=torch.Generator().manual_seed(0))
            assert torch.equal(again(x), network(x)) and again.equilibria[0].activation == s
    with pytest.raises(ValueError, match="of a positive concave DEQ: --activation must be one of tanh") as caught:
        load_any(tmp_path / "p.pt", "relu", 0.2)
    assert one_line(caught)


@pytest.mark.parametrize(
    "config, activation, sigma_a2, words",
    [
        (
            {"model": "tanh_inn", "activation": ""},
            "relu",
            0.2,
            "is of a DEQ of tanh, not of relu: give --activation tanh",
        ),
        ({"model": "deq", "activation": "swish"}, "tanh", 0.2, "is of a DEQ of swish"),
        ({"model": "tanh_inn", "activation": "", "asquare": 0.5}, "tanh", 0.2, "= 0.5, not 0.2: give --asquare 0.5"),
        ({"model": "tanh_inn", "activation": "", "steps": 3}, "tanh", 0.2, "trained as 3 steps"),
        ({"model": "tanh_inn", "activation": ""}, "tanh", 0.2, None),
        ({"model": "deq", "activation": "mine.py:f"}, "other.py:f", 0.2, None),
        (None, "relu", 0.5, None),  # an older checkpoint
    ],
)
def test_a_checkpoint_is_not_judged_as_another_deq(tmp_path, config, activation, sigma_a2, words):
    state = {"model": DEQ("tanh", 5, 8, 3, 0.2).state_dict()}
    if config is not None:
        state["config"] = {"train": "full", "asquare": 0.2} | config
    torch.save(state, tmp_path / "c.pt")
    if words is None:
        sources._check_asked(tmp_path / "c.pt", activation, sigma_a2)
    else:
        with pytest.raises(ValueError, match=words) as caught:
            load_any(tmp_path / "c.pt", activation, sigma_a2)
        assert one_line(caught)
