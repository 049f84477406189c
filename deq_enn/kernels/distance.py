"""This file measures how far two kernel matrices are from one another, and how a kernel is aligned with labels."""

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import eigsh

from deq_enn.theory.brackets import least_between

_ACCURACY = 1e-4  # relative error of norms and distances


def spectral_norm(M: torch.Tensor) -> float:
    """Returns the largest |eigenvalue| of a symmetric matrix, by Lanczos, to a relative 1e-4."""
    if len(M) == 1 or not M.any():
        return M.abs().max().item()
    start = np.ones(len(M))  # fixed, so that the same matrix gives the same digits
    if not M.sum(1).any():  # Lanczos' method cannot begin with a vector that the matrix takes to 0
        start = np.linspace(1, 2, len(M))
    options: dict[str, Any] = dict(k=1, tol=_ACCURACY, v0=start, return_eigenvectors=False)
    return float(abs(eigsh(M.cpu().numpy(), **options)[0]))


def relative_error(M: torch.Tensor, other: torch.Tensor) -> float:
    """Returns |M - other|/|M| in spectral norm; 0 where the two are the same, also if both are 0."""
    distance = spectral_norm(M - other)
    return float(distance / spectral_norm(M)) if distance else 0.0


def least_distance(M: torch.Tensor, other: torch.Tensor) -> tuple[float, float]:
    """Returns min_c |M - c other|/|M| in spectral norm, and its c, to 1e-4 of |M|."""
    norm, unit = spectral_norm(M), spectral_norm(M) / spectral_norm(other)
    # the distance is convex in c, and above c = 2 unit larger than at 0
    distance, c = least_between(lambda c: spectral_norm(M - c * other), 0, 2 * unit, xtol=_ACCURACY * unit)
    return float(distance / norm), c


def label_alignment(K: torch.Tensor, targets: torch.Tensor) -> float:
    """Returns the share of the centred one-hot targets (n, c) in the span of the c leading eigenvectors of K (n, n).

    It lies between 0 and 1, and is c/n for random directions. Rows and columns of K are centred as the targets are.
    """
    centred = K - K.mean(0) - K.mean(1)[:, None] + K.mean()
    c = min(targets.shape[1], len(K) - 1)
    targets = targets.cpu()
    _, vectors = eigsh(centred.cpu().numpy(), k=c, v0=np.linspace(1, 2, len(K)))
    return float(((vectors.T @ targets.numpy()) ** 2).sum() / targets.square().sum().item())
