"""Ctrl-C, whenever it comes, ends a program with one line. Nothing else is imported here: it comes before everything.

While modules are imported there is nothing to put in order, and an exception out of the middle of one becomes anything:
the process is left at once. Later a KeyboardInterrupt is raised, so that temporary files go; a second Ctrl-C does not
wait for that. At the end it is too late to interrupt. Files are whole in each case, as after any kill.
"""

import os
import signal
import sys

RESUME = "the same command with --resume goes on from here"
INTERRUPTED = 130  # exit status, as of a shell
_words = ""


def leave(*_):
    """Ends this process here and now."""
    if os.environ.get("RANK", "0") == "0":  # one voice
        os.write(2, f"{_words}\n".encode())
    os._exit(INTERRUPTED)


def _unwind(*_):
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


def _unraisable(found):
    """An exception in a place that cannot raise one, such as a destructor: Python would print it and go on."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        leave()
    sys.__unraisablehook__(found)


def leave_at_once(words=f"main.py: interrupted; {RESUME}"):
    """From now on with these words, where this process is to be interrupted at all (a background shell's is not)."""
    global _words
    _words = words
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
        sys.unraisablehook = _unraisable


def raise_from_now_on():
    """KeyboardInterrupt, where it was `leave_at_once`."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, _unwind)


def ignore():
    """Everything is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
