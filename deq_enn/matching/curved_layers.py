"""Layers of the form xi + q e(xi) + r o(xi) have moments that are polynomials in (q, r).

At its input scale tau a layer is sigma(tau xi) = tau (xi + q e(xi) + r o(xi)), xi ~ N(0, 1), with e even of unit second
Hermite coefficient and o odd without a linear part. So E[sigma'] is 1 and E[sigma''] = sqrt(2) q/tau. There are two
kinds. In a cubic layer e = h_2 and o = h_3 are the orthonormal Hermite polynomials. In a piecewise-linear layer the
slope of e is the Lloyd-Max quantiser of xi with 2K + 1 levels, the staircase nearest to h_2', and o is a soft threshold
at one of its K thresholds.

Reference: Max, IRE Trans. Inf. Theory 6 (1960).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy.special import ndtr

from deq_enn.theory.activations import Activation, piecewise_linear
from deq_enn.theory.elementwise import CubicAtScale, CubicSlopeAtScale


class Basis(ABC):
    """A basis is (xi, e, o) with derivatives; every moment of xi + q e + r o is a quadratic form in (1, q, r)."""

    name: str  # plural, of the layers

    def __init__(self, kinks: Sequence[float] | np.ndarray = ()):
        edges = np.unique(np.concatenate([np.arange(-13.0, 14.0), kinks, np.negative(kinks)]))
        x, weight = np.polynomial.legendre.leggauss(20)  # exact to rounding: polynomials times a Gaussian on each panel
        half = np.diff(edges) / 2
        xi = ((edges[:-1] + half)[:, None] + half[:, None] * x).ravel()
        weight = (half[:, None] * weight).ravel() * np.exp(-(xi**2) / 2) / math.sqrt(2 * math.pi)
        f, g = self._functions(xi, weight)
        ff, gg = (np.einsum("ix,jx->ijx", a, a).reshape(9, -1) for a in (f, g))
        second = weight * (xi**2 - 1) / 2  # E[F''(xi)]/2 = E[F (xi^2 - 1)]/2
        forms = [form.reshape(3, 3) for form in (ff @ weight, gg @ weight, ff @ second, gg @ second)]
        self.N, self.mu, self.w, _ = forms
        # by parity no product of e with xi or o contributes
        entries = ((form[0, 0], 2 * form[0, 2], form[1, 1], form[2, 2]) for form in forms)
        self._forms = np.array(list(zip(*entries)))  # (4 entries, 4 forms)
        self.third = g[2] @ (2 * second)

    @abstractmethod
    def _functions(self, xi, weight) -> tuple[np.ndarray, np.ndarray]:
        """Returns (xi, e, o) and their derivatives at xi, two (3, nodes) arrays."""

    @abstractmethod
    def layer(self, index: int, q: float, r: float, tau: float, gain: float) -> tuple[Activation, dict[str, Any]]:
        """Returns the layer gain tau (xi + q e + r o), xi = x/tau, as an activation, and its parameters."""

    def moments(self, q: Any, r: Any) -> tuple[Any, ...]:
        """Returns (N, mu, w, nu, t) of xi + q e + r o for `norm_sensitivity.response_of`: floats, or arrays."""
        constant, b, qq, rr = self._forms.reshape(4, 4, *[1] * max(np.ndim(q), np.ndim(r)))
        return *(constant + b * r + qq * (q * q) + rr * (r * r)), self.third * r


class _Cubic(Basis):
    name = "cubic layers"

    def _functions(self, xi, weight):
        return (
            np.stack([xi, (xi**2 - 1) / math.sqrt(2), (xi**3 - 3 * xi) / math.sqrt(6)]),
            np.stack([xi**0, math.sqrt(2) * xi, math.sqrt(1.5) * (xi**2 - 1)]),
        )

    def layer(self, index, q, r, tau, gain):
        a2, a3 = q / math.sqrt(2), r / math.sqrt(6)
        fn, derivative = CubicAtScale(a2, a3, tau, gain), CubicSlopeAtScale(a2, a3, tau, gain)
        return Activation(f"cubic_{index}", fn, derivative), dict(gain=gain, q=q, r=r, tau=tau)


class _Piecewise(Basis):
    """The slope of e jumps at kinks on either side of 0, and o is a soft threshold at the kink numbered `knee`."""

    def __init__(self, kinks, jumps, knee):
        self.kinks, self.jumps, self.knee = np.asarray(kinks), np.asarray(jumps), knee
        self.name = f"piecewise-linear layers with {2 * len(kinks)} kinks"
        super().__init__(self.kinks)

    def _functions(self, xi, weight):
        sign, size = np.sign(xi), np.abs(xi)
        ramps = np.maximum(size - self.kinks[:, None], 0)
        steps = sign * (size > self.kinks[:, None])
        e, de = self.jumps @ ramps, self.jumps @ steps
        self.mean, self.unit = e @ weight, 1 / (e * (xi**2 - 1) / math.sqrt(2) @ weight)
        o, do = sign * ramps[self.knee], sign * steps[self.knee]
        self.linear = do @ weight
        return (
            np.stack([xi, self.unit * (e - self.mean), o - self.linear * xi]),
            np.stack([xi**0, self.unit * de, do - self.linear]),
        )

    def layer(self, index, q, r, tau, gain):
        even = q * self.unit * np.cumsum(self.jumps)
        odd = 1 + r * ((np.arange(len(self.kinks)) >= self.knee) - self.linear)
        inner = 1 - r * self.linear
        slopes = gain * np.concatenate([(odd - even)[::-1], [inner], odd + even])
        kinks = tau * np.concatenate([-self.kinks[::-1], self.kinks])
        value = float(-gain * tau * q * self.unit * self.mean)
        layer = piecewise_linear(f"piecewise_{index}", kinks, slopes, value)
        return layer, dict(kinks=layer.kinks, slopes=layer.slopes, value_at_zero=value)


@cache
def quantiser(ramps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positive thresholds and levels of the Lloyd-Max quantiser of N(0, 1) with 2 ramps + 1 levels."""
    levels = thresholds = np.linspace(1.0, 2.0, ramps)
    for _ in range(2000):  # Lloyd's iteration contracts, because a log-concave density has a single fixed point
        before = levels
        thresholds = (np.append(0.0, levels[:-1]) + levels) / 2
        edges = np.append(thresholds, np.inf)
        levels = np.diff(np.exp(-(edges**2) / 2)) / math.sqrt(2 * math.pi) / np.diff(ndtr(-edges))
        if np.abs(levels - before).max() < 1e-15:
            break
    return thresholds, levels


@cache
def bases_of(family: str, ramps: int) -> tuple[Basis, ...]:
    """Returns the bases of a family with this number of ramps on either side of 0, one for each knee."""
    if family == "hermite":
        return (_Cubic(),)
    thresholds, levels = quantiser(ramps)
    return tuple(_Piecewise(thresholds, np.diff(levels, prepend=0.0), knee) for knee in range(ramps))


@cache
def absolute_value() -> Basis:
    """Returns the basis of leaky-ReLU layers, whose even part is |xi| without its mean."""
    return _Piecewise([0.0], [1.0], 0)


def linear_layer(index: int, gain: float) -> tuple[Activation, dict[str, Any]]:
    """Returns the layer gain x as an activation, and its parameters."""
    return piecewise_linear(f"linear_{index}", (), (gain,)), dict(kinks=(), slopes=(gain,), value_at_zero=0.0)
