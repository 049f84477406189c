"""The exact kernels against what samples: random networks, their gradients, and a regression on Gaussian data."""

import math

import pytest
import torch

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import explicit_ck, explicit_ntk, implicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import centre, gaussian_moments
from deq_enn.utils.random import generator
from tests.helpers.pair_quadrature import correlated

SIGMA_A2 = 0.2


# -- random networks ---------------------------------------------------------------------------------------------

PLANES, WIDTH = 160, 2000
PAIR = correlated(0.7)
ROWS = torch.block_diag(*[PAIR] * PLANES)  # the same two samples in each of 160 orthogonal planes


def check_against_random_features(z, ck):
    """z (2 PLANES, m) of one network. Each plane is one draw of the 2 x 2 kernel; their spread: the standard error."""
    z = z.double().reshape(PLANES, 2, -1)
    i, j = torch.triu_indices(2, 2)
    draws = (z[:, i] * z[:, j]).sum(-1)
    error = draws.std(0) / math.sqrt(PLANES)
    assert ((draws.mean(0) - ck[i, j]).abs() < 3.5 * error).all()
    assert (0.02 * ck[i, j].abs() > 3.5 * error).all()  # so a kernel that is 2% off would fail


@pytest.fixture(scope="module")
def weights():
    """A (m, m), and the inputs through B (p, m)."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(WIDTH, WIDTH, generator=g), ROWS.float() @ torch.randn(2 * PLANES, WIDTH, generator=g)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["relu", "tanh", "swish", "hardtanh"])
def test_random_deq_of_width_2000(name, weights):
    m, activation, (A, inputs) = WIDTH, ACTIVATIONS[name], weights
    ck, _ = implicit_kernels(PAIR, activation, SIGMA_A2)
    mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(PAIR))).mean
    inputs = math.sqrt(1 - SIGMA_A2) * inputs
    z = torch.zeros(2 * PLANES, m)
    for _ in range(14):
        z = (activation.fn(math.sqrt(SIGMA_A2) * (z @ A) + inputs) - mean) / math.sqrt(m)
    check_against_random_features(z, ck)


def test_random_explicit_network_of_width_2000():
    m, layers = WIDTH, (ACTIVATIONS["leaky_relu"], ACTIVATIONS["tanh"])
    ck, _ = explicit_kernels(PAIR, layers)
    g = torch.Generator().manual_seed(2)
    x = layers[0].fn(ROWS.float() @ torch.randn(2 * PLANES, m, generator=g)) / math.sqrt(m)
    check_against_random_features(layers[1].fn(x @ torch.randn(m, m, generator=g)) / math.sqrt(m), ck)


def empirical_ntk(outputs, parameters):
    """Of outputs (n,): for each parameter the inner products of their gradients with respect to it, summed so far."""
    rows = [torch.autograd.grad(out, parameters, retain_graph=True) for out in outputs]
    parts = [torch.stack([g.reshape(-1) for g in gradients]) for gradients in zip(*rows)]
    return torch.stack([J @ J.T for J in parts]).cumsum(0)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.slow
def test_empirical_ntk_of_a_wide_deq(name):
    m, activation, X = 750, ACTIVATIONS[name], correlated(0.8, -0.3)
    mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(X))).mean
    result = {"aA": 0, "aAB": 0}
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        a, A, B = (
            torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
            for shape in ((m,), (m, m), (2, m))
        )

        # unrolled: the gradient of the fixed point itself, with no implicit differentiation to trust
        z = torch.zeros(len(X), m, dtype=torch.float64)
        for _ in range(12):
            z = (activation.fn(math.sqrt(SIGMA_A2) * z @ A + math.sqrt(1 - SIGMA_A2) * X @ B) - mean) / math.sqrt(m)
        _, *sums = empirical_ntk(z @ a, (a, A, B))
        for trained, kernel in zip(result, sums):
            result[trained] = result[trained] + kernel / 8
    exact = {trained: implicit_kernels(X, activation, SIGMA_A2, trained)[1] for trained in result}
    for trained in result:
        torch.testing.assert_close(result[trained], exact[trained], rtol=0.04, atol=0.04 * exact[trained][0, 0].item())
    assert (exact["aA"] / exact["aAB"]).diagonal().max() < 0.8  # the other `trained` would not pass


@pytest.mark.slow
def test_empirical_ntk_of_a_wide_explicit_network():
    m, layers, X = 1000, (ACTIVATIONS["relu"], ACTIVATIONS["tanh"]), correlated(0.8, -0.3)
    result = {"frozen_first": 0, "all": 0}
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        a, W2, W1 = (
            torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
            for shape in ((m,), (m, m), (2, m))
        )
        outputs = layers[1].fn(layers[0].fn(X @ W1) @ W2 / math.sqrt(m)) @ a / math.sqrt(m)
        _, *sums = empirical_ntk(outputs, (a, W2, W1))
        for trained, kernel in zip(result, sums):
            result[trained] = result[trained] + kernel / 8
    exact = {trained: explicit_kernels(X, layers, trained)[1] for trained in result}
    for trained in result:
        torch.testing.assert_close(result[trained], exact[trained], rtol=0.04, atol=0.04 * exact[trained][0, 0].item())
    assert (exact["frozen_first"] / exact["all"]).diagonal().max() < 0.8


# -- the coefficients, from the exact kernels --------------------------------------------------------------------


@pytest.fixture(scope="module")
def white():
    """White Gaussian data, a regression of off-diagonal entries on S, S^2, chi chi^T and what else has that order."""
    n, p = 1000, 1250
    X = torch.randn(n, p, generator=generator("white"), dtype=torch.float64) / math.sqrt(p)
    S = X @ X.T
    chi = S.diagonal() - S.diagonal().mean()
    i, j = torch.tril_indices(n, n, -1)
    s, a, b = S[i, j], chi[i], chi[j]
    # S (chi_i + chi_j) is of the order of S^2, but odd in S: without it the residual is larger, not biased
    design = torch.stack(
        [torch.ones_like(s), s, a * b, s * s, s * (a + b), a + b, a * a + b * b, s**3, s * a * b, s * (a * a + b * b)],
        1,
    )
    gram = design.T @ design

    def fit(kernel):
        # (c1, c2, c3)
        return torch.linalg.solve(gram, design.T @ kernel[i, j])[1:4].tolist()

    return X, fit


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["relu", "swish"])
def test_coefficients_come_out_of_the_implicit_kernels(white, name):
    X, fit = white
    activation, tau0 = ACTIVATIONS[name], estimate_tau0(X)
    for trained in ("aAB", "aA"):
        ck, ntk = implicit_kernels(X, activation, SIGMA_A2, trained)
        a, b = implicit_ck(activation, SIGMA_A2, tau0), implicit_ntk(activation, SIGMA_A2, tau0, trained)
        measured, measured_ntk = fit(ck), fit(ntk)
        assert measured == pytest.approx([a.c1, a.c2, a.c3], rel=0.01)
        assert measured_ntk == pytest.approx([b.c1, b.c2, b.c3], rel=0.01)
        assert ck.diagonal().mean().item() == pytest.approx(a.diag, rel=1e-3)
        assert ntk.diagonal().mean().item() == pytest.approx(b.diag, rel=1e-3)
    # what the slides print instead, for the kernels of "aA"
    moments = gaussian_moments(activation, get_tau(activation, SIGMA_A2, tau0))
    D, slack = 1 - SIGMA_A2 * moments.d1**2, 1 - SIGMA_A2 * moments.d1_sq
    a4, L = (1 - SIGMA_A2) / (1 - SIGMA_A2 * moments.sq_dd / 2), (1 - SIGMA_A2) / D
    assert abs(a.c2 / a4 / measured[1] - 1) > 0.05  # first power of alpha_4
    wrong = (a.c3 + b.c1 * (SIGMA_A2 * moments.d2**2 + 1 - SIGMA_A2) * a.c1) / D  # beta_3 of the slides
    assert abs(wrong / measured_ntk[2] - 1) > 0.05
    assert abs(get_tau(activation, SIGMA_A2, tau0) ** 2 / slack / ntk.diagonal().mean().item() - 1) > 0.5  # kappa
    assert L == pytest.approx(SIGMA_A2 * a.c1 + 1 - SIGMA_A2)


@pytest.mark.slow
def test_coefficients_come_out_of_the_explicit_kernels(white):
    X, fit = white
    tau0 = estimate_tau0(X)
    first = centre(ACTIVATIONS["swish"], tau0)
    layers = (first, centre(ACTIVATIONS["elu"], math.sqrt(gaussian_moments(first, tau0).variance)))
    for trained in ("all", "frozen_first"):
        ck, ntk = explicit_kernels(X, layers, trained)
        a, b = explicit_ck(layers, tau0), explicit_ntk(layers, tau0, trained)
        assert fit(ck) == pytest.approx([a.c1, a.c2, a.c3], rel=0.01)
        assert fit(ntk) == pytest.approx([b.c1, b.c2, b.c3], rel=0.01)
        assert ntk.diagonal().mean().item() == pytest.approx(b.diag, rel=1e-3)
    # alpha~_2 with the first power of alpha~_4, and with alpha~_4 lacking its factor 1/2
    single, two = (
        gaussian_moments(layer, tau)
        for layer, tau in zip(layers, (tau0, math.sqrt(gaussian_moments(first, tau0).variance)))
    )
    s, e, w = two.d1**2, two.d2**2, single.sq_dd / 2
    measured = fit(ck)[1]
    right = s * single.d2**2 / 4 + e * w**2 / 4
    assert measured == pytest.approx(right, rel=0.01)
    for wrong in (s * single.d2**2 / 4 + e * w / 4, s * single.d2**2 / 4 + e * (2 * w) ** 2 / 4):
        assert abs(wrong / measured - 1) > 0.05
