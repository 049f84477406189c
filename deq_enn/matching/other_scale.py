"""A DEQ may see data of another scale than the one it is centred at; this file adapts its match to that.

phi = f - E[f(tau_* xi)] has a fixed constant. Where tau_* was computed at another tau_0 than that of the data, phi has
a mean m there, and the kernel has a part of low rank beside the four coefficients:

    G_ij = c2 (kappa + chi_i)(kappa + chi_j) + c1 S_ij + c3 S_ij^2,      chi_i = |x_i|^2 - tau_0^2,

with kappa = m/m', m' = d m/d|x|^2. The mean of phi is m + m' chi_i for sample i. It passes the weights again and again
as chi does in Theorem 1, and is divided by the same 1 - sigma_a^2 E[phi']^2. In a centred match at the data's tau_0,
layer l has the mean m_l' chi_i with m_l' = E[sigma_l'']/2 prod_{k<l} E[(sigma_k^2)'']/2. So a constant kappa m_l' on
each layer makes the same low-rank part, in the conjugate and in the tangent kernel.

This holds to first order in G_ij/G_ii = rho_0, the correlation of two orthogonal samples, which is not small. Therefore
kappa is taken from the exact kernel, and the last constant makes G_ij of orthogonal samples exact. The remaining error
was measured on a mixture and on features with spread norms, at sigma_a^2 = 0.2 and 0.5, 2 and 10 times the DEQ's tau_0.
The relative spectral error is 1e-4 to 0.08, where the centred match alone has 0.2 to 1. With rows and columns centred,
which leaves out the constant part, it is below 0.025 for the conjugate kernel of relu, elu, selu, softplus and sigmoid,
and up to 0.2 for swish, gelu and mish above their tau_0. A kernel is refused if its entries would be off by more than a
tenth of the diagonal, as those of the tangent kernels of gelu and mish at 0.5 and 2 times tau_0 would be.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Shifted
from deq_enn.theory.gaussian import gaussian_moments

_TOLERANCE = 0.1  # error of an entry relative to the diagonal, above which a kernel is refused


def layers_at_scale(
    layers: Sequence[Activation],
    activation: Activation,
    sigma_a2: float,
    tau0: float,
    centred_at: float,
    kernel: str = "ck",
) -> tuple[Activation, ...]:
    """Returns the layers of a centred match, with constants that make them match a DEQ centred at another scale.

    Parameters
    ----------
    layers : of the match at the data's scale `tau0`.
    activation, sigma_a2 : of the DEQ.
    centred_at : the tau_0 that the DEQ was built with.
    kernel : "ck" or "ntk", of which `layers` are the match.

    Raises
    ------
    ValueError : no constants bring the kernels together; says what to do instead.
    """
    # orthogonal samples of squared norms tau_0^2 (1 + h) and tau_0^2, and two that are neither
    h = 1e-4
    points = tau0 * torch.diag(torch.tensor([1 + h, 1 - h, 1.0, 1.0], dtype=torch.float64).sqrt())
    ck, ntk = implicit_kernels(points, activation, sigma_a2, tau0=centred_at)
    constant, slope = ck[2, 3].item(), (ck[0, 2] - ck[1, 2]).item() / (2 * h * tau0**2)
    if abs(constant) < 1e-12 * ck[2, 2].item():
        return tuple(layers)
    remedy = (
        f"the data have tau_0 = {tau0:.6g}, the DEQ is centred at {centred_at:.6g}, and no explicit network has "
        f"its kernel there. Build the DEQ with tau0={tau0:.6g}, or give it the data times "
        f"{centred_at / tau0:.6g}"
    )
    if not abs(slope) * tau0**2 > 1e-3 * abs(constant):
        raise ValueError(remedy)
    shifted, tau, response = [], tau0, 1.0
    for layer in layers:
        m = gaussian_moments(layer, tau)
        shifted.append(_plus(layer, constant / slope * m.d2 / 2 * response))
        tau, response = math.sqrt(m.variance), response * m.sq_dd / 2
    index = ("ck", "ntk").index(kernel)
    own = explicit_kernels(points, shifted)[index][2, 3].item()
    scale = tau0 if len(layers) == 1 else math.sqrt(explicit_kernels(points, shifted[:-1])[0][2, 2].item())
    mean = gaussian_moments(shifted[-1], scale).mean
    rest = (ck, ntk)[index][2, 3].item() - own + mean**2  # the square of the mean that the last layer has to have
    if rest < 0:
        raise ValueError(remedy)
    shifted[-1] = _plus(shifted[-1], math.copysign(math.sqrt(rest), mean) - mean)
    probe = tau0 * torch.tensor([[1.0, 0], [0, 1.1], [0.2, 0.8]], dtype=torch.float64)
    exact = implicit_kernels(probe, activation, sigma_a2, tau0=centred_at)[index]
    if (explicit_kernels(probe, shifted)[index] - exact).abs().max() > _TOLERANCE * exact.diagonal().mean():
        raise ValueError(remedy)
    return tuple(shifted)


def _plus(layer, constant):
    return replace(layer, fn=Shifted(layer.fn, constant))
