"""A convolutional DEQ on images has a match of which only a part is proved; the rest is measured on the images.

At infinite width its kernel obeys Lambda = sigma_a^2 M G + sigma_b^2 M S, pixel by pixel (`networks.conv_deq`). Where
the pixels of different images are nearly orthogonal and all of one norm, its mean over the pixels has the four scalars
of the *fully connected* DEQ: the convolution enters the quadratic terms alone, through normalised filters. So the
network that follows is the fully connected match, its first layer as a convolution, its others as 1 x 1 convolutions.

Pixels of photographs are not like that. Yet the match holds there for another reason. Four scalars fix the whole
function g(rho) of two correlated inputs of norm tau_0 (to 0.001 for relu and tanh), and for a positively homogeneous
activation at sigma_a^2 <= 0.5 at any other norm too. What is left is that a match answers to the norm of a pixel
otherwise than its DEQ does: much for tanh, and more as sigma_a^2 approaches 1. So `match_convolution` computes the
exact kernels of both on a sample of the images, and says how far apart they are.
"""

import math
from dataclasses import dataclass

import torch

from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_kernels
from deq_enn.kernels.distance import relative_error
from deq_enn.matching.families import Match, match
from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import check_window
from deq_enn.theory.recognise import recognise

FAR = 0.1  # distance above which a match is warned of
SAMPLE = 40  # images at most on which the distance is measured
# images at most where a layer, or the DEQ's activation, has no closed form: its pairs are computed pixel by pixel
SMOOTH_SAMPLE = 16
FEWEST = 6  # images at least
WORK = SAMPLE**2 * 28**2  # pairs of pixels that the sample may have at most, by which it is smaller for large images


@dataclass(frozen=True)
class ConvMatch(Match):
    """A match as convolutions, with its distance from the convolutional DEQ on the images that it was given.

    kernel_sizes : k of each layer.
    distance : |K_DEQ - K|/|K_DEQ| in spectral norm of the exact kernels at infinite width, on `sample` images; None
        where there were no images.
    measured : "flatten" or "pool", the readout of those kernels. Pooled ones of layers without a closed form take
        minutes, and are measured flattened.
    distance_of_correlations : the same of K_ij/sqrt(K_ii K_jj), which does not see how either answers to the norm of an
        image as a whole.
    """

    kernel_sizes: tuple[int, ...] = ()
    distance: float | None = None
    distance_of_correlations: float | None = None
    sample: int = 0
    measured: str = ""
    activation: str = ""
    sigma_a2: float = 0.0

    def warning(self) -> str | None:
        """Returns what fails, in one line, where the distance is above `FAR`; None elsewhere."""
        if self.distance is None or self.distance_of_correlations is None or self.distance <= FAR:
            return None
        norms = self.distance_of_correlations < self.distance / 2
        reason = (
            "it answers otherwise to the norm of a pixel"
            if norms
            else "it answers otherwise to the norm of a pixel, which changes the correlations too"
        )
        near = f", and sigma_a^2 = {self.sigma_a2:g} is near 1" if self.sigma_a2 >= 0.8 else ""
        return (
            f"the match of the convolutional DEQ of {self.activation} is {self.distance:.2g} away from its "
            f"{self.kernel.upper()} on {self.sample} of these images ({self.distance_of_correlations:.2g} between "
            f"correlations), which is above {FAR:g}: {reason}{near}. Do not take the one for the other: measure it "
            "beside plain_conv, or take a smaller sigma_a^2"
        )


def match_convolution(
    activation: Activation | str | Elementwise,
    sigma_a2: float,
    tau0: float = 1.0,
    kernel: str = "ck",
    family: str = "auto",
    kernel_size: int = 3,
    padding: str = "zero",
    readout: str = "flatten",
    images: torch.Tensor | None = None,
) -> ConvMatch:
    """Finds the layers of the fully connected match, and measures them as convolutions where there are images.

    Parameters
    ----------
    activation, sigma_a2 : of the DEQ. tau0 : scale of the images (`theory.equilibrium.estimate_image_tau0`).
    kernel, family : see `matching.families.match`.
    kernel_size, padding, readout : of the DEQ's convolution and readout.
    images : (n, c, h, w). A sample of them, spread evenly, is what the distance is measured on.

    Raises
    ------
    MatchError : the fully connected DEQ has no match of that kind.
    ValueError : the images do not take such a convolution, or are not finite.
    """
    activation = recognise(activation)
    dense = match(activation, sigma_a2, tau0, kernel, family)
    sizes = (kernel_size, *[1] * (len(dense.layers) - 1))
    values = vars(dense) | {"kernel_sizes": sizes, "activation": activation.name, "sigma_a2": sigma_a2}
    if images is None:
        return ConvMatch(**values)
    closed = all(f.slopes and f.kinks in ((), (0.0,)) for f in (activation, *dense.layers))
    measured = readout if closed else "flatten"
    images = sample_of(images, measured, SAMPLE if closed else min(SAMPLE, SMOOTH_SAMPLE))
    check_window(images.shape[1:], kernel_size, padding)
    which = kernel == "ntk"
    wanted = conv_kernels(images, activation, sigma_a2, kernel_size, padding, measured, tau0=tau0)[which]
    own = conv_explicit_kernels(images, dense.layers, sizes, padding, measured)[which]
    return ConvMatch(
        **values,
        distance=relative_error(wanted, own),
        distance_of_correlations=relative_error(correlations(wanted), correlations(own)),
        sample=len(images),
        measured=measured,
    )


def sample_of(images: torch.Tensor, readout: str, size: int) -> torch.Tensor:
    """Returns at most `size` images spread evenly over those given, so few that their kernel takes seconds."""
    if images.ndim != 4:
        raise ValueError(f"images must have the shape (n, channels, height, width), got {tuple(images.shape)}")
    pixels = math.prod(images.shape[2:]) ** (2 if readout == "pool" else 1)
    most = min(len(images), size, max(FEWEST, math.isqrt(WORK // pixels)))
    return images[torch.linspace(0, len(images) - 1, most).round().long()].detach()


def correlations(kernel: torch.Tensor) -> torch.Tensor:
    """Returns the kernel scaled to a diagonal of 1, 0 at samples whose diagonal is 0."""
    root = kernel.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(root > 0, 1 / root, 0)
    return kernel * inverse * inverse[:, None]
