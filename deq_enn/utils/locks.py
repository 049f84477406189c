"""One process at a time works in a folder: a lock that the system gives back when its holder ends, however it ends.

It is a record lock (`fcntl.lockf`), which network file systems know too. Where there is none, as on Windows, nothing is
locked.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

WHOLE = 0, 0  # start and length of the record that stands for the whole folder
POSITIONS = 2**62  # bytes at which the records of parts may lie: a record needs no content
TRIES, PAUSE = 4, 0.05  # attempts, and seconds between them: one that ends holds the whole for a moment


@contextlib.contextmanager
def locked(
    folder: Path | str, flag: str, parts: Iterable[str] | None = None, advice: str | None = None
) -> Iterator[None]:
    """Holds a folder for the block, or these parts of it alone, so that other processes share it with other parts.

    A folder that is not there is made; if it is empty in the end, it is removed again. `flag` is its flag on the
    command line, without the dashes: folders of different flags may be the same. `advice` is what whoever is refused
    may do but wait, by default to pass another folder.

    Raises
    ------
    ValueError : another process holds it.
    """
    if fcntl is None:
        yield
        return
    folder = Path(folder)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{flag}.lock"
    records = [WHOLE] if parts is None else [(_position(part), 1) for part in parts]
    try:
        handle = _open_locked(path, f", or pass another --{flag}" if advice is None else advice, records)
        try:
            yield
        finally:
            if _try(handle, WHOLE):  # or another process holds a part of it
                path.unlink(missing_ok=True)
            os.close(handle)
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for made in new:
                made.rmdir()


def flock(handle: int, wait: bool = True) -> bool:
    """Locks an open file as long as it is open; tells whether it could be had, as it always can without locks."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows none
        return True
    return True


def _position(part: str) -> int:
    import hashlib

    return int(hashlib.sha256(part.encode()).hexdigest(), 16) % POSITIONS


def _open_locked(path: Path, advice: str, records: list) -> int:
    """Opens the file with its locks; anew, if whoever held it before has removed it in the meantime."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not all(_try(handle, record) for record in records):
                holder = os.pread(handle, 200, 0).decode() or "another process"
                raise ValueError(f"{holder} is at work in {path.parent}: wait until it ends{advice}")
            if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
                if records == [WHOLE]:
                    import socket

                    with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
                        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _try(handle: int, record: tuple[int, int]) -> bool:
    """Tells whether the lock could be had; a file system that knows none gives every one."""
    start, length = record
    for attempt in range(TRIES):
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            return True
        except (BlockingIOError, PermissionError):
            time.sleep(PAUSE if attempt + 1 < TRIES else 0)
        except OSError:
            return True
    return False
