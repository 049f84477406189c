"""Torch takes one of its threads where steps are small, as others would wait for one another.

The steps of a readout are small at any width. Two quiet cores make an epoch of 60,000 samples of 4,096 features in 0.20
s where one takes 0.26 s; two that another program keeps busy took 0.8 to 27 s, and one still 0.26 s. And on one thread
a run has the same digits whatever the machine's cores.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")

# width of a network without convolutions, all its weights trained, up to which one thread is as fast as two quiet ones
SMALL_NETWORK = 256


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
