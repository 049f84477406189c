"""This command writes the explicit network that matches a DEQ, with its readout, as files that stand alone.

    python -m deq_enn export enn.pt --dataset mnist --activation swish --asquare 0.2 --dim 1024
    python -m deq_enn export enn.pt --dataset npz --dataset_path mine.npz --activation my_file.py:my_function

The hidden weights are random and the readout is solved exactly on the training samples, as `main.py --train ridge
--model matched_enn` does it. Written are FILE.pt (state_dict), FILE.json (the layers in numbers), FILE.pt2
(torch.export) and, where onnx and onnxscript are installed, FILE.onnx. The network takes rows as they are in the data
set, before they are normalised. docs/export.md says how to read the files.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deq_enn.commands.match import add_deq_flags
from deq_enn.utils import interrupts
from deq_enn.utils.arguments import OneLineParser, add_data_flags, check_data_flags, natural_int, positive_int
from deq_enn.utils.files import check_network_file
from deq_enn.utils.outcome import one_line

if TYPE_CHECKING:
    import torch

    from deq_enn.data.datasets import TrainingSet
    from deq_enn.networks.export import ExportedENN

EXAMPLES = 64  # training rows that the programs are traced and checked with
BATCH = 512  # test rows at a time


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    parser = OneLineParser(prog="deq-enn export", description=__doc__)
    parser.add_argument("file", metavar="FILE.pt", help="where the network goes; the other files lie beside it")
    add_data_flags(parser.add_argument)
    add_deq_flags(parser)
    parser.add_argument("--dim", type=positive_int, default=1024, help="width of the network (default: 1024)")
    parser.add_argument("--seed", type=natural_int, default=0, help="of weights and samples (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the network that the flags ask for; what cannot be written is said before any work is done."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check_data_flags(parser, arguments)
    with one_line(parser, ", nothing was written"):
        check_network_file(arguments.file)
        write(arguments)


def write(arguments: argparse.Namespace) -> None:
    """Matches the DEQ, solves the readout on the training samples, writes the network and prints what it is worth."""
    from deq_enn.machines.readout import solve
    from deq_enn.machines.run import subset
    from deq_enn.networks.build import build_model
    from deq_enn.networks.enn import ENN
    from deq_enn.networks.export import export, network_of
    from deq_enn.theory.activations import load_activation
    from deq_enn.theory.equilibrium import estimate_tau0

    interrupts.raise_from_now_on()
    a = arguments
    activation = load_activation(a.activation)
    data = load(a)
    assert data.y is not None
    classes, tau0 = int(data.y.max()) + 1, estimate_tau0(data.X)
    enn = build_model(
        "matched_enn", data.X.shape[1], a.dim, classes, a.asquare, tau0, a.seed, activation, a.kernel, a.family
    )
    assert isinstance(enn, ENN)
    depth, family = len(enn.layers), enn.describe()["family"]
    print(
        f"{a.dataset}: {len(data.X)} training samples, p = {data.X.shape[1]}; the DEQ of {activation.name} at "
        f"sigma_a^2 = {a.asquare:g} is matched by {depth} {family} layer{'s' * (depth > 1)} of width {a.dim}",
        flush=True,
    )
    order = subset(len(data.X), len(data.X), a.seed)  # as main.py --train ridge has it, so that the accuracy is its
    readout, _ = solve(enn, data.X[order], data.y[order], classes)
    network = network_of(enn, readout, data.mean, data.scale, data.classes)
    if data.test:
        X, y = data.test
        share = accuracy(network, data.raw(X), y)
        print(f"test accuracy {100 * share:.2f}%, ridge {readout.ridge:.3g}", flush=True)
    written = export(network, a.file, data.raw(data.X[:EXAMPLES]))
    print(f"exported: {', '.join(written['files'])}")
    if written["skipped"]:
        print(written["skipped"])


def load(arguments: argparse.Namespace) -> "TrainingSet":
    """Loads the samples that the flags name; a user's own files need not have a test set.

    Raises ValueError for what is wrong with the data, and where there are no labels to fit a readout to.
    """
    from deq_enn.data.datasets import load_training_set

    a = arguments
    try:
        data = load_training_set(a.dataset, a.dataset_path, preset=a.preset, classes=a.classes, vgg_path=a.vgg_path)
    except OSError as error:
        raise ValueError(str(error)) from None
    if data.y is None:
        raise ValueError(f"{a.dataset_path}: holds no y_train, and a readout is fitted to labels")
    return data


def accuracy(network: "ExportedENN", X: "torch.Tensor", y: "torch.Tensor") -> float:
    """Returns the share of the rows X, as they are in the data set, that the network labels as y has it."""
    import torch

    right = 0
    with torch.no_grad():
        for rows, labels in zip(X.split(BATCH), y.split(BATCH)):
            right += int((network(rows).argmax(1) == labels).sum())
    return right / len(y)


if __name__ == "__main__":
    main()
