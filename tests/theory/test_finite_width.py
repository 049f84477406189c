"""The error of kernels at finite width, against networks that are drawn; and the match that is nearest to its DEQ."""

import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
import torch

from deq_enn.matching import curved_layers, equations, two_layer_lrelu
from deq_enn.matching.families import match
from deq_enn.theory import norm_sensitivity
from deq_enn.theory.activations import ACTIVATIONS, piecewise_linear
from deq_enn.theory.coefficients import explicit_ntk, implicit_ck
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.finite_width import fluctuation, implicit_fluctuation
from deq_enn.theory.gaussian import centre, expectation
from deq_enn.utils.random import generator
from tests.helpers.match_residual import residual
from tests.helpers.sampled_networks import sampled


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "name, kernel, trained, family",
    [
        ("relu", "ck", "aAB", "l_relu"),
        ("gelu", "ck", "aAB", "piecewise"),
        ("elu", "ntk", "aAB", "hermite"),
        ("relu", "ntk", "aAB", "piecewise"),
        ("relu", "ntk", "aA", "piecewise"),
        ("swish", "ntk", "aAB", "piecewise"),
    ],
)
def test_fluctuation_is_that_of_sampled_networks(name, kernel, trained, family):
    m, draws = 64, 2000
    result = match(ACTIVATIONS[name], 0.2, 0.9, kernel, family, trained)
    off, on = fluctuation(result.layers, 0.9, result.trained)
    entries = sampled(result.layers, 0.9, m, draws, result.trained) / result.achieved.diag
    assert m * np.mean(entries[:, 0] ** 2) == pytest.approx(off, rel=0.16)
    assert m * np.var(entries[:, 1]) == pytest.approx(on, rel=0.16)
    assert result.fluctuation == off + on


@pytest.mark.slow
def test_fluctuation_of_strongly_curved_layers():
    # here E[sigma'^2] depends on the scale, and sigma^2 and sigma'^2 of a unit are correlated
    def bent(inner, outer, c):
        return piecewise_linear("bent", (-c, c), (outer, inner, outer))

    for layers in ([bent(0.1, 1, 1.0), bent(1, 0, 0.5)], [bent(0.1, 1, 2.0), bent(0.1, 1, 2.0)]):
        entries = sampled(layers, 1.0, 64, 4000, "all") / explicit_ntk(layers).diag
        off, on = fluctuation(layers)
        assert 64 * np.mean(entries[:, 0] ** 2) == pytest.approx(off, rel=0.14)
        assert 64 * np.var(entries[:, 1]) == pytest.approx(on, rel=0.14)


def test_fluctuation_of_the_diagonal_by_hand():
    """One layer and two, all weights trained, in moments that are not normalised."""
    first, second = (piecewise_linear("bent", (-1, 1), (outer, inner, outer)) for inner, outer in ((0.1, 1), (0.3, 1)))

    def mean(f, q, layer):
        x = math.sqrt(q)
        return expectation(lambda xi: f(layer.fn(x * xi), layer.derivative(x * xi)), [k / x for k in layer.kinks])

    def noise(a, b, q, layer):  # m Var of the mean of a f^2 + b w^2 f'^2 over units, w ~ N(0, 1)
        f2, g2, f4 = (mean(h, q, layer) for h in (lambda f, g: f**2, lambda f, g: g**2, lambda f, g: f**4))
        cross, g4 = mean(lambda f, g: (f * g) ** 2, q, layer), mean(lambda f, g: g**4, q, layer)
        return a**2 * (f4 - f2**2) + 2 * a * b * (cross - f2 * g2) + b**2 * (3 * g4 - g2**2)

    q, slope = mean(lambda f, g: f**2, 1.0, first), mean(lambda f, g: g**2, 1.0, first)
    assert fluctuation([first])[1] == pytest.approx(noise(1, 1, 1.0, first) / (q + slope) ** 2)

    def kernel(q):  # after the second layer, of a first with this Gram entry
        return mean(lambda f, g: f**2 + g**2 * (q + slope), q, second)

    rise, behind = (kernel(1.001 * q) - kernel(0.999 * q)) / (0.002 * q), mean(lambda f, g: g**2, q, second)
    variance = noise(1, q + slope, q, second) + noise(rise, behind, 1.0, first)
    assert fluctuation([first, second])[1] == pytest.approx(variance / kernel(q) ** 2, rel=1e-4)


def test_the_papers_root_has_the_least_fluctuation():
    roots = two_layer_lrelu.solutions(implicit_ck(ACTIVATIONS["relu"], 0.2))
    errors = [sum(fluctuation(root.layers, 1.0, "readout")) for root in roots]
    assert match(ACTIVATIONS["relu"], 0.2, family="l_relu").fluctuation == min(errors) < max(errors)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name, sigma_a2, kernel, family",
    [("swish", 0.05, "ck", "piecewise"), ("elu", 0.2, "ntk", "piecewise"), ("elu", 0.2, "ntk", "hermite")],
)
@pytest.mark.slow
def test_the_match_taken_is_the_nearest_beyond_the_four_coefficients(name, sigma_a2, kernel, family):
    """No number of kinks, no knee, no share of layer 1, no sign of r_2 comes nearer, by the public functions."""
    result, activation = match(ACTIVATIONS[name], sigma_a2, kernel=kernel, family=family), ACTIVATIONS[name]
    assert len(result.layers) == 2
    goal = norm_sensitivity.implicit_response(activation, sigma_a2, 1.0, kernel)
    place = equations.Place(result.trained, 2)
    scaled = tuple(place.c1 * value for value in equations.scale_free(result.target, 1.0))
    others = []
    for ramps in (1, 2, 3, 4) if family == "piecewise" else (1,):
        for first, second in itertools.product(curved_layers.bases_of(family, ramps), repeat=2):
            for share in np.linspace(0, 0.99, 12):
                (q1, r1, q2, r2_squared), *_ = equations.curve(place, first, second, scaled, share)
                for sign in (1, -1) if r2_squared >= 0 else ():
                    layers, _ = equations.build(
                        place, [first, second], [q1, q2], [r1, sign * math.sqrt(r2_squared)], result.target, 1.0
                    )
                    if not others:
                        assert residual(activation, sigma_a2, 1.0, kernel, "aAB", layers) < 1e-12
                    u, v = norm_sensitivity.explicit_response(layers, 1.0, result.trained)
                    others.append(math.hypot(u - goal[0], 4 * (v - goal[1])))
    assert len(others) >= 6 and result.mismatch <= min(others) + 1e-9 and max(others) > min(others) + 0.02


def test_layers_are_centred_at_their_input_scales():
    result, tau = match(ACTIVATIONS["swish"], 0.2, 0.7, "ntk"), 0.7
    for layer in result.layers:
        kinks = [k / tau for k in layer.kinks]
        assert abs(expectation(lambda x: layer.fn(tau * x), kinks)) < 1e-14
        tau = math.sqrt(expectation(lambda x: layer.fn(tau * x) ** 2, kinks))
    assert astuple(explicit_ntk(result.layers, 0.7)) == astuple(result.achieved)


# ---------------------------------------------------------------------------------------------------------------
# the DEQ's own finite-width error


@pytest.mark.few(1)
@pytest.mark.parametrize("name, sigma_a2, tau0", [("relu", 0.2, 1.0), ("selu", 0.3, 0.7), ("tanh", 0.5, 1.5)])
@pytest.mark.slow
def test_implicit_fluctuation_is_that_of_sampled_deqs(name, sigma_a2, tau0):
    m, draws, some, activation, g = 128, 2000, 50, ACTIVATIONS[name], generator("sampled deq")
    phi = centre(activation, get_tau(activation, sigma_a2, tau0)).fn
    entries = []
    for _ in range(0, draws, some):  # two orthogonal inputs: B x is a pair of independent Gaussian vectors
        A = torch.randn(some, m, m, generator=g).mul_(math.sqrt(sigma_a2 / m))
        u = torch.randn(some, m, 2, generator=g).mul_(math.sqrt(1 - sigma_a2) * tau0)
        v = phi(u)
        for _ in range(15):
            v = phi(torch.baddbmm(u, A, v))
        entries.append((v.mT @ v / m)[:, 0])
    entries = torch.cat(entries).numpy() / implicit_ck(activation, sigma_a2, tau0).diag
    off, on = implicit_fluctuation(activation, sigma_a2, tau0)
    assert m * np.mean(entries[:, 1] ** 2) == pytest.approx(off, rel=0.15)
    assert m * np.var(entries[:, 0]) == pytest.approx(on, rel=0.15)


def test_a_kernel_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="trained must be 'readout', 'all' or 'frozen_first', got 'ck'"):
        fluctuation([ACTIVATIONS["relu"]], 1.0, "ck")
