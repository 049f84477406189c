"""The verdict on a DEQ that was trained: as at initialisation while its weights are random, else a measured loss."""

import math
import time

import torch

from deq_enn.networks.cost import BATCH, costs
from deq_enn.networks.deq import DEQ
from deq_enn.networks.trained_deq import adapt, as_drawn
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.verdicts.at_initialisation import Inquiry
from deq_enn.verdicts.inputs import check_data
from deq_enn.verdicts.loss_model import LEVEL
from deq_enn.verdicts.measured_loss import replacements
from deq_enn.verdicts.result import Candidate, Verdict
from deq_enn.verdicts.weight_drift import drift

COSTS = 0.15  # of the time is for what the networks cost
MEAN = 0.05  # of phi, relative to its standard deviation, from which on it is not centred


def inquire(deq, X, y, *, held=None, **settings):
    """The `Inquiry` into a model.DEQ as it was drawn, or a `TrainedInquiry` into any other DEQ."""
    return Inquiry(deq, X, y, **settings) if as_drawn(deq) else TrainedInquiry(deq, X, y, held=held, **settings)


class TrainedInquiry:
    """A verdict in the making, as `inquiry.Inquiry`.

    Parameters
    ----------
    deq : what `trained_deq.adapt` understands.
    X, y : samples, and labels 0, 1, ... in the order of the DEQ's outputs, or None.
    held : the same of samples that the DEQ was not trained on; by default a fifth of X.
    """

    def __init__(
        self, deq, X, y=None, *, held=None, width=None, budget=60.0, tolerance=0.5, seed=0, clock=time.perf_counter
    ):
        if not (budget > 0 and tolerance > 0 and math.isfinite(budget + tolerance)):
            raise ValueError(f"budget and tolerance must be positive and finite, got {budget} and {tolerance}")
        self.clock, self.start, self.end = clock, clock(), clock() + budget
        self.original, self.deq = deq, adapt(deq)
        self.p = self.deq.U.shape[1]
        self.X, self.y = _checked(X, y, self.p)
        self.held = None if held is None else _checked(*held, self.p)
        if held is not None and (y is None) != (held[1] is None):
            raise ValueError("the samples and those held out must both have labels, or neither")
        self.width = len(self.deq.W) if width is None else width
        self.tolerance, self.seed = tolerance, seed
        self.settings = {
            "activation": self.deq.activation.name,
            "sigma_a2": self.deq.sigma_a2,
            "width": self.width,
            "tolerance": tolerance,
            "budget": budget,
            "n": len(self.X),
            "p": self.p,
            "classes": None if y is None else self.deq.readout.out_features,
            "seed": seed,
            "level": LEVEL,
        }
        self.drift, self.inner, self.found, self.facts, self.cost = None, None, [], {}, None

    def run(self, progress=False):
        self.drift = drift(self.deq, self.X, self.seed)
        if not self.drift["left"] and not (unlike := self._unlike()):
            self.inner = self._as_random()
            self.inner.run(progress)
            return
        self.drift["unlike"] = None if self.drift["left"] else unlike
        left = max(self.end - self.clock(), 1.0)
        self.found, self.facts = replacements(
            self.deq,
            self.X,
            self.y,
            self.held,
            width=self.width,
            seed=self.seed,
            budget=(1 - COSTS) * left,
            clock=self.clock,
        )
        best = self.found[0]
        self.cost = costs(self.deq, best.enn, self.X[:BATCH], COSTS * left)

    def _unlike(self) -> str | None:
        """What this network has that a random DEQ of the theory has not, in words."""
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
        if not isinstance(self.original, DEQ) and abs(mean) > MEAN * math.sqrt(moments.variance):
            return f"its activation is not centred: its mean is {mean:.3g} on these data"
        return None

    def _as_random(self):
        """The inquiry into the random DEQ that this one may be taken for."""
        settings = dict(
            budget=max(self.end - self.clock(), 1.0),
            tolerance=self.tolerance,
            seed=self.seed,
            width=self.width,
            clock=self.clock,
        )
        if isinstance(self.original, DEQ):
            return Inquiry(self.original, self.X, self.y, **settings)
        deq = self.deq
        X = self.X * deq.gain
        alike = DEQ(deq.activation, self.p, len(deq.W), deq.readout.out_features, deq.sigma_a2, estimate_tau0(X))
        return Inquiry(alike, X, self.y, **settings)

    def conclude(self) -> Verdict:
        """The verdict on what has been found so far."""
        if self.inner:
            found = self.inner.conclude()
            found.drift = self.drift
            found.reason.insert(
                0,
                f"The weights cannot be told from random ones (p = {self.drift['p']:.2g}), so this "
                "is as at initialisation.",
            )
            return found
        if not self.found:
            reason = ["Nothing has been measured yet: allow more time (--budget)."]
            if self.drift:
                reason.insert(0, self._why_measured())
            return Verdict(
                "undecided", reason, {}, (), None, self.settings, self.clock() - self.start, {}, {}, self.drift
            )
        candidates = tuple(map(_candidate, self.found))
        best = candidates[0]
        best.cost = self.cost and self.cost["ratios"] | {"measured": self.cost}
        answer, chosen, reason = self._answer(best)
        return Verdict(
            answer,
            reason,
            {},
            candidates,
            chosen,
            self.settings,
            self.clock() - self.start,
            self.facts["refused"],
            {key: self.facts[key] for key in ("accuracy", "fit", "choose", "held")},
            self.drift,
        )

    def _why_measured(self):
        if not self.drift["left"]:
            return f"The network is not one of the theory: {self.drift['unlike']}. The loss is measured."
        if not self.drift["settle"]:
            return (
                "The weights have left the random regime: in random places they have no equilibrium. No loss is "
                "predicted; it is measured."
            )
        name, worst = max(self.drift["statistics"].items(), key=lambda item: item[1]["score"])
        return (
            f"The weights have left the random regime: {name}, {worst['value']:.3g}, is {worst['score']:.1f} "
            "standard deviations above that of shuffled ones. No loss is predicted; it is measured."
        )

    def _answer(self, best):
        low, high = best.loss_interval
        said = [self._why_measured()]
        if self.facts["untried"]:
            said.append(f"{self.facts['untried']} networks were not tried for want of time (--budget).")
        if self.y is None:
            said.append(
                "There are no labels: the loss is the share of samples on which it says another class than the DEQ."
            )
        measured = (
            f"{best.name} at width {self.width} loses {best.loss:+.2f} points ({100 * LEVEL:.0f}% interval "
            f"{low:+.2f} to {high:+.2f}) on {self.facts['held']} samples that were held out"
        )
        if high < self.tolerance:
            said.append(f"{measured}, less than {self.tolerance:g}.")
            if best.cost:
                said.append(
                    "The DEQ takes {inference:.3g} times its time for one sample, {features:.3g} times for "
                    "features, {training_step:.3g} times for a training step, and {memory:.3g} times its "
                    "memory.".format(**best.cost)
                )
            return "replace", best, said
        if low > self.tolerance:
            return (
                "keep",
                None,
                [
                    *said,
                    f"{measured}, more than {self.tolerance:g}, and no other did better on the samples that choose.",
                ],
            )
        return (
            "undecided",
            None,
            [*said, f"{measured}: {self.tolerance:g} lies between. More samples held out would decide it."],
        )


def _candidate(one) -> Candidate:
    first = "of the DEQ's B, " if one.first == "B" else ""
    return Candidate.of(
        one.network,
        name=f"{one.name}, {first}fitted to {one.fitted_to}",
        distance=None,
        loss=one.loss,
        loss_interval=one.loss_interval,
        replacement=one,
    )


def _checked(X, y, p):
    """X float32 and y, which `check_data` has looked at; the labels stay what they are."""
    X, _, _ = check_data(X, y, p)
    if y is None:
        return X, None
    y = torch.as_tensor(y).long().cpu()
    if y.min() < 0:
        raise ValueError(f"the labels of a trained DEQ are 0, 1, ... in the order of its outputs; got {y.min().item()}")
    return X, y
