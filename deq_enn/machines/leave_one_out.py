"""Every sample predicted by all others, in closed form: the ridge readout of features, or of a kernel.

With the residuals r = Y - F w of the readout w = (F^T F + lambda I)^-1 F^T Y and H = F (F^T F + lambda I)^-1 F^T, the
errors on a group G of samples of the readout that has not seen it are (I - H_GG)^-1 r_G (Cook, 1977; Rasmussen &
Williams, section 5.4.2). With fewer samples than features, or features that are infinitely many, they are C_GG^-1
(C Y)_G with C = (K + lambda I)^-1, K = F F^T. A group is one sample, or a sample with its copies and near copies, which
would give it away: new samples have none among those of the training set.

The ridge is the one that `ridge_features.solve` takes: that of the least squared error on the last fifth of the
samples, by a readout solved on the others.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from deq_enn.machines.readout import RIDGES
from deq_enn.machines.regression import one_hot_targets
from deq_enn.utils.random import generator

BATCH = 2048  # rows of features that are in float64 at once
# A near copy is nearer than the first of these, in units of two samples' distance, while between it and the second
# there are few others: in few dimensions samples have neighbours at all distances, and new ones have too.
NEAR, FAR, NEIGHBOURS = 0.05, 0.15, 20
DIMENSIONS = 8  # that neighbours are looked for in


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
        _, group, size = copies.unique(return_inverse=True, return_counts=True)
        members = group.argsort(stable=True).split(size.tolist())
        # the groups of each size, (groups, size) numbers of samples
        self.groups = [torch.stack([members[g] for g in (size == d).nonzero()[:, 0]]) for d in size.unique().tolist()]
        self.first = len(labels) - max(len(labels) // 5, 1)  # of the held-out samples that choose the ridge

    def left_out(self, errors, ridge) -> LeftOut:
        predicted = self.Y - errors
        return LeftOut(predicted, (predicted + self.mean).argmax(1) == self.labels, ridge)


def copies(X: torch.Tensor) -> torch.Tensor:
    """(n,) the number of the first row of X (n, p) that this one is a copy or a near copy of: its own, if of none."""
    first: dict[int, int] = {}  # by a hash of 64 bits of the row's bytes
    same = torch.tensor([first.setdefault(hash(row.tobytes()), i) for i, row in enumerate(X.contiguous().numpy())])
    kept = torch.tensor(sorted(first.values()))
    near = kept[_near_copies(X, kept)]  # for each of the kept
    return near[torch.searchsorted(kept, same)]


def _near_copies(X, kept):
    """For each of the rows `kept` of X the first of the kept that it is a near copy of."""
    n, p = len(kept), X.shape[1]
    own = torch.arange(n)
    if n <= NEIGHBOURS:
        return own
    some = X[kept[:1000]].double()
    unit = math.sqrt(2 * (some - some.mean(0)).square().sum(1).mean().item())  # the distance of two samples
    if not unit:
        return own
    # distances are kept by a random projection on the average, and its neighbours are then measured
    projection = torch.randn(p, DIMENSIONS, generator=generator("near copies"))
    shadow = (X[kept] @ projection / math.sqrt(DIMENSIONS)).numpy()
    distance, index = cKDTree(shadow).query(
        shadow, NEIGHBOURS + 1, distance_upper_bound=FAR * unit, workers=torch.get_num_threads()
    )
    near, within = (np.sum(distance < limit, axis=1) - 1 for limit in (NEAR * unit, np.inf))  # but for itself
    lonely = (within < NEIGHBOURS) & (within <= 3 * near)
    row, column = (lonely[:, None] & (distance < 2 * NEAR * unit)).nonzero()
    i, j = row, index[row, column]
    edges = [np.empty((2, 0), int)]
    for part in np.array_split(np.stack([i, j])[:, i < j], max(1, len(i) * p // 2**26 + 1), axis=1):
        apart = (X[kept[part[0]]] - X[kept[part[1]]]).norm(dim=1).numpy()
        edges.append(part[:, apart < NEAR * unit])
    i, j = np.concatenate(edges, 1)
    _, component = connected_components(coo_array((np.ones(len(i)), (i, j)), (n, n)), directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return torch.from_numpy(first[inverse])


def from_kernel(K: torch.Tensor, targets: Targets) -> LeftOut:
    """Of kernel ridge regression with K (n, n) float64."""
    first, unit = targets.first, K.diagonal().mean().item()
    fitted, cross = K[:first, :first], K[first:, :first]
    Y, held_out = targets.Y[:first], targets.Y[first:]

    def squared_error(ridge):
        root = _root(fitted, ridge * unit)
        return math.inf if root is None else (held_out - cross @ torch.cholesky_solve(Y, root)).square().mean().item()

    ridge = least(squared_error)
    C = torch.cholesky_inverse(_root_at_least(K, ridge * unit))
    solved, errors = C @ targets.Y, torch.empty_like(targets.Y)
    for G in targets.groups:
        errors[G] = torch.linalg.solve(C[G[:, :, None], G[:, None, :]], solved[G])
    return targets.left_out(errors, ridge)


def from_features(F: torch.Tensor, targets: Targets) -> LeftOut:
    """Of the readout of features F (n, m), of float32 or float64; in O(min(n, m)) sized matrices."""
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

    ridge = least(squared_error)
    whole = fitted.add_(rest)
    root = _root_at_least(whole, ridge * whole.diagonal().sum().item() / n)
    weights, errors = torch.cholesky_solve(moment + rest_moment, root), torch.empty_like(targets.Y)
    for groups in targets.groups:
        size = groups.shape[1]
        for G in groups.split(max(BATCH // size, 1)):
            f = F[G.ravel()].double()
            half = torch.linalg.solve_triangular(root, f.T, upper=False).T.reshape(*G.shape, m)
            kept = torch.eye(size, dtype=torch.float64) - half @ half.mT
            errors[G] = torch.linalg.solve(kept, targets.Y[G] - (f @ weights).reshape(*G.shape, -1))
    return targets.left_out(errors, ridge)


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
    """The factor at this noise, which a part of A was positive definite with, or the next that will do."""
    while (root := _root(A, noise)) is None:
        noise *= 10
    return root


def least(squared_error, ridges=RIDGES) -> float:
    """The ridge of the least error: of every fourth, then of those two and one beside the best so far.

    Downhill from some ridge would take fewer, but in few dimensions the error has several valleys.
    """
    known: dict[int, float] = {}
    tried = list(range(0, len(ridges), 4))
    for step in (2, 1, 0):
        known |= {i: squared_error(ridges[i]) for i in tried if i not in known and 0 <= i < len(ridges)}
        best = min(known, key=known.get)
        tried = [best - step, best + step]
    return ridges[best]
