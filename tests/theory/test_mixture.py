"""The equivalent matrix against its definition; statistics of labelled data against those of the mixture drawn from."""

import math

import pytest
import torch

from deq_enn.data.mixtures import gaussian_mixture
from deq_enn.kernels.box_filter import BoxFilter
from deq_enn.kernels.conv import conv_kernels
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import KernelCoefficients
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.mixture import MixtureStatistics, equivalent_conv_kernels, equivalent_kernel, estimate_statistics
from deq_enn.utils.random import generator

P, COUNTS = 120, [50, 80]
DIAGONALS = [torch.linspace(0.5, 1.5, P, dtype=torch.float64), torch.linspace(2.5, 0.5, P, dtype=torch.float64)]
MEANS = 3 * torch.eye(2, P)


def draws(number):
    return [gaussian_mixture(MEANS, DIAGONALS, COUNTS, generator("statistics", k)) for k in range(number)]


def test_t_and_T_are_unbiased_and_the_plug_in_is_not():
    truth = draws(1)[0][2]
    t, T, plug_in = [], [], []
    for X, y, _ in draws(60):
        result = estimate_statistics(X, y)
        t.append(result.t)
        T.append(result.T)
        covariances = [P * torch.cov(X[y == a].T) for a in (0, 1)]
        plug_in.append(torch.tensor([torch.trace(C @ C).item() / P for C in covariances]))
    t, T, plug_in = map(torch.stack, (t, T, plug_in))
    for values, expected in ((t, truth.t), (T, truth.T)):
        error = values.std(0) / math.sqrt(60)
        # what remains of the bias of T_aa, O(p/n_a^2) of it, is below a standard error here times 3
        assert ((values.mean(0) - expected).abs() < 4 * error + 0.01).all()
    # the docstring's bias of the plug-in: (tr C_a)^2/(n_a p), more than the value itself
    bias = torch.tensor([C.sum().item() ** 2 / (n * P) for C, n in zip(DIAGONALS, COUNTS)])
    torch.testing.assert_close(plug_in.mean(0) - truth.T.diagonal(), bias.double(), rtol=0.08, atol=0)
    assert (bias / truth.T.diagonal() > 0.8).all()


def test_psi_membership_and_scale():
    X, y, truth = draws(1)[0]
    result = estimate_statistics(X, y)
    assert torch.equal(result.J, truth.J) and result.tau0 == estimate_tau0(X)
    for a in (0, 1):
        assert result.psi[y == a].mean().abs() < 1e-14
    # centring by the sample's own mean moves psi by O(1/n_a) of its spread and its class mean
    difference = result.psi - truth.psi
    assert difference.std() < 0.35 * truth.psi.std() and result.psi.std().item() == pytest.approx(
        truth.psi.std().item(), rel=0.1
    )


def test_labels_may_be_any_integers_in_any_order():
    X, y, _ = draws(1)[0]
    order = torch.randperm(len(X), generator=generator("order"))
    plain, moved = estimate_statistics(X, y), estimate_statistics(X[order], 8 - 2 * y[order])
    torch.testing.assert_close(moved.T, plain.T.flip(0, 1))
    torch.testing.assert_close(moved.t, plain.t.flip(0))
    torch.testing.assert_close(moved.psi, plain.psi[order])


@pytest.mark.parametrize("rows, features", [(30, 200), (300, 20)])
def test_either_product_gives_the_same(rows, features):
    X = torch.randn(2 * rows, features, generator=generator("shape"), dtype=torch.float64)
    y = torch.arange(2 * rows) % 2
    T = estimate_statistics(X, y).T
    Z = [X[y == a] - X[y == a].mean(0) for a in (0, 1)]
    cross = (Z[0] @ Z[1].T).square().mean() * features / (1 - 1 / rows) ** 2
    own = (Z[0] @ Z[0].T).square().fill_diagonal_(0).sum() / (rows * (rows - 1)) * features / (1 - 1 / rows) ** 2
    torch.testing.assert_close(T[0], torch.stack([own, cross]))


def test_bad_input():
    X, y, _ = draws(1)[0]
    with pytest.raises(ValueError, match=r"y \(n,\)"):
        estimate_statistics(X, y[:-1])
    with pytest.raises(ValueError, match="2 samples"):
        estimate_statistics(X[:52], y[:52])
    with pytest.raises(ValueError, match="NaN"):
        estimate_statistics(X * float("nan"), y)


def test_equivalent_kernel_is_the_matrix_of_the_theorem():
    g = torch.Generator().manual_seed(0)
    n, p, K = 12, 7, 2
    X = torch.randn(n, p, generator=g, dtype=torch.float64)
    J = torch.eye(K, dtype=torch.float64)[torch.arange(n) % K]
    t, T, psi = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((K,), (K, K), (n,)))
    T = T + T.T
    c = KernelCoefficients(2.0, 0.7, 0.3, 0.2)
    V = torch.cat([J / math.sqrt(p), psi[:, None]], 1)
    C = torch.cat(
        [
            torch.cat([c.c2 * t[:, None] * t + c.c3 * T, c.c2 * t[:, None]], 1),
            torch.cat([c.c2 * t[None], torch.tensor([[c.c2]], dtype=torch.float64)], 1),
        ]
    )
    expected = c.c1 * X @ X.T + V @ C @ V.T + (c.diag - 1.3**2 * c.c1) * torch.eye(n, dtype=torch.float64)
    M = equivalent_kernel(c, X, MixtureStatistics(J, t, T, psi, 1.3))
    torch.testing.assert_close(M, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="12 samples, X has 5"):
        equivalent_kernel(c, X[:5], MixtureStatistics(J, t, T, psi, 1.3))


def test_t_of_few_samples_is_that_of_their_unbiased_variances():
    X, y, _ = gaussian_mixture(torch.zeros(2, 9), [1.0, 2.0], [3, 12], generator("few"))
    first, second = (X[y == a].var(0).sum() for a in (0, 1))  # by n_a - 1
    mean = (3 * first + 12 * second) / 15
    torch.testing.assert_close(estimate_statistics(X, y).t, 3 * torch.stack([first - mean, second - mean]))


def test_convolutional_kernels_to_second_order():
    """Of two images whose products, or whose norms, differ little from pixel to pixel, against the exact kernels."""
    size, swish = (4, 4), ACTIVATIONS["swish"]
    window = BoxFilter(size, 3, "circular")(torch.eye(16, dtype=torch.float64).reshape(4, 4, 16)).reshape(16, 16)
    f, g = torch.randn(2, *size, generator=generator("fields"), dtype=torch.float64)

    def images(eps, products):
        """Two images of two channels, |x|^2/c = 1 at each pixel and the product eps f; or orthogonal, 1 + eps f, g."""
        zero, S = torch.zeros(size), eps * f
        if products:
            return math.sqrt(2) * torch.stack([torch.stack([zero + 1, zero]), torch.stack([S, (1 - S**2).sqrt()])])
        return math.sqrt(2) * torch.stack(
            [torch.stack([(1 + S).sqrt(), zero]), torch.stack([zero, (1 + eps * g).sqrt()])]
        )

    for products in (True, False):
        exact, closed = [], []
        for x in (images(eps, products) for eps in (2e-3, -2e-3)):
            exact.append([K[0, 1] for K in conv_kernels(x, swish, 0.4, 3, "circular", tau0=1.0)])
            closed.append([K[0, 1] for K in equivalent_conv_kernels(x, swish, 0.4, 1.0, window)])
        second, expected = (torch.tensor(values).mean(0) for values in (closed, exact))
        torch.testing.assert_close(second, expected, rtol=2e-4, atol=0)
