"""What the grid of runs needs to know of convolutional networks: their images, their memory and their cost.

Rows are normalised to a mean squared norm of 1. A convolutional network takes images whose entries have about that mean
square, so that rows of p entries are images once they are multiplied by the root of p.
"""

import math
from argparse import Namespace
from dataclasses import replace
from typing import cast

import torch

from deq_enn.data.datasets import Dataset
from deq_enn.names import CONVOLUTIONAL, DEQS
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.conv_enn import ConvENN, build_conv, matched_conv_enn
from deq_enn.theory.activations import Activation
from deq_enn.theory.equilibrium import estimate_image_tau0
from deq_enn.training.run_files import Config

BATCH = 512  # samples whose feature maps are there at once, of `training.readout.extract_features`
MAPS = 6  # feature maps of a batch that a fixed point holds: value, step, residual, input, and two in passing


class Convolutions:
    """The images of a data set, with what the flags say of the networks that take them.

    Parameters
    ----------
    arguments : of the command line. activation : the DEQ's.
    data : rows, normalised. keep : whether the rows have to stay as they are, for other networks.

    Attributes
    ----------
    data : the same samples as images (n, c, h, w). tau0 : their scale.

    Raises
    ------
    ValueError : the rows are no images, or do not take the convolution.
    """

    def __init__(self, arguments: Namespace, activation: Activation, data: Dataset, keep: bool):
        if data.image_shape is None:
            raise ValueError(
                f"the rows of {data.name} are no images, which {named(arguments)[0]} needs: store them as "
                "(n, h, w), (n, c, h, w) or (n, h, w, c)"
            )
        self.arguments, self.activation = arguments, activation
        self.shape: tuple[int, int, int] = data.image_shape
        self.data = as_images(data, keep)
        self.tau0 = estimate_image_tau0(self.data.X_train, arguments.kernel_size, arguments.padding)
        self.readout = "pool" if arguments.pool else "flatten"
        self.match = None
        if "matched_conv_enn" in arguments.model:
            deq = cast(ConvDEQ, self.network("conv_deq", 1, 0))
            self.match = matched_conv_enn(deq, self.data.X_train, arguments.match, arguments.family).match

    def network(self, model: str, dim: int, seed: int, depth: int = 0) -> ConvDEQ | ConvENN:
        """Builds the network with its random weights; depth 0: the default."""
        a = self.arguments
        return build_conv(
            model,
            self.shape,
            dim,
            self.data.n_classes,
            a.asquare,
            self.activation,
            self.tau0,
            seed,
            a.kernel_size,
            a.padding,
            self.readout,
            depth or None,
            self.match,
        )

    def settings(self) -> dict:
        """Returns the settings of a run's Config that other networks do not have."""
        a = self.arguments
        return {"kernel_size": a.kernel_size, "padding": a.padding, "pool": bool(a.pool)}

    def _counts(self, config: Config) -> tuple[int, int, int]:
        """Returns the numbers of hidden weights beyond the first layer, of all weights, and of features."""
        m, k2, (channels, height, width) = int(config.dim), self.arguments.kernel_size**2, self.shape
        if config.model == "matched_conv_enn" and self.match is not None:
            hidden = m * m * (len(self.match.layers) - 1)
        else:
            squares = 1 if config.model in DEQS else (config.depth or 2) - 1
            hidden = m * m * k2 * squares
        features = m if self.readout == "pool" else m * height * width
        return hidden, hidden + m * channels * k2 + features * self.data.n_classes, features

    def memory(self, config: Config) -> dict[str, int]:
        """Counts the bytes that the run takes at least, by what takes them."""
        _, weights, features = self._counts(config)
        maps = int(config.dim) * math.prod(self.shape[1:]) * (MAPS if config.model in DEQS else 2)
        if config.train == "ridge":  # the sums of the two parts and of all samples, and the matrix that is factorised
            return {"weights": 4 * weights, "normal equations": 5 * 8 * features**2, "feature maps": 4 * BATCH * maps}
        if config.train == "readout":
            n = len(self.data.X_train) + len(self.data.X_test)
            return {"weights": 4 * weights, "features": 4 * n * features, "feature maps": 4 * BATCH * maps}
        return {
            "weights": 4 * weights,
            "gradients": 4 * weights,
            "optimizer": {"sgd": 0, "adam": 8}[config.opt] * weights,
            "feature maps": 4 * max(config.batch_size, BATCH) * maps,  # the test samples come in batches of BATCH
        }

    def cost(self, config: Config) -> float:
        """Estimates the multiplications of a run, as `run_cost.cost` does; only ratios matter."""
        n, pixels = len(self.data.X_train) + len(self.data.X_test), math.prod(self.shape[1:])
        hidden, _, features = self._counts(config)
        first = int(config.dim) * self.shape[0] * self.arguments.kernel_size**2
        once = n * pixels * (first + hidden * (13 if config.model in DEQS else 1))
        if config.train == "full":
            return 3 * config.epoch * once
        if config.train == "ridge":
            return once + n * features**2
        return once + 15 * config.epoch * n * features * self.data.n_classes


def named(arguments: Namespace) -> list[str]:
    """Returns the convolutional networks among those asked for."""
    return [name for name in arguments.model if name in CONVOLUTIONAL]


def as_images(data: Dataset, keep: bool = True) -> Dataset:
    """Returns normalised rows (n, p) as images (n, c, h, w) of mean squared entry 1.

    keep : whether the rows stay as they are; else the images take their place.
    """
    shape = data.image_shape
    assert shape is not None
    root = math.sqrt(data.X_train.shape[1])

    def images(X: torch.Tensor) -> torch.Tensor:
        return (X * root if keep else X.mul_(root)).view(-1, *shape)

    return replace(data, X_train=images(data.X_train), X_test=images(data.X_test))
