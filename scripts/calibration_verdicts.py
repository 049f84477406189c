"""The verdict of a case of scripts/calibrate.py, on its training set alone, kept so that its constants can be set anew.

Of each measurement the record has what `predicted_loss.measured` makes of it before any constant enters: `points_of`
gives the measurements back for the constants that one asks for, and thereby the intervals without a new verdict.
"""

import math
import time
from dataclasses import replace

import numpy as np

from calibration_outcomes import deq_of
from inquiry import Inquiry
from predicted_loss import CONSTANTS, Discrepancy, Measured, measured

_RAW = replace(CONSTANTS, weight=0.0)  # of_seeds is then what is seen, and no prior


def verdict_of(case, data, budget: float) -> dict:
    """JSON-ready. budget : seconds of processor time, as others use the machine too."""
    inquiry = Inquiry(deq_of(case, data), data.X_train, data.y_train, budget=budget, clock=time.process_time)
    inquiry.run()
    found = inquiry.conclude().to_dict()
    work = {one.name: one.work(inquiry.p, inquiry.width) for one in inquiry.candidates}
    for one in found["candidates"]:
        one["points"] = [_summary(width, np.stack(networks[one["name"]]), inquiry.ladder.copies[:count].numpy())
                         for (width, count), networks in inquiry.ladder.passes.items()]
        one["work"] = work[one["name"]]
        for key in ("measured", "parameters", "layers", "alignment", "cost", "input_scale"):
            one.pop(key, None)
    stability, concentration = found["applies"]["stability"], found["applies"]["concentration"]
    return {"case": case.name, "answer": found["answer"], "chosen": found["chosen"], "reason": found["reason"],
            "fails": len(found["applies"]["fails"]), "growth": stability["growth"],
            "norm_spread": concentration["norm_spread"], "cosine": concentration["cosine"], "budget": budget,
            "seconds": found["seconds"], "samples": found["settings"].get("samples", 0), "n": inquiry.n,
            "width": inquiry.width, "deq_fluctuation": found["deq"]["fluctuation"], "candidates": found["candidates"]}


def _summary(width, differences, group) -> dict:
    """Of differences (seeds, samples): the measurement without constants, and the share on which the networks differ."""
    raw = measured(width, differences, group, _RAW)
    seeds = len(differences)
    return {"width": "inf" if math.isinf(width) else width, "count": raw.count, "loss": raw.loss,
            "of_samples": raw.of_samples, "seeds": seeds, "apart": 100 * float(np.abs(differences).mean()),
            "between": raw.of_seeds * seeds if seeds > 1 and not math.isinf(width) else None}


def points_of(candidate: dict, constants: Discrepancy = CONSTANTS) -> list[Measured]:
    """The measurements of a candidate of a record, as `predicted_loss.measured` has them with these constants."""
    points = []
    for p in candidate["points"]:
        width = math.inf if p["width"] == "inf" else p["width"]
        of_one = 0.0 if width == math.inf else (constants.seeds * p["apart"])**2
        if p["between"] is not None:
            of_one = ((constants.weight * of_one + (p["seeds"] - 1) * p["between"])
                      / (constants.weight + p["seeds"] - 1))
        points.append(Measured(width, p["count"], p["loss"], p["of_samples"], of_one / p["seeds"], p["seeds"]))
    return points
