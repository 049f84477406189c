"""Every kernel here is described by four scalars, which this file computes from an activation's moments.

On high-dimensional Gaussian-mixture data each of the kernels here is, up to O(n^{-1/2}) in spectral norm,

    M = c1 S + V C V^T + (diag - tau_0^2 c1) I,   V = [J/sqrt(p), psi],   C = [[c2 t t^T + c3 T, c2 t], [c2 t^T, c2]]

with S = X X^T: Theorem 1 (implicit CK), Theorem 2 (implicit NTK) and Theorem 3 (explicit CK) of Ling et al., ICML
2024; the explicit NTK follows in the same way. Entry by entry off the diagonal, M_ij = c1 S_ij + c2 chi_i chi_j +
c3 S_ij^2 with chi_i = |x_i|^2 - tau_0^2. The matrix itself is made in `mixture.py`.

Some printed formulas are wrong. This file has what holds instead (docs/corrections.md), and for each of them
tests/theory/test_coefficients.py shows that the printed variant fails.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import check_stable, get_tau, jump_places
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.theory.recognise import recognise


@dataclass(frozen=True)
class KernelCoefficients:
    """Four scalars describe a kernel.

    A CK has (gamma^2, alpha_1, alpha_2, alpha_3), an NTK (kappa^2, beta_1, beta_2, beta_3).
    """

    diag: float
    c1: float
    c2: float
    c3: float


class MatchError(ValueError):
    """No explicit network of a family has the coefficients asked for; the message has the condition and its failure."""


def implicit_ck(activation: Activation | str | Elementwise, sigma_a2: float, tau0: float = 1.0) -> KernelCoefficients:
    """Returns the conjugate kernel of z = phi(sigma_a A z + sigma_b B x)/sqrt(m), phi centred at tau_* (Theorem 1).

    The activation is an `Activation`, a name of the registry or a torch function, here and in the functions below.
    alpha_2 goes with the square of alpha_4 (the slides have the first power).
    Raises ValueError where tau_* does not exist or is not stable, or the DEQ has no stable equilibrium
    (`equilibrium.check_stable`), which an activation with a jump never has.
    """
    return _implicit(activation, sigma_a2, tau0)[0]


def implicit_ntk(
    activation: Activation | str | Elementwise, sigma_a2: float, tau0: float = 1.0, trained: str = "aAB"
) -> KernelCoefficients:
    """Returns the tangent kernel of the DEQ with a and A trained ("aA", Theorem 2), or B as well ("aAB").

    kappa^2 has gamma^2 where the slides have tau_*^2, and the cross term of beta_3 is beta_1 sigma_a^2 d2^2 L.
    """
    if trained not in ("aA", "aAB"):
        raise ValueError(f"trained must be 'aA' or 'aAB', got {trained!r}")
    ck, moments = _implicit(activation, sigma_a2, tau0)
    sigma_b2, d1, d2 = 1 - sigma_a2, moments.d1, moments.d2
    D = 1 - sigma_a2 * d1**2
    L = sigma_b2 / D
    slack = 1 - sigma_a2 * moments.d1_sq  # positive: the equilibrium is stable
    kappa2 = ck.diag / slack
    b1, b2 = ck.c1 / D, ck.c2 / D
    if trained == "aAB":
        kappa2 += sigma_b2 * tau0**2 * moments.d1_sq / slack
        b1 += sigma_b2 * d1**2 / D
    # G_dot_ij = d1^2 + d2^2 L S_ij: the second-order term that the factor 1/(1 - sigma_a^2 G_dot) adds
    b3 = (ck.c3 + b1 * sigma_a2 * d2**2 * L) / D
    if trained == "aAB":
        b3 += sigma_b2 * d2**2 * L / D
    return KernelCoefficients(kappa2, b1, b2, b3)


def _implicit(activation, sigma_a2, tau0):
    activation = recognise(activation)
    moments = gaussian_moments(activation, get_tau(activation, sigma_a2, tau0))
    sigma_b2, d1, d2 = 1 - sigma_a2, moments.d1, moments.d2
    D = 1 - sigma_a2 * d1**2
    check_stable(activation, sigma_a2, moments.d1_sq, moments.jumps)
    growth = sigma_a2 * moments.sq_dd / 2
    if growth >= 1:  # (D > 0 wherever tau_* exists, by Cauchy-Schwarz)
        raise ValueError(
            f"the conjugate kernel of {activation.name} at sigma_a^2 = {sigma_a2:g} has no stable fixed "
            f"point: sigma_a^2 E[(phi^2)'']/2 = {growth:.4g} must be below 1"
        )
    a1 = sigma_b2 * d1**2 / D
    a4 = sigma_b2 / (1 - growth)
    L = sigma_b2 / D  # Lambda_ij = L S_ij to first order
    return KernelCoefficients(moments.variance, a1, d2**2 * a4**2 / (4 * D), d2**2 * L**2 / (2 * D)), moments


def explicit_ck(layers: Sequence[Activation | str | Elementwise], tau0: float = 1.0) -> KernelCoefficients:
    """Returns the conjugate kernel of x_l = sigma_l(W_l x_{l-1})/sqrt(m) after the last layer (Theorem 3).

    The layers are taken as given, and may have jumps. Raises ValueError for a layer whose mean at its input scale is
    not zero, because its kernel has a constant part that no four scalars describe. `deq_enn.centre`
    centres a layer.
    """
    return _explicit(layers, tau0, frozen_first=False)[0]


def explicit_ntk(
    layers: Sequence[Activation | str | Elementwise], tau0: float = 1.0, trained: str = "all"
) -> KernelCoefficients:
    """Returns the tangent kernel of the same network and its readout, all weights trained, or all but W_1.

    trained : "all", or "frozen_first" for all but W_1.

    K_l = Sigma_l + K_{l-1} * Sigma_dot_l entry by entry, from K_0 = S, or 0 with the first layer frozen. Raises
    ValueError as `explicit_ck` does, and for a layer with a jump, whose E[sigma'^2] is infinite, unless it is frozen.
    """
    if trained not in ("all", "frozen_first"):
        raise ValueError(f"trained must be 'all' or 'frozen_first', got {trained!r}")
    _, ntk, infinite = _explicit(layers, tau0, frozen_first=trained == "frozen_first")
    if infinite:
        raise ValueError(f"the tangent kernel of this network is infinite: {infinite}")
    return ntk


def _explicit(layers, tau0, frozen_first):
    if not layers:
        raise ValueError("an explicit network needs at least one layer")
    if not (tau0 > 0 and math.isfinite(tau0)):
        raise ValueError(f"tau_0 must be positive and finite, got {tau0}")
    tau = tau0
    a1, a2, a3, a4 = 1.0, 0.0, 0.0, 1.0
    b1, b2, b3, kappa2 = (0.0, 0.0, 0.0, 0.0) if frozen_first else (1.0, 0.0, 0.0, tau0**2)
    infinite = None
    for index, layer in enumerate(map(recognise, layers), 1):
        moments = gaussian_moments(layer, tau)
        if abs(moments.mean) > 1e-9 * math.sqrt(moments.variance) + 1e-13:
            raise ValueError(
                f"layer {index} ({layer.name}) is not centred at its input scale {tau:.6g}: its mean there "
                f"is {moments.mean:.3g}; centre it with deq_enn.centre"
            )
        if moments.variance <= 1e-300:
            raise ValueError(f"layer {index} ({layer.name}) is constant at its input scale {tau:.6g}")
        s, e, w = moments.d1**2, moments.d2**2, moments.sq_dd / 2
        b3 = s * b3 + b1 * e * a1
        a1, a2, a3, a4 = s * a1, s * a2 + e * a4**2 / 4, s * a3 + e * a1**2 / 2, w * a4
        b1, b2, b3 = a1 + s * b1, a2 + s * b2, a3 + b3
        if moments.jumps and kappa2:  # a frozen layer's derivative does not enter
            infinite = infinite or f"E[f'^2] of layer {index} ({layer.name}) is, {jump_places(moments.jumps)}"
        kappa2 = moments.variance + (kappa2 * moments.d1_sq if kappa2 else 0.0)
        tau = math.sqrt(moments.variance)
    return KernelCoefficients(tau**2, a1, a2, a3), KernelCoefficients(kappa2, b1, b2, b3), infinite
