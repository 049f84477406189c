"""Curved layers have to meet certain equations, which are solved here in closed form.

Write N, mu, w for E[sigma^2]/tau^2, E[sigma'^2] and E[(sigma^2)'']/2 of each layer (`curved_layers`), all quadratic in
its (q, r). The conjugate kernel is

    alpha_1 = 1,   gamma^2 = tau_0^2 prod_l N_l,   tau_0^2 alpha_3 = sum_l y_l,
    tau_0^2 alpha_2 = sum_l y_l prod_{k<l} w_k^2/2

where y_l = q_l^2/prod_{k<l} N_k. A gain on the last layer sets alpha_1, so that three numbers remain to be met. The
tangent kernel has integer weights in the same sums. Let b = 1, or 0 if the first of the L layers is frozen. Then
beta_1 = L + b, and y_l counts L-l+1 + 2(l-1+b) times in beta_3 and L-l+1 times in beta_2. The diagonal follows from
kappa_l^2 = tau_l^2 + kappa_{l-1}^2 mu_l.

Two layers have (q_1, r_1, q_2, r_2) for three equations. Given the share of layer 1 in c3, y_2 follows from c3, w_1
from c2, r_1 from w_1 (a quadratic), and r_2^2 from the diagonal (linear). Nothing is iterated, and nothing guessed.
Where r_2^2 >= 0 there is a match. So there are curves of matches, for every number of kinks, knee and sign of r_2. At
the points of a grid, the match is taken that comes nearest to the DEQ in `norm_sensitivity`. If that leaves a mismatch
above `NOISE`, the curves are searched between the points too, and another match is taken if it is nearer by a tenth. So
the mismatch is within a tenth of the least, or below NOISE. It jumps by more only where the nearest matches begin or
end, at a fold, r_2 = 0, where those of both signs meet. Take gelu in NTK at sigma_a^2 = 0.2 as an example. Its matches
with two kinks a layer begin at tau_0 = 0.96591 with a mismatch of 0.08. For smaller tau_0 their largest r_2^2 is
negative, and the other matches have 0.15.

A single layer is enough where c2 and c3 are zero (an odd activation), or where their ratio is that of a single layer
(2 alpha_2 = alpha_3, 6 beta_2 = beta_3).

Two layers may have too large a diagonal whatever the share. Then more layers help:

- In the tangent kernel a linear layer ahead of, between or behind them helps, because it changes the integer weights.
- In the conjugate kernel it changes nothing, but k odd layers xi + r_0 o ahead do. They multiply w by (w_0)^k and the
  diagonal by (N_0)^k = (1 + r_0^2 E[o^2])^k. A c2/c3 far from 1/2 asks for a product of w far from 1. k layers reach
  it with r_0 = O(1/k), at (N_0)^k = 1 + O(1/k). With all of c3 in the last layer the least diagonal falls to
  tau_0^2 c1 (1 + tau_0^2 c3/c1) as k grows. Since the kernel of a DEQ is a power series in the correlation without a
  negative coefficient, and alpha_1, alpha_3 are its first two, every DEQ has gamma^2 >= tau_0^2 alpha_1 + tau_0^4
  alpha_3: some depth matches every conjugate kernel for which this is not an equality.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from deq_enn.matching.curved_layers import Basis, linear_layer
from deq_enn.theory.activations import Activation
from deq_enn.theory.brackets import root_between
from deq_enn.theory.coefficients import KernelCoefficients, MatchError
from deq_enn.theory.norm_sensitivity import mismatch, response_of

_ZERO = 1e-13  # scale-free c2 and c3 below which an activation counts as odd
_GRID, _STEPS = np.linspace(0, 1, 65)[:-1], np.geomspace(1e-8, 0.1, 57)  # shares of a grid, and steps from one

Layers = tuple[tuple[Activation, ...], tuple[dict[str, Any], ...]]  # of a network, and their parameters
Goal = tuple[float, float]  # (u, v) of the DEQ
STRAIGHT = (1.0, 1.0, 1.0, 0.0, 0.0)  # the moments of a linear layer


class TooLarge(MatchError):
    """The least diagonal that a family can have with this c2 and c3 is 1 + gap times the target's."""

    def __init__(self, gap: float, message: str):
        super().__init__(message)
        self.gap = gap


@dataclass(frozen=True)
class Place:
    """A place has one or two curved layers among linear ones, which sets their weights in the sums; here tau_0 = 1."""

    trained: str
    curved: int
    before: int = 0
    between: int = 0
    behind: int = 0
    bends: int = 0  # number of odd layers ahead of all, for the conjugate kernel

    @property
    def depth(self) -> int:
        """Returns the number of layers."""
        return self.bends + self.curved + self.before + self.between + self.behind

    @property
    def start(self) -> int:
        """Returns kappa^2 ahead of the first curved layer, which is beta_1 there."""
        return self.before + (self.trained == "all")

    @property
    def c1(self) -> int:
        """Returns alpha_1 or beta_1 of the network without a gain."""
        return 1 if self.trained == "readout" else self.depth + (self.trained == "all")

    def weights(self, which: int) -> tuple[float, float]:
        """Returns how often y of the curved layer numbered `which`, 0 or 1, counts in c3 and in c2."""
        if self.trained == "readout":
            return 1.0, 0.5
        ahead = which * (1 + self.between)
        after = self.depth - self.before - ahead  # layers from this one on
        return after + 2.0 * (self.start + ahead), after / 2

    def diagonal(self, *first: Sequence[Any]) -> tuple[Any, Any]:
        """Returns (a, b) in diag = a N + b mu of the last curved layer, given the moments of the one before, if any."""
        scale, kappa = 1.0, self.start
        for N, mu, *_ in first:
            scale, kappa = scale * N, scale * N * (1 + self.between) + kappa * mu
        return (scale, 0.0) if self.trained == "readout" else ((1 + self.behind) * scale, kappa)

    def describe(self, bases: Sequence[Basis]) -> str:
        """Returns the layers in words, for an error message."""
        curved = "one of the" if self.curved == 1 else ("two", "three", "four", "five", "six")[self.bends]
        linear = [
            f"{n} linear {'one' if n == 1 else 'ones'} {where}"
            for n, where in ((self.before, "ahead"), (self.between, "between"), (self.behind, "behind"))
            if n
        ]
        return " and ".join([f"{curved} {bases[0].name}", *linear])


def scale_free(target: KernelCoefficients, tau0: float) -> tuple[float, float, float]:
    """Returns the target's diagonal, c2 and c3 for c1 = tau_0 = 1."""
    return target.diag / (target.c1 * tau0**2), target.c2 * tau0**2 / target.c1, target.c3 * tau0**2 / target.c1


def is_odd(target: KernelCoefficients, tau0: float) -> bool:
    """Returns whether c2 and c3 are zero to rounding, as those of an odd activation."""
    return max(scale_free(target, tau0)[1:]) < _ZERO


def build(
    place: Place, bases: Sequence[Basis], q: Sequence[Any], r: Sequence[Any], target: KernelCoefficients, tau0: float
) -> Layers:
    """Builds the layers from the (q, r) of the curved ones, in which those of `place.bends` come first."""
    curved = list(zip(bases, q, r))
    bends, (first, *rest) = curved[: place.bends], curved[place.bends :]
    order = [*bends, *[None] * place.before, first, *[None] * place.between, *rest, *[None] * place.behind]
    layers, tau = [], tau0
    for index, item in enumerate(order, 1):
        gain = math.sqrt(target.c1 / place.c1) if index == len(order) else 1.0
        if item is None:
            layers.append(linear_layer(index, gain))
        else:
            basis, q_l, r_l = item
            layers.append(basis.layer(index, float(q_l), float(r_l), tau, gain))
            tau *= math.sqrt(basis.moments(q_l, r_l)[0])
    return tuple(layer for layer, _ in layers), tuple(parameters for _, parameters in layers)


def closing(place: Place, basis: Basis, first: Sequence[Sequence[Any]], q: Any, diag: float) -> tuple[Any, Any]:
    """Returns r^2 of the last curved layer, which the diagonal fixes, and the least diagonal, which r = 0 has."""
    a, b = place.diagonal(*first)
    least = a * (1 + q * q * basis.N[1, 1]) + b * (1 + q * q * basis.mu[1, 1])
    return (diag - least) / (a * basis.N[2, 2] + b * basis.mu[2, 2]), least


def one_layer(place: Place, bases: Sequence[Basis], target: KernelCoefficients, tau0: float, goal: Goal) -> Layers:
    """Solves for a single layer in one of the bases that meets the target, nearest to the goal."""
    diag, c2, c3 = (place.c1 * value for value in scale_free(target, tau0))
    in_c3, in_c2 = place.weights(0)
    if is_odd(target, tau0):
        c2 = c3 = 0.0
    elif abs(c3 * in_c2 / in_c3 - c2) > _ZERO * place.c1:
        raise MatchError(f"one layer of any kind has c2/c3 = {in_c2 / in_c3:.6g}, the target has {c2 / c3:.9g}")
    q, matches, floor = math.sqrt(c3 / in_c3), [], math.inf
    for basis in bases:
        r2, least = closing(place, basis, (), q, diag)
        floor = min(floor, least)
        if r2 >= -1e-14 * diag:
            for r in (math.sqrt(max(r2, 0.0)), -math.sqrt(max(r2, 0.0))):
                matches.append((mismatch(goal, response_of([basis.moments(q, r)], place.trained)), basis, r))
    if not matches:
        raise too_large(place, bases, floor, diag)
    _, basis, r = min(matches, key=lambda item: item[0])
    return build(place, [basis], [q], [r], target, tau0)


def too_large(place: Place, bases: Sequence[Basis], least: float, diag: float) -> TooLarge:
    """Returns the error that says how much the least diagonal exceeds the target's."""
    return TooLarge(
        least / diag - 1,
        f"{place.describe(bases)} with this c2 and c3 have diag/(tau_0^2 c1) >= "
        f"{least / place.c1:.9g}, the target has {diag / place.c1:.9g}",
    )


def _excess(place, first, scaled, share):
    """Returns (y_1, y_2), and the w of layer 1 at r_1 = 0 minus the w_1 that c2 asks for; NaN where that is none."""
    _, c2, c3 = scaled
    (A, C), (B, D) = place.weights(0), place.weights(1)
    y1, y2 = share * c3 / A, (1 - share) * c3 / B
    with np.errstate(invalid="ignore", divide="ignore"):
        return y1, y2, 1 + y1 * first.w[1, 1] - np.sqrt((c2 - C * y1) / (D * y2))


def curve(
    place: Place, first: Basis, second: Basis, scaled: tuple[float, float, float], share: Any
) -> tuple[tuple[Any, Any, Any, Any], Any, Any]:
    """Solves for the two layers of which the first makes the given share (a float, or an array) of c3.

    Returns (q_1, r_1, q_2, r_2^2), the least diagonal, and the w of layer 1 at r_1 = 0 minus the w_1 that c2 asks for.
    Where no layer has that w_1, r_1 is NaN, and so is what follows from it.
    """
    y1, y2, excess = _excess(place, first, scaled, share)
    q1, b = np.sqrt(y1), first.w[0, 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        # w = 1 + y w_ee + 2 r w_xo + r^2 w_oo = w_1: of the two roots, the farther one leaves hardly a linear part
        r1 = -excess / (b + np.sqrt(b * b - first.w[2, 2] * excess))
        moments = first.moments(q1, r1)
        q2 = np.sqrt(y2 * moments[0])
        r2_squared, least = closing(place, second, [moments], q2, scaled[0])
    return (q1, r1, q2, r2_squared), least, excess


@lru_cache(maxsize=64)  # the search tries each first layer with several second ones
def _first_shares(place, first, scaled):
    """Returns a grid of shares in [0, 1), fine near r_1 = 0, where a nearly linear DEQ has a few matches."""
    grid, steps = _GRID, _STEPS
    centres = roots(lambda share: _excess(place, first, scaled, share)[2], grid)
    grid = np.concatenate([grid, steps, 1 - steps, *(c * np.concatenate([[1], 1 + steps, 1 - steps]) for c in centres)])
    return np.unique(grid[grid < 1])


def curve_shares(place: Place, first: Basis, second: Basis, scaled: tuple[float, float, float]) -> np.ndarray:
    """Returns a grid of shares, finer where the diagonal is least, so that no window falls between two points."""

    def around_the_least(grid, least):
        at = np.argmin(np.where(np.isnan(least), np.inf, least))
        return np.linspace(grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)], 33)

    def diagonal(grid):
        return curve(place, first, second, scaled, grid)[1]

    grid = _first_shares(place, first, scaled)
    least = diagonal(grid)
    finer = around_the_least(grid, least)
    grid, index = np.unique(np.concatenate([grid, finer]), return_index=True)
    least = np.concatenate([least, diagonal(finer)])[index]
    return np.unique(np.concatenate([grid, around_the_least(grid, least)]))


def roots(f: Callable[[Any], Any], grid: np.ndarray) -> list[float]:
    """Returns a root of f between any two neighbours of the grid where its signs differ."""
    values = f(grid)
    return [
        root_between(f, grid[i], grid[i + 1], xtol=1e-17, rtol=1e-15)
        for i in np.flatnonzero(values[:-1] * values[1:] < 0)
    ]
