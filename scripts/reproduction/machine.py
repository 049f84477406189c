"""What this machine makes of the plan: its speed beside the reference machine's, and the disk that stages take.

The speed is measured in about two seconds, by the two kinds of work that a sweep has: products of matrices for the
features, and steps of the readout, which memory bounds.
"""

if __name__ == "__main__":
    raise SystemExit("machine.py is a part of scripts/reproduce.py: run that")

import time

import numpy as np

from deq_enn.experiments.run_cost import READOUT
from deq_enn.names import MODELS
from scripts.reproduction.stages import MULTIPLICATIONS, PASS, values

PRODUCT = 1536  # rows and columns of the matrices that are multiplied
FEATURES = 16384, 1024  # samples and width of the readout that is trained for an epoch
BATCH, CLASSES = 128, 10  # rows of a step, and outputs
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


def readout_epoch(X: np.ndarray, order: np.ndarray) -> None:
    """Makes the products and the passes of one epoch of a readout, in batches of random rows."""
    weights = np.zeros((X.shape[1], CLASSES), np.float32)
    for start in range(0, len(order), BATCH):
        rows = X[order[start : start + BATCH]]
        weights -= 1e-6 * (rows.T @ (rows @ weights - 1))


def machine_rate() -> float:
    """Returns the seconds that this machine takes for a second of a stage's expected cost, measured now.

    It is the geometric mean over the two kinds of work, each over what `stages.seconds` expects of it.
    """
    g = np.random.default_rng(0)
    A = g.standard_normal((PRODUCT, PRODUCT), np.float32)
    X, order = g.standard_normal(FEATURES, np.float32), g.permutation(FEATURES[0])
    products = least_seconds(lambda: A @ A) / (PRODUCT**3 / MULTIPLICATIONS)
    expected = READOUT * X.size * CLASSES / MULTIPLICATIONS + len(order) / 60000 * PASS
    return float(np.sqrt(products * least_seconds(lambda: readout_epoch(X, order)) / expected))


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
