"""DEQs and explicit networks of infinite width have conjugate and tangent kernels, computed here without sampling.

A DEQ has Lambda = sigma_a^2 G + sigma_b^2 S with S = X X^T and G_ij = E[phi(u) phi(v)], (u, v) centred Gaussian with
covariance [[Lambda_ii, Lambda_ij], [Lambda_ij, Lambda_jj]] (Ling et al., ICML 2024, section 2). The diagonal is one
scalar fixed point per sample (sample_scales.py). Given it, each off-diagonal entry is one scalar equation, here in the
correlation rho_ij = Lambda_ij/(s_i s_j), s_i^2 = Lambda_ii:

    rho = sigma_a^2 g(rho) + base, g = Cov[f(u), f(v)]/(s_i s_j),  base = (sigma_b^2 S_ij + sigma_a^2 m_i m_j)/(s_i s_j)

with m_i the mean of phi at scale s_i. Its derivative needs g' = E[f'(u) f'(v)], the very factor of the tangent kernel,
so that Newton's method costs nothing extra. It runs on all entries of a tile that stays in the cache. g and g' come
from pair_functions.py, and from parallel/pairs.py where |rho| is next to 1.

`implicit_kernels` and `explicit_kernels` give whole matrices, of one sample set or between two. `implicit_blocks` and
`explicit_blocks` give any part of them (blocks.py), for matrices that do not fit twice, or not at all.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from deq_enn.kernels.blocks import Blocks
from deq_enn.kernels.pair_functions import pair_function
from deq_enn.kernels.parallel.pairs import Moments, angle, explicit_pairs, implicit_pairs, squared_distances
from deq_enn.kernels.pieces import with_slopes
from deq_enn.kernels.sample_scales import explicit_scales, implicit_scales
from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import check_sigma_a2, estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.theory.recognise import recognise
from deq_enn.utils.tiles import largest

_EPS = torch.finfo(torch.float64).eps


class _Implicit(Blocks):
    def __init__(self, X, activation, sigma_a2, trained, tau0, other):
        super().__init__(X, other)
        self.tau0 = estimate_tau0(self._X[: self.shape[1]]) if tau0 is None else tau0
        tau = get_tau(activation, sigma_a2, self.tau0)
        self.activation, self.sigma_a2, self.trained = activation, sigma_a2, trained
        self.centre = gaussian_moments(activation, tau).mean
        scales = self.scales = implicit_scales(activation, sigma_a2, self._norms2, self.centre)
        known = with_slopes(activation, scales.s.max())
        self.near = Moments(known, self.centre, scales.s.min(), scales.s.max())
        self.pair = pair_function(activation, scales, self.device, self.near.cost)
        self.s, mean, self.d1, d2 = self._tensors(scales.s, scales.mean, scales.d1, scales.d2)
        self.m, self.half_d2 = mean / self.s, d2 * self.s * math.sqrt(sigma_a2 / 2)
        # |rho| <= |base|/sqrt(q_i q_j) with q = 1 - sigma_a^2 V/s^2, because |g(rho)| <= |rho| sqrt(V_i V_j)/(s_i s_j)
        # and 1 - sqrt(ab) >= sqrt((1 - a)(1 - b))
        (self.reach,) = self._tensors(1 / np.sqrt(1 - sigma_a2 * scales.variance / scales.s**2))
        self.rounding = 16 * _EPS / (1 - sigma_a2 * scales.d1_sq.max())
        self._Y = torch.cat(
            [self._X * (math.sqrt(1 - sigma_a2) / self.s)[:, None], math.sqrt(sigma_a2) * self.m[:, None]], 1
        )
        del self._X
        second, d1_sq = self._tensors(scales.second, scales.d1_sq)
        slack = 1 - sigma_a2 * d1_sq
        variance = torch.where(second > 0, self.s**2, 0)  # of a sample whose equilibrium is 0 too
        self._diagonals = second, second / slack if trained == "aA" else second + variance * d1_sq / slack

    @property
    def _moments(self):
        return [self.near]

    @property
    def _pair_functions(self):
        return [self.pair]

    @property
    def _dear(self):
        return self.pair.dear

    @property
    def _name(self):
        return f"a DEQ of {self.activation.name}"

    def _at(self, X, other):
        blocks = _Implicit(X, self.activation, self.sigma_a2, self.trained, self.tau0, other)
        blocks.near = self.near
        return blocks

    def _entries(self, rows, cols, base):
        sigma_a2, d1, half_d2, m = self.sigma_a2, self.d1, self.half_d2, self.m
        most = (self.reach[rows, None] * self.reach[cols]).mul_(base)
        bound = min(largest(most), 1.0)
        limit = self.pair.limit(most, bound)  # each pair that turns out to be beyond it is dear
        # the start is of second order in the base, which is right to a few digits on high-dimensional data
        linear = (d1[rows, None] * d1[cols]).mul_(-sigma_a2).add_(1).reciprocal_()
        rho = base * linear
        rho.addcmul_((half_d2[rows, None] * half_d2[cols]).mul_(linear), rho * rho)
        rho.clamp_(-limit, limit)
        for number in range(60):
            g, dg, ddg = self.pair(rows, cols, rho)
            slack = torch.mul(dg, -sigma_a2).add_(1)
            step = torch.add(base, g, alpha=sigma_a2).sub_(rho).div_(slack)
            if limit < bound or number > 8:  # a solution beyond the limit, or by rounding the bound, waits there
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
        """Returns G/(s_i s_j), G_dot and rho between the samples of two lists."""
        sign = torch.where(opposite, -1.0, 1.0).double()
        distance2 = squared_distances(self._Y[:, :-1], self.s, i, j, sign)
        (s_i, second_i), (s_j, second_j) = (
            [torch.from_numpy(values[index.cpu().numpy()]) for values in (self.scales.s, self.scales.second)]
            for index in (i, j)
        )
        solved = implicit_pairs(self.near, self.sigma_a2, s_i, s_j, sign.cpu(), distance2.cpu(), second_i, second_j)
        G, dot, covariance = (values.to(self.device) for values in solved)
        ss = self.s[i] * self.s[j]
        return G / ss, dot, covariance / ss


class _Explicit(Blocks):
    def __init__(self, X, layers, trained, other):
        super().__init__(X, other)
        self.layers, self.trained = layers, trained
        s = np.sqrt(self._norms2)
        (self.s,) = self._tensors(s)
        self._Y = self._X / torch.where(self.s > 0, self.s, 1)[:, None]
        del self._X
        diagonal = self._norms2 if trained == "all" else 0 * self._norms2
        self.stack, self.seconds, self.near = [], [], []
        for index, layer in enumerate(layers, 1):
            scales = explicit_scales(layer, s)
            if (scales.second[s > 0] <= 0).any():
                raise ValueError(
                    f"layer {index} ({layer.name}) is zero at its input scale: there is no kernel after it"
                )
            s_next = np.sqrt(scales.second)
            known = with_slopes(layer, scales.s.max())
            self.near.append(Moments(known, 0.0, scales.s.min(), scales.s.max()))
            self.stack.append(
                (
                    pair_function(layer, scales, self.device, self.near[-1].cost),
                    *self._tensors(scales.s, scales.mean, _inverse(s_next)),
                )
            )
            self.seconds.append(torch.from_numpy(scales.second))
            diagonal = scales.second + diagonal * scales.d1_sq
            s = s_next
        second, diagonal = self._tensors(self.seconds[-1].numpy(), diagonal)
        self._diagonals = second, diagonal

    @property
    def _moments(self):
        return self.near

    @property
    def _pair_functions(self):
        return [pair for pair, *_ in self.stack]

    @property
    def _dear(self):
        return any(pair.dear or pair.cut < 1 for pair in self._pair_functions)

    @property
    def _quick_without_angle(self):
        """Tells whether all pairs are parallel at the only layer, and quicker than by its pair function."""
        alone = self._parallel and len(self.stack) == 1
        return alone and self.stack[0][0].cut < 1 and self.near[0].quick_without_angle

    @property
    def _name(self):
        return "a network of " + ", ".join(layer.name for layer in self.layers)

    def _at(self, X, other):
        blocks = _Explicit(X, self.layers, self.trained, other)
        blocks.near = self.near
        return blocks

    def _entries(self, rows, cols, base):
        rho = sigma = base
        tangent = (self.s[rows, None] * self.s[cols]).mul_(rho if self.trained == "all" else 0)
        aside = []  # pairs that are nearly parallel at a layer, with what they have ahead of it
        for index, (pair, scale, mean, shrink) in enumerate(self.stack):
            bound = min(largest(rho), 1.0)
            limit = 0.0 if self._quick_without_angle else pair.limit(rho, bound)
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
        """Returns the kernels between the samples of two lists; layer `index` is the first at which they are parallel.

        rho, linear : their correlations and tangent kernels ahead of that layer.
        """
        sign = torch.where(rho < 0, -1.0, 1.0).double()
        closeness = 1 - rho.abs() if index else squared_distances(self._Y, None, i, j, sign) / 2
        scale = self.stack[index][1]
        seconds = [(second[i.cpu()], second[j.cpu()]) for second in self.seconds[index:]]
        theta = angle(closeness.cpu())
        ck, ntk = explicit_pairs(
            self.near[index:], scale[i].cpu(), scale[j].cpu(), sign.cpu(), theta, linear.cpu(), seconds
        )
        return ck.to(self.device), ntk.to(self.device)


def _inverse(s: np.ndarray) -> np.ndarray:
    """Returns 1/s, and 0 for a sample that is 0: it has no correlation with any other."""
    return np.divide(1, s, out=np.zeros_like(s), where=s > 0)


def _pairs(rows, cols, r, c):
    """Returns the samples at these places of the tile that `_entries` was asked for."""
    return (r + rows.start, c + cols.start) if isinstance(rows, slice) else (rows[r], cols[r, 0])


def _elementwise(activation):
    activation = recognise(activation)
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for name, f in (("fn", activation.fn), ("derivative", activation.derivative)):
        whole, part = f(x), f(x[::7].flip(0))
        if whole.shape != x.shape or not torch.allclose(whole[::7].flip(0), part, rtol=1e-12, atol=1e-14):
            raise ValueError(
                f"activation {activation.name} is not elementwise: its {name} at a point depends on the others"
            )
    return activation


def implicit_blocks(
    X: torch.Tensor,
    activation: Activation | str | Elementwise,
    sigma_a2: float,
    trained: str = "aAB",
    tau0: float | None = None,
    other: torch.Tensor | None = None,
) -> Blocks:
    """Returns the kernels of `implicit_kernels` as `Blocks`; `implicit_kernels` explains the parameters."""
    check_sigma_a2(sigma_a2)
    if trained not in ("aA", "aAB"):
        raise ValueError(f"trained must be 'aA' or 'aAB', got {trained!r}")
    return _Implicit(X, _elementwise(activation), sigma_a2, trained, tau0, other)


def implicit_kernels(
    X: torch.Tensor,
    activation: Activation | str | Elementwise,
    sigma_a2: float,
    trained: str = "aAB",
    tau0: float | None = None,
    other: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact CK and NTK of the DEQ z = phi(sigma_a A z + sigma_b B x)/sqrt(m), m -> infinity.

    Parameters
    ----------
    X : (n, p), one sample a row, on any device. Computed in float64.
    activation : an `Activation`, a name of the registry or a torch function, as given; phi is it minus E[f(tau_* xi)],
        one constant for all samples.
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
    ValueError : X not finite, not (n, p), or zero; an activation that is not elementwise, has a jump, or no
        Gaussian moments; sigma_a^2 for which the diagonal has no fixed point or the equilibrium is not stable.

    Notes
    -----
    Samples may be parallel, opposite or the same. More than a few nearly parallel pairs of an activation without a
    closed form are read from a table that takes a few tenths of a second (kernels/parallel). A piecewise-linear
    function with declared kinks has a closed form, and one that is quadratic between them, such as hardswish, takes a
    few tenths of a millisecond for each such pair. Any other with kinks away from 0 takes a quadrature of 1 to 3 ms,
    once for those that are alike. From about a hundred samples of one attribute on, kernels are read from a table of
    two norms, to 5e-11 of the diagonal. It takes some thousand pairs; those that it has cost no more than others. A
    sample may be zero: its kernels are the limit of ever smaller samples. Two arrays of the result's size are
    allocated, and no other. Where the Mehler series is used, its number of terms is logged (logger "kernels", level
    INFO).
    """
    return implicit_blocks(X, activation, sigma_a2, trained, tau0, other).both()


def explicit_blocks(
    X: torch.Tensor,
    layers: Sequence[Activation | str | Elementwise],
    trained: str = "all",
    other: torch.Tensor | None = None,
) -> Blocks:
    """Returns the kernels of `explicit_kernels` as `Blocks`; `explicit_kernels` explains the parameters."""
    if trained not in ("all", "frozen_first"):
        raise ValueError(f"trained must be 'all' or 'frozen_first', got {trained!r}")
    if not layers:
        raise ValueError("an explicit network needs at least one layer")
    return _Explicit(X, [_elementwise(layer) for layer in layers], trained, other)


def explicit_kernels(
    X: torch.Tensor,
    layers: Sequence[Activation | str | Elementwise],
    trained: str = "all",
    other: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact CK and NTK of x_l = sigma_l(W_l x_{l-1})/sqrt(m), x_0 the data, m -> infinity.

    Parameters
    ----------
    X : (n, p), one sample a row, on any device. Computed in float64.
    layers : the activations in order, each as there, as given (not centred again).
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
