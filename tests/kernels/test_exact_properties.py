"""Random DEQs, networks and samples: every kernel is right under a quadrature written apart, or refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.theory.activations import ACTIVATIONS, Activation, piecewise_linear
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from tests.conftest import examples

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=examples(16), suppress_health_check=list(HealthCheck))


# -- an integral over the plane, in the coordinates of one of the two and what the other adds ---------------------

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def panels(edges):
    """Gauss-Legendre nodes and weights (..., q) under the standard normal, between sorted edges (..., k)."""
    half = np.diff(edges)[..., None] / 2
    x = (edges[..., :-1, None] + half + half * NODES).reshape(*edges.shape[:-1], -1)
    return x, (half * WEIGHTS).reshape(x.shape) * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def quadrature(f, h, kinks, s, t, rho):
    """E[f(s x) f(t y)] and E[h(s x) h(t y)] for unit Gaussians of correlation rho."""
    across = math.sqrt(max((1 - rho) * (1 + rho), 0.0))
    evaluate = lambda g, x: g(torch.from_numpy(x)).numpy()  # noqa: E731
    marks = [k / s for k in kinks] + [0.0]
    turns = [k / (t * rho) for k in kinks if rho] + [0.0]
    reach = 10.0
    grade = [side * size for size in 4.0 ** np.arange(-5, 2) for side in (1, -1)]
    edges = [*np.linspace(-reach, reach, 13), *marks, *turns, *(m + g / s for m in marks for g in grade)]
    if across > 0:
        edges += [m + across * g for m in turns for g in grade]
    x, w = panels(np.unique(np.clip(edges, -reach, reach)))
    if across == 0:
        return tuple((evaluate(g, s * x) * evaluate(g, math.copysign(t, rho) * x)) @ w for g in (f, h))
    inner = np.empty((2, len(x)))
    for part in np.array_split(np.arange(len(x)), 1 + len(x) // 100):
        own = np.stack([(k / t - rho * x[part]) / across for k in [*kinks, 0.0]], -1)
        own = np.concatenate([own, *(own + g / (t * across) for g in (-3, -1, -0.3, 0.3, 1, 3))], -1)
        edges = np.concatenate([np.broadcast_to(np.linspace(-reach, reach, 9), (len(part), 9)), own], -1)
        y, v = panels(np.sort(np.clip(edges, -reach, reach), -1))
        for g, row in zip((f, h), inner):
            row[part] = (evaluate(g, t * (rho * x[part, None] + across * y)) * v).sum(1)
    return tuple((evaluate(g, s * x) * row) @ w for g, row in zip((f, h), inner))


# -- what is drawn -----------------------------------------------------------------------------------------------


@st.composite
def activations(draw):
    """Of the registry, piecewise linear, or a composition of the two kinds."""
    base = draw(st.sampled_from(sorted(ACTIVATIONS)))
    kind = draw(st.sampled_from(["registry", "piecewise", "composed"]))
    if kind == "registry":
        return ACTIVATIONS[base]
    if kind == "piecewise":
        kinks = draw(st.lists(st.floats(-2, 2), min_size=1, max_size=3, unique=True).map(sorted))
        slopes = draw(st.lists(st.floats(-1, 1), min_size=len(kinks) + 1, max_size=len(kinks) + 1))
        return piecewise_linear("drawn", kinks, slopes, draw(st.floats(-1, 1)))
    a, b = draw(st.floats(0.3, 1.5)), draw(st.floats(-1, 1))
    inner = ACTIVATIONS[base]
    return Activation(
        f"{base}({a:.2f} x + {b:.2f})",
        lambda x: inner.fn(a * x + b),
        lambda x: a * inner.derivative(a * x + b),
        [(k - b) / a for k in inner.kinks],
    )


@st.composite
def samples(draw):
    """Six or so samples of spread norms in a few dimensions, some parallel, opposite, repeated, or nearly so."""
    seed, p = draw(st.integers(0, 10**6)), draw(st.integers(2, 5))
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(3, p, generator=g, dtype=torch.float64)
    factors = draw(st.lists(st.sampled_from([1.0, -1.0, 2.0, 1 + 1e-9, 0.1]), min_size=1, max_size=3))
    near = X[:1] + draw(st.sampled_from([1e-2, 1e-4, 1e-7])) * torch.randn(1, p, generator=g, dtype=torch.float64)
    X = torch.cat([X, *(f * X[i : i + 1] for i, f in enumerate(factors)), near])
    spread = torch.exp(draw(st.sampled_from([0.0, 0.6])) * torch.randn(len(X), 1, generator=g, dtype=torch.float64))
    return X * spread * 10 ** draw(st.floats(-1, 1)) / math.sqrt(p)


def independent(kernel, name):
    assert torch.equal(kernel, kernel.T), name
    assert torch.linalg.eigvalsh(kernel)[0] >= -1e-9 * kernel.max(), name


def agree(result, expected, kernel, i, j):
    size = math.sqrt(kernel[i, i]) * math.sqrt(kernel[j, j])  # whose product does not underflow
    assert abs(result - expected) <= 1e-9 * size, (result, expected)


def assume_resolved(ck, mean):
    """The moments have an error of 1e-13 of the largest sample's, and what varies by 1e-7 of its mean is rounded."""
    assume(ck.diagonal().min() > max(1e-4 * ck.max(), 1e-14 * mean**2))


def pairs(X):
    """Two samples at random, the first and a multiple of it, and the first and its near copy."""
    return (1, 0), (3, 0), (len(X) - 1, 0)


@EXAMPLES
@given(activations(), samples(), st.floats(0.01, 0.98))
@pytest.mark.long
def test_deq_kernels_solve_their_equations_or_are_refused(activation, X, sigma_a2):
    try:
        ck, ntk = implicit_kernels(X, activation, sigma_a2)
    except ValueError as error:
        words = "fixed point", "tau_*", "stable equilibrium", "function is constant", "vary too quickly"
        assert any(word in str(error) for word in words), error
        return
    mean = gaussian_moments(activation, get_tau(activation, sigma_a2, estimate_tau0(X))).mean
    assume_resolved(ck, mean)
    independent(ck, activation.name), independent(ntk, activation.name)
    S = X @ X.T
    Lambda = sigma_a2 * ck + (1 - sigma_a2) * S
    s = Lambda.diagonal().sqrt()
    distance2 = (X[:, None] - X).square().sum(-1)
    for i, j in pairs(X):
        rho = (Lambda[i, j] / (s[i] * s[j])).clamp(-1, 1).item()
        if 1 - rho < 1e-9 and distance2[i, j] < 1e-20 * S[i, i]:
            rho = 1.0
        elif 1 - abs(rho) < 1e-9:
            continue  # the rounded correlation does not determine the angle; test_parallel_pairs.py has such pairs
        G, dot = quadrature(
            lambda x: activation.fn(x) - mean, activation.derivative, activation.kinks, s[i].item(), s[j].item(), rho
        )
        agree(ck[i, j].item(), G, ck, i, j)
        expected = (G + (1 - sigma_a2) * S[i, j].item() * dot) / (1 - sigma_a2 * dot)
        agree(ntk[i, j].item(), expected, ntk, i, j)


@EXAMPLES
@given(st.lists(activations(), min_size=1, max_size=2), samples())
@pytest.mark.slow
def test_explicit_kernels_are_their_integrals_or_refused(layers, X):
    try:
        ck, ntk = explicit_kernels(X, layers)
    except ValueError as error:
        words = "is zero at its input scale", "function is constant", "vary too quickly"
        assert any(word in str(error) for word in words), error
        return
    assume_resolved(ck, 0.0)
    independent(ck, layers), independent(ntk, layers)
    distance2 = (X[:, None] - X).square().sum(-1)
    for i, j in pairs(X):
        a, b, c = (value.item() for value in (X[i] @ X[i], X[j] @ X[j], X[i] @ X[j]))
        tangent, sure, near = c, True, 1e-9
        for layer in layers:
            rho = max(-1.0, min(1.0, c / math.sqrt(a * b)))
            if distance2[i, j] == 0:
                rho = 1.0
            sure &= 1 - abs(rho) > near or abs(rho) == 1 and i == 3  # of a near copy, rho may be rounded to 1
            near = 1e-6  # from here on the quadrature's error is in the correlation, and more of it in the angle
            s, t = math.sqrt(a), math.sqrt(b)
            c, dot = quadrature(layer.fn, layer.derivative, layer.kinks, s, t, rho)
            a, b = (quadrature(layer.fn, layer.derivative, layer.kinks, scale, scale, 1.0)[0] for scale in (s, t))
            tangent = c + tangent * dot
        if sure:
            agree(ck[i, j].item(), c, ck, i, j)
            agree(ntk[i, j].item(), tangent, ntk, i, j)


@settings(EXAMPLES, max_examples=examples(12))
@given(activations(), samples(), st.floats(-1.5, 1.5), st.floats(0.05, 1), st.booleans())
@pytest.mark.slow
def test_a_jump_is_refused_with_its_reason(activation, X, place, height, declared):
    place *= estimate_tau0(X)  # where samples of this scale come across it
    broken = Activation(
        "broken",
        lambda x: activation.fn(x) + height * (x > place),
        activation.derivative,
        (*activation.kinks, place) if declared else activation.kinks,
        lipschitz=1.0,
    )
    with pytest.raises(ValueError, match="E\\[f'\\^2\\]"):
        explicit_kernels(X, [broken])
    with pytest.raises(ValueError, match="infinite, as it jumps|no .*fixed point|no tau"):
        implicit_kernels(X, broken, 0.1)


@pytest.mark.parametrize("name", ["step", "sign"])
def test_step_functions_have_no_tangent_kernel(name):
    fn = {"step": lambda x: (x > 0).to(x.dtype), "sign": torch.sign}[name]
    X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for kinks in ((), (0.0,)):
        step = Activation(name, fn, torch.zeros_like, kinks, lipschitz=1.0)
        with pytest.raises(ValueError, match="infinite, as it jumps at x = "):
            implicit_kernels(X, step, 0.2)
        with pytest.raises(ValueError, match="infinite, as it jumps at x = "):
            explicit_kernels(X, [step])


@pytest.mark.parametrize("derivative", [torch.sigmoid, lambda x: 1.001 * (1 - torch.tanh(x) ** 2)])
def test_a_derivative_of_another_function_is_an_error(derivative):
    X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = Activation("wrong", torch.tanh, derivative, lipschitz=1.0)
    for call in (lambda: implicit_kernels(X, wrong, 0.2), lambda: explicit_kernels(X, [wrong])):
        with pytest.raises(ValueError, match="wrong.*derivative"):
            call()
