"""The work of a verdict on a random DEQ goes by steps: assumptions, candidates, kernels, infinite width, measurements.

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

from deq_enn.machines.copies import Repeated, repeated
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.cost import BATCH, STEP, costs
from deq_enn.networks.deq import DEQ, as_drawn
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.finite_width import implicit_fluctuation
from deq_enn.utils.deadline import OutOfTime, deadline
from deq_enn.utils.random import generator
from deq_enn.verdicts.assumptions import LEAST, applicability, check_data, check_deq, check_repeated, check_request
from deq_enn.verdicts.candidates import EXAMPLES, NO_TIME, Fitting, networks
from deq_enn.verdicts.decision import (
    Decision,
    Question,
    but_for_the_matches,
    by_distance,
    by_loss,
    copies_sentence,
    cost_sentence,
    is_open,
    majority_sentence,
    no_better_than_majority,
    no_equilibrium_sentence,
    precision_sentence,
    to_measure,
)
from deq_enn.verdicts.exact_kernels import ExactKernels
from deq_enn.verdicts.losses.classes import MEASURES, sentence as class_sentence
from deq_enn.verdicts.losses.measurements import MAJORITY, Measurements
from deq_enn.verdicts.losses.model import LEVEL, Interval, width_from
from deq_enn.verdicts.losses.schedule import measure_until
from deq_enn.verdicts.result import RISK, Candidate, Verdict

MOST_EXACT = 1500  # samples of the networks at infinite width, at most
EXACT_PER_SECOND = 25  # samples of those networks that each second of the budget allows
KERNEL_SHARE = 0.2  # share of the budget for comparing kernels, and again for infinite-width regression
COST_SHARE = 0.15  # share of the budget for timing the networks
# shares of the budget after which matches, kernels and regressions are given up
MATCHES_END, KERNELS_END, INFINITE_END = 0.2, 0.35, 0.6
GRACE = 1.0  # seconds that each kind of work may take, however small the budget
COSTED = (BATCH, 256, 128, 64, 32)  # rows of which times are measured, the first that fit into the time left
UNKNOWN = Interval(0.0, -math.inf, math.inf, 0.5)  # loss where no network of finite width was measured


class VerdictAtInitialisation:
    """This is a verdict in the making: `run`, then `conclude`, which after an interruption says what is known.

    The parameters are those of `api.verdict`. `measured_by` is what measures networks of finite width.
    """

    measured_by = Measurements

    def __init__(
        self,
        deq: DEQ | ConvDEQ,
        X: Any,
        y: Any,
        *,
        width: int | None = None,
        budget: float = 60.0,
        tolerance: float = 0.5,
        seed: int = 0,
        decide_on: str = "draw",
        risk: float = RISK,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.clock, self.start, self.end = clock, clock(), clock() + budget
        check_deq(deq)
        X, y, n_classes = self._checked(deq, X, y)
        if y is not None:
            check_repeated(y)
        check_request(budget, tolerance, width, decide_on, risk)
        width = len(deq.A) if width is None else width
        self.deq, self.seed, self.classes, self.device = deq, seed, n_classes, deq.B.device
        drawn = as_drawn(deq) or isinstance(deq, ConvDEQ)
        self.own_seed = deq.seed if drawn else None  # of the network, too, that is handed out
        self.X, self.y = X, y
        n, p = len(X), X[0].numel()
        self.question = Question(p, n, width, tolerance, decide_on, risk)
        self.order = torch.randperm(n, generator=generator("verdict", seed))
        self.tau0 = estimate_tau0(X.flatten(1))
        self.settings = settings_of(deq, self.question, budget, n_classes, seed, self.device)
        self.applies: dict = {}
        self.candidates: list[Candidate] = []
        self.refused: dict[str, str] = {}
        self.deq_known: dict = {}
        self.measurements: Measurements | None = None
        self.not_costed: str | None = None
        self.copies: Repeated | None = None
        self.not_compared: dict[str, str] = {}

    def _checked(self, deq: Any, X: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor | None, int | None]:
        """Returns the samples, the labels and the number of classes; ValueError where they cannot be used."""
        return check_data(X, y, deq.B.shape[1])

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
        self.copies = copies = repeated(self.X.flatten(1))
        kernels = ExactKernels(self.deq, self.X, self.y, self.classes, self.order, copies, self.clock)
        self.not_compared = kernels.failed
        rows = kernels.distinct(min(MOST_EXACT, LEAST + int(EXACT_PER_SECOND * budget)))
        self.applies = self._applicability(rows)
        yield "matched networks"
        with deadline(self.clock, self._end_of(MATCHES_END)):
            candidates, self.refused = self._networks()
        yield "kernels"
        end = self._end_of(KERNELS_END)
        compared = kernels.affordable(rows, 1 + len(candidates), KERNEL_SHARE * budget, end)
        start = self.clock()
        for candidate in kernels.compare(candidates, compared, end):
            self.candidates.append(candidate)
            yield f"kernel of {candidate.name}"
        if self.y is None or self.classes is None:
            yield from self.measure_costs(COST_SHARE * budget)
            return
        self.measurements = self.measured_by(
            self.deq,
            candidates,
            self.X,
            self.y,
            self.order,
            copies.left_out,
            self.classes,
            self.seed,
            self.clock,
            device=self.device,
            own=None if self.own_seed is None else (self.question.width, self.own_seed),
            of_draw=self.question.of == "draw",
        )
        affordable = KERNEL_SHARE * budget / max(self.clock() - start, 1e-9)
        count = min(len(rows), max(LEAST, int(len(compared) * math.sqrt(affordable))))
        with contextlib.suppress(OutOfTime):
            yield from self._infinite(kernels, count)
        yield from self._measure(self.measurements, self.end - COST_SHARE * budget)
        yield from self.measure_costs(COST_SHARE * budget / 2)

    def _applicability(self, rows: torch.Tensor) -> dict:
        """Returns which assumptions of the theory hold on these rows."""
        return applicability(self.deq.activation, self.deq.sigma_a2, self.deq.tau0, self.X[rows], self.seed)

    def _networks(self) -> tuple[list[Any], dict[str, str]]:
        """Returns the candidates, and why others are none."""
        return networks(self.deq, self.tau0)

    def _end_of(self, share: float) -> float:
        """Returns the time at which work is given up that may go on until so much of the budget is spent."""
        return max(self.start + share * (self.end - self.start), self.clock() + GRACE)

    def _infinite(self, kernels: ExactKernels, count: int) -> Iterator[str]:
        """Makes regressions with the exact kernels of the DEQ and of candidates whose kernels did not take too long."""
        compared = [candidate for candidate in self.candidates if candidate.distance is not None]
        if not compared or self.measurements is None:
            return
        for step in kernels.regress(self.measurements, compared, count, self._end_of(INFINITE_END)):
            if isinstance(step, dict):
                self.deq_known["infinite"] = step
            else:
                yield step

    def _measure(self, measurements: Measurements, end: float) -> Iterator[str]:
        """Measures narrow networks until `end`, and what is under way by then until the budget is spent."""
        measurements.deadline, measurements.end = end, self.end
        passes = measure_until(measurements, self.question.width, self._undecided)
        with contextlib.suppress(OutOfTime, StopIteration):
            while True:
                with deadline(self.clock, max(self.end, self.clock() + GRACE)):
                    next(passes)
                yield f"{sum(map(len, measurements.accuracy.values()))} measurements"

    def measure_costs(self, seconds: float) -> Iterator[str]:
        """Times the network that is the answer, or the best, beside the DEQ, and then others as time allows.

        Networks of as many multiplications cost nearly the same: one of each number is timed. Yields what comes next.

        seconds : for each network.
        """
        yield "costs"
        self.not_costed = "What is saved was not measured, for want of time (--budget)."
        if self.clock() > self.end + GRACE:
            return
        deq, width = self.deq, self.question.width
        if len(deq.A) != width:
            deq = self._wider(width)
        chosen = self.decide().chosen
        rest = sorted((candidate for candidate in self.candidates if candidate is not chosen), key=self._upper_end)
        timed: set[int] = set()
        for candidate in [chosen, *rest] if chosen else rest:
            work = candidate.work(self.question.p, width)
            if work in timed or timed and self.clock() + seconds > self.end:
                continue
            enn = candidate.build(self.question.p, width, self.classes or 2).to(deq.B)
            try:
                rows = self._rows_costed(deq, 0.0 if timed else GRACE)
                if rows is None:
                    return
                measured = costs(deq, enn, self.X[self.order[:rows]], seconds)
            except ConvergenceError as error:
                self.not_costed = f"What is saved could not be measured: {error}."
                return
            timed.add(work)
            self.not_costed = None
            candidate.cost = measured["ratios"] | {"measured": measured}
            yield f"cost of {candidate.name}"

    def _rows_costed(self, deq: Any, least: float) -> int | None:
        """Returns how many rows can be timed in the seconds left, or in `least` seconds; None if not even few."""
        X, start = self.X[self.order[: COSTED[-1]]].to(deq.B), self.clock()
        with torch.no_grad():
            deq.features(X)
        row = (self.clock() - start) / len(X)
        left = max(self.end - self.clock(), least)
        # three times its features, and as often a training step, which takes three times as long
        return next((rows for rows in COSTED if row * (3 * rows + 9 * min(rows, STEP)) < left), None)

    def _wider(self, width: int) -> Any:
        """Returns a DEQ of this width, like the one that was given."""
        deq = self.deq
        return DEQ(deq.activation, self.question.p, width, self.classes or 2, deq.sigma_a2, deq.tau0).to(deq.B)

    # ------------------------------------------------------------------------------------------------------------
    # what is known

    def _upper_end(self, candidate) -> float:
        return candidate.ck_distance if self.y is None else (self._interval(candidate) or UNKNOWN).high

    def _interval(self, candidate, of: str | None = None) -> Interval | None:
        """Returns the interval of a loss, or None. of : "draw" or "mean", by default what is asked for."""
        if self.measurements is None:
            return None
        draw = (of or self.question.of) == "draw"
        return self.measurements.interval(candidate.name, self.question.width, self.question.tolerance, draw)

    def _undecided(self) -> tuple[list[str], bool]:
        intervals = {candidate: self._interval(candidate) or UNKNOWN for candidate in self.candidates}
        return to_measure(intervals, self.question), self._majority() is None and is_open(intervals, self.question)

    def decide(self) -> Decision:
        """Returns the answer from what is known so far, and keeps the losses with the candidates."""
        if self.y is None:
            return by_distance(self.candidates, self.question, self.applies)
        if self.measurements is None or not self.measurements.passes:
            return by_loss(self.candidates, self.question, self.applies)
        drawn, failed = self.measurements.equilibria(self.question.width)
        without = no_equilibrium_sentence(self.question.width, drawn, failed)
        if 0 < drawn == failed:
            nothing = "So no loss is predicted; kernels and infinite width are as shown."
            return Decision("undecided", None, [without, nothing])
        if not any(math.isfinite(width) for width, _ in self.measurements.passes):
            few = "Only infinitely wide networks have been compared so far: allow more time (--budget)."
            return Decision("undecided", None, [few])
        self._keep_losses()
        missing = self._missing()
        answer, chosen, reason = self._majority() or by_loss(self.candidates, self.question, self.applies, missing)
        if failed:
            reason = [without, "The losses are of the draws that have one.", *reason]
        return Decision(answer, chosen, reason)

    def _missing(self):
        return [name for name, why in self.refused.items() if why == NO_TIME]

    def _keep_losses(self):
        for candidate in self.candidates:
            mean, draw = self._interval(candidate, "mean"), self._interval(candidate, "draw")
            if mean and draw:
                candidate.keep_losses(mean, draw)

    def _majority(self) -> Decision | None:
        """Returns the answer where the DEQ is no better than always saying the commonest class."""
        assert self.measurements is not None and self.y is not None
        draw, tolerance = self.question.of == "draw", self.question.tolerance
        gains = self.measurements.interval(MAJORITY, self.question.width, tolerance, draw)
        if gains is None or not no_better_than_majority(gains, tolerance):
            return None
        share = (self.y == self.y.mode().values).double().mean().item()
        return Decision("majority", None, [majority_sentence(gains, share, tolerance)])

    def conclude(self) -> Verdict:
        """Returns the verdict on what has been measured so far."""
        measurements = self.measurements if self.measurements and self.measurements.passes else None
        if measurements:
            q = self.question
            for candidate in self.candidates:
                candidate.measured = tuple(measurements.points(candidate.name))
                candidate.width_from = width_from(list(candidate.measured), q.n, q.tolerance, q.risk)
        answer, chosen, reason = but_for_the_matches(self.decide(), self._missing())
        if measurements:
            self._keep_measurements(measurements)
            reason += self._remarks(measurements, chosen)
        fluctuation = implicit_fluctuation(self.deq.activation, self.deq.sigma_a2, self.deq.tau0)
        self.deq_known["fluctuation"] = float(sum(fluctuation))
        if unknown := [c.name for c in self.candidates if c.distance is None and c.name not in self.not_compared]:
            reason.append(f"For want of time (--budget) no kernels were compared of {', '.join(unknown)}.")
        reason += [f"No kernels were compared of {name}: {why}." for name, why in self.not_compared.items()]
        reason += [self.not_costed] if self.not_costed else []
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
        seed = self.seed if self.own_seed is None else self.own_seed
        copies = None if self.copies is None else self.copies.left_out
        return Fitting(chosen.network, samples, self.classes, self.question.width, seed, copies=copies)

    def _remarks(self, measurements, chosen) -> list[str]:
        """Says what more is to be told: which samples were left out, in which precision, unequal classes."""
        scores, remarks = measurements.class_scores(self.question.width), []
        for candidate in self.candidates if scores else ():
            if candidate.name in scores["of"]:
                place = {"width": scores["width"], "samples": scores["samples"], "measures": MEASURES}
                candidate.class_scores = place | scores["of"][candidate.name].to_dict()
        if chosen is not None and chosen.class_scores:
            remarks.append(class_sentence(chosen.name, chosen.class_scores, self.question.tolerance))
        remarks.append(precision_sentence(measurements.precise))
        if self.copies:
            remarks.append(copies_sentence(self.copies.samples, self.copies.recur))
        return [remark for remark in remarks if remark]

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
        self.settings["copies"] = {"samples": self.copies.samples, "recur": self.copies.recur} if self.copies else None
        drawn, failed = measurements.equilibria(width)
        self.deq_known["draws"] = {"width": width, "drawn": drawn, "without_equilibrium": failed}


def settings_of(
    deq: Any, question: Question, budget: float, classes: int | None, seed: int, device: torch.device
) -> dict[str, Any]:
    """Returns what was asked, ready for JSON. deq : its activation and sigma_a^2 are told."""
    asked = {key: getattr(question, key) for key in ("width", "tolerance", "risk", "n", "p")}
    return {
        "activation": deq.activation.name,
        "sigma_a2": deq.sigma_a2,
        **asked,
        "for": question.of,
        "budget": budget,
        "classes": classes,
        "seed": seed,
        "level": LEVEL,
        "device": str(device),
    }
