"""This file runs a kernel machine from samples to scores: it plans the memory, forms the kernel, chooses a ridge, fits.

A process alone factorises the kernel, in memory where that fits and else on disk (`plan`). Ranks hold a share of the
kernel each and solve by conjugate gradients, which gives the same predictions but no predictive variances.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deq_enn.kernels.blocks import Blocks, KernelTiles
from deq_enn.kernels.conv import conv_blocks
from deq_enn.kernels.conv_blocks import ConvBlocks
from deq_enn.kernels.conv_explicit import conv_explicit_blocks
from deq_enn.kernels.exact import explicit_blocks, implicit_blocks
from deq_enn.kernels.images.foretold import announce
from deq_enn.kernels.interpolated import Interpolated
from deq_enn.machines.block_rows import HEIGHT, STRIP, FileRows, Layout, MemoryRows, form
from deq_enn.machines.conjugate_gradients import choose_ridge_shared, fit_shared, preconditioner_bytes, predict_shared
from deq_enn.machines.copies import find_duplicate
from deq_enn.machines.regression import (
    BATCH,
    RIDGES,
    Machine,
    Prediction,
    choose_ridge,
    default_choice,
    fit,
    mean_diagonal,
    one_hot_targets,
)
from deq_enn.machines.ridge_search import Row
from deq_enn.machines.scores import score
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team

INTERPOLATED = 2500  # samples from which on a kernel is interpolated
PROGRAM = 0.7e9  # bytes of Python with torch and of what it allocates in passing

Network = Any  # a DEQ or an explicit network of deq_enn.networks, which this room does not import


@dataclass(frozen=True)
class Plan:
    """A plan says whether the kernel is in memory, how high its block rows are, and how many bytes the run needs."""

    in_memory: bool
    height: int
    needed: float


def plan(n: int, m: int, p: int, memory: float, loaded: int = 0, size: int = 1, choice: int | None = None) -> Plan:
    """Plans how the kernel of n samples of dimension p, and predictions at m others, fit into `memory` bytes a process.

    loaded : bytes of data that are there already. size : ranks that share the kernel. choice : samples that choose the
        ridge, None: as many as by default.

    Raises
    ------
    ValueError : they do not fit, even with the kernel on disk.
    """
    # the samples in the run's order in float32; and in float64 as they are, side by side, scaled, and of norm 1
    fixed = PROGRAM + loaded + 4 * n * p + 32 * (n + m) * (p + 1)
    part = min(n, choice or default_choice(n))
    passing = max(4 * part * part, 4 * BATCH * n + 8 * BATCH * 8192)  # choosing the ridge; predicting a batch
    if size > 1:
        fixed += preconditioner_bytes(n, size)
    whole = fixed + passing + max(Layout(n, HEIGHT, rank, size).nbytes for rank in range(size))
    if whole <= memory:
        return Plan(True, HEIGHT, whole)
    # with the kernel on disk: a block row, the one that it is multiplied with, and one on its way to the disk
    needed = whole
    for height in range(4 * HEIGHT, 0, -STRIP):
        needed = fixed + passing + 12 * height * n
        if needed <= memory:
            return Plan(False, height, needed)
    raise ValueError(
        f"the kernel machine of {n} samples takes {whole / 1e9:.3g} GB of memory, or "
        f"{needed / 1e9:.3g} GB with its kernel of {Layout(n).nbytes / 1e9:.3g} GB on disk, and --memory "
        f"allows {memory / 1e9:.3g} GB: allow more, or take a smaller --train_size"
    )


def blocks_of(model: Network, X: torch.Tensor, other: torch.Tensor | None = None) -> Blocks | ConvBlocks:
    """Returns the kernel blocks of a network at infinite width, with every weight trained."""
    return (_conv_blocks_of if hasattr(model, "kernel_size") else _dense_blocks_of)(model, X, other)


def _dense_blocks_of(model: Network, X: torch.Tensor, other: torch.Tensor | None) -> Blocks:
    if hasattr(model, "sigma_a2"):
        return implicit_blocks(X, model.activation, model.sigma_a2, tau0=model.tau0, other=other)
    scale = model.input_scale
    return explicit_blocks(X * scale, model.layers, other=None if other is None else other * scale)


def _conv_blocks_of(
    model: Network, X: torch.Tensor, other: torch.Tensor | None, dtype: torch.dtype = torch.float64
) -> ConvBlocks:
    place = model.padding, model.sees
    if hasattr(model, "sigma_a2"):
        deq = model.activation, model.sigma_a2, model.kernel_size
        return conv_blocks(X, *deq, *place, tau0=model.tau0, other=other, dtype=dtype)
    scale = model.input_scale
    own = None if other is None else other * scale
    return conv_explicit_blocks(X * scale, model.layers, model.kernel_sizes, *place, other=own, dtype=dtype)


def float32_blocks(model: Network, X: torch.Tensor, other: torch.Tensor | None = None) -> KernelTiles:
    """Returns the same kernel to the precision of float32, in which a kernel machine stores it."""
    if hasattr(model, "kernel_size"):
        return _conv_blocks_of(model, X, other, torch.float32)
    if len(X) < INTERPOLATED:
        return blocks_of(model, X, other)
    # the tables take a second, which is as long as an exact kernel of INTERPOLATED samples
    return Interpolated(partial(_dense_blocks_of, model), X, other)


def subset(n: int, size: int, seed: int) -> torch.Tensor:
    """Returns the first `size` of n samples, in an order that each seed has of its own, so that sizes are nested."""
    return torch.randperm(n, generator=generator(seed, "subset"))[:size]


@dataclass(frozen=True)
class Samples:
    """A run has training samples X (n, p) in random order with labels (n,), and test samples with labels."""

    X: torch.Tensor
    labels: torch.Tensor
    X_test: torch.Tensor
    labels_test: torch.Tensor
    n_classes: int


@dataclass(frozen=True)
class Settings:
    """These settings say how a kernel machine is run.

    kernel : "ck" or "ntk".
    ridges : multiples of the mean diagonal, to choose from on held-out training samples; a single one is taken.
    plan : of the function `plan`; by default the kernel is in memory.
    files : where the kernel is kept until the run is done, without a suffix; `key` names what the kernel depends on.
    team : the ranks that share the kernel.
    device : where a kernel in memory is, and all that is done with it. On disk, and among ranks, it is the CPU's.
    choice : how many training samples choose among the ridges, the first ones; None: as many as by default.
    """

    kernel: str
    ridges: Sequence[float] = RIDGES
    plan: Plan = Plan(True, HEIGHT, 0)
    files: Path | None = None
    key: str = ""
    team: Team = Team()
    device: torch.device | str = "cpu"
    choice: int | None = None


def run_machine(model: Network, samples: Samples, settings: Settings) -> tuple[dict[str, Any], torch.Tensor]:
    """Fits the machine of a network's kernel and scores it on test samples.

    Parameters
    ----------
    model : of `deq_enn.networks`, of any width.

    Returns
    -------
    (record, predicted) : what is logged, and the (m,) predicted classes.

    Raises
    ------
    ValueError : two training samples are the same and a ridge is 0, or a kernel on disk has no files.
    """
    _check(samples, settings)
    laps = _Laps()
    with _Files(settings, len(samples.X)) as files:
        machine, table = _fit(model, samples, settings, files, laps)
        prediction = _predict(model, machine, samples, settings)
        laps.end("prediction")
    return _record(machine, table, prediction, samples, settings, laps), prediction.mean.argmax(1)


def _check(samples, settings):
    if min(settings.ridges) == 0 and (pair := find_duplicate(samples.X)):
        raise ValueError(
            f"training samples {pair[0]} and {pair[1]} are the same: with --ridge 0 there is no solution, "
            "take a positive one"
        )
    if settings.files is None and not settings.plan.in_memory:
        raise ValueError("a kernel that does not fit in memory needs files")


class _Laps:
    """A clock that keeps the seconds of each lap by its name."""

    def __init__(self):
        self.seconds, self._start = {}, time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"{name}_seconds"], self._start = now - self._start, now


class _Files:
    """The files of a run. An error leaves them there, so that the next run goes on from them; success removes them."""

    def __init__(self, settings: Settings, n: int):
        self.settings, self.files = settings, settings.files
        self.layout = Layout(n, settings.plan.height, settings.team.rank, settings.team.size)
        self.kernel: FileRows | None = None
        self._open: list[FileRows] = []
        if self.files:
            self.kernel = self._opened(f"{self.files}.rank{settings.team.rank}.kernel", settings.key)

    def _opened(self, path, key):
        self._open.append(FileRows(self.layout, path, key))
        return self._open[-1]

    def factor(self, ridge: float) -> FileRows | None:
        """Where the factor goes: into a file if the kernel is not in memory, else into the kernel's place."""
        if self.settings.plan.in_memory:
            return None
        return self._opened(f"{self.files}.factor", f"{self.settings.key} {ridge}")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for file in self._open:
            file.remove() if kind is None else file.close()


def _fit(model, samples, settings, files, laps) -> tuple[Machine, list[Row]]:
    """Forms the kernel, chooses the ridge, and solves; returns the machine and the table of ridges."""
    kernel, team, labels, n_classes = settings.kernel, settings.team, samples.labels, samples.n_classes
    X, labels = samples.X.to(settings.device), labels.to(settings.device)
    if hasattr(model, "kernel_size"):
        make = partial(_conv_blocks_of, model, dtype=torch.float32)
        for other in (None, samples.X_test):  # few training images may have many of a test set to predict
            announce(make, X, other, kernel == "ntk", team.size)
    blocks = float32_blocks(model, X)
    rows = MemoryRows(files.layout) if settings.plan.in_memory else files.kernel
    form(blocks, kernel, rows, files.kernel if settings.plan.in_memory else None)
    laps.end("kernel")
    ridge, table = settings.ridges[0], []
    if len(settings.ridges) > 1:
        given = rows, one_hot_targets(labels, n_classes)[0], mean_diagonal(blocks, kernel)
        given = *given, settings.ridges, settings.choice
        ridge, table = choose_ridge_shared(*given, team) if team.size > 1 else choose_ridge(*given)
    laps.end("ridge")
    if team.size > 1:
        machine = fit_shared(blocks, rows, labels, n_classes, kernel, ridge, team)
    else:
        machine = fit(blocks, rows, labels, n_classes, kernel, ridge, files.kernel, files.factor(ridge))
    laps.end("solve")
    return machine, table


def _predict(model, machine, samples, settings) -> Prediction:
    cross = float32_blocks(model, samples.X.to(settings.device), samples.X_test.to(settings.device))
    team = settings.team
    return predict_shared(machine, cross, team) if team.size > 1 else machine.predict(cross)


def _record(machine, table, prediction, samples, settings, laps) -> dict[str, Any]:
    targets, mean = one_hot_targets(samples.labels, samples.n_classes)
    fitted = targets - machine.noise * machine.weights.cpu() + mean  # is K weights + mean
    return {
        "train_accuracy": (fitted.argmax(1) == samples.labels).double().mean().item(),
        **{f"test_{name}": value for name, value in score(prediction, samples.labels_test).items()},
        "ridge": machine.ridge,
        "noise": machine.noise,
        "scale2": machine.scale2,
        "residual": machine.residual,
        "log_evidence": machine.log_evidence,
        "ridge_table": table,
        "train_size": len(samples.X),
        "in_memory": settings.plan.in_memory,
        **laps.seconds,
    }
