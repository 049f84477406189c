"""The exact kernels: adaptive quadrature, the series, parts and tiles, bad input."""

import logging
import math

import numpy as np
import pytest
import torch

from deq_enn.data.mixtures import two_class
from deq_enn.kernels.exact import _Implicit, explicit_blocks, explicit_kernels, implicit_blocks, implicit_kernels
from deq_enn.theory.activations import ACTIVATIONS, Activation, piecewise_linear
from deq_enn.theory.coefficients import implicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import expectation, gaussian_moments
from deq_enn.utils.random import generator
from tests.helpers.pair_quadrature import BY_HAND, EVERY, correlated, pair_expectation

SIGMA_A2 = 0.2


CLOSED = ["relu", "leaky_relu", "hardtanh", "erf", "sin", "clipped"]


@pytest.mark.few(6)
@pytest.mark.parametrize(
    "name, cosine",
    [
        *((name, c) for name in CLOSED for c in (0.999, -0.999, 0.03)),
        *((name, c) for name in ("tanh", "swish", "elu") for c in (0.9, -0.4)),
    ],
)
def test_one_layer_kernel_is_the_two_dimensional_integral(name, cosine):
    activation = {a.name: a for a in EVERY}[name]
    X = correlated(cosine)
    f, df = BY_HAND[name]
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
    f, df = BY_HAND[name]
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


# -- the series --------------------------------------------------------------------------------------------------


def test_series_reports_its_truncation(caplog):
    cut = []
    for rho in (0.1, 0.4):
        caplog.clear()
        with caplog.at_level(logging.INFO, "kernels"):
            explicit_kernels(correlated(rho), [ACTIVATIONS["elu"]])
        assert "Mehler series of elu" in caplog.text
        _, degree, reach, remainder = caplog.records[-1].args
        assert reach == pytest.approx(rho) and remainder <= 1e-11
        cut.append(degree)
    assert cut[0] < cut[1]


def spread(n, p, seed):
    """Samples with norms spread over a factor of about ten."""
    g = generator("spread", seed)
    X = torch.randn(n, p, generator=g, dtype=torch.float64) / math.sqrt(p)
    return X * torch.exp(0.6 * torch.randn(n, 1, generator=g, dtype=torch.float64))


@pytest.mark.parametrize(
    "name, sigma_a2", [("selu", 0.5), ("elu", 0.8), ("softsign", 0.8), ("tanh", 0.2), ("elu", 0.2), ("tanh", 0.999)]
)
def test_spread_norms_and_strong_feedback(name, sigma_a2):
    X = spread(60, 8, name)  # few dimensions: cosines up to 0.9
    ck, ntk = implicit_kernels(X, ACTIVATIONS[name], sigma_a2)
    assert torch.linalg.eigvalsh(ck)[0] > 0 and torch.linalg.eigvalsh(ntk)[0] > 0
    i, j = divmod(int((X @ X.T / X.norm(dim=1) / X.norm(dim=1)[:, None] - 2 * torch.eye(60)).argmax()), 60)
    f, _ = BY_HAND[name]
    mean = gaussian_moments(ACTIVATIONS[name], get_tau(ACTIVATIONS[name], sigma_a2, estimate_tau0(X))).mean
    Lambda = sigma_a2 * ck + (1 - sigma_a2) * X @ X.T
    G = pair_expectation(
        lambda x: f(x) - mean, ACTIVATIONS[name].kinks, *(Lambda[k].item() for k in ((i, i), (j, j), (i, j)))
    )
    assert ck[i, j].item() == pytest.approx(G, rel=1e-9)


@pytest.mark.slow
def test_many_pairs_just_beyond_a_table_of_the_series_have_the_next_one(monkeypatch):
    """One by one, as the few nearly parallel pairs are taken, they would be slower a hundred times."""
    aside = []
    monkeypatch.setattr(_Implicit, "_nearly_parallel", lambda self, i, j, opposite: aside.append(len(i)))
    radii = torch.linspace(0.9, 1.1, 40, dtype=torch.float64)
    for cosine in torch.linspace(0.85, 0.95, 41).tolist():
        directions = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
        X, other = (radii[:, None] * direction for direction in directions)
        implicit_blocks(X, ACTIVATIONS["tanh"], SIGMA_A2, tau0=1.0, other=other).both()
    assert not aside


# -- parts, and kernels between two sets -------------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["relu", "elu", "hardtanh"])
def test_kernels_between_two_sets_are_blocks_of_the_kernel_of_both(name):
    activation, X = ACTIVATIONS[name], spread(190, 20, "two")
    X = torch.cat([X, X[:3]])  # the second set repeats some of the first
    single, two = X[:150], X[150:]
    whole = implicit_kernels(X, activation, SIGMA_A2, tau0=1.0), explicit_kernels(X, [activation, ACTIVATIONS["relu"]])
    part = (
        implicit_kernels(single, activation, SIGMA_A2, tau0=1.0, other=two),
        explicit_kernels(single, [activation, ACTIVATIONS["relu"]], other=two),
    )
    for a, b in zip((*whole[0], *whole[1]), (*part[0], *part[1])):
        torch.testing.assert_close(a[150:, :150], b, rtol=1e-12, atol=1e-14)
    # tau_0, where it is not given, is that of the first set
    mean = implicit_kernels(single, activation, SIGMA_A2, other=two)[0]
    torch.testing.assert_close(
        mean, implicit_kernels(single, activation, SIGMA_A2, tau0=estimate_tau0(single), other=two)[0]
    )


def test_tiles_are_parts_of_the_kernel():
    X = spread(200, 20, "tiles")
    for blocks in (implicit_blocks(X, ACTIVATIONS["swish"], SIGMA_A2), explicit_blocks(X, [ACTIVATIONS["relu"]])):
        kernels = dict(zip(("ck", "ntk"), blocks.both()))
        assert blocks.shape == (200, 200)
        for diagonal, kernel in zip(blocks.diagonal(), kernels.values()):
            assert torch.equal(diagonal, kernel.diagonal())
        for which, kernel in kernels.items():
            for rows, cols in (
                (slice(0, 200), slice(0, 200)),
                (slice(10, 17), slice(15, 190)),
                (slice(190, 200), slice(0, 5)),
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


@pytest.mark.parametrize(
    "X, message",
    [
        (torch.full((3, 2), float("nan")), "row 0"),
        (torch.cat([GOOD, torch.tensor([[float("inf"), 0.0]])]), "row 3"),
        (GOOD[0], r"\(n, p\)"),
        (GOOD[:0], r"\(n, p\)"),
        (GOOD[None], r"\(n, p\)"),
        (torch.zeros(3, 2), "all rows of X are zero"),
    ],
)
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
        (3, 0.2, "not an elementwise torch function: int cannot be called"),
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


def test_samples_may_have_any_strides_and_byte_order():
    X = np.random.default_rng(0).standard_normal((5, 3))
    expected = implicit_kernels(torch.from_numpy(X[::-1].copy()), "tanh", 0.2)
    for odd in (X[::-1], X[::-1].astype(">f8"), X[::-1].tolist()):
        assert all(torch.equal(*pair) for pair in zip(implicit_kernels(odd, "tanh", 0.2), expected))
