"""Explicit convolutional networks stand beside a convolutional DEQ: its match, and plain ones of a few layers.

    x_l = sigma_l(W_l * x_{l-1}) / sqrt(m),     * a k_l x k_l convolution divided by k_l (and, for l = 1, by sqrt(c))

`matched_conv_enn` has the layers of the fully connected match (`matching.families`), the first as a k x k convolution
and the others as 1 x 1 convolutions: `matching.convolutional` says why, and measures what that is worth. `plain_conv`
is what one would try without any theory: centred layers of the DEQ's own activation, each a k x k convolution, with the
images scaled by sigma_b.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from deq_enn.matching.convolutional import ConvMatch, match_convolution
from deq_enn.names import CONVOLUTIONAL, DEPTHS, READOUTS
from deq_enn.networks.conv_deq import ConvDEQ, ConvNetwork, convolve
from deq_enn.networks.enn import explicit_coefficients, match_scalars, named_scalars
from deq_enn.networks.export import ExportedENN, LinearReadout, checked_labels
from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import as_tensor, check_window
from deq_enn.theory.gaussian import centred_layers
from deq_enn.theory.recognise import recognise
from deq_enn.utils.random import normal_weights


class ConvENN(ConvNetwork):
    """This is an explicit convolutional network of len(layers) hidden layers of one number of channels.

    Parameters that are not listed are those of `ConvNetwork`.

    Parameters
    ----------
    layers, kernel_sizes : one activation, used as given, and one odd k for each hidden layer.
    input_scale : factor on the images (sigma_b for plain networks).
    match : the match that the layers come from.
    """

    def __init__(
        self,
        layers: Sequence[Activation],
        kernel_sizes: Sequence[int],
        image_shape: Sequence[int],
        dim: int,
        n_classes: int,
        tau0: float = 1.0,
        input_scale: float = 1.0,
        seed: int = 0,
        padding: str = "zero",
        readout: str = "flatten",
        match: ConvMatch | None = None,
    ):
        if len(kernel_sizes) != len(layers):
            raise ValueError(f"{len(layers)} layers need as many kernel sizes, got {len(kernel_sizes)}")
        super().__init__(image_shape, dim, n_classes, tau0, seed, max(kernel_sizes), padding, readout)
        if any(size % 2 == 0 for size in kernel_sizes):
            raise ValueError(f"kernel sizes must be odd, got {' '.join(map(str, kernel_sizes))}")
        self.layers, self.kernel_sizes = tuple(layers), tuple(kernel_sizes)
        self.input_scale, self.match = input_scale, match
        self.coefficients = explicit_coefficients(self.layers, tau0, input_scale)
        channels, first = self.image_shape[0], self.kernel_sizes[0]
        self.weights = nn.ParameterList([normal_weights(dim, channels, first, first, seed=(seed, "first"))])
        self.weights.extend(
            normal_weights(dim, dim, k, k, seed=(seed, "hidden", index))
            for index, k in enumerate(self.kernel_sizes[1:], 2)
        )

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the last feature maps (n, m, h, w) of images x (n, c, h, w)."""
        scale = self.input_scale / math.sqrt(x.shape[1])
        for weight, layer, k in zip(self.weights, self.layers, self.kernel_sizes):
            x = layer.fn(convolve(x, weight * (scale / k), self.padding))
            scale = 1 / math.sqrt(len(weight))
        return x * scale

    def describe(self) -> dict:
        """Returns the scalars of the theory, as they are printed and logged."""
        return {
            "layers": [layer.name for layer in self.layers],
            "tau0": self.tau0,
            "input_scale": self.input_scale,
            **named_scalars(self.coefficients),
            **match_scalars(self.match),
            **super().describe(),
            "kernel_sizes": list(self.kernel_sizes),
        }


class ExportedConvENN(ExportedENN):
    """An exported convolutional network takes rows that are images as they lie, c h w entries.

    Parameters
    ----------
    image_shape : (c, h, w). channels : of each hidden layer. classes, layers : as of `ExportedENN`.
    kernel_sizes : k of each layer. padding : "zero" or "circular". sees : "flatten" or "pool".
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        classes: int,
        layers: Sequence[Activation],
        kernel_sizes: Sequence[int],
        padding: str,
        sees: str,
    ):
        first, height, width = image_shape
        for size in kernel_sizes:
            check_window(image_shape, size, padding)
        if sees not in READOUTS or len(kernel_sizes) != len(layers):
            raise ValueError(f"no convolutional network has readout {sees!r} and windows {kernel_sizes!r}")
        super().__init__(first * height * width, channels, classes, layers)
        self.image_shape, self.kernel_sizes = (first, height, width), tuple(kernel_sizes)
        self.padding, self.sees = padding, sees
        shapes = zip(channels, [first, *channels], kernel_sizes)
        self.weights = nn.ParameterList(torch.zeros(m, before, k, k) for m, before, k in shapes)
        seen = channels[-1] * (1 if sees == "pool" else height * width)
        self.readout = nn.Linear(seen, classes, device="meta").to_empty(device=self.mean.device)  # draws no weights

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what the readout sees of rows x (n, c h w)."""
        x = ((x - self.mean) / self.scale).unflatten(1, self.image_shape)
        for weight, layer in zip(self.weights, self.layers):
            x = layer.fn(convolve(x, weight, self.padding))
        return x.mean((2, 3)) if self.sees == "pool" else x.flatten(1)

    def extra(self) -> dict:
        """Returns what `rebuild` needs beside sizes and layers."""
        return {name: getattr(self, name) for name in ("image_shape", "kernel_sizes", "padding", "sees")}


@torch.no_grad()
def conv_network_of(
    enn: ConvENN,
    readout: LinearReadout | None = None,
    mean: torch.Tensor | None = None,
    scale: float = 1.0,
    labels: Sequence[int | str] | None = None,
) -> ExportedConvENN:
    """Returns the convolutional network for rows x as they are, where `enn` takes (x - mean)/scale as images.

    The parameters are those of `network_of`.
    """
    dims = [len(weight) for weight in enn.weights]
    network = ExportedConvENN(
        enn.image_shape, dims, enn.readout.out_features, enn.layers, enn.kernel_sizes, enn.padding, enn.sees
    ).to(enn.weights[0].dtype)
    network.labels = checked_labels(labels, enn.readout.out_features)
    if mean is not None:
        network.mean.copy_(mean)
    network.scale.fill_(scale)
    *factors, last = [enn.input_scale / math.sqrt(enn.image_shape[0]), *(1 / math.sqrt(dim) for dim in dims)]
    for ours, weight, factor, k in zip(network.weights, enn.weights, factors, enn.kernel_sizes):
        ours.copy_(weight * (factor / k))
    last /= 1 if enn.sees == "pool" else math.sqrt(enn.pixels)
    network.readout.weight.copy_(last * (enn.readout.weight if readout is None else readout.weights.T))
    network.readout.bias.copy_(torch.zeros(()) if readout is None else readout.mean)
    return network


def build_conv(
    name: str,
    image_shape: Sequence[int],
    dim: int,
    n_classes: int,
    sigma_a2: float,
    activation: Activation | str | Elementwise,
    tau0: float = 1.0,
    seed: int = 0,
    kernel_size: int = 3,
    padding: str = "zero",
    readout: str = "flatten",
    depth: int | None = None,
    match: ConvMatch | None = None,
) -> ConvDEQ | ConvENN:
    """Builds one of `CONVOLUTIONAL` for images of shape (c, h, w) and scale tau_0, float32 on the CPU.

    Parameters
    ----------
    activation : the DEQ's.
    kernel_size, padding, readout : k, "zero" or "circular", "flatten" or "pool".
    depth : number of layers of plain_conv, 2 by default.
    match : of matched_conv_enn, by default that of `matching.convolutional.match_convolution` without images.
    """
    if name not in CONVOLUTIONAL:
        raise ValueError(f"unknown convolutional model {name!r}: choose from {', '.join(CONVOLUTIONAL)}")
    if depth is not None and name not in DEPTHS:
        raise ValueError(f"the depth of {name} is not free: choose plain_conv with a depth")
    phi, common = recognise(activation), (tuple(image_shape), dim, n_classes)
    options = {"tau0": tau0, "seed": seed, "padding": padding, "readout": readout}
    if name == "conv_deq":
        return ConvDEQ(phi, *common, sigma_a2, kernel_size=kernel_size, **options)
    if name == "matched_conv_enn":
        match = match or match_convolution(phi, sigma_a2, tau0, kernel_size=kernel_size)
        return ConvENN(match.layers, match.kernel_sizes, *common, match=match, **options)
    depth = DEPTHS[name] if depth is None else depth
    if depth < 1:
        raise ValueError(f"a network needs a depth of at least 1, got {depth}")
    sigma_b = math.sqrt(1 - sigma_a2)
    layers = centred_layers([phi] * depth, sigma_b * tau0)
    return ConvENN(layers, [kernel_size] * depth, *common, input_scale=sigma_b, **options)


def matched_conv_enn(
    deq: ConvDEQ, images: torch.Tensor | np.ndarray | None = None, kernel: str = "ck", family: str = "auto"
) -> ConvENN:
    """Builds the explicit convolutional network that may stand in for a convolutional DEQ.

    It has the DEQ's number of channels, padding, readout, seed, first weights, device and dtype.

    Parameters
    ----------
    deq : as it was drawn.
    images : (n, c, h, w), on a sample of which the exact kernels of both are compared. The distance is
        `enn.match.distance`, and one above 0.1 is warned of. Without images nothing is measured.
    kernel, family : see `matching.families.match`.

    Raises
    ------
    MatchError : the fully connected DEQ has no match of that kind.
    ValueError : the DEQ was trained, or the images are not of its shape.
    """
    if not isinstance(deq, ConvDEQ) or not deq.as_drawn():
        raise ValueError(
            f"{type(deq).__name__} is not a ConvDEQ with the forward of that class and the weights that its seed "
            "draws, and no theory says what replaces another"
        )
    images = None if images is None else as_tensor(images)
    if images is not None and images.shape[1:] != deq.image_shape:
        raise ValueError(f"the DEQ takes images of shape {deq.image_shape}, got {tuple(images.shape[1:])}")
    match = match_convolution(
        deq.activation, deq.sigma_a2, deq.tau0, kernel, family, deq.kernel_size, deq.padding, deq.sees, images
    )
    if warning := match.warning():
        warnings.warn(warning, stacklevel=2)
    enn = ConvENN(
        match.layers,
        match.kernel_sizes,
        deq.image_shape,
        len(deq.B),
        deq.readout.out_features,
        deq.tau0,
        seed=deq.seed,
        padding=deq.padding,
        readout=deq.sees,
        match=match,
    ).to(deq.B)
    with torch.no_grad():
        enn.weights[0].copy_(deq.B)
    return enn
