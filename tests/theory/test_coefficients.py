"""Formulas against independent computations: dense quadrature in two dimensions, regression on exact kernels,
wide random networks. The variants listed as wrong in docs/corrections.md are computed too, and must fail."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch

from deq_enn.theory.activations import ACTIVATIONS, Activation
from deq_enn.theory.coefficients import explicit_ck, explicit_ntk, implicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.gaussian import centre, gaussian_moments

SIGMA_A2, TAU0 = 0.2, 1.1
SIGMA_B2 = 1 - SIGMA_A2
SMOOTH = ("swish", "softplus", "tanh")  # Gauss-Hermite is exact for these
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
X1, X2 = (torch.from_numpy(a) for a in np.meshgrid(NODES, NODES, indexing="ij"))
W2 = torch.from_numpy(np.outer(WEIGHTS, WEIGHTS))


def pair(f, vi, vj, vij):
    """E[f(u) f(v)] for (u, v) of covariance [[vi, vij], [vij, vj]]."""
    u = math.sqrt(vi) * X1
    v = vij / math.sqrt(vi) * X1 + math.sqrt(vj - vij**2 / vi) * X2
    return (f(u) * f(v) * W2).sum().item()


def implicit_entry(activation, Si, Sj, Sij, trained=None, tau0=TAU0):
    """One off-diagonal entry of the exact implicit CK (or NTK), by plain iteration of its definition."""
    tau = get_tau(activation, SIGMA_A2, tau0)
    phi, d = centre(activation, tau), activation.derivative
    Gi = Gj = Gij = 0.0
    for _ in range(200):
        vi, vj, vij = (SIGMA_A2 * g + SIGMA_B2 * s for g, s in ((Gi, Si), (Gj, Sj), (Gij, Sij)))
        old = Gij
        Gi, Gj, Gij = (
            pair(phi.fn, vi, vi, 0.999999999999 * vi),
            pair(phi.fn, vj, vj, 0.999999999999 * vj),
            pair(phi.fn, vi, vj, vij),
        )
        if abs(Gij - old) < 1e-15:
            break
    slope = pair(d, vi, vj, vij)
    if trained is None:
        return Gij
    return (Gij + (SIGMA_B2 * Sij * slope if trained == "aAB" else 0)) / (1 - SIGMA_A2 * slope)


def explicit_entry(layers, Si, Sj, Sij, trained=None):
    K = 0.0 if trained == "frozen_first" else Sij
    for layer in layers:
        slope = pair(layer.derivative, Si, Sj, Sij)
        Si, Sj, Sij = (
            pair(layer.fn, Si, Si, 0.999999999999 * Si),
            pair(layer.fn, Sj, Sj, 0.999999999999 * Sj),
            pair(layer.fn, Si, Sj, Sij),
        )
        K = Sij + K * slope
    return Sij if trained is None else K


def expansion(entry, tau0=TAU0):
    """c1, c2, c3 in entry(Si, Sj, Sij) = c1 S_ij + c2 chi_i chi_j + c3 S_ij^2 + higher orders (central differences)."""
    t, h, e = tau0**2, 2e-3, 1e-2
    c1 = (entry(t, t, h) - entry(t, t, -h)) / (2 * h)
    c3 = (entry(t, t, h) + entry(t, t, -h) - 2 * entry(t, t, 0.0)) / (2 * h * h)
    c2 = sum(a * b * entry(t + a * e, t + b * e, 0.0) for a in (1, -1) for b in (1, -1)) / (4 * e * e)
    return c1, c2, c3


def check(result, expected, tolerance=2e-3):
    for value, reference in zip(result, expected):
        assert value == pytest.approx(reference, rel=tolerance, abs=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_implicit_ck_is_the_expansion_of_the_exact_kernel(name):
    a = ACTIVATIONS[name]
    ck = implicit_ck(a, SIGMA_A2, TAU0)
    c1, c2, c3 = expansion(lambda *S: implicit_entry(a, *S))
    check((c1, c2, c3), (ck.c1, ck.c2, ck.c3))
    if ck.c2 > 1e-6:  # the slides have alpha_4 where its square belongs
        m = gaussian_moments(a, get_tau(a, SIGMA_A2, TAU0))
        a4 = SIGMA_B2 / (1 - SIGMA_A2 * m.sq_dd / 2)
        assert abs(ck.c2 / a4 / c2 - 1) > 0.02


@pytest.mark.parametrize("trained", ["aA", "aAB"])
@pytest.mark.parametrize("name", SMOOTH)
def test_implicit_ntk_is_the_expansion_of_the_exact_kernel(name, trained):
    a = ACTIVATIONS[name]
    ntk = implicit_ntk(a, SIGMA_A2, TAU0, trained)
    c1, c2, c3 = expansion(lambda *S: implicit_entry(a, *S, trained=trained))
    check((c1, c2, c3), (ntk.c1, ntk.c2, ntk.c3))
    # the diagonal: the definition at rho = 1
    tau = get_tau(a, SIGMA_A2, TAU0)
    m = gaussian_moments(a, tau)
    kappa2 = (m.variance + (SIGMA_B2 * TAU0**2 * m.d1_sq if trained == "aAB" else 0)) / (1 - SIGMA_A2 * m.d1_sq)
    assert ntk.diag == pytest.approx(kappa2, rel=1e-12)
    if trained == "aA":  # the slides: tau_*^2 for gamma_*^2, and (sigma_a^2 d2^2 + sigma_b^2) alpha_1 in beta_3
        assert abs(tau**2 / (1 - SIGMA_A2 * m.d1_sq) / kappa2 - 1) > 0.1
        D, ck = 1 - SIGMA_A2 * m.d1**2, implicit_ck(a, SIGMA_A2, TAU0)
        wrong = (ck.c3 + ntk.c1 * (SIGMA_A2 * m.d2**2 + SIGMA_B2) * ck.c1) / D
        assert abs(wrong - c3) > 0.02 * (abs(c3) + 0.1)


def two_layers(first, second):
    tau1 = math.sqrt(gaussian_moments(ACTIVATIONS[first], TAU0).variance)
    return centre(ACTIVATIONS[first], TAU0), centre(ACTIVATIONS[second], tau1)


@pytest.mark.parametrize("first, second", [("swish", "softplus"), ("tanh", "swish"), ("mish", "sin")])
def test_explicit_kernels_are_the_expansion_of_the_exact_ones(first, second):
    layers = two_layers(first, second)
    ck = explicit_ck(layers, TAU0)
    check(expansion(lambda *S: explicit_entry(layers, *S)), (ck.c1, ck.c2, ck.c3))
    for trained in ("all", "frozen_first"):
        ntk = explicit_ntk(layers, TAU0, trained)
        check(expansion(lambda *S: explicit_entry(layers, *S, trained=trained)), (ntk.c1, ntk.c2, ntk.c3))


def test_the_slides_explicit_alphas_fail():
    layers = two_layers("swish", "softplus")
    _, c2, _ = expansion(lambda *S: explicit_entry(layers, *S))
    s = [
        gaussian_moments(layer, tau)
        for layer, tau in zip(layers, (TAU0, math.sqrt(explicit_ck(layers[:1], TAU0).diag)))
    ]
    first_power = s[1].d1 ** 2 * s[0].d2 ** 2 / 4 + s[1].d2 ** 2 / 4 * (s[0].sq_dd / 2)  # alpha_4, not its square
    no_half = s[1].d1 ** 2 * s[0].d2 ** 2 / 4 + s[1].d2 ** 2 / 4 * s[0].sq_dd ** 2  # alpha_4 without its 1/2
    for wrong in (first_power, no_half):
        assert abs(wrong / c2 - 1) > 0.02


def test_explicit_ntk_diagonal_by_definition():
    layers = two_layers("swish", "softplus")
    m1 = gaussian_moments(layers[0], TAU0)
    m2 = gaussian_moments(layers[1], math.sqrt(m1.variance))
    assert explicit_ntk(layers, TAU0).diag == pytest.approx(m2.variance + (m1.variance + TAU0**2 * m1.d1_sq) * m2.d1_sq)
    assert explicit_ntk(layers, TAU0, "frozen_first").diag == pytest.approx(m2.variance + m1.variance * m2.d1_sq)


def test_relu_in_closed_form():
    # E[phi'] = 1/2 and E[phi''] = 1/(tau sqrt(2 pi)) give every coefficient of the ReLU-DEQ
    ck, tau = implicit_ck(ACTIVATIONS["relu"], 0.2), get_tau(ACTIVATIONS["relu"], 0.2, 1.0)
    k = 0.5 - 1 / (2 * math.pi)
    D, e = 1 - 0.2 / 4, 1 / (2 * math.pi * tau**2)
    a4 = 0.8 / (1 - 0.2 * k)
    expected = (k * tau**2, 0.2 / D, e * a4**2 / (4 * D), e * (0.8 / D) ** 2 / (2 * D))
    assert astuple(ck) == pytest.approx(expected, rel=1e-13)
    # and homogeneity fixes the fourth: gamma^2 = alpha_1 + 8 pi (1/4 - 1/(2 pi)) alpha_2
    assert ck.diag == pytest.approx(ck.c1 + 8 * math.pi * (0.25 - 1 / (2 * math.pi)) * ck.c2, rel=1e-13)


@pytest.mark.slow
def test_monte_carlo_deq_of_width_4000():
    from deq_enn.networks.deq import DEQ

    a, m, p = ACTIVATIONS["swish"], 4000, 50
    X = torch.linalg.qr(torch.randn(p, p, generator=torch.Generator().manual_seed(1)))[0][:8]
    with torch.no_grad():
        z = DEQ(a, p, m, 1, 0.2, seed=3).features(X)
    ck = implicit_ck(a, 0.2)
    units = (m * z.double().square()).mean(0)  # one value a unit, nearly independent
    error = units.std().item() / math.sqrt(m)
    assert abs(units.mean().item() - ck.diag) < 4 * error < 0.1 * ck.diag
    # X is orthonormal, and so S_ij = chi_i = 0: off the diagonal the kernel vanishes
    for i, j in ((0, 1), (2, 3), (4, 5)):
        units = m * z[i].double() * z[j].double()
        assert abs(units.mean().item()) < 4 * units.std().item() / math.sqrt(m)
    # along one input S_ij = c: the kernel is alpha_1 c + alpha_3 c^2 + ..., here against its exact value
    c = 0.3
    with torch.no_grad():
        pair_z = DEQ(a, p, m, 1, 0.2, seed=4).features(torch.stack([X[0], c * X[0] + math.sqrt(1 - c * c) * X[1]]))
    units = m * pair_z[0].double() * pair_z[1].double()
    assert abs(units.mean().item() - implicit_entry(a, 1.0, 1.0, c, tau0=1.0)) < 4 * units.std().item() / math.sqrt(m)


def test_an_unstable_fixed_point_is_refused(monkeypatch):
    fourth = Activation("fourth", lambda x: x**4, lambda x: 4 * x**3)
    tau = (0.8 / 0.9 / 240) ** (1 / 6)  # sigma_a^2 E[phi'^2] = 0.9 * 240 tau^6 = 0.8, E[phi phi''] = 144 tau^6
    monkeypatch.setattr("deq_enn.theory.coefficients.get_tau", lambda *_: tau)
    with pytest.raises(ValueError, match="no stable fixed point.* = 1.28 "):
        implicit_ck(fourth, 0.9)


@pytest.mark.parametrize("coefficients", [implicit_ck, implicit_ntk])
def test_a_deq_without_a_stable_equilibrium_is_refused(coefficients):
    selu, sigma_a2, tau0 = ACTIVATIONS["selu"], 0.946, 0.525
    # its scalar fixed point is fine, and hides that small differences grow
    tau = get_tau(selu, sigma_a2, tau0)
    m = gaussian_moments(selu, tau)
    assert sigma_a2 * m.sq_dd / 2 < 1 < sigma_a2 * m.d1_sq
    # states of correlation 1 - distance, u, v = tau (sqrt(1 - distance/2) x +- sqrt(distance/2) y), part in each layer
    x = torch.linspace(-9, 9, 20001, dtype=torch.float64)[:, None]
    w = torch.exp(-x * x / 2) * (x[1] - x[0]) / math.sqrt(2 * math.pi) * torch.from_numpy(WEIGHTS)
    distance = 1e-5
    for _ in range(3):
        middle, apart = tau * math.sqrt(1 - distance / 2) * x, tau * math.sqrt(distance / 2) * torch.from_numpy(NODES)
        grown = sigma_a2 * (w * (selu.fn(middle + apart) - selu.fn(middle - apart)) ** 2).sum().item() / (2 * tau**2)
        assert grown > 1.04 * distance
        distance = grown
    with pytest.raises(
        ValueError, match=r"selu at sigma_a\^2 = 0.946 has no stable equilibrium: .* = 1.046 must be below 1"
    ):
        coefficients(selu, sigma_a2, tau0)


STEP = Activation("step", lambda x: (x > 0.3).to(x.dtype) - 0.3820885778110474, torch.zeros_like, (0.3,))


def test_a_jump_has_a_conjugate_kernel_and_no_tangent_kernel():
    # two layers, the first with a jump, against two-dimensional integrals: P(u > k, v > k) by Plackett's formula
    tanh = ACTIVATIONS["tanh"]

    def entry(Si, Sj, Sij):
        def both(rho, h, k):  # dP/drho is the bivariate density
            r, w = np.polynomial.legendre.leggauss(40)
            r = rho * (r + 1) / 2
            bivariate = np.exp(-(h * h - 2 * r * h * k + k * k) / (2 * (1 - r * r))) / (
                2 * math.pi * np.sqrt(1 - r * r)
            )
            return (bivariate * w).sum() * rho / 2

        q = 0.3820885778110474
        hi, hj = (0.3 / math.sqrt(S) for S in (Si, Sj))
        pi, pj = (math.erfc(h / math.sqrt(2)) / 2 for h in (hi, hj))
        Gij = both(Sij / math.sqrt(Si * Sj), hi, hj) + (pi - q) * (pj - q)
        Gi, Gj = (p - 2 * p * q + q * q for p in (pi, pj))
        return pair(tanh.fn, Gi, Gj, Gij)

    ck = explicit_ck([STEP, tanh])
    check(expansion(entry, 1.0), (ck.c1, ck.c2, ck.c3))
    assert 0 < min(ck.c1, ck.c2, ck.c3)
    with pytest.raises(
        ValueError, match=r"kernel .* infinite: E\[f'\^2\] of layer 1 \(step\) is, as it jumps at x = 0.3"
    ):
        explicit_ntk([STEP, tanh])
    with pytest.raises(ValueError, match="layer 2 .sign. is, as it jumps at x = 0"):
        explicit_ntk([tanh, Activation("sign", torch.sign, torch.zeros_like)])
    # with the step frozen its derivative does not enter: K = E[t t] + E[s s] E[t' t']
    frozen = explicit_ntk([STEP, tanh], 1.0, "frozen_first")
    m = gaussian_moments(tanh, math.sqrt(explicit_ck([STEP]).diag))
    assert frozen.diag == pytest.approx(ck.diag + explicit_ck([STEP]).diag * m.d1_sq, rel=1e-12)
    for coefficients in (implicit_ck, implicit_ntk):
        with pytest.raises(ValueError, match=r"E\[f'\^2\] of step is infinite, as it jumps at x = 0.3: at no sigma_a"):
            coefficients(STEP, 0.2)


def test_layers_at_small_scales_must_be_centred_as_at_others():
    for tau0 in (1e-12, 1e-8, 1.0, 1e8):
        with pytest.raises(ValueError, match="layer 1 .relu. is not centred"):
            explicit_ck([ACTIVATIONS["relu"]], tau0)
        assert explicit_ck([centre(ACTIVATIONS["relu"], tau0)], tau0).c1 == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: implicit_ck(ACTIVATIONS["relu"], 1.0), r"\(0, 1\)"),
        (lambda: implicit_ntk(ACTIVATIONS["relu"], 0.2, trained="AB"), "trained"),
        (lambda: explicit_ntk([ACTIVATIONS["tanh"]], trained="first"), "trained"),
        (lambda: explicit_ck([]), "at least one layer"),
        (lambda: explicit_ck([ACTIVATIONS["relu"]]), "layer 1 .relu. is not centred"),
        (lambda: explicit_ck([ACTIVATIONS["tanh"]], 0.0), "tau_0"),
        (lambda: explicit_ck([Activation("zero", torch.zeros_like, torch.zeros_like)]), "constant"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
