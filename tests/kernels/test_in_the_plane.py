"""Quadrature in the plane of nearly parallel pairs, against nested quadrature of another make."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deq_enn.kernels.exact import implicit_kernels
from deq_enn.kernels.parallel.in_the_plane import pair_moments
from deq_enn.kernels.parallel.rules import IN_SECTORS, IN_THE_PLANE, resolved_rule
from deq_enn.theory.activations import ACTIVATIONS, Activation
from tests.helpers.pair_quadrature import BY_HAND, pair_expectation, quadrature

CENTRE = 0.1
HARDSWISH = Activation(
    "hardswish", F.hardswish, lambda x: torch.where(x.abs() < 3, (2 * x + 3) / 6, (x > 3).to(x)), kinks=(-3.0, 3.0)
)
OWN = {
    **{name: (ACTIVATIONS[name], *BY_HAND[name]) for name in ("tanh", "elu", "hardtanh")},
    "hardswish": (
        HARDSWISH,
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(abs(x) < 3, (2 * x + 3) / 6, 1.0 * (x > 3)),
    ),
}


def pairs(*rows):
    return torch.tensor(rows, dtype=torch.float64).T


@pytest.mark.few(3)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", ["hardswish", "elu", "tanh", "hardtanh"])
def test_moments_are_those_of_nested_quadrature(name, sign):
    """Of norms that are the same, nearly so and not, at small and large angles, by the rule that suffices."""
    activation, f, df = OWN[name]
    a, b, theta = pairs((0.7, 0.7, 0.02), (1.9, 1.88, 0.05), (0.8, 2.5, 0.3), (4.0, 3.0, 1.4))
    signs = torch.full_like(a, sign)
    rules = IN_THE_PLANE if any(activation.kinks) else IN_SECTORS
    rule = rules[resolved_rule(rules, activation, CENTRE, a, b, signs, theta)]
    moments = rule(activation, CENTRE, a, b, signs, theta).T.tolist()
    for s, t, angle, (apart, dot) in zip(a.tolist(), b.tolist(), theta.tolist(), moments):
        args = activation.kinks, s * s, t * t, sign * s * t * math.cos(angle)
        second, other = (
            quadrature(lambda x: (f(r * x) - CENTRE) ** 2, [k / r for k in activation.kinks]) for r in (s, t)
        )
        expected = second + other - 2 * sign * pair_expectation(lambda x: f(x) - CENTRE, *args)
        assert apart == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert dot == pytest.approx(pair_expectation(df, *args), rel=1e-11)


def test_a_large_scale_with_a_large_angle_takes_panels_that_move():
    """A coarse rule that does not move agrees with itself for small angles only."""
    tanh, f, df = OWN["tanh"]
    a, b, sign, theta = pairs((8.0, 9.0, 1.0, 1.5))
    rule = IN_THE_PLANE[resolved_rule(IN_THE_PLANE, tanh, 0.0, a, b, sign, theta)]
    assert rule.settings == (True,)
    apart, dot = rule(tanh, 0.0, a, b, sign, theta).flatten().tolist()
    x = np.arange(-9, 9, 0.02)  # the trapezoidal rule, which is right to rounding for analytic functions
    density = np.exp(-np.add.outer(x**2, x**2) / 2) * 0.02**2 / (2 * math.pi)
    u, v = 8 * x[:, None], 9 * (math.cos(1.5) * x[:, None] + math.sin(1.5) * x)
    assert dot == pytest.approx((df(u) * df(v) * density).sum(), rel=1e-11)
    assert apart == pytest.approx(((f(u) - f(v)) ** 2 * density).sum(), rel=1e-11)


def test_a_function_that_is_nothing_as_far_as_a_gaussian_reaches_is_integrated_beyond():
    """relu(|x| - 12) at scale 1: all of it lies beyond the reach of other functions."""
    zone = Activation("zone", lambda x: F.softshrink(x, 12.0), lambda x: (x.abs() > 12).to(x), kinks=(-12.0, 12.0))
    ones, theta = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    _, dot = pair_moments(zone, 0.0, ones, ones, ones, theta, 18)
    assert dot.item() / math.erfc(12 / math.sqrt(2)) == pytest.approx(1, rel=1e-8)


def test_a_pair_takes_few_values_of_the_activation():
    """Hardswish, which has kinks away from 0 and is curved between them: a table cannot have its pairs."""
    values = []

    def counted(x):
        values.append(x.numel())
        return F.hardswish(x)

    own = Activation("own", counted, HARDSWISH.derivative, kinks=HARDSWISH.kinks)
    a, b, sign, theta = pairs(*((0.5 + k / 40, 0.6 + k / 30, 1.0, 0.05 + k / 200) for k in range(40)))
    pair_moments(own, 0.0, a, b, sign, theta, 18)
    assert sum(values) <= 25_000 * 2 * len(a)


def test_samples_of_one_attribute_and_a_kinked_function():
    """Pairs of one and of opposite directions have the same kernels by themselves and among others."""
    X = torch.linspace(-1.5, 2.0, 12, dtype=torch.float64)[:, None]
    ck, ntk = implicit_kernels(X, HARDSWISH, 0.4, tau0=1.0)
    for i, j in ((0, 11), (3, 4), (1, 9)):
        for kernel, part in zip((ck, ntk), implicit_kernels(X[[i, j]], HARDSWISH, 0.4, tau0=1.0)):
            assert kernel[i, j].item() == pytest.approx(part[0, 1].item(), rel=1e-11)
    assert torch.linalg.eigvalsh(ck)[0] > -1e-12
