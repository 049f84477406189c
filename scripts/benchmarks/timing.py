"""The sections of bench.py share a median time and rows of noise.

A section is a generator of the lines of Markdown tables.
"""

if __name__ == "__main__":
    raise SystemExit("timing.py is a part of scripts/bench.py: run that")

import time
from statistics import median


def seconds(call, repeats=5):
    """Returns the median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def noise(n, p=784):
    import torch

    return torch.randn(n, p) / p**0.5
