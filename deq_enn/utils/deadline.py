"""Long computations end in time: their loops look at the deadline that whoever called them has set, if anybody has."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_current: ContextVar[tuple[Callable[[], float], float] | None] = ContextVar("deadline", default=None)


class OutOfTime(RuntimeError):
    """The deadline has passed; what was under way is given up."""


@contextlib.contextmanager
def deadline(clock: Callable[[], float], end: float) -> Iterator[None]:
    """Lets `check` raise OutOfTime within the block once `clock()` is beyond `end`."""
    before = _current.set((clock, end))
    try:
        yield
    finally:
        _current.reset(before)


def check() -> None:
    """Raises OutOfTime where a deadline is set and has passed. It takes a microsecond."""
    current = _current.get()
    if current is not None and current[0]() > current[1]:
        raise OutOfTime("the time is up")
