"""What another project imports: `from deq_enn import DEQ, match, matched_enn, implicit_kernels`.

In a checkout this is a module beside the others. Installed (`pip install .`), it is the package itself, and the other
modules lie inside it: `deq_enn.kernels`, `deq_enn.train`, ... (setup.py).
"""

from coefficients import (
    KernelCoefficients,
    MatchError,
    MixtureStatistics,
    equivalent_kernel,
    estimate_statistics,
    explicit_ck,
    explicit_ntk,
    implicit_ck,
    implicit_ntk,
)
from data_prepare import Dataset, gaussian_mixture, load_dataset
from fixed_point import Anderson, ConvergenceError, FixedPoint, Picard
from gaussian_integration import (
    ACTIVATIONS,
    Activation,
    centre,
    expectation,
    from_function,
    gaussian_moments,
    hermite_coefficients,
    load_activation,
    piecewise_linear,
)
from kernels import explicit_kernels, implicit_kernels
from matching import Match, fluctuation, match
from model import DEQ, ENN, build_model, matched_enn
from pcdeq import PcDEQ, build_pcdeq
from trained_deq import adapt
from utils import check_assumptions, estimate_tau0, get_tau
from verdict import verdict

__all__ = [
    "ACTIVATIONS",
    "DEQ",
    "ENN",
    "Activation",
    "Anderson",
    "ConvergenceError",
    "Dataset",
    "FixedPoint",
    "KernelCoefficients",
    "Match",
    "MatchError",
    "MixtureStatistics",
    "PcDEQ",
    "Picard",
    "adapt",
    "build_model",
    "build_pcdeq",
    "centre",
    "check_assumptions",
    "equivalent_kernel",
    "estimate_statistics",
    "estimate_tau0",
    "expectation",
    "explicit_ck",
    "explicit_kernels",
    "explicit_ntk",
    "fluctuation",
    "from_function",
    "gaussian_mixture",
    "gaussian_moments",
    "get_tau",
    "hermite_coefficients",
    "implicit_ck",
    "implicit_kernels",
    "implicit_ntk",
    "load_activation",
    "load_dataset",
    "match",
    "matched_enn",
    "piecewise_linear",
    "verdict",
]
