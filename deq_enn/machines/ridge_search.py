"""The ridge is searched on a grid, from a coarse part of it to a fine one.

As the ridge grows, bias takes over from variance, and the held-out error falls and then rises: the least of the grid is
beside the least of a coarser grid. With few dimensions the error may have several valleys, so that going downhill from
some ridge would not do. Where the grid is searched on few samples first, for what many cost, these go downhill from the
best on the few.
"""

from collections.abc import Callable, Sequence

LONG = 800  # rows of a dense solve from which on it is a long step, before which the deadline is looked at
Row = dict[str, float]  # of a table: "ridge", "mse", and what else is reported of it
Evaluate = Callable[[Sequence[float]], list[Row]]


def search_ridges(ridges: Sequence[float], evaluate: Evaluate, stride: int = 1) -> list[Row]:
    """Returns the rows of the ridges that were tried, in the order of the trials.

    Parameters
    ----------
    ridges : the grid, in increasing order where the stride is not 1.
    evaluate : returns the rows of these ridges; a ridge without a solution has none.
    stride : 1 tries every ridge. 2 tries every second, and the two beside the best of these. 4 tries every fourth, the
        two that are two steps from the best, and the two beside the best so far. Where no coarse ridge has a solution,
        all others are tried.
    """
    table = evaluate(ridges[::stride])
    tried = set(range(0, len(ridges), stride))
    if not table:
        return evaluate([ridge for i, ridge in enumerate(ridges) if i not in tried])
    step = stride // 2
    while step:
        best = ridges.index(least_error(table))
        beside = [i for i in (best - step, best + step) if 0 <= i < len(ridges) and i not in tried]
        table = table + evaluate([ridges[i] for i in beside])
        tried.update(beside)
        step //= 2
    return table


def downhill(ridges: Sequence[float], start: float, evaluate: Evaluate) -> list[Row]:
    """Returns the rows of a ridge and of its neighbours, and of theirs, until the best has both beside it.

    Parameters
    ----------
    ridges : the grid, in increasing order, which holds `start`. evaluate : as `search_ridges` has it.
    """
    table, tried, best = [], set(), ridges.index(start)
    while beside := [i for i in (best - 1, best, best + 1) if 0 <= i < len(ridges) and i not in tried]:
        table = table + evaluate([ridges[i] for i in beside])
        tried.update(beside)
        best = ridges.index(least_error(table)) if table else max(tried) + 1
    return table


def least_error(table: Sequence[Row]) -> float:
    """Returns the ridge of the least squared error, the first of several."""
    return min(table, key=lambda row: row["mse"])["ridge"]
