"""This file defines what the theory needs to know of an activation, their registry, and how users bring their own."""

import contextlib
import functools
import math
import os
import runpy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F

from deq_enn import names
from deq_enn.theory import elementwise as e
from deq_enn.theory.elementwise import Elementwise


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
        if not all(map(math.isfinite, (*self.kinks, *self.slopes))):
            raise ValueError(
                f"activation {self.name}: kinks and slopes must be finite, got {self.kinks} and {tuple(self.slopes)}"
            )
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

    def __reduce_ex__(self, protocol: Any) -> Any:
        # one of the registry stays the same object, in a copy and in another process
        if ACTIVATIONS.get(self.name) is self:
            return registered, (self.name,)
        return super().__reduce_ex__(protocol)


def registered(name: str) -> Activation:
    """Returns the activation of the registry with this name."""
    return ACTIVATIONS[name]


def piecewise_linear(
    name: str, kinks: Iterable[float], slopes: Iterable[float], value_at_zero: float = 0.0
) -> Activation:
    """Returns the continuous function with these slopes between these (sorted) kinks, and with this value at 0."""
    kinks, slopes = tuple(map(float, kinks)), tuple(map(float, slopes))
    if any(not left <= right for left, right in zip(kinks, kinks[1:])):
        raise ValueError(f"activation {name}: the kinks must be sorted numbers, got {kinks}")
    # the function is a sum of ramps; their own values at 0 are taken off, so that the sum has the value asked for
    offset = value_at_zero - sum(j * max(-k, 0.0) for j, k in zip(e.jumps(slopes), kinks))
    fn, slope = e.PiecewiseLinear(kinks, slopes, offset), e.PiecewiseSlope(kinks, slopes)
    return Activation(name, fn, slope, kinks, slopes=slopes)


def rescaled(activation: Activation, a: float, c: float, constant: float = 0.0) -> Activation:
    """Returns c phi(a x) + constant, a > 0, where phi is the activation without the constant that centres it."""
    fn, _ = e.unshifted(activation.fn)
    return Activation(
        f"rescaled_{activation.name}",
        e.Shifted(e.Rescaled(fn, a, c), constant) if constant else e.Rescaled(fn, a, c),
        e.Rescaled(activation.derivative, a, a * c),
        tuple(kink / a for kink in activation.kinks),
        slopes=tuple(a * c * slope for slope in activation.slopes),
    )


# ---------------------------------------------------------------------------------------------------------------
# the registry

ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation("relu", torch.relu, e.d_relu, (0,), 1.0, (0, 1)),
        Activation("leaky_relu", F.leaky_relu, e.d_leaky_relu, (0,), 1.0, (0.01, 1)),
        Activation("tanh", torch.tanh, e.d_tanh, (), 1.0),
        Activation("hardtanh", F.hardtanh, e.d_hardtanh, (-1, 1), 1.0, (0, 1, 0)),
        Activation("erf", torch.erf, e.d_erf, (), 2 / math.sqrt(math.pi)),
        Activation("sigmoid", torch.sigmoid, e.d_sigmoid, (), 0.25),
        Activation("swish", F.silu, e.d_swish),
        Activation("gelu", F.gelu, e.d_gelu),
        Activation("elu", F.elu, e.d_elu, (0,), 1.0),
        Activation("selu", F.selu, e.d_selu, (0,), e.SELU_SCALE * e.SELU_ALPHA),
        Activation("softplus", e.softplus, torch.sigmoid, (), 1.0),
        Activation("mish", F.mish, e.d_mish),
        Activation("softsign", F.softsign, e.d_softsign, (0,), 1.0),
        Activation("sin", torch.sin, torch.cos, (), 1.0),
    )
}
ACTIVATIONS = {name: ACTIVATIONS[name] for name in names.ACTIVATIONS}
"""The activations that are known by name, in the order in which the command line offers them."""


def from_function(fn: Elementwise, name: str | None = None, kinks: Iterable[float] = ()) -> Activation:
    """Makes an Activation of an elementwise torch function, with its derivative by autograd."""
    return Activation(name or getattr(fn, "__name__", "activation"), fn, e.Autograd(fn), tuple(kinks))


@dataclass(frozen=True)
class FromFile:
    """A function of a user's file. In a pickle it is the place in the file, which is run again where it is loaded.

    part : "fn" or "derivative" of an `Activation` in the file, or empty for a function.
    """

    path: str
    name: str
    part: str
    fn: Elementwise

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x)

    def __reduce__(self) -> Any:
        return from_file, (self.path, self.name, self.part)

    def __deepcopy__(self, memo: Any) -> "FromFile":
        return self  # as of any function


def from_file(path: str, name: str, part: str) -> FromFile:
    """Loads what a pickle holds of a function of a user's file. Raises ValueError where the file no longer has it."""
    try:
        value = _run(path, os.stat(path).st_mtime_ns)[name]
    except (OSError, KeyError):
        raise ValueError(f"the activation {name} was defined in {path}, where it no longer is") from None
    return FromFile(path, name, part, getattr(value, part) if part else value)


@functools.lru_cache(8)  # a pickle has a function and its derivative
def _run(path: str, _changed: int) -> dict[str, Any]:
    """Returns what a user's file defines, and leaves the working folder and torch as they were."""
    with contextlib.chdir("."), _torch_as_it_was():  # whatever the file changes
        return runpy.run_path(path)


def _kept(value: Any, path: str, name: str) -> Activation:
    """Returns what a user's file defines as an Activation that can be pickled, whatever its functions are."""
    if isinstance(value, Activation):
        fn, slope = FromFile(path, name, "fn", value.fn), FromFile(path, name, "derivative", value.derivative)
        return replace(value, fn=fn, derivative=slope)
    return from_function(FromFile(path, name, "", cast(Elementwise, value)), name, getattr(value, "kinks", ()))


@contextlib.contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """Gives back torch's default type, and whether gradients are taken."""
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


def load_activation(spec: str) -> Activation:
    """Returns the activation of a registry name, or of "path/to/file.py:name", a file WHOSE CODE IS RUN.

    The name in the file is that of a function or of an `Activation`. Raises ValueError, in one line, for an unknown
    name, a missing file or name, or a file that does not run. The working folder and torch's default type stay.
    """
    if spec in ACTIVATIONS:
        return ACTIVATIONS[spec]
    path, colon, name = spec.rpartition(":")
    if not colon:
        raise ValueError(
            f"unknown activation {spec!r}: choose from {', '.join(ACTIVATIONS)}, or give path/to/file.py:name"
        )
    try:
        with contextlib.chdir("."), _torch_as_it_was():  # whatever the file changes
            value = runpy.run_path(path).get(name)
    except FileNotFoundError:
        raise ValueError(f"activation {spec!r}: there is no file {path}") from None
    except SystemExit as stop:  # it would end the whole program, as if all were done
        raise ValueError(f"activation {spec!r}: {path} ends the program (SystemExit: {stop})") from None
    except Exception as error:
        raise ValueError(f"activation {spec!r}: {path} does not run: {type(error).__name__}: {error}") from None
    if not callable(value):
        raise ValueError(f"activation {spec!r}: {path} defines no function or Activation called {name}")
    try:
        return _kept(value, os.path.abspath(path), name)
    except Exception as error:
        raise ValueError(f"activation {spec!r}: {name} is not an elementwise torch function: {error}") from None
