"""The spectrum of an equivalent kernel on a mixture has a limit: the density of a bulk, an atom, isolated eigenvalues.

On a mixture the equivalent kernel is c1 X X^T + V C V^T + (diag - tau_0^2 c1) I. Write X = J M/sqrt(p) + W with the
class means M (K, p) and noise rows w_i ~ N(0, C_a/p). All but W W^T has low rank, U A U^T with
U = [J/sqrt(p), W M^T, psi], so the bulk is that of W W^T, and an isolated eigenvalue solves
det(I + A U^T Q(x) U) = 0, Q(x) = (W W^T - x)^{-1}. Right of the bulk -U^T Q U = L L^T is positive and falls with x, so
that each isolated eigenvalue, counted as often as it comes, is where an eigenvalue of L^T A L falls below 1. Both
follow from the deterministic equivalent

    Q ~ diag(g_a(x)),  g_a = -1/(x - tr(C_a R)/p),  R = (I + sum_b (n_b/p) g_b C_b)^{-1}

(Couillet & Liao, Random Matrix Methods for Machine Learning, 2022, Theorem 2.8), which is Marchenko and Pastur's law
for one class with C = I.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from deq_enn.theory.coefficients import KernelCoefficients
from deq_enn.theory.mixture import MixtureStatistics


class MixtureSample(Protocol):
    """The limit needs these of n samples from a mixture of K classes.

    X : (n, p) samples. statistics : of the samples.
    covariances : (K, q) eigenvalues of the C_a in a common basis, in q groups of `multiplicity` (q,), p in all.
    overlaps : (q, K, K) what each group adds to the class means' mu_a^T mu_b, mu_a = sqrt(p) E[x].
    psi_variance : (K,) Var[psi_i].
    """

    X: torch.Tensor
    statistics: MixtureStatistics
    covariances: np.ndarray
    multiplicity: np.ndarray
    overlaps: np.ndarray
    psi_variance: np.ndarray


@dataclass(frozen=True)
class Bulk:
    """This is W W^T at its limit, given by the class ratios n_a/p and the covariances of `MixtureSample`."""

    ratios: np.ndarray
    covariances: np.ndarray
    multiplicity: np.ndarray

    def solve(self, x: np.ndarray, tolerance: float = 1e-10) -> tuple[np.ndarray, np.ndarray]:
        """Returns g (len(x), K) and R (len(x), q) at points x that are complex, or real and outside the support."""
        share = (self.covariances * self.multiplicity / self.multiplicity.sum()).T
        load = self.ratios[:, None] * self.covariances
        g = np.repeat(-1 / x[:, None], len(self.ratios), 1)
        active = np.arange(len(x))
        for _ in range(2000):  # close to an edge of the support it is slow, and then good enough
            now = g[active]
            new = -1 / (x[active, None] - (1 / (1 + now @ load)) @ share)
            g[active] = (now + new) / 2
            active = active[np.abs(new - now).max(1) > tolerance * np.abs(new).max(1)]
            if not len(active):
                break
        return g, 1 / (1 + g @ load)

    def density(self, x: np.ndarray) -> np.ndarray:
        """Returns the density of the spectrum of W W^T at x > 0, without the atom at 0."""
        g, _ = self.solve(x * (1 + 1e-5j), 1e-7)
        return np.maximum(np.imag(g) @ self.ratios / self.ratios.sum() / math.pi, 0)

    def support(self) -> tuple[float, float]:
        """Returns the left and the right end of the continuous part, to about 1%."""
        p = self.multiplicity.sum()
        trace = (self.covariances * self.multiplicity).sum(1) / p
        top = self.covariances.max() * (1 + math.sqrt(self.ratios.sum())) ** 2
        x = np.geomspace(1e-3 * trace.min(), 1.05 * top, 600)
        density = self.density(x)
        inside = x[density * x > 1e-3 * (density * x).max()]
        return inside[0], inside[-1]


def isolated_eigenvalues(
    sample: MixtureSample, coefficients: KernelCoefficients, bulk: Bulk, right: float
) -> list[float]:
    """Returns the limits of the eigenvalues of W W^T + U A U^T at least 2% above the bulk's end, known to 1%."""
    K, p = len(bulk.ratios), bulk.multiplicity.sum()
    t, T = sample.statistics.t.numpy(), sample.statistics.T.numpy()
    c2, c3 = coefficients.c2 / coefficients.c1, coefficients.c3 / coefficients.c1
    A = np.zeros((2 * K + 1, 2 * K + 1))
    A[:K, :K] = sample.overlaps.sum(0) + c2 * np.outer(t, t) + c3 * T
    A[:K, K:-1] = A[K:-1, :K] = np.eye(K)
    A[:K, -1] = A[-1, :K] = c2 * t
    A[-1, -1] = c2

    def eigenvalues(x):  # of L^T A L, in increasing order
        g, R = bulk.solve(x)
        weight = g * bulk.ratios
        B = np.zeros((len(x), 2 * K + 1, 2 * K + 1))
        B[:, range(K), range(K)] = weight
        B[:, K:-1, K:-1] = np.einsum("xq,qab->xab", 1 - R, sample.overlaps)  # W^T Q W ~ I - R
        B[:, -1, -1] = weight @ sample.psi_variance * p
        squares, directions = np.linalg.eigh(-B)
        L = directions * np.sqrt(np.maximum(squares, 0))[:, None]
        return np.linalg.eigvalsh(L.transpose(0, 2, 1) @ A @ L)

    largest = 4 * (right + np.abs(A).sum() * max(1.0, bulk.ratios.sum()))
    x = np.geomspace(right * 1.02, largest, 2000)
    value = eigenvalues(x) - 1
    k, j = np.nonzero((value[:-1] >= 0) & (value[1:] < 0))
    # the steps of the grid are half a percent, so that a secant is enough
    share = value[k, j] / (value[k, j] - value[k + 1, j])
    return np.sort(x[k] + share * (x[k + 1] - x[k])).tolist()


@dataclass(frozen=True)
class Limit:
    """A limiting spectrum has a density, given on a grid, an atom, and isolated eigenvalues."""

    x: np.ndarray
    density: np.ndarray
    atom: float
    atom_mass: float
    isolated: list[float]


def limiting_spectrum(sample: MixtureSample, coefficients: KernelCoefficients) -> Limit:
    """Returns the limiting spectrum of the equivalent kernel with these coefficients on this sample's mixture."""
    n, p = sample.X.shape
    bulk = Bulk(sample.statistics.J.sum(0).numpy() / p, sample.covariances, sample.multiplicity)
    left, right = bulk.support()
    grid = np.geomspace(left / 1.1, right * 1.05, 400)
    shift = coefficients.diag - sample.statistics.tau0**2 * coefficients.c1
    return Limit(
        coefficients.c1 * grid + shift,
        bulk.density(grid) / coefficients.c1,
        shift,
        max(0.0, 1 - p / n),
        [coefficients.c1 * x + shift for x in isolated_eigenvalues(sample, coefficients, bulk, right)],
    )
