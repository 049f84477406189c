"""Elementwise functions that are kept: each is a module-level function or an object of numbers, so that it pickles.

Their structure can be read off them again: `networks.layers` writes a layer as numbers only where it is built of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Elementwise = Callable[[torch.Tensor], torch.Tensor]

_SQRT_PI, _SQRT_2PI = math.sqrt(math.pi), math.sqrt(2 * math.pi)
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


@dataclass(frozen=True)
class Shifted:
    """This is fn(x) + constant."""

    fn: Elementwise
    constant: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x) + self.constant


def unshifted(fn: Elementwise) -> tuple[Elementwise, float]:
    """Returns the function below all constants that `Shifted` added, and their sum."""
    constant = 0.0
    while isinstance(fn, Shifted):
        fn, constant = fn.fn, constant + fn.constant
    return fn, constant


@dataclass(frozen=True)
class Rescaled:
    """This is c fn(a x)."""

    fn: Elementwise
    a: float
    c: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.c * self.fn(self.a * x)


@dataclass(frozen=True)
class PiecewiseLinear:
    """slopes[0] x + offset, and a ramp at each kink."""

    kinks: tuple[float, ...]
    slopes: tuple[float, ...]
    offset: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.slopes[0] + self.offset
        for jump, kink in zip(jumps(self.slopes), self.kinks):
            y = y + jump * (x - kink).clamp_min(0)
        return y


@dataclass(frozen=True)
class PiecewiseSlope:
    """This is the derivative of a `PiecewiseLinear`."""

    kinks: tuple[float, ...]
    slopes: tuple[float, ...]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.full_like(x, self.slopes[0])
        for jump, kink in zip(jumps(self.slopes), self.kinks):
            y = y + jump * (x > kink).to(x.dtype)
        return y


def jumps(slopes: tuple[float, ...]) -> list[float]:
    """Returns by how much the slope grows at each kink."""
    return [right - left for left, right in zip(slopes, slopes[1:])]


@dataclass(frozen=True)
class Cubic:
    """This is a0 + a1 x + a2 x^2 + a3 x^3."""

    a0: float
    a1: float
    a2: float
    a3: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.a0 + x * (self.a1 + x * (self.a2 + x * self.a3))

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """Returns those of 1, x, x^2 and x^3."""
        return self.a0, self.a1, self.a2, self.a3


@dataclass(frozen=True)
class CubicSlope:
    """This is the derivative of a `Cubic`."""

    a1: float
    a2: float
    a3: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.a1 + x * (2 * self.a2 + 3 * self.a3 * x)


@dataclass(frozen=True)
class CubicAtScale:
    """This is gain tau (u + a2 (u^2 - 1) + a3 (u^3 - 3 u)) of u = x/tau, a cubic layer of a match."""

    a2: float
    a3: float
    tau: float
    gain: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x / self.tau
        return self.gain * self.tau * (x * (1 - 3 * self.a3 + x * (self.a2 + x * self.a3)) - self.a2)

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """Returns those of 1, x, x^2 and x^3."""
        gain, tau = self.gain, self.tau
        return -gain * tau * self.a2, gain * (1 - 3 * self.a3), gain * self.a2 / tau, gain * self.a3 / tau**2


@dataclass(frozen=True)
class CubicSlopeAtScale:
    """This is the derivative of a `CubicAtScale`."""

    a2: float
    a3: float
    tau: float
    gain: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x / self.tau
        return self.gain * (1 - 3 * self.a3 + x * (2 * self.a2 + 3 * self.a3 * x))


@dataclass(frozen=True)
class OnDevice:
    """A function that holds tensors of a device: it is computed there, wherever x is, and goes back to x."""

    fn: Elementwise
    device: torch.device

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x.to(self.device)).to(x.device)


@dataclass(frozen=True)
class Autograd:
    """This is the derivative of a function, by autograd."""

    fn: Elementwise

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self.fn(x)
            return torch.autograd.grad(y.sum(), x)[0] if y.requires_grad else torch.zeros_like(x)


# ---------------------------------------------------------------------------------------------------------------
# of the registry


def d_relu(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of relu."""
    return (x > 0).to(x.dtype)


def d_leaky_relu(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of leaky ReLU with torch's slope."""
    return 0.01 + 0.99 * (x > 0).to(x.dtype)


def d_tanh(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of tanh."""
    return 1 - torch.tanh(x) ** 2


def d_hardtanh(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of clip(x, -1, 1)."""
    return (x.abs() < 1).to(x.dtype)


def d_erf(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of erf."""
    return 2 / _SQRT_PI * torch.exp(-x * x)


def d_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of the logistic function."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def d_swish(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of x sigmoid(x)."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def d_gelu(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of gelu."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-0.5 * x * x) / _SQRT_2PI


def d_mish(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of mish."""
    t = torch.tanh(F.softplus(x))
    return t + x * torch.sigmoid(x) * (1 - t * t)


def d_elu(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of elu with alpha 1."""
    return torch.where(x > 0, torch.ones_like(x), torch.exp(x.clamp_max(0)))


def d_selu(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of selu."""
    return SELU_SCALE * torch.where(x > 0, torch.ones_like(x), SELU_ALPHA * torch.exp(x.clamp_max(0)))


def softplus(x: torch.Tensor) -> torch.Tensor:
    """Returns log(1 + e^x) everywhere; torch's turns linear above its threshold of 20, which is a jump of 2e-9."""
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


def d_softsign(x: torch.Tensor) -> torch.Tensor:
    """Returns the derivative of x/(1 + |x|)."""
    return 1 / (1 + x.abs()) ** 2
