"""Samples that are parallel or opposite, or nearly so, have their kernels computed pair by pair.

At |rho| = 1 closed forms lose their digits, a Mehler series converges too slowly, and a correlation that was rounded
does not determine the angle between two samples. So 1 - |rho| is the wrong unknown. For the few pairs that this
concerns, the distance takes its place. With v = sign * v', (u, v) of scales a and b, and eta = 1 - sign * rho,

    2 a b eta + (a - b)^2 = E[(u - sign v)^2] = sigma_b^2 |x - sign x'|^2 + sigma_a^2 E[(phi(u) - sign phi(v))^2]

for a DEQ. Nothing cancels here except the part that the norms have in common. The right side is concave in eta, so that
Newton's method converges from any start. The expectations on it come from one of three places (`Moments`): the closed
forms of piecewise-linear activations and the short integrals of piecewise-quadratic ones (`piecewise_linear`,
`piecewise_quadratic`), quadrature for a few pairs (`in_sectors`), or a table for many pairs (`tabulated`), which costs
as much as some tens of them. An activation with kinks away from 0 has no table, and another quadrature
(`in_the_plane`). A user's is asked whether it is linear or quadratic between its kinks. Analytic activations have a
Mehler series that converges at |rho| = 1 too, where their scale is moderate, and an error of rho does no harm
(`pair_functions`). Pairs that occur many times in the data are computed once. Many samples of one attribute, whose
pairs are all parallel, have a table of their own (`on_a_line`), for which some pairs are solved here.
"""

import threading
from collections.abc import Sequence

import torch

from deq_enn.kernels.parallel.piecewise_linear import piecewise_linear_moments
from deq_enn.kernels.parallel.piecewise_quadratic import piecewise_quadratic_moments
from deq_enn.kernels.parallel.rules import IN_SECTORS, IN_THE_PLANE, ON_RAYS, resolved_rule, rounding
from deq_enn.kernels.parallel.tabulated import NotSmooth, OfPairs, ParallelTable
from deq_enn.theory.activations import Activation
from deq_enn.utils.threads import one_thread

FEW = 16  # pairs at once that are integrated one by one, at most; more of them make a table


class Moments:
    """This knows E[(phi(u) - sign phi(v))^2] and E[f'(u) f'(v)] of one activation, for scales from `low` to `high`.

    phi = f - centre. What it gives for a pair depends on the pair and on how many there are at once, and on nothing
    that was asked before: a tile has the same digits, whatever the other threads do.
    """

    def __init__(self, activation: Activation, centre: float, low: float, high: float):
        self.activation, self.centre, self._low, self._high = activation, centre, low, high
        linear = piecewise_linear_moments(activation, centre)
        self.closed = linear or piecewise_quadratic_moments(activation, centre, high)
        self.homogeneous = (  # f(c x) = c f(x) for c > 0
            linear is not None
            and not any(activation.kinks)
            and not activation.fn(torch.zeros(1, dtype=torch.float64)).item()
        )
        self._tabulable = self.closed is None and not any(activation.kinks)
        self.rules = IN_SECTORS if self._tabulable else IN_THE_PLANE
        self._odd = _is_odd(activation, centre, high)
        self._table: ParallelTable | None = None
        self._lock = threading.Lock()

    @property
    def dear(self) -> bool:
        """Tells whether all pairs are integrated one by one."""
        return self.closed is None and not self._tabulable

    @property
    def quick_without_angle(self) -> bool:
        """Tells whether parallel pairs take one integral in one variable, at nodes that are the same for all."""
        return self._tabulable

    def side(self, sign: torch.Tensor) -> torch.Tensor:
        """Returns the signs for which the moments are to be asked: an odd activation has those of sign 1 for both."""
        return torch.ones_like(sign) if self._odd else sign

    @property
    def cost(self) -> float:
        """Returns the time that a pair takes by a closed form, in units of 0.1 ms, or 0 where there is none."""
        if self.activation.slopes:
            return 0.03 * len(self.activation.slopes) ** 2
        return 0.8 * len(self.activation.kinks) ** 2 if self.closed else 0.0

    def table_for(self, count: int) -> ParallelTable | None:
        """Returns the table where so many pairs are to be read from one; the first thread that asks for it makes it."""
        if count <= FEW:
            return None
        with self._lock:
            if self._tabulable and self._table is None:
                try:
                    with one_thread():
                        self._table = ParallelTable(self.activation, self.centre, self._low, self._high)
                except NotSmooth:
                    self._tabulable = False
        return self._table

    def __call__(self, a: torch.Tensor, b: torch.Tensor, sign: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        """Returns both for pairs of scales a and b and angle theta, a (2, pairs) tensor; each distinct pair once."""
        keys, index = torch.unique(torch.stack([a, b, self.side(sign), theta]), dim=1, return_inverse=True)
        a, b, sign, theta = keys
        if self.closed:
            return self.closed(a, b, sign, theta)[:, index]
        parallel = self._tabulable and not bool(theta.any())
        if not parallel and (table := self.table_for(len(a))):
            out = torch.empty(2, len(a), dtype=torch.float64)
            for place, pairs in table.parts(a, b, sign):
                out[:, place] = torch.stack(pairs(theta[place])[1:])
            return out[:, index]
        rules = ON_RAYS if parallel else self.rules
        rule = rules[resolved_rule(rules, self.activation, self.centre, a, b, sign, theta)]
        return rule(self.activation, self.centre, a, b, sign, theta)[:, index]


def _is_odd(activation, centre, scale):
    """Tells whether phi(-x) = -phi(x) as far as a Gaussian variable of this scale reaches."""
    x = torch.cat([torch.linspace(0, 14 * scale, 4001, dtype=torch.float64), scale * 10.0 ** torch.arange(-9.0, 0)])
    values = activation.fn(x)
    rounding = 1e-15 * values.abs().max().item()
    return bool(((values + activation.fn(-x)).abs() <= rounding).all()) and abs(centre) <= rounding


def implicit_pairs(
    moments: Moments,
    sigma_a2: float,
    a: torch.Tensor,
    b: torch.Tensor,
    sign: torch.Tensor,
    distance2: torch.Tensor,
    second_a: torch.Tensor,
    second_b: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Solves a DEQ's equation for pairs of nearly parallel samples.

    Parameters
    ----------
    moments : of its activation, centred.
    a, b : scales of the two samples, (pairs,), on the CPU like all that follows.
    sign : +1 where they point the same way, -1 where opposite ways.
    distance2 : sigma_b^2 |x - sign x'|^2.
    second_a, second_b : E[phi^2] at a and b.

    Returns
    -------
    (G, G_dot, Lambda), each (pairs,): E[phi(u) phi(v)], E[phi'(u) phi'(v)], and the covariance of u and v.
    """
    keys, index = torch.unique(torch.stack([a, b, sign, distance2, second_a, second_b]), dim=1, return_inverse=True)
    if keys.shape[1] < len(a):  # discrete data has few pairs, many times each
        G, dot, covariance = implicit_pairs(moments, sigma_a2, *keys)
        return G[index], dot[index], covariance[index]
    side = moments.side(sign)
    if table := moments.table_for(len(a)):
        solved = torch.empty(3, len(a), dtype=torch.float64)
        for place, pairs in table.parts(a, b, side):
            solved[:, place] = torch.stack(_read(pairs, sigma_a2, distance2[place], moments.activation.name))
        eta, apart, dot = solved
    else:
        eta, apart, dot = _integrated(moments, sigma_a2, a, b, side, distance2)
    return sign * (second_a + second_b - apart) / 2, dot, sign * (1 - eta) * a * b


def _read(pairs: OfPairs, sigma_a2, distance2, name):
    """Returns (eta, apart, dot) by the table."""
    ab, base = pairs.a * pairs.b, pairs.base(sigma_a2) - distance2

    def at(eta):
        turned, apart, dot = pairs(angle(eta))
        right = distance2 + sigma_a2 * apart
        # eta - sigma_a^2 turned keeps the digits of both, which are of one size
        return apart, dot, base + 2 * ab * (eta - sigma_a2 * turned), 1e-14 * ((pairs.a - pairs.b) ** 2 + right)

    return _newton(at, ab, sigma_a2, name)


def _newton(at, ab, sigma_a2, name, start=None):
    """Returns (eta, apart, dot) of all pairs. at : eta -> (apart, dot, excess of the left side, its rounding)."""
    step = torch.zeros_like(ab)
    eta = step if start is None else start
    for _ in range(60):
        apart, dot, excess, noise = at(eta)
        slope = 2 * ab * (1 - sigma_a2 * dot)
        step = torch.where(excess.abs() <= noise, 0.0, excess / slope)  # what is parallel to rounding is parallel
        before, eta = eta, (eta - step).clamp(0, 1)
        if ((eta - before).abs() <= 1e-13 * eta).all():
            return eta, apart, dot
    last = step.abs().max().item()
    raise ValueError(f"Newton's method did not converge for {name} between nearly parallel samples: step {last:.2g}")


def _integrated(moments, sigma_a2, a, b, sign, distance2):
    """Returns (eta, apart, dot) by closed forms, or by quadrature, whose rule is as fine as the solution needs."""
    activation, centre, ab, radial = moments.activation, moments.centre, a * b, (a - b) ** 2
    rule, eta = 0, None

    def at(eta):
        theta = angle(eta)
        if moments.closed:
            apart, dot = moments.closed(a, b, sign, theta)
        else:
            apart, dot = moments.rules[rule](activation, centre, a, b, sign, theta)
        right = distance2 + sigma_a2 * apart
        noise = 1e-14 * (radial + right) + sigma_a2 * rounding(activation, apart, dot, ab)
        return apart, dot, 2 * ab * eta + radial - right, noise

    while True:
        eta, apart, dot = _newton(at, ab, sigma_a2, activation.name, eta)
        needed = 0 if moments.closed else resolved_rule(moments.rules, activation, centre, a, b, sign, angle(eta))
        if needed <= rule:
            return eta, apart, dot
        rule = needed


def squared_distances(
    Y: torch.Tensor, s: torch.Tensor | None, i: torch.Tensor, j: torch.Tensor, sign: torch.Tensor
) -> torch.Tensor:
    """Returns |y_i - sign y_j|^2 between the samples of two lists, y the rows of Y, times s where that is given."""

    def rows(index):
        return Y[index] if s is None else Y[index] * s[index, None]

    chunks = torch.arange(len(i), device=i.device).split(max(1, 2**22 // Y.shape[1]))
    return torch.cat([(rows(i[k]) - sign[k, None] * rows(j[k])).square().sum(1) for k in chunks])


def angle(eta: torch.Tensor) -> torch.Tensor:
    """Returns theta with 1 - cos(theta) = eta."""
    return 2 * torch.asin((eta / 2).clamp(0, 0.5).sqrt())


def explicit_pairs(
    layers: Sequence[Moments],
    first_a: torch.Tensor,
    first_b: torch.Tensor,
    sign: torch.Tensor,
    theta: torch.Tensor,
    linear: torch.Tensor,
    seconds: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the conjugate and tangent kernel after the last layer, (pairs,) each, for nearly parallel samples.

    Parameters
    ----------
    layers : the moments of each, of the activation as it is; one at least.
    first_a, first_b, sign, theta : scales at the first of these layers; the correlation there is sign * cos(theta).
    linear : (pairs,) the tangent kernel ahead of it.
    seconds : for each layer E[sigma^2] at either sample, two (pairs,) tensors.
    """
    a, b, sigma, tangent = first_a, first_b, linear, linear
    for layer, (second_a, second_b) in zip(layers, seconds):
        apart, dot = layer(a, b, sign, theta)
        stays = (theta == 0) & (sign > 0)
        sigma = sign * (second_a + second_b - apart) / 2
        tangent = sigma + tangent * dot
        a, b = second_a.sqrt(), second_b.sqrt()
        flipped = torch.where(sigma < 0, -1.0, 1.0)
        apart = torch.where(flipped == sign, apart, 2 * (second_a + second_b) - apart)
        sign = flipped
        closeness = apart - (a - b) ** 2
        parallel = closeness <= 1e-14 * apart  # to rounding
        if layer.homogeneous:  # f(b x/a) = b f(x)/a
            parallel |= stays
        theta = angle(torch.where(parallel, 0.0, closeness / (2 * a * b)))
    return sigma, tangent
