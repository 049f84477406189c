"""How a command ends: warnings and errors are one line each, and each kind of failure has its exit status."""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator

from deq_enn.utils.arguments import FAILED
from deq_enn.utils.interrupts import INTERRUPTED


@contextlib.contextmanager
def one_line(parser: argparse.ArgumentParser, interrupted: str = "interrupted") -> Iterator[None]:
    """Ends the program with one line where the block fails, and shows its warnings in one line each.

    A ValueError is bad input (status 2). A RuntimeError, an OSError or too little memory is a failure (1), and Ctrl-C
    is said with the words `interrupted` (130).
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"{parser.prog}: warning: {message}", file=sys.stderr)
        try:
            yield
        except ValueError as error:
            parser.error(str(error))
        except (RuntimeError, OSError) as error:
            parser.exit(FAILED, f"{parser.prog}: failed: {error}\n")
        except MemoryError as error:
            parser.exit(FAILED, f"{parser.prog}: failed: out of memory ({error})\n")
        except KeyboardInterrupt:
            parser.exit(INTERRUPTED, f"{parser.prog}: {interrupted}\n")
