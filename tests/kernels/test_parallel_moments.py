"""Moments of piecewise-linear activations between nearly parallel samples, against quadrature in the plane."""

import pytest
import torch

from deq_enn.kernels import pair_functions
from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.kernels.parallel.in_the_plane import pair_moments
from deq_enn.kernels.parallel.piecewise_linear import piecewise_linear_moments
from deq_enn.kernels.parallel.tabulated import ParallelTable
from deq_enn.theory.activations import ACTIVATIONS, piecewise_linear
from deq_enn.utils.deadline import OutOfTime, deadline
from tests.conftest import Ticks

KINKED = {
    "relu": ACTIVATIONS["relu"],
    "leaky_relu": ACTIVATIONS["leaky_relu"],
    "hardtanh": ACTIVATIONS["hardtanh"],
    "bent": piecewise_linear("bent", (-1.0, 0.3, 2.0), (0.2, 1.5, -0.5, 1.0), 0.4),
    "linear": piecewise_linear("linear", (), (0.7,), 0.1),
}


@pytest.mark.few(6)
@pytest.mark.parametrize("spread", [1e-7, 1e-3, 0.3, 1.5])
@pytest.mark.parametrize("name", KINKED)
@pytest.mark.slow
def test_they_are_those_of_quadrature_in_the_plane(name, spread):
    """Norms and angles that differ by `spread`; one pair of equal norms, one at no angle, some opposite."""
    g = torch.Generator().manual_seed(3)
    a = 0.3 + 2 * torch.rand(6, generator=g, dtype=torch.float64)
    b = a * (1 + min(spread, 0.5) * torch.randn(6, generator=g, dtype=torch.float64)).abs()
    theta = spread * torch.rand(6, generator=g, dtype=torch.float64)
    b[0], theta[1] = a[0], 0.0
    sign = torch.tensor([1.0, 1, -1, 1, -1, 1], dtype=torch.float64)
    apart, dot = piecewise_linear_moments(KINKED[name], 0.123)(a, b, sign, theta)
    expected, expected_dot = pair_moments(KINKED[name], 0.123, a, b, sign, theta, 30)
    torch.testing.assert_close(dot, expected_dot, rtol=0, atol=1e-12)
    # an entry is (|phi(u)|^2 + |phi(v)|^2 - apart)/2, and what rounding of the scales does to the difference is allowed
    rounding = 1e-15 * a * expected.sqrt() + 1e-30
    assert ((apart - expected).abs() <= 1e-12 * expected + 10 * rounding).all()


def test_it_is_for_piecewise_linear_activations_alone():
    assert piecewise_linear_moments(ACTIVATIONS["elu"], 0.0) is None


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["swish", "tanh", "erf", "sin", "relu", "hardtanh"])
@pytest.mark.slow
def test_one_dimension_where_all_samples_are_parallel(name, monkeypatch):
    """Against the quadrature in the plane, which these activations do without now."""
    X, f = torch.tensor([[-1.7], [-0.4], [0.1], [0.8], [0.8], [1.9]], dtype=torch.float64), ACTIVATIONS[name]
    kernels = (*implicit_kernels(X, f, 0.4), *explicit_kernels(X, [f, f]))
    monkeypatch.setattr("deq_enn.kernels.parallel.pairs.piecewise_linear_moments", lambda *_: None)
    monkeypatch.setattr("deq_enn.kernels.parallel.pairs.FEW", 100)
    monkeypatch.setattr(pair_functions, "FEW", 100)
    for kind in (pair_functions.Erf, pair_functions.Sin, pair_functions.KinkedAtZero, pair_functions.PiecewiseLinear):
        monkeypatch.setattr(kind, "cut", 0.9)
    monkeypatch.setattr(pair_functions.Series, "degrees", (64,))
    for kernel, expected in zip(kernels, (*implicit_kernels(X, f, 0.4), *explicit_kernels(X, [f, f])), strict=True):
        torch.testing.assert_close(kernel, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
def test_what_stands_many_times_in_the_data_is_computed_once(monkeypatch):
    """Sixteen different rows, 15 times each: pairs that differ in nothing but their place."""
    pairs = []

    def counted(self, a, *rest):
        pairs.append(len(a))
        return parts(self, a, *rest)

    parts = ParallelTable.parts
    monkeypatch.setattr(ParallelTable, "parts", counted)
    levels = torch.cartesian_prod(*[torch.tensor([-1.0, -0.3, 0.5, 1.2], dtype=torch.float64)] * 2)
    X = levels.repeat(15, 1)
    ck, ntk = implicit_kernels(X, ACTIVATIONS["elu"], 0.3)
    assert 0 < max(pairs) <= 16 * 17
    for kernel in (ck, ntk):
        torch.testing.assert_close(kernel[:16, :16], kernel[32:48, 16:32], rtol=1e-11, atol=1e-12)


def test_a_deadline_is_looked_at_among_many_pairs():
    """Rows of one attribute are all parallel: their closed forms take long, and are given up where the time is over."""
    a = torch.linspace(0.1, 2, 2000, dtype=torch.float64)
    moments, clock = piecewise_linear_moments(ACTIVATIONS["hardtanh"], 0.0), Ticks(1.0)
    with pytest.raises(OutOfTime), deadline(clock, 3.0):
        moments(a, a.flip(0), torch.ones_like(a), torch.zeros_like(a))
    assert clock.now == 4.0
