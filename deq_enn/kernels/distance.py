"""How far two kernel matrices are from one another, and how a kernel is aligned with labels."""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.sparse.linalg import eigsh


def spectral_norm(M):
    """Largest |eigenvalue| of a symmetric matrix, by Lanczos, to a relative 1e-4."""
    start = np.ones(len(M))  # fixed, so that the same matrix gives the same digits
    return abs(eigsh(M.numpy(), k=1, tol=1e-4, v0=start, return_eigenvectors=False)[0])


def relative_error(M, other):
    return float(spectral_norm(M - other) / spectral_norm(M))


def least_distance(M, other):
    """min_c |M - c other|/|M| in spectral norm, and its c, to 1e-4 of |M|."""
    norm, unit = spectral_norm(M), spectral_norm(M) / spectral_norm(other)
    # convex in c, and above c = 2 unit larger than at 0
    found = minimize_scalar(
        lambda c: spectral_norm(M - c * other), bounds=(0, 2 * unit), method="bounded", options=dict(xatol=1e-4 * unit)
    )
    return float(found.fun / norm), float(found.x)


def label_alignment(K: torch.Tensor, targets: torch.Tensor) -> float:
    """The share of the centred one-hot targets (n, c) that lies in the span of the c leading eigenvectors of K (n, n).

    From 0 to 1; of random directions c/n. Rows and columns of K are centred as the targets are.
    """
    centred = K - K.mean(0) - K.mean(1)[:, None] + K.mean()
    c = min(targets.shape[1], len(K) - 1)
    _, vectors = eigsh(centred.numpy(), k=c, v0=np.linspace(1, 2, len(K)))
    return float(((vectors.T @ targets.numpy()) ** 2).sum() / targets.square().sum().item())
