"""The spread of draws: against the closed form, a sampler, and draws whose spread is known."""

import numpy as np
import pytest

from deq_enn.verdicts.losses.spread import variance_of_draws


def test_without_noise_it_is_the_weighted_mean():
    for seen, freedom in (((2.0,), (3,)), ((0.01,), (39,)), ((0.0, 5.0), (1, 4))):
        expected = (5 * 0.3 + np.dot(seen, freedom)) / (5 + sum(freedom))
        assert variance_of_draws(0.3, 5, seen, freedom, [0.0] * len(seen)) == pytest.approx(expected)
    assert variance_of_draws(0.3, 5, [], [], []) == 0.3


def test_it_is_the_posterior_mean():
    """Draws of B from its prior, weighed by the likelihood of what was seen."""
    rng = np.random.default_rng(0)
    prior, weight, seen, freedom, noise = 0.5, 4.0, np.array([3.0, 0.9]), np.array([9, 4]), np.array([1.5, 0.6])
    B = weight * prior / rng.chisquare(weight + 2, 400_000)
    total = B[:, None] + noise
    likelihood = np.exp(-0.5 * (freedom * (np.log(total) + seen / total)).sum(1))
    expected = likelihood @ B / likelihood.sum()
    assert variance_of_draws(prior, weight, seen, freedom, noise) == pytest.approx(expected, rel=0.01)


def test_noise_that_hides_the_spread_leaves_the_prior():
    """However many draws there are; and what is seen by chance below the noise does not mean that there is none."""
    lucky = variance_of_draws(0.3, 5, [80.0], [39], [100.0])
    assert 0.25 < lucky < variance_of_draws(0.3, 5, [100.0], [39], [100.0]) < 0.31
    assert variance_of_draws(0.3, 5, [20.0], [39], [100.0 / 1e4]) == pytest.approx(17.8, rel=0.01)


def test_it_is_right_on_average_where_the_prior_is():
    """Spreads drawn from the prior, means of draws with noise: the estimate is unbiased, and nearer than the prior."""
    rng, weight, prior, noise = np.random.default_rng(1), 5.0, 1.0, 2.0
    truth = weight * prior / rng.chisquare(weight + 2, 2000)
    seen = (truth + noise) * rng.chisquare(19, 2000) / 19
    estimates = np.array([variance_of_draws(prior, weight, [v], [19], [noise]) for v in seen])
    assert estimates.mean() == pytest.approx(truth.mean(), abs=0.07)
    assert np.median(np.abs(estimates - truth)) < 0.8 * np.median(np.abs(prior - truth))
    clipped = (weight * prior + 19 * np.maximum(seen - noise, 0)) / (weight + 19)
    assert np.mean((np.log(estimates) - np.log(truth)) ** 2) < 0.8 * np.mean((np.log(clipped) - np.log(truth)) ** 2)
