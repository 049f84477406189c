"""A DEQ with an odd activation is matched by one layer of the activation itself."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import fsolve

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.matching import own_activation
from deq_enn.matching.families import match
from deq_enn.networks.build import build_model
from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function
from deq_enn.theory.coefficients import MatchError, implicit_ck
from deq_enn.theory.elementwise import Shifted
from deq_enn.theory.gaussian import gaussian_moments
from tests.helpers.match_residual import residual

ODD = "tanh", "hardtanh", "erf", "softsign", "sin", "sigmoid"  # sigmoid is odd but for a constant
MODES = [("ck", "aAB"), ("ntk", "aAB"), ("ntk", "aA")]


@pytest.mark.parametrize("kernel, trained", MODES)
@pytest.mark.parametrize("name", ODD)
def test_every_odd_activation_matches_its_own_deq(name, kernel, trained):
    activation = ACTIVATIONS[name]
    for sigma_a2, tau0 in ((0.01, 1.0), (0.2, 0.3), (0.2, 1.0), (0.24, 3.0), (0.6, 1.5)):
        result = match(activation, sigma_a2, tau0, kernel, "own", trained)
        assert residual(activation, sigma_a2, tau0, kernel, trained, result.layers) < 1e-12
        (layer,), (numbers,) = result.layers, result.parameters
        x = torch.linspace(-4, 4, 101, dtype=torch.float64)
        alone = numbers["c"] * activation.fn(numbers["a"] * x)
        torch.testing.assert_close(layer.fn(x) - layer.fn(x[50:51]), alone - alone[50], rtol=1e-13, atol=1e-13)


def test_tanh_by_gauss_hermite_and_a_solver_of_two_equations():
    x, weight = np.polynomial.hermite_e.hermegauss(200)
    weight = weight / weight.sum()
    tau = 1.0
    for _ in range(200):
        tau = math.sqrt(0.2 * weight @ np.tanh(tau * x) ** 2 + 0.8)
    gamma2, slope = weight @ np.tanh(tau * x) ** 2, weight @ (1 / np.cosh(tau * x) ** 2)
    alpha1 = 0.8 * slope**2 / (1 - 0.2 * slope**2)
    a, c = fsolve(
        lambda z: (
            z[1] ** 2 * (weight @ np.tanh(z[0] * x) ** 2) - gamma2,
            z[0] * z[1] * (weight @ (1 / np.cosh(z[0] * x) ** 2)) - math.sqrt(alpha1),
        ),
        (0.9, 0.9),
    )
    numbers = match("tanh", 0.2, family="own").parameters[0]
    assert (numbers["a"], numbers["c"]) == pytest.approx((a, c), rel=1e-7)
    assert (a, c) == pytest.approx((0.98147, 0.97706), abs=5e-6)


@pytest.mark.parametrize("kernel", ["ck", "ntk"])
@pytest.mark.parametrize("name", ["tanh", "erf", "softsign", "sigmoid"])
def test_it_is_nearer_than_the_hard_tanh_at_other_norms_and_large_cosines(name, kernel):
    rows = torch.randn(80, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.7
    rows *= torch.linspace(0.5, 1.5, 80, dtype=torch.float64)[:, None] / rows.norm(dim=1, keepdim=True)
    which = ("ck", "ntk").index(kernel)
    K = implicit_kernels(rows, name, 0.2)[which]
    own, hard = (
        torch.linalg.matrix_norm(K - explicit_kernels(rows, match(name, 0.2, 1.0, kernel, family).layers)[which], 2)
        for family in ("own", "hard_tanh")
    )
    assert own < hard / 2.5


def test_others_are_told_why_not():
    with pytest.raises(MatchError, match=r"no own network matches the CK of relu .*: one layer of an odd"):
        match("relu", 0.2, family="own")
    with pytest.raises(
        MatchError, match=r"a from 0.609 to 38.9 have .* to 1.\d*, the target has 1.6"
    ):  # below pi/2, as it saturates
        match("hardtanh", 0.8, 1.5, "ntk", "own", "aA")


@pytest.mark.parametrize("sigma_a2", [0.1, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("kernel", ["ck", "ntk"])
def test_a_deq_that_is_linear_to_rounding_is_one_linear_layer(sigma_a2, kernel):
    result = match("hardtanh", sigma_a2, 0.1, kernel, "own")
    assert residual(ACTIVATIONS["hardtanh"], sigma_a2, 0.1, kernel, "aAB", result.layers) < 1e-10


def test_a_root_far_above_the_scale_of_the_equilibrium():
    result = match("softsign", 0.999, 0.001, family="own")
    assert result.parameters[0]["a"] > 10
    assert residual(ACTIVATIONS["softsign"], 0.999, 0.001, "ck", "aAB", result.layers) < 1e-11


def test_a_centred_function_keeps_few_digits_where_its_input_is_small():
    """At 3e-5 a sigmoid is 1/2 but for 8e-6, whose rounding no derivative knows."""
    result = match("sigmoid", 0.999, 0.001, family="own")
    a, c = (result.parameters[0][name] for name in "ac")
    assert residual(ACTIVATIONS["sigmoid"], 0.999, 0.001, "ck", "aAB", result.layers) < 1e-11
    c1 = (a * c / 4) ** 2 * (1 - a**2 * 1e-6 / 2)  # E[sigma'(1e-3 xi)]^2
    assert c1 == pytest.approx(result.target.c1, rel=1e-11)


def test_where_moments_end_there_is_no_match(monkeypatch):
    def moments(activation, s):
        if s > 1:
            raise ValueError("the Gaussian expectation does not converge")
        return gaussian_moments(activation, s)

    monkeypatch.setattr(own_activation, "gaussian_moments", moments)
    with pytest.raises(MatchError, match=r"c phi\(a x\) of tanh has no moments at a = 1.1\d: the Gaussian"):
        match("tanh", 0.2, kernel="ntk", family="own")


def test_auto_takes_it_where_the_hard_tanh_is_far_off():
    assert match("tanh", 0.2).family == "hard_tanh"
    far = [match("sin", 0.2, 3.0, family=family) for family in ("piecewise", "own", "auto")]
    assert far[2].family == "own" and far[1].mismatch == far[2].mismatch < far[0].mismatch / 10


def test_a_function_of_ones_own_and_a_centred_one():
    bent = from_function(lambda x: torch.tanh(x) + torch.sin(x) / 2, "bent")
    assert residual(bent, 0.1, 1.2, "ck", "", match(bent, 0.1, 1.2, family="own").layers) < 1e-12
    tanh = ACTIVATIONS["tanh"]
    moved = Activation("moved", Shifted(tanh.fn, 3.0), tanh.derivative)
    assert match(moved, 0.2, family="own").parameters == match("tanh", 0.2, family="own").parameters
    assert match(moved, 0.2, family="own").layers[0].fn(torch.zeros(1)) == 0


def test_a_finite_network_of_it_has_the_kernel():
    X = torch.randn(30, 40, generator=torch.Generator().manual_seed(1)) / 40**0.5
    enn = build_model("matched_enn", 40, 20000, 2, 0.2, activation=ACTIVATIONS["tanh"], family="own")
    with torch.no_grad():
        F = enn.features(X).double()
    K = implicit_kernels(X.double(), "tanh", 0.2)[0]
    assert torch.linalg.matrix_norm(F @ F.T - K, 2) < 0.05 * torch.linalg.matrix_norm(K, 2)
    assert implicit_ck("tanh", 0.2).diag == pytest.approx(enn.match.achieved.diag, rel=1e-12)
