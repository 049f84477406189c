"""A kernel matrix may be too large to be kept whole, so that it is an object of which any part can be computed.

`KernelTiles` is what kernel machines ask of a kernel. `Blocks` computes it exactly in float64 (the networks are in
`exact.py`); `interpolated.py` has the same to the precision of float32.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from threading import Lock
from typing import Protocol

import numpy as np
import torch

from deq_enn.kernels.pair_functions import PairFunction
from deq_enn.kernels.parallel.on_a_line import TILE, LineTable
from deq_enn.kernels.parallel.pairs import Moments
from deq_enn.kernels.parallel.tabulated import NotSmooth
from deq_enn.theory.equilibrium import as_tensor
from deq_enn.utils.threads import one_thread
from deq_enn.utils.tiles import for_each, tile_size, tiles

_log = logging.getLogger("kernels")

MANY = 6_000  # pairs from which on samples on a line have a table: it takes some thousand that are computed one by one
MANY_QUICK = 200_000  # the same, where parallel pairs take no longer than others
SHARE = 0.5  # share of the pairs that a table may take at most
KERNELS = ("ck", "ntk")  # in the order in which pairs of kernels are returned


class KernelTiles(Protocol):
    """Any kernel matrix between samples in its rows and samples in its columns, of which parts can be computed."""

    @property
    def shape(self) -> tuple[int, int]:
        """Returns the numbers of rows and columns."""
        ...

    def diagonal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the conjugate and the tangent kernel of each of the rows' samples with itself."""
        ...

    def tile(self, rows: slice, cols: slice, kernel: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the kernel "ck" or "ntk" at these rows and columns, in `out` where that is given."""
        ...


class Blocks(ABC):
    """This is the exact kernel matrix of one set of samples, or between two, of which any part can be computed.

    Attributes
    ----------
    shape : (rows, columns): (n, n) for samples X (n, p), or (m, n) for other samples (m, p) against X.

    Notes
    -----
    Nothing of the size of the matrix is kept. Parts may be asked for by several threads at once.
    """

    _Y: torch.Tensor  # (samples, p) or wider, whose products `_entries` is given
    _diagonals: tuple[torch.Tensor, torch.Tensor]  # (ck, ntk) of every sample with itself

    def __init__(self, X: torch.Tensor, other: torch.Tensor | None):
        X, norms2 = _check_input(X, "X")
        # the rows are the samples from `first` on, the columns the first n
        self.shape: tuple[int, int] = (len(X), len(X))
        self.first = 0
        if other is not None:
            other, other_norms2 = _check_input(other, "other")
            if other.shape[1] != X.shape[1]:
                raise ValueError(f"the samples of X have {X.shape[1]} entries, those of other {other.shape[1]}")
            self.shape, self.first = (len(other), len(X)), len(X)
            X, norms2 = torch.cat([X, other.to(X.device)]), np.concatenate([norms2, other_norms2])
        if not norms2.any():
            raise ValueError("all rows of X are zero, which may be so after centring only: there is no kernel of them")
        self._X, self._norms2, self.device = X, norms2, X.device
        self._attribute, self._line, self._line_lock = _attribute(X), None, Lock()
        self._parallel = self._attribute is not None  # all pairs of samples are

    @property
    @abstractmethod
    def _moments(self) -> Sequence[Moments]:
        """Returns the moments of each layer's activation, which pairs of nearly parallel samples need."""

    @property
    @abstractmethod
    def _pair_functions(self) -> Sequence[PairFunction]:
        """Returns the pair function of each layer."""

    @property
    @abstractmethod
    def _dear(self) -> bool:
        """Tells whether parallel pairs take much longer than others."""

    @property
    @abstractmethod
    def _name(self) -> str:
        """Returns what the network is called in the log."""

    @abstractmethod
    def _at(self, X: torch.Tensor, other: torch.Tensor) -> "Blocks":
        """Returns the kernels of the same network between other samples, whose norms lie between those of these."""

    def _table_on_a_line(self) -> LineTable | None:
        """Returns the table of both kernels where many samples lie on a line."""
        pairs = math.prod(self.shape) // (1 if self.first else 2)
        if self._attribute is None or pairs < MANY:
            return None
        if pairs < MANY_QUICK and not self._dear:
            return None
        with self._line_lock:  # the first thread that asks for it makes it
            if self._line is None and self._attribute is not None:
                kinks = {kink for moments in self._moments for kink in moments.activation.kinks}
                diagonals, most = torch.stack(self._diagonals), int(SHARE * pairs)
                try:
                    with one_thread():
                        self._line = LineTable(
                            self._on_the_line, self._attribute, diagonals, bool(kinks) + any(kinks), self._name, most
                        )
                except NotSmooth as error:
                    _log.info("%s", error)
                    self._attribute = None
        return self._line

    def _on_the_line(self, norms, count):
        """Returns the network that `LineTable` asks for, whose kernels are computed pair by pair."""
        X = torch.from_numpy(norms)[:, None]
        blocks = self._at(X, torch.cat([X, -X]))
        blocks._attribute = None
        for pair in blocks._pair_functions:
            pair.pairs = count

        def values(i, j, sign):
            rows, cols = torch.from_numpy(blocks.first + i + len(norms) * (sign < 0)), torch.from_numpy(j)
            base = (blocks._Y[rows] * blocks._Y[cols]).sum(1)
            return torch.stack(blocks._entries(rows, cols[:, None], base[:, None]))[..., 0].numpy()

        return torch.stack(blocks._diagonals)[:, : len(norms)].numpy(), values

    @abstractmethod
    def _entries(self, rows, cols, base) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (ck, ntk) of a tile, given the product of its `_Y`; entries on the matrix's diagonal may be anything.

        rows, cols : two slices; or for the pairs (rows[k], cols[k]) two index tensors (k,) and (k, 1), a tile (k, 1).
        """

    def diagonal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (ck, ntk) of each of the rows' samples with itself, float64."""
        ck, ntk = self._diagonals
        return ck[self.first :], ntk[self.first :]

    def tile(self, rows: slice, cols: slice, kernel: str = "ck", out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the kernel "ck" or "ntk" at these rows and columns.

        Parameters
        ----------
        out : where to write it, of any float dtype; a new float64 tensor by default.

        Notes
        -----
        Large parts are best. Their matrix product is one call, and torch's threads share the rest of the work in pieces
        that stay in the cache. The product, in float64, is the only memory that a part takes.
        """
        if kernel not in KERNELS:
            raise ValueError(f"kernel must be 'ck' or 'ntk', got {kernel!r}")
        rows, cols = (slice(*span.indices(size)[:2]) for span, size in zip((rows, cols), self.shape))
        which, down = KERNELS.index(kernel), rows.start + self.first
        base = self._product(rows, cols)
        target = base if out is None else out
        same = [] if self.first else range(max(rows.start, cols.start), min(rows.stop, cols.stop))
        for i in same:
            base[i - rows.start, i - cols.start] = 0

        def work(r, c):
            own = slice(r.start + down, r.stop + down), slice(c.start + cols.start, c.stop + cols.start)
            target[r, c] = self._part(*own, base[r, c])[which]

        jobs = tiles(slice(0, base.shape[0]), slice(0, base.shape[1]), self._tile_size())
        for_each(work, jobs, self.device)
        for i in same:
            target[i - rows.start, i - cols.start] = self._diagonals[which][i]
        return target

    def entries(self, rows: torch.Tensor, cols: torch.Tensor, kernel: str = "ck") -> torch.Tensor:
        """Returns the kernel at the pairs (rows[k], cols[k]), which are not on the diagonal, (k,) float64."""
        which, out = KERNELS.index(kernel), torch.empty(len(rows), dtype=torch.float64, device=self.device)
        size = tile_size(self.device) ** 2
        for part in (slice(start, start + size) for start in range(0, len(rows), size)):
            i, j = rows[part] + self.first, cols[part]
            base = torch.cat([(self._Y[a] * self._Y[b]).sum(1) for a, b in zip(i.split(1024), j.split(1024))])
            out[part] = self._part(i, j[:, None], base[:, None])[which][:, 0]
        return out

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the whole (ck, ntk), float64. Of a square matrix one triangle is computed and then mirrored."""
        ck = torch.empty(self.shape, dtype=torch.float64, device=self.device)
        ntk, square = torch.empty_like(ck), not self.first
        jobs = tiles(slice(0, self.shape[0]), slice(0, self.shape[1]), self._tile_size(), lower=square)
        self._products(jobs, ck)

        def work(rows, cols):
            own = slice(rows.start + self.first, rows.stop + self.first)
            for target, tile in zip((ck, ntk), self._part(own, cols, ck[rows, cols])):
                if square and rows == cols:
                    tile = tile.tril() + tile.tril(-1).T
                elif square:
                    target[cols, rows] = tile.T
                target[rows, cols] = tile

        for_each(work, jobs, self.device)
        if square:
            for target, diagonal in zip((ck, ntk), self._diagonals):
                target.diagonal().copy_(diagonal)
        return ck, ntk

    def _tile_size(self):
        return tile_size(self.device) if self._table_on_a_line() is None else TILE

    def _part(self, rows, cols, base):
        """Returns what `_entries` does, from the table where there is one."""
        if (table := self._table_on_a_line()) is not None:
            return table.tile(rows, cols)
        return self._entries(rows, cols, base.contiguous())

    def _products(self, jobs, out):
        """Writes the products that these tiles need into `out`, with zeros on the matrix's diagonal."""
        square = not self.first
        starts = sorted({rows.start for rows, _ in jobs})[::3]  # wide products are faster
        for start, stop in zip(starts, [*starts[1:], len(out)]):
            rows, cols = slice(start, stop), slice(0, stop if square else len(out.T))
            self._product(rows, cols, out=out[rows, cols])
        if square:
            out.diagonal().zero_()

    def _product(self, rows, cols, out=None):
        return torch.mm(self._Y[rows.start + self.first : rows.stop + self.first], self._Y[cols].T, out=out)

    def _tensors(self, *arrays):
        return [torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in arrays]


def _attribute(X):
    """Returns the one attribute (samples,) that is not zero, or None where there are several or a sample is zero."""
    used = X[:64].any(0)
    if int(used.sum()) != 1 or X.shape[1] > 1 and int((used := X.any(0)).sum()) != 1:
        return None
    x = X[:, used][:, 0]
    return x if bool(x.all()) else None


def _check_input(X, name):
    X = as_tensor(X)
    if X.ndim != 2 or X.shape[0] < 1 or X.shape[1] < 1:
        raise ValueError(f"{name} must be an (n, p) matrix, one sample a row, got shape {tuple(X.shape)}")
    X = X.detach().double()
    norms2 = X.square().sum(1)
    if not bool(torch.isfinite(norms2).all()):
        bad = int((~torch.isfinite(norms2)).nonzero()[0])
        raise ValueError(f"{name} has NaN or infinite (or overflowing) entries, first in row {bad}")
    return X, norms2.cpu().numpy()
