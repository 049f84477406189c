"""A pair function says how the covariance of two activations depends on the correlation of their inputs.

For samples i, j of scales s_i, s_j and a tile of correlations rho, it returns (g, g', g''), with

    g(rho) = Cov[f(u), f(v)]/(s_i s_j),   g'(rho) = E[f'(u) f'(v)],   (u, v) = (s_i x, s_j y), corr(x, y) = rho,

in closed form, or by its Mehler series:
- kinked at 0 (relu, leaky relu): the arc-cosine kernel, Cho & Saul, NeurIPS 2009, in the form that keeps small rho;
- erf: Williams, NeurIPS 1996; sin: Rahimi & Recht, NeurIPS 2007;
- piecewise linear in general (hard tanh): g'' is a sum of bivariate normal densities at the kinks (Price's theorem),
  so g' and g are integrals over the correlation, by Gauss-Legendre quadrature as in Genz, Stat. Comput. 14, 2004;
- any other: sum_k c_k(s_i) c_k(s_j) rho^k (Mehler) by Horner's rule, with as many terms as the tile's |rho| asks for.

Near |rho| = 1 each of them loses digits or becomes dear. `limit` says up to which |rho| a function is to be used on a
tile, and parallel/pairs.py computes the pairs beyond it.
"""

import logging
import math
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deq_enn.kernels.parallel.pairs import FEW
from deq_enn.kernels.sample_scales import OfScale, Scales
from deq_enn.theory.activations import Activation
from deq_enn.theory.hermite import hermite_coefficients
from deq_enn.utils.tiles import largest

_log = logging.getLogger("kernels")


class PairFunction(ABC):
    """This is the pair function of samples with these scales."""

    # |rho| up to which a kinked function is used; beyond, a rounded correlation does not fix the angle to 1e-10
    cut = 1 - 1e-6

    def __init__(self, activation: Activation, scales: Scales, device: torch.device):
        self.activation, self.scales, self.device = activation, scales, device
        self.pairs = len(scales.s) ** 2 / 2  # pairs that are to be expected
        self.s = torch.from_numpy(scales.s).to(device)

    @property
    def dear(self) -> bool:
        """Tells whether parallel pairs take much longer than others."""
        return self.cut < 1

    @abstractmethod
    def __call__(self, rows, cols, rho: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns (g, g', g'') on a tile of correlations.

        rows, cols : two slices; or for pairs two index tensors (k,) and (k, 1), with correlations (k, 1).
        """

    def limit(self, rho: torch.Tensor, reach: float) -> float:
        """Returns up to which |rho| to use this function on a tile.

        rho : bounds of the tile's correlations. reach : the largest of them.
        """
        return min(reach, self.cut)


class KinkedAtZero(PairFunction):
    """Here f = const + m x + h |x|: g = m^2 rho + h^2 (2/pi) (sqrt(1 - rho^2) - 1 + rho asin rho)."""

    @property
    def dear(self) -> bool:
        """Tells that they do not: their moments are elementary, too."""
        return False

    def __init__(self, activation: Activation, scales: Scales, device: torch.device):
        super().__init__(activation, scales, device)
        left, right = activation.slopes[0], activation.slopes[-1]
        self.m2, self.h2 = (left + right) ** 2 / 4, (right - left) ** 2 / (2 * math.pi)

    def __call__(self, rows, cols, rho):
        angle = torch.asin(rho)
        rho2 = rho * rho
        cosine = torch.rsub(rho2, 1).sqrt_()
        g = torch.addcdiv(rho * angle, rho2, cosine + 1, value=-1)  # sqrt(1 - rho^2) - 1 without its cancellation
        g.mul_(self.h2).add_(rho, alpha=self.m2)
        return g, angle.mul_(self.h2).add_(self.m2), torch.div(self.h2, cosine)


class Erf(PairFunction):
    """Here E[erf u erf v] = (2/pi) asin(2 s_i s_j rho / sqrt((1 + 2 s_i^2)(1 + 2 s_j^2)))."""

    cut = 1.0

    def __init__(self, activation: Activation, scales: Scales, device: torch.device):
        super().__init__(activation, scales, device)
        self.k = torch.sqrt(2 * self.s**2 / (1 + 2 * self.s**2))

    def __call__(self, rows, cols, rho):
        kk = self.k[rows, None] * self.k[cols]
        per_scale = (2 / math.pi / self.s)[rows, None] * (1 / self.s)[cols]
        x = kk * rho
        cosine2 = torch.rsub(x * x, 1)
        dg = per_scale * kk / cosine2.sqrt()
        return torch.asin(x).mul_(per_scale), dg, dg * kk * x / cosine2


class Sin(PairFunction):
    """Here Cov[sin u, sin v] = exp(-(s_i^2 + s_j^2)/2) sinh(s_i s_j rho)."""

    cut = 1.0
    largest_scale = 1e3

    def __init__(self, activation: Activation, scales: Scales, device: torch.device):
        super().__init__(activation, scales, device)
        if scales.s.max() > self.largest_scale:
            raise ValueError(
                f"the kernel of sin at scale {scales.s.max():.4g} is not computed: above a scale of "
                f"{self.largest_scale:g} rounding turns its phase; scale the data down"
            )

    def __call__(self, rows, cols, rho):
        ss = self.s[rows, None] * self.s[cols]
        x = ss * rho
        decay = -(self.s[rows, None] ** 2 + self.s[cols] ** 2) / 2
        grow, fall = torch.exp(decay + x), torch.exp(decay - x)  # neither overflows: |x| <= -decay
        sinh = torch.where(x.abs() < 1, torch.exp(decay) * torch.sinh(x.clamp(-1, 1)), (grow - fall) / 2)
        return sinh / ss, (grow + fall) / 2, ss * sinh


class PiecewiseLinear(PairFunction):
    """Here g''(r) = sum_kl jump_k jump_l density(t_k/s_i, t_l/s_j; r), integrated once and twice over r in (0, rho).

    With r = tanh(y) the integrand varies on a scale of 1 in y, however close rho is to 1: 69 nodes do at the cut.
    """

    def __init__(self, activation: Activation, scales: Scales, device: torch.device):
        super().__init__(activation, scales, device)
        self.d1 = torch.from_numpy(scales.d1).to(device)
        jumps = [right - left for left, right in zip(activation.slopes, activation.slopes[1:])]
        self.terms = {}
        for t, a in zip(activation.kinks, jumps):
            for u, b in zip(activation.kinks, jumps):  # the density is the same at (t, u) and at (-t, -u)
                key = max((t, u), (-t, -u))
                self.terms[key] = self.terms.get(key, 0.0) + a * b / (2 * math.pi)

    def __call__(self, rows, cols, rho):
        y = torch.atanh(rho)
        nodes, weights = np.polynomial.legendre.leggauss(10 + math.ceil(8 * largest(y)))
        sides = [(t / self.s[rows, None], u / self.s[cols], w) for (t, u), w in self.terms.items()]
        # (a^2 + b^2)/2 - a b r in terms of 1 - |r|, which keeps its digits where r is next to 1 or -1
        sign = torch.where(rho < 0, -1.0, 1.0).to(rho.dtype)
        sides = [((a - sign * b).square_().div_(2), sign * a * b, w) for a, b, w in sides]

        def density(rest, cosine2):  # at 1 - |r| and 1 - r^2, times sqrt(1 - r^2)
            total = torch.zeros(())
            for half, product, w in sides:
                total = total + torch.addcmul(half, product, rest).div_(cosine2).neg_().exp_().mul_(w)
            return total

        dg, g = torch.zeros_like(rho), torch.zeros_like(rho)
        for x, weight in zip((nodes + 1) / 2, weights / 2):
            rest = 2 / (1 + torch.exp(y.abs() * (2 * x)))
            cosine2 = rest * (2 - rest)
            value = density(rest, cosine2).mul_(cosine2.sqrt()).mul_(weight)  # dr/sqrt(1 - r^2) = sech(y) dy
            dg.add_(value)
            g.addcmul_(value, rho - sign * (1 - rest))
        linear = self.d1[rows, None] * self.d1[cols]
        rest = 1 - rho.abs()
        cosine2 = rest * (2 - rest)
        return g.mul_(y).addcmul_(linear, rho), dg.mul_(y).add_(linear), density(rest, cosine2).div_(cosine2.sqrt())


@dataclass(frozen=True)
class Truncation:
    """A Mehler series was cut after `degree`, for correlations up to `rho`.

    The remainder of E[f'(u) f'(v)] is at most `remainder`, relative to E[f'^2]; that of E[f(u) f(v)] is smaller still.
    """

    degree: int
    rho: float
    remainder: float


class _Table:
    """This holds the Hermite coefficients c_k(s)/s, k <= degree, of an activation at the samples' scales."""

    def __init__(self, activation, scales, degree):
        s, self.d1, self.degree = scales.s, scales.d1, degree

        def table(some):
            return hermite_coefficients(activation, torch.from_numpy(some), degree).numpy() / some[:, None]

        fit = OfScale(table, s.min(), s.max(), activation.name, lambda some, values: np.abs(values).max(), s, 64)
        self.piece, u = fit.locate(s)
        self.basis = np.polynomial.chebyshev.chebvander(u, max(len(c) for *_, c in fit.pieces) - 1)
        self.coefficients = [c for *_, c in fit.pieces]
        for c in self.coefficients:
            c[:, 0] = 0  # g is a covariance, not a second moment
        # weights are taken at the samples' scales, of which 512 stand for all where there are more
        some = np.argsort(s)[np.unique(np.linspace(0, len(s) - 1, 512).astype(int))]
        c, d1_sq = self.at(some), scales.d1_sq[some]
        order = np.arange(degree + 1)
        self.weights = order * (c**2).max(0) / d1_sq.min()
        # the share of E[f'^2] that the table leaves out, by Parseval; below 1e-12 it is rounding
        self.left = (1 - (order * c**2).sum(1) / d1_sq).max()
        # the coefficients of an analytic function fall as exp(-c sqrt(k))
        digits = -math.log10(min(max(self.left, 1e-15), 0.9))
        self.whole = degree * max(1.0, math.log10(1 / Series.tolerance) / digits) ** 2
        if self.report(1.0).remainder <= Series.tolerance:
            self.cut = 1.0  # f is smooth, so that an error of rho makes one of the same size in g and g'
            return
        self.cut = Series.cut
        if self.report(self.cut).remainder > Series.tolerance:
            low, high = 0.0, self.cut
            while high - low > 1e-6:
                middle = (low + high) / 2
                low, high = (middle, high) if self.report(middle).remainder <= Series.tolerance else (low, middle)
            self.cut = low

    def at(self, rows):
        """Returns c_k(s)/s of these samples, (..., degree + 1), those of one k next to one another in memory."""
        if isinstance(rows, torch.Tensor):
            rows = rows.cpu().numpy()  # NumPy takes a tensor of one index for a number
        piece, basis = self.piece[rows], self.basis[rows]
        out = np.empty((self.coefficients[0].shape[1], *piece.shape))
        for number in np.unique(piece):
            c, here = self.coefficients[number], piece == number
            out[:, here] = c.T @ basis[here][:, : len(c)].T
        out[1] = self.d1[rows]  # c_1/s = E[f'], which a constant in f much larger than s f' does not blur
        return np.moveaxis(out, 0, -1)

    def report(self, rho, lost=1e-14):
        """Returns the fewest terms that lose no more than rounding against the full table, up to a correlation rho."""
        degree = len(self.weights) - 1
        terms = self.weights[1:] * rho ** np.arange(degree)
        tail = np.cumsum(terms[::-1])
        remainder = max(self.left, 0.0) * rho**degree if self.left > 1e-12 else 0.0
        kept = degree - int(np.searchsorted(tail, lost))
        return Truncation(max(kept, 1), rho, remainder + lost)


class Series(PairFunction):
    """This sums the Mehler series g = sum_k>=1 c_k(s_i) c_k(s_j) rho^k/(s_i s_j), c_k the Hermite coefficients.

    Attributes
    ----------
    tolerance : the share of E[f'^2] that may be cut off.
    degrees : those of the tables of coefficients. A tile takes the first that suffices, so that its entries depend on
        its own samples only, whatever the other threads do. A tile with few pairs beyond a table does not ask for the
        next.
    moderate : terms with which a series is cheaper than the table of nearly parallel pairs.

    Notes
    -----
    Costs are compared in units of one term of the series on a tile of 180 x 180, which takes 0.06 to 0.1 ms. As
    measured, a table costs 1.5 of these for each degree, and with kinks away from 0 a twentieth of the degree's square.
    Beyond the series, the first of a few pairs costs 150 and each further one 15 (parallel/pairs.py). Many pairs have a
    table of their own, which costs 4,000 once, and then 0.05 each. Those of a piecewise-linear function have a closed
    form, with a term for any two of its pieces.
    """

    tolerance = 1e-11
    degrees = 64, 128, 256, 512, 1024, 2048
    moderate = 1300
    tile = 180 * 180

    def __init__(self, activation: Activation, scales: Scales, device: torch.device, per_pair: float = 0.0):
        super().__init__(activation, scales, device)
        self.per_pair = per_pair
        self.lock, self.tables, self.told = threading.Lock(), {}, 0
        self.table(self.degrees[0])

    def table(self, degree: int) -> "_Table":
        """Returns the table of coefficients up to this degree, which the first thread that asks for it makes."""
        with self.lock:
            if degree not in self.tables:
                self.tables[degree] = _Table(self.activation, self.scales, degree)
            return self.tables[degree]

    def table_for(self, limit: float) -> "_Table":
        """Returns the first table that reaches so far; the last where none does."""
        for degree in self.degrees:
            if (table := self.table(degree)).cut >= limit:
                break
        return table

    @property
    def dear(self) -> bool:
        """Tells whether parallel pairs need more than 128 terms."""
        return self.table(128).cut < 1

    def _of_table(self, degree):
        """Returns the cost of a table of coefficients. Kinks that move with the scale make them oscillate in it."""
        return max(1.5 * degree, 0.05 * degree**2 if any(self.activation.kinks) else 0)

    def _aside(self, size, limit, pairs_table):
        """Returns the cost of the pairs of a tile with |rho| beyond the limit, and of the table that many need."""
        count = (size > limit).sum().item()
        if self.per_pair:
            return self.per_pair * count
        if count > FEW and not any(self.activation.kinks):
            return pairs_table + 0.05 * count
        return count and 150 + 15 * count

    def _pairs_table(self, size, table, tiles):
        """Returns what the table of nearly parallel pairs costs a tile: nothing where it is needed whatever the series.

        A series that converges slowly reaches half as near to 1 with twice the terms. That of an analytic function
        may reach 1 with a moderate number of them.
        """
        if self.activation.kinks or table.whole > self.moderate:
            farthest = 1 - (1 - table.cut) * table.degree / self.degrees[-1]
            if (size > farthest).sum().item() > FEW:
                return 0.0
        return 4_000 / tiles

    def limit(self, rho: torch.Tensor, reach: float) -> float:
        """Returns the |rho| up to which the series is cheaper on a tile than pairs that are computed one by one."""
        size, tiles = rho.abs(), max(1.0, self.pairs / self.tile)
        for degree, following in zip(self.degrees, (*self.degrees[1:], math.inf)):
            table = self.table(degree)
            longer = (following - degree) * rho.numel() / self.tile + self._of_table(following) / tiles
            pairs_table = self._pairs_table(size, table, tiles)
            aside = self._aside(size, table.cut, pairs_table)
            if self.per_pair or any(
                self.activation.kinks
            ):  # twice the terms reach half as near to 1: what that saves counts
                aside -= self._aside(size, (1 + table.cut) / 2, pairs_table)
            if table.cut >= reach or aside <= longer:
                break
        reach = min(reach, table.cut)
        most = table.report(reach)
        if most.degree > 100:  # then a shorter series may pay for the pairs that it leaves out
            choices = [limit for limit in (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99) if limit < reach] + [reach]
            costs = [
                table.report(limit).degree * rho.numel() / self.tile + self._aside(size, limit, pairs_table)
                for limit in choices
            ]
            reach = choices[int(np.argmin(costs))]
            most = table.report(reach)
        if most.degree > self.told:
            self.told = most.degree
            _log.info(
                "Mehler series of %s: %d terms at |rho| <= %.6g, relative remainder %.1g",
                self.activation.name,
                most.degree,
                reach,
                most.remainder,
            )
        return reach

    def __call__(self, rows, cols, rho):
        limit = min(largest(rho), 1.0)  # a correlation of 1 may have been rounded upwards
        table = self.table_for(limit)
        degree = table.report(min(limit, table.cut)).degree
        left, right = (
            torch.from_numpy(np.ascontiguousarray(np.moveaxis(table.at(index), -1, 0)[: degree + 1])).to(self.device)
            for index in (rows, cols)
        )
        left = left[..., None]
        g = left[degree] * right[degree]
        dg, half_ddg, term = torch.zeros_like(g), torch.zeros_like(g), torch.empty_like(g)
        for k in range(degree - 1, -1, -1):
            torch.addcmul(dg, half_ddg, rho, out=half_ddg)
            torch.addcmul(g, dg, rho, out=dg)
            torch.addcmul(torch.mul(left[k], right[k], out=term), g, rho, out=g)
        return g, dg, half_ddg.mul_(2)


def pair_function(activation: Activation, scales: Scales, device: torch.device, per_pair: float = 0.0) -> PairFunction:
    """Returns the pair function of an activation for samples of these scales.

    per_pair : the cost of a nearly parallel pair that has a closed form (`Moments.cost`); else 0.
    """
    if activation.slopes and activation.kinks in ((), (0.0,)):
        kind = KinkedAtZero
    elif activation.slopes:
        kind = PiecewiseLinear
    else:
        closed_forms: dict[Any, type[PairFunction]] = {torch.erf: Erf, torch.sin: Sin}
        if activation.fn not in closed_forms:
            return Series(activation, scales, device, per_pair)
        kind = closed_forms[activation.fn]
    return kind(activation, scales, device)
