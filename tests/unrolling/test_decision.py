"""What a module's classes tell, of which one is the most frequent, or the only one."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from deq_enn.unrolling.decision import decide
from deq_enn.unrolling.judged import said_of
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
