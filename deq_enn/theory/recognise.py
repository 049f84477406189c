"""An activation that a user brings is recognised by what it is: a name, the very function, or the type of its module.

No values are compared for that. nn.ReLU6 agrees with relu on [-6, 6], and is another function. What is not recognised
stays the user's own, with its derivative by autograd and with the `kinks` that it declares as an attribute.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, piecewise_linear
from deq_enn.theory.elementwise import Elementwise, OnDevice

Known = Activation | str | None  # an activation, the name of one of the registry, or None: not recognised


def recognise(given: Any, whose: str = "the", device: torch.device | None = None) -> Activation:
    """Returns the activation that a name, a function, an nn.Module or an `Activation` stands for.

    Parameters
    ----------
    whose : the word before "activation" in messages.
    device : where the user's network is, whose tensors the function may hold; the CPU by default.

    Raises
    ------
    ValueError : it is no name of the registry, or no elementwise torch function; says so in one line.
    """
    if isinstance(given, Activation):
        return given
    if isinstance(given, str):
        if given not in ACTIVATIONS:
            raise ValueError(f"{whose} activation is {given!r}, not one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[given]
    try:
        known = _of_module(given) if isinstance(given, nn.Module) else _of_function(given)
        if known is None:
            known = _own(given, device)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{whose} activation is not an elementwise torch function: {reason}") from None
    return ACTIVATIONS[known] if isinstance(known, str) else known


# ---------------------------------------------------------------------------------------------------------------
# functions

_SAME_AS: list[tuple[str, tuple[Any, ...]]] = [
    ("relu", (torch.relu, F.relu, torch.relu_, F.relu_, torch.Tensor.relu)),
    ("leaky_relu", (F.leaky_relu,)),
    ("tanh", (torch.tanh, F.tanh, torch.Tensor.tanh)),
    ("hardtanh", (F.hardtanh,)),
    ("erf", (torch.erf, torch.special.erf, torch.Tensor.erf)),
    ("sigmoid", (torch.sigmoid, F.sigmoid, torch.special.expit, torch.Tensor.sigmoid)),
    ("swish", (F.silu,)),
    ("gelu", (F.gelu,)),
    ("elu", (F.elu, F.celu, torch.celu)),
    ("selu", (F.selu, torch.selu)),
    ("softplus", (F.softplus,)),
    ("mish", (F.mish,)),
    ("softsign", (F.softsign,)),
    ("sin", (torch.sin, torch.Tensor.sin)),
]
_WITH_KINKS: list[tuple[Any, tuple[float, ...]]] = [(F.hardswish, (-3, 3)), (F.hardshrink, (-0.5, 0.5))]


def _of_function(given: Any) -> Known:
    if given is F.relu6:
        return clip(0.0, 6.0, "relu6")
    if given is F.hardsigmoid:
        return _hardsigmoid(given)
    if given is F.softshrink:
        return _softshrink(0.5)
    for fn, kinks in _WITH_KINKS:
        if given is fn:
            return from_function(fn, kinks=kinks)
    return next((name for name, functions in _SAME_AS if any(given is fn for fn in functions)), None)


def clip(low: float, high: float, name: str) -> Activation:
    """Returns the function that is x between low and high, and constant outside."""
    return piecewise_linear(name, (low, high), (0, 1, 0), min(max(0.0, low), high))


def _leaky(slope: float) -> Known:
    return "leaky_relu" if slope == 0.01 else piecewise_linear("leaky_relu", (0,), (slope, 1))


def _softshrink(edge: float) -> Activation:
    return piecewise_linear("softshrink", (-edge, edge), (1, 0, 1))


def _hardsigmoid(_: Any) -> Activation:
    return piecewise_linear("hardsigmoid", (-3, 3), (0, 1 / 6, 0), 0.5)


# ---------------------------------------------------------------------------------------------------------------
# modules, by their exact type: a subclass may do something else


def _hardtanh(module: Any) -> Known:
    low, high = float(module.min_val), float(module.max_val)
    return "hardtanh" if (low, high) == (-1, 1) else clip(low, high, "hardtanh")


def _prelu(module: Any) -> Known:
    if module.num_parameters != 1:
        raise ValueError(
            f"a PReLU of {module.num_parameters} slopes is another function for each unit; give it one slope"
        )
    return _leaky(module.weight.item())


def _elu(module: Any) -> Known:
    return "elu" if module.alpha == 1 else from_function(_frozen(module), "elu", (0,))


def _softplus(module: Any) -> Known:
    if (module.beta, module.threshold) == (1, 20):
        return "softplus"
    return from_function(_frozen(module), "softplus", (module.threshold / module.beta,))


def _with_kinks(kinks: Callable[[Any], tuple[float, ...]]) -> Callable[[Any], Known]:
    return lambda module: from_function(_frozen(module), type(module).__name__.lower(), kinks(module))


_MODULES: dict[type, str | Callable[[Any], Known]] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "swish",
    nn.Mish: "mish",
    nn.Softsign: "softsign",
    nn.SELU: "selu",
    nn.GELU: lambda module: "gelu" if module.approximate == "none" else None,
    nn.Softplus: _softplus,
    nn.ELU: _elu,
    nn.CELU: _elu,
    nn.LeakyReLU: lambda module: _leaky(module.negative_slope),
    nn.PReLU: _prelu,
    nn.RReLU: lambda module: _leaky((module.lower + module.upper) / 2),  # as it is when it is not trained
    nn.Hardtanh: _hardtanh,
    nn.ReLU6: lambda _: clip(0.0, 6.0, "relu6"),
    nn.Hardsigmoid: _hardsigmoid,
    nn.Softshrink: lambda module: _softshrink(module.lambd),
    nn.Identity: lambda _: piecewise_linear("identity", (), (1,)),
    nn.Hardswish: _with_kinks(lambda _: (-3, 3)),
    nn.Hardshrink: _with_kinks(lambda module: (-module.lambd, module.lambd)),
    nn.Threshold: _with_kinks(lambda module: (module.threshold,)),
}


def _of_module(module: nn.Module) -> Known:
    hooks = module._forward_hooks or module._forward_pre_hooks
    if hooks or "forward" in vars(module):  # it does something else than its type says
        return None
    if type(module) is nn.Sequential:  # dropout is off wherever a network is judged
        parts = [part for part in module if not isinstance(part, (nn.Dropout, nn.AlphaDropout, nn.Identity))]
        if len(parts) == 1:
            return _of_module(parts[0])
    known = _MODULES.get(type(module))
    return known(module) if callable(known) else known


def _frozen(module: nn.Module) -> nn.Module:
    """Returns a copy of the module that does not change: in evaluation mode, without gradients of its parameters."""
    frozen = copy.deepcopy(module).eval()
    for parameter in frozen.parameters():  # a ScriptModule has no requires_grad_
        parameter.requires_grad_(False)
    return frozen


def _own(given: Any, device: torch.device | None) -> Activation:
    """Returns the activation of a user's own function or module. The theory asks for its values on the CPU."""
    if isinstance(given, type):
        raise ValueError(f"{given.__name__} is a class; give {given.__name__}()")
    if not callable(given):
        raise ValueError(f"{type(given).__name__} cannot be called")
    name = getattr(given, "__name__", type(given).__name__)
    kinks = getattr(given, "kinks", ())
    fn = cast(Elementwise, _frozen(given) if isinstance(given, nn.Module) else given)
    if device is not None and device.type != "cpu":
        fn = OnDevice(fn, device)
    held = [*given.parameters(), *given.buffers()] if isinstance(given, nn.Module) else []
    x = torch.linspace(-5, 5, 101, dtype=torch.float64, device=held[0].device if held else None)
    with torch.no_grad():
        values = fn(x)
        if not isinstance(values, torch.Tensor) or values.shape != x.shape:
            raise ValueError("it must map a tensor to a tensor of the same shape")
        if not torch.allclose(fn(x[::2]), values[::2], rtol=1e-4, atol=1e-6, equal_nan=True):
            raise ValueError("its value at one number depends on the others, or is random")
    return from_function(fn, name, kinks)
