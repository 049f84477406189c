"""The module that is judged: its own `forward`, in evaluation mode, on samples of any shape, and what is refused.

Nothing is taken from a module but what it says: rows of outputs, one a sample. Whatever would make its accuracy depend
on chance, on the batch, or on samples that it was trained on is refused in one line.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.networks.trained_deq import check_has_numbers, evaluating
from deq_enn.theory.equilibrium import as_tensor
from deq_enn.utils.deadline import OutOfTime, check
from deq_enn.utils.random import generator

ROWS = 512  # rows passed through a module at once, at most
ENTRIES = 2**21  # entries of a batch of inputs, at most
PROBED = 64  # rows on which a module is tried before anything is measured
FEWEST = 50  # samples of each kind, at least
SAME = 0.02  # difference of two passes, relative to the outputs' spread, from which on a forward counts as random
SHARED = 0.1  # share of held-out rows that may be training rows as well; data of few values repeat themselves


@dataclass(frozen=True)
class Part:
    """These are samples of one purpose: X (n, ...), what the module says of them (n, c), and labels (n,).

    labels : where the user gave none, the module's own classes stand for them.
    """

    X: torch.Tensor
    outputs: torch.Tensor
    labels: torch.Tensor

    @property
    def says(self) -> torch.Tensor:
        """Returns the classes that the module names, (n,)."""
        return self.outputs.argmax(1)

    def first(self, n: int) -> "Part":
        """Returns the first n samples."""
        return Part(self.X[:n], self.outputs[:n], self.labels[:n])

    def __len__(self) -> int:
        return len(self.X)


def batch_of(X: torch.Tensor) -> int:
    """Returns how many rows of X (n, ...) are passed at once."""
    return max(1, min(ROWS, ENTRIES // max(1, X[0].numel())))


def scores(outputs: Any, name: str = "the module") -> torch.Tensor:
    """Returns outputs as one row of scores a sample, (n, c); a single number a sample z becomes (0, z).

    Of several outputs the first counts, as of a module that returns statistics beside them. Raises ValueError where
    they are something else.
    """
    while isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
        raise ValueError(f"{name}'s outputs must be one row of scores a sample, got {type(outputs).__name__}")
    if outputs.ndim == 1:
        outputs = outputs[:, None]
    if outputs.ndim != 2:
        raise ValueError(
            f"{name}'s outputs must be one row of scores a sample, (n, classes); got shape {tuple(outputs.shape)}"
        )
    return torch.cat([torch.zeros_like(outputs), outputs], 1) if outputs.shape[1] == 1 else outputs


def outputs_of(module: nn.Module, X: torch.Tensor) -> torch.Tensor:
    """Returns the scores (n, c) of samples X (n, ...), in evaluation mode and in batches, in float32 on the CPU.

    It looks at the deadline between batches. These are of nearly one size, since a module that squeezes its outputs
    has another shape for a single row. Raises ValueError where that cannot be avoided.
    """
    device, results = device_of(module), []
    with evaluating(module):
        for rows in X.tensor_split(-(-len(X) // batch_of(X))):
            check()
            results.append(scores(module(rows.to(device))).float().cpu())
            if len(results[-1]) != len(rows):
                raise ValueError(f"the module's outputs for {len(rows)} samples have {len(results[-1])} rows")
    return torch.cat(results)


def device_of(module: nn.Module) -> torch.device:
    """Returns the device of a module's first parameter or buffer, or the CPU."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def dtype_of(module: nn.Module) -> torch.dtype:
    """Returns the dtype of a module's first parameter of floats."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


@contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Sets aside the gradients that a module's parameters hold, and gives them back."""
    held = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in held:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in held:
            parameter.grad = gradient


def quality(outputs: torch.Tensor, part: Part) -> tuple[float, float, float]:
    """Returns accuracy and agreement with the module, in %, and the mean cross-entropy, of scores (n, c)."""
    says = outputs.argmax(1)
    return (
        100 * (says == part.labels).double().mean().item(),
        100 * (says == part.says).double().mean().item(),
        cross_entropy(outputs.double(), part.labels).item(),  # large scores have one that is no float32
    )


# ---------------------------------------------------------------------------------------------------------------
# what can be used


@torch.inference_mode(False)
def samples(X: Any, module: nn.Module, what: str = "X") -> torch.Tensor:
    """Returns samples (n, ...) as the module takes them: numbers in its dtype, whole numbers as they are.

    Raises ValueError with what is wrong.
    """
    if not isinstance(X, torch.Tensor):
        try:
            X = as_tensor(X)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what} must be an array of numbers ({str(error).partition(chr(10))[0]:.100})") from None
    X = X.detach().cpu()
    X = X.clone() if X.is_inference() else X  # or no graph could hold it
    if X.ndim < 2:
        raise ValueError(f"{what} must hold one sample a row, (n, ...); got shape {tuple(X.shape)}")
    if len(X) < FEWEST:
        raise ValueError(f"{what} has {len(X)} samples, too few to measure a loss: at least {FEWEST} are needed")
    if X.is_complex() or X.dtype == torch.bool:
        raise ValueError(f"{what} must be real numbers, got {str(X.dtype).removeprefix('torch.')}")
    if X.is_floating_point():
        X = X.to(dtype_of(module))
        if not X.isfinite().all():
            row = int((~X.flatten(1).isfinite().all(1)).nonzero()[0])
            raise ValueError(f"{what} has NaN or infinite entries, first in row {row}")
    return X


@torch.inference_mode(False)
def labels(y: Any, n: int, classes: int, what: str = "y") -> torch.Tensor:
    """Returns labels (n,) in int64, from 0 to classes - 1; ValueError with what is wrong."""
    array = y.detach().cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    if array.shape == (n, 1):
        array = array[:, 0]
    if array.shape != (n,):
        raise ValueError(f"{what} must have one label a sample, ({n},); got shape {tuple(array.shape)}")
    order = "0, 1, ... in the order of the module's outputs"
    if array.dtype.kind not in "iufb" or not np.all(np.isfinite(array) & (array == np.round(array))):
        raise ValueError(f"{what} must be labels {order}, whole numbers; got {array.dtype}")
    if array.min() < 0 or array.max() >= classes:
        wrong = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{what} has the label {int(wrong)}, and the module has {classes} outputs: labels are {order}")
    return torch.from_numpy(array.astype(np.int64))


def check_module(module: nn.Module, X: torch.Tensor) -> int:
    """Returns the number of outputs of a module that can be judged on samples like X (n, ...).

    Raises ValueError where its forward fails, is random, lets a sample's outputs depend on the rest of the batch, or
    returns something else than a row a sample.
    """
    name = type(module).__name__
    check_has_numbers(module)
    x = X[:PROBED].to(device_of(module))
    order = torch.randperm(len(x), generator=generator("probe", len(x)), device="cpu")
    with evaluating(module):
        try:
            first, again = (scores(module(x), name) for _ in range(2))
            mixed = torch.cat([scores(module(rows), name) for rows in (x[order][:-5], x[order][-5:])])
        except ValueError as error:
            if str(error).startswith(f"{name}'s outputs"):
                raise
            raise ValueError(_failure(name, x, error)) from None
        except Exception as error:  # whatever the user's code raises
            raise ValueError(_failure(name, x, error)) from None
    if len(first) != len(x):
        raise ValueError(f"{name}'s outputs must be one row a sample: {len(x)} samples gave {len(first)} rows")
    if not first.isfinite().all():
        raise ValueError(f"{name}'s outputs are not finite on these samples: were they scaled as it takes them?")
    spread = (first - first.mean(0)).double().square().mean().sqrt().clamp_min(1e-30)
    if (first - again).double().square().mean().sqrt() > SAME * spread:
        raise ValueError(f"{name}'s forward is random even in evaluation mode (a dropout that is always on?)")
    if (first[order] - mixed).double().square().mean().sqrt() > SAME * spread:
        raise ValueError(
            f"{name}'s outputs for a sample depend on the others of its batch even in evaluation mode (statistics of "
            "the batch?), so that it has no accuracy of its own"
        )
    return first.shape[1]


def said_of(module: nn.Module, X: torch.Tensor) -> torch.Tensor:
    """Returns what the module that is judged says of samples X (n, ...), as `outputs_of`.

    Raises ValueError where its forward fails on some of them, as where there is no equilibrium, where its outputs are
    not finite, or where single outputs look like probabilities, which are no scores against 0.
    """
    name = type(module).__name__
    try:
        outputs = outputs_of(module, X)
    except OutOfTime:
        raise
    except Exception as error:  # whatever the user's code raises
        if str(error).startswith("the module's outputs"):
            raise
        raise ValueError(_failure(name, X, error)) from None
    if wrong := int((~outputs.isfinite().all(1)).sum()):
        raise ValueError(f"{name}'s outputs are not finite for {wrong} of {len(X)} samples: leave those out")
    if outputs.shape[1] == 2 and not outputs[:, 0].any() and 0 <= outputs.min() <= outputs.max() <= 1:
        raise ValueError(
            f"{name}'s single outputs lie between 0 and 1, as probabilities do, and a single output is taken for a "
            "score against 0: let it return the logit, before the sigmoid"
        )
    return outputs


def _failure(name: str, x: torch.Tensor, error: Exception) -> str:
    reason, advice = str(error).partition("\n")[0], ""
    if isinstance(error, ConvergenceError):
        advice = "; FixedPoint(Anderson()) may find it, and one with strict=False goes on where it is not found"
    elif not x.is_floating_point():
        advice = "; whole numbers stay whole, as tokens are: hand in floats if it takes floats"
    return (
        f"{name}'s forward fails on samples of shape {tuple(x.shape)} ({type(error).__name__}: {reason:.200}){advice}"
    )


def check_apart(X: torch.Tensor, held: torch.Tensor) -> None:
    """Refuses held-out samples (n', ...) of which many are rows of the training set X (n, ...), by a ValueError."""
    if held.shape[1:] != X.shape[1:]:
        raise ValueError(
            f"the held-out samples have shape {tuple(held.shape[1:])}, those of X {tuple(X.shape[1:])}: they must agree"
        )
    seen, rows = set(_hashes(X)), _hashes(held)
    if 2 * len(set(rows)) < len(rows):
        warnings.warn(
            f"the {len(rows)} held-out samples have {len(set(rows))} different rows: intervals take each sample for a "
            "draw of its own, and are too narrow if rows were copied"
        )
    repeated = sum(row in seen for row in rows)
    if repeated > SHARED * len(held):
        raise ValueError(
            f"{repeated} of the {len(held)} held-out samples are rows of X: on samples that it was trained on a DEQ "
            "looks better than it is; hold out others (X_test, y_test of a file, held=(X_test, y_test) in Python)"
        )


def _hashes(X: torch.Tensor) -> list[int]:
    rows = np.ascontiguousarray(X.flatten(1).numpy() if X.dtype != torch.bfloat16 else X.flatten(1).float().numpy())
    return [hash(row.tobytes()) for row in rows]
