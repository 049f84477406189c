"""The readout of a network of finite width is solved exactly, by ridge regression on its features.

With features F (n, m) this is the kernel machine (regression.py) of the kernel F F^T, in its weight-space form
(Rasmussen & Williams 2006, section 2.1). For m -> infinity it becomes the machine of the network's conjugate kernel:

    w = (F^T F + lambda I)^-1 F^T Y,     variance at z: s^2 lambda (1 + z^T (F^T F + lambda I)^-1 z)

F^T F and F^T Y are sums over samples, which take one pass over the data in batches and O(m^2) memory. The squared error
on held-out samples is a function of *their* sums, so that the same pass chooses the ridge.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from deq_enn.machines.regression import Prediction, log_evidence, one_hot_targets
from deq_enn.machines.ridge_search import LONG, Row, least_error, search_ridges
from deq_enn.utils.deadline import check
from deq_enn.utils.devices import FastProducts

RIDGES = tuple(10 ** (k / 2) for k in range(-16, 5))  # multiples of the features' mean squared norm, 1e-8 to 100
BATCH = 512  # samples at a time, so that their features stay in cache


Device = torch.device | str | None  # None: that of the network
Network = Any  # of deq_enn.networks, which this room does not import: it has `features` and a linear `readout`


@dataclass(frozen=True)
class Sums:
    """These are the normal equations of n samples with features F and targets Y, in float64.

    gram F^T F (m, m), moment F^T Y (m, c), power tr Y^T Y, and the count n.
    """

    gram: torch.Tensor
    moment: torch.Tensor
    power: float
    count: int

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.gram + other.gram, self.moment + other.moment, self.power + other.power, self.count + other.count
        )

    @property
    def unit(self) -> float:
        """Returns the mean squared norm of the features, of which ridges are multiples; 1 where all are zero."""
        return self.gram.diagonal().sum().item() / self.count or 1.0

    def squared_error(self, weights: torch.Tensor) -> float:
        """Returns the mean over samples and classes of (Y - F weights)^2."""
        total = self.power - 2 * (weights * self.moment).sum() + (weights * (self.gram @ weights)).sum()
        return max(total.item(), 0.0) / (self.count * weights.shape[1])


def _batches(model, X, device):
    """Yields rows of X (n, p), and their features in float64 on the device."""
    with torch.no_grad():
        for start in tqdm(range(0, len(X), BATCH), desc="features", leave=False, disable=None, delay=1):
            if start:
                check()
            rows = slice(start, start + BATCH)
            with FastProducts():
                F = model.features(X[rows].to(device))
            yield rows, F.double()


def _device_of(model):
    return model.readout.weight.device


def sums(model: Network, X: torch.Tensor, targets: torch.Tensor, device: Device = None) -> Sums:
    """Returns the normal equations of the model's features at X (n, p) with targets (n, c), on its device."""
    m, device = model.readout.in_features, device or _device_of(model)
    gram = torch.zeros(m, m, dtype=torch.float64, device=device)
    moment = torch.zeros(m, targets.shape[1], dtype=torch.float64, device=device)
    for rows, F in _batches(model, X, device):
        gram.addmm_(F.T, F)
        moment.addmm_(F.T, targets[rows].to(device))
    return Sums(gram, moment, targets.square().sum().item(), len(X))


def _root(equations: Sums, noise: float) -> torch.Tensor:
    A = equations.gram.clone()
    A.diagonal().add_(noise)
    root, info = torch.linalg.cholesky_ex(A)
    if info:
        raise ValueError(
            f"the features' normal equations are singular at ridge {noise / equations.unit:.3g}: "
            "take a larger --ridge, or a width below the number of samples"
        )
    return root


@dataclass(frozen=True)
class Readout:
    """A solved readout has the attributes of `regression.Machine`, with weights (m, c) and a Cholesky root (m, m)."""

    ridge: float
    noise: float
    weights: torch.Tensor
    mean: torch.Tensor
    scale2: float
    log_evidence: float | None
    root: torch.Tensor

    def predict(self, model: Network, X: torch.Tensor, device: Device = None) -> Prediction:
        """Predicts the samples X (m, p), which pass through the network that the readout was solved for.

        The work is done on the network's device, and the prediction is on the CPU.
        """
        means, variances, mean = [], [], self.mean.cpu()
        for _, F in _batches(model, X, device or _device_of(model)):
            means.append((F @ self.weights).cpu() + mean)
            inner = torch.linalg.solve_triangular(self.root, F.T, upper=False).square().sum(0).cpu()
            variances.append(self.scale2 * self.noise * (1 + inner))
        return Prediction(torch.cat(means), torch.cat(variances) if self.noise else None)


def solve(
    model: Network,
    X: torch.Tensor,
    labels: torch.Tensor,
    n_classes: int,
    ridges: Sequence[float] = RIDGES,
    device: Device = None,
) -> tuple[Readout, list[Row]]:
    """Solves the readout of one-hot targets: `solve_targets` for labels (n,) in 0 .. n_classes - 1."""
    return solve_targets(model, X, *one_hot_targets(labels, n_classes), ridges, device)


def solve_targets(
    model: Network,
    X: torch.Tensor,
    targets: torch.Tensor,
    mean: torch.Tensor,
    ridges: Sequence[float] = RIDGES,
    device: Device = None,
) -> tuple[Readout, list[Row]]:
    """Solves the readout on all samples, with the ridge that has the least squared error on the last fifth of them.

    Parameters
    ----------
    model : its `features` (n, m) are used as they are.
    X, targets : (n, p) and (n, c), float64, in random order. mean : (c,), which predictions have added.
    ridges : multiples of the features' mean squared norm, 0 or positive. A single one is taken as it is.
    device : of the network, by default. The samples and targets may be on any.

    Returns
    -------
    (readout, table), with one {"ridge", "mse"} on the held-out samples for each ridge.

    Raises
    ------
    ValueError : the input or its features are not finite, or the normal equations are singular at the ridge.
    """
    first = len(X) - max(len(X) // 5, 1)
    if len(ridges) > 1 and not first:
        raise ValueError(f"a ridge is chosen on two samples or more, got {len(X)}: give a single one")
    fitted, held_out = (sums(model, X[part], targets[part], device) for part in (slice(first), slice(first, None)))
    whole = fitted + held_out
    if not math.isfinite(whole.unit):
        bad = (~X.isfinite().all(1)).nonzero()
        where = f"the input has NaN or infinite entries, first in row {int(bad[0])}" if len(bad) else "features are NaN"
        raise ValueError(f"{where}: no readout can be fitted")

    def evaluate(ridges):
        table = []
        for ridge in ridges:
            if len(fitted.gram) > LONG:
                check()
            with contextlib.suppress(ValueError):
                weights = torch.cholesky_solve(fitted.moment, _root(fitted, ridge * fitted.unit))
                table.append({"ridge": ridge, "mse": held_out.squared_error(weights)})
        return table

    table = search_ridges(ridges, evaluate) if len(ridges) > 1 else []
    ridge = least_error(table) if table else ridges[0]
    noise = ridge * whole.unit
    root = _root(whole, noise)
    weights = torch.cholesky_solve(whole.moment, root)
    n, (m, c) = whole.count, weights.shape
    if not noise:
        return Readout(ridge, noise, weights, mean, math.nan, None, root), table
    scale2 = max((whole.power - (whole.moment * weights).sum().item()) / (noise * n * c), 0.0)
    log_det = 2 * root.diagonal().log().sum().item() + (n - m) * math.log(noise)
    return Readout(ridge, noise, weights, mean, scale2, log_evidence(scale2, log_det, n, c), root), table
