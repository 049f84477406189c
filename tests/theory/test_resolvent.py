"""The network of a DEQ's resolvent: its taps, its contraction, and its kernels against the DEQ's."""

import math

import numpy as np
import pytest
import torch

from deq_enn.kernels.box_filter import BoxFilter
from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import injected_kernels, tap_matrix
from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_image_tau0
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.theory.resolvent import resolvent_network

RELU = ACTIVATIONS["relu"]
BOX = np.full((3, 3), 1 / 9)


def images(n=3, c=2, h=4, w=4):
    x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x + 0.7 * x.roll(1, 3)


def test_taps_are_the_resolvent_of_the_window():
    network = resolvent_network(RELU, 0.9, kernel_size=3, hops=40)
    for padding in ("circular",):
        M = tap_matrix(BOX, (4, 5), padding)
        x = torch.randn(4, 5, 2, dtype=torch.float64)
        assert torch.allclose(M @ x.flatten(0, 1), BoxFilter((4, 5), 3, padding)(x).flatten(0, 1))
        R = torch.linalg.inv(torch.eye(20) - 0.9 * network.d1**2 * M)
        assert torch.allclose(tap_matrix(network.hidden, (4, 5), padding), 0.9 * R @ M, atol=1e-12)
        assert torch.allclose(
            tap_matrix(network.injected * network.rates, (4, 5), padding), 0.1 * R @ R @ M, atol=1e-12
        )
    assert tap_matrix(BOX, (3, 3), "zero").sum() == pytest.approx(49 / 9)
    assert network.left_out < 1e-12 < resolvent_network(RELU, 0.9, hops=2).left_out
    moments = gaussian_moments(network.inner, 0.8)
    assert moments.d1 == pytest.approx(0, abs=1e-12) and network.d1 == pytest.approx(0.5)
    # relu at any scale: E[phi'] = 1/2, E[phi'^2] = 1/2
    assert network.kappa == pytest.approx(0.9 / 4 / (1 - 0.9 / 4)) and network.plain == pytest.approx(0.45)
    single = resolvent_network(RELU, 0.9, kernel_size=1)
    assert single.hidden.item() == pytest.approx(0.9 / (1 - 0.9 / 4)) and single.rates.item() == pytest.approx(
        1 / (1 - 0.9 / 4)
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("sigma_a2", [0.5, 0.9])
def test_kernels_come_closer_by_kappa_a_step(sigma_a2):
    """Measured in the largest entry, relative to that of the DEQ; the tangent kernel only with the learning rates."""
    x = images()
    deq = conv_kernels(x, RELU, sigma_a2, 3, "circular")
    tau0 = x.square().sum(1).div(2).mean().sqrt().item()
    network = resolvent_network(RELU, sigma_a2, tau0, hops=12)

    def errors(steps, rates):
        taps = network.hidden, network.injected
        kernels = injected_kernels(x, network.outer, taps, steps, network.d1, rates, "circular")
        return [((a - b).abs().max() / a.max()).item() for a, b in zip(deq, kernels)]

    history = [errors(steps, network.rates) for steps in range(1, 6)]
    for before, after in zip(history, history[1:]):
        assert all(b < 1.1 * network.kappa * a for a, b in zip(before[:1], after[:1]))
    assert history[-1][0] < 1e-3 and history[-1][1] < 4e-3
    assert errors(5, 1.0)[1] > 0.02  # without them it converges to something else
    unrolled = [
        injected_kernels(x, network.outer, (sigma_a2 * BOX, (1 - sigma_a2) * BOX), steps, padding="circular")
        for steps in (3, 40)
    ]
    assert ((deq[0] - unrolled[0][0]).abs().max() / deq[0].max()).item() > 3 * history[2][0]
    for a, b in zip(deq, unrolled[1]):  # the DEQ itself
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_zero_padding_and_one_pixel():
    x = images(4, 3, 1, 1)
    X, s = x[..., 0, 0] / math.sqrt(3), 0.9
    tau0 = X.square().sum(1).mean().sqrt().item()
    network = resolvent_network(RELU, s, tau0, kernel_size=1)
    taps = network.hidden, network.injected
    for got, want in zip(
        injected_kernels(x, network.outer, taps, 25, network.d1, network.rates), implicit_kernels(X, RELU, s)
    ):
        assert torch.allclose(got, want, rtol=1e-8)
    first = injected_kernels(x, network.outer, taps, 1, network.d1)[0]
    assert torch.allclose(first, explicit_kernels(X * math.sqrt(network.injected.item()), [network.outer])[0])
    x = images()
    phi = resolvent_network(RELU, s, 1.0).outer
    deep = injected_kernels(x, phi, (s * BOX, (1 - s) * BOX), 60)
    for got, want in zip(deep, conv_kernels(x, RELU, s, tau0=1.0)):
        assert torch.allclose(got, want, rtol=1e-8, atol=1e-10)
    other = injected_kernels(x, phi, (s * BOX, (1 - s) * BOX), 3, other=x[1:])
    for got, want in zip(other, injected_kernels(x, phi, (s * BOX, (1 - s) * BOX), 3)):
        assert torch.allclose(got, want[1:], rtol=1e-8, atol=1e-10)


def test_with_zero_padding_it_stops_short_of_the_deq():
    """The mean over the window is no filter then. It is enough for three steps, and plain unrolling goes on."""
    x = torch.nn.functional.avg_pool2d(images(3, 2, 9, 9), 3, 1, 1)
    away = {}
    for padding in ("circular", "zero"):
        network = resolvent_network(RELU, 0.5, estimate_image_tau0(x, 3, padding), hops=8)
        deq = conv_kernels(x, RELU, 0.5, 3, padding)
        made = injected_kernels(
            x, network.outer, (network.hidden, network.injected), 8, network.d1, network.rates, padding
        )
        plain = injected_kernels(x, network.outer, (0.5 * BOX, 0.5 * BOX), 8, padding=padding)
        away[padding] = [((a - b).abs().max() / b.abs().max()).item() for k in (made, plain) for a, b in zip(k, deq)]
    assert max(away["circular"][:2]) < 1e-5 and max(away["circular"][2:] + away["zero"][2:]) < 1e-4
    assert 1e-3 < away["zero"][0] < 0.01 and 2e-3 < away["zero"][1] < 0.02


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: resolvent_network(RELU, 0.5, kernel_size=2), "kernel_size must be odd"),
        (lambda: resolvent_network(RELU, 0.5, hops=0), "hops at least 1"),
        (lambda: injected_kernels(images(), RELU, (BOX, BOX), 0), "at least one step"),
        (lambda: injected_kernels(images(), RELU, (BOX, BOX), 1, readout="pool"), "needs padding 'circular'"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
