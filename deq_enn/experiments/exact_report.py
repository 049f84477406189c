"""What main.py prints and draws of kernel machines and exact readouts is made here: tables, differences, a figure.

matplotlib is imported where it draws.
"""

import json
import math
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deq_enn.experiments.accuracy_report import entry, entry_looks
from deq_enn.names import DEQS, counted
from deq_enn.reporting.records import read_metrics
from deq_enn.reporting.style import STYLE, mean_std, save
from deq_enn.training.run_files import Config, Result, log_path
from deq_enn.utils.files import sweep
from deq_enn.utils.intervals import Z_95

if TYPE_CHECKING:
    import torch

    from deq_enn.data.datasets import Dataset

Place = tuple[Any, int]  # width and training size
Runs = dict[str, dict[Place, list[tuple[Config, dict]]]]  # by entry and place, the runs of all seeds

MARKERS = {"-": "o", "--": "s", ":": "^", "-.": "D"}  # of a point, by the line that a curve would have

# name in the logs: head, factor and format in the table, in the order of `machines.scores.score`
SCORES = {
    "test_accuracy": ("accuracy %", 100, ".2f"),
    "test_mse": ("mse", 1, ".5f"),
    "test_log_density": ("log density", 1, ".3f"),
    "test_coverage": ("95% covers %", 100, ".2f"),
    "test_log_likelihood": ("log P(label)", 1, ".4f"),
    "test_calibration_error": ("calib. error", 1, ".4f"),
    "ridge": ("ridge", 1, ".2g"),
}


def runs_by_entry(results: dict[Config, Result]) -> Runs:
    """Sorts the runs by entry, width and training size; of each it gives its Config and the end of its history."""
    runs: Runs = {}
    for config, result in results.items():
        places = runs.setdefault(entry(config.model, config.depth), {})
        places.setdefault((config.dim, result.history[-1]["train_size"]), []).append((config, result.history[-1]))
    return runs


def print_report(arguments: Namespace, results: dict[Config, Result]) -> None:
    """Prints accuracies by training size and width; where these are largest all scores, and differences to a DEQ."""
    runs = runs_by_entry(results)
    places = list(next(iter(runs.values())))
    heads = [f"n = {size}" if arguments.train == "kernel" else f"m = {dim}, n = {size}" for dim, size in places]
    _print_accuracies(arguments, runs, places, heads)
    last = max(places, key=lambda place: (place[1], place[0]))
    print(f"\nat {heads[places.index(last)]}, means over the seeds")
    _print_scores(runs, last)
    print_differences(arguments, {name: at[last] for name, at in runs.items()})


def _print_accuracies(arguments, runs, places, heads):
    kind = f"{arguments.match.upper()} at infinite width" if arguments.train == "kernel" else "exact readouts"
    print(f"\n{kind}: test accuracy in % (mean ± std over {counted(len(arguments.seed), 'seed')}), and seconds a run")
    print(f"{'model':<19}" + "".join(f"{head:>26}" for head in heads))
    for name, at in runs.items():
        cells = []
        for place in places:
            mean, std = mean_std([100 * record["test_accuracy"] for _, record in at[place]])
            seconds, _ = mean_std([record["seconds"] for _, record in at[place]])
            cells.append(f"{mean:.2f} ± {std:.2f} {seconds:9.1f} s")
        print(f"{name:<19}" + "".join(f"{cell:>26}" for cell in cells))


def _print_scores(runs, place):
    print(f"{'model':<19}" + "".join(f"{head:>14}" for head, *_ in SCORES.values()))
    for name, at in runs.items():
        cells = []
        for score, (_, factor, form) in SCORES.items():
            values = [record.get(score) for _, record in at[place]]
            cells.append("-" if None in values else f"{factor * mean_std(values)[0]:{form}}")
        print(f"{name:<19}" + "".join(f"{cell:>14}" for cell in cells))


def right(paths: Iterable[Path | str]) -> "torch.Tensor":
    """Says of each test sample whether it is classified rightly, (m,) bool, from logs of predictions in turn."""
    import torch

    logs = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    return torch.cat([torch.tensor(log["predicted"]) == torch.tensor(log["labels"]) for log in logs])


def print_differences(arguments: Namespace, runs: dict[str, list[tuple[Config, dict]]]) -> None:
    """Prints the first DEQ less each other network, in percentage points, with 95% intervals over the test samples."""
    from deq_enn.machines.scores import bootstrap_difference

    reference = next((name for name in runs if name in DEQS), None)
    if reference is None or len(runs) == 1:
        return

    def of(name):
        return right(log_path(config, arguments.output_path, "predicted") for config, _ in runs[name])

    print(
        f"\n{reference} less the other, in points; 95% interval of the paired bootstrap over test samples"
        + (", seeds as further samples" if len(runs[reference]) > 1 else "")
    )
    for name in runs:
        if name != reference:
            difference, low, high = bootstrap_difference(of(reference), of(name))
            print(f"{name:<19}{100 * difference:+8.2f}  [{100 * low:+.2f}, {100 * high:+.2f}]")


def limits(arguments: Namespace, data_key: str, results: dict[Config, Result]) -> dict[str, float]:
    """Returns {entry: accuracy} of the kernel machines in the same folder with the networks and samples of the runs."""

    def network(c: Config) -> tuple:
        return c.model, c.activation, c.depth, c.asquare, c.code, c.family, c.kernel_size, c.padding, c.pool

    wanted = {network(config) for config in results}
    largest = max(result.history[-1]["train_size"] for result in results.values())
    machines, accuracies = {}, {}
    for line in read_metrics(arguments.output_path):
        if line.get("event") == "run" and line["config"]["train"] == "kernel" and line["config"]["data"] == data_key:
            config = Config(**line["config"])
            if config.match == "ck" and network(config) in wanted:
                machines[line["run"]] = entry(config.model, config.depth)
        elif line.get("event") == "epoch" and line["run"] in machines and line["train_size"] == largest:
            accuracies.setdefault(machines[line["run"]], []).append(line["test_accuracy"])
    return {name: mean_std(values)[0] for name, values in accuracies.items()}


def plot(arguments: Namespace, data: "Dataset", results: dict[Config, Result], data_key: str) -> Path:
    """Draws accuracy against training size for kernel machines, or against width, running into the kernel's line.

    Several widths make the width the axis, each kernel machine in the same folder a horizontal line at the right; else
    the training size is the axis; with one of each, a point with its binomial interval for each network.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use(STYLE)
    runs = runs_by_entry(results)
    widths, sizes = ({place[k] for places in runs.values() for place in places} for k in (0, 1))
    lines = limits(arguments, data_key, results) if arguments.train == "ridge" else {}
    places = _along(widths, sizes)
    figure, ax = plt.subplots(figsize=(4.2, 3.2), layout="constrained")
    for number, (name, look) in enumerate(entry_looks(arguments, runs).items()):
        if places:
            _draw_curve(ax, [runs[name][place] for place in places.values()], [*places], look)
        else:
            (of_all_seeds,) = runs[name].values()
            _draw_point(ax, of_all_seeds, number, look, len(data.y_test))
        if name in lines:
            colour, line = look["color"], look["linestyle"]
            ax.axhline(100 * lines[name], xmin=0.75, linestyle=line, color=colour, linewidth=0.8)
    if places:
        ax.set(xlabel="width $m$" if len(widths) > 1 else "training samples $n$", xscale="log")
    ax.set_xticks([*places], [*places])
    if places:
        ax.minorticks_off()
    what = f"{arguments.match.upper()}, width $\\infty$" if arguments.train == "kernel" else "exact readout"
    size = f", $n = {max(sizes)}$" if len(widths) > 1 or len(sizes) == 1 else ""
    ax.set(ylabel="test accuracy (%)", title=f"{data.name}, {what}{size}")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3)
    path = Path(arguments.output_path) / f"{arguments.train}-{arguments.match}_{arguments.dataset}.png"
    sweep(path)
    save(figure, path, dpi=200)
    plt.close(figure)
    return path


def _along(widths: set, sizes: set) -> dict[Any, Place]:
    """Returns {abscissa: place} of a curve, along several widths or else along the sizes; {} of a point."""
    if len(widths) > 1:
        return {width: (width, max(sizes)) for width in sorted(widths)}
    (width,) = widths
    return {size: (width, size) for size in sorted(sizes)} if len(sizes) > 1 else {}


def _draw_curve(ax, runs_at: list, xs: list, look: dict[str, Any]) -> None:
    mean, std = zip(*[mean_std([100 * record["test_accuracy"] for _, record in runs]) for runs in runs_at])
    ax.errorbar(xs, mean, std if len(runs_at[0]) > 1 else None, **look)


def _draw_point(ax, runs: list, x: int, look: dict[str, Any], n_test: int) -> None:
    mean, _ = mean_std([record["test_accuracy"] for _, record in runs])
    half = Z_95 * math.sqrt(mean * (1 - mean) / n_test)
    ax.errorbar(x, 100 * mean, 100 * half, marker=MARKERS[look["linestyle"]], **look | {"linestyle": "none"})
