"""Datasets: Gaussian mixtures, MNIST, Fashion-MNIST, SVHN, CIFAR-10 (as images or as VGG16 features), a user's own .npz.

`load_dataset` gives what training takes: rows centred by the training mean and divided by one number, so that the
mean squared norm of a training row is 1, for the test rows by the training set's mean and number. A user's file is
never unpickled. torchvision is imported only where it is needed.
"""

import hashlib
import math
import os
import tempfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from coefficients import MixtureStatistics
from utils import atomic_write, estimate_tau0, generator as make_generator

HERE = Path(__file__).resolve().parent
VGG16_WEIGHTS = HERE / "pretrained" / "cifar10_vgg16.pth"
FEATURE_CACHE = HERE / ".feature_cache"

# The preset `mixed`: what its classes differ in, sized so that ten epochs of SGD at the default flags end between 70% and 97%
MIXED_P, MIXED_CLASSES, MIXED_TRAIN, MIXED_TEST = 200, 4, 6000, 4000
MIXED_MEAN = 3.0   # the entry of mu_a at coordinate a
MIXED_TRACE = 6.0  # sqrt(p) times the step of tr C_a / p from class to class
MIXED_SHAPE = 0.5  # relative spread of the eigenvalues of C_a, whose large half differs by class


class DataError(ValueError):
    """Data that cannot be used: names the file or array, and what to do."""


@dataclass(frozen=True)
class Dataset:
    """Rows X float32 (n, p), normalised; labels y int64 (n,) in 0..n_classes-1.

    statistics : of the mixture that the training rows, as normalised, come from; None for real data.
    """
    name: str
    X_train: torch.Tensor
    y_train: torch.Tensor
    X_test: torch.Tensor
    y_test: torch.Tensor
    n_classes: int
    statistics: MixtureStatistics | None = None


@dataclass(frozen=True)
class Images:
    """Images as uint8 (n, c, h, w) with labels int64 (n,) in 0..K-1, and the names of the K classes."""
    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple


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
            raise DataError("classes cannot be picked from a Gaussian mixture: choose another preset")
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
    scale = _normalise(X, X_test)
    if statistics is not None:
        statistics = replace(statistics, t=statistics.t / scale**2, T=statistics.T / scale**4,
                             psi=statistics.psi / scale**2, tau0=statistics.tau0 / scale)
    return Dataset(name, X, y, X_test, y_test, n_classes, statistics)


def _pick(X, y, X_test, y_test, classes):
    """The samples of these classes, labelled 0, 1, ... in their order; and how many classes there are."""
    present = y.unique()
    wanted = present if classes is None else torch.tensor(list(classes), dtype=torch.int64)
    if len(wanted) < 2 or len(wanted.unique()) < len(wanted):
        raise DataError(f"classes {wanted.tolist()}: give two or more different labels" if classes is not None
                        else f"the training labels are all {present.tolist()}: at least two classes are needed")
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


def _normalise(X, X_test):
    """In place: both minus the mean row of X, over the root mean squared norm that X then has, which is returned."""
    mean = sum(rows.sum(0, dtype=torch.float64) for rows in X.split(4096)) / len(X)
    for Z in (X, X_test):
        Z -= mean.to(Z.dtype)
    try:
        scale = estimate_tau0(X)
    except ValueError:
        raise DataError("the training rows are all the same or not finite: there is nothing to normalise by") from None
    for Z in (X, X_test):
        Z /= scale
    return scale


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
        raise DataError(f"{len(means)} means, {len(covariances)} covariances and {len(counts)} counts: "
                        "give one of each per class")
    X, psi = torch.empty(n, p, dtype=dtype), torch.empty(n, dtype=torch.float64)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    for a, (mu, C, rows) in enumerate(zip(means, covariances, torch.arange(n).split(list(counts)))):
        z = torch.randn(len(rows), p, generator=generator, dtype=torch.float64)
        if C.shape not in ((), (p,), (p, p)):
            raise DataError(f"the covariance of class {a} has shape {tuple(C.shape)}: give a number, ({p},) or ({p}, {p})")
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
    J = nn.functional.one_hot(y, len(counts)).double()
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
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise DataError(f"{path}: not an .npz file; write one with numpy.savez")
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in ("X_train", "y_train", "X_test", "y_test") if key not in archive]
            if missing:
                raise DataError(f"{path}: holds no {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}")
            parts = []
            for part in ("train", "test"):
                parts += [_npz_rows(path, archive, f"X_{part}"), _npz_labels(path, archive, f"y_{part}")]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: damaged ({error}); write it again with numpy.savez") from None
    X, y, X_test, y_test = parts
    for part, Z, labels in (("train", X, y), ("test", X_test, y_test)):
        if len(Z) != len(labels):
            raise DataError(f"{path}: X_{part} has {len(Z)} rows, y_{part} {len(labels)} labels")
    if X.shape[1] != X_test.shape[1]:
        raise DataError(f"{path}: X_train has {X.shape[1]} columns, X_test {X_test.shape[1]}")
    unseen = y_test[~torch.isin(y_test, y)]
    if len(unseen):
        raise DataError(f"{path}: y_test has label {unseen[0]}, which y_train never has")
    return X, y, X_test, y_test


def _npz_array(path, archive, key):
    try:
        array = archive[key]
    except (ValueError, EOFError, MemoryError, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: {key} is a pickled object, which is not read; store an array of numbers") from None
        raise DataError(f"{path}: {key} cannot be read ({_line(error)}); write the file again with numpy.savez") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {key} is of type {array.dtype}; store real numbers")
    return array


def _npz_rows(path, archive, key):
    array = _npz_array(path, archive, key)
    if array.ndim != 2 or not array.size:
        raise DataError(f"{path}: {key} has shape {array.shape}; store a non-empty (n, p) matrix")
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite
        rows = torch.from_numpy(array.astype(np.float32, order="C"))
    for start, chunk in zip(range(0, len(rows), 4096), rows.split(4096)):
        bad = (~chunk.isfinite()).nonzero()
        if len(bad):
            raise DataError(f"{path}: {key} has a NaN or infinite entry in row {start + bad[0, 0]}, column {bad[0, 1]}")
    return rows


def _npz_labels(path, archive, key):
    array = _npz_array(path, archive, key)
    if array.ndim != 1:
        raise DataError(f"{path}: {key} has shape {array.shape}; store one label a row, (n,)")
    labels = array.astype(np.int64) if np.isfinite(array).all() else None
    if labels is None or (labels != array).any():
        raise DataError(f"{path}: {key} has labels that are not integers")
    return torch.from_numpy(labels)


# MNIST and Fashion-MNIST --------------------------------------------------------------------------------------

MNIST_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION_CLASSES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def mnist_images(path, name="mnist") -> Images:
    """MNIST or Fashion-MNIST, from idx files below the path; where they are not there, torchvision downloads them.

    The files are looked for in <path>/MNIST/raw (or FashionMNIST/raw), as torchvision lays them, and in <path>.

    Raises
    ------
    DataError : no files and no download, or a file is truncated, foreign or does not fit the others.
    """
    path = Path(path)
    folder = path / MNIST_FOLDERS[name] / "raw"
    present = next((place for place in (folder, path) if any((place / file).exists() for file in MNIST_FILES)), None)
    if present is None:
        _download_mnist(path, folder, name)
        present = folder
    train, train_labels, test, test_labels = (_idx(present / file, 3 if "images" in file else 1) for file in MNIST_FILES)
    for images, labels, files in ((train, train_labels, MNIST_FILES[:2]), (test, test_labels, MNIST_FILES[2:])):
        if len(images) != len(labels):
            raise DataError(f"{present / files[1]}: {len(labels)} labels for the {len(images)} images of {files[0]}")
        if labels.max() > 9:
            raise DataError(f"{present / files[1]}: label {labels.max()} is not a digit; not a file of {name}")
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{present / MNIST_FILES[2]}: images of {tuple(test.shape[1:])} pixels, "
                        f"for training {tuple(train.shape[1:])}")
    classes = FASHION_CLASSES if name == "fashion_mnist" else tuple("0123456789")
    return Images(train[:, None], train_labels.long(), test[:, None], test_labels.long(), classes)


def _idx(file, ndim):
    """The uint8 array of an idx file: 0, 0, 8 (unsigned byte), ndim, then the big-endian sizes, then the data."""
    try:
        content = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); put the uncompressed idx file there") from None
    if content[:4].tolist() != [0, 0, 8, ndim]:
        raise DataError(f"{file}: magic number {content[:4].tobytes().hex() or 'missing'}, not 0000080{ndim}: "
                        "not the uncompressed idx file of that name; replace it")
    sizes = content[4:4 + 4 * ndim].view(">u4").tolist() if len(content) >= 4 + 4 * ndim else []
    data = content[4 + 4 * ndim:]
    if not sizes or len(data) != math.prod(sizes) or not len(data):
        raise DataError(f"{file}: {len(data)} bytes of data where its header {tuple(sizes)} promises {math.prod(sizes)}: "
                        "truncated or damaged; replace it")
    return torch.from_numpy(data).view(sizes)


def _download_mnist(path, folder, name):
    from torchvision import datasets
    try:
        path.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path) as temporary:  # torchvision trusts a half-written file: move whole ones
            getattr(datasets, MNIST_FOLDERS[name])(temporary, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for file in MNIST_FILES:
                os.replace(Path(temporary) / MNIST_FOLDERS[name] / "raw" / file, folder / file)
    except Exception as error:  # no network, no space, read-only: torchvision raises many kinds
        raise DataError(f"{path}: no {name} found and its download failed ({_line(error)}); "
                        f"put {', '.join(MNIST_FILES)} into {folder}") from None


def _line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


# SVHN ---------------------------------------------------------------------------------------------------------

def svhn_images(path) -> Images:
    """SVHN from <path>/train_32x32.mat and test_32x32.mat; torchvision downloads what is not there.

    Raises
    ------
    DataError : a file is not there and cannot be downloaded, or is not such a file.
    """
    path = Path(path)
    return Images(*(array for split in ("train", "test") for array in _svhn(path, split)), tuple("0123456789"))


def _svhn(path, split):
    from scipy.io import loadmat
    file = path / f"{split}_32x32.mat"
    if not file.exists():
        try:
            from torchvision.datasets import SVHN
            path.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path) as temporary:
                SVHN(temporary, split=split, download=True)
                os.replace(Path(temporary) / file.name, file)
        except Exception as error:  # no network, no space, read-only: torchvision raises many kinds
            raise DataError(f"{file}: no such file and its download failed ({_line(error)}); put it there") from None
    try:
        content = loadmat(file)
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise DataError(f"{file}: not a .mat file with X and y ({type(error).__name__}: {_line(error)}); replace it") from None
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise DataError(f"{file}: X is {images.dtype} {images.shape} for {len(labels)} labels, not uint8 (32, 32, 3, n)")
    if not np.isin(labels, range(1, 11)).all():
        raise DataError(f"{file}: a label is not in 1 .. 10 (10 is the digit 0)")
    return torch.from_numpy(images).permute(3, 2, 0, 1).contiguous(), torch.from_numpy(labels.astype(np.int64) % 10)


# CIFAR-10 and its VGG16 ---------------------------------------------------------------------------------------

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pixels, in [0, 1]
VGG16_WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG16(nn.Module):
    """VGG16 with batch norm for 32 x 32 images (Simonyan & Zisserman, 2015), head 512 -> 512 -> 256 -> 10.

    Takes uint8 images (n, 3, 32, 32) and normalises them itself; its logits are (n, 10).
    """

    def __init__(self, dropout=0.2):
        super().__init__()
        layers, channels = [], 3
        for width in VGG16_WIDTHS:
            if width == "M":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # 24 x 24 images too end as 1 x 1
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(dropout), nn.Linear(512, 256), nn.ReLU())
        self.readout = nn.Sequential(nn.Dropout(dropout), nn.Linear(256, 10))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.register_buffer("mean", 255 * torch.tensor(CIFAR10_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(CIFAR10_STD).view(3, 1, 1), persistent=False)

    def features(self, x):
        """The 256 values after the second hidden ReLU of the head, (n, 256)."""
        return self.hidden(self.convolutions((x - self.mean) / self.std))

    def forward(self, x):
        return self.readout(self.features(x))


def cifar10_images(path) -> Images:
    """CIFAR-10 from the image folder <path>/cifar10/{train,test}/<class>/, else from torchvision's archive.

    Raises
    ------
    DataError : neither is there, a class folder is missing, or an image cannot be read.
    """
    path = Path(path)
    if (path / "cifar10").is_dir():
        train, test = (_image_folder(path / "cifar10" / part) for part in ("train", "test"))
    else:
        train, test = _cifar10_archive(path)
    return Images(*train, *test, CIFAR10_CLASSES)


def _image_folder(folder):
    from PIL import Image, UnidentifiedImageError
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; put the images under {folder}/<class>/")
    missing = [name for name in CIFAR10_CLASSES if not (folder / name).is_dir()]
    if missing:
        raise DataError(f"{folder}: class folder missing: {', '.join(missing)}; CIFAR-10 has one for each of its 10 classes")
    files = [(file, label) for label, name in enumerate(CIFAR10_CLASSES)
             for file in sorted((folder / name).iterdir()) if file.suffix.lower() in (".jpg", ".jpeg", ".png")]
    empty = set(range(10)) - {label for _, label in files}
    if empty:
        raise DataError(f"{folder / CIFAR10_CLASSES[min(empty)]}: holds no .jpg or .png image")
    images = torch.empty(len(files), 3, 32, 32, dtype=torch.uint8)
    for i, (file, _) in enumerate(tqdm(files, f"read {folder.parent.name}/{folder.name}", disable=None, leave=False)):
        try:
            with Image.open(file) as image:
                size, pixels = image.size, image.convert("RGB").tobytes()
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise DataError(f"{file}: corrupt image ({error}); replace it") from None
        if size != (32, 32):
            raise DataError(f"{file}: the image is {size[0]} x {size[1]}, CIFAR-10 images are 32 x 32")
        images[i] = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
    return images, torch.tensor([label for _, label in files])


def _cifar10_archive(path):
    from torchvision.datasets import CIFAR10
    parts = []
    for train in (True, False):
        try:
            data = CIFAR10(path, train=train, download=True)
        except Exception as error:  # no network, no space, a broken archive: torchvision raises many kinds
            raise DataError(f"{path}: no CIFAR-10 found and its download failed ({_line(error)}); put the images under "
                            f"{path}/cifar10/{{train,test}}/<class>/ or torchvision's cifar-10-batches-py under {path}") from None
        parts.append((torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)))
    return parts


def cifar10_features(path, vgg_path=None, device="cpu"):
    """VGG16 features of CIFAR-10: X_train (50000, 256), y_train, X_test (10000, 256), y_test; not normalised.

    In evaluation mode, without augmentation, in float32; kept in FEATURE_CACHE under a key of weights and images.

    Parameters
    ----------
    path : see `cifar10_images`.
    vgg_path : weights of `VGG16`, by default those shipped in pretrained/; or "imagenet" for torchvision's VGG16, whose
        convolutions, on the 32 x 32 images as they are, give 512 features after the last pooling.
    """
    net = _imagenet_vgg16() if vgg_path == "imagenet" else load_vgg16(vgg_path or VGG16_WEIGHTS)
    data = cifar10_images(path)
    digest = hashlib.sha256(b"imagenet" if vgg_path == "imagenet" else b"cifar10")
    for tensor in (*net.state_dict().values(), data.train, data.test):
        digest.update(tensor.contiguous().numpy())
    cache = FEATURE_CACHE / f"cifar10_vgg16_{digest.hexdigest()[:24]}.pt"
    features = _cached(cache, (len(data.train), len(data.test)))
    if features is None:
        features = tuple(_extract(net, images, device, part) for images, part in ((data.train, "train"), (data.test, "test")))
        try:
            with atomic_write(cache) as file:
                torch.save(features, file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            warnings.warn(f"{cache}: the features could not be kept ({_line(error)}); the next run computes them again")
    return features[0], data.train_labels, features[1], data.test_labels


def _cached(cache, sizes):
    """The features in the file, or None if there are none or the file is damaged."""
    if not cache.exists():
        return None
    try:
        features = torch.load(cache, weights_only=True)
        if tuple(len(X) for X in features) == sizes:
            return features
    except Exception as error:  # a damaged file raises many kinds
        warnings.warn(f"{cache}: damaged ({_line(error)}); computing the features again")
    return None


@torch.no_grad()
def _extract(net, images, device, part, batch_size=250):
    net = net.to(device, memory_format=torch.channels_last).eval()
    batches = tqdm(images.split(batch_size), f"VGG16 features, {part}", disable=None, leave=False)
    return torch.cat([net.features(x.to(device).contiguous(memory_format=torch.channels_last)).float().cpu() for x in batches])


def load_vgg16(file) -> VGG16:
    """The network in evaluation mode, float32, with the weights of the file (a state_dict; float16 is fine).

    Raises
    ------
    DataError : the file is missing, damaged, or holds other weights.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"{file}: no VGG16 weights; train them with: python scripts/pretrain_vgg.py --output {file}")
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # truncated, foreign or pickled files raise many kinds
        raise DataError(f"{file}: not a readable weight file ({_line(error)[:80]}); "
                        "it must be a state_dict saved by torch") from None
    net = VGG16()
    wanted = net.state_dict()
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise DataError(f"{file}: not a state_dict (a dictionary of tensors)")
    for key in sorted(wanted.keys() | state.keys()):
        if key not in state or key not in wanted:
            raise DataError(f"{file}: does not fit data_prepare.VGG16: "
                            f"key {key} is {'missing' if key in wanted else 'not one of its'}"
                            f" ({len(wanted.keys() - state.keys())} missing, {len(state.keys() - wanted.keys())} unknown)")
        if state[key].shape != wanted[key].shape:
            raise DataError(f"{file}: does not fit data_prepare.VGG16: {key} has shape {tuple(state[key].shape)}, "
                            f"not {tuple(wanted[key].shape)}")
    net.load_state_dict(state)
    return net.eval()


class _ImageNetVGG16(nn.Module):
    def __init__(self, convolutions, mean, std):
        super().__init__()
        self.convolutions = convolutions
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def features(self, x):
        return self.convolutions((x - self.mean) / self.std).flatten(1)


def _imagenet_vgg16():
    from torchvision.models import VGG16_Weights, vgg16
    weights = VGG16_Weights.IMAGENET1K_V1
    try:
        net = vgg16(weights=weights)
    except Exception as error:  # no network, no space: torch.hub raises many kinds
        raise DataError(f"torchvision's VGG16 weights could not be downloaded ({_line(error)}); leave --vgg_path out to use "
                        f"the weights in {VGG16_WEIGHTS.parent}") from None
    return _ImageNetVGG16(net.features, weights.transforms().mean, weights.transforms().std)


IMAGES = {"mnist": mnist_images, "fashion_mnist": partial(mnist_images, name="fashion_mnist"),
          "cifar10_images": cifar10_images, "svhn": svhn_images}
DATASETS = ("gmm", "mnist", "fashion_mnist", "cifar10", "cifar10_images", "svhn", "npz")
