"""Is a matched network the same function as its DEQ, image by image? About as much as the same DEQ with other weights.

A DEQ, its CK-matched network and two unmatched layers of its own activation, readouts trained on MNIST from zero by SGD
on the same batches in the same order; networks of one seed share their first-layer weights. The distance of two
networks is the root mean square, over test images and classes, of the difference of their outputs. Equal kernels make
equal networks at infinite width; at width m outputs scatter about that limit by O(m^(-1/2)), each network by its own
random weights. So a match replaces a DEQ in distribution, as another draw of the DEQ's weights would, and not
pointwise.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import ASQUARE, run
from deq_enn.names import counted
from deq_enn.utils.arguments import positive_int

LR, BATCH_SIZE = 1.0, 128
NETWORKS = {"deq": "DEQ", "matched_enn": "matched ENN", "unmatched_enn": "unmatched ENN"}
# (a network, another, whether of the same seed): how their distance is drawn
PAIRS = {
    ("deq", "deq", False): ("C0", "o", "-"),
    ("matched_enn", "matched_enn", False): ("C1", "s", ":"),
    ("deq", "matched_enn", False): ("C1", "v", "-"),
    ("deq", "matched_enn", True): ("C1", "D", "--"),
    ("deq", "unmatched_enn", True): ("C2", "^", "-"),
}


def label(pair):
    first, second, same = pair
    seeds = "same seed" if same else "two seeds"
    return f"{NETWORKS[first]}, {seeds}" if first == second else f"{NETWORKS[first]} and {NETWORKS[second]}, {seeds}"


def outputs(network, activation, data, width, seed, args):
    """Outputs (n, classes) on the test images of one network, after the last epoch."""
    import torch

    from deq_enn.networks.build import build_model
    from deq_enn.theory.equilibrium import estimate_tau0
    from deq_enn.training.readout import ReadoutTask
    from deq_enn.training.run_files import Config
    from deq_enn.utils.random import generator

    model = build_model(
        network,
        data.X_train.shape[1],
        width,
        data.n_classes,
        args.asquare,
        estimate_tau0(data.X_train),
        seed,
        activation,
    ).to(args.device)
    task = ReadoutTask(model, data, Config("mnist", network, width, LR, args.epoch, BATCH_SIZE, seed), args.device)
    for epoch in range(1, args.epoch + 1):
        # the order of seed 0 for all: only the weights differ
        task.epoch(torch.randperm(len(data.X_train), generator=generator(0, "order", epoch)).to(args.device))
    return (task.test @ task.weight.detach().T).cpu()


def compare(first, second):
    """(root mean square difference, share of images whose predicted class differs) of outputs (n, classes)."""
    return (first - second).square().mean().sqrt().item(), (first.argmax(1) != second.argmax(1)).double().mean().item()


def study(args, data, activation):
    """Returns {pair: (widths, pairs of networks, 2) as lists}, and the DEQs' root mean square output, one a width."""
    import itertools

    from tqdm import tqdm

    compared, size = {pair: [] for pair in PAIRS}, []
    for width in args.dim:
        runs = [(network, seed) for seed in range(args.seeds) for network in NETWORKS]
        out = {
            run: outputs(run[0], activation, data, width, run[1], args)
            for run in tqdm(runs, desc=f"width {width}", leave=False, disable=None)
        }
        size.append(sum(out["deq", s].square().mean().item() for s in range(args.seeds)) ** 0.5 / args.seeds**0.5)
        for first, second, same in PAIRS:
            seeds = ((s, s) for s in range(args.seeds)) if same else itertools.combinations(range(args.seeds), 2)
            compared[first, second, same].append([compare(out[first, a], out[second, b]) for a, b in seeds])
    return compared, size


def print_distances(args, compared, size):
    import numpy as np

    for pair, rows in compared.items():
        print(f"\n{label(pair)}")
        for width, at, scale in zip(args.dim, np.array(rows), size):
            distance, other_class = at[:, 0], 100 * at[:, 1].mean()
            print(
                f"  width {width:5d}: RMS {distance.mean():.3f} ({distance.min():.3f} to {distance.max():.3f}), "
                f"{distance.mean() / scale:.3f} of the outputs' own; another class for {other_class:.1f}% of the "
                "test images"
            )


def draw(args, compared):
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, ScalarFormatter

    from ck_ntk.common.panels import log_sizes

    figure, ax = plt.subplots(figsize=(3.6, 2.9))
    for pair, (colour, marker, line) in PAIRS.items():
        distance = np.array(compared[pair])[..., 0]
        mean = distance.mean(1)
        ax.errorbar(
            args.dim,
            mean,
            [mean - distance.min(1), distance.max(1) - mean],
            color=colour,
            marker=marker,
            ls=line,
            label=label(pair),
        )
    log_sizes(ax, args.dim, "width $m$")
    low, high = ax.get_ylim()
    ax.set_ylim(bottom=low / (high / low) ** 0.7)  # room for the legend
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set_ylabel("root mean square difference of outputs")
    ax.set_title(f"MNIST, {args.activation}, readout trained for {counted(args.epoch, 'epoch')}")
    ax.legend(loc="lower left")
    return figure


def main(args):
    from deq_enn.data.datasets import load_dataset
    from deq_enn.theory.activations import ACTIVATIONS

    if args.seeds < 2:
        raise ValueError("pointwise compares two seeds of a network: take --seeds 2 or more")
    if args.activation not in ACTIVATIONS:
        raise ValueError(f"--activation must be one of {', '.join(ACTIVATIONS)}, got {args.activation!r}")
    args.dim = sorted(set(args.dim))
    data = load_dataset("mnist", args.dataset_path)
    compared, size = study(args, data, ACTIVATIONS[args.activation])
    print_distances(args, compared, size)
    return draw(args, compared), {"outputs": size, "pairs": {label(pair): rows for pair, rows in compared.items()}}


if __name__ == "__main__":
    run(
        main,
        __doc__,
        epoch=10,
        dim=[128, 256, 512],
        dataset=True,
        device=True,
        flags={
            "--seeds": dict(type=positive_int, default=4, help="of the weights, two or more (default 4)"),
            "--activation": dict(default="relu", metavar="NAME", help="of the DEQ (default relu)"),
            "--asquare": ASQUARE,
        },
    )
