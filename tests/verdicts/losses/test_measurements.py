"""Small real measurements: their losses, their time, and draws of the weights without an equilibrium."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.utils.deadline import OutOfTime
from deq_enn.utils.random import generator
from deq_enn.verdicts import api, candidates
from deq_enn.verdicts.losses import measurements, work
from tests.conftest import Ticks


@pytest.mark.slow
def test_the_measured_loss_is_that_of_exact_readouts(deq, blobs):
    """Of the worst candidate, against readouts of other seeds that are tested on other samples."""
    from deq_enn.machines.readout import solve

    X, y = blobs
    train, test = (X[:300], y[:300]), (X[300:], y[300:])
    result = [candidate for candidate in candidates.networks(deq, 1.0)[0] if candidate.name == "plain, depth 3"]
    taken = measurements.Measurements(
        deq, result, *train, torch.randperm(300, generator=generator("order")), torch.arange(300), 3
    )
    losses = []
    for seed in range(12):
        taken.measure(16, 300)
        networks = DEQ(ACTIVATIONS["tanh"], 20, 16, 3, 0.2, seed=seed), result[0].build(20, 16, 3, seed)
        right = [(solve(n, *train, 3)[0].predict(n, test[0]).mean.argmax(1) == test[1]).double() for n in networks]
        losses.append(100 * (right[0] - right[1]).mean().item())
    (point,) = taken.points(result[0].name)
    assert point.seeds == 12 and point.loss > 3  # three layers of 16 units lose much
    error = math.sqrt(point.of_samples + point.of_seeds + np.var(losses) / 11)
    assert error < 2 and abs(point.loss - np.mean(losses)) < 2.5 * error
    interval = taken.posterior(result[0].name, 16).interval(0.5)
    assert interval.low < np.mean(losses) + 2 * error and interval.high > np.mean(losses) - 2 * error


def test_a_pass_that_takes_too_long_makes_do_with_less(deq, blobs):
    """Each look at the clock takes a second."""
    X, y = blobs
    result, _ = candidates.networks(deq, 1.0)
    now = iter(range(1000))
    taken = measurements.Measurements(
        deq, result, X.repeat(4, 1), y.repeat(4), torch.arange(2400), torch.arange(2400), 3, clock=lambda: next(now)
    )
    taken.deadline = 5
    taken.measure(16, 2400)
    (width, count), networks = *taken.passes.keys(), *taken.passes.values()
    assert width == 16 and 512 <= count < 2400 and count % measurements.BATCH == 0
    assert 1 <= len(networks) < len(result)
    assert len(taken.points(result[0].name)) == 1 and taken.points(result[-1].name) == []


@pytest.mark.slow
def test_a_narrow_width_without_an_equilibrium_is_passed_over(few_candidates, deq, blobs, monkeypatch):
    measure = measurements.Measurements.measure

    def fails_at_32(self, width, *rest):
        if width == 32:
            raise ConvergenceError("the equilibrium diverged", None)
        return measure(self, width, *rest)

    monkeypatch.setattr(measurements.Measurements, "measure", fails_at_32)
    result = api.verdict(deq, *blobs, budget=1.0, clock=Ticks())
    assert {point.width for point in result.candidates[0].measured} >= {64} and result.settings["samples"] > 0


@pytest.mark.slow
def test_seeds_without_an_equilibrium_are_told_and_passed_over(blobs):
    X, y = blobs
    deq = DEQ(ACTIVATIONS["relu"], 20, 16, 3, 0.9)
    taken = measurements.Measurements(
        deq, candidates.networks(deq, 1.0)[0][-1:], X, y, torch.arange(600), torch.arange(600), 3
    )
    tries, first = 6, taken.first_seed
    for _ in range(tries):
        try:
            taken.measure(16, 600)
        except ConvergenceError:
            pass
    expected = set()
    for seed in range(first, first + tries):
        candidate = DEQ(ACTIVATIONS["relu"], 20, 16, 3, 0.9, seed=seed, solver=measurements.SOLVER)
        try:
            candidate.features(X)
        except ConvergenceError:
            expected.add(seed)
    assert taken.drawn[16] == set(range(first, first + tries)) and taken.failed[16] == expected
    assert 0 < len(expected) < tries and len(taken.accuracy[16, 600]) == tries - len(expected)
    assert taken.equilibria(16) == (tries, len(expected)) and taken.settles(16)


def test_what_would_take_too_long_in_float64_is_not_begun(deq, blobs):
    """Singular values cannot be interrupted. A candidate is left out; without the DEQ there is no pass."""
    X, y = blobs
    made, _ = candidates.networks(deq, 1.0)
    taken = measurements.Measurements(deq, made[:2], X, y, torch.arange(600), torch.arange(600), 3)
    taken.rate, taken.end = 1.0, taken.clock() + 5.0  # a second a multiplication
    taken.precise.add(made[1].name)
    taken.measure(16, 600)
    assert set(taken.passes[16, 600]) == {made[0].name, measurements.MAJORITY}
    taken.rate, taken.end = 1.0, taken.clock() + 5.0
    taken.precise.add("deq")
    with pytest.raises(OutOfTime):
        taken.measure(16, 600)


def test_the_work_of_a_pass_is_its_time(deq, blobs):
    """Seconds were measured on one idle core: by products alone narrow networks would be ten times too cheap."""
    for m, iterations, of_steps, of_readout in ((32, 12, 0.00403, 0.0024), (1024, 12, 0.01666, 0.22)):
        elements = 1000 * m * iterations
        steps = elements * (work.STEP + m) * 13e-12
        assert steps == pytest.approx(elements * of_steps * 1e-6, rel=0.5)
        assert work.solve_work(1000, m, 2) * 13e-12 == pytest.approx(of_readout, rel=0.5)


def test_a_slow_draw_says_nothing_of_the_time_at_other_widths(deq, blobs):
    """A narrow DEQ of one seed took 648 steps to its equilibrium, and wide ones 25."""
    taken = measurements.Measurements(deq, [], *blobs, torch.arange(600), torch.arange(600), 3)
    before = {width: taken.work(width, 600, []) for width in (32, 128)}
    taken.measure(32, 600)
    rate = taken.rate
    taken.iterations[32] = [648.0]
    assert taken.work(128, 600, []) == before[128] and taken.work(32, 600, []) > 5 * before[32]
    taken.iterations[32] = [648.0, 2.0]  # in the mean, as factors
    assert taken.work(32, 600, []) == pytest.approx(taken.work(32, 600, [], steps=36.0))
    assert rate == taken.rate


@pytest.mark.parametrize("name, sigma_a2", [("tanh", 0.3), ("relu", 0.5), ("mish", 0.8)])
def test_the_steps_to_an_equilibrium_are_foretold(blobs, name, sigma_a2):
    X = blobs[0]
    wide = DEQ(ACTIVATIONS[name], 20, 256, 3, sigma_a2, estimate_tau0(X), seed=1, solver=measurements.SOLVER)
    wide.features(X)
    foretold = work.steps_to_equilibrium(wide, measurements.TOLERANCE, measurements.MOST_STEPS)
    assert 0.6 < foretold / wide.fixed_point.iterations < 1.7


def test_no_more_steps_are_foretold_than_are_made():
    slow = DEQ(ACTIVATIONS["hardtanh"], 20, 16, 3, 0.9999, tau0=1.0)
    made = measurements.Measurements(slow, [], torch.zeros(1, 20), *[torch.zeros(1, dtype=torch.long)] * 3, 3)
    assert made.expected_iterations == measurements.MOST_STEPS


def test_a_draw_that_the_time_cuts_short_is_no_draw(deq, blobs, monkeypatch):
    def out_of_time(*_):
        raise OutOfTime("while the equilibrium was sought")

    taken = measurements.Measurements(deq, [], *blobs, torch.arange(600), torch.arange(600), 3)
    monkeypatch.setattr(taken, "_features", out_of_time)
    with pytest.raises(OutOfTime):
        taken.measure(16, 600)
    assert taken.equilibria(16) == (0, 0)


def test_the_spread_over_seeds_is_that_of_all_candidates(deq, blobs):
    """Of candidates whose means spread by a fifth of d. Exact kernels, single seeds and the majority do not count."""
    rng = np.random.default_rng(0)
    taken = measurements.Measurements(deq, [], *blobs, torch.arange(600), torch.arange(600), 3)
    prior = taken.constants.seeds
    assert prior == taken.prior.seeds
    deq_right = torch.ones(600, dtype=torch.bool)
    taken.record(math.inf, {"a": ~deq_right}, deq_right)
    taken.record(64, {"single": ~deq_right}, deq_right, 0)
    assert taken.constants.seeds == pytest.approx(prior)
    for seed in range(30):
        lost = {name: rng.uniform(size=600) < 0.2 + 0.04 * rng.normal() for name in "abcd"}
        right = {name: torch.from_numpy(~each) for name, each in lost.items()} | {measurements.MAJORITY: ~deq_right}
        taken.record(32, right, deq_right, seed)
    assert 0.16 < taken.constants.seeds < 0.24
    few = replace(taken.prior, pooled=1e6)
    assert measurements.of_this_case([], few).seeds == pytest.approx(prior)
    taken.prior, taken._constants = few, None
    assert taken.constants.seeds == pytest.approx(prior, rel=0.01)


def test_copies_are_no_spread_over_seeds(deq, blobs):
    """Networks that are right by chance, on 150 samples that are there four times: what spreads is the samples."""
    rng, seeds = np.random.default_rng(0), []
    lost = [{name: np.repeat(rng.uniform(size=150) < 0.2, 4) for name in "abcd"} for _ in range(20)]
    for copies in (torch.arange(600) // 4, torch.arange(600)):
        taken = measurements.Measurements(deq, [], *blobs, torch.arange(600), copies, 3)
        for seed, each in enumerate(lost):
            taken.record(32, {name: torch.from_numpy(~l) for name, l in each.items()}, torch.ones(600).bool(), seed)
        seeds.append(taken.constants.seeds)
    together, alone = seeds
    assert alone > 0.11 and together < 0.7 * alone


@pytest.mark.parametrize("seed", [0, 10_000, 10_001])
def test_no_draw_is_measured_twice(deq, blobs, seed):
    """Also where the DEQ's own seed is one of those that would come next."""
    X, y = blobs
    order = torch.randperm(len(X), generator=generator("order"))
    measured = measurements.Measurements(deq, [], X, y, order, torch.arange(len(X)), 3, own=(16, seed))
    taken = []
    while len(taken) < 4:
        taken.append(measured._next_seed(16, 50))
        measured.accuracy.setdefault((16, 50), []).append(0.0)
    assert taken[0] == seed and len(set(taken)) == 4
