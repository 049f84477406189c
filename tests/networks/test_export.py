"""A network that was written is the network that was made: rebuilt, as a torch.export program and in onnxruntime."""

import json
import math
import pickle
import sys
from functools import cache

import numpy as np
import pytest
import torch

from deq_enn.data.datasets import load_dataset
from deq_enn.machines.readout import solve
from deq_enn.networks import export as export_network
from deq_enn.networks.build import build_model, matched_enn
from deq_enn.networks.conv_enn import build_conv, conv_network_of
from deq_enn.networks.deq import DEQ
from deq_enn.networks.export import export, network_of, rebuild
from deq_enn.networks.layers import describe_layer, make_layer
from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function

P, M, K = 12, 24, 3
X = torch.nn.functional.normalize(torch.randn(40, P, generator=torch.Generator().manual_seed(0)))


def matched(name, sigma_a2=0.2, kernel="ck", family="auto"):
    return build_model("matched_enn", P, M, K, sigma_a2, activation=ACTIVATIONS[name], kernel=kernel, family=family)


def plain(name, depth):
    return build_model("unmatched_enn", P, M, K, 0.2, activation=ACTIVATIONS[name], depth=depth)


def elsewhere(name):
    """A match for a DEQ that is centred at another scale than the data's, with constants on its layers."""
    return matched_enn(DEQ(ACTIVATIONS[name], P, M, K, 0.2, tau0=1.3), X)


NETWORKS = {
    "leaky ReLU": lambda: matched("relu"),
    "hard tanh": lambda: matched("tanh"),
    "piecewise": lambda: matched("swish"),
    "cubic": lambda: matched("gelu", family="hermite"),
    "own": lambda: matched("tanh", family="own"),
    "own, with a constant": lambda: matched("sigmoid", family="own"),
    "own, with kinks": lambda: matched("hardtanh", family="own"),
    "tangent, piecewise": lambda: matched("gelu", kernel="ntk"),
    "tangent, cubic": lambda: matched("softplus", kernel="ntk", family="hermite"),
    "tangent, hard tanh": lambda: matched("erf", kernel="ntk"),
    "with a linear layer": lambda: matched("sin", 0.05),
    "off-centre": lambda: elsewhere("swish"),
    "off-centre, leaky ReLU": lambda: elsewhere("relu"),
    "paper's": lambda: build_model("l_relu_enn", P, M, K, 0.2),
    **{
        f"plain {name}": lambda name=name, depth=depth: plain(name, depth)
        for name, depth in zip(ACTIVATIONS, (1, 2, 3) * 5)
    },
}


@cache
def network(name):
    return NETWORKS[name]()


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_numbers(name):
    x = 3 * torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for layer in network(name).layers:
        again = make_layer(layer.name, json.loads(json.dumps(describe_layer(layer))))
        torch.testing.assert_close(again.fn(x), layer.fn(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again.derivative(x), layer.derivative(x), rtol=1e-11, atol=1e-11)


def test_the_families_are_there():
    kinds = {(name, describe_layer(layer)["kind"]) for name in NETWORKS for layer in network(name).layers}
    assert {kind for _, kind in kinds} == {"activation", "piecewise_linear", "polynomial", "rescaled"}
    assert ("cubic", "polynomial") in kinds and ("plain mish", "activation") in kinds
    assert {network(name).match.family for name in ("leaky ReLU", "hard tanh", "piecewise", "cubic")} == {
        "l_relu",
        "hard_tanh",
        "piecewise",
        "hermite",
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_the_enn_on_rows_before_they_are_normalised(name):
    enn, mean = network(name).double(), torch.linspace(-1, 1, P, dtype=torch.float64)
    x = X.double()
    torch.testing.assert_close(network_of(enn, mean=mean, scale=2.5)(2.5 * x + mean), enn(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(network_of(enn).features(x) / math.sqrt(M), enn.features(x), rtol=1e-10, atol=1e-10)
    enn.float()


@pytest.mark.parametrize("name", ["leaky ReLU", "cubic", "plain tanh", "own, with a constant"])
@pytest.mark.slow
def test_files_make_the_network_again(name, tmp_path):
    made = network_of(network(name), None, torch.ones(P), 0.5)
    result = export(made, tmp_path / "folder" / "enn.pt", X[:4])
    assert result["difference"]["pt2"] <= 1e-6
    again = rebuild(tmp_path / "folder" / "enn.pt")
    program = torch.export.load(tmp_path / "folder" / "enn.pt2").module()
    with torch.no_grad():
        for rows in (1, 2, 7, 40):
            expected = made(X[:rows])
            assert (again(X[:rows]) - expected).abs().max() <= 1e-6 * expected.abs().max()
            assert (program(X[:rows]) - expected).abs().max() <= 1e-6 * expected.abs().max()
    said = json.loads((tmp_path / "folder" / "enn.json").read_text())
    assert (said["inputs"], said["widths"], said["classes"], said["dtype"]) == (P, [M] * len(made.layers), K, "float32")
    suffixes = [".pt", ".json", ".pt2", ".onnx"]
    assert [f"enn{suffix}" for suffix in suffixes][: len(result["files"])] == [
        file.rpartition("/")[2] for file in result["files"]
    ]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == sorted(
        file.rpartition("/")[2] for file in result["files"]
    )


def test_random_numbers_of_the_user_stay_as_they_are(tmp_path):
    state = torch.get_rng_state()
    program = network_of(network("leaky ReLU"))
    export(program, tmp_path / "enn.pt", X[:2])
    rebuild(tmp_path / "enn.pt")
    conv_network_of(build_conv("matched_conv_enn", (1, 4, 4), 4, K, 0.2, "relu"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_a_network_in_double_precision_stays_in_it(tmp_path):
    enn = plain("swish", 2).double()
    export(enn, tmp_path / "enn.pt", X[:4])
    again = rebuild(tmp_path / "enn.pt")
    assert again.mean.dtype == torch.float64
    torch.testing.assert_close(again(X.double()), enn(X.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_gives_the_same(name, tmp_path):
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    made = network_of(network(name), None, 0.1 * torch.ones(P), 0.8)
    result = export(made, tmp_path / "enn.pt", X[:4])
    assert result["difference"]["onnx"] <= 1e-5 and result["skipped"] is None
    program = (tmp_path / "enn.onnx").read_bytes()
    with torch.no_grad():
        for rows in (1, 2, 7, 40):
            expected = made(X[:rows])
            difference = export_network.onnx_outputs(program, X[:rows]) - expected
            assert difference.abs().max() <= 1e-5 * expected.abs().max()


def test_the_readout_is_that_of_its_ridge_regression_on_the_users_rows(small_npz):
    import numpy as np

    data = load_dataset("npz", small_npz)
    enn = build_model("matched_enn", 5, 32, 3, 0.2, activation=ACTIVATIONS["swish"])
    order = torch.randperm(len(data.X_train), generator=torch.Generator().manual_seed(0))
    X_train, y_train = data.X_train[order], data.y_train[order]
    readout, _ = solve(enn, X_train, y_train, 3)
    made, expected = network_of(enn, readout, data.mean, data.scale), readout.predict(enn, data.X_test).mean
    raw = torch.from_numpy(np.load(small_npz)["X_test"])  # as the user has them
    with torch.no_grad():
        torch.testing.assert_close(made(raw).double(), expected, rtol=1e-4, atol=1e-4)
    assert made.readout.bias.tolist() == pytest.approx([1 / 3] * 3)
    assert (expected.argmax(1) == data.y_test).double().mean() > 0.8


def test_a_function_of_the_users_own_goes_into_the_program_alone(tmp_path):
    enn = build_model("unmatched_enn", P, M, K, 0.2, activation=from_function(lambda x: torch.tanh(x) * x, "mine"))
    export(enn, tmp_path / "enn.pt", X[:4])
    program = torch.export.load(tmp_path / "enn.pt2").module()
    torch.testing.assert_close(program(X), enn(X))
    with pytest.raises(ValueError, match="layer mine is a function.*load the .pt2 program"):
        rebuild(tmp_path / "enn.pt")
    for near in (lambda x: x.clamp(-6.5, 6.5), lambda x: 1 + x, lambda x: torch.where(x.abs() < 7, x**3, 0 * x)):
        assert describe_layer(from_function(near, "mine"))["kind"] == "own"  # a polynomial as far as one looks
    declared = Activation("mine", torch.atan, torch.cosh, (-20, 20), slopes=(0, 1, 0))
    assert describe_layer(declared)["kind"] == "own"
    swindle = from_function(lambda x: torch.tanh(2 * x), "tanh")  # a name of the registry, and not what it names
    assert describe_layer(swindle)["kind"] == "own"


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = export(plain("tanh", 1), tmp_path / "enn.pt", X[:4])
    assert "pip install onnx onnxscript onnxruntime" in result["skipped"] and "\n" not in result["skipped"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["enn.json", "enn.pt", "enn.pt2"]


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    enn = plain("tanh", 1)
    with pytest.raises(ValueError, match="must end in .pt, got .*enn.onnx: .*others beside it"):
        export(enn, tmp_path / "enn.onnx", X)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be written.*export to another folder"):
        export(enn, tmp_path / "file" / "enn.pt", X)
    for rows in (X[:1], X[:, :5], X[0]):
        with pytest.raises(ValueError, match="two or more rows of 12, got shape"):
            export(enn, tmp_path / "enn.pt", rows)
    calls, real = [], export_network.atomic_write

    def disk_full(path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(path)

    monkeypatch.setattr(export_network, "atomic_write", disk_full)
    with pytest.raises(ValueError, match="cannot be written.*No space left"):
        export(enn, tmp_path / "enn.pt", X)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("sees", ("flatten", "pool"))
def test_a_convolutional_network_has_its_own_readout(tmp_path, sees):
    enn = build_conv("plain_conv", (2, 4, 3), 6, 3, 0.2, "tanh", padding="circular", readout=sees)
    images = torch.randn(5, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(conv_network_of(enn)(images.flatten(1)), enn(images), rtol=1e-5, atol=1e-6)
    if sees == "pool":
        export(enn, tmp_path / "enn.pt", images.flatten(1))
        torch.testing.assert_close(rebuild(tmp_path / "enn.pt")(images.flatten(1)), enn(images), rtol=1e-5, atol=1e-6)


def test_what_is_no_explicit_network_is_refused(tmp_path):
    for module in (DEQ("tanh", P, M, K, 0.2), torch.nn.Linear(P, K)):
        with pytest.raises(ValueError, match="is no explicit network of this project"):
            export(module, tmp_path / "enn.pt", X)
    assert not list(tmp_path.iterdir())


def test_another_output_is_refused():
    expected = torch.tensor([[1.0, -2.0]])
    assert export_network._difference("it", expected + 1e-6, expected) <= 1e-5
    for other in (expected + 3e-5, expected * math.nan):
        with pytest.raises(RuntimeError, match="it differs from the network by .*nothing was written"):
            export_network._difference("it", other, expected)


def test_damaged_files_are_said_in_one_line_and_nothing_is_unpickled(tmp_path):
    path = tmp_path / "enn.pt"
    export(plain("tanh", 1), path, X[:4])
    good, said = path.read_bytes(), path.with_suffix(".json").read_text()

    class Harm:
        def __reduce__(self):
            return (tmp_path / "harm").write_text, ("done",)

    other = export_network._saved(torch.save, {"mean": torch.ones(2)})
    for content in (good[:-200], b"", pickle.dumps(Harm(), 2), other):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="enn.pt is damaged, or not of enn.json") as caught:
            rebuild(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()
    path.write_bytes(good)
    changed = json.loads(said)
    (layer,) = changed["layers"]
    ramps = {"name": "it", "kind": "piecewise_linear", "kinks": [0, 1], "slopes": [0, 1, 0], "value_at_zero": 0.0}
    for text in (
        "{",
        "[]",
        said.replace("tanh", "tank"),
        json.dumps(changed | {"format": 2}),
        json.dumps(changed | {"widths": "24"}),
        json.dumps(changed | {"dtype": "float33"}),
        json.dumps(changed | {"layers": []}),
        json.dumps(changed | {"layers": [], "widths": []}),
        json.dumps(changed | {"layers": [layer | {"constant": math.nan}]}),
        json.dumps(changed | {"layers": [ramps | {"kinks": [1, 0]}]}),
        json.dumps(changed | {"layers": [ramps | {"kinks": [math.nan, 1]}]}),
        json.dumps(changed | {"layers": [ramps | {"slopes": [0, math.inf, 0]}]}),
    ):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(ValueError, match="enn.json does not describe a network") as caught:
            rebuild(path)
        assert "\n" not in str(caught.value)
    path.with_suffix(".json").write_text(json.dumps({"format": "program"}))  # of a trained module
    with pytest.raises(ValueError, match=r"it is a program, torch.export.load\('.*enn.pt2'\) has it"):
        rebuild(path)
    for gone, name in ((path.with_suffix(".json"), "enn.json"), (path, "enn.pt")):
        path.with_suffix(".json").write_text(said)
        gone.unlink()
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            rebuild(path)


def test_the_labels_go_along_in_the_order_of_the_outputs(tmp_path):
    enn = matched("relu")
    labels = ["virginica", "setosa", 3]
    export(network_of(enn, labels=labels), tmp_path / "enn.pt", X)
    assert json.loads((tmp_path / "enn.json").read_text("utf-8"))["labels"] == labels
    assert rebuild(tmp_path / "enn.pt").labels == tuple(labels)
    training = network_of(enn).train()
    export(training, tmp_path / "enn.pt", X)
    assert training.training  # it is left as it was
    export(network_of(enn, labels=labels), tmp_path / "enn.pt", X)
    if (tmp_path / "enn.onnx").exists():
        import onnx

        metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "enn.onnx").metadata_props}
        assert json.loads(metadata["labels"]) == labels
    said = json.loads((tmp_path / "enn.json").read_text("utf-8"))
    del said["labels"]  # as files were written before
    (tmp_path / "enn.json").write_text(json.dumps(said), "utf-8")
    assert rebuild(tmp_path / "enn.pt").labels is None
    for numpys in (np.unique([7, 1, 5, 1]), [*np.unique([7, 1, 5])], np.array(["a", "b", "c"])):
        assert json.dumps(network_of(enn, labels=numpys).labels) == json.dumps(np.asarray(numpys).tolist())
    for wrong in (["a", "b"], ["a", "b", "a"], ["a", "b", None], "abc"):
        with pytest.raises(ValueError, match="labels must be"):
            network_of(enn, labels=wrong)
