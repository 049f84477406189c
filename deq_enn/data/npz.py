"""A user's own data come in files, in any of the forms that they are published in: `--dataset npz`.

Arrays are called X_train, y_train, X_test and y_test, as in Keras (x_train), or as in MedMNIST (train_images,
train_labels); or X and y alone. Images are flattened: (n, h, w) row by row, and colours in the order channel, row,
column, whichever of (n, c, h, w) and (n, h, w, c) the file has. Labels are integers, strings, or one-hot rows.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deq_enn.data.arrays import KINDS, open_arrays, read_array
from deq_enn.data.images import DataError
from deq_enn.utils.random import generator

NAMES = (
    ("X_train", "y_train", "X_test", "y_test"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("train_X", "train_y", "test_X", "test_y"),
)  # of training rows and labels, test rows and labels
WHOLE = (("X", "y"), ("x", "y"), ("images", "labels"), ("data", "target"))  # without a test set
CHANNELS = 1, 3, 4  # numbers of channels by which the axis of the colours is known
HELD_OUT = 5  # one in so many samples of each class is held out where the files have no test set


@dataclass(frozen=True)
class UserData:
    """Rows float32 (n, p) and labels int64 (n,), each None if the files have none; not yet normalised.

    names : what the labels are called where they are strings; label k is names[k].
    lacks : what the files would need to have for a test set of their own; None if they have it, or have X and y alone.
    image_shape : (channels, height, width) of rows that were images in the file, else None.
    """

    X: torch.Tensor
    y: torch.Tensor | None
    X_test: torch.Tensor | None = None
    y_test: torch.Tensor | None = None
    names: tuple[str, ...] | None = None
    lacks: str | None = None
    image_shape: tuple[int, int, int] | None = None


def read_files(path: Path | str | None) -> UserData:
    """Reads training rows, and labels and a test set where the files have them.

    Raises
    ------
    DataError : there is no path, or a file is damaged, or holds something else than matching rows and labels.
    """
    if path is None:
        raise DataError(
            f"the dataset npz needs --dataset_path: {KINDS}, with X_train, y_train, X_test and y_test, or with X and y"
        )
    with open_arrays(path) as arrays:
        keys = _keys(path, arrays)
        missing = [key for key in keys if key not in arrays]
        lacks = f"{path}: holds no {', '.join(missing)}; it has {', '.join(arrays)}" if missing else None
        X_key, y_key, *test = keys
        X, shape = _rows(path, arrays, X_key)
        if y_key not in arrays:
            return UserData(X, None, lacks=lacks, image_shape=shape)
        y = _labels(path, arrays, y_key, X_key, len(X))
        if missing or not test:
            coded, _, names = _coded_alike(path, (y_key, y), (y_key, y))
            return UserData(X, coded, names=names, lacks=lacks, image_shape=shape)
        X_test, shape_test = _rows(path, arrays, test[0])
        y_test = _labels(path, arrays, test[1], test[0], len(X_test))
    _check_alike(path, (X_key, X, shape), (test[0], X_test, shape_test))
    coded, coded_test, names = _coded_alike(path, (y_key, y), (test[1], y_test))
    return UserData(X, coded, X_test, coded_test, names, image_shape=shape)


def _check_alike(path, train, test):
    """Raises DataError where the samples (name, rows, shape of an image or None) of the two sets differ in size."""
    (name, X, shape), (name_test, X_test, shape_test) = train, test
    if shape and shape_test and shape != shape_test:
        size, size_test = (" x ".join(map(str, each)) for each in (shape, shape_test))
        raise DataError(
            f"{path}: the images of {name} are {size} (channels, height, width), those of {name_test} {size_test}: "
            "both must have the same"
        )
    if X.shape[1] != X_test.shape[1]:
        raise DataError(f"{path}: {name} has {X.shape[1]} columns, {name_test} {X_test.shape[1]}")


def read_parts(path: Path | str | None) -> tuple[UserData, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns what `read_files` does, with labels and a test set: y, X_test, y_test.

    Of files with X and y alone, a fifth of each class is held out, drawn with a fixed seed; a warning says so.
    """
    data = read_files(path)
    if data.lacks or data.y is None:
        raise DataError(data.lacks or f"{path}: holds no labels")
    if data.X_test is not None and data.y_test is not None:
        return data, data.y, data.X_test, data.y_test
    held = _held_out(data.y)
    if not held.any():
        raise DataError(f"{path}: no test set, and no class has the {HELD_OUT} samples that one takes to be held out")
    warnings.warn(
        f"{path}: no test set; {int(held.sum())} of the {len(held)} samples, a fifth of each class, are held out as one"
    )
    X, y, X_test, y_test = data.X[~held], data.y[~held], data.X[held], data.y[held]
    return UserData(X, y, X_test, y_test, data.names, image_shape=data.image_shape), y, X_test, y_test


def read_whole(
    path: Path | str | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, tuple[str, ...] | None]:
    """Returns the samples in the shapes and numbers that a file has: X, y, X_test, y_test, and names of string labels.

    Whole numbers of 32 bits and more stay whole, as tokens are; everything else becomes float32 (bytes of images too,
    0 to 255). Raises DataError as `read_files` does, and where there is no test set.
    """
    if path is None:
        raise DataError("the dataset npz needs --dataset_path")
    with open_arrays(path) as arrays:
        keys = _keys(path, arrays)
        missing = [key for key in (keys if len(keys) == len(NAMES[0]) else NAMES[0]) if key not in arrays]
        if missing:
            raise DataError(
                f"{path}: no held-out samples: it holds no {', '.join(missing)}; it has {', '.join(arrays)}. A folder "
                "with train.csv and test.csv has both, too"
            )
        X, X_test = (_whole(path, arrays, key) for key in (keys[0], keys[2]))
        y = _labels(path, arrays, keys[1], keys[0], len(X))
        y_test = _labels(path, arrays, keys[3], keys[2], len(X_test))
    coded, coded_test, names = _coded_alike(path, (keys[1], y), (keys[3], y_test))
    return X, coded, X_test, coded_test, names


def _whole(path: Path | str, arrays: Mapping[str, np.ndarray], key: str) -> torch.Tensor:
    array = read_array(path, arrays, key)
    if array.dtype.kind not in "biuf" or array.ndim < 2 or not array.size:
        raise DataError(f"{path}: {key} has shape {array.shape} and type {array.dtype}; store numbers, a sample a row")
    whole = array.dtype.kind in "iu" and array.dtype.itemsize >= 4
    return torch.from_numpy(array.astype(np.int64 if whole else np.float32, order="C"))


def _held_out(y: torch.Tensor) -> torch.Tensor:
    """Returns which samples are held out: one in five of each class, the same ones each time."""
    held = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    order = torch.randperm(len(y), generator=generator("held out"), device=y.device)
    for label in y.unique():
        own = order[y[order] == label]
        held[own[: len(own) // HELD_OUT]] = True
    return held


def _keys(path: Path | str, arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns the names that this file has: of training rows and labels, and of the test set if it may have one."""
    path = Path(path)
    known = (*NAMES, *WHOLE)
    if path.suffix.lower() == ".npy":
        known = tuple(keys for keys in known if path.stem in keys)
        if not known:
            raise DataError(f"{path}: call it X.npy and its labels y.npy, or X_train.npy, y_train.npy and so on")
    keys = next((keys for keys in known if keys[0] in arrays), None)
    if keys is None:
        raise DataError(f"{path}: holds no {known[0][0]}; it has {', '.join(arrays) or 'nothing'}")
    return keys


def _rows(
    path: Path | str, arrays: Mapping[str, np.ndarray], key: str
) -> tuple[torch.Tensor, tuple[int, int, int] | None]:
    """Returns the samples as rows, and the shape (c, h, w) of those that are images."""
    array = read_array(path, arrays, key)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {key} is of type {array.dtype}; store real numbers")
    if array.ndim < 2 or not array.size:
        raise DataError(f"{path}: {key} has shape {array.shape}; store a non-empty (n, p) matrix, or images (n, h, w)")
    if array.ndim == 4 and array.shape[3] in CHANNELS and array.shape[1] not in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    shape = tuple(array.shape[1:]) if array.ndim == 4 else (1, *array.shape[1:]) if array.ndim == 3 else None
    array = array.reshape(len(array), -1)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported
        rows = torch.from_numpy(array.astype(np.float32, order="C"))
    for start, chunk in zip(range(0, len(rows), 4096), rows.split(4096)):
        bad = (~chunk.isfinite()).nonzero()
        if len(bad):
            row, column = start + int(bad[0, 0]), int(bad[0, 1])
            what = (
                f"the entry {array[row, column]:g}, too large for float32 (up to 3.4e38: scale the array),"
                if np.isfinite(array[row, column])
                else "a NaN or infinite entry"
            )
            raise DataError(f"{path}: {key} has {what} in row {row}, column {column}, counted from 0")
    return rows, shape


def _labels(path: Path | str, arrays: Mapping[str, np.ndarray], key: str, X_key: str, n: int) -> np.ndarray:
    """Returns the labels (n,), integers or strings."""
    array = read_array(path, arrays, key)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind not in "biufU":
        raise DataError(f"{path}: {key} is of type {array.dtype}; store labels that are integers or strings")
    if array.ndim == 2 and array.shape[1] > 1:
        array = _from_one_hot(path, key, array)
    if array.ndim not in (1, 2):
        raise DataError(f"{path}: {key} has shape {array.shape}; store one label a row, (n,), or one-hot rows")
    array = array.reshape(-1)
    if n != len(array):
        raise DataError(f"{path}: {X_key} has {n} rows, {key} {len(array)} labels")
    if array.dtype.kind == "U":
        return array
    labels = array.astype(np.int64) if np.isfinite(array).all() else None
    if labels is None or (labels != array).any():
        raise DataError(f"{path}: {key} has labels that are not integers")
    return labels


def _from_one_hot(path: Path | str, key: str, array: np.ndarray) -> np.ndarray:
    """Returns the places of the ones."""
    if array.dtype.kind == "U" or not ((array == 0) | (array == 1)).all() or (array.sum(1) != 1).any():
        raise DataError(
            f"{path}: {key} has shape {array.shape}; store one label a row, (n,), or rows with a single 1 (one-hot)"
        )
    return array.argmax(1)


def _coded_alike(
    path: Path | str, train: tuple[str, np.ndarray], test: tuple[str, np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...] | None]:
    """Returns both lists of labels as integers, and the names of the labels where they are strings.

    Raises DataError where the test set has a label that the training set does not have.
    """
    (key, y), (test_key, y_test) = train, test
    if y.dtype.kind != y_test.dtype.kind and "U" in (y.dtype.kind, y_test.dtype.kind):
        raise DataError(f"{path}: the labels of one of {key} and {test_key} are strings, of the other numbers")
    unseen = y_test[~np.isin(y_test, y)]
    if len(unseen):
        raise DataError(f"{path}: {test_key} has label {unseen[0]}, which {key} never has")
    if y.dtype.kind != "U":
        return torch.from_numpy(y), torch.from_numpy(y_test), None
    names, coded = np.unique(y, return_inverse=True)
    return torch.from_numpy(coded), torch.from_numpy(np.searchsorted(names, y_test)), tuple(names.tolist())
