"""Every sample is predicted by all others in closed form, with the ridge readout of features, or of a kernel.

Let r = Y - F w be the residuals of the readout w = (F^T F + lambda I)^-1 F^T Y, and H = F (F^T F + lambda I)^-1 F^T. On
a group G of samples, the readout that has not seen it has the errors (I - H_GG)^-1 r_G (Cook, 1977; Rasmussen &
Williams, section 5.4.2). A group is a sample with its copies and near copies (`copies.py`), which would give it away.

The ridge is the one of the least squared error of these predictions (Allen's PRESS, Technometrics 16 (1974)). One
eigendecomposition is enough for every ridge, because H is diagonal in its directions (`Directions`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from deq_enn.machines.readout import RIDGES
from deq_enn.machines.regression import one_hot_targets
from deq_enn.machines.ridge_search import Row, least_error
from deq_enn.utils.deadline import check

BATCH = 2048  # rows of features that are in float64 at once
CHOICE = 10_000  # samples whose errors choose the ridge, at most; all others predict them
TOGETHER = 2**21  # entries of the weights of several ridges that are multiplied at once


@dataclass(frozen=True)
class LeftOut:
    """Each sample is predicted by the others.

    predicted : (n, c) targets, without their mean.
    right : (n,) bool, of the predicted classes.
    ridge : the one taken.
    faintest : the least eigenvalue of the normal equations, a multiple of the features' mean squared norm as the ridge
        is. A ridge far below it changes nothing. 0 where there are as many features as samples or more.
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
        # in the order of the samples: the first groups choose the ridge, and a file may be sorted by its labels
        _, group = copies.unique(return_inverse=True)
        place = torch.arange(len(copies))
        first = torch.full((int(group.max()) + 1,), len(copies)).scatter_reduce(0, group, place, "amin")
        group = first.argsort().argsort()[group]
        size = group.bincount()
        members = group.argsort(stable=True).split(size.tolist())
        # for each size of a group: (groups, size) indices of samples
        groups = [torch.stack([members[g] for g in (size == d).nonzero()[:, 0]]) for d in size.unique().tolist()]
        self.groups = [group.to(labels.device) for group in groups]


@dataclass(frozen=True)
class Directions:
    """The directions of features or of a kernel in which a ridge does nothing but shrink, by an eigendecomposition.

    With B_G the rows of a group of samples in these directions, and lambda the ridge times `unit`,

        F V:  (I - H)_GG = I - B_G d B_G^T,                 r_G = Y_G - B_G d M,               d = 1/(s + lambda)
        U:    (I - H)_GG = I - B_G B_G^T + B_G d B_G^T,     r_G = Y_G - B_G M + B_G d M,       d = lambda/(s + lambda)

    for the eigenvectors V of F^T F, and the left singular vectors U of F or eigenvectors of K. The second loses no
    digits to cancellation where lambda is tiny.

    rows : from indices (b,) to B (b, k) float64: rows of F V, or of U.
    strengths : s (k,), the eigenvalues. moment : M (k, c), V^T F^T Y or U^T Y.
    unit : the mean squared norm of the features, or the mean diagonal of the kernel; 1 where all are zero, as where
        every signal dies in an activation's dead zone.
    orthonormal : whether the directions are U. complete : whether there are as many of them as samples.
    """

    rows: Callable[[torch.Tensor], torch.Tensor]
    strengths: torch.Tensor
    moment: torch.Tensor
    unit: float
    orthonormal: bool = False
    complete: bool = False

    def left_out(self, targets: Targets, ridges: Sequence[float], faintest: float = 0.0) -> LeftOut:
        """Predicts each sample by the others, with the best of these ridges."""
        ridge = least_error(self.table(targets, ridges))
        errors = torch.empty_like(targets.Y)
        for G, (part,) in self._errors(targets, [ridge]):
            errors[G] = part
        predicted = targets.Y - errors
        return LeftOut(predicted, (predicted + targets.mean).argmax(1) == targets.labels, ridge, faintest)

    def table(self, targets: Targets, ridges: Sequence[float]) -> list[Row]:
        """Returns {"ridge", "mse"} for each ridge, the squared error of CHOICE samples that are left out.

        Ridges that are lost in rounding have no row.
        """
        total, samples = torch.zeros(len(ridges), dtype=torch.float64, device=targets.Y.device), 0
        for G, parts in self._errors(targets, ridges):
            total += torch.stack([part.square().sum() for part in parts])
            samples += G.numel()
            if samples >= CHOICE:
                break
        means = (total / (samples * targets.Y.shape[1])).tolist()
        return [{"ridge": ridge, "mse": mse} for ridge, mse in zip(ridges, means) if mse < math.inf]

    def _errors(self, targets, ridges) -> Iterator[tuple[torch.Tensor, Iterator[torch.Tensor]]]:
        """Yields groups (g, size) of samples, and their errors (g, size, c) by each ridge in turn."""
        noise = self.unit * torch.tensor(ridges, dtype=torch.float64, device=targets.Y.device)
        shrunk = 1 / (self.strengths[:, None] + noise)  # (k, ridges)
        if self.orthonormal:
            shrunk = noise * shrunk
        for groups in targets.groups:
            alone = groups.shape[1] == 1
            for G in groups.split(max(BATCH // groups.shape[1], 1)):
                check()
                B, Y = self.rows(G.ravel()).reshape(*G.shape, -1), targets.Y[G]
                yield G, (self._of_samples(B[:, 0], Y[:, 0], shrunk) if alone else self._of_groups(B, Y, shrunk))

    def _of_samples(self, B, Y, shrunk):
        """The errors (g, 1, c) of single samples with rows B (g, k), for each column of d (k, ridges)."""
        sign, outside = (1 if self.orthonormal else -1), 1.0
        if self.orthonormal:
            outside, Y = (1 - B.square().sum(1)).clamp_min(0)[:, None], Y - B @ self.moment
            if self.complete:  # both are zero but for rounding
                outside, Y = 0.0, torch.zeros_like(Y)
        kept = outside + sign * (B.square() @ shrunk)
        at_once = max(TOGETHER // self.moment.numel(), 1)  # ridges
        for d, rest in zip(shrunk.split(at_once, 1), kept.split(at_once, 1)):
            weights = (d[:, :, None] * self.moment[:, None, :]).flatten(1)
            errors = (Y[:, None] + sign * (B @ weights).unflatten(1, (d.shape[1], -1))) / rest[:, :, None]
            yield from errors.transpose(0, 1)[:, :, None]

    def _of_groups(self, B, Y, shrunk):
        """The errors of groups with rows B (g, size, k), for each column of d (k, ridges)."""
        sign, outside = (1 if self.orthonormal else -1), torch.eye(B.shape[1], dtype=B.dtype, device=B.device)
        if self.orthonormal:
            outside, Y = outside - B @ B.mT, Y - B @ self.moment
            if self.complete:
                outside, Y = torch.zeros_like(outside), torch.zeros_like(Y)
        for d in shrunk.T:
            weighted = sign * (B * d)
            yield torch.linalg.solve(outside + weighted @ B.mT, Y + weighted @ self.moment)


def from_kernel(K: torch.Tensor, targets: Targets) -> LeftOut:
    """Returns the predictions of kernel ridge regression with K (n, n) float64."""
    check()
    strengths, Q = torch.linalg.eigh(K)
    unit = K.diagonal().mean().item() or 1.0
    directions = Directions(
        Q.__getitem__, strengths.clamp_min(0), Q.T @ targets.Y, unit, orthonormal=True, complete=True
    )
    return directions.left_out(targets, RIDGES)


def from_features(F: torch.Tensor, targets: Targets) -> LeftOut:
    """Returns the predictions of the readout of features F (n, m), of float32 or float64; in O(min(n, m)^2) memory."""
    n, m = F.shape
    if n <= m:
        F = F.double()
        return from_kernel(F @ F.T, targets)
    gram, moment = _sums(F, targets.Y)
    unit = gram.diagonal().sum().item() / n or 1.0
    check()
    strengths, V = torch.linalg.eigh(gram)
    strengths.clamp_(min=0)
    directions = Directions(lambda G: F[G].double() @ V, strengths, V.T @ moment, unit)
    return directions.left_out(targets, RIDGES, strengths[0].item() / unit)


def _sums(F, Y):
    """Returns F^T F and F^T Y in float64."""
    gram = torch.zeros(F.shape[1], F.shape[1], dtype=torch.float64, device=F.device)
    moment = torch.zeros(F.shape[1], Y.shape[1], dtype=torch.float64, device=F.device)
    for f, y in zip(F.split(BATCH), Y.split(BATCH)):
        f = f.double()
        gram.addmm_(f.T, f)
        moment.addmm_(f.T, y)
    return gram, moment
