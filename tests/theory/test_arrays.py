"""Samples may be arrays or lists: the public functions take them as they take tensors."""

import numpy as np
import pytest
import torch

from deq_enn import (
    ConvDEQ,
    build_model,
    equivalent_kernel,
    estimate_image_tau0,
    estimate_statistics,
    estimate_tau0,
    implicit_ck,
    matched_conv_enn,
    matched_enn,
)
from deq_enn.theory.equilibrium import as_tensor

RANDOM = np.random.default_rng(0)
X, LABELS = RANDOM.standard_normal((60, 20)).astype(np.float32), RANDOM.integers(0, 3, 60)
IMAGES = RANDOM.standard_normal((12, 1, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("form", [lambda X: X, lambda X: X[::-1][::-1].astype(">f4"), lambda X: X.tolist()])
def test_arrays_and_lists_are_taken_as_tensors_are(form):
    tensor = torch.from_numpy(X)
    assert estimate_tau0(form(X)) == pytest.approx(estimate_tau0(tensor))
    assert estimate_image_tau0(form(IMAGES)) == pytest.approx(estimate_image_tau0(torch.from_numpy(IMAGES)))
    statistics = estimate_statistics(tensor, torch.from_numpy(LABELS))
    torch.testing.assert_close(estimate_statistics(form(X), LABELS).T, statistics.T)
    coefficients = implicit_ck("relu", 0.2)
    expected = equivalent_kernel(coefficients, tensor, statistics)
    torch.testing.assert_close(equivalent_kernel(coefficients, form(X), statistics), expected)
    deq = build_model("inn", 20, 8, 3, 0.2)
    torch.testing.assert_close(matched_enn(deq, form(X)).weights[0], matched_enn(deq, tensor).weights[0])
    conv = ConvDEQ("tanh", (1, 6, 6), 8, 3, 0.2)
    match = matched_conv_enn(conv, torch.from_numpy(IMAGES)).match
    assert matched_conv_enn(conv, form(IMAGES)).match.distance == pytest.approx(match.distance, rel=1e-6)


@pytest.mark.parametrize("values", [[["a", "b"]], np.array([[None, 1]])])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(ValueError, match="expected numbers, got an array of .*shape"):
        as_tensor(values)
