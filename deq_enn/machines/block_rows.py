"""The lower triangle of a kernel matrix is kept in float32, in memory or on disk, and its formation survives a kill.

In memory it is where the samples are, so that a machine on a GPU forms, factorises and predicts there.

An (n, n) kernel of 60,000 samples takes 28.8 GB in float64. Its lower triangle in float32 takes 7.2 GB. It is held as
*block rows*: block row i is the array [rows_i, 0 : stop_i] with rows_i = [start_i, stop_i), its diagonal block whole. A
block row is contiguous, so that it is one read or write of a file. A Cholesky factorisation, a solve and a product all
go through the block rows in their order.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from deq_enn.kernels.blocks import KernelTiles
from deq_enn.utils.files import atomic_write
from deq_enn.utils.interrupts import RESUME

HEIGHT = 1080  # rows of a block row, enough for matrix products at their full speed
STRIP, WIDTH = 360, 4320  # rows and columns of a kernel that are computed at once, multiples of interpolated.TILE


@dataclass(frozen=True)
class Layout:
    """A layout cuts n rows into block rows of `height`, and says which of them rank `rank` of `size` holds.

    Later block rows are longer, so that ranks are dealt block rows in turns that go to and fro (0 1 1 0 0 1 ...).
    """

    n: int
    height: int = HEIGHT
    rank: int = 0
    size: int = 1

    @property
    def blocks(self) -> int:
        """Returns the number of block rows of all ranks."""
        return -(-self.n // self.height)

    @property
    def owned(self) -> list[int]:
        """Returns the numbers of the block rows that this rank holds."""
        turns = [(i // self.size % 2, i % self.size) for i in range(self.blocks)]
        return [i for i, (back, place) in enumerate(turns) if self.rank == (self.size - 1 - place if back else place)]

    def rows(self, i: int) -> slice:
        """Returns the rows of the matrix that block row i has."""
        return slice(i * self.height, min((i + 1) * self.height, self.n))

    def shape(self, i: int) -> tuple[int, int]:
        """Returns the height and the width of block row i."""
        rows = self.rows(i)
        return rows.stop - rows.start, rows.stop

    def offset(self, i: int) -> int:
        """Returns the number of entries in the owned block rows before block row i."""
        return sum(math.prod(self.shape(j)) for j in self.owned if j < i)

    @property
    def nbytes(self) -> int:
        """Returns the bytes of the owned block rows."""
        return 4 * sum(math.prod(self.shape(i)) for i in self.owned)


class MemoryRows:
    """These are block rows in memory. `read` returns the array itself, so that work in place needs no `write`."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self._rows: dict[int, torch.Tensor] = {}

    def read(self, i: int) -> torch.Tensor:
        """Returns block row i, not a copy of it."""
        return self._rows[i]

    def write(self, i: int, values: torch.Tensor) -> None:
        """Takes these values, not a copy of them, as block row i."""
        self._rows[i] = values

    def has(self, i: int) -> bool:
        """Returns whether block row i was written."""
        return i in self._rows

    def copy(self) -> "MemoryRows":
        """Returns block rows of the same values in memory of their own."""
        other = MemoryRows(self.layout)
        other._rows = {i: values.clone() for i, values in self._rows.items()}
        return other


class FileRows:
    """These are block rows in a file, with a list of the finished ones beside it; both outlive a killed process.

    Parameters
    ----------
    path : of the file, of `layout.nbytes` bytes; the list is `path` with the suffix .json.
    key : names what the values depend on. A file with another key, or with a damaged list, is begun again.

    Raises
    ------
    ValueError : the disk has no room for the file. This is known before anything is computed.

    Notes
    -----
    The bytes of a block row are on disk before the list that names it takes the place of the former list. The file is
    read and not mapped, so that it does not count as memory of the process.
    """

    def __init__(self, layout: Layout, path: Path | str, key: str):
        self.layout, self.path, self._list_path = layout, Path(path), Path(path).with_suffix(".json")
        self.key = {"key": key, "n": layout.n, "height": layout.height, "rank": layout.rank, "size": layout.size}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._finished: list[int] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            listed = json.loads(self._list_path.read_text(encoding="utf-8"))
            finished = listed.pop("finished_rows")
            if listed == self.key and self.path.stat().st_size == layout.nbytes:
                self._finished = finished
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        if not self._finished:
            try:
                os.ftruncate(self._file, layout.nbytes)
                # of few samples a rank may have no rows; macOS has no such call, and a full disk is seen as it fills up
                if layout.nbytes and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._file, 0, layout.nbytes)
            except OSError as error:
                self.remove()
                free = os.statvfs(self.path.parent)
                raise ValueError(
                    f"{self.path}: the kernel takes {layout.nbytes / 1e9:.3g} GB on disk ({error.strerror}; "
                    f"{free.f_bavail * free.f_frsize / 1e9:.3g} GB are free): free some, or pass another --save_path"
                ) from None

    def read(self, i: int) -> torch.Tensor:
        """Returns block row i, read from the file; OSError where the file is cut short."""
        values = torch.empty(self.layout.shape(i), dtype=torch.float32)
        view, place = values.numpy().data.cast("B"), 4 * self.layout.offset(i)
        while len(view):
            if not (count := os.preadv(self._file, [view], place)):
                raise OSError(f"{self.path}: cut short; delete it, and run the same command again")
            view, place = view[count:], place + count
        return values

    def write(self, i: int, values: torch.Tensor) -> None:
        """Writes block row i, and then the list that says it is finished; OSError where the disk is full."""
        view, place = values.cpu().numpy().data.cast("B"), 4 * self.layout.offset(i)
        try:
            while len(view):
                count = os.pwrite(self._file, view, place)
                view, place = view[count:], place + count
            getattr(os, "fdatasync", os.fsync)(self._file)  # macOS lacks the first
            with atomic_write(self._list_path, "w") as file:
                json.dump({**self.key, "finished_rows": [*self._finished, i]}, file)
        except OSError as error:
            raise OSError(f"{self.path} could not be written ({error.strerror}); {RESUME}") from None
        self._finished.append(i)

    def has(self, i: int) -> bool:
        """Returns whether block row i is finished, in this process or in a killed one."""
        return i in self._finished

    def close(self) -> None:
        """Closes the file, which stays with its list."""
        os.close(self._file)

    def remove(self) -> None:
        """Closes and deletes the file and its list."""
        self.close()
        for path in (self._list_path, self.path):
            path.unlink(missing_ok=True)


BlockRows = MemoryRows | FileRows


def device_of(blocks: KernelTiles) -> torch.device:
    """Returns where the tiles of a kernel are computed."""
    return blocks.diagonal()[0].device


def _spans(start, stop, step=WIDTH):
    return [slice(a, min(a + step, stop)) for a in range(start, stop, step)]


def form(blocks: KernelTiles, kernel: str, rows: BlockRows, kept: FileRows | None = None) -> None:
    """Writes the lower triangle of a kernel into `rows`, except block rows that are there already.

    Parameters
    ----------
    blocks : the kernel of one set of samples.
    kernel : "ck" or "ntk".
    kept : a file that may have block rows of a killed run, and gets each new one.
    """
    layout = rows.layout
    entries = sum(math.prod(layout.shape(i)) for i in layout.owned)
    with (
        ThreadPoolExecutor(1) as writer,
        tqdm(total=entries, desc=f"{kernel} kernel", unit_scale=True, leave=False, disable=None, delay=1) as bar,
    ):
        writing = None
        for i in layout.owned:
            if not rows.has(i):
                if kept is not None and kept.has(i):
                    rows.write(i, kept.read(i).to(device_of(blocks)))
                else:
                    values = _block_row(blocks, kernel, layout, i)
                    if writing:
                        writing.result()  # raises the disk's error, if there was one
                    if kept is not None:  # written while the next block row is computed
                        writing = writer.submit(kept.write, i, values)
                    rows.write(i, values)
            bar.update(math.prod(layout.shape(i)))
        if writing:
            writing.result()


def _block_row(blocks, kernel, layout, i):
    rows = layout.rows(i)
    values = torch.empty(layout.shape(i), dtype=torch.float32, device=device_of(blocks))
    for c in _spans(0, rows.start):
        blocks.tile(rows, c, kernel, out=values[:, c])
    for r in _spans(rows.start, rows.stop, STRIP):  # the diagonal block is stored whole, but only half is computed
        local = slice(r.start - rows.start, r.stop - rows.start)
        blocks.tile(r, slice(rows.start, r.stop), kernel, out=values[local, rows.start : r.stop])
        values[: local.start, r] = values[local, rows.start : r.start].T
    return values


def rectangle(
    blocks: KernelTiles, kernel: str, rows: slice, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of a rectangular kernel in float32, and their product with weights in float64.

    Parameters
    ----------
    blocks : the kernel between other samples and these, of shape (m, n).
    weights : (n, c) float64.

    Returns
    -------
    (K[rows] (r, n) float32, K[rows] @ weights (r, c) float64)
    """
    shape = rows.stop - rows.start, blocks.shape[1]
    values = torch.empty(shape, dtype=torch.float32, device=device_of(blocks))
    product = torch.zeros(len(values), weights.shape[1], dtype=torch.float64, device=device_of(blocks))
    for c in _spans(0, blocks.shape[1]):
        tile = blocks.tile(rows, c, kernel)
        values[:, c] = tile
        product.addmm_(tile.double(), weights[c])
    return values, product


def exact_product(blocks: KernelTiles, kernel: str, weights: torch.Tensor) -> torch.Tensor:
    """Returns K @ weights in float64, with every tile computed anew, so that nothing is rounded to float32."""
    out = torch.zeros(blocks.shape[0], weights.shape[1], dtype=torch.float64, device=device_of(blocks))
    for r in _spans(0, len(out), STRIP):
        for c in _spans(0, r.start):
            tile = blocks.tile(r, c, kernel).double()
            out[r].addmm_(tile, weights[c])
            out[c].addmm_(tile.T, weights[r])
        out[r].addmm_(blocks.tile(r, r, kernel).double(), weights[r])
    return out


def product(rows: BlockRows, weights: torch.Tensor) -> torch.Tensor:
    """Returns the share of the owned block rows in K @ weights (n, c), in the dtype of `weights`.

    The shares of all ranks add up to the product. In float64 it takes more than twice as long as in float32. Nothing
    is copied where the columns of `weights` are contiguous, as those of a returned product are.
    """
    columns, out = weights.T.contiguous(), weights.new_zeros(weights.shape[::-1])
    for i in rows.layout.owned:
        span, values = rows.layout.rows(i), rows.read(i).to(weights.device)
        for r, c, tile in tiles(values, span, span.stop, weights.dtype):
            out[:, r].addmm_(columns[:, c], tile.T)
            if c.stop <= span.start:  # outside the diagonal block the tile stands for its mirror image too
                out[:, c].addmm_(columns[:, r], tile)
    return out.T


def tiles(
    values: torch.Tensor, span: slice, width: int, dtype: torch.dtype
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yields rows, columns and values of the tiles of a block row, each small enough for the cache.

    values : of the rows in `span`, whose first `width` columns are taken, float32. In another dtype each tile
        overwrites the one before.
    """
    room = torch.empty(STRIP * HEIGHT, dtype=dtype, device=values.device)
    for r in _spans(span.start, span.stop, STRIP):
        strip = values[r.start - span.start : r.stop - span.start]
        for c in _spans(0, min(width, span.start), HEIGHT) + _spans(min(width, span.start), width, HEIGHT):
            height, columns = r.stop - r.start, c.stop - c.start
            if dtype == values.dtype:
                yield r, c, strip[:, c]
            else:
                yield r, c, room[: height * columns].view(height, columns).copy_(strip[:, c])
