"""Hermite functions, and the coefficients of an activation in them, at any number of scales at once."""

import math

import numpy as np
import torch

from deq_enn.theory.activations import Activation
from deq_enn.theory.quadrature import EPS, SQRT_2PI, TOLERANCE, lobatto

# ---------------------------------------------------------------------------------------------------------------
# Hermite coefficients
_REACH = 16.0


def hermite_functions(x: torch.Tensor, degree: int) -> torch.Tensor:
    """h_k(x) exp(-x^2/4) for k = 0 .. degree, shape (degree + 1, *x.shape), with h_k orthonormal under N(0, 1).

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


def hermite_coefficients(activation: Activation, scale, degree: int) -> torch.Tensor:
    """c_k = E[f(s xi) h_k(xi)], k = 0 .. degree, of the activation as given (not centred) at each scale s.

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
    scale = torch.atleast_1d(torch.as_tensor(scale, dtype=torch.float64))
    if scale.ndim != 1 or not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise ValueError("scale must be one or more positive finite numbers")
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    distinct, where = torch.unique(scale, return_inverse=True)
    kinks = torch.tensor([k for k in activation.kinks if k], dtype=torch.float64, device=scale.device)
    spectrum = torch.from_numpy(lobatto().spectrum[-2:].T.copy()).to(scale.device)

    def own_edges(edges, s):
        """(n, panels + 1), or (1, panels + 1) shared by all scales s: kinks sit at another place for each scale."""
        if not len(kinks):
            return edges[None]
        return torch.cat([edges.expand(len(s), -1), (kinks / s[:, None]).clamp(-_REACH, _REACH)], 1).sort(1).values

    def chunks(edges):  # of scales, to bound memory
        return distinct.split(max(1, int(2e7 / (20 * len(edges) * (degree + 1 if len(kinks) else 1)))))

    def unresolved(edges):  # -> one bool for each panel: at some scale, f is no polynomial there
        rough = torch.zeros(len(edges) - 1, dtype=torch.bool, device=edges.device)
        for s in chunks(edges):
            own = own_edges(edges, s)
            x, half = _lobatto_panels(own)
            f = activation.fn(s[:, None, None] * x) * torch.exp(-x * x / 4)
            largest = f.abs().amax((1, 2))
            ends = torch.maximum(f[:, 0, 0].abs(), f[:, -1, -1].abs())
            if not (fine := ends <= TOLERANCE * largest).all():
                bad = int((~fine).nonzero()[0])
                if not f[bad][x[bad % len(x)].abs() < 12].any():
                    raise ValueError(
                        f"activation {activation.name} at scale {s[bad].item():.6g}: as far as a Gaussian variable of "
                        "this scale reaches, the function is constant"
                    )
                raise ValueError(
                    f"activation {activation.name} grows too fast for its Hermite coefficients, or is not "
                    f"finite, at scale {s[bad].item():.6g}"
                )
            at_fault = (f @ spectrum).abs().amax(-1) * half > TOLERANCE * largest[:, None]
            middles = ((own[:, 1:] + own[:, :-1]) / 2).expand(len(s), -1)[at_fault]
            rough[torch.searchsorted(edges, middles) - 1] = True
        return rough

    # f * density * h_k = f * exp(-x^2/4) * (bounded), negligible beyond 16; h_k oscillates at frequency ~ sqrt(k)
    width = min(0.5, 4 / math.sqrt(degree + 1))
    edges = np.linspace(-_REACH, _REACH, math.ceil(_REACH / width) * 2 + 1)  # 0 is an edge
    if not activation.slopes:  # f(s x) varies on a scale of 1/s about 0
        steps = width * 2.0 ** -np.arange(1, math.ceil(math.log2(max(1.0, 2 * width * scale.max().item()))))
        edges = np.sort(np.concatenate([edges, steps, -steps]))
    edges = torch.from_numpy(edges).to(scale.device)
    while (rough := unresolved(edges)).any():
        edges = torch.cat([edges, ((edges[1:] + edges[:-1]) / 2)[rough]]).sort().values
        if len(edges) > 2048:
            raise ValueError(
                f"the Hermite coefficients of {activation.name} at scale {scale.max().item():.6g} do not "
                "converge: it varies too quickly, or a kink of it is not declared"
            )

    rows = []
    for s in chunks(edges):
        own = own_edges(edges, s)
        row = torch.zeros(len(s), degree + 1, dtype=torch.float64, device=scale.device)
        block = max(1, int(2e7 / (20 * len(own) * (degree + 1))))
        for start in range(0, own.shape[1] - 1, block):
            x, half = _lobatto_panels(own[:, start : start + block + 1])
            weights = half[..., None] * torch.from_numpy(lobatto().weights).to(half) / SQRT_2PI
            f = (activation.fn(s[:, None, None] * x) * torch.exp(-x * x / 4) * weights).flatten(1)
            table = hermite_functions(x.flatten(1), degree)
            row += f @ table[:, 0].T if len(own) == 1 else torch.einsum("nq,knq->nk", f, table)
        rows.append(row)
    return torch.cat(rows)[where]


def _lobatto_panels(edges):
    """Nodes (r, panels, 20) and half-widths (r, panels) of the panels between edges (r, panels + 1)."""
    left, right = edges[:, :-1], edges[:, 1:]
    half, margin = (right - left) / 2, 4 * EPS * torch.maximum(left.abs(), right.abs())
    x = (left + half)[..., None] + half[..., None] * torch.from_numpy(lobatto().nodes).to(edges)
    return torch.clamp(x, (left + margin)[..., None], (right - margin)[..., None]), half
