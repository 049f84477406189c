"""What this machine makes of the plan: its speed beside the reference machine's, and the disk that stages take.

The speed is measured in a few seconds, by the two kinds of work that a sweep has: products of matrices for the
features, and epochs of a readout, which memory and torch's own steps bound.
"""

if __name__ == "__main__":
    raise SystemExit("machine.py is a part of scripts/reproduce.py: run that")

import time

from deq_enn.experiments.executors import cores
from deq_enn.experiments.run_cost import READOUT
from deq_enn.names import MODELS
from scripts.reproduction.stages import MULTIPLICATIONS, PASS, values

PRODUCT = 512, 2048  # rows, and columns of the square matrix, that are multiplied
SAMPLES, FEATURES, CLASSES = 16384, 1024, 10  # of the readout that is trained for an epoch
LOGGED = 350  # bytes that an epoch of a run adds to its logs
RUN = 15_000  # bytes that a run's checkpoint and logs have beside its weights and epochs
FIGURE = 1_500_000  # bytes of a figure's PNG, PDF and JSON at most


def least_seconds(call, repeats: int = 4) -> float:
    """Returns the least seconds that the call takes, after one to warm up."""
    call()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def machine_rate() -> float:
    """Returns the seconds that this machine takes for a second of a stage's expected cost, measured now.

    One of its cores is measured, as a sweep's runs have one each: products, and an epoch of a readout. The rate is the
    geometric mean over these two kinds of work, each over what `stages.seconds` expects of it.
    """
    import torch

    from deq_enn.utils.devices import product
    from deq_enn.utils.threads import one_thread
    from scripts.benchmarks.networks import readout_task

    rows, width = PRODUCT
    A, B = torch.randn(rows, width), torch.randn(width, width)
    task, order = readout_task(FEATURES, n=SAMPLES), torch.randperm(SAMPLES)
    with one_thread():
        products = least_seconds(lambda: product(A, B)) / (rows * width**2 / MULTIPLICATIONS)
        expected = READOUT * SAMPLES * FEATURES * CLASSES / MULTIPLICATIONS + SAMPLES / 60000 * PASS
        readouts = least_seconds(lambda: task.epoch(order)) / expected
    return (products * readouts) ** 0.5 / cores()


def disk(stage) -> int:
    """Returns the bytes that a stage leaves below OUTPUT_PATH at most."""
    if stage.kind == "figure":
        return FIGURE
    copies = 3 if values(stage, "--opt") == ["adam"] else 1  # of the weights: two moments beside them
    epochs, seeds = int(values(stage, "--epoch")[0]), len(values(stage, "--seed"))
    runs = (RUN + LOGGED * epochs + 4 * copies * int(dim) * CLASSES for dim in values(stage, "--dim"))
    return FIGURE + seeds * len(MODELS) * sum(runs)


def megabytes(size: int) -> str:
    """Returns a number of bytes as text, in MB."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
