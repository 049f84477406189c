"""The work of a verdict on a random DEQ, step by step: assumptions, candidates, kernels, infinite width, measurements.

Each step keeps its results in the `VerdictAtInitialisation`, so that one that is interrupted concludes from what is
known. `decision.py` turns them into the answer.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from deq_enn.kernels.distance import label_alignment, least_distance, relative_error
from deq_enn.machines.copies import copies
from deq_enn.machines.leave_one_out import Targets, from_kernel
from deq_enn.machines.run import blocks_of
from deq_enn.networks.cost import BATCH, costs
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.finite_width import implicit_fluctuation
from deq_enn.utils.deadline import OutOfTime, deadline
from deq_enn.utils.random import generator
from deq_enn.verdicts.assumptions import LEAST, applicability, check_data, check_deq, check_repeated, check_request
from deq_enn.verdicts.candidates import EXAMPLES, Fitting, Network, networks
from deq_enn.verdicts.decision import (
    Decision,
    Question,
    by_distance,
    by_loss,
    cost_sentence,
    no_equilibrium_sentence,
    to_measure,
)
from deq_enn.verdicts.loss_model import LEVEL, Z_90, Interval, width_from
from deq_enn.verdicts.measurements import Measurements, measure_until
from deq_enn.verdicts.result import Candidate, Verdict

TRIED = 150  # samples of the first kernel, whose time tells how fast this machine is
COMPARED = 600  # samples whose kernels are compared, at most
MOST_EXACT = 1500  # samples of the networks at infinite width, at most
EXACT_PER_SECOND = 25  # samples of those networks that each second of the budget allows
KERNEL_SHARE = 0.2  # share of the budget for comparing kernels, and again for infinite-width regression
COST_SHARE = 0.15  # share of the budget for timing the networks
KERNELS_END, INFINITE_END = 0.35, 0.6  # shares of the budget after which kernels and regressions are given up
UNEVEN = 3  # multiple of its share of the time left that one network's kernels may take
GRACE = 1.0  # seconds that each kind of work may take, however small the budget


class VerdictAtInitialisation:
    """A verdict in the making: `run`, then `conclude`. After an interruption `conclude` says what is known so far.

    The parameters are those of `api.verdict`.
    """

    def __init__(
        self,
        deq: DEQ,
        X: Any,
        y: Any,
        *,
        width: int | None = None,
        budget: float = 60.0,
        tolerance: float = 0.5,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.clock, self.start, self.end = clock, clock(), clock() + budget
        check_deq(deq)
        X, y, n_classes = check_data(X, y, deq.B.shape[1])
        if y is not None:
            check_repeated(y)
        check_request(budget, tolerance, width)
        width = len(deq.A) if width is None else width
        self.deq, self.seed, self.classes, self.device = deq, seed, n_classes, deq.B.device
        self.X, self.y = X, y
        n, p = X.shape
        self.question = Question(p, n, width, tolerance)
        self.order = torch.randperm(n, generator=generator("verdict", seed))
        self.tau0 = estimate_tau0(X)
        self.settings = settings_of(deq, self.question, budget, n_classes, seed, self.device)
        self.applies: dict = {}
        self.candidates: list[Candidate] = []
        self.refused: dict[str, str] = {}
        self.deq_known: dict = {}
        self.measurements: Measurements | None = None
        self.not_costed: str | None = None

    # ------------------------------------------------------------------------------------------------------------
    # the work

    def run(self, progress: bool = False) -> None:
        """Does the work; with `progress` it shows a bar."""
        with tqdm(
            total=self.end - self.start,
            desc="verdict",
            unit="s",
            leave=False,
            disable=not progress,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}",
        ) as bar:
            for step in self.steps():
                bar.n = min(self.clock() - self.start, self.end - self.start)
                bar.set_postfix_str(step)

    def steps(self) -> Iterator[str]:
        """Does the work, and yields what comes next."""
        yield "assumptions"
        budget = self.end - self.start
        copied = copies(self.X)
        rows = self._distinct(copied, min(MOST_EXACT, LEAST + int(EXACT_PER_SECOND * budget)))
        self.applies = applicability(self.deq.activation, self.deq.sigma_a2, self.deq.tau0, self.X[rows], self.seed)
        yield "matched networks"
        candidates, self.refused = networks(self.deq, self.tau0)
        yield "kernels"
        end = self._end_of(KERNELS_END)
        compared = self._affordable(rows, 1 + len(candidates), end)
        start = self.clock()
        yield from self._compare_kernels(candidates, compared, end)
        if self.y is None or self.classes is None:
            yield from self.measure_costs(COST_SHARE * budget)
            return
        self.measurements = Measurements(
            self.deq,
            candidates,
            self.X,
            self.y,
            self.order,
            copied,
            self.classes,
            self.seed,
            self.clock,
            device=self.device,
        )
        affordable = KERNEL_SHARE * budget / (self.clock() - start)
        exact = rows[: max(LEAST, int(len(compared) * math.sqrt(affordable)))]
        targets = Targets(self.y[exact], self.classes, device=self.device)
        with contextlib.suppress(OutOfTime):
            yield from self._infinite(self.measurements, self.X[exact].to(self.device), targets)
        yield from self._measure(self.measurements, self.end - COST_SHARE * budget)
        yield from self.measure_costs(COST_SHARE * budget / 2)

    def _end_of(self, share: float) -> float:
        """Returns the time at which work is given up that may go on until so much of the budget is spent."""
        return max(self.start + share * (self.end - self.start), self.clock() + GRACE)

    def _distinct(self, copied, count):
        """The first samples of the order but zero ones and copies, on which exact kernels take long."""
        for rows in (self.order[: 5 * count], self.order):
            rows = rows[(copied[rows] == rows) & (self.X[rows].square().sum(1) > 0)][:count]
            if len(rows) >= LEAST:
                return rows
        raise ValueError(f"nearly all samples are zero or the same: at least {LEAST} others are needed")

    def _affordable(self, rows, networks: int, end: float):
        """The rows whose kernels are compared, as many as time allows by a first kernel; none where that takes long."""
        for count in (TRIED, LEAST):
            start = self.clock()
            with contextlib.suppress(OutOfTime), deadline(self.clock, (start + end) / 2):
                blocks_of(self.deq, self.X[rows[:count]].to(self.device)).both()
                affordable = KERNEL_SHARE * (self.end - self.start) / ((self.clock() - start) * networks)
                return rows[: max(LEAST, min(COMPARED, int(count * math.sqrt(affordable))))]
        return rows[:0]

    def _compare_kernels(self, networks: list[Network], rows, end: float) -> Iterator[str]:
        """Makes a candidate of each network, with the distance of its exact kernels to the DEQ's on these samples.

        A candidate whose kernel takes too long is left without.
        """
        X, deq = self.X[rows].to(self.device), None
        with contextlib.suppress(OutOfTime), deadline(self.clock, end):
            deq = blocks_of(self.deq, X).both() if len(rows) else None
        targets = None
        if self.y is not None and self.classes is not None:
            targets = Targets(self.y[rows], self.classes, device=self.device)
        for number, network in enumerate(networks):
            candidate = Candidate.of(network, distance=None, fluctuation=network.fluctuation)
            with contextlib.suppress(OutOfTime), deadline(self.clock, self._share_of(end, len(networks) - number)):
                if deq is not None:
                    candidate = self._compared(network, deq, X, targets)
            self.candidates.append(candidate)
            yield f"kernel of {network.name}"

    def _share_of(self, end: float, left: int) -> float:
        """Returns the time at which the first of so many networks is given up: at `end`, or UNEVEN times its share."""
        now = self.clock()
        return min(end, now + UNEVEN * (end - now) / left)

    def _compared(self, network, deq, X, targets) -> Candidate:
        own = blocks_of(network.build(self.question.p, 1, self.classes or 2), X).both()
        distance = {}
        for kernel, K, other in zip(("ck", "ntk"), deq, own):
            (least, factor), own_distance = least_distance(K, other), relative_error(K, other)
            if own_distance < least:  # to the tolerance of the search
                least, factor = own_distance, 1.0
            distance[kernel] = {"relative": own_distance, "factor": factor, "with_factor": least}
        alignment = None if targets is None else label_alignment(own[0], targets.Y)
        return Candidate.of(network, distance=distance, alignment=alignment, fluctuation=network.fluctuation)

    def _infinite(self, measurements, X, targets) -> Iterator[str]:
        """Exact kernel ridge regression of all networks on the same samples, each predicted by the others.

        It is left out for networks whose kernels take too long. Raises OutOfTime where the DEQ's does.
        """
        end, compared = self._end_of(INFINITE_END), [c for c in self.candidates if c.distance is not None]
        if not compared:
            return
        with deadline(self.clock, end):
            deq = from_kernel(blocks_of(self.deq, X).both()[0], targets)
        machines = {}
        for number, candidate in enumerate(compared):
            yield f"infinite width, {candidate.name}"
            network = candidate.build(self.question.p, 1, len(targets.mean))
            with contextlib.suppress(OutOfTime), deadline(self.clock, self._share_of(end, len(compared) - number)):
                machines[candidate.name] = from_kernel(blocks_of(network, X).both()[0], targets)
        measurements.record(math.inf, {name: machine.right for name, machine in machines.items()}, deq.right)
        for candidate in [c for c in compared if c.name in machines]:
            machine, (point,) = machines[candidate.name], measurements.points(candidate.name)
            half = Z_90 * math.sqrt(point.of_samples)
            candidate.infinite = {
                "accuracy": machine.right.double().mean().item(),
                "samples": len(X),
                "ridge": machine.ridge,
                "rms": (machine.predicted - deq.predicted).square().mean().sqrt().item()
                / deq.predicted.square().mean().sqrt().item(),
                "difference": point.loss,
                "interval": (point.loss - half, point.loss + half),
            }
        self.deq_known["infinite"] = {"accuracy": deq.right.double().mean().item(), "ridge": deq.ridge}

    def _measure(self, measurements: Measurements, end: float) -> Iterator[str]:
        """Measures narrow networks until `end`, and what is under way by then until the budget is spent."""
        measurements.deadline = end
        passes = measure_until(measurements, self.question.width, self._undecided)
        with contextlib.suppress(OutOfTime, StopIteration):
            while True:
                with deadline(self.clock, max(self.end, self.clock() + GRACE)):
                    next(passes)
                yield f"{sum(map(len, measurements.accuracy.values()))} measurements"

    def measure_costs(self, seconds: float) -> Iterator[str]:
        """Times the network that is the answer, or the best, beside the DEQ, and then others as time allows.

        Networks of one depth cost nearly the same: of each depth one is measured. Yields what comes next.

        seconds : for each network.
        """
        yield "costs"
        if self.clock() > self.end + GRACE:
            self.not_costed = "What is saved was not measured, for want of time (--budget)."
            return
        deq, width = self.deq, self.question.width
        if len(deq.A) != width:
            deq = DEQ(deq.activation, self.question.p, width, self.classes or 2, deq.sigma_a2, deq.tau0).to(deq.B)
        chosen = self.decide().chosen
        rest = sorted((candidate for candidate in self.candidates if candidate is not chosen), key=self._upper_end)
        X, depths = self.X[self.order[:BATCH]], set()
        for candidate in [chosen, *rest] if chosen else rest:
            if candidate.depth in depths or depths and self.clock() + seconds > self.end:
                continue
            depths.add(candidate.depth)
            enn = candidate.build(self.question.p, width, self.classes or 2).to(deq.B)
            try:
                measured = costs(deq, enn, X, seconds)
            except ConvergenceError as error:
                self.not_costed = f"What is saved could not be measured: {error}."
                return
            candidate.cost = measured["ratios"] | {"measured": measured}
            yield f"cost of {candidate.name}"

    # ------------------------------------------------------------------------------------------------------------
    # what is known

    def _upper_end(self, candidate) -> float:
        return candidate.ck_distance if self.y is None else self._interval(candidate).high

    def _interval(self, candidate) -> Interval:
        assert self.measurements is not None, "nothing has been measured yet"
        return self.measurements.posterior(candidate.name, self.question.width).interval()

    def _undecided(self) -> list[str]:
        return to_measure({candidate: self._interval(candidate) for candidate in self.candidates}, self.question)

    def decide(self) -> Decision:
        """Returns the answer from what is known so far, and keeps the losses with the candidates."""
        if self.y is None:
            return by_distance(self.candidates, self.question, self.applies)
        if self.measurements is None or not self.measurements.passes:
            return by_loss(self.candidates, self.question, self.applies)
        drawn, failed = self.measurements.equilibria(self.question.width)
        missing = no_equilibrium_sentence(self.question.width, drawn, failed)
        if 0 < drawn == failed:
            nothing = "So no loss is predicted; kernels and infinite width are as shown."
            return Decision("undecided", None, [missing, nothing])
        if not any(math.isfinite(width) for width, _ in self.measurements.passes):
            few = "Only infinitely wide networks have been compared so far: allow more time (--budget)."
            return Decision("undecided", None, [few])
        for candidate in self.candidates:
            interval = self._interval(candidate)
            candidate.loss, candidate.loss_interval = interval.mean, (interval.low, interval.high)
        answer, chosen, reason = by_loss(self.candidates, self.question, self.applies)
        if failed:
            reason = [missing, "The losses are of the draws that have one.", *reason]
        return Decision(answer, chosen, reason)

    def conclude(self) -> Verdict:
        """Returns the verdict on what has been measured so far."""
        measurements = self.measurements if self.measurements and self.measurements.passes else None
        if measurements:
            for candidate in self.candidates:
                candidate.measured = tuple(measurements.points(candidate.name))
                candidate.width_from = width_from(list(candidate.measured), self.question.n, self.question.tolerance)
        answer, chosen, reason = self.decide()
        if measurements:
            self._keep_measurements(measurements)
        self.deq_known["fluctuation"] = float(
            sum(implicit_fluctuation(self.deq.activation, self.deq.sigma_a2, self.deq.tau0))
        )
        if unknown := [candidate.name for candidate in self.candidates if candidate.distance is None]:
            reason.append(f"For want of time (--budget) no kernels were compared of {', '.join(unknown)}.")
        if self.not_costed:
            reason.append(self.not_costed)
        if chosen is not None and chosen.cost:
            reason.append(cost_sentence(chosen.cost))
        return Verdict(
            answer,
            reason,
            self.applies,
            tuple(self.candidates),
            chosen,
            self.settings,
            self.clock() - self.start,
            self.refused,
            self.deq_known,
            maker=None if chosen is None else self._fitting(chosen),
            rows=self.X[:EXAMPLES].clone(),
        )

    def _fitting(self, chosen: Candidate) -> Fitting:
        assert chosen.network is not None
        samples = self.X, self.y, self.order
        return Fitting(chosen.network, samples, self.classes, self.question.width, self.seed)

    def _keep_measurements(self, measurements):
        """Keeps what was measured of the DEQ itself."""
        self.deq_known["measured"] = [
            {
                "width": "inf" if math.isinf(width) else width,
                "samples": count,
                "seeds": len(values),
                "accuracy": sum(values) / len(values),
            }
            for (width, count), values in measurements.accuracy.items()
        ]
        width = self.question.width
        self.settings["samples"] = max((count for w, count in measurements.passes if w == width), default=0)
        drawn, failed = measurements.equilibria(width)
        self.deq_known["draws"] = {"width": width, "drawn": drawn, "without_equilibrium": failed}


def settings_of(
    deq: Any, question: Question, budget: float, classes: int | None, seed: int, device: torch.device
) -> dict[str, Any]:
    """Returns what was asked, ready for JSON. deq : its activation and sigma_a^2 are told."""
    return {
        "activation": deq.activation.name,
        "sigma_a2": deq.sigma_a2,
        "width": question.width,
        "tolerance": question.tolerance,
        "budget": budget,
        "n": question.n,
        "p": question.p,
        "classes": classes,
        "seed": seed,
        "level": LEVEL,
        "device": str(device),
    }
