"""Images are read here as they come in files: MNIST, Fashion-MNIST, SVHN and CIFAR-10.

torchvision reads idx files and downloads what is not there. Its import takes as long as torch's own, and happens only
for these two.
"""

import contextlib
import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm


class DataError(ValueError):
    """Data cannot be used; the message names the file or array, and what to do."""


@dataclass(frozen=True)
class Images:
    """These are images as uint8 (n, c, h, w) with labels int64 (n,) in 0..K-1, and the names of the K classes."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]


# training rows and labels, test rows and labels
Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line, its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


# MNIST and Fashion-MNIST --------------------------------------------------------------------------------------

MNIST_FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def mnist_images(path: Path | str, name: str = "mnist") -> Images:
    """Reads MNIST or Fashion-MNIST from idx files below the path; torchvision downloads them if there are none.

    The files are looked for in <path>/MNIST/raw (or FashionMNIST/raw), as torchvision lays them, in <path>/raw and in
    <path>, as they are published (.gz) or unpacked, and also under names with a dot (train-images.idx3-ubyte).

    Raises
    ------
    DataError : no files and no download, or a file is truncated, foreign or does not fit the others.
    """
    path = Path(path)
    if path.is_file():
        raise DataError(f"{path}: a file, where {name} needs a folder; if it has arrays, take --dataset npz")
    folder = path / MNIST_FOLDERS[name] / "raw"
    places = [folder, folder.parent, *_unless_foreign(path, name)]
    present = next((place for place in places if any(_mnist_file(place, file) for file in MNIST_FILES)), None)
    if present is None:
        _download_mnist(path, folder, name)
        present = folder
    files = [_mnist_file(present, file) or present / file for file in MNIST_FILES]
    train, train_labels, test, test_labels = (
        _idx(file, 3 if "images" in kind else 1) for file, kind in zip(files, MNIST_FILES)
    )
    for images, labels, named in ((train, train_labels, files[:2]), (test, test_labels, files[2:])):
        if len(images) != len(labels):
            raise DataError(f"{named[1]}: {len(labels)} labels for the {len(images)} images of {named[0].name}")
        if labels.max() > 9:
            raise DataError(f"{named[1]}: label {labels.max()} is not a digit; not a file of {name}")
    if train.shape[1:] != test.shape[1:]:
        raise DataError(f"{files[2]}: images of {tuple(test.shape[1:])} pixels, for training {tuple(train.shape[1:])}")
    classes = FASHION_CLASSES if name == "fashion_mnist" else tuple("0123456789")
    return Images(train[:, None], train_labels.long(), test[:, None], test_labels.long(), classes)


def _unless_foreign(path: Path, name: str) -> list[Path]:
    """Returns <path>/raw and <path>, unless they are those of the other data set, whose files have the same names."""
    whole = path.absolute()
    own = whole.parent.name if whole.name == "raw" else whole.name
    foreign = own in (folder for other, folder in MNIST_FOLDERS.items() if other != name)
    return [] if foreign else [path / "raw", path]


def _mnist_file(place: Path, name: str) -> Path | None:
    """Returns the file of this name, or as it is published, or with a dot; None if there is none."""
    dotted = name.replace("-idx", ".idx")
    names = name, f"{name}.gz", dotted, f"{dotted}.gz"
    return next((place / each for each in names if (place / each).is_file()), None)


def _idx(file: Path, ndim: int) -> torch.Tensor:
    """Reads the uint8 array of an idx file, as it is or packed by gzip, with torchvision's reader.

    That one takes a path and nothing else, any type of number, and of a damaged file says that an assertion failed.
    """
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    try:
        with _unpacked(file) as plain:
            array = read_sn3_pascalvincent_tensor(str(plain))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: truncated or damaged ({one_line(error)}); replace it") from None
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror or error}); put the idx file or its .gz there"
        ) from None
    except (AssertionError, LookupError, ValueError, RuntimeError):  # what the reader raises on a file that is none
        raise DataError(f"{file}: truncated, damaged or no idx file; replace it") from None
    if array.dtype != torch.uint8 or array.ndim != ndim:
        kind = str(array.dtype).removeprefix("torch.")
        raise DataError(
            f"{file}: {kind} in {array.ndim} dimensions, not uint8 in {ndim}: not the idx file of that name; replace it"
        )
    return array


@contextlib.contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    """Yields a file, or a temporary one with what a .gz holds."""
    if file.suffix != ".gz":
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / file.stem
        with gzip.open(file) as packed, plain.open("wb") as out:
            shutil.copyfileobj(packed, out)
        yield plain


@contextlib.contextmanager
def _download_into(path: Path) -> Iterator[None]:
    """Makes the folder of a download, and removes it again where the download fails and leaves it empty."""
    new = not path.exists()
    path.mkdir(exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()
        raise


def _download_mnist(path: Path, folder: Path, name: str) -> None:
    from torchvision import datasets

    try:
        with (
            _download_into(path),
            tempfile.TemporaryDirectory(dir=path) as temporary,  # torchvision trusts a half-written file: move whole
        ):
            getattr(datasets, MNIST_FOLDERS[name])(temporary, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for file in MNIST_FILES:
                os.replace(Path(temporary) / MNIST_FOLDERS[name] / "raw" / file, folder / file)
    except Exception as error:  # no network, no space, read-only: torchvision raises many kinds
        raise DataError(
            f"{path}: no {name} found and its download failed ({one_line(error)}); "
            f"put {', '.join(MNIST_FILES)}, or each as .gz, into {folder}"
        ) from None


# SVHN ---------------------------------------------------------------------------------------------------------


def svhn_images(path: Path | str) -> Images:
    """Reads SVHN from <path>/train_32x32.mat and test_32x32.mat; torchvision downloads what is not there.

    Raises
    ------
    DataError : a file is not there and cannot be downloaded, or is not such a file.
    """
    path = Path(path)
    return Images(*_svhn(path, "train"), *_svhn(path, "test"), tuple("0123456789"))


def _svhn(path, split):
    from scipy.io import loadmat

    file = path / f"{split}_32x32.mat"
    if not file.exists():
        try:
            from torchvision.datasets import SVHN

            with _download_into(path), tempfile.TemporaryDirectory(dir=path) as temporary:
                SVHN(temporary, split=split, download=True)
                os.replace(Path(temporary) / file.name, file)
        except Exception as error:  # no network, no space, read-only: torchvision raises many kinds
            raise DataError(f"{file}: no such file and its download failed ({one_line(error)}); put it there") from None
    try:
        content = loadmat(file)
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise DataError(
            f"{file}: not a .mat file with X and y ({type(error).__name__}: {one_line(error)}); replace it"
        ) from None
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)) or not len(labels):
        raise DataError(
            f"{file}: X is {images.dtype} {images.shape} for {len(labels)} labels, not uint8 (32, 32, 3, n)"
        )
    if not np.isin(labels, range(1, 11)).all():
        raise DataError(f"{file}: a label is not in 1 .. 10 (10 is the digit 0)")
    return torch.from_numpy(images).permute(3, 2, 0, 1).contiguous(), torch.from_numpy(labels.astype(np.int64) % 10)


# CIFAR-10 -----------------------------------------------------------------------------------------------------

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pixels, in [0, 1]


def cifar10_images(path: Path | str) -> Images:
    """Reads CIFAR-10 from the image folder <path>/cifar10/{train,test}/<class>/, else from torchvision's archive.

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


def _image_folder(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    from PIL import Image, UnidentifiedImageError

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; put the images under {folder}/<class>/")
    missing = [name for name in CIFAR10_CLASSES if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{folder}: class folder missing: {', '.join(missing)}; CIFAR-10 has one for each of its 10 classes"
        )
    files = [
        (file, label)
        for label, name in enumerate(CIFAR10_CLASSES)
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in (".jpg", ".jpeg", ".png")
    ]
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


def _cifar10_archive(path: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    from torchvision.datasets import CIFAR10

    parts = []
    for train in (True, False):
        try:
            with _download_into(path):
                data = CIFAR10(path, train=train, download=True)
        except Exception as error:  # no network, no space, a broken archive: torchvision raises many kinds
            raise DataError(
                f"{path}: no CIFAR-10 found and its download failed ({one_line(error)}); put the images "
                f"under {path}/cifar10/{{train,test}}/<class>/ or torchvision's cifar-10-batches-py under "
                f"{path}"
            ) from None
        parts.append((torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)))
    return parts


IMAGES = {
    "mnist": mnist_images,
    "fashion_mnist": partial(mnist_images, name="fashion_mnist"),
    "cifar10_images": cifar10_images,
    "svhn": svhn_images,
}
