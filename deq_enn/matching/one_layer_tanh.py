"""The paper's Example 1 is a one-hidden-layer hard-tanh network with the conjugate kernel of a tanh-DEQ.

sigma(x) = a clip(x, -c, c). With u = c/tau_0 the ratio

    gamma^2/(alpha_1 tau_0^2) = [erf(u/sqrt 2) - u sqrt(2/pi) exp(-u^2/2) + u^2 erfc(u/sqrt 2)] / erf(u/sqrt 2)^2

falls from pi/2 (u -> 0) to 1 (u -> infinity), so u is one bracketed root; then a = sqrt(alpha_1)/erf(u/sqrt 2).
"""

import math
from dataclasses import dataclass
from functools import cached_property

from scipy.special import gammainc

from deq_enn.theory.activations import Activation, piecewise_linear
from deq_enn.theory.brackets import root_between
from deq_enn.theory.coefficients import KernelCoefficients, MatchError


@dataclass(frozen=True)
class HardTanhMatch:
    """The network has the one layer sigma(x) = a clip(x, -c, c)."""

    a: float
    c: float

    @cached_property
    def layers(self) -> tuple[Activation]:
        """Returns the layer as an activation, alone in a tuple."""
        return (piecewise_linear("h_tanh", (-self.c, self.c), (0.0, self.a, 0.0)),)


def excess_ratio(u: float) -> float:
    """Returns the ratio in the module's docstring, minus 1."""
    inside = math.erf(u / math.sqrt(2))
    outside = math.erfc(u / math.sqrt(2))
    # E[xi^2; |xi| < u] is an incomplete gamma function; as the difference of two terms it would cancel for small u
    truncated = gammainc(1.5, u * u / 2)
    return (truncated + u * u * outside - inside * inside) / inside**2


def match(target: KernelCoefficients, tau0: float = 1.0, tolerance: float = 1e-9) -> HardTanhMatch:
    """Solves for the hard tanh with the target's four coefficients (Example 1 of the paper).

    At sigma_a^2 = 0.2, tau_0 = 1 the tanh-DEQ gives a = 0.764297, c = 1.196485.

    Raises
    ------
    MatchError : alpha_2 or alpha_3 is not zero (relative to alpha_1/tau_0^2, within `tolerance`), or
        gamma^2/(alpha_1 tau_0^2) lies outside (1, pi/2).
    """
    if not (target.c1 > 0 and tau0 > 0):
        raise MatchError(f"a hard-tanh match needs alpha_1 > 0 and tau_0 > 0, got {target.c1:.6g} and {tau0:.6g}")
    for name, value in (("alpha_2", target.c2), ("alpha_3", target.c3)):
        if abs(value) * tau0**2 > tolerance * target.c1:
            raise MatchError(f"a hard tanh is odd and has {name} = 0, the target has {name} = {value:.6g}")
    ratio = target.diag / (target.c1 * tau0**2)
    low, high = 1e-6, 8.0
    if not excess_ratio(high) < ratio - 1 < excess_ratio(low):
        raise MatchError(f"a hard tanh has gamma^2/(alpha_1 tau_0^2) in (1, pi/2), the target has {ratio:.12g}")
    u = root_between(lambda u: excess_ratio(u) - (ratio - 1), low, high, xtol=1e-16)
    return HardTanhMatch(a=math.sqrt(target.c1) / math.erf(u / math.sqrt(2)), c=u * tau0)
