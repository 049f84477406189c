"""Ctrl-C, whenever it comes, ends a program with one line. This module is imported first, and imports nothing heavy.

The first lines of every command let Ctrl-C end the process without a word, while not even this is imported.

During imports there is nothing to clean up, and a KeyboardInterrupt raised inside one may surface as some other error.
So Ctrl-C exits immediately then. Later it raises KeyboardInterrupt, so that temporary files are removed; a second
Ctrl-C does not wait for that. Once the files are written it is ignored. Files are whole in each case, as after any
kill.
"""

import os
import signal
import sys
import threading
from typing import NoReturn

RESUME = "the same command with --resume goes on from here"
INTERRUPTED = 130  # exit status that a shell gives for Ctrl-C
_words = ""


class SilentEnd(SystemExit):
    """A process ends without a word, as another has said why."""


def leave(*_: object) -> NoReturn:
    """Ends this process here and now."""
    if os.environ.get("RANK", "0") == "0":  # of several ranks one speaks
        os.write(2, f"{_words}\n".encode())
    os._exit(INTERRUPTED)


def _unwind(*_: object) -> NoReturn:
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


def _unraisable(hook: "sys.UnraisableHookArgs") -> None:
    """Leaves where Ctrl-C comes in a place that cannot raise, such as a destructor: Python would print it and go on."""
    if issubclass(hook.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(hook)


def leave_at_once(words: str = f"main.py: interrupted; {RESUME}") -> None:
    """Lets Ctrl-C exit immediately with these words, unless this process ignores it, as one in the background does."""
    global _words
    _words = words
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, leave)
        sys.unraisablehook = _unraisable


def raise_from_now_on() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt, where it was `leave_at_once` before."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, _unwind)


def raise_again() -> None:
    """Lets Ctrl-C raise KeyboardInterrupt, where the first lines of a command let it end the process."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """Ignores Ctrl-C from here on: the run is complete and its files are written."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
