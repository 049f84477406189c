"""The paper's Example 2 is a two-hidden-layer leaky-ReLU network with the conjugate kernel of a ReLU-DEQ.

sigma_l(x) = max(a_l x, b_l x) - (a_l - b_l) tau_{l-1}/sqrt(2 pi), l = 1, 2, has four slopes for the four scalars
(gamma^2, alpha_1, alpha_2, alpha_3). The four equations reduce to one cubic, which is solved here in closed form,
without an optimiser or an initial guess.

Put k = 1/4 - 1/(2 pi), s_l = ((a_l + b_l)/2)^2, r_l = (a_l - b_l)^2/s_l. Then E[sigma']^2 = s_l, E[sigma'']^2 =
r_l s_l/(2 pi tau^2) and tau_l^2/tau_{l-1}^2 = s_l (1 + k r_l). Scaling layer 1 by c and layer 2 by 1/c changes
nothing, so tau_1 = tau_0. With P = 8 pi tau_0^2 alpha_2/alpha_1 and Q = 4 pi tau_0^2 alpha_3/alpha_1 the equations
for alpha_2 and alpha_3 are P = r_1 + q r_2 and Q = r_1 + r_2/q, where q = 1 + k r_1; s_1 = 1/q and s_2 = alpha_1 q.
The fourth one is gamma^2 = tau_0^2 alpha_1 (1 + k P), whatever the root. It is a condition on the DEQ, and positively
homogeneous activations meet it.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deq_enn.theory.activations import Activation, piecewise_linear
from deq_enn.theory.coefficients import KernelCoefficients, MatchError

_K = 0.25 - 1 / (2 * math.pi)


@dataclass(frozen=True)
class LReLUMatch:
    """The network is given by the slopes of its two layers, a_l for x > 0 and b_l for x < 0, and by the scale tau1.

    tau1 : the scale after the first layer.
    root : 1 for the solution with the smallest curvature r_1 of the first layer, 2 for the next.
    """

    a1: float
    b1: float
    a2: float
    b2: float
    tau1: float
    root: int = 1

    @cached_property
    def layers(self) -> tuple[Activation, Activation]:
        """Returns the two layers as activations; both are centred at tau_1, which was chosen to be tau_0."""
        first, second = (
            piecewise_linear(f"l_relu_{index}", (0.0,), (b, a), -(a - b) * self.tau1 / math.sqrt(2 * math.pi))
            for index, (a, b) in enumerate(((self.a1, self.b1), (self.a2, self.b2)), 1)
        )
        return first, second


def solutions(target: KernelCoefficients, tau0: float = 1.0, tolerance: float = 1e-9) -> tuple[LReLUMatch, ...]:
    """Returns every match of the target (one or two), by increasing curvature r_1 of the first layer.

    Parameters
    ----------
    target : conjugate kernel coefficients, as `coefficients.implicit_ck` returns them.
    tau0 : the data scale that the target was computed at.
    tolerance : relative error that the condition on gamma^2 may have.

    Raises
    ------
    MatchError : the condition on gamma^2 fails, or no root of the cubic has r_1, r_2 >= 0.
    """
    if not (target.c1 > 0 and tau0 > 0):
        raise MatchError(f"a leaky-ReLU match needs alpha_1 > 0 and tau_0 > 0, got {target.c1:.6g} and {tau0:.6g}")
    P = 8 * math.pi * tau0**2 * target.c2 / target.c1
    Q = 4 * math.pi * tau0**2 * target.c3 / target.c1
    needed = tau0**2 * target.c1 * (1 + _K * P)
    if abs(target.diag / needed - 1) > tolerance:
        raise MatchError(
            f"leaky-ReLU layers need gamma^2 = tau_0^2 alpha_1 + 8 pi k tau_0^4 alpha_2 = {needed:.9g}, "
            f"the target has {target.diag:.9g} (relative difference {target.diag / needed - 1:.2g})"
        )
    curvatures = sorted(filter(None, (_curvatures(P, r1) for r1 in _roots(P, Q))))
    if not curvatures:
        raise MatchError(
            f"no leaky-ReLU pair has P = 8 pi tau_0^2 alpha_2/alpha_1 = {P:.6g} with Q = 4 pi tau_0^2 "
            f"alpha_3/alpha_1 = {Q:.6g}: every root of the cubic has a negative r_1 or r_2 "
            "(P >= Q >= 0 is necessary)"
        )
    return tuple(_from_curvatures(r1, r2, target.c1, tau0, root) for root, (r1, r2) in enumerate(curvatures, 1))


def _roots(P, Q):
    """Yields the real roots r of the cubic q^3 - (1 + kQ) q^2 - q + 1 + kP in q = 1 + k r.

    It is written in r, so that r = 0 keeps its digits.
    """
    cubic = np.poly1d([_K**2, 2 * _K - _K**2 * Q, -2 * _K * Q, P - Q])
    slope = cubic.deriv()
    for root in cubic.roots:
        if abs(root.imag) > 1e-7 * (1 + abs(root)):
            continue
        r = root.real
        for _ in range(3):  # companion-matrix roots carry a few units of rounding
            if slope(r) != 0:
                r -= cubic(r) / slope(r)
        yield r


def _curvatures(P, r1):
    """Returns (r_1, r_2), or None where one of them is negative beyond rounding."""
    q = 1 + _K * r1
    r2 = (P - r1) / q if q > 0 else -math.inf
    rounding = 1e-12 * (1 + P)
    if r1 < -rounding or r2 < -rounding:
        return None
    return max(r1, 0.0), max(r2, 0.0)


def _from_curvatures(r1, r2, alpha1, tau0, root):
    q = 1 + _K * r1
    slopes = []
    for s, r in ((1 / q, r1), (alpha1 * q, r2)):
        slopes += [math.sqrt(s) * (1 + math.sqrt(r) / 2), math.sqrt(s) * (1 - math.sqrt(r) / 2)]
    return LReLUMatch(*slopes, tau1=tau0, root=root)


def match(target: KernelCoefficients, tau0: float = 1.0) -> LReLUMatch:
    """Returns the match that is better at finite width, whose first layer is nearly linear.

    Example 2 of the paper. At sigma_a^2 = 0.2, tau_0 = 1 the ReLU-DEQ gives (a1, b1, a2, b2) = (1.22564, 0.75405,
    0.92612, 0.00096); `solutions` has the other root too. The choice is made a priori: the finite-width error,
    `sum(finite_width.fluctuation(layers, tau0, "readout"))`, is 8.2 against 8.6. Accuracies (`scripts/bench.py roots`)
    agree with the choice, but did not make it.
    """
    return solutions(target, tau0)[0]
