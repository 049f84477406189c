"""What a module's classes tell, of which one is the most frequent, or the only one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deq_enn.unrolling.decision import accepted, decide
from deq_enn.unrolling.judged import said_of
from deq_enn.utils.intervals import Z_90
from tests.unrolling.modules import P
from tests.unrolling.test_by_steps import KNOWN, candidate

GOOD = [candidate("stopped", 4, -0.1, 0.2)]


@pytest.mark.parametrize(
    "frequent, accuracy, answer",
    [
        (10.0, 11.9, "undecided"),
        (10.0, 12.1, "replace"),
        (98.3, 98.6, "undecided"),
        (98.3, 99.9, "replace"),  # more than 2 points above the most frequent class is not to be had
        (99.5, 99.6, "undecided"),
        (99.5, 99.9, "replace"),
    ],
)
def test_a_rare_class_may_be_learnt_too(frequent, accuracy, answer):
    said, _, reason = decide(GOOD, replace(KNOWN, frequent=frequent, accuracy=accuracy))
    assert said == answer and ("it has learnt nothing" in reason[0]) == (answer == "undecided")


def test_without_labels_a_module_that_names_one_class_tells_nothing():
    said, network, reason = decide(GOOD, replace(KNOWN, labelled=False, frequent=100.0))
    assert said == "undecided" and network is None and "gives 100.0% of the samples one class" in reason[0]
    assert decide(GOOD, replace(KNOWN, labelled=False, frequent=95.0))[0] == "replace"


def test_a_single_output_is_a_logit_and_no_probability():
    X = torch.randn(600, P, generator=torch.Generator().manual_seed(0))
    logit = nn.Linear(P, 1)
    assert said_of(logit, X).shape == (600, 2)
    with pytest.raises(ValueError, match="single outputs lie between 0 and 1, as probabilities do.* return the logit"):
        said_of(nn.Sequential(logit, nn.Sigmoid()), X)
    assert said_of(nn.Sequential(nn.Linear(P, 2), nn.Sigmoid()), X).shape == (600, 2)


def test_all_samples_of_one_label_tell_nothing():
    said, network, reason = decide(GOOD, replace(KNOWN, frequent=100.0, accuracy=100.0))
    assert said == "undecided" and network is None and "have one label" in reason[0]


def wrongly_called_good(make, trials=2000, seed=0):
    """The share of trials in which some network is called good, where each loses just the tolerance."""
    rng, wrong = np.random.default_rng(seed), 0
    for _ in range(trials):
        wrong += bool(accepted([*make(rng)], 0.5))
    return wrong / trials


def measured(rng, kind, k):
    loss = 0.5 + 0.3 * rng.standard_normal()
    half = 0.3 * Z_90
    return candidate(kind, k, loss - half, loss + half)


def test_networks_without_an_order_are_tested_together():
    alone = wrongly_called_good(lambda rng: [measured(rng, "explicit", None)])
    seven = wrongly_called_good(
        lambda rng: [*(measured(rng, "explicit", None) for _ in range(6)), measured(rng, "matched", None)]
    )
    assert 0.035 < alone < 0.065 and 0.035 < seven < 0.065  # 28% if each were tested by itself


def test_more_than_twelve_steps_are_a_second_sequence():
    ladder, further = (1, 2, 3, 4, 6, 8, 12), (16, 24, 32, 48)
    first = wrongly_called_good(lambda rng: [measured(rng, "stopped", k) for k in ladder])
    both = wrongly_called_good(lambda rng: [measured(rng, "stopped", k) for k in (*ladder, *further)])
    second = wrongly_called_good(lambda rng: [measured(rng, "stopped", k) for k in further])
    assert first < 0.065 and second < 0.02 and both < 0.075
    exact = [candidate("stopped", k, 0.0, 0.3) for k in further]
    assert [c.k for c in accepted(exact, 0.5)] == [48, 32, 24, 16] and not accepted(exact, 0.35)
