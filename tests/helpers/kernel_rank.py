"""A small problem for kernel machines; and, as a program, one rank of a machine that solves it, for
test_conjugate_gradients.py."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from deq_enn.machines.block_rows import Layout, MemoryRows, form
from deq_enn.machines.conjugate_gradients import Nystrom, choose_ridge_shared, fit_shared, predict_shared
from deq_enn.machines.regression import mean_diagonal, one_hot_targets
from deq_enn.utils.team import Team

N, M, CLASSES, HEIGHT = 410, 70, 3, 90  # neither divides the other


class Dense:
    """Two dense matrices with the interface of `kernels.blocks.KernelTiles`."""

    def __init__(self, ck, ntk, diagonals=None):
        self.kernels, self.shape, self.entries = {"ck": ck, "ntk": ntk}, tuple(ck.shape), 0
        self.diagonals = diagonals or (ck.diagonal(), ntk.diagonal())

    def diagonal(self):
        return self.diagonals

    def tile(self, rows, cols, kernel, out=None):
        tile = self.kernels[kernel][rows, cols]
        self.entries += tile.numel()
        return tile.clone() if out is None else out.copy_(tile)


def make_problem():
    """Square blocks of N samples, cross blocks of M others, labels, test labels, and the (N + M) kernels as arrays."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(CLASSES, 8))
    y = random.integers(CLASSES, size=N + M)
    X = centres[y] + 1.5 * random.normal(size=(N + M, 8))
    distance2 = ((X[:, None] - X) ** 2).sum(2)
    ck, ntk = np.exp(-distance2 / 40), 3 * np.exp(-distance2 / 20) + 1
    tensors = [torch.from_numpy(K) for K in (ck, ntk)]
    square = Dense(*(K[:N, :N] for K in tensors))
    cross = Dense(*(K[N:, :N] for K in tensors), tuple(K.diagonal()[N:] for K in tensors))
    return square, cross, torch.from_numpy(y[:N]), torch.from_numpy(y[N:]), {"ck": ck, "ntk": ntk}


def formed(blocks, kernel, height=HEIGHT, n=N):
    rows = MemoryRows(Layout(n, height))
    form(blocks, kernel, rows)
    return rows


def whole(rows):
    """The symmetric matrix that block rows are the lower triangle of."""
    n = rows.layout.n
    out = np.zeros((n, n))
    for i in range(rows.layout.blocks):
        r = rows.layout.rows(i)
        out[r, : r.stop] = rows.read(i).numpy()
    return np.tril(out) + np.tril(out, -1).T


def solved_by(team):
    square, cross, y, *_ = make_problem()
    rows = MemoryRows(Layout(N, HEIGHT, team.rank, team.size))
    form(square, "ck", rows)
    held = sum(rows.has(i) for i in range(rows.layout.blocks))
    targets, unit = one_hot_targets(y, CLASSES)[0], mean_diagonal(square, "ck")
    ridge, table = choose_ridge_shared(rows, targets, unit, (0.01, 0.1, 1.0), 300, team)
    diagonal = square.diagonal()[0]
    preconditioned = Nystrom(rows, diagonal, 0.1, 130, team)(targets)
    machine = fit_shared(square, rows, y, CLASSES, "ck", ridge, team)
    return {
        "held": held,
        "entries": square.entries,
        "table": [list(row.values()) for row in table],
        "ridge": ridge,
        "preconditioned": preconditioned,
        "weights": machine.weights,
        "scale2": machine.scale2,
        "mean": predict_shared(machine, cross, team).mean,
    }


if __name__ == "__main__":
    rank, size, port, folder = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=int(size))
    with Path(folder, f"{rank}.pt").open("wb") as file:
        torch.save(solved_by(Team(int(rank), int(size))), file)
    dist.destroy_process_group()
