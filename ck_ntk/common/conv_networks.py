"""The figures of convolutional kernels draw their images here, and compute every candidate's kernels beside a DEQ's."""

if __name__ == "__main__":
    raise SystemExit("conv_networks.py is shared by the figures: run one of ck_ntk/*.py")

import contextlib
import math

import numpy as np
import torch

from deq_enn.data.images import IMAGES
from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_kernels, injected_kernels
from deq_enn.kernels.distance import least_distance, relative_error
from deq_enn.matching.families import match
from deq_enn.theory.coefficients import MatchError
from deq_enn.theory.gaussian import centred_layers
from deq_enn.theory.resolvent import resolvent_network
from deq_enn.utils.random import generator

TITLES = {
    "mnist": "MNIST, $14 \\times 14$",
    "fashion_mnist": "Fashion-MNIST, $14 \\times 14$",
    "cifar10_images": "CIFAR-10, $16 \\times 16 \\times 3$",
    "mixture": "many-channel mixture",
}
MEAN, SPREAD = 3.0, 3.0  # of the mixture's classes: entry of a mean, and step of the covariance times sqrt(c)


def images(name, path):
    """Returns (images (n, c, h, w) float64, labels, test images, labels), halved in size and standardised."""
    data = IMAGES[name](path)
    parts = [torch.nn.functional.avg_pool2d(part.double(), 2) for part in (data.train, data.test)]
    mean, scale = parts[0].mean((0, 2, 3), keepdim=True), parts[0].std((0, 2, 3), keepdim=True)
    train, test = ((part - mean) / scale for part in parts)
    return train, data.train_labels, test, data.test_labels


def draw(name, path, n, seed=0):
    """Returns n images of a data set, or n of a mixture of two classes with 1.25 n channels, (n, c, h, w)."""
    if name == "mixture":
        return mixture(n, round(1.25 * n), 6, seed)
    x = images(name, path)[0]
    return x[torch.randperm(len(x), generator=generator("conv", name, seed))[:n]]


def mixture(n, channels, side, seed):
    """Returns n images whose pixels are those of two classes: mu_a has one entry, C_a is 1 + 3 a/sqrt(c)."""
    x = torch.randn(n, channels, side, side, generator=generator("conv mixture", n, seed), dtype=torch.float64)
    label = torch.arange(n) % 2
    x *= (1 + SPREAD * label / math.sqrt(channels)).sqrt()[:, None, None, None]
    x[torch.arange(n), label] += MEAN
    return x / x.square().mean().sqrt()


def tau0_of(x):
    """Returns the root of the mean square of the images' entries, tau_0 with circular padding."""
    return x.square().mean().sqrt().item()


def candidates(activation, sigma_a2, tau0):
    """Returns {name: images -> (ck, ntk)} of the networks that may stand in for a DEQ, with circular padding."""
    net = resolvent_network(activation, sigma_a2, tau0)
    box = np.full((3, 3), 1 / 9)
    steps = (sigma_a2 * box, (1 - sigma_a2) * box)
    made = {}
    for t in (1, 2, 3):
        made[f"unrolled {t}"] = lambda x, t=t: injected_kernels(x, net.outer, steps, t, padding="circular")
        made[f"resolvent {t}"] = lambda x, t=t: injected_kernels(
            x, net.outer, (net.hidden, net.injected), t, net.d1, net.rates, "circular"
        )
    for depth in (1, 2, 3):
        layers = centred_layers([activation] * depth, tau0)
        made[f"plain {depth}"] = lambda x, layers=layers: conv_explicit_kernels(
            x, layers, [3] * len(layers), "circular"
        )
    with contextlib.suppress(MatchError):
        layers = match(activation, sigma_a2, tau0).layers
        made["matched"] = lambda x: conv_explicit_kernels(x, layers, [3] + [1] * (len(layers) - 1), "circular")
    return made


def centred(K):
    """Returns K with the mean of its features taken off, as regression with a constant sees it."""
    return K - K.mean(0) - K.mean(1)[:, None] + K.mean()


def distances(x, activation, sigma_a2, padding="circular"):
    """Returns {candidate: [CK raw, CK centred with the best factor, NTK raw, NTK centred]} to the DEQ's kernels."""
    tau0 = tau0_of(x)
    deq = conv_kernels(x, activation, sigma_a2, 3, padding, tau0=tau0)
    rows = {}
    for name, kernels in candidates(activation, sigma_a2, tau0).items():
        rows[name] = [
            value
            for K, other in zip(deq, kernels(x))
            for value in (relative_error(K, other), least_distance(centred(K), centred(other))[0])
        ]
    return rows
