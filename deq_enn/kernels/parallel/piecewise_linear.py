"""Piecewise-linear activations have moments between nearly parallel samples by closed forms or one short integral.

For (u, v) with v = sign v', where u and v' have scales a and b and the small angle theta between them,

    apart = E[(phi(u) - sign phi(v))^2]   and   dot = E[f'(u) f'(v)],   phi = f - centre,

are what `pairs` needs. Nothing here is the difference of nearly equal numbers, so that both keep their digits
down to theta = 0, where the samples are parallel.

With one kink, at 0, they are elementary. With kinks anywhere, Price's theorem gives their derivatives in theta. Those
of `dot` are bivariate normal densities at the kinks, and d(apart)/d(eta) = 2 a b dot with eta = 1 - cos(theta). At
theta = 0 everything is a function of one Gaussian variable, integrated piece by piece.
"""

import math
from collections.abc import Callable

import torch

from deq_enn.kernels.parallel.in_the_plane import legendre
from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check

Moments = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_NODES = 28  # Gauss-Legendre nodes
_PER_UNIT = 12  # more of them for each unit of the variable that the angle is integrated in


def piecewise_linear_moments(activation: Activation, centre: float) -> Moments | None:
    """Returns (a, b, sign, theta) -> (apart, dot), a (2, pairs) tensor; None where f is not piecewise linear.

    All arguments and the result are float64 on the CPU, (pairs,) each; theta lies in [0, pi/2].
    """
    if not activation.slopes:
        return None
    constant = activation.fn(torch.zeros(1, dtype=torch.float64)).item() - centre
    if activation.kinks in ((), (0.0,)):
        return _kinked_at_zero(activation.slopes[0], activation.slopes[-1], constant)
    return _kinked(activation, constant)


def _kinked_at_zero(left: float, right: float, constant: float) -> Moments:
    """Returns the moments of f = f(0) + m x + h |x|, by a stable form of the arc-cosine kernel."""
    m, h = (left + right) / 2, (right - left) / 2

    def moments(a, b, sign, theta):
        ab, eta = a * b, 2 * torch.sin(theta / 2) ** 2
        same, linear = sign > 0, (a - b) ** 2 + 2 * ab * eta
        bend = torch.where(  # sin(theta) - theta cos(theta), by its series where that is small
            theta < 0.05,
            theta**3 / 3 * (1 - theta**2 / 10 * (1 - theta**2 / 28 * (1 - theta**2 / 54))),
            torch.sin(theta) - theta * torch.cos(theta),
        )
        difference = linear - 4 / math.pi * ab * bend  # E[(|u| - |v|)^2]
        total = 2 * (a**2 + b**2) - difference  # E[(|u| + |v|)^2]
        shift = 4 * constant**2 + 4 * constant * h * math.sqrt(2 / math.pi) * (a + b)
        apart = m**2 * linear + torch.where(same, h**2 * difference, h**2 * total + shift)
        return torch.stack([apart, m**2 + sign * h**2 * (1 - 2 / math.pi * theta)])

    return moments


def angles(theta: torch.Tensor, gap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns nodes and weights (pairs, n) on (0, theta) of functions that change as fast as exp(-(gap/t)^2/2).

    With t = gap sinh(w) they vary on a scale of 1 in w.
    """
    gap = gap.clamp_min(1e-15 * theta).clamp_min(1e-300)
    top = torch.asinh(theta / gap)
    nodes, weights = legendre(_NODES + _PER_UNIT * math.ceil(top.max().item()))
    w = top[:, None] * nodes
    return gap[:, None] * torch.sinh(w), gap[:, None] * top[:, None] * torch.cosh(w) * weights


def _kinked(activation: Activation, constant: float) -> Moments:
    kinks = torch.tensor(activation.kinks, dtype=torch.float64)
    slopes = torch.tensor(activation.slopes, dtype=torch.float64)
    # on each piece f - centre = slope x + offset
    offsets = torch.nn.functional.pad(-torch.cumsum(slopes.diff() * kinks, 0), (1, 0))
    offsets += constant - offsets[int((kinks < 0).sum())]

    def of_sign(a, b, theta, s):
        """Returns the moments of pairs that all point the same way (s = 1), or opposite ways (s = -1)."""
        # s f(s x) as a function of its own: the kinks and pieces in the order of x
        order = slice(None) if s > 0 else torch.arange(len(kinks)).flip(0)
        own_kinks = s * kinks[order]
        own_slopes = slopes if s > 0 else slopes.flip(0)
        own_offsets = offsets if s > 0 else -offsets.flip(0)
        apart, dot = _at_no_angle(a, b, (kinks, slopes, offsets), (own_kinks, own_slopes, own_offsets))
        if not theta.any():
            return torch.stack([apart, dot])
        bend, turn = _turned(a, b, theta, (kinks, slopes.diff()), (own_kinks, own_slopes.diff()))
        return torch.stack([apart + 2 * a * b * (2 * torch.sin(theta / 2).square() * dot - bend), dot - turn])

    def moments(a, b, sign, theta):
        out = torch.empty(2, len(a), dtype=torch.float64)
        order = (theta / (a - b).abs().clamp_min(1e-15)).argsort()  # those that need as many nodes are taken together
        for s in (1, -1):
            for part in order[(sign[order] > 0) == (s > 0)].split(256):
                if len(part):
                    check()
                    out[:, part] = of_sign(a[part], b[part], theta[part], s)
        return out

    return moments


def _turned(a, b, theta, first, second):
    """Returns what the angle takes off apart, over 2 a b, and off dot, given the kinks and jumps of both functions."""
    half_theta = torch.sin(theta / 2).square()[:, None]
    bend, turn = torch.zeros_like(a), torch.zeros_like(a)
    for k, jump in zip(*first):
        for other, own_jump in zip(*second):
            x, y = (k / a)[:, None], (other / b)[:, None]
            t, weights = angles(theta, (x - y).abs()[:, 0])
            half = torch.sin(t / 2).square()
            exponent = ((x - y).square() / 4 + x * y * half) / (2 * half * (1 - half)).clamp_min(1e-300)
            density = torch.exp(-exponent) * weights * (jump * own_jump / (2 * math.pi))
            turn += density.sum(1)
            bend += (density * 2 * (half_theta - half)).sum(1)  # cos(t) - cos(theta)
    return bend, turn


def _at_no_angle(a, b, first, second):
    """Returns E[(f(a xi) - g(b xi))^2] and E[f'(a xi) g'(b xi)] of two piecewise-linear functions f and g."""
    (kinks, slopes, offsets), (own_kinks, own_slopes, own_offsets) = first, second
    edges = torch.cat([kinks / a[:, None], own_kinks / b[:, None]], 1).sort(1).values
    low = torch.nn.functional.pad(edges, (1, 0), value=-40.0)
    high = torch.nn.functional.pad(edges, (0, 1), value=40.0)
    middle = (low + high) / 2
    here = (middle[..., None] > kinks / a[:, None, None]).sum(-1)
    there = (middle[..., None] > own_kinks / b[:, None, None]).sum(-1)
    slope = slopes[here] * a[:, None] - own_slopes[there] * b[:, None]
    offset = offsets[here] - own_offsets[there]
    density_low, density_high = (torch.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (low, high))
    mass = _mass(low, high)
    mean = density_low - density_high
    second_moment = mass + low * density_low - high * density_high
    squares = slope**2 * second_moment + 2 * slope * offset * mean + offset**2 * mass
    # on a narrow piece only one of the two functions has met its kink: their difference is small, and its terms are not
    nodes, node_weights = legendre(_NODES)
    width = (high - low).clamp(max=1.0)
    x = low[..., None] + width[..., None] * nodes
    values = (slope[..., None] * x + offset[..., None]).square() * torch.exp(-x * x / 2)
    narrow = (values * node_weights).sum(-1) * width / math.sqrt(2 * math.pi)
    apart = torch.where(high - low < 1.0, narrow, squares).sum(1)
    return apart, (slopes[here] * own_slopes[there] * mass).sum(1)


def _mass(low, high):
    """Returns Phi(high) - Phi(low), from the tail that both lie in."""
    root = math.sqrt(0.5)
    right = torch.special.erfc(low * root) - torch.special.erfc(high * root)
    left = torch.special.erfc(-high * root) - torch.special.erfc(-low * root)
    return torch.where(low + high > 0, right, left) / 2
