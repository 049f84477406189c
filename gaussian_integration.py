"""Expectations E[f(xi)] over a Gaussian xi: the moments of an activation at a scale tau, and its Hermite coefficients.

The coefficients of every kernel in the paper are made of these moments. They are exact to 1e-12, because the panels of
the integration end at the kinks of the activation and are halved until they agree.

    python gaussian_integration.py --activation swish --tau 1      prints the moments

The code lives in `deq_enn/theory/` (gaussian.py, hermite.py, activations.py).
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

if __name__ == "__main__":  # first, so that --help and a bad flag do not wait for torch
    from deq_enn.commands.doorways import moments

    moments(description=__doc__)
else:
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
