"""Should this DEQ be replaced, by what, and what will it cost? One command, within a minute, from the training set.

    python -m deq_enn verdict --dataset mnist --activation swish --asquare 0.3 --dim 1024
    python -m deq_enn verdict --dataset npz --dataset_path mine.npz --activation my_file.py:my_function --asquare 0.1
    python -m deq_enn verdict --dataset mnist --activation relu --checkpoint checkpoints/256_inn_mnist_seed0_KEY.pt
    python -m deq_enn verdict --dataset mnist --activation relu --export enn.pt
    python -m deq_enn verdict --dataset mnist --activation relu --asquare 0.5 --kernel_size 3 --dim 32
    python -m deq_enn verdict --module my_file.py:build --weights w.pt --dataset npz --dataset_path mine.npz

`verdict(deq, X, y)` is the same from Python. Does the theory apply, what could replace the DEQ, how far are their
kernels from the DEQ's on these data, what is lost, what is saved: docs/verdict.md says how the answer is reached.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deq_enn.names import ACTIVATIONS, IMAGE_DATASETS, PADDINGS
from deq_enn.unrolling.result import StepVerdict
from deq_enn.utils import interrupts
from deq_enn.utils.arguments import (
    ASQUARE,
    OneLineParser,
    add_asquare,
    add_data_flags,
    bounded_float,
    check_data_flags,
    check_files,
    check_folder,
    check_network_path,
    duration,
    natural_int,
    odd_int,
    old_spelling,
    positive_int,
    probability,
)
from deq_enn.utils.interrupts import INTERRUPTED
from deq_enn.utils.locks import locked
from deq_enn.utils.outcome import one_line
from deq_enn.verdicts.result import RISK, Verdict

if TYPE_CHECKING:
    from deq_enn.verdicts.after_training import PendingVerdict

Normalised = Sequence[Any]  # of the samples: the mean (or None) that was subtracted, the divisor, and the labels
ASKED = "budget", "tolerance", "seed", "decide_on", "risk", "seen"  # flags that `begin` takes as they are


def make_parser() -> OneLineParser:
    """Builds the parser of the flags."""
    parser = OneLineParser(prog="deq-enn verdict", description=__doc__)
    add = parser.add_argument
    add_data_flags(add)
    add(
        "--activation",
        metavar="NAME",
        help=f"of the DEQ: {', '.join(ACTIVATIONS)}, or path/to/file.py:name, whose code is run (not with --module)",
    )
    add_asquare(add, default=None)
    add(
        "--dim",
        type=positive_int,
        help="width of the DEQ and of what replaces it (default: 1024, or that of the checkpoint; 64 channels)",
    )
    add("--kernel_size", type=odd_int, metavar="K", help="a convolutional DEQ of K x K filters, K odd, on images")
    add("--padding", choices=PADDINGS, help="what lies around an image, with --kernel_size (default: zero)")
    add("--pool", action="store_true", help="the readout sees the mean over the pixels, with --kernel_size")
    add(
        "--checkpoint",
        metavar="FILE",
        help="the DEQ as main.py --train full, or a pcDEQ, was trained, with this --activation "
        "and --asquare; losses are measured on the test set",
    )
    add_module_flags(add)
    add("--budget", type=duration, default=60.0, metavar="TIME", help="time to take, such as 30s or 5m (default: 60s)")
    add(
        "--tolerance",
        type=bounded_float(0, 100, "between 0 and 100"),
        default=0.5,
        metavar="POINTS",
        help="loss of test accuracy that may be had, in percentage points (default: 0.5)",
    )
    add(
        "--for",
        dest="decide_on",
        choices=("draw", "mean"),
        help="decide on the loss with the weights of this --seed, or on the mean over draws (default: draw)",
    )
    add(
        "--risk",
        type=probability(0.5),
        metavar="P",
        help="probability below which a network may lose more than the tolerance where replace is said, and less where "
        "keep is (default: 10%%)",
    )
    add("--seed", type=natural_int, default=0, help="of subsamples and weights (default: 0)")
    add("--device", help="cpu, cuda or cuda:0 (default: CUDA if there is one)")
    add(
        "--output_path",
        default="results/verdict",
        help="folder of verdict.json, .png and .html (default: results/verdict)",
    )
    old_spelling(parser, "--output", "--output_path")
    add(
        "--export",
        metavar="FILE.pt",
        help="write the network that replaces the DEQ, with its readout: FILE.pt, FILE.json, FILE.pt2 and FILE.onnx",
    )
    return parser


def add_module_flags(add: Callable[..., object]) -> None:
    """Adds the flags of a user's own module, by a parser's `add_argument`."""
    add(
        "--module",
        metavar="FILE.py:build",
        help="a trained DEQ of your own: build() in that file, whose code is run, returns the torch.nn.Module; a "
        "function steps(module, k) in it says how to stop it, where neither FixedPoint nor torchdeq solves it",
    )
    add("--weights", metavar="FILE.pt", help="its state_dict, never unpickled; without it, what build() returns")
    add(
        "--samples",
        choices=("raw", "normalised"),
        help="as --module takes them: as the file has them, in its shapes (raw, the default with npz), or centred and "
        "scaled rows as main.py trains on (the default with other data)",
    )
    add("--sample_shape", nargs="+", type=positive_int, metavar="N", help="of a sample of --module, such as 1 28 28")
    add(
        "--seen",
        type=bounded_float(0, float("inf"), "positive"),
        metavar="N",
        help="samples that a trained DEQ passed in its training, each time that one was; networks in its place are "
        "trained on no more",
    )


def check_module_flags(parser: ArgumentParser, arguments: Namespace) -> None:
    """Refuses flags of a module that do not go together."""
    a = arguments
    if not a.module:
        given = [name for name in ("weights", "samples", "sample_shape") if getattr(a, name)]
        if given:
            parser.error(f"argument --{given[0]}: it is for a module of your own (--module)")
        if not a.activation:
            parser.error("the following arguments are required: --activation")
    elif clash := next((name for name in ("checkpoint", "activation", "dim", "asquare") if getattr(a, name)), None):
        parser.error(f"argument --{clash}: not with --module, which says it itself")


def check_trained_flags(parser: ArgumentParser, arguments: Namespace) -> None:
    """Refuses flags that only a trained DEQ has, or only one at initialisation, and fills in the defaults.

    A flag that is given is told from its default, also where both have one value.
    """
    a = arguments
    trained = next((name for name in ("module", "checkpoint") if getattr(a, name)), None)
    if trained and a.decide_on:
        parser.error(f"argument --for: not with --{trained}, whose weights are those that it has")
    if trained and a.risk:
        parser.error(f"argument --risk: not with --{trained}, whose losses are measured: their 90% intervals decide")
    if a.seen and not trained:
        parser.error("argument --seen: it is for a trained DEQ (--module or --checkpoint)")
    a.decide_on, a.risk = a.decide_on or "draw", a.risk or RISK


def check_convolution_flags(parser: ArgumentParser, arguments: Namespace) -> None:
    """Refuses flags of a convolutional DEQ where there is none, and data that are no images."""
    a = arguments
    if a.kernel_size is None:
        if a.padding or a.pool:
            parser.error(
                f"argument --{'padding' if a.padding else 'pool'}: it is for a convolutional DEQ (--kernel_size)"
            )
        return
    if clash := next((name for name in ("checkpoint", "module") if getattr(a, name)), None):
        parser.error(f"argument --kernel_size: not with --{clash}; it is of a DEQ at initialisation")
    if a.dataset not in IMAGE_DATASETS:
        parser.error(
            f"argument --dataset: a convolutional DEQ needs images, of {', '.join(IMAGE_DATASETS)}; got {a.dataset}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the verdict that a command line asks for, and writes it."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check_data_flags(parser, arguments)
    check_module_flags(parser, arguments)
    check_trained_flags(parser, arguments)
    check_convolution_flags(parser, arguments)
    module = (arguments.module or "").rpartition(":")[0]
    check_files(parser, module=module, weights=arguments.weights, checkpoint=arguments.checkpoint)
    check_folder(parser, "output_path", arguments.output_path)
    if arguments.export:
        check_network_path(parser, "export", arguments.export)
    with one_line(parser, ", before anything was found"), locked(arguments.output_path, "output_path"):
        pending, normalised = prepare(arguments)
        try:
            pending.run(progress=sys.stderr.isatty())
        except KeyboardInterrupt:
            print("interrupted; known so far:")
            print(pending.conclude().table())
            parser.exit(INTERRUPTED, f"{parser.prog}: interrupted, nothing was written\n")
        try:
            finish(pending, arguments, normalised)
        except KeyboardInterrupt:
            parser.exit(
                INTERRUPTED, f"{parser.prog}: interrupted while its files were written; each that is there is whole\n"
            )


def prepare(arguments: Namespace) -> tuple[PendingVerdict, Normalised]:
    """Loads the data and the DEQ, and returns the verdict to make and what the samples were normalised by.

    Raises ValueError with what is wrong with the data, the DEQ or its checkpoint.
    """
    interrupts.raise_from_now_on()
    if arguments.module:
        return prepare_module(arguments)
    return prepare_convolution(arguments) if arguments.kernel_size else prepare_rows(arguments)


def prepare_rows(arguments: Namespace) -> tuple[PendingVerdict, Normalised]:
    """Loads rows, and loads or draws a DEQ; as `prepare`."""
    from deq_enn.data.datasets import load_dataset, load_training_set
    from deq_enn.networks.deq import DEQ
    from deq_enn.theory.activations import load_activation
    from deq_enn.unrolling.sources import load_any
    from deq_enn.utils.devices import get_device
    from deq_enn.verdicts.after_training import begin

    a = arguments
    deq = held = None
    if a.checkpoint:
        deq = load_any(a.checkpoint, a.activation, a.asquare or ASQUARE)
    choice = dict(preset=a.preset, classes=a.classes, vgg_path=a.vgg_path)
    try:
        if deq is None:
            data = load_training_set(a.dataset, a.dataset_path, **choice)
            X, y, normalised = data.X, data.y, (data.mean, data.scale, data.classes)
        else:
            data = load_dataset(a.dataset, a.dataset_path, **choice)
            X, y, held = data.X_train, data.y_train, (data.X_test, data.y_test)
            normalised = data.mean, data.scale, data.classes
    except OSError as error:
        raise ValueError(str(error)) from None
    if deq is not None:
        check_checkpoint_flags(a, deq, X.shape[1])
    a.asquare = a.asquare or ASQUARE
    if deq is None:
        classes = 2 if y is None else int(y.max()) + 1
        deq = DEQ(load_activation(a.activation), X.shape[1], a.dim or 1024, classes, a.asquare, seed=a.seed)
    what = "positive concave DEQ"
    if isinstance(deq, DEQ):
        what = f"DEQ of {deq.activation.name}, sigma_a^2 = {a.asquare:g}, width {len(deq.A)}"
    trained = "trained " * bool(a.checkpoint)
    print(f"{a.dataset}: {len(X)} training samples, p = {X.shape[1]}; {trained}{what}", flush=True)
    settings = {name: getattr(a, name) for name in ASKED}
    return begin(deq.to(get_device(a.device)), X, y, held=held, **settings), normalised


def check_checkpoint_flags(arguments: Namespace, deq: Any, inputs: int) -> None:
    """Raises ValueError for flags and samples that are not those of the DEQ of a checkpoint."""
    a = arguments
    if not hasattr(deq, "A"):
        if given := next((flag for flag in ("asquare", "dim") if getattr(a, flag)), None):
            raise ValueError(f"--{given}: {a.checkpoint} is of a positive concave DEQ, which has none; leave it out")
    elif inputs != deq.B.shape[1]:
        raise ValueError(f"the DEQ of {a.checkpoint} takes {deq.B.shape[1]} numbers, and samples have {inputs}")
    elif a.dim not in (None, len(deq.A)):
        raise ValueError(f"--dim {a.dim}: the DEQ of {a.checkpoint} has width {len(deq.A)}; leave --dim out")


def prepare_convolution(arguments: Namespace) -> tuple[PendingVerdict, Normalised]:
    """Loads images and draws a convolutional DEQ; as `prepare`."""
    from deq_enn.data.datasets import load_training_set
    from deq_enn.networks.conv_deq import ConvDEQ
    from deq_enn.theory.activations import load_activation
    from deq_enn.theory.equilibrium import estimate_image_tau0
    from deq_enn.utils.devices import get_device
    from deq_enn.verdicts.after_training import begin

    a = arguments
    a.asquare = a.asquare or ASQUARE
    activation, padding = load_activation(a.activation), a.padding or "zero"
    try:
        data = load_training_set(a.dataset, a.dataset_path, classes=a.classes)
    except OSError as error:
        raise ValueError(str(error)) from None
    if data.image_shape is None:
        raise ValueError(
            f"{a.dataset_path}: its rows are no images: store them as (n, h, w), (n, c, h, w) or (n, h, w, c)"
        )
    # rows have a mean squared norm of 1, and images entries of about that mean square
    root = data.X.shape[1] ** 0.5
    X = data.X.mul_(root).view(-1, *data.image_shape)
    tau0 = estimate_image_tau0(X, a.kernel_size, padding)
    classes = 2 if data.y is None else int(data.y.max()) + 1
    readout = "pool" if a.pool else "flatten"
    deq = ConvDEQ(
        activation, data.image_shape, a.dim or 64, classes, a.asquare, tau0, a.seed, a.kernel_size, padding, readout
    )
    size = " x ".join(map(str, data.image_shape))
    print(
        f"{a.dataset}: {len(X)} training images of {size}; convolutional DEQ of {activation.name}, sigma_a^2 = "
        f"{a.asquare:g}, {a.dim or 64} channels, {a.kernel_size} x {a.kernel_size} filters, readout {readout}",
        flush=True,
    )
    settings = {name: getattr(a, name) for name in ASKED}
    return begin(deq.to(get_device(a.device)), X, data.y, **settings), (data.mean, data.scale / root, data.classes)


def prepare_module(arguments: Namespace) -> tuple[PendingVerdict, Normalised]:
    """Loads a user's own module and the samples that it takes; as `prepare`."""
    import torch

    from deq_enn.data.datasets import load_dataset
    from deq_enn.data.npz import read_whole
    from deq_enn.unrolling.sources import load_module
    from deq_enn.utils.devices import get_device
    from deq_enn.verdicts.after_training import begin

    a = arguments
    print(f"{a.module}: the code of this file is run", flush=True)
    module, steps = load_module(a.module, a.weights)
    raw = a.samples == "raw" or a.samples is None and a.dataset == "npz"
    if raw and a.dataset != "npz":
        raise ValueError("--samples raw is for files of your own (--dataset npz)")
    if raw and a.classes:
        raise ValueError("--classes is not for samples as the file has them (--samples raw): pick them in the file")
    try:
        if raw:
            X, y, X_test, y_test, classes = read_whole(a.dataset_path)
            normalised: Normalised = (None, 1.0, classes)
        else:
            data = load_dataset(a.dataset, a.dataset_path, preset=a.preset, classes=a.classes, vgg_path=a.vgg_path)
            X, y, X_test, y_test = data.X_train, data.y_train, data.X_test, data.y_test
            normalised = data.mean, data.scale, data.classes
    except OSError as error:
        raise ValueError(str(error)) from None
    if a.sample_shape:
        shape = tuple(a.sample_shape)
        if X[0].numel() != torch.Size(shape).numel():
            raise ValueError(f"--sample_shape {' '.join(map(str, shape))}: a sample has {X[0].numel()} entries")
        X, X_test = X.reshape(-1, *shape), X_test.reshape(-1, *shape)
    print(f"{a.dataset}: {len(X)} training samples of shape {list(X.shape[1:])}; {type(module).__name__}", flush=True)
    settings = dict(budget=a.budget, tolerance=a.tolerance, seed=a.seed, seen=a.seen)
    pending = begin(module.to(get_device(a.device)), X, y, held=(X_test, y_test), steps=steps, **settings)
    return pending, normalised


def finish(pending: PendingVerdict, arguments: Namespace, normalised: Normalised) -> None:
    """Writes the verdict and what else was asked for, and then prints it: also where it could not be written."""
    verdict, written = pending.conclude(), []
    try:
        written = [f"\n{verdict.seconds:.0f} s; {', '.join(write_verdict(verdict, arguments))}"]
        if arguments.export:
            written += write_network(verdict, arguments, normalised)
    finally:
        for sentence in getattr(verdict, "applies", {}).get("fails", ()):
            print(f"assumption: {sentence}")
        print(verdict.table())
        print(*written, sep="\n")


def write_verdict(verdict: Verdict | StepVerdict, arguments: Namespace) -> list[str]:
    """Writes the verdict with its figure and its page, and returns the files."""
    from deq_enn.unrolling import page as page_of_steps
    from deq_enn.utils.files import atomic_write, sweep
    from deq_enn.verdicts import page

    write = page_of_steps.write if isinstance(verdict, StepVerdict) else page.write
    path = Path(arguments.output_path) / "verdict.json"
    sweep(path, path.with_suffix(".png"), path.with_suffix(".html"))  # what a kill has left
    settings = {"dataset": arguments.dataset, "dataset_path": arguments.dataset_path, **verdict.settings}
    numbers = verdict.to_dict() | {"settings": settings}
    with atomic_write(path, "w") as file:
        json.dump(numbers, file, indent=1, allow_nan=False)
    return [str(path), *map(str, write(numbers, path.parent))]


def write_network(verdict: Verdict | StepVerdict, arguments: Namespace, normalised: Normalised) -> list[str]:
    """Writes the chosen network with its readout, and returns lines that say so, or that there is none."""
    if verdict.chosen is None:
        return [f"{arguments.export} is not written: the answer is {verdict.answer}, so that no network was chosen"]
    mean, scale, labels = normalised
    said = []
    if isinstance(verdict, StepVerdict) and labels is not None and len(labels) != verdict.settings["classes"]:
        count = verdict.settings["classes"]
        said = [f"the {len(labels)} labels of the data are not written: the module has {count} outputs"]
        labels = None
    written = verdict.export(arguments.export, mean, scale, labels)
    skipped = [written["skipped"]] if written["skipped"] else []
    return [f"exported {verdict.chosen.name}: {', '.join(written['files'])}", *said, *skipped]
