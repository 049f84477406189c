"""The answer of a verdict is found here, from what is known of each candidate, and which are to be measured next.

The answer is "replace" where some candidate surely loses less than the tolerance, "keep" where every candidate surely
loses more, and "undecided" otherwise. What is sure may be wrong with a probability below the risk that the user takes.
Before all that, the answer is "majority" where the DEQ is no better than always saying the commonest class: then no
loss beside it means anything. Without labels there is no loss, and the distance of the conjugate kernels decides.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.special import ndtri

from deq_enn.networks.cost import STEADY
from deq_enn.verdicts.losses.model import LEVEL, Interval
from deq_enn.verdicts.result import RISK, Candidate

NEAR, FAR = 0.05, 0.5  # without labels: CK distance (after the best rescaling) below NEAR means replace, above FAR keep
MOST_GAIN = 10.0  # points on the commonest class that a DEQ which may gain nothing must not be able to gain either
MOST_TIMES = 100.0  # times the samples that may be said to decide it
LEAST_TOLD = 0.001  # probability below which no number is told
RIVALS = 4  # candidates measured at once while several may still become the answer

NO_LABELS = "There are no labels, so this rests on the distance of the kernels alone, and no loss is predicted."


@dataclass(frozen=True)
class Question:
    """What is asked: may a network of this width lose less than `tolerance` points on n samples of dimension p?

    of : "draw" for the DEQ and the network with the weights that the user has, "mean" for the mean over draws.
    risk : probability, below 0.5, with which an answer may be wrong.
    """

    p: int
    n: int
    width: int
    tolerance: float
    of: str = "draw"
    risk: float = RISK

    def surely_less(self, risk: float) -> bool:
        """Tells whether a loss that is above the tolerance with this probability is taken to be below it."""
        return risk < self.risk

    def surely_more(self, risk: float) -> bool:
        """Tells whether a loss that is above the tolerance with this probability is taken to be above it."""
        return 1 - risk < self.risk


class Decision(NamedTuple):
    """This is "replace", "keep", "undecided" or "majority", with the candidate to take, if any, and the reason."""

    answer: str
    chosen: Candidate | None
    reason: list[str]


# ---------------------------------------------------------------------------------------------------------------
# sentences


def cost_sentence(cost: dict) -> str:
    """Returns what the DEQ costs beside the network, in words; `cost` holds the ratios of `networks.cost.costs`.

    A ratio that varied from one turn of the measurement to the next is told with its range.
    """
    ranges = cost.get("measured", {}).get("ranges", {})

    def times(job):
        low, high = ranges.get(job, (cost[job], cost[job]))
        spread = f" ({low:.3g} to {high:.3g})" if high > STEADY * low else ""
        return f"{cost[job]:.3g}{spread} times"

    return (
        f"The DEQ takes {times('inference')} its time for one sample, {times('features')} for features, "
        f"{times('training_step')} for a training step, and {cost['memory']:.3g} times its memory."
    )


def loss_sentence(candidate: Candidate, width: int, of: str = "draw") -> str:
    """Returns what the candidate loses at this width, with the interval, in words and without a full stop.

    of : of `Question`. The other interval is told too, where it is known.
    """
    low, high = candidate.interval_of(of)
    said = f"{candidate.name} at width {width} loses {candidate.loss_of(of):+.2f} points ({100 * LEVEL:.0f}% interval "
    if candidate.draw_interval is None:
        return f"{said}{low:+.2f} to {high:+.2f})"
    other = {"draw": "mean", "mean": "draw"}[of]
    names = {"draw": "with these weights", "mean": "in the mean over draws of the weights"}
    other_low, other_high = candidate.interval_of(other)
    return f"{said}{names[of]} {low:+.2f} to {high:+.2f}, {names[other]} {other_low:+.2f} to {other_high:+.2f})"


def in_words(probability: float) -> str:
    """Returns a probability in percent."""
    if probability < LEAST_TOLD:
        return f"less than {100 * LEAST_TOLD:g}%"
    return f"{100 * probability:.0f}%" if probability >= 0.1 else f"{100 * probability:.1f}%"


def undecided_sentence(best: Candidate, question: Question, keeps: bool) -> str:
    """Returns with what risk the best candidate loses too much, and which --risk would decide.

    keeps : whether every match was looked for and measured, so that a larger risk may say "keep".
    """
    risk = best.risk_of(question.of)
    sentence = f"It loses more than {question.tolerance:g} with a probability of {in_words(risk)}"
    answer, percent = ("replace" if risk < 0.5 else "keep"), math.floor(100 * min(risk, 1 - risk)) + 1
    if percent >= 50 or answer == "keep" and not keeps:
        return f"{sentence}."
    return f"{sentence}: --risk {percent}% would say {answer}."


def majority_sentence(deq_gains: Interval, share: float, tolerance: float) -> str:
    """Returns that the DEQ is no better than always saying the commonest class.

    deq_gains : its accuracy less that of the commonest class, whose share of the samples is `share`.
    """
    much = f"{deq_gains.mean:+.2f} points ({deq_gains.low:+.2f} to {deq_gains.high:+.2f})"
    return (
        f"Always saying the commonest class is right for {100 * share:.1f}% of the samples, and the DEQ is better by "
        f"{much} only: not surely by anything, or by less than {tolerance:g}. A network that loses nothing beside it "
        "is no better either. Other features, more samples or another measure than accuracy are needed first."
    )


def no_equilibrium_sentence(width: int, drawn: int, failed: int) -> str:
    """Returns that some DEQs of this width have no equilibrium, and what to do about it."""
    return (
        f"The DEQ has no equilibrium at width {width} ({failed} of {drawn} draws of its weights): take a "
        "larger width (--dim) or a smaller sigma_a^2 (--asquare)."
    )


def copies_sentence(samples: int, recur: bool) -> str | None:
    """Returns how copies among the samples were treated. samples : number of those with a copy. recur : of `copies`."""
    if not samples:
        return None
    if recur:
        return (
            f"{samples} samples have copies, as rows of few values have: new samples will be copies too, so each "
            "was predicted by all others, its copies among them."
        )
    return (
        f"{samples} samples have copies or near copies, which new samples will not have: each was predicted without "
        "its copies."
    )


def precision_sentence(precise: set[str]) -> str | None:
    """Returns that losses are those of float64, where the best ridge was that small.

    precise : names of candidates, or "deq", of which it was.
    """
    if not precise:
        return None
    names = sorted("the DEQ" if name == "deq" else name for name in precise)
    return (
        f"The best readouts of {', '.join(names)} have so small a ridge that features were computed in float64: the "
        "losses are what remains then. In float32, or with readouts trained by SGD, conditioning decides as well, and "
        "the deeper network has the better of it."
    )


def but_for_the_matches(decision: Decision, missing: list[str]) -> Decision:
    """Returns the decision where for want of time no match was looked for in some families: it is not "keep" then.

    missing : kernels and families, such as "ntk hermite".
    """
    if not missing:
        return decision
    sentence = f"For want of time (--budget) no match was looked for in {', '.join(missing)}."
    answer = "undecided" if decision.answer == "keep" else decision.answer
    return Decision(answer, decision.chosen, [*decision.reason, sentence])


def _broken_assumptions(applies):
    return [sentence[0].upper() + sentence[1:] + "." for sentence in applies.get("fails", [])]


# ---------------------------------------------------------------------------------------------------------------
# by the predicted losses


def no_better_than_majority(deq_gains: Interval | None, tolerance: float) -> bool:
    """Tells whether a DEQ that gains so much on the commonest class may gain nothing, or surely less than tolerated.

    Where the interval holds large gains too, too little is known.
    """
    if deq_gains is None:
        return False
    return deq_gains.low <= 0 and deq_gains.high < MOST_GAIN or deq_gains.high < tolerance


def by_loss(candidates: list[Candidate], question: Question, applies: dict, missing: Sequence[str] = ()) -> Decision:
    """Answers by the risks of the losses. "keep" needs that of every candidate, and each to be above the tolerance.

    applies : of `assumptions.applicability`; its broken assumptions are part of the reason to keep the DEQ.
    missing : of `but_for_the_matches`, by which no risk would say "keep".
    """
    known = [candidate for candidate in candidates if candidate.loss_interval is not None]
    if not known:
        return Decision("undecided", None, ["Nothing has been measured yet: allow more time (--budget)."])
    tolerance, of = question.tolerance, question.of
    if accepted := [candidate for candidate in known if question.surely_less(candidate.risk_of(of))]:
        chosen = _cheapest(accepted, question, lambda candidate: candidate.loss_of(of))
        risk = f"with a risk of {in_words(chosen.risk_of(of))} that it loses more than {tolerance:g}"
        return Decision("replace", chosen, [f"{loss_sentence(chosen, question.width, of)}, {risk}."])
    best = min(known, key=lambda candidate: candidate.risk_of(of))
    unknown = [candidate.name for candidate in candidates if candidate.loss_interval is None]
    if question.surely_more(best.risk_of(of)):
        if unknown:
            sentence = f"No time was left to measure {', '.join(unknown)}; all others lose more than {tolerance:g}."
            return Decision("undecided", None, [f"{sentence} Allow more time (--budget)."])
        low, high = best.interval_of(of)
        sentence = (
            f"Every candidate loses more than {tolerance:g} points at width {question.width}; the best, "
            f"{best.name}, {best.loss_of(of):+.2f} ({low:+.2f} to {high:+.2f}), with a risk of "
            f"{in_words(1 - best.risk_of(of))} that it loses less."
        )
        return Decision("keep", None, [sentence, *_broken_assumptions(applies)])
    reason = [
        f"{loss_sentence(best, question.width, of)}.",
        undecided_sentence(best, question, not unknown and not missing),
    ]
    return Decision("undecided", None, [*reason, _what_would_decide(best, question)])


def _cheapest(accepted: list[Candidate], question: Question, score: Callable) -> Candidate:
    """Returns the candidate of the least work; of those of equal work, the one of the least score."""
    return min(accepted, key=lambda candidate: (candidate.work(question.p, question.width), score(candidate)))


def _what_would_decide(best, question):
    at_width = [point for point in best.measured if point.width == question.width]
    largest = max(at_width, key=lambda point: (point.count, point.seeds), default=None)
    if largest is None or largest.count < question.n:
        count = largest.count if largest else 0
        return (
            f"Only {count} of {question.n} samples could be measured at width {question.width}: "
            "allow more time (--budget)."
        )
    less, more = (said(best.risk_of("mean")) for said in (question.surely_less, question.surely_more))
    if question.of == "draw" and (less or more):
        side, needed = "less" if less else "more", _more_samples(best, question)
        return (
            f"In the mean over draws it loses {side}, but one draw differs from another by as much as that: "
            f"--for mean decides on the mean, and another --seed or width may draw better. {needed}"
        )
    itself = question.of == "draw" and any(point.own and point.count == question.n for point in at_width)
    if not itself and largest.of_seeds > largest.of_samples:
        return "The seeds of the weights differ by more than the samples: allow more time (--budget)."
    return f"All {question.n} samples were used. {_more_samples(best, question)}"


def _more_samples(best, question):
    """Says how many samples would decide it, as the deviation of the loss shrinks with their square root."""
    asked, now = -ndtri(question.risk), abs(ndtri(best.risk_of(question.of)))  # from the tolerance, in deviations
    if asked > MOST_TIMES**0.5 * now:
        return "The loss is too near to the tolerance for more samples to decide it: take another tolerance."
    needed = question.n * (asked / now) ** 2
    digit = 10 ** (int(math.log10(needed)) - 1)
    needed = math.ceil(needed / digit) * digit  # more than there are, with two digits
    return f"If the loss is as predicted, some {needed:,} samples would decide it, or another tolerance."


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


def is_open(intervals: dict[Candidate, Interval], question: Question) -> bool:
    """Tells whether no candidate is surely below the tolerance, and not all of them are surely above it.

    intervals : of every candidate.
    """
    least = min((interval.risk for interval in intervals.values()), default=0.0)
    return not question.surely_less(least) and not question.surely_more(least)


def to_measure(intervals: dict[Candidate, Interval], question: Question) -> list[str]:
    """Returns the names of the candidates whose loss is to be known better; none when the answer is settled.

    First come the rivals: candidates that are surely on neither side of the tolerance, and cheaper than every candidate
    that is surely below it. Only the few most likely of them are measured at a time. Next is the answer itself, and
    then all others that may be below the tolerance, until no interval is wide.

    intervals : of every candidate, in their order.
    """
    work = {candidate: candidate.work(question.p, question.width) for candidate in intervals}
    below = [candidate for candidate, interval in intervals.items() if question.surely_less(interval.risk)]
    possible = [candidate for candidate, interval in intervals.items() if not question.surely_more(interval.risk)]
    least_work = min((work[candidate] for candidate in below), default=math.inf)
    rivals = [candidate for candidate in possible if candidate not in below and work[candidate] < least_work]
    if rivals:
        rivals.sort(key=lambda candidate: (intervals[candidate].risk, work[candidate]))
        return [candidate.name for candidate in rivals[:RIVALS]]
    wide = [each for each in possible if intervals[each].high - intervals[each].low > question.tolerance / 2]
    answer = [candidate for candidate in wide if work[candidate] == least_work]
    return [candidate.name for candidate in answer or wide]
