"""A CSV file is read as a table of numbers with one column of labels."""

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from deq_enn.data.images import DataError, one_line

LABELS = "label", "class", "target", "y"  # names of a column of labels, the first of them that there is


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features (n, p) float32 and the labels (n,), integers or strings.

    The labels are in the column called label, class, target or y (in any case), or else in the last one. A first column
    without a name, which is how pandas writes its index, is left out. A warning says which column was taken for what.

    Raises
    ------
    DataError : the file is no such table; names the line and the column.
    """
    try:
        rows = _rows(path)
        first, second = next(rows, []), next(rows, [])
        if len(first) < 2 or not second:
            raise DataError(f"{path}: a table with two or more columns and rows, separated by commas, is needed")
        header = _header(path, first, second)
        names = [name.strip() for name in first] if header else [str(column) for column in range(len(first))]
        label, features = _columns(names, header)
        labels = _labels(path, names, label, header)
        X = _numbers(path, names, features, header)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file in UTF-8 ({one_line(error)})") from None
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({one_line(error)})") from None
    _say(path, names, label, features, header)
    return X, labels


def _rows(path: Path) -> Iterator[list[str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        separator = _separator(path)
        yield from (row for row in csv.reader(file, delimiter=separator) if row)


def _separator(path: Path) -> str:
    with open(path, encoding="utf-8-sig", newline="") as file:
        line = next((line for line in file if line.strip()), "")
    return max(",;\t", key=line.count)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _with_point(cell: str) -> str:
    """Returns a cell with a point in place of a decimal comma."""
    return cell.replace(",", ".", 1)


def _header(path: Path, first: list[str], second: list[str]) -> bool:
    """Returns whether the first row has names: one that labels have, or text above a number.

    A name such as y that comes again in its column is a label itself, of y and n.
    """
    columns = list(enumerate(zip(first, second)))
    if any(_is_number(_with_point(below)) and not _is_number(_with_point(cell)) for _, (cell, below) in columns):
        return True
    named = [column for column, (cell, _) in columns if cell.strip().lower() in LABELS]
    return any(not _comes_again(path, column, first[column]) for column in named)


def _comes_again(path: Path, column: int, cell: str) -> bool:
    rows = _rows(path)
    next(rows)
    return any(row[column].strip() == cell.strip() for row in rows if len(row) > column)


def _columns(names: list[str], header: bool) -> tuple[int, list[int]]:
    """Returns the column of the labels, and those of the features."""
    lower = [name.lower() for name in names]
    label = next((lower.index(name) for name in LABELS if name in lower), len(names) - 1)
    index = 0 if header and not names[0] and label else None
    return label, [column for column in range(len(names)) if column not in (label, index)]


def _say(path: Path, names: list[str], label: int, features: list[int], header: bool) -> None:
    what = f"column {names[label]!r}" if header else f"column {label + 1} of a table without names"
    left_out = ", and the first, without a name, is left out" if len(features) + 1 < len(names) else ""
    warnings.warn(f"{path}: the labels are {what}, the features are the other {len(features)}{left_out}")


def _labels(path: Path, names: list[str], label: int, header: bool) -> np.ndarray:
    """Returns the cells of the column of labels, as numbers if all of them are; each row must be whole."""
    cells = []
    for number, row in enumerate(_rows(path), 1):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number} has {len(row)} cells, the first row {len(names)}")
        if not row[label].strip():
            raise DataError(f"{path}: row {number} has no label")
        cells.append(row[label].strip())
    labels = np.array(cells[int(header) :])
    try:
        return labels.astype(np.int64)
    except OverflowError:  # numbers of twenty digits, which are names
        return labels
    except ValueError:
        return labels.astype(np.float64) if all(map(_is_number, np.unique(labels))) else labels


def _numbers(path: Path, names: list[str], features: list[int], header: bool) -> np.ndarray:
    """Returns the columns of the features."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if header:
                next(row for row in csv.reader(file, delimiter=_separator(path)) if row)  # it may have several lines
            return np.loadtxt(
                file, np.float32, comments=None, delimiter=_separator(path), quotechar='"', usecols=features, ndmin=2
            )
    except ValueError:
        _refuse(path, names, features, header)


def _refuse(path: Path, names: list[str], features: list[int], header: bool) -> NoReturn:
    """Raises the error of the first cell that is no number."""
    for number, row in enumerate(_rows(path), 1):
        bad = [] if header and number == 1 else [column for column in features if not _is_number(row[column])]
        if bad:
            name = repr(names[bad[0]]) if header else str(bad[0] + 1)
            comma = _is_number(_with_point(row[bad[0]]))
            advice = "write a decimal point" if comma else "fill it in, code it as numbers, or leave the column out"
            raise DataError(f"{path}: row {number} has {row[bad[0]]!r} in column {name}, not a number; {advice}")
    raise DataError(f"{path}: not a table of numbers with one column of labels")
