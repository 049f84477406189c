"""Cholesky factorisation of a matrix held as block rows, and what is read off the factor.

LAPACK's potrf wants the whole square in memory and, with 32-bit indices, fewer than 2^31 entries. Here one block row of
L is made after the other from those above it ("left-looking"), in place where the rows are in memory, with one block
row in memory and one being read where they are on disk:

    L_ij = (K_ij - sum_{k<j} L_ik L_jk^T) L_jj^-T,   j < i;      L_ii = chol(K_ii - sum_{k<i} L_ik L_ik^T)

Nearly all of it is the products, at the machine's rate of float32.

The rows that come last are predicted by those before them at no further cost. With L = [[L_TT, 0], [L_VT, L_VV]] and
L z = y, the prediction of y_V from y_T is L_VT z_T, its error L_VV z_V, and its predictive covariance, noise
included, L_VV L_VV^T (block Gaussian elimination).
"""

import math

import torch
from tqdm import tqdm

from deq_enn.machines.block_rows import FileRows, MemoryRows

ROUNDING = 32 * torch.finfo(torch.float32).eps  # of a pivot, relative to the diagonal entry that it is left of


class NotPositiveDefinite(ValueError):
    """The matrix with this ridge is not positive definite, to float32 rounding."""


def factorise(rows: MemoryRows | FileRows, ridge: float, factor: MemoryRows | FileRows | None = None):
    """L with L L^T = K + ridge I, by default in the place of K.

    Parameters
    ----------
    rows : K. ridge : absolute. factor : where L goes; block rows that it has already are not made again.

    Raises
    ------
    NotPositiveDefinite : with the row at which the factorisation broke down.
    """
    factor = rows if factor is None else factor
    layout = rows.layout
    with tqdm(total=layout.n**3, desc="factorisation", unit_scale=True, leave=False, disable=None, delay=1) as bar:
        for i in range(layout.blocks):
            span = layout.rows(i)
            if factor is rows or not factor.has(i):
                A = rows.read(i)
                own = A[:, span.start :].diagonal().clone()
                for j in range(i):
                    c, L = layout.rows(j), factor.read(j)
                    if j:
                        A[:, c].addmm_(A[:, : c.start], L[:, : c.start].T, alpha=-1)
                    A[:, c] = torch.linalg.solve_triangular(L[:, c].T, A[:, c], upper=True, left=False)
                D = A[:, span.start :]
                if i:
                    D.addmm_(A[:, : span.start], A[:, : span.start].T, alpha=-1)
                D.diagonal().add_(ridge)
                L, info = torch.linalg.cholesky_ex(D)
                lost = ~(L.diagonal().square() > ROUNDING * own)  # NaN too
                if info or lost.any():
                    row = span.start + (int(info) - 1 if info else int(lost.nonzero()[0]))
                    raise NotPositiveDefinite(
                        f"the kernel with ridge {ridge:.3g} is not positive definite at sample {row} to float32 "
                        "rounding: it is a duplicate of another sample, or nearly; take a larger --ridge"
                    )
                D.copy_(L)
                if factor is not rows or isinstance(factor, FileRows):
                    factor.write(i, A)
            bar.update(span.stop**3 - span.start**3)
    return factor


def forward(factor, Y: torch.Tensor) -> torch.Tensor:
    """L^-1 Y for Y (n, c), in the dtype of Y."""
    Z = Y.clone()
    for i in range(factor.layout.blocks):
        r, L = factor.layout.rows(i), factor.read(i)
        Z[r] -= (L[:, : r.start] @ Z[: r.start].float()).to(Z)
        Z[r] = torch.linalg.solve_triangular(L[:, r].to(Z), Z[r], upper=False)
    return Z


def backward(factor, Z: torch.Tensor) -> torch.Tensor:
    """L^-T Z for Z (n, c), in the dtype of Z."""
    X = Z.clone()
    for i in reversed(range(factor.layout.blocks)):
        r, L = factor.layout.rows(i), factor.read(i)
        X[r] = torch.linalg.solve_triangular(L[:, r].to(X).T, X[r], upper=True)
        X[: r.start] -= (L[:, : r.start].T @ X[r].float()).to(X)
    return X


def forward_rows_(factor, V: torch.Tensor) -> torch.Tensor:
    """V L^-T in the place of V (t, n) float32: each row v becomes L^-1 v."""
    for i in range(factor.layout.blocks):
        r, L = factor.layout.rows(i), factor.read(i)
        if i:
            V[:, r].addmm_(V[:, : r.start], L[:, : r.start].T, alpha=-1)
        V[:, r] = torch.linalg.solve_triangular(L[:, r].T, V[:, r], upper=True, left=False)
    return V


def log_determinant(factor) -> float:
    """log det(L L^T)."""
    layout = factor.layout
    diagonals = (factor.read(i)[:, layout.rows(i)].diagonal() for i in range(layout.blocks))
    return 2 * math.fsum(diagonal.double().log().sum().item() for diagonal in diagonals)


def held_out(factor, Z: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows from `first` on predicted by those before: errors (n - first, c), and variances (n - first,) with the noise.

    Z = L^-1 Y (n, c). The variances are those of a kernel taken as it is, at scale 1.
    """
    errors, variances = [], []
    for i in range(first // factor.layout.height, factor.layout.blocks):
        r = factor.layout.rows(i)
        L = factor.read(i)[max(first - r.start, 0) :, first:].double()
        errors.append(L @ Z[first : r.stop].double())
        variances.append(L.square().sum(1))
    return torch.cat(errors), torch.cat(variances)


def inverse_diagonal(factor) -> torch.Tensor:
    """Diagonal (n,) of (L L^T)^-1, as the squared norms of the columns of L^-1; as dear as the factorisation."""
    layout, out = factor.layout, torch.zeros(factor.layout.n, dtype=torch.float64)
    for j in tqdm(range(layout.blocks), desc="leave-one-out", leave=False, disable=None, delay=1):
        c = layout.rows(j)
        W = torch.zeros(layout.n - c.start, c.stop - c.start)  # columns c of L^-1, from row c.start on
        W[: c.stop - c.start].fill_diagonal_(1)
        for i in range(j, layout.blocks):
            r, L = layout.rows(i), factor.read(i)
            local = slice(r.start - c.start, r.stop - c.start)
            if i > j:
                W[local].addmm_(L[:, c.start : r.start], W[: local.start], alpha=-1)
            W[local] = torch.linalg.solve_triangular(L[:, r], W[local], upper=False)
        out[c] = W.double().square().sum(0)
    return out
