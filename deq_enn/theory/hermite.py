"""Hermite functions, and the coefficients of an activation in them, at any number of scales at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deq_enn.theory.activations import Activation
from deq_enn.theory.quadrature import CONSTANT, EPS, SQRT_2PI, TOLERANCE, lobatto

_REACH = 16.0  # standard deviations, beyond which f times the density times h_k is negligible
_MOST_EDGES = 2048  # panels at most, after which an activation counts as not resolved
_ENTRIES = 2e7  # entries of the arrays that are in memory at once


def hermite_functions(x: torch.Tensor, degree: int) -> torch.Tensor:
    """Returns h_k(x) exp(-x^2/4), k = 0 .. degree, of shape (degree + 1, *x.shape), h_k orthonormal under N(0, 1).

    The weight keeps the three-term recurrence h_{k+1} = (x h_k - sqrt(k) h_{k-1}) / sqrt(k+1) bounded at any degree.
    """
    table = torch.empty((degree + 1, *x.shape), dtype=x.dtype, device=x.device)
    table[0] = torch.exp(-x * x / 4)
    if degree:
        table[1] = x * table[0]
    for k in range(1, degree):
        torch.mul(x, table[k], out=table[k + 1])
        table[k + 1].sub_(table[k - 1], alpha=math.sqrt(k)).div_(math.sqrt(k + 1))
    return table


def hermite_coefficients(
    activation: Activation, scale: float | Sequence[float] | torch.Tensor, degree: int
) -> torch.Tensor:
    """Returns c_k = E[f(s xi) h_k(xi)], k = 0 .. degree, of the activation as given (not centred) at each scale s.

    Parameters
    ----------
    scale : positive scale(s), a float or (n,) tensor.
    degree : the largest k.

    Returns
    -------
    (n, degree + 1) float64 tensor, on the device of `scale`. Error about 1e-13 of the largest |f(s x)| e^(-x^2/4).

    Raises
    ------
    ValueError : f(s xi) is not resolved by 2048 panels (sin at scale 1e3, or a kink that was not declared),
        or grows too fast (exp at scale 10).

    Notes
    -----
    E[f(s xi) f(t xi')] = sum_k c_k(s) c_k(t) rho^k for unit Gaussians of correlation rho (Mehler).
    """
    scales = torch.as_tensor(scale, dtype=torch.float64)
    scales = scales[None] if scales.ndim == 0 else scales
    if scales.ndim != 1 or not bool(((scales > 0) & torch.isfinite(scales)).all()):
        raise ValueError("scale must be one or more positive finite numbers")
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    distinct, where = torch.unique(scales, return_inverse=True)
    kinks = torch.tensor([k for k in activation.kinks if k], dtype=torch.float64, device=scales.device)
    integrals = _Integrals(activation, distinct, degree, kinks)
    return integrals.coefficients(integrals.resolved_edges())[where]


@dataclass(frozen=True)
class _Integrals:
    """The integrals of one activation against h_0 .. h_degree, at distinct scales (n,); kinks other than 0 (k,)."""

    activation: Activation
    scales: torch.Tensor
    degree: int
    kinks: torch.Tensor

    def resolved_edges(self):
        """Returns sorted edges of panels, the same for all scales, on each of which f is a polynomial to rounding."""
        edges = self._first_edges()
        while (rough := self._unresolved(edges)).any():
            edges = torch.cat([edges, ((edges[1:] + edges[:-1]) / 2)[rough]]).sort().values
            if len(edges) > _MOST_EDGES:
                raise ValueError(
                    f"the Hermite coefficients of {self.activation.name} at scale {self.scales.max().item():.6g} do "
                    "not converge: it varies too quickly, or a kink of it is not declared"
                )
        return edges

    def coefficients(self, edges):
        """Returns c_k at each scale, (n, degree + 1), by the rule on these panels."""
        x, half = _lobatto_panels(edges[None])
        x, weights = x[0], half[0, :, None] * torch.from_numpy(lobatto().weights).to(half) / SQRT_2PI
        weights = weights * torch.exp(-x * x / 4)
        out = torch.zeros(len(self.scales), self.degree + 1, dtype=torch.float64, device=self.scales.device)
        panels = max(1, int(_ENTRIES / (20 * (self.degree + 1))))
        for some, weight in zip(x.split(panels), weights.split(panels)):
            table = hermite_functions(some.flatten(), self.degree).T
            first = int(torch.searchsorted(edges, some[0, 0])) - 1
            columns = max(1, int(_ENTRIES / some.numel()))
            for place in torch.arange(len(self.scales), device=edges.device).split(columns):
                f = self.activation.fn(self.scales[place, None, None] * some) * weight
                for _, panel in self._bends(edges, place):  # such a panel is done by halves
                    panel = panel - first
                    here = ((panel >= 0) & (panel < len(some))).nonzero()[:, 0]
                    f[here, panel[here]] = 0
                out[place] += f.flatten(1) @ table
        if len(self.kinks):
            self._add_bent(edges, out)
        return out

    def _bends(self, edges, place):
        """Yields each kink's position at these scales, from left to right, with the panel that it is in, (n,) each."""
        for k in self.kinks.sort().values:
            position = (k / self.scales[place]).clamp(-_REACH, _REACH)
            yield position, (torch.searchsorted(edges, position) - 1).clamp(0, len(edges) - 2)

    def _add_bent(self, edges, out):
        """Adds the panels with a kink in them, whose halves are elsewhere for each scale."""
        for place in torch.arange(len(out), device=edges.device).split(
            max(1, int(_ENTRIES / (40 * len(self.kinks) * (self.degree + 1))))
        ):
            bends = list(self._bends(edges, place))
            left = edges[bends[0][1]]
            for number, (position, panel) in enumerate(bends):
                last = number + 1 == len(bends)
                same = torch.zeros_like(panel, dtype=torch.bool) if last else bends[number + 1][1] == panel
                right = torch.where(same, position, edges[panel + 1])  # then the next kink begins here
                own = torch.stack([left, position, right], 1)
                if not last:
                    left = torch.where(same, position, edges[bends[number + 1][1]])
                x, half = _lobatto_panels(own)
                weights = half[..., None] * torch.from_numpy(lobatto().weights).to(half) / SQRT_2PI
                f = (self.activation.fn(self.scales[place, None, None] * x) * torch.exp(-x * x / 4) * weights).flatten(
                    1
                )
                out[place] += torch.einsum("nq,knq->nk", f, hermite_functions(x.flatten(1), self.degree))

    def _first_edges(self):
        # h_k oscillates at a frequency of about sqrt(k)
        width = min(0.5, 4 / math.sqrt(self.degree + 1))
        edges = np.linspace(-_REACH, _REACH, math.ceil(_REACH / width) * 2 + 1)  # 0 is an edge
        if not self.activation.slopes:  # f(s x) varies on a scale of 1/s about 0
            largest = self.scales.max().item()
            steps = width * 2.0 ** -np.arange(1, math.ceil(math.log2(max(1.0, 2 * width * largest))))
            edges = np.sort(np.concatenate([edges, steps, -steps]))
        return torch.from_numpy(edges).to(self.scales.device)

    def _own_edges(self, edges, s):
        """Returns (n, panels + 1) edges with the kinks, which lie elsewhere for each scale; (1, panels + 1) if none."""
        if not len(self.kinks):
            return edges[None]
        kinks = (self.kinks / s[:, None]).clamp(-_REACH, _REACH)
        return torch.cat([edges.expand(len(s), -1), kinks], 1).sort(1).values

    def _chunks(self, edges):
        """Splits the scales, so that memory is bounded."""
        columns = self.degree + 1 if len(self.kinks) else 1
        return self.scales.split(max(1, int(_ENTRIES / (20 * len(edges) * columns))))

    def _unresolved(self, edges):
        """Returns (panels,) bool: at some scale, f is no polynomial of the rule's degree on this panel."""
        spectrum = torch.from_numpy(lobatto().spectrum[-2:].T.copy()).to(self.scales.device)
        rough = torch.zeros(len(edges) - 1, dtype=torch.bool, device=edges.device)
        for s in self._chunks(edges):
            own = self._own_edges(edges, s)
            x, half = _lobatto_panels(own)
            f = self.activation.fn(s[:, None, None] * x) * torch.exp(-x * x / 4)
            largest = f.abs().amax((1, 2))
            self._check_tails(s, x, f, largest)
            at_fault = (f @ spectrum).abs().amax(-1) * half > TOLERANCE * largest[:, None]
            middles = ((own[:, 1:] + own[:, :-1]) / 2).expand(len(s), -1)[at_fault]
            rough[torch.searchsorted(edges, middles) - 1] = True
        return rough

    def _check_tails(self, s, x, f, largest):
        """Raises ValueError where f times the root of the density has not decayed at the ends."""
        ends = torch.maximum(f[:, 0, 0].abs(), f[:, -1, -1].abs())
        fine = ends <= TOLERANCE * largest
        if fine.all():
            return
        bad = int((~fine).nonzero()[0])
        if not f[bad][x[bad % len(x)].abs() < 8].any():
            raise ValueError(f"activation {self.activation.name} at scale {s[bad].item():.6g}: {CONSTANT}")
        raise ValueError(
            f"activation {self.activation.name} grows too fast for its Hermite coefficients, or is not "
            f"finite, at scale {s[bad].item():.6g}"
        )


def _lobatto_panels(edges):
    """Returns nodes (r, panels, 20) and half-widths (r, panels) of the panels between edges (r, panels + 1)."""
    left, right = edges[:, :-1], edges[:, 1:]
    half, margin = (right - left) / 2, 4 * EPS * torch.maximum(left.abs(), right.abs())
    x = (left + half)[..., None] + half[..., None] * torch.from_numpy(lobatto().nodes).to(edges)
    return torch.clamp(x, (left + margin)[..., None], (right - margin)[..., None]), half
