"""The calibration figure shows predicted against measured loss, coverage by kind of data, and the answers."""

if __name__ == "__main__":
    raise SystemExit("figure.py is a part of scripts/calibrate.py: run that")

import numpy as np

from deq_enn.reporting.style import STYLE, save
from deq_enn.utils.intervals import Z_90
from scripts.calibration.analysis import TOLERANCE, coverage, matched_alone

KINDS = {"mixtures": "C0", "images": "C1", "assumptions broken": "C2"}
SHOWN = {
    "mixed": "mixed",
    "two_class": "two classes",
    "mnist": "MNIST",
    "cifar10_pixels": "CIFAR-10 pixels",
    "cifar10_vgg16": "CIFAR-10 VGG16",
    "mnist_spread": "MNIST, norms spread",
    "mixed_spread": "mixed, norms spread",
    "unnormalised": "mixed, unnormalised",
    "heavy_tails": "heavy tails",
    "few_dimensions": "few dimensions",
    "duplicated": "duplicated",
    "correlated": "correlated",
}
TARGET = 85, 97  # of the coverage, in %
ANSWERS, HAPPENED = ("replace", "undecided", "keep"), ("some below", "too near", "all above")


def draw(held, path):
    """Draws the first cases among `held` (those that report) as a PNG file; the fresh ones have tables of their own."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use(STYLE)
    held = [case for case in held if case.data in SHOWN]
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), width_ratios=(1.4, 0.9, 0.9))
    _losses(axes[0], held)
    _coverages(axes[1], held)
    _answers(axes[2], held, matched_alone(held))
    save(figure, path, dpi=200)
    plt.close(figure)


def _losses(ax, held):
    shown = [value for case in held for candidate in case.trained for value in (candidate.loss, candidate.mean)]
    limits = min(-2.0, 1.4 * min(shown)), max(2.0, 1.4 * max(shown))
    ax.plot(limits, limits, color="0.6", linewidth=0.8, zorder=0)
    for line in (ax.axvline, ax.axhline):
        line(TOLERANCE, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
    for kind, colour in KINDS.items():
        some = [candidate for case in held if case.kind == kind for candidate in case.trained]
        ends = (
            np.array(
                [
                    (
                        candidate.mean,
                        candidate.mean - candidate.low,
                        candidate.high - candidate.mean,
                        candidate.loss,
                        Z_90 * candidate.error,
                    )
                    for candidate in some
                ]
            )
            .reshape(-1, 5)
            .T
        )
        ax.errorbar(
            ends[0], ends[3], ends[4], ends[1:3], fmt="none", ecolor=colour, alpha=0.25, elinewidth=0.5, capsize=0
        )
        ax.plot(ends[0], ends[3], ".", color=colour, markersize=2.5, label=kind)
    chosen = [case.chosen for case in held if case.chosen and case.chosen.loss is not None]
    ax.plot(
        [candidate.mean for candidate in chosen],
        [candidate.loss for candidate in chosen],
        "o",
        color="black",
        markersize=4.5,
        fillstyle="none",
        markeredgewidth=0.6,
        label="chosen",
    )
    ax.set_xscale("symlog", linthresh=1, linscale=0.7)
    ax.set_yscale("symlog", linthresh=1, linscale=0.7)
    ticks = [t for t in (-30, -10, -3, -1, 0, 1, 3, 10, 30) if limits[0] <= t <= limits[1]]
    ax.set_xticks(ticks, ticks)
    ax.set_yticks(ticks, ticks)
    ax.minorticks_off()
    ax.set(
        xlim=limits,
        ylim=limits,
        xlabel="predicted loss (points)",
        ylabel="measured loss (points)",
        title="(a) predicted and measured",
    )
    ax.legend(loc="upper left", handletextpad=0.2, borderaxespad=0)


def _coverages(ax, held):
    names = [name for name in SHOWN if any(case.data == name for case in held)][::-1]
    kinds = {case.data: case.kind for case in held}
    ax.axvspan(*TARGET, color="0.9", zorder=0, linewidth=0)
    for y, name in enumerate(names):
        some = [case for case in held if case.data == name]
        ax.plot(coverage(some)["covered"], y, "o", color=KINDS[kinds[name]])
    ax.axvline(coverage(held)["covered"], color="black", linewidth=0.8)
    counts = [sum(case.data == name for case in held) for name in names]
    ax.set_yticks(range(len(names)), [f"{SHOWN[name]} ({count})" for name, count in zip(names, counts)])
    ax.set(
        xlabel="coverage of 90% intervals (%)",
        xlim=(min(40, *(t.get_xdata()[0] - 5 for t in ax.lines)), 102),
        title="(b) coverage, and the target",
    )


def _answers(ax, held, alone):
    counts, of_alone = (
        np.array(
            [
                [sum(case.answer == said and case.happened == what for case in cases) for what in HAPPENED]
                for said in ANSWERS
            ]
        )
        for cases in (held, alone)
    )
    ax.imshow(counts, cmap="Greys", vmax=2 * counts.max(), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        ax.text(column, row, f"{count} ({of_alone[row, column]})", ha="center", va="center")
    ax.set_xticks(range(3), [what.replace(" ", "\n") for what in HAPPENED])
    ax.set_yticks(range(3), ANSWERS)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set(xlabel=f"measured, of {TOLERANCE:g} points", title="(c) answers (matched alone)")
