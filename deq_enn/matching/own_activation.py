"""The DEQ of an odd activation has the kernel of one layer of that activation, c phi(a x): two numbers are solved for.

The four coefficients of a DEQ with an odd activation are two, as c2 = c3 = 0. Those of one layer sigma(x) = c phi(a x)
at input scale tau_0 follow from s = a tau_0. With N = E[phi(s xi)^2]/E[s phi'(s xi)]^2 and
mu = E[phi'(s xi)^2]/E[phi'(s xi)]^2 they are

    gamma^2/(alpha_1 tau_0^2) = N,      kappa^2/(beta_1 tau_0^2) = (N + mu)/2,

so s is a root, and c the gain that sets alpha_1 or beta_1. Both ratios tend to 1 as s falls to 0, and no DEQ has less
than that. Where the ratio at the DEQ's own scale tau_* is too large there is a root below it, and else one is looked
for above: for the activations of the registry it is within 10% at sigma_a^2 = 0.2, at ten times tau_* and more as
sigma_a^2 nears 1. Where both are 1 to rounding, as for a hardtanh that its input does not reach, s = tau_* is the root.
An activation that saturates has a largest ratio, pi/2 for N, and tangent kernels at a large sigma_a^2 are beyond it.

This network is not in the paper, whose Example 1 has a hard tanh. It has the same coefficients, and it is far nearer to
the DEQ away from them, at other norms and at large cosines. On 400 images of Fashion-MNIST, sigma_a^2 = 0.2, its kernel
is 0.10% from that of the tanh-DEQ in the spectral norm, and that of the hard tanh 0.97%.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from deq_enn.matching.equations import Place, is_odd, scale_free
from deq_enn.theory.activations import Activation, rescaled
from deq_enn.theory.brackets import root_between
from deq_enn.theory.coefficients import KernelCoefficients, MatchError
from deq_enn.theory.gaussian import centre, gaussian_moments

_FACTORS = np.geomspace(1, 64, 25)[1:]  # multiples of tau_* between which a root is looked for
_ROUNDING = 1e-11  # relative difference of two ratios that counts as none


def solve(
    activation: Activation, tau: float, target: KernelCoefficients, tau0: float, trained: str
) -> tuple[tuple[Activation], tuple[dict[str, Any]]]:
    """Solves for the one layer of the DEQ's activation that has the target's coefficients; returns it and (a, c).

    Parameters
    ----------
    activation, tau : of the DEQ, and its scale tau_*.
    trained : the explicit network's trained weights, as `equations.Place` has them.

    Raises
    ------
    MatchError : the target has c2 or c3, or no such layer has its diagonal.
    """
    diag, c2, c3 = scale_free(target, tau0)
    if not is_odd(target, tau0):
        raise MatchError(
            f"one layer of an odd activation has c2 = c3 = 0, the target has tau_0^2 c2/c1 = {c2:.6g} and "
            f"tau_0^2 c3/c1 = {c3:.6g}"
        )
    place = Place(trained, 1)
    of_n, of_mu = place.diagonal()

    def ratio(s: float) -> float:
        try:
            m = gaussian_moments(activation, s)
            return (of_n * m.variance / (s * m.d1) ** 2 + of_mu * m.d1_sq / m.d1**2) / place.c1
        except (ValueError, ZeroDivisionError) as error:
            raise MatchError(f"c phi(a x) of {activation.name} has no moments at a = {s / tau0:.3g}: {error}") from None

    s = _root(ratio, diag, tau)
    if s is None:
        end = tau * (_FACTORS[-1] if ratio(tau) < diag else 1 / _FACTORS[-1])
        raise MatchError(
            f"layers c phi(a x) of {activation.name} with a from {tau / tau0:.3g} to {end / tau0:.3g} have "
            f"diag/(tau_0^2 c1) from {ratio(tau):.9g} to {ratio(end):.9g}, the target has {diag:.9g}"
        )
    a, c = s / tau0, math.sqrt(target.c1 / place.c1) * tau0 / (s * gaussian_moments(activation, s).d1)
    return (centre(rescaled(activation, a, c), tau0),), (dict(a=a, c=c),)


def _root(ratio: Callable[[float], float], diag: float, tau: float) -> float | None:
    """Returns where the ratio is `diag`, looking from tau upwards or downwards; None where it is nowhere."""
    if abs(ratio(tau) - diag) <= _ROUNDING * diag:
        return tau
    upwards = ratio(tau) < diag
    for end in tau * (_FACTORS if upwards else 1 / _FACTORS):
        if (ratio(end) < diag) != upwards:
            return root_between(lambda s: ratio(s) - diag, min(tau, end), max(tau, end), xtol=1e-17, rtol=1e-15)
    return None
