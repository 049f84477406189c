"""Files are written whole or not at all."""

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from deq_enn.utils.locks import flock

NETWORK_FILES = ".pt", ".json", ".pt2", ".onnx"  # what `networks.export` writes of a network


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yields a file that takes the place of `path` on success and vanishes on any failure; text is UTF-8."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes the file private
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _temporary(path: Path) -> tuple[int, str]:
    """Opens a temporary file beside `path`, with a lock that tells `sweep` that its writer lives."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        flock(handle)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # swept before it was locked


def sweep(*paths: Path) -> None:
    """Removes the temporary files of `atomic_write` that a kill has left beside these files.

    Those of a living process stay.
    """
    for path in paths:
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError):  # it is gone, or not ours
                handle = os.open(stale, os.O_RDWR)
                try:
                    if flock(handle, wait=False):
                        stale.unlink(missing_ok=True)
                finally:
                    os.close(handle)


def check_network_name(path: Path | str) -> None:
    """Raises ValueError for a path that no network could be written to, with its files beside it."""
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(f"the file must end in .pt, got {path}: the network is exported to it, and others beside it")
    for place in map(path.with_suffix, NETWORK_FILES):
        if os.path.isdir(place):
            raise ValueError(f"{place} is a folder, where a file of the network would be: export to another name")


def check_network_file(path: Path | str) -> None:
    """Makes the folder of a network's file, and raises ValueError where `networks.export.export` could not write it.

    It is here, without torch, so that a command may ask before it loads anything.
    """
    check_network_name(path)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be written ({error.strerror}): export to another folder") from None
