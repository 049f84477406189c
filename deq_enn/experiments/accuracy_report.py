"""What main.py prints and draws of a grid of runs is made here: scalars of the theory, test accuracies, a figure.

matplotlib is imported where it draws: scripts take the styles from here without it.
"""

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deq_enn.names import counted
from deq_enn.reporting.looks import LOOKS
from deq_enn.reporting.style import STYLE, curve_look, dot, draw_band, mean_std, save

if TYPE_CHECKING:  # --help does not wait for torch
    from deq_enn.data.datasets import Dataset
    from deq_enn.training.run_files import Config, Result

    Results = dict[tuple[str, int | str, int], Result]  # by entry, width and seed


def entry(model: str, depth: int, steps: int = 0) -> str:
    """Returns the name of a model in tables, with its depth and the steps after which it is stopped where given."""
    name = f"{model} {depth}" if depth else model
    return f"{name}, {steps} step{'s' * (steps > 1)}" if steps else name


def entries_of(results: "Results") -> list[str]:
    """Returns the entries of a grid in order."""
    return [*dict.fromkeys(name for name, _, _ in results)]


def _column(entries: list[str]) -> int:
    return max(19, 1 + max(map(len, entries)))


def print_theory(data: "Dataset", scales: dict[str, float], theories: dict[str, dict]) -> None:
    """Prints the data's size and its scales by name, then a line for each model and for each matched layer."""
    listed = ", ".join(f"{name} = {value:.6g}" for name, value in scales.items())
    print(
        f"{data.name}: {len(data.X_train)} training and {len(data.X_test)} test samples, "
        f"p = {data.X_train[0].numel()}, {data.n_classes} classes; {listed}"
    )
    for name, theory in theories.items():
        # what is 0 but for rounding is shown as 0
        shown = {
            k: str(v) if isinstance(v, str) else f"{v if abs(v) > 1e-15 else 0:.6g}"
            for k, v in theory.items()
            if isinstance(v, (int, float, str)) and k != "tau0"
        }
        print(f"  {name:<13} " + "  ".join(f"{k} = {v}" for k, v in shown.items()))
        for index, layer in enumerate(theory.get("parameters", ()), 1):
            print(f"{'':16}layer {index}: {layer}")


def print_table(arguments: Namespace, results: "Results") -> None:
    """Prints test accuracy after the last epoch and seconds a run, for each model and width."""
    after, over = counted(arguments.epoch, "epoch"), counted(len(arguments.seed), "seed")
    print(f"\ntest accuracy in % after {after} (mean ± std over {over}), and seconds a run")
    entries = entries_of(results)
    wide = _column(entries)
    print(f"{'model':<{wide}}" + "".join(f"{f'dim {dim}':>24}" for dim in arguments.dim))
    for model in entries:
        cells = []
        for dim in arguments.dim:
            runs = [results[model, dim, seed] for seed in arguments.seed]
            mean, std = mean_std([100 * run.history[-1]["test_accuracy"] for run in runs])
            cells.append(f"{mean:.2f} ± {std:.2f} {sum(run.seconds for run in runs) / len(runs):7.1f} s")
        print(f"{model:<{wide}}" + "".join(f"{cell:>24}" for cell in cells))


def print_unconverged(results: "Results") -> None:
    """Says of each run whose solver was lenient how many equilibria it missed in its last epoch."""
    for (name, dim, seed), result in results.items():
        last = result.history[-1]
        parts = {key: last.get(f"{key}_unconverged", 0) for key in ("forward", "backward", "test")}
        if any(parts.values()):
            print(
                f"{name} dim {dim} seed {seed}: in the last epoch {parts['forward']} equilibria and "
                f"{parts['backward']} gradients of training samples missed the solver's tolerance, and "
                f"{parts['test']} equilibria of test samples"
            )


def print_rates(arguments: Namespace, configs: Iterable["Config"]) -> None:
    """Prints the learning rates that were chosen for these runs, by entry and width, over the seeds."""
    from deq_enn.reporting.records import read_metrics

    chosen = {r["run"]: r["config"]["lr"] for r in read_metrics(arguments.output_path) if r.get("event") == "run"}
    rates: dict[str, dict[Any, dict[float, None]]] = {}
    for config in configs:
        by_dim = rates.setdefault(entry(config.model, config.depth, config.steps), {})
        of_seeds = by_dim.setdefault(config.dim, {})
        if config.key in chosen:
            of_seeds[chosen[config.key]] = None  # each rate once
    print("\nlearning rates chosen on held-out training samples")
    for model, by_dim in rates.items():
        cells = [" ".join(f"{rate:.3g}" for rate in by_dim[dim]) for dim in arguments.dim]
        print(f"{model:<{_column([*rates])}}" + "".join(f"{cell:>24}" for cell in cells))


def entry_looks(arguments: Namespace, entries: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns how each entry is drawn; the depths of one network have as many colours."""
    looks, drawn, depths = looks_of(arguments), {}, {}
    for number, name in enumerate(entries):
        network, _, stopped = name.partition(", ")
        model, _, depth = network.partition(" ")
        colour, line, label = looks.get(model, ("C2", "-", model))
        if depth:
            depths[model] = depths.get(model, -1) + 1
            others = [f"C{k}" for k in range(3, 10) if f"C{k}" != colour]  # than its family's
            colour, label = others[depths[model] % len(others)], f"{label}, {depth} layer{'s' * (depth != '1')}"
        if stopped:
            colour, line, label = f"C{3 + number % 7}", "-.", f"{label}, {stopped}"
        drawn[name] = curve_look(colour, line, label)
    return drawn


def looks_of(arguments: Namespace) -> dict[str, tuple[str, str, str]]:
    """Returns (colour, line, label) of each model, where a general one is labelled with its activation."""
    short = (arguments.activation or "").rpartition(":")[2]
    return LOOKS | {
        "deq": ("C2", "-", f"{short}-DEQ"),
        "matched_enn": ("C2", "--", f"its {arguments.match}-matched ENN"),
        "unmatched_enn": ("C2", ":", f"unmatched {short}-ENN"),
        "conv_deq": ("C4", "-", f"convolutional {short}-DEQ"),
        "matched_conv_enn": ("C4", "--", f"its {arguments.match}-matched network"),
        "plain_conv": ("C4", ":", f"plain {short} convolutions"),
    }


def plot(arguments: Namespace, data: "Dataset", results: "Results", path: Path) -> None:
    """Draws test accuracy against epoch at the largest width, and against width after the last epoch; a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = entry_looks(arguments, entries_of(results))
    if len(chosen) == 1:  # no other curve lies on top of it
        chosen = {name: look | {"linewidth": 1.3, "alpha": 1} for name, look in chosen.items()}

    def accuracies(model, dim):
        """Returns one list a seed, by epoch."""
        return [
            [100 * record["test_accuracy"] for record in results[model, dim, seed].history] for seed in arguments.seed
        ]

    plt.style.use(STYLE)
    panels = 2 if len(arguments.dim) > 1 else 1
    figure, axes = plt.subplots(1, panels, figsize=(3.4 * panels, 2.7), squeeze=False, layout="constrained")
    _by_epoch(axes[0, 0], arguments, data.name, accuracies, chosen)
    if panels == 2:
        _by_width(axes[0, 1], arguments, accuracies, chosen)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3 if panels == 2 else 2,
        handlelength=3,
    )
    save(figure, path, dpi=200)


def _by_epoch(ax, arguments, name, accuracies, looks):
    widest = max(arguments.dim)
    for model, look in looks.items():
        draw_band(ax, range(1, arguments.epoch + 1), accuracies(model, widest), look)
    ax.set(xlabel="epoch", ylabel="test accuracy (%)", title=f"{name}, width {widest}")
    ax.xaxis.get_major_locator().set_params(integer=True)


def _by_width(ax, arguments, accuracies, looks):
    widths = sorted(arguments.dim)
    for model, look in looks.items():
        mean, std = zip(*(mean_std([curve[-1] for curve in accuracies(model, dim)]) for dim in widths))
        ax.errorbar(widths, mean, std if len(arguments.seed) > 1 else None, **look, **dot(widths))
    ax.set(xlabel="width $m$", title=f"after {counted(arguments.epoch, 'epoch')}", xscale="log")
    ax.set_xticks(widths, widths)
    ax.minorticks_off()
