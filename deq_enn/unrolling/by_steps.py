"""The verdict on a DEQ as it is: how many explicit layers it is worth, measured on samples that it has not seen.

The module's own `forward` is judged. In its place stand the module stopped after k of its steps, the same with its
last layer refitted, the same trained on the module's outputs, and explicit networks trained on the labels. Each is
measured on the same held-out samples, beside the module, and is timed.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from deq_enn.networks.trained_deq import unwrapped
from deq_enn.unrolling import judged, rivals, students
from deq_enn.unrolling.decision import Known, accepted, decide
from deq_enn.unrolling.judged import Part, batch_of, outputs_of, quality
from deq_enn.unrolling.result import KINDS, StepCandidate, StepVerdict
from deq_enn.unrolling.steppers import Steps, stopped
from deq_enn.unrolling.timing import compared
from deq_enn.unrolling.training import Trained
from deq_enn.utils.deadline import OutOfTime, deadline
from deq_enn.utils.intervals import paired_loss

LADDER = 1, 2, 3, 4, 6, 8, 12  # steps after which a module is stopped
FURTHER = 16, 24, 32, 48  # steps that are tried where all these lose too much, while they can be faster
STUDENTS = 1, 2, 3, 4  # steps of the networks that are trained on the module's outputs, while stopping loses too much
CONSISTENT = 1, 2  # steps of those that are trained along the iteration as well
# shares of the budget by which each part of the work is to be done
UNTIL = {"module": 0.15, "stopped": 0.25, "refitted": 0.32, "students": 0.60, "rivals": 0.90, "cost": 0.98}
# what is said to be untried where its share is over
UNMEASURED = {
    "stopped": "more of its steps",
    "refitted": "its last layer refitted, after more steps",
    "students": "more distilled networks",
    "rivals": "more plain networks",
    "cost": "times",
}
HELD, FIT, CHOOSE = 20_000, 60_000, 2_000  # samples that losses are measured on, trained on, and that choose, at most
EXAMPLES = 8  # samples that an export is tried with
# parts that do something else in training mode
OTHERWISE_IN_TRAINING = nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d, nn.modules.batchnorm._BatchNorm
PASSES = 3.0  # passes over the training set that networks must have made before a module is kept


class VerdictBySteps:
    """This is a verdict in the making: `run`, then `conclude`.

    Parameters
    ----------
    module : any that `steppers.stopped` understands, by itself or by `steps`. It is not changed.
    X, y : samples that it was trained on (n, ...), and labels 0, 1, ... in the order of its outputs, or None.
    held : samples and labels that it has not seen.
    steps : the user's own way to stop it, steps(module, k) -> module.
    budget : seconds of `clock`. tolerance : in points. seed : of what is drawn and of the order of training.
    seen : samples that the module passed in its own training, each time that one was; by default the networks in its
        place are trained for as long as there is time.

    Raises
    ------
    ValueError : in one line, for a module or samples that cannot be judged.
    """

    def __init__(
        self,
        module: Any,
        X: Any,
        y: Any = None,
        *,
        held: tuple[Any, Any] | None = None,
        steps: Steps | None = None,
        budget: float = 60.0,
        tolerance: float = 0.5,
        seed: int = 0,
        seen: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.clock, self.start, self.budget = clock, clock(), budget
        module = unwrapped(module)
        if not isinstance(module, nn.Module):
            raise ValueError(f"a DEQ must be a torch.nn.Module, got {type(module).__name__}")
        stopped(module, 1, steps)  # refused before anything is looked at
        if any(part.training and isinstance(part, OTHERWISE_IN_TRAINING) for part in module.modules()):
            warnings.warn(f"{type(module).__name__} is in training mode: it is judged in evaluation mode")
        if held is None or held[0] is None:
            raise ValueError(
                "no held-out samples: hand in held=(X_test, y_test), which the module was not trained on; on its "
                "training set it looks better than it is"
            )
        self.module, self.steps, self.seed, self.tolerance = module, steps, seed, tolerance
        self.seen = math.inf if seen is None else seen
        self.X, self.X_held = judged.samples(X, module), judged.samples(held[0], module, "held-out X")
        judged.check_apart(self.X, self.X_held)
        self.classes = judged.check_module(module, self.X_held)
        if (y is None) != (held[1] is None):
            raise ValueError("the samples and those held out must both have labels, or neither")
        self.labelled = y is not None
        self.y = None if y is None else judged.labels(y, len(self.X), self.classes)
        self.y_held = None if y is None else judged.labels(held[1], len(self.X_held), self.classes, "held-out y")
        self._check_steps()
        self.candidates: list[StepCandidate] = []
        self.untried: dict[str, str] = {}
        self.parts: tuple[Part, Part, Part] | None = None
        self.about: dict[str, Any] = {"name": type(module).__name__}
        self.layer: str | None = None  # the last linear layer, if the module's outputs are its own
        self.labelled_rows = torch.empty(0, dtype=torch.int64)  # of X, for what is trained on labels
        self.per_row = 0.0  # seconds of the module's outputs for a sample
        self.bar: tqdm | None = None
        self.settings = {
            "n": len(self.X),
            "shape": list(self.X.shape[1:]),
            "classes": self.classes,
            "labelled": self.labelled,
            "held": min(len(self.X_held), HELD),
            "budget": budget,
            "tolerance": tolerance,
            "seed": seed,
        }

    def _check_steps(self) -> None:
        """Refuses a module that is the same however many steps it is said to make."""
        x = self.X_held[: judged.PROBED]
        own = outputs_of(self.module, x)
        try:
            first, second = (outputs_of(stopped(self.module, k, self.steps), x) for k in (1, 2))
        except ValueError:
            raise
        except Exception as error:  # whatever the user's code raises
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the module stopped after k steps fails ({type(error).__name__}: {reason:.200})"
            ) from None
        if first.shape != own.shape:
            raise ValueError(f"stopped after one step its outputs are {tuple(first.shape)}, else {tuple(own.shape)}")
        if torch.equal(first, second) and torch.equal(first, own):
            raise ValueError(
                f"{type(self.module).__name__} cannot be stopped after k steps: after 1 and 2 its outputs are those of "
                "the whole iteration, to the last digit"
            )

    # ------------------------------------------------------------------------------------------------------------
    # the work

    @torch.inference_mode(False)  # in which nothing can be trained
    def run(self, progress: bool = False) -> None:
        """Does the work, within the budget; with `progress` a bar says what is being measured."""
        settings: dict[str, Any] = {"disable": not progress, "leave": False, "bar_format": "{desc} {bar} {elapsed}"}
        # a function of the module's own, such as a lambda, may lead from a copy back to its weights
        with judged.without_gradients(self.module), tqdm(total=len(UNTIL), **settings) as bar:
            self.bar = bar
            self.parts = self._measure_module()  # as many samples as there is time for, so without a deadline
            self._stop_after(LADDER[0])
            for part in ("stopped", "refitted", "students", "rivals", "cost"):
                with self._until(part):
                    getattr(self, f"_measure_{part}")()
            self.bar = None

    @contextmanager
    def _until(self, part: str) -> Iterator[None]:
        """Gives up what is under way when this part's share of the budget is over, and says so."""
        try:
            with deadline(self.clock, self.start + UNTIL[part] * self.budget):
                yield
        except OutOfTime:
            self.untried.setdefault(UNMEASURED[part], "no time was left (--budget)")
        if self.bar is not None:
            self.bar.update()

    @contextmanager
    def _or_untried(self, name: str) -> Iterator[None]:
        """Lets the rest go on where a network fails, and says why it was not tried."""
        try:
            yield
        except OutOfTime:
            raise
        except Exception as error:  # whatever the user's code raises
            reason = str(error).partition("\n")[0]
            self.untried[name] = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason:.200}"

    def _say(self, what: str) -> None:
        if self.bar is not None:
            self.bar.set_description_str(what)

    def _left(self, part: str) -> float:
        """Seconds until the end of a part's share."""
        return self.start + UNTIL[part] * self.budget - self.clock()

    def _measure_module(self) -> tuple[Part, Part, Part]:
        """What the module says of the samples to fit, to choose and to test with: as many as there is time for."""
        order = rivals.drawn_order(len(self.X), self.seed)
        test = rivals.drawn_order(len(self.X_held), self.seed + 1)[:HELD]
        choose, fit = order[: min(CHOOSE, len(order) // 5)], order[min(CHOOSE, len(order) // 5) :][:FIT]
        self._say("the module itself")
        rows = batch_of(self.X)
        judged.said_of(self.module, self.X_held[: rows // 4 + 1])  # what a first call does is not timed
        began = self.clock()
        judged.said_of(self.module, self.X_held[:rows])
        self.per_row = max(self.clock() - began, 1e-6) / min(rows, len(self.X_held))
        most = max(int(0.9 * self._left("module") / self.per_row), 200)
        test, choose = test[: max(most // 2, 100)], choose[: max(most // 8, 50)]
        self.labelled_rows = fit
        fit = fit[: max(most - len(test) - len(choose), 100)]
        parts = []
        for X, y, rows in ((self.X, self.y, fit), (self.X, self.y, choose), (self.X_held, self.y_held, test)):
            outputs = judged.said_of(self.module, X[rows])
            parts.append(Part(X[rows], outputs, outputs.argmax(1) if y is None else y[rows]))
        self.settings |= {"fit": len(fit), "choose": len(choose), "held": len(test)}
        accuracy, _, entropy = quality(parts[2].outputs, parts[2])
        self.about |= {"accuracy": accuracy, "cross_entropy": entropy, "parameters": self._parameters()}
        return parts[0], parts[1], parts[2]

    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    def _add(self, name: str, kind: str, k: int | None, network: nn.Module, trained: Trained | None = None) -> None:
        """Measures a network on the samples held out, and keeps it."""
        assert self.parts is not None
        test = self.parts[2]
        outputs = outputs_of(network, test.X)
        if not outputs.isfinite().all():
            self.untried[name] = "its outputs are not finite"
            return
        accuracy, agreement, entropy = quality(outputs, test)
        loss, interval = paired_loss(test.says == test.labels, (outputs.argmax(1) == test.labels)[None])
        keys = "seen", "passes", "rate", "seconds"
        extra = {} if trained is None else {key: getattr(trained, key) for key in keys}
        self.candidates.append(
            StepCandidate(name, kind, k, accuracy, agreement, entropy, loss, interval, network=network.eval(), **extra)
        )

    def _stop_after(self, k: int) -> float:
        """Measures the module stopped after k steps; returns the seconds of its outputs for a sample."""
        self._say(f"stopped after {k} steps")
        assert self.parts is not None
        began = self.clock()
        name = f"{k} of its steps"
        with self._or_untried(name):
            self._add(name, "stopped", k, stopped(self.module, k, self.steps))
        return (self.clock() - began) / len(self.parts[2])

    def _measure_stopped(self) -> None:
        seconds = 0.0
        for k in LADDER[1:]:
            seconds = self._stop_after(k)
        if self._good_steps() < math.inf:
            return
        before = LADDER[-1]
        for k in FURTHER:
            if seconds * k / before > self.per_row:  # both are rough, and what is not faster does not count
                break
            before, seconds = k, self._stop_after(k)

    def _good_steps(self) -> float:
        """The fewest steps of a network that is within the tolerance."""
        return min((c.k for c in accepted(self.candidates, self.tolerance) if c.k), default=math.inf)

    def _measure_refitted(self) -> None:
        assert self.parts is not None
        fit, choose, _ = self.parts
        self.layer = students.last_linear(self.module, fit.X[:2])
        if self.layer is None:
            self.untried[KINDS["refitted"]] = "the module's outputs are not those of a linear layer that is used once"
            return
        few = fit.first(students.REFITTED_ON)
        tried = [c.k for c in self.candidates if c.kind == "stopped" and c.k]
        for k in [k for k in tried if k < self._good_steps()]:
            name = f"{_steps(k)}, last layer refitted"
            self._say(name)
            with self._or_untried(name):
                network = stopped(self.module, k, self.steps, shared=False)
                self._add(name, "refitted", k, students.refitted(network, self.layer, few, choose))

    def _measure_students(self) -> None:
        assert self.parts is not None
        fit, choose, _ = self.parts
        wanted = [(k, way) for k in STUDENTS for way in (False, True) if k < self._good_steps()]
        wanted = [(k, way) for k, way in wanted if not way or k in CONSISTENT]
        for number, (k, way) in enumerate(wanted):
            name = f"{_steps(k)}, distilled" + " along the iteration" * way
            self._train(
                name,
                "consistent" if way else "distilled",
                k,
                lambda seconds, k=k, way=way: students.distilled(
                    self.module,
                    k,
                    fit,
                    choose,
                    seconds=seconds,
                    clock=self.clock,
                    seed=self.seed,
                    steps=self.steps,
                    layer=self.layer,
                    consistent=way,
                ),
                self._left("students") / (len(wanted) - number),
            )

    def _measure_rivals(self) -> None:
        assert self.parts is not None
        fit, choose, _ = self.parts
        if (
            self.y is not None
        ):  # they learn from the labels, and of those there are more than outputs where these are slow
            fit = Part(self.X[self.labelled_rows], torch.empty(0), self.y[self.labelled_rows])
        wanted = rivals.rivals(self.module, fit.X, self.classes, self.steps, self.seed)
        if not wanted:
            self.untried[KINDS["explicit"]] = "the samples are whole numbers, which a plain network does not take"
        for number, rival in enumerate(wanted):
            self._train(
                rival.name,
                rival.kind,
                None,
                lambda seconds, rival=rival: rivals.trained(
                    rival, fit, choose, seconds=seconds, clock=self.clock, seed=self.seed, most_seen=self.seen
                ),
                self._left("rivals") / (len(wanted) - number),
            )

    def _train(self, name: str, kind: str, k: int | None, make: Callable[[float], Trained], seconds: float) -> None:
        """Trains a network for so many seconds and measures it; what fails is said, and the rest goes on."""
        self._say(f"training {name}")
        with self._or_untried(name):
            trained = make(0.95 * seconds)
            self._add(name, kind, k, trained.network, trained)

    def _measure_cost(self) -> None:
        assert self.parts is not None
        self._say("time and memory")
        networks = {c.name: c.network for c in self._worth_timing() if c.network is not None}
        seconds = max(self._left("cost"), 0.05 * self.budget) / 1.5
        report = compared(self.module, networks, self.parts[2].X, seconds, self.clock)
        self.about["cost"] = report.pop("")
        for candidate in self.candidates:
            candidate.cost = report.get(candidate.name)
        of_steps: dict[int | None, dict] = {c.k: c.cost for c in self.candidates if c.k and c.cost}
        for candidate in self.candidates:  # the same network with other weights takes the same time
            candidate.cost = candidate.cost or of_steps.get(candidate.k)

    def _worth_timing(self) -> list[StepCandidate]:
        """Returns a candidate of each number of steps, and every one of another form."""
        seen: dict[object, StepCandidate] = {}
        for candidate in self.candidates:
            seen.setdefault(candidate.k or candidate.name, candidate)
        return list(seen.values())

    # ------------------------------------------------------------------------------------------------------------
    # what is known

    def conclude(self) -> StepVerdict:
        """Returns the verdict on what has been measured so far."""
        if self.parts is None:
            answer, chosen, reason = decide([], self._known(0.0, 0.0, 0, 1))
        else:
            test = self.parts[2]
            frequent = 100 * test.labels.bincount().max().item() / len(test)
            known = self._known(self.about["accuracy"], frequent, len(test), len(self.labelled_rows))
            answer, chosen, reason = decide(self.candidates, known)
        return StepVerdict(
            answer,
            reason,
            tuple(self.candidates),
            chosen,
            self.about,
            self.settings,
            self.clock() - self.start,
            self.untried,
            self.X_held[:EXAMPLES],
        )

    def _known(self, accuracy: float, frequent: float, held: int, samples: int) -> Known:
        passes = min(PASSES, 0.95 * self.seen / max(samples, 1))
        return Known(self.tolerance, accuracy, frequent, held, self.labelled, passes)


def _steps(k: int) -> str:
    return f"{k} step{'s' * (k > 1)}"
