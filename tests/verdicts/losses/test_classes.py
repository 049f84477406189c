"""Balanced accuracy and the area under the curve, against pairs counted one by one and against repetitions."""

import numpy as np
import pytest
import torch

from deq_enn.machines.leave_one_out import LeftOut
from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.losses.classes import ClassScores, area_under_curve, compared, sentence, unequal


def test_the_area_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(6, size=60).astype(float), rng.random(60) < 0.3  # with ties
    area, influence = area_under_curve(score, positive)
    pairs = np.sign(score[positive][:, None] - score[~positive][None])
    assert area == pytest.approx((0.5 + pairs / 2).mean()) and influence.mean() == pytest.approx(0, abs=1e-12)


def said(predicted, y):
    return LeftOut(predicted, predicted.argmax(1) == y, 0.0)


def drawn(rng, n):
    """Scores of a DEQ and of a network that knows less of the rare classes, and labels."""
    y = torch.from_numpy(rng.choice(3, n, p=[0.8, 0.14, 0.06]))
    Y, noise = torch.nn.functional.one_hot(y, 3).double(), torch.from_numpy(rng.normal(size=(2, n, 3)))
    prior = torch.tensor([1.0, 0.4, 0.2])
    return said(prior + 0.5 * Y + 0.3 * noise[0], y), said(prior + 0.35 * Y + 0.3 * noise[0] + 0.1 * noise[1], y), y


def test_losses_and_their_intervals_are_those_of_repetitions():
    rng, losses, halves, measures = np.random.default_rng(1), [], [], ("balanced_accuracy", "auc")
    for _ in range(60):
        deq, other, y = drawn(rng, 500)
        scores = compared(deq, {"network": other}, y, 3)["network"].to_dict()
        losses.append([scores[measure]["loss"] for measure in measures])
        halves.append([scores[measure]["interval"][1] - scores[measure]["loss"] for measure in measures])
    deq, other, y = drawn(rng, 50_000)
    for k, right in enumerate((lambda each: each.right, None)):
        truth = compared(deq, {"network": other}, y, 3)["network"].to_dict()[measures[k]]["loss"]
        assert np.mean(losses, 0)[k] == pytest.approx(truth, abs=0.5)
        if right:
            recalls = [[right(each)[y == c].double().mean() for c in range(3)] for each in (deq, other)]
            assert truth == pytest.approx(100 * np.subtract(*np.mean(recalls, 1)), abs=1e-6)
    assert np.mean(halves, 0) == pytest.approx(Z_90 * np.std(losses, 0), rel=0.25)


def test_seeds_add_up_and_equal_classes_have_no_such_scores():
    rng = np.random.default_rng(2)
    deq, other, y = drawn(rng, 400)
    first = compared(deq, {"a": other}, y, 3)["a"]
    noise = torch.from_numpy(rng.normal(size=(400, 3)))
    second = compared(deq, {"a": said(other.predicted + 0.2 * noise, y)}, y, 3)["a"]
    both = (first + second).to_dict()
    assert both["auc"]["loss"] == pytest.approx((first.losses[0, 1] + second.losses[0, 1]) / 2)
    assert not unequal(torch.arange(300) % 3) and compared(deq, {"a": other}, torch.arange(400) % 3, 3) == {}
    told = sentence("a", {key: {"loss": 4.0, "interval": (3.0, 5.0)} for key in ("balanced_accuracy", "auc")}, 0.5)
    assert "+4.00 points of balanced accuracy and +4.00 points of the area under the curve" in told
    assert (
        sentence("a", {key: {"loss": 1.0, "interval": (-3.0, 5.0)} for key in ("balanced_accuracy", "auc")}, 0.5)
        is None
    )


@pytest.mark.parametrize("times", [1, 5])
def test_copies_are_one_draw(times):
    """Rows that come several times tell no more than once: the intervals are as wide."""
    rng = np.random.default_rng(3)
    deq, other, y = drawn(rng, 400)
    once = compared(deq, {"a": other}, y, 3)["a"].to_dict()
    copies = torch.arange(400).repeat(times)
    many = [said(each.predicted.repeat(times, 1), y.repeat(times)) for each in (deq, other)]
    several = compared(many[0], {"a": many[1]}, y.repeat(times), 3, copies)["a"].to_dict()
    for measure, known in once.items():
        assert several[measure]["loss"] == pytest.approx(known["loss"])
        assert several[measure]["interval"] == pytest.approx(known["interval"])


def test_an_interval_holds_the_chance_of_samples_and_of_seeds():
    rng = np.random.default_rng(3)
    losses, influence = rng.normal(size=(3, 2)), 30 * rng.normal(size=(2, 50))
    scores = ClassScores(np.zeros((3, 2)), losses, influence).to_dict()
    variance = (influence / 3).var(1) / 50 + losses.var(0, ddof=1) / 3
    for k, measure in enumerate(("balanced_accuracy", "auc")):
        low, high = scores[measure]["interval"]
        assert (high - low) / 2 == pytest.approx(Z_90 * variance[k] ** 0.5) and low + high == pytest.approx(
            2 * losses[:, k].mean()
        )


def test_classes_are_unequal_from_twice_as_many_samples_on():
    assert unequal(torch.tensor([0, 0, 1])) and not unequal(torch.tensor([0, 0, 0, 1, 1]))
