"""Every sample is predicted by all others in closed form, with the ridge readout of features, or of a kernel.

Let r = Y - F w be the residuals of the readout w = (F^T F + lambda I)^-1 F^T Y, and H = F (F^T F + lambda I)^-1 F^T. On
a group G of samples, the readout that has not seen it has the errors (I - H_GG)^-1 r_G (Cook, 1977; Rasmussen &
Williams, section 5.4.2). With fewer samples than features, or infinitely many features, they are C_GG^-1 (C Y)_G with
C = (K + lambda I)^-1, K = F F^T. A group is a sample with its copies and near copies (`copies.py`), which would give it
away.

The ridge is the one that `readout.solve` takes: the readout that is solved on the other samples has the least squared
error on the last fifth of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from deq_enn.machines.readout import RIDGES
from deq_enn.machines.regression import one_hot_targets
from deq_enn.machines.ridge_search import least_error, search_ridges

BATCH = 2048  # rows of features that are in float64 at once
STRIDE = 4  # ridges from one coarse one to the next


@dataclass(frozen=True)
class LeftOut:
    """Each sample is predicted by the others.

    predicted : (n, c) targets, without their mean.
    right : (n,) bool, of the predicted classes.
    ridge : the one taken.
    faintest : the least pivot of the normal equations, a multiple of the features' mean squared norm as the ridge is. A
        ridge far below it changes nothing. 0 where there are as many features as samples or more.
    """

    predicted: torch.Tensor
    right: torch.Tensor
    ridge: float
    faintest: float = 0.0


class Targets:
    """These are the centred one-hot targets of labels (n,), with the groups of samples that are left out together.

    copies : (n,) an integer for each sample, the same within a group; by default each sample is a group.
    device : where the work is done; that of the labels by default.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        n_classes: int,
        copies: torch.Tensor | None = None,
        device: torch.device | str | None = None,
    ):
        labels = self.labels = labels.to(labels.device if device is None else device)
        self.Y, self.mean = one_hot_targets(labels, n_classes)
        copies = torch.arange(len(labels)) if copies is None else copies.cpu()
        _, group, size = copies.unique(return_inverse=True, return_counts=True)
        members = group.argsort(stable=True).split(size.tolist())
        # for each size of a group: (groups, size) indices of samples
        groups = [torch.stack([members[g] for g in (size == d).nonzero()[:, 0]]) for d in size.unique().tolist()]
        self.groups = [group.to(labels.device) for group in groups]
        self.first = len(labels) - max(len(labels) // 5, 1)  # the first of the held-out samples that choose the ridge

    def left_out(self, errors: torch.Tensor, ridge: float, faintest: float = 0.0) -> LeftOut:
        """Returns the predictions that have these errors (n, c)."""
        predicted = self.Y - errors
        return LeftOut(predicted, (predicted + self.mean).argmax(1) == self.labels, ridge, faintest)


def from_kernel(K: torch.Tensor, targets: Targets) -> LeftOut:
    """Returns the predictions of kernel ridge regression with K (n, n) float64."""
    first, unit = targets.first, K.diagonal().mean().item()
    fitted, cross = K[:first, :first], K[first:, :first]
    Y, held_out = targets.Y[:first], targets.Y[first:]

    def squared_error(ridge):
        root = _root(fitted, ridge * unit)
        return math.inf if root is None else (held_out - cross @ torch.cholesky_solve(Y, root)).square().mean().item()

    ridge = _best_ridge(squared_error)
    C = torch.cholesky_inverse(_root_at_least(K, ridge * unit))
    solved, errors = C @ targets.Y, torch.empty_like(targets.Y)
    for G in targets.groups:
        errors[G] = torch.linalg.solve(C[G[:, :, None], G[:, None, :]], solved[G])
    return targets.left_out(errors, ridge)


def from_features(F: torch.Tensor, targets: Targets) -> LeftOut:
    """Returns the predictions of the readout of features F (n, m), of float32 or float64; in O(min(n, m)^2) memory."""
    n, m = F.shape
    if n <= m:
        F = F.double()
        return from_kernel(F @ F.T, targets)
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

    ridge = _best_ridge(squared_error)
    whole = fitted.add_(rest)
    unit = whole.diagonal().sum().item() / n
    root = _root_at_least(whole, ridge * unit)
    weights, errors = torch.cholesky_solve(moment + rest_moment, root), torch.empty_like(targets.Y)
    for groups in targets.groups:
        size = groups.shape[1]
        for G in groups.split(max(BATCH // size, 1)):
            f = F[G.ravel()].double()
            half = torch.linalg.solve_triangular(root, f.T, upper=False).T.reshape(*G.shape, m)
            kept = torch.eye(size, dtype=torch.float64, device=f.device) - half @ half.mT
            errors[G] = torch.linalg.solve(kept, targets.Y[G] - (f @ weights).reshape(*G.shape, -1))
    return targets.left_out(errors, ridge, root.diagonal().min().item() ** 2 / unit)


def _sums(F, Y):
    """Returns F^T F and F^T Y in float64."""
    gram = torch.zeros(F.shape[1], F.shape[1], dtype=torch.float64, device=F.device)
    moment = torch.zeros(F.shape[1], Y.shape[1], dtype=torch.float64, device=F.device)
    for f, y in zip(F.split(BATCH), Y.split(BATCH)):
        f = f.double()
        gram.addmm_(f.T, f)
        moment.addmm_(f.T, y)
    return gram, moment


def _root(A, noise):
    """Returns the Cholesky factor of A + noise I, or None where that is not positive definite."""
    A = A.clone()
    A.diagonal().add_(noise)
    root, info = torch.linalg.cholesky_ex(A)
    return None if info else root


def _root_at_least(A, noise):
    """Returns the factor at this noise, or at the first of 10, 100, ... times it that will do.

    A part of A was positive definite with it, so that A is nearly so.
    """
    while (root := _root(A, noise)) is None:
        noise *= 10
    return root


def _best_ridge(squared_error: Callable[[float], float]) -> float:
    """Returns the ridge of the least error, which is infinite for a ridge without a solution."""

    def evaluate(ridges):
        rows = [{"ridge": ridge, "mse": squared_error(ridge)} for ridge in ridges]
        return [row for row in rows if row["mse"] != math.inf]

    table = search_ridges(RIDGES, evaluate, STRIDE)
    return least_error(table) if table else RIDGES[0]
