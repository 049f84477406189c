"""Which passes are made, on measurements that are drawn and not computed."""

import pytest
import torch

from deq_enn.verdicts import candidates
from deq_enn.verdicts.losses import measurements, schedule
from tests.conftest import Ticks


@pytest.fixture
def near_the_tolerance(deq, blobs, monkeypatch):
    """Measurements of one candidate that loses half a point. All draws of the weights are right on the same samples."""
    plain = [network for network in candidates.networks(deq, 1.0)[0] if network.name == "plain, depth 1"]
    order = torch.arange(600)
    made = measurements.Measurements(deq, plain, *blobs, order, order, 3, clock=Ticks(), own=(64, 0), of_draw=True)
    made.deadline = made.end = 1000.0

    def measure(width, count, names):
        draw, seed = torch.arange(count) / count, made._next_seed(width, count)
        made.record(width, {plain[0].name: draw > 0.105}, (draw < 0.1) | (draw > 0.2), seed)
        made.rate = 1e-9

    monkeypatch.setattr(made, "measure", measure)
    return made


@pytest.mark.parametrize("is_open", [True, False])
def test_while_there_is_no_answer_the_time_goes_to_more_seeds(near_the_tolerance, is_open):
    names = [network.name for network in near_the_tolerance.networks]
    for _ in schedule.measure_until(near_the_tolerance, 64, lambda: (names, is_open)):
        pass
    seeds = near_the_tolerance.most_seeds()
    assert seeds == schedule.MOST_SEEDS if is_open else seeds < schedule.MOST_SEEDS


def test_a_pass_that_float64_makes_too_long_gives_way_to_smaller_ones(near_the_tolerance, monkeypatch):
    """It was the end of all passes, however much time was left."""
    made, tried = near_the_tolerance, []
    draw = made.measure

    def measure(width, count, names):
        tried.append((width, count))
        if (width, count) == (64, 600) and "deq" not in made.precise:
            made.precise.add("deq")
            raise measurements.TooLong
        draw(width, count, names)

    monkeypatch.setattr(made, "measure", measure)
    for _ in schedule.measure_until(made, 64, lambda: ([made.networks[0].name], True)):
        pass
    assert (64, 600) in tried and len(tried) > tried.index((64, 600)) + 3 and made.most_seeds() == schedule.MOST_SEEDS


def test_nothing_more_is_measured_once_nothing_is_asked(near_the_tolerance):
    asked = iter([near_the_tolerance.networks[0].name] * 3)
    for _ in schedule.measure_until(
        near_the_tolerance, 64, lambda: ([name for name in [next(asked, None)] if name], True)
    ):
        pass
    assert near_the_tolerance.most_seeds() <= 5 and near_the_tolerance.clock() < near_the_tolerance.deadline


@pytest.mark.parametrize("unequal", [True, False])
def test_unequal_classes_are_scored_at_the_width_that_is_asked_for(deq, blobs, unequal):
    """Whatever was decided by narrower networks. Of equal classes no scores are shown."""
    X, y = blobs
    order, made = torch.arange(600), candidates.networks(deq, 1.0)[0][:2]
    taken = measurements.Measurements(deq, made, X, (order % 10 == 0).long() if unequal else y, order, order, 3)
    taken.deadline = taken.end = taken.clock() + 100
    for _ in schedule.measure_until(taken, 64, lambda: ([], False)):
        pass
    assert ((64, 600) in taken.passes) == unequal
    if unequal:
        place = taken.class_scores(64)
        assert (place["width"], place["samples"]) == (64, 600) and set(place["of"]) == {each.name for each in made}
