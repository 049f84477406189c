"""Readouts are solved here whose ridge is so small that float32 features would drown it in their rounding.

In few dimensions the features of a wide network are nearly dependent, and the best ridge may be smaller than 1e-8 of
their mean squared norm. F^T F squares the condition of the features F. So here the features are float64, and their
singular values F = U S V^T give the readout for every ridge lambda:

    w = V S/(S^2 + lambda) U^T Y,     H = F (F^T F + lambda I)^-1 F^T = U S^2/(S^2 + lambda) U^T.

`leave_one_out.from_features` does the same for larger ridges with less work. A ridge that it chooses below LEAST is the
sign to come here (`too_small`).

Reference: Golub & Van Loan, Matrix Computations, 4th edition, sections 5.3 and 6.1.
"""

import math

import torch

from deq_enn.machines.leave_one_out import Directions, LeftOut, Targets
from deq_enn.machines.readout import Network, Readout
from deq_enn.machines.regression import log_evidence
from deq_enn.machines.ridge_search import Row, least_error
from deq_enn.utils.deadline import check

# ridges, multiples of the features' mean squared norm, 1e-18 to 100. The smallest is that of an error of 1e-9 in each
# feature, to which equilibria are solved for here
RIDGES = tuple(10 ** (k / 2) for k in range(-36, 5))
LEAST = 1e-6  # ridge below which an error of 1e-4 in float32 features may count as much as the ridge
CLEAR = 100  # times LEAST, above which the faintest direction is clear of it
MOST_BYTES = 2e8  # bytes that the float64 features may take; the factors take as many again
BATCH = 512  # samples whose features are computed at once, so that they stay in the cache


def too_small(ridge: float, samples: int, width: int, faintest: float = 0.0) -> bool:
    """Tells whether a readout that took this ridge is to be solved again here, and so many features fit in memory.

    faintest : of `leave_one_out.LeftOut`. Where even the faintest direction is far above LEAST, so small a ridge means
        that none is needed, and not that features are nearly dependent.
    """
    return ridge < LEAST and faintest < CLEAR * LEAST and 8.0 * samples * width <= MOST_BYTES


def leave_one_out(F: torch.Tensor, targets: Targets) -> LeftOut:
    """Predicts each sample by the readout of the others, as `leave_one_out.from_features` does.

    F : (n, m) float64 features.
    """
    U, S, _ = _factors(F)
    return _directions(F, targets, U, S).left_out(targets, RIDGES)


def solve_precisely(
    model: Network, X: torch.Tensor, labels: torch.Tensor, n_classes: int, copies: torch.Tensor | None = None
) -> tuple[Readout, list[Row]]:
    """Solves the readout of float64 features, with the ridge that best predicts each sample by the others.

    Parameters
    ----------
    model : with float64 weights. X, labels : (n, p) float64 and (n,) in 0 .. n_classes - 1.
    copies : which samples are left out together, as `leave_one_out.Targets` takes them.

    Returns
    -------
    (readout, table), as of `readout.solve`.
    """
    targets = Targets(labels, n_classes, copies, model.readout.weight.device)
    F = features(model, X)
    U, S, V = _factors(F)
    directions = _directions(F, targets, U, S)
    table = directions.table(targets, RIDGES)
    ridge, Y = least_error(table), targets.Y
    n, m, noise = *F.shape, ridge * directions.unit
    weights = V @ ((S / (S.square() + noise))[:, None] * directions.moment)
    c, (_, root) = Y.shape[1], torch.linalg.qr(_root_of_sum(S, V, noise))
    root = (root * root.diagonal().sign()[:, None]).T
    scale2 = _quadratic_form(Y, U, S, noise) / (n * c)
    log_det = 2 * root.diagonal().log().sum().item() + (n - m) * math.log(noise)
    return Readout(ridge, noise, weights, targets.mean, scale2, log_evidence(scale2, log_det, n, c), root), table


def features(model: Network, X: torch.Tensor) -> torch.Tensor:
    """Returns the features (n, m) of samples X (n, p), computed in the dtype and on the device of the weights."""
    rows = []
    with torch.no_grad():
        for part in X.split(BATCH):
            check()
            rows.append(model.features(part.to(model.readout.weight)))
    return torch.cat(rows)


def _directions(F, targets, U, S):
    """Returns the directions of the left singular vectors U and singular values S of F."""
    unit = F.square().sum().item() / len(F) or 1.0
    return Directions(U.__getitem__, S.square(), U.T @ targets.Y, unit, orthonormal=True, complete=len(S) == len(F))


def _factors(F):
    check()
    U, S, Vh = torch.linalg.svd(F, full_matrices=False)
    return U, S, Vh.T


def _quadratic_form(Y, U, S, noise):
    """Returns the trace of Y^T (F F^T + noise I)^-1 Y, as a sum of positive terms.

    With more samples than features there are directions beside U, in which F F^T is 0.
    """
    known = U.T @ Y
    total = (known.square() / (S.square() + noise)[:, None]).sum()
    if len(S) < len(Y):
        total = total + (Y - U @ known).square().sum() / noise
    return total.item()


def _root_of_sum(S, V, noise):
    """Returns an R with R^T R = F^T F + noise I, of the singular values (k,) and right vectors (m, k) of F (n, m).

    With fewer samples than features there are directions beside V, of which the ridge is all that is known.
    """
    m, k = V.shape
    known = (S.square() + noise).sqrt()[:, None] * V.T
    if k == m:
        return known
    beside = torch.eye(m, dtype=V.dtype, device=V.device) - V @ V.T
    return torch.cat([known, math.sqrt(noise) * beside])
