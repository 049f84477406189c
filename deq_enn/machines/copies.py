"""This file looks for samples that are the same, or nearly the same.

Of two samples that are the same, a kernel machine without a ridge can fit only one. And a sample that is left out is
given away by its copies. Where samples were copied, or augmented, new samples have no copies among those of the
training set, and copies are left out together. Where rows are of few attributes with few values, a new sample is as
likely to be a copy as an old one, and each is left out alone. `repeated` tells from the data which it is.
"""

import math
from typing import NamedTuple

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
RARE = 0.01  # share of samples with a copy, below which it does not matter whether new samples have one
MANY = 10  # samples for each different row, from which on the rows count as all that there are
SHARED = 0.5  # share of the different rows whose value in a column others have too, above which the column is discrete
NEIGHBOUR = 4  # columns in which a row and its nearest other one differ at most: two attributes, one-hot
EVEN = 0.5  # share of the variance of independent draws, below which the numbers of copies are too even for chance
_LOOKED_AT = 200, 2000  # different rows whose nearest other row is looked for, and among how many
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
    repeated = (first != torch.arange(len(X)).to(first)).nonzero()[:, 0]
    return (int(first[repeated[0]]), int(repeated[0])) if len(repeated) else None


def copies(X: torch.Tensor) -> torch.Tensor:
    """Returns for each row of X (n, p) the index of the first row that it duplicates, or nearly so; else its own."""
    same = first_copies(X)
    kept = same.unique()
    near = kept[_near_copies(X, kept)]  # for each of the kept
    return near[torch.searchsorted(kept, same)]


class Repeated(NamedTuple):
    """Which samples are copies, and which are therefore left out together.

    first : (n,) of `copies`.
    left_out : (n,) integers, the same for samples that are left out together.
    samples : number of those that have a copy or near copy.
    recur : whether new samples will be copies as well.
    """

    first: torch.Tensor
    left_out: torch.Tensor
    samples: int
    recur: bool


def repeated(X: torch.Tensor) -> Repeated:
    """Returns which rows of X (n, p) are copies, and whether new samples will be copies of them too."""
    first, same = copies(X), first_copies(X)
    recur = _recur(X, same)
    size = torch.bincount(same if recur else first, minlength=len(X))
    samples = int(size[size > 1].sum())
    return Repeated(first, torch.arange(len(X)).to(first) if recur else first, samples, recur)


def _recur(X, same):
    """Tells whether rows of which `same` is the first copy were drawn from few possible ones, rather than copied.

    The numbers of copies must vary as those of independent draws do. Then either there are many samples for each
    different row. Or no column tells rows apart by a value of its own, and rows differ from others in few columns:
    where a row comes twice by chance, one that differs in one attribute comes as well.
    """
    kept, count = same.unique(return_counts=True)
    if count[count > 1].sum() < RARE * len(X) or len(kept) < 2 or _too_even(count.double()):
        return False
    if len(X) >= MANY * len(kept):
        return True
    order = torch.randperm(len(kept), generator=generator("different rows"), device="cpu")[: _LOOKED_AT[1]]
    rows, varied = X[kept[order]], count[order] > 1
    rows = rows[:, (rows != rows[0]).any(0)]
    if min(_shared(column) for column in rows.T) < SHARED:
        return False
    nearest = []
    for i in varied.nonzero()[:, 0][: _LOOKED_AT[0]].tolist():
        differing = (rows != rows[i]).sum(1)
        differing[i] = rows.shape[1] + 1
        nearest.append(int(differing.min()))
    return float(np.median(nearest)) <= NEIGHBOUR


def _too_even(count):
    """Tells whether numbers of copies (rows,) vary much less than Poisson ones of the same mean that are not zero."""
    mean = count.mean().item()
    if mean <= 1:
        return True
    rate = mean  # of the Poisson law, whose mean without the zeros is rate/(1 - exp(-rate)); Newton's method
    for _ in range(60):
        rate -= (rate + mean * math.expm1(-rate)) / (1 - mean * math.exp(-rate))
    return count.var(correction=0).item() < EVEN * mean * (1 + rate - mean)


def _shared(column):
    """The share of entries whose value others have too."""
    _, inverse, count = column.unique(return_inverse=True, return_counts=True)
    return (count[inverse] > 1).double().mean().item()


def _near_copies(X, kept):
    """Returns for each of the rows `kept` of X the place of the first of the kept that it is a near copy of."""
    n, p = len(kept), X.shape[1]
    own = torch.arange(n).to(kept)
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
    draw = generator("near copies")
    projection = torch.randn(rows.shape[1], DIMENSIONS, generator=draw, dtype=torch.float32, device="cpu")
    shadow = (rows.float() @ projection / math.sqrt(DIMENSIONS)).numpy()
    distance, index = KDTree(shadow).query(
        shadow, NEIGHBOURS + 1, distance_upper_bound=FAR * unit, workers=torch.get_num_threads()
    )
    near, within = (np.sum(distance < limit, axis=1) - 1 for limit in (NEAR * unit, np.inf))  # the sample itself apart
    lonely = (within < NEIGHBOURS) & (within <= 3 * near)
    row, column = (lonely[:, None] & (distance < 2 * NEAR * unit)).nonzero()
    return row, np.asarray(index)[row, column]
