"""The weights of a network are drawn here, each matrix from a random stream of its own."""

import torch
from torch import nn

from deq_enn.utils.random import generator


def normal_weights(*shape: int, seed: tuple) -> nn.Parameter:
    """Draws a parameter of standard normal entries from the stream that the seed names."""
    return nn.Parameter(torch.randn(*shape, generator=generator(*seed)))


def drawn_readout(dim: int, n_classes: int, seed: int) -> nn.Linear:
    """Draws a linear readout without bias, from the width to the classes."""
    readout = nn.Linear(dim, n_classes, bias=False)
    readout.weight = normal_weights(n_classes, dim, seed=(seed, "readout"))
    return readout


def drawn_from(seed: int, weights: dict[str, torch.Tensor]) -> bool:
    """Tells whether these weights are those that the seed draws from the streams of their names."""
    return all(
        torch.equal(weight.detach().cpu(), torch.randn(weight.shape, generator=generator(seed, name)).to(weight.dtype))
        for name, weight in weights.items()
    )
