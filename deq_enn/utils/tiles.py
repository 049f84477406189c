"""Tiles of a large matrix, shared out among threads."""

import math
from concurrent.futures import ThreadPoolExecutor

import torch


def tile_size(device) -> int:
    # a few work arrays of 180 x 180 float64 fit a core's cache, and torch leaves each to the calling thread
    return 180 if device.type == "cpu" else 2048


def tiles(rows: slice, cols: slice, size: int, lower: bool = False):
    """Pairs of slices that cover rows x cols, or of them only those that touch the lower triangle."""

    def cut(span):
        n = span.stop - span.start
        step = math.ceil(n / max(1, math.ceil(n / size)))
        return [slice(i, min(i + step, span.stop)) for i in range(span.start, span.stop, max(step, 1))]

    return [(r, c) for r in cut(rows) for c in cut(cols) if not lower or c.start < r.stop]


def for_each(work, jobs, device) -> None:
    """work(*job) for each of the jobs, on as many threads as torch has; the first error ends it."""

    @torch.no_grad()
    def guarded(job):
        return work(*job)

    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if len(jobs) == 1 or threads == 1:
        for job in jobs:
            guarded(job)
        return
    with ThreadPoolExecutor(threads) as pool:
        torch.set_num_threads(1)  # a thread of ours is not to call for others that have tiles of their own
        try:
            for _ in pool.map(guarded, jobs):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads)


def largest(tile: torch.Tensor) -> float:
    """The largest |entry|."""
    low, high = torch.aminmax(tile)
    return max(abs(low.item()), abs(high.item()))
