"""A kernel between images that takes a day or more is announced before it begins, with the time.

A few of the images stand for all, so that nothing of the whole is set up before. What is timed is the tile that the
kernel is made of, at some offsets; or where that takes long a part of it, at some pixels of them. Offsets are taken in
the order of their pixels, each for as many of all pairs of pixels, since it is how far apart the two pixels are that
most of the time depends on.
"""

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from deq_enn.kernels.compiled import WIDE
from deq_enn.kernels.conv_blocks import CUDA_ENTRIES, WIDE_ENTRIES, ConvBlocks, Side
from deq_enn.theory.equilibrium import as_tensor
from deq_enn.utils.deadline import check
from deq_enn.utils.tiles import for_each

DAY = 86_400.0  # seconds from which on a kernel is announced
SLOWEST = 1e-4  # seconds that a pair of pixels takes at most: a long series in torch
LONG = 0.1  # seconds from which on a part is not given more pixels
LONG_TILE = 0.5  # seconds from which on it is not given more images; small tiles take more time for a pair
OFFSETS = 5  # parts of a pooled kernel that are timed at least
TWICE = 2  # parts of another, which has one offset
ENOUGH = 1.0  # seconds for which others are timed
GOLDEN = (5**0.5 - 1) / 2  # whose multiples, less their whole numbers, are spread evenly
LEAST = 8  # side of the least window of pixels that is timed

Make = Callable[[torch.Tensor, torch.Tensor | None], ConvBlocks]


def kernels_of(make: Make, images: torch.Tensor, other: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the (CK, NTK) of make(images, other), and announces them before where they take a day."""
    announce(make, images, other)
    return make(images, other).both()


def announce(
    make: Make, images: torch.Tensor, other: torch.Tensor | None = None, tangent: bool = True, processes: int = 1
) -> None:
    """Warns, in one line, of a kernel between images that takes a day or more.

    Parameters
    ----------
    make : returns the kernel of images (n, c, h, w) and others. tangent : whether the NTK is asked for.
    processes : that share the work.
    """
    images = as_tensor(images)
    other = None if other is None else as_tensor(other).to(images.device)
    if images.ndim != 4 or 0 in images.shape or other is not None and other.shape[1:] != images.shape[1:]:
        return  # whoever makes the whole kernel says so
    shape = len(images if other is None else other), len(images)
    pairs, pixels = shape[0] * shape[1] / (1 if other is not None else 2), images[0, 0].numel()
    threads = torch.get_num_threads() if images.device.type == "cpu" else 1
    least = threads * processes * DAY / SLOWEST  # pairs of pixels below which it takes no day
    if pairs * pixels**2 < least:
        return
    most = 2 * max(2 * WIDE, int(((CUDA_ENTRIES if images.device.type == "cuda" else WIDE_ENTRIES) / pixels) ** 0.5))
    try:
        blocks = make(_some(images, most), None if other is None else _some(other, most))
    except ValueError:
        return  # as above
    if pairs * blocks.count < least:
        return
    if other is None:  # tiles on the diagonal are computed whole
        pairs += shape[0] * min(blocks.side(), shape[0]) / 2
    seconds = pairs * blocks.count * seconds_of_pair(blocks, tangent) / processes
    if seconds >= DAY:
        warnings.warn(
            f"this kernel of {shape[0]} x {shape[1]} images will take about {seconds / DAY:.1f} days on this machine: "
            f"take fewer or smaller images{', or the readout flatten' if blocks.readout == 'pool' else ''}"
        )


def _some(images, most):
    """Returns at most so many of the images, drawn at random."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:most].to(images.device)]


def seconds_of_pair(blocks: ConvBlocks, tangent: bool = True) -> float:
    """Returns the mean time of a pair of pixels, with all threads at work, in the tiles of a large kernel."""
    timed = _Timed(blocks, tangent)
    most, whole = timed.largest, max(blocks.pixels.shape)
    size, window = (min(2, most[0]), min(2 * WIDE, most[1])), LEAST if blocks.local else whole
    timed(0.0, size, window)  # makes the tables
    while size != most and timed(0.5, size, window) < LONG_TILE:
        size = min(4 * size[0], most[0]), min(4 * size[1], most[1])
    while window < whole and timed(0.5, size, window) < LONG:
        window *= 2
    rates, end = [], time.perf_counter() + ENOUGH
    least = OFFSETS if blocks.readout == "pool" else TWICE
    while len(rates) < least or time.perf_counter() < end:
        rates.append(timed.rate((GOLDEN * (len(rates) + 1)) % 1, size, window))
    return float(np.mean(rates))


class _Timed:
    """This takes the time of parts of a kernel.

    A part is at the offset before which there is a given share of all pairs of pixels. It has so many rows and columns,
    and a window of the pixels, somewhere.
    """

    def __init__(self, blocks: ConvBlocks, tangent: bool):
        self.blocks, self.tangent = blocks, tangent
        self.threads = torch.get_num_threads() if blocks.device.type == "cpu" else 1
        self.offsets = sorted(blocks.offsets(), key=lambda pixels: -pixels[0].size)
        self.reached = np.cumsum([p.size for p, _ in self.offsets]) / blocks.count
        self.largest = min(blocks.side(), blocks.shape[0]), min(blocks.side(), blocks.shape[1])

    def _sides(self, share, size, window):
        p, q = self.offsets[int(np.searchsorted(self.reached, share))]
        random = np.random.default_rng(int(1e6 * share))
        down, right = (int(random.integers(max(1, length - window + 1))) for length in p.shape)
        part = np.s_[down : down + window, right : right + window]
        p, q = (p[part],) * 2 if p is q else (p[part], q[part])
        first, columns = self.blocks.first, self.blocks.shape[1]
        return Side(p, slice(first, first + size[0]), 2), Side(q, slice(columns - size[1], columns), 3)

    def __call__(self, share: float, size: tuple[int, int], window: int) -> float:
        """Returns the seconds of a part."""
        sides = self._sides(share, size, window)

        def work():
            for sums in self.blocks.offset_sums(*sides, self.tangent):
                sums.sum().item()  # waits for a GPU

        check()
        start = time.perf_counter()
        for_each(work, [()] * self.threads, self.blocks.device)
        return (time.perf_counter() - start) / self.threads

    def rate(self, share: float, size: tuple[int, int], window: int) -> float:
        """Returns the seconds of a pair of pixels; where they are few the second time, when tables are made."""
        pixels, seconds = self._sides(share, size, window)[0].pixels.size, self(share, size, window)
        if seconds < LONG_TILE:
            seconds = self(share, size, window)
        return seconds / (size[0] * size[1] * pixels)
