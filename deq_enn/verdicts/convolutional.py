"""A verdict on a convolutional DEQ at initialisation compares it with its match and with plain convolutions.

It is `at_initialisation`'s, with images in place of rows. The candidates are the fully connected matches, in either
kernel, as convolutions (`matching.convolutional`), and one to three plain convolutional layers. Two things differ. No
assumption of the theory is checked, since its mixtures are of rows; the exact kernels say on these images what the
matches are worth. And the intervals of the losses have constants that were calibrated on fully connected DEQs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from deq_enn.matching.families import match
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.conv_enn import ConvENN, conv_network_of
from deq_enn.networks.export import ExportedENN
from deq_enn.theory.coefficients import MatchError
from deq_enn.theory.equilibrium import estimate_image_tau0
from deq_enn.utils.deadline import OutOfTime
from deq_enn.verdicts.assumptions import check_data, tensor_of
from deq_enn.verdicts.at_initialisation import VerdictAtInitialisation
from deq_enn.verdicts.candidates import NO_TIME, Fitting, Network, plain_networks
from deq_enn.verdicts.losses.measurements import SOLVER, Measurements
from deq_enn.verdicts.losses.work import STEP
from deq_enn.verdicts.result import Candidate, Verdict

CALIBRATED = (
    "The intervals of the losses have constants that were calibrated on fully connected DEQs, and were checked on a "
    "few small convolutional ones."
)


@dataclass(frozen=True)
class ConvCandidate(Network):
    """This is an explicit convolutional network of any number of channels.

    kernel_sizes : k of each layer. like : the DEQ whose images, padding and readout it has.
    """

    kernel_sizes: tuple[int, ...] = ()
    like: ConvDEQ | None = None

    def build(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, p: int, width: int, classes: int, seed: int = 0
    ) -> ConvENN:
        """Builds the network. Its first-layer weights are those of the DEQ of the same seed. p : not used."""
        deq = cast(ConvDEQ, self.like)
        return ConvENN(
            self.layers,
            self.kernel_sizes,
            deq.image_shape,
            width,
            classes,
            self.tau0,
            self.input_scale,
            seed,
            deq.padding,
            deq.sees,
        )

    def work(self, p: int, width: int) -> int:
        """Returns how many multiplications the feature maps of one image take. p : not used."""
        channels, height, columns = cast(ConvDEQ, self.like).image_shape
        first, *others = (k * k for k in self.kernel_sizes)
        return height * columns * width * (first * channels + sum(others) * width)


def wider(deq: ConvDEQ, width: int, classes: int, seed: int = 0, **options: Any) -> ConvDEQ:
    """Returns a DEQ of another number of channels and seed, else like this one."""
    return ConvDEQ(
        deq.activation,
        deq.image_shape,
        width,
        classes,
        deq.sigma_a2,
        deq.tau0,
        seed,
        deq.kernel_size,
        deq.padding,
        deq.sees,
        **options,
    )


def conv_networks(deq: ConvDEQ) -> tuple[list[ConvCandidate], dict[str, str]]:
    """Returns every network that may replace `deq`, and why a match in one of the kernels is not among them."""
    networks, refused, k = [], {}, deq.kernel_size
    for kernel in ("ck", "ntk"):
        try:
            dense = match(deq.activation, deq.sigma_a2, deq.tau0, kernel)
        except (MatchError, OutOfTime) as error:
            refused[f"{kernel} auto"] = NO_TIME if isinstance(error, OutOfTime) else str(error)
            continue
        sizes = (k, *[1] * (len(dense.layers) - 1))
        name = f"matched {kernel}: {' '.join(f'{k}x{k}' for k in sizes)} {dense.family}"
        layers = tuple(dense.layers)
        networks.append(ConvCandidate(name, "matched", kernel, dense.family, layers, 1.0, deq.tau0, dense, sizes, deq))
    for plain in plain_networks(deq.activation, deq.sigma_a2, deq.tau0):
        sizes = (k,) * plain.depth
        name = f"plain, {plain.depth} of {k}x{k}"
        networks.append(
            ConvCandidate(name, "plain", None, None, plain.layers, plain.input_scale, deq.tau0, None, sizes, deq)
        )
    # the match in the tangent kernel is piecewise linear with several kinks, whose kernels take longest: it comes last
    return sorted(networks, key=lambda network: network.kernel == "ntk"), refused


class ConvMeasurements(Measurements):
    """The passes are made with convolutional networks, whose features and work grow with the pixels."""

    @property
    def _like(self) -> ConvDEQ:
        return cast(ConvDEQ, self.deq)

    def draw(self, width: int, seed: int) -> ConvDEQ:
        """Returns the DEQ of this number of channels with the weights of this seed."""
        return wider(self._like, width, self.classes, seed, solver=SOLVER)

    def _features_of(self, width):
        return width * (self._like.pixels if self._like.sees == "flatten" else 1)

    def _work_of_sample(self, name: str, width: int, steps: float) -> float:
        deq, k2 = self._like, self._like.kernel_size**2
        taps = steps * k2
        if name != "deq":
            sizes = cast(ConvCandidate, self._network(name)).kernel_sizes[1:]
            steps, taps = len(sizes), sum(k * k for k in sizes)
        return deq.pixels * width * (deq.image_shape[0] * k2 + taps * width + STEP * (1 + steps))


class VerdictOnConvolutions(VerdictAtInitialisation):
    """This is a verdict on a convolutional DEQ in the making; samples are images (n, c, h, w)."""

    measured_by = ConvMeasurements

    def _checked(self, deq: ConvDEQ, X: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor | None, int | None]:
        X = tensor_of(X, "X")
        if X.ndim != 4 or X.shape[1:] != deq.image_shape:
            shape = ", ".join(map(str, deq.image_shape))
            raise ValueError(f"X must be images (n, {shape}), as the DEQ takes them, got {tuple(X.shape)}")
        rows, y, classes = check_data(X.flatten(1), y, math.prod(deq.image_shape))
        return rows.view(-1, *deq.image_shape), y, classes

    def _applicability(self, rows: torch.Tensor) -> dict:
        deq = cast(ConvDEQ, self.deq)
        self.tau0 = estimate_image_tau0(self.X, deq.kernel_size, deq.padding)
        self.settings |= {"tau0_of_images": self.tau0, **deq.describe()}
        return {}

    def _networks(self) -> tuple[list[Any], dict[str, str]]:
        return conv_networks(cast(ConvDEQ, self.deq))

    def _wider(self, width: int) -> ConvDEQ:
        return wider(cast(ConvDEQ, self.deq), width, self.classes or 2).to(self.deq.B)

    def conclude(self) -> Verdict:
        """Returns the verdict on what has been measured so far."""
        verdict = super().conclude()
        verdict.deq.pop("fluctuation")  # those of fully connected networks
        for candidate in verdict.candidates:
            candidate.fluctuation = None
        if any(candidate.loss is not None for candidate in verdict.candidates):
            verdict.reason.append(CALIBRATED)
        return verdict

    def _fitting(self, chosen: Candidate) -> "ConvFitting":
        return ConvFitting(**vars(super()._fitting(chosen)))


class ConvFitting(Fitting):
    """This is the chosen convolutional network, which is fitted when it is asked for."""

    def exported(
        self, mean: torch.Tensor | None = None, scale: float = 1.0, labels: Sequence[Any] | None = None
    ) -> ExportedENN:
        """Returns the fitted network for images as rows, of which the DEQ takes (x - mean)/scale."""
        enn, readout = self.fit()
        return conv_network_of(cast(ConvENN, enn), readout, mean, scale, labels)
