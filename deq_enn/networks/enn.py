"""Explicit networks have a few layers of given activations and a readout."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from deq_enn.matching.families import Match
from deq_enn.matching.one_layer_tanh import HardTanhMatch
from deq_enn.matching.two_layer_lrelu import LReLUMatch
from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import KernelCoefficients, explicit_ck
from deq_enn.utils.random import drawn_readout, normal_weights

AnyMatch = LReLUMatch | HardTanhMatch | Match  # of the paper's examples, and of any activation


class ENN(nn.Module):
    """This is an explicit network of len(layers) hidden layers of one width.

    Parameters
    ----------
    layers : one activation a hidden layer, used as given (a matched network's are centred already).
    p, dim, n_classes : input dimension, width m, number of outputs.
    tau0 : scale of the data.
    input_scale : factor on the input (sigma_b for the paper's unmatched networks).
    seed : of the weights.
    match : the match that the layers come from, a dataclass, for `describe`. Its layers are centred, and fix the
        coefficients; `layers` may then have constants beside them.
    """

    def __init__(
        self,
        layers: Sequence[Activation],
        p: int,
        dim: int,
        n_classes: int,
        tau0: float = 1.0,
        input_scale: float = 1.0,
        seed: int = 0,
        match: AnyMatch | None = None,
    ):
        super().__init__()
        self.layers, self.tau0, self.input_scale, self.match = tuple(layers), tau0, input_scale, match
        self.coefficients = explicit_coefficients(self.layers if match is None else match.layers, tau0, input_scale)
        self.weights = nn.ParameterList([normal_weights(dim, p, seed=(seed, "first"))])
        self.weights.extend(
            normal_weights(dim, dim, seed=(seed, "hidden", index)) for index in range(2, len(self.layers) + 1)
        )
        self.readout = drawn_readout(dim, n_classes, seed)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the last hidden layer (n, m) of inputs x (n, p)."""
        scale = self.input_scale
        for weight, layer in zip(self.weights, self.layers):
            x = layer.fn((x @ weight.T) * scale)
            scale = 1 / math.sqrt(len(weight))
        return x * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits (n, n_classes) of inputs x (n, p)."""
        return self.readout(self.features(x))

    def describe(self) -> dict:
        """Returns the scalars of the theory, as they are printed and logged."""
        return {
            "layers": [layer.name for layer in self.layers],
            "tau0": self.tau0,
            "input_scale": self.input_scale,
            **named_scalars(self.coefficients),
            **match_scalars(self.match),
        }


def explicit_coefficients(layers: Sequence[Activation], tau0: float, input_scale: float) -> KernelCoefficients:
    """Returns those of the conjugate kernel of layers on scaled inputs, as a function of the input before scaling."""
    ck = explicit_ck(layers, tau0 * input_scale)
    return KernelCoefficients(ck.diag, ck.c1 * input_scale**2, ck.c2 * input_scale**4, ck.c3 * input_scale**4)


def match_scalars(match: AnyMatch | None) -> dict:
    """Returns the parameters of a match that can be printed and logged."""
    if match is None:
        return {}
    return {
        name: value
        for name, value in vars(match).items()
        if isinstance(value, (int, float, str)) or name == "parameters"
    }


def named_scalars(ck: KernelCoefficients) -> dict[str, float]:
    """Returns the coefficients of a conjugate kernel by the names that logs have for them."""
    return {"gamma2": ck.diag, "alpha1": ck.c1, "alpha2": ck.c2, "alpha3": ck.c3}
