"""A positive concave DEQ has a fixed point that exists, is unique, and is reached by plain iteration.

The layer is z = f(z) = s(W z + b) with W >= 0 and b the input, on the orthant z >= 0, where s is nondecreasing,
concave and bounded. pcDEQ-1 makes the input positive, b = softplus(x), because its s (tanh, softsign, relu6) vanishes
at 0; pcDEQ-2 takes any b = relu(x) >= 0, because its s (sigmoid) does not. Either way f(0) = s(b) > 0.

Why it converges, for any W >= 0. f is monotone, so the iterates from 0 increase; s is bounded, so they have a limit
z* > 0, a fixed point. (In the paper's words f is a standard interference mapping, and its asymptotic mapping
lim f(t z)/t is 0, of spectral radius 0 < 1.) Let c = min_i f(0)_i/z*_i, in (0, 1]. Concavity between 0 and z*, and
between 0 and (1 + u) z*, gives

    f((1 - u) z*) >= (1 - (1 - c) u) z*  for 0 <= u <= 1,     f((1 + u) z*) <= (1 + (1 - c) u) z*  for u >= 0,

and with f monotone every step from any z >= 0 shrinks max_i |z_i - z*_i|/z*_i by the factor 1 - c: z* is the only
fixed point and convergence is geometric. The Jacobian J at z* has J z* <= (1 - c) z*, so a spectral radius of at most
1 - c (Collatz-Wielandt), and the adjoint iteration of the backward pass converges at the same rate. All of this
holds for f^k in place of f, which sharpens the rate to (1 - c_k)^(1/k), c_k = min_i f^k(0)_i/z*_i.

As z* <= sup s, the rate is at most 1 - min_i s(b_i)/sup s before anything is solved. For the sigmoid that is at most
1/2 for every W and every input. For pcDEQ-1 it tends to 1 as b tends to 0, and at b = 0 the guarantee is gone: z = 0
is a fixed point, and where the spectral radius of W exceeds 1/s'(0) = 1 there is a positive one as well.

References: Gabor, Piotrowski & Cavalcante, Positive concave deep equilibrium models, ICML 2024 (arXiv 2402.04029);
Piotrowski & Cavalcante, The fixed point iteration of positive concave mappings converges geometrically if a fixed
point exists, IEEE Trans. Signal Processing 2022; Cavalcante & Stanczak, Spectral radii of asymptotic mappings and the
convergence speed of the standard fixed point algorithm, ICASSP 2018 (arXiv 1803.05671).
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from deq_enn.names import PCDEQ_ACTIVATIONS, PCDEQS
from deq_enn.networks.deq import explained, finite_or_nan
from deq_enn.networks.fixed_point import ConvergenceError, FixedPoint, Picard

# activations that are concave and nondecreasing on x >= 0, by kind: "1" needs a positive input, "2" a nonnegative one
CONCAVE = {kind: {name: getattr(F, name) for name in names} for kind, names in PCDEQ_ACTIVATIONS.items()}

# units or channels of the equilibrium layers, for each image shape (channels, height, width)
WIDTHS: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {
    (1, 28, 28): {"linear": (80,), "single_conv": (82,), "multi_conv": (12, 24, 48)},
    (3, 32, 32): {"linear": (80,), "single_conv": (125,), "multi_conv": (20, 50, 80)},
}
# the same for training with augmentation, where it differs
AUGMENTED_WIDTHS: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {(3, 32, 32): {"multi_conv": (100, 120, 140)}}


class PcDEQ(nn.Module):
    """This is an equilibrium layer z = s(W z + b), z and b of the input's shape: (n, m), or (n, m, h, w) if `conv`.

    Parameters
    ----------
    m : units or channels.
    activation : the name of s; it also fixes b: relu(x) for the sigmoid, softplus of sharpness 5 for the others.
    conv : W is a 3x3 convolution that keeps the image size; otherwise a matrix. No bias: the input is one.

    Attributes
    ----------
    fixed_point : solver (relative residual 1e-4 of every sample) and iteration counts of the last call.

    Notes
    -----
    W = g v/|v| row by row. It is nonnegative because g and v are, and these are because `project_` follows every
    step of the optimizer (see `keep_nonnegative`).
    """

    def __init__(self, m: int, activation: str, conv: bool):
        super().__init__()
        self.activation = activation
        self.s = (CONCAVE["1"] | CONCAVE["2"])[activation]
        inner = nn.Conv2d(m, m, 3, padding=1, bias=False) if conv else nn.Linear(m, m, bias=False)
        nn.init.uniform_(inner.weight, 0, 0.01 / math.sqrt(2 * m))  # as published: W starts close to 0
        self.inner: nn.Module = weight_norm(inner)
        self.fixed_point = FixedPoint(Picard(tol=1e-4, max_steps=1000))

    @property
    def weight(self) -> torch.Tensor:
        """Returns W, made of g and v anew each time."""
        weight = self.inner.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def positive(self, x: torch.Tensor) -> torch.Tensor:
        """Returns b of an input x: b > 0 for pcDEQ-1, b >= 0 for pcDEQ-2."""
        if self.activation in CONCAVE["2"]:
            return F.relu(x)
        return F.softplus(x, beta=5).clamp_min(torch.finfo(x.dtype).tiny)  # exp underflows to 0 at x = -21

    def step(self, z: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Returns f(z), a pure function of its arguments."""
        if W.ndim == 2:
            return self.s(torch.addmm(b, z, W.T))
        return self.s(F.conv2d(z, W, padding=1) + b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the equilibrium of inputs x."""
        b = finite_or_nan(self.positive(x))
        return self.fixed_point(self.step, self.s(b), self.weight, b)  # from f(0), one step for free

    @torch.no_grad()
    def project_(self) -> None:
        """Moves g and v to the nearest nonnegative values. A row of v that is left empty gets weight 0, not 0/0."""
        originals = dict(self.inner.named_parameters())
        g, v = (originals[f"parametrizations.weight.original{k}"] for k in (0, 1))
        v.clamp_(min=0)
        g.clamp_(min=0)
        empty = v.amax(tuple(range(1, v.ndim)), keepdim=True) < 1e-12  # its norm underflows well below that
        v.add_(empty)
        g.mul_(~empty)


def rate_bound(f: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, steps: int = 1) -> torch.Tensor:
    """Bounds the rate of convergence of each sample, (n,), by (1 - c_k)^(1/k), for f with the fixed point z (n, ...).

    At k = 1 `steps` it is 1 - c of the module's docstring. More steps make it sharper, as f^k is monotone and concave
    like f.
    """
    start = torch.zeros_like(z)
    for _ in range(steps):
        start = f(start)
    return (1 - (start / z).flatten(1).amin(1)).clamp_min(0) ** (1 / steps)


class PcDEQNetwork(nn.Sequential):
    """This network takes images (n, c, h, w), or flattened (n, c h w), to logits (n, n_classes).

    Attributes
    ----------
    equilibria : the `PcDEQ` layers, in order.
    """

    def __init__(self, image_shape: Sequence[int], *layers: nn.Module):
        super().__init__(*layers)
        self.image_shape = tuple(image_shape)

    @property
    def equilibria(self) -> list[PcDEQ]:
        """Returns the equilibrium layers, in order."""
        return [layer for layer in self if isinstance(layer, PcDEQ)]

    def describe(self) -> dict:
        """Returns what is printed and logged."""
        return {
            "equilibrium": self.equilibria[0].activation,
            "image_shape": list(self.image_shape),
            "widths": [len(layer.weight) for layer in self.equilibria],
            "weights": sum(p.numel() for p in self.parameters()),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits (n, n_classes) of images x."""
        if x.shape[1:].numel() != math.prod(self.image_shape):
            shape = ", ".join(map(str, self.image_shape))
            raise ValueError(f"this network takes images (n, {shape}) or as rows, got {tuple(x.shape)}")
        try:
            return super().forward(x.reshape(len(x), *self.image_shape))
        except ConvergenceError as error:
            raise explained(error, x.flatten(1), "") from None


def keep_nonnegative(network: PcDEQNetwork, optimizer: torch.optim.Optimizer) -> torch.utils.hooks.RemovableHandle:
    """Projects the network's equilibrium weights after every step of the optimizer; returns the hook's handle."""

    def project(*_):
        for layer in network.equilibria:
            layer.project_()

    return optimizer.register_step_post_hook(project)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifts each of the images (n, c, h, w) by up to 4 pixels each way (0 moves in), and flips it or not."""
    n, _, h, w = images.shape
    down, right = torch.randint(9, (2, n, 1), generator=generator)
    rows, columns = torch.arange(h) + down, torch.arange(w) + right
    columns = torch.where(torch.rand(n, 1, generator=generator) < 0.5, columns.flip(1), columns)
    rows, columns = rows.to(images.device)[:, :, None], columns.to(images.device)[:, None, :]
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    return padded[torch.arange(n, device=images.device)[:, None, None], rows, columns].permute(0, 3, 1, 2).contiguous()


def _show(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def build_pcdeq(
    name: str, activation: str, image_shape: Sequence[int], n_classes: int, seed: int = 0, augmented: bool = False
) -> PcDEQNetwork:
    """Builds one of `PCDEQS` with the published architecture, float32 on the CPU.

    Parameters
    ----------
    name : `linear` is one equilibrium of units, `single_conv` one of channels, `multi_conv` three with halved images
        in between; `_1` and `_2` are pcDEQ-1 and pcDEQ-2.
    activation : tanh, softsign or relu6 for pcDEQ-1; sigmoid for pcDEQ-2.
    image_shape : (channels, height, width), (1, 28, 28) or (3, 32, 32). Widths are those published for MNIST and for
        SVHN and CIFAR-10 without augmentation; `linear` was published for MNIST alone and keeps its 80 units.
    seed : of the weights.
    augmented : take the widths published for training with augmentation (100-120-140 for three convolutions).

    Raises
    ------
    ValueError : unknown name, an activation of the other kind, another image shape.
    """
    if name not in PCDEQS:
        raise ValueError(f"unknown pcDEQ model {name!r}: choose from {', '.join(PCDEQS)}")
    body, kind = name.split("_pcdeq_")
    if activation not in CONCAVE[kind]:
        needs = "vanishes at 0 as tanh does" if kind == "1" else "is positive at 0, as only the sigmoid is"
        raise ValueError(
            f"{name} cannot use activation {activation!r}: pcDEQ-{kind} takes a concave activation that "
            f"{needs}; choose from {', '.join(CONCAVE[kind])}"
        )
    shape = tuple(image_shape)
    if shape not in WIDTHS:
        raise ValueError(f"{name} takes images of shape {' or '.join(map(_show, WIDTHS))}, got {_show(shape)}")
    widths = WIDTHS[shape] | (AUGMENTED_WIDTHS.get(shape, {}) if augmented else {})
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed % 2**64)  # and not those of GPUs, which nobody would set back
        network = PcDEQNetwork(shape, *_layers(body, activation, shape, widths[body], n_classes))
    return network.to(memory_format=torch.channels_last)  # of convolutions; pooling is five times faster so on a CPU


def _layers(
    body: str, activation: str, shape: tuple[int, ...], widths: tuple[int, ...], n_classes: int
) -> list[nn.Module]:
    channels, side, _ = shape
    if body == "linear":
        (m,) = widths
        return [
            nn.Flatten(),
            nn.Linear(math.prod(shape), m),
            nn.BatchNorm1d(m),
            PcDEQ(m, activation, conv=False),
            nn.BatchNorm1d(m),
            nn.Linear(m, n_classes),
        ]
    layers: list[nn.Module] = []
    for m in widths:
        stride, padding = (2, 0) if layers else (1, 1)  # each but the first halves the image
        layers += [
            nn.Conv2d(channels, m, 3, stride, padding),
            nn.BatchNorm2d(m),
            PcDEQ(m, activation, conv=True),
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.BatchNorm2d(m),
        ]
        channels, side = m, (side - 1) // 2 if stride == 2 else side
    window = 8 if body == "single_conv" else 4
    return [*layers, nn.AvgPool2d(window), nn.Flatten(), nn.Linear(channels * (side // window) ** 2, n_classes)]
