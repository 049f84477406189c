"""Moments between nearly parallel samples, by quadrature in the plane: right for every activation, and dear.

For (u, v) with v = sign v', where u and v' have scales a and b and the angle theta between them, the expectations are
integrals in polar coordinates,

    u = a r cos(w - theta/2),   v = sign b r cos(w + theta/2),

whose panels end where u or v crosses a kink of the activation: in r along each ray, and in w where two such lines meet.
Parallel samples (theta = 0) are a case like any other. A pair takes 5 to 250 ms.
"""

import math
from functools import cache

import numpy as np
import torch

from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check

_REACH = 9.0  # radius where exp(-r^2/2) is 3e-18; panels go so far beyond the farthest kink
_CHUNK = 300_000  # nodes at a time, few enough to stay in the cache


@cache
def legendre(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the n nodes and weights (n,) of Gauss and Legendre on (0, 1); the integrals of this folder share them."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def _panels(edges, n):
    """Returns nodes and weights (..., panels * n) of Gauss-Legendre rules between sorted edges (..., panels + 1)."""
    nodes, weights = legendre(n)
    width = edges.diff()[..., None]
    return ((edges[..., :-1, None] + width * nodes).flatten(-2), (width * weights).flatten(-2))


def _graded(scale, feature=1.0):
    """Returns 1/2, 1/4, ... down to where an activation at this scale has features of this size about 0."""
    return 0.5 ** torch.arange(1, 1 + max(1, math.ceil(math.log2(4 * scale / feature + 1))), dtype=torch.float64)


def _angles(a, b, sign, theta, kinks, n):
    """Returns nodes and weights (pairs, n_w) of the angle w over a full turn."""
    pairs, pi = len(a), math.pi
    zero = torch.stack([-pi / 2 - theta / 2, -pi / 2 + theta / 2, pi / 2 - theta / 2, pi / 2 + theta / 2], 1)
    offsets = pi / 2 * _graded(max(a.max().item(), b.max().item()), min([1.0, *(abs(k) for k in kinks if k)]))
    offsets = torch.cat([-offsets.flip(0), offsets])
    edges = [zero, (zero[..., None] + offsets).flatten(1)]
    for k in kinks:
        for other in kinks:
            if k or other:  # the lines u = k and v = other meet, sign b k cos(w + theta/2) = other a cos(w - theta/2)
                x, y = other * a, sign * k * b
                meet = torch.atan2((y - x) * torch.cos(theta / 2), (x + y) * torch.sin(theta / 2))
                edges += [meet[:, None], meet[:, None] + pi]
    turn = torch.tensor([-1.5 * pi, 0.5 * pi], dtype=torch.float64)
    edges = turn[0] + (torch.cat(edges, 1) - turn[0]) % (2 * pi)
    edges = torch.cat([edges, turn.expand(pairs, 2)], 1).sort(1).values
    return _panels(edges, n)


def pair_moments(
    activation: Activation,
    centre: float,
    a: torch.Tensor,
    b: torch.Tensor,
    sign: torch.Tensor,
    theta: torch.Tensor,
    nodes: int,
) -> torch.Tensor:
    """Returns E[(phi(u) - sign phi(v))^2] and E[f'(u) f'(v)], phi = f - centre, (2, pairs), at scales a and b (pairs,).

    u and v are Gaussian with correlation sign * cos(theta), theta in [0, pi/2], sign +1 or -1, all of shape (pairs,).
    """
    out = torch.empty(2, len(a), dtype=torch.float64)
    least = min(a.min().item(), b.min().item())
    reach = min(_REACH + max((abs(k) / least for k in activation.kinks if abs(k) < 38 * least), default=0.0), 38.0)
    far = torch.arange(_REACH, reach, 2.0, dtype=torch.float64)[1:]
    radii = torch.tensor([0, 1, 2, 3.5, 5.5, _REACH, reach], dtype=torch.float64)
    radii = torch.cat([radii, far, _graded(max(a.max().item(), b.max().item()))]).unique()
    kinks = [k if abs(k) > 1e-12 * max(a.max().item(), b.max().item()) else 0.0 for k in activation.kinks]
    breaks = [k for k in kinks if k]
    per_pair = nodes**2 * (12 + 8 * len(radii)) * (len(radii) + 2 * len(breaks))
    for number, chunk in enumerate(torch.arange(len(a)).split(max(1, _CHUNK // per_pair))):
        if number:
            check()
        a_, b_, sign_, theta_ = (t[chunk] for t in (a, b, sign, theta))
        w, weight = _angles(a_, b_, sign_, theta_, kinks, nodes)
        along = torch.stack(
            [
                a_[:, None] * torch.cos(w - theta_[:, None] / 2),
                (sign_ * b_)[:, None] * torch.cos(w + theta_[:, None] / 2),
            ]
        )  # u/r and v/r
        if breaks:
            crossing = torch.cat([(k / along[i])[..., None] for k in breaks for i in (0, 1)], -1)
            crossing = torch.where((crossing > 0) & (crossing < reach), crossing, 0.0)
            r, density = _panels(torch.cat([radii.expand(*w.shape, -1), crossing], -1).sort(-1).values, nodes)
        else:
            r, density = _panels(radii, nodes)
        density = weight[..., None] * density * r * torch.exp(-r * r / 2) / (2 * math.pi)
        u, v = along[0][..., None] * r, along[1][..., None] * r
        s = sign_[:, None, None]
        apart = activation.fn(u) - s * activation.fn(v) - centre * (1 - s)
        out[0, chunk] = (apart.square_() * density).sum((1, 2))
        out[1, chunk] = (activation.derivative(u) * activation.derivative(v) * density).sum((1, 2))
    return out


def rounding(activation: Activation, apart: torch.Tensor, dot: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
    """Returns the error of the mean squared difference of f(u) and f(v) that comes from their rounding.

    Both are f(0) + O(sqrt(ab dot)).
    """
    constant = activation.fn(torch.zeros(1, dtype=torch.float64)).abs()
    size = 1e-15 * ((ab * dot.abs()).sqrt() + constant)
    return size * (apart.sqrt() + size)


def resolved_nodes(
    activation: Activation, centre: float, a: torch.Tensor, b: torch.Tensor, sign: torch.Tensor, theta: torch.Tensor
) -> int:
    """Returns the nodes a panel with which `pair_moments` agrees with a coarser rule to 1e-10, on some of the pairs.

    The error of a Gauss-Legendre rule falls geometrically, so that the finer of the two has one of about 1e-14.
    """
    some = torch.cat([torch.stack([t.argmin(), t.argmax()]) for t in (a, b, theta)]).unique()
    a, b, sign, theta = (t[some] for t in (a, b, sign, theta))
    nodes, coarse = 8, pair_moments(activation, centre, a, b, sign, theta, 8)
    while nodes < 100:
        finer = math.ceil(1.5 * nodes)
        fine = pair_moments(activation, centre, a, b, sign, theta, finer)
        apart, dot = fine
        floor = torch.stack([rounding(activation, apart, dot, a * b), torch.zeros_like(a)])
        if ((coarse - fine).abs() <= 1e-10 * fine.abs().amax(1, keepdim=True) + floor).all():
            return finer
        check()
        nodes, coarse = finer, fine
    raise ValueError(
        f"the kernel of {activation.name} between nearly parallel samples does not converge: it is not smooth "
        "between its declared kinks; declare them (Activation(..., kinks=...)), or remove such samples"
    )
