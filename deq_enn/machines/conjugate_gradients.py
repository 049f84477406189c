"""Ranks that hold block rows of a kernel solve for the weights by conjugate gradients, without gathering the kernel.

Each rank multiplies with the block rows that it holds, and one all-reduce of an (n, classes) array adds the shares up.
The preconditioner is a Nystrom approximation on the first r samples, which are random ones because the rows are in
random order. With W the kernel between them and C that of all samples with them,

    P = C W^-1 C^T + delta I,     delta = ridge + mean diagonal of K - C W^-1 C^T,

inverted by Woodbury's formula at O(n r) a product (Rudi, Carratino & Rosasco, FALKON, NeurIPS 2017, use it likewise;
Frangella, Tropp & Udell, Randomized Nystrom preconditioning, SIAM J. Matrix Anal. Appl. 2023, bound the iterations).
The kernel of a network that is not linear contains a multiple of the identity, which is why delta has that mean.
"""

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from deq_enn.kernels.blocks import KernelTiles
from deq_enn.machines.block_rows import BlockRows, Layout, MemoryRows, product, rectangle, tiles
from deq_enn.machines.cholesky import NotPositiveDefinite
from deq_enn.machines.regression import (
    BATCH,
    RIDGES,
    Machine,
    Prediction,
    choice_size,
    default_choice,
    held_out_errors,
    mean_diagonal,
    one_hot_targets,
    search_in_two,
)
from deq_enn.machines.ridge_search import Row, least_error
from deq_enn.utils.team import Team

LEAST_RANK, MOST_RANK = 1000, 4000  # samples that the preconditioner is made on, at least and at most
TOLERANCE = 1e-9  # residual relative to the targets, at which the iterations end
ROUND = 1e-3  # residual, by that of its beginning, at which a round of float32 products ends
MOST = 2000  # iterations, after which the solver gives up
JITTERS = range(-7, 2)  # powers of ten, multiples of W's mean diagonal that are added to it until it can be factorised


class NoConvergence(RuntimeError):
    """Conjugate gradients did not reach the tolerance."""


def add_up(team: Team, tensor: torch.Tensor) -> torch.Tensor:
    """Replaces the tensor by its sum over the ranks."""
    if team.size > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def preconditioner_rank(n: int) -> int:
    """Returns the rank of the preconditioner for n samples.

    A rank r costs each iteration about 4 r / n of its product, and iterations fall slower than the rank rises.
    """
    return min(n, max(LEAST_RANK, min(n // 15, MOST_RANK)))


def preconditioner_bytes(n: int, size: int = 1) -> float:
    """Returns the preconditioner's bytes on each of `size` ranks: a share of C, and three float64 (r, r) arrays."""
    r = preconditioner_rank(n)
    return 4 * r * n / size + 24 * r * r


class Nystrom:
    """This is P^-1 for the block rows of all ranks together, called with (n, c) that are the same on every rank.

    Products are in the dtype of what it is called with, float64 or float32.
    """

    def __init__(
        self, rows: BlockRows, diagonal: torch.Tensor, noise: float, rank: int | None = None, team: Team = Team()
    ):
        layout = rows.layout
        rank = min(rank or preconditioner_rank(layout.n), layout.n)
        self.team, self.spans, self.parts = team, [layout.rows(i) for i in layout.owned], []
        W = torch.zeros(rank, rank, dtype=torch.float64)
        for i, r in zip(layout.owned, self.spans):
            part = rows.read(i)[:, :rank].clone()
            self.parts.append(part)
            if r.start < rank:
                part = part[: rank - r.start].double()
                W[r.start : r.stop, : part.shape[1]] = part
                W[: r.start, r.start : r.stop] = part[:, : r.start].T
        add_up(team, W)
        root, jitter = _jittered_root(W)
        gram, left = torch.zeros_like(W), torch.zeros(1, dtype=torch.float64)
        for k, (r, part) in enumerate(zip(self.spans, self.parts)):
            part = part.double()
            if r.start < rank:  # among the landmarks themselves only the lower triangle is stored
                inside = min(r.stop, rank) - r.start
                whole = torch.zeros(len(part), rank, dtype=torch.float64)
                whole[:, : part.shape[1]] = part
                whole[:inside] = W[r.start : r.start + inside]
                part = whole
            B = torch.linalg.solve_triangular(root.T, part, upper=True, left=False)
            gram.addmm_(B.T, B)
            left += (diagonal[r] - B.square().sum(1)).clamp_min(0).sum()
            self.parts[k] = B.float()
        add_up(team, gram)
        # below the rounding of B to float32 the difference of V and its projection would be lost
        rounding = torch.finfo(torch.float32).eps * torch.linalg.matrix_norm(gram).item()
        self.delta = max(noise + add_up(team, left).item() / layout.n + jitter, rounding)
        gram.diagonal().add_(self.delta)
        self.root = torch.linalg.cholesky(gram)

    def __call__(self, V: torch.Tensor) -> torch.Tensor:
        columns, out = V.T.contiguous(), V.new_zeros(V.shape[::-1])
        inner = V.new_zeros(len(columns), len(self.root))
        for r, c, tile in self._tiles(V.dtype):
            inner[:, c].addmm_(columns[:, r], tile)
        inner = torch.cholesky_solve(add_up(self.team, inner).T.double(), self.root).T.to(V.dtype).contiguous()
        for r, c, tile in self._tiles(V.dtype):
            out[:, r].addmm_(inner[:, c], tile.T)
        for r in self.spans:
            out[:, r] = (columns[:, r] - out[:, r]) / self.delta
        return add_up(self.team, out).T

    def _tiles(self, dtype):
        for span, B in zip(self.spans, self.parts):
            yield from tiles(B, span, B.shape[1], dtype)


def _jittered_root(W):
    """Returns the Cholesky factor of W + jitter I and the jitter, for the least power of ten that allows it.

    K is rounded to float32, and among samples that are almost the same W has eigenvalues below that rounding.
    """
    for power in JITTERS:
        jitter = 10.0**power * W.diagonal().mean()
        shifted = W.clone()
        shifted.diagonal().add_(jitter)
        root, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            return root, jitter.item()
    raise NotPositiveDefinite("the kernel between the first samples is not positive definite")


def conjugate_gradients(
    rows: BlockRows,
    noise: float,
    Y: torch.Tensor,
    preconditioner: Callable[[torch.Tensor], torch.Tensor],
    team: Team = Team(),
    tolerance: float = TOLERANCE,
) -> tuple[torch.Tensor, int]:
    """Returns (K + noise I)^-1 Y for Y (n, c) float64, the same on every rank, and the iterations it took.

    The products of the iterations are float32's. After each round of them the residual is computed in float64, and the
    next round solves for it (iterative refinement). Where a round does not halve it, the next has products in float64.

    Raises
    ------
    NoConvergence : the residual of a column is above `tolerance` |column| after MOST iterations, or is no number.
    """
    X, R, dtype, iterations = torch.zeros_like(Y), Y, torch.float32, 0
    size = Y.norm(dim=0).clamp_min(1e-300)
    worst = (R.norm(dim=0) / size).max().item()
    bar = tqdm(desc="conjugate gradients", leave=False, disable=None, delay=1)
    while worst > tolerance and iterations < MOST:
        goal = max(ROUND if dtype == torch.float32 else 0.0, 0.5 * tolerance / worst)
        change, taken = _round(rows, noise, R, preconditioner, team, goal, dtype, MOST - iterations, bar)
        iterations += taken
        left = Y - add_up(team, product(rows, X + change)).add_(X + change, alpha=noise)
        now = (left.norm(dim=0) / size).max().item()
        if math.isnan(now) and dtype == torch.float64:
            worst = now
            break
        if not now <= worst / 2:
            dtype = torch.float64
        if now < worst:
            X, R, worst = X + change, left, now
    bar.close()
    if not worst <= tolerance:
        raise NoConvergence(
            f"conjugate gradients left a residual of {worst:.1e} after {iterations} iterations, above "
            f"{tolerance:g}: take a larger --ridge"
        )
    return X, iterations


def _round(
    rows: BlockRows,
    noise: float,
    Y: torch.Tensor,
    preconditioner: Callable[[torch.Tensor], torch.Tensor],
    team: Team,
    goal: float,
    dtype: torch.dtype,
    most: int,
    bar: tqdm,
) -> tuple[torch.Tensor, int]:
    """Returns (K + noise I)^-1 Y by products of this dtype, and the iterations: `most`, or to a residual of `goal`.

    Each column has steps of its own, and the columns share the products.
    """
    X, R, taken = torch.zeros_like(Y), Y.clone(), 0
    Z = preconditioner(R.to(dtype)).to(Y)
    P, rho = Z.clone(), (R * Z).sum(0)
    size = Y.norm(dim=0).clamp_min(1e-300)
    for taken in range(1, most + 1):  # noqa: B007
        Q = add_up(team, product(rows, P.to(dtype))).to(Y).add_(P, alpha=noise)
        step = rho / (P * Q).sum(0).clamp_min(1e-300)
        X += step * P
        R -= step * Q
        worst = (R.norm(dim=0) / size).max().item()
        bar.update()
        bar.set_postfix(residual=f"{worst:.1e}")
        if worst <= goal or math.isnan(worst):
            break
        Z = preconditioner(R.to(dtype)).to(Y)
        previous, rho = rho, (R * Z).sum(0)
        P = Z + rho / previous.clamp_min(1e-300) * P
    return X, taken


# the machine over ranks: every rank calls these functions and gets the answer ---------------------------------------


def choose_ridge_shared(
    rows: BlockRows,
    targets: torch.Tensor,
    unit: float,
    ridges: Sequence[float] = RIDGES,
    size: int | None = None,
    team: Team = Team(),
) -> tuple[float, list[Row]]:
    """Chooses the ridge as `regression.choose_ridge` does, with the ridges dealt out to the ranks.

    Only the part of the kernel on the first `size` samples is sent to every rank.
    """

    def on(size):
        size, first = choice_size(len(targets), size)
        part = MemoryRows(Layout(size, rows.layout.height))
        for i in range(part.layout.blocks):
            height, width = part.layout.shape(i)
            mine = i in rows.layout.owned
            own = rows.read(i)[:height, :width].clone() if mine else torch.zeros(height, width, dtype=torch.float32)
            part.write(i, add_up(team, own))

        def evaluate(some):
            # for each ridge: whether the kernel can be factorised, squared error, accuracy
            results = torch.zeros(len(some), 3, dtype=torch.float64)
            for k in team.share(range(len(some))):
                with contextlib.suppress(NotPositiveDefinite):
                    results[k] = torch.tensor(
                        [1, *held_out_errors(part, targets, some[k] * unit, first)], dtype=results.dtype
                    )
            return [
                {"ridge": ridge, "mse": mse, "accuracy": accuracy}
                for ridge, (done, mse, accuracy) in zip(some, add_up(team, results).tolist())
                if done
            ]

        return evaluate

    table = search_in_two(ridges, on, min(size or default_choice(len(targets)), len(targets)))
    if not table:
        raise NotPositiveDefinite(
            f"the kernel is not positive definite to float32 rounding with any ridge of "
            f"{', '.join(f'{ridge:.3g}' for ridge in ridges)}: take a larger --ridge"
        )
    return least_error(table), table


def fit_shared(
    blocks: KernelTiles,
    rows: BlockRows,
    labels: torch.Tensor,
    n_classes: int,
    kernel: str,
    ridge: float,
    team: Team = Team(),
) -> Machine:
    """Fits the machine of `regression.fit` by conjugate gradients, without a factor, log_evidence and variances.

    rows : the block rows of this rank, which stay as they are.
    """
    noise = ridge * mean_diagonal(blocks, kernel)
    targets, mean = one_hot_targets(labels, n_classes)
    diagonal = blocks.diagonal()[kernel == "ntk"]
    weights, _ = conjugate_gradients(rows, noise, targets, Nystrom(rows, diagonal, noise, team=team), team)
    left = targets - add_up(team, product(rows, weights)) - noise * weights
    residual = (left.norm(dim=0) / targets.norm(dim=0).clamp_min(1e-300)).max().item()
    return Machine(kernel, ridge, noise, weights, mean, (targets * weights).sum().item() / targets.numel(), residual)


def predict_shared(machine: Machine, cross: KernelTiles, team: Team = Team()) -> Prediction:
    """Predicts as `machine.predict` does, with the test samples dealt out to the ranks in batches."""
    means = torch.zeros(cross.shape[0], machine.weights.shape[1], dtype=torch.float64)
    for rows in team.share([slice(a, min(a + BATCH, len(means))) for a in range(0, len(means), BATCH)]):
        means[rows] = rectangle(cross, machine.kernel, rows, machine.weights)[1] + machine.mean
    return Prediction(add_up(team, means), None)
