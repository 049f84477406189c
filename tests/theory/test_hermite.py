"""Hermite functions and coefficients against Gauss-Legendre quadrature, Stein's lemma and Mehler's series."""

import math

import pytest
import torch
from scipy import special

from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, piecewise_linear
from deq_enn.theory.gaussian import expectation, gaussian_moments
from deq_enn.theory.hermite import hermite_coefficients, hermite_functions
from tests.helpers.pair_quadrature import quadrature as numpy_quad, torch_quadrature as quad

STEPS = "tanh", "erf", "sigmoid", "softsign", "hardtanh"  # at large scales these are a sign or a step
names = pytest.mark.parametrize("name", ACTIVATIONS)


def test_hermite_functions_are_orthonormal_at_high_degree():
    x, w = torch.linspace(-46, 46, 4601, dtype=torch.float64), 92 / 4600
    h = hermite_functions(x, 400)[[0, 1, 2, 57, 399, 400]]
    gram = h @ h.T * w / math.sqrt(2 * math.pi)  # the density is exp(-x^2/4) squared, up to its constant
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


@names
def test_hermite_coefficients(name):
    a = ACTIVATIONS[name]
    scales = torch.tensor([0.5, 1.0, 2.0, 1.0], dtype=torch.float64)
    c = hermite_coefficients(a, scales, 40)
    assert c.shape == (4, 41) and torch.equal(c[1], c[3])
    for row, s in zip(c[:3], scales.tolist()):
        kinks = [k / s for k in a.kinks]
        assert row[0].item() == pytest.approx(quad(lambda x: a.fn(s * x), kinks), abs=1e-12)
        for k in (1, 2, 3, 17):
            weight = lambda x: torch.from_numpy(special.eval_hermitenorm(k, x.numpy())) / math.sqrt(math.factorial(k))
            assert row[k].item() == pytest.approx(quad(lambda x: a.fn(s * x) * weight(x), kinks), abs=1e-11)
        # Parseval: what is left after 40 terms is positive and small
        rest = expectation(lambda x: a.fn(s * x) ** 2, kinks) - row.square().sum().item()
        assert -1e-13 < rest < 0.01


@pytest.mark.parametrize("scale", [30.0, 1e3, 1e5, 1e8])
@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n != "sin"])
def test_hermite_coefficients_at_large_scales(name, scale):
    """c_1 = s E[f'] and sqrt(2) c_2 = s^2 E[f''] by Stein's lemma, and Mehler's series at rho = 1/2 of the limit."""
    a = ACTIVATIONS[name]
    c = hermite_coefficients(a, torch.tensor([scale, 0.5 * scale], dtype=torch.float64), 60)
    for row, s in zip(c, (scale, 0.5 * scale)):
        m, size = gaussian_moments(a, s), row.abs().max().item()
        assert row[0].item() == pytest.approx(m.mean, abs=1e-12 * size)
        assert row[1].item() == pytest.approx(s * m.d1, abs=1e-12 * size)
        assert math.sqrt(2) * row[2].item() == pytest.approx(s * s * m.d2, abs=1e-12 * size)
        assert (row[1:] ** 2).sum().item() < m.variance * (1 + 1e-12)
    if name in STEPS and scale >= 1e5:  # sign or step: E[f f] = (1 + (2/pi) asin(rho))/4 for the step
        series = (c[0, 1:] ** 2 * 0.5 ** torch.arange(1, 61)).sum().item()
        limit = (0.25 if name == "sigmoid" else 1) * 2 / math.pi * math.asin(0.5)
        assert series == pytest.approx(limit, rel=30 / scale * math.log(scale))


@pytest.mark.parametrize(
    "activation, scale, words",
    [
        (ACTIVATIONS["sin"], 1e5, "of sin at scale 100000 do not converge"),
        (from_function(torch.exp), 10.0, "exp grows too fast"),
        (
            from_function(lambda x: (x - 0.3).abs(), "bent"),
            torch.linspace(0.1, 3, 400),
            "bent .* a kink of it is not declared",
        ),
    ],
)
@pytest.mark.slow
def test_hermite_coefficients_that_are_not_resolved_are_refused(activation, scale, words):
    with pytest.raises(ValueError, match=words):
        hermite_coefficients(activation, scale, 30)


def test_hermite_coefficients_of_a_function_with_hidden_kinks_and_jumps():
    for fn, place in ((lambda x: (x - 0.3).abs(), 0.3), (lambda x: (x > 0.2503).to(x.dtype), 0.2503)):
        hidden = hermite_coefficients(from_function(fn), 1.0, 20)
        declared = hermite_coefficients(from_function(fn, kinks=(place,)), 1.0, 20)
        torch.testing.assert_close(hidden, declared, rtol=0, atol=1e-13)
        assert hidden[0, 3].item() == pytest.approx(
            quad(lambda x: fn(x) * (x**3 - 3 * x) / math.sqrt(6), (place,)), abs=1e-12
        )


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


def test_hermite_coefficients_name_the_reason_and_the_scale():
    late = piecewise_linear("late", (1.0,), (0.0, 1.0))
    with pytest.raises(ValueError, match="at scale 0.0645161: .*the function is constant"):
        hermite_coefficients(late, torch.tensor([0.5, 1 / 15.5]), 30)
    with pytest.raises(ValueError, match="grows too fast .* at scale 10$"):
        hermite_coefficients(from_function(torch.exp), torch.tensor([0.5, 10.0]), 30)


def test_a_dead_zone_of_ten_deviations_is_not_a_function_that_grows_too_fast():
    own = from_function(lambda x: torch.nn.functional.softshrink(x, 1.0), "own", kinks=(-1, 1))
    with pytest.raises(ValueError, match="at scale 0.0836659: .*the function is constant, .*: leave them out"):
        hermite_coefficients(own, torch.tensor([0.0836659], dtype=torch.float64), 64)


def test_hermite_coefficients_with_several_kinks_in_a_panel():
    """Panels are shared by all scales, and those with kinks are done by parts."""
    kinks = -2.0, 0.1, 0.11, 0.4

    def f(x):
        return sum(abs(x - k) * (1 + k * x) for k in kinks)

    own = Activation("own", f, f, kinks=kinks)
    scales = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
    for s, row in zip(scales.tolist(), hermite_coefficients(own, scales, 40)):
        for k in (0, 3, 40):

            def term(x, s=s, k=k):
                x = torch.from_numpy(x)
                return (f(s * x) * hermite_functions(x, k)[k] * torch.exp(x * x / 4)).numpy()

            assert row[k].item() == pytest.approx(numpy_quad(term, [b / s for b in kinks]), rel=1e-10, abs=1e-12)
