"""What main.py prints and draws of kernel machines and exact readouts: tables, paired differences, one figure.

matplotlib is imported where it draws.
"""

import json
import math
from pathlib import Path

from deq_enn.names import DEQS
from deq_enn.reporting.looks import LOOKS
from deq_enn.reporting.records import read_metrics
from deq_enn.reporting.style import STYLE, curve_look, mean_std, save
from deq_enn.training.run_files import Config, log_path

# in the order of `kernel_machine.score`
SCORES = {
    "test_accuracy": ("accuracy %", 100, ".2f"),
    "test_mse": ("mse", 1, ".5f"),
    "test_log_density": ("log density", 1, ".3f"),
    "test_coverage": ("95% covers %", 100, ".2f"),
    "test_log_likelihood": ("log P(label)", 1, ".4f"),
    "test_calibration_error": ("calib. error", 1, ".4f"),
    "ridge": ("ridge", 1, ".2g"),
}


def entry(model: str, depth: int) -> str:
    """The name of a model in tables, with its depth where that was given."""
    return f"{model} {depth}" if depth else model


def runs_by_entry(results) -> dict:
    """{entry: {(width, training size): [(config, record), ...]}}, the last entry of each run's history, over seeds."""
    found = {}
    for config, result in results.items():
        place = found.setdefault(entry(config.model, config.depth), {})
        place.setdefault((config.dim, result.history[-1]["train_size"]), []).append((config, result.history[-1]))
    return found


def print_report(arguments, results) -> None:
    """Accuracies by training size and width; where these are largest all scores, and differences to the first DEQ."""
    runs = runs_by_entry(results)
    places = list(next(iter(runs.values())))
    kind = f"{arguments.match.upper()} at infinite width" if arguments.train == "kernel" else "exact readouts"
    heads = [f"n = {size}" if arguments.train == "kernel" else f"m = {dim}, n = {size}" for dim, size in places]
    print(f"\n{kind}: test accuracy in % (mean ± std over {len(arguments.seed)} seed(s)), and seconds a run")
    print(f"{'model':<19}" + "".join(f"{head:>26}" for head in heads))
    for name, at in runs.items():
        cells = []
        for place in places:
            mean, std = mean_std([100 * record["test_accuracy"] for _, record in at[place]])
            seconds, _ = mean_std([record["seconds"] for _, record in at[place]])
            cells.append(f"{mean:.2f} ± {std:.2f} {seconds:9.1f} s")
        print(f"{name:<19}" + "".join(f"{cell:>26}" for cell in cells))
    last = max(places, key=lambda place: (place[1], place[0]))
    print(f"\nat {heads[places.index(last)]}, means over the seeds")
    print(f"{'model':<19}" + "".join(f"{head:>14}" for head, *_ in SCORES.values()))
    for name, at in runs.items():
        cells = []
        for score, (_, factor, form) in SCORES.items():
            values = [record.get(score) for _, record in at[last]]
            cells.append("-" if None in values else f"{factor * mean_std(values)[0]:{form}}")
        print(f"{name:<19}" + "".join(f"{cell:>14}" for cell in cells))
    print_differences(arguments, {name: at[last] for name, at in runs.items()})


def right(paths):
    """Whether each test sample is classified rightly, (m,) bool, from logs of predictions, one after the other."""
    import torch

    logs = [json.loads(Path(path).read_text()) for path in paths]
    return torch.cat([torch.tensor(log["predicted"]) == torch.tensor(log["labels"]) for log in logs])


def print_differences(arguments, runs) -> None:
    """The first DEQ less each other network, in percentage points, with 95% intervals over the test samples."""
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


def limits(arguments, data_key, results) -> dict:
    """{entry: accuracy} of the kernel machines in the same folder that have the networks and samples of these runs."""
    wanted = {(c.model, c.activation, c.depth, c.asquare, c.code, c.family) for c in results}
    sizes = {result.history[-1]["train_size"] for result in results.values()}
    machines, found = {}, {}
    for line in read_metrics(arguments.output_path):
        if line.get("event") == "run" and line["config"]["train"] == "kernel" and line["config"]["data"] == data_key:
            c = Config(**line["config"])
            if c.match == "ck" and (c.model, c.activation, c.depth, c.asquare, c.code, c.family) in wanted:
                machines[line["run"]] = entry(c.model, c.depth)
        elif line.get("event") == "epoch" and line["run"] in machines and line["train_size"] == max(sizes):
            found.setdefault(machines[line["run"]], []).append(line["test_accuracy"])
    return {name: mean_std(values)[0] for name, values in found.items()}


def plot(arguments, data, results, data_key) -> Path:
    """Accuracy against training size for kernel machines, or against width, running into the kernel's line.

    Several widths make the width the axis, each kernel machine in the same folder a horizontal line at the right; else
    the training size is the axis; with one of each, a point with its binomial interval for each network.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use(STYLE)
    runs = runs_by_entry(results)
    places = list(next(iter(runs.values())))
    widths, sizes = sorted({dim for dim, _ in places}, key=str), sorted({size for _, size in places})
    figure, ax = plt.subplots(figsize=(4.2, 3.2), layout="constrained")
    largest = max(sizes)
    axis = "width" if len(widths) > 1 else "size" if len(sizes) > 1 else None
    lines = limits(arguments, data_key, results) if arguments.train == "ridge" else {}
    short = arguments.activation.rpartition(":")[2]
    looks = LOOKS | {
        "deq": ("C2", "-", f"{short}-DEQ"),
        "matched_enn": ("C2", "--", f"its {arguments.match}-matched ENN"),
        "unmatched_enn": ("C2", ":", f"unmatched {short}-ENN"),
    }
    seen = {}
    for place, (name, at) in enumerate(runs.items()):
        config = next(iter(at.values()))[0][0]
        colour, line, label = looks.get(config.model, ("C2", "-", config.model))
        if config.depth:  # depths of one network: as many colours
            seen[config.model] = seen.get(config.model, 2) + 1
            colour, label = f"C{seen[config.model]}", f"{label}, {config.depth} layer{'s' * (config.depth > 1)}"
        look = curve_look(colour, line, label)
        if axis:
            xs = sorted(widths) if axis == "width" else sizes
            at_x = [at[(x, largest) if axis == "width" else (widths[0], x)] for x in xs]
            mean, std = zip(*[mean_std([100 * record["test_accuracy"] for _, record in runs_at]) for runs_at in at_x])
            ax.errorbar(xs, mean, std if len(arguments.seed) > 1 else None, **look)
        else:
            mean, _ = mean_std([record["test_accuracy"] for _, record in at[places[0]]])
            half = 1.96 * math.sqrt(mean * (1 - mean) / len(data.y_test))
            ax.errorbar(place, 100 * mean, 100 * half, marker="o", **look | {"linestyle": "none"})
        if name in lines:
            ax.axhline(100 * lines[name], xmin=0.75, linestyle=line, color=colour, linewidth=0.8)
    what = f"{arguments.match.upper()}, width $\\infty$" if arguments.train == "kernel" else "exact readout"
    ax.set(ylabel="test accuracy (%)", title=f"{data.name}, {what}" + (f", $n = {largest}$" if axis != "size" else ""))
    if axis:
        xs = sorted(widths) if axis == "width" else sizes
        ax.set(xlabel="width $m$" if axis == "width" else "training samples $n$", xscale="log")
        ax.set_xticks(xs, xs)
        ax.minorticks_off()
    else:
        ax.set_xticks([])
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3)
    path = Path(arguments.output_path) / f"{arguments.train}-{arguments.match}_{arguments.dataset}.png"
    save(figure, path, dpi=200)
    plt.close(figure)
    return path
