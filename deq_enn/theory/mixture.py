"""The equivalent kernel of a Gaussian mixture is made of four coefficients and of the statistics in this file.

Theorems 1 to 3 of the paper give the matrix as M = c1 S + V C V^T + (diag - tau_0^2 c1) I, with V = [J/sqrt(p), psi].

Of images with many channels, whose pixels are nearly orthogonal and nearly of one norm, the kernels of a convolutional
DEQ have such a form as well (`equivalent_conv_kernels`). Images as they come from a camera are not like that.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import KernelCoefficients, implicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import as_tensor, estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments


# ---------------------------------------------------------------------------------------------------------------
# the equivalent matrix
@dataclass(frozen=True)
class MixtureStatistics:
    """The theory needs these statistics of n samples from a K-class mixture, sqrt(p) x ~ N(mu_a, C_a).

    J : (n, K) float64, one-hot class membership.
    t : (K,) tr(C_a - C)/sqrt(p), with C the class-weighted mean of the C_a.
    T : (K, K) tr(C_a C_b)/p, of the full covariances (the authors' code centres them, which is wrong).
    psi : (n,) |x_i - E x_i|^2 - E|x_i - E x_i|^2.
    tau0 : float, the scale at which kernels are expanded.
    """

    J: torch.Tensor
    t: torch.Tensor
    T: torch.Tensor
    psi: torch.Tensor
    tau0: float


def equivalent_kernel(
    coefficients: KernelCoefficients, X: torch.Tensor | np.ndarray, statistics: MixtureStatistics
) -> torch.Tensor:
    """Returns the equivalent matrix M above for data X (n, p), float64, of shape (n, n) (Theorems 1 to 3)."""
    X = as_tensor(X).double()
    n, p = X.shape
    if statistics.J.shape[0] != n or statistics.psi.shape != (n,):
        raise ValueError(f"the statistics describe {statistics.J.shape[0]} samples, X has {n}")
    c1, c2, c3 = coefficients.c1, coefficients.c2, coefficients.c3
    J = statistics.J.to(X) / math.sqrt(p)
    t, T, psi = statistics.t.to(X), statistics.T.to(X), statistics.psi.to(X)
    # V C V^T = c2 (J t + psi)(J t + psi)^T + c3 J T J^T
    drift = J @ t + psi
    M = X @ X.T
    M.mul_(c1).addr_(drift, drift, alpha=c2).addmm_(J @ T, J.T, alpha=c3)
    M.diagonal().add_(coefficients.diag - statistics.tau0**2 * c1)
    return M


def estimate_statistics(X: torch.Tensor | np.ndarray, y: torch.Tensor | np.ndarray) -> MixtureStatistics:
    """Estimates the mixture's statistics from labelled data X (n, p), y (n,) integers, in O(n p min(n, p)).

    Each class is centred at its sample mean; the class of label y.unique()[a] is column a of J.

    Raises
    ------
    ValueError : X is not an (n, p) matrix of finite numbers with one label a row, or a class has fewer than 3 samples.

    Notes
    -----
    For Gaussian classes of n_a samples the biases are these:

    - The plug-in tr(C_a^ C_a^)/p of the sample covariances is too large by (tr C_a)^2/(n_a p), that is by a share of
      about p/n_a, which does not vanish as n and p grow together. The terms of a sample with itself cause it. So T_aa
      here averages (x_i^T x_j)^2 over pairs i != j alone, and a relative bias of O(p/n_a^2) remains. T_ab, a != b, and
      t are unbiased.
    - psi has mean zero within each class by construction, and |x_i - sample mean|^2 is short by tr C_a/(n_a p) in
      expectation. The class average is short by as much, so that psi has no bias, and an error of O(p^{-1/2} n^{-1/2}).
    - tau_0 is that of `estimate_tau0`: it counts the class means, sum_a n_a |mu_a|^2/(n p), which the theory's
      tr C/p neglects and a kernel of real data does not.
    """
    X, y = as_tensor(X), as_tensor(y)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise ValueError(f"X must be (n, p) and y (n,), got shapes {tuple(X.shape)} and {tuple(y.shape)}")
    X = X.double()
    tau0 = estimate_tau0(X)
    p = X.shape[1]
    _, index = y.unique(return_inverse=True)
    J = torch.nn.functional.one_hot(index).to(X)
    counts = J.sum(0)
    if counts.min() < 3:
        raise ValueError(f"a class has {int(counts.min())} samples: its covariance needs at least 3")
    Z = X - (J.T @ X / counts[:, None])[index]
    norms2 = Z.square().sum(1)
    mean_norms2 = J.T @ norms2 / counts
    variances = mean_norms2 * counts / (counts - 1)
    classes = [Z[index == a] for a in range(len(counts))]
    K = len(counts)
    T = torch.empty(K, K, dtype=X.dtype, device=X.device)
    for a in range(K):
        for b in range(a, K):
            pairs = counts[a] * counts[b]
            total = _squared_products(classes[a], classes[b])
            if a == b:
                total, pairs = total - norms2[index == a].square().sum(), counts[a] * (counts[a] - 1)
            # centring shrinks both factors by 1 - 1/n_a
            T[a, b] = T[b, a] = p * total / (pairs * (1 - 1 / counts[a]) * (1 - 1 / counts[b]))
    t = math.sqrt(p) * (variances - counts @ variances / len(X))
    return MixtureStatistics(J, t, T, norms2 - mean_norms2[index], tau0)


def equivalent_conv_kernels(
    images: torch.Tensor, activation: Activation, sigma_a2: float, tau0: float, window: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the closed form of the kernels of a convolutional DEQ with circular padding, all pixels read out.

    Parameters
    ----------
    images : (n, c, h, w). tau0 : root of the mean squared norm of their pixels, over sqrt(c).
    window : (h w, h w), M, the mean over the window.

    Returns
    -------
    (ck, ntk) : (n, n) float64. With s = sigma_a^2, w = E[(phi^2)'']/2, R = (1 - s d1^2 M)^-1 and
        chi_i(p) = |x_i(p)|^2/c - tau_0^2, pixel by pixel to second order off the diagonal,

        Lambda1 = sigma_b^2 R M S,   delta_i = sigma_b^2 (1 - s w M)^-1 M chi_i,
        G = d1^2 Lambda1 + R [d2^2/4 delta_i delta_j + d2^2/2 Lambda1^2],
        T = R [G + sigma_b^2 d1^2 M S + d2^2 Lambda1 (s M T1 + sigma_b^2 M S)],   T1 = R d1^2 (Lambda1 + sigma_b^2 M S),

        and the means over pixels of G and T. The diagonals are gamma^2 and kappa^2 of the fully connected DEQ.

    Notes
    -----
    The mean over pixels turns R into 1/(1 - s d1^2), so that the four scalars are those of the fully connected DEQ. The
    convolution enters through normalised filters in the two quadratic terms alone.
    """
    n, c = images.shape[:2]
    x = images.double().permute(2, 3, 0, 1).reshape(len(window), n, c)
    moments = gaussian_moments(activation, get_tau(activation, sigma_a2, tau0))
    s, sb, d1, d2 = sigma_a2, 1 - sigma_a2, moments.d1, moments.d2
    eye = torch.eye(len(window), dtype=torch.float64)
    R = torch.linalg.inv(eye - s * d1**2 * window)

    def apply(matrix, field):
        return (matrix @ field.flatten(1)).reshape(field.shape)

    MS = apply(window, torch.bmm(x, x.mT) / c)
    chi = x.square().sum(2) / c - tau0**2
    delta = sb * torch.linalg.solve(eye - s * moments.sq_dd / 2 * window, window @ chi)
    first = sb * apply(R, MS)
    G = d1**2 * first + apply(R, d2**2 / 4 * delta[:, :, None] * delta[:, None] + d2**2 / 2 * first**2)
    T1 = apply(R, d1**2 * (first + sb * MS))
    T = apply(R, G + sb * d1**2 * MS + d2**2 * first * (s * apply(window, T1) + sb * MS))
    kernels = G.mean(0), T.mean(0)
    for kernel, diagonal in zip(
        kernels, (implicit_ck(activation, s, tau0).diag, implicit_ntk(activation, s, tau0).diag)
    ):
        kernel.fill_diagonal_(diagonal)
    return kernels


def _squared_products(Z, W):
    """Returns sum_ij (z_i^T w_j)^2 by whichever product is smaller."""
    if len(Z) * len(W) <= Z.shape[1] ** 2:
        return (Z @ W.T).square().sum()
    return ((Z.T @ Z) * (W.T @ W)).sum()
