"""A DEQ and its candidates are measured on a small scale: ridge readouts at several widths, within a time.

One pass draws weights at one width from one seed, with the same first layer for the DEQ and all candidates. It takes
the features of the first samples, and predicts each sample by the readout of the others. The time of earlier passes
tells how long the next will take (`schedule.py`).

Features are float32. Where the best ridge is so small that their rounding would count, they are computed again in
float64, and the readout is solved by singular values (`machines.precise_readout`).
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from itertools import count as integers, islice
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from deq_enn.machines import precise_readout
from deq_enn.machines.leave_one_out import LeftOut, Targets, from_features
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError, FixedPoint, Picard, Solution
from deq_enn.utils.deadline import OutOfTime, check
from deq_enn.utils.devices import FastProducts
from deq_enn.verdicts.candidates import PRECISE as PRECISE_SOLVER, Network, RandomDEQ, in_float64
from deq_enn.verdicts.losses.classes import ClassScores, compared
from deq_enn.verdicts.losses.model import Interval, Posterior
from deq_enn.verdicts.losses.points import CONSTANTS, Discrepancy, Measured, measured
from deq_enn.verdicts.losses.spread import variance_of_draws
from deq_enn.verdicts.losses.work import FLOAT64, LONGER, STEP, solve_work, steps_to_equilibrium

BATCH = 512  # samples whose features are computed at once, so that they stay in the cache
FEWEST = 500  # samples of a pass, at least, where there are so many
DRAWS = 5  # draws of the weights at one width, all without an equilibrium, after which we give up that width
FIRST_SEED = 10_000  # seed of the weights from which on we draw: users train smaller ones
MAJORITY = "the commonest class"  # no network, but the answer that each has to be better than


class TooLong(OutOfTime):
    """A pass in float64 would take more than the time that is left; a smaller one may not."""


class Interruptible:
    """This solver looks at the deadline before each step, since an equilibrium may take a thousand of them."""

    def __init__(self, solver: Picard):
        self.solver = solver

    def solve(self, f: Callable[[torch.Tensor], torch.Tensor], z0: torch.Tensor) -> Solution:
        """Iterates f from z0 (n, ...); raises OutOfTime where a deadline has passed."""

        def step(z):
            check()
            return f(z)

        return self.solver.solve(step, z0)


TOLERANCE = 1e-4  # share of its norm by which an equilibrium in float32 still changes
MOST_STEPS = 1000  # steps after which a DEQ has no equilibrium
SOLVER = Interruptible(Picard(TOLERANCE, MOST_STEPS))  # its error is far below the spread of the equilibrium over draws
PRECISE = Interruptible(PRECISE_SOLVER)


class Measurements:
    """This keeps the passes so far, and makes more.

    Parameters
    ----------
    deq : its activation, sigma_a^2 and tau_0 count.
    networks : the candidates.
    X, y, order, copies : samples (n, p) float32, their labels in 0 .. classes - 1, the order in which they are taken,
        and which are left out together (`machines.copies.Repeated.left_out`).
    clock : measures the times, in seconds.
    device : where features are computed and readouts solved.
    own : (width, seed) of the DEQ that the user has and of the network that would be handed out, or None. Its weights
        are the first that are measured at this width.
    of_draw : whether the loss of one draw is asked for, and not that of the mean: it decides what is measured next.

    Attributes
    ----------
    deadline, end : the time after which no further network is begun, and by which all must be done. One that is under
        way ends by `utils.deadline`, but one in float64 is not even begun that would take too long.
    passes : {(width, count): {name: [for each seed (count,) int8, 1 where only the DEQ is right, -1 where only the
        candidate is]}}. A candidate that a pass has left out has fewer seeds there. The width of the exact kernels is
        math.inf. The name MAJORITY stands for a network that always says the commonest class.
    seeds : {(width, count): {name: [seed]}} of these.
    accuracy : {(width, count): [accuracy of the DEQ, for each seed]}.
    scores : {(width, count): {name: ClassScores}}, balanced accuracy and area under the curve.
    precise : names ("deq" among them) whose ridge was so small that float64 was needed.
    iterations : {width: [steps to the equilibrium, for each seed]}, as many as it takes in float32.
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
        own: tuple[int, int] | None = None,
        of_draw: bool = False,
    ):
        self.device, self.own, self.of_draw = device, own, of_draw
        self.deq, self.networks, self.X, self.y, self.classes = deq, networks, X, y[order], classes
        self.order, self.copies = order, copies[order]
        self.first_seed, self.clock, self.prior = FIRST_SEED * (1 + seed), clock, constants
        self._constants: Discrepancy | None = None  # those of `constants`, until the next pass
        self.passes: dict[tuple[float, int], dict[str, list[np.ndarray]]] = {}
        self.seeds: dict[tuple[float, int], dict[str, list[int | None]]] = {}
        self.accuracy: dict[tuple[float, int], list[float]] = {}
        self.scores: dict[tuple[float, int], dict[str, ClassScores]] = {}
        self.precise: set[str] = set()
        self.drawn: defaultdict[int, set[int]] = defaultdict(set)
        self.failed: defaultdict[int, set[int]] = defaultdict(set)
        self.iterations: defaultdict[int, list[float]] = defaultdict(list)
        self.expected_iterations = steps_to_equilibrium(deq, TOLERANCE, MOST_STEPS)
        self.rate: float | None = None  # seconds a multiplication, by the last pass
        self.deadline = self.end = math.inf

    # ------------------------------------------------------------------------------------------------------------
    # a pass

    def record(
        self, width: float, right: dict[str, torch.Tensor], deq_right: torch.Tensor, seed: int | None = None
    ) -> None:
        """Keeps which samples each network has right, in one pass. seed : of its weights, None at infinite width."""
        place = width, len(deq_right)
        point, seeds = self.passes.setdefault(place, {}), self.seeds.setdefault(place, {})
        for name, own in right.items():
            point.setdefault(name, []).append((deq_right.to(torch.int8) - own.to(torch.int8)).cpu().numpy())
            seeds.setdefault(name, []).append(seed)
        self.accuracy.setdefault(place, []).append(deq_right.double().mean().item())
        self._constants = None

    def measure(self, width: int, count: int, names: Collection[str] | None = None) -> None:
        """Measures one more seed at this width with the first `count` samples, of these candidates (default: all).

        A pass that takes much longer than expected is cut down to fewer samples, and then to some of the candidates.
        Raises ConvergenceError where the DEQ of that seed has no equilibrium; the next pass takes another seed.
        """
        networks = [network for network in self.networks if names is None or network.name in names]
        start = self.clock()
        seed = self._next_seed(width, count)
        p = self.X.shape[1]
        deq = self.draw(width, seed)
        try:
            deq_said, count = self._left_out("deq", deq, width, count, (start + self.deadline) / 2)
        except ConvergenceError:
            self.drawn[width].add(seed)
            self.failed[width].add(seed)
            raise
        self.drawn[width].add(seed)  # one that the time has cut short tells nothing of its equilibrium
        steps, y = float(cast(FixedPoint, deq.fixed_point).iterations), self.y[:count]
        self.iterations[width].append(steps / self._longer("deq"))
        said: dict[str, LeftOut] = {}
        for network in networks:
            if said and self.clock() > self.deadline:
                break
            enn = network.build(p, width, self.classes, seed)
            try:
                said[network.name], _ = self._left_out(network.name, enn, width, count)
            except OutOfTime:
                if not said:
                    raise
                break
        right = {name: each.right for name, each in said.items()}
        right[MAJORITY] = (y == y.mode().values).to(deq_said.right)
        self.record(width, right, deq_said.right, seed)
        scores = self.scores.setdefault((width, count), {})
        for name, score in compared(deq_said, said, y, self.classes, self.copies[:count]).items():
            scores[name] = scores[name] + score if name in scores else score
        self.rate = (self.clock() - start) / self.work(width, count, said, steps)

    def draw(self, width: int, seed: int) -> nn.Module:
        """Returns the DEQ of this width with the weights of this seed."""
        p, deq = self.X.shape[1], self.deq
        return DEQ(deq.activation, p, width, self.classes, deq.sigma_a2, deq.tau0, seed, SOLVER)

    def _next_seed(self, width, count) -> int:
        """Returns the first seed that has not been measured here, among those whose DEQ is not known to fail."""
        own = self.own[1] if self.own and width == self.own[0] else None
        first = [] if own is None else [own]
        seeds = (seed for part in (first, integers(self.first_seed)) for seed in part if part is first or seed != own)
        seeds = (seed for seed in seeds if seed not in self.failed[width])
        return next(islice(seeds, len(self.accuracy.get((width, count), ())), None))

    def _left_out(self, name, model, width, count, deadline=math.inf) -> tuple[LeftOut, int]:
        """Returns what a network says of the first `count` samples, each left out; of fewer beyond the deadline."""
        model = model.to(self.device)
        if name not in self.precise:
            F = self._features(model, count, deadline)
            said, count = from_features(F, self._targets(len(F))), len(F)
            if not precise_readout.too_small(said.ridge, count, F.shape[1], said.faintest):
                return said, count
            del F
            self.precise.add(name)
        if self.rate is not None and self.clock() + self.rate * self.work_of(name, width, count) > self.end:
            raise TooLong("float64 would take too long")
        F = self._features(in_float64(model, PRECISE), count, deadline)
        return precise_readout.leave_one_out(F, self._targets(len(F))), len(F)

    def _targets(self, count):
        return Targets(self.y[:count], self.classes, self.copies[:count], self.device)

    @torch.no_grad()
    def _features(self, model, count, deadline=math.inf):
        """Returns the features of the first `count` samples; of fewer, but at least FEWEST, beyond the deadline."""
        like = model.readout.weight
        F = torch.empty(count, model.readout.in_features, dtype=like.dtype, device=self.device)
        for start in range(0, count, BATCH):
            if start >= FEWEST and self.clock() > deadline:
                return F[:start]
            if start:
                check()
            rows = slice(start, min(start + BATCH, count))
            with FastProducts():
                F[rows] = model.features(self.X[self.order[rows]].to(like))
        return F

    # ------------------------------------------------------------------------------------------------------------
    # the time of a pass, and its equilibria

    def work(self, width: int, count: int, names: Collection[str], steps: float | None = None) -> float:
        """Returns the multiplications in float32 that a pass is worth. steps : of its equilibrium, where known."""
        return sum(self.work_of(name, width, count, steps) for name in ("deq", *names))

    def work_of(self, name: str, width: int, count: int, steps: float | None = None) -> float:
        """Returns the multiplications in float32 that the features of a network and its readout are worth."""
        if steps is None:
            steps = self._steps(width)
        solve = solve_work(count, self._features_of(width), self.classes)
        return (count * self._work_of_sample(name, width, steps) + solve) * (FLOAT64 if name in self.precise else 1)

    def _work_of_sample(self, name, width, steps):
        """Returns the multiplications that the features of one sample are worth; a DEQ takes so many steps."""
        if name != "deq":
            steps = self._network(name).depth - 1
        return width * (self.X.shape[1] + STEP + steps * (width + STEP))

    def _steps(self, width):
        """Returns the steps to the equilibrium of a DEQ of this width to expect: the geometric mean of those seen."""
        seen = self.iterations[width] or [self.expected_iterations]
        return self._longer("deq") * math.exp(np.log(seen).mean())

    def _longer(self, name):
        return LONGER if name in self.precise else 1.0

    def _network(self, name):
        return next(network for network in self.networks if network.name == name)

    def _features_of(self, width):
        """Returns the number of features of networks of this width."""
        return width

    def feature_bytes(self, width: int, count: int) -> float:
        """Returns the bytes that the features of a pass take."""
        return 4.0 * count * self._features_of(width)

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

    @property
    def constants(self) -> Discrepancy:
        """Returns the constants of the model, with what all candidates show of the spread over seeds."""
        if self._constants is None:
            shown = [
                measured(width, np.stack(differences), self._group(width, count), self.prior)
                for (width, count), point in self.passes.items()
                for name, differences in point.items()
                if len(differences) > 1 and name != MAJORITY
            ]
            self._constants = of_this_case(shown, self.prior)
        return self._constants

    def points(self, name: str) -> list[Measured]:
        """Returns the measurements of a candidate, as `model.Posterior` takes them: the user's own draw apart."""
        points = []
        for (width, count), differences in self.passes.items():
            if name not in differences:
                continue
            together, own = np.stack(differences[name]), self.own_place(width, count, name)
            points += measured_apart(width, together, self._group(width, count), own, self.constants)
        return points

    def _group(self, width, count):
        """Says which samples are left out together; those of exact kernels have no copies."""
        return np.arange(count) if math.isinf(width) else self.copies[:count].numpy()

    def own_place(self, width: float, count: int, name: str) -> int | None:
        """Returns the place of the user's own draw among the seeds of a candidate, or None."""
        seeds = self.seeds[width, count][name]
        if self.own is None or width != self.own[0] or self.own[1] not in seeds:
            return None
        return seeds.index(self.own[1])

    def posterior(self, name: str, width: int, draw: bool = False) -> Posterior:
        """Returns the distribution of a candidate's loss at this width, with all samples.

        draw : whether of one draw of the weights, the user's own where that was measured, and not of their mean.
        """
        return Posterior(self.points(name), width, len(self.order), self.constants, draw)

    def interval(self, name: str, width: int, tolerance: float, draw: bool = False) -> Interval | None:
        """Returns the interval of a candidate's loss, or None where no network of finite width was measured.

        The exact kernels alone say nothing of it: two networks whose kernels agree may differ by much at finite width.
        """
        if all(math.isinf(w) or name not in point for (w, _), point in self.passes.items()):
            return None
        return self.posterior(name, width, draw).interval(tolerance)

    def class_scores(self, width: int) -> dict[str, Any]:
        """Returns {"width", "samples", "of": {name: ClassScores}} at the place nearest to what is asked, or {}.

        That is the largest number of samples at the width nearest to the one asked for, by its ratio.
        """
        if not (places := [place for place, scores in self.scores.items() if scores]):
            return {}
        place = min(places, key=lambda place: (abs(math.log(place[0] / width)), -place[1]))
        return {"width": place[0], "samples": place[1], "of": self.scores[place]}


def of_this_case(shown: Iterable[Measured], constants: Discrepancy) -> Discrepancy:
    """Returns the constants with the spread over seeds that all candidates show together.

    One candidate of two or three seeds hardly shows it, but all of them have the DEQ in common, and on the same data
    they spread alike, as shares of d.

    shown : measurements of all candidates.
    """
    several = [point for point in shown if point.seeds > 1 and not math.isinf(point.width)]
    spread = variance_of_draws(
        constants.seeds**2,
        constants.pooled,
        [point.seen / point.apart**2 for point in several],
        [point.seeds - 1 for point in several],
        [point.noise / point.apart**2 for point in several],
    )
    return replace(constants, seeds=math.sqrt(spread))


def measured_apart(
    width: float, differences: np.ndarray, group: np.ndarray, own: int | None, constants: Discrepancy = CONSTANTS
) -> list[Measured]:
    """Returns the measurement of all seeds, or where one of them is the user's own, that of it and that of the others.

    differences, group : (seeds, n) and (n,), as of `points.measured`. own : the place of the user's own seed.
    """
    whole = measured(width, differences, group, constants)
    if own is None:
        return [whole]
    parts = [measured(width, differences[[own]], group, constants, like=whole, own=True)]
    if len(differences) > 1:
        parts.append(measured(width, np.delete(differences, own, 0), group, constants, like=whole))
    return parts
