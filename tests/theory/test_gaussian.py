"""Expectations and moments against Gauss-Legendre quadrature and closed forms."""

import math

import pytest
import torch
from scipy import special

from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, piecewise_linear
from deq_enn.theory.gaussian import expectation, gaussian_moments
from tests.helpers.pair_quadrature import torch_quadrature as quad

SCALES = (0.3, 1.0, 2.7)
names = pytest.mark.parametrize("name", ACTIVATIONS)


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
    # a jump, away from every panel edge and just beside one, where no interior node sees it
    for c in (0.77, 1.0003, -2.9999, 1e-5):
        assert abs(expectation(lambda x: (x > c).double()) - 0.5 * math.erfc(c / math.sqrt(2))) < 1e-12


@pytest.mark.parametrize("scale", [1e2, 1e5, 1e7, 1e10])
@pytest.mark.parametrize("place", [0.0, 0.4])
def test_a_narrow_peak_at_0_or_at_a_kink_is_seen(scale, place):
    # integral of sech^2 = 2; the density varies by place * pi/(12 scale^2), relatively
    result = expectation(lambda x: 1 - torch.tanh(scale * (x - place)) ** 2, (place,))
    density = math.exp(-(place**2) / 2) / math.sqrt(2 * math.pi)
    second_order = density * (place**2 - 1) / 2 * math.pi**2 / 6 / scale**3
    assert result == pytest.approx(2 * density / scale + second_order, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    "f, words",
    [
        (lambda x: torch.exp(x * x / 2), "grows too fast|not finite"),
        (lambda x: torch.exp(0.49 * x * x), "grows too fast"),
        (lambda x: torch.log(x), "not finite"),
        (lambda x: x.sum(), "not elementwise"),
        (lambda x: 1.0, "not elementwise"),
    ],
)
def test_functions_without_gaussian_moments_are_refused(f, words):
    with pytest.raises(ValueError, match=words):
        expectation(f)


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


def test_moments_that_are_kept_are_those_of_the_activation_and_the_scale():
    class Linear:
        """Compared by its name and without a hash, as a user's own class may be."""

        def __init__(self, slope):
            self.slope, self.name = slope, "linear"

        def __eq__(self, other):
            return self.name == other.name

        def __call__(self, x):
            return self.slope * x

    slopes = (1.0, 2.0)
    lines = [Activation("linear", Linear(s), lambda x, s=s: torch.full_like(x, s), lipschitz=2.0) for s in slopes]
    for tau in (0.5, 1.5, 0.5):
        for line, slope in zip(lines, slopes):
            m = gaussian_moments(line, tau)
            assert (m.d1, m.variance) == pytest.approx((slope, (slope * tau) ** 2))
    wrong = Activation("wrong", torch.tanh, torch.sigmoid)
    for _ in range(2):  # and what is refused stays refused
        with pytest.raises(ValueError, match="derivative is not that of its function"):
            gaussian_moments(wrong, 1.0)


def test_second_derivative_of_a_smooth_activation_is_the_ordinary_one():
    m = gaussian_moments(ACTIVATIONS["softplus"], 1.3)
    assert m.d2 == pytest.approx(quad(lambda x: torch.sigmoid(1.3 * x) * torch.sigmoid(-1.3 * x)), abs=1e-12)


def test_moments_by_sampling():
    x = 0.8 * torch.randn(4_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = ACTIVATIONS["swish"]
    m = gaussian_moments(a, 0.8)
    assert a.fn(x).mean().item() == pytest.approx(m.mean, abs=2e-3)
    assert a.fn(x).var().item() == pytest.approx(m.variance, abs=2e-3)


ROOT_2_PI = math.sqrt(2 * math.pi)
LARGE = {  # scale * (E[f'], E[f'^2]) as the scale grows: density(0) times the integrals over x
    "tanh": (2, 4 / 3),
    "erf": (2, 2 * math.sqrt(2 / math.pi)),
    "sigmoid": (1, 1 / 6),
    "softsign": (2, 2 / 3),
    "hardtanh": (2, 2),
}
HALVES = {  # of f(s x)/s as the scale grows: slopes left and right of 0
    "relu": (0, 1),
    "leaky_relu": (0.01, 1),
    "swish": (0, 1),
    "gelu": (0, 1),
    "elu": (0, 1),
    "selu": (0, 1.0507009873554805),
    "softplus": (0, 1),
    "mish": (0, 1),
}


@pytest.mark.parametrize("tau", [1e3, 1e5, 5e6, 1e8])
@names
def test_moments_at_large_scales(name, tau):
    a = ACTIVATIONS[name]
    if name == "sin" and tau > 1e4:  # 10,000 periods a standard deviation
        with pytest.raises(ValueError, match="sin at scale .* does not converge"):
            gaussian_moments(a, tau)
        return
    m = gaussian_moments(a, tau)
    if name == "sin":
        assert (m.variance, m.d1_sq, m.d1) == pytest.approx((0.5, 0.5, 0), abs=1e-11)
    elif name in LARGE:
        for moment, integral in zip((m.d1, m.d1_sq), LARGE[name]):
            # softsign falls as 1/x^2, which the density cuts off at x ~ tau
            error = 5 / tau * math.log(tau) if name == "softsign" else 1e-5
            assert moment * tau == pytest.approx(integral / ROOT_2_PI, rel=error)
        assert m.variance == pytest.approx(0.25 if name == "sigmoid" else 1, rel=10 / tau * math.log(tau))
    else:
        left, right = HALVES[name]
        assert (m.d1, m.d1_sq) == pytest.approx(((left + right) / 2, (left**2 + right**2) / 2), rel=3 / tau)
        assert m.mean == pytest.approx(tau * (right - left) / ROOT_2_PI, rel=3 / tau)
        assert m.d2 * tau == pytest.approx((right - left) / ROOT_2_PI, rel=3 / tau)


@pytest.mark.parametrize("tau", [1e-3, 1e-5, 1e-8])
@names
def test_moments_at_small_scales(name, tau):
    # to first order in tau: f = f(0) + l x left of 0, f(0) + r x right of it
    a = ACTIVATIONS[name]
    left, right = a.derivative(torch.tensor([-1e-300, 1e-300], dtype=torch.float64)).tolist()
    half, size = (right - left) / ROOT_2_PI, (left**2 + right**2) / 2
    m = gaussian_moments(a, tau)
    assert m.d1 == pytest.approx((left + right) / 2, rel=4 * tau)
    assert m.d1_sq == pytest.approx(size, rel=5 * tau)
    assert m.variance == pytest.approx(tau**2 * (size - half**2), rel=5 * tau + 1e-15, abs=0)
    assert m.mean == pytest.approx(
        a.fn(torch.zeros((), dtype=torch.float64)).item() + tau * half, abs=2 * tau**2 + 1e-15
    )
    assert m.sq_dd / 2 == pytest.approx(size - half**2, rel=10 * tau)
    if half:
        assert m.d2 * tau == pytest.approx(half, rel=5 * tau)
    else:  # smooth: E[f''], to the rounding of f' over tau
        below, above = a.derivative(torch.tensor([-1e-5, 1e-5], dtype=torch.float64)).tolist()
        assert m.d2 == pytest.approx((above - below) / 2e-5, abs=4 * tau + 1e-5 + 1e-16 / tau)


@pytest.mark.parametrize(
    "name, slope", [("tanh", 1.0), ("sigmoid", 0.25), ("sin", 1.0), ("erf", 2 / math.sqrt(math.pi))]
)
def test_the_variance_at_small_scales_keeps_its_digits(name, slope):
    # f - f(0) has lost half of them
    for tau in (1e-7, 1e-8):  # f = f(0) + slope x, up to x^3
        assert gaussian_moments(ACTIVATIONS[name], tau).variance == pytest.approx((slope * tau) ** 2, rel=1e-13, abs=0)


LATE = [5, 8, 12, 15, 20, 30, 33, 36.9, 37.5, 37.95, 45]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("slope", [1e-200, 1.0, 1e150])
@pytest.mark.parametrize("kink", LATE)
def test_a_function_that_begins_far_out_has_its_moments_or_is_refused_as_constant(kink, slope, offset, declared):
    late = piecewise_linear("late", (kink,), (0.0, slope), offset)
    if not declared:
        late = Activation("late", late.fn, late.derivative, lipschitz=slope)
    try:
        m = gaussian_moments(late, 1.0)
    except ValueError as error:
        assert "the function is constant" in str(error) and "leave them out" in str(error) and 37 < kink < 38
        return
    beyond = special.erfc(kink / math.sqrt(2)) / 2  # P(xi > kink), 0 from 38 on
    assert m.d1 == pytest.approx(slope * beyond, rel=1e-8, abs=1e-305 * max(slope, 1))
    assert m.d1_sq == pytest.approx(slope * (slope * beyond), rel=1e-8, abs=1e-305 * max(slope**2, 1))


@pytest.mark.parametrize(
    "rate, less, words",
    [(0.49, 600, "grows too fast"), (0.6, 600, "grows too fast"), (0.5, 0, "overflows"), (1.0, 0, "overflows")],
)
def test_growth_is_refused_as_growth_however_small_the_function(rate, less, words):
    growing = from_function(lambda x: torch.exp(rate * x * x - less), "growing")
    with pytest.raises(ValueError, match=words):
        gaussian_moments(growing, 1.0)


@pytest.mark.parametrize("declared", [3, 20])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_zigzag_has_its_moments_whichever_kinks_are_declared_and_its_mirror_image_is_refused(declared, sign):
    """Slopes 1.2 and 0.8 in turn. Cut at a kink that is not declared, panels end up with no width at all."""

    def zigzag(x):
        p = x.remainder(1.0)
        return x + 0.2 * torch.where(p < 0.5, p, 1 - p)

    def slope(x):
        return 1 + sign * 0.2 * torch.where(x.remainder(1.0) < 0.5, 1.0, -1.0).to(x.dtype)

    given = Activation("zigzag", zigzag, slope, tuple(k / 2 for k in range(-2 * declared, 2 * declared + 1)))
    if sign < 0:
        with pytest.raises(ValueError, match="not that of its function"):
            gaussian_moments(given, 3.0)
        return
    moments = gaussian_moments(given, 3.0)
    assert moments.d1 == pytest.approx(1, abs=1e-12) and moments.d1_sq == pytest.approx(1.04, abs=1e-12)
    assert not moments.jumps
