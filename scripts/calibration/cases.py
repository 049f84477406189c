"""The cases of scripts/calibrate.py: a data set, a DEQ and a width each, fixed by the lists here and one seed.

Half of the data sets are those of the project; the others are what a user's own .npz may be like, and break what the
theory assumes: heavy tails, few dimensions, duplicated and strongly correlated samples, norms that spread. Activations,
sigma_a^2 and widths are dealt like cards, so that each occurs as often as its list says and goes with all kinds of
data. Half of the cases, by a hash of their names, set constants; the others only report (`sets_constants`).
"""

if __name__ == "__main__":
    raise SystemExit("cases.py is a part of scripts/calibrate.py: run that")

import hashlib
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from deq_enn.data.datasets import Dataset, normalise
from deq_enn.data.images import cifar10_images, mnist_images
from deq_enn.data.mixtures import GMM_PRESETS
from deq_enn.data.vgg16 import cifar10_features
from deq_enn.kernels.sample_scales import implicit_scales
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.random import generator

SEED = 16
# data set: number of its cases, beside those of LARGE
COUNTS = {
    "mixed": 12,
    "two_class": 10,
    "mnist": 18,
    "cifar10_pixels": 11,
    "cifar10_vgg16": 15,
    "mnist_spread": 8,
    "mixed_spread": 8,
    "heavy_tails": 10,
    "few_dimensions": 10,
    "duplicated": 10,
    "correlated": 8,
    "unnormalised": 7,
}
SIGMA_A2 = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
WIDTHS = {64: 26, 128: 34, 256: 40, 512: 16, 1024: 6, 2048: 3, 4096: 2}
TRAINING = (1000, 2000, 2000, 3000, 3000, 5000, 8000, 12_000)
# what a width can afford: the largest training set, the test set, and how many seeds of weights
LIMITS = {
    64: (12_000, 8000, 8),
    128: (8000, 8000, 5),
    256: (5000, 6000, 4),
    512: (4000, 4000, 3),
    1024: (3000, 3000, 3),
    2048: (2000, 2500, 3),
    4096: (1000, 1500, 3),
}
WIDE_DATA = {"cifar10_pixels": 256, "two_class": 512}  # the largest width on data of many dimensions
LARGE = (
    ("mnist", "swish", 0.3, 128, 60_000),
    ("cifar10_vgg16", "relu", 0.5, 128, 50_000),
    ("cifar10_pixels", "tanh", 0.4, 64, 50_000),
    ("mixed", "gelu", 0.2, 4096, 1000),
)
SPREAD = ("mnist_spread", "mixed_spread", "unnormalised")  # data whose norms are multiplied by lognormal factors
# the largest sigma_a^2 E[phi'^2] of a case, at tau_* and at a third of it, and at the scales of samples whose norms
# spread: from 0.8 on, narrow DEQs of some seeds have no equilibrium
STABLE = 0.8


@dataclass(frozen=True)
class Case:
    """This is a DEQ of `width` units on the first `n` training samples of `data`."""

    data: str
    activation: str
    sigma_a2: float
    width: int
    n: int

    @property
    def name(self) -> str:
        return f"{self.data}-{self.activation}-{self.sigma_a2:g}-m{self.width}-n{self.n}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def tests(self) -> int:
        return LIMITS[self.width][1]

    @property
    def seeds(self) -> int:
        return LIMITS[self.width][2]


def cases() -> list[Case]:
    """Returns all of them, in an order in which any first part is a fair sample."""
    data = [name for name, count in COUNTS.items() for _ in range(count)]
    widths = [width for width, count in WIDTHS.items() for _ in range(count)]
    assert len(widths) == len(data)
    columns = {"data": _shuffled(data, "data"), "width": _shuffled(widths, "width")}
    for column, values in (("activation", list(ACTIVATIONS)), ("sigma_a2", SIGMA_A2), ("n", TRAINING)):
        deck = list(values) * math.ceil(len(data) / len(values))
        columns[column] = _shuffled(deck, column)[: len(data)]
    listed = {}
    for row in zip(*columns.values()):
        c = dict(zip(columns, row))
        c["width"] = min(c["width"], WIDE_DATA.get(c["data"], c["width"]))
        c["n"] = min(c["n"], LIMITS[c["width"]][0])
        lower = [s for s in reversed(SIGMA_A2) if s <= c["sigma_a2"]]
        c["sigma_a2"] = next(s for s in lower if _converges(c["activation"], s, c["data"] in SPREAD))
        case = Case(**c)
        listed[case.name] = case
    for row in LARGE:
        case = Case(*row)
        listed[case.name] = case
    return sorted(listed.values(), key=lambda case: case.digest)


def sets_constants(name: str) -> bool:
    """Tells whether the case of this name is of the half that constants are set on; the others only report."""
    return hashlib.sha256(name.encode()).hexdigest()[-1] in "02468ace"


def _shuffled(values, column):
    order = torch.randperm(len(values), generator=generator("calibration cases", column, SEED))
    return [values[i] for i in order]


@cache
def _converges(activation, sigma_a2, spread):
    f = ACTIVATIONS[activation]
    try:
        tau = get_tau(f, sigma_a2, 1.0)
        stable = sigma_a2 * max(gaussian_moments(f, scale).d1_sq for scale in (tau, tau / 3)) < STABLE
        if stable and spread:
            scales = implicit_scales(f, sigma_a2, np.array([0.02, 10.0]), gaussian_moments(f, tau).mean)
            stable = sigma_a2 * scales.d1_sq.max() < STABLE
    except ValueError:
        return False
    return bool(stable)


# ---------------------------------------------------------------------------------------------------------------


def load(case: Case, path) -> Dataset:
    """Returns training and test samples, normalised as by `data_prepare.load_dataset`; tau_0 is X_train's.

    path : the folder of MNIST and CIFAR-10.
    """
    X, y, X_test, y_test = _SOURCES[case.data](case, path)
    X, X_test = (Z.flatten(1).to(torch.float32, copy=True) for Z in (X, X_test))
    normalise(X, X_test)
    if case.data in SPREAD:
        draw = generator("norms", case.name)
        for Z in (X, X_test):
            Z *= torch.exp(0.6 * torch.randn(len(Z), 1, generator=draw))
    if case.data != "unnormalised":
        scale = estimate_tau0(X)
        X, X_test = X / scale, X_test / scale
    return Dataset(case.name, X, y, X_test, y_test, int(y.max()) + 1)


@cache  # 300 MB, but 60,000 files are read once
def _real(name, path):
    if name == "cifar10_vgg16":
        return cifar10_features(path)
    images = {"mnist": mnist_images, "cifar10_pixels": cifar10_images}[name](path)
    return images.train, images.train_labels, images.test, images.test_labels


def _real_part(case, path):
    """Returns random training samples, and random ones of the published test set."""
    X, y, X_test, y_test = _real(case.data.removesuffix("_spread"), str(path))
    kept, tests = (
        torch.randperm(len(Z), generator=generator("samples", part, case.name))[:size]
        for Z, part, size in ((X, "train", case.n), (X_test, "test", case.tests))
    )
    return X[kept], y[kept], X_test[tests], y_test[tests]


def _drawn(draw):
    """Returns the source of what `draw(n, generator)` gives, independent for training and test, in random order."""

    def source(case, path):
        parts = []
        for part, n in (("train", case.n), ("test", case.tests)):
            X, y = draw(n, generator("samples", part, case.name))
            order = torch.randperm(n, generator=generator("order", part, case.name))
            parts += [X[order], y[order]]
        return parts

    return source


def _preset(name):
    return lambda n, draw: GMM_PRESETS[name][0](n, draw)[:2]


def _heavy_tails(n, draw, p=100, classes=5):
    """Draws Student's t of three degrees of freedom in each entry, about class means 6 from each other."""
    y = torch.arange(n) % classes
    chi2 = torch.randn(3, n, p, generator=draw).square().sum(0)
    return torch.randn(n, p, generator=draw) / (chi2 / 3).sqrt() + 6 / math.sqrt(2) * torch.eye(classes, p)[y], y


def _few_dimensions(n, draw, p=6, classes=4):
    """Draws Gaussians in six dimensions, labelled by the largest of four sums of eight waves; 5% of labels random."""
    fixed = generator("few dimensions", SEED)  # the waves are the same for training and test
    w, b, a = (torch.randn(*shape, generator=fixed) for shape in ((p, 8), (8,), (8, classes)))
    X = torch.randn(n, p, generator=draw)
    return X, _some_random((torch.sin(0.8 * X @ w + 3 * b) @ a).argmax(1), classes, 0.05, draw)


def _correlated(n, draw, p=200, classes=5):
    """Draws 30 clusters along ten directions that hold 95% of the variance: those of a cluster are nearly parallel."""
    fixed = generator("correlated", SEED)
    directions = torch.linalg.qr(torch.randn(p, 10, generator=fixed))[0].T
    centres = torch.randn(30, 10, generator=fixed)
    cluster = torch.randint(30, (n,), generator=draw)
    factors = centres[cluster] + 0.6 * torch.randn(n, 10, generator=draw)
    noise = torch.randn(n, p, generator=draw) * math.sqrt(0.05 / 0.95 * 10 * 1.36 / p)
    return factors @ directions + noise, _some_random(cluster % classes, classes, 0.05, draw)


def _some_random(y, classes, share, draw):
    chosen = torch.rand(len(y), generator=draw) < share
    return torch.where(chosen, torch.randint(classes, (len(y),), generator=draw), y)


def _duplicated(case, path):
    """Returns the preset `mixed` with every training sample five times, moved by 1%; the test samples occur once."""
    X, y, X_test, y_test = _drawn(_preset("mixed"))(case, path)
    draw = generator("duplicates", case.name)
    kept = (torch.arange(case.n) // 5)[torch.randperm(case.n, generator=draw)]
    X = X[kept]
    X = X + 0.01 * X.norm(dim=1, keepdim=True) / math.sqrt(X.shape[1]) * torch.randn(X.shape, generator=draw)
    return X, y[kept], X_test, y_test


def _unnormalised(case, path):
    """Returns the preset `mixed`; `load` spreads its norms and does not divide by their scale."""
    return _drawn(_preset("mixed"))(case, path)


_SOURCES = {
    "mixed": _drawn(_preset("mixed")),
    "two_class": _drawn(_preset("two_class")),
    "mnist": _real_part,
    "cifar10_pixels": _real_part,
    "cifar10_vgg16": _real_part,
    "mnist_spread": _real_part,
    "mixed_spread": _drawn(_preset("mixed")),
    "heavy_tails": _drawn(_heavy_tails),
    "few_dimensions": _drawn(_few_dimensions),
    "duplicated": _duplicated,
    "correlated": _drawn(_correlated),
    "unnormalised": _unnormalised,
}
