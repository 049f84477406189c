"""The page of a verdict is made from the numbers of `Verdict.to_dict()`, as verdict.json keeps them.

The page holds the figure (`figure.py`) and needs no other file and no network. A verdict that was interrupted has a
page of what is known.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deq_enn.reporting.markdown import Table
from deq_enn.reporting.page import write_verdict
from deq_enn.verdicts.decision import in_words
from deq_enn.verdicts.figure import JOBS, costed, draw, label

ANSWERS = {"replace": "Replace it", "keep": "Keep it", "undecided": "Undecided"}
ANSWERS["majority"] = "No better than the commonest class"
COLUMNS = [
    "risk, mean",
    "risk, one draw",
    "from width",
    "at infinite width",
    "CK distance",
    "times factor",
    "NTK distance",
    "times factor",
    "labels in CK",
]
NOTE = (
    "Loss and first interval: of the mean over draws of the weights; second: of this DEQ and the network of its seed. "
    "Risk: probability that the loss is above the tolerance. From width: the width from which on the risk of the mean "
    "is below the one that is taken. Distances are spectral, relative to the DEQ's kernel on these data. Labels in CK: "
    "alignment of its leading eigenvectors with the labels."
)
NOTE_AFTER_TRAINING = (
    "B: the first layer has the weights of the DEQ's B, else its own. The loss is measured on samples that "
    "no readout was solved on."
)


@dataclass(frozen=True)
class Section:
    """This is a section of the page: sentences, and tables below them."""

    title: str
    sentences: list = field(default_factory=list)
    tables: list = field(default_factory=list)


def write(result: dict, folder: Path | str) -> list[Path]:
    """Writes verdict.png and verdict.html, whole or not at all, and returns their paths."""
    return write_verdict(
        folder,
        lambda path: draw(result, path),
        _caption(result),
        title=_title(result),
        reasons=[_with_labels(sentence, result["candidates"]) for sentence in result["reason"]],
        data=_data_sentence(result),
        sections=_sections(result),
    )


# ---------------------------------------------------------------------------------------------------------------
# sentences


def _with_labels(text, candidates):
    """Returns the text with the candidates' names as the figure writes them."""
    for candidate in sorted(candidates, key=lambda candidate: -len(candidate["name"])):
        text = text.replace(candidate["name"], label(candidate))
    return text


def _title(result):
    s = result["settings"]
    return f"{ANSWERS[result['answer']]}: the {s['activation']}-DEQ of width {s['width']}, σ_a² = {s['sigma_a2']:.3g}"


def _data_sentence(result):
    s = result["settings"]
    data = f"{s['n']} samples of dimension p = {s['p']}"
    data += f", {s['classes']} classes" if s["classes"] else ", no labels"
    risk = f", at a risk of {100 * s['risk']:.3g}%" if "risk" in s else ""
    if s.get("dataset"):
        data = f"{s['dataset']}: {data}"
    return (
        f"{data}. Loss: test accuracy of the DEQ less that of the network in its place, in percentage points, "
        f"each with its best readout; tolerated are {s['tolerance']:g}{risk}. Found in {result['seconds']:.0f} s."
    )


def _caption(result):
    of = {"draw": "with these weights, ", "mean": "in the mean over draws, "}.get(result["settings"].get("for"), "")
    said = [f"Loss of each candidate, {of}with its 90% interval; in the grey area it is tolerated"]
    if any(candidate["distance"] for candidate in result["candidates"]):
        said.append("the distance of its kernels from the DEQ's on these data")
    if result["drift"]:
        said.append("how far statistics of the trained weights are from those of shuffled copies")
    if any(candidate["cost"] for candidate in result["candidates"]):
        said.append(f"time and memory of the DEQ over those of {label(costed(result))}")
    return "; ".join(said) + "."


def _drift_sentence(drift):
    said = "have left" if drift["left"] else "are within"
    if drift.get("alone", not drift["settle"]):  # an older file has no "alone"
        return "The weights have left the random regime: with their entries shuffled there is no equilibrium."
    return (
        f"The weights {said} the random regime: among {drift.get('copies', 19)} copies of the network with the entries "
        f"of its weights shuffled, its most extreme statistic has p = {drift['p']:.2g}, {drift['score']:.1f} standard "
        f"deviations from theirs. The weights have the mean square of σ_a² = {drift['sigma_a2']:.3g}."
    )


# ---------------------------------------------------------------------------------------------------------------
# sections


def _sections(result):
    """Returns the sections whose numbers are known."""
    candidates, sections = result["candidates"], []
    if candidates:
        tables = [_candidate_table(result)]
        if scored := [candidate for candidate in candidates if candidate.get("class_scores")]:
            tables.append(_class_table(scored))
        sections.append(Section("What may replace it", tables=tables))
    if known := [candidate for candidate in candidates if candidate["cost"]]:
        sections.append(Section("What is saved", tables=[_cost_table(known)]))
    if drift := result["drift"]:
        sections.append(Section("Are its weights still random?", [_drift_sentence(drift)], [_drift_table(drift)]))
    if result["applies"]:
        sections.append(_assumptions(result["applies"]))
    if rows := _layer_rows(candidates):
        table = Table("Layers in numbers", ["network", "layer", "parameters"], rows)
        sections.append(Section("The matched layers", tables=[table]))
    if refused := result["refused"]:
        sections.append(Section("Families without a match", [f"*{name}*: {why}" for name, why in refused.items()]))
    return sections


def _candidate_table(result):
    title = "Candidates" + (
        f"; chosen: {_with_labels(result['chosen'], result['candidates'])}" if result["chosen"] else ""
    )
    start = ["candidate", "loss, points", "90% interval"]
    if any(candidate.get("agreement") is not None for candidate in result["candidates"]):
        columns, row, note = ["accuracy, %", "says as the DEQ, %"], _after_training, NOTE_AFTER_TRAINING
    else:
        columns, row, note = ["of one draw", *COLUMNS], _at_initialisation, NOTE
    rows = [
        [label(candidate), _signed(candidate["loss"]), _interval(candidate["loss_interval"]), *row(candidate)]
        for candidate in result["candidates"]
    ]
    return Table(title, start + columns, rows, note)


def _class_table(scored):
    first = scored[0]["class_scores"]
    keys = "balanced_accuracy", "auc"
    rows = [
        [label(candidate)] + [cell for key in keys for cell in _loss_cells(candidate["class_scores"][key])]
        for candidate in scored
    ]
    return Table(
        f"The classes are unequal: what else is lost, at width {first['width']} on {first['samples']} samples",
        ["candidate", "balanced accuracy, points", "90% interval", "area under the curve, points", "90% interval"],
        rows,
        f"The DEQ has a balanced accuracy of {first['balanced_accuracy']['deq']:.1f}% and an area under the curve of "
        f"{first['auc']['deq']:.1f}%, both averaged over the classes.",
    )


def _loss_cells(score):
    return [_signed(score["loss"]), _interval(score["interval"])]


def _at_initialisation(candidate):
    distance = candidate["distance"] or {}
    return [
        _interval(candidate.get("draw_interval")),
        *(_risk(candidate.get(key)) for key in ("risk", "draw_risk")),
        _number(candidate["width_from"], "d"),
        _signed((candidate["infinite"] or {}).get("difference")),
        *(
            _number(distance.get(kernel, {}).get(key), ".2g")
            for kernel in ("ck", "ntk")
            for key in ("relative", "with_factor")
        ),
        _number(candidate["alignment"], ".2f"),
    ]


def _after_training(candidate):
    return [_number(candidate.get("accuracy"), ".2f"), _number(candidate.get("agreement"), ".2f")]


def _cost_table(known):
    header = ["network", *(f"{title}: DEQ / network" for title in JOBS.values())]
    rows = [[label(candidate), *(_number(candidate["cost"].get(job), ".1f") for job in JOBS)] for candidate in known]
    timed = known[0]["cost"].get("measured", {}).get("rows", {"features": 512, "training_step": 128})
    return Table(
        "Time and memory, measured on this machine at this width",
        header,
        rows,
        f"Batch: features of {timed['features']} rows. Training step: every weight, {timed['training_step']} rows. "
        "Memory: of the batch and the weights.",
    )


def _drift_table(drift):
    rows = [
        [name, f"{v['value']:.3g}", f"{v['random']:.3g}", f"{v['spread']:.2g}", f"{v['score']:+.1f}"]
        for name, v in drift["statistics"].items()
    ]
    if infinite := drift["infinite"]:
        cells = f"{infinite['trained']:.3g}", f"{infinite['random']:.3g}"
        rows.append(["kernel, from infinite width", *cells, "–", "–"])
    return Table(
        "Statistics of the trained weights",
        ["statistic", "trained", "shuffled", "spread", "score"],
        rows,
        "Radius (largest |eigenvalue|) and largest singular values relative to the laws of random matrices; "
        "singular values: Kolmogorov distance to Marchenko and Pastur's law; kernel: relative distance of the "
        "conjugate kernel to the mean one.",
    )


def _assumptions(applies):
    """Returns the section on the theory's assumptions: which fail, and the numbers behind it."""
    sentences = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in applies.get("fails", [])]
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
    return Section(
        "Does the theory apply?",
        sentences or ["Every assumption that was looked at holds."],
        [Table("Numbers behind it", ["what", "here", "asked or usual"], rows)] if rows else [],
    )


def _layer_rows(candidates):
    """Returns a row for each layer of the matched networks; one at another width has the same, not shown again."""
    rows, seen = [], set()
    for candidate in candidates:
        layers: list[dict] = candidate["parameters"] or []
        for number, parameters in enumerate(layers, 1):
            values = ", ".join(f"{key} = {_value(value)}" for key, value in parameters.items())
            if (key := (label(candidate).partition(",")[0], number, values)) not in seen:
                seen.add(key)
                rows.append([label(candidate), str(number), values])
    return rows


def _value(value):
    return "(" + ", ".join(f"{v:.6g}" for v in value) + ")" if isinstance(value, (list, tuple)) else f"{value:.6g}"


def _number(value, form):
    return "–" if value is None else format(value, form)


def _risk(value):
    return "–" if value is None else in_words(value)


def _signed(value):
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def _interval(ends):
    return "–" if ends is None else f"{_signed(ends[0])} to {_signed(ends[1])}"
