"""Another project imports from here: `from deq_enn import DEQ, match, matched_enn, implicit_kernels, verdict`.

A name is imported when it is asked for (PEP 562), so that `import deq_enn`, `--help` and a bad flag do not wait for
torch. `README.md` says which subpackage holds what.
"""

import importlib
import os
import sys

PROGRAM = os.path.abspath(sys.argv[0]) if sys.argv else ""
if sys.argv[:1] == ["-m"] or PROGRAM.endswith("deq-enn") or PROGRAM.startswith(os.path.dirname(__path__[0])):
    from deq_enn.utils.missing import say_in_one_line

    say_in_one_line()  # nothing is loaded in a program of somebody else
    if "OMP_WAIT_POLICY" not in os.environ:
        # rounds that a thread of torch waits at work before it gives up its core, some 0.2 ms. By default it is
        # 300,000: where another program keeps a core busy, that is 1.5 to 2.4 times slower; where none does, no faster.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all that is needed here
if TYPE_CHECKING:
    from deq_enn.data.datasets import Dataset, load_dataset
    from deq_enn.data.mixtures import gaussian_mixture
    from deq_enn.kernels.conv import conv_kernels
    from deq_enn.kernels.conv_explicit import conv_explicit_kernels
    from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
    from deq_enn.machines.estimator import KernelMachine
    from deq_enn.matching.families import Match, match
    from deq_enn.networks.build import build_model, matched_enn
    from deq_enn.networks.conv_deq import ConvDEQ
    from deq_enn.networks.conv_enn import ConvENN, build_conv, matched_conv_enn
    from deq_enn.networks.deq import DEQ
    from deq_enn.networks.empirical import empirical_ntk
    from deq_enn.networks.enn import ENN
    from deq_enn.networks.fixed_point import Anderson, ConvergenceError, FixedPoint, Picard, stopped
    from deq_enn.networks.pcdeq import PcDEQ, build_pcdeq
    from deq_enn.networks.trained_deq import adapt
    from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, load_activation, piecewise_linear
    from deq_enn.theory.coefficients import (
        KernelCoefficients,
        MatchError,
        explicit_ck,
        explicit_ntk,
        implicit_ck,
        implicit_ntk,
    )
    from deq_enn.theory.equilibrium import check_assumptions, estimate_image_tau0, estimate_tau0, get_tau
    from deq_enn.theory.finite_width import fluctuation
    from deq_enn.theory.gaussian import centre, expectation, gaussian_moments
    from deq_enn.theory.hermite import hermite_coefficients
    from deq_enn.theory.mixture import MixtureStatistics, equivalent_kernel, estimate_statistics
    from deq_enn.verdicts.api import verdict

__version__ = "1.1.0"

# Where each public name lives, below deq_enn. TYPE_CHECKING's imports say the same to a type checker.
_PLACES = {
    "data.datasets": ("Dataset", "load_dataset"),
    "data.mixtures": ("gaussian_mixture",),
    "kernels.conv": ("conv_kernels",),
    "kernels.conv_explicit": ("conv_explicit_kernels",),
    "kernels.exact": ("explicit_kernels", "implicit_kernels"),
    "machines.estimator": ("KernelMachine",),
    "matching.families": ("Match", "match"),
    "networks.build": ("build_model", "matched_enn"),
    "networks.conv_deq": ("ConvDEQ",),
    "networks.conv_enn": ("ConvENN", "build_conv", "matched_conv_enn"),
    "networks.deq": ("DEQ",),
    "networks.empirical": ("empirical_ntk",),
    "networks.enn": ("ENN",),
    "networks.fixed_point": ("Anderson", "ConvergenceError", "FixedPoint", "Picard", "stopped"),
    "networks.pcdeq": ("PcDEQ", "build_pcdeq"),
    "networks.trained_deq": ("adapt",),
    "theory.activations": ("ACTIVATIONS", "Activation", "from_function", "load_activation", "piecewise_linear"),
    "theory.coefficients": (
        "KernelCoefficients",
        "MatchError",
        "explicit_ck",
        "explicit_ntk",
        "implicit_ck",
        "implicit_ntk",
    ),
    "theory.equilibrium": ("check_assumptions", "estimate_image_tau0", "estimate_tau0", "get_tau"),
    "theory.finite_width": ("fluctuation",),
    "theory.gaussian": ("centre", "expectation", "gaussian_moments"),
    "theory.hermite": ("hermite_coefficients",),
    "theory.mixture": ("MixtureStatistics", "equivalent_kernel", "estimate_statistics"),
    "verdicts.api": ("verdict",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [  # sorted, as the linter has it
    "ACTIVATIONS",
    "DEQ",
    "ENN",
    "Activation",
    "Anderson",
    "ConvDEQ",
    "ConvENN",
    "ConvergenceError",
    "Dataset",
    "FixedPoint",
    "KernelCoefficients",
    "KernelMachine",
    "Match",
    "MatchError",
    "MixtureStatistics",
    "PcDEQ",
    "Picard",
    "adapt",
    "build_conv",
    "build_model",
    "build_pcdeq",
    "centre",
    "check_assumptions",
    "conv_explicit_kernels",
    "conv_kernels",
    "empirical_ntk",
    "equivalent_kernel",
    "estimate_image_tau0",
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
    "matched_conv_enn",
    "matched_enn",
    "piecewise_linear",
    "stopped",
    "verdict",
]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
