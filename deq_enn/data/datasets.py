"""Datasets: Gaussian mixtures, MNIST, Fashion-MNIST, SVHN, CIFAR-10 (images or VGG16 features), a user's own .npz.

`load_dataset` gives what training takes: rows centred by the training mean and divided by one number, so that the
mean squared norm of a training row is 1, for the test rows by the training set's mean and number. A user's file is
never unpickled.
"""

import contextlib
import math
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import one_hot

from deq_enn.theory.coefficients import MixtureStatistics
from deq_enn.data.images import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, FASHION_CLASSES, IMAGES, MNIST_FILES, MNIST_FOLDERS, DataError, Images, cifar10_images, mnist_images, one_line, svhn_images
from deq_enn.names import DATASETS, PRESETS
from deq_enn.theory.equilibrium import estimate_tau0, generator as make_generator
from deq_enn.data.vgg16 import FEATURE_CACHE, VGG16, VGG16_WEIGHTS, VGG16_WIDTHS, cifar10_features, load_vgg16

# The preset `mixed`: what its classes differ in, sized so that ten epochs of SGD at the default flags end between 70%
# and 97%
MIXED_P, MIXED_CLASSES, MIXED_TRAIN, MIXED_TEST = 200, 4, 6000, 4000
MIXED_MEAN = 3.0  # the entry of mu_a at coordinate a
MIXED_TRACE = 6.0  # sqrt(p) times the step of tr C_a / p from class to class
MIXED_SHAPE = 0.5  # relative spread of the eigenvalues of C_a, whose large half differs by class


@dataclass(frozen=True)
class Dataset:
    """Rows X float32 (n, p), normalised; labels y int64 (n,) in 0..n_classes-1.

    statistics : of the mixture that the training rows, as normalised, come from; None for real data.
    mean, scale : what was subtracted from the rows (p,), and what they were then divided by; None and 1 if nothing was.
    """

    name: str
    X_train: torch.Tensor
    y_train: torch.Tensor
    X_test: torch.Tensor
    y_test: torch.Tensor
    n_classes: int
    statistics: MixtureStatistics | None = None
    mean: torch.Tensor | None = None
    scale: float = 1.0


def load_dataset(name, path=None, *, preset="mixed", classes=None, seed=0, vgg_path=None, device="cpu") -> Dataset:
    """The named dataset, ready for training.

    Parameters
    ----------
    name : gmm, mnist, fashion_mnist, cifar10 (VGG16 features), cifar10_images, svhn or npz.
    path : the folder of the data set, or the .npz file. Default: data, which is made for a download.
    preset : of gmm, a key of GMM_PRESETS.
    classes : labels to keep, in the order in which they become 0, 1, ...; default all.
    seed : of the samples of gmm.
    vgg_path, device : see `cifar10_features`.

    Raises
    ------
    DataError : what is missing or wrong with the data.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if path is not None and not Path(path).exists():
        raise DataError(f"{path}: no such file or folder; make it, or leave --dataset_path out to download into data")
    statistics = None
    if name == "gmm":
        if classes is not None:
            raise DataError(
                "classes cannot be picked from a Gaussian mixture, whose statistics are those of all its "
                f"classes: leave --classes out (--preset two_class has 2 classes, mixed {MIXED_CLASSES})"
            )
        X, y, X_test, y_test, statistics = _gmm(preset, seed)
    elif name == "npz":
        X, y, X_test, y_test = _npz(path)
    elif name == "cifar10":
        X, y, X_test, y_test = cifar10_features(path or "data", vgg_path, device)
    else:
        data = IMAGES[name](path or "data")
        X, y, X_test, y_test = data.train, data.train_labels, data.test, data.test_labels
        del data  # or it would keep the bytes beside the floats
    X, y, X_test, y_test, n_classes = _pick(X, y, X_test, y_test, classes)
    X, X_test = (Z.flatten(1).to(torch.float32, copy=True) if Z.dtype != torch.float32 else Z for Z in (X, X_test))
    mean, scale = _normalise(X, X_test)
    if statistics is not None:
        statistics = replace(
            statistics,
            t=statistics.t / scale**2,
            T=statistics.T / scale**4,
            psi=statistics.psi / scale**2,
            tau0=statistics.tau0 / scale,
        )
    return Dataset(name, X, y, X_test, y_test, n_classes, statistics, mean, scale)


def load_training(name, path=None, *, preset="mixed", classes=None, seed=0, vgg_path=None):
    """(X, y, mean, scale): the training rows of the named dataset, normalised as by `load_dataset`, and their labels.

    Parameters as there; mean and scale as of `Dataset`. An .npz file may be without a test set and without labels: y is
    then None.
    """
    if name == "npz" and (alone := _npz_training(path)):
        X, y = alone
        if y is None and classes is not None:
            raise DataError(f"{path}: holds no y_train, so that classes cannot be picked; leave --classes out")
        if y is not None:
            X, y, *_ = _pick(X, y, X, y, classes)
        return X, y, *_normalise(X)
    data = load_dataset(name, path, preset=preset, classes=classes, seed=seed, vgg_path=vgg_path)
    return data.X_train, data.y_train, data.mean, data.scale


def _pick(X, y, X_test, y_test, classes):
    """The samples of these classes, labelled 0, 1, ... in their order; and how many classes there are."""
    present = y.unique()
    wanted = present if classes is None else torch.tensor(list(classes), dtype=torch.int64)
    if len(wanted) < 2 or len(wanted.unique()) < len(wanted):
        raise DataError(
            f"classes {wanted.tolist()}: give two or more different labels"
            if classes is not None
            else f"the training labels are all {present.tolist()}: at least two classes are needed"
        )
    absent = wanted[~torch.isin(wanted, present)]
    if len(absent):
        raise DataError(f"class {absent[0]} has no training sample: the labels are {present.tolist()}")
    parts = []
    for Z, labels in ((X, y), (X_test, y_test)):
        if len(wanted) < len(present) or not torch.isin(labels, wanted).all():
            keep = torch.isin(labels, wanted)
            Z, labels = Z[keep], labels[keep]
        if not len(labels):
            raise DataError(f"classes {wanted.tolist()} have no test sample")
        order = wanted.argsort()
        parts += [Z, order[torch.searchsorted(wanted[order], labels)]]
    return *parts, len(wanted)


def _normalise(X, *others):
    """In place: all minus the mean row of X, over the root mean squared norm that X then has. Returns the two."""
    mean = (sum(rows.sum(0, dtype=torch.float64) for rows in X.split(4096)) / len(X)).to(X.dtype)
    for Z in (X, *others):
        Z -= mean
    try:
        scale = estimate_tau0(X)
    except ValueError:
        raise DataError("the training rows are all the same or not finite: there is nothing to normalise by") from None
    for Z in (X, *others):
        Z /= scale
    return mean, scale


# Gaussian mixtures --------------------------------------------------------------------------------------------


def gaussian_mixture(means, covariances, counts, generator, dtype=torch.float64):
    """Samples of a K-class mixture, sqrt(p) x ~ N(mu_a, C_a), with the statistics of the theory beside them.

    Parameters
    ----------
    means : (K, p), the mu_a.
    covariances : K of them, each a number c (for c I), a diagonal (p,) or a matrix (p, p).
    counts : K numbers of samples. The samples come sorted by class.
    generator : torch.Generator

    Returns
    -------
    X (n, p) of the dtype, y (n,) int64, MixtureStatistics (float64). Its tau_0 is sqrt(tr C / p).

    References
    ----------
    Ling et al., ICML 2024, Section 2: the data model and the definitions of J, t, T, psi and tau_0.
    """
    means = torch.as_tensor(means, dtype=torch.float64)
    p, n = means.shape[1], sum(counts)
    covariances = [torch.as_tensor(C, dtype=torch.float64) for C in covariances]
    if not len(means) == len(covariances) == len(counts):
        raise DataError(
            f"{len(means)} means, {len(covariances)} covariances and {len(counts)} counts: give one of each per class"
        )
    X, psi = torch.empty(n, p, dtype=dtype), torch.empty(n, dtype=torch.float64)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for a, (mu, C, rows) in enumerate(zip(means, covariances, torch.arange(n).split(list(counts)))):
        z = torch.randn(len(rows), p, generator=generator, dtype=torch.float64)
        if C.shape not in ((), (p,), (p, p)):
            raise DataError(
                f"the covariance of class {a} has shape {tuple(C.shape)}: give a number, ({p},) or ({p}, {p})"
            )
        if C.ndim < 2:
            if not (C >= 0).all():
                raise DataError(f"the covariance of class {a} has a negative entry")
            z *= C.sqrt()
        else:
            root, failed = torch.linalg.cholesky_ex(C)
            if failed or not torch.allclose(C, C.T):
                raise DataError(f"the covariance of class {a} is not symmetric positive definite")
            z = z @ root.T
        psi[rows] = (z.square().sum(1) - _trace(C, p)) / p
        X[rows] = ((z + mu) / math.sqrt(p)).to(dtype)
    weights = torch.tensor(counts, dtype=torch.float64) / n
    traces = torch.tensor([_trace(C, p) for C in covariances], dtype=torch.float64)
    mean_trace = weights @ traces
    T = torch.tensor([[_trace_of_product(C, D, p) / p for D in covariances] for C in covariances], dtype=torch.float64)
    J = one_hot(y, len(counts)).double()
    return X, y, MixtureStatistics(J, (traces - mean_trace) / math.sqrt(p), T, psi, math.sqrt(mean_trace / p))


def _trace(C, p):
    return (C * p if C.ndim == 0 else C.sum() if C.ndim == 1 else C.trace()).item()


def _trace_of_product(C, D, p):
    if C.ndim == D.ndim == 2:
        return (C * D).sum().item()  # tr(C D) of symmetric matrices
    C, D = (M.diagonal() if M.ndim == 2 else M.expand(p) for M in (C, D))
    return (C @ D).item()


def two_class(n, generator, p=None):
    """The paper's mixture: mu_a has an 8 at coordinate a, C_a = (1 + 8(a - 1)/sqrt(p)) I, a = 1, 2; p = 0.8 n."""
    p = p or round(0.8 * n)
    return gaussian_mixture(8 * torch.eye(2, p), [1.0, 1 + 8 / math.sqrt(p)], [n - n // 2, n // 2], generator)


def mixed(n, generator):
    """K classes that differ in the mean, and in the trace and the shape of the covariance; constants above."""
    K, p = MIXED_CLASSES, MIXED_P
    coordinates = torch.arange(p)
    covariances = []
    for a in range(K):
        sign = torch.where(coordinates >> a & 1 == 0, 1.0, -1.0).double()  # half of the coordinates, by bit a
        covariances.append((1 + MIXED_TRACE * (a - (K - 1) / 2) / math.sqrt(p)) * (1 + MIXED_SHAPE * sign))
    counts = [n // K + (a < n % K) for a in range(K)]
    return gaussian_mixture(MIXED_MEAN * torch.eye(K, p), covariances, counts, generator)


# name: (draw n samples from a generator, size of the training set, size of the test set)
GMM_PRESETS = {
    "mixed": (mixed, MIXED_TRAIN, MIXED_TEST),
    "two_class": (lambda n, generator: two_class(n, generator, p=1600), 2000, 2000),
}
GMM_PRESETS = {name: GMM_PRESETS[name] for name in PRESETS}  # those that the command line offers


def _gmm(preset, seed):
    if preset not in GMM_PRESETS:
        raise DataError(f"unknown mixture {preset!r}: choose one of {', '.join(GMM_PRESETS)}")
    draw, n, n_test = GMM_PRESETS[preset]
    X, y, statistics = draw(n, make_generator("gmm", preset, "train", seed))
    X_test, y_test, _ = draw(n_test, make_generator("gmm", preset, "test", seed))
    return X, y, X_test, y_test, statistics


# a user's own arrays ------------------------------------------------------------------------------------------


def _npz(path):
    if path is None:
        raise DataError("the dataset npz needs --dataset_path: a file with X_train, y_train, X_test and y_test")
    with _npz_archive(path) as archive:
        _npz_require(path, archive, "X_train", "y_train", "X_test", "y_test")
        X, y, X_test, y_test = *_npz_part(path, archive, "train"), *_npz_part(path, archive, "test")
    if X.shape[1] != X_test.shape[1]:
        raise DataError(f"{path}: X_train has {X.shape[1]} columns, X_test {X_test.shape[1]}")
    unseen = y_test[~torch.isin(y_test, y)]
    if len(unseen):
        raise DataError(f"{path}: y_test has label {unseen[0]}, which y_train never has")
    return X, y, X_test, y_test


def _npz_training(path):
    """X_train and y_train, or None, of a file without y_train or a test set; None of any other, which `_npz` reads."""
    if path is None:
        return None
    with _npz_archive(path) as archive:
        _npz_require(path, archive, "X_train")
        if "y_train" not in archive:
            return _npz_rows(path, archive, "X_train"), None
        return None if {"X_test", "y_test"} <= set(archive.files) else _npz_part(path, archive, "train")


@contextlib.contextmanager
def _npz_archive(path):
    """The open file; what is wrong with it while it is read is a DataError."""
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path}: not an .npz file; write one with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: damaged ({error}); write it again with numpy.savez") from None


def _npz_require(path, archive, *keys):
    missing = [key for key in keys if key not in archive]
    if missing:
        raise DataError(f"{path}: holds no {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}")


def _npz_part(path, archive, part):
    X, y = _npz_rows(path, archive, f"X_{part}"), _npz_labels(path, archive, f"y_{part}")
    if len(X) != len(y):
        raise DataError(f"{path}: X_{part} has {len(X)} rows, y_{part} {len(y)} labels")
    return X, y


def _npz_array(path, archive, key):
    try:
        array = archive[key]
    except (ValueError, EOFError, MemoryError, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {key} is a pickled object, which is not read; store an array of numbers"
            ) from None
        raise DataError(
            f"{path}: {key} cannot be read ({one_line(error)}); write the file again with numpy.savez"
        ) from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {key} is of type {array.dtype}; store real numbers")
    return array


def _npz_rows(path, archive, key):
    array = _npz_array(path, archive, key)
    if array.ndim != 2 or not array.size:
        raise DataError(f"{path}: {key} has shape {array.shape}; store a non-empty (n, p) matrix")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported
        rows = torch.from_numpy(array.astype(np.float32, order="C"))
    for start, chunk in zip(range(0, len(rows), 4096), rows.split(4096)):
        bad = (~chunk.isfinite()).nonzero()
        if len(bad):
            row, column = start + bad[0, 0].item(), bad[0, 1].item()
            what = (
                f"the entry {array[row, column]:g}, too large for float32 (up to 3.4e38: scale the array),"
                if np.isfinite(array[row, column])
                else "a NaN or infinite entry"
            )
            raise DataError(f"{path}: {key} has {what} in row {row}, column {column}")
    return rows


def _npz_labels(path, archive, key):
    array = _npz_array(path, archive, key)
    if array.ndim != 1:
        raise DataError(f"{path}: {key} has shape {array.shape}; store one label a row, (n,)")
    labels = array.astype(np.int64) if np.isfinite(array).all() else None
    if labels is None or (labels != array).any():
        raise DataError(f"{path}: {key} has labels that are not integers")
    return torch.from_numpy(labels)
