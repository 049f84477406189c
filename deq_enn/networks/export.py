"""An explicit network is written for use elsewhere: its weights, the numbers that rebuild it, and programs that run it.

`export(network, "enn.pt", X)` writes

    enn.pt     the state_dict, for torch.load(..., weights_only=True)
    enn.json   what rebuilds the network around it: sizes, and each layer as numbers or as a name of the registry
    enn.pt2    a torch.export program, for torch.export.load
    enn.onnx   where onnx and onnxscript are installed; onnxruntime, where it is, must give the same

all or none of them. `rebuild("enn.pt")` makes the network again, and runs nothing that a file brings along. A network
here takes rows as the user has them: what `load_dataset` subtracts and divides by is part of it.
"""

import contextlib
import copy
import importlib
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.nn.functional import linear

from deq_enn.networks.enn import ENN
from deq_enn.networks.layers import describe_layer, make_layer
from deq_enn.theory.activations import Activation
from deq_enn.utils.files import atomic_write, check_network_file

if TYPE_CHECKING:
    from deq_enn.networks.conv_enn import ConvENN

FORMAT = 1  # number of the JSON file's format, which `rebuild` asks for
TOLERANCE = 1e-5  # difference that a program's outputs may have, relative to the largest of the network's
INSTALL = "pip install onnx onnxscript onnxruntime"


class LinearReadout(Protocol):
    """A readout that was fitted elsewhere: `weights` (m, classes) and `mean` (classes,), as of `machines.readout`."""

    @property
    def weights(self) -> torch.Tensor:
        """Returns the matrix (m, classes) that features are multiplied by."""
        ...

    @property
    def mean(self) -> torch.Tensor:
        """Returns the constants (classes,) that predictions have added."""
        ...


class ExportedENN(nn.Module):
    """x -> readout of x_L, with x_l = layer_l(W_l x_{l-1}) and x_0 = (x - mean)/scale; the factors are in the weights.

    Parameters
    ----------
    inputs, widths, classes : of x, of the hidden layers, of the outputs.
    layers : one Activation a hidden layer.

    Attributes
    ----------
    labels : what the data set calls the classes, in the order of the outputs; None where that is not known.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    labels: tuple[int | str, ...] | None = None

    def __init__(self, inputs: int, widths: Sequence[int], classes: int, layers: Sequence[Activation]):
        super().__init__()
        self.layers = tuple(layers)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(()))
        self.weights = nn.ParameterList(torch.zeros(*shape) for shape in zip(widths, [inputs, *widths]))
        self.readout = nn.Linear(widths[-1], classes, device="meta").to_empty(
            device=self.mean.device
        )  # draws no weights

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the last hidden layer (n, m) of rows x (n, p)."""
        x = (x - self.mean) / self.scale
        for weight, layer in zip(self.weights, self.layers):
            x = layer.fn(linear(x, weight))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores (n, classes) of rows x (n, p)."""
        return self.readout(self.features(x))

    def extra(self) -> dict:
        """Returns what `rebuild` needs beside sizes and layers."""
        return {}


@torch.no_grad()
def network_of(
    enn: ENN,
    readout: LinearReadout | None = None,
    mean: torch.Tensor | None = None,
    scale: float = 1.0,
    labels: Sequence[int | str] | None = None,
) -> ExportedENN:
    """Returns the explicit network for rows x as they are, where `enn` takes (x - mean)/scale.

    Parameters
    ----------
    enn : with layers that are centred, or not, as the DEQ asks.
    readout : of `machines.readout.solve` for `enn`, whose outputs estimate one-hot rows: the bias is their mean in
        training. By default the readout is that of `enn`, without a bias.
    mean, scale : what `load_dataset` normalised the data by, `Dataset.mean` and `Dataset.scale`.
    labels : what the data set calls the classes, in the order of the outputs, `Dataset.classes`.

    Raises
    ------
    ValueError : there is not a label for each output.
    """
    dims = [len(weight) for weight in enn.weights]
    network = ExportedENN(enn.weights[0].shape[1], dims, enn.readout.out_features, enn.layers)
    network = network.to(enn.weights[0].dtype)  # on the CPU, wherever `enn` is
    network.labels = checked_labels(labels, enn.readout.out_features)
    if mean is not None:
        network.mean.copy_(mean)
    network.scale.fill_(scale)
    *factors, last = [enn.input_scale, *(1 / math.sqrt(dim) for dim in dims)]
    for ours, weight, factor in zip(network.weights, enn.weights, factors):
        ours.copy_(weight * factor)
    network.readout.weight.copy_(last * (enn.readout.weight if readout is None else readout.weights.T))
    network.readout.bias.copy_(torch.zeros(()) if readout is None else readout.mean)
    return network


def checked_labels(labels: Any, outputs: int) -> tuple[int | str, ...] | None:
    """Returns the labels as a tuple; ValueError unless each output has one, an integer or a string."""
    if labels is None:
        return None
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(labels, (list, tuple)):
        labels = [label.item() if hasattr(label, "item") else label for label in labels]  # which may be NumPy's
    if not (isinstance(labels, (list, tuple)) and len(labels) == outputs == len(set(map(str, labels)))):
        raise ValueError(f"labels must be a list of {outputs} different ones, one for each output, got {labels!r:.100}")
    if not all(isinstance(label, int | str) for label in labels):
        raise ValueError(f"labels must be integers or strings, got {labels!r:.100}")
    return tuple(labels)


def export(network: "ExportedENN | ENN | ConvENN", path: Path | str, X_example: torch.Tensor) -> dict:
    """Writes the network as enn.pt, enn.json, enn.pt2 and, if it can, enn.onnx, for a `path` enn.pt.

    Parameters
    ----------
    network : of `network_of` or `conv_network_of`, or an ENN or ConvENN with a trained readout.
    path : ends in .pt.
    X_example : (n, p), two rows or more, that the programs are traced and checked with. They take any number of rows.
        Images are rows of c h w entries.

    Returns
    -------
    {"files": paths, "difference": {"pt2": ..., "onnx": ...}, "skipped": a sentence or None}; difference : the largest
    of the outputs at X_example, relative to the largest output.

    Raises
    ------
    ValueError : the network is none of these, the place cannot be written, X_example has not the network's inputs, or
        too few rows.
    RuntimeError : a program's outputs are not the network's to 1e-5.
    """
    check_network_file(path)
    path = Path(path)
    network = copy.deepcopy(_exportable(network)).cpu().eval()  # what is written holds tensors of the CPU
    p = len(network.mean)
    if X_example.ndim != 2 or X_example.shape[1] != p or len(X_example) < 2:
        raise ValueError(f"the example must be two or more rows of {p}, got shape {tuple(X_example.shape)}")
    return write_programs(network, path, X_example.to(network.mean), describe(network), network.labels)


def _exportable(network: Any) -> ExportedENN:
    """The network for rows as they are that this one is, or that it stands for; ValueError where there is none."""
    from deq_enn.networks.conv_enn import ConvENN, conv_network_of  # which imports this file

    if isinstance(network, ENN):
        return network_of(network)
    if isinstance(network, ConvENN):
        return conv_network_of(network)
    if isinstance(network, ExportedENN):
        return network
    raise ValueError(
        f"{type(network).__name__} is no explicit network of this project; verdict(module, X, y, held=...).export "
        "writes what stands in the place of a DEQ, and torch.export.export any module"
    )


def write_programs(
    network: nn.Module,
    path: Path | str,
    X_example: torch.Tensor,
    said: dict,
    labels: Sequence[int | str] | None,
    state: dict | None = None,
) -> dict:
    """Writes any network of rows on the CPU to the files of `export`, which says what is returned and raised.

    Parameters
    ----------
    network : in evaluation mode, with one tensor for an output.
    X_example : (n, ...), two rows or more.
    said : what the JSON file says of the network.
    labels : the names of the classes, for the ONNX metadata.
    state : the weights that the .pt file holds; None: the network's.
    """
    path = Path(path)
    with torch.no_grad():
        expected, single = network(X_example), network(X_example[:1])
    program = _traced(network, X_example)
    contents = {
        ".pt": _saved(torch.save, network.state_dict() if state is None else state),
        ".json": json.dumps(said, indent=1).encode(),
        ".pt2": _saved(torch.export.save, program),
    }
    with torch.no_grad():
        difference = {"pt2": _difference("the torch.export program", program.module()(X_example), expected)}
    onnx, skipped = _onnx(program, labels)
    if onnx is not None:
        contents[".onnx"] = onnx
        if (outputs := onnx_outputs(onnx, X_example)) is not None:
            difference["onnx"] = _difference("the ONNX program", outputs, expected)
            _difference("the ONNX program on one row", onnx_outputs(onnx, X_example[:1]), single)
    _write_together(path, contents)
    files = [str(path.with_suffix(suffix)) for suffix in contents]
    return {"files": files, "difference": difference, "skipped": skipped}


def _traced(network: nn.Module, X_example: torch.Tensor) -> torch.export.ExportedProgram:
    """Returns the torch.export program for any number of rows.

    Where the code asks for len(x), which tracing takes for a constant, it is compiled instead, which does not. Raises
    RuntimeError, of one line, where there is no program.
    """
    shapes, reason = ({0: torch.export.Dim("rows")},), ""
    with quiet():
        for strict in (False, True):
            try:
                return torch.export.export(network, (X_example,), dynamic_shapes=shapes, strict=strict)
            except Exception as error:  # of many kinds, with pages of the code that was traced
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"
                if "data-dependent" in str(error).lower():
                    reason = (
                        "its forward branches on the values of a tensor, as a loop does that tests for convergence; "
                        "give one that makes its steps without a test"
                    )
    raise RuntimeError(f"the network has no program of torch.export ({reason}); nothing was written")


def _write_together(path: Path, contents: dict[str, bytes]) -> None:
    """Writes the contents of each suffix, all of the files or none."""
    try:
        with contextlib.ExitStack() as stack:  # renamed when all are written
            for suffix, data in contents.items():
                stack.enter_context(atomic_write(path.with_suffix(suffix))).write(data)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): export to another folder") from None


def describe(network: ExportedENN) -> dict:
    """Returns what `rebuild` needs beside the state_dict, ready for JSON."""
    return network.extra() | {
        "format": FORMAT,
        "inputs": len(network.mean),
        "widths": [len(weight) for weight in network.weights],
        "classes": network.readout.out_features,
        "labels": network.labels,
        "dtype": str(network.mean.dtype).removeprefix("torch."),
        "layers": [describe_layer(layer) for layer in network.layers],
        "input": "rows (n, inputs) of the data set before it is normalised; the network itself subtracts `mean` "
        "and divides by `scale`, both in the state_dict",
        "output": "scores (n, classes), in the order of `labels` where they are known; the predicted class has the "
        "largest",
    }


def rebuild(path: Path | str) -> ExportedENN:
    """Returns the network that `export` wrote to this path, enn.pt, with enn.json beside it; runs nothing of theirs.

    Raises ValueError, in one line, where a file is missing or damaged, or a layer is a function of the user's own.
    """
    path = Path(path)
    try:
        said = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if said["format"] == "program":
            raise ValueError(f"it is a program, torch.export.load({str(path.with_suffix('.pt2'))!r}) has it")
        if said["format"] != FORMAT:
            raise ValueError(f"format {said['format']}, this code reads {FORMAT}")
        _check_sizes(said)
        layers = [make_layer(layer["name"], layer) for layer in said["layers"]]
        sizes = said["widths"], said["classes"], layers
        if "image_shape" in said:
            from deq_enn.networks.conv_enn import ExportedConvENN

            own = said["kernel_sizes"], said["padding"], said["sees"]
            network = ExportedConvENN(said["image_shape"], *sizes, *own)
        else:
            network = ExportedENN(said["inputs"], *sizes)
        network = network.to(getattr(torch, said["dtype"]))
        network.labels = checked_labels(said.get("labels"), said["classes"])
    except OSError as error:
        raise ValueError(f"{path.with_suffix('.json')} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise ValueError(f"{path.with_suffix('.json')} does not describe a network: {reason}") from None
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise ValueError(
            f"{path} is damaged, or not of {path.with_suffix('.json').name} ({type(error).__name__}): export it again"
        ) from None
    return network.eval()


def _check_sizes(said: dict) -> None:
    """Refuses sizes that no network has, by a ValueError."""
    sizes = [said["inputs"], said["classes"], *said["widths"]]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"inputs, widths and classes must be positive, got {sizes}")
    if not said["widths"] or len(said["widths"]) != len(said["layers"]):
        raise ValueError(f"{len(said['widths'])} widths and {len(said['layers'])} layers, one each is needed")


def _saved(save: Callable[[Any, io.BytesIO], object], what: object) -> bytes:
    buffer = io.BytesIO()
    save(what, buffer)
    return buffer.getvalue()


def _difference(what: str, outputs: torch.Tensor | None, expected: torch.Tensor) -> float:
    assert outputs is not None
    difference = ((outputs - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{what} differs from the network by {difference:.2g} of its largest output; nothing was written"
        )
    return difference


def _onnx(program: torch.export.ExportedProgram, labels: Sequence[int | str] | None) -> tuple[bytes | None, str | None]:
    """Returns the bytes of a torch.export program as ONNX, or None and why there is none.

    The labels, as JSON, become its metadata `labels`.
    """
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxscript")
    except ImportError as error:
        return None, f"no ONNX program: {error.name} is not installed ({INSTALL})"
    with quiet():
        converted = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["x"], output_names=["scores"])
    assert converted is not None  # it is None only where a file is written at once
    model = converted.model_proto
    if labels is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "labels", json.dumps(labels)
    try:
        return model.SerializeToString(), None
    except ValueError:  # of protobuf
        return None, "no ONNX program: one file of it holds at most 2 GB; take a smaller width"


def onnx_outputs(model: bytes, X: torch.Tensor) -> torch.Tensor | None:
    """Returns what onnxruntime makes of the rows X on the CPU; None where it is not installed."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["scores"], {"x": X.cpu().numpy()})[0]).to(X.device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what exporters say on the way."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)
