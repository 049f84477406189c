"""The answer, and what is measured next, given the intervals of the losses."""

from deq_enn.verdicts.decision import Question, by_loss, to_measure
from deq_enn.verdicts.loss_model import Interval
from deq_enn.verdicts.result import Candidate

QUESTION = Question(p=20, n=600, width=64, tolerance=0.5)


def candidate(name, depth, mean, low, high):
    """A candidate of a known loss."""
    made = Candidate(name, "plain", None, None, depth, (), 1.0, None, {"ck": {"with_factor": 0.1}})
    return with_loss(made, mean, low, high)


def with_loss(made, mean, low, high):
    made.loss, made.loss_interval = mean, (low, high)
    return made


def judge(*candidates, applies=None):
    return by_loss(list(candidates), QUESTION, applies or {})


def next_of(*candidates):
    """The names that are measured next."""
    return to_measure({each: Interval(each.loss, *each.loss_interval) for each in candidates}, QUESTION)


def test_the_cheapest_that_is_good_enough_is_chosen():
    cheap, dear = candidate("cheap", 1, 0.2, -0.1, 0.45), candidate("dear", 2, -1, -1.2, -0.8)
    answer, chosen, _ = judge(dear, cheap)
    assert (answer, chosen) == ("replace", cheap)
    with_loss(cheap, 0.2, -0.1, 0.55)
    assert judge(dear, cheap)[:2] == ("replace", dear)
    twin = candidate("twin", 2, -0.5, -0.6, -0.4)
    assert judge(twin, dear).chosen is dear  # of those that cost the same the least loss


def test_keep_needs_every_candidate_to_be_above_and_undecided_says_what_is_missing():
    bad, open_ = candidate("bad", 1, 2, 1, 3), candidate("open", 2, 0.6, 0.2, 1.0)
    answer, chosen, reason = judge(bad, applies={"fails": ["the norms are spread"]})
    assert (answer, chosen) == ("keep", None) and "The norms are spread." in reason
    answer, chosen, reason = judge(bad, open_)
    assert (answer, chosen) == ("undecided", None) and "open" in reason[0] and "more time" in reason[1]


def test_what_is_measured_next_may_still_be_the_answer():
    sure, cheaper, dearer = (
        candidate("sure", 2, 0, -0.3, 0.2),
        candidate("cheaper", 1, 0.4, 0, 0.8),
        candidate("dearer", 3, 0.4, 0, 0.8),
    )
    assert next_of(sure, cheaper, dearer) == ["cheaper"]
    with_loss(cheaper, 2, 1, 3)
    assert next_of(sure, cheaper, dearer) == ["sure"]
    with_loss(sure, 0, -0.1, 0.1)
    assert next_of(sure, cheaper, dearer) == ["dearer"]
    with_loss(dearer, 0, -0.1, 0.1)
    assert next_of(sure, cheaper, dearer) == []
