"""The kernels of a network of finite width m differ from their limit; this file says by how much, to leading order.

A matched network and its DEQ have the same kernel at m = infinity. At width m each has an error of its own, whose
square falls like 1/m. `fluctuation` and `implicit_fluctuation` return the factors of 1/m.
"""

import math
from collections.abc import Sequence
from typing import Any

from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import implicit_ck
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.gaussian import expectation, expectations, gaussian_moments


def fluctuation(layers: Sequence[Activation], tau0: float = 1.0, trained: str = "all") -> tuple[float, float]:
    """Returns m E[(K^_ij - K_ij)^2]/K_ii^2 at width m to leading order in 1/m, for i != j and for i = j.

    Parameters
    ----------
    trained : "readout" for the conjugate kernel, "all" or "frozen_first" for the tangent kernel.

    Notes
    -----
    The inputs have norm tau_0 and are orthogonal where i != j, as high-dimensional data nearly are; the weights are
    Gaussian. Given the layer before, a Gram entry is a mean over m independent units, and its noise is carried on to
    first order. Off the diagonal only the noise of the forward Gram matrices survives, sum_l (v_l tau_l^2 prod_{k>l}
    E[sigma_k']^2)^2 with v_l = 1 for the conjugate kernel and L-l+1 for the tangent kernel. So a nearly linear first
    layer is best. On the diagonal fourth moments enter. tests/theory/test_finite_width.py compares both with sampled
    networks.
    """
    if trained not in ("readout", "all", "frozen_first"):
        raise ValueError(f"trained must be 'readout', 'all' or 'frozen_first', got {trained!r}")
    columns, tau = [], tau0
    for layer in layers:
        m = gaussian_moments(layer, tau)
        kinks = [k / tau for k in layer.kinks]

        def integrands(xi):
            f, g = (layer.fn(tau * xi) - m.mean) / (tau * m.d1), layer.derivative(tau * xi) / m.d1
            return g**2 * (xi**2 - 1) / 2, f**4, (f * g) ** 2, g**4

        moments = m.variance / (tau * m.d1) ** 2, m.d1_sq / m.d1**2, m.sq_dd / 2 / m.d1**2
        columns.append((*moments, *expectations(integrands, kinks)))
        tau = math.sqrt(m.variance)
    return propagate(columns, trained)


def implicit_fluctuation(activation: Activation, sigma_a2: float, tau0: float = 1.0) -> tuple[float, float]:
    """Returns the same two numbers of a DEQ's conjugate kernel.

    They are to be compared with `fluctuation(layers, tau0, "readout")` of the network that matches it.

    Raises ValueError where the DEQ has no kernel, as `coefficients.implicit_ck`.

    Notes
    -----
    The two inputs are orthogonal and of norm tau_0. Write F(Lambda) for E[phi(u) phi(v)] at the covariance Lambda of
    (u, v). Given the products of A with the other equilibria, a unit's pre-activations are to leading order Gaussian
    with the covariance Lambda^ = sigma_a^2 G^ + sigma_b^2 S of the network itself, and G^ is a mean over m such units:

        G^ = F(sigma_a^2 G^ + sigma_b^2 S) + noise,      so  G^ - G = noise/(1 - sigma_a^2 F') to first order.

    Off the diagonal m E[noise^2] = gamma^4 and F' = E[phi']^2; on it m E[noise^2] = E[phi^4] - gamma^4 and F' =
    E[(phi^2)'']/2 (and E[phi^2] = gamma^2):

        off = 1/(1 - sigma_a^2 E[phi']^2)^2,    on = (E[phi^4]/gamma^4 - 1)/(1 - sigma_a^2 E[(phi^2)'']/2)^2.

    An explicit network's noise passes each layer once. The DEQ's noise comes back to its layer, which makes it larger
    where sigma_a^2 F' > 0. tests/theory/test_finite_width.py compares both with sampled DEQs.
    """
    diag = implicit_ck(activation, sigma_a2, tau0).diag
    tau = get_tau(activation, sigma_a2, tau0)
    m = gaussian_moments(activation, tau)
    fourth = expectation(lambda xi: (activation.fn(tau * xi) - m.mean) ** 4, [k / tau for k in activation.kinks])
    return 1 / (1 - sigma_a2 * m.d1**2) ** 2, (fourth / diag**2 - 1) / (1 - sigma_a2 * m.sq_dd / 2) ** 2


def propagate(layers: Sequence[Sequence[Any]], trained: str) -> tuple[Any, Any]:
    """Returns `fluctuation` from (N, mu, w, nu, f4, f2g2, g4) of each layer: floats, or arrays over networks.

    With f = sigma/(tau E[sigma']) and g = sigma'/E[sigma'] the seven are E[f^2], E[g^2], E[(f^2)'']/2, E[(g^2)'']/2,
    E[f^4], E[f^2 g^2], E[g^4].
    """
    tangent = trained != "readout"
    scales, kappas = [1.0], [1.0 if trained == "all" else 0.0]  # tau_l^2, kappa_l^2 in units where E[sigma'] = 1
    for N, mu, *_ in layers:
        scales.append(scales[-1] * N)
        kappas.append(scales[-1] + kappas[-1] * mu if tangent else scales[-1])
    off = on = 0.0
    forward, backward, depth = 1.0, 1.0, len(layers)  # dK/d|x_l|^2 and the squared norm of dK's backward signal
    for l in range(depth, 0, -1):
        N, mu, w, nu, f4, f2g2, g4 = layers[l - 1]
        scale = scales[l - 1]
        off = off + ((depth - l + 1 if tangent else 1) * scales[l]) ** 2
        gain = kappas[l - 1] * backward if tangent else 0.0
        on = on + (
            (forward * scale) ** 2 * (f4 - N**2)
            + 2 * forward * gain * scale * (f2g2 - N * mu)
            + gain**2 * (3 * g4 - mu**2)
        )
        backward = backward * mu
        forward = w * forward + (backward + gain * nu / scale if tangent else 0.0)
    return off / kappas[-1] ** 2, on / kappas[-1] ** 2
