"""The convolutional deep equilibrium model takes images x (n, c, h, w) to feature maps z (n, m, h, w).

    z = phi(sigma_a A * z + sigma_b B * x/sqrt(c)) / sqrt(m),     * a k x k convolution divided by k

with entries of A (m, m, k, k) and B (m, c, k, k) all N(0, 1), and phi centred at tau_*, as in `deq.DEQ`. So the
pre-activation at a pixel has at infinite width the variance sigma_a^2 M G + sigma_b^2 M S, where M is the mean over the
k x k window (`theory.equilibrium`) and S(p) = x_i(p).x_j(p)/c. An image's entries are of order tau_0, and not its norm.

The readout sees every pixel, divided by the root of their number ("flatten"), or the mean over the pixels ("pool").
With images of a single pixel, k = 1 and x/sqrt(c) for rows this is the fully connected DEQ, weight by weight.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import conv2d

from deq_enn.names import READOUTS
from deq_enn.networks.deq import explained, finite_or_nan
from deq_enn.networks.enn import named_scalars
from deq_enn.networks.fixed_point import ConvergenceError, FixedPoint, Picard, Solver
from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import implicit_ck
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import check_window, get_tau
from deq_enn.theory.gaussian import centre
from deq_enn.theory.recognise import recognise
from deq_enn.utils.random import drawn_from, drawn_readout, normal_weights


class ConvNetwork(nn.Module):
    """A convolutional network has images of one shape, feature maps of their size, and a linear readout of these.

    Parameters
    ----------
    image_shape : (c, h, w). dim : m, the number of channels. n_classes : of outputs.
    tau0 : scale of the images, `theory.equilibrium.estimate_image_tau0`.
    seed : of the weights.
    kernel_size, padding : k, odd; "zero" or "circular".
    readout : "flatten" or "pool", what the linear readout sees; kept as `sees`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        dim: int,
        n_classes: int,
        tau0: float,
        seed: int,
        kernel_size: int,
        padding: str,
        readout: str,
    ):
        super().__init__()
        check_window(image_shape, kernel_size, padding)
        if readout not in READOUTS:
            raise ValueError(f"readout must be {' or '.join(READOUTS)}, got {readout!r}")
        self.image_shape, self.tau0, self.seed = tuple(image_shape), tau0, seed
        self.kernel_size, self.padding, self.sees = kernel_size, padding, readout
        self.pixels = math.prod(self.image_shape[1:])
        self.readout = drawn_readout(dim * self.pixels if readout == "flatten" else dim, n_classes, seed)

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the last feature maps (n, m, h, w) of images x (n, c, h, w)."""
        raise NotImplementedError

    def describe(self) -> dict:
        """Returns what is printed and logged of the network."""
        return {
            "image_shape": list(self.image_shape),
            "kernel_size": self.kernel_size,
            "padding": self.padding,
            "readout": self.sees,
        }

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what the readout sees of images x (n, c, h, w): (n, m h w) or (n, m)."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"this network takes images of shape {'x'.join(map(str, self.image_shape))}, "
                f"got {'x'.join(map(str, x.shape[1:]))}"
            )
        z = self.maps(x)
        return z.mean((2, 3)) if self.sees == "pool" else z.flatten(1) / math.sqrt(self.pixels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits (n, n_classes) of images x (n, c, h, w)."""
        return self.readout(self.features(x))


class ConvDEQ(ConvNetwork):
    """Convolutional deep equilibrium model; its feature maps are the fixed point, differentiated implicitly.

    Parameters that are not listed are those of `ConvNetwork`.

    Parameters
    ----------
    activation : an Activation, a name of the registry or a torch function; the module centres it at tau_*.
    sigma_a2 : weight variance, which with tau0 fixes tau_*.

    Attributes
    ----------
    tau : tau_*.
    coefficients : of the conjugate kernel of the fully connected DEQ. They are those of this one on images of many
        channels, whose pixels are nearly orthogonal and of one norm.
    fixed_point : solver and iteration counts of the last call.
    """

    def __init__(
        self,
        activation: Activation | str | Elementwise,
        image_shape: Sequence[int],
        dim: int,
        n_classes: int,
        sigma_a2: float,
        tau0: float = 1.0,
        seed: int = 0,
        kernel_size: int = 3,
        padding: str = "zero",
        readout: str = "flatten",
        solver: Solver = Picard(),
    ):
        super().__init__(image_shape, dim, n_classes, tau0, seed, kernel_size, padding, readout)
        activation = recognise(activation)
        self.activation, self.sigma_a2 = activation, sigma_a2
        self.tau = get_tau(activation, sigma_a2, tau0)
        self.phi = centre(activation, self.tau)
        self.coefficients = implicit_ck(activation, sigma_a2, tau0)
        self.fixed_point = FixedPoint(solver)
        self.A = normal_weights(dim, dim, kernel_size, kernel_size, seed=(seed, "A"))
        self.B = normal_weights(dim, self.image_shape[0], kernel_size, kernel_size, seed=(seed, "first"))

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the equilibrium z (n, m, h, w) of images x (n, c, h, w)."""
        # in v = sqrt(m) z, as `deq.DEQ`
        root, channels = math.sqrt(len(self.A)), x.shape[1]
        u = convolve(x, self.B * (math.sqrt((1 - self.sigma_a2) / channels) / self.kernel_size), self.padding)
        u = finite_or_nan(u)
        A = self.A * (math.sqrt(self.sigma_a2) / root / self.kernel_size)
        try:
            return self.fixed_point(self._step, self.phi.fn(u), A, u) / root
        except ConvergenceError as error:
            advice = f"; take a smaller sigma_a^2 (--asquare, now {self.sigma_a2:g})"
            raise explained(error, x.flatten(1), advice) from None

    def _step(self, v: torch.Tensor, A: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.phi.fn(convolve(v, A, self.padding) + u)

    def as_drawn(self) -> bool:
        """Tells whether A and B are those that the seed draws, and it does what this class does with them.

        It does not where something stops it before its equilibrium, and where a subclass, a hook or an attribute
        changes what `forward` returns.
        """
        methods = "forward", "features", "maps", "_step"
        changed = any(getattr(type(self), name) is not getattr(ConvDEQ, name) for name in methods)
        if changed or {*methods} & vars(self).keys() or self._forward_hooks or self._forward_pre_hooks:
            return False
        return isinstance(self.fixed_point, FixedPoint) and drawn_from(self.seed, {"A": self.A, "first": self.B})

    def describe(self) -> dict:
        """Returns the scalars of the theory, as they are printed and logged."""
        return {
            "activation": self.activation.name,
            "tau0": self.tau0,
            "tau": self.tau,
            **named_scalars(self.coefficients),
            **super().describe(),
        }


def convolve(x: torch.Tensor, weight: torch.Tensor, padding: str) -> torch.Tensor:
    """Returns the convolution (n, m, h, w) of feature maps x (n, c, h, w) with a weight (m, c, k, k), k odd."""
    half = weight.shape[-1] // 2
    if padding == "circular" and half:  # not by functional.pad, which writes into an empty tensor: vmap refuses that
        x = torch.cat([x[..., -half:], x, x[..., :half]], 3)
        x = torch.cat([x[:, :, -half:], x, x[:, :, :half]], 2)
        half = 0
    return conv2d(x, weight, padding=half)
