"""Nearly parallel samples have moments by quadrature in polar coordinates, if f has a kink at 0 at most.

For (u, v) with v = sign v', where u and v' have scales a and b and the angle theta between them,

    u = a r cos(w - theta/2),   v = sign b r cos(w + theta/2),   r > 0,

and the plane falls into four sectors of w where neither u nor v changes sign. There an activation whose only kink is at
0 is as smooth as it is. At a large scale it still has a feature of width 1 at u = 0, which is as narrow as 1/a in r and
next to the sectors' edges. So the nodes lie densely there: r = sinh(t)/scale, and w tends to either edge as tanh(t)
to 1 and -1. Their number grows as the scale's logarithm, and 93 of them do at a scale of 10,000.
"""

import math

import numpy as np
import torch

from deq_enn.kernels.parallel.in_the_plane import legendre
from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check

_REACH = 9.0  # radius where exp(-r^2/2) is 3e-18
EVEN = 2.5  # scale up to which nodes are as good without density at the edges
_EDGE = 0.3  # distance from a sector's edge where nodes become dense, as a share of 1/scale
_MORE = 0.15  # share of the nodes that a narrow sector has beside those for its density
_FEWEST = 8  # nodes of a sector that is as narrow as the angle
_CHUNK = 30_000  # nodes at a time, few enough to stay in the cache


def radii(n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns n radii and their weights (n,) for functions at scales up to `scale`; the weights lack the density."""
    t, weights = (each.numpy() for each in legendre(n))
    if scale <= EVEN:
        return _REACH * t, _REACH * weights
    top = math.asinh(_REACH * scale)
    return np.sinh(top * t) / scale, top / scale * np.cosh(top * t) * weights


def directions(n: int, theta: np.ndarray | float, agree: bool, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns angles w and their weights (..., n) in the sector where u and v' are positive, or where v' alone is not.

    theta : (...,) angles between u and v'. agree : the former sector, whose width is pi - theta; else that of theta.
    scale : the largest, for which n nodes are enough; a narrow sector has fewer.
    """
    half, middle, dense = np.asarray(math.pi - theta if agree else theta)[..., None] / 2, 0.0, scale > EVEN
    if not agree:
        middle, widest = math.pi / 2, 2 * half.max()
        share = math.sqrt(widest / math.pi)
        if dense:
            share = math.log1p(widest * scale / _EDGE) / math.log1p(math.pi * scale / _EDGE) + _MORE
        n = min(n, max(_FEWEST, math.ceil(n * share)))
    t, weights = (each.numpy() for each in legendre(n))
    t, weights = 2 * t - 1, 2 * weights
    if not dense:
        return middle + half * t, half * weights
    bend = np.maximum(np.log1p(2 * half * scale / _EDGE) / 2, 1e-3)
    size = half / np.tanh(bend)
    return middle + size * np.tanh(bend * t), size * bend * weights / np.cosh(bend * t) ** 2


def sector_moments(
    activation: Activation,
    centre: float,
    a: torch.Tensor,
    b: torch.Tensor,
    sign: torch.Tensor,
    theta: torch.Tensor,
    nodes: int,
) -> torch.Tensor:
    """Returns E[(phi(u) - sign phi(v))^2] and E[f'(u) f'(v)], phi = f - centre, (2, pairs), at scales a and b (pairs,).

    The parameters are those of `in_the_plane.pair_moments`. nodes : in either polar coordinate.
    """
    out = torch.zeros(2, len(a), dtype=torch.float64)
    for chunk in torch.arange(len(a)).split(max(1, _CHUNK // nodes**2)):
        check()
        pairs = a[chunk], b[chunk], sign[chunk], theta[chunk]
        for agree in (True, False):
            if agree or pairs[3].any():
                out[:, chunk] += _of_sector(activation, centre, *pairs, nodes, agree)
    return out


def ray_moments(
    activation: Activation,
    centre: float,
    a: torch.Tensor,
    b: torch.Tensor,
    sign: torch.Tensor,
    theta: torch.Tensor,
    nodes: int,
) -> torch.Tensor:
    """Returns what `sector_moments` does for pairs whose angles theta are all 0, which one variable is enough for.

    nodes : on either side of 0. f is evaluated once at each distinct scale.
    """
    out = torch.empty(2, len(a), dtype=torch.float64)
    r, weight = (torch.from_numpy(each) for each in radii(nodes, max(a.max().item(), b.max().item())))
    weight = weight * torch.exp(-r * r / 2) / math.sqrt(2 * math.pi)
    x, weight = torch.cat([-r.flip(0), r]), torch.cat([weight.flip(0), weight])
    scales, index = torch.unique(torch.cat([a, sign * b]), return_inverse=True)
    for chunk in torch.arange(len(a)).split(max(1, _CHUNK // len(x))):
        check()
        distinct, own = torch.unique(torch.cat([index[: len(a)][chunk], index[len(a) :][chunk]]), return_inverse=True)
        z = scales[distinct, None] * x
        f, df, (i, j), s = activation.fn(z), activation.derivative(z), own.view(2, -1), sign[chunk, None]
        out[0, chunk] = (f[i] - s * f[j] - centre * (1 - s)).square_() @ weight
        out[1, chunk] = (df[i] * df[j]) @ weight
    return out


def _of_sector(activation, centre, a, b, sign, theta, nodes, agree):
    """Returns what a sector and its opposite add, (2, pairs)."""
    scale = max(a.max().item(), b.max().item())
    r, weight = (torch.from_numpy(each) for each in radii(nodes, scale))
    weight = weight * r * torch.exp(-r * r / 2) / (2 * math.pi)
    w, weight_w = (torch.from_numpy(each) for each in directions(nodes, theta.numpy(), agree, scale))
    u = (a[:, None] * torch.cos(w - theta[:, None] / 2))[..., None] * r
    v = ((sign * b)[:, None] * torch.cos(w + theta[:, None] / 2))[..., None] * r
    f, df, out = activation.fn, activation.derivative, []
    sign = sign[:, None, None]
    apart = dot = 0.0
    for side in (1, -1):
        x, y = side * u, side * v
        apart = apart + (f(x) - sign * f(y) - centre * (1 - sign)).square_()
        dot = dot + df(x) * df(y)
    for values in (apart, dot):
        out.append(((values @ weight) * weight_w).sum(1))
    return torch.stack(out)
