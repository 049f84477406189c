"""Layers as numbers: what a file says of an activation, so that a network is built again without its code."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from deq_enn.theory.activations import ACTIVATIONS, Activation, piecewise_linear, rescaled
from deq_enn.theory.elementwise import Cubic, CubicAtScale, CubicSlope, Rescaled, Shifted, unshifted


def describe_layer(layer: Activation) -> dict:
    """Returns a layer as JSON: an activation plus a constant, rescaled or not, piecewise-linear, or a polynomial.

    A layer is one of these if it was built so; its values are not looked at for that. What is none of them, a function
    of the user's own, is given by its name alone, with which it cannot be rebuilt.
    """
    fn, constant = unshifted(layer.fn)
    inner = fn.fn if isinstance(fn, Rescaled) else fn
    for own in ACTIVATIONS.values():
        if inner is own.fn:
            numbers = {"activation": own.name, "constant": constant}
            if isinstance(fn, Rescaled):
                return {"name": layer.name, "kind": "rescaled", **numbers, "a": fn.a, "c": fn.c}
            return {"name": layer.name, "kind": "activation", **numbers}
    if isinstance(fn, (Cubic, CubicAtScale)):
        a0, *others = fn.coefficients
        return {"name": layer.name, "kind": "polynomial", "coefficients": (a0 + constant, *others)}
    if layer.slopes:
        value = layer.fn(torch.zeros(1, dtype=torch.float64)).item()
        numbers = {"kind": "piecewise_linear", "kinks": layer.kinks, "slopes": layer.slopes, "value_at_zero": value}
        if _has(layer, numbers):
            return {"name": layer.name, **numbers}
    return {"name": layer.name, "kind": "own"}


def _has(layer: Activation, numbers: Mapping[str, Any]) -> bool:
    """Tells whether a function has the slopes and kinks that it declares, at each kink and far beyond them."""
    far = 10 * max(1.0, *map(abs, layer.kinks), 0.0)
    x = torch.cat([torch.linspace(-far, far, 1001, dtype=torch.float64), torch.tensor(layer.kinks).double()])
    expected = layer.fn(x)
    return bool((make_layer(layer.name, numbers).fn(x) - expected).abs().max() <= 1e-12 * expected.abs().max())


def make_layer(name: str, numbers: Mapping[str, Any]) -> Activation:
    """Returns the layer that `describe_layer` described; ValueError for a function that only code can give."""
    kind = numbers["kind"]
    if kind == "activation":
        own = ACTIVATIONS[numbers["activation"]]
        return replace(own, fn=Shifted(own.fn, *_finite([numbers["constant"]])))
    if kind == "rescaled":
        a, c, constant = _finite(numbers[key] for key in ("a", "c", "constant"))
        return rescaled(ACTIVATIONS[numbers["activation"]], a, c, constant)
    if kind == "piecewise_linear":
        return piecewise_linear(name, numbers["kinks"], numbers["slopes"], *_finite([numbers["value_at_zero"]]))
    if kind == "polynomial":
        a0, a1, a2, a3 = _finite(numbers["coefficients"])
        return Activation(name, Cubic(a0, a1, a2, a3), CubicSlope(a1, a2, a3))
    raise ValueError(f"layer {name} is a function that these files do not hold: load the .pt2 program instead")


def _finite(numbers: Iterable[Any]) -> list[float]:
    values = list(map(float, numbers))
    if not all(map(math.isfinite, values)):
        raise ValueError(f"a layer has a number that is not finite: {values}")
    return values
