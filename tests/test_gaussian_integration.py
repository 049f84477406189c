import math

import pytest
import torch
from scipy import integrate

from gaussian_integration import (
    ACTIVATIONS,
    Activation,
    centre,
    expectation,
    from_function,
    gaussian_moments,
    hermite_coefficients,
    hermite_functions,
    load_activation,
    piecewise_linear,
)

SCALES = (0.3, 1.0, 2.7)
names = pytest.mark.parametrize("name", ACTIVATIONS)


def quad(f, kinks=()):
    """E[f(xi)] by scipy's adaptive Gauss-Kronrod, an independent rule."""
    edges = [-12, *sorted(k for k in kinks if abs(k) < 12), 12]
    density = lambda x: f(torch.tensor(x, dtype=torch.float64)).item() * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return sum(
        integrate.quad(density, a, b, epsabs=1e-13, epsrel=1e-13, limit=400)[0] for a, b in zip(edges, edges[1:])
    )


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
    found = expectation(lambda x: 1 - torch.tanh(scale * (x - place)) ** 2, (place,))
    density = math.exp(-place**2 / 2) / math.sqrt(2 * math.pi)
    second_order = density * (place**2 - 1) / 2 * math.pi**2 / 6 / scale**3
    assert found == pytest.approx(2 * density / scale + second_order, rel=1e-6, abs=1e-12)


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


ROOT_2_PI = math.sqrt(2 * math.pi)
LARGE = {  # scale * (E[f'], E[f'^2]) as the scale grows: density(0) times the integrals over x
    "tanh": (2, 4 / 3), "erf": (2, 2 * math.sqrt(2 / math.pi)), "sigmoid": (1, 1 / 6), "softsign": (2, 2 / 3),
    "hardtanh": (2, 2)}
HALVES = {  # of f(s x)/s as the scale grows: slopes left and right of 0
    "relu": (0, 1), "leaky_relu": (0.01, 1), "swish": (0, 1), "gelu": (0, 1), "elu": (0, 1),
    "selu": (0, 1.0507009873554805), "softplus": (0, 1), "mish": (0, 1)}


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
        for found, integral in zip((m.d1, m.d1_sq), LARGE[name]):
            # softsign falls as 1/x^2, which the density cuts off at x ~ tau
            error = 5 / tau * math.log(tau) if name == "softsign" else 1e-5
            assert found * tau == pytest.approx(integral / ROOT_2_PI, rel=error)
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


def tanh_and_step(x):
    return torch.tanh(x) + 0.5 * (x > 0.3)


@pytest.mark.parametrize("kinks", [(), (0.3,)])
def test_a_jump_counts_in_every_derivative(kinks):
    tau, k, tanh = 0.8, 0.3 / 0.8, ACTIVATIONS["tanh"]
    m = gaussian_moments(Activation("jumping", tanh_and_step, tanh.derivative, kinks), tau)
    smooth = gaussian_moments(tanh, tau)
    density = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
    mean = 0.25 * math.erfc(k / math.sqrt(2))
    phi = lambda x: tanh_and_step(tau * x) - mean
    before = math.tanh(0.3) - mean
    assert m.d1_sq == math.inf and m.jumps == pytest.approx((0.3,), abs=1e-13)
    assert m.mean == pytest.approx(mean, abs=1e-13)
    assert m.variance == pytest.approx(quad(lambda x: phi(x) ** 2, (k,)), rel=1e-11)
    assert m.d1 == pytest.approx(smooth.d1 + 0.5 * density / tau, rel=1e-12)
    assert m.d2 == pytest.approx(smooth.d2 + 0.5 * k * density / tau**2, rel=1e-11)
    inner = quad(lambda x: 2 * x * phi(x) * tanh.derivative(tau * x), (k,)) / tau
    assert m.sq_dd == pytest.approx(inner + ((before + 0.5) ** 2 - before**2) * k * density / tau**2, rel=1e-11)


@pytest.mark.parametrize("activation, place, d1, variance", [
    (Activation("step", lambda x: (x > 0).to(x.dtype), torch.zeros_like, (0,)), 0.0, 1 / ROOT_2_PI, 0.25),
    (from_function(torch.sign, "sign"), 0.0, 2 / ROOT_2_PI, 1.0),
    (from_function(lambda x: torch.where(x > 1, 2 * x, 2 * x - 3)), 1.0, 2 + 3 * math.exp(-0.5) / ROOT_2_PI, None),
    (from_function(lambda x: torch.where(x > 0.5003, x, -x), kinks=(0.5003,)), 0.5003, None, None),
])
def test_jumps_of_steps_and_of_piecewise_functions(activation, place, d1, variance):
    m = gaussian_moments(activation, 1.0)
    assert m.d1_sq == math.inf and m.jumps == pytest.approx((place,), abs=1e-13)
    assert d1 is None or m.d1 == pytest.approx(d1, rel=1e-12)
    assert variance is None or m.variance == pytest.approx(variance, rel=1e-12)
    # d1 is linear regression on x, whatever the function
    assert m.d1 == pytest.approx(quad(lambda x: x * activation.fn(x), (place,)), rel=1e-11)


def test_a_piecewise_function_without_a_jump_has_none():
    for kinks in ((), (0.5,)):
        bent = from_function(lambda x: torch.where(x > 0.5, 2 * x - 0.5, x), kinks=kinks)
        m = gaussian_moments(bent, 1.0)
        p = 0.5 * math.erfc(0.5 / math.sqrt(2))
        assert (m.jumps, m.d1, m.d1_sq) == ((), pytest.approx(1 + p, rel=1e-12), pytest.approx(1 + 3 * p, rel=1e-12))


TANH = ACTIVATIONS["tanh"]


@pytest.mark.parametrize("tau", [1e-6, 0.3, 1.0, 30.0, 1e5])
@pytest.mark.parametrize("fn, derivative, kinks", [
    (torch.tanh, torch.sigmoid, ()),
    (torch.tanh, lambda x: 1.001 * TANH.derivative(x), ()),
    (torch.nn.functional.leaky_relu, lambda x: 0.02 + 0.98 * (x > 0).double(), (0,)),
    (torch.relu, torch.sign, ()),
])
def test_a_derivative_that_is_not_its_functions_is_refused(fn, derivative, kinks, tau):
    with pytest.raises(
        ValueError, match="activation w: its derivative is not that of its function. From x = 0 to .* by"
    ):
        gaussian_moments(Activation("w", fn, derivative, kinks), tau)


def test_a_derivative_wrong_in_places_or_in_no_mean_is_refused_with_both_numbers():
    for wrong in (lambda x: TANH.derivative(x) + 0.1 * (x > 2),
                  lambda x: (1 + 1e-8) * TANH.derivative(x),
                  # odd: E[f'] is right; and of no mean over any panel
                  lambda x: TANH.derivative(x) + 0.01 * torch.sin(8 * math.pi * x)):
        with pytest.raises(
            ValueError, match=r"at scale 1, E\[f'\] = 0.60\d+, while by Stein's lemma .* = 0.605705509602"
        ):
            gaussian_moments(Activation("w", torch.tanh, wrong), 1.0)


def test_a_derivative_right_to_rounding_is_accepted():
    right = gaussian_moments(TANH, 1.0)
    found = gaussian_moments(Activation("w", torch.tanh, lambda x: (1 + 1e-12) * TANH.derivative(x)), 1.0)
    assert found.d1 == pytest.approx(right.d1, rel=1e-11) and not found.jumps
    # torch's softplus has a jump of 2e-9 at 20
    assert not gaussian_moments(from_function(torch.nn.functional.softplus), 10.0).jumps


def test_a_steep_but_continuous_function_is_no_jump():
    m = gaussian_moments(from_function(lambda x: torch.tanh(1e6 * (x - 0.37))), 1.0)
    density = math.exp(-0.37**2 / 2) / math.sqrt(2 * math.pi)
    assert not m.jumps and m.d1 == pytest.approx(2 * density, rel=1e-9)
    assert m.d1_sq == pytest.approx(1e6 * 4 / 3 * density, rel=1e-9)


def test_what_is_no_activation_is_refused_by_name():
    with pytest.raises(ValueError, match="activation explosive .*(too fast|not finite)"):
        gaussian_moments(
            Activation("explosive", lambda x: torch.exp(x * x), lambda x: 2 * x * torch.exp(x * x), lipschitz=1.0), 1.0
        )
    with pytest.raises(ValueError, match="summed is not elementwise"):
        gaussian_moments(Activation("summed", lambda x: x.sum(), lambda x: x, lipschitz=1.0), 1.0)
    with pytest.raises(ValueError, match="tau must be positive"):
        gaussian_moments(ACTIVATIONS["relu"], 0.0)
    with pytest.raises(ValueError, match="1 kinks need 2 slopes"):
        Activation("bent", torch.relu, torch.relu, (0,), 1.0, (0, 1, 2))


def test_centre():
    for a in ACTIVATIONS.values():
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
    if name in LARGE and scale >= 1e5:  # sign or step: E[f f] = (1 + (2/pi) asin(rho))/4 for the step
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


def test_an_activation_from_a_file(tmp_path):
    (tmp_path / "a.py").write_text(
        "import torch\ndef cube(x):\n    return x**3 / 6 + x\n"
        "flat = 3\ndef flat_fn(x):\n    return torch.ones_like(x)\n"
    )
    cube = load_activation(f"{tmp_path / 'a.py'}:cube")
    assert cube.name == "cube" and load_activation("relu") is ACTIVATIONS["relu"]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(cube.derivative(x), x**2 / 2 + 1)
    assert gaussian_moments(cube, 1.0).d1 == pytest.approx(1.5, abs=1e-12)
    assert load_activation(f"{tmp_path / 'a.py'}:flat_fn").lipschitz == 0
    for spec, words in (
        ("nope", "unknown activation"),
        ("no/file.py:f", "there is no file"),
        (f"{tmp_path / 'a.py'}:flat", "no function"),
        (f"{tmp_path / 'a.py'}:none", "no function"),
    ):
        with pytest.raises(ValueError, match=words):
            load_activation(spec)
    (tmp_path / "broken.py").write_text("def f(x:\n")
    with pytest.raises(ValueError, match="does not run: SyntaxError"):
        load_activation(f"{tmp_path / 'broken.py'}:f")
    (tmp_path / "odd.py").write_text("def f(x):\n    return x.numpy()\n")
    with pytest.raises(ValueError, match="not an elementwise torch function"):
        load_activation(f"{tmp_path / 'odd.py'}:f")
