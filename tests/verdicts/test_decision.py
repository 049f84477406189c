"""The answer, and what is measured next, given the intervals of the losses."""

from dataclasses import replace

import pytest

from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.decision import (
    Question,
    by_loss,
    copies_sentence,
    cost_sentence,
    in_words,
    is_open,
    no_better_than_majority,
    to_measure,
)
from deq_enn.verdicts.losses.points import Measured
from deq_enn.verdicts.result import Candidate
from tests.helpers.intervals import gaussian

QUESTION = Question(p=20, n=600, width=64, tolerance=0.5)


def candidate(name, depth, mean, low, high):
    """A candidate of a known loss."""
    made = Candidate(name, "plain", None, None, depth, (), 1.0, None, {"ck": {"with_factor": 0.1}})
    return with_loss(made, mean, low, high)


def with_loss(made, mean, low, high):
    made.loss, made.loss_interval, made.risk = mean, (low, high), gaussian(mean, low, high).risk
    return made


def with_draw(made, mean, low, high):
    made.draw_loss, made.draw_interval, made.draw_risk = mean, (low, high), gaussian(mean, low, high).risk
    return made


def judge(*candidates, applies=None):
    return by_loss(list(candidates), QUESTION, applies or {})


def next_of(*candidates):
    """The names that are measured next."""
    return to_measure({each: gaussian(each.loss, *each.loss_interval) for each in candidates}, QUESTION)


def test_the_cheapest_that_is_good_enough_is_chosen():
    cheap, dear = candidate("cheap", 1, 0.2, -0.1, 0.45), candidate("dear", 2, -1, -1.2, -0.8)
    answer, chosen, _ = judge(dear, cheap)
    assert (answer, chosen) == ("replace", cheap)
    with_loss(cheap, 0.2, -0.4, 0.8)
    assert judge(dear, cheap)[:2] == ("replace", dear)
    twin = candidate("twin", 2, -0.5, -0.6, -0.4)
    assert judge(twin, dear).chosen is dear  # of those that cost the same the least loss


def test_keep_needs_every_candidate_to_be_above_and_undecided_says_what_is_missing():
    bad, open_ = candidate("bad", 1, 2, 1, 3), candidate("open", 2, 0.6, 0.2, 1.0)
    answer, chosen, reason = judge(bad, applies={"fails": ["the norms are spread"]})
    assert (answer, chosen) == ("keep", None) and "The norms are spread." in reason
    answer, chosen, reason = judge(bad, open_)
    assert (answer, chosen) == ("undecided", None) and "open" in reason[0] and "more time" in reason[2]


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


def test_there_is_an_answer_once_one_is_below_or_all_are_above():
    below, between, above = (gaussian(0, -0.1, 0.4), gaussian(0.4, 0.1, 0.7), gaussian(1.3, 0.6, 2))
    for intervals, expected in (((between, above), True), ((below, between), False), ((above, above), False)):
        made = {candidate(f"{k}", 1, 0, -1, 1): interval for k, interval in enumerate(intervals)}
        assert is_open(made, QUESTION) == expected
    assert not is_open({}, QUESTION)


@pytest.mark.parametrize("of", ["draw", "mean"])
def test_the_risk_decides_and_not_the_end_of_the_interval(of):
    """A loss that is above the tolerance with a probability of 8%, and one that is below it with as much."""
    for mean, said in ((0.5 - 1.405, "replace"), (0.5 + 1.405, "keep")):
        made = with_draw(candidate("network", 1, mean, mean - Z_90, mean + Z_90), mean, mean - Z_90, mean + Z_90)
        assert made.loss_interval[0] < 0.5 < made.loss_interval[1]
        intervals = {made: gaussian(mean, *made.loss_interval)}
        for risk, expected in ((0.05, "undecided"), (0.07, "undecided"), (0.09, said), (0.1, said), (0.4, said)):
            question = replace(QUESTION, of=of, risk=risk)
            answer, chosen, reason = by_loss([made], question, {})
            assert (answer, chosen) == (expected, made if expected == "replace" else None)
            assert is_open(intervals, question) == (expected == "undecided")
            assert to_measure(intervals, question) == ([] if expected == "keep" else ["network"])
            if expected == "undecided":
                assert f"--risk 9% would say {said}." in reason[1]
            else:
                assert "with a risk of 8.0% that it loses " in reason[0]
    assert QUESTION.risk == 0.1


def test_no_risk_decides_what_is_as_likely_above_as_below():
    reason = judge(candidate("network", 1, 0.505, -0.495, 1.505))[2]
    assert reason[1] == "It loses more than 0.5 with a probability of 50%."
    bad, unknown = candidate("bad", 1, 1.0, 0.2, 1.8), Candidate("unknown", "plain", None, None, 2, (), 1.0, None, None)
    assert "would say keep" in judge(bad)[2][1] and "--risk" not in judge(bad, unknown)[2][1]
    assert "--risk" not in by_loss([bad], QUESTION, {}, ["ntk hermite"]).reason[1]  # keep would not be said then


def test_probabilities_in_words():
    assert [in_words(p) for p in (0.0, 0.0009, 0.002, 0.0234, 0.1, 0.996)] == [
        "less than 0.1%",
        "less than 0.1%",
        "0.2%",
        "2.3%",
        "10%",
        "100%",
    ]


def test_keep_is_not_said_while_a_candidate_was_not_measured():
    bad, unknown = candidate("bad", 1, 2, 1, 3), Candidate("unknown", "plain", None, None, 2, (), 1.0, None, None)
    answer, chosen, reason = judge(bad, unknown)
    assert (answer, chosen) == ("undecided", None) and "unknown" in reason[0] and "--budget" in reason[0]


def test_a_draw_and_the_mean_may_have_other_answers():
    made = candidate("network", 1, 0.1, -0.1, 0.3)
    with_draw(made, 0.9, 0.6, 1.2)
    of = {kind: by_loss([made], replace(QUESTION, of=kind), {}) for kind in ("draw", "mean")}
    assert of["mean"].answer == "replace" and of["draw"].answer == "keep"
    assert "with these weights" in of["mean"].reason[0] and "in the mean over draws" in of["mean"].reason[0]
    with_draw(made, 0.7, 0.2, 1.2)
    made.measured = (Measured(64, 600, 0.1, 5, 5.0, 500.0, 25.0, 0.01, 0.5),)
    answer, _, reason = by_loss([made], QUESTION, {})
    assert answer == "undecided" and "--for mean" in reason[2]


def test_how_many_samples_would_decide_is_said():
    """Intervals of half a width of 1 about 0.25 off the tolerance: 16 times 600 samples take a risk of 5%."""
    own, others = (Measured(64, 600, 0.75, seeds, 5.0, 500.0, 25.0, 0.01, 0.5, own=seeds == 1) for seeds in (1, 2))
    made = with_draw(candidate("network", 1, 0.75, -0.25, 1.75), 0.75, -0.25, 1.75)
    made.measured = (own, others)
    assert "All 600 samples" in (reason := judge(made)[2][2]) and "some 5,900 samples" in reason
    assert "some 9,700 samples" in by_loss([made], replace(QUESTION, risk=0.05), {}).reason[2]
    made.measured = (others,)  # where the draw itself was not measured, more draws may decide it
    assert "more time" in judge(made)[2][2]
    made.measured = (own,)
    assert "too near" in judge(with_draw(made, 0.51, -0.49, 1.51))[2][2]
    slightly = with_draw(made, 0.5 - 1.27, 0.5 - 1.27 - Z_90, 0.5 - 1.27 + Z_90)
    made.measured = (replace(own, count=1040),)
    assert "some 1,100 samples" in by_loss([slightly], replace(QUESTION, n=1040), {}).reason[2]
    made.measured = (own,)
    with_draw(with_loss(made, 0.05, -0.2, 0.3), 0.0, -1.0, 1.0)
    assert "--for mean" in (reason := judge(made)[2][2]) and "some 1,500 samples" in reason


def test_what_is_no_better_than_the_commonest_class():
    assert no_better_than_majority(gaussian(0.0, -0.1, 0.1), 0.5)  # every network says the commonest class
    assert no_better_than_majority(gaussian(0.5, -1.5, 2.5), 0.5)  # at chance
    assert no_better_than_majority(gaussian(0.2, 0.1, 0.3), 0.5)  # better by less than is tolerated
    assert not no_better_than_majority(gaussian(8.0, -13.0, 30.0), 0.5)  # hardly anything is known
    assert not no_better_than_majority(gaussian(2.0, 0.1, 3.9), 0.5) and not no_better_than_majority(None, 0.5)


def test_what_is_said_of_copies_and_of_costs_that_vary():
    assert copies_sentence(0, False) is None
    assert "will be copies too" in copies_sentence(7, True) and "without its copies" in copies_sentence(7, False)
    cost = {"inference": 3.6, "features": 90.0, "training_step": 5.0, "memory": 2.0}
    cost["measured"] = {"ranges": {"inference": (3.5, 3.7), "features": (40.0, 900.0)}}
    assert "3.6 times its time" in cost_sentence(cost) and "90 (40 to 900) times for features" in cost_sentence(cost)
