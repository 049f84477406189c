"""Large matrices are computed tile by tile, and the tiles are shared out among threads."""

import contextvars
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from deq_enn.utils.deadline import check
from deq_enn.utils.threads import one_thread


def tile_size(device: torch.device) -> int:
    """Returns the side of a tile that suits the device."""
    # a few work arrays of 180 x 180 float64 fit a core's cache, and torch leaves each to the calling thread
    return 180 if device.type == "cpu" else 2048


def tiles(rows: slice, cols: slice, size: int, lower: bool = False) -> list[tuple[slice, slice]]:
    """Returns pairs of slices that cover rows x cols; with `lower` only those that touch the lower triangle."""

    def cut(span: slice) -> list[slice]:
        n = span.stop - span.start
        step = math.ceil(n / max(1, math.ceil(n / size)))
        return [slice(i, min(i + step, span.stop)) for i in range(span.start, span.stop, max(step, 1))]

    return [(r, c) for r in cut(rows) for c in cut(cols) if not lower or c.start < r.stop]


def for_each(work: Callable[..., object], jobs: Sequence[tuple], device: torch.device) -> None:
    """Calls work(*job) for each of the jobs, on as many threads as torch has; the first error ends it.

    Between jobs it looks at the deadline, which the threads share with who calls this.
    """
    context = contextvars.copy_context()

    @torch.no_grad()
    def guarded(number, job):
        if number:
            check()
        return work(*job)

    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if len(jobs) == 1 or threads == 1:
        for number, job in enumerate(jobs):
            guarded(number, job)
        return
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(lambda *job: context.copy().run(guarded, *job), range(len(jobs)), jobs):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def largest(tile: torch.Tensor) -> float:
    """Returns the largest |entry| of a tile."""
    low, high = torch.aminmax(tile)
    return max(abs(low.item()), abs(high.item()))
