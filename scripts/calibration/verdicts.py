"""The verdict of a case of scripts/calibrate.py, on its training set alone, kept so that its constants can be set anew.

The record of each measurement holds what `losses.points.measured` computes. `points_of` gives the measurements back for
other constants, and thereby the intervals without a new verdict.
"""

if __name__ == "__main__":
    raise SystemExit("verdicts.py is a part of scripts/calibrate.py: run that")

import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from deq_enn.verdicts.at_initialisation import VerdictAtInitialisation
from deq_enn.verdicts.losses.measurements import MAJORITY, measured_apart, of_this_case
from deq_enn.verdicts.losses.points import CONSTANTS, Discrepancy, Measured, estimated, measured
from scripts.calibration.outcomes import deq_of


class _Untimed(VerdictAtInitialisation):
    """This is a verdict that does not time the networks, as the calibration compares no times."""

    def measure_costs(self, seconds):
        return iter(())


def forget_peak() -> float | None:
    """Sets the process's peak of memory to what it holds now, and returns that in MiB; None where Linux is not."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return peak_mib()


def peak_mib() -> float | None:
    """Returns the most memory that this process has held since `forget_peak`, in MiB; None where Linux is not."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def verdict_of(case, data, budget: float) -> dict:
    """Returns the record of a case, ready for JSON.

    budget : seconds of processor time, as others use the machine too.
    """
    before = forget_peak()
    pending = _Untimed(deq_of(case, data), data.X_train, data.y_train, budget=budget, clock=time.process_time)
    pending.run()
    verdict = pending.conclude()
    record = verdict.to_dict()
    stability, concentration = verdict.applies["stability"], verdict.applies["concentration"]
    return {
        "case": case.name,
        "answer": record["answer"],
        "chosen": record["chosen"],
        "reason": record["reason"],
        "fails": len(verdict.applies["fails"]),
        "growth": stability["growth"],
        "norm_spread": concentration["norm_spread"],
        "cosine": concentration["cosine"],
        "budget": budget,
        "seconds": record["seconds"],
        "peak_mib": peak_mib(),
        "mib_before": before,
        "samples": record["settings"].get("samples", 0),
        "copies": record["settings"].get("copies"),
        "precise": sorted(pending.measurements.precise) if pending.measurements else [],
        "n": pending.question.n,
        "width": pending.question.width,
        "deq_fluctuation": record["deq"]["fluctuation"],
        "majority": _raw_points(MAJORITY, pending.measurements),
        "candidates": [_of_candidate(candidate, pending) for candidate in verdict.candidates],
    }


def _of_candidate(candidate, pending) -> dict:
    record = candidate.to_dict()
    record["points"] = _raw_points(candidate.name, pending.measurements)
    record["work"] = candidate.work(pending.question.p, pending.question.width)
    for key in ("measured", "parameters", "layers", "alignment", "cost", "input_scale", "class_scores"):
        record.pop(key, None)
    return record


def _raw_points(name, measurements) -> list[dict]:
    points = []
    for (width, count), differences in (measurements.passes if measurements else {}).items():
        if name in differences:
            group = np.arange(count) if math.isinf(width) else measurements.copies[:count].numpy()
            own = measurements.own_place(width, count, name)
            points.append(raw_point(width, np.stack(differences[name]), group, own))
    return points


def raw_point(width: float, differences: np.ndarray, group: np.ndarray, own: int | None = None) -> dict:
    """Returns the measurement of differences (seeds, samples), ready for JSON.

    own : the place of the user's own seed; it and the others are "parts" of the measurement then.
    """
    whole = measured(width, differences, group).to_dict()
    if own is not None:
        whole["parts"] = [part.to_dict() for part in measured_apart(width, differences, group, own)]
    return whole


def points_of(points: list[dict], constants: Discrepancy = CONSTANTS) -> list[Measured]:
    """Returns the measurements of a record, as `losses.points.measured` computes them with these constants."""
    made = []
    for point in points:
        whole = estimated(_whole(point), constants)
        parts = [Measured.from_dict(part) for part in point.get("parts", ())]
        made += [replace(part, common=whole.common, of_one_seed=whole.of_one_seed) for part in parts] or [whole]
    return made


def constants_of(record: dict, constants: Discrepancy = CONSTANTS) -> Discrepancy:
    """Returns the constants with the spread over seeds that all candidates of a record show together."""
    points = [point for candidate in record.get("candidates", ()) for point in candidate["points"]]
    return of_this_case(map(_whole, points), constants)


def _whole(point):
    """Returns the measurement of all seeds.

    The records of the first cases hold what was seen less the noise, where that is positive, in place of both.
    """
    raw = Measured.from_dict({key: point[key] for key in point if key != "parts"})
    if "noise" in point or raw.seeds == 1:
        return raw
    noise = (raw.of_one_sample - raw.common) / raw.count
    return replace(raw, seen=raw.of_one_seed + noise, noise=noise)
