"""Scores of predictions against frequencies of draws, sums by hand, resampled images and joint normal densities."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from deq_enn.machines.regression import Prediction, fit, one_hot_targets
from deq_enn.machines.run import Samples, Settings, run_machine
from deq_enn.machines.scores import LEAST_VARIANCE, bootstrap_difference, calibration_error, class_probabilities, score
from deq_enn.networks.build import build_model
from deq_enn.networks.enn import ENN
from deq_enn.theory.activations import ACTIVATIONS
from tests.helpers.kernel_rank import CLASSES, N, formed


def test_class_probabilities_are_frequencies_of_draws():
    mean = torch.tensor([[0.5, 0.2, -0.1], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    variance = torch.tensor([0.1, 2.0, 0.01], dtype=torch.float64)
    p = class_probabilities(Prediction(mean, variance)).exp()
    noise = torch.randn(200_000, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    draws = mean + variance.sqrt()[:, None] * noise
    frequency = torch.nn.functional.one_hot(draws.argmax(2), 3).double().mean(0)
    assert torch.allclose(p, frequency, atol=4 * 0.5 / math.sqrt(200_000))
    assert torch.allclose(p[1], torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-12)
    # two classes: P = Phi((mean_0 - mean_1)/sqrt(2 v)), far into the tail
    two = class_probabilities(Prediction(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([0.04]).double()))
    assert two[0, 0].item() == pytest.approx(stats.norm.logcdf(-1 / math.sqrt(0.08)), rel=1e-3)


@pytest.mark.parametrize("variance", [0.0, -1e-17, 1e-300])
def test_a_variance_that_is_rounding_has_finite_scores(variance):
    """As at a test row that is a training row too, without a ridge."""
    mean = torch.tensor([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]).double()
    scores = score(Prediction(mean, torch.tensor([variance, 0.1, variance]).double()), torch.tensor([0, 1, 1]))
    assert all(map(math.isfinite, scores.values())) and scores["accuracy"] == 1
    sure = score(
        Prediction(mean, torch.tensor([LEAST_VARIANCE, 0.1, LEAST_VARIANCE]).double()), torch.tensor([0, 1, 1])
    )
    assert scores == sure


@pytest.mark.parametrize("kernel", ["ck", "ntk"])
def test_a_test_row_that_is_a_training_row_without_a_ridge(kernel):
    X, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(12) % 2
    X = X / X.norm(dim=1).square().mean().sqrt()
    record, _ = run_machine(
        build_model("relu_enn", 3, 1, 2, 0.2), Samples(X, y, X[:5], y[:5], 2), Settings(kernel, [0.0])
    )
    assert record["test_accuracy"] == 1
    assert all(math.isfinite(value) for name, value in record.items() if name.startswith("test_"))


def test_calibration_error_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]).double().log()
    # bins: {0.9, 0.9} accuracy 1/2, {0.6} accuracy 1, {0.7} accuracy 0
    assert calibration_error(p, torch.tensor([0, 1, 0, 0])) == pytest.approx((2 * 0.4 + 0.4 + 0.7) / 4)


def test_bootstrap_interval_is_that_of_resampled_images():
    random = np.random.default_rng(0)
    first = torch.from_numpy(random.random(500) < 0.9)
    second = torch.from_numpy(random.random(500) < 0.8) | (first & torch.from_numpy(random.random(500) < 0.5))
    difference, low, high = bootstrap_difference(first, second)
    index = random.integers(500, size=(20_000, 500))
    means = (first.numpy().astype(float) - second.numpy())[index].mean(1)
    assert difference == pytest.approx((first.double() - second.double()).mean().item())
    np.testing.assert_allclose((low, high), np.quantile(means, [0.025, 0.975]), atol=0.003)
    assert low < difference < high


@pytest.mark.slow
def test_predictive_density_is_the_conditional_of_the_joint_normal(problem):
    """log p(targets of one test sample | training targets) as a difference of two joint log densities."""
    square, cross, y, y_test, kernels = problem
    machine = fit(square, formed(square, "ck"), y, CLASSES, "ck", 0.03)
    Y = one_hot_targets(y, CLASSES)[0].numpy()
    places = [0, 5, 11]
    expected = []
    for t in places:
        index = [*range(N), N + t]
        A = machine.scale2 * (kernels["ck"][np.ix_(index, index)] + machine.noise * np.eye(N + 1))
        target = np.eye(CLASSES)[y_test[t]] - machine.mean.numpy()
        expected.append(
            sum(
                stats.multivariate_normal.logpdf(np.append(Y[:, c], target[c]), cov=A)
                - stats.multivariate_normal.logpdf(Y[:, c], cov=A[:N, :N])
                for c in range(CLASSES)
            )
        )
    prediction = machine.predict(cross)
    part = Prediction(prediction.mean[places], prediction.variance[places])
    assert score(part, y_test[places])["log_density"] == pytest.approx(np.mean(expected), abs=2e-4)


def test_training_samples_are_predicted_as_they_would_be_among_others():
    """Of unequal classes the mean of the targets decides many."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(60, 5, generator=draw)
    y = (X[:, 0] + torch.randn(60, generator=draw) > 1).long()
    network = ENN([ACTIVATIONS["tanh"]], 5, 8, 2)
    record, predicted = run_machine(network, Samples(X, y, X, y, 2), Settings("ck", (2.0,)))
    assert record["train_accuracy"] == record["test_accuracy"] == (predicted == y).double().mean().item() < 1
