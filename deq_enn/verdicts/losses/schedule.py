"""Which passes are made, and in which order: each time the one that promises to decide most in the time that is left.

Narrow networks with few samples come first, and tell how fast this machine is. Then the candidates that are still
undecided are measured where that would reduce the variance of their losses most. Where no measurement would reduce it
by much and the answer is still open, the time that is left goes to more seeds: they also tell how draws spread, which
the predicted variance takes as known.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.verdicts.losses.measurements import FEWEST, Measurements, TooLong
from deq_enn.verdicts.losses.model import expected_apart, nearest

MOST_SEEDS = 40  # seeds at one width and number of samples, at most
STOP_RATIO = 0.98  # share of today's variance; passes end where the best next one would leave more
FEATURE_BYTES = 1e9  # bytes that the features of a pass may take
FIRST_COUNT = 1000  # samples of the passes that tell how fast this machine is
FIRST_SHARE = 0.05  # share of the time left that each of those may take
NEXT_SHARE = 0.8  # share of the time left that any later pass may take
ALL_SHARE = 0.4  # share of the time left that a pass of all candidates may take at a point that is new

Point = tuple[int, int]  # a width and a number of samples


# names of the candidates to be measured, and whether there is no answer yet
Undecided = Callable[[], tuple[Collection[str], bool]]


def measure_until(measurements: Measurements, width: int, undecided: Undecided) -> Iterator[None]:
    """Makes passes until the deadline, or until `undecided()` names no candidate. Yields after each pass.

    Where there is an answer they end before, as soon as they would tell little more.

    A few passes of all candidates at narrow widths tell how fast this machine is. A narrow width at which a DEQ has no
    equilibrium is given up. Where no DEQ has one at `width` itself, there is no loss to measure, and the passes end.
    """
    widths = sorted({max(width >> k, min(width, 32)) for k in range(6)})
    yield from learn_speed(measurements, widths)
    yield from find_equilibrium(measurements, width, widths)
    yield from measure_best(measurements, width, widths, undecided)
    yield from score_classes(measurements, width, widths)


def learn_speed(measurements: Measurements, widths: list[int]) -> Iterator[None]:
    """Measures all candidates at narrow widths, as long as a pass takes a small share of the time."""
    names = _names(measurements)
    count = min(len(measurements.order), FIRST_COUNT)
    for width in widths[:-1:2] or widths[:]:
        if measurements.rate is None or measurements.seconds(width, count, names) < FIRST_SHARE * _left(measurements):
            _measure(measurements, widths, width, count, names)
            yield


def find_equilibrium(measurements: Measurements, width: int, widths: list[int]) -> Iterator[None]:
    """Measures at `width` itself while no narrower DEQ had an equilibrium, until one has."""
    count = min(len(measurements.order), FEWEST)
    while measurements.rate is None and measurements.settles(width):
        _measure(measurements, widths, width, count, _names(measurements))
        yield
        if measurements.clock() > measurements.deadline:
            break


def measure_best(measurements: Measurements, width: int, widths: list[int], undecided: Undecided) -> Iterator[None]:
    """Measures only the candidates that are still undecided, each time at the point that promises most.

    For every affordable (width, sample count) we predict the variance of their losses if all remaining time went there,
    and take the smallest. In practice that means more samples, then more seeds, or a narrower network with more
    samples.
    """
    while measurements.rate is not None and measurements.settles(width):
        (names, is_open), left = undecided(), _left(measurements)
        best = _next_point(measurements, width, widths, names, left, is_open) if names else None
        if best is None:
            break
        everything = _names(measurements)
        if best not in measurements.passes and measurements.seconds(*best, everything) < ALL_SHARE * left:
            names = everything  # for one seed, so that something near this width is known of every candidate
        _measure(measurements, widths, *best, names)
        yield


def score_classes(measurements: Measurements, width: int, widths: list[int]) -> Iterator[None]:
    """Measures at `width` itself, where classes are unequal, the candidates that were not measured there.

    Accuracy may be decided by narrow networks, and say nothing of how well rare classes are told apart.
    """
    if measurements.rate is None or not any(measurements.scores.values()) or not measurements.settles(width):
        return
    place = width, len(measurements.order)
    if missing := [name for name in _names(measurements) if name not in measurements.passes.get(place, {})]:
        affordable = measurements.seconds(*place, missing) < NEXT_SHARE * _left(measurements)
        if affordable and measurements.feature_bytes(*place) <= FEATURE_BYTES:
            _measure(measurements, widths, *place, missing)
            yield


def _names(measurements):
    return [network.name for network in measurements.networks]


def _left(measurements):
    return measurements.deadline - measurements.clock()


def _next_point(measurements, width, widths, names, left, is_open) -> Point | None:
    """Returns the point at which the time left would reduce the variances most; None where none would be worth it.

    While the answer is open another seed at the place that is asked for is worth it in any case.
    """
    n = len(measurements.order)
    counts = sorted({max(n >> k, min(n, FEWEST)) for k in range(10)})
    options = [
        (w, c)
        for w in widths
        for c in counts
        if measurements.feature_bytes(w, c) <= FEATURE_BYTES and measurements.seconds(w, c, names) < NEXT_SHARE * left
    ]
    if not options or measurements.most_seeds() >= MOST_SEEDS:
        return None
    variances = {point: _variance(measurements, names, width, point, left) for point in options}
    best = min(options, key=lambda point: variances[point])
    today = sum(measurements.posterior(name, width, measurements.of_draw).variance for name in names)
    if variances[best] <= STOP_RATIO * today:
        return best
    return (width, n) if is_open and (width, n) in options else None


def _variance(measurements, names, width, point, left) -> float:
    """Returns the sum of the variances of these losses at `width`, if all time left were spent at this point."""
    w, count = point
    more, total = max(int(left / measurements.seconds(w, count, names)), 1), 0.0
    for name in names:
        points, posterior = measurements.points(name), measurements.posterior(name, width, measurements.of_draw)
        if all(math.isinf(p.width) for p in points):  # a pass that was cut short has left it out
            total += posterior.variance
            continue
        elsewhere = [p for p in points if p.own or (p.width, p.count) != point]
        seeds = more + sum(p.seeds for p in points if (p.width, p.count) == point and not p.own)
        apart = expected_apart(points, w, count, measurements.constants)
        closest = nearest(points, w, count, measurements.constants)
        supposed = [closest.supposed(w, count, min(seeds, MOST_SEEDS), apart)]
        if measurements.own and w == measurements.own[0] and not any(p.own and p.count == count for p in points):
            supposed.append(replace(closest.supposed(w, count, 1, apart), own=True))
        total += posterior.variance_given([*elsewhere, *supposed])
    return total


def _measure(measurements, widths, width, count, names):
    """Makes a pass. Where the DEQ has no equilibrium, its width leaves `widths`, unless it is the one asked for.

    A pass that turns out to need float64 and would then take too long is left; the next is chosen by what that takes.
    """
    try:
        with contextlib.suppress(TooLong):
            measurements.measure(width, count, names)
    except ConvergenceError:
        if width != widths[-1]:
            widths.remove(width)
