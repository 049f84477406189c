"""Small real measurements of a DEQ and its candidates: ridge readouts of features, at several widths, within a time.

One pass draws the weights of one seed, of all networks with common first-layer weights, at a width, takes the features
of the first so many samples, and predicts each sample by the others. What a pass will take is known from those before.
"""

import math
import time

import numpy as np
import torch

from candidates import Network
from fixed_point import Picard
from leave_one_out import Targets, copies, from_features
from model import DEQ
from predicted_loss import CONSTANTS, Discrepancy, Measured, measured

BATCH = 512           # of samples: their features stay in cache
TOLERANCE = 1e-4      # of the equilibrium, far below what the weights' randomness does to it
MOST_SEEDS = 40       # at the width that is asked for
FEATURES = 1e9        # bytes that the features of a pass may take
_OWN_SEEDS = 10_000   # the weights are not those of seeds that a user will train


class Ladder:
    """Passes so far, and the means to make more.

    Parameters
    ----------
    deq : its activation, sigma_a^2 and tau_0 count.
    networks : the candidates. X (n, p) float32, y (n,) in 0 .. classes - 1, taken in the order of `order` (n,).
    clock : that times are measured by.

    Attributes
    ----------
    passes : {(width, count): {name: [differences of being right (count,) int8, one a seed]}}
    """

    def __init__(self, deq: DEQ, networks: list[Network], X: torch.Tensor, y: torch.Tensor, order: torch.Tensor,
                 classes: int, seed: int = 0, clock=time.perf_counter, constants: Discrepancy = CONSTANTS):
        self.deq, self.networks, self.X, self.y, self.classes = deq, networks, X, y[order], classes
        self.order, self.copies = order, copies(X)[order]
        self.first_seed, self.clock, self.constants = _OWN_SEEDS * (1 + seed), clock, constants
        self.passes: dict[tuple, dict[str, list]] = {}
        self.ridges: dict[str, float] = {}   # where the search begins
        self.accuracy: dict[tuple, list] = {}  # of the DEQ
        self.iterations, self.rate = 15.0, None  # of the equilibrium; seconds a multiplication

    # ------------------------------------------------------------------------------------------------------------
    # a pass

    def record(self, width: float, right: dict[str, torch.Tensor], deq_right: torch.Tensor) -> None:
        """Keeps which samples each network has right, in one pass."""
        point = self.passes.setdefault((width, len(deq_right)), {network.name: [] for network in self.networks})
        for name, one in right.items():
            point[name].append((deq_right.to(torch.int8) - one.to(torch.int8)).numpy())
        self.accuracy.setdefault((width, len(deq_right)), []).append(deq_right.double().mean().item())

    def measure(self, width: int, count: int) -> float:
        """One more seed at this width with the first `count` samples; the seconds that it took."""
        start = self.clock()
        seed = self.first_seed + len(self.accuracy.get((width, count), ()))
        p, targets = self.X.shape[1], Targets(self.y[:count], self.classes, self.copies[:count])
        deq = DEQ(self.deq.activation, p, width, self.classes, self.deq.sigma_a2, self.deq.tau0, seed,
                  Picard(TOLERANCE))
        deq_right = self._right("DEQ", deq, targets, count)
        self.iterations = float(deq.fixed_point.iterations)
        right = {}
        for network in self.networks:
            right[network.name] = self._right(network.name, network.build(p, width, self.classes, seed), targets, count)
        self.record(width, right, deq_right)
        seconds = self.clock() - start
        self.rate = seconds / self.work(width, count)
        return seconds

    def _right(self, name, model, targets, count):
        features = torch.empty(count, model.readout.in_features)
        with torch.no_grad():
            for start in range(0, count, BATCH):
                rows = slice(start, min(start + BATCH, count))
                features[rows] = model.features(self.X[self.order[rows]])
        found = from_features(features, targets, self.ridges.get(name, 1e-2))
        self.ridges[name] = found.ridge
        return found.right

    # ------------------------------------------------------------------------------------------------------------
    # what a pass takes

    def work(self, width: int, count: int) -> float:
        """Multiplications of a pass, those in float64 twice."""
        p, n, m = self.X.shape[1], count, width
        total = n * m * (p + self.iterations * m)
        total += sum(n * m * (p + (network.depth - 1) * m) for network in self.networks)
        solve = n * n * m + 2 * n**3 if n <= m else 2 * n * m * m + m**3
        return total + 2 * solve * (1 + len(self.networks))

    def affordable(self, width: int, seconds: float) -> int:
        """The most samples of a pass at this width that takes so long."""
        low, high = 0, min(len(self.X), int(FEATURES / (4 * width)))
        if self.rate * self.work(width, high) <= seconds:
            return high
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (middle, high) if self.rate * self.work(width, middle) <= seconds else (low, middle)
        return low

    # ------------------------------------------------------------------------------------------------------------

    def points(self, name: str) -> list[Measured]:
        """What has been measured of a candidate, for `predicted_loss.predict`."""
        return [measured(width, np.stack(networks[name]), self.copies[:count].numpy(), self.constants)
                for (width, count), networks in self.passes.items()]


def climb(ladder: Ladder, width: int, until: float, settled=lambda: False):
    """Passes at a few smaller widths, then at the one asked for, until the time `until` or `settled()`.

    Yields after each pass. With all samples where they can be afforded, and then as many seeds as there is time for.
    """
    n = len(ladder.X)
    least = min(n, max(200, 10 * ladder.classes))

    def left():
        return until - ladder.clock()

    begin = max(min(width // 4, 64), 1)
    ladder.measure(begin, min(n, 1000))  # and learns the rate
    ladder.measure(begin, min(n, 1000))
    yield
    for rung in sorted({max(width // 16, begin), max(width // 4, begin)}):
        count = max(ladder.affordable(rung, 0.06 * left()), least)
        for _ in range(2):
            if ladder.rate * ladder.work(rung, count) < left() / 3:
                ladder.measure(rung, count)
                yield
    count = ladder.affordable(width, 0.45 * left())
    if count < least:
        count = least
    for _ in range(MOST_SEEDS):
        if settled() or ladder.rate * ladder.work(width, count) > left():
            break
        ladder.measure(width, count)
        yield
