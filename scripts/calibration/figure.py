"""The calibration figure shows predicted against measured loss, coverage by kind of data, and the answers."""

if __name__ == "__main__":
    raise SystemExit("figure.py is a part of scripts/calibrate.py: run that")

import numpy as np

from deq_enn.reporting.style import STYLE, save
from deq_enn.utils.intervals import Z_90
from scripts.calibration.analysis import TOLERANCE, coverage
from scripts.calibration.fresh import KINDS
from scripts.calibration.rows import HAPPENED, covered_between

TARGET = 85, 97  # of the coverage, in %
ANSWERS = "replace", "undecided", "keep", "majority"


def draw(held, path):
    """Draws cases, those of the blind rounds, as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.style.use(STYLE)
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.9), width_ratios=(1.3, 0.8, 1.1))
    _losses(axes[0], held)
    _coverages(axes[1], held)
    _answers(axes[2], held)
    save(figure, path, dpi=200)
    plt.close(figure)


def _losses(ax, held):
    trained = [candidate for case in held for candidate in case.trained]
    chosen = [case.chosen for case in held if case.chosen and case.chosen.loss is not None]
    shown = [value for candidate in trained for value in (candidate.loss, candidate.mean)]
    limits = min(-2.0, 1.4 * min(shown)), max(2.0, 1.4 * max(shown))
    ax.plot(limits, limits, color="0.6", linewidth=0.8, zorder=0)
    for line in (ax.axvline, ax.axhline):
        line(TOLERANCE, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
    predicted, measured = ([getattr(c, name) for c in trained] for name in ("mean", "loss"))
    ends = [[c.mean - c.low for c in trained], [c.high - c.mean for c in trained]]
    errors = [Z_90 * c.error for c in trained]
    ax.errorbar(predicted, measured, errors, ends, fmt="none", ecolor="C0", alpha=0.2, elinewidth=0.5, capsize=0)
    ax.plot(predicted, measured, ".", color="C0", markersize=2.5, label="a network")
    ring = dict(color="black", markersize=4.5, fillstyle="none", markeredgewidth=0.6)
    ax.plot([c.mean for c in chosen], [c.loss for c in chosen], "o", label="chosen to replace", **ring)
    ax.set_xscale("symlog", linthresh=1, linscale=0.7)
    ax.set_yscale("symlog", linthresh=1, linscale=0.7)
    ticks = [t for t in (-30, -10, -3, -1, 0, 1, 3, 10, 30) if limits[0] <= t <= limits[1]]
    ax.set_xticks(ticks, ticks)
    ax.set_yticks(ticks, ticks)
    ax.minorticks_off()
    ax.set(xlim=limits, ylim=limits, xlabel="predicted loss (points)", ylabel="measured loss (points)")
    ax.set_title("(a) predicted and measured")
    ax.legend(loc="upper left", handletextpad=0.2, borderaxespad=0)


def _coverages(ax, held):
    kinds = dict.fromkeys([*KINDS, *(case.kind for case in held)])
    of_kind = {kind: [case for case in held if case.kind == kind] for kind in reversed(kinds)}
    of_kind = {kind: cases for kind, cases in of_kind.items() if any(case.trained for case in cases)}
    ax.axvspan(*TARGET, color="0.9", zorder=0, linewidth=0)
    for y, cases in enumerate(of_kind.values()):
        share, (low, high) = coverage(cases)["covered"], covered_between(cases)
        ax.errorbar(share, y, xerr=[[share - low], [high - share]], fmt="o", color="C0", elinewidth=0.8)
    ax.axvline(coverage(held)["covered"], color="black", linewidth=0.8)
    ax.set_yticks(range(len(of_kind)), [f"{kind} ({len(cases)})" for kind, cases in of_kind.items()])
    ax.set(xlabel="coverage of 90% intervals (%)", xlim=(40, 102), title="(b) coverage, and the target")


def _answers(ax, held):
    counts = np.array(
        [[sum(case.answer == said and case.happened == what for case in held) for what in HAPPENED] for said in ANSWERS]
    )
    ax.imshow(counts, cmap="Greys", vmax=2 * counts.max(), aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        ax.text(column, row, f"{count}", ha="center", va="center")
    ax.set_xticks(range(len(HAPPENED)), [what.replace(" ", "\n", 1) for what in HAPPENED])
    ax.set_yticks(range(len(ANSWERS)), ANSWERS)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set(xlabel=f"measured, of {TOLERANCE:g} points", title="(c) answers")
