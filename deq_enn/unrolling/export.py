"""The chosen network is written for use elsewhere, its k steps unrolled, as programs that need no code.

    enn.pt     the state_dict of the network, for torch.load(..., weights_only=True); of the module's own steps its keys
               are those of the user's class
    enn.json   what it is: its kind, its steps, what was measured of it, and the mean and scale of its rows
    enn.pt2    a torch.export program, for torch.export.load
    enn.onnx   where onnx and onnxscript are installed: input `x`, output `scores`

All or none of them are written. Each program's outputs are held against the network's before. They take any number of
rows, of the shape that the module takes.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deq_enn.networks.export import checked_labels, write_programs
from deq_enn.unrolling.judged import dtype_of, scores
from deq_enn.utils.files import check_network_file


class Program(nn.Module):
    """What is exported: the network's outputs, the first of several, for (x - mean)/scale reshaped to its samples."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, network: nn.Module, mean: torch.Tensor | None, scale: float, shape: Sequence[int]):
        super().__init__()
        self.network, self.shape = network, tuple(shape)
        self.normalised = mean is not None or scale != 1.0
        dtype = dtype_of(network)
        self.register_buffer("mean", torch.zeros(()) if mean is None else mean.to(dtype))
        self.register_buffer("scale", torch.tensor(scale, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores of rows x (n, ...)."""
        if self.normalised:
            x = (x - self.mean) / self.scale
        outputs: Any = self.network(x.reshape(-1, *self.shape))
        while isinstance(outputs, (tuple, list)):
            outputs = outputs[0]
        return outputs


def export(
    network: nn.Module,
    path: Path | str,
    X_example: torch.Tensor,
    mean: torch.Tensor | None = None,
    scale: float = 1.0,
    labels: Sequence[int | str] | None = None,
    about: dict | None = None,
) -> dict:
    """Writes the network as enn.pt, enn.json, enn.pt2 and, if it can, enn.onnx, for a `path` enn.pt.

    Parameters
    ----------
    X_example : (n, ...), two rows or more, as the network takes them.
    mean, scale : for programs that take rows x, of which the network takes (x - mean)/scale. Where there is a mean,
        they are rows (n, p) whatever the shape that the network takes.
    labels : the names of the classes, in the order of the outputs; two for a single score.
    about : what is known of the network, for the JSON file.

    Returns
    -------
    {"files", "difference", "skipped"} as of `networks.export.export`.

    Raises
    ------
    ValueError : the place cannot be written, or there is not a label for each class.
    RuntimeError : the network has no program, or it says something else.
    """
    check_network_file(path)
    shape = X_example.shape[1:]
    program = Program(copy.deepcopy(network).cpu(), mean, scale, shape).eval()
    if mean is not None:
        X_example = X_example.flatten(1) * scale + mean
    elif scale != 1.0:
        X_example = X_example * scale
    with torch.no_grad():
        labels = checked_labels(labels, scores(program(X_example)).shape[1])
    said = {
        "format": "program",
        "input": f"rows of shape {list(X_example.shape[1:])}",
        "output": "scores (n, classes), in the order of `labels` where they are known; the predicted class has the "
        "largest; a single score is of the second class, against 0",
        "labels": None if labels is None else list(labels),
        "dtype": str(X_example.dtype).removeprefix("torch."),
        **({"mean": program.mean.tolist(), "scale": scale} if program.normalised else {}),
        **(about or {}),
    }
    said = json.loads(json.dumps(said, default=str))
    try:
        state = program.network.state_dict()
        return write_programs(program, path, X_example.contiguous(), said, labels, state)
    except (ValueError, RuntimeError):
        raise
    except Exception as error:  # whatever torch.export makes of the user's code
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(
            f"the network has no program of torch.export ({type(error).__name__}: {reason:.200}); nothing was written"
        ) from None
