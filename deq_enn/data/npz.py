"""A user's own data come in `.npz` archives, which are read without unpickling anything."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from deq_enn.data.images import Arrays, DataError, one_line


def read_npz(path: Path | str | None) -> Arrays:
    """Reads X_train, y_train, X_test and y_test.

    Raises
    ------
    DataError : there is no path, or the file is damaged, or holds something else than matching rows and labels.
    """
    if path is None:
        raise DataError("the dataset npz needs --dataset_path: a file with X_train, y_train, X_test and y_test")
    with _archive(path) as archive:
        _require(path, archive, "X_train", "y_train", "X_test", "y_test")
        X, y, X_test, y_test = *_part(path, archive, "train"), *_part(path, archive, "test")
    if X.shape[1] != X_test.shape[1]:
        raise DataError(f"{path}: X_train has {X.shape[1]} columns, X_test {X_test.shape[1]}")
    unseen = y_test[~torch.isin(y_test, y)]
    if len(unseen):
        raise DataError(f"{path}: y_test has label {unseen[0]}, which y_train never has")
    return X, y, X_test, y_test


def read_npz_training(path: Path | str | None) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Reads X_train, and y_train or None, from a file without labels or without a test set.

    Returns None for a file that `read_npz` reads.
    """
    if path is None:
        return None
    with _archive(path) as archive:
        _require(path, archive, "X_train")
        if "y_train" not in archive:
            return _rows(path, archive, "X_train"), None
        return None if {"X_test", "y_test"} <= set(archive.files) else _part(path, archive, "train")


@contextlib.contextmanager
def _archive(path: Path | str) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens the file; what is wrong with it while it is read becomes a DataError."""
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


def _require(path: Path | str, archive: np.lib.npyio.NpzFile, *keys: str) -> None:
    missing = [key for key in keys if key not in archive]
    if missing:
        raise DataError(f"{path}: holds no {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}")


def _part(path: Path | str, archive: np.lib.npyio.NpzFile, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    X, y = _rows(path, archive, f"X_{part}"), _labels(path, archive, f"y_{part}")
    if len(X) != len(y):
        raise DataError(f"{path}: X_{part} has {len(X)} rows, y_{part} {len(y)} labels")
    return X, y


def _array(path: Path | str, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
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


def _rows(path: Path | str, archive: np.lib.npyio.NpzFile, key: str) -> torch.Tensor:
    array = _array(path, archive, key)
    if array.ndim != 2 or not array.size:
        raise DataError(f"{path}: {key} has shape {array.shape}; store a non-empty (n, p) matrix")
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
            raise DataError(f"{path}: {key} has {what} in row {row}, column {column}")
    return rows


def _labels(path: Path | str, archive: np.lib.npyio.NpzFile, key: str) -> torch.Tensor:
    array = _array(path, archive, key)
    if array.ndim != 1:
        raise DataError(f"{path}: {key} has shape {array.shape}; store one label a row, (n,)")
    labels = array.astype(np.int64) if np.isfinite(array).all() else None
    if labels is None or (labels != array).any():
        raise DataError(f"{path}: {key} has labels that are not integers")
    return torch.from_numpy(labels)
