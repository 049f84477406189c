"""Matched two-layer networks form curves, which are searched for the network that answers to norms as the DEQ does.

The answer is (u, v) of `norm_sensitivity`, and the curves solve the equations in `equations.py`.
"""

import heapq
import math
from collections.abc import Sequence
from itertools import count, product

import numpy as np

from deq_enn.matching.curved_layers import Basis
from deq_enn.matching.equations import (
    STRAIGHT,
    Goal,
    Layers,
    Place,
    build,
    curve,
    curve_shares,
    is_odd,
    scale_free,
    too_large,
)
from deq_enn.theory.brackets import least_between
from deq_enn.theory.coefficients import KernelCoefficients, MatchError
from deq_enn.theory.norm_sensitivity import NOISE, chord, mismatch, response_of
from deq_enn.utils.deadline import check

_SIGNS = np.array([1, -1])  # signs of r_2, in the order of the arrays
_SHORT = 0.005  # length of a chord of (u, v) that is as good as its arc
_NARROW = 1e-9  # width of an interval of shares on which a long chord is a jump
_NEARER = 0.9  # share of the mismatch that another match must be below to be taken instead


class _Curve:
    """A curve has the matches by two given bases, one for each share of layer 1 in c3 and each sign of r_2."""

    def __init__(self, place, first, second, target, tau0, goal, bend=0.0):
        self.place, self.first, self.second, self.goal, self.bend = place, first, second, goal, bend
        self.ahead = [first.moments(0.0, bend)] * place.bends
        N, w = (math.prod(layer[i] for layer in self.ahead) for i in (0, 2))
        diag, c2, c3 = (place.c1 * value for value in scale_free(target, tau0))
        self.sign, self.at = 0, 0  # of the best point
        # behind the bends the problem is again that of two layers, with another target
        self.scaled = diag / N, c2 * N / w**2, c3 * N
        self.least = self.sample(curve_shares(place, first, second, self.scaled))

    def sample(self, share):
        """Takes these shares as the grid and finds its best point; returns the least diagonal over the target's."""
        layers, least, _ = curve(self.place, self.first, self.second, self.scaled, share)
        self.share, self.cost = share, math.inf
        self.answers = np.full((2, 2, len(share)), np.nan)  # (u, v) of each sign of r_2
        if (feasible := np.flatnonzero(layers[-1] >= 0)).size:
            q1, r1, q2, r2_squared = (values[feasible] for values in layers)
            answers = np.stack(self.response(q1, r1, q2, _SIGNS[:, None] * np.sqrt(r2_squared)))
            cost = mismatch(self.goal, answers)
            sign, at = np.unravel_index(np.nanargmin(cost), cost.shape)
            self.cost, self.sign, self.at = cost[sign, at], _SIGNS[sign], feasible[at]
            self.answers[..., feasible] = answers
        return np.fmin.reduce(least) / self.scaled[0]

    def between(self):
        """Returns for each interval of the grid the least mismatch on a chord of (u, v), and that chord's length.

        Where the matches end, those of both signs of r_2 meet at r_2 = 0, and the chord goes from one to the other. The
        mismatch is infinite where neither end of the interval has a match.
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
        """Returns (q_1, r_1, q_2, r_2), in which r_2 is NaN where there is no match."""
        (q1, r1, q2, r2_squared), *_ = curve(self.place, self.first, self.second, self.scaled, share)
        return q1, r1, q2, sign * np.sqrt(np.where(r2_squared >= 0, r2_squared, np.nan))

    def answer(self, share, sign):
        """Returns (u, v), NaN where there is no match."""
        return self.response(*self.solve(share, sign))

    def response(self, q1, r1, q2, r2):
        """Returns (u, v) of the whole network."""
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
        """Returns the best (cost, share), between grid points too, so that parameters vary smoothly with the target."""
        share = self.share[[max(self.at - 1, 0), self.at, min(self.at + 1, len(self.share) - 1)]]
        between = least_between(
            lambda s: np.nan_to_num(mismatch(self.goal, self.answer(s, self.sign)), nan=1e300),
            share[0],
            share[2],
            xtol=1e-6 * (share[2] - share[0]),
            maxiter=60,
        )
        return min((self.cost, share[1]), between)


def two_layers(
    places: Sequence[Place], families: Sequence[Sequence[Basis]], target: KernelCoefficients, tau0: float, goal: Goal
) -> Layers:
    """Solves for two curved layers, nearest to the goal, at one of the places and with bases of one of the families."""
    if is_odd(target, tau0):
        raise MatchError("an odd activation is matched by one layer")
    curves = []
    for place, bases in product(places, families):
        check()
        curves += [
            _Curve(place, first, second, target, tau0, goal, bend)
            for first, second in product(bases, bases)
            for bend in _bends(place, first, target)
        ]
    best = min(curves, key=lambda candidate: candidate.cost)
    if best.cost == math.inf:
        raise _no_match(curves, target, tau0)
    if best.place.bends:
        best = _bent(best, target, tau0)
    cost, share = best.refined()
    sign = best.sign
    if cost > NOISE and (other := _between_points(curves, _NEARER * cost)):
        other_cost, other_share = other.refined()
        if other_cost < _NEARER * cost:
            best, share, sign = other, other_share, other.sign
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


def _no_match(curves, target, tau0) -> MatchError:
    """Returns the error that says how near the nearest of the curves comes."""
    nearest = min(curves, key=lambda candidate: np.nan_to_num(candidate.least, nan=math.inf))
    diag, c2, c3 = scale_free(target, tau0)
    if math.isfinite(nearest.least):
        diag *= nearest.place.c1
        return too_large(nearest.place, (nearest.first,), nearest.least * diag, diag)
    return MatchError(
        f"{nearest.place.describe([nearest.first])} cannot have c2/c3 = {c2 / c3:.6g} with tau_0^2 "
        f"c3/c1 = {c3:.6g}: no first layer has the w that it takes"
    )


def _between_points(curves, below):
    """Returns the curve that comes nearest to the goal, sampled about that point, or None if none is below `below`.

    This is a best-first search. Each interval gets a lower bound on its mismatch: the value on the chord minus the most
    that the curve can bulge from it. The interval with the lowest bound is cut into eight, until it is short, or so
    narrow that the curve must jump inside it.
    """
    number, waiting = count(), []

    def look(each):
        near, length = each.between()
        bound = near - length / 8
        for i in np.flatnonzero(bound < below):
            heapq.heappush(waiting, (bound[i], next(number), length[i], each, each.share[i : i + 2]))

    for each in curves:
        if each.cost < math.inf:
            look(each)
    while waiting:
        _, _, length, each, (low, high) = heapq.heappop(waiting)
        each.sample(np.linspace(low, high, 9))
        if length < _SHORT:
            return each
        if high - low > _NARROW:  # else the curve jumps here, and has nothing in between
            look(each)
    return None


def _bends(place, basis, target):
    """Returns a grid of r_0, up to twice the value with which all bends and layer 1 share equally in w^2 = 2 c2/c3."""
    if not place.bends:
        return [0.0]
    excess = 1 - (2 * target.c2 / target.c3) ** (0.5 / (place.bends + 1))
    b, c = basis.w[0, 2], basis.w[2, 2]  # w = 1 + 2 r b + r^2 c is least at r = -b/c
    return np.linspace(0, 2, 11) * -excess / (b + math.sqrt(max(b * b - c * excess, 0.0)))


def _bent(best, target, tau0):
    """Returns the curve whose bend is near that of `best` and whose best match is the best of all."""

    def at(bend):
        return _Curve(best.place, best.first, best.second, target, tau0, best.goal, bend)

    step = abs(_bends(best.place, best.first, target)[1])
    cost, bend = least_between(
        lambda bend: min(at(bend).cost, 1e300), best.bend - step, best.bend + step, xtol=1e-4 * step, maxiter=25
    )
    return at(bend) if cost < best.cost else best
