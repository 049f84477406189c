"""Three of the five doorways that are programs print what is computed here.

python two_layer_lrelu.py --asquare 0.2            the slopes of the two leaky-ReLU layers, root by root
python one_layer_tanh.py --asquare 0.2             the hard tanh of one layer
python gaussian_integration.py --activation swish  the Gaussian moments of an activation
"""

from collections.abc import Sequence

from deq_enn.names import ACTIVATIONS
from deq_enn.utils.arguments import OneLineParser, activation_name, add_asquare, scale
from deq_enn.utils.outcome import one_line


def _parser(name: str, description: str | None) -> OneLineParser:
    return OneLineParser(prog=f"{name}.py", description=description)


def _add_scales(parser: OneLineParser) -> None:
    add_asquare(parser.add_argument)
    parser.add_argument(
        "--tau0", type=scale, default=1.0, help="scale of the data, the root of their mean squared norm (default: 1)"
    )


def _digits(**values: float) -> str:
    return "  ".join(f"{name} = {value:<13.9g}" for name, value in values.items()).rstrip()


def leaky_relu(argv: Sequence[str] | None = None, description: str | None = None) -> None:
    """Prints every root (a1, b1, a2, b2) of Example 2, with the finite-width error that chooses between them."""
    parser = _parser("two_layer_lrelu", description)
    _add_scales(parser)
    a = parser.parse_args(argv)
    with one_line(parser):
        from deq_enn.matching.two_layer_lrelu import match, solutions
        from deq_enn.theory.activations import ACTIVATIONS
        from deq_enn.theory.coefficients import implicit_ck
        from deq_enn.theory.finite_width import fluctuation

        target = implicit_ck(ACTIVATIONS["relu"], a.asquare, a.tau0)
        chosen = match(target, a.tau0)
        for root in solutions(target, a.tau0):
            error = sum(fluctuation(root.layers, a.tau0, "readout"))
            taken = ", taken" if root.root == chosen.root else ""
            print(f"{_digits(a1=root.a1, b1=root.b1, a2=root.a2, b2=root.b2)}  (error {error:.3g}/m{taken})")


def hard_tanh(argv: Sequence[str] | None = None, description: str | None = None) -> None:
    """Prints the two parameters (a, c) of Example 1."""
    parser = _parser("one_layer_tanh", description)
    _add_scales(parser)
    a = parser.parse_args(argv)
    with one_line(parser):
        from deq_enn.matching.one_layer_tanh import match
        from deq_enn.theory.activations import ACTIVATIONS
        from deq_enn.theory.coefficients import implicit_ck

        result = match(implicit_ck(ACTIVATIONS["tanh"], a.asquare, a.tau0), a.tau0)
        print(_digits(a=result.a, c=result.c))


# formula of each moment, with phi = f - E[f] and everything taken at tau xi
MOMENTS = {
    "mean": "E[f]",
    "variance": "E[phi^2]",
    "d1": "E[phi']",
    "d2": "E[phi'']",
    "d1_sq": "E[phi'^2]",
    "sq_dd": "E[(phi^2)'']",
}


def moments(argv: Sequence[str] | None = None, description: str | None = None) -> None:
    """Prints the moments of an activation f at tau xi, where phi = f - E[f]."""
    parser = _parser("gaussian_integration", description)
    parser.add_argument(
        "--activation",
        type=activation_name,
        required=True,
        metavar="NAME",
        help=f"{', '.join(ACTIVATIONS)}, or path/to/file.py:name, whose code is run",
    )
    parser.add_argument("--tau", type=scale, default=1.0, help="standard deviation of the pre-activation (default: 1)")
    a = parser.parse_args(argv)
    with one_line(parser):
        from deq_enn.theory.activations import load_activation
        from deq_enn.theory.gaussian import gaussian_moments

        result = gaussian_moments(load_activation(a.activation), a.tau)
        for name, formula in MOMENTS.items():
            print(f"{name:<9}{formula:<13} = {getattr(result, name):.15g}")
