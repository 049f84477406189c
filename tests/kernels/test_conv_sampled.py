"""The kernels of convolutional networks against random networks of many feature maps, and their gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_kernels
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.gaussian import gaussian_moments

MAPS, DRAWS, STEPS = 160, 40, 16
SIGMA_A2 = 0.4


def images():
    x = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.stack([x[0], 0.8 * x[0] + 0.5 * x[1]])


def convolve(x, W, padding):
    """With entries of W of variance 1, outputs of the variance of the window's mean."""
    if padding == "circular":
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), W) / math.sqrt(9 * W.shape[1])
    return F.conv2d(x, W, padding=1) / math.sqrt(9 * W.shape[1])


def readout(z, a, pool):
    """Outputs (n,) of feature maps z (n, m, h, w): a (m, h, w), or (m,) on their means."""
    if pool:
        return z.mean((2, 3)) @ a / math.sqrt(len(a))
    return (z * a).sum((1, 2, 3)) / math.sqrt(a.numel())


def deq(x, a, A, B, activation, mean, padding, pool):
    inputs = math.sqrt(1 - SIGMA_A2) * convolve(x, B, padding)
    z = torch.zeros_like(inputs)
    for _ in range(STEPS):  # its error is 1e-4, far below that of sampling
        z = activation.fn(math.sqrt(SIGMA_A2) * convolve(z, A, padding) + inputs) - mean
    return z, readout(z, a, pool)


def agree(draws, kernel, tolerance):
    """Whether the mean of the draws (DRAWS, 2, 2) is within four standard errors, all of them below the tolerance."""
    error = draws.std(0) / math.sqrt(len(draws))
    assert (error < tolerance * kernel.abs()).all(), error / kernel
    assert ((draws.mean(0) - kernel).abs() < 4 * error).all(), (draws.mean(0) - kernel) / error


@pytest.mark.slow
@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name, padding, pool",
    [("relu", "zero", False), ("tanh", "circular", True), ("relu", "circular", True), ("tanh", "zero", False)],
)
def test_random_convolutional_deqs(name, padding, pool):
    """CK from the features, NTK from gradients through the iteration, for each trained set of weights."""
    activation, x, m = ACTIVATIONS[name], images(), MAPS
    mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, 1.0)).mean
    ck, ntk = torch.empty(DRAWS, 2, 2), {"aA": torch.empty(DRAWS, 2, 2), "aAB": torch.empty(DRAWS, 2, 2)}
    for draw in range(DRAWS):
        g = torch.Generator().manual_seed(draw)
        shape = (m,) if pool else (m, 4, 3)
        weights = [torch.randn(*size, generator=g).requires_grad_() for size in (shape, (m, m, 3, 3), (m, 2, 3, 3))]
        _, outputs = deq(x.float(), *weights, activation, mean, padding, pool)
        gradients = [torch.autograd.grad(out, weights, retain_graph=True) for out in outputs]
        parts = [torch.stack([part.flatten() for part in each]) for each in zip(*gradients)]
        a, A, B = (part @ part.T for part in parts)
        ck[draw], ntk["aA"][draw], ntk["aAB"][draw] = a, a + A, a + A + B
    for trained in ("aA", "aAB"):
        kernels = conv_kernels(x, activation, SIGMA_A2, 3, padding, "pool" if pool else "flatten", trained, 1.0)
        agree(ck.double(), kernels[0], 0.06)
        agree(ntk[trained].double(), kernels[1], 0.06)


@pytest.mark.slow
def test_random_explicit_convolutional_networks():
    x, m = images(), 400
    layers = ACTIVATIONS["relu"], ACTIVATIONS["tanh"]
    draws, tangent = torch.empty(DRAWS, 2, 2), torch.empty(DRAWS, 2, 2)
    for draw in range(DRAWS):
        g = torch.Generator().manual_seed(draw)
        sizes = (m, 4, 3), (m, 2, 3, 3), (m, m, 1, 1)
        a, W, V = (torch.randn(*size, generator=g).requires_grad_() for size in sizes)
        z = layers[0].fn(convolve(x.float(), W, "zero"))
        z = layers[1].fn(F.conv2d(z, V) / math.sqrt(m))
        outputs = readout(z, a, False)
        gradients = [torch.autograd.grad(out, (a, W, V), retain_graph=True) for out in outputs]
        parts = [torch.stack([part.flatten() for part in each]) for each in zip(*gradients)]
        draws[draw] = parts[0] @ parts[0].T
        tangent[draw] = sum(part @ part.T for part in parts)
    ck, ntk = conv_explicit_kernels(x, layers, [3, 1])
    agree(draws.double(), ck, 0.04)
    agree(tangent.double(), ntk, 0.04)
