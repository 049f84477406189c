"""Data and a DEQ that the tests of verdicts share."""

import pytest
import torch

from deq_enn.networks import cost
from deq_enn.networks.deq import DEQ
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.utils.random import generator
from tests.helpers.clocks import by_the_processor


@pytest.fixture(scope="package", autouse=True)
def timed_in_a_moment():
    """Networks are timed for milliseconds: no test looks at how long they take, and each has its three turns.

    Budgets of seconds are the processor's.
    """
    whole = cost._measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "_measure", lambda calls, seconds: whole(calls, min(seconds, 0.005)))
        by_the_processor(patch)
        yield


@pytest.fixture(scope="module")
def blobs():
    """600 samples of three classes that a narrow network gets right most of the time."""
    g = generator("blobs")
    y = torch.randint(3, (600,), generator=g)
    X = torch.randn(600, 20, generator=g)
    X[:, :3] += 2.0 * torch.nn.functional.one_hot(y, 3)
    X -= X.mean(0)
    return X / X.square().sum(1).mean().sqrt(), y


@pytest.fixture(scope="module")
def deq():
    return DEQ(ACTIVATIONS["tanh"], 20, 64, 3, 0.2)
