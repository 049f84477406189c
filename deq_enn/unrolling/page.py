"""The page of a verdict by steps, from the numbers of `StepVerdict.to_dict()`, as verdict.json keeps them."""

from pathlib import Path

from deq_enn.reporting.markdown import Table
from deq_enn.reporting.page import write_verdict
from deq_enn.unrolling.figure import draw
from deq_enn.unrolling.result import KINDS

ANSWERS = {"replace": "Replace it", "keep": "Keep it", "undecided": "Undecided"}
NOTE = (
    "Loss: accuracy of the module less that of the network on the same held-out samples, in percentage points. As it: "
    "samples of which both name the same class. Seen: samples that its training passed."
)


def write(result: dict, folder: Path | str) -> list[Path]:
    """Writes verdict.png and verdict.html, whole or not at all, and returns their paths."""
    return write_verdict(
        folder,
        lambda path: draw(result, path),
        _caption(result),
        title=_title(result),
        reasons=result["reason"],
        data=_data_sentence(result),
        sections=_sections(result),
    )


def _title(result: dict) -> str:
    by = f" by {result['chosen']}" if result["chosen"] else ""
    return f"{ANSWERS[result['answer']]}{by}: the module {result['module']['name']}"


def _data_sentence(result: dict) -> str:
    s, module = result["settings"], result["module"]
    data = f"{s['n']} samples of shape {s['shape']}, {s['classes']} classes"
    if s.get("dataset"):
        data = f"{s['dataset']}: {data}"
    accuracy = f" The module has {module['accuracy']:.2f}% of them." if "accuracy" in module else ""
    return (
        f"{data}; losses are measured on {s['held']} held-out ones.{accuracy} Tolerated are {s['tolerance']:g} points. "
        f"Measured in {result['seconds']:.0f} s."
    )


def _caption(result: dict) -> str:
    return (
        "Accuracy of each network in the module's place, with the 90% interval of its loss. The line is the module's, "
        "the grey area is tolerated, the ring is what was chosen."
    )


def _sections(result: dict) -> list[dict]:
    """The sections whose numbers are known."""
    sections = []
    if candidates := result["candidates"]:
        sections.append({"title": "What may replace it", "sentences": [], "tables": [_losses(result, candidates)]})
    if timed := [c for c in candidates if c["cost"]]:
        sections.append({"title": "What it costs", "sentences": [], "tables": [_costs(result, timed)]})
    if untried := result["untried"]:
        said = [f"*{what}*: {why}" for what, why in untried.items()]
        sections.append({"title": "What was not tried", "sentences": said, "tables": []})
    return sections


def _losses(result: dict, candidates: list[dict]) -> Table:
    rows = [
        [
            c["name"],
            KINDS[c["kind"]],
            f"{c['accuracy']:.2f}",
            f"{c['agreement']:.2f}",
            f"{c['cross_entropy']:.3f}",
            _signed(c["loss"]),
            f"{_signed(c['interval'][0])} to {_signed(c['interval'][1])}",
            str(c["seen"]) if c["seen"] else "–",
        ]
        for c in candidates
    ]
    header = ["network", "kind", "accuracy, %", "as it, %", "cross-entropy", "loss, points", "90% interval", "seen"]
    return Table(f"Candidates; chosen: {result['chosen'] or 'none'}", header, rows, NOTE)


def _costs(result: dict, timed: list[dict]) -> Table:
    own = result["module"].get("cost")
    named = ([("the module", own)] if own else []) + [(c["name"], c["cost"]) for c in timed]
    rows = [
        [
            name,
            *(_milliseconds(cost[job]) for job in ("row", "batch", "step")),
            "–" if cost["memory"] is None else f"{cost['memory'] / 1e6:.1f}",
            str(cost["parameters"]),
            *(_times(cost["saved"][job]) for job in ("row", "batch", "step")),
        ]
        for name, cost in named
    ]
    header = ["network", "one sample, ms", "batch, ms", "training step, ms", "memory, MB", "parameters"]
    header += ["module / network: one sample", "batch", "training step"]
    return Table("Time and memory, measured on this machine", header, rows)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3g}"


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
