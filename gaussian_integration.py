"""Expectations over a Gaussian: E[f(xi)], the moments of an activation at a scale tau, and its Hermite coefficients.

All four coefficients of a kernel are made of these moments. They are exact to 1e-12: panels end at the kinks of the
activation and are halved until they agree. The code lives in `deq_enn/theory/`.
"""

from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, load_activation, piecewise_linear
from deq_enn.theory.gaussian import GaussianMoments, centre, expectation, expectations, gaussian_moments
from deq_enn.theory.hermite import hermite_coefficients, hermite_functions

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "GaussianMoments",
    "centre",
    "expectation",
    "expectations",
    "from_function",
    "gaussian_moments",
    "hermite_coefficients",
    "hermite_functions",
    "load_activation",
    "piecewise_linear",
]
