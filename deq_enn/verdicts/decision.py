"""The answer of a verdict, from what is known of each candidate, and which candidates are to be measured next.

The answer is "replace" where some candidate certainly loses less than the tolerance, "keep" where every candidate
certainly loses more, and "undecided" otherwise. A loss is certain where its interval lies on one side of the tolerance.
Without labels there is no loss, and the distance of the conjugate kernels decides.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from deq_enn.verdicts.loss_model import LEVEL, Interval
from deq_enn.verdicts.result import Candidate

NEAR, FAR = 0.05, 0.5  # without labels: CK distance (after the best rescaling) below NEAR means replace, above FAR keep
RIVALS = 4  # candidates measured at once while several may still become the answer

NO_LABELS = "There are no labels, so this rests on the distance of the kernels alone, and no loss is predicted."


@dataclass(frozen=True)
class Question:
    """What is asked: may a network of this width lose less than `tolerance` points on n samples of dimension p?"""

    p: int
    n: int
    width: int
    tolerance: float


class Decision(NamedTuple):
    """The answer "replace", "keep" or "undecided", the candidate to take, if any, and the reason in sentences."""

    answer: str
    chosen: Candidate | None
    reason: list[str]


# ---------------------------------------------------------------------------------------------------------------
# sentences


def cost_sentence(cost: dict) -> str:
    """Returns what the DEQ costs beside the network, in words; `cost` holds the ratios of `networks.cost.costs`."""
    return (
        "The DEQ takes {inference:.3g} times its time for one sample, {features:.3g} times for "
        "features, {training_step:.3g} times for a training step, and {memory:.3g} times its memory."
    ).format(**cost)


def loss_sentence(candidate: Candidate, width: int) -> str:
    """Returns what the candidate loses at this width, with the interval, in words and without a full stop."""
    low, high = candidate.known_interval
    return (
        f"{candidate.name} at width {width} loses {candidate.loss:+.2f} points ({100 * LEVEL:.0f}% interval "
        f"{low:+.2f} to {high:+.2f})"
    )


def no_equilibrium_sentence(width: int, drawn: int, failed: int) -> str:
    """Returns that some DEQs of this width have no equilibrium, and what to do about it."""
    return (
        f"The DEQ has no equilibrium at width {width} ({failed} of {drawn} draws of its weights): take a "
        "larger width (--dim) or a smaller sigma_a^2 (--asquare)."
    )


def _broken_assumptions(applies):
    return [sentence[0].upper() + sentence[1:] + "." for sentence in applies.get("fails", [])]


# ---------------------------------------------------------------------------------------------------------------
# by the predicted losses


def by_loss(candidates: list[Candidate], question: Question, applies: dict) -> Decision:
    """Answers by the intervals of the losses, of the candidates that have one.

    applies : of `assumptions.applicability`; its broken assumptions are part of the reason to keep the DEQ.
    """
    known = [candidate for candidate in candidates if candidate.loss_interval is not None]
    if not known:
        return Decision("undecided", None, ["Nothing has been measured yet: allow more time (--budget)."])
    tolerance = question.tolerance
    if accepted := [candidate for candidate in known if candidate.known_interval[1] < tolerance]:
        chosen = _cheapest(accepted, question, lambda candidate: candidate.loss)
        return Decision("replace", chosen, [f"{loss_sentence(chosen, question.width)}, less than {tolerance:g}."])
    best = min(known, key=lambda candidate: candidate.known_interval[1])
    low, high = best.known_interval
    if all(candidate.known_interval[0] > tolerance for candidate in known):
        sentence = (
            f"Every candidate loses more than {tolerance:g} points at width {question.width}; the best, "
            f"{best.name}, {best.loss:+.2f} ({low:+.2f} to {high:+.2f})."
        )
        return Decision("keep", None, [sentence, *_broken_assumptions(applies)])
    sentence = (
        f"{best.name} loses {best.loss:+.2f} points, but its interval, {low:+.2f} to {high:+.2f}, holds {tolerance:g}."
    )
    return Decision("undecided", None, [sentence, _what_would_decide(best, question)])


def _cheapest(accepted: list[Candidate], question: Question, score: Callable) -> Candidate:
    """The candidate of the least work; of those of equal work, the one of the least score."""
    return min(accepted, key=lambda candidate: (candidate.work(question.p, question.width), score(candidate)))


def _what_would_decide(best, question):
    at_width = [point for point in best.measured if point.width == question.width]
    largest = max(at_width, key=lambda point: point.count, default=None)
    if largest is None or largest.count < question.n:
        count = largest.count if largest else 0
        return (
            f"Only {count} of {question.n} samples could be measured at width {question.width}: "
            "allow more time (--budget)."
        )
    if largest.of_seeds > largest.of_samples:
        return "The seeds of the weights differ by more than the samples: allow more time (--budget)."
    return f"All {question.n} samples were used: more samples would decide it, or a larger tolerance."


# ---------------------------------------------------------------------------------------------------------------
# by the kernels


def by_distance(candidates: list[Candidate], question: Question, applies: dict) -> Decision:
    """Answers without labels, by the distance of the conjugate kernels alone."""
    candidates = [candidate for candidate in candidates if candidate.distance is not None]
    if not candidates:
        nothing = "No kernel has been computed yet: allow more time (--budget)."
        return Decision("undecided", None, [nothing, NO_LABELS])
    best = min(candidates, key=_distance)
    if near := [candidate for candidate in candidates if _distance(candidate) < NEAR]:
        chosen = _cheapest(near, question, _distance)
        sentence = (
            f"The conjugate kernel of {chosen.name} is within {_distance(chosen):.2g} of the DEQ's "
            f"(relative, spectral, with the factor {(chosen.distance or {})['ck']['factor']:.3g})."
        )
        return Decision("replace", chosen, [sentence, NO_LABELS])
    if _distance(best) > FAR:
        sentence = f"No candidate's kernel is nearer to the DEQ's than {_distance(best):.2g} ({best.name})."
        return Decision("keep", None, [sentence, *_broken_assumptions(applies), NO_LABELS])
    sentence = (
        f"The nearest kernel, that of {best.name}, is {_distance(best):.2g} from the DEQ's: labels would decide it."
    )
    return Decision("undecided", None, [sentence, NO_LABELS])


def _distance(candidate):
    return candidate.ck_distance


# ---------------------------------------------------------------------------------------------------------------
# what to measure next


def to_measure(intervals: dict[Candidate, Interval], question: Question) -> list[str]:
    """Returns the names of the candidates whose loss is to be known better; none when the answer is settled.

    First come the rivals: candidates whose interval still holds the tolerance, and which are cheaper than every
    candidate that is certainly below it. Only the few most likely of them are measured at a time. Next is the answer
    itself, and then all others that may be below the tolerance, until no interval is wide.

    intervals : of every candidate, in their order.
    """
    tolerance = question.tolerance
    work = {candidate: candidate.work(question.p, question.width) for candidate in intervals}
    least_work = min(
        (work[candidate] for candidate, interval in intervals.items() if interval.high < tolerance), default=math.inf
    )
    rivals = [
        candidate
        for candidate, interval in intervals.items()
        if interval.low < tolerance < interval.high and work[candidate] < least_work
    ]
    if rivals:
        rivals.sort(key=lambda candidate: (intervals[candidate].high, work[candidate]))
        return [candidate.name for candidate in rivals[:RIVALS]]
    wide = [
        candidate
        for candidate, interval in intervals.items()
        if interval.high - interval.low > tolerance / 2 and interval.low < tolerance
    ]
    answer = [candidate for candidate in wide if work[candidate] == least_work]
    return [candidate.name for candidate in answer or wide]
