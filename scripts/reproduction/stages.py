"""The stages of reproduce.py are listed here, a command each: what it writes, what it costs, what data it needs."""

if __name__ == "__main__":
    raise SystemExit("stages.py is a part of scripts/reproduce.py: run that")

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from deq_enn.experiments.run_cost import cost
from deq_enn.names import MODELS

ROOT = Path(__file__).resolve().parents[2]

DIMS, EPOCHS, SEEDS = (32, 128, 256, 1024, 4096), 100, 3  # scripts/sweep.sh, and how many seeds
SGD, ADAM = {"gmm": 1, "mnist": 1, "fashion_mnist": 1, "cifar10": 0.1}, 0.001  # learning rates, of those that source it
OWN_RATE = "-own-rate"  # ends the name of a sweep with --lr auto
SIZES = {
    "gmm": (6000, 4000, 200, 4),
    "mnist": (60000, 10000, 784, 10),
    "fashion_mnist": (60000, 10000, 784, 10),
    "cifar10": (50000, 10000, 256, 10),
}  # training and test samples, p, classes
# name: seconds at full size and with --quick on two cores of 2026, None: not part of --quick; data
FIGURES = {
    "ck_gmm_matching": (60, 4, "gmm"),
    "gmm_ntk_matching": (60, 4, "gmm"),
    "gmm_one_layer_matching": (40, 4, "gmm"),
    "gmm_two_layer_relu_matching": (30, 4, "gmm"),
    "finite_width_kernels": (20, 4, "gmm"),
    "ck_mnist_matching": (40, 5, "mnist"),
    "mnist_ntk_matching": (40, 5, "mnist"),
    "mnist_one_layer_matching": (30, 5, "mnist"),
    "mnist_two_layer_matching": (30, 5, "mnist"),
    "cifar10_matching": (330, None, "cifar10"),
    "any_activation_matching": (250, None, "gmm"),
    "matching_map": (60, None, "gmm"),
    "pcdeq_convergence": (400, 16, "mnist"),
    "training_dynamics": (2400, 24, "mnist"),
    "steps": (120, None, "mnist"),
    "conv_mixture": (15, 4, "gmm"),
    "conv_matching": (60, None, "mnist"),
    "resolvent_network": (60, 8, "mnist"),
}
KEEPS_RUNS = ("training_dynamics",)  # figures whose networks are kept in results/NAME, each once it is trained
FIGURE_FLAGS = {"conv_matching": ["--dataset", "mnist", "mixture"]}
QUICK_DIMS, QUICK_EPOCHS, QUICK_DATA = (64, 256), 5, ("gmm", "mnist")
QUICK_OWN_DIMS = (64,)  # widths of the sweep of each network at its own rate
QUICK_FIGURE = {
    "finite_width_kernels": ["--n", "128", "--seeds", "2", "--dim", "64", "128", "256", "512"],
    "pcdeq_convergence": ["--epoch", "1"],
    "training_dynamics": ["--lr", "0.3", "--dim", "128", "--seeds", "1"],
    "conv_mixture": ["--n", "40", "80", "--seeds", "2"],
    "resolvent_network": ["--samples", "16", "--steps", "3"],
}
QUICK_FIGURE_FLAGS = ["--n", "100", "200", "400", "--seeds", "2", "--spectrum", "400"]
MULTIPLICATIONS = 8.7e10  # multiplications a second, float32, on both of these cores
PASS = 0.064  # seconds of an epoch over 60,000 samples on both of these cores, whatever the width: 469 steps of torch
# readouts alone that take as long as the search for a rate: four side by side 1.2 to 1.8, three more 1.1 to 1.5, and
# mostly two more 1.0 to 1.3 (`bench.py readout`)
ATTEMPTS = 4.0
KEPT = 0.8  # share of the training samples that --lr auto trains on


@dataclass(frozen=True)
class Stage:
    """A stage is one command.

    cost : expected seconds. outputs : files that are there once it is finished. folder : of a sweep's logs.
    done : the share of the cost, in seconds, that logs or kept runs show to be done before it begins.
    runs : folder of a figure's kept runs.
    """

    name: str
    kind: str  # "sweep" or "figure"
    command: list
    outputs: list
    cost: float
    data: str = "gmm"
    folder: str = ""
    done: float = 0.0
    runs: str = ""


def values(stage: Stage, flag: str) -> list[str]:
    """Returns the values of a flag of the stage's command."""
    words = stage.command
    first = words.index(flag) + 1
    last = next((i for i in range(first, len(words)) if words[i].startswith("--")), len(words))
    return words[first:last]


def seconds(dataset, model, dim, epochs=0):
    """Returns the seconds that a run is expected to take: its features, and its epochs."""
    n, n_test, p, n_classes = SIZES[dataset]
    work = cost(SimpleNamespace(model=model, dim=dim, train="readout", epoch=epochs, steps=0), n + n_test, p, n_classes)
    return work / MULTIPLICATIONS + epochs * n / 60000 * PASS


def choice(dataset, model, dim, epochs):
    """Returns the seconds that finding a run's own rate takes, on the features that the run has too."""
    return ATTEMPTS * KEPT * (seconds(dataset, model, dim, epochs) - seconds(dataset, model, dim))


def sweep_cost(dataset, dims, epochs, seeds=SEEDS):
    return 5 + seeds * sum(seconds(dataset, model, dim, epochs) for model in MODELS for dim in dims)


def own_rate_cost(dataset, dims, epochs, seeds=SEEDS):
    chosen = seeds * sum(choice(dataset, model, dim, epochs) for model in MODELS for dim in dims)
    return chosen + sweep_cost(dataset, dims, epochs, seeds)


def plan(arguments):
    """Returns every stage, the cheapest first."""
    output, data = (
        arguments.output_path,
        ["--dataset_path", str(arguments.dataset_path)] if arguments.dataset_path else [],
    )
    stages = []
    for name, (full, quick, dataset) in FIGURES.items():
        if arguments.quick and quick is None:
            continue
        flags = QUICK_FIGURE.get(name, QUICK_FIGURE_FLAGS) if arguments.quick else FIGURE_FLAGS.get(name, [])
        folder = output / "figures"
        command = [
            sys.executable,
            f"ck_ntk/{name}.py",
            *flags,
            *(data if dataset != "gmm" else []),
            "--output_path",
            str(folder),
        ]
        outputs = [folder / f"{name}.json", folder / f"{name}.png"]
        runs = str(ROOT / "results" / name) if name in KEEPS_RUNS and not arguments.quick else ""
        stages.append(Stage(name, "figure", command, outputs, quick if arguments.quick else full, dataset, runs=runs))
    dims, epochs = (QUICK_DIMS, QUICK_EPOCHS) if arguments.quick else (DIMS, EPOCHS)
    own_dims = QUICK_OWN_DIMS if arguments.quick else DIMS
    for dataset in QUICK_DATA if arguments.quick else SIZES:
        for name, opt, lr, widths, expected in (
            (f"{dataset}-sgd", "sgd", SGD[dataset], dims, sweep_cost),
            (f"{dataset}-adam", "adam", ADAM, dims, sweep_cost),
            (f"{dataset}-sgd{OWN_RATE}", "sgd", "auto", own_dims, own_rate_cost),
        ):
            processes = min(arguments.processes, len(MODELS) * len(widths) * arguments.seeds)  # each run has one
            command = [
                sys.executable,
                "main.py",
                *(["--processes", str(processes)] if processes > 1 else []),
                "--dataset",
                dataset,
                *(data if dataset != "gmm" else []),
                "--dim",
                *map(str, widths),
                "--seed",
                *map(str, range(arguments.seeds)),
                "--epoch",
                str(epochs),
                "--opt",
                opt,
                "--lr",
                str(lr),
                "--output_path",
                str(output / name),
                "--save_path",
                str(output / "checkpoints" / name),
                "--resume",
            ]
            stages.append(
                Stage(
                    name,
                    "sweep",
                    command,
                    [output / name / f"accuracy_{dataset}.png"],
                    expected(dataset, widths, epochs, arguments.seeds),
                    dataset,
                    str(output / name),
                )
            )
    return sorted(stages, key=lambda stage: stage.cost)


@functools.cache
def missing(dataset, path):
    """Says why the data set is not there, or "". MNIST and its like are downloaded where there is a network."""
    path = Path(path or "data")
    if dataset == "gmm":
        return ""
    if dataset == "cifar10":
        from deq_enn.data.vgg16 import VGG16_WEIGHTS

        if not (path / "cifar10").is_dir() and not (path / "cifar-10-batches-py").is_dir():
            return f"neither cifar10/ nor cifar-10-batches-py/ in {path}"
        missing_weights = f"no {VGG16_WEIGHTS.relative_to(ROOT)} (scripts/pretrain_vgg.py makes it)"
        return "" if VGG16_WEIGHTS.exists() else missing_weights
    from deq_enn.data.images import DataError, mnist_images

    try:
        mnist_images(path, dataset)
    except DataError as error:
        return str(error)
    return ""
