"""Distances of kernels, and how well a kernel is aligned with labels."""

import pytest
import torch

from deq_enn.kernels import distance
from deq_enn.utils.random import generator


def test_alignment_is_one_where_the_kernel_is_that_of_the_labels():
    y = torch.arange(60) % 3
    Y = torch.nn.functional.one_hot(y, 3).double()
    Y = Y - Y.mean(0)
    noise = torch.randn(60, 60, dtype=torch.float64, generator=generator("noise"))
    assert distance.label_alignment(Y @ Y.T + 1e-6 * (noise + noise.T), Y) == pytest.approx(1)
    assert distance.label_alignment(noise @ noise.T, Y) < 0.3


def test_alignment_is_the_share_in_the_leading_eigenvectors():
    K = torch.randn(30, 30, dtype=torch.float64, generator=generator("kernel"))
    K, H = K @ K.T, torch.eye(30, dtype=torch.float64) - 1 / 30
    Y = H @ torch.nn.functional.one_hot(torch.arange(30) % 4).double()
    leading = torch.linalg.eigh(H @ K @ H)[1][:, -4:]
    share = (leading.T @ Y).square().sum() / Y.square().sum()
    assert distance.label_alignment(K, Y) == pytest.approx(share.item())


@pytest.mark.parametrize("samples", (1, 2, 20))
def test_norms_where_no_sample_differs_from_another(samples):
    equal = torch.ones(samples, samples, dtype=torch.float64)
    assert distance.spectral_norm(equal) == pytest.approx(samples)
    assert distance.spectral_norm(0 * equal) == 0
    assert distance.relative_error(equal, equal) == distance.relative_error(0 * equal, 0 * equal) == 0


def test_the_norm_of_a_centred_kernel():
    rows = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [2.0, -1.0], [-2.0, 1.0]], dtype=torch.float64)
    kernel = rows @ rows.T  # its rows sum to exactly 0
    assert distance.spectral_norm(kernel) == pytest.approx(torch.linalg.eigvalsh(kernel).max().item(), rel=1e-4)


def test_the_least_distance_is_that_of_the_best_factor():
    M, other = torch.eye(3).double(), torch.diag(torch.tensor([1, 0.5, 0.5])).double()
    assert distance.least_distance(M, other) == pytest.approx((1 / 3, 4 / 3), abs=1e-3)
