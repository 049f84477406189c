"""What a verdict is made of, each part against an independent computation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from deq_enn.kernels import distance
from deq_enn.machines import leave_one_out, readout as ridge_features
from deq_enn.machines.leave_one_out import Targets, from_features, from_kernel
from deq_enn.networks.deq import DEQ
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.utils.random import generator
from deq_enn.verdicts import assumptions, candidates, loss_model
from deq_enn.verdicts.loss_model import Discrepancy, Measured, Posterior, expected_apart, measured, predict, width_from


def samples(n, p=12, classes=3, seed=0):
    g = generator("verdict parts", seed)
    y = torch.randint(classes, (n,), generator=g)
    X = torch.randn(n, p, generator=g)
    X[:, :classes] += 1.5 * torch.nn.functional.one_hot(y, classes)
    return X / X.square().sum(1).mean().sqrt(), y


# ---------------------------------------------------------------------------------------------------------------
# leave-one-out


def refitted(F, y, classes, copies, ridge):
    """Predictions of each sample by a readout that is solved without it and its copies; the plain way."""
    F = F.double()
    Y = torch.nn.functional.one_hot(y, classes).double()
    Y = Y - Y.mean(0)
    noise = ridge * F.square().sum() / len(F)
    out = torch.empty_like(Y)
    for i in range(len(F)):
        keep = copies != copies[i]
        A = F[keep].T @ F[keep] + noise * torch.eye(F.shape[1], dtype=torch.float64)
        out[i] = F[i] @ torch.linalg.solve(A, F[keep].T @ Y[keep])
    return out


@pytest.mark.parametrize("width", [20, 150])  # fewer and more than the samples: normal equations, and the kernel
@pytest.mark.parametrize("copied", [None, 0.0, 0.01])
def test_leaving_out_in_closed_form_is_refitting(width, copied):
    X, y = samples(80)
    if copied is not None:
        X[40:60], X[60:70] = X[:20], X[:10]  # twice and three times, with labels of their own
        X[40:] += copied / 12**0.5 * torch.randn(40, 12, generator=generator("moved"))
    copies = leave_one_out.copies(X)
    assert len(copies.unique()) == (80 if copied is None else 50)
    F = torch.tanh(X @ torch.randn(12, width, generator=generator("features")))
    found = from_features(F, Targets(y, 3, copies))
    expected = refitted(F, y, 3, copies, found.ridge)
    torch.testing.assert_close(found.predicted, expected, rtol=1e-6, atol=1e-8)
    mean = torch.nn.functional.one_hot(y, 3).double().mean(0)
    assert torch.equal(found.right, (expected + mean).argmax(1) == y)
    if copied == 0:  # without being told of the copies it does not leave them out
        blind = from_features(F, Targets(y, 3)).predicted
        assert (blind - expected)[:10].abs().max() > 1e-3


@pytest.mark.parametrize("dimensions", [1, 2, 3, 100])
def test_neighbours_in_few_dimensions_are_not_copies(dimensions):
    X = torch.randn(3000, dimensions, generator=generator("few")) @ torch.randn(
        dimensions, 100, generator=generator("embedded")
    )
    found = leave_one_out.copies(X)
    assert (found != torch.arange(3000)).double().mean() < 0.1
    assert (found[found] == found).all()
    X[2000:] = X[:1000] + 0.001 * X[:1000].norm(dim=1, keepdim=True) / 10 * torch.randn(1000, 100)
    if dimensions == 100:
        assert torch.equal(leave_one_out.copies(X), torch.arange(3000) % 2000)


def test_the_kernel_and_the_normal_equations_agree():
    X, y = samples(90)
    F = torch.tanh(X @ torch.randn(12, 60, generator=generator("features"))).double()
    one, other = from_features(F, Targets(y, 3)), from_kernel(F @ F.T, Targets(y, 3))
    assert one.ridge == other.ridge
    torch.testing.assert_close(one.predicted, other.predicted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_ridge_is_that_of_an_exact_readout(seed):
    X, y = samples(300, seed=seed)
    deq = DEQ(ACTIVATIONS["tanh"], 12, 40, 3, 0.2)
    readout, _ = ridge_features.solve(deq, X, y, 3)
    with torch.no_grad():
        assert from_features(deq.features(X), Targets(y, 3)).ridge == readout.ridge


# ---------------------------------------------------------------------------------------------------------------
# the predicted loss


def test_the_error_of_a_measurement_is_that_of_repetitions():
    """Differences with an effect of the sample, of the seed (as large as its prior), and of both."""
    rng = np.random.default_rng(0)
    n, seeds, losses, claimed = 400, 4, [], []
    for _ in range(400):
        lean = 0.10 * rng.normal(size=n) + 0.016 * rng.normal(size=(seeds, 1)) + 0.02
        draw = rng.uniform(size=(seeds, n))
        differences = np.where(draw < 0.2 + lean / 2, 1, np.where(draw > 0.8 + lean / 2, -1, 0))
        found = measured(64, differences, np.arange(n))
        losses.append(found.loss)
        claimed.append(found.of_samples + found.of_seeds)
    assert np.var(losses) == pytest.approx(np.mean(claimed), rel=0.2)


def test_copies_of_a_sample_count_as_one():
    rng = np.random.default_rng(0)
    differences = rng.integers(-1, 2, size=(1, 500))
    one = measured(64, differences, np.arange(500))
    four = measured(64, np.tile(differences, 4), np.tile(np.arange(500), 4))
    assert four.loss == one.loss and four.of_samples == pytest.approx(one.of_samples, rel=0.05)
    assert measured(64, np.tile(differences, 4), np.arange(2000)).of_samples < 0.3 * one.of_samples


def point(width, count, loss, error=0.1, apart=5.0, seeds=2):
    return Measured(width, count, loss, seeds, apart, 100 * apart, 5 * apart, error**2 / 2, seeds * error**2 / 2)


def test_the_posterior_is_that_of_a_joint_gaussian():
    """One amplitude, against the conditional distribution written out."""
    constants = Discrepancy(spread=1e-3, floor=0.0, shared=0.0)
    points = [point(64, 1000, 0.8, 0.3), point(256, 4000, 0.2), point(math.inf, 500, -0.1, 0.2, apart=1.0)]
    found = Posterior(points, 1024, 4000, constants)
    at = [(math.log(1 + c / m), math.log(c)) for m, c in [(1024, 4000), (64, 1000), (256, 4000), (math.inf, 500)]]
    d = np.array([found.apart, 5, 5, 1])
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
    noise = np.diag([p.of_samples + p.of_seeds for p in points])
    gain = np.linalg.solve(K[1:, 1:] + noise, K[1:, 0])
    interval = found.interval()
    deviation = math.sqrt(K[0, 0] - gain @ K[1:, 0])
    assert interval.mean == pytest.approx(gain @ [0.8, 0.2, -0.1])
    assert (interval.low, interval.high) == pytest.approx(
        (interval.mean - 1.6449 * deviation, interval.mean + 1.6449 * deviation), abs=1e-4
    )
    assert found.variance_given(points) == pytest.approx(found.variance) == pytest.approx(deviation**2)


def test_intervals_cover_losses_drawn_from_the_prior():
    constants, rng = Discrepancy(), np.random.default_rng(0)
    design = [(32, 1000), (128, 1000), (128, 8000), (512, 2000)]
    at = loss_model._coordinates([(512, 8000), *design])
    root = np.linalg.cholesky(loss_model._correlation(at, at, constants))
    d = np.array([4, 12, 8, 6, 6.0])
    covered = 0
    for _ in range(500):
        amplitude = constants.amplitude * 2.0 ** np.clip(rng.normal(0, constants.spread), -3, 3)
        truth = amplitude * d * (root @ rng.normal(size=5))
        points = [point(m, c, truth[k] + 0.4 * rng.normal(), 0.4, d[k]) for k, (m, c) in enumerate(design, 1)]
        interval = Posterior(points, 512, 8000, replace(constants, shared=0.0)).interval()
        covered += interval.low < truth[0] < interval.high
    assert 0.85 < covered / 500 < 0.95


def test_an_unknown_loss_is_drawn_to_zero_and_a_known_one_is_not():
    vague, sharp = (predict([point(256, 4000, 2.0, error)], 256, 4000) for error in (3.0, 0.05))
    assert 0 < vague.mean < 0.7 and sharp.mean == pytest.approx(2.0, abs=0.05)
    far = predict([point(256, 4000, 2.0, 0.05)], 4096, 60000)
    assert far.high - far.low > 3 * (sharp.high - sharp.low)


def test_samples_apart_follow_their_line():
    points = [
        point(m, c, 0.0, apart=20 * (m / 64) ** -0.4 * (c / 1000) ** -0.15) for m in (64, 256) for c in (1000, 4000)
    ]
    assert expected_apart(points, 1024, 16000) == pytest.approx(20 * 16**-0.4 * 16**-0.15, rel=0.07)
    assert expected_apart(points[:1], 1024, 1000) == pytest.approx(20 * 16 ** Discrepancy().slope_m, rel=0.01)


def test_the_width_from_which_on_the_loss_is_small():
    points = [
        point(w, 2000, loss, 0.03, apart)
        for w, loss, apart in ((64, 3.0, 10), (256, 0.9, 6), (1024, 0.1, 3), (math.inf, 0.0, 0.3))
    ]
    assert 256 < width_from(points, 2000, 0.5) <= 1024
    assert width_from(points, 2000, 0.01) is None
    assert width_from(points, 2000, 50) == 32


# ---------------------------------------------------------------------------------------------------------------
# assumptions, candidates, kernels


def test_gaussian_data_concentrate_as_gaussian_data_do():
    p = 300
    X = torch.randn(800, p, generator=generator("white")) / math.sqrt(p)
    found = assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, X)
    c = found["concentration"]
    assert c["norm_spread"] == pytest.approx(math.sqrt(2 / p), rel=0.1) and c["dimensions"] == pytest.approx(p, rel=0.2)
    assert c["cosine"] == pytest.approx(1 / math.sqrt(p), rel=0.03)
    assert c["cosine_largest"] == pytest.approx(c["gaussian"]["cosine_largest"], rel=0.2)
    assert not found["fails"]
    spread = X * torch.exp(0.6 * torch.randn(800, 1, generator=generator("norms")))
    spread /= spread.square().sum(1).mean().sqrt()
    (low,) = assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, spread)["fails"]
    assert "norms do not concentrate" in low
    parallel = X + 0.1 * torch.ones(p) / math.sqrt(p) * 10
    assert any("orthogonal" in s for s in assumptions.applicability(ACTIVATIONS["tanh"], 0.1, 1.0, parallel)["fails"])


def test_stability_is_that_of_the_worst_sample():
    norms2 = np.array([1e-4, 1.0])  # of tanh, the slope is largest where the sample is small
    found = assumptions.stability(ACTIVATIONS["tanh"], 0.9, 1.0, norms2)
    assert found["growth"] < found["growth_largest"] < 1 and found["lipschitz"] == pytest.approx(2 * math.sqrt(0.9))
    with pytest.raises(ValueError, match="no stable"):
        assumptions.stability(ACTIVATIONS["selu"], 0.9, 1.0, np.array([1e-3, 1.0]))


def test_candidates_of_a_relu_deq():
    deq = DEQ(ACTIVATIONS["relu"], 5, 8, 2, 0.2)
    found, refused = candidates.networks(deq, 1.0)
    by_name = {network.name: network for network in found}
    assert len(by_name) == len(found)
    roots = [network for network in found if network.family == "l_relu"]
    assert len(roots) == 2 and {"ck hard_tanh", "ntk l_relu"} <= set(refused)
    for network in found:
        assert network.build(5, 8, 2).coefficients.diag > 0
        if network.kernel == "ck":
            achieved = network.build(5, 8, 2).coefficients
            assert [achieved.diag, achieved.c1, achieved.c2, achieved.c3] == pytest.approx(
                [deq.coefficients.diag, deq.coefficients.c1, deq.coefficients.c2, deq.coefficients.c3], rel=1e-9
            )
    assert roots[0].layers[0].slopes != pytest.approx(roots[1].layers[0].slopes, abs=0.1)
    assert [network.depth for network in found if network.kind == "plain"] == [1, 2, 3]
    assert torch.equal(
        by_name["plain, depth 1"].build(5, 8, 2, seed=3).weights[0], DEQ(ACTIVATIONS["relu"], 5, 8, 2, 0.2, seed=3).B
    )


def test_matches_at_another_scale_than_the_deqs():
    deq = DEQ(ACTIVATIONS["swish"], 5, 8, 2, 0.2, tau0=1.0)
    same, _ = candidates.networks(deq, 1.02)  # as a subsample may be
    other, refused = candidates.networks(deq, 1.6)
    assert same[0].tau0 == 1.0 and other[0].tau0 == 1.6
    assert all(network.match.tau0 == network.tau0 for network in same + other if network.match)


def test_alignment_is_one_where_the_kernel_is_that_of_the_labels():
    y = torch.arange(60) % 3
    Y = torch.nn.functional.one_hot(y, 3).double()
    Y = Y - Y.mean(0)
    noise = torch.randn(60, 60, dtype=torch.float64, generator=generator("noise"))
    assert distance.label_alignment(Y @ Y.T + 1e-6 * (noise + noise.T), Y) == pytest.approx(1)
    assert distance.label_alignment(noise @ noise.T, Y) < 0.3
