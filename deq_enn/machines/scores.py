"""This file scores the predictions of kernel machines by accuracy, likelihood and calibration, and compares two."""

import math

import numpy as np
import torch
from scipy.special import log_ndtr, logsumexp

from deq_enn.machines.regression import Prediction
from deq_enn.utils.intervals import Z_95

# variance of a target, which is 0 or 1, at least: what comes out below, as at a training row without a ridge, is
# rounding, and of either sign
LEAST_VARIANCE = 1e-12


def _variance(prediction):
    """The variances (m,), none below LEAST_VARIANCE, so that every density is finite."""
    return prediction.variance.clamp_min(LEAST_VARIANCE)


def class_probabilities(prediction: Prediction) -> torch.Tensor:
    """Returns log P(class c has the largest target), (m, c), for targets that are independent given the input.

    The probability E[prod_{j != c} Phi(xi + (mean_c - mean_j)/sd)], xi ~ N(0, 1), is computed by Gauss-Hermite
    quadrature, and normalised.
    """
    if prediction.variance is None:
        raise ValueError("a prediction without variances has no class probabilities")
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    mean = prediction.mean.numpy() / np.sqrt(_variance(prediction).numpy())[:, None]
    out = np.empty(mean.shape)
    for c in range(mean.shape[1]):
        gaps = mean[:, [c]] - np.delete(mean, c, 1)
        logs = log_ndtr(nodes[:, None, None] + gaps).sum(2)  # (node, sample)
        out[:, c] = logsumexp(logs + np.log(weights / weights.sum())[:, None], axis=0)
    return torch.from_numpy(out - logsumexp(out, axis=1, keepdims=True))


def calibration_error(log_probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Returns the expected calibration error of the most probable class, over equal intervals of its probability.

    (Guo, Pleiss, Sun & Weinberger, On calibration of modern neural networks, ICML 2017.)
    """
    confidence, predicted = log_probabilities.exp().max(1)
    gap = (predicted == labels).double() - confidence
    index = (confidence * bins).long().clamp_max(bins - 1)
    return torch.zeros(bins, dtype=gap.dtype).index_add_(0, index, gap).abs().sum().item() / len(labels)


def score(prediction: Prediction, labels: torch.Tensor) -> dict[str, float]:
    """Returns what the machine achieves on samples with these labels (m,).

    Returns
    -------
    accuracy, and mse, the mean squared error of the one-hot targets. With variances also:
    log_density : mean over samples and targets of the log predictive density; a variance below LEAST_VARIANCE counts
        as that.
    coverage : share of the targets within their 95% predictive interval.
    log_likelihood, calibration_error : of the label, by `class_probabilities`.
    """
    m, c = prediction.mean.shape
    errors = torch.nn.functional.one_hot(labels, c) - prediction.mean
    right = prediction.mean.argmax(1) == labels
    out = {"accuracy": right.double().mean().item(), "mse": errors.square().mean().item()}
    if prediction.variance is None:
        return out
    variance = _variance(prediction)[:, None]
    squares = errors.square() / variance
    logs = class_probabilities(prediction)
    return out | {
        "log_density": -(squares + torch.log(2 * math.pi * variance)).sum().item() / (2 * m),
        "coverage": (squares <= Z_95**2).double().mean().item(),
        "log_likelihood": logs.gather(1, labels[:, None]).mean().item(),
        "calibration_error": calibration_error(logs, labels),
    }


def bootstrap_difference(
    first: torch.Tensor, second: torch.Tensor, draws: int = 20_000, seed: int = 0
) -> tuple[float, float, float]:
    """Returns the difference of two accuracies on the same samples, and the ends of its 95% bootstrap interval.

    Unlike `utils.intervals.paired_loss` it takes no normal law, and no sample to differ that does not: few samples tell
    two exact kernels apart, and the interval of a table should end at the differences that are possible.

    Parameters
    ----------
    first, second : (m,) bool, whether each sample is classified rightly.

    Notes
    -----
    The paired bootstrap draws samples with both their outcomes. All that counts of a draw is how many pairs have the
    differences +1, 0 and -1, so that it is one multinomial variate.
    """
    m = len(first)
    better, worse = (first & ~second).sum().item(), (second & ~first).sum().item()
    counts = np.random.default_rng(seed).multinomial(m, [better / m, worse / m, 1 - (better + worse) / m], draws)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / m, [0.025, 0.975])
    return (better - worse) / m, float(low), float(high)
