"""The answer for a trained DEQ is given here: replace it, and by which network at which loss; keep it; or undecided.

"Replace" where a network that is faster certainly loses less than the tolerance. "Keep" where every such network
certainly loses more, and those that are trained had their training. Else "undecided", with what would decide.

Among networks of one kind more steps lose less. They are tested from the most steps down, and the first that fails ends
the test of its kind. In this order the chance that any network of a kind is wrongly called good is 5%, as of one test.
More than 12 steps are tried only where none of those was good; this second sequence is tested at 1%. Networks of other
forms have no order, and are tested together by Holm's method, at 5%.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from deq_enn.reporting.statistics import holm
from deq_enn.unrolling.result import TIED, StepCandidate
from deq_enn.utils.intervals import Z_90

LEVEL = 0.05  # chance of a wrong "good" in each kind
SECOND = 12  # steps beyond which a second sequence of tests begins
WIDER = 2.3263 / Z_90  # times the half width of an interval, to test at 1%
FASTER = 1.5  # the module's time over the network's, at least: to save less is not worth a rewriting
# kinds without which nothing is kept, in words
TRAINED = {"distilled": "network distilled to a few steps", "explicit": "plain network"}
ALARM = 5.0  # gain of a replacement, in points, from which on something else is wrong
CHANCE = 2.0  # points above the most frequent class's share, below which a module has learnt nothing,
OF_THE_REST = 0.25  # or this share of what the most frequent class leaves, where that is less
ALIKE = 99.0  # share of samples, in %, from which on a module that gives them one class tells nothing without labels

ALARMING = (
    "So large a gain is an alarm and no recommendation: the DEQ is badly trained or its readout was never fitted, or "
    "the samples are not scaled as it takes them, or the labels are not in the order of its outputs. Mend that first."
)


@dataclass(frozen=True)
class Known:
    """What a decision rests on beside the candidates.

    tolerance : in points. accuracy : of the module, in %. frequent : share of the most frequent class, in %.
    held : number of samples held out. labelled : whether there were labels. passes : of the training set, that a
        network's training must have made to count for "keep".
    """

    tolerance: float
    accuracy: float
    frequent: float
    held: int
    labelled: bool
    passes: float


def decide(candidates: list[StepCandidate], known: Known) -> tuple[str, StepCandidate | None, list[str]]:
    """Returns "replace", "keep" or "undecided", the network to take or None, and the reason in sentences."""
    if not candidates:
        return "undecided", None, ["Nothing has been measured yet: allow more time (--budget)."]
    reason = [] if known.labelled else ["There are no labels: the module's own classes stand for them."]
    if nothing := _nothing_learnt(known):
        return "undecided", None, [nothing]
    faster = [c for c in candidates if c.saved is None or c.saved >= FASTER]
    if not faster:
        sentence = f"None of the {len(candidates)} networks that were tried is {FASTER:g} times as fast as the module."
        return "keep", None, [*reason, sentence, *_almost(candidates, known)]
    if good := accepted(faster, known.tolerance):
        chosen = min(good, key=lambda c: (c.work, c.loss))
        if known.labelled and alarming(chosen.loss, chosen.interval):
            return "undecided", None, [f"{_capital(_loses(chosen, known))}. {ALARMING}"]
        sentence = f"{_capital(_loses(chosen, known))}, less than {known.tolerance:g}.{_saves(chosen)}"
        return "replace", chosen, [*reason, sentence]
    best = min(faster, key=lambda c: c.interval[1])
    low = min(c.interval[0] for c in faster)
    untrained = _untrained(candidates, faster, known)
    if low > known.tolerance and not untrained:
        most = max(c.k or 0 for c in faster)
        among = f", among them up to {most} of its own steps," if most else ""
        who = f"All {len(faster)} faster networks{among} lose" if len(faster) > 1 else "The only faster network loses"
        sentence = f"{who} more than {known.tolerance:g} points; the best: {_loses(best, known)}."
        return "keep", None, [*reason, sentence, *_almost(candidates, known)]
    if low > known.tolerance:
        return "undecided", None, [*reason, f"Nothing that was tried is good enough, but {untrained}."]
    between = f"{_capital(_loses(best, known))}: {known.tolerance:g} lies in an interval."
    more = f", or more time (--budget): {untrained}." if untrained else "."
    return "undecided", None, [*reason, between, "More samples held out would decide it" + more]


def alarming(loss: float, interval: Sequence[float]) -> bool:
    """Tells whether a replacement gains so many points, and certainly some, that the DEQ itself must be at fault."""
    return loss < -ALARM and interval[1] < 0


def accepted(candidates: list[StepCandidate], tolerance: float) -> list[StepCandidate]:
    """Returns the candidates below the tolerance, as the head of this file says."""
    others = [c for c in candidates if c.kind not in TIED]
    chances = holm([_chance(c, tolerance) for c in others])
    good = [c for c, chance in zip(others, chances) if chance < LEVEL]
    for kind in TIED:
        own = [c for c in candidates if c.kind == kind]
        first = _below([c for c in own if (c.k or 0) <= SECOND], tolerance)
        good += first or _below([c for c in own if (c.k or 0) > SECOND], tolerance, WIDER)
    return good


def _below(candidates: list[StepCandidate], tolerance: float, wider: float = 1.0) -> list[StepCandidate]:
    """Returns those below the tolerance from the most steps down to the first that is not."""
    ordered = sorted(candidates, key=lambda c: -(c.k or 0))
    return list(takewhile(lambda c: c.loss + wider * (c.interval[1] - c.loss) < tolerance, ordered))


def _chance(candidate: StepCandidate, tolerance: float) -> float:
    """Returns the chance of so small a loss where the true one is the tolerance: 5% where the interval ends there."""
    half = max(candidate.interval[1] - candidate.loss, 1e-12)
    return math.erfc((tolerance - candidate.loss) / half * Z_90 / math.sqrt(2)) / 2


def _almost(candidates: list[StepCandidate], known: Known) -> list[str]:
    """Says what is as good as the module, if anything is, and not so much faster."""
    good = accepted([c for c in candidates if (c.saved or 0) > 1], known.tolerance)
    if not good:
        return []
    best = min(good, key=lambda c: (c.work, c.loss))
    return [f"As good, but not {FASTER:g} times as fast: {best.name}.{_saves(best)}"]


def _untrained(candidates: list[StepCandidate], faster: list[StepCandidate], known: Known) -> str | None:
    """Says which networks had no time for their training; None where all had it, or are not among the faster ones.

    Where one step is as good as the module, and not faster, no network is distilled to fewer.
    """
    needless = {"distilled"} if any(c.k == 1 for c in accepted(candidates, known.tolerance)) else set()
    for kind, words in TRAINED.items():
        if kind not in needless and not any(c.kind == kind for c in candidates):
            return f"no {words} was tried"
        passes = [c.passes for c in faster if c.kind == kind]
        if passes and max(passes) < known.passes:
            return f"the longest training of a {words} passed over the samples {max(passes):.1f} times"
    return None


def _loses(candidate: StepCandidate, known: Known) -> str:
    low, high = candidate.interval
    return (
        f"with {candidate.name} {candidate.loss:+.2f} points are lost (90% interval {low:+.2f} to {high:+.2f}) on "
        f"{known.held} samples that were held out"
    )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _saves(candidate: StepCandidate) -> str:
    saved = candidate.cost["saved"] if candidate.cost else {}
    jobs = {"row": "one sample", "batch": "a batch", "step": "a training step"}
    said = [f"{saved[job]:.3g} times as long for {what}" for job, what in jobs.items() if saved.get(job)]
    return f" The module takes {', '.join(said)}." if said else ""


def _nothing_learnt(known: Known) -> str | None:
    """Says why the module's classes tell nothing; None where they do."""
    if not known.labelled:
        return (
            f"The module gives {known.frequent:.1f}% of the samples one class, so that without labels every network "
            "that does the same seems as good: hand in labels, or other samples."
            if known.frequent >= ALIKE
            else None
        )
    if known.frequent >= 100:
        return "All samples that were held out have one label, on which nothing can be lost but that: hold out others."
    if known.accuracy >= known.frequent + min(CHANCE, OF_THE_REST * (100 - known.frequent)):
        return None
    return (
        f"The module has {known.accuracy:.1f}% where always naming the most frequent class has {known.frequent:.1f}%: "
        "it has learnt nothing, or the labels are not in the order of its outputs, or the samples are not scaled as it "
        "takes them."
    )
