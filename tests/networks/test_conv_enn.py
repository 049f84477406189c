"""Explicit convolutional networks: against patches by hand, fully connected networks, and the exact kernels."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_kernels
from deq_enn.matching.families import match
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.conv_enn import ConvENN, build_conv, matched_conv_enn
from deq_enn.networks.enn import ENN
from deq_enn.theory.equilibrium import estimate_image_tau0
from tests.networks.test_conv_deq import IMAGES, PLACES, SHAPE, deq, patches


def test_plain_convolutions_are_layers_of_patches():
    network = build_conv("plain_conv", SHAPE, 5, 3, 0.3, "relu", seed=2, padding="circular", kernel_size=3).double()
    tau = math.sqrt(0.7)
    x = torch.relu(tau / 3 / 2**0.5 * patches(IMAGES, network.weights[0], "circular")) - tau / math.sqrt(2 * math.pi)
    tau *= math.sqrt(0.5 - 0.5 / math.pi)
    x = torch.relu(patches(x, network.weights[1], "circular") / 3 / 5**0.5) - tau / math.sqrt(2 * math.pi)
    features = network.features(IMAGES)
    torch.testing.assert_close(features, x.flatten(1) / 5**0.5 / 4, rtol=0, atol=1e-12)
    torch.testing.assert_close(network(IMAGES), features @ network.readout.weight.T)
    assert [len(build_conv("plain_conv", SHAPE, 5, 3, 0.3, "relu", depth=depth).weights) for depth in (1, 3)] == [1, 3]


def test_with_one_pixel_they_are_the_fully_connected_network():
    layers, x = match("tanh", 0.5, kernel="ntk").layers, IMAGES[:, :, :1, :1]
    dense = ENN(layers, 2, 8, 3, seed=5).double()
    conv = ConvENN(layers, [1] * len(layers), (2, 1, 1), 8, 3, seed=5).double()
    torch.testing.assert_close(conv(x), dense(x.flatten(1) / 2**0.5))


def test_the_match_has_the_dense_layers_and_its_measured_distance():
    network = deq("circular", "pool", "relu", 0.5, seed=3)
    enn = matched_conv_enn(network, IMAGES)
    assert enn.match.parameters == match("relu", 0.5).parameters and enn.kernel_sizes == (3, 1)
    assert torch.equal(enn.weights[0], network.B) and (enn.padding, enn.sees, enn.seed) == ("circular", "pool", 3)
    assert enn(IMAGES).shape == (3, 3)
    place = {"padding": "circular", "readout": "pool"}
    wanted, _ = conv_kernels(IMAGES, network.activation, 0.5, tau0=1.0, **place)
    own, _ = conv_explicit_kernels(IMAGES, enn.layers, enn.kernel_sizes, **place)
    norm = torch.linalg.matrix_norm
    distance = norm(wanted - own, 2) / norm(wanted, 2)
    assert enn.match.sample == 3 and enn.match.distance == pytest.approx(distance.item(), rel=1e-3) and distance > 0.001
    assert matched_conv_enn(network).match.distance is None
    assert enn.describe()["distance"] == enn.match.distance


@pytest.mark.slow
def test_a_wide_match_has_the_kernel_that_is_measured():
    network, kernels = deq(readout="flatten", m=400, seed=0), []
    for seed in range(8):
        enn = ConvENN(matched_conv_enn(network).layers, (3, 1), SHAPE, 400, 1, seed=seed).double()
        with torch.no_grad():
            F = enn.features(IMAGES)
        kernels.append((F @ F.T)[PLACES])
    exact, _ = conv_explicit_kernels(IMAGES, enn.layers, (3, 1))
    error, spread = torch.stack(kernels).mean(0) - exact[PLACES], torch.stack(kernels).std(0) / 8**0.5
    assert (error.abs() < 4 * spread).all()


def test_what_fails_is_warned_of():
    loud = torch.cat([IMAGES * scale for scale in (0.3, 1, 2)])  # images of several contrasts
    loud /= estimate_image_tau0(loud)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = matched_conv_enn(deq(sigma_a2=0.2), loud).match
    assert 0.001 < near.distance < 0.05 and near.sample == 9
    assert "0.4 away from its CK on 9 of these images" in replace(near, distance=0.4).warning()


@pytest.mark.slow
def test_tanh_near_one_is_warned_of():
    loud = torch.cat([IMAGES * scale for scale in (0.3, 1, 2)])
    with pytest.warns(
        UserWarning, match=r"tanh is 0\.\d+ away from its CK on 9 .* norm of a pixel, and sigma_a\^2 = 0.9"
    ):
        enn = matched_conv_enn(deq(activation="tanh", sigma_a2=0.9), loud / estimate_image_tau0(loud))
    assert enn.match.distance > 0.1


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="2 layers need as many kernel sizes, got 1"):
        ConvENN(match("relu", 0.2).layers, [3], SHAPE, 4, 2)
    with pytest.raises(ValueError, match="the depth of conv_deq is not free"):
        build_conv("conv_deq", SHAPE, 4, 2, 0.2, "relu", depth=2)
    trained = deq()
    trained.A.data += 1e-3
    with pytest.raises(ValueError, match="no theory says what replaces"):
        matched_conv_enn(trained)
    with pytest.raises(ValueError, match=r"takes images of shape \(2, 4, 4\), got \(2, 4, 3\)"):
        matched_conv_enn(deq(), IMAGES[..., :3])


class Brightened(ConvDEQ):
    def maps(self, x):
        return super().maps(x + 1)


def test_only_what_does_as_its_class_does_has_a_match():
    same = type("Same", (ConvDEQ,), {"kept": 3})("tanh", SHAPE, 4, 2, 0.2)
    assert matched_conv_enn(same).match
    hooked, patched = deq(), deq()
    hooked.register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    patched.maps = lambda x: ConvDEQ.maps(patched, x + 1)
    for other in (Brightened("tanh", SHAPE, 4, 2, 0.2), hooked, patched):
        with pytest.raises(ValueError, match="is not a ConvDEQ with the forward of that class"):
            matched_conv_enn(other)
