"""Functions that are quadratic between kinks, such as hardswish: their nearly parallel pairs, by short integrals."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.kernels.parallel import pairs, piecewise_quadratic
from deq_enn.kernels.parallel.in_the_plane import pair_moments
from deq_enn.kernels.parallel.piecewise_quadratic import pieces_of, piecewise_quadratic_moments
from deq_enn.theory.activations import from_function
from tests.helpers.pair_quadrature import pair_expectation, quadrature

CENTRE = 0.1


def bent(x):
    """It has a curvature at either end, and none between the kinks."""
    left, right = (-1.1 - x).clamp(0), (x - 0.4).clamp(0)
    return 0.1 + 0.3 * x + 0.2 * left - 0.3 * left.square() + 0.5 * right + 0.1 * right.square()


def three(x):
    return F.hardswish(x) + 0.2 * (x + 0.5).abs() - 0.1 * (x - 1).clamp(0).square()


FUNCTIONS = {
    "hardswish": from_function(F.hardswish, "hardswish", (-3, 3)),
    "bent": from_function(bent, "bent", (-1.1, 0.4)),
    "four kinks": from_function(three, "four kinks", (-3, -0.5, 1, 3)),
}


def of_pairs(*rows):
    return torch.tensor(rows, dtype=torch.float64).T


def by_hand(activation):
    return tuple(
        lambda x, f=f: f(torch.from_numpy(np.asarray(x))).numpy() for f in (activation.fn, activation.derivative)
    )


@pytest.mark.few(2)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_are_those_of_nested_quadrature(name, sign):
    """Of norms that are the same, nearly so and not, at small and large angles."""
    activation = FUNCTIONS[name]
    f, df = by_hand(activation)
    a, b, theta = of_pairs((0.7, 0.7, 0.02), (1.9, 1.88, 0.05), (0.8, 2.5, 0.3), (4.0, 3.0, 1.4), (2.0, 2.0, 0.2))
    moments = piecewise_quadratic_moments(activation, CENTRE, 4.0)
    assert moments is not None
    out = moments(a, b, torch.full_like(a, sign), theta).T.tolist()
    for s, t, angle, (apart, dot) in zip(a.tolist(), b.tolist(), theta.tolist(), out, strict=True):
        args = activation.kinks, s * s, t * t, sign * s * t * math.cos(angle)
        second, other = (
            quadrature(lambda x: (f(r * x) - CENTRE) ** 2, [k / r for k in activation.kinks]) for r in (s, t)
        )
        expected = second + other - 2 * sign * pair_expectation(lambda x: f(x) - CENTRE, *args)
        assert apart == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert dot == pytest.approx(pair_expectation(df, *args), rel=1e-11)


@pytest.mark.few(1)
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_parallel_pairs_and_those_at_extreme_scales(name, sign):
    """Small distances have their digits, and so has a scale at which all kinks are far or next to one another."""
    activation = FUNCTIONS[name]
    rows = (
        (0.7, 0.7, 0.0),
        (0.7, 0.70001, 1e-6),
        (3.0, 3.0, 1e-5),
        (0.25, 0.25, 0.3),
        (0.1, 2.0, 0.0),
        (30.0, 29.0, 0.01),
    )
    a, b, theta = of_pairs(*rows)
    signs = torch.full_like(a, sign)
    moments = piecewise_quadratic_moments(activation, CENTRE, 30.0)
    assert moments is not None
    for k in range(len(a)):
        pair = a[k : k + 1], b[k : k + 1], signs[k : k + 1], theta[k : k + 1]
        expected = pair_moments(activation, CENTRE, *pair, 62, True)
        torch.testing.assert_close(moments(*pair), expected, rtol=1e-10, atol=1e-28)
    together, alone = (
        moments(a, b, signs, theta),
        [moments(a[k:], b[k:], signs[k:], theta[k:])[:, 0] for k in range(len(a))],
    )
    torch.testing.assert_close(together, torch.stack(alone, 1), rtol=1e-11, atol=1e-28)


LINE, PLANE = torch.linspace(-1.5, 2.0, 6)[:, None], torch.tensor([[1.0, 2], [2, 4.01], [-1, -2], [1, 2]])


@pytest.mark.parametrize("X", [PLANE, pytest.param(LINE, marks=pytest.mark.slow)], ids=["plane", "line"])
def test_kernels_are_those_of_quadrature_in_the_plane(X, monkeypatch):
    def kernels():
        f = FUNCTIONS["hardswish"]
        return *implicit_kernels(X, f, 0.4, tau0=1.0), *explicit_kernels(X, [f, f])

    def refused(*_):
        raise AssertionError("there are short integrals")

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "resolved_rule", refused)
        own = kernels()
    monkeypatch.setattr(pairs, "piecewise_quadratic_moments", lambda *_: None)
    for kernel, expected in zip(own, kernels(), strict=True):
        assert not torch.equal(kernel, expected)
        torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-11 * expected.abs().max().item())


def test_newtons_method_asks_once_for_what_pairs_have_at_no_angle(monkeypatch):
    asked, own = [], piecewise_quadratic._at_no_angle

    def noted(*given):
        asked.extend(zip(given[3].tolist(), given[4].tolist(), [given[5]] * len(given[3])))
        return own(*given)

    monkeypatch.setattr(piecewise_quadratic, "_at_no_angle", noted)
    implicit_kernels(LINE, FUNCTIONS["hardswish"], 0.4, tau0=1.0)
    assert asked and len(asked) == len(set(asked))


@pytest.mark.parametrize(
    "given",
    [
        from_function(F.elu, "elu", (-1,)),
        from_function(F.hardswish, "a kink is not declared", (-3,)),
        from_function(lambda x: F.hardswish(x) + 1e-9 * x**3, "cubic", (-3, 3)),
        from_function(F.hardshrink, "a jump", (-0.5, 0.5)),
        from_function(lambda x: x.clamp(0) ** 2, "kinked at 0", (0,)),
        from_function(lambda x: sum((x - k).clamp(0) ** 2 for k in range(7)), "many kinks", tuple(range(7))),
    ],
    ids=lambda given: given.name,
)
def test_any_other_function_has_no_such_pieces(given):
    assert pieces_of(given, 1.0) is None and piecewise_quadratic_moments(given, 0.0, 1.0) is None


def test_the_pieces_of_hardswish():
    pieces = pieces_of(FUNCTIONS["hardswish"], 2.0)
    assert pieces is not None and pieces.leftmost == 0 and pieces.kinks.tolist() == [-3, 3]
    torch.testing.assert_close(pieces.steps, torch.tensor([-0.5, -0.5]).double())
    torch.testing.assert_close(pieces.bends, torch.tensor([1 / 3, -1 / 3]).double())
