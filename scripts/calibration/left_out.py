"""How far leave-one-out is from new samples, on training sets and weights that are drawn anew many times.

The samples that are left out in turn share all others. So their mean may vary more than that of as many independent
samples, about the accuracy that the same readout has on new ones. How much more is the constant `dependence` of
`losses.points.Discrepancy`. It is measured on the cases that may set constants, with training sets that no verdict and
no outcome has seen.
"""

if __name__ == "__main__":
    raise SystemExit("left_out.py is a part of scripts/calibrate.py: run that")

import math
from dataclasses import dataclass

import numpy as np
import torch

from deq_enn.machines import precise_readout
from deq_enn.machines.copies import repeated
from deq_enn.machines.leave_one_out import LeftOut, Targets, from_features
from deq_enn.machines.precise_readout import features
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.verdicts.candidates import fitted, plain_networks
from deq_enn.verdicts.losses.points import measured
from scripts.calibration.cases import sets_constants
from scripts.calibration.fresh import KINDS, FreshCase, activation_of, fresh_cases, load_fresh
from scripts.calibration.outcomes import deq_of

REPEATS = 10  # training sets of a case
WIDEST = 256  # width of the cases, at most, so that all of it takes minutes


@dataclass(frozen=True)
class Repeat(FreshCase):
    """This is a case whose samples are drawn anew. number : of the draw, and the seed of the weights."""

    number: int = 0

    @property
    def name(self) -> str:
        return f"{super().name}, draw {self.number}"


def repeated_cases() -> list[FreshCase]:
    """Returns the fresh cases that may set constants, but not the widest, in few dimensions, or where answers agree.

    In few dimensions equilibria in float64 take long; where classes are unequal or copies many, networks hardly differ.
    """
    left = *KINDS["imbalanced or at chance"], *KINDS["few dimensions"], "oversampled"
    return [
        case for case in fresh_cases() if sets_constants(case.name) and case.width <= WIDEST and case.data not in left
    ]


def held_against_new_samples(case: FreshCase, path, repeats: int = REPEATS) -> dict:
    """Returns the losses of the plain networks by leave-one-out and on new samples, for each repeat.

    Repeats whose DEQ has no equilibrium are passed over. Losses are in points, beside the variances that they would
    have of independent samples.
    """
    record: dict = {"case": case.name, "draws": []}
    for number in range(repeats):
        again = Repeat(case.data, case.activation, case.sigma_a2, case.width, case.n, number)
        data = load_fresh(again, path)
        try:
            record["draws"].append(_losses(again, data, number))
        except ConvergenceError:
            continue
    return record


def _losses(case, data, seed):
    copies = repeated(data.X_train).left_out
    deq, deq_new = _right(deq_of(case, data, seed), data, copies)
    losses = {}
    for network in plain_networks(activation_of(case), case.sigma_a2, estimate_tau0(data.X_train)):
        own, own_new = _right(network.build(data.X_train.shape[1], case.width, data.n_classes, seed), data, copies)
        point = measured(case.width, (deq.int() - own.int()).numpy()[None], copies.numpy())
        new = 100 * (deq_new.double() - own_new.double())
        losses[network.name] = {
            "left_out": float(point.loss),
            "variance": float(point.of_samples),
            "new": new.mean().item(),
            "new_variance": new.var().item() / len(new),
        }
    return losses


def _right(model, data, copies):
    """Tells which training samples the others predict rightly, and which new samples the readout of all."""
    model, readout = fitted(model, data.X_train, data.y_train, data.n_classes, copies)
    targets, like = Targets(data.y_train, data.n_classes, copies), model.readout.weight
    F, F_new = (features(model, X.to(like)) for X in (data.X_train, data.X_test))
    left_out = precise_readout.leave_one_out if like.dtype == torch.float64 else from_features
    said: LeftOut = left_out(F, targets)
    return said.right, (F_new.double() @ readout.weights + readout.mean).argmax(1) == data.y_test


def dependence(record: dict) -> float:
    """Returns how many times the variance of independent samples that of the leave-one-out losses of a case is."""
    losses = [loss for draw in record["draws"] for loss in draw.values()]
    apart = [(loss["left_out"] - loss["new"]) ** 2 - loss["new_variance"] for loss in losses]
    return float(np.mean(apart) / np.mean([loss["variance"] for loss in losses]))


def bias(record: dict) -> tuple[float, float]:
    """Returns the mean of what leave-one-out says too much of the losses of a case, and its standard error."""
    apart = [np.mean([loss["left_out"] - loss["new"] for loss in draw.values()]) for draw in record["draws"]]
    return float(np.mean(apart)), float(np.std(apart, ddof=1)) / math.sqrt(len(apart))
