"""One run of a kernel machine from samples to scores: whether it fits, the kernel and its files, ridge, fit and test.

Alone, a process factorises the kernel, in memory where that fits and else on disk (`plan`). Ranks hold a share of the
kernel each and solve by conjugate gradients, which gives the same predictions but no predictive variances.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from deq_enn.kernels.exact import explicit_blocks, implicit_blocks
from deq_enn.kernels.interpolated import Interpolated
from deq_enn.machines.block_rows import HEIGHT, STRIP, FileRows, Layout, MemoryRows, form
from deq_enn.machines.conjugate_gradients import choose_ridge_shared, fit_shared, preconditioner_bytes, predict_shared
from deq_enn.machines.regression import BATCH, CHOICE, RIDGES, choose_ridge, fit, mean_diagonal, one_hot_targets
from deq_enn.machines.scores import score
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team

INTERPOLATED = 2500  # samples from which on a kernel is interpolated
PROGRAM = 0.7e9  # bytes of Python with torch and what it allocates in passing


@dataclass(frozen=True)
class Plan:
    """Whether the kernel is in memory, the height of its block rows, and bytes that the run takes of memory."""

    in_memory: bool
    height: int
    needed: float


def plan(n: int, m: int, p: int, memory: float, loaded: int = 0, size: int = 1) -> Plan:
    """How the kernel of n samples of dimension p, and its predictions at m others, fit into `memory` bytes a process.

    loaded : bytes of data that are there already. size : ranks that share the kernel.

    Raises
    ------
    ValueError : they do not, even with the kernel on disk.
    """
    # the samples in the run's order in float32; in float64 as they are, beside one another, scaled, and of norm 1
    fixed = PROGRAM + loaded + 4 * n * p + 32 * (n + m) * (p + 1)
    part = min(n, CHOICE)
    passing = max(4 * part * part, 4 * BATCH * n + 8 * BATCH * 8192)  # choosing the ridge; predicting a batch
    if size > 1:
        fixed += preconditioner_bytes(n, size)
    whole = fixed + passing + max(Layout(n, HEIGHT, rank, size).nbytes for rank in range(size))
    if whole <= memory:
        return Plan(True, HEIGHT, whole)
    # on disk: a block row, the one that it is multiplied with, and one on its way to the disk
    for height in range(4 * HEIGHT, 0, -STRIP):
        needed = fixed + passing + 12 * height * n
        if needed <= memory:
            return Plan(False, height, needed)
    raise ValueError(
        f"the kernel machine of {n} samples takes {whole / 1e9:.3g} GB of memory, or "
        f"{needed / 1e9:.3g} GB with its kernel of {Layout(n).nbytes / 1e9:.3g} GB on disk, and --memory "
        f"allows {memory / 1e9:.3g} GB: allow more, or take a smaller --train_size"
    )


def blocks_of(model, X: torch.Tensor, other: torch.Tensor | None = None):
    """`kernels.Blocks` of a network of model.py at infinite width, every weight trained."""
    if hasattr(model, "sigma_a2"):
        return implicit_blocks(X, model.activation, model.sigma_a2, tau0=model.tau0, other=other)
    scale = model.input_scale
    return explicit_blocks(X * scale, model.layers, other=None if other is None else other * scale)


def float32_blocks(model, X: torch.Tensor, other: torch.Tensor | None = None):
    """The same to the precision of float32, in which a kernel machine stores its kernel."""
    # the tables take a second: as long as an exact kernel of so many samples
    blocks = partial(blocks_of, model)
    return Interpolated(blocks, X, other) if len(X) >= INTERPOLATED else blocks(X, other)


def subset(n: int, size: int, seed: int) -> torch.Tensor:
    """The first `size` of n samples in an order of their own for each seed, so that sizes are nested."""
    return torch.randperm(n, generator=generator(seed, "subset"))[:size]


def find_duplicate(X: torch.Tensor) -> tuple[int, int] | None:
    """Two rows of X (n, p) that are the same, if there are any; O(n p)."""
    hashed = X.double() @ torch.randn(X.shape[1], dtype=torch.float64, generator=generator("duplicates"))
    order = hashed.argsort()
    for a, b in zip(order[:-1][hashed[order].diff() == 0], order[1:][hashed[order].diff() == 0]):
        if torch.equal(X[a], X[b]):
            return tuple(sorted((int(a), int(b))))
    return None


def run_machine(
    model,
    X: torch.Tensor,
    labels: torch.Tensor,
    X_test: torch.Tensor,
    labels_test: torch.Tensor,
    n_classes: int,
    kernel: str,
    ridges=RIDGES,
    how: Plan | None = None,
    files: Path | None = None,
    key: str = "",
    team: Team = Team(),
) -> tuple[dict, torch.Tensor]:
    """Fits the machine of a network's kernel and scores it on test samples.

    Parameters
    ----------
    model : of model.py, of any width. X, labels : in random order.
    kernel : "ck" or "ntk".
    ridges : multiples of the mean diagonal, to choose from on held-out training samples; one alone is taken.
    how : of `plan`; by default in memory.
    files : where the kernel is kept until the run is done, without a suffix; `key` says what it depends on.

    Returns
    -------
    (record, predicted) : what is logged, and the (m,) predicted classes.
    """
    n, how = len(X), how or Plan(True, HEIGHT, 0)
    if min(ridges) == 0 and (pair := find_duplicate(X)):
        raise ValueError(
            f"training samples {pair[0]} and {pair[1]} are the same: with --ridge 0 there is no solution, "
            "take a positive one"
        )
    if files is None and not how.in_memory:
        raise ValueError("a kernel that does not fit in memory needs files")
    layout = Layout(n, how.height, team.rank, team.size)
    kept = FileRows(layout, f"{files}.rank{team.rank}.kernel", key) if files else None
    factor = None
    start = time.perf_counter()
    times = {}

    def lap(name):
        nonlocal start
        times[f"{name}_seconds"], start = time.perf_counter() - start, time.perf_counter()

    try:
        blocks = float32_blocks(model, X)
        rows = MemoryRows(layout) if how.in_memory else kept
        form(blocks, kernel, rows, kept if how.in_memory else None)
        lap("kernel")
        ridge, table = ridges[0], []
        if len(ridges) > 1:
            given = rows, one_hot_targets(labels, n_classes)[0], mean_diagonal(blocks, kernel), ridges
            ridge, table = choose_ridge_shared(*given, team=team) if team.size > 1 else choose_ridge(*given)
        lap("ridge")
        if team.size > 1:
            machine = fit_shared(blocks, rows, labels, n_classes, kernel, ridge, team)
        else:
            if not how.in_memory:
                factor = FileRows(layout, f"{files}.factor", f"{key} {ridge}")
            machine = fit(blocks, rows, labels, n_classes, kernel, ridge, kept, factor)
        lap("solve")
        del blocks
        cross = float32_blocks(model, X, X_test)
        prediction = predict_shared(machine, cross, team) if team.size > 1 else machine.predict(cross)
        lap("prediction")
    except BaseException:
        for file in filter(None, (kept, factor)):
            file.close()  # what is finished is gone on from
        raise
    for file in filter(None, (kept, factor)):
        file.remove()
    targets, mean = one_hot_targets(labels, n_classes)
    fitted = targets - machine.noise * machine.weights + mean  # K weights + mean
    record = {
        "train_accuracy": (fitted.argmax(1) == labels).double().mean().item(),
        **{f"test_{name}": value for name, value in score(prediction, labels_test).items()},
        "ridge": ridge,
        "noise": machine.noise,
        "scale2": machine.scale2,
        "residual": machine.residual,
        "log_evidence": machine.log_evidence,
        "ridge_table": table,
        "train_size": n,
        "in_memory": how.in_memory,
        **times,
    }
    return record, prediction.mean.argmax(1)
