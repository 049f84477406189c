"""Small real measurements of a DEQ and its candidates: ridge readouts of features, at several widths, within a time.

One pass draws the weights of one seed, of all networks with common first-layer weights, at a width, takes the features
of the first so many samples, and predicts each sample by the others. What a pass will take is known from those before.
"""

import math
import time
from collections import defaultdict
from itertools import count as integers, islice

import numpy as np
import torch

from deq_enn.machines.leave_one_out import Targets, from_features
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError, Picard
from deq_enn.verdicts.candidates import Network
from deq_enn.verdicts.loss_model import CONSTANTS, Discrepancy, Measured, Posterior, expected_apart, measured, nearest

BATCH = 512  # of samples: their features stay in cache
SOLVER = Picard(1e-4, max_steps=1000)  # far below what the weights' randomness does to the equilibrium
MOST_SEEDS = 40  # at one width and number of samples
FEWEST = 500  # samples of a pass, where there are so many: the ridge is chosen on a fifth
DRAWS = 5  # of weights, all without an equilibrium, after which there is none at a width
WORTH = 0.98  # of the variance, which what is measured next has to promise to bring it below
FEATURES = 1e9  # bytes that the features of a pass may take
_OWN_SEEDS = 10_000  # the weights are not those of seeds that a user will train


class Ladder:
    """Passes so far, and the means to make more.

    Parameters
    ----------
    deq : its activation, sigma_a^2 and tau_0 count.
    networks : the candidates.
    X (n, p) float32, y (n,) in 0 .. classes - 1, copies (n,) of `leave_one_out.copies`, taken in the order `order`.
    clock : that times are measured by.

    Attributes
    ----------
    deadline : time after which no network more is begun.
    passes : {(width, count): {name: [differences of being right (count,) int8, one a seed]}}. A candidate that a pass
        has left out has fewer seeds there.
    drawn, without : {width: seeds of the DEQs drawn}, and of those of them that have no equilibrium.
    """

    def __init__(
        self,
        deq: DEQ,
        networks: list[Network],
        X: torch.Tensor,
        y: torch.Tensor,
        order: torch.Tensor,
        copies: torch.Tensor,
        classes: int,
        seed: int = 0,
        clock=time.perf_counter,
        constants: Discrepancy = CONSTANTS,
    ):
        self.deq, self.networks, self.X, self.y, self.classes = deq, networks, X, y[order], classes
        self.order, self.copies = order, copies[order]
        self.first_seed, self.clock, self.constants = _OWN_SEEDS * (1 + seed), clock, constants
        self.passes: dict[tuple, dict[str, list]] = {}
        self.accuracy: dict[tuple, list] = {}  # of the DEQ
        self.drawn: defaultdict[int, set] = defaultdict(set)
        self.without: defaultdict[int, set] = defaultdict(set)
        self.iterations, self.rate = 15.0, None  # of the equilibrium; seconds a multiplication
        self.deadline = math.inf

    # ------------------------------------------------------------------------------------------------------------
    # a pass

    def record(self, width: float, right: dict[str, torch.Tensor], deq_right: torch.Tensor) -> None:
        """Keeps which samples each network has right, in one pass."""
        point = self.passes.setdefault((width, len(deq_right)), {})
        for name, one in right.items():
            point.setdefault(name, []).append((deq_right.to(torch.int8) - one.to(torch.int8)).numpy())
        self.accuracy.setdefault((width, len(deq_right)), []).append(deq_right.double().mean().item())

    def measure(self, width: int, count: int, names=None) -> None:
        """One more seed at this width with the first `count` samples, of these candidates (default: all).

        Where it takes far longer than the pass before told, fewer samples, or some of the candidates, have to do.
        ConvergenceError where the DEQ of that seed has no equilibrium; the next pass takes another.
        """
        networks = [network for network in self.networks if names is None or network.name in names]
        start = self.clock()
        seeds = (seed for seed in integers(self.first_seed) if seed not in self.without[width])
        seed = next(islice(seeds, len(self.accuracy.get((width, count), ())), None))
        p = self.X.shape[1]
        deq = DEQ(self.deq.activation, p, width, self.classes, self.deq.sigma_a2, self.deq.tau0, seed, SOLVER)
        self.drawn[width].add(seed)
        try:
            F = self._features(deq, count, (start + self.deadline) / 2)
        except ConvergenceError:
            self.without[width].add(seed)
            raise
        self.iterations, count = float(deq.fixed_point.iterations), len(F)
        targets = Targets(self.y[:count], self.classes, self.copies[:count])
        deq_right, right = from_features(F, targets).right, {}
        for network in networks:
            if right and self.clock() > self.deadline:
                break
            F = self._features(network.build(p, width, self.classes, seed), count)
            right[network.name] = from_features(F, targets).right
        self.record(width, right, deq_right)
        self.rate = (self.clock() - start) / self.work(width, count, right)

    @torch.no_grad()
    def _features(self, model, count, deadline=math.inf):
        """Of the first `count` samples, or of fewer, but FEWEST at least, where the deadline has come."""
        out = torch.empty(count, model.readout.in_features)
        for start in range(0, count, BATCH):
            if start >= FEWEST and self.clock() > deadline:
                return out[:start]
            rows = slice(start, min(start + BATCH, count))
            out[rows] = model.features(self.X[self.order[rows]])
        return out

    # ------------------------------------------------------------------------------------------------------------
    # what a pass takes

    def work(self, width: int, count: int, names) -> float:
        """Multiplications of a pass, those in float64 twice."""
        p, n, m = self.X.shape[1], count, width
        total = n * m * (p + self.iterations * m)
        total += sum(n * m * (p + (network.depth - 1) * m) for network in self.networks if network.name in names)
        solve = n * n * m + 3 * n**3 if n <= m else 1.5 * n * m * m + 2 * m**3
        return total + 2 * solve * (1 + len(names))

    def seconds(self, width: int, count: int, names) -> float:
        """That a pass may take, by the last one."""
        return self.rate * self.work(width, count, names)

    def equilibria(self, width: int) -> tuple[int, int]:
        """How many DEQs of this width were drawn, and how many of them have no equilibrium."""
        return len(self.drawn[width]), len(self.without[width])

    def settles(self, width: int) -> bool:
        """Whether some DEQ of this width has an equilibrium, or too few were drawn to tell."""
        draws, without = self.equilibria(width)
        return without < max(draws, DRAWS)

    def most_seeds(self) -> int:
        return max(map(len, self.accuracy.values()))

    # ------------------------------------------------------------------------------------------------------------

    def points(self, name: str) -> list[Measured]:
        """What has been measured of a candidate, for `predicted_loss.predict`."""
        return [
            measured(width, np.stack(networks[name]), self.copies[:count].numpy(), self.constants)
            for (width, count), networks in self.passes.items()
            if name in networks
        ]

    def posterior(self, name: str, width: int) -> Posterior:
        """The loss of a candidate at this width, with all samples."""
        return Posterior(self.points(name), width, len(self.order), self.constants)


def climb(ladder: Ladder, width: int, open_questions):
    """Passes until the deadline, or until `open_questions()`, names of candidates, is empty. Yields after each.

    The first few, at small widths, learn what a pass takes. Then each is of the open candidates, and the one of which,
    repeated for the rest of the time, would leave the least variance of their losses at `width` with all samples: as
    many samples there as can be afforded, more seeds, or a narrower width with more samples. Narrower widths at which a
    DEQ has no equilibrium are left out; where none has one at `width`, there is no loss to be measured.
    """
    n, everything = len(ladder.order), [network.name for network in ladder.networks]
    widths = sorted({max(width >> k, min(width, 32)) for k in range(6)})
    counts = sorted({max(n >> k, min(n, FEWEST)) for k in range(10)})
    for rung in widths[:-1:2] or widths[:]:
        count = min(n, 1000)
        if ladder.rate is None or ladder.seconds(rung, count, everything) < 0.05 * (ladder.deadline - ladder.clock()):
            _measure(ladder, widths, rung, count, everything)
            yield
    while ladder.rate is None and ladder.settles(width):  # no equilibrium at any narrow width
        _measure(ladder, widths, width, min(n, FEWEST), everything)
        yield
        if ladder.clock() > ladder.deadline:
            break
    while ladder.rate is not None and ladder.settles(width) and (names := open_questions()):
        left = ladder.deadline - ladder.clock()
        options = [
            (w, c) for w in widths for c in counts if 4 * c * w <= FEATURES and ladder.seconds(w, c, names) < 0.8 * left
        ]
        if not options or ladder.most_seeds() >= MOST_SEEDS:
            break
        variances = {point: _variance(ladder, names, width, *point, left) for point in options}
        best = min(options, key=variances.get)
        if variances[best] > WORTH * sum(ladder.posterior(name, width).variance for name in names):
            break
        if best not in ladder.passes and ladder.seconds(*best, everything) < 0.4 * left:
            names = everything  # one seed, so that of no candidate nothing is known near what is asked
        _measure(ladder, widths, *best, names)
        yield


def _measure(ladder, widths, rung, count, names):
    """A pass, if the DEQ that is drawn has an equilibrium; if not, a width narrower than that asked for is left out."""
    try:
        ladder.measure(rung, count, names)
    except ConvergenceError:
        if rung != widths[-1]:
            widths.remove(rung)


def _variance(ladder, names, width, rung, count, left):
    """Mean variance of the losses of these candidates, if the time left were spent at this rung and count."""
    more, total = max(int(left / ladder.seconds(rung, count, names)), 1), 0.0
    for name in names:
        points = ladder.points(name)
        known = [p for p in points if (p.width, p.count) != (rung, count)]
        seeds = more + sum(p.seeds for p in points if (p.width, p.count) == (rung, count))
        apart = expected_apart(points, rung, count, ladder.constants)
        supposed = nearest(points, rung, count, ladder.constants).supposed(rung, count, min(seeds, MOST_SEEDS), apart)
        total += ladder.posterior(name, width).variance_given([*known, supposed])
    return total
