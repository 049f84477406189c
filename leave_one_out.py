"""Every sample predicted by all others, in closed form: the ridge readout of features, or of a kernel.

With the residuals r = Y - F w of the readout w = (F^T F + lambda I)^-1 F^T Y and the leverages h_i = f_i^T (F^T F +
lambda I)^-1 f_i, the error on sample i of the readout that has not seen it is r_i/(1 - h_i) (Cook, 1977; Rasmussen &
Williams, section 5.4.2). With fewer samples than features, or features that are infinitely many, the same comes from
C = (K + lambda I)^-1, K = F F^T: r = lambda C Y and 1 - h_i = lambda C_ii. A sample that is there d times is left out d
times at once, or its copies would give it away: e_i = r_i + h_i sum_copies r/(1 - d h_i).

The ridge is the one that `ridge_features.solve` takes: that of the least squared error on the last fifth of the
samples, by a readout solved on the others.
"""

import math
from dataclasses import dataclass

import torch

from kernel_machine import one_hot_targets
from ridge_features import RIDGES

BATCH = 2048  # rows of features that are in float64 at once


@dataclass(frozen=True)
class LeftOut:
    """predicted (n, c) targets, without their mean, of each sample by the others; right (n,) bool; the ridge."""

    predicted: torch.Tensor
    right: torch.Tensor
    ridge: float


class Targets:
    """Centred one-hot targets of labels (n,), and which samples are copies of one another.

    copies : (n,) an integer a sample, the same for those that are left out together; by default none.
    """

    def __init__(self, labels: torch.Tensor, n_classes: int, copies: torch.Tensor | None = None):
        self.labels = labels
        self.Y, self.mean = one_hot_targets(labels, n_classes)
        copies = torch.arange(len(labels)) if copies is None else copies
        _, self.group, self.size = copies.unique(return_inverse=True, return_counts=True)
        self.first = len(labels) - max(len(labels) // 5, 1)  # of the held-out samples that choose the ridge

    def left_out(self, residuals, leverages, ridge) -> LeftOut:
        shared = torch.zeros(len(self.size), residuals.shape[1], dtype=residuals.dtype)
        shared.index_add_(0, self.group, residuals)
        h, d = leverages[:, None], self.size[self.group][:, None]
        errors = residuals + h * shared[self.group] / (1 - d * h).clamp_min(1e-12)
        predicted = self.Y - errors
        return LeftOut(predicted, (predicted + self.mean).argmax(1) == self.labels, ridge)


def copies(X: torch.Tensor) -> torch.Tensor:
    """(n,) the number of the first row of X (n, p) that is the same as this one."""
    first: dict[int, int] = {}  # by a hash of 64 bits of the row's bytes
    return torch.tensor([first.setdefault(hash(row.tobytes()), i) for i, row in enumerate(X.contiguous().numpy())])


def from_kernel(K: torch.Tensor, targets: Targets, guess: float = 1e-2) -> LeftOut:
    """Of kernel ridge regression with K (n, n) float64. guess : where the search for the ridge begins."""
    first, unit = targets.first, K.diagonal().mean().item()
    fitted, cross = K[:first, :first], K[first:, :first]
    Y, held_out = targets.Y[:first], targets.Y[first:]

    def squared_error(ridge):
        root = _root(fitted, ridge * unit)
        return math.inf if root is None else (held_out - cross @ torch.cholesky_solve(Y, root)).square().mean().item()

    ridge = least(squared_error, guess)
    root, noise = _root_at_least(K, ridge * unit)
    C = torch.cholesky_inverse(root)
    return targets.left_out(noise * (C @ targets.Y), 1 - noise * C.diagonal(), ridge)


def from_features(F: torch.Tensor, targets: Targets, guess: float = 1e-2) -> LeftOut:
    """Of the readout of features F (n, m), of float32 or float64; in O(min(n, m)) sized matrices."""
    n, m = F.shape
    if n <= m:
        F = F.double()
        return from_kernel(F @ F.T, targets, guess)
    first = targets.first
    fitted, moment = _sums(F[:first], targets.Y[:first])
    rest, rest_moment = _sums(F[first:], targets.Y[first:])
    unit, power = fitted.diagonal().sum().item() / first, targets.Y[first:].square().sum()

    def squared_error(ridge):
        root = _root(fitted, ridge * unit)
        if root is None:
            return math.inf
        weights = torch.cholesky_solve(moment, root)
        return (power - 2 * (weights * rest_moment).sum() + (weights * (rest @ weights)).sum()).item()

    ridge = least(squared_error, guess)
    whole = fitted.add_(rest)
    root, _ = _root_at_least(whole, ridge * whole.diagonal().sum().item() / n)
    weights = torch.cholesky_solve(moment + rest_moment, root)
    residuals, leverages = torch.empty_like(targets.Y), torch.empty(n, dtype=torch.float64)
    for start in range(0, n, BATCH):
        rows = slice(start, start + BATCH)
        f = F[rows].double()
        residuals[rows] = targets.Y[rows] - f @ weights
        leverages[rows] = torch.linalg.solve_triangular(root, f.T, upper=False).square().sum(0)
    return targets.left_out(residuals, leverages, ridge)


def _sums(F, Y):
    """F^T F and F^T Y in float64."""
    gram = torch.zeros(F.shape[1], F.shape[1], dtype=torch.float64)
    moment = torch.zeros(F.shape[1], Y.shape[1], dtype=torch.float64)
    for f, y in zip(F.split(BATCH), Y.split(BATCH)):
        f = f.double()
        gram.addmm_(f.T, f)
        moment.addmm_(f.T, y)
    return gram, moment


def _root(A, noise):
    """The Cholesky factor of A + noise I, or None."""
    A = A.clone()
    A.diagonal().add_(noise)
    root, info = torch.linalg.cholesky_ex(A)
    return None if info else root


def _root_at_least(A, noise):
    """The factor, and the noise: this one, which a part of A was positive definite with, or the next that will do."""
    while (root := _root(A, noise)) is None:
        noise *= 10
    return root, noise


def least(squared_error, guess: float, ridges=RIDGES) -> float:
    """The ridge of the least error, downhill from the one next to `guess`: the error has one valley in log ridge."""
    known: dict[int, float] = {}

    def at(i):
        if i not in known:
            known[i] = squared_error(ridges[i]) if 0 <= i < len(ridges) else math.inf
        return known[i]

    i = min(range(len(ridges)), key=lambda i: abs(math.log(ridges[i] / guess)))
    while math.isinf(at(i)) and i < len(ridges) - 1:
        i += 1  # not positive definite: a larger ridge
    while (best := min((i, i - 1, i + 1), key=at)) != i:
        i = best
    return ridges[i]
