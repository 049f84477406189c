"""E[f(u) f(v)] by nested adaptive quadrature, which exact kernels are held against; samples of given cosines."""

import math

import torch
from scipy.integrate import quad

from gaussian_integration import ACTIVATIONS, piecewise_linear

CLIPPED = piecewise_linear("clipped", (-0.5, 0.0, 2.0), (0.0, 0.1, 1.0, 0.2), 0.3)
EVERY = [*ACTIVATIONS.values(), CLIPPED]


def pair_expectation(f, kinks, variance, other, covariance):
    """E[f(u) f(v)] by nested adaptive quadrature, split where f is not smooth."""
    s, t = math.sqrt(variance), math.sqrt(other)
    rho = covariance / (s * t)
    across = math.sqrt(1 - rho * rho)

    def normal(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def pieces(g, points):
        edges = sorted({-9.0, 9.0, *(x for x in points if -9 < x < 9)})
        return sum(quad(g, a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0] for a, b in zip(edges, edges[1:]))

    def inner(x):
        return (
            f(s * x)
            * normal(x)
            * pieces(
                lambda w: f(t * (rho * x + across * w)) * normal(w),
                [-1, 1, *((k / t - rho * x) / across for k in kinks)],
            )
        )

    # the inner integral turns within `across` of a kink of its own
    turns = [(k / t + shift * across) / rho for k in kinks for shift in (-6, -2, 0, 2, 6)] if abs(rho) > 0.5 else []
    return pieces(inner, [-1, 1, *(k / s for k in kinks), *turns])


SCALAR = {  # written for scalars, apart from gaussian_integration
    "relu": (lambda x: max(x, 0.0), lambda x: float(x > 0)),
    "leaky_relu": (lambda x: x if x > 0 else 0.01 * x, lambda x: 1.0 if x > 0 else 0.01),
    "hardtanh": (lambda x: min(max(x, -1.0), 1.0), lambda x: float(-1 < x < 1)),
    "erf": (math.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x)),
    "sin": (math.sin, math.cos),
    "tanh": (math.tanh, lambda x: 1 / math.cosh(x) ** 2),
    "swish": (lambda x: x / (1 + math.exp(-x)), lambda x: (1 + x / (1 + math.exp(x))) / (1 + math.exp(-x))),
    "elu": (lambda x: x if x > 0 else math.expm1(x), lambda x: 1.0 if x > 0 else math.exp(x)),
    "selu": (lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)), None),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
    "clipped": (
        lambda x: (
            0.3 + (0.25 if x < -2 else -0.05 if x < -0.5 else 0.1 * x if x < 0 else x if x < 2 else 2 + 0.2 * (x - 2))
            if x >= -0.5
            else 0.25
        ),
        lambda x: 0.0 if x < -0.5 else 0.1 if x < 0 else 1.0 if x < 2 else 0.2,
    ),
}


def correlated(*cosines):
    """Rows of norms between 0.7 and 1.3 with the given cosines to the first row."""
    rows = [[1.0, 0.0]] + [[c, math.sqrt(1 - c * c)] for c in cosines]
    norms = torch.linspace(0.7, 1.3, len(rows), dtype=torch.float64)
    return torch.tensor(rows, dtype=torch.float64) * norms[:, None]
