"""The verdict on a trained DEQ is that of a random one while its weights are random, else it is by measured losses."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.cost import BATCH, costs
from deq_enn.networks.deq import DEQ, as_drawn
from deq_enn.networks.fixed_point import Solver
from deq_enn.networks.trained_deq import TrainedDEQ, adapt, understood, unwrapped
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.unrolling.by_steps import VerdictBySteps
from deq_enn.unrolling.decision import ALARMING, alarming
from deq_enn.unrolling.steppers import ADVICE, Steps, can_be_stopped
from deq_enn.utils.deadline import deadline
from deq_enn.verdicts.assumptions import check_data, check_held, check_repeated, check_request, integer_labels
from deq_enn.verdicts.at_initialisation import VerdictAtInitialisation, settings_of
from deq_enn.verdicts.candidates import EXAMPLES, NO_TIME, Fitting
from deq_enn.verdicts.convolutional import VerdictOnConvolutions
from deq_enn.verdicts.decision import Decision, Question, but_for_the_matches, cost_sentence, loss_sentence
from deq_enn.verdicts.measured_loss import MeasuredLosses, Replacement, replacements
from deq_enn.verdicts.result import RISK, Candidate, Verdict
from deq_enn.verdicts.weight_drift import drift

DRIFT_SHARE = 0.3  # share of the budget that the comparison with random weights may take
COST_SHARE = 0.15  # share of the time left for timing the networks
OFF_CENTRE = 0.05  # mean of phi, relative to its standard deviation, from which on phi does not count as centred

AT_INITIALISATION = "a solver is for a trained DEQ: at initialisation many draws of it are measured, by Picard"

Labelled = tuple[Any, Any]  # samples, and their labels or None


class VerdictAfterTraining:
    """This is a verdict in the making: `run`, then `conclude`, as of `VerdictAtInitialisation`.

    Parameters
    ----------
    deq : a DEQ that `networks.trained_deq.adapt` understands.
    X, y : samples, and labels 0, 1, ... in the order of the DEQ's outputs, or None.
    held : samples and labels that the DEQ was not trained on; by default a fifth of X.
    """

    def __init__(
        self,
        deq: Any,
        X: Any,
        y: Any = None,
        *,
        held: Labelled | None = None,
        width: int | None = None,
        budget: float = 60.0,
        tolerance: float = 0.5,
        seed: int = 0,
        decide_on: str = "draw",
        risk: float = RISK,
        solver: Solver | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        check_request(budget, tolerance, width, decide_on, risk)
        self.clock, self.start, self.end = clock, clock(), clock() + budget
        self.original = unwrapped(deq)
        p = understood(self.original, solver).U.shape[1]
        self.X, self.y = _checked(X, y, p)
        if self.y is not None:
            check_repeated(self.y)
        check_held(held)
        self.deq = _adapted(self.original, self.X, solver)
        for name, weight in (("A", self.deq.W), ("B", self.deq.U)):
            if not weight.any():
                what = {"A": "there is nothing to iterate", "B": "it says the same of every sample"}[name]
                raise ValueError(f"all entries of the DEQ's {name} are 0: {what}")
        self.held = None if held is None else _checked(*held, p)
        if held is not None and (y is None) != (held[1] is None):
            raise ValueError("the samples and those held out must both have labels, or neither")
        width = len(self.deq.W) if width is None else width
        self.question = Question(p, len(self.X), width, tolerance, decide_on, risk)
        self.seed = seed
        classes = None if y is None else self.deq.readout.out_features
        self.settings = settings_of(self.deq, self.question, budget, classes, seed, self.deq.W.device)
        del self.settings["risk"]  # the ends of an interval decide, but where the weights are as random
        self.drift: dict | None = None
        self.as_random: VerdictAtInitialisation | None = None
        self.losses: MeasuredLosses | None = None
        self.cost: dict | None = None

    # ------------------------------------------------------------------------------------------------------------
    # the work

    def run(self, progress: bool = False) -> None:
        """Does the work; with `progress` it shows a bar."""
        with deadline(self.clock, self.start + DRIFT_SHARE * (self.end - self.start)):
            self.drift = drift(self.deq, self.X, self.seed)
        unlike = None if self.drift["left"] else self._unlike()
        if not self.drift["left"] and unlike is None:
            self.as_random = self._as_random()
            self.as_random.run(progress)
            return
        self.drift["unlike"] = unlike
        left = max(self.end - self.clock(), 1.0)
        self.losses = replacements(
            self.deq,
            self.X,
            self.y,
            self.held,
            width=self.question.width,
            seed=self.seed,
            budget=(1 - COST_SHARE) * left,
            clock=self.clock,
        )
        best = self.losses.replacements[0]
        self.cost = costs(self.deq, best.enn, self.X[:BATCH], COST_SHARE * left)

    def _unlike(self) -> str | None:
        """Says in words in what this network differs from every random DEQ of the theory; None if in nothing."""
        deq = self.deq
        if deq.bias is not None:
            return "it has a bias, which the theory has not"
        if not math.isfinite(deq.gain):
            return f"its weights have the mean square of sigma_a^2 = {deq.sigma_a2:.3g}, which must be below 1"
        try:
            moments = gaussian_moments(
                deq.activation, get_tau(deq.activation, deq.sigma_a2, deq.gain * estimate_tau0(self.X))
            )
        except ValueError as error:
            return str(error)
        zero = torch.zeros(1, dtype=torch.float64)
        mean = moments.mean - (deq.activation.fn(zero) - deq.phi(zero)).item()
        if not isinstance(self.original, DEQ) and abs(mean) > OFF_CENTRE * math.sqrt(moments.variance):
            return f"its activation is not centred: its mean is {mean:.3g} on these data"
        return None

    def _as_random(self) -> VerdictAtInitialisation:
        """Returns the verdict in the making on the random DEQ that this one cannot be told from."""
        deq, X = self.original, self.X
        budget = max(self.end - self.clock(), 1.0)
        if not isinstance(deq, DEQ):
            own = self.deq
            X = self.X * own.gain
            deq = DEQ(
                own.activation, self.question.p, len(own.W), own.readout.out_features, own.sigma_a2, estimate_tau0(X)
            ).to(own.W)
        return VerdictAtInitialisation(
            deq,
            X,
            self.y,
            budget=budget,
            tolerance=self.question.tolerance,
            seed=self.seed,
            width=self.question.width,
            decide_on=self.question.of,
            risk=self.question.risk,
            clock=self.clock,
        )

    # ------------------------------------------------------------------------------------------------------------
    # what is known

    def conclude(self) -> Verdict:
        """Returns the verdict on what has been measured so far."""
        if self.as_random and self.drift:
            verdict = self.as_random.conclude()
            verdict.drift, verdict.rows = self.drift, self.X[:EXAMPLES].clone()
            if isinstance(verdict.maker, Fitting) and not isinstance(self.original, DEQ):
                verdict.maker.gain = self.deq.gain
            verdict.reason.insert(
                0,
                f"The weights cannot be told from random ones (p = {self.drift['p']:.2g}), so this "
                "is as at initialisation.",
            )
            return verdict
        if not self.losses or not self.drift:
            reason = ["Nothing has been measured yet: allow more time (--budget)."]
            if self.drift:
                reason.insert(0, why_measured(self.drift))
            return self._verdict(Decision("undecided", None, reason))
        losses, candidates = self.losses, tuple(map(_candidate, self.losses.replacements))
        best = candidates[0]
        best.cost = self.cost and self.cost["ratios"] | {"measured": self.cost}
        missing = [name for name, why in losses.refused.items() if why == NO_TIME]
        return self._verdict(
            but_for_the_matches(self._decide(best, losses, self.drift), missing),
            candidates,
            losses.refused,
            {"accuracy": losses.accuracy, "fit": losses.fit, "choose": losses.choose, "held": losses.held},
        )

    def _verdict(self, decision, candidates=(), refused=None, deq=None) -> Verdict:
        return Verdict(
            decision.answer,
            decision.reason,
            {},
            candidates,
            decision.chosen,
            self.settings,
            self.clock() - self.start,
            refused or {},
            deq or {},
            self.drift,
            decision.chosen and decision.chosen.replacement,
            self.X[:EXAMPLES].clone(),
        )

    def _decide(self, best, losses, drift) -> Decision:
        tolerance, (low, high) = self.question.tolerance, best.known_interval
        reason = [why_measured(drift)]
        if losses.untried:
            reason.append(f"{losses.untried} networks were not tried for want of time (--budget).")
        if not losses.labelled:
            reason.append(
                "There are no labels: the loss is the share of samples on which it says another class than the DEQ."
            )
        measured = f"{loss_sentence(best, self.question.width)} on {losses.held} samples that were held out"
        if losses.labelled and alarming(best.loss, best.known_interval):
            return Decision("undecided", None, [*reason, f"{measured}. {ALARMING}"])
        if high < tolerance:
            costs_more = [cost_sentence(best.cost)] if best.cost else []
            return Decision("replace", best, [*reason, f"{measured}, less than {tolerance:g}.", *costs_more])
        if low > tolerance:
            worst = f"{measured}, more than {tolerance:g}, and no other did better on the samples that choose."
            return Decision("keep", None, [*reason, worst])
        between = f"{measured}: {tolerance:g} lies between. More samples held out would decide it."
        return Decision("undecided", None, [*reason, between])


AS_IT_IS = "judged as it is, with the solver that it has: set that in the module, and hand in no solver"
PendingVerdict = VerdictAtInitialisation | VerdictAfterTraining | VerdictBySteps


def begin(
    deq: Any,
    X: Any,
    y: Any,
    *,
    held: Labelled | None = None,
    solver: Solver | None = None,
    steps: Steps | None = None,
    seen: float | None = None,
    **settings: Any,
) -> PendingVerdict:
    """Returns the verdict in the making for this DEQ: at initialisation if its weights are as drawn.

    One that was trained is judged as it is where it can be stopped after k steps, by itself or by `steps`; unless it
    has the form z = phi(Az + Bx + b), and a solver is given or no samples are held out.
    """
    check_held(held)
    asked = "budget", "tolerance", "width", "decide_on", "risk", "seed"
    check_request(**{key: settings[key] for key in asked if key in settings}, seen=seen)
    settings |= {"seed": int(settings.get("seed", 0))}  # NumPy's integers are none to JSON
    deq = unwrapped(deq)
    if isinstance(deq, ConvDEQ) and deq.as_drawn() and steps is None:
        _check_unused(solver, held, seen)
        return VerdictOnConvolutions(deq, X, y, **settings)
    drawn = as_drawn(deq)
    stoppable, unlike = not drawn and can_be_stopped(deq), None if drawn else _unlike_the_form(deq)
    if steps is not None or stoppable and (held is not None and solver is None or unlike):
        if solver is not None:
            which = "with steps= a module is" if steps is not None else f"{unlike}; such a module is"
            raise ValueError(f"{which} {AS_IT_IS}")
        settings = {key: value for key, value in settings.items() if key not in ("width", "decide_on", "risk")}
        return VerdictBySteps(deq, X, y, held=held, steps=steps, seen=seen, **settings)
    if unlike:
        advice = f". Nor can it be stopped after k steps: {ADVICE}" if isinstance(deq, nn.Module) else ""
        raise ValueError(f"{unlike}{advice}")
    if not drawn:
        return VerdictAfterTraining(deq, X, y, held=held, solver=solver, **settings)
    _check_unused(solver, held, seen)
    pending = VerdictAtInitialisation(deq, X, y, **settings)
    adapt(deq, pending.X)  # refuses a subclass whose forward is another
    return pending


def _check_unused(solver: Solver | None, held: Labelled | None, seen: float | None) -> None:
    """Refuses a solver of a DEQ as it was drawn, and warns that nothing else of a trained DEQ is used."""
    if solver is not None:
        raise ValueError(AT_INITIALISATION)
    unused = [name for name, value in (("held", held), ("seen", seen)) if value is not None]
    if unused:
        warnings.warn(
            "this DEQ is as its seed draws it: each sample of X is predicted by all others, and "
            f"{' and '.join(unused)} not used",
            stacklevel=3,
        )


def _unlike_the_form(deq: Any) -> str | None:
    """Says why the parts of a module are not those of z = phi(Az + Bx + b); None where they are."""
    try:
        understood(deq)
    except ValueError as error:
        return str(error)
    return None


def _adapted(module: Any, X: torch.Tensor, solver: Solver | None) -> TrainedDEQ:
    """Returns `adapt(module, X)`; its error says too how a module is judged whose forward does something else."""
    try:
        return adapt(module, X, solver=solver)
    except ValueError as error:
        if can_be_stopped(module):
            raise
        how = "my_function(module, k) -> the module stopped after k steps, and held=(X_test, y_test)"
        raise ValueError(f"{error}. Or have it judged as it is: steps=my_function, {how}") from None


def why_measured(drift: dict) -> str:
    """Returns why the loss of a trained DEQ is measured and not predicted. drift : of `weight_drift.drift`."""
    if not drift["left"]:
        return f"The network is not one of the theory: {drift['unlike']}. The loss is measured."
    if drift["alone"]:
        return (
            "The weights have left the random regime: in random places they have no equilibrium. No loss is "
            "predicted; it is measured."
        )
    name, worst = max(drift["statistics"].items(), key=lambda item: item[1]["score"])
    return (
        f"The weights have left the random regime: {name}, {worst['value']:.3g}, is {worst['score']:.1f} "
        "standard deviations above that of shuffled ones. No loss is predicted; it is measured."
    )


def _candidate(replacement: Replacement) -> Candidate:
    first = "of the DEQ's B, " if replacement.first == "B" else ""
    return Candidate.of(
        replacement.network,
        name=f"{replacement.name}, {first}fitted to {replacement.fitted_to}",
        distance=None,
        loss=replacement.loss,
        loss_interval=replacement.loss_interval,
        replacement=replacement,
    )


def _checked(X, y, p) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns X in float32 and the labels as they are, both checked."""
    X, _, _ = check_data(X, y, p)
    if y is None:
        return X, None
    if not isinstance(y, torch.Tensor) and np.asarray(y).dtype.kind in "US":
        raise ValueError("the labels of a trained DEQ are 0, 1, ... in the order of its outputs; got strings")
    y = integer_labels(y, len(X))
    if y.min() < 0:
        raise ValueError(f"the labels of a trained DEQ are 0, 1, ... in the order of its outputs; got {y.min().item()}")
    return X, y
