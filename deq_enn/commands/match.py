"""This command prints the explicit network that matches a DEQ, in numbers, without data and without training.

    python -m deq_enn match --activation swish --asquare 0.2
    python -m deq_enn match --activation relu --asquare 0.2 --tau0 0.8 --kernel ntk
    python -m deq_enn match --activation my_file.py:my_function --asquare 0.1 --json

Printed are tau_* and the four coefficients of the DEQ's kernel, the family of layers that was taken and why no other
was, each layer as a function, and two errors: the residual of the four equations, which is rounding, and the mean
squared errors that the kernel of m random units has off the diagonal and on it, added up. `deq-enn export` writes such
a network with a readout.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deq_enn.names import ACTIVATIONS, FAMILIES
from deq_enn.utils import interrupts
from deq_enn.utils.arguments import OneLineParser, activation_name, add_asquare, scale
from deq_enn.utils.outcome import one_line

if TYPE_CHECKING:
    from deq_enn.matching.families import Match
    from deq_enn.theory.coefficients import KernelCoefficients

ROUNDING = 1e-15  # share of the largest number of a list below which another is shown as 0
# what the four coefficients (diag, c1, c2, c3) of either kernel are called
SYMBOLS = {"ck": ("gamma^2", "alpha_1", "alpha_2", "alpha_3"), "ntk": ("kappa^2", "beta_1", "beta_2", "beta_3")}
KERNELS = {"ck": "conjugate", "ntk": "tangent"}


def add_deq_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that name a DEQ and the match asked for."""
    parser.add_argument(
        "--activation",
        type=activation_name,
        required=True,
        metavar="NAME",
        help=f"of the DEQ: {', '.join(ACTIVATIONS)}, or path/to/file.py:name, whose code is run",
    )
    add_asquare(parser.add_argument)
    parser.add_argument(
        "--kernel",
        choices=("ck", "ntk"),
        default="ck",
        help="match the conjugate kernel (a trained readout) or the tangent kernel (all weights trained; default: ck)",
    )
    parser.add_argument("--family", choices=FAMILIES, default="auto", help="the layers of the match (default: auto)")


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    parser = OneLineParser(prog="deq-enn match", description=__doc__)
    add_deq_flags(parser)
    parser.add_argument(
        "--tau0", type=scale, default=1.0, help="scale of the data, the root of their mean squared norm (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, in full precision")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the match that the flags ask for; what cannot be matched is one line on stderr, with status 2."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    with one_line(parser):
        numbers, warnings = solve(arguments)
        for warning in warnings:
            print(f"{parser.prog}: warning: {warning}", file=sys.stderr)
        if arguments.json:
            print(json.dumps(numbers, indent=1))
        else:
            print("\n".join(lines(numbers)))


def solve(arguments: argparse.Namespace) -> tuple[dict, list[str]]:
    """Returns the DEQ and its match as numbers ready for JSON, and the assumptions of the paper that fail.

    Raises MatchError where no network of the family matches, ValueError where the DEQ has no kernel.
    """
    from deq_enn.matching.families import match
    from deq_enn.theory.activations import load_activation
    from deq_enn.theory.equilibrium import check_assumptions, get_tau
    from deq_enn.theory.finite_width import implicit_fluctuation

    interrupts.raise_from_now_on()
    a = arguments
    activation = load_activation(a.activation)
    try:
        result = match(activation, a.asquare, a.tau0, a.kernel, a.family)
    except OverflowError:
        raise ValueError(
            f"tau_0 = {a.tau0:g} is beyond what floats can square: scale the data to a tau_0 near 1"
        ) from None
    deq = {
        "activation": activation.name,
        "sigma_a2": a.asquare,
        "tau0": a.tau0,
        "tau": get_tau(activation, a.asquare, a.tau0),
        "kernel": a.kernel,
        "coefficients": named(result.target, a.kernel),
        # a formula for a DEQ of finite width is known for its conjugate kernel alone
        "fluctuation": sum(implicit_fluctuation(activation, a.asquare, a.tau0)) if a.kernel == "ck" else None,
    }
    return {"deq": deq, "match": described(result)}, check_assumptions(activation, a.asquare, a.tau0)


def named(coefficients: "KernelCoefficients", kernel: str) -> dict[str, float]:
    """Returns the four coefficients of a kernel by their names in the paper."""
    c = coefficients
    return dict(zip(SYMBOLS[kernel], (c.diag, c.c1, c.c2, c.c3)))


def described(match: "Match") -> dict:
    """Returns a match as numbers: each layer as a function, with the parameters that its family has."""
    from deq_enn.networks.layers import describe_layer

    layers = [
        describe_layer(layer) | {"parameters": parameters} for layer, parameters in zip(match.layers, match.parameters)
    ]
    return {
        "family": match.family,
        "trained": match.trained,
        "layers": layers,
        "coefficients": named(match.achieved, match.kernel),
        "residual": match.residual,
        "fluctuation": match.fluctuation,
        "passed_over": list(match.passed_over),
    }


def lines(numbers: dict) -> list[str]:
    """Returns the lines for a reader: the DEQ, then its match."""
    deq, match = numbers["deq"], numbers["match"]
    depth = len(match["layers"])
    printed = [
        f"DEQ of {deq['activation']}, sigma_a^2 = {deq['sigma_a2']:g}, tau_0 = {deq['tau0']:g}: "
        f"tau_* = {deq['tau']:.9g}",
        f"its {KERNELS[deq['kernel']]} kernel: " + listed(deq["coefficients"]),
        f"matched by {depth} layer{'s' * (depth > 1)} x -> sigma_l(W_l x)/sqrt(m), family {match['family']}:",
    ]
    printed += [f"  sigma_{index}: {shown(layer)}" for index, layer in enumerate(match["layers"], 1)]
    printed.append(f"largest relative error of its four coefficients: {match['residual']:.1e}")
    own = "" if deq["fluctuation"] is None else f"; the DEQ's own: {deq['fluctuation']:.4g}/m"
    what = "mean squared relative error of its kernel at width m, off the diagonal plus on it"
    printed.append(f"{what}: {match['fluctuation']:.4g}/m{own}")
    return printed + [f"passed over: {reason}" for reason in dict.fromkeys(match["passed_over"])]


def listed(values: dict) -> str:
    """Returns "name = value" of each, with nine digits; what is the rounding of a zero is 0 on every machine."""
    least = ROUNDING * max(map(abs, values.values()))
    return ", ".join(f"{name} = {value if abs(value) > least else 0:.9g}" for name, value in values.items())


def shown(layer: dict) -> str:
    """Returns a layer of `describe_layer` as a function of x in words and digits."""
    if layer["kind"] == "polynomial":
        terms = zip(layer["coefficients"], ("", " x", " x^2", " x^3"))
        return " + ".join(f"{value:.9g}{power}" for value, power in terms).replace("+ -", "- ")
    if layer["kind"] == "rescaled":
        return f"{layer['c']:.9g} {layer['activation']}({layer['a']:.9g} x)" + (
            f" + {layer['constant']:.9g}".replace("+ -", "- ") if layer["constant"] else ""
        )
    letters = {name: value for name, value in layer["parameters"].items() if isinstance(value, float)}
    letters.pop("value_at_zero", None)
    slopes = " ".join(f"{slope:.9g}" for slope in layer["slopes"])
    kinks = " ".join(f"{kink:.9g}" for kink in layer["kinks"])
    between = f"slopes {slopes} between kinks at {kinks}" if kinks else f"slope {slopes}"
    return (f"{listed(letters)}: " if letters else "") + f"{between}; {layer['value_at_zero']:.9g} at 0"


if __name__ == "__main__":
    main()
