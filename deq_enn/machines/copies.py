"""This file looks for samples that are the same, or nearly the same.

Of two samples that are the same, a kernel machine without a ridge can fit only one, and a sample that is left out is
given away by its copies: new samples have none among those of the training set.
"""

import math

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from deq_enn.utils.random import generator

NEAR = 0.05  # share of two samples' usual distance, below which they are near copies
FAR = 0.15  # share of it, up to which neighbours are looked for
# neighbours within FAR, from which on a sample has no near copies. In few dimensions samples have neighbours at all
# distances, and so do new ones; of a near copy there are few between NEAR and FAR.
NEIGHBOURS = 20
DIMENSIONS = 8  # dimensions of the projection in which neighbours are looked for
_SCALE = 1000  # samples that the usual distance is estimated on
_CHUNK = 2**26  # entries of the differences that are in memory at once


def first_copies(X: torch.Tensor) -> torch.Tensor:
    """Returns for each row of X (n, p) the index of the first row that equals it: its own, if there is none before."""
    rows = X.contiguous().numpy()
    candidates: dict[int, list[int]] = {}  # from the hash of a row to the first rows with that hash
    first = np.arange(len(rows))
    for i, row in enumerate(rows):
        earlier = candidates.setdefault(hash((row + 0).tobytes()), [])  # -0 + 0 is 0
        first[i] = next((j for j in earlier if np.array_equal(rows[j], row)), i)
        if first[i] == i:
            earlier.append(i)
    return torch.from_numpy(first)


def find_duplicate(X: torch.Tensor) -> tuple[int, int] | None:
    """Returns the first row of X (n, p) that an earlier one equals, as (earlier, row), or None; O(n p)."""
    first = first_copies(X)
    repeated = (first != torch.arange(len(X))).nonzero()[:, 0]
    return (int(first[repeated[0]]), int(repeated[0])) if len(repeated) else None


def copies(X: torch.Tensor) -> torch.Tensor:
    """Returns for each row of X (n, p) the index of the first row that it duplicates, or nearly so; else its own."""
    same = first_copies(X)
    kept = same.unique()
    near = kept[_near_copies(X, kept)]  # for each of the kept
    return near[torch.searchsorted(kept, same)]


def _near_copies(X, kept):
    """Returns for each of the rows `kept` of X the place of the first of the kept that it is a near copy of."""
    n, p = len(kept), X.shape[1]
    own = torch.arange(n)
    if n <= NEIGHBOURS:
        return own
    some = X[kept[:_SCALE]].double()
    unit = math.sqrt(2 * (some - some.mean(0)).square().sum(1).mean().item())  # the usual distance of two samples
    if not unit:
        return own
    i, j = _lonely_pairs(X[kept], unit)
    edges = [np.empty((2, 0), int)]
    for part in np.array_split(np.stack([i, j])[:, i < j], max(1, len(i) * p // _CHUNK + 1), axis=1):
        apart = (X[kept[part[0]]] - X[kept[part[1]]]).norm(dim=1).numpy()
        edges.append(part[:, apart < NEAR * unit])
    i, j = np.concatenate(edges, 1)
    _, component = connected_components(coo_array((np.ones(len(i)), (i, j)), (n, n)), directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return torch.from_numpy(first[inverse])


def _lonely_pairs(rows, unit):
    """Returns the places of pairs that may be near copies: both index arrays, of samples with few other neighbours.

    A random projection keeps distances on the average, so that neighbours are found there and measured afterwards.
    """
    projection = torch.randn(rows.shape[1], DIMENSIONS, generator=generator("near copies"))
    shadow = (rows @ projection / math.sqrt(DIMENSIONS)).numpy()
    distance, index = KDTree(shadow).query(
        shadow, NEIGHBOURS + 1, distance_upper_bound=FAR * unit, workers=torch.get_num_threads()
    )
    near, within = (np.sum(distance < limit, axis=1) - 1 for limit in (NEAR * unit, np.inf))  # the sample itself apart
    lonely = (within < NEIGHBOURS) & (within <= 3 * near)
    row, column = (lonely[:, None] & (distance < 2 * NEAR * unit)).nonzero()
    return row, np.asarray(index)[row, column]
