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

    drift(adapt(Mine()), X)                    # X (n, 784); verdicts.weight_drift asks whether its weights are random
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import FixedPoint, Picard, Solver
from deq_enn.theory.activations import ACTIVATIONS, Activation, Elementwise, from_function
from deq_enn.utils.random import generator


class TrainedDEQ(nn.Module):
    """v = phi(W v + U x + bias), features `scale` v, logits readout(features).

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
        u = x @ self.U.T if self.bias is None else torch.addmm(self.bias, x, self.U.T)
        return self.fixed_point(self._step, self.phi(u.detach()), self.W, u) * self.scale

    def _step(self, v: torch.Tensor, W: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.phi(torch.addmm(u, v, W.T))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits of inputs x (n, p)."""
        return self.readout(self.features(x))

    def shuffled(self, *seed: object) -> "TrainedDEQ":
        """Returns the same network with the entries of each weight in random places."""

        def shuffle(tensor: torch.Tensor, name: str) -> torch.Tensor:
            order = torch.randperm(tensor.numel(), generator=generator("shuffle", name, *seed))
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


def adapt(module: nn.Module) -> TrainedDEQ:
    """Returns a DEQ of this project, or a module of the form above, with the weights that it has.

    Raises ValueError, in one line, for what is missing or has another shape.
    """
    if isinstance(module, TrainedDEQ):
        return module
    if isinstance(module, DEQ):
        root = math.sqrt(len(module.A))
        return TrainedDEQ(
            module.activation,
            module.phi.fn,
            module.A * (math.sqrt(module.sigma_a2) / root),
            module.B * math.sqrt(1 - module.sigma_a2),
            None,
            module.readout,
            1 / root,
            module.fixed_point.solver,
        )
    name = type(module).__name__
    form = f"{name} is not a DEQ of the form z = phi(A z + B x + b) with a readout"
    parts = {key: getattr(module, key, None) for key in ("A", "B", "activation", "readout")}
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
    bias = _bias(module, m, form)
    activation = _activation(parts["activation"], form)
    return TrainedDEQ(activation, activation.fn, A, B, bias, _readout(readout, getattr(parts["readout"], "bias", None)))


def _weight(part: object, what: str) -> torch.Tensor:
    """Returns the matrix that a part of a module is, or has."""
    matrix = getattr(part, "weight", part)
    if not isinstance(matrix, torch.Tensor) or matrix.ndim != 2:
        raise ValueError(f"{what} must be an nn.Linear or a matrix, got {type(matrix).__name__}")
    return matrix.detach()


def _bias(module: nn.Module, m: int, form: str) -> torch.Tensor | None:
    """Returns the sum of the biases that a module has, of its own and of A and B; None if it has none."""
    places = [(module, "bias"), (module, "b"), (module.A, "bias"), (module.B, "bias")]
    biases = [getattr(place, name, None) for place, name in places]
    biases = [bias for bias in biases if isinstance(bias, torch.Tensor)]
    if any(bias.shape != (m,) for bias in biases):
        raise ValueError(f"{form}: its bias must have shape ({m},), it has {[tuple(bias.shape) for bias in biases]}")
    return sum(biases[1:], biases[0]) if biases else None


def _readout(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    classes, m = weight.shape
    linear = nn.Linear(m, classes, bias=bias is not None).to(weight)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def _activation(given: Any, form: str) -> Activation:
    """Returns an activation from a name, a function or a module; one of the registry where it is the same function."""
    if isinstance(given, str):
        if given not in ACTIVATIONS:
            raise ValueError(f"{form}: its activation is {given!r}, not one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[given]
    if isinstance(given, Activation):
        return given
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    try:
        values = given(x)
        for own in ACTIVATIONS.values():
            if torch.allclose(own.fn(x), values, rtol=0, atol=1e-12):
                return own
        return from_function(given, getattr(given, "__name__", type(given).__name__))
    except Exception as error:
        raise ValueError(f"{form}: its activation is not an elementwise torch function: {error}") from None


def load_checkpoint(path: Path | str, activation: Activation, sigma_a2: float, tau0: float = 1.0) -> DEQ:
    """Returns the DEQ of a checkpoint that main.py --train full wrote (or of its .best.pt), never unpickled.

    Raises ValueError, in one line, where the file is no such checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # whatever a file that is not one makes of the unpickler
        raise ValueError(f"{path} is no checkpoint of main.py ({type(error).__name__})") from None
    state = state.get("model", state) if isinstance(state, dict) else {}
    if "weight" in state and "A" not in state:
        raise ValueError(f"{path} holds a readout alone (--train readout): its DEQ is as it was drawn, without a file")
    if missing := [key for key in ("A", "B", "readout.weight") if key not in state]:
        raise ValueError(f"{path} is no checkpoint of a DEQ: it has no {', '.join(missing)}")
    (m, p), classes = state["B"].shape, len(state["readout.weight"])
    deq = DEQ(activation, p, m, classes, sigma_a2, tau0).to(state["A"])
    deq.load_state_dict(state)
    return deq


def as_drawn(deq: nn.Module) -> bool:
    """Tells whether A and B of a `DEQ` are those that its seed draws."""
    if not isinstance(deq, DEQ):
        return False
    return all(
        torch.equal(
            weight.detach().cpu(), torch.randn(weight.shape, generator=generator(deq.seed, name)).to(weight.dtype)
        )
        for weight, name in ((deq.A, "A"), (deq.B, "first"))
    )
