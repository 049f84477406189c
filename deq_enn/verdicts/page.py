"""The page of a verdict, from the numbers of `Verdict.to_dict()`, as verdict.json keeps them.

The page holds the figure (`figure.py`) and needs no other file and no network. A verdict that was interrupted has a
page of what is known.
"""

from pathlib import Path

from deq_enn.reporting.page import Figure, Heading, Rows, Table, Text, page
from deq_enn.utils.files import atomic_write
from deq_enn.verdicts.figure import JOBS, costed, draw, label

ANSWERS = {"replace": "Replace it", "keep": "Keep it", "undecided": "Undecided"}


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
        said.append(f"time and memory of the DEQ over those of {label(costed(found))}")
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
        row = [label(one), _signed(one["loss"]), _interval(one["loss_interval"])]
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
    rows = [[label(one), *(_number(one["cost"].get(job), ".1f") for job in JOBS)] for one in known]
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
            if (key := (label(one).partition(",")[0], number, values)) not in seen:
                seen.add(key)
                rows.append([label(one), str(number), values])
    return Table("Layers in numbers", ["network", "layer", "parameters"], rows) if rows else None


def _value(value):
    return "(" + ", ".join(f"{v:.6g}" for v in value) + ")" if isinstance(value, (list, tuple)) else f"{value:.6g}"


def _number(value, form):
    return "–" if value is None else format(value, form)


def _signed(value):
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def _interval(ends):
    return "–" if ends is None else f"{_signed(ends[0])} to {_signed(ends[1])}"
