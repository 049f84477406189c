"""A kernel between images is a mean over pairs of their pixels, and each set of such pairs is solved as one array.

Both pixels of a pair are shifted together by a convolution, so that the pairs (p, p + t) of one offset t make an
equation of their own. Reading all pixels out (flatten) asks for the offset 0 alone. Global average pooling asks for all
offsets. With circular padding that is the flatten kernel between one image and every shift of the other. With zero
padding it is that of the parts of the two images that overlap.

`ConvBlocks` computes any part of such a kernel, as `KernelTiles` asks.
"""

import logging
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from deq_enn.kernels.blocks import KERNELS
from deq_enn.kernels.compiled import WIDE, Problem, SeriesTerms, conv_values, library
from deq_enn.kernels.pair_functions import PiecewiseLinear, Series, pair_function
from deq_enn.kernels.sample_scales import Scales
from deq_enn.names import PADDINGS
from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check
from deq_enn.utils.tiles import for_each, largest, tiles

READOUTS = "flatten", "pool"
DAY = 86_400.0  # seconds from which on a computation is announced
ENTRIES = 30_000  # pairs of pixels of a tile, few enough that its arrays stay in a core's cache
WIDE_ENTRIES = 1 << 20  # pairs of pixels of a tile whose pair function goes pixel by pixel
COMPILED_ENTRIES = 800_000  # pairs of pixels of a tile that compiled code goes through a few pairs at a time
PROBE = 10_000_000  # pairs of pixels that pooled kernels are timed by
CUDA_ENTRIES = 1 << 24  # pairs of pixels of a tile on a GPU

_log = logging.getLogger("kernels")


@dataclass(frozen=True)
class Side:
    """This is one side of a tile: some pixels of some images.

    pixels : (h, w) numbers of the pixels. images : a slice, or a list in a tensor. axis : of the images in the tile's
    arrays (h, w, rows, columns); a list of pairs is a tile of one column, with both its sides along the rows.
    """

    pixels: np.ndarray
    images: slice | torch.Tensor
    axis: int

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Returns values (pixels, images) of this side, to be broadcast over the tile, (h, w, rows, columns)."""
        return self.rows_of(values).reshape(*self.pixels.shape, -1).unsqueeze(5 - self.axis)

    def rows_of(self, values: torch.Tensor) -> torch.Tensor:
        """Returns values (pixels, images, ...) of this side, (pixels of it, images of it, ...)."""
        values = values[:, self.images]  # first, since a view of a slice takes no time
        if self.pixels.size < len(values) or self.pixels[0, 0]:
            values = values[torch.from_numpy(self.pixels.reshape(-1)).to(values.device)]
        return values


class Terms(Protocol):
    """These are an activation's terms of g as conv_pairs.c takes them."""

    def fill(self, problem: Problem, rows: "Side", cols: "Side") -> list[torch.Tensor | None]:
        """Writes its numbers into the problem and returns the arrays of a tile."""
        ...


class PixelPairs(Protocol):
    """The pair function of an activation at the scales of pixels; `PairFunction` says what g is."""

    entries: int  # pairs of pixels of a tile that suits it
    narrow: bool  # whether correlations in single precision take less time

    def terms(self) -> Terms | None:
        """Returns the same for conv_pairs.c, or None where it has no such function."""
        ...

    def __call__(self, rows: Side, cols: Side, rho: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (g, g') of the correlations rho (h, w, rows, columns), which it may overwrite."""
        ...


class KinkedPixels:
    """This is the pair function of f = const + m x + h |x|, the same at all scales.

    A correlation within some units of rounding of 1 counts as 1: 64 in double precision, which the residual of an
    equation may be, and 8 in single precision. Images that are the same have such pixels; that two others have one
    whose angle is below 2e-7 (1.4e-3 in single precision) without being 0 is left aside.
    """

    entries, narrow = ENTRIES, True

    def __init__(self, activation: Activation):
        left, right = activation.slopes[0], activation.slopes[-1]
        self.m2, self.h2 = (left + right) ** 2 / 4, (right - left) ** 2 / (2 * np.pi)

    def terms(self) -> "KinkedPixels":
        """Returns itself."""
        return self

    def fill(self, problem: Problem, rows: Side, cols: Side) -> list[torch.Tensor | None]:
        """Writes its two slopes into the problem."""
        problem.m2, problem.h2 = self.m2, self.h2
        return [None] * 5

    def __call__(self, rows: Side, cols: Side, rho: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (g, g') of the correlations rho, which it overwrites."""
        units = 64 if rho.dtype == torch.float64 else 8
        rho.mul_(1 + units * torch.finfo(rho.dtype).eps).clamp_(-1, 1)
        angle = torch.asin(rho)
        rest = torch.rsub(rho, 1)
        g = rest.addcmul_(rest, rho).sqrt_()  # sqrt((1 - rho)(1 + rho))
        g.addcmul_(rho, angle).sub_(1).mul_(self.h2).add_(rho, alpha=self.m2)
        return g, angle.mul_(self.h2).add_(self.m2)


class PixelwisePairs:
    """This takes a `PairFunction` to the pixels one after the other, with as many terms as each of them asks for."""

    entries = WIDE_ENTRIES
    least = 1e-4  # share of the largest scale; one below it has the pair function of this, right to its square

    def __init__(self, activation: Activation, scales: Scales, images: int, device: torch.device):
        self.images = images
        scales = replace(scales, s=np.maximum(scales.s, self.least * scales.s.max()))
        self.pair = pair_function(activation, scales, device)
        self._terms: dict[torch.dtype, SeriesTerms] = {}
        # a closed form is computed in double precision whatever it is given
        self.narrow = device.type == "cpu" and isinstance(self.pair, Series) and library() is not None

    def terms(self, dtype: torch.dtype = torch.float64) -> "SeriesTerms | None":
        """Returns the coefficients of a series, where that is what the pair function is."""
        if isinstance(self.pair, Series) and dtype not in self._terms:
            self._terms[dtype] = SeriesTerms(self.pair, self.images, dtype)
        return self._terms.get(dtype)

    def _index(self, side, pixel):
        start, part = int(pixel) * self.images, side.images
        return slice(start + part.start, start + part.stop) if isinstance(part, slice) else start + part

    def _limit(self, reach):
        """Returns up to which |rho| the pair function goes."""
        if isinstance(self.pair, Series):
            self.pair.table_for(reach)
        return 1 - 2.0**-53 if isinstance(self.pair, PiecewiseLinear) else 1.0

    def __call__(self, rows: Side, cols: Side, rho: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (g, g') of the correlations rho."""
        if self.narrow and isinstance(rows.images, slice) and (terms := self.terms(rho.dtype)):
            problem = Problem(*rho.shape[:2], rows=rho.shape[2], cols=rho.shape[3], single=rho.dtype == torch.float32)
            g, dg = conv_values(problem, rho, terms.fill(problem, rows, cols)[:4])
            return g, dg
        g, dg = torch.empty_like(rho), torch.empty_like(rho)
        for place, p in np.ndenumerate(rows.pixels):
            tile = rho[place].double().clamp_(-1, 1)
            if (limit := self._limit(largest(tile))) < 1:
                tile.clamp_(-limit, limit)
            own, other = self._index(rows, p), self._index(cols, cols.pixels[place])
            if isinstance(other, torch.Tensor):
                other = other[:, None]
            g[place], dg[place], _ = self.pair(own, other, tile)
        return g, dg


def pixel_pairs(activation: Activation, scales: Scales, images: int, device: torch.device) -> PixelPairs:
    """Returns the pair function of an activation at the scales of the pixels of some images, pixel by pixel."""
    if activation.slopes and activation.kinks in ((), (0.0,)):
        return KinkedPixels(activation)
    return PixelwisePairs(activation, scales, images, device)


class ConvBlocks(ABC):
    """This is the exact kernel matrix of one set of images, or between two, of which any part can be computed.

    Attributes
    ----------
    shape : (rows, columns): (n, n) for images (n, c, h, w), or (m, n) for other images (m, c, h, w) against them.
    dtype : of its tiles.

    Notes
    -----
    Nothing of the size of the matrix is kept. Parts may be asked for by several threads at once.
    """

    entries = ENTRIES  # pairs of pixels of a tile
    dtype = torch.float64

    def __init__(self, images: torch.Tensor, other: torch.Tensor | None, padding: str, readout: str):
        if padding not in PADDINGS:
            raise ValueError(f"padding must be 'zero' or 'circular', got {padding!r}")
        if readout not in READOUTS:
            raise ValueError(f"readout must be 'flatten' or 'pool', got {readout!r}")
        images = check_images(images, "images")
        self.shape, self.first = (len(images), len(images)), 0
        if other is not None:
            other = check_images(other, "other")
            if other.shape[1:] != images.shape[1:]:
                raise ValueError(
                    f"the images have (channels, height, width) = {tuple(images.shape[1:])}, the others "
                    f"{tuple(other.shape[1:])}: both sets must have the same"
                )
            self.shape, self.first = (len(other), len(images)), len(images)
            images = torch.cat([images, other.to(images.device)])
        if not bool(images.any()):
            raise ValueError("all images are zero, which may be so after centring only: there is no kernel of them")
        self.padding, self.readout, self.device = padding, readout, images.device
        self.height, self.width = images.shape[2:]
        self.pixels = np.arange(self.height * self.width).reshape(self.height, self.width)
        self.count = self.pixels.size ** (2 if readout == "pool" else 1)  # pairs of pixels that are read out
        # (pixels, images, channels), so that the products of one pixel are one matrix product
        self._x = images.permute(2, 3, 0, 1).reshape(self.pixels.size, len(images), -1) / images.shape[1] ** 0.5

    @abstractmethod
    def _fields(self, rows: Side, cols: Side, tangent: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (G, T) at each pair of pixels of a tile, (h, w, rows, columns); T where it is asked for.

        Pairs of an image with itself at the offset 0 may have anything.
        """

    @abstractmethod
    def _own_fields(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (G, T) of each pixel of each image with itself, (pixels, images)."""

    def _products(self, rows, cols):
        """Returns x(p).x'(q)/c at the pairs of a tile, (h, w, rows, columns), and 0 for an image with itself."""
        a, b = rows.rows_of(self._x), cols.rows_of(self._x)
        product = (a * b).sum(2)[..., None] if cols.axis == 2 else torch.bmm(a, b.mT)
        product = product.reshape(*rows.pixels.shape, *product.shape[1:])
        if rows.pixels is cols.pixels and not self.first and cols.axis == 3:
            assert isinstance(rows.images, slice) and isinstance(cols.images, slice)
            for i in range(max(rows.images.start, cols.images.start), min(rows.images.stop, cols.images.stop)):
                product[:, :, i - rows.images.start, i - cols.images.start] = 0
        return product

    def _offsets(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the pixels of the rows' and of the columns' images, (h, w) each; those of the offset 0 first."""
        yield self.pixels, self.pixels
        if self.readout == "flatten":
            return
        h, w = self.height, self.width
        if self.padding == "circular":
            for shift in range(1, h * w):
                yield self.pixels, np.roll(self.pixels, (shift // w, shift % w), (0, 1))
            return
        for down in range(1 - h, h):
            for right in range(1 - w, w):
                if down or right:
                    a = self.pixels[max(0, -down) : h - max(0, down), max(0, -right) : w - max(0, right)]
                    yield a, a + down * w + right

    def _sums(self, rows, cols, axis, tangent):
        """Returns (CK, NTK) of a tile; `_fields` says what is left open."""

        def sums(own, other):
            fields = self._fields(own, other, tangent)
            return [field.sum((0, 1), dtype=torch.float64) for field in fields if field is not None]

        return self._total(rows, cols, axis, sums)

    def _total(self, rows, cols, axis, sums):
        """Returns the mean over pairs of pixels of what `sums` has of two sides, offset by offset."""
        total: list[torch.Tensor] = []
        for p, q in self._offsets():
            check()  # all offsets of a tile may take minutes
            parts = sums(Side(p, rows, 2), Side(q, cols, axis))
            total = [a.add_(b) for a, b in zip(total, parts)] if total else parts
        return [part.div_(self.count) for part in total]

    def _itself(self, rows, cols):
        """Returns the column less the row of an image with itself, or a number that no pair of a tile has."""
        return rows.images.start - cols.images.start if rows.pixels is cols.pixels and not self.first else 1 << 30

    def _same(self):
        """Returns (CK, NTK) of each image with itself; those of the offset 0 in closed form."""
        own = [field.sum(0) for field in self._own_fields()]
        if self.readout == "pool":
            images = torch.arange(len(own[0]), device=self.device)

            def work(start):
                part = images[start : start + 256]
                for p, q in list(self._offsets())[1:]:
                    check()
                    for total, field in zip(own, self._fields(Side(p, part, 2), Side(q, part, 2), True)):
                        assert field is not None
                        total[start : start + 256] += field.sum((0, 1))[:, 0]

            for_each(work, [(start,) for start in range(0, len(images), 256)], self.device)
        return [total / self.count for total in own]

    def diagonal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (ck, ntk) of each of the rows' images with itself, float64."""
        if not hasattr(self, "_diagonals"):
            self._diagonals = self._same()
        ck, ntk = self._diagonals
        return ck[self.first :], ntk[self.first :]

    def tile(self, rows: slice, cols: slice, kernel: str = "ck", out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the kernel "ck" or "ntk" at these rows and columns, in `out`, of any float dtype, if given."""
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be 'ck' or 'ntk', got {kernel!r}")
        rows, cols = (slice(*span.indices(size)[:2]) for span, size in zip((rows, cols), self.shape))
        size = rows.stop - rows.start, cols.stop - cols.start
        target = torch.empty(size, dtype=self.dtype, device=self.device) if out is None else out
        which = KERNELS.index(kernel)

        def work(r, c):
            own = slice(r.start + self.first, r.stop + self.first)
            values = self._sums(own, c, 3, which == 1)[which]
            target[r.start - rows.start : r.stop - rows.start, c.start - cols.start : c.stop - cols.start] = values

        for_each(work, tiles(rows, cols, self._side()), self.device)
        if not self.first:
            same = range(max(rows.start, cols.start), min(rows.stop, cols.stop))
            for i in same:
                target[i - rows.start, i - cols.start] = self.diagonal()[which][i]
        return target

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the whole (ck, ntk), of its dtype. Of a square matrix one triangle is computed and then mirrored.

        A bar shows the progress on a terminal. Where it would take a day, a warning says so, once a few are timed.
        """
        ck = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        ntk, square = torch.empty_like(ck), not self.first
        jobs = tiles(slice(0, self.shape[0]), slice(0, self.shape[1]), self._side(), lower=square)

        def work(rows, cols):
            own = slice(rows.start + self.first, rows.stop + self.first)
            for target, tile in zip((ck, ntk), self._sums(own, cols, 3, True)):
                if square and rows == cols:
                    tile = tile.tril() + tile.tril(-1).T
                elif square:
                    target[cols, rows] = tile.T
                target[rows, cols] = tile

        self._run(work, jobs)
        if square:
            for target, diagonal in zip((ck, ntk), self.diagonal()):
                target.diagonal().copy_(diagonal)
        return ck, ntk

    def _run(self, work: Callable[[slice, slice], None], jobs: list[tuple[slice, slice]]) -> None:
        with tqdm(total=len(jobs), desc="kernel", unit="tile", leave=False, disable=None, delay=1) as bar:

            def counted(*job):
                work(*job)
                bar.update()

            threads, start = torch.get_num_threads() if self.device.type == "cpu" else 1, time.perf_counter()
            if self.readout == "pool":  # a tile may take minutes
                times = math.prod(self.shape) / self._probe(*jobs[0])
            else:
                for_each(counted, [jobs.pop(0)], self.device)
                times = len(jobs) + 1
            announce((time.perf_counter() - start) * times / threads, self.shape)
            for_each(counted, jobs, self.device)

    def _probe(self, rows, cols):
        """Computes some pairs of a tile, some seconds of them, and returns for how many of the matrix they stand."""
        side = math.isqrt(PROBE // self.count)
        rows = slice(rows.start, min(rows.stop, rows.start + max(2, side)))
        cols = slice(cols.start, min(cols.stop, cols.start + max(2 * WIDE, side)))
        self._sums(slice(rows.start + self.first, rows.stop + self.first), cols, 3, True)
        return (rows.stop - rows.start) * (cols.stop - cols.start) * (1 if self.first else 2)

    def _side(self):
        """Returns the rows and columns of a tile, where they are many in whole vectors of compiled code."""
        entries = CUDA_ENTRIES if self.device.type != "cpu" else self.entries
        side = (entries / self.pixels.size) ** 0.5
        return max(1, int(side)) if side < 2 * WIDE else round(side / (2 * WIDE)) * 2 * WIDE


def announce(seconds: float, shape: tuple[int, int]) -> None:
    """Warns, in one line, of a kernel that takes a day or more."""
    if seconds >= DAY:
        warnings.warn(
            f"this kernel of {shape[0]} x {shape[1]} images will take about {seconds / DAY:.1f} days on this machine: "
            "take fewer or smaller images, or the readout 'flatten'"
        )


def check_images(images: torch.Tensor, name: str) -> torch.Tensor:
    """Returns images (n, c, h, w) in float64; raises ValueError, in one line, for what is no such array."""
    images = torch.as_tensor(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{name} must be (n, channels, height, width), got shape {tuple(images.shape)}")
    images = images.detach().double()
    squares = images.square().sum((1, 2, 3))
    if not bool(torch.isfinite(squares).all()):
        bad = int((~torch.isfinite(squares)).nonzero()[0])
        raise ValueError(f"{name} have NaN or infinite (or overflowing) pixels, first in image {bad}")
    return images
