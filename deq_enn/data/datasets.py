"""Every data set has one shape here: Gaussian mixtures, MNIST, Fashion-MNIST, SVHN, CIFAR-10, a user's own .npz.

`load_dataset` gives what training takes: rows centred by the training mean and divided by one number, so that the
mean squared norm of a training row is 1, for the test rows by the training set's mean and number. A user's file is
never unpickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from deq_enn.data.images import IMAGES, DataError
from deq_enn.data.mixtures import MIXED_CLASSES, draw_preset
from deq_enn.data.npz import read_npz, read_npz_training
from deq_enn.data.vgg16 import cifar10_features
from deq_enn.names import DATASETS
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.mixture import MixtureStatistics


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


def load_dataset(
    name: str,
    path: Path | str | None = None,
    *,
    preset: str = "mixed",
    classes: Sequence[int] | None = None,
    seed: int = 0,
    vgg_path: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Dataset:
    """Loads the named dataset, ready for training.

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
        X, y, X_test, y_test, statistics = draw_preset(preset, seed)
    elif name == "npz":
        X, y, X_test, y_test = read_npz(path)
    elif name == "cifar10":
        X, y, X_test, y_test = cifar10_features(path or "data", vgg_path, device)
    else:
        data = IMAGES[name](path or "data")
        X, y, X_test, y_test = data.train, data.train_labels, data.test, data.test_labels
        del data  # or it would keep the bytes beside the floats
    X, y, X_test, y_test, n_classes = _pick(X, y, X_test, y_test, classes)
    X, X_test = (Z.flatten(1).to(torch.float32, copy=True) if Z.dtype != torch.float32 else Z for Z in (X, X_test))
    mean, scale = normalise(X, X_test)
    if statistics is not None:
        statistics = replace(
            statistics,
            t=statistics.t / scale**2,
            T=statistics.T / scale**4,
            psi=statistics.psi / scale**2,
            tau0=statistics.tau0 / scale,
        )
    return Dataset(name, X, y, X_test, y_test, n_classes, statistics, mean, scale)


def load_training(
    name: str,
    path: Path | str | None = None,
    *,
    preset: str = "mixed",
    classes: Sequence[int] | None = None,
    seed: int = 0,
    vgg_path: Path | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, float]:
    """Returns (X, y, mean, scale): the training rows of the named dataset with their labels, normalised.

    Parameters as of `load_dataset`; mean and scale as of `Dataset`. An .npz file may be without a test set and without
    labels: y is then None.
    """
    if name == "npz" and (alone := read_npz_training(path)):
        X, y = alone
        if y is None and classes is not None:
            raise DataError(f"{path}: holds no y_train, so that classes cannot be picked; leave --classes out")
        if y is not None:
            X, y, *_ = _pick(X, y, X, y, classes)
        return X, y, *normalise(X)
    data = load_dataset(name, path, preset=preset, classes=classes, seed=seed, vgg_path=vgg_path)
    return data.X_train, data.y_train, data.mean, data.scale


def _pick(
    X: torch.Tensor, y: torch.Tensor, X_test: torch.Tensor, y_test: torch.Tensor, classes: Sequence[int] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Returns the samples of these classes, labelled 0, 1, ... in their order; and how many classes there are."""
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

    def kept(Z: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(wanted) < len(present) or not torch.isin(labels, wanted).all():
            keep = torch.isin(labels, wanted)
            Z, labels = Z[keep], labels[keep]
        if not len(labels):
            raise DataError(f"classes {wanted.tolist()} have no test sample")
        order = wanted.argsort()
        return Z, order[torch.searchsorted(wanted[order], labels)]

    return *kept(X, y), *kept(X_test, y_test), len(wanted)


def normalise(X: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Takes the mean row of X off all rows, and divides them by the root mean squared norm that X then has; in place.

    Returns the mean and the number.
    """
    sums = (rows.sum(0, dtype=torch.float64) for rows in X.split(4096))
    mean = (sum(sums, X.new_zeros(X.shape[1], dtype=torch.float64)) / len(X)).to(X.dtype)
    for Z in (X, *others):
        Z -= mean
    try:
        scale = estimate_tau0(X)
    except ValueError:
        raise DataError("the training rows are all the same or not finite: there is nothing to normalise by") from None
    for Z in (X, *others):
        Z /= scale
    return mean, scale
