"""These are explicit networks that a user would train in a DEQ's place: all weights, from scratch, on the labels.

Fully connected ones of 1 to 3 hidden layers of the equilibrium's width; for images convolutional ones of its channels;
for a DEQ z = phi(Az + Bx + b) and for a `ConvDEQ` the matched network in NTK as well, of the random DEQ whose weights
have the same mean squares. Without these, "keep" would say nothing: it is they that would be trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deq_enn.matching.convolutional import match_convolution
from deq_enn.matching.families import match
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.conv_enn import ConvENN
from deq_enn.networks.enn import ENN
from deq_enn.networks.trained_deq import evaluating, understood
from deq_enn.theory.equilibrium import estimate_image_tau0, estimate_tau0
from deq_enn.unrolling.judged import Part, device_of, dtype_of, outputs_of, scores
from deq_enn.unrolling.steppers import Steps, stopped, unrolled_parts
from deq_enn.unrolling.training import RATES_FROM_SCRATCH, Trained, train
from deq_enn.utils.random import generator

DEPTHS = 1, 2, 3  # hidden layers of the plain networks
WIDTHS = 16, 2048  # hidden units, at least and at most
CHANNELS = 8, 256  # channels, at least and at most
HALVED = 16  # pixels of a side from which on an image is halved first
POOLED = 4  # side of the image that the last layer sees
USUAL_WIDTH = 256  # hidden units where the module does not tell its own
SEED = 20_000  # seed of the weights from which on we draw: users train smaller ones


@dataclass(frozen=True)
class Rival:
    """This is an explicit network to be trained: a name, "explicit" or "matched", and how it is made."""

    name: str
    kind: str
    make: Callable[[], nn.Module]


class FullyConnected(nn.Module):
    """The network has `depth` layers of ReLU units of one width on the flattened sample, and a linear readout."""

    def __init__(self, inputs: int, width: int, depth: int, classes: int):
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:]))
        self.readout = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores (n, classes) of samples x (n, ...)."""
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        return self.readout(x)


class Convolutional(nn.Module):
    """The network has `depth` 3x3 convolutions with batch norm and ReLU; means over parts of the images are read out.

    The first halves images of 16 pixels and more.
    """

    def __init__(self, image_shape: tuple[int, int, int], channels: int, depth: int, classes: int):
        super().__init__()
        given, height, width = image_shape
        sizes = [given] + [channels] * depth
        stride = 2 if min(height, width) >= HALVED else 1
        strides = [stride] + [1] * (depth - 1)
        height, width = ((side - 1) // stride + 1 for side in (height, width))
        self.hidden = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1) for i, o, s in zip(sizes, sizes[1:], strides))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth))
        self.window = max(height // POOLED, 1), max(width // POOLED, 1)
        left = (height // self.window[0]) * (width // self.window[1])
        self.readout = nn.Linear(channels * left, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the scores (n, classes) of images x (n, c, h, w)."""
        for layer, norm in zip(self.hidden, self.norms):
            x = norm(layer(x)).relu()
        return self.readout(nn.functional.avg_pool2d(x, self.window).flatten(1))


# ---------------------------------------------------------------------------------------------------------------
# which


def state_shapes(module: nn.Module, x: torch.Tensor, steps: Steps | None = None) -> list[tuple[int, ...]]:
    """Returns the shape of a sample's state at each equilibrium, of tuples each part; none for a user's own steps."""
    network = stopped(module, 1, steps)
    parts = unrolled_parts(network)
    for part in parts:
        part.keep = True
    with evaluating(network):
        network(x.to(device_of(network)))
    states = [part.last for part in parts if part.last is not None]
    return [tuple(t.shape[1:]) for s in states for t in ([s] if isinstance(s, torch.Tensor) else s)]


def rivals(module: nn.Module, X: torch.Tensor, classes: int, steps: Steps | None = None, seed: int = 0) -> list[Rival]:
    """Returns the explicit networks for samples X (n, ...) of floats; none for whole numbers, such as tokens."""
    if not X.is_floating_point():
        return []
    shapes = state_shapes(module, X[:2], steps)
    flat = [shape for shape in shapes if len(shape) == 1] or [shape[-1:] for shape in shapes if len(shape) == 2]
    units = min(max(max((math.prod(shape) for shape in flat), default=USUAL_WIDTH), WIDTHS[0]), WIDTHS[1])
    made = []
    of_images = [shape[0] for shape in shapes if len(shape) == 3]
    if X.ndim == 4 and (of_images or not shapes):  # a DEQ of units on images is no reason to convolve
        channels = min(max([*of_images, CHANNELS[0]]), CHANNELS[1])
        image = int(X.shape[1]), int(X.shape[2]), int(X.shape[3])
        made = [
            Rival(
                f"{depth} convolution{'s' * (depth > 1)} of {channels} channels",
                "explicit",
                _drawn(lambda depth=depth: Convolutional(image, channels, depth, classes), module, seed),
            )
            for depth in DEPTHS
        ]
    inputs = X[0].numel()
    made += [
        Rival(
            f"{depth} fully connected layer{'s' * (depth > 1)} of {units}",
            "explicit",
            _drawn(lambda depth=depth: FullyConnected(inputs, units, depth, classes), module, seed),
        )
        for depth in DEPTHS
    ]
    return [*_matched(module, X, classes, seed), *_matched_convolution(module, X, classes, seed), *made]


def _drawn(make: Callable[[], nn.Module], module: nn.Module, seed: int) -> Callable[[], nn.Module]:
    """Returns `make` with weights of this seed, on the module's device and in its dtype."""
    device, dtype = device_of(module), dtype_of(module)

    def drawn() -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # and not the generators of GPUs, which nobody would set back
            torch.default_generator.manual_seed((SEED + seed) % 2**64)
            return make().to(device, dtype)

    return drawn


def _matched(module: nn.Module, X: torch.Tensor, classes: int, seed: int) -> list[Rival]:
    """Returns the matched network in NTK of a module z = phi(Az + Bx + b) on rows; none for any other."""
    if X.ndim != 2:
        return []
    try:
        deq = understood(module)
        sigma_a2, gain = deq.sigma_a2, deq.gain
        tau0 = estimate_tau0(X.float())
        network = match(deq.activation, sigma_a2, tau0 * gain, kernel="ntk")
    except ValueError:  # another form, a sigma_a^2 of 1 or more, or no match
        return []
    device, dtype, width = device_of(module), dtype_of(module), len(deq.W)

    def make() -> nn.Module:
        enn = ENN(network.layers, X.shape[1], width, classes, tau0, gain, SEED + seed).to(device, dtype)
        return enn

    return [
        Rival(
            f"matched in NTK, {len(network.layers)} layer{'s' * (len(network.layers) > 1)} of {width}", "matched", make
        )
    ]


def _matched_convolution(module: nn.Module, X: torch.Tensor, classes: int, seed: int) -> list[Rival]:
    """Returns the matched network in NTK of a `ConvDEQ` on images; none for any other, also one of a subclass."""
    if type(module) is not ConvDEQ or X.ndim != 4:
        return []
    sigma_a2 = module.sigma_a2 * module.A.detach().double().square().mean().item()
    sigma_b2 = (1 - module.sigma_a2) * module.B.detach().double().square().mean().item()
    if sigma_a2 >= 1:
        return []
    size, padding, sees = module.kernel_size, module.padding, module.sees
    gain, tau0 = math.sqrt(sigma_b2 / (1 - sigma_a2)), estimate_image_tau0(X.float(), size, padding)
    try:
        network = match_convolution(module.activation, sigma_a2, tau0 * gain, "ntk", "auto", size, padding, sees)
    except ValueError:  # no match
        return []
    sizes, depth, width = network.kernel_sizes, len(network.layers), len(module.A)

    def make() -> nn.Module:
        shape = module.image_shape
        enn = ConvENN(network.layers, sizes, shape, width, classes, tau0, gain, SEED + seed, padding, sees)
        return enn.to(device_of(module), dtype_of(module))

    first = f"{size} x {size}" + ", then 1 x 1" * (depth > 1)
    return [Rival(f"matched in NTK, {depth} convolutions of {width} channels, {first}", "matched", make)]


# ---------------------------------------------------------------------------------------------------------------
# training


def trained(
    rival: Rival,
    fit: Part,
    choose: Part,
    *,
    seconds: float,
    clock: Callable[[], float],
    seed: int = 0,
    most_seen: float = math.inf,
) -> Trained:
    """Returns the network after training on the labels at `fit`, at the rate with the least cross-entropy at `choose`.

    most_seen : samples that the DEQ saw in its own training, each time that one was passed.
    """

    def objective(network: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        network.train()
        device = device_of(network)
        return cross_entropy(scores(network(fit.X[rows].to(device))).float(), fit.labels[rows].to(device))

    def score(network: nn.Module) -> float:
        return cross_entropy(outputs_of(network, choose.X), choose.labels).item()

    return train(
        rival.make,
        objective,
        score,
        len(fit),
        seconds=seconds,
        clock=clock,
        seed=seed,
        rates=RATES_FROM_SCRATCH,
        most_seen=most_seen,
    )


def drawn_order(n: int, seed: int) -> torch.Tensor:
    """Returns a random order of n samples."""
    return torch.randperm(n, generator=generator("unrolled samples", seed), device="cpu")
