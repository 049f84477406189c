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
