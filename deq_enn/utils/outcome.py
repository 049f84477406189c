"""How a command ends: warnings and errors are one line each, and each kind of failure has its exit status.

A reader who has seen enough, as `| head -1`, is no failure: what is printed to nobody is dropped, and the files are
written all the same.
"""

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from deq_enn.utils.arguments import FAILED
from deq_enn.utils.interrupts import INTERRUPTED, SilentEnd


class _Lasting:
    """A standard stream that outlives its reader: from its first failure on it takes what is printed, and drops it."""

    def __init__(self, stream: Any):
        # None where the shell has closed it (>&-)
        self.stream = open(os.devnull, "w", encoding="utf-8") if stream is None else stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Writes the text, or drops it once a write has failed."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, unless it has failed."""
        self._try(self.stream.flush)

    def _try(self, action):
        if self.error is not None:
            return
        try:
            action()
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError, ValueError):  # or the interpreter tries once more when it ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self.stream, name)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Lets prints to a closed pipe or a full disk pass in the block.

    Raises
    ------
    OSError : at the end of a block that succeeds, where something other than a closed pipe has kept lines from stdout.
    """
    before = sys.stdout, sys.stderr
    out, err = (_Lasting(stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            raise OSError(f"the files are written, but not all could be printed ({out.error.strerror})")
    finally:
        out.flush()
        sys.stdout, sys.stderr = (own.stream if old is None else old for own, old in zip((out, err), before))


@contextlib.contextmanager
def one_line(parser: argparse.ArgumentParser, after: str = "") -> Iterator[None]:
    """Ends the program with one line where the block fails, and shows its warnings in one line each.

    A ValueError is bad input (status 2). A RuntimeError, an OSError or too little memory is a failure (1), and so is
    an end that a user's code in the block makes, as by sys.exit(0). Ctrl-C is said as "interrupted", and `after` (130).
    That nobody reads what is printed is no failure.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(
            f"{parser.prog}: warning: {_in_one_line(message)}", file=sys.stderr
        )
        try:
            with lasting_streams():
                yield
        except ValueError as error:
            parser.error(_in_one_line(error))
        except (RuntimeError, OSError) as error:
            parser.exit(FAILED, f"{parser.prog}: failed: {_in_one_line(error)}\n")
        except MemoryError as error:
            parser.exit(FAILED, f"{parser.prog}: failed: out of memory ({_in_one_line(error)})\n")
        except SystemExit as stop:
            if getattr(parser, "ended", False) or isinstance(stop, SilentEnd):
                raise
            said = f"a function of yours ends the program (SystemExit: {stop})"
            parser.exit(FAILED, f"{parser.prog}: failed: {said}; nothing is complete\n")
        except KeyboardInterrupt as error:
            parser.exit(INTERRUPTED, f"{parser.prog}: {error if error.args else 'interrupted'}{after}\n")


def _in_one_line(error: BaseException | str) -> str:
    return " ".join(str(error).split())
