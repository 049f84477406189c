"""A matrix that is held as block rows is factorised by Cholesky's method, and solves and predicts by its factor.

LAPACK's potrf wants the whole square in memory and, with 32-bit indices, fewer than 2^31 entries. Here one block row of
L is made after the other from those above it ("left-looking"). Where the rows are in memory, this is done in place.
Where they are on disk, one block row is in memory and one is being read:

    L_ij = (K_ij - sum_{k<j} L_ik L_jk^T) L_jj^-T,   j < i;      L_ii = chol(K_ii - sum_{k<i} L_ik L_ik^T)

Nearly all of the time goes into products, at the machine's float32 rate.

The rows that come last are predicted by those before them at no further cost. With L = [[L_TT, 0], [L_VT, L_VV]] and
L z = y, the prediction of y_V from y_T is L_VT z_T, its error L_VV z_V, and its predictive covariance, noise
included, L_VV L_VV^T (block Gaussian elimination).
"""

import math

import torch
from tqdm import tqdm

from deq_enn.machines.block_rows import BlockRows, FileRows

ROUNDING = 32 * torch.finfo(torch.float32).eps  # share of its diagonal entry below which a pivot is rounding


class NotPositiveDefinite(ValueError):
    """The matrix with this ridge is not positive definite, to float32 rounding."""


def factorise(rows: BlockRows, ridge: float, factor: BlockRows | None = None) -> BlockRows:
    """Returns L with L L^T = K + ridge I, by default in the place of K.

    Parameters
    ----------
    rows : K. ridge : absolute. factor : where L goes; block rows that it already has are not made again.

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


def forward(factor: BlockRows, Y: torch.Tensor) -> torch.Tensor:
    """Returns L^-1 Y for Y (n, c), in the dtype of Y."""
    Z = Y.clone()
    for i in range(factor.layout.blocks):
        r, L = factor.layout.rows(i), factor.read(i)
        Z[r] -= (L[:, : r.start] @ Z[: r.start].float()).to(Z)
        Z[r] = torch.linalg.solve_triangular(L[:, r].to(Z), Z[r], upper=False)
    return Z


def backward(factor: BlockRows, Z: torch.Tensor) -> torch.Tensor:
    """Returns L^-T Z for Z (n, c), in the dtype of Z."""
    X = Z.clone()
    for i in reversed(range(factor.layout.blocks)):
        r, L = factor.layout.rows(i), factor.read(i)
        X[r] = torch.linalg.solve_triangular(L[:, r].to(X).T, X[r], upper=True)
        X[: r.start] -= (L[:, : r.start].T @ X[r].float()).to(X)
    return X


def forward_rows_(factor: BlockRows, V: torch.Tensor) -> torch.Tensor:
    """Puts V L^-T in the place of V (t, n) float32 or float64, so that each row v becomes L^-1 v."""
    for i in range(factor.layout.blocks):
        r, L = factor.layout.rows(i), factor.read(i).to(V.dtype)
        if i:
            V[:, r].addmm_(V[:, : r.start], L[:, : r.start].T, alpha=-1)
        V[:, r] = torch.linalg.solve_triangular(L[:, r].T, V[:, r], upper=True, left=False)
    return V


def log_determinant(factor: BlockRows) -> float:
    """Returns log det(L L^T)."""
    layout = factor.layout
    diagonals = (factor.read(i)[:, layout.rows(i)].diagonal() for i in range(layout.blocks))
    return 2 * math.fsum(diagonal.double().log().sum().item() for diagonal in diagonals)


def held_out(factor: BlockRows, Z: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicts the rows from `first` on by those before; returns errors (n - first, c) and variances (n - first,).

    Z = L^-1 Y (n, c). The variances include the noise, and are those of the kernel as it is, at scale 1.
    """
    errors, variances = [], []
    for i in range(first // factor.layout.height, factor.layout.blocks):
        r = factor.layout.rows(i)
        L = factor.read(i)[max(first - r.start, 0) :, first:].double()
        errors.append(L @ Z[first : r.stop].double())
        variances.append(L.square().sum(1))
    return torch.cat(errors), torch.cat(variances)
