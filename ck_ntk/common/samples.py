"""The figure scripts draw their samples here: the paper's mixture, and two classes of MNIST or CIFAR-10."""

if __name__ == "__main__":
    raise SystemExit("samples.py is shared by the figures: run one of ck_ntk/*.py")

import math
from dataclasses import dataclass

import numpy as np
import torch

from deq_enn.data.datasets import load_dataset
from deq_enn.data.mixtures import gaussian_mixture
from deq_enn.theory.mixture import MixtureStatistics, estimate_statistics
from deq_enn.utils.random import generator

SHOWN = ("relu", "leaky_relu", "tanh", "swish", "elu")  # activations of the paper's kernel figures
LABEL = {"relu": "ReLU", "leaky_relu": "Leaky ReLU", "tanh": "Tanh", "swish": "Swish", "elu": "ELU"}
MARKER = dict(zip(SHOWN, "osD^v"))


@dataclass(frozen=True)
class Sample:
    """A sample is n rows with their statistics, and what the limiting spectrum needs beside those.

    covariances : (K, q) eigenvalues of the C_a in a common basis, in q groups of `multiplicity` (q,), p in all.
    overlaps : (q, K, K) what each group adds to the class means' mu_a^T mu_b, mu_a = sqrt(p) E[x].
    psi_variance : (K,) Var[psi_i].
    """

    X: torch.Tensor
    y: torch.Tensor
    statistics: MixtureStatistics
    covariances: np.ndarray
    multiplicity: np.ndarray
    overlaps: np.ndarray
    psi_variance: np.ndarray


def mixture(n, seed):
    """The paper's two classes: mu_a has an 8 at a coordinate of its own, C_a = (1 + 8 (a - 1)/sqrt(p)) I, p = 0.8 n."""
    p = round(0.8 * n)
    scales = np.array([1.0, 1 + 8 / math.sqrt(p)])
    X, y, statistics = gaussian_mixture(
        8 * torch.eye(2, p), scales.tolist(), [n - n // 2, n // 2], generator("figures", n, seed)
    )
    return Sample(X, y, statistics, scales[:, None], np.array([p]), 64 * np.eye(2)[None], 2 * scales**2 / p)


def images(name, path):
    """Returns (draw, title): a function that draws two classes of MNIST or Fashion-MNIST, and what they are called.

    They are the labels 6 and 8 of both.
    """
    title = {"mnist": "MNIST, 6 and 8", "fashion_mnist": "Fashion-MNIST, shirts and bags"}[name]
    return real_data(name, path, (6, 8)), title


def cifar10(path):
    """Returns a function that draws VGG16 features of cats and dogs, CIFAR-10's classes that are told apart worst."""
    return real_data("cifar10", path, (3, 5))


def real_data(name, path, classes):
    """Returns (n, seed) -> Sample of n training rows of two classes, normalised over all, with statistics of the n."""
    data = load_dataset(name, path, classes=classes)
    X_all = data.X_train.double()
    p = X_all.shape[1]
    means = torch.stack([X_all[data.y_train == a].mean(0) for a in (0, 1)])
    # the limit needs covariances in one basis: that of the pooled one, each class by its variances there
    _, basis = torch.linalg.eigh(sum(torch.cov(X_all[data.y_train == a].T) for a in (0, 1)))
    variances = torch.stack([p * (X_all[data.y_train == a] @ basis).var(0) for a in (0, 1)]).numpy()
    mu = math.sqrt(p) * (means @ basis).numpy()
    # eigenvalues within 10% of one another make a group
    group = np.unique(np.round(np.log(variances.mean(0) + 1e-6) / 0.1), return_inverse=True)[1]
    member = np.equal.outer(np.arange(group.max() + 1), group).astype(float)
    shape = (variances @ member.T / member.sum(1), member.sum(1), np.einsum("gi,ai,bi->gab", member, mu, mu))

    def draw(n, seed):
        if n > len(X_all):
            raise ValueError(f"{name} has {len(X_all)} training images of classes {classes}, fewer than n = {n}")
        rows = torch.randperm(len(X_all), generator=generator("figures", n, seed))[:n]
        rows = rows[data.y_train[rows].sort(stable=True).indices]
        X, y = X_all[rows], data.y_train[rows]
        statistics = estimate_statistics(X, y)
        variance = [statistics.psi[y == a].var().item() for a in (0, 1)]  # that of a Gaussian is far smaller
        return Sample(X, y, statistics, *shape, np.array(variance))

    return draw
