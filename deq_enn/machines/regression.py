"""Ridge regression and Gaussian-process prediction with an exact kernel: a network at infinite width, without a rate.

Targets are one-hot rows less their mean. With K the kernel of the training samples and lambda = ridge * mean diagonal,

    weights = (K + lambda I)^-1 Y,      prediction at x: k(x)^T weights + mean

is kernel ridge regression, and the posterior mean of a Gaussian process of covariance s^2 k with noise s^2 lambda, the
same for each class (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 2). Its predictive
variance is s^2 (k(x, x) + lambda - k(x)^T (K + lambda I)^-1 k(x)), and the s^2 that makes the training targets most
likely is tr Y^T (K + lambda I)^-1 Y / (n c), in closed form. The ridge is the one number that is chosen: on training
samples, those that come last of a part of them, predicted by the others (`choose_ridge`).

The rows of the training set must be in random order: parts of it are its first rows.
"""

import math
from dataclasses import dataclass

import torch
from tqdm import tqdm

from deq_enn.machines.block_rows import FileRows, Layout, MemoryRows, exact_product, product, rectangle
from deq_enn.machines.cholesky import (
    NotPositiveDefinite,
    backward,
    factorise,
    forward,
    forward_rows_,
    held_out,
    inverse_diagonal,
    log_determinant,
)

RIDGES = tuple(10 ** (k / 2) for k in range(-10, 3))  # 1e-5 to 10, of the mean diagonal


CHOICE = 8_000  # samples that choose the ridge, of which the last fifth is held out


BATCH = 1024  # test samples at a time


@dataclass(frozen=True)
class Prediction:
    """mean (m, c) of the targets, and variance (m,) of each of them, noise included; None where there is no factor."""

    mean: torch.Tensor
    variance: torch.Tensor | None


@dataclass(frozen=True)
class Machine:
    """A fitted machine.

    Attributes
    ----------
    kernel : "ck" or "ntk".
    ridge, noise : lambda as a multiple of the mean diagonal, and itself.
    weights : (n, c) float64. mean : (c,) of the one-hot targets.
    scale2 : s^2, by maximum likelihood.
    residual : |Y - (K + lambda I) weights| / |Y|, the largest over the classes.
    log_evidence : log marginal likelihood of the training targets, a sample; None without a factor.
    factor : block rows of L, L L^T = K + lambda I, or None.
    """

    kernel: str
    ridge: float
    noise: float
    weights: torch.Tensor
    mean: torch.Tensor
    scale2: float
    residual: float
    log_evidence: float | None = None
    factor: MemoryRows | FileRows | None = None

    def predict(self, cross) -> Prediction:
        """For the rows of `cross`, blocks of kernels.py made with `other` = test samples."""
        m, n = cross.shape
        if n != len(self.weights):
            raise ValueError(f"the machine was fitted to {len(self.weights)} samples, these blocks have {n} columns")
        prior = cross.diagonal()[self.kernel == "ntk"]
        means, variances = [], []
        for start in tqdm(range(0, m, BATCH), desc="prediction", leave=False, disable=None, delay=1):
            rows = slice(start, min(start + BATCH, m))
            values, mean = rectangle(cross, self.kernel, rows, self.weights)
            means.append(mean + self.mean)
            if self.factor is not None:
                explained = sum(
                    part.double().square().sum(1) for part in forward_rows_(self.factor, values).split(8192, dim=1)
                )
                # below the noise only by rounding
                variances.append((prior[rows] - explained).clamp_min(0).add(self.noise).mul(self.scale2))
        return Prediction(torch.cat(means), torch.cat(variances) if variances else None)


def one_hot_targets(labels: torch.Tensor, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centred one-hot rows (n, c) float64 of labels (n,), and their mean (c,)."""
    targets = torch.nn.functional.one_hot(labels, n_classes).double()
    mean = targets.mean(0)
    return targets - mean, mean


def mean_diagonal(blocks, kernel: str) -> float:
    return blocks.diagonal()[kernel == "ntk"].mean().item()


# ---------------------------------------------------------------------------------------------------------------
def choice_size(n: int, size: int = CHOICE) -> tuple[int, int]:
    """How many of n samples choose the ridge, and the first of them that is held out."""
    size = min(n, size)
    return size, size - max(size // 5, 1)


def leading(rows, size: int) -> MemoryRows:
    """The first `size` rows and columns of a kernel, as block rows in memory."""
    part = MemoryRows(Layout(size, rows.layout.height))
    for i in range(part.layout.blocks):
        height, width = part.layout.shape(i)
        part.write(i, rows.read(i)[:height, :width].clone())
    return part


def held_out_errors(part: MemoryRows, targets: torch.Tensor, noise: float, first: int) -> tuple[float, float]:
    """Squared error and accuracy on the samples from `first` on, predicted by those before.

    part : their kernel, which stays as it is. targets : (n, c), of `one_hot_targets`.
    """
    Y = targets[: part.layout.n]
    factor = factorise(part.copy(), noise)
    errors, _ = held_out(factor, forward(factor, Y), first)
    right = (Y[first:] - errors).argmax(1) == Y[first:].argmax(1)
    return errors.square().mean().item(), right.double().mean().item()


def choose_ridge(
    rows, targets: torch.Tensor, unit: float, ridges=RIDGES, size: int = CHOICE
) -> tuple[float, list[dict]]:
    """The ridge of the least squared error on held-out training samples, and what each ridge had there.

    Parameters
    ----------
    rows : block rows of the training kernel, not factorised.
    targets : (n, c), of `one_hot_targets`.
    unit : the mean diagonal, of which ridges are multiples.
    size : only the first so many samples are used, and the last fifth of these is held out.

    Returns
    -------
    (ridge, table), one {"ridge", "mse", "accuracy"} a ridge that was tried (`coarse_to_fine`) and that float32 can
    factorise.

    Raises
    ------
    NotPositiveDefinite : where it can factorise none.
    """
    size, first = choice_size(len(targets), size)
    part = leading(rows, size)
    failures = []

    def evaluate(some):
        found = []
        for ridge in tqdm(some, desc="ridge", leave=False, disable=None, delay=1):
            try:
                mse, accuracy = held_out_errors(part, targets, ridge * unit, first)
            except NotPositiveDefinite as error:
                failures.append(error)
            else:
                found.append({"ridge": ridge, "mse": mse, "accuracy": accuracy})
        return found

    table = coarse_to_fine(ridges, evaluate)
    if not table:
        raise failures[-1]
    return least_error(table), table


def least_error(table: list[dict]) -> float:
    return min(table, key=lambda row: row["mse"])["ridge"]


def coarse_to_fine(ridges, evaluate) -> list[dict]:
    """The table of every second ridge, from the least on, and then of those beside the best of these.

    evaluate : a list of ridges to the rows of a table; a ridge without a solution has none. As the ridge grows, bias
    takes over from variance and the held-out error falls, then rises: the least of the grid is beside the coarse one.
    """
    ridges = sorted(ridges)
    table, rest = evaluate(ridges[::2]), ridges[1::2]
    if table:
        best = ridges.index(least_error(table))
        rest = [ridges[i] for i in (best - 1, best + 1) if 0 <= i < len(ridges)]
    return sorted(table + evaluate(rest), key=lambda row: row["ridge"])


def fit(
    blocks,
    rows: MemoryRows | FileRows,
    labels: torch.Tensor,
    n_classes: int,
    kernel: str,
    ridge: float,
    kept: MemoryRows | FileRows | None = None,
    factor: MemoryRows | FileRows | None = None,
    exact: bool = False,
    refinements: int = 2,
) -> Machine:
    """The machine of an n x n kernel that `kernel_storage.form` has written into `rows`.

    Parameters
    ----------
    blocks : the kernel's blocks, for its diagonal and, with `exact`, its tiles, which are then not to be interpolated.
    rows : K, replaced by its factor, where `factor` is None and it is in memory.
    labels : (n,) in 0 .. n_classes - 1.
    ridge : a multiple of the mean diagonal.
    kept : K as it was, for the refinement; without it and without `exact` the weights are those of the float32 factor.
    exact : the refinement's residuals have every tile computed anew in float64, at the cost of as many formations of K.
    refinements : steps of iterative refinement, at most; they end where they no longer halve the residual.

    Raises
    ------
    ValueError : a ridge below 0. NotPositiveDefinite : see there.
    """
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"a ridge must be 0 or positive, and finite, got {ridge}")
    noise = ridge * mean_diagonal(blocks, kernel)
    targets, mean = one_hot_targets(labels, n_classes)
    factor = factorise(rows, noise, factor)
    weights, residual = torch.zeros_like(targets), targets
    size = targets.norm(dim=0).clamp_min(1e-300)
    for step in range(1 + refinements):
        change = backward(factor, forward(factor, residual))
        new = weights + change
        if not exact and kept is None:
            weights, error = new, math.nan
            break
        K_new = exact_product(blocks, kernel, new) if exact else product(kept, new)
        left = targets - K_new - noise * new
        if step and left.norm() > residual.norm() / 2:
            break
        weights, residual = new, left
        error = (left.norm(dim=0) / size).max().item()
    n, c = targets.shape
    fitted = (targets * weights).sum().item()
    scale2 = fitted / (n * c)
    evidence = -c * (math.log(2 * math.pi * scale2) + 1 + log_determinant(factor) / n) / 2
    return Machine(kernel, ridge, noise, weights, mean, scale2, error, evidence, factor)


def leave_one_out(machine: Machine) -> torch.Tensor:
    """Errors (n, c) of each training sample's targets on their prediction from all others: weights over diag K^-1.

    (Rasmussen & Williams, section 5.4.2; the mean of the targets is that of all.) As dear as the factorisation.
    """
    return machine.weights / inverse_diagonal(machine.factor)[:, None]
