"""The verdict of a case of scripts/calibrate.py, on its training set alone, kept so that its constants can be set anew.

Of each measurement the record has what `predicted_loss.measured` makes of it before any constant enters: `points_of`
gives the measurements back for the constants that one asks for, and thereby the intervals without a new verdict.
"""

import math
import time
from dataclasses import replace

import numpy as np

from deq_enn.verdicts.at_initialisation import Inquiry
from deq_enn.verdicts.loss_model import CONSTANTS, Discrepancy, Measured, measured
from scripts.calibration.outcomes import deq_of

_RAW = replace(CONSTANTS, weight=0.0)  # of_one_seed is then what is seen, and no prior


def verdict_of(case, data, budget: float) -> dict:
    """JSON-ready. budget : seconds of processor time, as others use the machine too."""
    inquiry = Inquiry(deq_of(case, data), data.X_train, data.y_train, budget=budget, clock=time.process_time)
    inquiry._costs = lambda seconds: ()  # what is saved is not held against anything
    inquiry.run()
    found = inquiry.conclude().to_dict()
    work = {one.name: one.work(inquiry.p, inquiry.width) for one in inquiry.candidates}
    for one in found["candidates"]:
        one["points"] = [
            _summary(width, np.stack(networks[one["name"]]), inquiry.ladder.copies[:count].numpy())
            for (width, count), networks in inquiry.ladder.passes.items()
            if one["name"] in networks
        ]
        one["work"] = work[one["name"]]
        for key in ("measured", "parameters", "layers", "alignment", "cost", "input_scale"):
            one.pop(key, None)
    stability, concentration = found["applies"]["stability"], found["applies"]["concentration"]
    return {
        "case": case.name,
        "answer": found["answer"],
        "chosen": found["chosen"],
        "reason": found["reason"],
        "fails": len(found["applies"]["fails"]),
        "growth": stability["growth"],
        "norm_spread": concentration["norm_spread"],
        "cosine": concentration["cosine"],
        "budget": budget,
        "seconds": found["seconds"],
        "samples": found["settings"].get("samples", 0),
        "n": inquiry.n,
        "width": inquiry.width,
        "deq_fluctuation": found["deq"]["fluctuation"],
        "candidates": found["candidates"],
    }


def _summary(width, differences, group) -> dict:
    """The measurement without constants, of differences (seeds, samples)."""
    found = vars(measured(width, differences, group, _RAW))
    return found | {"width": "inf" if math.isinf(width) else width}


def points_of(candidate: dict, constants: Discrepancy = CONSTANTS) -> list[Measured]:
    """The measurements of a candidate of a record, as `predicted_loss.measured` has them with these constants."""
    return [_with(constants, Measured(**p | {"width": float(p["width"])})) for p in candidate["points"]]


def _with(constants, raw):
    if math.isinf(raw.width):
        return raw
    prior = (constants.seeds * raw.apart) ** 2
    if raw.seeds == 1:
        return replace(raw, common=constants.common * raw.one, of_one_seed=prior)
    seen = raw.seeds - 1
    return replace(raw, of_one_seed=(constants.weight * prior + seen * raw.of_one_seed) / (constants.weight + seen))
