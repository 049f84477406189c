"""The figure and the page of a verdict, from the numbers of `Verdict.to_dict()`, as verdict.json keeps them.

The figure: what each candidate loses, beside what its kernels are from the DEQ's, and what the cheapest saves. The page
holds the figure and needs no other file and no network. A verdict that was interrupted has a page of what is known.
"""

import math
from pathlib import Path

from deq_enn.reporting.page import Figure, Heading, Rows, Table, Text, page
from deq_enn.reporting.style import STYLE, save
from deq_enn.utils.files import atomic_write

COLOURS = {"matched": "C0", "plain": "C1"}
JOBS = {"inference": "one row", "features": "batch", "training_step": "training step", "memory": "memory"}
ANSWERS = {"replace": "Replace it", "keep": "Keep it", "undecided": "Undecided"}
SHOWN = 12  # candidates in the figure, at most


def write(found: dict, folder) -> list[Path]:
    """Writes verdict.png and verdict.html, whole or not at all, and returns their paths."""
    folder = Path(folder)
    picture, html = folder / "verdict.png", folder / "verdict.html"
    figures = []
    if draw(found, picture):
        figures.append(picture)
    title = _title(found)
    with atomic_write(html, "w") as file:
        file.write(page(blocks(found, figures), title))
    return [*figures, html]


def _title(found):
    s = found["settings"]
    return f"{ANSWERS[found['answer']]}: the {s['activation']}-DEQ of width {s['width']}, σ_a² = {s['sigma_a2']:.3g}"


# ---------------------------------------------------------------------------------------------------------------
# the figure


def draw(found: dict, path) -> bool:
    """The figure as a PNG; False, and none, where no candidate is known."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = _shown(found)
    known = {
        _losses: any(one["loss"] is not None for one in shown),
        _savings: any(one["cost"] for one in shown),
        _distances: any(one["distance"] for one in shown),
        _scores: bool(found["drift"]),
    }
    # one row; a second where there are the weights of a trained DEQ to be shown
    layout = [[_losses, _distances], [_scores, _savings]] if found["drift"] else [[_losses, _distances, _savings]]
    rows = [row for row in ([panel for panel in row if known[panel]] for row in layout) if row]
    if not rows:
        return False
    heights = [max(1.9, 0.9 + 0.19 * len(shown)), 2.0][: len(rows)]
    with plt.style.context(STYLE):
        figure, axes = plt.subplot_mosaic(
            [
                [panel.__name__ for panel in row for _ in range(len(rows[-1 - number]) if len(rows) > 1 else 1)]
                for number, row in enumerate(rows)
            ],
            figsize=(7.0, sum(heights)),
            height_ratios=heights,
            layout="constrained",
        )
        for number, panel in enumerate(panel for row in rows for panel in row):
            ax = axes[panel.__name__]
            title = panel(ax, shown, found)
            if panel in (_losses, _distances):
                first = not number
                ax.set_ylim(len(shown) - 0.4, -0.6)
                ax.set_yticks(range(len(shown)), [_label(one) for one in shown] if first else [])
                for text, one in zip(ax.get_yticklabels(), shown):
                    text.set_fontweight("bold" if one["name"] == found["chosen"] else "normal")
            ax.tick_params(axis="y", length=0)
            ax.set_title(f"({'abcd'[number]}) {title}", loc="left")
        save(figure, path, dpi=200)
        plt.close(figure)
    return True


def _shown(found):
    """The candidates as they are, the best first where there are too many; the chosen is among them."""
    candidates = found["candidates"]
    if len(candidates) <= SHOWN:
        return candidates
    order = sorted(
        candidates,
        key=lambda one: (one["name"] != found["chosen"], math.inf if one["loss"] is None else one["loss_interval"][1]),
    )
    return sorted(order[:SHOWN], key=candidates.index)


def _label(one):
    return one["name"].replace("matched ck", "matched CK").replace("matched ntk", "matched NTK").replace("_", "-")


def _losses(ax, shown, found):
    tolerance = found["settings"]["tolerance"]
    ends = [end for one in shown if one["loss"] is not None for end in one["loss_interval"]]
    least, most = max(min(-2 * tolerance, *ends), -60 * tolerance), min(max(2 * tolerance, *ends), 60 * tolerance)
    margin = 0.06 * (most - least)
    ax.axvspan(least - margin, tolerance, color="0.93", linewidth=0)
    ax.axvline(0, color="0.6", linewidth=0.6)
    for row, one in enumerate(shown):
        colour = COLOURS[one["kind"]]
        if one["infinite"]:
            ax.plot(one["infinite"]["difference"], row, "o", mfc="white", mec=colour, ms=4, mew=0.8, clip_on=True)
        if one["loss"] is not None:
            low, high = one["loss_interval"]
            ax.errorbar(
                one["loss"],
                row,
                xerr=[[one["loss"] - low], [high - one["loss"]]],
                fmt="o",
                color=colour,
                elinewidth=1.8 if one["name"] == found["chosen"] else 1.0,
            )
    ax.set_xlim(least - margin, most + margin)
    ax.set_xlabel("loss of accuracy (points)")
    handles = [
        ax.plot([], [], "o-", color=colour, label=kind)[0]
        for kind, colour in COLOURS.items()
        if any(one["kind"] == kind for one in shown)
    ]
    if any(one["infinite"] for one in shown):
        handles += ax.plot([], [], "o", mfc="white", mec="0.3", label="infinite width")
    _legend(ax, handles, "left")
    return f"loss at width {found['settings']['width']}"


def _legend(ax, handles, side):
    ax.figure.legend(handles=handles, loc=f"outside lower {side}", ncols=3, handletextpad=0.4)


def _distances(ax, shown, found):
    looks = {"ck": ("C2", "o", "conjugate kernel"), "ntk": ("C3", "s", "tangent kernel")}
    for row, one in enumerate(shown):
        for offset, (kernel, (colour, marker, _)) in zip((-0.13, 0.13), looks.items()):
            d = one["distance"][kernel]
            ax.plot([d["with_factor"], d["relative"]], [row + offset] * 2, color=colour, linewidth=0.7)
            ax.plot(d["with_factor"], row + offset, marker, mfc="white", mec=colour, ms=3.2, mew=0.8)
            ax.plot(d["relative"], row + offset, marker, color=colour, ms=3.2)
    ax.set(xscale="log", xlabel="relative spectral distance")
    handles = [ax.plot([], [], marker, color=colour, label=label)[0] for colour, marker, label in looks.values()]
    handles += ax.plot([], [], "o", mfc="white", mec="0.3", label="times the best factor")
    _legend(ax, handles, "right")
    return "kernels beside the DEQ's"


def _scores(ax, shown, found):
    """Of a trained DEQ: its statistics, in standard deviations of the shuffled copies."""
    statistics = found["drift"]["statistics"]
    scores = [one["score"] for one in statistics.values()]
    ax.axvspan(-2, 2, color="0.93", linewidth=0)
    ax.barh(range(len(scores)), scores, 0.6, color=["C3" if score > 3 else "0.55" for score in scores])
    ax.set_yticks(range(len(scores)), [name.replace("largest singular value", "largest s. v.") for name in statistics])
    ax.set_ylim(len(scores) - 0.4, -0.6)
    ax.set_xlim(1.1 * min(-4, *scores), 1.1 * max(4, *scores))
    ax.set_xlabel("standard deviations of shuffled ones")
    return "trained weights"


def _savings(ax, shown, found):
    one = _costed(found)
    jobs = [job for job in JOBS if job in one["cost"]]
    values = [one["cost"][job] for job in jobs]
    ax.barh(range(len(jobs)), values, 0.6, color=COLOURS[one["kind"]])
    ax.axvline(1, color="0.3", linewidth=0.6)
    for row, value in enumerate(values):
        ax.text(value, row, f" {_factor(value)}", va="center", fontsize=7.5)
    ax.set_yticks(range(len(jobs)), [JOBS[job] for job in jobs])
    ax.set_ylim(len(jobs) - 0.4, -0.6)
    ax.set_xlim(0, 1.3 * max(values))
    ax.set_xlabel("DEQ / network")
    return "saved"


def _costed(found):
    """The candidate whose cost is shown: the chosen, or the first that has one."""
    known = [one for one in found["candidates"] if one["cost"]]
    return next((one for one in known if one["name"] == found["chosen"]), known[0])


def _factor(value):
    return f"{value:.0f}×" if value >= 9.95 else f"{value:.1f}×"


# ---------------------------------------------------------------------------------------------------------------
# the page


def blocks(found: dict, figures) -> list:
    """The blocks of the page (`page.py`)."""
    s = found["settings"]
    data = f"{s['n']} samples of dimension p = {s['p']}"
    data += f", {s['classes']} classes" if s["classes"] else ", no labels"
    if s.get("dataset"):
        data = f"{s['dataset']}: {data}"
    out = [
        Heading(1, _title(found)),
        *(Text(sentence) for sentence in found["reason"]),
        Text(
            f"{data}. Loss: test accuracy of the DEQ less that of the network in its place, in percentage points, "
            f"each with its best readout; tolerated are {s['tolerance']:g}. Found in {found['seconds']:.0f} s."
        ),
    ]
    out += [Figure(path, _caption(found)) for path in figures]
    if found["candidates"]:
        out += [Heading(2, "What may replace it"), Rows(_candidates(found))]
    if known := [one for one in found["candidates"] if one["cost"]]:
        out += [Heading(2, "What is saved"), Rows(_costs(known))]
    if found["drift"]:
        out += [
            Heading(2, "Are its weights still random?"),
            Text(_drift_sentence(found["drift"])),
            Rows(_drift(found["drift"])),
        ]
    if found["applies"]:
        out += [Heading(2, "Does the theory apply?"), *_applies(found["applies"])]
    if layers := _layers(found["candidates"]):
        out += [Heading(2, "The matched layers"), Rows(layers)]
    if found["refused"]:
        out += [
            Heading(2, "Families without a match"),
            *(Text(f"*{name}*: {why}") for name, why in found["refused"].items()),
        ]
    return out


def _caption(found):
    said = ["Loss of each candidate with its 90% interval; in the grey area it is tolerated"]
    if any(one["distance"] for one in found["candidates"]):
        said.append("the distance of its kernels from the DEQ's on these data")
    if found["drift"]:
        said.append("how far statistics of the trained weights are from those of shuffled copies")
    if any(one["cost"] for one in found["candidates"]):
        said.append(f"time and memory of the DEQ over those of {_label(_costed(found))}")
    return "; ".join(said) + "."


def _candidates(found):
    trained = any(one.get("agreement") is not None for one in found["candidates"])
    header = ["candidate", "loss, points", "90% interval"]
    header += (
        ["accuracy, %", "says as the DEQ, %"]
        if trained
        else [
            "from width",
            "at infinite width",
            "CK distance",
            "times factor",
            "NTK distance",
            "times factor",
            "labels in CK",
        ]
    )
    rows = []
    for one in found["candidates"]:
        row = [_label(one), _signed(one["loss"]), _interval(one["loss_interval"])]
        if trained:
            row += [_number(one.get("accuracy"), ".2f"), _number(one.get("agreement"), ".2f")]
        else:
            distance = one["distance"] or {}
            row += [
                _number(one["width_from"], "d"),
                _signed((one["infinite"] or {}).get("difference")),
                *(
                    _number(distance.get(kernel, {}).get(key), ".2g")
                    for kernel in ("ck", "ntk")
                    for key in ("relative", "with_factor")
                ),
                _number(one["alignment"], ".2f"),
            ]
        rows.append(row)
    note = (
        "From width: the width from which on the interval is below the tolerance. Distances are spectral, relative "
        "to the DEQ's kernel on these data. Labels in CK: alignment of its leading eigenvectors with the labels."
    )
    if trained:
        note = (
            "B: the first layer has the weights of the DEQ's B, else its own. The loss is measured on samples that "
            "no readout was solved on."
        )
    return Table("Candidates" + (f"; chosen: {found['chosen']}" if found["chosen"] else ""), header, rows, note)


def _costs(known):
    header = ["network", *(f"{title}: DEQ / network" for title in JOBS.values())]
    rows = [[_label(one), *(_number(one["cost"].get(job), ".1f") for job in JOBS)] for one in known]
    return Table(
        "Time and memory, measured on this machine at this width",
        header,
        rows,
        "Batch: features of 512 rows. Training step: every weight, 128 rows. Memory: of the batch and the weights.",
    )


def _drift_sentence(drift):
    said = "have left" if drift["left"] else "are within"
    if not drift["settle"]:
        return "The weights have left the random regime: with their entries shuffled there is no equilibrium."
    return (
        f"The weights {said} the random regime: among 19 copies of the network with the entries of its weights "
        f"shuffled, its most extreme statistic has p = {drift['p']:.2g}, {drift['score']:.1f} standard deviations "
        f"from theirs. The weights have the mean square of σ_a² = {drift['sigma_a2']:.3g}."
    )


def _drift(drift):
    rows = [
        [name, f"{v['value']:.3g}", f"{v['random']:.3g}", f"{v['spread']:.2g}", f"{v['score']:+.1f}"]
        for name, v in drift["statistics"].items()
    ]
    if drift["infinite"]:
        rows.append(
            [
                "kernel, from infinite width",
                f"{drift['infinite']['trained']:.3g}",
                f"{drift['infinite']['random']:.3g}",
                "–",
                "–",
            ]
        )
    return Table(
        "Statistics of the trained weights",
        ["statistic", "trained", "shuffled", "spread", "score"],
        rows,
        "Radius (largest |eigenvalue|) and largest singular values relative to the laws of random matrices; "
        "singular values: Kolmogorov distance to Marchenko and Pastur's law; kernel: relative distance of the "
        "conjugate kernel to the mean one.",
    )


def _applies(applies):
    out = [Text(f"{sentence[0].upper()}{sentence[1:]}.") for sentence in applies.get("fails", [])]
    if not out:
        out = [Text("Every assumption that was looked at holds.")]
    rows = []
    if c := applies.get("concentration"):
        gaussian = c["gaussian"]
        rows += [
            [title, f"{c[key]:.3g}", f"{gaussian[key]:.3g} (Gaussian data)"]
            for key, title in (
                ("norm_spread", "spread of |x|²/τ_0²"),
                ("norm_farthest", "farthest of |x|²/τ_0² from 1"),
                ("cosine", "cosine of two samples, root mean square"),
                ("cosine_largest", "largest cosine"),
            )
        ]
    if t := applies.get("stability"):
        rows += [
            ["growth σ_a² E[φ'²] at τ_*", f"{t['growth']:.3g}", "below 1: stable"],
            ["the same at the worst sample", f"{t['growth_largest']:.3g}", "below 1"],
            ["2 σ_a L", f"{t['lipschitz']:.3g}", "below 1: exists and is unique"],
        ]
    return [*out, Rows(Table("Numbers behind it", ["what", "here", "asked or usual"], rows))] if rows else out


def _layers(candidates):
    rows, seen = [], set()
    for one in candidates:
        for number, parameters in enumerate(one["parameters"] or (), 1):
            values = ", ".join(f"{key} = {_value(value)}" for key, value in parameters.items())
            if (key := (_label(one).partition(",")[0], number, values)) not in seen:
                seen.add(key)
                rows.append([_label(one), str(number), values])
    return Table("Layers in numbers", ["network", "layer", "parameters"], rows) if rows else None


def _value(value):
    return "(" + ", ".join(f"{v:.6g}" for v in value) + ")" if isinstance(value, (list, tuple)) else f"{value:.6g}"


def _number(value, form):
    return "–" if value is None else format(value, form)


def _signed(value):
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def _interval(ends):
    return "–" if ends is None else f"{_signed(ends[0])} to {_signed(ends[1])}"
