"""Every random draw of the project comes from a generator that is named here by a tuple of seeds; so do weights."""

import hashlib
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import nn


def generator(*seeds: object) -> torch.Generator:
    """Returns a CPU generator for this tuple of integers and strings; other tuples give independent streams.

    An integer of any kind, such as NumPy's, names the stream of its value.
    """
    seeds = tuple(int(seed) if isinstance(seed, Integral) else seed for seed in seeds)
    digest = hashlib.sha256(repr(seeds).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal_weights(*shape: int, seed: tuple) -> nn.Parameter:
    """Draws a parameter of standard normal entries from the stream that the seed names.

    They are drawn in float32 on the CPU, and then have torch's default type and device. So a seed names one network.

    Raises ValueError where a size, such as the width or the number of classes, is no whole number from 1 on.
    """
    if not all(isinstance(size, Integral) and size >= 1 for size in shape):
        raise ValueError(f"weights of shape {shape}: width, inputs and classes must be whole numbers from 1 on")
    return nn.Parameter(_drawn(shape, seed).to(torch.empty(0)))  # as which torch makes new tensors


def _drawn(shape: Sequence[int], seed: tuple) -> torch.Tensor:
    return torch.randn(shape, generator=generator(*seed), dtype=torch.float32, device="cpu")


def drawn_readout(dim: int, n_classes: int, seed: int) -> nn.Linear:
    """Draws a linear readout without bias, from the width to the classes."""
    weights = normal_weights(n_classes, dim, seed=(seed, "readout"))
    readout = nn.Linear(dim, n_classes, bias=False, device="meta")  # or it would draw weights of its own
    readout.weight = weights
    return readout


def drawn_from(seed: int, weights: dict[str, torch.Tensor]) -> bool:
    """Tells whether these weights are those that the seed draws from the streams of their names."""
    try:
        return all(
            torch.equal(weight.detach().cpu(), _drawn(weight.shape, (seed, name)).to(weight.dtype))
            for name, weight in weights.items()
        )
    except NotImplementedError:  # on the device meta there are no numbers
        return False
