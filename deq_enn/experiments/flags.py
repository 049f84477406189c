"""The command line of main.py: its flags, what they become where they are not given, and what is refused at once.

Nothing heavy is imported here: --help and a bad flag are answered without waiting for torch.
"""

import math

from deq_enn.names import ACTIVATIONS, FAMILIES, GENERAL, MODELS, PCDEQ_ACTIVATIONS, PCDEQS, UNMATCHED
from deq_enn.utils.arguments import (
    OneLineParser,
    add_data_flags,
    bounded_float,
    byte_count,
    check_data_flags,
    check_folder,
    natural_int,
    positive_int,
    rate,
    ridge,
)

# What a flag that is not given becomes, for each kind of training; a flag that its row does not have is refused for it.
# A kind of training is a row here and a grid of runs in grid.GRIDS.
THEORY = {"asquare": 0.2, "activation": "", "family": "auto"}


NETWORK = THEORY | {"dim": [256, 512, 1024]}


EXACT = {"ridge": ["auto"], "train_size": None, "depth": None}


STEPS = {"lr": 1.0, "epoch": 10, "batch_size": 128, "opt": "sgd"}


DEFAULTS = {
    "readout": NETWORK | STEPS | {"match": "ck"},
    "full": NETWORK | STEPS | {"match": "ntk"},
    "ridge": NETWORK | EXACT | {"match": "ck"},
    "kernel": THEORY | EXACT | {"match": "ck", "memory": None},
    "pcdeq": {
        "lr": 7e-4,
        "epoch": 50,
        "batch_size": 64,
        "weight_decay": 1e-2,
        "milestone": 0,
        "aug": False,
        "activation": "",
    },
}


# the values of --train, the default first; a positive concave DEQ has a kind of its own
TRAININGS = "readout", "full", "ridge", "kernel"


class Parser(OneLineParser):
    def __init__(self, world, **options):
        super().__init__(**options)
        self.exit = world.exit  # what is wrong is said once, however many processes there are


def make_parser(world, description):
    """The parser of all flags. A flag in DEFAULTS is None where it is not given."""
    parser = Parser(world, prog="main.py", description=description)
    add = parser.add_argument
    add_data_flags(add)
    add(
        "--model",
        nargs="+",
        default=list(MODELS),
        choices=MODELS + GENERAL + PCDEQS,
        metavar="MODEL",
        help=f"from {', '.join(MODELS)} (default: these), {', '.join(GENERAL)} (of --activation), "
        f"or one of {', '.join(PCDEQS)}",
    )
    add("--dim", nargs="+", type=positive_int, help="width(s) (default: 256 512 1024)")
    add("--seed", nargs="+", type=natural_int, default=[0], help="seed(s) of weights and order (default: 0)")
    add(
        "--train",
        choices=TRAININGS,
        help="the readout on fixed features by steps (default), every weight (full), the "
        "readout solved exactly (ridge), or the network at infinite width (kernel)",
    )
    add(
        "--lr",
        type=rate,
        help="learning rate (default: 1; pcDEQ: 7e-4); auto: chosen for each run on a validation "
        "part of the training set",
    )
    add("--epoch", type=positive_int, help="epochs (default: 10; pcDEQ: 50)")
    add("--batch_size", type=positive_int, help="batch size (default: 128; pcDEQ: 64)")
    add("--opt", choices=("sgd", "adam"), help="optimizer (default: sgd; a pcDEQ has AdamW)")
    add(
        "--asquare",
        type=bounded_float(0, 1, "between 0 and 1"),
        help="sigma_a^2, for everything in the run; sigma_b^2 = 1 - sigma_a^2 (default: 0.2)",
    )
    add(
        "--activation",
        metavar="NAME",
        help=f"of {', '.join(GENERAL)}: {', '.join(ACTIVATIONS)}, "
        "or path/to/file.py:name, whose code is run; "
        "of a pcDEQ-1: tanh (default), softsign, relu6; of a pcDEQ-2: sigmoid",
    )
    add(
        "--match",
        choices=("ck", "ntk"),
        help="the kernel that matched_enn matches, and that --train kernel takes (default: ck, ntk with --train full)",
    )
    add(
        "--ridge",
        nargs="+",
        type=ridge,
        metavar="R",
        help="of --train ridge and kernel, relative to the kernel's "
        "mean diagonal; of several the best on held-out training samples is taken (default: auto, a grid)",
    )
    add(
        "--train_size",
        nargs="+",
        type=positive_int,
        metavar="N",
        help="of --train ridge and kernel: only so many training samples; several are nested (default: all)",
    )
    add(
        "--depth",
        nargs="+",
        type=positive_int,
        metavar="L",
        help="of --train ridge and kernel: layers of the unmatched networks (default: as published)",
    )
    add(
        "--memory",
        type=byte_count,
        metavar="BYTES",
        help="of --train kernel: what a process may take, such as 8G; a "
        "kernel that does not fit goes to --save_path (default: 90%% of what is free)",
    )
    add("--family", choices=FAMILIES, help="the layers of matched_enn (default: auto)")
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
    return parser


def parse_arguments(argv, world, description=None):
    """The parser and the checked arguments, with defaults filled in; `train` is a key of DEFAULTS, `together` says
    whether all ranks share one run. Exits with BAD_INPUT and one line where a flag is wrong."""
    parser = make_parser(world, description)
    arguments = parser.parse_args(argv)
    fill_in(parser, arguments)
    check_activation(parser, arguments)
    for flag in ("model", "dim", "seed", "classes", "ridge", "train_size", "depth"):
        values = getattr(arguments, flag)
        if values and len(set(values)) < len(values):
            parser.error(f"argument --{flag}: a value is given twice")
    if arguments.train == "pcdeq" and arguments.lr == "auto":
        parser.error("argument --lr: auto is not for a positive concave DEQ; give it a rate")
    if arguments.ridge and "auto" in arguments.ridge and len(arguments.ridge) > 1:
        parser.error("argument --ridge: auto stands alone")
    if arguments.depth and not any(name in UNMATCHED for name in arguments.model):
        parser.error(f"argument --depth: only {', '.join(UNMATCHED)} have one to choose")
    check_paths(parser, arguments)
    runs = len(arguments.model) * len(arguments.dim or [None]) * len(arguments.seed)
    # every rank has a share of each run
    arguments.together = world.size > 1 and (arguments.train == "kernel" or runs == 1 and arguments.train == "full")
    if world.size > runs and not arguments.together:
        parser.error(
            f"{world.size} ranks for {runs} run{'s' * (runs > 1)} (models x dims x seeds): start at most one "
            "rank a run; only a single run with --train full, and those with --train kernel, are shared"
        )
    return parser, arguments


def fill_in(parser, arguments):
    """The kind of training, and the defaults of its flags."""
    trainings = TRAININGS
    if any(name in PCDEQS for name in arguments.model):
        if len(arguments.model) > 1:
            parser.error(f"argument --model: a positive concave DEQ is trained alone, got {' '.join(arguments.model)}")
        if arguments.train:
            parser.error(f"argument --train: not a setting of {arguments.model[0]}")
        trainings = ("pcdeq",)
    arguments.train = arguments.train or trainings[0]
    for flag in dict.fromkeys(flag for row in DEFAULTS.values() for flag in row):
        if flag not in DEFAULTS[arguments.train] and getattr(arguments, flag) is not None:
            elsewhere = any(flag in DEFAULTS[other] for other in trainings)
            owner = f"--train {arguments.train}" if elsewhere else arguments.model[0]
            parser.error(f"argument --{flag}: not a setting of {owner}")
        if getattr(arguments, flag) is None:
            setattr(arguments, flag, DEFAULTS[arguments.train].get(flag))


def check_activation(parser, arguments):
    general = [name for name in arguments.model if name in GENERAL]
    if general and not arguments.activation:
        parser.error(f"argument --activation: {general[0]} needs one, such as swish")
    if arguments.activation and arguments.train == "pcdeq":
        known = sum(PCDEQ_ACTIVATIONS.values(), ())
        if arguments.activation not in known:
            parser.error(
                f"argument --activation: a positive concave DEQ has one of {', '.join(known)}, "
                f"got {arguments.activation!r}"
            )
    elif arguments.activation and not general:
        parser.error(f"argument --activation: not a setting of {arguments.model[0]}, which has its own")


def check_paths(parser, arguments):
    check_data_flags(parser, arguments)
    for flag in ("output_path", "save_path"):
        check_folder(parser, flag, getattr(arguments, flag))
