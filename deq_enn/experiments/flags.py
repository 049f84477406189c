"""The command line of main.py is here: its flags, their defaults, and what is refused at once.

Nothing heavy is imported here: --help and a bad flag are answered without waiting for torch.
"""

import importlib.util
import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence

from deq_enn.names import (
    ACTIVATIONS,
    CONVOLUTIONAL,
    DEPTHS,
    DEQS,
    FAMILIES,
    GENERAL,
    IMAGE_DATASETS,
    MODELS,
    PADDINGS,
    PCDEQ_ACTIVATIONS,
    PCDEQS,
)
from deq_enn.utils.arguments import (
    ASQUARE,
    OneLineParser,
    activation_name,
    add_asquare,
    add_data_flags,
    bounded_float,
    byte_count,
    check_data_flags,
    check_folder,
    natural_int,
    odd_int,
    positive_int,
    rate,
    ridge,
    ridge_size,
    scheduler_address,
    step_count,
)
from deq_enn.utils.team import one_voice, ranks

# groups of flags with their defaults, of which the rows of DEFAULTS are made
CONVOLUTION = {"kernel_size": 3, "padding": "zero", "pool": False}
THEORY = {"asquare": ASQUARE, "activation": "", "family": "auto", "depth": None} | CONVOLUTION
NETWORK = THEORY | {"dim": [256, 512, 1024]}
EXACT = {"ridge": ["auto"], "train_size": None}
# of a solver that runs to an equilibrium, and of one that does not
SOLVING = {"solver": "", "max_steps": 0, "solver_tol": 0.0, "lenient": False, "jacobian": None}
EQUILIBRIUM = SOLVING | {"steps": None}
STEPS = {"lr": 1.0, "epoch": 10, "batch_size": 128, "opt": "sgd"}

# What a flag that is not given becomes, for each kind of training; a flag that its row does not have is refused for it.
# A kind of training is a row here and a grid of runs in the GRIDS of grid.py or exact_grid.py.
DEFAULTS = {
    "readout": NETWORK | STEPS | {"match": "ck"},
    "full": NETWORK | STEPS | EQUILIBRIUM | {"match": "ntk"},
    "ridge": NETWORK | EXACT | {"match": "ck"},
    "kernel": THEORY | EXACT | {"match": "ck", "memory": None, "ridge_size": None},
    "pcdeq": EQUILIBRIUM
    | {"lr": 7e-4, "epoch": 50, "batch_size": 64, "weight_decay": 1e-2, "milestone": 0, "aug": False, "activation": ""}
    | {"precise_bn": 0},
}

# the values of --train, the default first; a positive concave DEQ has a kind of its own
TRAININGS = "readout", "full", "ridge", "kernel"


def _add_grid(add: Callable) -> None:
    add(
        "--model",
        nargs="+",
        default=list(MODELS),
        choices=MODELS + GENERAL + CONVOLUTIONAL + PCDEQS,
        metavar="MODEL",
        help=f"from {', '.join(MODELS)} (default: these), {', '.join(GENERAL)} (of --activation), "
        f"{', '.join(CONVOLUTIONAL)} (of --activation, on images), or one of {', '.join(PCDEQS)}",
    )
    add("--dim", nargs="+", type=positive_int, help="width(s) (default: 256 512 1024)")
    add("--seed", nargs="+", type=natural_int, default=[0], help="seed(s) of weights and order (default: 0)")
    add(
        "--train",
        choices=TRAININGS,
        help="the readout on fixed features by steps (default), every weight (full), the "
        "readout solved exactly (ridge), or the network at infinite width (kernel)",
    )


def _add_steps(add: Callable) -> None:
    add(
        "--lr",
        type=rate,
        help="learning rate (default: 1; pcDEQ: 7e-4); auto: chosen for each run on a validation "
        "part of the training set",
    )
    add("--epoch", type=positive_int, help="epochs (default: 10; pcDEQ: 50)")
    add("--batch_size", type=positive_int, help="batch size (default: 128; pcDEQ: 64)")
    add("--opt", choices=("sgd", "adam"), help="optimizer (default: sgd; a pcDEQ has AdamW)")


def _add_networks(add: Callable) -> None:
    add_asquare(add, default=None)
    add(
        "--activation",
        metavar="NAME",
        help=f"of {', '.join(GENERAL + CONVOLUTIONAL)}: {', '.join(ACTIVATIONS)}, "
        "or path/to/file.py:name, whose code is run; "
        "of a pcDEQ-1: tanh (default), softsign, relu6; of a pcDEQ-2: sigmoid",
    )
    add(
        "--match",
        choices=("ck", "ntk"),
        help="the kernel that matched_enn matches, and that --train kernel takes (default: ck, ntk with --train full)",
    )
    add("--family", choices=FAMILIES, help="the layers of matched_enn (default: auto)")
    add(
        "--depth",
        nargs="+",
        type=positive_int,
        metavar="L",
        help=f"layers of {', '.join(DEPTHS)} (default: as published; of plain_conv 2)",
    )


def _add_convolutions(add: Callable) -> None:
    add("--kernel_size", type=odd_int, metavar="K", help=f"of {', '.join(CONVOLUTIONAL)}: odd (default: 3)")
    add("--padding", choices=PADDINGS, help="what lies around an image of a convolution (default: zero)")
    add("--pool", action="store_true", default=None, help="the readout sees the mean over the pixels, not each of them")


def _add_exact(add: Callable) -> None:
    add(
        "--ridge",
        nargs="+",
        type=ridge,
        metavar="R",
        help="of --train ridge and kernel, relative to the kernel's "
        "mean diagonal; of several the best on held-out training samples is taken (default: auto, a grid)",
    )
    add(
        "--ridge_size",
        type=ridge_size,
        metavar="N",
        help="of --train kernel: training samples that choose the ridge, whose last fifth is predicted by the others "
        "(default: a third, or 8000 where that is more)",
    )
    add(
        "--train_size",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="of --train ridge and kernel: only so many training samples; several are nested (default: all)",
    )
    add(
        "--memory",
        type=byte_count,
        metavar="BYTES",
        help="of --train kernel: what a process may take, such as 8G; a "
        "kernel that does not fit goes to --save_path (default: 90%% of what is free)",
    )


def _add_pcdeq(add: Callable) -> None:
    add(
        "--weight_decay",
        type=bounded_float(-1e-300, math.inf, "0 or positive, and finite"),
        help="of a pcDEQ (default: 1e-2)",
    )
    add(
        "--milestone",
        type=positive_int,
        metavar="EPOCH",
        help="after it a pcDEQ's learning rate is a tenth (default: never)",
    )
    add("--aug", action="store_true", default=None, help="a pcDEQ's training images are shifted and flipped at random")
    add(
        "--precise_bn",
        type=positive_int,
        metavar="BATCHES",
        help="for each test of a pcDEQ the statistics of its batch normalisation are estimated from so many batches of "
        "training images, at the weights of that epoch (default: the running means of training, which lag)",
    )


def _add_equilibria(add: Callable) -> None:
    add(
        "--steps",
        nargs="+",
        type=step_count,
        metavar="K",
        help="where every weight of a DEQ is trained (--train full, pcDEQ): stop it after K steps, as an explicit "
        "network of tied weights; inf: the DEQ itself; several are trained side by side (default: inf)",
    )
    add("--solver", choices=("picard", "anderson"), help="of the equilibria and their gradients (default: picard)")
    add("--max_steps", type=positive_int, metavar="N", help="steps that a solver has (default: 200; pcDEQ: 1000)")
    add(
        "--solver_tol",
        type=bounded_float(0, 1, "between 0 and 1"),
        metavar="T",
        help="relative residual that each sample has to reach (default: 1e-6; pcDEQ: 1e-4)",
    )
    add(
        "--lenient",
        action="store_true",
        default=None,
        help="go on where samples miss the tolerance, and log how many (default: the run ends)",
    )
    add(
        "--jacobian",
        type=bounded_float(-1e-300, math.inf, "0 or positive, and finite"),
        metavar="W",
        help="add W times the squared Frobenius norm of df/dz by state dimension to the loss, as Hutchinson estimates "
        "it; 0: log it alone (default: neither)",
    )


def _add_output(add: Callable) -> None:
    add("--device", help="cpu, cuda or cuda:0 (default: CUDA if there is one)")
    add("--output_path", default="results", help="folder for logs and figure (default: results)")
    add(
        "--save_path",
        default="checkpoints",
        help="folder for checkpoints (default: checkpoints); and, where every weight is trained (--train full, pcDEQ), "
        "for the weights that were best by test accuracy, NAME.best.pt, as the pcDEQs' published code keeps them, "
        "while the last epoch is what is reported",
    )
    add("--resume", action="store_true", help="skip finished runs and go on with a killed one")


def make_parser(prog: str = "main.py", description: str | None = None) -> OneLineParser:
    """Builds the parser of all flags. A flag in DEFAULTS is None where it is not given."""
    parser = OneLineParser(prog=prog, description=description)
    add_data_flags(parser.add_argument)
    groups = _add_grid, _add_steps, _add_networks, _add_convolutions, _add_equilibria, _add_exact, _add_pcdeq
    for group in (*groups, _add_output):
        group(parser.add_argument)
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--processes", type=positive_int, metavar="K", help="processes that share the runs of the grid (default: 1)"
    )
    engine.add_argument(
        "--scheduler",
        type=scheduler_address,
        metavar="ADDRESS",
        help="of a Dask cluster whose workers make the runs, such as tcp://HOST:8786",
    )
    return parser


def parse_arguments(
    argv: Sequence[str] | None, prog: str = "main.py", description: str | None = None
) -> tuple[OneLineParser, Namespace]:
    """Returns the parser and the checked arguments, with defaults filled in; `train` is a key of DEFAULTS, `together`
    says whether the ranks of torchrun share the runs. Exits with BAD_INPUT and one line where a flag is wrong."""
    parser = make_parser(prog, description)
    try:
        rank, size, _ = ranks()
    except ValueError as error:
        parser.error(str(error))
    with one_voice(rank):
        arguments = parser.parse_args(argv)
        fill_in(parser, arguments)
        check_values(parser, arguments)
        check_engine(parser, arguments, size)
    return parser, arguments


def check_values(parser: OneLineParser, arguments: Namespace) -> None:
    """Refuses values that do not go together, and folders that cannot be written to."""
    check_activation(parser, arguments)
    check_equilibria(parser, arguments)
    for flag in ("model", "dim", "seed", "classes", "ridge", "train_size", "depth", "steps"):
        values = getattr(arguments, flag)
        if values and len(set(values)) < len(values):
            parser.error(f"argument --{flag}: a value is given twice")
    if arguments.train == "pcdeq" and arguments.lr == "auto":
        parser.error("argument --lr: auto is not for a positive concave DEQ; give it a rate")
    if arguments.ridge and "auto" in arguments.ridge and len(arguments.ridge) > 1:
        parser.error("argument --ridge: auto stands alone")
    if arguments.ridge_size and arguments.ridge != ["auto"] and len(arguments.ridge) == 1:
        parser.error("argument --ridge_size: a single --ridge is not chosen")
    if arguments.depth and not any(name in DEPTHS for name in arguments.model):
        parser.error(f"argument --depth: only {', '.join(DEPTHS)} have one to choose")
    if any(name in CONVOLUTIONAL for name in arguments.model) and arguments.dataset not in IMAGE_DATASETS:
        parser.error(
            f"argument --dataset: a convolutional network needs images, of {', '.join(IMAGE_DATASETS)}; got "
            f"{arguments.dataset}"
        )
    check_paths(parser, arguments)


def check_engine(parser: OneLineParser, arguments: Namespace, size: int) -> None:
    """Settles who makes the runs: this process, workers, or the `size` ranks of torchrun, which share each run.

    `lengthen` says whether a run may go on from the end of a shorter one.
    """
    if arguments.scheduler and not importlib.util.find_spec("distributed"):
        parser.error("argument --scheduler: the package distributed is missing: pip install 'deq_enn[cluster]'")
    runs = len(arguments.model) * len(arguments.dim or [None]) * len(arguments.seed) * len(arguments.steps or [None])
    arguments.lengthen = arguments.resume  # also where a worker is told to resume a run of its own
    arguments.together = size > 1 and (arguments.train == "kernel" or runs == 1 and arguments.train == "full")
    if size == 1:
        return
    if arguments.processes or arguments.scheduler:
        parser.error("argument --processes, --scheduler: not for the ranks of torchrun; start main.py without it")
    if not arguments.together:
        parser.error(
            "under torchrun all ranks share one computation, --train kernel or a single run with --train full: "
            f"for the runs of a grid start main.py without it, with --processes {size}"
        )


def fill_in(parser: OneLineParser, arguments: Namespace) -> None:
    """Settles the kind of training, and fills in the defaults of its flags."""
    trainings = settle_training(parser, arguments)
    matching = ("family",) if arguments.train == "kernel" else ("family", "match")  # whose kernel is that of --match
    matched = [name for name in GENERAL + CONVOLUTIONAL if name.startswith("matched")]
    for flags, models in ((CONVOLUTION, CONVOLUTIONAL), (matching, matched)):
        given = [flag for flag in flags if getattr(arguments, flag) is not None]
        if given and not any(name in models for name in arguments.model):
            parser.error(f"argument --{given[0]}: only {', '.join(models)} have one")
    for flag in dict.fromkeys(flag for row in DEFAULTS.values() for flag in row):
        if flag not in DEFAULTS[arguments.train] and getattr(arguments, flag) is not None:
            elsewhere = any(flag in DEFAULTS[other] for other in trainings)
            owner = f"--train {arguments.train}" if elsewhere else arguments.model[0]
            parser.error(f"argument --{flag}: not a setting of {owner}")
        if getattr(arguments, flag) is None:
            setattr(arguments, flag, DEFAULTS[arguments.train].get(flag))


def settle_training(parser: OneLineParser, arguments: Namespace) -> tuple[str, ...]:
    """Settles the kind of training, and returns the kinds that the models could have had."""
    trainings = TRAININGS
    if any(name in PCDEQS for name in arguments.model):
        if len(arguments.model) > 1:
            parser.error(f"argument --model: a positive concave DEQ is trained alone, got {' '.join(arguments.model)}")
        if arguments.train:
            parser.error(f"argument --train: not a setting of {arguments.model[0]}")
        trainings = ("pcdeq",)
    arguments.train = arguments.train or trainings[0]
    return trainings


def check_activation(parser: OneLineParser, arguments: Namespace) -> None:
    """Refuses an activation that the models do not take, and models that lack one."""
    general = [name for name in arguments.model if name in GENERAL + CONVOLUTIONAL]
    if general and not arguments.activation:
        parser.error(f"argument --activation: {general[0]} needs one, such as swish")
    if arguments.activation and arguments.train == "pcdeq":
        for model in arguments.model:
            if arguments.activation not in (known := PCDEQ_ACTIVATIONS[model[-1]]):
                several = "one of " * (len(known) > 1) + ", ".join(known)
                parser.error(f"argument --activation: {model} has {several}; got {arguments.activation!r}")
    elif arguments.activation and not general:
        parser.error(f"argument --activation: not a setting of {arguments.model[0]}, which has its own")
    elif arguments.activation:
        try:
            activation_name(arguments.activation)
        except ArgumentTypeError as error:
            parser.error(f"argument --activation: {error}")


def check_equilibria(parser: OneLineParser, arguments: Namespace) -> None:
    """Refuses settings of equilibria where no network has one, or none is solved for."""
    some = any(name in DEQS + PCDEQS for name in arguments.model)
    if arguments.steps and not some:
        parser.error(f"argument --steps: only {', '.join(DEQS)} and positive concave DEQs have steps")
    solved = some and 0 in (arguments.steps or [0])
    for flag in SOLVING if not solved else ():
        if getattr(arguments, flag) not in (SOLVING[flag], None):
            advice = "; add inf to --steps" if some else ""
            parser.error(f"argument --{flag}: no network of this grid is solved for an equilibrium{advice}")


def check_paths(parser: OneLineParser, arguments: Namespace) -> None:
    """Refuses data without a path, and folders that cannot be written to."""
    check_data_flags(parser, arguments)
    for flag in ("output_path", "save_path"):
        check_folder(parser, flag, getattr(arguments, flag))
