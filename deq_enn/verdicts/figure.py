"""The figure of a verdict shows what each candidate loses, how far its kernels are from the DEQ's, and what it saves.

It is drawn from the numbers of `Verdict.to_dict()`, as verdict.json keeps them. Panels whose numbers are not known,
as after an interruption, are left out. A trained DEQ has one more panel, the statistics of its weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deq_enn.reporting.style import STYLE, save

COLOURS = {"matched": "C0", "plain": "C1"}
JOBS = {"inference": "one row", "features": "batch", "training_step": "training step", "memory": "memory"}
SHOWN = 12  # candidates in the figure, at most


@dataclass(frozen=True)
class Panel:
    """This is one panel: `draw(ax, candidates, result)` fills the axes and returns the title."""

    name: str
    draw: Callable
    lists_candidates: bool  # whether its rows are the candidates


def draw(result: dict, path: Path | str) -> bool:
    """Draws the figure as a PNG file, and returns whether there was anything to draw.

    result : of `Verdict.to_dict()`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    candidates = _best(result)
    rows = _rows_of_panels(candidates, result)
    if not rows:
        return False
    heights = [max(1.9, 0.9 + 0.19 * len(candidates)), 2.0][: len(rows)]
    with plt.style.context(STYLE):
        figure, axes = plt.subplot_mosaic(
            _mosaic(rows), figsize=(7.0, sum(heights)), height_ratios=heights, layout="constrained"
        )
        for number, panel in enumerate(panel for row in rows for panel in row):
            ax = axes[panel.name]
            title = panel.draw(ax, candidates, result)
            if panel.lists_candidates:
                _name_rows(ax, candidates, result["chosen"], with_names=number == 0)
            ax.tick_params(axis="y", length=0)
            ax.set_title(f"({'abcd'[number]}) {title}", loc="left")
        save(figure, path, dpi=200)
        plt.close(figure)
    return True


def label(candidate: dict) -> str:
    """Returns the candidate's name as the figure and the page write it."""
    return candidate["name"].replace("matched ck", "matched CK").replace("matched ntk", "matched NTK").replace("_", "-")


def costed(result: dict) -> dict:
    """Returns the candidate whose cost is shown: the chosen one, or the first whose cost is known."""
    known = [candidate for candidate in result["candidates"] if candidate["cost"]]
    return next((candidate for candidate in known if candidate["name"] == result["chosen"]), known[0])


# ---------------------------------------------------------------------------------------------------------------
# the layout


def _best(result):
    """Returns the candidates in their order; of more than SHOWN the best, the chosen one included."""
    candidates = result["candidates"]
    if len(candidates) <= SHOWN:
        return candidates

    def rank(candidate):
        loss = math.inf if candidate["loss"] is None else _shown(candidate, result)[1][1]
        return candidate["name"] != result["chosen"], loss

    return sorted(sorted(candidates, key=rank)[:SHOWN], key=candidates.index)


def _rows_of_panels(candidates, result):
    """Returns the panels whose numbers are known: one row, or two where a trained DEQ's weights are shown too."""
    losses = [LOSSES] if any(candidate["loss"] is not None for candidate in candidates) else []
    distances = [DISTANCES] if any(candidate["distance"] for candidate in candidates) else []
    savings = [SAVINGS] if any(candidate["cost"] for candidate in candidates) else []
    if result["drift"]:
        rows = [losses + distances, [WEIGHTS, *savings]]
    else:
        rows = [losses + distances + savings]
    return [row for row in rows if row]


def _mosaic(rows) -> list:
    """Returns the names of the panels for `subplot_mosaic`, each repeated so that all rows have the same length."""
    if len(rows) == 1:
        return [[panel.name for panel in rows[0]]]
    first, second = rows
    return [[panel.name for panel in first for _ in second], [panel.name for panel in second for _ in first]]


def _name_rows(ax, candidates, chosen, with_names):
    ax.set_ylim(len(candidates) - 0.4, -0.6)
    ax.set_yticks(range(len(candidates)), [label(candidate) for candidate in candidates] if with_names else [])
    for text, candidate in zip(ax.get_yticklabels(), candidates):
        text.set_fontweight("bold" if candidate["name"] == chosen else "normal")


def _legend(ax, handles, side):
    ax.figure.legend(handles=handles, loc=f"outside lower {side}", ncols=3, handletextpad=0.4)


# ---------------------------------------------------------------------------------------------------------------
# the panels


def _shown(candidate, result):
    """Returns the loss of the kind that was asked for, and its interval."""
    kind = "draw_" if result["settings"].get("for") == "draw" and candidate.get("draw_interval") else "loss_"
    return candidate["loss" if kind == "loss_" else "draw_loss"], candidate[f"{kind}interval"]


def _draw_losses(ax, candidates, result):
    _limit_losses(ax, candidates, result)
    for row, candidate in enumerate(candidates):
        colour = COLOURS[candidate["kind"]]
        if candidate["infinite"]:
            ax.plot(candidate["infinite"]["difference"], row, "o", mfc="white", mec=colour, ms=4, mew=0.8, clip_on=True)
        if candidate["loss"] is not None:
            loss, (low, high) = _shown(candidate, result)
            ax.errorbar(
                loss,
                row,
                xerr=[[loss - low], [high - loss]],
                fmt="o",
                color=colour,
                elinewidth=1.8 if candidate["name"] == result["chosen"] else 1.0,
            )
    ax.set_xlabel("loss of accuracy (points)")
    handles = [
        ax.plot([], [], "o-", color=colour, label=kind)[0]
        for kind, colour in COLOURS.items()
        if any(candidate["kind"] == kind for candidate in candidates)
    ]
    if any(candidate["infinite"] for candidate in candidates):
        handles += ax.plot([], [], "o", mfc="white", mec="0.3", label="infinite width")
    _legend(ax, handles, "left")
    return f"loss at width {result['settings']['width']}"


def _limit_losses(ax, candidates, result):
    """Sets the axis to all intervals that are shown, but to 60 tolerances at most, and shades what is tolerated."""
    known, tolerance = [c for c in candidates if c["loss"] is not None], result["settings"]["tolerance"]
    ends = [end for candidate in known for end in _shown(candidate, result)[1]]
    least = max(min(-2 * tolerance, *ends), -60 * tolerance)
    most = min(max(2 * tolerance, *ends), 60 * tolerance)
    margin = 0.06 * (most - least)
    ax.axvspan(least - margin, tolerance, color="0.93", linewidth=0)
    ax.axvline(0, color="0.6", linewidth=0.6)
    ax.set_xlim(least - margin, most + margin)


def _draw_distances(ax, candidates, result):
    looks = {"ck": ("C2", "o", "conjugate kernel"), "ntk": ("C3", "s", "tangent kernel")}
    for row, candidate in enumerate(candidates):
        if candidate["distance"] is None:  # not compared, for want of time
            continue
        for offset, (kernel, (colour, marker, _)) in zip((-0.13, 0.13), looks.items()):
            d = candidate["distance"][kernel]
            ax.plot([d["with_factor"], d["relative"]], [row + offset] * 2, color=colour, linewidth=0.7)
            ax.plot(d["with_factor"], row + offset, marker, mfc="white", mec=colour, ms=3.2, mew=0.8)
            ax.plot(d["relative"], row + offset, marker, color=colour, ms=3.2)
    ax.set(xscale="log", xlabel="relative spectral distance")
    handles = [ax.plot([], [], marker, color=colour, label=kernel)[0] for colour, marker, kernel in looks.values()]
    handles += ax.plot([], [], "o", mfc="white", mec="0.3", label="times the best factor")
    _legend(ax, handles, "right")
    return "kernels beside the DEQ's"


def _draw_weights(ax, candidates, result):
    """Draws the statistics of a trained DEQ's weights, in standard deviations of the shuffled copies."""
    statistics = result["drift"]["statistics"]
    scores = [statistic["score"] for statistic in statistics.values()]
    ax.axvspan(-2, 2, color="0.93", linewidth=0)
    ax.barh(range(len(scores)), scores, 0.6, color=["C3" if score > 3 else "0.55" for score in scores])
    ax.set_yticks(range(len(scores)), [name.replace("largest singular value", "largest s. v.") for name in statistics])
    ax.set_ylim(len(scores) - 0.4, -0.6)
    ax.set_xlim(1.1 * min(-4, *scores), 1.1 * max(4, *scores))
    ax.set_xlabel("standard deviations of shuffled ones")
    return "trained weights"


def _draw_savings(ax, candidates, result):
    candidate = costed(result)
    jobs = [job for job in JOBS if job in candidate["cost"]]
    values = [candidate["cost"][job] for job in jobs]
    ax.barh(range(len(jobs)), values, 0.6, color=COLOURS[candidate["kind"]])
    ax.axvline(1, color="0.3", linewidth=0.6)
    for row, value in enumerate(values):
        ax.text(value, row, f" {_times(value)}", va="center", fontsize=7.5)
    ax.set_yticks(range(len(jobs)), [JOBS[job] for job in jobs])
    ax.set_ylim(len(jobs) - 0.4, -0.6)
    ax.set_xlim(0, 1.3 * max(values))
    ax.set_xlabel("DEQ / network")
    return "saved"


def _times(value):
    return f"{value:.0f}×" if value >= 9.95 else f"{value:.1f}×"


LOSSES = Panel("losses", _draw_losses, lists_candidates=True)
DISTANCES = Panel("distances", _draw_distances, lists_candidates=True)
WEIGHTS = Panel("weights", _draw_weights, lists_candidates=False)
SAVINGS = Panel("savings", _draw_savings, lists_candidates=False)
