"""What the intervals of undecided cases are made of, and what an ideal verdict on the same samples would say.

The loss of one draw is known from three things: its own measurement on the samples, the mean over draws, and how far
draws spread about it. `all_draws` is the verdict that knows the mean as from a thousand draws on these samples, and
takes the rest as it is. The ideal verdict has the mean and the spread of the outcome, on new samples, and only the
draw's own measurement is left of these samples. No time turns a verdict into more than that.
"""

if __name__ == "__main__":
    raise SystemExit("limits.py is a part of scripts/calibrate.py: run that")

import math
from dataclasses import dataclass, replace

from scipy.special import ndtr

from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.losses.model import Interval, predict
from deq_enn.verdicts.losses.points import CONSTANTS, Measured
from deq_enn.verdicts.result import RISK
from scripts.calibration.analysis import TOLERANCE, Truth, merged
from scripts.calibration.verdicts import constants_of, points_of

MANY = 1000  # draws of the weights that stand for all


@dataclass(frozen=True)
class Limits:
    """These are the intervals of one candidate of a case.

    now : of the verdict. sampling : of the draw's own measurement alone. ideal : None where no outcome is known.
    """

    name: str
    now: Interval
    sampling: Interval
    all_draws: Interval
    ideal: Interval | None


def about(mean: float, variance: float) -> Interval:
    """Returns the interval of a Gaussian."""
    half = Z_90 * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, float(ndtr((mean - TOLERANCE) * Z_90 / half)))


def limits_of(record: dict, outcomes: list[dict]) -> list[Limits]:
    """Returns the limits of every candidate of a verdict's record whose own draw was measured as it was asked for."""
    outcome, constants = merged(outcomes)[record["case"]], constants_of(record)
    truth, place, limits = Truth.of_case(outcome, "mean"), (record["width"], record["n"]), []
    for candidate in record["candidates"]:
        points = points_of(candidate["points"], constants)
        own = next((point for point in points if point.own and (point.width, point.count) == place), None)
        if own is None:
            continue
        sampling = about(own.loss, constants.dependence * own.of_samples)
        now = predict(points, *place, constants, True, TOLERANCE)
        all_draws = predict(_with_all_draws(points, own, constants), *place, constants, True, TOLERANCE)
        limits.append(Limits(candidate["name"], now, sampling, all_draws, _ideal(candidate["name"], own, truth)))
    return limits


def _with_all_draws(points: list[Measured], own: Measured, constants) -> list[Measured]:
    """Returns the measurements as if the mean over draws were known from MANY of them on all samples."""
    mean = predict(points, own.width, own.count, constants).mean
    rest = [point for point in points if point.own or (point.width, point.count) != (own.width, own.count)]
    return [*rest, replace(own.supposed(int(own.width), own.count, MANY, own.apart), loss=mean)]


def _ideal(name, own, truth):
    """Returns the interval with the mean and the spread over draws of the outcome, and the draw's own measurement."""
    mean, _ = truth.loss_and_error(name)
    if mean is None or "seed_sd" not in truth.networks.get(name, {}):
        return None
    spread, error = truth.spread(name), CONSTANTS.dependence * own.of_samples
    weight = spread / (spread + error)
    return about(weight * own.loss + (1 - weight) * mean, weight * error)


def said(intervals: list[Interval], risk: float = RISK) -> str:
    """Returns the answer by these intervals, at this risk."""
    if any(interval.risk < risk for interval in intervals):
        return "replace"
    return "keep" if all(1 - interval.risk < risk for interval in intervals) else "undecided"
