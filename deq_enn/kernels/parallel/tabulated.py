"""Moments between nearly parallel samples are read from a table, where the activation is smooth but for a kink at 0.

For (u, v) with v = sign v', where u and v' have scales a and b and the angle theta between them, and phi = f - centre,

    dot(a, b, theta) = E[f'(u) f'(v)],      apart(a, b, theta) = E[(phi(u) - sign phi(v))^2]

are smooth functions of their three arguments, however small the angle and however near a is to b: in polar coordinates
the plane falls into four sectors where neither u nor v changes sign (`in_sectors`), and the sectors' edges and the
integrands are analytic in a, b and theta. So `dot` is interpolated by Chebyshev polynomials in all three, and `apart`
follows from it, since d(apart)/d(eta) = 2 a b dot with eta = 1 - cos(theta) (Price's theorem):

    apart = apart_0 + 2 a b turned,      turned(a, b, theta) = int_0^theta dot(a, b, t) sin(t) dt.

For sign = 1 we interpolate apart_0/(a - b)^2 = E[((f(a xi) - f(b xi))/(a - b))^2], and for sign = -1 apart_0 itself:
nothing here is the difference of nearly equal numbers. At large scales, where a saturating function has a small dot,
`dot` and that ratio are divided by the roots of E[f'^2] at a and b, which have an interpolant of their own. The
variables are log(1 + a), log(1 + b), and t in theta = delta sinh(t), as `dot` has features as narrow as 1/a in theta.
The nodes of the quadrature are the same for all scales, so that a grid of scales is one matrix product for each angle.
The coefficients are compressed to the directions that matter (Tucker's decomposition; Townsend & Trefethen, SIAM J.
Sci. Comput. 35, 2013, do so in two variables).

A table takes a twentieth of a second to a second, and a pair from it some microseconds; the quadrature of `in_sectors`
takes half a millisecond to some for a pair that a DEQ has. A function with kinks elsewhere is not smooth where the
samples meet, and has no table.
"""

import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.polynomial import chebyshev

from deq_enn.kernels.parallel.in_sectors import EVEN, directions, radii
from deq_enn.kernels.parallel.in_the_plane import legendre
from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check

_log = logging.getLogger("kernels")

_SAME = 1e-9  # relative difference of the quadrature's two rules, of which the finer then has an error of about 1e-13
_TAIL = 1e-13  # last Chebyshev coefficients, relative to the largest
_MARGIN = 0.02  # share of the least and of the largest scale by which the table goes beyond them
_RANK = 1e-15  # singular values that are left out, relative to the largest
_NODES = 16, 23, 33, 47, 66, 93, 131, 184, 258  # nodes of the quadrature in each sector and along each ray
_DEGREES = 16, 32, 64, 128  # degrees in the angle and in the scales; each one's nodes are among the next one's
_MOST = 96  # largest degree of a table
_AT_ONCE = 20_000  # values of the activation at once, few enough to stay in the cache
_PAIRS = 2048  # pairs at once


class NotSmooth(ValueError):
    """The function has no table: it is not smooth enough on each side of 0, or not over so many scales."""


class ParallelTable:
    """These are the tables of an activation's moments for scales from `low` to `high`, and for both signs.

    Parameters
    ----------
    activation : with kinks at 0 at most. centre : the constant that phi lacks of it.

    Raises
    ------
    NotSmooth : no table of moderate size has them to 1e-12 of the largest.
    """

    def __init__(self, activation: Activation, centre: float, low: float, high: float):
        self.activation, self.centre = activation, centre
        low, high = low * (1 - _MARGIN), high * (1 + _MARGIN)  # so that no two nodes are next to one another
        self._high_scale, self._low, self._high = high, math.log1p(low), math.log1p(high)
        self._delta = min(1.0, 1 / high)
        self._top = math.asinh(math.pi / 2 / self._delta)
        ends = np.expm1([self._low, self._high])
        self._nodes = self._enough_nodes(ends)
        self._roots = {}
        degree, angles = self._enough_angles(ends)
        size, scales = self._enough_scales(ends, angles)
        grid = np.stack([self._shares(scales, scales, theta) for theta in angles], -1)  # (2, scales, scales, angles)
        grid = np.concatenate([grid, self._apart_at_none(scales, scales)[..., None]], -1)
        into = np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts2(size + 1), size))
        coefficients = np.einsum("ia,jb,sabk->sijk", into, into, grid, optimize=True)
        self._log_root = into @ np.log(self._root(scales))
        into = np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts2(degree + 1), degree))
        coefficients[..., :-1] = coefficients[..., :-1] @ into.T
        self._basis, self._core = [], []
        for own in coefficients:
            U, values, _ = np.linalg.svd(own.reshape(size + 1, -1), full_matrices=False)
            U = U[:, : int((values > _RANK * values[0]).sum())]
            self._basis.append(U)
            core = np.einsum("ir,js,ijk->rsk", U, U, own, optimize=True)
            self._core.append(torch.from_numpy(core.reshape(-1, degree + 2)))
        self._turning = torch.from_numpy(self._integrals(degree))
        _log.info(
            "nearly parallel pairs of %s: %d scales, %d angles, %d nodes, rank %d",
            activation.name,
            size + 1,
            degree + 1,
            self._nodes,
            max(U.shape[1] for U in self._basis),
        )

    # ------------------------------------------------------------------------------------------------------------
    # how much is enough

    def _enough_nodes(self, ends):
        angles, before = (0.0, self._delta / 2, math.pi / 2), None
        for nodes in _NODES:
            check()
            self._nodes = nodes
            values = np.stack([self._dots(ends, ends, theta) for theta in angles])
            if before is not None and np.abs(values - before).max() <= _SAME * np.abs(values).max():
                return nodes
            before = values
        raise NotSmooth(f"{self.activation.name} is not smooth on each side of 0")

    def _enough_angles(self, ends):
        def at(x):
            values = [self._shares(ends, ends, theta).ravel() for theta in self._angle_at(x)]
            return np.stack(values)[:, None]

        degree = _enough(at)
        if degree is None:
            raise NotSmooth(f"{self.activation.name} has moments that vary too quickly with the angle")
        return degree, self._angle_at(chebyshev.chebpts2(degree + 1))

    def _enough_scales(self, ends, angles):
        some = angles[[0, len(angles) // 2, -1]]

        def at(y):
            scales = self._scale_at(y)
            values = [self._shares(scales, ends, theta) for theta in some] + [self._apart_at_none(scales, ends)]
            root = np.repeat(np.log(self._root(scales))[:, None, None], values[0].shape[2] * len(values), 2)
            return np.concatenate([np.moveaxis(np.concatenate(values, 2), 0, 1), root], 1)

        size = _enough(at)
        if size is None:
            raise NotSmooth(f"{self.activation.name} has moments that vary too quickly with the scale")
        return size, self._scale_at(chebyshev.chebpts2(size + 1))

    def _angle_at(self, x):
        return self._delta * np.sinh(self._top * (x + 1) / 2)

    def _scale_at(self, y):
        return np.expm1(self._low + (self._high - self._low) * (y + 1) / 2)

    # ------------------------------------------------------------------------------------------------------------
    # quadrature

    def _dots(self, a, b, theta):
        """Returns E[f'(u) f'(v)] for both signs, (2, len(a), len(b))."""
        out = np.zeros((2, len(a), len(b)))
        r, weight_r = radii(self._nodes, self._high_scale)
        weight_r = weight_r * r * np.exp(-r * r / 2) / (2 * math.pi)
        # u and v have one sign, and then have not; the other half of the plane has -u and -v
        for agree in (True, False) if theta else (True,):
            w, weight_w = directions(self._nodes, theta, agree, self._high_scale)
            part = max(1, _AT_ONCE // (len(a) * len(w)))
            for r_, weight_r_ in zip(
                np.split(r, range(part, len(r), part)), np.split(weight_r, range(part, len(r), part))
            ):
                check()
                xi, weight = np.outer(np.cos(w - theta / 2), r_), np.outer(weight_w, weight_r_)
                of_a = [self._slope(np.multiply.outer(a, s * xi)) for s in (1, -1)]
                of_b = of_a if b is a else [self._slope(np.multiply.outer(b, s * xi)) for s in (1, -1)]
                # eta has the values of xi in reverse, where u and v differ in sign with the other sign
                of_b = [values[:, ::-1].reshape(len(b), -1) for values in (of_b if agree else of_b[::-1])]
                of_a = [(values * weight).reshape(len(a), -1) for values in of_a]
                out[0] += of_a[0] @ of_b[0].T + of_a[1] @ of_b[1].T
                out[1] += of_a[0] @ of_b[1].T + of_a[1] @ of_b[0].T
        return out

    def _root(self, a):
        """Returns the root of E[f'(a xi)^2], (len(a),), or 1 where that hardly changes; each angle asks for it."""
        if self._high_scale <= EVEN:
            return np.ones(len(a))
        if (key := a.tobytes()) not in self._roots:
            r, weight = radii(2 * self._nodes, self._high_scale)
            weight = weight * np.exp(-r * r / 2) / math.sqrt(2 * math.pi)
            self._roots[key] = np.sqrt(sum(self._slope(np.outer(a, x)) ** 2 @ weight for x in (r, -r)))
        return self._roots[key]

    def _shares(self, a, b, theta):
        """Returns what `_dots` has over the roots of E[f'^2] at both scales, which make most of its size."""
        return self._dots(a, b, theta) / np.multiply.outer(self._root(a), self._root(b))

    def _apart_at_none(self, a, b):
        """Returns E[((f(a xi) - f(b xi))/(a - b))^2] and E[(phi(a xi) + phi(-b xi))^2], (2, len(a), len(b))."""
        r, weight = radii(2 * self._nodes, self._high_scale)
        weight = weight * np.exp(-r * r / 2) / math.sqrt(2 * math.pi)
        out = np.zeros((2, len(a), len(b)))
        for x in (r, -r):
            of_b, opposite = self._value(np.outer(b, x)), self._value(np.outer(b, -x))
            for i, scale in enumerate(a):
                own, gap = self._value(scale * x), (scale - b)[:, None]
                same = np.abs(gap) < 1e-9 * scale
                ratio = np.where(same, x * self._slope(scale * x), (own - of_b) / np.where(same, 1.0, gap))
                out[0, i] += ratio**2 @ weight
                out[1, i] += (own + opposite - 2 * self.centre) ** 2 @ weight
        out[0] /= np.multiply.outer(self._root(a), self._root(b))
        return out

    def _value(self, x):
        return self.activation.fn(torch.from_numpy(x)).numpy()

    def _slope(self, x):
        return self.activation.derivative(torch.from_numpy(x)).numpy()

    def _integrals(self, degree):
        """Returns the matrix that makes the coefficients of turned/theta^2 from those of dot."""
        places = chebyshev.chebpts2(degree + 17)
        rows = [chebyshev.chebvander(np.array([-1.0]), degree)[0] / 2]
        for t in self._top * (places[1:] + 1) / 2:
            s, weight = _rule(degree + 20, 0.0, t)
            weight = weight * self._delta * np.cosh(s) * np.sin(self._delta * np.sinh(s))
            rows.append(
                weight @ chebyshev.chebvander(2 * s / self._top - 1, degree) / (self._delta * math.sinh(t)) ** 2
            )
        return np.linalg.solve(chebyshev.chebvander(places, len(places) - 1), np.stack(rows)).T

    # ------------------------------------------------------------------------------------------------------------
    # pairs

    def parts(self, a: torch.Tensor, b: torch.Tensor, sign: torch.Tensor) -> Iterator[tuple[torch.Tensor, "OfPairs"]]:
        """Yields the places (k,) of some pairs, and their moments as functions of the angle, until all had their turn.

        a, b, sign : (pairs,), of scales within [low, high].
        """
        for which, s in enumerate((1, -1)):
            for place in ((sign > 0) == (s > 0)).nonzero()[:, 0].split(_PAIRS):
                if len(place):
                    check()
                    yield place, self._of_pairs(which, a[place], b[place])

    def _of_pairs(self, which, a, b):
        U = self._basis[which]
        bases = [chebyshev.chebvander(self._place(scale.numpy()), len(U) - 1) for scale in (a, b)]
        left, right = (torch.from_numpy(basis @ U) for basis in bases)
        coefficients = (left[:, :, None] * right[:, None, :]).flatten(1) @ self._core[which]
        size = torch.from_numpy(np.exp((bases[0] + bases[1]) @ self._log_root))
        dot = coefficients[:, :-1] * size[:, None]
        ratio = coefficients[:, -1] * (size if which == 0 else 1.0)
        return OfPairs(self, which == 0, a, b, ratio, dot.T.contiguous(), (dot @ self._turning).T.contiguous())

    def _place(self, scale):
        return ((2 * np.log1p(scale) - self._low - self._high) / (self._high - self._low)).clip(-1, 1)

    def position(self, theta: torch.Tensor) -> torch.Tensor:
        """Returns where angles lie between -1 and 1."""
        return 2 * torch.asinh(theta / self._delta) / self._top - 1


class OfPairs:
    """These are the moments of some pairs of one sign, as functions of the angle.

    same : whether the sign is 1. ratio : apart_0/(a - b)^2 where it is, else apart_0. dot, turned : coefficients.
    """

    def __init__(
        self,
        table: ParallelTable,
        same: bool,
        a: torch.Tensor,
        b: torch.Tensor,
        ratio: torch.Tensor,
        dot: torch.Tensor,
        turned: torch.Tensor,
    ):
        self._table, self._dot, self._turned = table, dot, turned
        self.same, self.a, self.b, self.ratio = same, a, b, ratio
        self.apart_at_none = ratio * (a - b) ** 2 if same else ratio

    def __call__(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns (turned, apart, dot) at these angles (pairs,); turned is (apart - apart_0)/(2 a b)."""
        position = self._table.position(theta)
        turned = theta**2 * _clenshaw(self._turned, position)
        return turned, self.apart_at_none + 2 * self.a * self.b * turned, _clenshaw(self._dot, position)

    def base(self, sigma_a2: float) -> torch.Tensor:
        """Returns (a - b)^2 - sigma_a^2 apart_0."""
        radial = (self.a - self.b) ** 2
        return radial * (1 - sigma_a2 * self.ratio) if self.same else radial - sigma_a2 * self.ratio


def _rule(n, low, high):
    """Returns the nodes and weights of Gauss and Legendre on [low, high]."""
    nodes, weights = (each.numpy() for each in legendre(n))
    return low + (high - low) * nodes, (high - low) * weights


def _enough(at):
    """Returns the degree of polynomials on [-1, 1] after which their coefficients are nothing, or None.

    at : places (k,) -> values (k, kinds, m). Those of a kind are compared with the largest coefficient among them.
    """
    values = None
    for degree in _DEGREES:
        check()
        x = chebyshev.chebpts2(degree + 1)
        new = slice(None) if values is None else slice(1, None, 2)
        fresh = at(x[new])
        if values is None:
            values = fresh
        else:
            before, values = values, np.empty((degree + 1, *fresh.shape[1:]))
            values[::2], values[1::2] = before, fresh
        size = np.abs(np.linalg.solve(chebyshev.chebvander(x, degree), values.reshape(degree + 1, -1)))
        size = size.reshape(values.shape).max(2)
        if not (size[-2:] > _TAIL * size.max(0)).any():
            needed = int((size > _TAIL * size.max(0)).any(1).nonzero()[0].max()) + 2
            return min(needed, degree) if needed <= _MOST else None
    return None


def _clenshaw(c, x):
    """Returns sum_k c[k] T_k(x), for c (k, pairs) and x (pairs,)."""
    twice, b1, b2 = 2 * x, torch.zeros_like(x), torch.zeros_like(x)
    for k in range(len(c) - 1, 0, -1):
        b1, b2 = torch.addcmul(c[k] - b2, twice, b1), b1
    return torch.addcmul(c[0] - b2, x, b1)
