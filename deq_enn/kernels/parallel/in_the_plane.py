"""Moments between nearly parallel samples, by quadrature in the plane: right for every activation, and dear.

For (u, v) with v = sign v', where u and v' have scales a and b and the angle theta between them, the expectations are
integrals over independent standard Gaussians x and y,

    u = a (c x - s y),   v = sign b (c x + s y),   c = cos(theta/2),   s = sin(theta/2).

Along x, panels end where u or v crosses a kink of the activation, which is at k/(a c) + y s/c for u, and with -y for v.
A strip of x where no such line lies for any y that matters is integrated by Gauss and Hermite along y. In the other
strips, which are as narrow as theta, panels along y end where two lines cross, and those along x move with y. Panels
that have no width are left out. Parallel samples (theta = 0) are a case like any other. A pair takes 0.1 to 2 ms for
each angle.
"""

import math
from functools import cache

import numpy as np
import torch

from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check

_REACH = 9.0  # distance from 0 where exp(-x^2/2) is 3e-18; panels go so far beyond the farthest kink
_FARTHEST = 38.0  # distance from 0 beyond which exp(-x^2/2) is 0 in double precision
_STRIDE = 3.5  # width of the panels beyond the reach
_NARROW = 0.2  # width of a panel, in units of the activation's features, for which half the nodes are enough
_PAIRS = 256  # pairs at a time
_CHUNK = 30_000  # nodes at a time, few enough to stay in the cache


@cache
def legendre(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the n nodes and weights (n,) of Gauss and Legendre on (0, 1); the integrals of this folder share them."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


@cache
def _hermite(n):
    """Returns the n nodes and weights (n,) of Gauss and Hermite, for a standard Gaussian variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def _symmetric(edges):
    return torch.tensor(sorted({0.0, *edges, *(-edge for edge in edges)}), dtype=torch.float64)


class _Plane:
    """These are some pairs in their planes; `integrate` gives (2, pairs)."""

    def __init__(self, activation, centre, a, b, sign, theta, nodes, moving):
        self.activation, self.centre, self.nodes = activation, centre, nodes
        self.a, self.b, self.sign = a, b, sign
        self.s, self.c = torch.sin(theta / 2), torch.cos(theta / 2)
        largest, least = max(a.max().item(), b.max().item()), min(a.min().item(), b.min().item())
        self.reach = _REACH
        if not activation.derivative(least * torch.linspace(-_REACH, _REACH, 91, dtype=torch.float64)).any():
            near = [abs(k) / least for k in activation.kinks if abs(k) < _FARTHEST * least]
            self.reach = min(_REACH + max(near, default=0.0), _FARTHEST)  # all that there is comes from beyond
        kinks = {k if abs(k) > 1e-12 * largest else 0.0 for k in activation.kinks if abs(k) < self.reach * largest}
        # an activation at a large scale has features of width 1 about 0, and of half a kink's size
        self.largest = max(1.0, largest / min([1.0, *(abs(k) for k in kinks if k)]))
        graded = 0.5 ** torch.arange(0, math.ceil(math.log2(2 * self.largest)), dtype=torch.float64)
        far = torch.arange(_REACH, self.reach, _STRIDE, dtype=torch.float64).tolist()
        self.along_x = _symmetric([2.5, 5.5, self.reach, *far, *graded.tolist()])
        self.along_y = _symmetric([3.0, self.reach, *far])
        self.about_zero = torch.empty(0, dtype=torch.float64)
        if moving:
            kinks |= {0.0}
            self.about_zero = torch.cat([-graded, graded])
            self.along_y = _symmetric([*self.along_y.tolist(), *graded.tolist()])
        lines = torch.tensor(sorted(kinks), dtype=torch.float64)
        self.of_u, self.of_v = lines / a[:, None], sign[:, None] * lines / b[:, None]  # where y = 0, times c
        self.out = torch.zeros(2, len(a), dtype=torch.float64)

    def integrate(self):
        about_zero = self.about_zero.expand(len(self.a), -1)
        middle = torch.cat([self.of_u, self.of_v, about_zero], 1) / self.c[:, None]
        half = (self.reach * self.s / self.c)[:, None]
        self.low, self.high = middle - half, middle + half  # the strip of each line
        fixed = torch.cat([self.along_x.expand(len(self.a), -1), self.low, self.high], 1)
        fixed = fixed.clamp(-self.reach, self.reach).sort(1).values
        everywhere = torch.arange(len(self.a))
        y, weight = _hermite(self.nodes)
        pair, low, high = self._panels(everywhere, fixed, inside=False)
        n, weight = len(pair), weight / math.sqrt(2 * math.pi)
        self._add(pair.repeat_interleave(len(y)), y.repeat(n), weight.repeat(n), *_repeated(len(y), low, high))
        if middle.shape[1]:
            self._inside(fixed)
        return self.out

    def _inside(self, fixed):
        """Adds the strips where lines lie."""
        crossing = ((self.of_v[:, :, None] - self.of_u[:, None]) / (2 * self.s)[:, None, None]).flatten(1)
        crossing = torch.where(crossing.abs() < self.reach, crossing, 0.0)  # as where there is none, or they coincide
        edges = torch.cat([self.along_y.expand(len(self.a), -1), crossing], 1).sort(1).values
        pair, panel = (edges.diff(dim=1) > 0).nonzero(as_tuple=True)
        low, width = edges[pair, panel], edges.diff(dim=1)[pair, panel]
        nodes, weights = legendre(self.nodes)
        y = (low[:, None] + width[:, None] * nodes).flatten()
        weight = (width[:, None] * weights).flatten() * torch.exp(-y * y / 2) / (2 * math.pi)
        pair = pair.repeat_interleave(len(nodes))
        shift, c = (self.s[pair] * y)[:, None], self.c[pair, None]
        lines = torch.cat([(self.of_u[pair] + shift) / c, (self.of_v[pair] - shift) / c], 1)
        if len(self.about_zero):
            lines = torch.cat([lines, (self.about_zero + shift) / c, (self.about_zero - shift) / c], 1)
        edges = torch.cat([fixed[pair], lines.clamp(-self.reach, self.reach)], 1).sort(1).values
        row, low, high = self._panels(pair, edges, inside=True)
        self._add(pair[row], y[row], weight[row], low, high)

    def _panels(self, pair, edges, inside):
        """Returns row, left and right end of the panels that have a width, in strips where lines lie or do not."""
        middle = (edges[:, :-1] + edges[:, 1:]) / 2
        where = torch.zeros_like(middle, dtype=torch.bool)
        for low, high in zip(self.low[pair].T, self.high[pair].T):
            where |= (middle > low[:, None]) & (middle < high[:, None])
        row, panel = ((where == inside) & (edges.diff(dim=1) > 0)).nonzero(as_tuple=True)
        return row, edges[row, panel], edges[row, panel + 1]

    def _add(self, pair, y, weight, low, high):
        """Adds panels from low to high along x, at y."""
        narrow = high - low < _NARROW / self.largest
        for which, n in ((~narrow, self.nodes), (narrow, (self.nodes + 1) // 2)):
            chunks = which.nonzero()[:, 0].split(max(1, _CHUNK // n))
            for number, chunk in enumerate(chunks):
                if number:
                    check()
                self._add_some(n, *(values[chunk] for values in (pair, y, weight, low, high)))

    def _add_some(self, n, pair, y, weight, low, high):
        nodes, weights = legendre(n)
        x = low[:, None] + (high - low)[:, None] * nodes
        sign, shift = self.sign[pair, None], (self.s[pair] * y)[:, None]
        cx = self.c[pair, None] * x
        u, v = self.a[pair, None] * (cx - shift), sign * self.b[pair, None] * (cx + shift)
        density = x.square_().mul_(-0.5).exp_().mul_(weights)
        f, df = self.activation.fn, self.activation.derivative
        apart = f(u) - sign * f(v) - self.centre * (1 - sign)
        weight = weight * (high - low)
        self.out[0].index_add_(0, pair, (apart.square_() * density).sum(1) * weight)
        self.out[1].index_add_(0, pair, (df(u) * df(v) * density).sum(1) * weight)


def _repeated(times, *values):
    return (each.repeat_interleave(times) for each in values)


def pair_moments(
    activation: Activation,
    centre: float,
    a: torch.Tensor,
    b: torch.Tensor,
    sign: torch.Tensor,
    theta: torch.Tensor,
    nodes: int,
    moving: bool = False,
) -> torch.Tensor:
    """Returns E[(phi(u) - sign phi(v))^2] and E[f'(u) f'(v)], phi = f - centre, (2, pairs), at scales a and b (pairs,).

    u and v are Gaussian with correlation sign * cos(theta), theta in [0, pi/2], sign +1 or -1, all of shape (pairs,).
    nodes : of a panel. moving : whether the graded panels about u = 0 and v = 0 move with y. A large scale with a large
    angle needs that; elsewhere it only costs up to ten times as much.
    """
    out = []
    for chunk in torch.arange(len(a)).split(_PAIRS):
        check()
        out.append(_Plane(activation, centre, a[chunk], b[chunk], sign[chunk], theta[chunk], nodes, moving).integrate())
    return torch.cat(out, 1)
