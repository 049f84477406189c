"""What the record of trained DEQs says: coverage of intervals, wrong answers, and what each kind of network earns."""

if __name__ == "__main__":
    raise SystemExit("report.py is a part of scripts/trained_deqs.py: run that")

import math
from collections import Counter
from collections.abc import Iterable
from statistics import median

from deq_enn.reporting.markdown import head, row
from deq_enn.unrolling.decision import FASTER
from deq_enn.utils.intervals import Z_90

TOLERANCE = 0.5  # points, as the verdicts had it
KINDS = "stopped", "refitted", "distilled", "consistent", "explicit", "matched"


def true_loss(entry: dict, record: dict) -> float:
    """Returns the loss on the many other samples, in points."""
    return 100 * (entry["true_lost"] - entry["true_gained"]) / record["more"]


def true_variance(entry: dict, record: dict) -> float:
    """Returns the variance of that loss, of which there are not infinitely many samples either."""
    n, lost, gained = record["more"], entry["true_lost"], entry["true_gained"]
    return 1e4 * max((lost + gained) / n - ((lost - gained) / n) ** 2, 0.0) / n


def covered(entry: dict, record: dict) -> bool:
    """Tells whether the interval, made as much wider as the other samples' own error asks, holds their loss."""
    low, high = entry["interval"]
    half = math.sqrt(((high - low) / 2) ** 2 + Z_90**2 * true_variance(entry, record))
    return abs(true_loss(entry, record) - entry["loss"]) <= half


def share(values: Iterable[bool]) -> str:
    """Returns "7 of 9 (78%)"."""
    values = list(values)
    return f"{sum(values)} of {len(values)}" + (f" ({100 * sum(values) / len(values):.0f}%)" if values else "")


def good_enough(record: dict) -> list[dict]:
    """Returns the faster networks that were truly below the tolerance."""
    faster = [c for c in record["candidates"] if c["cost"] and (c["cost"]["saved"]["batch"] or 0) >= FASTER]
    return [c for c in faster if true_loss(c, record) < TOLERANCE]


def chosen(record: dict) -> dict:
    """Returns the candidate that was chosen."""
    return next(c for c in record["candidates"] if c["name"] == record["chosen"])


def report(records: list[dict]) -> str:
    """Returns tables in Markdown."""
    everything = [(c, r) for r in records for c in r["candidates"]]
    differing = [(c, r) for c, r in everything if c["agreement"] < 99.9]
    replaced = [r for r in records if r["answer"] == "replace"]
    hopeless = [r for r in records if not good_enough(r)]
    lines = [
        f"{len(records)} DEQs, {len(everything)} networks in their place.",
        "",
        f"- intervals that hold the loss on other samples: {share(covered(c, r) for c, r in everything)}; of networks "
        f"that differ from the DEQ on 0.1% of the samples or more: {share(covered(c, r) for c, r in differing)}; of "
        f"those chosen: {share(covered(chosen(r), r) for r in replaced)}",
        f"- answers: {dict(Counter(r['answer'] for r in records))}",
        f"- *replace* wrong (true loss above {TOLERANCE}): "
        f"{share(true_loss(chosen(r), r) > TOLERANCE for r in replaced)}",
        f"- *keep* where nothing faster is good enough: {share(r['answer'] == 'keep' for r in hopeless)}",
        f"- *keep* wrong: {share(bool(good_enough(r)) for r in records if r['answer'] == 'keep')}",
        f"- *undecided*: {share(r['answer'] == 'undecided' for r in records)}",
        f"- budget used: {min(r['used'] / r['budget'] for r in records):.2f} to "
        f"{max(r['used'] / r['budget'] for r in records):.2f} of what was given; peak "
        f"{max(r['peak_mb'] for r in records):.0f} MB",
        "",
        *_by_kind(replaced),
        "",
        *_losses(records),
        "",
        *_ways(records),
        "",
        *_each(records),
    ]
    return "\n".join(lines)


def _by_kind(replaced: list[dict]) -> list[str]:
    counts = Counter((chosen(r)["kind"], chosen(r)["k"]) for r in replaced)
    saved = sorted(chosen(r)["cost"]["saved"]["batch"] for r in replaced)
    lines = [head("chosen", "steps", "DEQs")]
    lines += [row(kind, f"{k or '–'}", f"{n}") for (kind, k), n in sorted(counts.items(), key=lambda i: -i[1])]
    if saved:
        lines += ["", f"Time of a batch saved: {median(saved):.1f} times (median), {saved[0]:.1f} to "
                  f"{saved[-1]:.1f}."]  # fmt: skip
    return lines


def _losses(records: list[dict]) -> list[str]:
    """Median true loss of each kind at each number of steps, over the DEQs that have all of them up to 2 steps."""
    lines = [head("median true loss, points (DEQs)", "k = 1", "2", "3", "4", "6", "8", "12")]
    for kind in KINDS[:4]:
        cells = []
        for k in (1, 2, 3, 4, 6, 8, 12):
            losses = sorted(
                true_loss(c, r) for r in records for c in r["candidates"] if (c["kind"], c["k"]) == (kind, k)
            )
            cells.append(f"{median(losses):+.2f} ({len(losses)})" if losses else "–")
        lines.append(row(kind, *cells))
    return lines


def _ways(records: list[dict]) -> list[str]:
    """Two ways beside each other, over the DEQs that have both at this number of steps."""
    lines = [head("steps", "one way, then another", "DEQs", "median true losses", "the second better, worse")]
    for k in (1, 2):
        for first, second in (("stopped", "refitted"), ("refitted", "distilled"), ("distilled", "consistent")):
            pairs = []
            for r in records:
                losses = {c["kind"]: true_loss(c, r) for c in r["candidates"] if c["k"] == k}
                if first in losses and second in losses:
                    pairs.append((losses[first], losses[second]))
            if pairs:
                a, b = map(median, zip(*pairs))
                better, worse = sum(y < x for x, y in pairs), sum(y > x for x, y in pairs)
                numbers = f"{len(pairs)}", f"{a:+.2f}, {b:+.2f}", f"{better}, {worse}"
                lines.append(row(f"{k}", f"{first}, {second}", *numbers))
    return lines


def _each(records: list[dict]) -> list[str]:
    lines = [head("DEQ", "accuracy, %", "answer", "loss, 90% interval", "true loss", "saved")]
    for r in records:
        name = f"{r['case']}, {r['task']}"
        if r["answer"] == "replace":
            c = chosen(r)
            low, high = c["interval"]
            cells = [f"replace: {c['name']}", f"{c['loss']:+.2f} ({low:+.2f} to {high:+.2f})",
                     f"{true_loss(c, r):+.2f}", f"{c['cost']['saved']['batch']:.1f}"]  # fmt: skip
        else:
            cells = [r["answer"], "–", "–", "–"]
        lines.append(row(name, f"{r['true_accuracy']:.1f}", *cells))
    return lines
