"""The search over curves of matched two-layer networks for the one whose response to a sample's norm is the DEQ's.

The equations themselves are in `equations.py`.
"""

import heapq
import math
from itertools import count, product

import numpy as np
from scipy.optimize import minimize_scalar

from deq_enn.matching.equations import STRAIGHT, build, curve, curve_shares, is_odd, scale_free, too_large
from deq_enn.theory.coefficients import MatchError
from deq_enn.theory.norm_sensitivity import NOISE, chord, mismatch, response_of

_SIGNS = np.array([1, -1])  # of r_2
_SHORT = 0.005  # a chord of (u, v) that is as good as its arc
_NARROW = 1e-9  # of the share: what is still long there is a jump
_NEARER = 0.9  # of the mismatch: what makes another match worth a switch


class _Curve:
    """The matches by two given bases, one for each share of layer 1 in c3 and each sign of r_2."""

    def __init__(self, place, first, second, target, tau0, goal, bend=0.0):
        self.place, self.first, self.second, self.goal, self.bend = place, first, second, goal, bend
        self.ahead = [first.moments(0.0, bend)] * place.bends
        N, w = (math.prod(layer[i] for layer in self.ahead) for i in (0, 2))
        diag, c2, c3 = (place.c1 * value for value in scale_free(target, tau0))
        # behind the bends the problem is that of two layers again, with another target
        self.scaled = diag / N, c2 * N / w**2, c3 * N
        self.least = self.sample(curve_shares(place, first, second, self.scaled))

    def sample(self, share):
        """Take these shares as the grid and find its best point. Returns the least diagonal, 1 for the target's."""
        layers, least, _ = curve(self.place, self.first, self.second, self.scaled, share)
        self.share, self.cost, self.answers = share, math.inf, None
        if (feasible := np.flatnonzero(layers[-1] >= 0)).size:
            q1, r1, q2, r2_squared = (values[feasible] for values in layers)
            found = np.stack(self.response(q1, r1, q2, _SIGNS[:, None] * np.sqrt(r2_squared)))
            cost = mismatch(self.goal, found)
            sign, at = np.unravel_index(np.nanargmin(cost), cost.shape)
            self.cost, self.sign, self.at = cost[sign, at], _SIGNS[sign], feasible[at]
            self.answers = np.full((2, 2, len(share)), np.nan)  # (u, v) of each sign of r_2
            self.answers[..., feasible] = found
        return np.fmin.reduce(least) / self.scaled[0]

    def between(self):
        """Of each interval of the grid, the least mismatch on a chord of (u, v) and that chord's length.

        Where the matches end, those of both signs of r_2 meet at r_2 = 0: there the chord is from one to the other.
        Infinite where neither end of the interval has a match.
        """
        up, down = self.answers[:, 0], self.answers[:, 1]
        left, right = np.isnan(up[0, :-1]), np.isnan(up[0, 1:])
        at = np.arange(len(left)) + left
        ends = [np.where(left != right, answers[:, at], np.nan) for answers in (up, down)]
        starts, stops = (
            np.stack(points, axis=1)
            for points in ((up[:, :-1], down[:, :-1], ends[0]), (up[:, 1:], down[:, 1:], ends[1]))
        )
        near, length = chord(self.goal, starts, stops)
        near = np.where(np.isnan(near), math.inf, near)
        which = np.argmin(near, axis=0), np.arange(len(left))
        return near[which], length[which]

    def solve(self, share, sign):
        (q1, r1, q2, r2_squared), *_ = curve(self.place, self.first, self.second, self.scaled, share)
        return q1, r1, q2, sign * np.sqrt(np.where(r2_squared >= 0, r2_squared, np.nan))

    def answer(self, share, sign):
        """(u, v) of `norm_response`, NaN where there is no match."""
        return self.response(*self.solve(share, sign))

    def response(self, q1, r1, q2, r2):
        place = self.place
        layers = [
            *self.ahead,
            *[STRAIGHT] * place.before,
            self.first.moments(q1, r1),
            *[STRAIGHT] * place.between,
            self.second.moments(q2, r2),
            *[STRAIGHT] * place.behind,
        ]
        return response_of(layers, place.trained)

    def refined(self):
        """The best (cost, share), between grid points too, so that parameters vary smoothly with the target."""
        share = self.share[[max(self.at - 1, 0), self.at, min(self.at + 1, len(self.share) - 1)]]
        found = minimize_scalar(
            lambda s: np.nan_to_num(mismatch(self.goal, self.answer(s, self.sign)), nan=1e300),
            bounds=(share[0], share[2]),
            method="bounded",
            options=dict(xatol=1e-6 * (share[2] - share[0]), maxiter=60),
        )
        return min((self.cost, share[1]), (float(found.fun), float(found.x)))


def two_layers(places, families, target, tau0, goal):
    """Two curved layers at one of the places, with bases out of the same one of the families, nearest to the goal."""
    if is_odd(target, tau0):
        raise MatchError("an odd activation is matched by one layer")
    curves = [
        _Curve(place, first, second, target, tau0, goal, bend)
        for place in places
        for bases in families
        for first, second in product(bases, bases)
        for bend in _bends(place, first, target)
    ]
    best = min(curves, key=lambda found: found.cost)
    if best.cost == math.inf:
        nearest = min(curves, key=lambda found: np.nan_to_num(found.least, nan=math.inf))
        diag, c2, c3 = scale_free(target, tau0)
        if math.isfinite(nearest.least):
            diag *= nearest.place.c1
            raise too_large(nearest.place, (nearest.first,), nearest.least * diag, diag)
        raise MatchError(
            f"{nearest.place.describe([nearest.first])} cannot have c2/c3 = {c2 / c3:.6g} with tau_0^2 "
            f"c3/c1 = {c3:.6g}: no first layer has the w that it takes"
        )
    if best.place.bends:
        best = _bent(best, target, tau0)
    cost, share = best.refined()
    sign = best.sign
    if cost > NOISE and (other := _between_points(curves, _NEARER * cost)):
        found = other.refined()
        if found[0] < _NEARER * cost:
            best, share, sign = other, found[1], other.sign
    q1, r1, q2, r2 = best.solve(share, sign)
    bends = best.place.bends
    return build(
        best.place,
        [best.first] * (bends + 1) + [best.second],
        [0.0] * bends + [q1, q2],
        [best.bend] * bends + [r1, r2],
        target,
        tau0,
    )


def _between_points(curves, below):
    """The curve that comes nearest to the goal, sampled about that point; None where none comes nearer than `below`.

    Best first: the interval of the least mismatch on its chord, less what an arc bulges, is cut in eight until it is
    short, or narrow: a curve may jump.
    """
    number, waiting = count(), []

    def look(each):
        near, length = each.between()
        bound = near - length / 8
        for i in np.flatnonzero(bound < below):
            heapq.heappush(waiting, (bound[i], next(number), length[i], each, each.share[i : i + 2]))

    for each in curves:
        if each.answers is not None:
            look(each)
    while waiting:
        _, _, length, each, (low, high) = heapq.heappop(waiting)
        each.sample(np.linspace(low, high, 9))
        if length < _SHORT:
            return each
        if high - low > _NARROW:  # or the curve jumps here, and has nothing between
            look(each)
    return None


def _bends(place, basis, target):
    """A grid of r_0, from 0 to twice what it takes where all bends and layer 1 share equally in w^2 = 2 c2/c3."""
    if not place.bends:
        return [0.0]
    excess = 1 - (2 * target.c2 / target.c3) ** (0.5 / (place.bends + 1))
    b, c = basis.w[0, 2], basis.w[2, 2]  # w = 1 + 2 r b + r^2 c, at least at r = -b/c
    return np.linspace(0, 2, 11) * -excess / (b + math.sqrt(max(b * b - c * excess, 0.0)))


def _bent(best, target, tau0):
    """The curve of the bend near that of `best` whose best match is best of all."""

    def at(bend):
        return _Curve(best.place, best.first, best.second, target, tau0, best.goal, bend)

    step = abs(_bends(best.place, best.first, target)[1])
    found = minimize_scalar(
        lambda bend: min(at(bend).cost, 1e300),
        bounds=(best.bend - step, best.bend + step),
        method="bounded",
        options=dict(xatol=1e-4 * step, maxiter=25),
    )
    return at(found.x) if found.fun < best.cost else best
