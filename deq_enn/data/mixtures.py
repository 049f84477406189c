"""Gaussian mixtures are drawn here, from any means and covariances and for the presets of the command line."""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import one_hot

from deq_enn.data.images import DataError
from deq_enn.names import PRESETS
from deq_enn.theory.mixture import MixtureStatistics
from deq_enn.utils.random import generator as make_generator

# The numbers of the preset `mixed` are such that ten epochs of SGD at the default flags end between 70% and 97%.
MIXED_P, MIXED_CLASSES, MIXED_TRAIN, MIXED_TEST = 200, 4, 6000, 4000
MIXED_MEAN = 3.0  # the entry of mu_a at coordinate a
MIXED_TRACE = 6.0  # sqrt(p) times the step of tr C_a / p from class to class
MIXED_SHAPE = 0.5  # relative spread of the eigenvalues of C_a, whose large half differs by class


Samples = tuple[torch.Tensor, torch.Tensor, MixtureStatistics]  # X, y, and the statistics of the theory
Covariance = torch.Tensor | Sequence | float  # c for c I, a diagonal, or a matrix


def gaussian_mixture(
    means: torch.Tensor | Sequence[Sequence[float]],
    covariances: Sequence[Covariance],
    counts: Sequence[int],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float64,
) -> Samples:
    """Draws samples of a K-class mixture, sqrt(p) x ~ N(mu_a, C_a), with the statistics of the theory beside them.

    Parameters
    ----------
    means : (K, p), the mu_a.
    covariances : K of them, each a number c (for c I), a diagonal (p,) or a matrix (p, p).
    counts : K numbers of samples. The samples come sorted by class.
    generator : torch.Generator

    Returns
    -------
    X (n, p) of the dtype, y (n,) int64, MixtureStatistics (float64). Its tau_0 is sqrt(tr C / p).

    References
    ----------
    Ling et al., ICML 2024, Section 2: the data model and the definitions of J, t, T, psi and tau_0.
    """
    means = torch.as_tensor(means, dtype=torch.float64)
    p, n = means.shape[1], sum(counts)
    Cs = [torch.as_tensor(C, dtype=torch.float64) for C in covariances]
    if not len(means) == len(Cs) == len(counts):
        raise DataError(
            f"{len(means)} means, {len(Cs)} covariances and {len(counts)} counts: give one of each per class"
        )
    X, psi = torch.empty(n, p, dtype=dtype), torch.empty(n, dtype=torch.float64)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts)))
    for a, (mu, C, rows) in enumerate(zip(means, Cs, torch.arange(n).split(list(counts)))):
        z = _coloured(torch.randn(len(rows), p, generator=generator, dtype=torch.float64), C, a)
        psi[rows] = (z.square().sum(1) - _trace(C, p)) / p
        X[rows] = ((z + mu) / math.sqrt(p)).to(dtype)
    weights = torch.tensor(list(counts), dtype=torch.float64) / n
    traces = torch.tensor([_trace(C, p) for C in Cs], dtype=torch.float64)
    mean_trace = (weights @ traces).item()
    T = torch.tensor([[_trace_of_product(C, D, p) / p for D in Cs] for C in Cs], dtype=torch.float64)
    J = one_hot(y, len(counts)).double()
    return X, y, MixtureStatistics(J, (traces - mean_trace) / math.sqrt(p), T, psi, math.sqrt(mean_trace / p))


def _coloured(z: torch.Tensor, C: torch.Tensor, label: int) -> torch.Tensor:
    """Gives standard normal rows z (n, p) the covariance C of a class; DataError where it is none."""
    p = z.shape[1]
    if C.shape not in ((), (p,), (p, p)):
        raise DataError(
            f"the covariance of class {label} has shape {tuple(C.shape)}: give a number, ({p},) or ({p}, {p})"
        )
    if C.ndim < 2:
        if not (C >= 0).all():
            raise DataError(f"the covariance of class {label} has a negative entry")
        return z * C.sqrt()
    root, failed = torch.linalg.cholesky_ex(C)
    if failed or not torch.allclose(C, C.T):
        raise DataError(f"the covariance of class {label} is not symmetric positive definite")
    return z @ root.T


def _trace(C: torch.Tensor, p: int) -> float:
    return (C * p if C.ndim == 0 else C.sum() if C.ndim == 1 else C.trace()).item()


def _trace_of_product(C: torch.Tensor, D: torch.Tensor, p: int) -> float:
    if C.ndim == D.ndim == 2:
        return (C * D).sum().item()  # tr(C D) of symmetric matrices
    C, D = (M.diagonal() if M.ndim == 2 else M.expand(p) for M in (C, D))
    return (C @ D).item()


def two_class(n: int, generator: torch.Generator, p: int | None = None) -> Samples:
    """Draws the paper's mixture: mu_a has an 8 at coordinate a, C_a = (1 + 8(a - 1)/sqrt(p)) I, a = 1, 2; p = 0.8 n."""
    p = p or round(0.8 * n)
    return gaussian_mixture(8 * torch.eye(2, p), [1.0, 1 + 8 / math.sqrt(p)], [n - n // 2, n // 2], generator)


def mixed(n: int, generator: torch.Generator) -> Samples:
    """Draws from K classes that differ in the mean, and in the trace and the shape of the covariance."""
    K, p = MIXED_CLASSES, MIXED_P
    coordinates = torch.arange(p)
    covariances = []
    for a in range(K):
        sign = torch.where(coordinates >> a & 1 == 0, 1.0, -1.0).double()  # half of the coordinates, by bit a
        covariances.append((1 + MIXED_TRACE * (a - (K - 1) / 2) / math.sqrt(p)) * (1 + MIXED_SHAPE * sign))
    counts = [n // K + (a < n % K) for a in range(K)]
    return gaussian_mixture(MIXED_MEAN * torch.eye(K, p), covariances, counts, generator)


# name: (draw n samples from a generator, size of the training set, size of the test set)
GMM_PRESETS: dict[str, tuple[Callable[[int, torch.Generator], Samples], int, int]] = {
    "mixed": (mixed, MIXED_TRAIN, MIXED_TEST),
    "two_class": (lambda n, generator: two_class(n, generator, p=1600), 2000, 2000),
}
GMM_PRESETS = {name: GMM_PRESETS[name] for name in PRESETS}  # those that the command line offers


def draw_preset(
    preset: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, MixtureStatistics]:
    """Draws the training set and the test set of a preset, with the statistics of the training set.

    Raises
    ------
    DataError : there is no preset of that name.
    """
    if preset not in GMM_PRESETS:
        raise DataError(f"unknown mixture {preset!r}: choose one of {', '.join(GMM_PRESETS)}")
    draw, n, n_test = GMM_PRESETS[preset]
    with torch.device("cpu"):  # of the generators, whatever torch's default is
        X, y, statistics = draw(n, make_generator("gmm", preset, "train", seed))
        X_test, y_test, _ = draw(n_test, make_generator("gmm", preset, "test", seed))
    return X, y, X_test, y_test, statistics
