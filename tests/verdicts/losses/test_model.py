"""The model of the loss, against repetitions, a joint Gaussian written out, and draws from its own prior."""

import math
from dataclasses import replace

import numpy as np
import pytest

from deq_enn.verdicts.losses import model as loss_model
from deq_enn.verdicts.losses.measurements import measured_apart
from deq_enn.verdicts.losses.model import Posterior, expected_apart, log_apart, predict, width_from
from deq_enn.verdicts.losses.points import CONSTANTS, Discrepancy, Measured, measured


def test_the_error_of_a_measurement_is_that_of_repetitions():
    """Differences with an effect of the sample, of the seed (as large as its prior), and of both."""
    rng = np.random.default_rng(0)
    n, seeds, losses, claimed = 400, 4, [], []
    for _ in range(400):
        lean = 0.10 * rng.normal(size=n) + 0.032 * rng.normal(size=(seeds, 1)) + 0.02
        draw = rng.uniform(size=(seeds, n))
        differences = np.where(draw < 0.2 + lean / 2, 1, np.where(draw > 0.8 + lean / 2, -1, 0))
        result = measured(64, differences, np.arange(n))
        losses.append(result.loss)
        claimed.append(result.of_samples + result.of_seeds)
    assert np.var(losses) == pytest.approx(np.mean(claimed), rel=0.2)


def test_copies_of_a_sample_count_as_one():
    rng = np.random.default_rng(0)
    differences = rng.integers(-1, 2, size=(1, 500))
    candidate = measured(64, differences, np.arange(500))
    four = measured(64, np.tile(differences, 4), np.tile(np.arange(500), 4))
    assert four.loss == candidate.loss and four.of_samples == pytest.approx(candidate.of_samples, rel=0.05)
    assert measured(64, np.tile(differences, 4), np.arange(2000)).of_samples < 0.3 * candidate.of_samples


def test_copies_do_not_make_draws_of_the_weights_spread():
    """Every draw is right as often as the others, and only the samples, each there four times, tell them apart."""
    rng, spreads = np.random.default_rng(0), {True: [], False: []}
    for _ in range(200):
        differences = np.repeat(rng.integers(-1, 2, size=(6, 100)), 4, axis=1)
        for together, spread in spreads.items():
            group = np.repeat(np.arange(100), 4) if together else np.arange(400)
            spread.append(measured(64, differences, group))
    of_the_samples = 100**2 * (2 / 3) / 100  # the variance of a draw's mean over a hundred samples
    noise, alone = (np.mean([each.noise for each in spreads[together]]) for together in (True, False))
    assert noise == pytest.approx(of_the_samples, rel=0.03) and alone == pytest.approx(of_the_samples / 4, rel=0.03)
    assert np.mean([each.seen for each in spreads[True]]) == pytest.approx(of_the_samples, rel=0.1)
    prior = spreads[True][0].apart * CONSTANTS.seeds
    drawn, credited = (np.mean([each.of_one_seed for each in spreads[together]]) for together in (True, False))
    assert 0.7 * prior**2 < drawn < prior**2 and credited > 1.2 * drawn


# with no more error than the measurements show
MEASURED = Discrepancy(relative=0.0)


def point(width, count, loss, error=0.1, apart=5.0, seeds=2):
    return Measured(width, count, loss, seeds, apart, 100 * apart, 5 * apart, error**2 / 2, seeds * error**2 / 2)


def test_the_posterior_is_that_of_a_joint_gaussian():
    """One amplitude, against the conditional distribution written out."""
    constants = Discrepancy(spread=1e-3, floor=0.0, shared=0.0, relative=0.0, dependence=1.3)
    points = [point(64, 1000, 0.8, 0.3), point(256, 4000, 0.2), point(math.inf, 500, -0.1, 0.2, apart=1.0)]
    result = Posterior(points, 1024, 4000, constants)
    at = [(math.log(1 + c / m), math.log(c)) for m, c in [(1024, 4000), (64, 1000), (256, 4000), (math.inf, 500)]]
    d = np.array([result.apart, 5, 5, 1])
    K = (
        np.array(
            [
                [math.exp(-abs(a[0] - b[0]) / constants.length_u - abs(a[1] - b[1]) / constants.length_w) for b in at]
                for a in at
            ]
        )
        * constants.amplitude**2
        * np.outer(d, d)
    )
    noise = np.diag([1.3 * p.of_samples + p.of_seeds for p in points])  # left out, they share the other samples
    gain = np.linalg.solve(K[1:, 1:] + noise, K[1:, 0])
    interval = result.interval(0.5)
    deviation, mean = math.sqrt(K[0, 0] - gain @ K[1:, 0]), gain @ [0.8, 0.2, -0.1]
    assert interval.mean == pytest.approx(mean)
    # d is not known at the target: a lognormal factor, of which many are drawn
    spread, rng = math.sqrt(result.log_variance), np.random.default_rng(0)
    factor = np.exp(spread * rng.normal(size=400_000) - spread**2 / 2)
    losses = factor * rng.normal(mean, deviation, 400_000)
    assert 0.1 < spread < 0.8
    assert (interval.low, interval.high) == pytest.approx(np.quantile(losses, [0.05, 0.95]), abs=0.02)
    risks = [result.interval(tolerance).risk for tolerance in (0.2, interval.high)]
    assert risks == [pytest.approx((losses > 0.2).mean(), abs=0.005), pytest.approx(0.05, abs=1e-4)]
    assert result.variance_given(points) == pytest.approx(result.variance) == pytest.approx(losses.var(), rel=0.02)


@pytest.mark.slow
def test_intervals_cover_losses_drawn_from_the_prior():
    constants, rng = Discrepancy(), np.random.default_rng(0)
    design = [(32, 1000), (128, 1000), (128, 8000), (512, 2000)]
    at = loss_model.coordinates([(512, 8000), *design])
    root = np.linalg.cholesky(loss_model.correlation(at, at, constants))
    d = np.array([4, 12, 8, 6, 6.0])
    covered = 0
    for _ in range(500):
        amplitude = constants.amplitude * 2.0 ** np.clip(rng.normal(0, constants.spread), -3, 3)
        truth = amplitude * d * (root @ rng.normal(size=5))
        points = [point(m, c, truth[k] + 0.4 * rng.normal(), 0.4, d[k]) for k, (m, c) in enumerate(design, 1)]
        interval = Posterior(points, 512, 8000, replace(constants, shared=0.0, dependence=1.0)).interval(0.5)
        covered += interval.low < truth[0] < interval.high
    assert 0.85 < covered / 500 < 0.95


def test_an_unknown_loss_is_drawn_to_zero_and_a_known_one_is_not():
    vague, sharp = (predict([point(256, 4000, 2.0, error)], 256, 4000, MEASURED) for error in (3.0, 0.05))
    assert 0 < vague.mean < 0.7 and sharp.mean == pytest.approx(2.0, abs=0.05)
    far = predict([point(256, 4000, 2.0, 0.05)], 4096, 60000, MEASURED)
    assert far.high - far.low > 3 * (sharp.high - sharp.low)


def test_samples_apart_follow_their_line():
    points = [
        point(m, c, 0.0, apart=20 * (m / 64) ** -0.4 * (c / 1000) ** -0.15) for m in (64, 256) for c in (1000, 4000)
    ]
    assert expected_apart(points, 1024, 16000) == pytest.approx(20 * 16**-0.4 * 16**-0.15, rel=0.07)
    assert expected_apart(points[:1], 1024, 1000) == pytest.approx(20 * 16 ** Discrepancy().slope_m, rel=0.01)
    assert log_apart(points, 256, 4000)[1] < 0.01 < log_apart(points, 1024, 16000)[1]  # known where it was measured


def test_one_draw_has_the_d_of_its_own_measurement():
    """The user's draw differs from others in more samples than most do, and loses more."""
    own, other = (
        replace(point(64, 2000, -6.0, 0.5, apart=8.0, seeds=1), own=True),
        point(64, 2000, -1.0, 0.5, apart=2.0),
    )
    own, other = (replace(each, of_one_seed=4.0) for each in (own, other))
    draw, mean = (Posterior([own, other], 64, 2000, MEASURED, draw=draw) for draw in (True, False))
    assert draw.apart == pytest.approx(8.0) and mean.apart < 6
    assert draw.of_draw == pytest.approx(4.0)
    assert (
        draw.interval(0.5).mean == pytest.approx(-6.0, abs=0.5)
        and draw.interval(0.5).low < -6.0 < draw.interval(0.5).high
    )


def test_the_width_from_which_on_the_loss_is_small():
    points = [
        point(w, 2000, loss, 0.03, apart)
        for w, loss, apart in ((64, 3.0, 10), (256, 0.9, 6), (1024, 0.1, 3), (math.inf, 0.0, 0.3))
    ]
    assert 256 < width_from(points, 2000, 0.5, 0.1, MEASURED) <= 1024
    assert width_from(points, 2000, 0.01, 0.1, MEASURED) is None
    assert width_from(points, 2000, 50, 0.1, MEASURED) == 32
    bolder, shyer = (width_from(points, 2000, 0.5, risk, MEASURED) for risk in (0.45, 0.01))
    assert bolder < shyer
    for unknown in ([], points[-1:]):  # whose loss is small by no measurement, but by how far a loss can be off
        assert width_from(unknown, 2000, 5, 0.3) is width_from(unknown, 2000, 30, 0.1) is None


def test_exact_kernels_that_agree_say_nothing_of_a_finite_width():
    """However many samples they agree on."""
    agreeing = [point(math.inf, 100_000, 0.0, 0.001, apart=0.001)]
    interval = predict(agreeing, 32, 3000)
    assert interval.low < -4 and interval.high > 4
    assert predict(agreeing, math.inf, 3000).high < 0.2  # at infinite width they do


@pytest.mark.parametrize("own_known", [True, False])
def test_intervals_of_a_draw_cover_draws(own_known):
    """Seeds that differ, with and without a measurement of the very draw that is asked for."""
    rng, n, seeds, covered, widths = np.random.default_rng(3), 1500, 5, 0, []
    lean = 0.05 * rng.normal(size=n)
    for _ in range(150):
        of_seed = 0.012 * rng.normal(size=(seeds, 1)) + 0.01
        draw = rng.uniform(size=(seeds, n))
        share = 0.1 + (lean - lean.mean() + of_seed) / 2
        differences = np.where(draw < share, 1, np.where(draw > 0.9 + (share - 0.1), -1, 0))
        points = measured_apart(64, differences, np.arange(n), 0 if own_known else None)
        truth = 100 * (of_seed[0, 0] if own_known else 0.012 * rng.normal() + 0.01)
        mean, interval = (predict(points, 64, n, MEASURED, draw) for draw in (False, True))
        covered += interval.low < truth < interval.high
        widths.append((interval.high - interval.low, mean.high - mean.low))
    assert 0.83 < covered / 150 < 0.97
    own, mean = np.mean(widths, 0)
    assert own > 1.1 * mean


def test_the_user_s_own_draw_tells_of_itself():
    """Its own result moves its interval much, and the mean little; the more the more samples it rests on."""
    rng = np.random.default_rng(4)
    differences = rng.choice([-1, 0, 1], (6, 4000), p=[0.05, 0.9, 0.05])
    differences[0, :160] = 1  # this draw loses four points more
    points = measured_apart(64, differences, np.arange(4000), 0)
    assert [p.own for p in points] == [True, False] and [p.seeds for p in points] == [1, 5]
    draw, mean = predict(points, 64, 4000, draw=True), predict(points, 64, 4000)
    assert draw.mean > 2 > mean.mean
    more = [replace(points[0], count=2000), *points]  # once more on half of the samples: hardly anything new
    again = predict(more, 64, 4000, draw=True)
    assert again.high - again.low > 0.8 * (draw.high - draw.low)


def test_a_draw_spreads_as_the_square_of_the_samples_apart():
    """Measured at one width, asked for at another, where fewer samples are apart."""
    result = Posterior([replace(point(64, 2000, 1.0, apart=8.0), of_one_seed=4.0)], 512, 2000, MEASURED, draw=True)
    assert result.apart < 5 and result.of_draw == pytest.approx(4 * (result.apart / 8) ** 2)


def test_the_user_s_draw_has_in_common_with_others_what_seeds_do_not_average():
    """Two measurements at the very place that is asked for, by the covariance written out."""
    constants = Discrepancy(spread=1e-3, floor=0.0, relative=0.0)
    own, other = replace(point(64, 1000, 0.8, 0.3, seeds=1), own=True), point(64, 1000, 0.2, 0.3, seeds=5)
    assert own.common / 1000 < own.of_samples
    both = 1.3 * math.sqrt(own.common / 1000 * constants.shared * other.of_samples)
    errors = np.diag([1.3 * p.of_samples + p.of_seeds for p in (own, other)]) + [[0, both], [both, 0]]
    K = np.full(2, (constants.amplitude * 5) ** 2)
    assert predict([own, other], 64, 1000, constants).mean == pytest.approx(np.linalg.solve(K + errors, K) @ [0.8, 0.2])


def test_a_measurement_on_more_samples_is_supposed_to_have_less_of_their_error():
    now = point(64, 1000, 1.0, seeds=2)
    of_samples = (now.common + (now.of_one_sample - now.common) / 3) / 4000
    assert now.supposed(64, 4000, 3, now.apart).of_samples == pytest.approx(of_samples)
    assert now.supposed(64, 4000, 3, 2 * now.apart).of_samples == pytest.approx(2 * of_samples)
