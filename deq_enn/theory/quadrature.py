"""Integrals under the density of N(0, 1) are sums of Gauss-Lobatto rules on panels, which are cut until they suffice.

The rule has nodes at both ends of a panel, so that nothing hides between the last node of one panel and the first of
the next. All of this is float64 numpy.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.polynomial import legendre

TOLERANCE = 1e-14  # error of each panel, so that the whole is within 1e-12
EPS, SQRT_2PI = 2.0**-52, math.sqrt(2 * math.pi)
_RANGE = 38.0  # standard deviations, beyond which the density is below the smallest normal float64
_EDGES = [-38.0, -30, -23, -18, -14, -11, *range(-8, 9), 11, 14, 18, 23, 30, 38.0]  # ends of the first panels
CONSTANT = (  # what is said of a dead zone
    "as far as a Gaussian variable of this scale reaches, the function is constant, and so are the features of samples "
    "of this size: leave them out, or scale all samples up"
)
_MANY_FAULTS = 1000  # panels at fault, from which on the faults count as everywhere

Integrand = Callable[[np.ndarray], np.ndarray]  # nodes (q,) -> values (k, q)


@dataclass(frozen=True)
class Rule:
    """This is the Gauss-Lobatto rule on [-1, 1] with 20 nodes.

    integral @ f is the integral of f's interpolant from -1 to each node, spectrum @ f its Legendre coefficients.
    """

    nodes: np.ndarray
    weights: np.ndarray
    integral: np.ndarray
    spectrum: np.ndarray


@cache
def lobatto(n: int = 20) -> Rule:
    """Returns the Gauss-Lobatto rule with n nodes, from the roots of the derivative of a Legendre polynomial."""
    last = [0] * (n - 1) + [1]
    inner = legendre.legroots(legendre.legder(last))
    inner = inner - legendre.legval(inner, legendre.legder(last)) / legendre.legval(inner, legendre.legder(last, 2))
    nodes = np.concatenate([[-1.0], (inner - inner[::-1]) / 2, [1.0]])
    spectrum = np.linalg.inv(legendre.legvander(nodes, n - 1))
    antiderivatives = legendre.legval(nodes, legendre.legint(np.eye(n), lbnd=-1)).T
    return Rule(nodes, 2 / (n * (n - 1) * legendre.legval(nodes, last) ** 2), antiderivatives @ spectrum, spectrum)


@dataclass(frozen=True)
class Panels:
    """Panels have nodes x (panels, 20), the density of N(0, 1), weights that include it, and values (k, panels, 20)."""

    left: np.ndarray
    right: np.ndarray
    x: np.ndarray
    density: np.ndarray
    weights: np.ndarray
    values: np.ndarray

    def pick(self, index: np.ndarray) -> "Panels":
        """Returns those of the panels that an index selects."""
        return Panels(
            self.left[index],
            self.right[index],
            self.x[index],
            self.density[index],
            self.weights[index],
            self.values[:, index],
        )

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Returns the integral of values (..., panels, 20) over each panel, (..., panels)."""
        return np.einsum("...pq,pq->...p", values, self.weights)


def _sample(f, left, right):
    rule, half = lobatto(), (right - left) / 2
    # an edge may be a kink or a jump; each panel's nodes stay on its own side, a few units in the last place away
    margin = 4 * EPS * np.maximum(abs(left), abs(right))
    x = (left + half)[:, None] + half[:, None] * rule.nodes
    x = np.clip(x, (left + margin)[:, None], (right - margin)[:, None])
    values = f(x.reshape(-1))
    values = values.reshape(len(values), *x.shape)
    if not np.isfinite(values).all():
        bad = x[~np.isfinite(values).all(0)]
        raise ValueError(
            f"the integrand is not finite at x = {bad[abs(bad).argmin()]:.6g}: "
            "it has no finite Gaussian moments, is not defined on all of R, or overflows"
        )
    density = np.exp(-0.5 * x * x) / SQRT_2PI
    return Panels(left, right, x, density, density * (half[:, None] * rule.weights), values)


def _check_tails(f, panels, size, scale):
    """Raises ValueError where f has not decayed.

    Where f begins at 33, most of it lies beyond 30 and is fine; in the last 0.1 before 38 there must be nothing.
    """
    last = _sample(f, np.array([-_RANGE, _RANGE - 0.1]), np.array([0.1 - _RANGE, _RANGE]))
    cut_off = last.sums(abs(last.values)).max(1) > TOLERANCE * scale
    if not cut_off.any():
        return
    if not size[cut_off][:, (panels.left >= -30) & (panels.right <= 30)].any():
        raise ValueError(CONSTANT)
    raise ValueError(
        "the integrand grows too fast for a Gaussian expectation: its tail does not decay within 38 standard deviations"
    )


def adapt(
    f: Integrand,
    edges: Iterable[float],
    floors: float | np.ndarray,
    inspect: Callable[[Panels, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None,
) -> tuple[Panels, bool]:
    """Returns sorted panels on which f is resolved, each to TOLERANCE of E|f|, and whether faults are everywhere.

    Parameters
    ----------
    floors : (k,), or a number for all, below which E|f| does not count.
    inspect : (panels, E|f|) -> two (panels,) bool arrays, of panels that are not resolved for a further reason, and of
        panels at fault. A fault is cut for as long as float64 allows, and may remain (a jump). Where faults spread over
        more than 1000 panels, these are left wide.
    """
    ends = np.array(sorted(edges))
    panels = _sample(f, ends[:-1], ends[1:])
    value, size = panels.sums(panels.values), panels.sums(abs(panels.values))
    scale = np.maximum(size.sum(-1), floors)
    if (size[:, [0, -1]].max(1) > TOLERANCE * scale).any():
        _check_tails(f, panels, size, scale)
    done, spread = [], False
    rough = np.ones(len(panels.left), bool)
    for _ in range(120):
        parts = 8 if len(panels.left) <= 8 else 2  # the last few panels are cut in larger steps
        cuts = panels.left[:, None] + (panels.right - panels.left)[:, None] * (np.arange(parts + 1) / parts)
        cuts[:, -1] = panels.right
        panels = _sample(f, cuts[:, :-1].reshape(-1), cuts[:, 1:].reshape(-1))
        sums = panels.sums(panels.values)
        scale = np.maximum(scale, panels.sums(abs(panels.values)).sum(-1))
        rough = (abs(sums.reshape(len(sums), -1, parts).sum(-1) - value) > TOLERANCE * scale[:, None]).any(0)
        if inspect is not None:
            narrow = panels.right - panels.left < 64 * EPS * np.maximum(abs(panels.left), abs(panels.right))
            unresolved, fault = ((flags & ~narrow).reshape(-1, parts).any(1) for flags in inspect(panels, scale))
            rough |= unresolved
            spread = bool(fault.sum() > _MANY_FAULTS > 10 * rough.sum())
            rough |= fault
        if not rough.any():
            done.append(panels)
            break
        keep = rough.repeat(parts)
        done.append(panels.pick(~keep))
        if spread or len(panels.left) > 20000:
            done.append(panels.pick(keep))
            break
        panels, value = panels.pick(keep), sums[:, keep]
    if rough.any() and not spread:
        raise ValueError(
            "the Gaussian expectation does not converge: the integrand is not piecewise smooth, or varies too quickly"
        )
    if len(done) == 1:
        return done[0], spread
    joined = {
        name: np.concatenate([getattr(p, name) for p in done]) for name in ("left", "right", "x", "density", "weights")
    }
    whole = Panels(**joined, values=np.concatenate([p.values for p in done], 1))
    return whole.pick(np.lexsort((whole.right, whole.left))), spread  # a panel of no width is ahead of its neighbour


def graded(points: Iterable[float], steps: Iterable[float]) -> set[float]:
    """Returns edges of first panels: the fixed ones, the points, and each point minus and plus each step."""
    around = {p + s for p in points for s in (0.0, *steps, *(-s for s in steps))}
    return {*_EDGES, *(e for e in around if -_RANGE < e < _RANGE)}
