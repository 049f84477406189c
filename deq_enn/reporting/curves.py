"""An experiment has two figures: test accuracy against epoch, and against width with paired differences beside it."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deq_enn.names import counted
from deq_enn.reporting.logs import VARIANT, Experiment
from deq_enn.reporting.looks import LOOKS
from deq_enn.reporting.statistics import MARGIN
from deq_enn.reporting.style import STYLE, curve_look, dot, draw_band, mean_std, save
from deq_enn.reporting.tables import LINES, differences, final, name_of, pairs_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def looks(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Returns {model: keywords of a curve}."""
    styles, colours = {}, {}
    for model in experiment.models:
        kind, _, rest = model.partition("-")
        if model in LOOKS:
            colour, line, _ = LOOKS[model]
        elif VARIANT.fullmatch(model):
            colour, line = colours.setdefault(model, f"C{2 + len(colours)}"), "-."
        else:
            family = re.sub(r"-(ck|ntk)$", "", rest) if kind in LINES else model
            colour = colours.setdefault(family, f"C{2 + len(colours)}")
            line = LINES[kind][0] if kind in LINES else "-."
        styles[model] = curve_look(colour, line, name_of(model))
    return styles


def legend_below(figure: "Figure", handles: dict[str, Any], columns: int) -> None:
    """Draws {label: handle} row by row, a family of three in a row, where matplotlib goes column by column."""
    order = [label for column in range(columns) for label in list(handles)[column::columns]]
    figure.legend([handles[label] for label in order], order, loc="outside lower center", ncols=columns, handlelength=3)


def epoch_figure(experiment: Experiment) -> "Figure":
    """Draws test accuracy against epoch, a panel a width: mean over seeds in a band of one standard deviation."""
    from matplotlib import pyplot as plt

    dims, style = experiment.dims, looks(experiment)
    columns = min(3, len(dims))
    rows = math.ceil(len(dims) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.75 if columns > 1 else 3.6, 2.1 * rows + 0.6), squeeze=False)
    epochs = range(1, experiment.epochs + 1)
    for ax, dim in zip(axes.flat, dims):
        for model, look in style.items():
            runs = list(experiment.of(model, dim).values())
            if runs:
                draw_band(ax, epochs, [[100 * run.test[e - 1] for e in epochs] for run in runs], look)
        ax.set(title=f"width {dim}", xlabel="epoch")
        if experiment.epochs > 20:
            ax.set_xscale("log")
        else:
            ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in axes.flat[len(dims) :]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels())}
    legend_below(figure, handles, 3 if columns > 1 else 2)
    return figure


def width_figure(experiment: Experiment, margin: float = MARGIN) -> "Figure":
    """Draws the final test accuracy against width and, where there are pairs, DEQ - ENN beside it."""
    from matplotlib import pyplot as plt

    style, pairs = looks(experiment), pairs_of(experiment)
    panels = 2 if pairs else 1
    figure, axes = plt.subplots(1, panels, figsize=(3.375 * panels, 3.1), squeeze=False)
    left = axes[0, 0]
    _draw_accuracies(left, experiment, style)
    if pairs:
        _draw_differences(axes[0, 1], experiment, style, margin)
    for ax in axes.flat:
        ax.set(xlabel="width $m$", xscale="log")
        ax.set_xticks(experiment.dims, experiment.dims)
        ax.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles)), 3 if pairs else 2)
    return figure


def _draw_accuracies(ax: "Axes", experiment: Experiment, style: dict[str, dict[str, Any]]) -> None:
    """Mean ± standard deviation over the seeds, a curve a network."""
    for model, look in style.items():
        points = [(dim, list(final(experiment.of(model, dim)).values())) for dim in experiment.dims]
        points = [(dim, *mean_std(values), len(values)) for dim, values in points if values]
        widths, mean, std, n = zip(*points)
        ax.errorbar(widths, mean, std if max(n) > 1 else None, **look, **dot(widths))
    ax.set(ylabel="test accuracy (%)", title=f"after {counted(experiment.epochs, 'epoch')}")


def _draw_differences(ax: "Axes", experiment: Experiment, style: dict[str, dict[str, Any]], margin: float) -> None:
    """DEQ - ENN with 95% intervals; the margin within which networks count as equal is grey."""
    ax.axhline(0, color="0.55", linewidth=0.6)
    ax.axhspan(-margin, margin, color="0.93", linewidth=0, zorder=0)
    seeds, pairs = set(), pairs_of(experiment)
    for index, (deq, enn) in enumerate(pairs):
        paired = differences(experiment, deq, enn)
        shift = 1.04 ** (index - (len(pairs) - 1) / 2)  # side by side, or the bars hide one another
        bars = [difference.half for difference in paired.values()]
        seeds |= {difference.n for difference in paired.values()}
        ax.errorbar(
            [dim * shift for dim in paired],
            [difference.mean for difference in paired.values()],
            None if any(map(math.isnan, bars)) else bars,
            color=style[enn]["color"],
            linestyle=style[enn]["linestyle"],
            marker="o",
            markersize=3,
        )
    title = "difference" if seeds == {1} else "difference, 95% interval"
    ax.set(ylabel="DEQ − ENN (percentage points)", title=title)


KINDS = ("epochs", "widths")


def write_figures(
    experiments: list[Experiment], folder: Path | str, margin: float = MARGIN
) -> dict[tuple[int, str], Path]:
    """Draws every figure into the folder and returns {(index of the experiment, kind): path}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    written = {}
    slugs = [e.slug for e in experiments]
    for index, experiment in enumerate(experiments):
        slug = slugs[index] + (f"-{slugs[:index].count(slugs[index]) + 1}" if slugs.count(slugs[index]) > 1 else "")
        with plt.style.context(STYLE):
            for kind, figure in zip(KINDS, (epoch_figure(experiment), width_figure(experiment, margin))):
                written[index, kind] = Path(folder) / f"{slug}-{kind}.png"
                save(figure, written[index, kind], dpi=200)
                plt.close(figure)
    return written
