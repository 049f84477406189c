"""A kernel between images is a mean over pairs of their pixels, and each set of such pairs is solved as one array.

Both pixels of a pair are shifted together by a convolution, so that the pairs (p, p + t) of one offset t make an
equation of their own. Reading all pixels out (flatten) asks for the offset 0 alone. Global average pooling asks for all
offsets. With circular padding that is the flatten kernel between one image and every shift of the other. With zero
padding it is that of the parts of the two images that overlap.

`ConvBlocks` computes any part of such a kernel, as `KernelTiles` asks.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from deq_enn.kernels.blocks import KERNELS
from deq_enn.kernels.compiled import WIDE, Problem, SeriesTerms, conv_values, library
from deq_enn.kernels.images.checks import check_images
from deq_enn.kernels.pair_functions import PiecewiseLinear, Series, pair_function
from deq_enn.kernels.sample_scales import Scales
from deq_enn.names import PADDINGS
from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check
from deq_enn.utils.tiles import for_each, largest, tiles

READOUTS = "flatten", "pool"
ENTRIES = 30_000  # pairs of pixels of a tile, few enough that its arrays stay in a core's cache
WIDE_ENTRIES = 1 << 20  # pairs of pixels of a tile whose pair function goes pixel by pixel
COMPILED_ENTRIES = 800_000  # pairs of pixels of a tile that compiled code goes through a few pairs at a time
PIECE = 4_096  # pairs of pixels of like correlation for which a piecewise-linear function takes as many nodes
CUDA_ENTRIES = 1 << 24  # pairs of pixels of a tile on a GPU

_log = logging.getLogger("kernels")


@dataclass(frozen=True)
class Side:
    """This is one side of a tile: some pixels of some images.

    pixels : (h, w) numbers of the pixels. images : which. axis : of the images in the tile's arrays (h, w, rows,
    columns), 2 or 3.
    """

    pixels: np.ndarray
    images: slice
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
    """This takes a `PairFunction` to the pixels: a series one after the other, a closed form many at once.

    So each pixel has as many terms of a series as it asks for. The nodes of a piecewise-linear function grow with the
    correlation, so that those of like size are taken together.
    """

    least = 1e-4  # share of the largest scale; one below it has the pair function of this, right to its square

    def __init__(self, activation: Activation, scales: Scales, images: int, device: torch.device):
        self.images, self.device = images, device
        scales = replace(scales, s=np.maximum(scales.s, self.least * scales.s.max()))
        self.pair = pair_function(activation, scales, device)
        self.series = isinstance(self.pair, Series)
        self.entries = WIDE_ENTRIES if self.series else ENTRIES
        self._terms: dict[torch.dtype, SeriesTerms] = {}
        # a closed form is computed in double precision whatever it is given
        self.narrow = device.type == "cpu" and self.series and library() is not None

    def terms(self, dtype: torch.dtype = torch.float64) -> "SeriesTerms | None":
        """Returns the coefficients of a series, where that is what the pair function is."""
        if isinstance(self.pair, Series) and dtype not in self._terms:
            self._terms[dtype] = SeriesTerms(self.pair, self.images, dtype)
        return self._terms.get(dtype)

    def __call__(self, rows: Side, cols: Side, rho: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (g, g') of the correlations rho."""
        if self.narrow and (terms := self.terms(rho.dtype)):
            problem = Problem(*rho.shape[:2], rows=rho.shape[2], cols=rho.shape[3], single=rho.dtype == torch.float32)
            g, dg = conv_values(problem, rho, terms.fill(problem, rows, cols)[:4])
            return g, dg
        g, dg = torch.empty_like(rho), torch.empty_like(rho)
        if not isinstance(self.pair, Series):
            return self._closed(rows, cols, rho.double().clamp_(-1, 1), g, dg)
        for place, p in np.ndenumerate(rows.pixels):
            tile = rho[place].double().clamp_(-1, 1)
            self.pair.table_for(largest(tile))
            own, other = (
                slice(start + side.images.start, start + side.images.stop)
                for side, start in ((rows, int(p) * self.images), (cols, int(cols.pixels[place]) * self.images))
            )
            g[place], dg[place], _ = self.pair(own, other, tile)
        return g, dg

    def _closed(self, rows, cols, rho, g, dg):
        """Writes a closed form into g and g' (h, w, rows, columns) and returns the two."""
        own, other = (
            torch.from_numpy(side.pixels[..., None] * self.images + np.arange(side.images.start, side.images.stop))
            for side in (rows, cols)
        )
        own, other = own.to(self.device), other[:, :, None].to(self.device)
        if not isinstance(self.pair, PiecewiseLinear):
            g[:], dg[:], _ = self.pair(own, other, rho)
            return g, dg
        rho.clamp_(-1 + 2.0**-53, 1 - 2.0**-53)
        own, other = (index.expand(rho.shape).reshape(-1) for index in (own[..., None], other))
        flat = rho.reshape(-1, 1)
        for some in flat[:, 0].abs().argsort().split(PIECE if self.device.type == "cpu" else CUDA_ENTRIES):
            parts = self.pair(own[some], other[some, None], flat[some])
            for target, part in zip((g, dg), parts):
                target.view(-1)[some] = part[:, 0].to(target.dtype)
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
    def _fields(self, rows: Side, cols: Side, tangent: bool, exact: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (G, T) at each pair of pixels of a tile, (h, w, rows, columns); T where it is asked for.

        Pairs of an image with itself at the offset 0 may have anything. exact : whether in double precision, whatever
        `dtype` is.
        """

    @property
    def local(self) -> bool:
        """Tells whether a window of the pixels has pairs like those of the whole images."""
        return self.padding == "zero"

    @abstractmethod
    def _own_fields(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (G, T) of each pixel of each image with itself, (pixels, images)."""

    @cached_property
    def _own_sums(self) -> list[torch.Tensor]:
        return [field.sum(0) for field in self._own_fields()]

    def _products(self, rows, cols):
        """Returns x(p).x'(q)/c at the pairs of a tile, (h, w, rows, columns), and 0 for an image with itself."""
        a, b = rows.rows_of(self._x), cols.rows_of(self._x)
        product = torch.bmm(a, b.mT).reshape(*rows.pixels.shape, a.shape[1], b.shape[1])
        if rows.pixels is cols.pixels:
            for i, j in zip(*_shared(rows.images, cols.images)):
                product[:, :, i, j] = 0
        return product

    def offsets(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
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

    def offset_sums(self, rows: Side, cols: Side, tangent: bool, exact: bool = False) -> list[torch.Tensor]:
        """Returns the sums over the pixels of one offset of G and, where it is asked for, of T, (rows, columns) each.

        `_fields` says what is left open.
        """
        fields = self._fields(rows, cols, tangent, exact)
        return [field.sum((0, 1), dtype=torch.float64) for field in fields if field is not None]

    def _sums(self, rows, cols, tangent, exact=False):
        """Returns the CK of a tile and, where it is asked for, the NTK: means over pairs of pixels."""
        total: list[torch.Tensor] = []
        for p, q in self.offsets():
            check()  # all offsets of a tile may take minutes
            parts = self.offset_sums(Side(p, rows, 2), Side(q, cols, 3), tangent, exact)
            if not total:
                i, j = _shared(rows, cols)
                for part, own in zip(parts, self._own_sums if len(i) else []):
                    part[i, j] = own[rows][i]
            total = [a.add_(b) for a, b in zip(total, parts)] if total else parts
        return [part.div_(self.count) for part in total]

    def _itself(self, rows, cols):
        """Returns the column less the row of an image with itself, or a number that no pair of a tile has."""
        return rows.images.start - cols.images.start if rows.pixels is cols.pixels else 1 << 30

    def _same(self):
        """Returns (CK, NTK) of each image with itself."""
        same = [total / self.count for total in self._own_sums]
        if self.readout == "pool":
            side = WIDE if self.entries == COMPILED_ENTRIES else self.side()

            def work(start):
                some = slice(start, min(start + side, len(same[0])))
                for target, part in zip(same, self._sums(some, some, True, exact=True)):
                    target[some] = part.diagonal()

            for_each(work, [(start,) for start in range(self.first, len(same[0]), side)], self.device)
        return same

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
            values = self._sums(own, c, which == 1)[which]
            target[r.start - rows.start : r.stop - rows.start, c.start - cols.start : c.stop - cols.start] = values

        for_each(work, tiles(rows, cols, self.side()), self.device)
        if not self.first and self._rougher:
            for i in range(max(rows.start, cols.start), min(rows.stop, cols.stop)):
                target[i - rows.start, i - cols.start] = self.diagonal()[which][i]
        return target

    @property
    def _rougher(self):
        """Tells whether a tile has less than the diagonal's precision: all pairs of an image's pixels are in it."""
        return self.readout == "pool" and self.dtype == torch.float32

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the whole (ck, ntk), of its dtype. Of a square matrix one triangle is computed and then mirrored.

        A bar shows the progress on a terminal.
        """
        ck = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        ntk, square = torch.empty_like(ck), not self.first
        jobs = tiles(slice(0, self.shape[0]), slice(0, self.shape[1]), self.side(), lower=square)

        def work(rows, cols):
            own = slice(rows.start + self.first, rows.stop + self.first)
            for target, tile in zip((ck, ntk), self._sums(own, cols, True)):
                if square and rows == cols:
                    tile = tile.tril() + tile.tril(-1).T
                elif square:
                    target[cols, rows] = tile.T
                target[rows, cols] = tile
            bar.update()

        with tqdm(total=len(jobs), desc="kernel", unit="tile", leave=False, disable=None, delay=1) as bar:
            for_each(work, jobs, self.device)
        if square and self._rougher:
            for target, diagonal in zip((ck, ntk), self.diagonal()):
                target.diagonal().copy_(diagonal)
        return ck, ntk

    def side(self) -> int:
        """Returns the rows and columns of a tile, where they are many in whole vectors of compiled code."""
        entries = CUDA_ENTRIES if self.device.type != "cpu" else self.entries
        side = (entries / self.pixels.size) ** 0.5
        return max(1, int(side)) if side < 2 * WIDE else round(side / (2 * WIDE)) * 2 * WIDE


def _shared(rows, cols):
    """Returns the rows and the columns, counted in a tile, of the images that are in both slices."""
    images = torch.arange(start := max(rows.start, cols.start), max(start, min(rows.stop, cols.stop)))
    return images - rows.start, images - cols.start
