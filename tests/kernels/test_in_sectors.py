"""Nearly parallel pairs at large scales, by quadrature in polar coordinates and by the table."""

import math

import numpy as np
import pytest
import torch

from deq_enn.kernels.exact import explicit_blocks, explicit_kernels, implicit_kernels
from deq_enn.kernels.parallel import pairs
from deq_enn.kernels.parallel.in_sectors import directions, radii, ray_moments, sector_moments
from deq_enn.kernels.parallel.in_the_plane import pair_moments
from deq_enn.kernels.parallel.rules import IN_SECTORS, IN_THE_PLANE, resolved_rule
from deq_enn.kernels.parallel.tabulated import ParallelTable
from deq_enn.theory.activations import ACTIVATIONS, from_function
from tests.helpers.pair_quadrature import BY_HAND, quadrature

CENTRE = 0.3


def of_pairs(*rows):
    return torch.tensor(rows, dtype=torch.float64).T


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_the_nodes_of_a_plane(scale):
    """The sectors make up the plane, and 66 nodes have exp(-scale |u|), which has a kink at 0 and is narrow."""
    r, weight = radii(66, scale)
    assert weight @ (r * np.exp(-r * r / 2)) == pytest.approx(1, rel=1e-12)
    theta, total = 0.7, 0.0
    for agree in (True, False):
        w, weight_w = directions(66, theta, agree, scale)
        np.testing.assert_allclose(weight_w.sum(), math.pi - theta if agree else theta, rtol=1e-12)
        u = np.abs(np.multiply.outer(np.cos(w - theta / 2), r))
        total += 2 * weight_w @ np.exp(-scale * u) @ (weight * r * np.exp(-r * r / 2)) / (2 * math.pi)
    expected = torch.special.erfcx(torch.tensor(scale / math.sqrt(2), dtype=torch.float64)).item()
    assert total == pytest.approx(expected, rel=1e-11)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["tanh", "softsign", "swish"])
def test_moments_of_a_large_scale(name):
    """Parallel and opposite samples have integrals in one variable; at an angle, the other quadrature has the pair."""
    f, df = BY_HAND[name]
    activation = ACTIVATIONS[name]
    edges = [0.0] + [sign * 2.0**k for k in range(-14, 3) for sign in (1, -1)]
    a, b, _, theta = of_pairs(*((s, t, 1.0, 0.0) for s, t in ((141.0, 141.5), (150.0, 2.0), (2000.0, 1900.0))))
    for sign in (1.0, -1.0):
        signs = torch.full_like(a, sign)
        place = resolved_rule(IN_SECTORS, activation, CENTRE, a, b, signs, theta)
        assert IN_SECTORS[place].moments is sector_moments
        for s, t, (apart, dot) in zip(
            a.tolist(), b.tolist(), IN_SECTORS[place](activation, CENTRE, a, b, signs, theta).T.tolist(), strict=True
        ):
            expected = quadrature(lambda x: (f(s * x) - sign * f(sign * t * x) - CENTRE * (1 - sign)) ** 2, edges)
            assert apart == pytest.approx(expected, rel=1e-9)
            assert dot == pytest.approx(quadrature(lambda x: df(s * x) * df(sign * t * x), edges), rel=1e-10)
    near = of_pairs((20.0, 19.0, 1.0, 0.03), (15.0, 20.0, -1.0, 0.4))
    expected = pair_moments(activation, CENTRE, *near, 30, True)
    torch.testing.assert_close(sector_moments(activation, CENTRE, *near, 66), expected, rtol=1e-10, atol=0)


@pytest.mark.few(2)
@pytest.mark.parametrize("low, high", [(100.0, 150.0), (1.0, 150.0)])
@pytest.mark.parametrize("name", ["tanh", "softsign", "elu"])
def test_a_table_of_large_scales_has_the_digits_of_small_moments(name, low, high):
    """E[f'(u) f'(v)] of a function that saturates is small at a large scale, and is multiplied by the scales there."""
    activation = ACTIVATIONS[name]
    table = ParallelTable(activation, CENTRE, low, high)
    middle = math.sqrt(low * high)
    a, b, sign, theta = of_pairs(
        (high, high, 1.0, 0.0),
        (high, high, 1.0, 1e-3),
        (high, 0.99 * high, 1.0, 0.3),
        (middle, high, 1.0, 0.02),
        (low, low, 1.0, 1.5),
        (low, high, 1.0, 0.1),
    )
    ((_, some),) = table.parts(a, b, sign)
    moments = torch.stack(some(theta)[1:])
    expected = sector_moments(activation, CENTRE, a, b, sign, theta, 93)
    second = sector_moments(activation, CENTRE, a, a, -sign, 0 * theta, 93)[0] + expected[0]
    assert ((moments - expected)[0].abs() <= 1e-11 * second).all()
    torch.testing.assert_close(moments[1], expected[1], rtol=1e-11, atol=0)


def test_rows_far_from_the_origin_have_their_table_and_the_kernels_of_pairs_one_by_one(monkeypatch):
    """Rows about (100, 100), as data that was never centred has: all are nearly parallel, at a scale of 141."""
    X = 100 + torch.from_numpy(np.random.default_rng(0).normal(size=(9, 2)))
    kernels, values = {}, {few: 0 for few in (pairs.FEW, 100)}
    tanh = ACTIVATIONS["tanh"]
    for few in values:

        def counted(x, few=few):
            values[few] += x.numel()
            return tanh.fn(x)

        monkeypatch.setattr(pairs, "FEW", few)
        kernels[few] = implicit_kernels(X, from_function(counted, "own"), 0.2, tau0=1.0)
    for kernel, expected in zip(*kernels.values(), strict=True):
        assert not torch.equal(kernel, expected)
        torch.testing.assert_close(kernel, expected, rtol=1e-10, atol=0)
    assert (
        values[100] < 36 * 5 * 200_000
    )  # of 36 pairs that are integrated; those in the plane would take 70 times more


def test_a_narrow_feature_away_from_0_is_integrated_in_the_plane():
    """tanh(30 (x - 1)) is smooth, but radii and directions have nothing that is dense at u = 1."""
    steep = from_function(lambda x: torch.tanh(30 * (x - 1)), "steep")
    a, b, sign, theta = of_pairs((1.0, 1.1, 1.0, 0.01))
    rule = IN_SECTORS[resolved_rule(IN_SECTORS, steep, 0.0, a, b, sign, theta)]
    assert rule in IN_THE_PLANE
    apart, dot = rule(steep, 0.0, a, b, sign, theta)[:, 0].tolist()
    x = np.arange(-9, 9, 0.002)  # the trapezoidal rule
    y = np.arange(-9, 9, 0.05)
    density = np.exp(-np.add.outer(x**2, y**2) / 2) * 0.002 * 0.05 / (2 * math.pi)
    half = 0.005
    u = math.cos(half) * x[:, None] - math.sin(half) * y
    v = 1.1 * (math.cos(half) * x[:, None] + math.sin(half) * y)
    f, df = (lambda z: np.tanh(30 * (z - 1))), (lambda z: 30 / np.cosh(np.clip(30 * (z - 1), -300, 300)) ** 2)
    assert apart == pytest.approx(((f(u) - f(v)) ** 2 * density).sum(), rel=1e-9)
    assert dot == pytest.approx((df(u) * df(v) * density).sum(), rel=1e-9)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["tanh", "elu", "softsign", "gelu"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_parallel_pairs_need_one_variable(name, sign):
    """Norms that are the same, nearly so, and far apart, some of them several times."""
    a, b, signs, theta = of_pairs(
        *((s, t, sign, 0.0) for s, t in ((0.3, 0.3), (1.0, 1.0001), (2.0, 0.5), (0.01, 2.0), (2.0, 0.3), (8.0, 7.0)))
    )
    moments = ray_moments(ACTIVATIONS[name], CENTRE, a, b, signs, theta, 131)
    expected = pair_moments(ACTIVATIONS[name], CENTRE, a, b, signs, theta, 41)
    torch.testing.assert_close(moments, expected, rtol=1e-11, atol=0)


def test_many_parallel_pairs_make_no_table(monkeypatch):
    """Those of a first layer have no angle, and those of the second do."""
    made = []
    monkeypatch.setattr(pairs, "ParallelTable", lambda *given: made.append(given) or ParallelTable(*given))
    x = torch.linspace(0.5, 2.0, 30)[:, None]
    explicit_kernels(x, ["elu"])
    assert not made
    own = explicit_blocks(3 * x, ["mish"])
    own.both()
    assert list(own.stack[0][0].tables) == [64]
    explicit_kernels(x, ["elu", "elu"])
    assert len(made) == 1
