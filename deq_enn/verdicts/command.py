"""Should this DEQ be replaced, by what, and what will it cost? One command, within a minute, from the training set.

    python -m deq_enn verdict --dataset mnist --activation swish --asquare 0.3 --dim 1024
    python -m deq_enn verdict --dataset npz --dataset_path mine.npz --activation my_file.py:my_function --asquare 0.1
    python -m deq_enn verdict --dataset mnist --activation relu --checkpoint checkpoints/256_inn_mnist_seed0_KEY.pt
    python -m deq_enn verdict --dataset mnist --activation relu --export enn.pt

`verdict(deq, X, y)` is the same from Python. Does the theory apply, what could replace the DEQ, how far are their
kernels from the DEQ's on these data, what is lost, what is saved: docs/verdict.md says how the answer is reached.
"""

import json
import sys
import warnings
from pathlib import Path

from deq_enn.names import ACTIVATIONS
from deq_enn.utils import interrupts
from deq_enn.utils.arguments import (
    FAILED,
    OneLineParser,
    add_data_flags,
    bounded_float,
    check_data_flags,
    check_folder,
    duration,
    natural_int,
    positive_int,
)
from deq_enn.utils.interrupts import INTERRUPTED
from deq_enn.verdicts.result import Verdict


def make_parser():
    parser = OneLineParser(prog="deq-enn verdict", description=__doc__)
    add = parser.add_argument
    add_data_flags(add)
    add(
        "--activation",
        required=True,
        metavar="NAME",
        help=f"of the DEQ: {', '.join(ACTIVATIONS)}, or path/to/file.py:name, whose code is run",
    )
    add(
        "--asquare",
        type=bounded_float(0, 1, "between 0 and 1"),
        default=0.2,
        help="sigma_a^2 of the DEQ; sigma_b^2 = 1 - sigma_a^2 (default: 0.2)",
    )
    add(
        "--dim",
        type=positive_int,
        help="width of the DEQ and of what replaces it (default: 1024, or that of the checkpoint)",
    )
    add(
        "--checkpoint",
        metavar="FILE",
        help="the DEQ as main.py --train full has trained it, with this --activation "
        "and --asquare; losses are measured on the test set",
    )
    add("--budget", type=duration, default=60.0, metavar="TIME", help="time to take, such as 30s or 5m (default: 60s)")
    add(
        "--tolerance",
        type=bounded_float(0, 100, "between 0 and 100"),
        default=0.5,
        metavar="POINTS",
        help="loss of test accuracy that may be had, in percentage points (default: 0.5)",
    )
    add("--seed", type=natural_int, default=0, help="of subsamples and weights (default: 0)")
    add("--output", default="results/verdict", help="folder of verdict.json, .png and .html (default: results/verdict)")
    add(
        "--export",
        metavar="FILE.pt",
        help="write the network that replaces the DEQ, with its readout: FILE.pt, FILE.json, FILE.pt2 and FILE.onnx",
    )
    return parser


def main(argv=None):
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check_data_flags(parser, arguments)
    check_folder(parser, "output", arguments.output)
    if arguments.export:
        check_export(parser, arguments.export)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"deq-enn verdict: warning: {message}", file=sys.stderr)
        try:
            inquiry, normalised = prepare(arguments)
            try:
                inquiry.run(progress=sys.stderr.isatty())
            except KeyboardInterrupt:
                print("interrupted; known so far:")
                print(inquiry.conclude().table())
                parser.exit(INTERRUPTED, "deq-enn verdict: interrupted, nothing was written\n")
            found = inquiry.conclude()
            finish(found, arguments)
            if arguments.export:
                write_network(found, inquiry, arguments, normalised)
        except ValueError as error:
            parser.error(str(error))
        except (RuntimeError, OSError) as error:
            parser.exit(FAILED, f"deq-enn verdict: failed: {error}\n")
        except MemoryError as error:
            parser.exit(FAILED, f"deq-enn verdict: failed: out of memory ({error})\n")
        except KeyboardInterrupt:
            parser.exit(INTERRUPTED, "deq-enn verdict: interrupted, before anything was found\n")


def check_export(parser, path):
    if Path(path).suffix != ".pt":
        parser.error(f"argument --export: the file must end in .pt, got {path}")
    check_folder(parser, "export", Path(path).parent)


def prepare(arguments):
    """The inquiry that the flags ask for, and what the samples were normalised by, a mean and a scale.

    ValueError for what is wrong with the data, the DEQ or its checkpoint.
    """
    from deq_enn.data.datasets import load_dataset, load_training
    from deq_enn.networks.deq import DEQ
    from deq_enn.networks.trained_deq import load_checkpoint
    from deq_enn.theory.activations import load_activation
    from deq_enn.verdicts.after_training import inquire

    interrupts.raise_from_now_on()
    a = arguments
    activation = load_activation(a.activation)
    deq = held = None
    if a.checkpoint:
        deq = load_checkpoint(a.checkpoint, activation, a.asquare)
        if a.dim not in (None, len(deq.A)):
            raise ValueError(f"--dim {a.dim}: the DEQ of {a.checkpoint} has width {len(deq.A)}; leave --dim out")
    choice = dict(preset=a.preset, classes=a.classes, vgg_path=a.vgg_path)
    try:
        if deq is None:
            X, y, *normalised = load_training(a.dataset, a.dataset_path, **choice)
        else:
            data = load_dataset(a.dataset, a.dataset_path, **choice)
            X, y, held, normalised = data.X_train, data.y_train, (data.X_test, data.y_test), [data.mean, data.scale]
    except OSError as error:
        raise ValueError(str(error)) from None
    if deq is None:
        classes = 2 if y is None else int(y.max()) + 1
        deq = DEQ(activation, X.shape[1], a.dim or 1024, classes, a.asquare, seed=a.seed)
    print(
        f"{a.dataset}: {len(X)} training samples, p = {X.shape[1]}; {'trained ' * bool(a.checkpoint)}DEQ of "
        f"{activation.name}, sigma_a^2 = {a.asquare:g}, width {len(deq.A)}",
        flush=True,
    )
    return inquire(deq, X, y, held=held, budget=a.budget, tolerance=a.tolerance, seed=a.seed), normalised


def finish(found: Verdict, arguments):
    """Prints the verdict and writes it, with its figure and its page."""
    from deq_enn.utils.files import atomic_write
    from deq_enn.verdicts.page import write

    for sentence in found.applies.get("fails", ()):
        print(f"assumption: {sentence}")
    print(found.table())
    path = Path(arguments.output) / "verdict.json"
    settings = {"dataset": arguments.dataset, "dataset_path": arguments.dataset_path, **found.settings}
    numbers = found.to_dict() | {"settings": settings}
    with atomic_write(path, "w") as file:
        json.dump(numbers, file, indent=1, allow_nan=False)
    print(f"\n{found.seconds:.0f} s; {', '.join(map(str, [path, *write(numbers, path.parent)]))}")


def write_network(found: Verdict, inquiry, arguments, normalised):
    """Writes the chosen network with its readout, and prints what was written; says so where there is none."""
    from deq_enn.machines.readout import solve
    from deq_enn.networks.export import export, network_of

    if found.chosen is None:
        print(f"{arguments.export} is not written: the answer is {found.answer}, so that no network was chosen")
        return
    mean, scale = normalised
    if one := found.chosen.replacement:
        network, X = network_of(one.enn, one.readout, mean, scale / one.gain), inquiry.X
    else:
        inquiry = getattr(inquiry, "inner", inquiry)
        if inquiry.y is None:
            raise ValueError("--export: a readout is fitted to labels, and the data have none")
        X, y = inquiry.X[inquiry.order], inquiry.y[inquiry.order]
        enn = found.chosen.build(inquiry.p, inquiry.width, inquiry.classes, arguments.seed)
        network = network_of(enn, solve(enn, X, y, inquiry.classes)[0], mean, scale)
    rows = X[:64] * scale + (0 if mean is None else mean)
    written = export(network, arguments.export, rows)
    print(f"exported {found.chosen.name}: {', '.join(written['files'])}")
    if written["skipped"]:
        print(written["skipped"])
