"""How matches move with tau_0 and sigma_a^2: no step where one can be avoided, and one that cannot."""

import itertools
import math

import numpy as np
import pytest
import torch

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.matching import curved_layers, equations, search
from deq_enn.matching.families import match
from deq_enn.theory import norm_sensitivity
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import implicit_ntk
from deq_enn.utils.random import generator


def features(kind, n=100):
    """Rows of mean squared norm 1: the paper's mixture, or positive features with spread norms and large cosines."""
    g = generator("jumps", kind)
    if kind == "mixture":
        X = torch.randn(n, 250, generator=g, dtype=torch.float64)
        X[::2] *= math.sqrt(1 + 8 / math.sqrt(250))
        X[::2] += 2 * torch.randn(250, generator=g, dtype=torch.float64) / math.sqrt(250)
    else:
        factors, loadings = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((n, 6), (6, 64)))
        X = torch.relu(factors @ loadings + torch.randn(n, 64, generator=g, dtype=torch.float64))
        X -= 0.6 * X.mean(0)
    return X / X.square().sum(1).mean().sqrt()


@pytest.mark.few(1)
@pytest.mark.parametrize("kind, near", [("mixture", 0.006), ("features", 0.018)])
@pytest.mark.parametrize("name, sigma_a2, low, high", [("swish", 0.2, 0.978, 1.002), ("gelu", 0.2, 0.61, 0.64)])
@pytest.mark.slow
def test_the_distance_to_the_deq_does_not_jump_with_tau0(name, sigma_a2, low, high, kind, near):
    """Here the number of kinks used to change, and the distance with it: of the features from 0.011 to 0.021."""
    X, result = features(kind), []
    for tau0 in np.linspace(low, high, 5):
        deq = implicit_kernels(tau0 * X, ACTIVATIONS[name], sigma_a2)[0]
        enn = explicit_kernels(tau0 * X, match(ACTIVATIONS[name], sigma_a2, tau0).layers)[0]
        result.append((torch.linalg.matrix_norm(deq - enn, 2) / torch.linalg.matrix_norm(deq, 2)).item())
    assert max(result) < near and max(abs(a - b) for a, b in zip(result, result[1:])) < near / 2


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("name", ["swish", "elu"])
def test_the_mismatch_is_continuous_in_tau0_and_sigma_a2(name):
    for along in ([(0.2, t) for t in np.linspace(0.9, 1.1, 21)], [(s, 0.8) for s in np.linspace(0.15, 0.25, 11)]):
        values = [match(ACTIVATIONS[name], sigma_a2, tau0, family="piecewise").mismatch for sigma_a2, tau0 in along]
        assert max(values) < 0.03 and max(abs(a - b) for a, b in zip(values, values[1:])) < 0.006


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name, sigma_a2, tau0",
    [
        ("gelu", [0.2], np.linspace(0.97, 1.09, 4)),
        ("gelu", [0.2], np.linspace(1.32, 1.42, 3)),
        ("gelu", np.linspace(0.2, 0.28, 3), [1.0]),
        ("relu", np.linspace(0.87, 0.91, 3), [1.0]),
    ],
)
@pytest.mark.slow
def test_the_kernel_does_not_step_where_the_nearest_match_lies_between_two_shares(name, sigma_a2, tau0):
    """Here it stepped by 0.06, 0.06, 0.07 and 0.08, as the curve was chosen by the points of a grid alone."""
    X, before = features("features"), None
    for s, t in itertools.product(sigma_a2, tau0):
        deq = implicit_kernels(t * X, ACTIVATIONS[name], s)[0]
        error = explicit_kernels(t * X, match(ACTIVATIONS[name], s, t).layers)[0] - deq
        error /= torch.linalg.matrix_norm(deq, 2)
        assert before is None or torch.linalg.matrix_norm(error - before, 2) < 0.002
        before = error


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name, sigma_a2, tau0, kernel",
    [("gelu", 0.2, 1.0, "ck"), ("gelu", 0.06, 1.0, "ck"), ("relu", 0.9, 1.0, "ck"), ("softplus", 0.2, 1.4, "ntk")],
)
def test_no_curve_has_a_much_nearer_match_between_two_shares(name, sigma_a2, tau0, kernel):
    result, activation = match(ACTIVATIONS[name], sigma_a2, tau0, kernel), ACTIVATIONS[name]
    goal, depth = norm_sensitivity.implicit_response(activation, sigma_a2, tau0, kernel), len(result.layers)
    place = equations.Place(result.trained, 2, behind=depth - 2)
    scaled = tuple(place.c1 * value for value in equations.scale_free(result.target, tau0))
    share, least = np.concatenate([np.geomspace(1e-6, 0.1, 5000), np.linspace(0.1, 1, 20000)[:-1]]), math.inf
    for ramps in (1, 2, 3, 4):
        for first, second in itertools.product(curved_layers.bases_of("piecewise", ramps), repeat=2):
            (q1, r1, q2, r2_squared), *_ = equations.curve(place, first, second, scaled, share)
            q1, r1, q2, r2 = (x[r2_squared >= 0] for x in (q1, r1, q2, np.sqrt(np.maximum(r2_squared, 0))))
            for r in (r2, -r2) if len(r2) else ():
                layers = [first.moments(q1, r1), second.moments(q2, r), *[(1.0, 1.0, 1.0, 0.0, 0.0)] * (depth - 2)]
                u, v = norm_sensitivity.response_of(layers, result.trained)
                least = min(least, np.hypot(u - goal[0], 4 * (v - goal[1])).min())
    assert result.mismatch < max(norm_sensitivity.NOISE, least / 0.89)


def test_a_step_where_the_nearest_matches_begin():
    """gelu in NTK: the matches with two kinks a layer begin at tau_0 = 0.96591, already nearer than all others."""
    share = np.concatenate([np.geomspace(1e-9, 1e-2, 3000), np.linspace(0, 1, 3000)[:-1]])
    (basis,) = curved_layers.bases_of("piecewise", 1)
    most, result = {}, {}
    for tau0 in (0.9658, 0.96592):
        result[tau0] = match(ACTIVATIONS["gelu"], 0.2, tau0, "ntk")
        assert len(result[tau0].layers) == 3
        for place in (equations.Place("all", 2, *others) for others in ((1, 0, 0), (0, 1, 0), (0, 0, 1))):
            scaled = tuple(place.c1 * x for x in equations.scale_free(result[tau0].target, tau0))
            r2_squared = equations.curve(place, basis, basis, scaled, share)[0][3]
            most[tau0] = max(most.get(tau0, -math.inf), np.nanmax(r2_squared))
    assert most[0.9658] < 0 < most[0.96592]
    assert [len(layer["kinks"]) for layer in result[0.96592].parameters] == [2, 2, 0]
    assert result[0.96592].mismatch < 0.6 * result[0.9658].mismatch


@pytest.mark.slow
def test_a_third_layer_is_taken_where_two_are_far_from_the_tangent_kernel():
    two = search.two_layers(
        [equations.Place("all", 2)],
        [curved_layers.bases_of("piecewise", 4)],
        implicit_ntk(ACTIVATIONS["gelu"], 0.2),
        1.0,
        norm_sensitivity.implicit_response(ACTIVATIONS["gelu"], 0.2, kernel="ntk"),
    )[0]
    result, X = match(ACTIVATIONS["gelu"], 0.2, kernel="ntk"), features("mixture")
    deq = implicit_kernels(X, ACTIVATIONS["gelu"], 0.2)[1]
    far, near = (torch.linalg.matrix_norm(deq - explicit_kernels(X, layers)[1], 2) for layers in (two, result.layers))
    assert len(result.layers) == 3 and far > 5 * near
