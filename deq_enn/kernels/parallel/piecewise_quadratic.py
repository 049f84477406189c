"""Piecewise-quadratic activations, such as hardswish, have moments between nearly parallel samples by short integrals.

The moments are those of `piecewise_linear`. On each side of its kinks f'' is constant, and at a kink f' may jump. By
Price's theorem, with c = cos(theta) and C = E[f''(u) g''(v')], g(y) = sign f(sign y),

    d(dot)/dc = a b C,      d(apart)/dc = -2 a b dot,

so that dot and apart at an angle follow from those at none, which are integrals in one variable, and from integrals
of C over the angle. C is a sum over the kinks of both functions. Two jumps give the bivariate normal density there, a
jump and a change of f'' a density times a normal probability, and two changes of f'' a probability of a quadrant, whose
derivative is that density again. An angle is integrated over where it enters twice, by parts.
"""

import math
import threading
from dataclasses import dataclass

import torch

from deq_enn.kernels.parallel.in_the_plane import legendre
from deq_enn.kernels.parallel.piecewise_linear import Moments, angles
from deq_enn.kernels.pieces import REACH, ROUNDING, between_kinks
from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check

_KINKS = 6  # kinks at most: the cost is that of all pairs of them
_NODES = 16  # Gauss-Legendre nodes of a panel at no angle
_PANELS = 0.0, 1.5, 3.0, 4.5, 6.5, 9.0  # ends of panels on either side of 0; beyond, exp(-x^2/2) is below 3e-18
_FAR = 11.0, 14.0, 18.0, 23.0, 30.0, 38.0  # ends of more of them, where a kink lies beyond
_PAIRS = 128  # pairs at a time, few enough to stay in the cache


@dataclass(frozen=True)
class Pieces:
    """These are the pieces of f'': its value left of all kinks, and there what f' and f'' jump by, (kinks,) each."""

    leftmost: float
    kinks: torch.Tensor
    steps: torch.Tensor
    bends: torch.Tensor

    def mirrored(self) -> "Pieces":
        """Returns the pieces of -f(-x)."""
        rightmost = self.leftmost + self.bends.sum().item()
        return Pieces(-rightmost, -self.kinks.flip(0), -self.steps.flip(0), self.bends.flip(0))


def pieces_of(activation: Activation, scale: float) -> Pieces | None:
    """Returns the pieces of an activation with a few kinks, or None where it is not quadratic between them.

    scale : the largest at which it is asked for. As far as a Gaussian variable of this scale reaches, its values and
        its derivative are held against those of the pieces.
    """
    reach = REACH * scale
    kinks = sorted({k for k in activation.kinks if abs(k) < reach})
    if not any(kinks) or len(kinks) > _KINKS:
        return None
    x, values, slopes = between_kinks(activation, kinks, reach)
    curvature = (slopes[:, -1] - slopes[:, 0]) / (x[:, -1] - x[:, 0])
    middle = x.shape[1] // 2
    own = slopes[:, middle] - curvature * x[:, middle]  # where the piece's line is at 0
    size = slopes.abs().max()
    off = (slopes - own[:, None] - curvature[:, None] * x).abs().max()
    if not bool(off <= ROUNDING * size):  # NaN is not, either
        return None
    left = values - own[:, None] * x - curvature[:, None] * x * x / 2
    constant, ends = left[:, middle], torch.tensor(kinks, dtype=torch.float64)
    gaps = constant.diff() + own.diff() * ends + curvature.diff() * ends**2 / 2
    rounding = ROUNDING * (values.abs().max() + size * reach)
    if not bool((left - constant[:, None]).abs().max() <= rounding and gaps.abs().max() <= rounding):
        return None
    return Pieces(curvature[0].item(), ends, own.diff() + curvature.diff() * ends, curvature.diff())


def piecewise_quadratic_moments(activation: Activation, centre: float, scale: float) -> Moments | None:
    """Returns (a, b, sign, theta) -> (apart, dot), a (2, pairs) tensor; None where f is not piecewise quadratic.

    All arguments and the result are float64 on the CPU, (pairs,) each; theta lies in [0, pi/2], and a and b are at most
    `scale`. What the pairs have at no angle is kept until others are asked for: Newton's method asks for the same ones
    at one angle after another.
    """
    pieces = pieces_of(activation, scale)
    if pieces is None:
        return None
    own, at_no_angle = {1: pieces, -1: pieces.mirrored()}, _AtNoAngle(activation, centre, pieces.kinks)

    def moments(a, b, sign, theta):
        out = at_no_angle(a, b, sign).clone()
        if not theta.any():
            return out
        order = (theta / (a - b).abs().clamp_min(1e-15)).argsort()  # those that need as many nodes are taken together
        for s in (1, -1):
            for part in order[(sign[order] > 0) == (s > 0)].split(_PAIRS):
                if not len(part):
                    continue
                check()
                a_, b_, dot = a[part], b[part], out[1, part]
                turn, bend = _turned(a_, b_, theta[part], pieces, own[s])
                eta = 2 * torch.sin(theta[part] / 2).square()
                out[0, part] += 2 * a_ * b_ * (eta * dot - bend)
                out[1, part] = dot - turn
        return out

    return moments


class _AtNoAngle:
    """This has the moments of pairs at no angle, and keeps the last ones that a thread asked for."""

    def __init__(self, activation, centre, kinks):
        self._function, self._kept = (activation, centre, kinks), threading.local()

    def __call__(self, a, b, sign):
        """Returns (apart, dot), (2, pairs)."""
        pairs, last = torch.stack([a, b, sign]), getattr(self._kept, "last", None)
        if last is None or not torch.equal(last[0], pairs):
            last = self._kept.last = pairs, self._of(a, b, sign)
        return last[1]

    def _of(self, a, b, sign):
        out = torch.empty(2, len(a), dtype=torch.float64)
        for s in (1, -1):
            for part in ((sign > 0) == (s > 0)).nonzero()[:, 0].split(_PAIRS):
                check()
                if len(part):
                    out[:, part] = torch.stack(_at_no_angle(*self._function, a[part], b[part], s))
        return out


def _at_no_angle(activation, centre, kinks, a, b, s):
    """Returns E[(phi(a xi) - s phi(s b xi))^2] and E[f'(a xi) f'(s b xi)], (pairs,) each."""
    ends = torch.cat([kinks / a[:, None], s * kinks / b[:, None]], 1)
    panels = torch.tensor(_PANELS + _FAR * bool((ends.abs() > _PANELS[-1]).any()), dtype=torch.float64)
    panels = torch.cat([panels, -panels[1:]]).expand(len(a), -1)
    edges = torch.cat([panels, ends.clamp(panels.min(), panels.max())], 1).sort(1).values
    nodes, weights = legendre(_NODES)
    width = edges.diff(dim=1)[..., None]
    x = edges[:, :-1, None] + width * nodes
    weights = width * weights * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    u, v = a[:, None, None] * x, s * b[:, None, None] * x
    f, df = activation.fn, activation.derivative
    apart = (f(u) - s * f(v) - centre * (1 - s)).square_()
    return (apart * weights).sum((1, 2)), (df(u) * df(v) * weights).sum((1, 2))


def _turned(a, b, theta, first, second):
    """Returns what the angle takes off dot, and off apart over 2 a b, given the pieces of both functions."""
    half_theta, ab = torch.sin(theta / 2).square(), a * b
    eta = 2 * half_theta
    turn, bend = torch.zeros_like(a), torch.zeros_like(a)
    # what depends on one kink, or on none, is constant in the angle
    level = ab * first.leftmost * second.leftmost
    for (other, mine, theirs), pieces in (((second.leftmost, a, b), first), ((first.leftmost, b, a), second)):
        for k, step, bent in zip(pieces.kinks, pieces.steps, pieces.bends):
            level = level + other * (step * theirs * _density(k / mine) + bent * ab * _above(k / mine))
    for k, step, bent in zip(first.kinks, first.steps, first.bends):
        for l, own_step, own_bent in zip(second.kinks, second.steps, second.bends):  # noqa: E741
            x, y = k / a, l / b
            level = level + bent * own_bent * ab * _above(torch.maximum(x, y))
            t, weights = angles(theta, (x - y).abs())
            half, sine, x_, y_ = torch.sin(t / 2).square(), torch.sin(t), x[:, None], y[:, None]
            exponent = ((x_ - y_).square() / 4 + x_ * y_ * half) / (2 * half * (1 - half)).clamp_min(1e-300)
            rest = 2 * (half_theta[:, None] - half)  # cos(t) - cos(theta)
            both = torch.exp(-exponent) / (2 * math.pi)
            at_x = (b * _density(x))[:, None] * _above((y_ - x_ + 2 * x_ * half) / sine.clamp_min(1e-300))
            at_y = (a * _density(y))[:, None] * _above((x_ - y_ + 2 * y_ * half) / sine.clamp_min(1e-300))
            once = step * own_step * both + sine * (step * own_bent * at_x + bent * own_step * at_y)
            twice = bent * own_bent * ab[:, None] * both
            turn += ((once - twice * rest) * weights).sum(1)
            bend += ((once - twice * rest / 2) * rest * weights).sum(1)
    return turn + level * eta, bend + level * eta.square() / 2


def _density(x):
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _above(x):
    """Returns the probability that a standard normal variable is above x."""
    return torch.special.erfc(x * math.sqrt(0.5)) / 2
