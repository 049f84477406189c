"""Samples of one attribute lie on a line, where each pair is parallel or opposite: its kernels are read from a table.

Between such samples any kernel is a function of the larger norm, of the smaller, and of a sign. On either side of equal
norms it is smooth, also where the activation has kinks: the two pre-activations move apart in proportion with the
norms, so that nothing changes faster than their distance. Without kinks it is smooth across equal norms, too. So the
norms are cut into a few pieces, and for a in one piece and b in another

    H(a, b) = sum_kl c_kl T_k(x) T_l(y),

where x is the place of a in its piece, and y that of b. Where both fall into one piece and there are kinks, such a sum
of total degree (k + l <= degree) holds for a >= b, and the same with a and b exchanged for the others. A tile is sorted
by pieces. Then it is a few matrix products of rank degree + 1, and a pair takes some ten nanoseconds. Pieces are of
equal length in log(1 + norm), or in log(norm) where that needs fewer of them.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev

from deq_enn.kernels.parallel.tabulated import NotSmooth
from deq_enn.utils.deadline import check

Network = Callable[[np.ndarray, int], tuple[np.ndarray, Callable[[np.ndarray, np.ndarray, float], np.ndarray]]]

_log = logging.getLogger("kernels")

TILE = 512  # rows and columns of a tile
_TAIL = 2e-11  # last Chebyshev coefficients, of values whose size is 1
_HOPELESS = 1e-6  # the same, from which on the next grid in that scale is not fine enough either
_ACCURATE = 5e-11  # error between the nodes, of values whose size is 1
_REACHES = 0.45, 0.34, 0.16  # distances of the singularities from the norms' logarithms: no kink, one at 0, others
_CLOSER = 0.5  # share of such a distance that is tried next
_IN_LOG = 2.0  # such a distance in log(norm), over that in log(1 + norm)
_DIGITS = 13.0  # decimal digits of the polynomials
_DEGREES = 4, 26  # degrees of the polynomials, at least and at most
_ODD = 1e-11  # difference that a sign makes, of values whose size is 1, below which it makes none
_FLOOR = 1e-4  # share of the largest diagonal below which another one counts as so large, if nothing else helps
_CHECKED = 12  # norms whose pairs are compared with the polynomials
_SCALES = {"log(1 + norm)": (np.log1p, np.expm1), "log(norm)": (np.log, np.exp)}
_CHUNK = 4_096  # pairs of a list at once


class LineTable:
    """These are two kernels between any samples of one attribute.

    Parameters
    ----------
    network : (norms, expected pairs) -> the diagonals (2, norms) of both kernels, and a function of (i, j, sign) that
        returns the kernels (2, pairs) between norms[i] and sign * norms[j]. i and j are (pairs,), norms[i] >= norms[j].
    x : (samples,) the attribute, nowhere 0.
    diagonals : (2, samples) of both kernels.
    kinds : 0 for an activation without kinks, 1 for one with a kink at 0, 2 with others.
    most : pairs that the network may be asked for.

    Raises
    ------
    NotSmooth : no table that takes so many pairs has the kernels to 5e-11 of the roots of their diagonals, or of those
        and a hundredth of the largest root where it is noisy for smaller ones.
    """

    def __init__(self, network: Network, x: torch.Tensor, diagonals: torch.Tensor, kinds: int, name: str, most: int):
        norm, self._kinked = x.abs().cpu().numpy(), kinds > 0
        self._signs = 2 if bool((x > 0).any()) and bool((x < 0).any()) else 1
        largest = diagonals.amax(1, keepdim=True)
        self._largest, spread = largest.cpu().numpy(), bool((diagonals < 0.1 * largest).any())
        grids = _grids(norm.min() * (1 - 1e-9), norm.max() * (1 + 1e-9), kinds, spread)
        grid = self._first_that_fits(network, grids, most // self._signs)
        if grid is None:
            raise NotSmooth(f"the kernels of {name} vary too quickly with the norms for a table of {most} pairs")
        _log.info("%s on a line: %d pieces of degree %d in %s", name, grid.pieces, grid.degree, grid.scale)
        piece, place = grid.places(norm)
        self._basis = torch.from_numpy(chebyshev.chebvander(place, grid.degree)).to(x.device)
        self._place = torch.from_numpy(piece + (place + 1) / 2).to(x.device)
        self._sizes = (diagonals + grid.floor * largest).sqrt()
        opposite = (x < 0).cpu().numpy() * (self._signs - 1)
        self._key = torch.from_numpy(self._signs * piece + opposite).to(x.device)
        self._core = self._core.to(x.device)
        self._wide = self._arranged()

    # ------------------------------------------------------------------------------------------------------------
    # polynomials

    def _first_that_fits(self, network, grids, most):
        """Returns the first of these grids, of no more than so many pairs in all, that has the kernels, or None."""
        tails = {}
        for grid in grids:
            before = tails.setdefault((grid.floor, grid.scale), [])
            slow = before and (before[-1] > _HOPELESS or len(before) > 1 and before[-1] > before[-2] / 4)
            if grid.count > most or slow:
                continue
            most -= grid.count
            if self._fit(network, grid):
                return grid
            before.append(self._tail)
        return None

    def _fit(self, network, grid):
        """Returns whether the polynomials of a grid have the kernels, and keeps them."""
        check()
        self._grid = grid
        norms, i, j = grid.pairs(self._kinked)
        probes = _probes(grid)
        first, second = (len(norms) + part for part in np.tril_indices(len(probes), -1))
        norms, i, j = np.concatenate([norms, probes]), np.concatenate([first, i]), np.concatenate([second, j])
        probed, (diagonals, values) = len(first), network(norms, self._signs * len(i))
        size = np.sqrt(diagonals + grid.floor * self._largest)
        whole = [values(i, j, 1.0) / (size[:, i] * size[:, j])]
        if self._signs > 1:
            opposite = values(first, second, -1.0) / (size[:, first] * size[:, second])
            if np.abs(whole[0][:, :probed] + opposite).max() <= _ODD:  # so it is for all, with an odd activation
                whole.append(-whole[0])
            else:
                i_, j_ = i[probed:], j[probed:]
                rest = values(i_, j_, -1.0) / (size[:, i_] * size[:, j_])
                whole.append(np.concatenate([opposite, rest], 1))
        expected, known = np.split(np.stack(whole), [probed], axis=2)
        self._core, self._tail = grid.polynomials(known, self._kinked)
        if not self._tail <= _TAIL:
            return False
        (a, x), (b, y) = (grid.places(norms[part]) for part in (first, second))
        off = self._sum(a, b, *(torch.from_numpy(chebyshev.chebvander(part, grid.degree)) for part in (x, y)))
        return np.abs(off.numpy() - expected).max() <= _ACCURATE

    def _sum(self, larger, smaller, of_larger, of_smaller):
        """Returns the polynomials (signs, 2, pairs) of pairs in these pieces, with these bases (pairs, degree + 1)."""
        core = self._core[:, :, torch.as_tensor(larger), torch.as_tensor(smaller)]
        return torch.einsum("skpxy,px,py->skp", core, of_larger, of_smaller)

    def _arranged(self):
        """Returns what the rows of each key are multiplied by, (keys, degree + 1, 2 kernels * keys * (degree + 1))."""
        signs, pieces = self._signs, self._grid.pieces
        keys = torch.arange(signs * pieces)
        piece, sign = keys // signs, keys % signs
        core = self._core[(sign[:, None] != sign).long(), :, piece[:, None], piece]  # keys, keys, 2, x, y
        return core.permute(0, 3, 2, 1, 4).reshape(len(keys), self._grid.degree + 1, -1).contiguous()

    # ------------------------------------------------------------------------------------------------------------
    # tiles

    def tile(self, rows: slice | torch.Tensor, cols: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns both kernels of a tile, (rows, cols) each. rows, cols : as those of `Blocks._entries`.

        An entry's last digits depend on the tile that it is in, as those of any matrix product do.
        """
        if isinstance(rows, torch.Tensor):
            return self._of_pairs(rows, cols[:, 0])
        keys, width = self._wide.shape[:2]
        own, others = (_Sorted(self._key[part], keys, part.start) for part in (rows, cols))
        R, C = self._basis[own.samples], self._basis[others.samples]
        sizes, other_sizes = self._sizes[:, own.samples, None], self._sizes[:, others.samples, None]
        left = R.new_empty(len(R), 2, keys, width)
        for key, part in own.groups():
            torch.mm(R[part], self._wide[key], out=left.view(len(R), -1)[part])
        left *= sizes.movedim(0, 1)[..., None]
        out = R.new_empty(2, len(R), len(C))
        for key, part in others.groups():
            for kernel in range(2):
                right = C[part] * other_sizes[kernel, part]
                out[kernel, :, part] = left[:, kernel, key] @ right.T
                if self._kinked:
                    here, samples = out[kernel, :, part], others.samples[part]
                    self._exchange(here, kernel, key, own, samples, R * sizes[kernel], right)
        ck, ntk = (each[own.back][:, others.back] for each in out)
        return ck, ntk

    def _exchange(self, out, kernel, key, rows, cols, R, right):
        """Writes the entries of rows in the piece of these columns whose norm is the smaller one."""
        piece, sign = divmod(key, self._signs)
        for own_sign in range(self._signs):
            own = rows.group(self._signs * piece + own_sign)
            if own.start < own.stop:
                smaller = self._place[rows.samples[own], None] < self._place[cols]
                core = self._core[int(own_sign != sign), kernel, piece, piece]
                out[own] = torch.where(smaller, R[own] @ (right @ core).T, out[own])

    def _of_pairs(self, rows, cols):
        """Returns both kernels of the pairs of two lists, (k, 1) each."""
        out = self._basis.new_empty(2, len(rows))
        for part in torch.arange(len(rows), device=rows.device).split(_CHUNK):
            i, j = rows[part], cols[part]
            turned = self._place[i] < self._place[j]
            i, j = torch.where(turned, j, i), torch.where(turned, i, j)
            piece, other = self._key[i] // self._signs, self._key[j] // self._signs
            values = self._sum(piece, other, self._basis[i], self._basis[j])
            opposite = (self._key[i] + self._key[j]) % self._signs
            values = values.movedim(0, -1).gather(-1, opposite.expand(2, -1)[..., None])[..., 0]
            out[:, part] = values * self._sizes[:, i] * self._sizes[:, j]
        return out[0, :, None], out[1, :, None]


def _probes(grid):
    """Returns some norms, in their order: the least and the largest, and others, a few of them next to one another.

    Near the ends polynomials are the first to be off, as between small norms that no node is near.
    """
    place = np.random.default_rng(0).uniform(0, 1, _CHECKED)
    place[1:3] = 0, 1
    place[-3:] = place[0] + (1 - 2 * (place[0] > 0.5)) * np.array([1e-3, 1e-2, 0.03]) / grid.pieces
    return np.sort(grid.norm_at(place))


class _Sorted:
    """These are the samples of a slice that begins at `start`, sorted by their keys (samples,)."""

    def __init__(self, key: torch.Tensor, keys: int, start: int):
        order = key.argsort(stable=True)
        self.samples, self.back = order + start, order.argsort()
        self._ends = [0, *torch.bincount(key, minlength=keys).cumsum(0).tolist()]

    def group(self, key: int) -> slice:
        """Returns where the samples of a key are."""
        return slice(self._ends[key], self._ends[key + 1])

    def groups(self) -> Iterator[tuple[int, slice]]:
        """Yields the keys that there are, and where their samples are."""
        for key in range(len(self._ends) - 1):
            if self._ends[key] < self._ends[key + 1]:
                yield key, self.group(key)


@dataclass(frozen=True)
class _Grid:
    """These are norms from `low` to `high`, cut into pieces, and polynomials of a degree on each."""

    scale: str
    low: float
    high: float
    pieces: int
    degree: int
    floor: float

    @property
    def count(self) -> int:
        """Returns about how many pairs the polynomials take, of each sign."""
        return (self.pieces * (self.degree + 1)) ** 2 // 2

    def norm_at(self, place: np.ndarray) -> np.ndarray:
        """Returns the norms at places between 0 and 1."""
        into, out = _SCALES[self.scale]
        return out(into(self.low) + (into(self.high) - into(self.low)) * place).clip(self.low, self.high)

    def places(self, norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the piece that each norm is in, and its place there between -1 and 1."""
        into, _ = _SCALES[self.scale]
        place = (into(norm) - into(self.low)) / (into(self.high) - into(self.low)) * self.pieces
        piece = place.astype(int).clip(0, self.pieces - 1)
        return piece, (2 * (place - piece) - 1).clip(-1, 1)

    def pairs(self, kinked: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns norms, and the larger and the smaller one of each pair at which the kernels are to be known."""
        nodes = (chebyshev.chebpts1(self.degree + 1) + 1) / 2
        norms = self.norm_at((np.arange(self.pieces)[:, None] + nodes).ravel() / self.pieces)
        i, j = np.tril_indices(len(norms))
        if not kinked:
            return norms, i, j
        apart = i // len(nodes) != j // len(nodes)
        x, y = ((each + 1) / 2 for each in _triangle(self.degree))
        larger, smaller = (
            self.norm_at((np.arange(self.pieces)[:, None] + each).ravel() / self.pieces) for each in (x, y)
        )
        own = len(norms) + np.arange(len(larger))
        i, j = np.concatenate([i[apart], own]), np.concatenate([j[apart], own + len(larger)])
        return np.concatenate([norms, larger, smaller]), i, j

    def polynomials(self, values: np.ndarray, kinked: bool) -> tuple[torch.Tensor, float]:
        """Returns coefficients (signs, 2, pieces, pieces, degree + 1, degree + 1), and the error that they show.

        values : (signs, 2, pairs) at the pairs of `pairs`.
        """
        width, pieces = self.degree + 1, self.pieces
        i, j = np.tril_indices(pieces * width)
        on_grid = np.ones(len(i), dtype=bool) if not kinked else i // width != j // width
        i, j = i[on_grid], j[on_grid]
        whole = np.zeros((*values.shape[:2], pieces * width, pieces * width))
        whole[..., i, j] = whole[..., j, i] = values[..., : len(i)]
        into = np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts1(width), self.degree))
        whole = whole.reshape(*values.shape[:2], pieces, width, pieces, width)
        core = np.einsum("xu,yv,skiujv->skijxy", into, into, whole, optimize=True)
        tail = float(max(np.abs(core[..., -2:, :]).max(), np.abs(core[..., -2:]).max()))
        if kinked:
            of_triangles = values[..., len(i) :].reshape(*values.shape[:2], pieces, -1)
            own, residual = _of_triangles(of_triangles, self.degree)
            for piece in range(pieces):
                core[:, :, piece, piece] = own[:, :, piece]
            tail = max(tail, residual)
        return torch.from_numpy(core), tail


def _triangle(degree):
    """Returns x and y (points,) in a triangle -1 <= y <= x <= 1, where polynomials of this total degree are fitted."""
    x, y = [], []
    for number, place in enumerate(chebyshev.chebpts1(degree + 1)):
        own = chebyshev.chebpts2(min(degree + 1, number + 3))
        x.append(np.full(len(own), place))
        y.append((place + 1) * (own + 1) / 2 - 1)
    return np.concatenate(x), np.concatenate(y)


def _of_triangles(values, degree):
    """Returns coefficients (..., degree + 1, degree + 1) of the polynomials nearest to values (..., points).

    The residual is returned with them.

    The products of T_k and T_l are far from orthogonal on a triangle. Least squares by the singular values give small
    coefficients all the same, and a sum as good as any.
    """
    x, y = (chebyshev.chebvander(each, degree) for each in _triangle(degree))
    k, l = np.nonzero(np.add.outer(np.arange(degree + 1), np.arange(degree + 1)) <= degree)  # noqa: E741
    products, flat = x[:, k] * y[:, l], values.reshape(-1, len(x)).T
    c = np.linalg.lstsq(products, flat, rcond=1e-15)[0]
    out = np.zeros((*values.shape[:-1], degree + 1, degree + 1))
    out[..., k, l] = c.T.reshape(*values.shape[:-1], -1)
    return out, float(np.abs(products @ c - flat).max())


def _grids(low, high, kinds, spread):
    """Returns the grids to be tried, from that of the fewest pairs on, those with a floor last.

    spread : whether some samples are so much smaller than others that a floor makes a difference.
    """
    out = []
    for closer in (1.0, _CLOSER, _CLOSER**2):
        for floor, scale in ((0.0, "log(1 + norm)"), (0.0, "log(norm)"), (_FLOOR, "log(norm)"))[: 2 + spread]:
            reach = _REACHES[kinds] * closer * (1 if scale == "log(1 + norm)" else _IN_LOG)
            options = (_grid(scale, low, high, pieces, reach, floor) for pieces in range(1, 33))
            out += sorted((each for each in options if each.degree <= _DEGREES[1]), key=lambda each: each.count)[:1]
    return sorted(out, key=lambda each: (each.floor, each.count))


def _grid(scale, low, high, pieces, reach, floor):
    """Returns the grid of so many pieces, with the degree that a singularity at this distance asks for."""
    into, _ = _SCALES[scale]
    near = 2 * reach * pieces / (into(high) - into(low))
    degree = max(_DEGREES[0], math.ceil(_DIGITS / math.log10(near + math.hypot(1, near))))
    return _Grid(scale, low, high, pieces, degree, floor)
