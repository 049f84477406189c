"""Are the weights of a DEQ still random? We test the spectrum of A, the singular values of A and B, and the kernel.

This is a permutation test. If the entries of A and B are independent, shuffling them gives an equally likely network.
We compare the DEQ with 19 shuffled copies of itself and call it trained if it is the most extreme of the 20, which
happens to a random network once in 20 times, whatever the distribution of its entries (Barnard, discussion in J. R.
Stat. Soc. B 25, 1963; Hope, ibid. 30, 1968).

The statistics are those that random matrix theory fixes or that the theory of DEQs needs: the largest |eigenvalue| of A
relative to the radius of the circular law, the singular values of A and B against Marchenko and Pastur's law, and the
conjugate kernel.
"""

import math
from functools import lru_cache, reduce
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import brentq
from tqdm import tqdm

from deq_enn.kernels.exact import implicit_kernels
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.networks.trained_deq import TrainedDEQ
from deq_enn.theory.activations import Activation
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.gaussian import expectation, gaussian_moments
from deq_enn.utils.deadline import OutOfTime, check
from deq_enn.utils.random import generator

COPIES = 19  # shuffled copies; the most extreme of 20 networks is called trained
BLOCK = 512  # units whose spectrum is taken, at most: a block of a random matrix is as random as all of it
LEAST_COPIES = 4  # shuffled copies that are made whatever the deadline
ROWS = 200  # samples of the kernel
SQUARINGS = 11  # k such that |A^(2^k)|^(1/2^k) is the largest |eigenvalue| to a few thousandths


# ---------------------------------------------------------------------------------------------------------------
# the laws of random matrices


def singular_law(values: np.ndarray, ratio: float) -> np.ndarray:
    """Returns the distribution function of Marchenko and Pastur's law at these singular values.

    The law is that of a matrix (a, b), b <= a, with ratio = b/a, whose independent entries have variance 1/a. The
    squares of its singular values fill [(1 - sqrt(ratio))^2, (1 + sqrt(ratio))^2] (Marchenko & Pastur, Math. USSR
    Sb. 1, 1967).
    """
    middle, half = 1 + ratio, 2 * math.sqrt(ratio)
    at = np.arccos(np.clip((middle - np.square(values)) / half, -1, 1))
    return np.interp(at, *_law_of_angles(ratio))


@lru_cache(maxsize=8)  # the laws of A and of B are needed again for each shuffled copy
def _law_of_angles(ratio):
    """The angles at which the law is tabulated, 0 at its lower and pi at its upper edge, and its values there."""
    middle, half = 1 + ratio, 2 * math.sqrt(ratio)
    edges = np.linspace(0, math.pi, 4001)
    theta = (edges[1:] + edges[:-1]) / 2
    mass = half**2 * np.sin(theta) ** 2 / (2 * math.pi * ratio * (middle - half * np.cos(theta))) * np.diff(edges)
    return edges, np.append(0, np.cumsum(mass))


def _kolmogorov(values, law):
    """Returns the Kolmogorov-Smirnov distance of sorted values to a law."""
    n = len(values)
    return max((np.arange(1, n + 1) / n - law).max(), (law - np.arange(n) / n).max())


def singular_statistics(weight: torch.Tensor) -> tuple[float, float]:
    """Returns the largest singular value, relative to the edge of its law, and the distance of all to the law."""
    weight = weight.detach().double().cpu()
    a, b = max(weight.shape), min(weight.shape)
    values = torch.linalg.svdvals(weight / weight.square().mean().sqrt() / math.sqrt(a)).flip(0).numpy()
    return float(values[-1] / (1 + math.sqrt(b / a))), float(_kolmogorov(values, singular_law(values, b / a)))


def spectral_radius(A: torch.Tensor) -> float:
    """Returns the largest |eigenvalue| as |A^k|^(1/k), k = 2^SQUARINGS (Gelfand's formula), without eigenvalues."""
    power, log_norm = A.detach().float(), 0.0
    for _ in range(SQUARINGS):
        norm = torch.linalg.matrix_norm(power).clamp_min(1e-30)
        power = power / norm
        log_norm = 2 * (log_norm + norm.log().item())
        power = power @ power
    return math.exp((log_norm + torch.linalg.matrix_norm(power).clamp_min(1e-30).log().item()) / 2**SQUARINGS)


# ---------------------------------------------------------------------------------------------------------------
# the test


def drift(deq: TrainedDEQ, X: torch.Tensor, seed: int = 0, copies: int = COPIES) -> dict[str, Any]:
    """Returns how far the weights have left the random regime.

    Parameters
    ----------
    X : (n, p), of which ROWS samples are used.
    copies : number of shuffled copies; 1/(copies + 1) is the share of random networks that are called trained. Where a
        deadline passes there are fewer, and that share is larger.

    Returns
    -------
    dict, ready for JSON:
        "copies" : number of shuffled copies that were made.
        "left" : whether the weights have left the random regime.
        "p" : the p-value of the most extreme statistic.
        "score" : the largest score of any statistic.
        "settle" : whether all copies have an equilibrium. If not, the statistic "kernel" is missing.
        "alone" : whether no copy has one. The network is then the most extreme of all in having one.
        "statistics" : {name: {"value", "random", "spread", "score"}}: its own value, the mean and standard deviation
            over the copies, and by how many of the latter its own is above the mean. Radius and largest singular value
            are relative to those of infinite width. "singular values" is the distance to their law, "kernel" the
            relative distance (Frobenius) of the conjugate kernel to the mean one of all draws.
        "sigma_a2", "gain" : as of TrainedDEQ, or None.
        "infinite" : {"trained", "random"}, the relative distance of the conjugate kernel to that of infinite width;
            None where the theory has none (a bias, or phi not centred), or a deadline has passed before.

    Raises
    ------
    ConvergenceError : the network itself has no equilibrium.
    """
    random, (m, p) = generator("drift", seed), deq.U.shape
    rows, columns = (torch.randperm(size, generator=random)[:BLOCK] for size in (m, p))
    X = X[torch.randperm(len(X), generator=random)[:ROWS]].to(deq.W)
    draws, kernels, failed = _draws(deq, X, rows, columns, seed, copies)
    settle, alone = not failed, bool(failed) and len(kernels) == 1
    if settle:
        mean = reduce(torch.add, kernels) / len(kernels)  # over all of them, so that each is treated alike
        for draw, K in zip(draws, kernels):
            draw["kernel"] = ((K - mean).norm() / mean.norm()).item()
    p_value, score, statistics = _test(draws)
    return {
        "copies": len(draws) - 1,
        "left": p_value <= 1 / len(draws) or alone,
        "p": p_value,
        "score": score,
        "settle": settle,
        "alone": alone,
        "statistics": statistics,
        "sigma_a2": deq.sigma_a2,
        "gain": deq.gain if deq.sigma_a2 < 1 else None,
        "infinite": _to_infinite_width(deq, X, kernels) if settle else None,
    }


def _draws(deq, X, rows, columns, seed, copies):
    """Returns the statistics of the network and of its shuffled copies, their kernels, and how many have none.

    Kernels are no longer made once a copy has an equilibrium and another has not; copies end where a deadline passes.
    """
    draws, kernels, failed = [], [], 0
    for number in tqdm(range(copies + 1), desc="weights", leave=False, disable=None, delay=1):
        if number > LEAST_COPIES:
            try:
                check()
            except OutOfTime:
                break
        network = deq.shuffled(seed, number) if number else deq
        draws.append(_spectrum(network, rows, columns))
        try:
            kernels += [] if failed and len(kernels) > 1 else [_kernel(network, X)]
        except ConvergenceError:
            if network is deq:
                raise
            failed += 1
    return draws, kernels, failed


def _spectrum(deq, rows, columns):
    """Returns {statistic: value}. For a random network of infinite width each is 1, and each distance to a law 0."""
    A, B = deq.W.detach()[rows][:, rows], deq.U.detach()[rows][:, columns]
    radius = spectral_radius(A / A.double().square().mean().sqrt() / math.sqrt(len(A)))
    (edge_a, law_a), (edge_b, law_b) = singular_statistics(A), singular_statistics(B)
    return {
        "radius of A": radius,
        "largest singular value of A": edge_a,
        "singular values of A": law_a,
        "largest singular value of B": edge_b,
        "singular values of B": law_b,
    }


def _kernel(deq, X):
    with torch.no_grad():
        Z = deq.features(X).double()
    return Z @ Z.T


def _test(draws):
    """Returns the p-value of the first draw, its largest score, and its statistics beside those of the others."""
    table = np.array([[draw[name] for name in draws[0]] for draw in draws])
    extremes = ((table - table.mean(0)) / table.std(0).clip(1e-300)).max(1)
    own, others = table[0], table[1:]
    mean, spread = others.mean(0), others.std(0, ddof=1)
    scores = (own - mean) / spread.clip(1e-300)
    statistics = {
        name: {"value": float(v), "random": float(r), "spread": float(s), "score": float(score)}
        for name, v, r, s, score in zip(draws[0], own, mean, spread, scores)
    }
    return float((extremes >= extremes[0]).mean()), float(scores.max()), statistics


# ---------------------------------------------------------------------------------------------------------------
# the kernel of infinite width


def _to_infinite_width(deq, X, kernels):
    """Returns the relative distances to the kernel of infinite width: the network's own, and the copies' mean."""
    norms2 = X.double().square().sum(1)
    X, kernels = X[norms2 > 0], [K[norms2 > 0][:, norms2 > 0] for K in kernels]
    if deq.bias is not None or not 0 < deq.sigma_a2 < 1:
        return None
    probe = torch.zeros(1, dtype=torch.float64)
    constant = (deq.activation.fn(probe) - deq.phi(probe)).item()
    try:
        scaled = X.double() * deq.gain
        tau0 = _centred_at(deq.activation, constant, deq.sigma_a2)
        K, _ = implicit_kernels(scaled, deq.activation, deq.sigma_a2, tau0=tau0 or estimate_tau0(scaled))
    except (ValueError, OutOfTime):
        return None
    K = K.to(kernels[0]) * (len(deq.W) * deq.scale**2)
    distances = [((G - K).norm() / K.norm()).item() for G in kernels]
    return {"trained": distances[0], "random": float(np.mean(distances[1:]))}


def _centred_at(activation: Activation, constant: float, sigma_a2: float) -> float | None:
    """Returns the tau_0 of the DEQ whose centring constant this is; None for an odd activation, where any will do."""
    if abs(constant) < 1e-9 and abs(gaussian_moments(activation, 1.0).mean) < 1e-12:
        return None

    def excess(log_tau):
        tau = math.exp(log_tau)
        return expectation(lambda x: activation.fn(tau * x), [k / tau for k in activation.kinks]) - constant

    if excess(-6.0) * excess(3.0) > 0:
        raise ValueError("phi is not centred at any scale")
    tau = math.exp(cast(float, brentq(excess, -6.0, 3.0, xtol=1e-12)))
    rest = tau**2 - sigma_a2 * gaussian_moments(activation, tau).variance
    if rest <= 0:
        raise ValueError("phi is not centred at a scale that its DEQ can have")
    return math.sqrt(rest / (1 - sigma_a2))
