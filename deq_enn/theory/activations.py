"""This file defines what the theory needs to know of an activation, their registry, and how users bring their own."""

import math
import runpy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F

from deq_enn import names

Elementwise = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)  # equal where it is the same object: functions compare no other way
class Activation:
    """This is an elementwise nonlinearity with what the theory needs to know of it.

    Attributes
    ----------
    name : str
    fn, derivative : elementwise functions on torch tensors of any shape and float dtype. They must not change, because
        their moments are kept. `derivative` leaves out the jumps of `fn`. If `fn` jumps, only the conjugate kernel of
        an explicit network exists.
    kinks : points where `fn` jumps, or it or its derivative is not smooth; integrals are split there.
    lipschitz : the best Lipschitz constant; if not given, the largest |derivative| seen on a fine grid of [-20, 20].
    slopes : for a piecewise-linear `fn`, its slope on each of the len(kinks) + 1 intervals; else empty.
        The exact kernels have a closed form for these.
    """

    name: str
    fn: Elementwise
    derivative: Elementwise
    kinks: tuple[float, ...] = ()
    lipschitz: float = cast(float, None)  # __post_init__ puts a number in its place
    slopes: tuple[float, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "kinks", tuple(sorted(float(k) for k in self.kinks)))
        if self.slopes and len(self.slopes) != len(self.kinks) + 1:
            raise ValueError(
                f"activation {self.name}: {len(self.kinks)} kinks need {len(self.kinks) + 1} slopes, "
                f"got {len(self.slopes)}"
            )
        if self.lipschitz is None:
            if self.slopes:
                bound = max(abs(s) for s in self.slopes)
            else:
                bound = self.derivative(torch.linspace(-20, 20, 40001, dtype=torch.float64)).abs().max().item()
            object.__setattr__(self, "lipschitz", bound)

    def __call__(self, x):
        return self.fn(x)


def piecewise_linear(
    name: str, kinks: Iterable[float], slopes: Iterable[float], value_at_zero: float = 0.0
) -> Activation:
    """Returns the continuous function with these slopes between these (sorted) kinks, and with this value at 0."""
    kinks, slopes = tuple(map(float, kinks)), tuple(map(float, slopes))
    jumps = [right - left for left, right in zip(slopes, slopes[1:])]
    # the function is a sum of ramps; their own values at 0 are taken off, so that the sum has the value asked for
    offset = value_at_zero - sum(j * max(-k, 0.0) for j, k in zip(jumps, kinks))

    def fn(x):
        y = x * slopes[0] + offset
        for jump, kink in zip(jumps, kinks):
            y = y + jump * (x - kink).clamp_min(0)
        return y

    def derivative(x):
        y = torch.full_like(x, slopes[0])
        for jump, kink in zip(jumps, kinks):
            y = y + jump * (x > kink).to(x.dtype)
        return y

    return Activation(name, fn, derivative, kinks, slopes=slopes)


# ---------------------------------------------------------------------------------------------------------------
# the registry

_SQRT_PI, _SQRT_2PI = math.sqrt(math.pi), math.sqrt(2 * math.pi)
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def _d_swish(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _d_gelu(x):
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-0.5 * x * x) / _SQRT_2PI


def _d_mish(x):
    t = torch.tanh(F.softplus(x))
    return t + x * torch.sigmoid(x) * (1 - t * t)


def _d_elu(x):
    return torch.where(x > 0, torch.ones_like(x), torch.exp(x.clamp_max(0)))


def _d_selu(x):
    return _SELU_SCALE * torch.where(x > 0, torch.ones_like(x), _SELU_ALPHA * torch.exp(x.clamp_max(0)))


def _softplus(x):
    # torch's softplus turns linear above its threshold of 20, which is a jump of 2e-9
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("relu", torch.relu, lambda x: (x > 0).to(x.dtype), (0,), 1.0, (0, 1)),
        Activation("leaky_relu", F.leaky_relu, lambda x: 0.01 + 0.99 * (x > 0).to(x.dtype), (0,), 1.0, (0.01, 1)),
        Activation("tanh", torch.tanh, lambda x: 1 - torch.tanh(x) ** 2, (), 1.0),
        Activation("hardtanh", F.hardtanh, lambda x: (x.abs() < 1).to(x.dtype), (-1, 1), 1.0, (0, 1, 0)),
        Activation("erf", torch.erf, lambda x: 2 / _SQRT_PI * torch.exp(-x * x), (), 2 / _SQRT_PI),
        Activation("sigmoid", torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), (), 0.25),
        Activation("swish", F.silu, _d_swish),
        Activation("gelu", F.gelu, _d_gelu),
        Activation("elu", F.elu, _d_elu, (0,), 1.0),
        Activation("selu", F.selu, _d_selu, (0,), _SELU_SCALE * _SELU_ALPHA),
        Activation("softplus", _softplus, torch.sigmoid, (), 1.0),
        Activation("mish", F.mish, _d_mish),
        Activation("softsign", F.softsign, lambda x: 1 / (1 + x.abs()) ** 2, (0,), 1.0),
        Activation("sin", torch.sin, torch.cos, (), 1.0),
    )
}
# in the order in which the command line offers them
ACTIVATIONS = {name: ACTIVATIONS[name] for name in names.ACTIVATIONS}


def from_function(fn: Elementwise, name: str | None = None, kinks: Iterable[float] = ()) -> Activation:
    """Makes an Activation of an elementwise torch function, with its derivative by autograd."""

    def derivative(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = fn(x)
            return torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)

    return Activation(name or getattr(fn, "__name__", "activation"), fn, derivative, tuple(kinks))


def load_activation(spec: str) -> Activation:
    """Returns the activation of a registry name, or of "path/to/file.py:name", a file WHOSE CODE IS RUN.

    The name in the file is that of a function or of an `Activation`. Raises ValueError, in one line, for an unknown
    name, a missing file or name, or a file that does not run.
    """
    if spec in ACTIVATIONS:
        return ACTIVATIONS[spec]
    path, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(
            f"unknown activation {spec!r}: choose from {', '.join(ACTIVATIONS)}, or give path/to/file.py:name"
        )
    try:
        value = runpy.run_path(path).get(name)
    except FileNotFoundError:
        raise ValueError(f"activation {spec!r}: there is no file {path}") from None
    except Exception as error:
        raise ValueError(f"activation {spec!r}: {path} does not run: {type(error).__name__}: {error}") from None
    if not callable(value):
        raise ValueError(f"activation {spec!r}: {path} defines no function or Activation called {name}")
    try:
        return value if isinstance(value, Activation) else from_function(cast(Elementwise, value), name)
    except Exception as error:
        raise ValueError(f"activation {spec!r}: {name} is not an elementwise torch function: {error}") from None
