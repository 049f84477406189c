"""The exact infinite-width conjugate and tangent kernels of DEQs and of explicit networks, with no sampling.

A DEQ has Lambda = sigma_a^2 G + sigma_b^2 S with S = X X^T and G_ij = E[phi(u) phi(v)], (u, v) centred Gaussian with
covariance [[Lambda_ii, Lambda_ij], [Lambda_ij, Lambda_jj]] (Ling et al., ICML 2024, section 2). The diagonal is one
scalar fixed point per sample (scales.py). Given it, each off-diagonal entry is one scalar equation, here in the
correlation rho_ij = Lambda_ij/(s_i s_j), s_i^2 = Lambda_ii:

    rho = sigma_a^2 g(rho) + base, g = Cov[f(u), f(v)]/(s_i s_j),  base = (sigma_b^2 S_ij + sigma_a^2 m_i m_j)/(s_i s_j)

with m_i the mean of phi at scale s_i. Its derivative needs g' = E[f'(u) f'(v)], the very factor of the tangent kernel,
so Newton's method costs nothing extra; it runs on all entries of a tile that stays in the cache. g and g' are those of
pair_functions.py, and of parallel_pairs.py where |rho| is next to 1.

`implicit_kernels` and `explicit_kernels` give whole matrices, of one sample set or between two. `implicit_blocks` and
`explicit_blocks` give any part of them, for matrices that do not fit twice, or not at all.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from deq_enn.kernels.near_parallel import angle, explicit_pairs, implicit_pairs, squared_distances
from deq_enn.kernels.pair_functions import pair_function
from deq_enn.kernels.sample_scales import explicit_scales, implicit_scales
from deq_enn.theory.activations import Activation
from deq_enn.theory.equilibrium import check_sigma_a2, estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.tiles import for_each, largest, tile_size, tiles

_EPS = torch.finfo(torch.float64).eps


class Blocks(ABC):
    """A kernel matrix of one set of samples, or between two, of which any part can be computed.

    Attributes
    ----------
    shape : (rows, columns): (n, n) for samples X (n, p), or (m, n) for other samples (m, p) against X.

    Notes
    -----
    Nothing of the size of the matrix is kept. Parts may be asked for by several threads at once.
    """

    def __init__(self, X, other):
        X, norms2 = _check_input(X, "X")
        self.shape, self.first = (len(X), len(X)), 0  # rows: the samples from `first` on; columns: the first n
        if other is not None:
            other, other_norms2 = _check_input(other, "other")
            if other.shape[1] != X.shape[1]:
                raise ValueError(f"the samples of X have {X.shape[1]} entries, those of other {other.shape[1]}")
            self.shape, self.first = (len(other), len(X)), len(X)
            X, norms2 = torch.cat([X, other.to(X.device)]), np.concatenate([norms2, other_norms2])
        self._X, self._norms2, self.device = X, norms2, X.device

    @abstractmethod
    def _entries(self, rows, cols, base):
        """(ck, ntk) of a tile, given the product of its `_Y`; what it has on the matrix's diagonal does not count.

        rows, cols : two slices, or the pairs (rows[k], cols[k]) as two index tensors (k,) and (k, 1): a tile (k, 1).
        """

    def diagonal(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(ck, ntk) of each of the rows' samples with itself, float64."""
        return tuple(values[self.first :] for values in self._diagonals)

    def tile(self, rows: slice, cols: slice, kernel: str = "ck", out: torch.Tensor | None = None) -> torch.Tensor:
        """The kernel "ck" or "ntk" at these rows and columns.

        Parameters
        ----------
        out : where to write it, of any float dtype; a new float64 tensor by default.

        Notes
        -----
        Large parts are best: their matrix product is one call, and what follows is shared out among torch's threads in
        pieces that stay in the cache. That product, in float64, is the only memory that it takes.
        """
        if kernel not in ("ck", "ntk"):
            raise ValueError(f"kernel must be 'ck' or 'ntk', got {kernel!r}")
        rows, cols = (slice(*span.indices(size)[:2]) for span, size in zip((rows, cols), self.shape))
        which, down = ("ck", "ntk").index(kernel), rows.start + self.first
        base = self._product(rows, cols)
        out = base if out is None else out
        same = [] if self.first else range(max(rows.start, cols.start), min(rows.stop, cols.stop))
        for i in same:
            base[i - rows.start, i - cols.start] = 0

        def work(r, c):
            own = slice(r.start + down, r.stop + down), slice(c.start + cols.start, c.stop + cols.start)
            out[r, c] = self._entries(*own, base[r, c].contiguous())[which]

        for_each(work, tiles(*(slice(0, length) for length in base.shape), tile_size(self.device)), self.device)
        for i in same:
            out[i - rows.start, i - cols.start] = self._diagonals[which][i]
        return out

    def entries(self, rows: torch.Tensor, cols: torch.Tensor, kernel: str = "ck") -> torch.Tensor:
        """The kernel at the pairs (rows[k], cols[k]), which are not on the diagonal: (k,) float64."""
        which, out = ("ck", "ntk").index(kernel), torch.empty(len(rows), dtype=torch.float64, device=self.device)
        size = tile_size(self.device) ** 2
        for part in (slice(start, start + size) for start in range(0, len(rows), size)):
            i, j = rows[part] + self.first, cols[part]
            base = torch.cat([(self._Y[a] * self._Y[b]).sum(1) for a, b in zip(i.split(1024), j.split(1024))])
            out[part] = self._entries(i, j[:, None], base[:, None])[which][:, 0]
        return out

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole conjugate and tangent kernel, float64. Of a square matrix one triangle is computed and mirrored."""
        ck = torch.empty(self.shape, dtype=torch.float64, device=self.device)
        ntk, square = torch.empty_like(ck), not self.first
        jobs = tiles(*(slice(0, length) for length in self.shape), tile_size(self.device), lower=square)
        starts = sorted({rows.start for rows, _ in jobs})[::3]  # wide products are faster
        for start, stop in zip(starts, [*starts[1:], len(ck)]):
            rows, cols = slice(start, stop), slice(0, stop if square else len(ck.T))
            self._product(rows, cols, out=ck[rows, cols])
        if square:
            ck.diagonal().zero_()

        def work(rows, cols):
            own = slice(rows.start + self.first, rows.stop + self.first)
            for target, tile in zip((ck, ntk), self._entries(own, cols, ck[rows, cols].contiguous())):
                if square and rows == cols:
                    tile = tile.tril() + tile.tril(-1).T
                elif square:
                    target[cols, rows] = tile.T
                target[rows, cols] = tile

        for_each(work, jobs, self.device)
        if square:
            for target, diagonal in zip((ck, ntk), self._diagonals):
                target.diagonal().copy_(diagonal)
        return ck, ntk

    def _product(self, rows, cols, out=None):
        return torch.mm(self._Y[rows.start + self.first : rows.stop + self.first], self._Y[cols].T, out=out)

    def _tensors(self, *arrays):
        return [torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in arrays]


class _Implicit(Blocks):
    def __init__(self, X, activation, sigma_a2, trained, tau0, other):
        super().__init__(X, other)
        tau = get_tau(activation, sigma_a2, estimate_tau0(self._X[: self.shape[1]]) if tau0 is None else tau0)
        self.activation, self.sigma_a2, self.trained = activation, sigma_a2, trained
        self.centre = gaussian_moments(activation, tau).mean
        scales = self.scales = implicit_scales(activation, sigma_a2, self._norms2, self.centre)
        self.pair = pair_function(activation, scales, self.device)
        self.s, mean, self.d1, d2 = self._tensors(scales.s, scales.mean, scales.d1, scales.d2)
        self.m, self.half_d2 = mean / self.s, d2 * self.s * math.sqrt(sigma_a2 / 2)
        # |rho| <= |base|/sqrt(q_i q_j) with q = 1 - sigma_a^2 V/s^2, for |g(rho)| <= |rho| sqrt(V_i V_j)/(s_i s_j) and
        # 1 - sqrt(ab) >= sqrt((1 - a)(1 - b))
        (self.reach,) = self._tensors(1 / np.sqrt(1 - sigma_a2 * scales.variance / scales.s**2))
        self.rounding = 16 * _EPS / (1 - sigma_a2 * scales.d1_sq.max())
        self._Y = torch.cat(
            [self._X * (math.sqrt(1 - sigma_a2) / self.s)[:, None], math.sqrt(sigma_a2) * self.m[:, None]], 1
        )
        del self._X
        second, d1_sq = self._tensors(scales.second, scales.d1_sq)
        slack = 1 - sigma_a2 * d1_sq
        self._diagonals = second, second / slack if trained == "aA" else second + self.s**2 * d1_sq / slack

    def _entries(self, rows, cols, base):
        sigma_a2, d1, half_d2, m = self.sigma_a2, self.d1, self.half_d2, self.m
        most = (self.reach[rows, None] * self.reach[cols]).mul_(base)
        bound = min(largest(most), 1.0)
        limit = self.pair.limit(most, bound)  # of pairs that turn out beyond it each is dear
        # second order in the base: a few digits on high-dimensional data
        linear = (d1[rows, None] * d1[cols]).mul_(-sigma_a2).add_(1).reciprocal_()
        rho = base * linear
        rho.addcmul_((half_d2[rows, None] * half_d2[cols]).mul_(linear), rho * rho)
        rho.clamp_(-limit, limit)
        for _ in range(60):
            g, dg, ddg = self.pair(rows, cols, rho)
            slack = torch.mul(dg, -sigma_a2).add_(1)
            step = torch.add(base, g, alpha=sigma_a2).sub_(rho).div_(slack)
            if limit < bound:  # a solution beyond the limit waits there
                step.add_(rho).clamp_(-limit, limit).sub_(rho)
            size = largest(step)
            # Taylor's series about rho has radius 1 - |rho|: such a step leaves 1e-13 to first order in g'
            if size <= max(3e-7 * (1 - limit), self.rounding):
                break
            rho.add_(step).clamp_(-limit, limit)
        else:
            raise ValueError(f"Newton's method did not converge for {self.activation.name}: step {size:.2g}")
        # the last step is carried along to first order
        g.addcmul_(step, dg)
        dg.addcmul_(step, ddg)
        rho.add_(step)
        g.addcmul_(m[rows, None], m[cols])
        if limit < bound:
            r, c = (rho.abs() >= limit - self.rounding).nonzero(as_tuple=True)
            if len(r):
                g[r, c], dg[r, c], rho[r, c] = self._nearly_parallel(*_pairs(rows, cols, r, c), rho[r, c] < 0)
        denominator = torch.mul(dg, -sigma_a2).add_(1)
        # G + sigma_b^2 S Gd = G (1 - sigma_a^2 Gd) + Lambda Gd
        tangent = g / denominator if self.trained == "aA" else torch.addcdiv(g, rho.mul_(dg), denominator)
        outer = self.s[rows, None] * self.s[cols]
        return g.mul_(outer), tangent.mul_(outer)

    def _nearly_parallel(self, i, j, opposite):
        """G/(s_i s_j), G_dot and rho between the samples of two lists."""
        sign = torch.where(opposite, -1.0, 1.0).double()
        distance2 = squared_distances(self._Y[:, :-1], self.s, i, j, sign)
        (s_i, second_i), (s_j, second_j) = (
            [torch.from_numpy(values[index.cpu().numpy()]) for values in (self.scales.s, self.scales.second)]
            for index in (i, j)
        )
        found = implicit_pairs(
            self.activation, self.centre, self.sigma_a2, s_i, s_j, sign.cpu(), distance2.cpu(), second_i, second_j
        )
        G, dot, covariance = (values.to(self.device) for values in found)
        ss = self.s[i] * self.s[j]
        return G / ss, dot, covariance / ss


class _Explicit(Blocks):
    def __init__(self, X, layers, trained, other):
        super().__init__(X, other)
        self.layers, self.trained = layers, trained
        s = np.sqrt(self._norms2)
        (self.s,) = self._tensors(s)
        self._Y = self._X / self.s[:, None]
        del self._X
        diagonal = self._norms2 if trained == "all" else 0 * self._norms2
        self.stack, self.seconds = [], []
        for index, layer in enumerate(layers, 1):
            scales = explicit_scales(layer, s)
            if scales.second.min() <= 0:
                raise ValueError(
                    f"layer {index} ({layer.name}) is zero at its input scale: there is no kernel after it"
                )
            self.stack.append(
                (pair_function(layer, scales, self.device), *self._tensors(s, scales.mean, 1 / np.sqrt(scales.second)))
            )
            self.seconds.append(torch.from_numpy(scales.second))
            diagonal = scales.second + diagonal * scales.d1_sq
            s = np.sqrt(scales.second)
        self._diagonals = self._tensors(self.seconds[-1].numpy(), diagonal)

    def _entries(self, rows, cols, rho):
        tangent = (self.s[rows, None] * self.s[cols]).mul_(rho if self.trained == "all" else 0)
        aside = []
        for index, (pair, scale, mean, shrink) in enumerate(self.stack):
            bound = min(largest(rho), 1.0)
            limit = pair.limit(rho, bound)
            if limit < bound:
                r, c = (rho.abs() > limit).nonzero(as_tuple=True)
                aside.append((index, r, c, rho[r, c], tangent[r, c]))
                rho[r, c] = 0
            g, dg, _ = pair(rows, cols, rho)
            sigma = g.mul_(scale[rows, None] * scale[cols]).addcmul_(mean[rows, None], mean[cols])
            tangent.mul_(dg).add_(sigma)
            rho = (shrink[rows, None] * shrink[cols]).mul_(sigma)
        for index, r, c, before, linear in reversed(aside):  # the first layer at which a pair is nearly parallel counts
            sigma[r, c], tangent[r, c] = self._nearly_parallel(index, *_pairs(rows, cols, r, c), before, linear)
        return sigma, tangent

    def _nearly_parallel(self, index, i, j, rho, linear):
        """The kernels between the samples of two lists, from the layer numbered `index` on, given those ahead of it."""
        sign = torch.where(rho < 0, -1.0, 1.0).double()
        closeness = 1 - rho.abs() if index else squared_distances(self._Y, None, i, j, sign) / 2
        scale = self.stack[index][1]
        seconds = [(second[i.cpu()], second[j.cpu()]) for second in self.seconds[index:]]
        found = explicit_pairs(
            self.layers[index:],
            scale[i].cpu(),
            scale[j].cpu(),
            sign.cpu(),
            angle(closeness.cpu()),
            linear.cpu(),
            seconds,
        )
        return (values.to(self.device) for values in found)


def _pairs(rows, cols, r, c):
    """The samples at these places of what `_entries` was asked for."""
    return (r + rows.start, c + cols.start) if isinstance(rows, slice) else (rows[r], cols[r, 0])


def _check_input(X, name):
    X = torch.as_tensor(X)
    if X.ndim != 2 or X.shape[0] < 1 or X.shape[1] < 1:
        raise ValueError(f"{name} must be an (n, p) matrix, one sample a row, got shape {tuple(X.shape)}")
    X = X.detach().double()
    norms2 = X.square().sum(1)
    if not bool(torch.isfinite(norms2).all()):
        bad = int((~torch.isfinite(norms2)).nonzero()[0])
        raise ValueError(f"{name} has NaN or infinite (or overflowing) entries, first in row {bad}")
    if not bool((norms2 > 0).all()):
        raise ValueError(f"row {int((norms2 == 0).nonzero()[0])} of {name} is zero: its kernel entries are not defined")
    return X, norms2.cpu().numpy()


def _check_elementwise(activation):
    if not isinstance(activation, Activation):
        raise ValueError(f"an activation must be a gaussian_integration.Activation, got {type(activation).__name__}")
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for name, f in (("fn", activation.fn), ("derivative", activation.derivative)):
        whole, part = f(x), f(x[::7].flip(0))
        if whole.shape != x.shape or not torch.allclose(whole[::7].flip(0), part, rtol=1e-12, atol=1e-14):
            raise ValueError(
                f"activation {activation.name} is not elementwise: its {name} at a point depends on the others"
            )


# ---------------------------------------------------------------------------------------------------------------


def implicit_blocks(
    X: torch.Tensor,
    activation: Activation,
    sigma_a2: float,
    trained: str = "aAB",
    tau0: float | None = None,
    other: torch.Tensor | None = None,
) -> Blocks:
    """The kernels of `implicit_kernels`, part by part: see `Blocks.tile`, and `implicit_kernels` for the parameters."""
    check_sigma_a2(sigma_a2)
    if trained not in ("aA", "aAB"):
        raise ValueError(f"trained must be 'aA' or 'aAB', got {trained!r}")
    _check_elementwise(activation)
    return _Implicit(X, activation, sigma_a2, trained, tau0, other)


def implicit_kernels(
    X: torch.Tensor,
    activation: Activation,
    sigma_a2: float,
    trained: str = "aAB",
    tau0: float | None = None,
    other: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact conjugate and tangent kernels of the DEQ z = phi(sigma_a A z + sigma_b B x)/sqrt(m), m -> infinity.

    Parameters
    ----------
    X : (n, p), one sample a row, on any device. Computed in float64.
    activation : as given; phi is it minus E[f(tau_* xi)], one constant for all samples.
    sigma_a2 : sigma_a^2 in (0, 1).
    trained : "aAB" for readout, A and B; "aA" for the paper's Implicit-NTK.
    tau0 : the data scale that tau_* is computed at; that of X by default.
    other : (m, p), other samples, such as test data: then the kernels are those between them (rows) and X (columns).

    Returns
    -------
    (ck, ntk) : two (n, n) or (m, n) float64 tensors. G, and G/(1 - sigma_a^2 Gd) for "aA" or
        (G + sigma_b^2 S Gd)/(1 - sigma_a^2 Gd) for "aAB", entry by entry, with Gd = E[phi'(u) phi'(v)].

    Raises
    ------
    ValueError : X not finite, not (n, p) or with a zero row; an activation that is not elementwise, has a jump, or no
        Gaussian moments; sigma_a^2 for which the diagonal has no fixed point or the equilibrium is not stable.

    Notes
    -----
    Samples may be parallel, opposite or the same. Where f is neither analytic nor piecewise linear (elu, selu,
    softsign, most functions with kinks) such pairs go through a quadrature of 5 to 250 ms each
    (`near_parallel`), once for those that are alike. Two arrays of the result's size are allocated, and no other. Where
    the Mehler series is used, its number of terms is logged (logger "kernels", level INFO); `series_report` gives it
    as an object.
    """
    return implicit_blocks(X, activation, sigma_a2, trained, tau0, other).both()


def explicit_blocks(
    X: torch.Tensor, layers: Sequence[Activation], trained: str = "all", other: torch.Tensor | None = None
) -> Blocks:
    """The kernels of `explicit_kernels`, part by part: see `Blocks.tile`, and `explicit_kernels` for the parameters."""
    if trained not in ("all", "frozen_first"):
        raise ValueError(f"trained must be 'all' or 'frozen_first', got {trained!r}")
    if not layers:
        raise ValueError("an explicit network needs at least one layer")
    for layer in layers:
        _check_elementwise(layer)
    return _Explicit(X, layers, trained, other)


def explicit_kernels(
    X: torch.Tensor, layers: Sequence[Activation], trained: str = "all", other: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact conjugate and tangent kernels of x_l = sigma_l(W_l x_{l-1})/sqrt(m), x_0 the data, m -> infinity.

    Parameters
    ----------
    X : (n, p), one sample a row, on any device. Computed in float64.
    layers : the activations in order, as given (not centred again).
    trained : "all" weights and the readout, or all but W_1 ("frozen_first").
    other : (m, p), other samples, such as test data: then the kernels are those between them (rows) and X (columns).

    Returns
    -------
    (ck, ntk) : two (n, n) or (m, n) float64 tensors, Sigma_L = E[sigma_L(u) sigma_L(v)], (u, v) ~ N(0, Sigma_{L-1}),
        and K_L = Sigma_L + K_{L-1} * Sigma_dot_L entry by entry, from K_0 = S or 0.

    Raises
    ------
    ValueError : as `implicit_kernels`, or no layers.
    """
    return explicit_blocks(X, layers, trained, other).both()
