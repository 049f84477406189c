"""The work of a verdict, step by step: assumptions, candidates, kernels, infinite width, measurements, answer.

Each step leaves what it found in the `Inquiry`, so that one that is interrupted concludes on what is known.
"""

import math
import time

import torch
from tqdm import tqdm

from deq_enn.kernels.distance import label_alignment, least_distance, relative_error
from deq_enn.machines.leave_one_out import Targets, copies, from_kernel
from deq_enn.machines.run import blocks_of
from deq_enn.networks.cost import BATCH, costs
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.finite_width import implicit_fluctuation
from deq_enn.utils.random import generator
from deq_enn.verdicts.assumptions import applicability
from deq_enn.verdicts.candidates import networks
from deq_enn.verdicts.inputs import LEAST, check_data, check_deq
from deq_enn.verdicts.loss_model import LEVEL, Interval, width_from
from deq_enn.verdicts.measurements import Ladder, climb
from deq_enn.verdicts.result import Candidate, Verdict

TRIED = 150  # samples whose kernel tells how fast this machine is
COMPARED = 600  # samples whose kernels are compared, at most
MACHINE = 1500  # samples of the networks at infinite width, at most
KERNELS = 0.2  # of the time, at most, for either
COSTS = 0.15  # of the time is for what the networks cost
RIVALS = 4  # candidates that are measured at once where time is dear
# without labels: relative spectral distance of the conjugate kernels, times the best factor, that is small, and large
NEAR, FAR = 0.05, 0.5


class Inquiry:
    """A verdict in the making: `run`, then `conclude`; after an interruption `conclude` says what is known so far."""

    def __init__(self, deq, X, y, *, width=None, budget=60.0, tolerance=0.5, seed=0, clock=time.perf_counter):
        self.clock, self.start, self.end = clock, clock(), clock() + budget
        check_deq(deq)
        X, y, n_classes = check_data(X, y, deq.B.shape[1])
        if not (budget > 0 and tolerance > 0 and math.isfinite(budget + tolerance)):
            raise ValueError(f"budget and tolerance must be positive and finite, got {budget} and {tolerance}")
        width = len(deq.A) if width is None else width
        if width < 1:
            raise ValueError(f"the width must be positive, got {width}")
        self.deq, self.width, self.tolerance, self.seed, self.classes = deq, width, tolerance, seed, n_classes
        self.X, self.y, (self.n, self.p) = X, y, X.shape
        self.order = torch.randperm(self.n, generator=generator("verdict", seed))
        self.tau0 = estimate_tau0(X)
        self.settings = {
            "activation": deq.activation.name,
            "sigma_a2": deq.sigma_a2,
            "width": width,
            "tolerance": tolerance,
            "budget": budget,
            "n": self.n,
            "p": self.p,
            "classes": n_classes,
            "seed": seed,
            "level": LEVEL,
        }
        self.applies, self.candidates, self.refused, self.deq_found = {}, [], {}, {}
        self.ladder, self.complete, self.not_costed = None, False, None

    # ------------------------------------------------------------------------------------------------------------

    def run(self, progress=False):
        with tqdm(
            total=self.end - self.start,
            desc="verdict",
            unit="s",
            leave=False,
            disable=not progress,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}",
        ) as bar:
            for step in self.steps():
                bar.n = min(self.clock() - self.start, bar.total)
                bar.set_postfix_str(step)
        self.complete = True

    def steps(self):
        """Does the work, and yields what comes next."""
        yield "assumptions"
        budget = self.end - self.start
        self.copies = copies(self.X)
        rows = self._distinct(min(MACHINE, LEAST + int(25 * budget)))
        self.applies = applicability(self.deq.activation, self.deq.sigma_a2, self.deq.tau0, self.X[rows], self.seed)
        yield "matched networks"
        found, self.refused = networks(self.deq, self.tau0)
        yield "kernels"
        start = self.clock()
        deq = blocks_of(self.deq, self.X[rows[:TRIED]]).both()
        affordable = KERNELS * budget / ((self.clock() - start) * (1 + len(found)))
        some = self.X[rows[: max(LEAST, min(COMPARED, int(TRIED * math.sqrt(affordable))))]]
        start = self.clock()
        deq = blocks_of(self.deq, some).both()
        targets = None if self.y is None else Targets(self.y[rows[: len(some)]], self.classes)
        for network in found:
            self.candidates.append(self._compared(network, deq, some, targets))
            yield f"kernel of {network.name}"
        if self.y is None:
            yield from self._costs(COSTS * budget)
            return
        self.ladder = Ladder(
            self.deq, found, self.X, self.y, self.order, self.copies, self.classes, self.seed, self.clock
        )
        affordable = KERNELS * budget / (self.clock() - start)
        yield from self._infinite(rows[: max(LEAST, int(len(some) * math.sqrt(affordable)))])
        self.ladder.deadline = self.end - COSTS * budget
        for _ in climb(self.ladder, self.width, self._open):
            yield f"{sum(map(len, self.ladder.accuracy.values()))} measurements"
        yield from self._costs(COSTS * budget / 2)

    def _distinct(self, count):
        """The first samples of the order, without copies, which exact kernels take long for, and zero ones."""
        rows = self.order[: 5 * count]
        rows = rows[(self.copies[rows] == rows) & (self.X[rows].square().sum(1) > 0)][:count]
        if len(rows) < LEAST:
            raise ValueError(f"nearly all samples are zero or the same: at least {LEAST} others are needed")
        return rows

    def _compared(self, network, deq, X, targets):
        own = blocks_of(network.build(self.p, 1, self.classes or 2), X).both()
        distance = {}
        for kernel, K, other in zip(("ck", "ntk"), deq, own):
            (least, factor), own_distance = least_distance(K, other), relative_error(K, other)
            if own_distance < least:  # to the tolerance of the search
                least, factor = own_distance, 1.0
            distance[kernel] = {"relative": own_distance, "factor": factor, "with_factor": least}
        alignment = None if targets is None else label_alignment(own[0], targets.Y)
        return Candidate.of(network, distance=distance, alignment=alignment, fluctuation=network.fluctuation)

    def _infinite(self, rows):
        """Exact kernel ridge regression of all networks on the same samples, each predicted by the others."""
        X, count = self.X[rows], len(rows)
        targets = Targets(self.y[rows], self.classes)
        deq = from_kernel(blocks_of(self.deq, X).both()[0], targets)
        machines = {}
        for one in self.candidates:
            yield f"infinite width, {one.name}"
            network = one.build(self.p, 1, self.classes)
            machines[one.name] = from_kernel(blocks_of(network, X).both()[0], targets)
        self.ladder.record(math.inf, {name: found.right for name, found in machines.items()}, deq.right)
        for one in self.candidates:
            found, (point,) = machines[one.name], self.ladder.points(one.name)
            half = 1.645 * math.sqrt(point.of_samples)
            one.infinite = {
                "accuracy": found.right.double().mean().item(),
                "samples": count,
                "ridge": found.ridge,
                "rms": (found.predicted - deq.predicted).square().mean().sqrt().item()
                / deq.predicted.square().mean().sqrt().item(),
                "difference": point.loss,
                "interval": (point.loss - half, point.loss + half),
            }
        self.deq_found["infinite"] = {"accuracy": deq.right.double().mean().item(), "ridge": deq.ridge}

    def _costs(self, seconds):
        """Time and memory of the network that is the answer, or the best, beside the DEQ's; of the rest as time allows.

        Networks of one depth cost nearly the same: of each depth one is measured.
        """
        yield "costs"
        deq = self.deq
        if len(deq.A) != self.width:
            deq = DEQ(deq.activation, self.p, self.width, self.classes or 2, deq.sigma_a2, deq.tau0)
        _, chosen, _ = self._answer()
        rest = sorted((one for one in self.candidates if one is not chosen), key=self._upper_end)
        X, seen = self.X[self.order[:BATCH]], set()
        for one in [chosen, *rest] if chosen else rest:
            if one.depth in seen or seen and self.clock() + seconds > self.end:
                continue
            seen.add(one.depth)
            try:
                found = costs(deq, one.build(self.p, self.width, self.classes or 2).to(deq.B), X, seconds)
            except ConvergenceError as error:
                self.not_costed = f"What is saved could not be measured: {error}."
                return
            one.cost = found["ratios"] | {"measured": found}
            yield f"cost of {one.name}"

    def _upper_end(self, one):
        return one.distance["ck"]["with_factor"] if self.y is None else self._interval(one).high

    def _interval(self, one) -> Interval:
        return self.ladder.posterior(one.name, self.width).interval()

    def _open(self):
        """Names of the candidates whose loss is to be known better.

        First those that may yet be the answer, cheaper than any that is below the tolerance for sure; of them the
        few that are most likely to be. Then that answer, and then all others, until no interval is wide.
        """
        found = {one: self._interval(one) for one in self.candidates}
        work = {one: one.work(self.p, self.width) for one in found}
        accepted = [one for one, interval in found.items() if interval.high < self.tolerance]
        least = min((work[one] for one in accepted), default=math.inf)
        rivals = [
            one
            for one, interval in found.items()
            if interval.low < self.tolerance < interval.high and work[one] < least
        ]
        wide = [
            one
            for one, interval in found.items()
            if interval.high - interval.low > self.tolerance / 2 and interval.low < self.tolerance
        ]
        if rivals:
            wide = sorted(rivals, key=lambda one: (found[one].high, work[one]))[:RIVALS]
        elif now := [one for one in wide if work[one] == least]:
            wide = now
        return [one.name for one in wide]

    # ------------------------------------------------------------------------------------------------------------

    def conclude(self) -> Verdict:
        """The verdict on what has been measured so far."""
        if measured := self.ladder is not None and self.ladder.passes:
            for one in self.candidates:
                one.measured = tuple(self.ladder.points(one.name))
                one.width_from = width_from(list(one.measured), self.n, self.tolerance)
        answer, chosen, reason = self._answer()
        if measured:
            self.deq_found["measured"] = [
                {
                    "width": "inf" if math.isinf(width) else width,
                    "samples": count,
                    "seeds": len(values),
                    "accuracy": sum(values) / len(values),
                }
                for (width, count), values in self.ladder.accuracy.items()
            ]
            self.settings["samples"] = max(
                (count for width, count in self.ladder.passes if width == self.width), default=0
            )
            draws, without = self.ladder.equilibria(self.width)
            self.deq_found["draws"] = {"width": self.width, "drawn": draws, "without_equilibrium": without}
        self.deq_found["fluctuation"] = float(
            sum(implicit_fluctuation(self.deq.activation, self.deq.sigma_a2, self.deq.tau0))
        )
        if self.not_costed:
            reason.append(self.not_costed)
        if chosen is not None and chosen.cost:
            reason.append(
                "The DEQ takes {inference:.3g} times its time for one sample, {features:.3g} times for "
                "features, {training_step:.3g} times for a training step, and {memory:.3g} times its "
                "memory.".format(**chosen.cost)
            )
        return Verdict(
            answer,
            reason,
            self.applies,
            tuple(self.candidates),
            chosen,
            self.settings,
            self.clock() - self.start,
            self.refused,
            self.deq_found,
        )

    def _answer(self):
        """ "replace", "keep" or "undecided"; the chosen candidate or None; sentences."""
        if self.y is None:
            return self._by_distance()
        if self.ladder is None or not self.ladder.passes:
            return self._by_loss()
        draws, without = self.ladder.equilibria(self.width)
        missing = (
            f"The DEQ has no equilibrium at width {self.width} ({without} of {draws} draws of its weights): take a "
            "larger width (--dim) or a smaller sigma_a^2 (--asquare)."
        )
        if 0 < draws == without:
            return "undecided", None, [missing, "So no loss is predicted; kernels and infinite width are as shown."]
        if not any(math.isfinite(width) for width, _ in self.ladder.passes):
            few = "Only infinitely wide networks have been compared so far: allow more time (--budget)."
            return "undecided", None, [few]
        for one in self.candidates:
            interval = self._interval(one)
            one.loss, one.loss_interval = interval.mean, (interval.low, interval.high)
        answer, chosen, reason = self._by_loss()
        return answer, chosen, [missing, "The losses are of the draws that have one.", *reason] if without else reason

    def _cheapest(self, accepted, by):
        """Of the least work; of those the best `by`."""
        return min(accepted, key=lambda one: (one.work(self.p, self.width), by(one)))

    def _by_loss(self):
        known = [one for one in self.candidates if one.loss is not None]
        if not known:
            return "undecided", None, ["Nothing has been measured yet: allow more time (--budget)."]
        accepted = [one for one in known if one.loss_interval[1] < self.tolerance]
        if accepted:
            one = self._cheapest(accepted, lambda one: one.loss)
            low, high = one.loss_interval
            return (
                "replace",
                one,
                [
                    f"{one.name} at width {self.width} loses {one.loss:+.2f} points ({100 * LEVEL:.0f}% interval "
                    f"{low:+.2f} to {high:+.2f}), less than {self.tolerance:g}."
                ],
            )
        best = min(known, key=lambda one: one.loss_interval[1])
        if all(one.loss_interval[0] > self.tolerance for one in known):
            return (
                "keep",
                None,
                [
                    f"Every candidate loses more than {self.tolerance:g} points at width {self.width}; the best, "
                    f"{best.name}, {best.loss:+.2f} ({best.loss_interval[0]:+.2f} to {best.loss_interval[1]:+.2f}).",
                    *self._failing(),
                ],
            )
        low, high = best.loss_interval
        return (
            "undecided",
            None,
            [
                f"{best.name} loses {best.loss:+.2f} points, but its interval, {low:+.2f} to {high:+.2f}, holds "
                f"{self.tolerance:g}.",
                self._would_decide(best),
            ],
        )

    def _failing(self):
        fails = self.applies.get("fails", [])
        return [sentence[0].upper() + sentence[1:] + "." for sentence in fails]

    def _would_decide(self, best):
        at = [point for point in best.measured if point.width == self.width]
        point = max(at, key=lambda point: point.count, default=None)
        if point is None or point.count < self.n:
            return (
                f"Only {point.count if point else 0} of {self.n} samples could be measured at width {self.width}: "
                "allow more time (--budget)."
            )
        if point.of_seeds > point.of_samples:
            return "The seeds of the weights differ by more than the samples: allow more time (--budget)."
        return f"All {self.n} samples were used: more samples would decide it, or a larger tolerance."

    def _by_distance(self):
        """Without labels: by the distance of the conjugate kernels alone."""
        said = "There are no labels, so this rests on the distance of the kernels alone, and no loss is predicted."
        if not self.candidates:
            return "undecided", None, ["No kernel has been computed yet: allow more time (--budget).", said]

        def distance(one):
            return one.distance["ck"]["with_factor"]

        best = min(self.candidates, key=distance)
        near = [one for one in self.candidates if distance(one) < NEAR]
        if near:
            one = self._cheapest(near, distance)
            return (
                "replace",
                one,
                [
                    f"The conjugate kernel of {one.name} is within {distance(one):.2g} of the DEQ's "
                    f"(relative, spectral, with the factor {one.distance['ck']['factor']:.3g}).",
                    said,
                ],
            )
        if distance(best) > FAR:
            return (
                "keep",
                None,
                [
                    f"No candidate's kernel is nearer to the DEQ's than {distance(best):.2g} ({best.name}).",
                    *self._failing(),
                    said,
                ],
            )
        return (
            "undecided",
            None,
            [
                f"The nearest kernel, that of {best.name}, is {distance(best):.2g} from the DEQ's: "
                "labels would decide it.",
                said,
            ],
        )
