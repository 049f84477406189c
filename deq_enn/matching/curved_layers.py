"""Layers of the form xi + q e(xi) + r o(xi), and every moment of them as a polynomial in (q, r).

At its input scale tau a layer is sigma(tau xi) = tau (xi + q e(xi) + r o(xi)), xi ~ N(0, 1), with e even of unit second
Hermite coefficient and o odd without a linear part: E[sigma'] is 1 and E[sigma''] = sqrt(2) q/tau. Two kinds:

Cubic: e = h_2, o = h_3, the orthonormal Hermite polynomials. Piecewise linear: the slope of e is the Lloyd-Max
quantiser of xi with 2K + 1 levels, the staircase nearest to h_2'; o is a soft threshold at one of its K thresholds.

Reference: Max, IRE Trans. Inf. Theory 6 (1960).
"""

import math
from functools import cache

import numpy as np
from scipy.special import ndtr

from deq_enn.theory.activations import Activation, piecewise_linear


class _Basis:
    """The functions (xi, e, o), their derivatives, and every moment of xi + q e + r o as a form in (1, q, r)."""

    def __init__(self, kinks=()):
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

    def moments(self, q, r):
        """(N, mu, w, nu, t) of xi + q e + r o, as `norm_response.response_of` takes them."""
        one, b, qq, rr = self._forms.reshape(4, 4, *[1] * max(np.ndim(q), np.ndim(r)))
        return *(one + b * r + qq * (q * q) + rr * (r * r)), self.third * r


class _Cubic(_Basis):
    name = "cubic layers"

    def _functions(self, xi, weight):
        return (
            np.stack([xi, (xi**2 - 1) / math.sqrt(2), (xi**3 - 3 * xi) / math.sqrt(6)]),
            np.stack([xi**0, math.sqrt(2) * xi, math.sqrt(1.5) * (xi**2 - 1)]),
        )

    def layer(self, index, q, r, tau, gain):
        a2, a3 = q / math.sqrt(2), r / math.sqrt(6)

        def fn(x):
            x = x / tau
            return gain * tau * (x * (1 - 3 * a3 + x * (a2 + x * a3)) - a2)

        def derivative(x):
            x = x / tau
            return gain * (1 - 3 * a3 + x * (2 * a2 + 3 * a3 * x))

        return Activation(f"cubic_{index}", fn, derivative), dict(gain=gain, q=q, r=r, tau=tau)


class _Piecewise(_Basis):
    """Kinks on either side of 0, where the slope of e jumps; o is a soft threshold at the kink numbered `knee`."""

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
def quantiser(ramps):
    """The positive thresholds and levels of the Lloyd-Max quantiser of N(0, 1) with 2 ramps + 1 levels."""
    levels = np.linspace(1.0, 2.0, ramps)
    for _ in range(2000):  # Lloyd's iteration contracts: a log-concave density has one fixed point
        before = levels
        thresholds = (np.append(0.0, levels[:-1]) + levels) / 2
        edges = np.append(thresholds, np.inf)
        levels = np.diff(np.exp(-(edges**2) / 2)) / math.sqrt(2 * math.pi) / np.diff(ndtr(-edges))
        if np.abs(levels - before).max() < 1e-15:
            break
    return thresholds, levels


@cache
def bases_of(family, ramps):
    if family == "hermite":
        return (_Cubic(),)
    thresholds, levels = quantiser(ramps)
    return tuple(_Piecewise(thresholds, np.diff(levels, prepend=0.0), knee) for knee in range(ramps))


@cache
def absolute_value():
    return _Piecewise([0.0], [1.0], 0)


def linear_layer(index, gain):
    return piecewise_linear(f"linear_{index}", (), (gain,)), dict(kinks=(), slopes=(gain,), value_at_zero=0.0)
