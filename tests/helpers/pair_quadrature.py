"""E[f(u) f(v)] by nested quadrature, which exact kernels are held against; samples of given cosines."""

import math

import numpy as np
import torch
from scipy.special import erf

from deq_enn.theory.activations import ACTIVATIONS, piecewise_linear

CLIPPED = piecewise_linear("clipped", (-0.5, 0.0, 2.0), (0.0, 0.1, 1.0, 0.2), 0.3)
EVERY = [*ACTIVATIONS.values(), CLIPPED]


def nodes_and_weights(edges, n):
    """Of the Gauss-Legendre rule with n nodes on each panel between sorted edges (..., k): (..., (k - 1) n) arrays."""
    x, w = np.polynomial.legendre.leggauss(n)
    half = np.diff(edges)[..., None] / 2
    nodes = edges[..., :-1, None] + half * (1 + x)
    shape = *edges.shape[:-1], -1
    return nodes.reshape(shape), (half * w).reshape(shape)


def normal_density(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def agreeing(integral):
    """integral(n) with n nodes a panel, held against more of them."""
    value, finer = integral(20), integral(29)
    assert abs(value - finer) < 1e-13 * max(1, abs(finer))
    return finer


def quadrature(f, kinks=(), reach=12):
    """E[f(xi)], xi ~ N(0, 1), of an elementwise numpy function that is smooth between the kinks."""
    edges = np.unique([*range(-reach, reach + 1), *(k for k in kinks if abs(k) < reach)])

    def integral(n):
        x, w = nodes_and_weights(edges, n)
        return float((f(x) * normal_density(x)) @ w)

    return agreeing(integral)


def pair_expectation(f, kinks, variance, other, covariance):
    """E[f(u) f(v)] by nested quadrature, split where f is not smooth; f is a function of numpy arrays."""
    s, t = math.sqrt(variance), math.sqrt(other)
    rho = covariance / (s * t)
    across = math.sqrt(1 - rho * rho)
    # the inner integral turns within `across` of a kink of its own
    turns = [(k / t + shift * across) / rho for k in kinks for shift in range(-8, 9)] if abs(rho) > 0.5 else []
    outer = np.unique([*range(-9, 10), *(x for x in (*(k / s for k in kinks), *turns) if abs(x) < 9)])

    def integral(n):
        x, w = nodes_and_weights(outer, n)
        own = [np.clip((k / t - rho * x) / across, -9, 9) for k in kinks]
        edges = np.sort(np.stack([*np.broadcast_to(np.arange(-9.0, 10)[:, None], (19, len(x))), *own], 1), 1)
        y, v = nodes_and_weights(edges, n)
        inner = (f(t * (rho * x[:, None] + across * y)) * normal_density(y) * v).sum(1)
        return float((f(s * x) * normal_density(x) * inner) @ w)

    return agreeing(integral)


BY_HAND = {  # apart from gaussian_integration
    "relu": (lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1, 0.01)),
    "hardtanh": (lambda x: np.clip(x, -1, 1), lambda x: 1.0 * (abs(x) < 1)),
    "erf": (erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x)),
    "sin": (np.sin, np.cos),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(np.clip(x, -350, 350)) ** 2),
    "swish": (lambda x: x / (1 + np.exp(-x)), lambda x: (1 + x / (1 + np.exp(x))) / (1 + np.exp(-x))),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(x)), lambda x: np.where(x > 0, 1, np.exp(x))),
    "selu": (lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)), None),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
    "clipped": (
        lambda x: np.select([x < -0.5, x < 0, x < 2], [0.25, 0.3 + 0.1 * x, 0.3 + x], 2.3 + 0.2 * (x - 2)),
        lambda x: np.select([x < -0.5, x < 0, x < 2], [0.0, 0.1, 1.0], 0.2),
    ),
}


def torch_quadrature(f, kinks=()):
    """`quadrature` of an elementwise torch function."""
    return quadrature(lambda x: f(torch.from_numpy(x)).numpy(), kinks)


def correlated(*cosines):
    """Rows of norms between 0.7 and 1.3 with the given cosines to the first row."""
    rows = [[1.0, 0.0]] + [[c, math.sqrt(1 - c * c)] for c in cosines]
    norms = torch.linspace(0.7, 1.3, len(rows), dtype=torch.float64)
    return torch.tensor(rows, dtype=torch.float64) * norms[:, None]
