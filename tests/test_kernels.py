"""The exact kernels against what knows nothing of them: adaptive quadrature, random networks, autograd, regression."""

import logging
import math

import pytest
import torch
from scipy.integrate import quad

from coefficients import explicit_ck, explicit_ntk, implicit_ck, implicit_ntk
from data_prepare import two_class
from gaussian_integration import ACTIVATIONS, Activation, centre, expectation, gaussian_moments, piecewise_linear
from kernels import explicit_blocks, explicit_kernels, implicit_blocks, implicit_kernels, series_report
from utils import estimate_tau0, generator, get_tau

SIGMA_A2 = 0.2
CLIPPED = piecewise_linear("clipped", (-0.5, 0.0, 2.0), (0.0, 0.1, 1.0, 0.2), 0.3)
EVERY = [*ACTIVATIONS.values(), CLIPPED]


# -- adaptive two-dimensional quadrature -------------------------------------------------------------------------

def pair_expectation(f, kinks, variance, other, covariance):
    """E[f(u) f(v)] by nested adaptive quadrature, split where f is not smooth."""
    s, t = math.sqrt(variance), math.sqrt(other)
    rho = covariance / (s * t)
    across = math.sqrt(1 - rho * rho)

    def normal(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def pieces(g, points):
        edges = sorted({-9.0, 9.0, *(x for x in points if -9 < x < 9)})
        return sum(quad(g, a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0] for a, b in zip(edges, edges[1:]))

    def inner(x):
        return f(s * x) * normal(x) * pieces(lambda w: f(t * (rho * x + across * w)) * normal(w),
                                             [-1, 1, *((k / t - rho * x) / across for k in kinks)])

    # the inner integral turns within `across` of a kink of its own
    turns = [(k / t + shift * across) / rho for k in kinks for shift in (-6, -2, 0, 2, 6)] if abs(rho) > 0.5 else []
    return pieces(inner, [-1, 1, *(k / s for k in kinks), *turns])


SCALAR = {  # written for scalars, apart from gaussian_integration
    "relu": (lambda x: max(x, 0.0), lambda x: float(x > 0)),
    "leaky_relu": (lambda x: x if x > 0 else 0.01 * x, lambda x: 1.0 if x > 0 else 0.01),
    "hardtanh": (lambda x: min(max(x, -1.0), 1.0), lambda x: float(-1 < x < 1)),
    "erf": (math.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x)),
    "sin": (math.sin, math.cos),
    "tanh": (math.tanh, lambda x: 1 / math.cosh(x) ** 2),
    "swish": (lambda x: x / (1 + math.exp(-x)), lambda x: (1 + x / (1 + math.exp(x))) / (1 + math.exp(-x))),
    "elu": (lambda x: x if x > 0 else math.expm1(x), lambda x: 1.0 if x > 0 else math.exp(x)),
    "selu": (lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)), None),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
    "clipped": (lambda x: 0.3 + (0.25 if x < -2 else -0.05 if x < -0.5 else 0.1 * x if x < 0 else
                                 x if x < 2 else 2 + 0.2 * (x - 2)) if x >= -0.5 else 0.25,
                lambda x: 0.0 if x < -0.5 else 0.1 if x < 0 else 1.0 if x < 2 else 0.2),
}


def correlated(*cosines):
    """Rows of norms between 0.7 and 1.3 with the given cosines to the first row."""
    rows = [[1.0, 0.0]] + [[c, math.sqrt(1 - c * c)] for c in cosines]
    norms = torch.linspace(0.7, 1.3, len(rows), dtype=torch.float64)
    return torch.tensor(rows, dtype=torch.float64) * norms[:, None]


# at this tolerance quad notes its own rounding
pytestmark = pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")

CLOSED = ["relu", "leaky_relu", "hardtanh", "erf", "sin", "clipped"]


@pytest.mark.parametrize("name, cosine", [*((name, c) for name in CLOSED for c in (0.999, -0.999, 0.03)),
                                          *((name, c) for name in ("tanh", "swish", "elu") for c in (0.9, -0.4))])
def test_one_layer_kernel_is_the_two_dimensional_integral(name, cosine):
    activation = {a.name: a for a in EVERY}[name]
    X = correlated(cosine)
    f, df = SCALAR[name]
    (a, c), (_, b) = (X @ X.T).tolist()
    ck, ntk = explicit_kernels(X, [activation])
    expected = pair_expectation(f, activation.kinks, a, b, c)
    dot = pair_expectation(df, activation.kinks, a, b, c)
    assert ck[0, 1].item() == pytest.approx(expected, rel=1e-10)
    assert ntk[0, 1].item() == pytest.approx(expected + c * dot, rel=1e-10)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardtanh", "erf", "sin", "clipped", "swish", "elu"])
def test_deq_kernel_solves_its_equation_under_quadrature(name):
    activation = {a.name: a for a in EVERY}[name]
    X = correlated(0.999 if name in CLOSED else 0.9)
    S = X @ X.T
    ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
    _, ntk_paper = implicit_kernels(X, activation, SIGMA_A2, trained="aA")
    mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(X))).mean
    f, df = SCALAR[name]
    Lambda = (SIGMA_A2 * ck + (1 - SIGMA_A2) * S).tolist()
    variances = Lambda[0][0], Lambda[1][1]
    for i in (0, 1):
        square = expectation(lambda x: (activation.fn(math.sqrt(variances[i]) * x) - mean) ** 2)
        assert ck[i, i].item() == pytest.approx(square, rel=1e-11)
        slope = expectation(lambda x: activation.derivative(math.sqrt(variances[i]) * x) ** 2)
        assert ntk[i, i].item() == pytest.approx((square + 0.8 * S[i, i].item() * slope) / (1 - 0.2 * slope), rel=1e-11)
        assert ntk_paper[i, i].item() == pytest.approx(square / (1 - 0.2 * slope), rel=1e-11)
    G = pair_expectation(lambda x: f(x) - mean, activation.kinks, *variances, Lambda[0][1])
    dot = pair_expectation(df, activation.kinks, *variances, Lambda[0][1])
    assert ck[0, 1].item() == pytest.approx(G, rel=1e-10)
    assert ntk[0, 1].item() == pytest.approx((G + 0.8 * S[0, 1].item() * dot) / (1 - 0.2 * dot), rel=1e-10)
    assert ntk_paper[0, 1].item() == pytest.approx(G / (1 - 0.2 * dot), rel=1e-10)


@pytest.mark.parametrize("activation", [ACTIVATIONS[n] for n in ("relu", "erf", "sin")])
def test_closed_form_agrees_with_the_series(activation):
    X = correlated(0.5, -0.5)
    anonymous = Activation("anonymous", lambda x: activation.fn(x), activation.derivative, activation.kinks)
    for closed, series in zip(implicit_kernels(X, activation, SIGMA_A2), implicit_kernels(X, anonymous, SIGMA_A2)):
        torch.testing.assert_close(closed, series, rtol=1e-10, atol=1e-13)


def test_kernels_are_symmetric_positive_and_tiled_alike():
    X, _, _ = two_class(400, generator("tiles"))
    for activation in (ACTIVATIONS["relu"], ACTIVATIONS["swish"]):
        ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
        assert torch.equal(ck, ck.T) and torch.equal(ntk, ntk.T)
        assert torch.linalg.eigvalsh(ck)[0] > 0 and torch.linalg.eigvalsh(ntk)[0] > 0
        order = torch.randperm(400, generator=generator("order"))
        moved, _ = implicit_kernels(X[order], activation, SIGMA_A2)
        torch.testing.assert_close(moved, ck[order][:, order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["relu", "tanh", "hardtanh"])
def test_samples_of_one_norm_have_the_diagonal_of_the_theorem(name):
    X = correlated(0.5, -0.2)
    X = 1.1 * X / X.norm(dim=1, keepdim=True)
    for trained in ("aA", "aAB"):
        ck, ntk = implicit_kernels(X, ACTIVATIONS[name], SIGMA_A2, trained)
        assert ck[1, 1].item() == pytest.approx(implicit_ck(ACTIVATIONS[name], SIGMA_A2, 1.1).diag, rel=1e-10)
        assert ntk[1, 1].item() == pytest.approx(
            implicit_ntk(ACTIVATIONS[name], SIGMA_A2, 1.1, trained).diag, rel=1e-10
        )


@pytest.mark.parametrize("name", CLOSED)
def test_duplicates_have_the_diagonal_entry(name):
    activation = {a.name: a for a in EVERY}[name]
    X = torch.cat([correlated(0.3, 0.2), correlated(0.3, 0.2)[:1]])
    for kernel in (*implicit_kernels(X, activation, SIGMA_A2), *explicit_kernels(X, [activation, activation])):
        assert kernel[0, 3].item() == pytest.approx(kernel[0, 0].item(), rel=1e-7)  # g' has a square root at rho = 1


# -- random networks ---------------------------------------------------------------------------------------------

PLANES = 40
PAIR = correlated(0.7)
ROWS = torch.block_diag(*[PAIR] * PLANES)  # the same two samples in each of 40 orthogonal planes


def check_against_random_features(z, ck):
    """z (2 PLANES, m) of one network. Each plane is one draw of the 2 x 2 kernel; their spread: the standard error."""
    z = z.double().reshape(PLANES, 2, -1)
    i, j = torch.triu_indices(2, 2)
    draws = (z[:, i] * z[:, j]).sum(-1)
    error = draws.std(0) / math.sqrt(PLANES)
    assert ((draws.mean(0) - ck[i, j]).abs() < 3.5 * error).all()
    assert (0.02 * ck[i, j].abs() > 3.5 * error).all()  # so a kernel that is 2% off would fail


@pytest.mark.parametrize("name", ["relu", "tanh", "swish", "hardtanh"])
def test_random_deq_of_width_8000(name):
    m, activation = 8000, ACTIVATIONS[name]
    ck, _ = implicit_kernels(PAIR, activation, SIGMA_A2)
    mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(PAIR))).mean
    g = torch.Generator().manual_seed(1)
    A = torch.randn(m, m, generator=g)
    inputs = (ROWS.float() @ torch.randn(2 * PLANES, m, generator=g)) * math.sqrt(1 - SIGMA_A2)
    z = torch.zeros(2 * PLANES, m)
    for _ in range(14):
        z = (activation.fn(math.sqrt(SIGMA_A2) * (z @ A) + inputs) - mean) / math.sqrt(m)
    check_against_random_features(z, ck)


def test_random_explicit_network_of_width_8000():
    m, layers = 8000, (ACTIVATIONS["leaky_relu"], ACTIVATIONS["tanh"])
    ck, _ = explicit_kernels(PAIR, layers)
    g = torch.Generator().manual_seed(2)
    x = layers[0].fn(ROWS.float() @ torch.randn(2 * PLANES, m, generator=g)) / math.sqrt(m)
    check_against_random_features(layers[1].fn(x @ torch.randn(m, m, generator=g)) / math.sqrt(m), ck)


def empirical_ntk(f, parameters):
    """f() -> (n,) outputs; inner products of their gradients with respect to the parameters."""
    outputs = f()
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(out, parameters, retain_graph=True)]) for out in outputs
    ]
    J = torch.stack(rows)
    return J @ J.T


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_empirical_ntk_of_a_wide_deq(name):
    m, activation, X = 1500, ACTIVATIONS[name], correlated(0.8, -0.3)
    mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(X))).mean
    found = {"aA": 0, "aAB": 0}
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        a, A, B = (torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
                   for shape in ((m,), (m, m), (2, m)))

        def outputs():  # unrolled: the gradient of the fixed point itself, with no implicit differentiation to trust
            z = torch.zeros(len(X), m, dtype=torch.float64)
            for _ in range(20):
                z = (activation.fn(math.sqrt(SIGMA_A2) * z @ A + math.sqrt(1 - SIGMA_A2) * X @ B) - mean) / math.sqrt(m)
            return z @ a

        for trained, parameters in (("aA", (a, A)), ("aAB", (a, A, B))):
            found[trained] = found[trained] + empirical_ntk(outputs, parameters) / 4
    exact = {trained: implicit_kernels(X, activation, SIGMA_A2, trained)[1] for trained in found}
    for trained in found:
        torch.testing.assert_close(found[trained], exact[trained], rtol=0.04, atol=0.04 * exact[trained][0, 0].item())
    assert (exact["aA"] / exact["aAB"]).diagonal().max() < 0.8  # the other `trained` would not pass


@pytest.mark.parametrize("trained", ["all", "frozen_first"])
def test_empirical_ntk_of_a_wide_explicit_network(trained):
    m, layers, X = 2000, (ACTIVATIONS["relu"], ACTIVATIONS["tanh"]), correlated(0.8, -0.3)
    found = 0
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        a, W2, W1 = (torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)
                     for shape in ((m,), (m, m), (2, m)))

        def outputs():
            return layers[1].fn(layers[0].fn(X @ W1) @ W2 / math.sqrt(m)) @ a / math.sqrt(m)

        found = found + empirical_ntk(outputs, (a, W2, W1) if trained == "all" else (a, W2)) / 4
    exact = {t: explicit_kernels(X, layers, t)[1] for t in ("all", "frozen_first")}
    torch.testing.assert_close(found, exact[trained], rtol=0.04, atol=0.04 * exact[trained][0, 0].item())
    assert (exact["frozen_first"] / exact["all"]).diagonal().max() < 0.8


# -- the coefficients, from the exact kernels --------------------------------------------------------------------

@pytest.fixture(scope="module")
def white():
    """White Gaussian data, a regression of off-diagonal entries on S, S^2, chi chi^T and what else has that order."""
    n, p = 1600, 2000
    X = torch.randn(n, p, generator=generator("white"), dtype=torch.float64) / math.sqrt(p)
    S = X @ X.T
    chi = S.diagonal() - S.diagonal().mean()
    i, j = torch.tril_indices(n, n, -1)
    s, a, b = S[i, j], chi[i], chi[j]
    # S (chi_i + chi_j) is of the order of S^2, but odd in S: without it the residual is larger, not biased
    design = torch.stack([torch.ones_like(s), s, a * b, s * s, s * (a + b), a + b, a * a + b * b,
                          s**3, s * a * b, s * (a * a + b * b)], 1)
    gram = design.T @ design

    def fit(kernel):
        # (c1, c2, c3)
        return torch.linalg.solve(gram, design.T @ kernel[i, j])[1:4].tolist()

    return X, fit


@pytest.mark.parametrize("name", ["relu", "swish"])
def test_coefficients_come_out_of_the_implicit_kernels(white, name):
    X, fit = white
    activation, tau0 = ACTIVATIONS[name], estimate_tau0(X)
    for trained in ("aA", "aAB"):
        ck, ntk = implicit_kernels(X, activation, SIGMA_A2, trained)
        a, b = implicit_ck(activation, SIGMA_A2, tau0), implicit_ntk(activation, SIGMA_A2, tau0, trained)
        measured, measured_ntk = fit(ck), fit(ntk)
        assert measured == pytest.approx([a.c1, a.c2, a.c3], rel=0.01)
        assert measured_ntk == pytest.approx([b.c1, b.c2, b.c3], rel=0.01)
        assert ck.diagonal().mean().item() == pytest.approx(a.diag, rel=1e-3)
        assert ntk.diagonal().mean().item() == pytest.approx(b.diag, rel=1e-3)
    # what the slides print instead
    moments = gaussian_moments(activation, get_tau(activation, SIGMA_A2, tau0))
    D, slack = 1 - SIGMA_A2 * moments.d1**2, 1 - SIGMA_A2 * moments.d1_sq
    a4, L = (1 - SIGMA_A2) / (1 - SIGMA_A2 * moments.sq_dd / 2), (1 - SIGMA_A2) / D
    ck, ntk = implicit_kernels(X, activation, SIGMA_A2, "aA")
    a, b = implicit_ck(activation, SIGMA_A2, tau0), implicit_ntk(activation, SIGMA_A2, tau0, "aA")
    assert abs(a.c2 / a4 / fit(ck)[1] - 1) > 0.05  # first power of alpha_4
    wrong = (a.c3 + b.c1 * (SIGMA_A2 * moments.d2**2 + 1 - SIGMA_A2) * a.c1) / D  # beta_3 of the slides
    assert abs(wrong / fit(ntk)[2] - 1) > 0.05
    assert abs(get_tau(activation, SIGMA_A2, tau0) ** 2 / slack / ntk.diagonal().mean().item() - 1) > 0.5  # kappa
    assert L == pytest.approx(SIGMA_A2 * a.c1 + 1 - SIGMA_A2)


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
    one, two = (
        gaussian_moments(layer, tau)
        for layer, tau in zip(layers, (tau0, math.sqrt(gaussian_moments(first, tau0).variance)))
    )
    s, e, w = two.d1**2, two.d2**2, one.sq_dd / 2
    measured = fit(explicit_kernels(X, layers)[0])[1]
    right = s * one.d2**2 / 4 + e * w**2 / 4
    assert measured == pytest.approx(right, rel=0.01)
    for wrong in (s * one.d2**2 / 4 + e * w / 4, s * one.d2**2 / 4 + e * (2 * w) ** 2 / 4):
        assert abs(wrong / measured - 1) > 0.05


# -- the series --------------------------------------------------------------------------------------------------

def test_series_reports_its_truncation(caplog):
    X = correlated(0.3, -0.2)
    with caplog.at_level(logging.INFO, "kernels"):
        implicit_kernels(X, ACTIVATIONS["swish"], SIGMA_A2)
    assert "Mehler series of swish" in caplog.text
    far, near = (series_report(ACTIVATIONS["elu"], torch.tensor([0.9, 1.1]), rho) for rho in (0.1, 0.9))
    assert far.degree < near.degree and max(far.remainder, near.remainder) <= 1e-11


@pytest.mark.parametrize("name", [*ACTIVATIONS, "clipped"])
def test_parallel_opposite_and_repeated_samples(name):
    activation = {a.name: a for a in EVERY}[name]
    base = correlated(0.6, -0.3)
    X = torch.cat([base, base, -base[:2], 2 * base[:1], base[:1] * (1 + 1e-9)])
    ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
    layers = [activation, activation]
    for kernel in (ck, ntk, *explicit_kernels(X, layers)):
        assert torch.equal(kernel, kernel.T)
        torch.testing.assert_close(
            kernel[:3, 3:6], kernel[:3, :3], rtol=1e-11, atol=1e-13
        )  # a copy is the sample itself
        torch.testing.assert_close(kernel[3:6, 6:], kernel[:3, 6:], rtol=1e-11, atol=1e-13)
        assert torch.linalg.eigvalsh(kernel)[0] > -1e-11 * kernel.max()


@pytest.mark.parametrize("name", ["elu", "softsign", "hardtanh", "tanh", "relu", "clipped"])
@pytest.mark.parametrize("cosine", [0.9995, -0.9995])
def test_nearly_parallel_samples_under_quadrature(name, cosine):
    activation = {a.name: a for a in EVERY}[name]
    f, df = SCALAR[name]
    X = correlated(cosine)
    (a, c), (_, b) = (X @ X.T).tolist()
    ck, ntk = explicit_kernels(X, [activation])
    expected, dot = (pair_expectation(h, activation.kinks, a, b, c) for h in (f, df))
    assert ck[0, 1].item() == pytest.approx(expected, rel=1e-10)
    assert ntk[0, 1].item() == pytest.approx(expected + c * dot, rel=1e-9)
    if cosine > 0:
        ck, ntk = implicit_kernels(X, activation, SIGMA_A2)
        mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(X))).mean
        Lambda = (SIGMA_A2 * ck + (1 - SIGMA_A2) * X @ X.T).tolist()
        G = pair_expectation(lambda x: f(x) - mean, activation.kinks, Lambda[0][0], Lambda[1][1], Lambda[0][1])
        dot = pair_expectation(df, activation.kinks, Lambda[0][0], Lambda[1][1], Lambda[0][1])
        assert ck[0, 1].item() == pytest.approx(G, rel=1e-10)
        assert ntk[0, 1].item() == pytest.approx((G + 0.8 * c * dot) / (1 - SIGMA_A2 * dot), rel=1e-9)


def test_the_pairs_set_aside_do_not_change_the_others():
    X = torch.cat([two_class(100, generator("aside"))[0], 3 * two_class(100, generator("aside"))[0][:5]])
    for name in ("elu", "relu"):
        for part, whole in zip(implicit_kernels(X[:100], ACTIVATIONS[name], SIGMA_A2, tau0=1.0),
                               implicit_kernels(X, ACTIVATIONS[name], SIGMA_A2, tau0=1.0)):
            torch.testing.assert_close(part, whole[:100, :100], rtol=1e-12, atol=1e-14)


def spread(n, p, seed):
    """Samples with norms spread over a factor of about ten."""
    g = generator("spread", seed)
    X = torch.randn(n, p, generator=g, dtype=torch.float64) / math.sqrt(p)
    return X * torch.exp(0.6 * torch.randn(n, 1, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("name, sigma_a2", [("selu", 0.5), ("elu", 0.8), ("softsign", 0.8), ("tanh", 0.2), ("elu", 0.2),
                                            ("tanh", 0.999)])
def test_spread_norms_and_strong_feedback(name, sigma_a2):
    X = spread(60, 8, name)  # few dimensions: cosines up to 0.9
    ck, ntk = implicit_kernels(X, ACTIVATIONS[name], sigma_a2)
    assert torch.linalg.eigvalsh(ck)[0] > 0 and torch.linalg.eigvalsh(ntk)[0] > 0
    i, j = divmod(int((X @ X.T / X.norm(dim=1) / X.norm(dim=1)[:, None] - 2 * torch.eye(60)).argmax()), 60)
    f, _ = SCALAR[name]
    mean = gaussian_moments(ACTIVATIONS[name], get_tau(ACTIVATIONS[name], sigma_a2, estimate_tau0(X))).mean
    Lambda = sigma_a2 * ck + (1 - sigma_a2) * X @ X.T
    G = pair_expectation(
        lambda x: f(x) - mean, ACTIVATIONS[name].kinks, *(Lambda[k].item() for k in ((i, i), (j, j), (i, j)))
    )
    assert ck[i, j].item() == pytest.approx(G, rel=1e-9)


# -- parts, and kernels between two sets -------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["relu", "elu", "hardtanh"])
def test_kernels_between_two_sets_are_blocks_of_the_kernel_of_both(name):
    activation, X = ACTIVATIONS[name], spread(250, 20, "two")
    X = torch.cat([X, X[:3]])  # the second set repeats some of the first
    one, two = X[:200], X[200:]
    whole = implicit_kernels(X, activation, SIGMA_A2, tau0=1.0), explicit_kernels(X, [activation, ACTIVATIONS["relu"]])
    part = (implicit_kernels(one, activation, SIGMA_A2, tau0=1.0, other=two),
            explicit_kernels(one, [activation, ACTIVATIONS["relu"]], other=two))
    for a, b in zip((*whole[0], *whole[1]), (*part[0], *part[1])):
        torch.testing.assert_close(a[200:, :200], b, rtol=1e-12, atol=1e-14)
    # tau_0, where it is not given, is that of the first set
    mean = implicit_kernels(one, activation, SIGMA_A2, other=two)[0]
    torch.testing.assert_close(mean, implicit_kernels(one, activation, SIGMA_A2, tau0=estimate_tau0(one), other=two)[0])


def test_tiles_are_parts_of_the_kernel():
    X = spread(400, 20, "tiles")
    for blocks in (implicit_blocks(X, ACTIVATIONS["swish"], SIGMA_A2), explicit_blocks(X, [ACTIVATIONS["relu"]])):
        kernels = dict(zip(("ck", "ntk"), blocks.both()))
        assert blocks.shape == (400, 400)
        for diagonal, kernel in zip(blocks.diagonal(), kernels.values()):
            assert torch.equal(diagonal, kernel.diagonal())
        for which, kernel in kernels.items():
            for rows, cols in (
                (slice(0, 400), slice(0, 400)),
                (slice(10, 17), slice(15, 350)),
                (slice(390, 400), slice(0, 5)),
            ):
                torch.testing.assert_close(blocks.tile(rows, cols, which), kernel[rows, cols], rtol=1e-12, atol=1e-14)
                out = torch.empty(kernel[rows, cols].shape)
                assert blocks.tile(rows, cols, which, out) is out
                torch.testing.assert_close(out, kernel[rows, cols].float())
        with pytest.raises(ValueError, match="'ck' or 'ntk'"):
            blocks.tile(slice(0, 3), slice(0, 3), "nngp")


def test_a_single_sample_has_a_kernel():
    ck, ntk = implicit_kernels(1.1 * GOOD[:1] / GOOD[:1].norm(), ACTIVATIONS["tanh"], SIGMA_A2)
    assert ck.shape == ntk.shape == (1, 1)
    assert ck.item() == pytest.approx(implicit_ck(ACTIVATIONS["tanh"], SIGMA_A2, 1.1).diag, rel=1e-12)
    assert ntk.item() == pytest.approx(implicit_ntk(ACTIVATIONS["tanh"], SIGMA_A2, 1.1).diag, rel=1e-12)


# -- bad input ---------------------------------------------------------------------------------------------------

GOOD = correlated(0.5, 0.1)


@pytest.mark.parametrize("X, message", [
    (torch.full((3, 2), float("nan")), "row 0"),
    (torch.cat([GOOD, torch.tensor([[float("inf"), 0.0]])]), "row 3"),
    (GOOD[0], r"\(n, p\)"), (GOOD[:0], r"\(n, p\)"), (GOOD[None], r"\(n, p\)"),
    (torch.cat([GOOD, torch.zeros(1, 2)]), "row 3 of X is zero"),
])
def test_bad_data(X, message):
    for call in (
        lambda: implicit_kernels(X, ACTIVATIONS["relu"], 0.2),
        lambda: explicit_kernels(X, [ACTIVATIONS["relu"]]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "activation, sigma_a2, message",
    [
        (
            Activation("softmax", lambda x: torch.softmax(x, -1), torch.ones_like, lipschitz=1.0),
            0.2,
            "softmax is not elementwise",
        ),
        (Activation("sum", lambda x: x.sum(), torch.ones_like, lipschitz=1.0), 0.2, "sum is not elementwise"),
        (
            Activation("wild", lambda x: torch.exp(x * x), lambda x: 2 * x * torch.exp(x * x), lipschitz=1.0),
            0.2,
            "wild",
        ),
        (torch.tanh, 0.2, "gaussian_integration.Activation"),
        (ACTIVATIONS["selu"], 0.99, "selu"),
        (piecewise_linear("steep", (0.0,), (0.0, 3.0)), 0.9, "steep"),
        (ACTIVATIONS["relu"], 1.0, "sigma_a"),
        (ACTIVATIONS["relu"], 0.0, "sigma_a"),
        (ACTIVATIONS["relu"], float("nan"), "sigma_a"),
    ],
)
def test_bad_activation_or_variance(activation, sigma_a2, message):
    with pytest.raises(ValueError, match=message):
        implicit_kernels(GOOD, activation, sigma_a2)


def test_bad_choice_of_weights():
    with pytest.raises(ValueError, match="trained"):
        implicit_kernels(GOOD, ACTIVATIONS["relu"], 0.2, trained="all")
    with pytest.raises(ValueError, match="trained"):
        explicit_kernels(GOOD, [ACTIVATIONS["relu"]], trained="aA")
    with pytest.raises(ValueError, match="at least one layer"):
        explicit_kernels(GOOD, [])
    dead = Activation("dead", torch.zeros_like, torch.zeros_like, lipschitz=0.0)
    with pytest.raises(ValueError, match="dead"):
        explicit_kernels(GOOD, [dead, ACTIVATIONS["relu"]])
