"""Any DEQ is matched or refused: random activations and settings, by a quadrature written apart."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from scipy.optimize import brentq

from deq_enn.matching.families import match
from deq_enn.theory.activations import ACTIVATIONS, Activation
from deq_enn.theory.coefficients import implicit_ck
from deq_enn.theory.finite_width import fluctuation
from tests.conftest import examples
from tests.helpers.sampled_networks import sampled

NODES, WEIGHTS = np.polynomial.legendre.leggauss(30)


def gauss(f, kinks):
    """E[f(xi)] on Gauss-Legendre panels that end at the kinks."""
    near = np.geomspace(1e-5, 0.5, 16)  # at a large scale a function bends within a short stretch about its kinks and 0
    edges = np.concatenate([np.linspace(-12, 12, 25), *(k + s * near for k in {0.0, *kinks} for s in (-1, 0, 1))])
    edges = np.unique(edges[abs(edges) <= 12])
    half = np.diff(edges)[:, None] / 2
    xi = (edges[:-1, None] + half + half * NODES).ravel()
    weight = (half * WEIGHTS).ravel() * np.exp(-(xi**2) / 2) / math.sqrt(2 * math.pi)
    return (f(torch.from_numpy(xi)) * torch.from_numpy(weight)).sum().item()


def variance_of(f, tau):
    kinks = [k / tau for k in f.kinks]
    return gauss(lambda xi: (f.fn(tau * xi) - gauss(lambda eta: f.fn(tau * eta), kinks)) ** 2, kinks)


def moments(f, tau):
    """variance, E[f'], E[f''], E[f'^2], E[(phi^2)''], from values of f alone but for E[f'^2]."""
    kinks = [k / tau for k in f.kinks]
    mean = gauss(lambda xi: f.fn(tau * xi), kinks)
    phi = lambda xi: f.fn(tau * xi) - mean  # noqa: E731
    return (
        gauss(lambda xi: phi(xi) ** 2, kinks),
        gauss(lambda xi: xi * phi(xi), kinks) / tau,
        gauss(lambda xi: (xi**2 - 1) * phi(xi), kinks) / tau**2,
        gauss(lambda xi: f.derivative(tau * xi) ** 2, kinks),
        gauss(lambda xi: (xi**2 - 1) * phi(xi) ** 2, kinks) / tau**2,
    )


def deq_coefficients(f, s, tau0, kernel):
    """The formulas of Theorems 1 and 2; tau_* by bisection."""
    low, high = math.sqrt(1 - s) * tau0, 2 * math.sqrt(1 - s) * tau0
    excess = lambda tau: s * variance_of(f, tau) + (1 - s) * tau0**2 - tau**2  # noqa: E731
    while excess(high) > 0:
        low, high = high, 1.2 * high
    tau = brentq(excess, low, high, xtol=1e-15 * low)
    variance, d1, d2, d1_sq, sq_dd = moments(f, tau)
    D, b2 = 1 - s * d1**2, 1 - s
    a1, a2, a3 = b2 * d1**2 / D, d2**2 * (b2 / (1 - s * sq_dd / 2)) ** 2 / (4 * D), d2**2 * (b2 / D) ** 2 / (2 * D)
    if kernel == "ck":
        return np.array([variance, a1, a2, a3])
    b1 = a1 / D + b2 * d1**2 / D
    return np.array(
        [
            (variance + b2 * tau0**2 * d1_sq) / (1 - s * d1_sq),
            b1,
            a2 / D,
            (a3 + b1 * s * d2**2 * b2 / D + b2 * d2**2 * b2 / D) / D,
        ]
    )


def enn_coefficients(layers, tau0, kernel):
    """The recursion of Theorem 3."""
    a1, a2, a3, a4, b1, b2, b3, kappa2, tau = 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, tau0**2, tau0
    for layer in layers:
        variance, d1, d2, d1_sq, sq_dd = moments(layer, tau)
        s, e = d1**2, d2**2
        b3 = s * b3 + b1 * e * a1
        a1, a2, a3, a4 = s * a1, s * a2 + e * a4**2 / 4, s * a3 + e * a1**2 / 2, a4 * sq_dd / 2
        b1, b2, b3, kappa2, tau = a1 + s * b1, a2 + s * b2, a3 + b3, variance + kappa2 * d1_sq, math.sqrt(variance)
    return np.array([tau**2, a1, a2, a3]) if kernel == "ck" else np.array([kappa2, b1, b2, b3])


@st.composite
def activations(draw):
    """Of the registry, or scale f + share g, or f(scale g)."""
    f, g = (ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))] for _ in range(2))
    scale, share = draw(st.floats(0.3, 1.2)), draw(st.floats(-0.5, 0.5))
    kind = draw(st.sampled_from(["registry", "sum", "composition"]))
    if kind == "registry":
        return f
    if kind == "sum":
        return Activation(
            f"{scale} {f.name} + {share} {g.name}",
            lambda x: scale * f.fn(x) + share * g.fn(x),
            lambda x: scale * f.derivative(x) + share * g.derivative(x),
            f.kinks + g.kinks,
        )
    if f.kinks not in ((), (0.0,)):  # where g crosses another kink would have to be solved for
        f = ACTIVATIONS["elu"]
    crossings = () if not f.kinks else tuple(k for k in (0.0,) if g.fn(torch.zeros(1)).item() == 0)
    if f.kinks and not crossings and g.name not in ("sigmoid", "softplus"):
        return f
    inner = (0.0, -1.0, 1.0) if g.name == "hardtanh" else g.kinks
    return Activation(
        f"{f.name} of {scale} {g.name}",
        lambda x: f.fn(scale * g.fn(x)),
        lambda x: scale * f.derivative(scale * g.fn(x)) * g.derivative(x),
        inner + crossings,
    )


@settings(deadline=None, derandomize=True, max_examples=examples(20), suppress_health_check=list(HealthCheck))
@given(activations(), st.floats(0.001, 0.989), st.floats(-3, 3), st.sampled_from(["ck", "ntk"]))
@pytest.mark.slow
def test_any_deq_is_matched_or_refused(activation, sigma_a2, exponent, kernel):
    tau0 = 10**exponent
    assume("sin" not in activation.name or tau0 < 10)  # faster than any fixed rule can follow
    try:
        result = match(activation, sigma_a2, tau0, kernel)
    except ValueError:  # MatchError is one
        return
    target = deq_coefficients(activation, sigma_a2, tau0, kernel)
    got = enn_coefficients(result.layers, tau0, kernel)
    unit = np.array([1 / target[0], 1 / target[1], tau0**2 / target[1], tau0**2 / target[1]])
    assert np.abs((got - target) * unit).max() < 1e-8


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("name, sigma_a2, tau0", [("selu", 0.74, 0.2), ("swish", 0.2, 1.0), ("elu", 0.9, 2.0)])
def test_networks_of_width_2000_have_the_diagonal_that_is_claimed(name, sigma_a2, tau0):
    m, result = 2000, match(ACTIVATIONS[name], sigma_a2, tau0)
    off, on = fluctuation(result.layers, tau0, "readout")
    entries = sampled(result.layers, tau0, m, 4, "readout") / implicit_ck(ACTIVATIONS[name], sigma_a2, tau0).diag
    for value, expected, variance in ((entries[:, 0].mean(), 0.0, off), (entries[:, 1].mean(), 1.0, on)):
        assert abs(value - expected) < 4 * math.sqrt(variance / m / 4)
