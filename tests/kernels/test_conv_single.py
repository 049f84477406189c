"""The kernels of convolutional networks in single precision, as kernel machines take them, against double precision."""

import pytest
import torch

from deq_enn.kernels import conv_explicit
from deq_enn.kernels.compiled import library
from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_blocks, conv_explicit_kernels
from deq_enn.machines.run import float32_blocks
from deq_enn.names import CONVOLUTIONAL
from deq_enn.networks.conv_enn import build_conv
from deq_enn.theory.activations import ACTIVATIONS
from tests.kernels.test_conv import noise

RELU, TANH = ACTIVATIONS["relu"], ACTIVATIONS["tanh"]


@pytest.mark.few(2)
@pytest.mark.parametrize("name, sigma_a2", [("relu", 0.9), ("tanh", 0.5), ("gelu", 0.5), ("leaky_relu", 0.2)])
def test_single_precision(name, sigma_a2):
    """Errors of 1e-6 of the diagonal; of a kink's tangent kernel 1e-5, where pixels are parallel to rounding."""
    x = noise(11, 2, 6, 5)
    x[:4, :, 2:] = 1  # whole windows that are the same in four images
    x[5], x[6] = x[7], 0
    for more in ({}, dict(trained="aA", kernel_size=5, padding="circular"), dict(other=x[3:] * 2)):
        exact = conv_kernels(x, ACTIVATIONS[name], sigma_a2, **more)
        single = conv_kernels(x, ACTIVATIONS[name], sigma_a2, **more, dtype=torch.float32)
        for kernel, want, tolerance in zip(single, exact, (1e-6, 1e-5)):
            assert kernel.dtype == torch.float32
            assert (kernel - want).abs().max() < tolerance * want.abs().max()
            assert name != "relu" or not library() or not torch.equal(kernel, want.float())


def parallel_images():
    """Images of which four share whole windows, two are the same, one is zero and one far smaller than the others."""
    x = noise(9, 2, 6, 5)
    x[:4, :, 2:] = 1
    x[5], x[6] = x[7], 0
    x[8] *= 1e-30
    return x


NARROW = {
    "relu, relu": ([RELU, RELU], [3, 3]),
    "leaky_relu, relu": ([ACTIVATIONS["leaky_relu"], RELU], [5, 1]),
    "tanh, tanh": ([TANH, TANH], [3, 3]),
    "gelu, relu": ([ACTIVATIONS["gelu"], RELU], [3, 1]),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("layers", NARROW)
def test_layers_in_single_precision(layers, monkeypatch):
    """Errors of 1e-6 of the diagonal; of a kink's tangent kernel 1e-5, where pixels are parallel to rounding."""
    network, x = NARROW[layers], parallel_images()
    for compiled in (True, False) if library() and layers == "relu, relu" else (True,):
        if not compiled:
            monkeypatch.setattr(conv_explicit, "library", lambda: None)
        for more in ({}, dict(trained="frozen_first", padding="circular"), dict(other=x[3:] * 2)):
            exact = conv_explicit_kernels(x, *network, **more)
            single = conv_explicit_kernels(x, *network, **more, dtype=torch.float32)
            for kernel, want, tolerance in zip(single, exact, (1e-6, 1e-5)):
                assert kernel.dtype == torch.float32
                assert (kernel - want).abs().max() < tolerance * want.abs().max()
                assert layers != "relu, relu" or not torch.equal(kernel, want.float())


def test_layers_with_a_closed_form_are_rounded_at_the_end():
    """That form is not faster in single precision, and its parallel pixels are less exact there."""
    network = [ACTIVATIONS["hardtanh"], RELU], [3, 1]
    exact, single = (
        conv_explicit_kernels(noise(3, 1, 3, 3), *network, dtype=d) for d in (torch.float64, torch.float32)
    )
    assert all(torch.equal(kernel, want.float()) for kernel, want in zip(single, exact))


def test_the_diagonal_of_layers_in_single_precision_is_exact():
    x = parallel_images()[:, :, :3, :3]
    for readout in ("flatten", "pool"):
        blocks = [
            conv_explicit_blocks(x, [RELU, RELU], [3, 3], readout=readout, dtype=dtype)
            for dtype in (torch.float64, torch.float32)
        ]
        for exact, single in zip(*(block.diagonal() for block in blocks)):
            torch.testing.assert_close(single, exact, rtol=1e-13, atol=0)


def test_single_precision_leaves_what_it_has_not_the_range_for():
    x = 1e-19 * noise(5, 1, 4, 4)
    for kernels in (
        lambda dtype: conv_kernels(x, RELU, 0.5, dtype=dtype),
        lambda dtype: conv_explicit_kernels(x, [RELU, RELU], [3, 3], dtype=dtype),
    ):
        for kernel, want in zip(kernels(torch.float32), kernels(torch.float64)):
            torch.testing.assert_close(kernel, want.float())


def test_kernel_machines_compute_in_single_precision():
    for name in CONVOLUTIONAL:
        network = build_conv(name, (1, 4, 4), 2, 2, 0.5, "relu")
        blocks = float32_blocks(network, noise(3, 1, 4, 4))
        assert blocks.dtype == torch.float32 and getattr(blocks, "single", True)
