"""Layers as numbers: what a file says of an activation, so that a network is built again without its code."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from deq_enn.theory.activations import ACTIVATIONS, Activation, piecewise_linear

# points where a description is held against the layer that it describes
PROBE = torch.linspace(-6, 6, 121, dtype=torch.float64)


def describe_layer(layer: Activation) -> dict:
    """Returns a layer as JSON: an activation plus a constant, a piecewise-linear function, or a polynomial.

    What is none of them, a function of the user's own, is given by its name alone, with which it cannot be rebuilt.
    """
    value = layer.fn(torch.zeros(1, dtype=torch.float64)).item()
    candidates = []
    if layer.name in ACTIVATIONS:
        own = ACTIVATIONS[layer.name].fn(torch.zeros(1, dtype=torch.float64)).item()
        candidates.append({"kind": "activation", "activation": layer.name, "constant": value - own})
    if layer.slopes:
        candidates.append(
            {"kind": "piecewise_linear", "kinks": layer.kinks, "slopes": layer.slopes, "value_at_zero": value}
        )
    candidates.append({"kind": "polynomial", "coefficients": _cubic(layer, value)})
    expected = layer.fn(PROBE)
    for numbers in candidates:
        if (make_layer(layer.name, numbers).fn(PROBE) - expected).abs().max() <= 1e-12 * expected.abs().max():
            return {"name": layer.name, **numbers}
    return {"name": layer.name, "kind": "own"}


def _cubic(layer: Activation, value: float) -> tuple[float, float, float, float]:
    """Returns the coefficients of the cubic with the layer's values at 0 (`value`), 1, -1, and the same growth to 2."""
    plus, minus, plus2, minus2 = layer.fn(torch.tensor([1.0, -1, 2, -2], dtype=torch.float64)).tolist()
    cubic = ((plus2 - minus2) / 2 - (plus - minus)) / 6
    return value, (plus - minus) / 2 - cubic, (plus + minus) / 2 - value, cubic


def _with_constant(activation: Activation, constant: float) -> Activation:
    return Activation(
        activation.name,
        lambda x: activation.fn(x) + constant,
        activation.derivative,
        activation.kinks,
        activation.lipschitz,
        activation.slopes,
    )


def _polynomial(name: str, coefficients: Sequence[float]) -> Activation:
    a0, a1, a2, a3 = map(float, coefficients)
    return Activation(name, lambda x: a0 + x * (a1 + x * (a2 + x * a3)), lambda x: a1 + x * (2 * a2 + 3 * a3 * x))


def make_layer(name: str, numbers: Mapping[str, Any]) -> Activation:
    """Returns the layer that `describe_layer` described; ValueError for a function that only code can give."""
    kind = numbers["kind"]
    if kind == "activation":
        return _with_constant(ACTIVATIONS[numbers["activation"]], float(numbers["constant"]))
    if kind == "piecewise_linear":
        return piecewise_linear(name, numbers["kinks"], numbers["slopes"], float(numbers["value_at_zero"]))
    if kind == "polynomial":
        return _polynomial(name, numbers["coefficients"])
    raise ValueError(f"layer {name} is a function that these files do not hold: load the .pt2 program instead")
