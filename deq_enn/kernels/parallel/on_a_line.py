"""Samples of one attribute lie on a line, where each pair is parallel or opposite: its kernels are read from a table.

Between such samples any kernel is a function of the larger norm, of the smaller, and of a sign. On either side of equal
norms it is smooth, also where the activation has kinks: the two pre-activations move apart in proportion with the
norms, so that nothing changes faster than their distance. So for a >= b it is interpolated by Chebyshev polynomials,

    H(a, b) = sum_k T_k(q) sum_l c_kl T_l(x),

where x is the place of a, and q that of b between the least norm and a. A tile takes one Clenshaw recurrence for each
sign and for each order of the norms, as the Mehler series of other pairs does. The places are those of log(1 + norm),
or of log(norm) where that needs fewer terms: small samples matter where a function is kinked at 0.
"""

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.polynomial import chebyshev

from deq_enn.kernels.parallel.tabulated import NotSmooth

Values = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_log = logging.getLogger("kernels")

MANY = 60_000  # pairs from which on a table is made: it takes some thousand pairs that are computed one by one
MANY_DEAR = 5_000  # the same, of pairs that have no closed form and no other table
_DEGREES = 16, 24, 32, 40, 48, 64, 80, 96, 128  # degrees in either variable
_FEW = 64  # degree up to which the next scale is not tried
_TAIL = 5e-12  # last Chebyshev coefficients, relative to the largest
_ACCURATE = 5e-11  # error between the nodes, of values whose size is 1
_SCALES = {"log(1 + norm)": (np.log1p, np.expm1), "log(norm)": (np.log, np.exp)}


class LineTable:
    """These are two kernels, of order 1, between any samples of one attribute.

    Parameters
    ----------
    values : (a, b, sign), (pairs,) each with a >= b -> (2, pairs).
    x : (samples,) the attribute, nowhere 0.

    Raises
    ------
    NotSmooth : no table of moderate size has them to 5e-11.
    """

    def __init__(self, values: Values, x: torch.Tensor, name: str):
        self.x, self._values, norm = x, values, x.abs().cpu().numpy()
        self._low, self._high = norm.min() * (1 - 1e-9), norm.max() * (1 + 1e-9)
        self._signs = (1, -1) if (x > 0).any() and (x < 0).any() else (1,)
        degrees = {}
        for kind in _SCALES:
            self._take(kind)
            if (needed := self._enough()) is not None:
                degrees[kind] = needed
                if max(needed) <= _FEW:
                    break
        if not degrees:
            raise NotSmooth(f"the kernels of {name} vary too quickly with the norms")
        kind = min(degrees, key=lambda kind: math.prod(degrees[kind]))
        self._take(kind)
        self._coefficients = self._fit(*degrees[kind])
        self._place = torch.from_numpy(self._place_of(norm))
        self._check(name)
        self._place, self._positive = self._place.to(x.device), x > 0
        _log.info("%s on a line: degrees %d and %d in %s", name, *degrees[kind], kind)

    def _take(self, kind):
        self._into, self._out = _SCALES[kind]
        self._ends = self._into(self._low), self._into(self._high)

    def _place_of(self, norm):
        """Returns where norms lie between 0 and 1."""
        low, high = self._ends
        return ((self._into(norm) - low) / (high - low)).clip(0, 1)

    def _at(self, place, q):
        """Returns the values (2 signs, 2, pairs) at places of the larger norm and shares q of it."""
        (low, high), places = self._ends, np.stack([place, place * q])
        a, b = self._out(low + (high - low) * places)
        pairs = [self._values(a, np.minimum(a, b), np.full(len(a), float(sign))) for sign in self._signs]
        return np.stack(pairs)

    def _enough(self):
        """Returns the degrees that are enough along some lines, or None."""
        some, degrees = np.array([0.0, 0.3, 0.9, 1.0]), []
        for larger in (True, False):
            for degree in _DEGREES:
                nodes = (chebyshev.chebpts1(degree + 1) + 1) / 2
                grid = (np.repeat(nodes, len(some)), np.tile(some, len(nodes)))
                values = self._at(*(grid if larger else grid[::-1]))
                values = np.moveaxis(values.reshape(-1, len(nodes), len(some)), 1, 0).reshape(len(nodes), -1)
                size = np.abs(_transform(degree) @ values)
                if size[-2:].max() <= _TAIL * max(1.0, size.max()):
                    degrees.append(degree)
                    break
        return tuple(degrees) if len(degrees) == 2 else None

    def _fit(self, larger, share):
        """Returns the coefficients (degree of the share + 1, signs, 2, degree of the larger norm + 1)."""
        x, q = ((chebyshev.chebpts1(degree + 1) + 1) / 2 for degree in (larger, share))
        values = self._at(np.repeat(x, len(q)), np.tile(q, len(x))).reshape(len(self._signs), 2, len(x), len(q))
        return torch.from_numpy(
            np.einsum("lx,kq,sfxq->ksfl", _transform(larger), _transform(share), values, optimize=True)
        )

    def _check(self, name):
        random = np.random.default_rng(0)
        place, q = random.uniform(0, 1, (2, 40))
        q[:10] = 1 - 10.0 ** -np.linspace(1, 3, 10)  # pairs of nearly the same norm
        expected = self._at(place, q)
        basis = torch.from_numpy(chebyshev.chebvander(2 * place - 1, self._coefficients.shape[-1] - 1))
        both = _clenshaw(torch.einsum("ksfl,pl->ksfp", self._coefficients, basis), torch.from_numpy(2 * q - 1))
        if np.abs(both.numpy() - expected).max() > _ACCURATE * max(1.0, np.abs(expected).max()):
            raise NotSmooth(f"the kernels of {name} are not smooth in the norms")

    def tile(self, rows: slice | torch.Tensor, cols: slice | torch.Tensor) -> torch.Tensor:
        """Returns both kernels of a tile, (2, rows, cols). rows, cols : as those of `Blocks._entries`."""
        place, other = self._place[rows, None], torch.atleast_2d(self._place[cols])
        opposite = self._positive[rows, None] != self._positive[cols]
        below = place < other
        out = torch.zeros(2, *below.shape, dtype=torch.float64, device=below.device)
        for number, sign in enumerate(self._signs):
            here = opposite if sign < 0 else ~opposite
            for larger, smaller, mine in ((place, other, here & ~below), (other, place, here & below)):
                if mine.any():
                    q = (smaller / larger.clamp_min(1e-300)).clamp(max=1)
                    values = _clenshaw(self._along(number, larger), 2 * q - 1)
                    out = torch.where(mine, values, out)
        return out

    def _along(self, number, place):
        """Returns the coefficients in q at places of the larger norm, (degree + 1, 2, ...)."""
        basis = torch.from_numpy(chebyshev.chebvander(2 * place.cpu().numpy() - 1, self._coefficients.shape[-1] - 1))
        along = torch.einsum("kfl,rcl->kfrc", self._coefficients[:, number], basis)
        return along.to(place.device)


def _transform(degree):
    """Returns the matrix that makes coefficients of values at the nodes of the first kind."""
    return np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts1(degree + 1), degree))


def _clenshaw(c, x):
    """Returns sum_k c[k] T_k(x), c[k] and x broadcast."""
    twice, shape = 2 * x, np.broadcast_shapes(c.shape[1:], x.shape)
    b1, b2 = torch.zeros(2, *shape, dtype=c.dtype, device=x.device)
    for k in range(len(c) - 1, 0, -1):
        b1, b2 = b2.neg_().addcmul_(twice, b1).add_(c[k]), b1
    return torch.addcmul(c[0] - b2, x, b1)
