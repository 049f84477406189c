"""Moments of random activations, with and without jumps, at scales 1e-3 to 1e3, against a quadrature written apart."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, piecewise_linear
from deq_enn.theory.coefficients import explicit_ck, implicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.gaussian import centre, gaussian_moments
from tests.conftest import examples

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)
scales = st.floats(-3, 3).map(lambda e: 10.0**e)
unit = st.floats(-1, 1)


def density(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def reference(activation, tau, features, jumps=()):
    """mean, variance, d1, d2, d1_sq (of the smooth part), sq_dd by Gauss-Legendre on a grid finer than any feature.

    features : the places in x about which the activation varies. jumps : (place, size) of each.
    """
    edges = [np.linspace(-12, 12, 49 + int(8 * tau))]
    for k in features:
        edges.append(np.concatenate([[k], k - 0.02 * 2.0 ** np.arange(8), k + 0.02 * 2.0 ** np.arange(8)]) / tau)
    edges = np.unique(np.concatenate(edges).clip(-12, 12))
    half = np.diff(edges) / 2
    x = (edges[:-1] + half)[:, None] + half[:, None] * NODES
    w = half[:, None] * WEIGHTS * density(x)
    f, df = (g(torch.from_numpy(tau * x)).numpy() for g in (activation.fn, activation.derivative))
    mean = (w * f).sum()
    phi, d1 = f - mean, (w * df).sum()
    d2, sq_dd = (w * x * (df - d1)).sum() / tau, 2 * (w * x * phi * df).sum() / tau
    for place, size in jumps:
        k = place / tau
        sides = torch.tensor([place, np.nextafter(place, math.inf)], dtype=torch.float64)
        below, above = activation.fn(sides).numpy() - mean
        d1 += size * density(k) / tau
        d2 += size * k * density(k) / tau**2
        sq_dd += (above**2 - below**2) * k * density(k) / tau**2
    return mean, (w * phi**2).sum(), d1, d2, (w * df**2).sum(), sq_dd


def agree(m, expected, tau):
    mean, variance, d1, d2, d1_sq, sq_dd = expected
    slope = math.sqrt(max(d1_sq, variance / tau**2))
    assert m.mean == pytest.approx(mean, rel=1e-9, abs=1e-12 * max(1.0, tau * slope))
    assert m.variance == pytest.approx(variance, rel=1e-9, abs=0)
    assert m.d1 == pytest.approx(d1, rel=1e-9, abs=1e-13 * slope)
    # jumps: the rounding of f over tau^2
    rounding = 1e-13 * (1 + math.sqrt(variance) / tau if m.jumps else 1) / tau
    assert m.d2 == pytest.approx(d2, rel=1e-9, abs=rounding * slope)
    assert m.sq_dd == pytest.approx(sq_dd, rel=1e-9, abs=1e-11 * slope**2)


@st.composite
def continuous(draw):
    """An activation and the places about which it varies."""
    kind = draw(st.sampled_from(["registry", "piecewise", "tanh", "leaky", "softplus"]))
    if kind == "registry":
        activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
        return activation, (0.0, *activation.kinks)
    if kind == "piecewise":
        kinks = sorted(draw(st.lists(st.integers(-40, 40), min_size=1, max_size=4, unique=True)))
        slopes = draw(st.lists(st.floats(0.1, 2), min_size=len(kinks) + 1, max_size=len(kinks) + 1))
        kinks = [k / 17 for k in kinks]
        return piecewise_linear("piecewise", kinks, slopes, draw(unit)), kinks
    a, b = draw(st.floats(0.3, 3)), 2 * draw(unit)
    inner = lambda x: torch.tanh(a * x + b)
    fn = {
        "tanh": inner,
        "leaky": lambda x: torch.nn.functional.leaky_relu(inner(x), 0.2),
        "softplus": lambda x: torch.log1p(torch.exp(-(a * x + b).abs())) + (a * x + b).clamp_min(0),
    }[kind]
    return from_function(fn, kind, () if kind == "tanh" else (-b / a,)), (-b / a,)


@settings(deadline=None, derandomize=True, max_examples=examples(120))
@given(continuous(), scales)
@pytest.mark.slow
def test_moments_of_continuous_activations(drawn, tau):
    activation, features = drawn
    m, expected = gaussian_moments(activation, tau), reference(activation, tau, features)
    agree(m, expected, tau)
    assert m.d1_sq == pytest.approx(expected[4], rel=1e-9, abs=0) and not m.jumps


@settings(deadline=None, derandomize=True, max_examples=examples(40))
@given(
    continuous(),
    st.lists(st.tuples(st.floats(-2, 2), st.floats(0.1, 1), st.booleans()), min_size=1, max_size=3),
    st.booleans(),
    scales,
)
@pytest.mark.slow
def test_moments_of_activations_with_jumps(drawn, steps, declared, tau):
    smooth, features = drawn
    places = [tau * k for k, _, _ in steps]
    sizes = [size if up else -size for _, size, up in steps]
    merged = {}
    for place, size in zip(places, sizes):
        merged[place] = merged.get(place, 0.0) + size
    jumps = [(place, size) for place, size in merged.items() if abs(size) > 1e-3]
    others = [*features, *(p for p, _ in jumps)]
    jumps = [(p, s) for p, s in jumps if all(q == p or abs(p - q) > 1e-3 * tau for q in others) and p not in features]
    if not jumps:
        return
    fn = lambda x: smooth.fn(x) + sum(s * (x > p).to(x.dtype) for p, s in jumps)
    kinks = (*smooth.kinks, *(p for p, _ in jumps)) if declared else smooth.kinks
    activation = Activation("jumping", fn, smooth.derivative, kinks)
    m = gaussian_moments(activation, tau)
    agree(m, reference(activation, tau, [*features, *(p for p, _ in jumps)], jumps), tau)
    assert m.d1_sq == math.inf
    np.testing.assert_allclose(m.jumps, sorted(p for p, _ in jumps), rtol=1e-9, atol=1e-10 * tau)
    with pytest.raises(ValueError, match="infinite, as it jumps at"):
        implicit_ck(activation, 0.2, tau)


@settings(deadline=None, derandomize=True, max_examples=examples(40))
@given(continuous(), st.sampled_from(["factor", "step", "wave"]), st.floats(-3, 0), st.floats(-2, 2), scales)
def test_a_perturbed_derivative_is_refused(drawn, kind, size, where, tau):
    activation, _ = drawn
    true, e = activation.derivative, 10.0**size
    wrong = {
        "factor": lambda x: (1 + e) * true(x),
        "step": lambda x: true(x) + e * (x > where * tau),
        "wave": lambda x: true(x) + e * torch.sin(x / tau + where),
    }[kind]
    with pytest.raises(ValueError, match="derivative is not that of its function"):
        gaussian_moments(Activation("wrong", activation.fn, wrong, activation.kinks, activation.lipschitz), tau)


@settings(deadline=None, derandomize=True, max_examples=examples(40))
@given(continuous(), st.floats(0.01, 0.99), scales)
def test_coefficients_are_right_or_refused(drawn, sigma_a2, tau0):
    activation, features = drawn
    try:
        tau = get_tau(activation, sigma_a2, tau0)
    except ValueError as error:
        assert "no tau_* exists" in str(error)
        return
    mean, variance, d1, d2, d1_sq, sq_dd = reference(activation, tau, features)
    assert tau**2 == pytest.approx(sigma_a2 * variance + (1 - sigma_a2) * tau0**2, rel=1e-9, abs=0)
    if sigma_a2 * d1_sq >= 1 or sigma_a2 * sq_dd >= 2:
        with pytest.raises(ValueError, match="no stable"):
            implicit_ck(activation, sigma_a2, tau0)
        return
    slack, D, growth = 1 - sigma_a2 * d1_sq, 1 - sigma_a2 * d1**2, 1 - sigma_a2 * sq_dd / 2
    ck, ntk = implicit_ck(activation, sigma_a2, tau0), implicit_ntk(activation, sigma_a2, tau0, "aA")
    assert ck.diag == pytest.approx(variance, rel=1e-9, abs=0)
    assert ck.c1 == pytest.approx((1 - sigma_a2) * d1**2 / D, rel=1e-8, abs=1e-24 * d1_sq)
    rounding = 1e-12 * d1_sq / tau**2  # of d2^2
    assert ck.c2 * 4 * D * growth**2 / (1 - sigma_a2) ** 2 == pytest.approx(d2**2, rel=1e-8, abs=rounding)
    assert ntk.diag * slack == pytest.approx(variance, rel=1e-8, abs=0)


@settings(deadline=None, derandomize=True, max_examples=examples(40))
@given(st.floats(-2, 2), st.floats(0.1, 2), scales)
def test_a_layer_with_a_jump_has_the_conjugate_kernel_of_its_hermite_series(place, size, tau):
    """A step at k tau: c_1 = density(k), c_2 = k density(k)/sqrt 2, alpha_1 tau^2 = c_1^2, alpha_3 tau^4 = c_2^2."""
    step = Activation("step", lambda x: size * (x > place * tau).to(x.dtype), torch.zeros_like, (place * tau,))
    ck = explicit_ck([centre(step, tau)], tau)
    p = math.erfc(place / math.sqrt(2)) / 2
    assert ck.diag == pytest.approx(size**2 * p * (1 - p), rel=1e-11)
    assert ck.c1 * tau**2 == pytest.approx(size**2 * density(place) ** 2, rel=1e-11)
    assert ck.c3 * tau**4 == pytest.approx(size**2 * (place * density(place)) ** 2 / 2, rel=1e-11, abs=1e-20)
