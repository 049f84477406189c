"""families.py: every residual here is recomputed by the public functions, every infeasible case by brute force."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, least_squares

from deq_enn.matching import curved_layers, equations as layer_equations, families, search
from deq_enn.matching.families import match
from deq_enn.theory.activations import ACTIVATIONS, Activation
from deq_enn.theory.coefficients import MatchError, implicit_ck, implicit_ntk
from deq_enn.utils.random import generator
from tests.helpers.match_residual import residual

MODES = [("ck", "aAB"), ("ntk", "aAB"), ("ntk", "aA")]


@pytest.mark.few(8)
@pytest.mark.parametrize("kernel, trained", MODES)
@pytest.mark.parametrize("tau0", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_deq_of_the_registry_is_matched(name, tau0, kernel, trained):
    activation = ACTIVATIONS[name]
    for sigma_a2 in (0.01, 0.1, 0.24):
        result = match(activation, sigma_a2, tau0, kernel, trained=trained)
        assert residual(activation, sigma_a2, tau0, kernel, trained, result.layers) < 1e-12
        assert result.residual < 1e-12 and len(result.layers) == len(result.parameters)
        assert len(result.layers) <= (2 if kernel == "ck" else 3 if trained == "aAB" else 4)
        assert 0 < result.fluctuation < 10.1  # the largest is 10.06, of gelu with (a, A) trained


@pytest.mark.parametrize("name", ["relu", "gelu", "elu", "sin", "tanh", "softplus"])
@pytest.mark.parametrize("family", ["hermite", "piecewise"])
def test_both_general_families_match_in_ck(family, name):
    for sigma_a2, tau0 in ((0.05, 1.0), (0.2, 2.0)):
        result = match(ACTIVATIONS[name], sigma_a2, tau0, "ck", family)
        assert result.family == family and residual(ACTIVATIONS[name], sigma_a2, tau0, "ck", "", result.layers) < 1e-12
        assert len(result.layers) == (1 if name in ("sin", "tanh") else 2)


def test_auto_takes_the_papers_networks_where_they_apply():
    relu, tanh = match(ACTIVATIONS["relu"], 0.2), match(ACTIVATIONS["tanh"], 0.2)
    assert (relu.family, tanh.family) == ("l_relu", "hard_tanh")
    assert [v for p in relu.parameters for v in (p["a"], p["b"])] == pytest.approx(
        (1.22564, 0.75405, 0.92612, 0.00096), abs=5e-6
    )
    assert (tanh.parameters[0]["a"], tanh.parameters[0]["c"]) == pytest.approx((0.764297, 1.196485), abs=5e-7)
    assert match(ACTIVATIONS["tanh"], 0.2, kernel="ntk").family == "hard_tanh"
    assert match(ACTIVATIONS["relu"], 0.2, kernel="ntk").family == "piecewise"
    assert "two leaky-ReLU layers" in " ".join(match(ACTIVATIONS["relu"], 0.2, kernel="ntk").passed_over)


def test_one_curved_layer_where_the_deq_has_its_ratio():
    def activation(slope):
        return Activation(
            "bent",
            lambda x: torch.where(x > 0, x, slope * torch.tanh(x)),
            lambda x: torch.where(x > 0, torch.ones_like(x), slope * (1 - torch.tanh(x) ** 2)),
            (0,),
        )

    def excess(slope):
        target = implicit_ck(activation(slope), 0.2)
        return 2 * target.c2 / target.c3 - 1

    special = activation(brentq(excess, 0.2, 1.0, xtol=1e-15))
    result = match(special, 0.2)
    assert len(result.layers) == 1 and residual(special, 0.2, 1.0, "ck", "", result.layers) < 1e-12
    assert len(match(activation(0.3), 0.2).layers) == 2


def random_activation(seed):
    """A smooth function of growth between bounded and linear, neither odd nor even."""
    a, b, c, d, e, f = torch.randn(6, generator=generator("activation", seed), dtype=torch.float64).tolist()
    return Activation(
        f"random {seed}",
        lambda x: 0.5 * a * x + b * torch.tanh(x + c) + 0.3 * d * torch.sin(x + e) + f * torch.sqrt(1 + x * x) / 2,
        lambda x: (
            0.5 * a + b * (1 - torch.tanh(x + c) ** 2) + 0.3 * d * torch.cos(x + e) + f * x / torch.sqrt(1 + x * x) / 2
        ),
    )


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", range(25))
def test_random_smooth_activations(seed):
    activation = random_activation(seed)
    sigma_a2, tau0 = ((0.02, 1.0), (0.1, 0.5), (0.2 / max(1, activation.lipschitz**2), 2.0))[seed % 3]
    for kernel, trained in MODES[:2]:
        result = match(activation, sigma_a2, tau0, kernel, trained=trained)
        assert residual(activation, sigma_a2, tau0, kernel, trained, result.layers) < 1e-10


@pytest.mark.slow
def test_parameters_describe_the_layers():
    x = torch.linspace(-4, 4, 201, dtype=torch.float64)
    cubic = match(ACTIVATIONS["gelu"], 0.2, 0.8, "ck", "hermite")
    for layer, p in zip(cubic.layers, cubic.parameters):
        u = x / p["tau"]
        said = p["gain"] * p["tau"] * (u + p["q"] * (u**2 - 1) / math.sqrt(2) + p["r"] * (u**3 - 3 * u) / math.sqrt(6))
        torch.testing.assert_close(layer.fn(x), said)
        y = x.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(layer.fn(y).sum(), y)[0], layer.derivative(x))
    bent = match(ACTIVATIONS["gelu"], 0.2, 0.8, "ck", "piecewise")
    for layer, p in zip(bent.layers, bent.parameters):
        grid = torch.tensor([0.0, *p["kinks"]], dtype=torch.float64)
        assert layer.fn(grid)[0].item() == pytest.approx(p["value_at_zero"], abs=1e-15)
        middles = [p["kinks"][0] - 1, *(torch.tensor(p["kinks"]).double().unfold(0, 2, 1).mean(1)), p["kinks"][-1] + 1]
        torch.testing.assert_close(
            layer.derivative(torch.tensor(middles, dtype=torch.float64)), torch.tensor(p["slopes"], dtype=torch.float64)
        )
        assert layer.lipschitz == max(map(abs, p["slopes"])) < 5


def test_quantiser_is_the_published_one():
    # Max (1960), Table I, 3 and 5 levels
    assert np.concatenate(curved_layers.quantiser(1)) == pytest.approx((0.6120, 1.224), abs=5e-4)
    assert np.concatenate(curved_layers.quantiser(2)) == pytest.approx((0.3823, 1.244, 0.7646, 1.724), abs=5e-4)


# ---------------------------------------------------------------------------------------------------------------
# what cannot be done


def brute_force(equations, low, high, starts=60):
    """The least sum of squares of the equations over a box, from random starts."""
    rng = np.random.default_rng(0)
    fits = [least_squares(equations, rng.uniform(low, high), bounds=(low, high)) for _ in range(starts)]
    return min(2 * fit.cost for fit in fits)


def l_relu_equations(name):
    """The closed form of two leaky-ReLU layers, in (r_1, r_2): alpha_2, alpha_3 and gamma^2 over alpha_1."""
    target, k = implicit_ck(ACTIVATIONS[name], 0.2), 0.25 - 1 / (2 * math.pi)

    def equations(r):
        q = 1 + k * r[0]
        return np.array(
            [
                r[0] + q * r[1] - 8 * math.pi * target.c2 / target.c1,
                r[0] + r[1] / q - 4 * math.pi * target.c3 / target.c1,
                q * (1 + k * r[1]) - target.diag / target.c1,
            ]
        )

    return equations


@pytest.mark.slow
def test_elu_has_no_leaky_relu_match():
    assert brute_force(l_relu_equations("relu"), [0, 0], [20, 20]) < 1e-20
    assert brute_force(l_relu_equations("elu"), [0, 0], [20, 20]) > 1e-5
    with pytest.raises(MatchError, match=r"leaky-ReLU layers need gamma\^2 = .* the target has .* family='auto'"):
        match(ACTIVATIONS["elu"], 0.2, family="l_relu")


def cubic_ntk_equations(name):
    """Two cubic layers, in (q_1, r_1, q_2, r_2), by the layer recursion of Theorem 3."""
    target = implicit_ntk(ACTIVATIONS[name], 0.2)

    def equations(v):
        a1, a2, a3, a4, t2, b1, b2, b3, kappa2 = 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0
        for q, r in (v[:2], v[2:]):
            e, N, mu = 2 * q * q / t2, 1 + q * q + r * r, 1 + 2 * q * q + 3 * r * r
            w = mu + math.sqrt(6) * r
            b3 = b3 + b1 * e * a1
            a2, a3, a4 = a2 + e * a4**2 / 4, a3 + e * a1**2 / 2, w * a4
            b1, b2, b3 = a1 + b1, a2 + b2, a3 + b3
            t2 *= N
            kappa2 = t2 + kappa2 * mu
        return np.array(
            [kappa2 / b1 - target.diag / target.c1, b2 / b1 - target.c2 / target.c1, b3 / b1 - target.c3 / target.c1]
        )

    return equations


@pytest.mark.long
def test_swish_has_no_ntk_match_of_two_cubic_layers():
    low, high = [0, -3, 0, -3], [3, 3, 3, 3]
    assert brute_force(cubic_ntk_equations("gelu"), low, high, 8) < 1e-15
    assert brute_force(cubic_ntk_equations("swish"), low, high, 15) > 1e-7
    target, place = implicit_ntk(ACTIVATIONS["swish"], 0.2), layer_equations.Place("all", 2)
    with pytest.raises(MatchError, match=r"two cubic layers with this .* >= 1.3\d+, the target has 1.3927"):
        search.two_layers([place], [curved_layers.bases_of("hermite", 1)], target, 1.0, (1.0, 0.0))
    assert [layer.name for layer in match(ACTIVATIONS["swish"], 0.2, kernel="ntk", family="hermite").layers] == [
        "cubic_1",
        "cubic_2",
        "linear_3",
    ]


def test_leaky_relu_layers_never_have_the_ntk():
    with pytest.raises(MatchError, match=r"= 1.9495\d*, the target has 1.7808") as error:
        match(ACTIVATIONS["relu"], 0.2, kernel="ntk", family="l_relu")
    assert "no l_relu network matches the NTK of relu at sigma_a^2 = 0.2, tau_0 = 1" in str(error.value)


@pytest.mark.parametrize("kernel", ["ck", "ntk"])
def test_a_hard_tanh_is_odd(kernel):
    with pytest.raises(MatchError, match="a hard tanh is odd"):
        match(ACTIVATIONS["gelu"], 0.2, kernel=kernel, family="hard_tanh")


def test_hard_tanh_has_its_range():
    with pytest.raises(MatchError, match=r"in \(1, pi/2\), the target has"):
        match(ACTIVATIONS["sin"], 0.1, 3.0, family="hard_tanh")
    with pytest.raises(MatchError, match=r"c >= 0.3 tau_0 .* in \(1, 2.8\d*\), the target has"):
        match(ACTIVATIONS["sin"], 0.1, 3.0, "ntk", "hard_tanh")
    for kernel in ("ck", "ntk"):
        assert match(ACTIVATIONS["sin"], 0.1, 3.0, kernel).family == "own"


def elementwise(name, fn):
    return Activation(name, fn, lambda x: torch.zeros_like(x), lipschitz=1.0)


@pytest.mark.parametrize(
    "activation, sigma_a2, words",
    [
        (elementwise("seven", lambda x: torch.full_like(x, 7.0)), 0.2, "seven at .*constant or even"),
        (Activation("square", lambda x: x * x / 9, lambda x: 2 * x / 9), 0.05, "square at .*constant or even"),
        (elementwise("mean", lambda x: x.mean()), 0.2, "not elementwise"),
        (elementwise("nan", lambda x: x / 0 * 0), 0.2, "not finite"),
        (
            Activation("gauss", lambda x: torch.exp(x * x), lambda x: 2 * x * torch.exp(x * x), lipschitz=1.0),
            0.2,
            "gauss",
        ),
        (Activation("steep", lambda x: 5 * x, lambda x: torch.full_like(x, 5.0)), 0.2, "no tau_\\* exists"),
    ],
)
def test_bad_activations_are_named(activation, sigma_a2, words):
    for kernel in ("ck", "ntk"):
        with pytest.raises(ValueError, match=words):
            match(activation, sigma_a2, kernel=kernel)


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"kernel": "nngp"}, "kernel must be"),
        ({"family": "cubic"}, "family must be"),
        ({"trained": "a"}, "trained must be"),
        ({"tau0": -1.0}, "tau_0 must be"),
        ({"sigma_a2": 1.5}, "sigma_a\\^2 must lie"),
    ],
)
def test_bad_settings(flags, words):
    with pytest.raises(ValueError, match=words):
        match(**{"activation": ACTIVATIONS["relu"], "sigma_a2": 0.2, **flags})


# ---------------------------------------------------------------------------------------------------------------
# three and more layers, and no jumps


@pytest.mark.parametrize(
    "name, sigma_a2, tau0, depth",
    [
        ("elu", 0.83, 0.2, 3),
        ("elu", 0.97, 0.2, 6),
        ("selu", 0.6, 0.2, 3),
        ("selu", 0.74, 0.2, 3),
        ("selu", 0.8, 0.5, 3),
    ],
)
def test_odd_layers_ahead_match_what_two_layers_cannot(name, sigma_a2, tau0, depth):
    result = match(ACTIVATIONS[name], sigma_a2, tau0)
    assert residual(ACTIVATIONS[name], sigma_a2, tau0, "ck", "", result.layers) < 1e-12
    assert len(result.layers) == depth
    families = [curved_layers.bases_of("piecewise", ramps) for ramps in (1, 2, 3, 4)]
    with pytest.raises(MatchError, match="diag/.*>= "):
        search.two_layers([layer_equations.Place("readout", 2)], families, result.target, tau0, (1.0, 0.0))
    # the proof that some depth is enough: the kernel's power series in the correlation has no negative coefficient
    diag, c2, c3 = layer_equations.scale_free(result.target, tau0)
    assert diag > 1 + c3


@pytest.mark.parametrize(
    "mismatches, taken", [((0.3, 0.01), 1), ((1.0, 0.6, 0.1), 1), ((1.0, 0.4, 0.1), 3), ((1.0, 0.4, 0.3), 2)]
)
def test_one_more_layer_is_taken_where_it_halves_a_large_mismatch(monkeypatch, mismatches, taken):
    def attempt(self, family, depth, misses):
        return families._Candidate((None,) * depth, (), self.target, 0.0, family, mismatches[depth - 1], ())

    monkeypatch.setattr(families._Task, "attempt", attempt)
    task = families._task(ACTIVATIONS["relu"], 0.2, 1.0, "ck", "aAB")
    best, _ = task.search([("piecewise", depth) for depth in range(1, len(mismatches) + 1)])
    assert len(best.layers) == taken
