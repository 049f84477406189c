"""Small real measurements of a DEQ and its candidates: ridge readouts of features, at several widths, within a time.

One pass draws weights at one width from one seed, with the same first layer for the DEQ and all candidates. It takes
the features of the first samples, and predicts each sample by the readout of the others. The time of earlier passes
tells how long the next will take.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from itertools import count as integers, islice

import numpy as np
import torch

from deq_enn.machines.leave_one_out import Targets, from_features
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError, Picard
from deq_enn.utils.deadline import check
from deq_enn.verdicts.candidates import Network, RandomDEQ
from deq_enn.verdicts.loss_model import CONSTANTS, Discrepancy, Measured, Posterior, expected_apart, measured, nearest

BATCH = 512  # samples whose features are computed at once, so that they stay in the cache
SOLVER = Picard(1e-4, max_steps=1000)  # its error is far below the spread of the equilibrium over draws of the weights
MOST_SEEDS = 40  # seeds at one width and number of samples, at most
FEWEST = 500  # samples of a pass, at least, where there are so many: the ridge is chosen on a fifth of them
DRAWS = 5  # draws of the weights at one width, all without an equilibrium, after which we give up that width
STOP_RATIO = 0.98  # stop when even the best next measurement would leave more than 98% of today's variance
FEATURE_BYTES = 1e9  # bytes that the features of a pass may take
FIRST_COUNT = 1000  # samples of the passes that tell how fast this machine is
FIRST_SHARE = 0.05  # share of the time left that each of those may take
NEXT_SHARE = 0.8  # share of the time left that any later pass may take
ALL_SHARE = 0.4  # share of the time left that a pass of all candidates may take at a point that is new
FIRST_SEED = 10_000  # seed of the weights from which on we draw: users train smaller ones

Point = tuple[int, int]  # a width and a number of samples


class Measurements:
    """The passes so far, and the means to make more.

    Parameters
    ----------
    deq : its activation, sigma_a^2 and tau_0 count.
    networks : the candidates.
    X, y, order, copies : samples (n, p) float32, their labels in 0 .. classes - 1, the order in which they are taken,
        and which are copies of one another (`machines.copies.copies`).
    clock : measures the times, in seconds.
    device : where features are computed and readouts solved.

    Attributes
    ----------
    deadline : the time after which no further network is begun. One that is under way ends by `utils.deadline`.
    passes : {(width, count): {name: [for each seed (count,) int8, 1 where only the DEQ is right, -1 where only the
        candidate is]}}. A candidate that a pass has left out has fewer seeds there. The width of the exact kernels is
        math.inf.
    accuracy : {(width, count): [accuracy of the DEQ, for each seed]}.
    drawn, failed : {width: the seeds of the DEQs drawn}, and those of them without an equilibrium.
    """

    def __init__(
        self,
        deq: RandomDEQ,
        networks: list[Network],
        X: torch.Tensor,
        y: torch.Tensor,
        order: torch.Tensor,
        copies: torch.Tensor,
        classes: int,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        constants: Discrepancy = CONSTANTS,
        device: torch.device | str = "cpu",
    ):
        self.device = device
        self.deq, self.networks, self.X, self.y, self.classes = deq, networks, X, y[order], classes
        self.order, self.copies = order, copies[order]
        self.first_seed, self.clock, self.constants = FIRST_SEED * (1 + seed), clock, constants
        self.passes: dict[tuple[float, int], dict[str, list[np.ndarray]]] = {}
        self.accuracy: dict[tuple[float, int], list[float]] = {}
        self.drawn: defaultdict[int, set[int]] = defaultdict(set)
        self.failed: defaultdict[int, set[int]] = defaultdict(set)
        self.iterations = 15.0  # of the last equilibrium
        self.rate: float | None = None  # seconds a multiplication, by the last pass
        self.deadline = math.inf

    # ------------------------------------------------------------------------------------------------------------
    # a pass

    def record(self, width: float, right: dict[str, torch.Tensor], deq_right: torch.Tensor) -> None:
        """Keeps which samples each network has right, in one pass."""
        place = width, len(deq_right)
        point = self.passes.setdefault(place, {})
        for name, own in right.items():
            point.setdefault(name, []).append((deq_right.to(torch.int8) - own.to(torch.int8)).cpu().numpy())
        self.accuracy.setdefault(place, []).append(deq_right.double().mean().item())

    def measure(self, width: int, count: int, names: Collection[str] | None = None) -> None:
        """Measures one more seed at this width with the first `count` samples, of these candidates (default: all).

        A pass that takes much longer than expected is cut down to fewer samples, and then to some of the candidates.
        Raises ConvergenceError where the DEQ of that seed has no equilibrium; the next pass takes another seed.
        """
        networks = [network for network in self.networks if names is None or network.name in names]
        start = self.clock()
        seed = self._next_seed(width, count)
        p = self.X.shape[1]
        deq = DEQ(self.deq.activation, p, width, self.classes, self.deq.sigma_a2, self.deq.tau0, seed, SOLVER)
        self.drawn[width].add(seed)
        try:
            F = self._features(deq, count, (start + self.deadline) / 2)
        except ConvergenceError:
            self.failed[width].add(seed)
            raise
        self.iterations, count = float(deq.fixed_point.iterations), len(F)
        targets = Targets(self.y[:count], self.classes, self.copies[:count], self.device)
        deq_right, right = from_features(F, targets).right, {}
        for network in networks:
            if right and self.clock() > self.deadline:
                break
            F = self._features(network.build(p, width, self.classes, seed), count)
            right[network.name] = from_features(F, targets).right
        self.record(width, right, deq_right)
        self.rate = (self.clock() - start) / self.work(width, count, right)

    def _next_seed(self, width, count) -> int:
        """The first seed that has not been measured here, among those whose DEQ is not known to fail."""
        seeds = (seed for seed in integers(self.first_seed) if seed not in self.failed[width])
        return next(islice(seeds, len(self.accuracy.get((width, count), ())), None))

    @torch.no_grad()
    def _features(self, model, count, deadline=math.inf):
        """The features of the first `count` samples; of fewer, but at least FEWEST, once the deadline has passed."""
        F, model = torch.empty(count, model.readout.in_features, device=self.device), model.to(self.device)
        for start in range(0, count, BATCH):
            if start >= FEWEST and self.clock() > deadline:
                return F[:start]
            if start:
                check()
            rows = slice(start, min(start + BATCH, count))
            F[rows] = model.features(self.X[self.order[rows]].to(self.device))
        return F

    # ------------------------------------------------------------------------------------------------------------
    # the time of a pass, and its equilibria

    def work(self, width: int, count: int, names: Collection[str]) -> float:
        """Returns the multiplications of a pass; one in float64 counts as two."""
        p, n, m = self.X.shape[1], count, width
        total = n * m * (p + self.iterations * m)
        total += sum(n * m * (p + (network.depth - 1) * m) for network in self.networks if network.name in names)
        solve = n * n * m + 3 * n**3 if n <= m else 1.5 * n * m * m + 2 * m**3
        return total + 2 * solve * (1 + len(names))

    def seconds(self, width: int, count: int, names: Collection[str]) -> float:
        """Predicts the seconds of a pass, from the speed of the last one."""
        assert self.rate is not None, "no pass has been timed yet"
        return self.rate * self.work(width, count, names)

    def equilibria(self, width: int) -> tuple[int, int]:
        """Returns how many DEQs of this width were drawn, and how many of them have no equilibrium."""
        return len(self.drawn[width]), len(self.failed[width])

    def settles(self, width: int) -> bool:
        """Returns whether some DEQ of this width has an equilibrium, or too few were drawn to tell."""
        drawn, failed = self.equilibria(width)
        return failed < max(drawn, DRAWS)

    def most_seeds(self) -> int:
        """Returns the largest number of seeds at any width and number of samples."""
        return max(map(len, self.accuracy.values()))

    # ------------------------------------------------------------------------------------------------------------
    # the losses

    def points(self, name: str) -> list[Measured]:
        """Returns the measurements of a candidate, as `loss_model.predict` takes them."""
        return [
            measured(width, np.stack(differences[name]), self.copies[:count].numpy(), self.constants)
            for (width, count), differences in self.passes.items()
            if name in differences
        ]

    def posterior(self, name: str, width: int) -> Posterior:
        """Returns the distribution of a candidate's loss at this width, with all samples."""
        return Posterior(self.points(name), width, len(self.order), self.constants)


# ---------------------------------------------------------------------------------------------------------------
# which passes are made


def measure_until(measurements: Measurements, width: int, undecided: Callable[[], Collection[str]]) -> Iterator[None]:
    """Makes passes until the deadline, or until `undecided()`, names of candidates, is empty. Yields after each pass.

    A few passes of all candidates at narrow widths tell how fast this machine is. A narrow width at which a DEQ has no
    equilibrium is given up. Where no DEQ has one at `width` itself, there is no loss to measure, and the passes end.
    """
    widths = sorted({max(width >> k, min(width, 32)) for k in range(6)})
    yield from learn_speed(measurements, widths)
    yield from find_equilibrium(measurements, width, widths)
    yield from measure_best(measurements, width, widths, undecided)


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


def measure_best(
    measurements: Measurements, width: int, widths: list[int], undecided: Callable[[], Collection[str]]
) -> Iterator[None]:
    """Measures only the candidates that are still undecided, each time at the point that promises most.

    For every affordable (width, sample count) we predict the variance of their losses if all remaining time went there,
    and take the smallest. In practice that means more samples, then more seeds, or a narrower network with more
    samples.
    """
    while measurements.rate is not None and measurements.settles(width) and (names := undecided()):
        left = _left(measurements)
        best = _next_point(measurements, width, widths, names, left)
        if best is None:
            break
        everything = _names(measurements)
        if best not in measurements.passes and measurements.seconds(*best, everything) < ALL_SHARE * left:
            names = everything  # for one seed, so that something near this width is known of every candidate
        _measure(measurements, widths, *best, names)
        yield


def _names(measurements):
    return [network.name for network in measurements.networks]


def _left(measurements):
    return measurements.deadline - measurements.clock()


def _next_point(measurements, width, widths, names, left) -> Point | None:
    """The point at which the time left would reduce the variances most; None where none would be worth it."""
    n = len(measurements.order)
    counts = sorted({max(n >> k, min(n, FEWEST)) for k in range(10)})
    options = [
        (w, c)
        for w in widths
        for c in counts
        if 4 * c * w <= FEATURE_BYTES and measurements.seconds(w, c, names) < NEXT_SHARE * left
    ]
    if not options or measurements.most_seeds() >= MOST_SEEDS:
        return None
    variances = {point: _variance(measurements, names, width, point, left) for point in options}
    best = min(options, key=lambda point: variances[point])
    today = sum(measurements.posterior(name, width).variance for name in names)
    return None if variances[best] > STOP_RATIO * today else best


def _variance(measurements, names, width, point, left) -> float:
    """The sum of the variances of these candidates' losses at `width`, if all time left were spent at this point."""
    w, count = point
    more, total = max(int(left / measurements.seconds(w, count, names)), 1), 0.0
    for name in names:
        points = measurements.points(name)
        if all(math.isinf(p.width) for p in points):  # a pass that was cut short has left it out
            total += measurements.posterior(name, width).variance
            continue
        elsewhere = [p for p in points if (p.width, p.count) != point]
        seeds = more + sum(p.seeds for p in points if (p.width, p.count) == point)
        apart = expected_apart(points, w, count, measurements.constants)
        closest = nearest(points, w, count, measurements.constants)
        supposed = closest.supposed(w, count, min(seeds, MOST_SEEDS), apart)
        total += measurements.posterior(name, width).variance_given([*elsewhere, supposed])
    return total


def _measure(measurements, widths, width, count, names):
    """Makes a pass. Where the DEQ has no equilibrium, its width leaves `widths`, unless it is the one asked for."""
    try:
        measurements.measure(width, count, names)
    except ConvergenceError:
        if width != widths[-1]:
            widths.remove(width)
