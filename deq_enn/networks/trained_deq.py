"""A DEQ whose weights were trained is brought into one form here, whoever wrote its module.

Any DEQ of the form z = phi(A z + B x + b) is understood, such as torchdeq's usual one. A module needs `A` and `B`
(nn.Linear or matrices (m, m) and (m, p)), `activation` (a function, an nn.Module, or a name of the registry) and
`readout` (nn.Linear, or a matrix (c, m)); `bias` or `b` may be there.

    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A, self.B = torch.nn.Linear(256, 256, bias=False), torch.nn.Linear(784, 256)
            self.activation, self.readout = torch.nn.Tanh(), torch.nn.Linear(256, 10)
            self.deq = torchdeq.get_deq()
        def forward(self, x):
            z, _ = self.deq(lambda z: self.activation(self.A(z) + self.B(x)), torch.zeros(len(x), 256))
            return self.readout(z[-1])

    drift(adapt(Mine(), X), X)                 # X (n, 784); verdicts.weight_drift asks whether its weights are random

The parts alone do not say what a module's `forward` does with them. So its outputs, in evaluation mode, are compared
with those of the equilibrium, on the samples given or on random rows, and a module that does something else is refused.
"""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from deq_enn.networks.deq import DEQ, explained, finite_or_nan
from deq_enn.networks.fixed_point import Anderson, ConvergenceError, FixedPoint, Picard, Solver, Stopped
from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import as_tensor
from deq_enn.theory.recognise import recognise
from deq_enn.utils.random import generator

COMPARED = 128  # rows on which a module's outputs are compared with those of its equilibrium, at most
# difference that the outputs may have, relative to how they spread: solvers of modules often stop at 1e-3
SAME = 0.02
ROUNDINGS = 16  # the same for short floats, in units of their rounding, where that is more
MOST_STEPS = 500  # of a solver that the user has not chosen


class TrainedDEQ(nn.Module):
    """A trained DEQ solves v = phi(W v + U x + bias); it has features `scale` v and logits readout(features).

    activation : phi but for a constant. W, U : (m, m) and (m, p). readout : nn.Linear.

    Attributes
    ----------
    sigma_a2 : m times the mean square of W, the sigma_a^2 of a random network of this size.
    gain : of the input: U has the mean square gain^2 (1 - sigma_a2).
    """

    def __init__(
        self,
        activation: Activation,
        phi: Elementwise,
        W: torch.Tensor,
        U: torch.Tensor,
        bias: torch.Tensor | None,
        readout: nn.Linear,
        scale: float = 1.0,
        solver: Solver = Picard(max_steps=500),
    ):
        super().__init__()
        self.activation, self.phi, self.scale = activation, phi, scale
        self.W, self.U, self.readout = nn.Parameter(W.detach().clone()), nn.Parameter(U.detach().clone()), readout
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.fixed_point = FixedPoint(solver)

    @property
    def sigma_a2(self) -> float:
        """Returns m times the mean square of W."""
        return len(self.W) * self.W.detach().double().square().mean().item()

    @property
    def gain(self) -> float:
        """Returns the gain of the input, nan where sigma_a^2 is 1 or more."""
        rest = 1 - self.sigma_a2
        return math.sqrt(self.U.detach().double().square().mean().item() / rest) if rest > 0 else math.nan

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the last hidden layer (n, m) of inputs x (n, p), differentiated implicitly."""
        u = finite_or_nan(x @ self.U.T if self.bias is None else torch.addmm(self.bias, x, self.U.T))
        try:
            return self.fixed_point(self._step, self.phi(u), self.W, u) * self.scale
        except ConvergenceError as error:
            raise explained(error, x, "; give a solver that finds it, such as solver=Anderson()") from None

    def _step(self, v: torch.Tensor, W: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.phi(torch.addmm(u, v, W.T))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits of inputs x (n, p)."""
        return self.readout(self.features(x))

    def shuffled(self, *seed: object) -> "TrainedDEQ":
        """Returns the same network with the entries of each weight in random places."""

        def shuffle(tensor: torch.Tensor, name: str) -> torch.Tensor:
            order = torch.randperm(tensor.numel(), generator=generator("shuffle", name, *seed), device="cpu")
            return tensor.detach().flatten()[order.to(tensor.device)].view_as(tensor)

        bias = None if self.bias is None else shuffle(self.bias, "bias")
        return TrainedDEQ(
            self.activation,
            self.phi,
            shuffle(self.W, "A"),
            shuffle(self.U, "B"),
            bias,
            self.readout,
            self.scale,
            self.fixed_point.solver,
        )


# ---------------------------------------------------------------------------------------------------------------
# modules


FORM = "a DEQ of the form z = phi(A z + B x + b) with a readout"


def adapt(
    module: Any = None,
    X: torch.Tensor | None = None,
    *,
    A: Any = None,
    B: Any = None,
    activation: Any = None,
    readout: Any = None,
    bias: torch.Tensor | np.ndarray | None = None,
    solver: Solver | None = None,
) -> TrainedDEQ:
    """Returns a DEQ of this project, a module of the form above, or the parts given by name, with its weights.

    Parameters
    ----------
    module : judged as it is in evaluation mode; its mode is left as it was.
    X : (n, p) samples on which the module's outputs are compared with those of the equilibrium; by default random rows
        of several lengths.
    A, B, activation, readout, bias : instead of a module, each as the head of this file has it, arrays of NumPy too.
        There is no `forward` then, and nothing is compared.
    solver : of the equilibrium; by default that of a `DEQ`, else Picard, or Anderson where Picard does not converge.

    Raises
    ------
    ValueError : in one line, for what is missing or has another shape, or for outputs that differ.
    """
    if module is None:
        bias = as_tensor(bias) if isinstance(bias, np.ndarray) else bias
        if bias is not None and not isinstance(bias, torch.Tensor):
            raise ValueError(f"the bias must be a tensor of shape (m,), got {type(bias).__name__}")
        parts = {"A": A, "B": B, "activation": activation, "readout": readout}
        return _assembled(parts, [bias], "this", solver)
    if any(part is not None for part in (A, B, activation, readout, bias)):
        raise ValueError("adapt takes a module or its parts by name, not both")
    module = unwrapped(module)
    check_has_numbers(module)
    deq = understood(module, solver)
    if not _as_written_here(module):
        _check_forward(module, deq, X, solver)
    return deq


def check_has_numbers(module: Any) -> None:
    """Refuses a module of which a weight is on the device "meta", by a ValueError."""
    for name, weight in module.named_parameters() if isinstance(module, nn.Module) else ():
        if not weight.is_meta:
            continue
        try:
            weight.detach().sum().tolist()
        except RuntimeError:
            raise ValueError(
                f"{type(module).__name__}'s {name} is on the device meta, which holds no numbers: build the module on "
                "cpu or cuda, and load its weights"
            ) from None


def unwrapped(module: Any) -> Any:
    """Returns the module that torch.compile or DataParallel was given."""
    while True:
        inner = vars(module).get("_modules", {}) if isinstance(module, nn.Module) else {}
        if "_orig_mod" in inner:
            module = inner["_orig_mod"]
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def understood(module: Any, solver: Solver | None = None) -> TrainedDEQ:
    """Returns the DEQ that the parts of a module make, whatever its forward does with them; `adapt` compares it."""
    if isinstance(iteration := getattr(module, "fixed_point", None), Stopped):
        raise ValueError(
            f"{type(module).__name__} is stopped after {iteration.steps} steps, an explicit network, and no DEQ"
        )
    if isinstance(module, TrainedDEQ):
        if solver is None:
            return module
        changed = copy.copy(module)
        changed.fixed_point = FixedPoint(solver)
        return changed
    if isinstance(module, DEQ):
        for part, kind, words in ("readout", nn.Linear, "an nn.Linear"), ("fixed_point", FixedPoint, "a FixedPoint"):
            if not isinstance(own := getattr(module, part), kind):
                name = type(module).__name__
                raise ValueError(f"{name} is not {FORM}: its {part} must be {words}, got {type(own).__name__}")
        root = math.sqrt(len(module.A))
        return TrainedDEQ(
            module.activation,
            module.phi.fn,
            module.A * (math.sqrt(module.sigma_a2) / root),
            module.B * math.sqrt(1 - module.sigma_a2),
            None,
            module.readout,
            1 / root,
            solver or module.fixed_point.solver,
        )
    parts = {key: getattr(module, key, None) for key in ("A", "B", "activation", "readout")}
    return _assembled(parts, [getattr(module, name, None) for name in ("bias", "b")], type(module).__name__, solver)


def _assembled(parts: dict[str, Any], biases: list[Any], name: str, solver: Solver | None) -> TrainedDEQ:
    form = f"{name} is not {FORM}"
    missing = [key for key, part in parts.items() if part is None]
    if missing:
        raise ValueError(f"{form}: it has no {', '.join(missing)}; the head of trained_deq.py has an example")
    A, B, readout = (_weight(parts[key], f"{form}: its {key}") for key in ("A", "B", "readout"))
    m = len(A)
    if A.shape != (m, m) or len(B) != m or readout.shape[1] != m:
        raise ValueError(
            f"{form}: A must be (m, m), B (m, p) and the readout (c, m); they are {tuple(A.shape)}, "
            f"{tuple(B.shape)} and {tuple(readout.shape)}"
        )
    bias = _bias([*biases, *(getattr(parts[key], "bias", None) for key in ("A", "B"))], m, form)
    dtypes = {part.dtype for part in (A, B, readout, A if bias is None else bias)}
    if len(dtypes) > 1 or not A.is_floating_point():
        raise ValueError(
            f"{form}: A, B, readout and bias must be of one type of floats, got {sorted(map(str, dtypes))}"
        )
    try:
        activation = recognise(parts["activation"], "its", A.device)
    except ValueError as error:
        raise ValueError(f"{form}: {error}") from None
    linear = _readout(readout, getattr(parts["readout"], "bias", None))
    return TrainedDEQ(activation, activation.fn, A, B, bias, linear, solver=solver or Picard(max_steps=MOST_STEPS))


def _weight(part: object, what: str) -> torch.Tensor:
    """Returns the matrix that a part of a module is, or has."""
    matrix = as_tensor(part) if isinstance(part, np.ndarray) else getattr(part, "weight", part)
    if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2:
        shape = f" of shape {tuple(matrix.shape)}" if isinstance(matrix, torch.Tensor) else ""
        raise ValueError(f"{what} must be an nn.Linear or a matrix, got {type(part).__name__}{shape}")
    return matrix.detach()


def _bias(biases: list[Any], m: int, form: str) -> torch.Tensor | None:
    """Returns the sum of the biases that a module has, of its own and of A and B; None if it has none."""
    biases = [bias for bias in biases if isinstance(bias, torch.Tensor)]
    if any(bias.shape != (m,) for bias in biases):
        raise ValueError(f"{form}: its bias must have shape ({m},), it has {[tuple(bias.shape) for bias in biases]}")
    return torch.stack(biases).sum(0) if biases else None


def _readout(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    classes, m = weight.shape
    linear = nn.Linear(m, classes, bias=bias is not None, device="meta")  # or it would draw weights of its own
    linear = linear.to_empty(device=weight.device).to(weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


# ---------------------------------------------------------------------------------------------------------------
# whether a module's forward is that equilibrium


def _as_written_here(module: Any) -> bool:
    """Tells whether nothing but our own code makes the outputs, or whether there is no forward to compare with."""
    if isinstance(module, nn.Module) and (module._forward_hooks or module._forward_pre_hooks):
        return False
    own = type(module) in (DEQ, TrainedDEQ) and not {"forward", "features", "_step"} & vars(module).keys()
    return own or getattr(type(module), "forward", nn.Module.forward) is nn.Module.forward


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode for a while."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _check_forward(module: nn.Module, deq: TrainedDEQ, X: torch.Tensor | None, solver: Solver | None) -> None:
    """Refuses a module whose outputs are not those of the equilibrium, by a ValueError with the difference.

    Where Picard does not find the equilibrium and the user has chosen no solver, the DEQ is given Anderson's.
    """
    name, p = type(module).__name__, deq.U.shape[1]
    if any(part.training and isinstance(part, (nn.Dropout, nn.AlphaDropout)) for part in module.modules()):
        warnings.warn(f"{name} is in training mode and has dropout: it is judged in evaluation mode", stacklevel=3)
    x = (_probe(p) if X is None else _some(X, p)).to(deq.W)
    if (x == x[0]).all():
        raise ValueError("X must have different rows, or no outputs can be compared on them; leave X out, or give more")
    other = f"{name} is not {FORM}, or its parts are not what its forward uses"
    with evaluating(module):
        try:
            outputs, again = _first(module(x)), _first(module(x))
        except Exception as error:  # whatever the user's code raises
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"{name}'s forward fails on rows of shape {tuple(x.shape)} ({type(error).__name__}: {reason}); it must "
                "take rows (n, p), or give its parts by name: adapt(A=..., B=..., activation=..., readout=...)"
            ) from None
        try:
            expected = _equilibrium(deq, x, solver)
        except ConvergenceError as error:
            where = "random rows; compare it on yours: adapt(module, X)" if X is None else "these samples"
            raise ValueError(f"{name} is not {FORM} that can be solved on {where}: {error}") from None
    if outputs is None or outputs.shape != expected.shape:
        shape = "no tensor" if outputs is None else tuple(outputs.shape)
        raise ValueError(f"{other}: its outputs are {shape}, readout(z) is {tuple(expected.shape)}")
    spread = _spread(expected, outputs)
    if again is None or not _size(outputs - again) <= SAME * spread:
        raise ValueError(f"{name}'s forward is random even in evaluation mode, so that no network can be compared")
    allowed = max(SAME, ROUNDINGS * torch.finfo(expected.dtype).eps)
    relative = _size(outputs - expected) / spread
    if not relative <= allowed:
        raise ValueError(
            f"{other}: outputs differ by {(outputs - expected).abs().max().item():.2g}, relative {relative:.2g}, on "
            f"{'random rows' if X is None else 'these samples'}. Do to the samples beforehand what forward does to "
            "them, let its iteration converge, or write the module in this form"
        )


def _equilibrium(deq: TrainedDEQ, x: torch.Tensor, solver: Solver | None) -> torch.Tensor:
    try:
        return deq(x)
    except ConvergenceError:
        if solver is not None or not isinstance(deq.fixed_point.solver, Picard):
            raise
    tried, deq.fixed_point = deq.fixed_point, FixedPoint(Anderson(max_steps=MOST_STEPS))
    try:
        return deq(x)
    except ConvergenceError as error:
        deq.fixed_point = tried
        said = str(error).partition(";")[0]  # without the advice to take Anderson
        raise ConvergenceError(f"by Picard and by Anderson {said}", error.solution) from None


def _first(outputs: Any) -> torch.Tensor | None:
    """Returns the outputs, the first of several; None where they are no floats."""
    while isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    return outputs.detach() if isinstance(outputs, torch.Tensor) and outputs.is_floating_point() else None


def _size(values: torch.Tensor) -> float:
    return values.double().square().mean().sqrt().item()


def _spread(*outputs: torch.Tensor) -> float:
    """Returns the smallest of the standard deviations of the outputs about their means over the rows."""
    return max(min(_size(each - each.mean(0)) for each in outputs), 1e-30)


def _probe(p: int) -> torch.Tensor:
    """Returns random rows of lengths 0.3, 1, 3, and of as much as sqrt(p)."""
    lengths = torch.tensor([0.3, 1.0, 3.0, math.sqrt(p)]).repeat(COMPARED // 8)[:, None]
    return nn.functional.normalize(torch.randn(len(lengths), p, generator=generator("probe", p))) * lengths


def _some(X: Any, p: int) -> torch.Tensor:
    """Returns rows spread evenly over X."""
    X = as_tensor(X)
    if X.ndim != 2 or X.shape[1] != p or not len(X):
        raise ValueError(f"X must be an (n, {p}) matrix, as the DEQ's B has {p} columns; got shape {tuple(X.shape)}")
    return X[torch.linspace(0, len(X) - 1, min(len(X), COMPARED)).long()].detach()
