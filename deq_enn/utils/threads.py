"""Torch takes one of its threads where steps are small, as others would wait for one another."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")

SMALL_READOUT = 1024  # features of a readout up to which one thread trains it as fast as two, on two quiet cores
SMALL_NETWORK = 256  # width up to which the same holds for a network without convolutions, all its weights trained


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch work on the calling thread alone.

    Its threads wait by spinning. Where short steps of torch and of NumPy take turns, or several threads call torch, or
    another program keeps a core busy, they compete for the cores and all is ten times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_one_thread_if_small(method: Callable[..., T]) -> Callable[..., T]:
    """Makes a method work on the calling thread alone where its object's attribute `small` is true."""

    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        with one_thread() if self.small else nullcontext():
            return method(self, *args, **kwargs)

    return wrapped


def is_small(network: torch.nn.Module) -> bool:
    """Tells whether more threads than one would not train this network any faster.

    They would not where its weights are on the CPU, none of them is a convolution's, and none has more than
    `SMALL_NETWORK` rows.
    """
    weights = list(network.parameters())
    return all(w.device.type == "cpu" and w.ndim <= 2 and w.shape[:1] <= (SMALL_NETWORK,) for w in weights)
