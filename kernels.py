"""The exact infinite-width conjugate and tangent kernels of DEQs and of explicit networks, with no sampling.

A DEQ has Lambda = sigma_a^2 G + sigma_b^2 S with S = X X^T and G_ij = E[phi(u) phi(v)], (u, v) centred Gaussian with
covariance [[Lambda_ii, Lambda_ij], [Lambda_ij, Lambda_jj]] (Ling et al., ICML 2024, section 2). The diagonal is one
scalar fixed point per sample. Given it, each off-diagonal entry is one scalar equation, here in the correlation
rho_ij = Lambda_ij/(s_i s_j), s_i^2 = Lambda_ii:

    rho = sigma_a^2 g(rho) + base,   g = Cov[f(u), f(v)]/(s_i s_j),   base = (sigma_b^2 S_ij + sigma_a^2 m_i m_j)/(s_i s_j)

with m_i the mean of phi at scale s_i. Its derivative needs g' = E[f'(u) f'(v)], the very factor of the tangent kernel,
so Newton's method costs nothing extra; it runs on all entries of a tile that stays in the cache. Tiles of one triangle
are shared out among threads and mirrored.

g in closed form, or by its Mehler series:
- kinked at 0 (relu, leaky relu): the arc-cosine kernel, Cho & Saul, NeurIPS 2009, in the form that keeps small rho;
- erf: Williams, NeurIPS 1996; sin: Rahimi & Recht, NeurIPS 2007;
- piecewise linear in general (hard tanh): g'' is a sum of bivariate normal densities at the kinks (Price's theorem),
  so g' and g are integrals over the correlation, by Gauss-Legendre quadrature as in Genz, Stat. Comput. 14, 2004;
- any other: sum_k c_k(s_i) c_k(s_j) rho^k (Mehler) by Horner's rule, cut where the data's largest |rho| allows.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy.optimize import brentq

from gaussian_integration import Activation, gaussian_moments, hermite_coefficients
from utils import check_sigma_a2, estimate_tau0, get_tau

_log = logging.getLogger(__name__)
_EPS = torch.finfo(torch.float64).eps


# ---------------------------------------------------------------------------------------------------------------
# functions of the scale: smooth, so a Chebyshev interpolant in log s replaces one integral per sample

def _chebyshev(table, low, high, activation):
    """Coefficients (N, k) in the Chebyshev basis over log s in [log low, log high] of `table`: (N,) scales -> (N, k)."""
    for degree in (8, 16, 32, 64, 128, 256):
        nodes = chebyshev.chebpts1(degree + 1)
        values = table(np.exp((np.log(high * low) + np.log(high / low) * nodes) / 2))
        coefficients = np.linalg.solve(chebyshev.chebvander(nodes, degree), values)
        if np.abs(coefficients[-2:]).max() <= 1e-13 * np.abs(values).max():
            return coefficients
    raise ValueError(f"activation {activation.name}: its Gaussian moments vary too quickly over the scales "
                     f"{low:.3g} to {high:.3g} of these samples")


def _position(scales, low, high):
    """Where log s falls in [-1, 1]; 0 where there is a single scale."""
    return (2 * np.log(scales) - np.log(high * low)) / np.log(high / low)


@dataclass(frozen=True)
class _Scales:
    """The samples' pre-activation scales s (n,) and the moments of an activation there, all (n,) float64 arrays.

    mean = E[f] (minus the centring constant), variance = Var[f], d1 = E[f'], d2 = E[f''], d1_sq = E[f'^2].
    """

    s: np.ndarray
    low: float
    high: float
    mean: np.ndarray
    variance: np.ndarray
    d1: np.ndarray
    d2: np.ndarray
    d1_sq: np.ndarray


def _moments(activation, low, high):
    def table(scales):
        found = [gaussian_moments(activation, s) for s in scales]
        return np.array([[m.mean, m.variance, m.d1, m.d2, m.d1_sq] for m in found])

    return _chebyshev(table, low, high, activation)


def _widen(low, high):
    # an interval of no length has no Chebyshev basis
    return low * (1 - 1e-6), high * (1 + 1e-6)


def _explicit_scales(activation, s):
    low, high = _widen(s.min(), s.max())
    columns = chebyshev.chebval(_position(s, low, high), _moments(activation, low, high))
    return _Scales(s, low, high, *columns)


def _implicit_scales(activation, sigma_a2, norms2, centre):
    """Solves s^2 = sigma_a^2 E[(f(s xi) - centre)^2] + sigma_b^2 |x|^2 for each of the squared norms (n,)."""
    sigma_b2 = 1 - sigma_a2
    missing = (f"the diagonal of the kernel has no {{}}fixed point for activation {activation.name} at sigma_a^2 = "
               f"{sigma_a2:g}: sigma_a^2 E[phi(s xi)^2] outgrows s^2; take a smaller sigma_a^2")

    def solve(norm2):
        def excess(s):
            m = gaussian_moments(activation, s)
            return sigma_a2 * (m.variance + (m.mean - centre) ** 2) + sigma_b2 * norm2 - s * s

        low = high = math.sqrt(sigma_b2 * norm2)
        while excess(high) > 0:
            low, high = high, 2 * high
            if high > 1e8 * math.sqrt(norm2):
                raise ValueError(missing.format(""))
        return brentq(excess, low, high, xtol=1e-14 * low) if high > low else low

    low, high = _widen(solve(norms2.min()), solve(norms2.max()))
    coefficients = _moments(activation, low, high)
    span = np.log(high / low) / 2

    def second_moment(u):  # and its derivative in log s
        (mean, variance), (d_mean, d_variance) = (chebyshev.chebval(u, c[:, :2]) for c in
                                                  (coefficients, chebyshev.chebder(coefficients)))
        mean = mean - centre
        return variance + mean**2, (d_variance + 2 * mean * d_mean) / span

    grid = np.linspace(-1, 1, 65)
    s2 = low * high * np.exp(2 * span * grid)
    if (2 * s2 <= sigma_a2 * second_moment(grid)[1]).any():
        raise ValueError(missing.format("stable "))
    # s^2 increases with |x|^2; Newton in log s from the line between the two ends
    ratio = np.log(norms2 / norms2.min()) / max(np.log(norms2.max() / norms2.min()), _EPS)
    u = 2 * ratio - 1
    for _ in range(50):
        s2 = low * high * np.exp(2 * span * u)
        value, slope = second_moment(u)
        step = (s2 - sigma_a2 * value - sigma_b2 * norms2) / (span * (2 * s2 - sigma_a2 * slope))
        u = np.clip(u - step, -1, 1)
        if np.abs(step).max() * span < 4 * _EPS:
            break
    mean, *others = chebyshev.chebval(u, coefficients)
    return _Scales(np.sqrt(low * high) * np.exp(span * u), low, high, mean - centre, *others)


# ---------------------------------------------------------------------------------------------------------------
# pair functions: (rows, cols, rho) -> g, g', g'' with g = Cov[f(u), f(v)]/(s_i s_j), at correlations rho (a tile)

def _pair_kinked_at_zero(activation, scales, device):
    """f = const + m x + h |x|: g = m^2 rho + h^2 (2/pi) (sqrt(1 - rho^2) - 1 + rho asin rho)."""
    left, right = activation.slopes[0], activation.slopes[-1]
    m2, h2 = (left + right) ** 2 / 4, (right - left) ** 2 / (2 * math.pi)

    def pair(rows, cols, rho):
        angle = torch.asin(rho)
        rho2 = rho * rho
        cosine = torch.rsub(rho2, 1).sqrt_()
        g = torch.addcdiv(rho * angle, rho2, cosine + 1, value=-1)  # sqrt(1 - rho^2) - 1 without its cancellation
        g.mul_(h2).add_(rho, alpha=m2)
        # the floor keeps g'' finite between duplicates
        return g, angle.mul_(h2).add_(m2), torch.div(h2, cosine.clamp_min_(1e-6))

    return pair


def _pair_erf(activation, scales, device):
    """E[erf u erf v] = (2/pi) asin(2 s_i s_j rho / sqrt((1 + 2 s_i^2)(1 + 2 s_j^2)))."""
    s = torch.from_numpy(scales.s).to(device)
    k = torch.sqrt(2 * s * s / (1 + 2 * s * s))

    def pair(rows, cols, rho):
        kk = torch.outer(k[rows], k[cols])
        per_scale = torch.outer((2 / math.pi / s)[rows], (1 / s)[cols])
        x = kk * rho
        cosine2 = torch.rsub(x * x, 1)  # positive even between duplicates: k < 1
        dg = per_scale * kk / cosine2.sqrt()
        return torch.asin(x).mul_(per_scale), dg, dg * kk * x / cosine2

    return pair


def _pair_sin(activation, scales, device):
    """Cov[sin u, sin v] = exp(-(s_i^2 + s_j^2)/2) sinh(s_i s_j rho)."""
    s = torch.from_numpy(scales.s).to(device)

    def pair(rows, cols, rho):
        ss = torch.outer(s[rows], s[cols])
        x = ss * rho
        decay = -(s[rows, None] ** 2 + s[cols] ** 2) / 2
        grow, fall = torch.exp(decay + x), torch.exp(decay - x)  # neither overflows: |x| <= -decay
        sinh = torch.where(x.abs() < 1, torch.exp(decay) * torch.sinh(x.clamp(-1, 1)), (grow - fall) / 2)
        return sinh / ss, (grow + fall) / 2, ss * sinh

    return pair


def _pair_piecewise_linear(activation, scales, device):
    """g''(r) = sum_kl jump_k jump_l density(t_k/s_i, t_l/s_j; r), integrated once and twice over r in (0, rho).

    With r = tanh(y) the integrand varies on a scale of 1 in y, however close rho is to 1.
    """
    s, d1 = torch.from_numpy(scales.s).to(device), torch.from_numpy(scales.d1).to(device)
    jumps = [right - left for left, right in zip(activation.slopes, activation.slopes[1:])]
    terms = {}
    for t, a in zip(activation.kinks, jumps):
        for u, b in zip(activation.kinks, jumps):  # the density is the same at (t, u) and at (-t, -u)
            key = max((t, u), (-t, -u))
            terms[key] = terms.get(key, 0.0) + a * b / (2 * math.pi)

    def pair(rows, cols, rho):
        y = torch.atanh(rho.clamp(-1 + _EPS, 1 - _EPS))
        reach = _largest(y)
        nodes, weights = np.polynomial.legendre.leggauss(10 + math.ceil(8 * reach))
        sides = [(t / s[rows, None], u / s[cols], w) for (t, u), w in terms.items()]
        sides = [((a * a + b * b).div_(2), a * b, w) for a, b, w in sides]

        def density(r, cosine2):  # times sqrt(1 - r^2)
            total = 0
            for half, product, w in sides:
                total = total + torch.addcmul(half, product, r, value=-1).div_(cosine2).neg_().exp_().mul_(w)
            return total

        dg, g = torch.zeros_like(rho), torch.zeros_like(rho)
        for x, weight in zip((nodes + 1) / 2, weights / 2):
            r = torch.tanh(y * x)
            cosine2 = torch.rsub(r * r, 1).clamp_min_(1e-300)
            value = density(r, cosine2).mul_(cosine2.sqrt()).mul_(weight)  # dr/sqrt(1 - r^2) = sech(y) dy
            dg.add_(value)
            g.addcmul_(value, rho - r)
        linear = torch.outer(d1[rows], d1[cols])
        cosine2 = torch.rsub(rho * rho, 1).clamp_min_(1e-12)
        return g.mul_(y).addcmul_(linear, rho), dg.mul_(y).add_(linear), density(rho, cosine2).div_(cosine2.sqrt())

    return pair


@dataclass(frozen=True)
class SeriesReport:
    """How a Mehler series was cut: terms up to `degree` at correlations up to `rho`, remainder of E[f'(u) f'(v)] at
    most `remainder`, relative to E[f'^2]; that of E[f(u) f(v)] is smaller still."""

    degree: int
    rho: float
    remainder: float


class _Series:
    """Hermite coefficients c_k(s)/s of an activation at the samples' scales, enough of them for |rho| <= `reach`."""

    tolerance = 1e-11
    max_degree = 2048

    def __init__(self, activation, scales, reach):
        self.activation, self.reach = activation, reach
        d1_sq = scales.d1_sq.min()
        for degree in (32, 64, 128, 256, 512, 1024, self.max_degree):
            def table(s):
                return hermite_coefficients(activation, torch.from_numpy(s), degree).numpy() / s[:, None]

            fit = _chebyshev(table, scales.low, scales.high, activation)
            self.c = chebyshev.chebvander(_position(scales.s, scales.low, scales.high), len(fit) - 1) @ fit
            self.c[:, 0] = 0  # covariances, not second moments
            self.weights = np.arange(degree + 1) * (self.c**2).max(0) / d1_sq
            # Parseval: what the table leaves of E[f'^2]; below 1e-12 it is rounding
            self.left = (1 - (np.arange(degree + 1) * self.c**2).sum(1) / scales.d1_sq).max()
            self.report = self.cut(reach)
            if self.report.remainder <= self.tolerance:
                return

    def cut(self, rho):
        """The SeriesReport for correlations up to rho: the fewest terms that lose nothing against the full table."""
        degree = len(self.weights) - 1
        terms = self.weights[1:] * rho ** np.arange(degree)
        tail = np.cumsum(terms[::-1])
        remainder = max(self.left, 0.0) * rho**degree if self.left > 1e-12 else 0.0
        kept = degree - int(np.searchsorted(tail, 1e-14))
        return SeriesReport(max(kept, 1), rho, remainder + 1e-14)

    def check(self):
        if self.report.remainder > self.tolerance:
            raise ValueError(
                f"the Mehler series of {self.activation.name} does not converge: at |rho| = {self.reach:.8g} the "
                f"remainder after {self.report.degree} terms is {self.report.remainder:.2g}, above {self.tolerance:g}. "
                "Two samples are nearly parallel and the activation is not smooth; remove one of each such pair")


def series_report(activation: Activation, scales: torch.Tensor, rho: float) -> SeriesReport:
    """How the Mehler series is cut for correlations up to rho in absolute value between samples of these scales s (n,).

    The report is given even where `remainder` is above the 1e-11 that the kernels insist on.
    """
    return _Series(activation, _explicit_scales(activation, np.asarray(scales, dtype=np.float64)), rho).report


def _pair_series(series, device):
    c = torch.from_numpy(np.ascontiguousarray(series.c.T)).to(device)

    def pair(rows, cols, rho):
        largest = min(_largest(rho), series.reach)
        left, right = c[:, rows], c[:, cols]
        degree = series.cut(largest).degree
        g = torch.outer(left[degree], right[degree])
        dg, half_ddg, term = torch.zeros_like(g), torch.zeros_like(g), torch.empty_like(g)
        for k in range(degree - 1, -1, -1):
            torch.addcmul(dg, half_ddg, rho, out=half_ddg)
            torch.addcmul(g, dg, rho, out=dg)
            torch.addcmul(torch.outer(left[k], right[k], out=term), g, rho, out=g)
        return g, dg, half_ddg.mul_(2)

    return pair


def _pair(activation, scales, reach, device):
    """The pair function for an activation; `reach` bounds |rho|, for the series."""
    if activation.slopes and activation.kinks in ((), (0.0,)):
        return _pair_kinked_at_zero(activation, scales, device)
    if activation.slopes:
        return _pair_piecewise_linear(activation, scales, device)
    if activation.fn is torch.erf:
        return _pair_erf(activation, scales, device)
    if activation.fn is torch.sin:
        return _pair_sin(activation, scales, device)
    series = _Series(activation, scales, reach)
    series.check()
    _log.info("Mehler series of %s: %d terms at |rho| <= %.6g, relative remainder %.1g", activation.name,
              series.report.degree, reach, series.report.remainder)
    return _pair_series(series, device)


# ---------------------------------------------------------------------------------------------------------------
# tiles

def _tile_size(device):
    # a few work arrays of 180 x 180 float64 fit a core's cache, and torch leaves each to the calling thread
    return 180 if device.type == "cpu" else 2048


def _for_each_tile(n, device, work):
    """[work(rows, cols), ...] for square tiles (two slices) that cover the lower triangle and the diagonal."""
    size = _tile_size(device)
    starts = range(0, n, size)
    tiles = [(slice(i, min(i + size, n)), slice(j, min(j + size, n))) for i in starts for j in starts if j <= i]

    @torch.no_grad()
    def guarded(tile):
        return work(*tile)

    with ThreadPoolExecutor(torch.get_num_threads() if device.type == "cpu" else 1) as pool:
        return list(pool.map(guarded, tiles))


def _off_diagonal_gram(Y):
    """Y Y^T with zeros on the diagonal, only the tiles of the lower triangle computed; and its largest |entry|."""
    n, panel = len(Y), 3 * _tile_size(Y.device)
    gram = torch.empty(n, n, dtype=Y.dtype, device=Y.device)
    for start in range(0, n, panel):
        stop = min(start + panel, n)
        torch.mm(Y[start:stop], Y[:stop].T, out=gram[start:stop, :stop])
    gram.diagonal().zero_()
    return gram, max(_for_each_tile(n, Y.device, lambda rows, cols: _largest(gram[rows, cols])))


def _largest(tile):
    low, high = torch.aminmax(tile)
    return max(abs(low.item()), abs(high.item()))


def _store(target, rows, cols, tile):
    if rows == cols:
        target[rows, cols] = tile.tril() + tile.tril(-1).T
    else:
        target[rows, cols] = tile
        target[cols, rows] = tile.T


def _check_input(X):
    X = torch.as_tensor(X)
    if X.ndim != 2 or X.shape[0] < 2 or X.shape[1] < 1:
        raise ValueError(f"X must be an (n, p) matrix of n >= 2 samples, got shape {tuple(X.shape)}")
    X = X.detach().double()
    norms2 = X.square().sum(1)
    if not bool(torch.isfinite(norms2).all()):
        bad = int((~torch.isfinite(norms2)).nonzero()[0])
        raise ValueError(f"X has NaN or infinite (or overflowing) entries, first in row {bad}")
    if not bool((norms2 > 0).all()):
        raise ValueError(f"row {int((norms2 == 0).nonzero()[0])} of X is zero: its kernel entries are not defined")
    return X, norms2.cpu().numpy()


def _check_elementwise(activation):
    if not isinstance(activation, Activation):
        raise ValueError(f"an activation must be a gaussian_integration.Activation, got {type(activation).__name__}")
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for name, f in (("fn", activation.fn), ("derivative", activation.derivative)):
        whole, part = f(x), f(x[::7].flip(0))
        if whole.shape != x.shape or not torch.allclose(whole[::7].flip(0), part, rtol=1e-12, atol=1e-14):
            raise ValueError(f"activation {activation.name} is not elementwise: its {name} at a point depends on the others")


# ---------------------------------------------------------------------------------------------------------------

def implicit_kernels(X: torch.Tensor, activation: Activation, sigma_a2: float, trained: str = "aAB",
                     tau0: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact conjugate and tangent kernels of the DEQ z = phi(sigma_a A z + sigma_b B x)/sqrt(m), m -> infinity.

    Parameters
    ----------
    X : (n, p), one sample a row, on any device. Computed in float64.
    activation : as given; phi is it minus E[f(tau_* xi)], one constant for all samples.
    sigma_a2 : sigma_a^2 in (0, 1).
    trained : "aAB" for readout, A and B; "aA" for the paper's Implicit-NTK.
    tau0 : the data scale that tau_* is computed at; that of X by default.

    Returns
    -------
    (ck, ntk) : two (n, n) float64 tensors. G, and G/(1 - sigma_a^2 Gd) for "aA" or
        (G + sigma_b^2 S Gd)/(1 - sigma_a^2 Gd) for "aAB", entry by entry, with Gd = E[phi'(u) phi'(v)].

    Raises
    ------
    ValueError : X not finite, not (n >= 2, p) or with a zero row; an activation that is not elementwise or has no
        Gaussian moments; sigma_a^2 for which the diagonal, or the tangent kernel, has no fixed point; a Mehler
        series that does not reach a relative 1e-11 (near-duplicate samples and an activation that is not smooth).

    Notes
    -----
    Two n x n arrays are allocated, and no other of that size. Where the Mehler series is used, its number of terms
    is logged (logger "kernels", level INFO); `series_report` gives it as an object.
    """
    check_sigma_a2(sigma_a2)
    if trained not in ("aA", "aAB"):
        raise ValueError(f"trained must be 'aA' or 'aAB', got {trained!r}")
    _check_elementwise(activation)
    X, norms2 = _check_input(X)
    tau = get_tau(activation, sigma_a2, estimate_tau0(X) if tau0 is None else tau0)
    scales = _implicit_scales(activation, sigma_a2, norms2, gaussian_moments(activation, tau).mean)
    if (worst := sigma_a2 * scales.d1_sq.max()) >= 1:
        raise ValueError(f"the tangent kernel of {activation.name} at sigma_a^2 = {sigma_a2:g} is infinite: "
                         f"sigma_a^2 E[phi'^2] = {worst:.4g} must be below 1")
    device = X.device
    s, mean, d1, d2 = (torch.from_numpy(v).to(device) for v in (scales.s, scales.mean, scales.d1, scales.d2))
    half_d2 = d2 * s * math.sqrt(sigma_a2 / 2)
    m = mean / s
    ck, largest = _off_diagonal_gram(
        torch.cat([X * (math.sqrt(1 - sigma_a2) / s)[:, None], math.sqrt(sigma_a2) * m[:, None]], 1))
    # |g(rho)| <= |rho| Var[f]/s^2, so |rho| is at most the base over this
    spread = 1 - sigma_a2 * (scales.variance / scales.s**2).max()
    pair = _pair(activation, scales, min(1.0, largest / spread), device)
    ntk = torch.empty_like(ck)

    def work(rows, cols):
        base = ck[rows, cols].clone()
        limit = min(1.0, _largest(base) / spread)
        # second order in the base: a few digits on high-dimensional data
        linear = torch.outer(d1[rows], d1[cols]).mul_(-sigma_a2).add_(1).reciprocal_()
        rho = base * linear
        rho.addcmul_(torch.outer(half_d2[rows], half_d2[cols]).mul_(linear), rho * rho).clamp_(-limit, limit)
        for _ in range(60):
            g, dg, ddg = pair(rows, cols, rho)
            slack = torch.mul(dg, -sigma_a2).add_(1)
            step = torch.add(base, g, alpha=sigma_a2).sub_(rho).div_(slack)
            size = _largest(step)
            # Taylor's series about rho has radius 1 - |rho|: such a step leaves 1e-13 to first order in g'
            if size <= max(3e-7 * (1 - limit), 4 * _EPS):
                break
            rho.add_(step).clamp_(-limit, limit)
        else:
            raise ValueError(f"Newton's method did not converge for {activation.name}: step {size:.2g}")
        # the last step is carried along to first order
        g.addcmul_(step, dg)
        dg.addcmul_(step, ddg)
        rho.add_(step)
        g.addcmul_(m[rows, None], m[cols])
        denominator = torch.mul(dg, -sigma_a2).add_(1)
        # G + sigma_b^2 S Gd = G (1 - sigma_a^2 Gd) + Lambda Gd
        tangent = g / denominator if trained == "aA" else torch.addcdiv(g, rho.mul_(dg), denominator)
        outer = torch.outer(s[rows], s[cols])
        _store(ck, rows, cols, g.mul_(outer))
        _store(ntk, rows, cols, tangent.mul_(outer))

    _for_each_tile(len(X), device, work)
    diagonal = torch.from_numpy(scales.variance + scales.mean**2).to(device)
    d1_sq = torch.from_numpy(scales.d1_sq).to(device)
    ck.diagonal().copy_(diagonal)
    slack = 1 - sigma_a2 * d1_sq
    ntk.diagonal().copy_(diagonal / slack if trained == "aA" else diagonal + s * s * d1_sq / slack)
    return ck, ntk


def explicit_kernels(X: torch.Tensor, layers: Sequence[Activation], trained: str = "all",
                     ) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact conjugate and tangent kernels of x_l = sigma_l(W_l x_{l-1})/sqrt(m), x_0 the data, m -> infinity.

    Parameters
    ----------
    X : (n, p), one sample a row, on any device. Computed in float64.
    layers : the activations in order, as given (not centred again).
    trained : "all" weights and the readout, or all but W_1 ("frozen_first").

    Returns
    -------
    (ck, ntk) : two (n, n) float64 tensors, Sigma_L = E[sigma_L(u) sigma_L(v)], (u, v) ~ N(0, Sigma_{L-1}), and
        K_L = Sigma_L + K_{L-1} * Sigma_dot_L entry by entry, from K_0 = S or 0.

    Raises
    ------
    ValueError : as `implicit_kernels`, or no layers.
    """
    if trained not in ("all", "frozen_first"):
        raise ValueError(f"trained must be 'all' or 'frozen_first', got {trained!r}")
    if not layers:
        raise ValueError("an explicit network needs at least one layer")
    for layer in layers:
        _check_elementwise(layer)
    X, norms2 = _check_input(X)
    device = X.device
    s = np.sqrt(norms2)
    first = torch.from_numpy(s).to(device)
    ck, reach = _off_diagonal_gram(X / first[:, None])
    reach = min(1.0, reach)
    diagonal = norms2 if trained == "all" else 0 * norms2
    stack = []
    for index, layer in enumerate(layers, 1):
        scales = _explicit_scales(layer, s)
        second = scales.variance + scales.mean**2
        if second.min() <= 0:
            raise ValueError(f"layer {index} ({layer.name}) is zero at its input scale: there is no kernel after it")
        stack.append((_pair(layer, scales, reach, device),
                      *(torch.from_numpy(v).to(device) for v in (s, scales.mean, 1 / np.sqrt(second)))))
        diagonal = second + diagonal * scales.d1_sq
        # Cauchy-Schwarz bounds the next layer's correlations
        reach = min(1.0, ((reach * scales.variance + scales.mean**2) / second).max())
        s = np.sqrt(second)
    ntk = torch.empty_like(ck)

    def work(rows, cols):
        rho = ck[rows, cols].clone()
        tangent = torch.outer(first[rows], first[cols]).mul_(rho if trained == "all" else 0)
        for pair, scale, mean, shrink in stack:
            g, dg, _ = pair(rows, cols, rho.clamp_(-1, 1))
            sigma = g.mul_(torch.outer(scale[rows], scale[cols])).addcmul_(mean[rows, None], mean[cols])
            tangent.mul_(dg).add_(sigma)
            rho = torch.outer(shrink[rows], shrink[cols]).mul_(sigma)
        _store(ck, rows, cols, sigma)
        _store(ntk, rows, cols, tangent)

    _for_each_tile(len(X), device, work)
    ck.diagonal().copy_(torch.from_numpy(second))
    ntk.diagonal().copy_(torch.from_numpy(diagonal))
    return ck, ntk
