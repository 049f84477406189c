"""Every DEQ of the registry, the explicit network that matches it, and two layers of its own activation, unmatched.

Kernels: relative spectral distance to the DEQ's exact CK and NTK on the paper's Gaussian mixture, scaled to a mean
squared norm of 1 as data are for training, so that one network of each kind serves every n. Matched kernels differ in
terms as small as |x|^2 - 1, or smaller. The spread of |x|^2 over the samples is of order n^(-1/2) in the limit, and so
is the distance; both fall more slowly on the way there, where the covariances I and (1 + 8/sqrt(p)) I are far apart. A
factor on a kernel is no more than another learning rate, so the unmatched network's distance is given as it is, and
times the factor that makes it least.

Accuracies: test accuracy on MNIST with a trained readout, by SGD at a learning rate of 1; the unmatched network also at
the learning rate that makes up for its alpha_1. They are kept in results/any_activation as main.py would keep them, and
a killed script goes on from there. With eight seeds or more each DEQ is tested against its matched network: the paired
difference, and two one-sided tests of equality within --margin percentage points. Beside it stand the finite-width
terms of the two conjugate kernels, m times the mean squared relative error of an entry off the diagonal and on it.

An activation with a star violates the paper's Assumption 3 at this sigma_a^2; what it violates is printed.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.any_activation import NETWORKS, draw, geometric_mean, starred
from ck_ntk.common.command import ROOT, run
from deq_enn.names import counted
from deq_enn.utils.arguments import bounded_float, positive_int

RUNS = ROOT / "results" / "any_activation"
LR, BATCH_SIZE = 1.0, 128


def chosen(args):
    """Returns {name: activation} of --activation, in the order of the registry; all of it without the flag."""
    from deq_enn.theory.activations import ACTIVATIONS

    names = args.activation or list(ACTIVATIONS)
    if unknown := set(names) - set(ACTIVATIONS):
        raise ValueError(f"--activation {' '.join(sorted(unknown))}: choose from {', '.join(ACTIVATIONS)}")
    return {name: activation for name, activation in ACTIVATIONS.items() if name in names}


# ---------------------------------------------------------------------------------------------------------------
# kernels


def distances(X, activation, sigma_a2, matches, unmatched):
    """Returns {kernel: (matched, unmatched, unmatched times the best factor, that factor)} on X (n, p).

    The rows of X have the mean squared norm 1.

    matches : {kernel: its Match}. unmatched : an ENN, of which layers and input scale are taken.
    """
    from deq_enn.kernels.distance import least_distance, relative_error
    from deq_enn.kernels.exact import explicit_kernels, implicit_kernels

    deq = implicit_kernels(X, activation, sigma_a2)
    plain = explicit_kernels(unmatched.input_scale * X, unmatched.layers)
    measured = {}
    for index, (kernel, match) in enumerate(matches.items()):
        matched = explicit_kernels(X, match.layers)[index]
        measured[kernel] = (
            relative_error(deq[index], matched),
            relative_error(deq[index], plain[index]),
            *least_distance(deq[index], plain[index]),
        )
    return measured


def study_kernels(args):
    """Returns {kernel: {activation: numbers}}, the distances as lists (sizes, seeds), and the spread of |x|^2."""
    import numpy as np
    from tqdm import tqdm

    from ck_ntk.common.samples import mixture
    from ck_ntk.common.slopes import fit_slope, slope_interval
    from deq_enn.matching.families import match
    from deq_enn.networks.build import build_model
    from deq_enn.theory.equilibrium import check_assumptions, estimate_tau0
    from deq_enn.theory.finite_width import fluctuation, implicit_fluctuation

    activations = chosen(args)
    matches = {
        name: {kernel: match(activation, args.asquare, kernel=kernel) for kernel in ("ck", "ntk")}
        for name, activation in activations.items()
    }
    unmatched = {
        name: build_model("unmatched_enn", 1, 1, 2, args.asquare, activation=activation)
        for name, activation in activations.items()
    }
    columns = ("matched", "unmatched", "unmatched_scaled", "factor")
    values = {
        kernel: {name: np.zeros((len(columns), len(args.n), args.seeds)) for name in activations}
        for kernel in ("ck", "ntk")
    }
    spread = np.zeros((len(args.n), args.seeds))
    draws = [(i, k) for i in range(len(args.n)) for k in range(args.seeds)]
    for i, k in tqdm(draws, desc="kernels", leave=False, disable=None):
        X = mixture(args.n[i], k).X
        X = X / estimate_tau0(X)
        spread[i, k] = X.square().sum(1).std()
        for name, activation in activations.items():
            measured = distances(X.to(args.device), activation, args.asquare, matches[name], unmatched[name])
            for kernel in values:
                values[kernel][name][:, i, k] = measured[kernel]
    table = {
        kernel: {
            name: {
                "family": matches[name][kernel].family,
                "layers": len(matches[name][kernel].layers),
                "parameters": matches[name][kernel].parameters,
                "slope": fit_slope(args.n, array[0]),
                "slope_interval": slope_interval(args.n, array[0]),
                **dict(zip(columns, array.tolist())),
            }
            for name, array in rows.items()
        }
        for kernel, rows in values.items()
    }
    for name, row in table["ck"].items():
        row["fluctuation"] = {
            "deq": implicit_fluctuation(activations[name], args.asquare),
            "matched": fluctuation(matches[name]["ck"].layers, 1.0, "readout"),
        }
        row["violates"] = check_assumptions(activations[name], args.asquare)
    return table, spread.tolist()


def print_kernels(args, numbers, spread):
    from ck_ntk.common.slopes import slope_interval

    for row in numbers["ck"].values():
        for sentence in row["violates"]:
            print(f"* {sentence}")
    for kernel, table in numbers.items():
        print(
            f"\n{kernel.upper()} of the DEQ: relative spectral distance at n = {args.n[-1]}, slope against n "
            f"(its 95% interval, {args.seeds} draws of each n)"
        )
        print(
            f"{'activation':<12}{'matched by':<12}{'layers':>6}{'distance':>11}{'slope':>17}"
            f"{'unmatched':>12}{'times the best factor':>24}"
        )
        for name, row in table.items():
            slope = "{:+.3f} to {:+.3f}".format(*row["slope_interval"]) if row["slope_interval"] else "-"
            matched, plain, scaled, factor = (
                geometric_mean(row[key][-1]) for key in ("matched", "unmatched", "unmatched_scaled", "factor")
            )
            print(
                f"{starred(name, numbers):<12}{row['family']:<12}{row['layers']:>6}{matched:>11.1e}{slope:>17}"
                f"{plain:>12.1e}{scaled:>14.1e} ({factor:7.3f})"
            )
    if interval := slope_interval(args.n, spread):
        print("\nspread of |x|^2 over the samples: slope {:+.3f} to {:+.3f}".format(*interval))


# ---------------------------------------------------------------------------------------------------------------
# accuracies


def study_accuracies(args, data):
    """Returns {activation: {network: test accuracies after the last epoch, one a seed}}, printed as they come."""
    from deq_enn.networks.build import build_model
    from deq_enn.theory.equilibrium import estimate_tau0
    from deq_enn.training.loop import run as train
    from deq_enn.training.run_files import Config, fingerprint
    from deq_enn.utils.locks import locked

    tau0, p, key = estimate_tau0(data.X_train), data.X_train.shape[1], fingerprint(data)
    folder = RUNS / f"epoch_{args.epoch}_asquare_{args.asquare:g}_{key}"

    def build(network, activation, dim, seed):
        return build_model(network, p, dim, data.n_classes, args.asquare, tau0, seed, activation)

    after, over = counted(args.epoch, "epoch"), counted(args.trainings, "seed")
    print(
        f"\nMNIST, readout of {args.dim[0]} features: test accuracy in % after {after}, mean ± std over {over};\n"
        f"differences of the same seeds, mean ± standard error. Logs in {folder}"
    )
    print(
        f"{'activation':<12}"
        + "".join(f"{label:>15}" for label in ("DEQ", "matched", "unmatched", "at its own lr"))
        + f"{'lr':>8}{'DEQ - matched':>16}{'- unmatched':>15}{'- at its own lr':>16}",
        flush=True,
    )
    numbers = {}
    for name, activation in chosen(args).items():
        deq, unmatched = (build(network, activation, 1, 0).coefficients for network in ("deq", "unmatched_enn"))
        own_lr = LR * deq.c1 / unmatched.c1  # makes up for alpha_1: SGD on a readout from zero sees lr times the kernel
        runs = {
            "deq": ("deq", LR, folder, {}),
            "unmatched": ("unmatched_enn", LR, folder, {}),
            "matched": ("matched_enn", LR, folder, {"match": "ck", "family": "auto"}),
            "own_lr": ("unmatched_enn", own_lr, folder / "own_lr", {}),
        }
        numbers[name] = {"lr": own_lr, **{column: [] for column in NETWORKS}}
        for seed in range(args.trainings):
            for column in NETWORKS:
                network, lr, place, extra = runs[column]
                config = Config(
                    "mnist",
                    network,
                    args.dim[0],
                    lr,
                    args.epoch,
                    BATCH_SIZE,
                    seed,
                    asquare=args.asquare,
                    activation=name,
                    data=key,
                    **extra,
                )
                with locked(place, "runs", advice=""):
                    result = train(
                        config,
                        data,
                        lambda: build(network, activation, args.dim[0], seed),
                        place,
                        folder / "checkpoints",
                        args.device,
                        resume=True,
                    )
                numbers[name][column].append(result.history[-1]["test_accuracy"])
        print(accuracy_row(name, numbers[name]), flush=True)
    return numbers


def accuracy_row(name, row):
    """One line of the table. The networks of one seed share weights and order: differences are taken seed by seed."""
    import numpy as np

    values = [100 * np.array(row[column]) for column in NETWORKS]
    seeds = len(values[0])

    def cell(mean, error, sign=""):
        return f"{mean:{sign}.2f}" + (f" ± {error:.2f}" if seeds > 1 else "")

    def spread(v):
        return v.std(ddof=1) if seeds > 1 else 0.0

    differences = [values[0] - other for other in values[1:]]
    return (
        f"{name:<12}"
        + "".join(f"{cell(v.mean(), spread(v)):>15}" for v in values)
        + f"{row['lr']:>8.3f}"
        + "".join(
            f"{cell(v.mean(), spread(v) / seeds**0.5, '+'):>{width}}" for v, width in zip(differences, (16, 15, 16))
        )
    )


def print_equality(args, accuracies, kernels):
    """Whether each DEQ and its matched network are equal within the margin, and their finite-width terms."""
    from deq_enn.reporting.statistics import compare, holm, in_words

    compared = {
        name: compare(
            *(dict(enumerate(100 * value for value in row[column])) for column in ("deq", "matched")), args.margin
        )
        for name, row in accuracies.items()
    }
    adjusted = zip(
        *(holm([getattr(paired, p) for paired in compared.values()]) for p in ("p_difference", "p_equality"))
    )
    print(
        "\nDEQ - matched in percentage points, its 95% interval; p of no difference, and of one of "
        f"{args.margin:g} or more (two one-sided\n"
        f"tests), both by Holm's method over the {len(compared)} activations; m times the "
        "squared relative error of a kernel's entry at width m"
    )
    print(
        f"{'activation':<12}{'mean':>7}{'interval':>18}{'p, difference':>15}{'p, equality':>13}"
        f"{'off: DEQ':>10}{'matched':>9}{'on: DEQ':>9}{'matched':>9}  verdict"
    )
    for (name, paired), p in zip(compared.items(), adjusted):
        (off, on), (off_enn, on_enn) = (kernels["ck"][name]["fluctuation"][key] for key in ("deq", "matched"))
        interval = f"[{paired.mean - paired.half:+.2f}, {paired.mean + paired.half:+.2f}]"
        print(
            f"{starred(name, kernels):<12}{paired.mean:>+7.2f}{interval:>18}{p[0]:>15.2g}{p[1]:>13.2g}{off:>10.2f}"
            f"{off_enn:>9.2f}{on:>9.2f}{on_enn:>9.2f}  {in_words(paired, *p, args.margin)}"
        )


def main(args):
    args.trainings = args.trainings or args.seeds
    if len(args.dim) != 1:
        raise ValueError("any_activation_matching takes one --dim")
    from deq_enn.data.datasets import load_dataset

    chosen(args)
    data = load_dataset("mnist", args.dataset_path) if args.dataset_path else None  # before the kernels: it may fail
    kernels, spread = study_kernels(args)
    print_kernels(args, kernels, spread)
    if data is None:
        print("\nthe MNIST table is skipped: no --dataset_path, the folder with the MNIST files, is given")
    accuracies = study_accuracies(args, data) if data else None
    if accuracies and args.trainings > 1:
        print_equality(args, accuracies, kernels)
    figure = draw(args, kernels, spread, accuracies)
    return figure, {"kernels": kernels, "spread": spread, "accuracies": accuracies}


if __name__ == "__main__":
    run(
        main,
        __doc__,
        n=[200, 400, 800, 1600],
        seeds=3,
        epoch=10,
        dim=[1024],
        dataset="without it the kernels only; with it 168 trainings, half an hour on two cores",
        flags={
            "--trainings": dict(type=positive_int, metavar="K", help="seeds of the trainings (default: as --seeds)"),
            "--activation": dict(nargs="+", metavar="NAME", help="these DEQs only (default: all of the registry)"),
            "--margin": dict(
                type=bounded_float(0, 100, "between 0 and 100"),
                default=0.5,
                metavar="POINTS",
                help="within which accuracies count as equal, in percentage points (default 0.5)",
            ),
        },
    )
