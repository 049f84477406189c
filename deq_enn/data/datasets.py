"""Every data set has one shape here: Gaussian mixtures, MNIST, Fashion-MNIST, SVHN, CIFAR-10, a user's own files.

`load_dataset` gives what training takes: rows centred by the training mean and divided by one number, so that the
mean squared norm of a training row is 1, for the test rows by the training set's mean and number. A user's file is
never unpickled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch

from deq_enn.data.images import CIFAR10_CLASSES, IMAGES, DataError
from deq_enn.data.mixtures import MIXED_CLASSES, draw_preset
from deq_enn.data.npz import KINDS, read_files, read_parts
from deq_enn.data.vgg16 import features_and_source
from deq_enn.names import DATASETS
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.mixture import MixtureStatistics


@dataclass(frozen=True)
class Dataset:
    """A data set has rows X float32 (n, p), normalised, and labels y int64 (n,) in 0..n_classes-1.

    statistics : of the mixture that the training rows, as normalised, come from; None for real data.
    mean, scale : what was subtracted from the rows (p,), and what they were then divided by; None and 1 if nothing was.
    classes : what the data set itself calls the labels 0, 1, ...: integers, or names where it has them.
    image_shape : (channels, height, width) of rows that are flattened images, else None.
    source : hash of what rows were computed from, where their last bits depend on the processor; else empty.
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
    classes: tuple[int | str, ...] | None = None
    image_shape: tuple[int, int, int] | None = None
    source: str = ""

    @property
    def mapping(self) -> tuple[int | str, ...] | None:
        """Returns `classes` of a user's own files where they are not 0, 1, ... already: what a log has to say."""
        return None if self.name != "npz" or self.classes == tuple(range(self.n_classes)) else self.classes


@dataclass(frozen=True)
class TrainingSet:
    """Training rows, normalised, whose labels may be missing; and a test set if there is one.

    mean, scale, classes, image_shape : as of `Dataset`; classes is None without labels.
    """

    X: torch.Tensor
    y: torch.Tensor | None
    mean: torch.Tensor | None
    scale: float
    classes: tuple[int | str, ...] | None
    test: tuple[torch.Tensor, torch.Tensor] | None = None
    image_shape: tuple[int, int, int] | None = None

    def raw(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns normalised rows as they are in the data set."""
        return rows * self.scale + (0 if self.mean is None else self.mean)


def load_dataset(
    name: str,
    path: Path | str | None = None,
    *,
    preset: str = "mixed",
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
    vgg_path: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Dataset:
    """Loads the named dataset, ready for training.

    Parameters
    ----------
    name : gmm, mnist, fashion_mnist, cifar10 (VGG16 features), cifar10_images, svhn or npz.
    path : the folder of the data set, or of npz the files (see npz.py). Default: data, which is made for a download.
    preset : of gmm, a key of GMM_PRESETS.
    classes : labels to keep, in the order in which they become 0, 1, ..., as the data have them or by name; default
        all.
    seed : of the samples of gmm.
    vgg_path, device : see `cifar10_features`.

    Raises
    ------
    DataError : what is missing or wrong with the data.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}: choose one of {', '.join(DATASETS)}")
    if path is not None and not Path(path).exists():
        what = f"give {KINDS}" if name == "npz" else "make it, or leave --dataset_path out to download into data"
        raise DataError(f"{path}: no such file or folder; {what}")
    statistics, names, shape, source = None, None, None, ""
    if name == "gmm":
        if classes is not None:
            raise DataError(
                "classes cannot be picked from a Gaussian mixture, whose statistics are those of all its "
                f"classes: leave --classes out (--preset two_class has 2 classes, mixed {MIXED_CLASSES})"
            )
        X, y, X_test, y_test, statistics = draw_preset(preset, seed)
    elif name == "npz":
        own, y, X_test, y_test = read_parts(path)
        X, names, shape = own.X, own.names, own.image_shape
        del own
    elif name == "cifar10":
        (X, y, X_test, y_test), source = features_and_source(path or "data", vgg_path, device)
        names = CIFAR10_CLASSES
    else:
        data = IMAGES[name](path or "data")
        X, y, X_test, y_test, names = data.train, data.train_labels, data.test, data.test_labels, data.classes
        shape = (X.shape[1], X.shape[2], X.shape[3])
        del data  # or it would keep the bytes beside the floats
    wanted = _wanted(y, classes, names)
    X, y = _kept(X, y, wanted)
    X_test, y_test = _kept(X_test, y_test, wanted)
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
    named = _named(wanted, names)
    return Dataset(name, X, y, X_test, y_test, len(wanted), statistics, mean, scale, named, shape, source)


def load_training_set(
    name: str,
    path: Path | str | None = None,
    *,
    preset: str = "mixed",
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
    vgg_path: Path | str | None = None,
) -> TrainingSet:
    """Loads the training rows of the named dataset, of which a user's own files need not have labels or a test set.

    Parameters as of `load_dataset`.
    """
    if name == "npz":
        data = read_files(path)
        if data.y is None and classes is not None:
            raise DataError(f"{path}: holds no labels, so that classes cannot be picked; leave --classes out")
        if data.y is None:
            return TrainingSet(data.X, None, *normalise(data.X), None, image_shape=data.image_shape)
        wanted = _wanted(data.y, classes, data.names)
        X, y = _kept(data.X, data.y, wanted)
        test = None
        if data.X_test is not None and data.y_test is not None:
            test = _kept(data.X_test, data.y_test, wanted)
        scaled = normalise(X, *([test[0]] if test else []))
        return TrainingSet(X, y, *scaled, _named(wanted, data.names), test, data.image_shape)
    data = load_dataset(name, path, preset=preset, classes=classes, seed=seed, vgg_path=vgg_path)
    test = data.X_test, data.y_test
    return TrainingSet(data.X_train, data.y_train, data.mean, data.scale, data.classes, test, data.image_shape)


def load_training(
    name: str,
    path: Path | str | None = None,
    *,
    preset: str = "mixed",
    classes: Sequence[int | str] | None = None,
    seed: int = 0,
    vgg_path: Path | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, float]:
    """Returns (X, y, mean, scale) of `load_training_set`."""
    data = load_training_set(name, path, preset=preset, classes=classes, seed=seed, vgg_path=vgg_path)
    return data.X, data.y, data.mean, data.scale


def _wanted(y: torch.Tensor, classes: Sequence[int | str] | None, names: Sequence[str] | None) -> torch.Tensor:
    """Returns the labels to keep, in the order in which they become 0, 1, ...; DataError where they cannot be."""
    present = y.unique()
    shown = _named(present, names)
    if classes is None:
        if len(present) < 2:
            raise DataError(f"the training labels are all {listed(shown)}: at least two classes are needed")
        return present
    wanted = []
    for label in classes:
        if names and str(label) in names:
            label = names.index(str(label))
        if not isinstance(label, Integral) or label not in present:
            raise DataError(f"class {label} has no training sample: the labels are {listed(shown)}")
        wanted.append(label)
    if len(wanted) < 2 or len(set(wanted)) < len(wanted):
        raise DataError(f"classes {list(classes)}: give two or more different labels")
    return torch.tensor(wanted, dtype=torch.int64, device=y.device)


def listed(labels: Sequence[int | str]) -> str:
    """Writes the labels out, the first twenty of them."""
    return ", ".join(map(str, labels[:20])) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")


def _named(wanted: torch.Tensor, names: Sequence[str] | None) -> tuple[int | str, ...]:
    """Returns what the data set calls these labels; digits are integers."""
    labels: list[int] = wanted.tolist()
    if names is None or tuple(names) == tuple("0123456789"):
        return tuple(labels)
    return tuple(names[label] for label in labels)


def _kept(Z: torch.Tensor, labels: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the samples of these classes, labelled 0, 1, ... in their order."""
    keep = torch.isin(labels, wanted)
    if not keep.all():
        Z, labels = Z[keep], labels[keep]
    if not len(labels):
        raise DataError(f"no test sample has one of the classes {listed(wanted.tolist())}")
    order = wanted.argsort()
    return Z, order[torch.searchsorted(wanted[order], labels)]


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
