import math

import pytest
import torch
from scipy import integrate

from gaussian_integration import (ACTIVATIONS, Activation, centre, expectation, gaussian_moments, hermite_coefficients,
                                  hermite_functions, load_activation, piecewise_linear)

SCALES = (0.3, 1.0, 2.7)
names = pytest.mark.parametrize("name", ACTIVATIONS)


def quad(f, kinks=()):
    """E[f(xi)] by scipy's adaptive Gauss-Kronrod, an independent rule."""
    edges = [-12, *sorted(k for k in kinks if abs(k) < 12), 12]
    density = lambda x: f(torch.tensor(x, dtype=torch.float64)).item() * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return sum(integrate.quad(density, a, b, epsabs=1e-13, epsrel=1e-13, limit=400)[0] for a, b in zip(edges, edges[1:]))


def test_polynomials_and_closed_forms():
    for k, value in ((0, 1), (2, 1), (4, 3), (6, 15), (8, 105)):
        assert abs(expectation(lambda x: x**k) - value) < 1e-12 * value
    assert abs(expectation(torch.exp) - math.exp(0.5)) < 1e-12
    assert abs(expectation(torch.cos) - math.exp(-0.5)) < 1e-12


def test_kinks_declared_or_not_are_exact_to_1e_12():
    # E|xi - c| = 2 phi(c) + c (2 Phi(c) - 1)
    for c in (0.0, 0.3, math.pi / 3, -2.2):
        exact = 2 * math.exp(-c * c / 2) / math.sqrt(2 * math.pi) + c * math.erf(c / math.sqrt(2))
        assert abs(expectation(lambda x: (x - c).abs(), (c,)) - exact) < 1e-12
        assert abs(expectation(lambda x: (x - c).abs()) - exact) < 1e-12
    # a jump, away from every panel edge
    assert abs(expectation(lambda x: (x > 0.77).double()) - 0.5 * math.erfc(0.77 / math.sqrt(2))) < 1e-12


@pytest.mark.parametrize("f, words", [
    (lambda x: torch.exp(x * x / 2), "grows too fast|not finite"),
    (lambda x: torch.exp(0.49 * x * x), "grows too fast"),
    (lambda x: torch.log(x), "not finite"),
    (lambda x: x.sum(), "not elementwise"),
    (lambda x: 1.0, "not elementwise"),
])
def test_functions_without_gaussian_moments_are_refused(f, words):
    with pytest.raises(ValueError, match=words):
        expectation(f)


@names
def test_derivative_and_lipschitz_constant(name):
    activation = ACTIVATIONS[name]
    x = torch.linspace(-9.007, 9.003, 100001, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(activation.fn(x).sum(), x)
    torch.testing.assert_close(activation.derivative(x.detach()), slope, rtol=0, atol=1e-13)
    assert slope.abs().max() <= activation.lipschitz * (1 + 1e-6)
    assert slope.abs().max() >= activation.lipschitz * 0.999
    if activation.slopes:
        same = piecewise_linear("again", activation.kinks, activation.slopes, activation.fn(torch.zeros(())).item())
        torch.testing.assert_close(same.fn(x), activation.fn(x), rtol=0, atol=1e-14)
        torch.testing.assert_close(same.derivative(x), activation.derivative(x), rtol=0, atol=1e-14)


@names
@pytest.mark.parametrize("tau", SCALES)
def test_moments_against_an_independent_rule(name, tau):
    a = ACTIVATIONS[name]
    m = gaussian_moments(a, tau)
    kinks = [k / tau for k in a.kinks]
    mean = quad(lambda x: a.fn(tau * x), kinks)
    phi = lambda x: a.fn(tau * x) - mean
    assert m.mean == pytest.approx(mean, abs=1e-12)
    assert m.variance == pytest.approx(quad(lambda x: phi(x) ** 2, kinks), abs=1e-12)
    assert m.d1 == pytest.approx(quad(lambda x: a.derivative(tau * x), kinks), abs=1e-12)
    assert m.d1_sq == pytest.approx(quad(lambda x: a.derivative(tau * x) ** 2, kinks), abs=1e-12)
    # second derivatives by Stein's lemma twice, from the function itself
    assert m.d2 == pytest.approx(quad(lambda x: (x * x - 1) * phi(x), kinks) / tau**2, abs=2e-11)
    assert m.sq_dd == pytest.approx(quad(lambda x: (x * x - 1) * phi(x) ** 2, kinks) / tau**2, abs=2e-11)


def test_second_derivative_of_a_smooth_activation_is_the_ordinary_one():
    m = gaussian_moments(ACTIVATIONS["softplus"], 1.3)
    assert m.d2 == pytest.approx(quad(lambda x: torch.sigmoid(1.3 * x) * torch.sigmoid(-1.3 * x)), abs=1e-12)


def test_moments_by_sampling():
    x = 0.8 * torch.randn(4_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = ACTIVATIONS["swish"]
    m = gaussian_moments(a, 0.8)
    assert a.fn(x).mean().item() == pytest.approx(m.mean, abs=2e-3)
    assert a.fn(x).var().item() == pytest.approx(m.variance, abs=2e-3)


def test_what_is_no_activation_is_refused_by_name():
    with pytest.raises(ValueError, match="activation explosive .*(too fast|not finite)"):
        gaussian_moments(Activation("explosive", lambda x: torch.exp(x * x), lambda x: 2 * x * torch.exp(x * x), lipschitz=1.0), 1.0)
    with pytest.raises(ValueError, match="summed is not elementwise"):
        gaussian_moments(Activation("summed", lambda x: x.sum(), lambda x: x, lipschitz=1.0), 1.0)
    with pytest.raises(ValueError, match="tau must be positive"):
        gaussian_moments(ACTIVATIONS["relu"], 0.0)
    with pytest.raises(ValueError, match="1 kinks need 2 slopes"):
        Activation("bent", torch.relu, torch.relu, (0,), 1.0, (0, 1, 2))


def test_centre():
    for name, a in ACTIVATIONS.items():
        assert abs(gaussian_moments(centre(a, 1.7), 1.7).mean) < 1e-14
    assert centre(ACTIVATIONS["tanh"], 2.0) is ACTIVATIONS["tanh"]


def test_hermite_functions_are_orthonormal_at_high_degree():
    x, w = torch.linspace(-46, 46, 23001, dtype=torch.float64), 92 / 23000
    h = hermite_functions(x, 400)[[0, 1, 2, 57, 399, 400]]
    gram = h @ h.T * w / math.sqrt(2 * math.pi)  # the density is exp(-x^2/4) squared, up to its constant
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


@names
def test_hermite_coefficients(name):
    a = ACTIVATIONS[name]
    scales = torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64)
    c = hermite_coefficients(a, scales, 40)
    assert c.shape == (4, 41) and torch.equal(c[1], c[3])
    for row, s in zip(c, scales.tolist()):
        kinks = [k / s for k in a.kinks]
        assert row[0].item() == pytest.approx(quad(lambda x: a.fn(s * x), kinks), abs=1e-12)
        for k in (1, 2, 3, 17):
            weight = lambda x: hermite_functions(x, k)[k] * torch.exp(x * x / 4)
            assert row[k].item() == pytest.approx(quad(lambda x: a.fn(s * x) * weight(x), kinks), abs=1e-11)
        # Parseval: what is left after 40 terms is positive and small
        rest = expectation(lambda x: a.fn(s * x) ** 2, kinks) - row.square().sum().item()
        assert -1e-13 < rest < 0.01


def test_hermite_series_reproduces_the_arc_cosine_kernel():
    rho = 0.6
    c = hermite_coefficients(ACTIVATIONS["relu"], 1.0, 60)[0]
    series = sum(ck.item() ** 2 * rho**k for k, ck in enumerate(c))
    exact = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / (2 * math.pi)
    assert series == pytest.approx(exact, abs=1e-14)


def test_hermite_bad_scales():
    for scale in (0.0, -1.0, float("nan"), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="scale"):
            hermite_coefficients(ACTIVATIONS["relu"], scale, 3)
    with pytest.raises(ValueError, match="degree"):
        hermite_coefficients(ACTIVATIONS["relu"], 1.0, -1)


def test_an_activation_from_a_file(tmp_path):
    (tmp_path / "a.py").write_text("import torch\ndef cube(x):\n    return x**3 / 6 + x\nflat = 3\ndef flat_fn(x):\n    return torch.ones_like(x)\n")
    cube = load_activation(f"{tmp_path / 'a.py'}:cube")
    assert cube.name == "cube" and load_activation("relu") is ACTIVATIONS["relu"]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(cube.derivative(x), x**2 / 2 + 1)
    assert gaussian_moments(cube, 1.0).d1 == pytest.approx(1.5, abs=1e-12)
    assert load_activation(f"{tmp_path / 'a.py'}:flat_fn").lipschitz == 0
    for spec, words in (("nope", "unknown activation"), ("no/file.py:f", "there is no file"), (f"{tmp_path / 'a.py'}:flat", "no function"),
                        (f"{tmp_path / 'a.py'}:none", "no function")):
        with pytest.raises(ValueError, match=words):
            load_activation(spec)
    (tmp_path / "broken.py").write_text("def f(x:\n")
    with pytest.raises(ValueError, match="does not run: SyntaxError"):
        load_activation(f"{tmp_path / 'broken.py'}:f")
    (tmp_path / "odd.py").write_text("def f(x):\n    return x.numpy()\n")
    with pytest.raises(ValueError, match="not an elementwise torch function"):
        load_activation(f"{tmp_path / 'odd.py'}:f")
