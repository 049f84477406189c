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
