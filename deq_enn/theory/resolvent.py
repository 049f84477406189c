"""A DEQ's linear response, taken out of its iteration, leaves a network of few layers that converges faster.

The kernel of a convolutional DEQ obeys Lambda = sigma_a^2 M g(Lambda) + sigma_b^2 M S at each pair of pixels, with M
the mean over the window and g = E[phi(u) phi(v)] (`kernels.conv`). Where both pixels have the slope d1 = E[phi'], let
h(Lambda) = g(Lambda) - d1^2 Lambda and R = (1 - sigma_a^2 d1^2 M)^-1. Then the same equation reads

    Lambda = R M [sigma_b^2 S + sigma_a^2 h(Lambda)],

and its iteration from 0 is a network: h is the kernel of psi(x) = phi(x) - d1 x, and with circular padding R M is a
filter with positive taps. Each layer is psi(A_t * z_t + B_t * x) with fresh weights of variance sigma_a^2 R M and
sigma_b^2 R M, tap by tap, and the last is phi. It contracts, in the largest entry, by

    kappa = sigma_a^2 Var[phi'] / (1 - sigma_a^2 d1^2),      plain unrolling by      sigma_a^2 E[phi'^2].

Proof. (1) M is positive with rows that add up to 1, so |R M| <= sum_j (sigma_a^2 d1^2)^j = 1/(1 - sigma_a^2
d1^2). (2) By Price's theorem g' = E[phi'(u) phi'(v)], so |h'| = |g' - d1^2| = |Cov[phi'(u), phi'(v)]| <= Var[phi'] by
Cauchy-Schwarz, at pixels with the same d1 and at most that variance. (3) So two fields with these diagonals, put in on
the right, come out closer by sigma_a^2 |R M| sup |h'| <= kappa. For M alone and g in place of h the same three lines
give sigma_a^2 sup |g'| <= sigma_a^2 E[phi'^2]. And kappa < 1 exactly where sigma_a^2 (Var[phi'] + d1^2) =
sigma_a^2 E[phi'^2] < 1.

The first assumption is circular padding. Zeros around the image make M differ from pixel to pixel, so that R M is no
filter: on 9 x 9 pixels the network then stops at 0.4% of the DEQ's CK and 0.7% of its NTK for relu at sigma_a^2 = 0.5,
and at twice that at 0.9, where plain unrolling goes on.

The second assumption is that all pixels have the same d1. It holds for any data where f is piecewise linear with its
kink at 0, such as relu, whose slope knows no scale. For tanh pixels of different contrast differ in d1, and the
iteration converges to another kernel.

The tangent kernel. A DEQ has N = R [Lambda + sigma_a^2 M (g' - d1^2) N], T = g + g' N. The network has the taps of R M
where Lambda is added, once for each layer; the DEQ's weights, which are tied, have R^2 M. A learning rate for each tap,
(R^2 M)/(R M), mends that: each layer then adds R^2 M [sigma_b^2 S + sigma_a^2 h] = R Lambda, as it must.

For a fully connected DEQ M = 1, and R is the number 1/(1 - sigma_a^2 d1^2).
"""

from dataclasses import dataclass

import numpy as np

from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise, Shifted
from deq_enn.theory.equilibrium import check_stable, get_tau
from deq_enn.theory.gaussian import gaussian_moments


@dataclass(frozen=True)
class LessLinear:
    """This is fn(x) - slope x."""

    fn: Elementwise
    slope: float

    def __call__(self, x):
        return self.fn(x) - self.slope * x


@dataclass(frozen=True)
class LessConstant:
    """fn(x) - constant, a derivative less that of a linear part."""

    fn: Elementwise
    constant: float

    def __call__(self, x):
        return self.fn(x) - self.constant


@dataclass(frozen=True)
class ResolventNetwork:
    """These are the taps of the few-layer network, with its activations and rates.

    Attributes
    ----------
    inner, outer : psi and phi, the activations of all layers but the last, and of the last.
    hidden, injected : (k, k) variances of the taps of the filters on the state and on the image, times the root of
        their numbers of channels; sigma_a^2 R M and sigma_b^2 R M.
    rates : (k, k) learning rates of the taps relative to that of the readout, (R^2 M)/(R M); 0 where a tap is 0.
    d1 : E[phi'] at tau_*, the slope that psi lacks.
    kappa, plain : contraction of this network and of plain unrolling, for each layer.
    left_out : share of R M beyond the taps.
    """

    inner: Activation
    outer: Activation
    hidden: np.ndarray
    injected: np.ndarray
    rates: np.ndarray
    d1: float
    kappa: float
    plain: float
    left_out: float


def resolvent_network(
    activation: Activation, sigma_a2: float, tau0: float = 1.0, kernel_size: int = 3, hops: int = 6
) -> ResolventNetwork:
    """Returns the network of the resolvent of a DEQ with filters of kernel_size x kernel_size pixels.

    Parameters
    ----------
    kernel_size : odd; 1 is a fully connected DEQ.
    hops : windows that the taps reach, so that k = hops (kernel_size - 1) + 1.

    Raises
    ------
    ValueError : tau_* does not exist or the DEQ has no stable equilibrium; a window that is even, or no hops.
    """
    if kernel_size < 1 or kernel_size % 2 == 0 or hops < 1:
        raise ValueError(f"kernel_size must be odd and hops at least 1, got {kernel_size} and {hops}")
    tau = get_tau(activation, sigma_a2, tau0)
    moments = gaussian_moments(activation, tau)
    check_stable(activation, sigma_a2, moments.d1_sq, moments.jumps)
    d1, gain = moments.d1, sigma_a2 * moments.d1**2
    if kernel_size == 1:
        taps, twice = np.full((1, 1), 1 / (1 - gain)), np.full((1, 1), 1 / (1 - gain) ** 2)
    else:
        taps, twice = _series(gain, kernel_size, hops)
    outer = Activation(
        f"{activation.name}, centred", Shifted(activation.fn, -moments.mean), activation.derivative, activation.kinks,
        activation.lipschitz, activation.slopes,
    )  # fmt: skip
    inner = Activation(
        f"{activation.name} less {d1:.4g} x", LessLinear(outer.fn, d1), LessConstant(activation.derivative, d1),
        activation.kinks, activation.lipschitz + abs(d1), tuple(slope - d1 for slope in activation.slopes),
    )  # fmt: skip
    return ResolventNetwork(
        inner=inner,
        outer=outer,
        hidden=sigma_a2 * taps,
        injected=(1 - sigma_a2) * taps,
        rates=np.divide(twice, taps, out=np.zeros_like(taps), where=taps > 0),
        d1=d1,
        kappa=sigma_a2 * (moments.d1_sq - d1**2) / (1 - gain),
        plain=sigma_a2 * moments.d1_sq,
        left_out=float(1 - taps.sum() * (1 - gain)),
    )


def _series(gain, size, hops):
    """Returns the taps of R M = sum_j gain^j M^(j+1) and of R^2 M = sum_j (j + 1) gain^j M^(j+1), j < hops."""
    side = hops * (size - 1) + 1
    box, power = np.full(size, 1 / size), np.full(size, 1 / size)
    taps, twice = np.zeros((side, side)), np.zeros((side, side))
    for j in range(hops):
        line = np.pad(power, (side - len(power)) // 2)
        term = gain**j * np.outer(line, line)
        taps += term
        twice += (j + 1) * term
        power = np.convolve(power, box)
    return taps, twice
