"""A user's function that is linear between its declared kinks: nearly parallel samples have its closed forms."""

import pytest
import torch

from deq_enn.kernels import exact
from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.kernels.parallel import pairs
from deq_enn.kernels.pieces import with_slopes
from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function
from deq_enn.utils.random import generator


def bumps(x):
    p = x.remainder(1.0)
    return 0.4 * x + 0.5 * torch.where(p < 0.5, p, 1 - p)


OWN = {
    "dead": from_function(lambda x: x - x.clamp(-0.5, 0.5), "dead", (-0.5, 0.5)),
    "clamp": from_function(lambda x: x.clamp(-1, 2), "clamp", (-1, 2)),
    "bent": from_function(lambda x: 0.2 + 0.3 * x + 0.5 * (x - 0.7).abs() - 0.2 * (x + 1.1).abs(), "bent", (-1.1, 0.7)),
}


def samples(kind):
    if kind == "one attribute":
        return torch.tensor([[-1.7], [-0.6], [0.5], [0.9], [1.9]], dtype=torch.float64)
    X = torch.randn(3, 20, generator=generator(kind), dtype=torch.float64)
    return torch.cat([X, X[:2], -X[:1], X[:1] * 1.3, X[1:2] * (1 + 1e-5)])


@pytest.mark.parametrize("kind", ["repeated rows", pytest.param("one attribute", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OWN)
def test_they_are_those_of_quadrature_in_the_plane(kind, name, monkeypatch):
    X, f, refused = samples(kind), OWN[name], []

    def kernels():
        return *implicit_kernels(X, f, 0.3), *explicit_kernels(X, [f, f])

    quadrature = pairs.resolved_rule
    monkeypatch.setattr(pairs, "resolved_rule", lambda *_: refused.append(1))
    closed = kernels()
    monkeypatch.setattr(pairs, "resolved_rule", quadrature)
    monkeypatch.setattr(exact, "with_slopes", lambda activation, _: activation)
    monkeypatch.setattr(pairs, "piecewise_quadratic_moments", lambda *_: None)
    for kernel, expected in zip(closed, kernels(), strict=True):
        scale = torch.outer(expected.diagonal().sqrt(), expected.diagonal().sqrt())
        assert ((kernel - expected).abs() <= 1e-10 * scale).all()
    assert not refused


def test_the_slopes_are_seen_and_kinks_that_are_none_are_left_out():
    known = with_slopes(from_function(lambda x: x.clamp(-1, 2), "clamp", (2, -1, 0, 0.3)), 1.0)
    assert known.kinks == (-1, 2) and known.slopes == (0, 1, 0)
    zigzag = with_slopes(from_function(bumps, "bumps", [k / 2 for k in range(-40, 41)]), 1.0)
    assert zigzag.kinks == tuple(k / 2 for k in range(-27, 28))  # of those beyond 14 nothing is seen
    assert zigzag.slopes[:2] == pytest.approx((0.9, -0.1))


@pytest.mark.parametrize(
    "given",
    [
        from_function(torch.tanh, "tanh", (0.5,)),
        from_function(lambda x: x.clamp(-1, 2), "one kink is not declared", (-1,)),
        from_function(lambda x: x.clamp(-1, 12), "one far kink is not declared", (-1,)),
        from_function(lambda x: x.clamp(0) + 1e-3 * (1e-4 - (x - 1).abs()).clamp(0), "narrow", (0, 1)),
        from_function(torch.nn.functional.hardshrink, "a jump", (-0.5, 0.5)),
        Activation("another slope", lambda x: x.clamp(-1, 2), lambda x: ((x > -1) & (x < 3)).to(x.dtype), (-1, 2, 3)),
        from_function(bumps, "too few", [k / 2 for k in range(-6, 7)]),
        from_function(lambda x: x + 1.0, "none declared"),
        ACTIVATIONS["hardtanh"],
        ACTIVATIONS["elu"],
    ],
    ids=lambda given: given.name,
)
def test_any_other_function_stays_as_it_is(given):
    assert with_slopes(given, 1.0) is given


def test_a_small_scale_sees_what_it_reaches():
    """At scale 0.25 nothing beyond 3.5 matters: there is exp(-98) of a Gaussian variable."""
    assert with_slopes(from_function(lambda x: x.clamp(-1, 12), "clamp", (-1,)), 0.25).slopes == (0, 1)
