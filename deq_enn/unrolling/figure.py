"""The figure of a verdict by steps shows accuracy against the number of steps, with intervals, and against time.

It is drawn from the numbers of `StepVerdict.to_dict()`. Panels whose numbers are not known are left out.
"""

from pathlib import Path
from typing import Any

from deq_enn.reporting.style import STYLE, save
from deq_enn.unrolling.result import KINDS, TIED

LOOKS = {
    "stopped": ("C0", "o"),
    "refitted": ("C4", "v"),
    "distilled": ("C1", "s"),
    "consistent": ("C3", "D"),
    "explicit": ("C2", "^"),
    "matched": ("C5", "P"),
}
OFFSET = 0.06  # distance of neighbouring kinds along the axis of steps, in units of log2


def draw(result: dict, path: Path | str) -> bool:
    """Draws the figure as a PNG file, and returns whether there was anything to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    candidates = result["candidates"]
    if not candidates:
        return False
    timed = [c for c in candidates if c["cost"] and c["cost"]["batch"]]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 1 + bool(timed), figsize=(7.0, 2.8), layout="constrained", squeeze=False)
        _draw_steps(axes[0, 0], result)
        axes[0, 0].set_title("(a) against the number of steps", loc="left")
        if timed:
            _draw_times(axes[0, 1], result, timed)
            axes[0, 1].set_title("(b) against time", loc="left")
        handles, labels = [], []
        for kind in KINDS:
            if any(c["kind"] == kind for c in candidates):
                colour, marker = LOOKS[kind]
                handles += axes[0, 0].plot([], [], marker, color=colour)
                labels.append(KINDS[kind])
        figure.legend(handles, labels, loc="outside lower center", ncols=3, handletextpad=0.4)
        save(figure, path, dpi=200)
        plt.close(figure)
    return True


def _limits(result: dict) -> tuple[float, float]:
    """The accuracies that are shown: all of the better half, and the module's."""
    own = result["module"]["accuracy"]
    accuracies = sorted(c["accuracy"] for c in result["candidates"])
    least = min(own - 2 * result["settings"]["tolerance"], accuracies[len(accuracies) // 4])
    most = max(own, accuracies[-1])
    margin = 0.12 * (most - least)
    return least - margin, min(most + margin, 100.0 + margin)


def _level(ax: Any, result: dict) -> None:
    own, tolerance = result["module"]["accuracy"], result["settings"]["tolerance"]
    low, high = _limits(result)
    ax.set_ylim(low, high)
    ax.axhspan(own - tolerance, max(high, own), color="0.93", linewidth=0)
    ax.axhline(own, color="0.3", linewidth=0.8)
    ax.set_ylabel("accuracy on held-out samples (%)")


def _point(ax: Any, x: float, candidate: dict, result: dict) -> None:
    """A candidate with its interval, about the accuracy that its loss leaves the module; the chosen one is ringed."""
    colour, marker = LOOKS[candidate["kind"]]
    own = result["module"]["accuracy"]
    low, high = candidate["interval"]
    ax.plot([x, x], [own - high, own - low], color=colour, linewidth=0.8)
    ax.plot(x, candidate["accuracy"], marker, color=colour, markersize=3.6)
    if candidate["name"] == result["chosen"]:
        ax.plot(x, candidate["accuracy"], "o", mfc="none", mec="k", markersize=8, mew=0.9)


def _draw_steps(ax: Any, result: dict) -> None:
    _level(ax, result)
    steps = sorted({c["k"] for c in result["candidates"] if c["k"]})
    places: list[float] = [float(k) for k in steps] or [1.0]
    ax.set_xscale("log", base=2)
    for number, kind in enumerate(TIED):
        for candidate in (c for c in result["candidates"] if c["kind"] == kind):
            _point(ax, candidate["k"] * 2 ** (OFFSET * (number - 1.5)), candidate, result)
    others = [c for c in result["candidates"] if not c["k"]]
    beyond = [2 * places[-1] * 2 ** (0.35 * number) for number in range(len(others))]
    for x, candidate in zip(beyond, others):
        _point(ax, x, candidate, result)
    ax.set_xticks(places, [f"{k:g}" for k in places])
    ax.set_xticks([], minor=True)
    if others:
        ax.axvline(places[-1] * 2**0.5, color="0.7", linewidth=0.6)
    ax.set_xlabel("steps" + (" | other networks" if others else ""))


def _draw_times(ax: Any, result: dict, timed: list[dict]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    _level(ax, result)
    ax.set_xscale("log")
    for candidate in timed:
        _point(ax, 1e3 * candidate["cost"]["batch"], candidate, result)
    own = result["module"]["cost"]["batch"]
    if own:
        ax.plot(1e3 * own, result["module"]["accuracy"], "*", color="k", markersize=7)
        ax.annotate("the module", (1e3 * own, result["module"]["accuracy"]), (0, -9), textcoords="offset points",
                    ha="center", fontsize=7)  # fmt: skip
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("time for a batch (ms)")
