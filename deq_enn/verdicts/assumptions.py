"""Does the theory apply to this DEQ and these data? Each of its assumptions as a number beside what it asks.

The theory is that of a Gaussian mixture in many dimensions: squared norms concentrate about tau_0^2, and two samples
are nearly orthogonal. A white Gaussian of dimension p has |x|^2/tau_0^2 with a standard deviation of sqrt(2/p), and
cosines of 1/sqrt(p) root mean square. Data whose norms spread as those of a Gaussian of q dimensions have that many
effective ones.
"""

import math

import torch

from deq_enn.kernels.sample_scales import implicit_scales
from deq_enn.theory.activations import Activation
from deq_enn.theory.equilibrium import check_assumptions, check_sigma_a2, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.random import generator

_TIMES = 2.0  # how far beyond a mixture's a spread may be before it is said to fail


def concentration(X: torch.Tensor, tau0: float, seed: int = 0) -> dict:
    """Norms and cosines of the rows of X (n, p), beside those of a sample of white Gaussian data of its size.

    Returns
    -------
    norm_spread : standard deviation of |x|^2/tau_0^2 - 1; norm_mean : its mean; norm_farthest : its largest size.
    cosine : root mean square of the cosines of two samples; cosine_largest : the largest size of one.
    gaussian : the same of n white Gaussian samples of dimension p, drawn.
    dimensions : 2/norm_spread^2, of the Gaussian whose norms spread as much.
    """
    X = X.double()
    white = torch.randn(X.shape, dtype=torch.float64, generator=generator("white", seed)) / math.sqrt(X.shape[1])
    found, gaussian = _spread(X / tau0), _spread(white)
    return found | {"dimensions": 2 / max(found["norm_spread"], 1e-12) ** 2, "gaussian": gaussian}


def _spread(X):
    norms2 = X.square().sum(1)
    U = X[norms2 > 0] / norms2[norms2 > 0].sqrt()[:, None]
    cosines = U @ U.T
    cosines.fill_diagonal_(0)
    n = len(U)
    chi = norms2 - 1
    return {
        "norm_mean": chi.mean().item(),
        "norm_spread": chi.std().item(),
        "norm_farthest": chi.abs().max().item(),
        "cosine": math.sqrt(cosines.square().sum().item() / (n * (n - 1))),
        "cosine_largest": cosines.abs().max().item(),
    }


def stability(activation: Activation, sigma_a2: float, tau0: float, norms2) -> dict:
    """The equilibrium's existence and stability at the scale tau_0 and at each sample's own.

    norms2 : (n,) positive squared norms, a numpy array.

    Returns
    -------
    tau : tau_*. growth : sigma_a^2 E[phi'^2] at tau_*, below 1 where the equilibrium is stable; growth_largest : at the
    sample where it is largest. lipschitz : 2 sigma_a L, below 1 where the equilibrium exists and is unique whatever the
    sample. Numbers below 1 are margins.

    Raises
    ------
    ValueError : there is no equilibrium, or not a stable one.
    """
    check_sigma_a2(sigma_a2)
    tau = get_tau(activation, sigma_a2, tau0)
    moments = gaussian_moments(activation, tau)
    scales = implicit_scales(activation, sigma_a2, norms2, moments.mean)
    return {
        "tau": tau,
        "growth": sigma_a2 * moments.d1_sq,
        "growth_largest": sigma_a2 * float(scales.d1_sq.max()),
        "lipschitz": 2 * math.sqrt(sigma_a2) * activation.lipschitz,
    }


def applicability(activation: Activation, sigma_a2: float, tau0: float, X: torch.Tensor, seed: int = 0) -> dict:
    """The numbers of `concentration` and `stability`, and "fails": a sentence for each assumption that does not hold.

    tau0 : that the DEQ is centred at. X : (n, p), a subsample of a thousand or two is enough.
    """
    norms2 = X.double().square().sum(1)
    found = {
        "concentration": concentration(X, tau0, seed),
        "stability": stability(activation, sigma_a2, tau0, norms2[norms2 > 0].numpy()),
    }
    c, p = found["concentration"], X.shape[1]
    fails = check_assumptions(activation, sigma_a2, tau0)
    if c["norm_spread"] > _TIMES * c["gaussian"]["norm_spread"]:
        fails.append(
            f"the squared norms do not concentrate: they spread by {c['norm_spread']:.2g} of tau_0^2, those "
            f"of Gaussian data of p = {p} by {c['gaussian']['norm_spread']:.2g}; as much as in "
            f"{max(c['dimensions'], 1):.0f} dimensions"
        )
    if c["cosine"] > _TIMES * c["gaussian"]["cosine"]:
        fails.append(
            f"two samples are not nearly orthogonal: their cosine is {c['cosine']:.2g} (root mean square), "
            f"that of Gaussian data of p = {p} {c['gaussian']['cosine']:.2g}"
        )
    if abs(c["norm_mean"]) > 0.1:
        fails.append(
            f"the data's mean squared norm is {1 + c['norm_mean']:.3g} times the tau_0^2 that the DEQ is centred at"
        )
    return found | {"fails": fails}
