"""A user's files are read as arrays with names: an `.npz` archive, `.npy` files, CSV files. Nothing is unpickled."""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from deq_enn.data.csv_files import read_csv
from deq_enn.data.images import DataError, one_line

KINDS = "an .npz file, an .npy file with its labels beside it, a .csv file, or a folder of .npy files"


class _Folder(Mapping[str, np.ndarray]):
    """The `.npy` files of a folder by their names, each read when it is asked for."""

    def __init__(self, folder: Path):
        self.files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".npy"}

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.files[name], allow_pickle=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@contextlib.contextmanager
def open_arrays(path: Path | str) -> Iterator[Mapping[str, np.ndarray]]:
    """Opens what lies at the path; what is wrong with it while it is read becomes a DataError."""
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give {KINDS}")
        if path.is_dir():
            yield _folder(path)
        elif path.suffix.lower() == ".csv":
            yield dict(zip(("X", "y"), read_csv(path)))
        elif path.suffix.lower() == ".npy":
            yield _Folder(path.parent)
        else:
            with open(path, "rb") as file:
                if not zipfile.is_zipfile(file):
                    raise DataError(f"{path}: not an .npz file; write one with numpy.savez, or give {KINDS}")
            with np.load(path, allow_pickle=False) as archive:
                yield archive
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: damaged ({error}); write it again with numpy.savez") from None


def _folder(path: Path) -> Mapping[str, np.ndarray]:
    tables = [path / "train.csv", path / "test.csv"]
    if all(table.is_file() for table in tables):
        (X, y), (X_test, y_test) = map(read_csv, tables)
        return {"X_train": X, "y_train": y, "X_test": X_test, "y_test": y_test}
    arrays = _Folder(path)
    if not arrays:
        raise DataError(f"{path}: a folder without X_train.npy or train.csv and test.csv; give {KINDS}")
    return arrays


def read_array(path: Path | str, arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    """Returns the array of that name; DataError for a member that is damaged, pickled, or no array."""
    try:
        array = arrays[key]
    except OSError:
        raise
    except Exception as error:  # a damaged, encrypted or foreign member raises many kinds
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path}: {key} is a pickled object, which is not read; store an array of numbers, or for labels of "
                "strings (array.astype(str))"
            ) from None
        raise DataError(
            f"{path}: {key} cannot be read ({one_line(error)}); write the file again with numpy.savez"
        ) from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key} is not an array; write the file with numpy.savez")
    return array
