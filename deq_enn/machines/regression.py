"""A network at infinite width is fitted by ridge regression with its exact kernel, and predicts as a Gaussian process.

There is no learning rate. Targets are one-hot rows minus their mean. With K the kernel of the training samples and
lambda = ridge * mean diagonal,

    weights = (K + lambda I)^-1 Y,      prediction at x: k(x)^T weights + mean

is kernel ridge regression, and the posterior mean of a Gaussian process of covariance s^2 k with noise s^2 lambda, the
same for each class (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapter 2). Its predictive
variance is s^2 (k(x, x) + lambda - k(x)^T (K + lambda I)^-1 k(x)), and the s^2 that makes the training targets most
likely is tr Y^T (K + lambda I)^-1 Y / (n c), in closed form. The ridge is the one number that is chosen: part of the
training samples is taken, and its last fifth is predicted by the others (`choose_ridge`).

The rows of the training set must be in random order, because parts of it are its first rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from deq_enn.kernels.blocks import KernelTiles
from deq_enn.machines.block_rows import BlockRows, Layout, MemoryRows, device_of, exact_product, product, rectangle
from deq_enn.machines.cholesky import (
    NotPositiveDefinite,
    backward,
    factorise,
    forward,
    forward_rows_,
    held_out,
    log_determinant,
)
from deq_enn.machines.ridge_search import Evaluate, Row, downhill, least_error, search_ridges

RIDGES = tuple(10 ** (k / 2) for k in range(-10, 3))  # multiples of the mean diagonal, 1e-5 to 10
STRIDE = 2  # ridges from one coarse one to the next
CHOICE = 8_000  # least number of samples that choose the ridge, of which the last fifth is held out
SHARE = 3  # samples for each that chooses, where this gives more than CHOICE
BATCH = 1024  # test samples at a time


@dataclass(frozen=True)
class Prediction:
    """A prediction has the mean (m, c) of the targets, and the variance (m,) of each of them, noise included.

    Both are on the CPU. The variance is None where the machine has no factor.
    """

    mean: torch.Tensor
    variance: torch.Tensor | None


@dataclass(frozen=True)
class Machine:
    """A machine is fitted: it has weights, and what can be said of it on the training set.

    Attributes
    ----------
    kernel : "ck" or "ntk".
    ridge, noise : lambda as a multiple of the mean diagonal, and itself.
    weights : (n, c) float64. mean : (c,) of the one-hot targets.
    scale2 : s^2, by maximum likelihood.
    residual : |Y - (K + lambda I) weights| / |Y|, the largest over the classes.
    log_evidence : log marginal likelihood of the training targets, for each sample; None without a factor, or
        where all targets are the same.
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
    factor: BlockRows | None = None

    def predict(self, cross: KernelTiles, double: bool = False) -> Prediction:
        """Predicts the samples of the rows of `cross`, kernel blocks made with `other` = test samples.

        double : whether variances are computed in float64, so that they do not depend on the other samples.
        """
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
                parts = forward_rows_(self.factor, values.double() if double else values).split(8192, dim=1)
                explained = sum(part.double().square().sum(1) for part in parts)
                # it is below the noise only by rounding
                variances.append((prior[rows] - explained).clamp_min(0).add(self.noise).mul(self.scale2))
        return Prediction(torch.cat(means).cpu(), torch.cat(variances).cpu() if variances else None)


def one_hot_targets(labels: torch.Tensor, n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the centred one-hot rows (n, c) float64 of labels (n,), and their mean (c,)."""
    targets = torch.nn.functional.one_hot(labels, n_classes).double()
    mean = targets.mean(0)
    return targets - mean, mean


def mean_diagonal(blocks: KernelTiles, kernel: str) -> float:
    """Returns the mean of the kernel between each row's sample and itself, of which ridges are multiples."""
    return blocks.diagonal()[kernel == "ntk"].mean().item()


def default_choice(n: int) -> int:
    """Returns how many samples choose the ridge of n, where nobody says: a third of many, at least CHOICE.

    The best ridge falls with the number of samples, so that few choose it too large for many: on Fashion-MNIST 8,000
    images choose 0.1 for the CK of a ReLU-DEQ, 20,000 choose 0.032, and on all 60,000 this is 0.6 points better.
    """
    return max(CHOICE, n // SHARE)


def choice_size(n: int, size: int) -> tuple[int, int]:
    """Returns how many of n samples choose the ridge, and the index of the first of them that is held out."""
    size = min(n, size)
    return size, size - max(size // 5, 1)


def leading(rows: BlockRows, size: int) -> MemoryRows:
    """Returns the first `size` rows and columns of a kernel, as block rows in memory."""
    part = MemoryRows(Layout(size, rows.layout.height))
    for i in range(part.layout.blocks):
        height, width = part.layout.shape(i)
        part.write(i, rows.read(i)[:height, :width].clone())
    return part


def held_out_errors(part: MemoryRows, targets: torch.Tensor, noise: float, first: int) -> tuple[float, float]:
    """Returns squared error and accuracy on the samples from `first` on, predicted by those before.

    part : their kernel, which stays as it is. targets : (n, c), of `one_hot_targets`.
    """
    Y = targets[: part.layout.n]
    factor = factorise(part.copy(), noise)
    errors, _ = held_out(factor, forward(factor, Y), first)
    right = (Y[first:] - errors).argmax(1) == Y[first:].argmax(1)
    return errors.square().mean().item(), right.double().mean().item()


def search_in_two(ridges: Sequence[float], on: Callable[[int], Evaluate], size: int) -> list[Row]:
    """Returns the rows of the ridges that `size` samples tried, in increasing order; empty where none has a solution.

    Parameters
    ----------
    on : returns what evaluates ridges on the first so many samples. The grid is searched on CHOICE of them at most; if
        `size` is more, these go downhill from the best, so that three ridges or little more have the cost of all.
    """
    ridges, few = sorted(ridges), min(size, CHOICE)
    table = search_ridges(ridges, on(few), STRIDE)
    if table and size > few:
        table = downhill(ridges, least_error(table), on(size))
    return sorted(table, key=lambda row: row["ridge"])


def choose_ridge(
    rows: BlockRows, targets: torch.Tensor, unit: float, ridges: Sequence[float] = RIDGES, size: int | None = None
) -> tuple[float, list[Row]]:
    """Returns the ridge of the least squared error on held-out training samples, and a table of those tried.

    Parameters
    ----------
    rows : block rows of the training kernel, not factorised.
    targets : (n, c), of `one_hot_targets`.
    unit : the mean diagonal, of which ridges are multiples.
    size : only the first so many samples are used, and the last fifth of these is held out; None: `default_choice`.

    Returns
    -------
    (ridge, table), with one {"ridge", "mse", "accuracy"} for each ridge that so many samples tried (`search_in_two`)
    and that float32 can factorise, in increasing order.

    Raises
    ------
    NotPositiveDefinite : float32 can factorise none.
    """
    failures = []

    def on(size):
        size, first = choice_size(len(targets), size)
        part = leading(rows, size)

        def evaluate(some):
            table = []
            for ridge in tqdm(some, desc="ridge", leave=False, disable=None, delay=1):
                try:
                    mse, accuracy = held_out_errors(part, targets, ridge * unit, first)
                except NotPositiveDefinite as error:
                    failures.append(error)
                else:
                    table.append({"ridge": ridge, "mse": mse, "accuracy": accuracy})
            return table

        return evaluate

    table = search_in_two(ridges, on, min(size or default_choice(len(targets)), len(targets)))
    if not table:
        raise failures[-1]
    return least_error(table), table


def fit(
    blocks: KernelTiles,
    rows: BlockRows,
    labels: torch.Tensor,
    n_classes: int,
    kernel: str,
    ridge: float,
    kept: BlockRows | None = None,
    factor: BlockRows | None = None,
    exact: bool = False,
    refinements: int = 2,
) -> Machine:
    """Fits the machine of an n x n kernel that `block_rows.form` has written into `rows`.

    Parameters
    ----------
    blocks : the kernel's blocks, for its diagonal and, with `exact`, its tiles, which must then not be interpolated.
    rows : K; its factor takes its place, where `factor` is None and K is in memory.
    labels : (n,) in 0 .. n_classes - 1.
    ridge : a multiple of the mean diagonal.
    kept : K as it was, for the refinement. Without it and without `exact` the weights are those of the float32 factor.
    exact : whether the refinement computes every tile anew in float64, which costs a formation of K for each step.
    refinements : most steps of iterative refinement; they end once they no longer halve the residual.

    Raises
    ------
    ValueError : a ridge below 0. NotPositiveDefinite : see there.
    """
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"a ridge must be 0 or positive, and finite, got {ridge}")
    noise = ridge * mean_diagonal(blocks, kernel)
    targets, mean = one_hot_targets(labels.to(device_of(blocks)), n_classes)
    factor = factorise(rows, noise, factor)
    weights, residual = torch.zeros_like(targets), targets
    size = targets.norm(dim=0).clamp_min(1e-300)
    for step in range(1 + refinements):
        change = backward(factor, forward(factor, residual))
        new = weights + change
        if exact:
            K_new = exact_product(blocks, kernel, new)
        elif kept is not None:
            K_new = product(kept, new)
        else:
            weights, error = new, math.nan
            break
        left = targets - K_new - noise * new
        if step and left.norm() > residual.norm() / 2:
            break
        weights, residual = new, left
        error = (left.norm(dim=0) / size).max().item()
    n, c = targets.shape
    scale2 = max((targets * weights).sum().item() / (n * c), 0.0)
    evidence = log_evidence(scale2, log_determinant(factor), n, c)
    return Machine(kernel, ridge, noise, weights, mean, scale2, error, evidence, factor)


def log_evidence(scale2: float, log_det: float, n: int, c: int) -> float | None:
    """Returns the log marginal likelihood of n targets of c columns, for each sample.

    It is None at a scale of 0, where it is infinite: all targets are the same, or what is left of them is rounding.

    scale2, log_det : s^2 and log det(K + lambda I), by which the targets have the covariance s^2 (K + lambda I).
    """
    return -c * (math.log(2 * math.pi * scale2) + 1 + log_det / n) / 2 if scale2 else None
