"""What the replacement of a trained DEQ loses is measured: of explicit networks, readouts solved on held-in samples.

The weights of a trained DEQ are not random, and no theory says what another network in its place would lose. So we
build each candidate, with first-layer weights of its own or with the DEQ's B. We solve its readout by ridge regression
on the labels or on the DEQ's outputs, and try both networks on samples that neither readout has seen. The held-in
samples have a part of their own on which the replacement is chosen, so that the loss on the held-out ones is fair.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import one_hot
from tqdm import tqdm

from deq_enn.machines.readout import Readout, solve_targets
from deq_enn.networks.enn import ENN
from deq_enn.networks.export import ExportedENN, network_of
from deq_enn.networks.trained_deq import TrainedDEQ
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.utils.deadline import OutOfTime, deadline
from deq_enn.utils.intervals import paired_loss
from deq_enn.utils.random import generator
from deq_enn.verdicts.candidates import Network, Scales, networks, plain_networks
from deq_enn.verdicts.losses.measurements import FIRST_SEED

BATCH = 512  # samples passed through the DEQ at once
FIT = 10_000  # samples that a readout is solved on, at most
HELD = 10_000  # samples that the loss is measured on, at most
MATCHING = 0.3  # share of the budget after which no more matches are looked for
FEWEST = 40, 20  # samples held in and held out, at least


@dataclass(eq=False)
class Replacement:
    """This is a network in the place of a trained DEQ, with what it loses, in the mean over `seeds` draws of weights.

    name, network : of `candidates.Network`.
    first : "drawn" weights of the first layer, or "B", the DEQ's.
    fitted_to : "labels" or "outputs", what the readout was solved for.
    chosen_by : accuracy in % on the samples that choose.
    accuracy : in % on the held-out samples. first_accuracy : that of `enn` with `readout` alone, which are exported.
    agreement : share of the held-out samples, in %, which it classifies as the DEQ does.
    loss, loss_interval : the DEQ's accuracy less its own on the held-out samples, in points, with the 90% interval over
        samples and seeds.
    enn, readout : of the first seed, for rows times `gain`.
    """

    name: str
    network: Network
    first: str
    fitted_to: str
    chosen_by: float
    accuracy: float
    first_accuracy: float
    agreement: float
    loss: float
    loss_interval: tuple[float, float]
    seeds: int
    enn: ENN
    readout: Readout
    gain: float

    def exported(
        self, mean: torch.Tensor | None = None, scale: float = 1.0, labels: Sequence[Any] | None = None
    ) -> ExportedENN:
        """Returns `enn` with `readout` for rows x of which the DEQ takes (x - mean)/scale."""
        if labels is not None and len(labels) != self.enn.readout.out_features:
            labels = None  # the DEQ has outputs for classes that these samples have not
        return network_of(self.enn, self.readout, mean, scale / self.gain, labels)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the networks, ready for JSON."""
        keys = "name", "first", "fitted_to", "chosen_by", "accuracy", "first_accuracy", "agreement", "loss"
        return {key: getattr(self, key) for key in (*keys, "loss_interval", "seeds")}


@dataclass(frozen=True)
class MeasuredLosses:
    """These are the losses that `replacements` has measured.

    replacements : the one to choose first.
    accuracy : of the DEQ on the held-out samples, in %.
    labelled : whether there were labels; else the DEQ's own classes stand for them.
    refused : {kernel and family: why it has no match}.
    untried : number of networks that there was no time for.
    fit, choose, held : numbers of samples that readouts were solved on, that chose, and that losses were measured on.
    """

    replacements: list[Replacement]
    accuracy: float
    labelled: bool
    refused: dict[str, str]
    untried: int
    fit: int
    choose: int
    held: int


@dataclass(frozen=True)
class _Part:
    """These are samples of one purpose, with the DEQ's outputs there, and the labels or the DEQ's own classes."""

    X: torch.Tensor
    outputs: torch.Tensor
    labels: torch.Tensor

    @property
    def deq_says(self) -> torch.Tensor:
        return self.outputs.argmax(1)


@dataclass(frozen=True)
class _Trial:
    """This is a network to be tried with the weights of one seed."""

    network: Network
    first: str
    seed: int


@dataclass
class _Tries:
    """This is what a network says with the weights of several seeds; enn and readout are of the first."""

    network: Network
    enn: ENN
    readout: Readout
    accuracies: list[float] = field(default_factory=list)  # shares, on the samples that choose
    says: list[torch.Tensor] = field(default_factory=list)  # classes of the held-out samples


def candidates_of(deq: TrainedDEQ, X: torch.Tensor) -> tuple[list[Network], dict[str, str], float]:
    """Returns the networks that may replace a trained DEQ on X (n, p), why others do not exist, and the input's gain.

    They are those of the random DEQ whose weights have the same mean squares. Where that one has no equilibrium, only
    the plain networks remain.
    """
    sigma_a2, gain = deq.sigma_a2, deq.gain
    if not math.isfinite(gain):
        gain = 1.0
    tau0 = gain * estimate_tau0(X)
    try:
        return *networks(Scales(deq.activation, sigma_a2, tau0), tau0), gain
    except ValueError as error:
        return plain_networks(deq.activation, 0.5, tau0), {"matched": str(error)}, gain


def replacements(
    deq: TrainedDEQ,
    X: torch.Tensor,
    y: torch.Tensor | None,
    held: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    *,
    width: int | None = None,
    seed: int = 0,
    budget: float = 60.0,
    most_seeds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> MeasuredLosses:
    """Measures the loss of every candidate, and puts the one to choose first.

    Parameters
    ----------
    X, y : (n, p), and labels (n,) from 0 on or None. A DEQ does better on samples that it was trained on, and the loss
        on them is then too large: pass others, here or as `held`.
    held : (X, y) of test samples; by default the last fifth of a random order of the samples.
    width : of the networks; by default the DEQ's.
    budget : seconds. At least one network is tried, then as many as there is time for, with up to `most_seeds` seeds.

    Raises
    ------
    ValueError : too few samples, or labels beyond the DEQ's outputs.
    ConvergenceError : the DEQ has no equilibrium for a sample.
    """
    start, end = clock(), clock() + budget
    X = X.to(deq.W)
    fit, choose, test = _parts(deq, X, y, held, seed)
    with deadline(clock, start + MATCHING * budget):
        candidates, refused, gain = candidates_of(deq, X)
    X_fit, X_choose, X_test = (part.X * gain for part in (fit, choose, test))
    width = len(deq.W) if width is None else width
    targets = {"outputs": fit.outputs.double()}
    if y is not None:
        targets = {"labels": one_hot(fit.labels, deq.readout.out_features).double()} | targets
    trials = _trials(candidates, most_seeds, with_deq_weights=width == len(deq.W))
    tried: dict[tuple[str, str, str], _Tries] = {}
    for trial in tqdm(trials, desc="replacements", leave=False, disable=None, delay=1):
        if tried and clock() > end:
            break
        enn = _build(trial, deq, width, seed)
        with contextlib.suppress(OutOfTime), deadline(clock, end) if tried else contextlib.nullcontext():
            said = {}
            for name, target in targets.items():
                readout = _fitted(enn, X_fit, target)
                said[name] = readout, _says(enn, readout, X_choose), _says(enn, readout, X_test)
            for name, (readout, says_choose, says_test) in said.items():  # of a trial all is kept, or nothing
                tries = tried.setdefault((trial.network.name, trial.first, name), _Tries(trial.network, enn, readout))
                tries.accuracies.append(_share(says_choose == choose.labels.cpu()))
                tries.says.append(says_test)
    results = [_summary(name, first, target, tries, test, gain) for (name, first, target), tries in tried.items()]
    results.sort(key=lambda replacement: -replacement.chosen_by)
    return MeasuredLosses(
        results,
        accuracy=100 * _share((test.deq_says == test.labels).cpu()),
        labelled=y is not None,
        refused=refused,
        untried=len(trials) // most_seeds - len(tried) // len(targets),
        fit=len(fit.X),
        choose=len(choose.X),
        held=len(test.X),
    )


# ---------------------------------------------------------------------------------------------------------------
# the samples


def _parts(deq, X, y, held, seed) -> tuple[_Part, _Part, _Part]:
    """Returns the samples to fit, to choose and to test with, and what the DEQ says of them."""
    parts = [(part, _outputs(deq, part), labels) for part, labels in _split(X, y, held, seed)]
    fit, choose, test = (
        _Part(part, outputs, outputs.argmax(1) if labels is None else labels.to(outputs.device))
        for part, outputs, labels in parts
    )
    largest, classes = max(part.labels.max().item() for part in (fit, choose, test)), deq.readout.out_features
    if largest >= classes:
        raise ValueError(
            f"the labels go up to {largest}, and the DEQ has {classes} "
            "outputs: labels 0, 1, ... in the order of its outputs are needed"
        )
    return fit, choose, test


def _split(X, y, held, seed):
    """Returns (samples, labels or None) to fit, to choose and to test with."""
    order = torch.randperm(len(X), generator=generator("replacement", seed))
    if held is None:
        count = max(len(X) // 5, 1)
        order, last = order[:-count], order[-count:]
        held = X[last], None if y is None else y[last]
    X_held, y_held = held
    rows = torch.randperm(len(X_held), generator=generator("held", seed))[:HELD]  # a file may be sorted by its labels
    X_held, y_held = X_held[rows], None if y_held is None else y_held[rows]
    order = order[: FIT + FIT // 4]
    count = max(len(order) // 5, 1)
    if len(order) < FEWEST[0] or len(X_held) < FEWEST[1]:
        raise ValueError(f"{len(X)} samples are too few to measure a loss: at least {sum(FEWEST)} are needed")
    return [
        *((X[rows], None if y is None else y[rows]) for rows in (order[:-count], order[-count:])),
        (X_held.to(X), y_held),
    ]


def _outputs(model, X):
    with torch.no_grad():
        return torch.cat([model(rows) for rows in X.split(BATCH)])


# ---------------------------------------------------------------------------------------------------------------
# the networks


def _trials(candidates, most_seeds, with_deq_weights) -> list[_Trial]:
    """Returns all networks with the first seed, then with the second, and so on; those with the DEQ's B first."""
    firsts = ("B", "drawn") if with_deq_weights else ("drawn",)
    return [_Trial(network, first, seed) for seed in range(most_seeds) for first in firsts for network in candidates]


def _build(trial, deq, width, seed) -> ENN:
    p, classes = deq.U.shape[1], deq.readout.out_features
    enn = trial.network.build(p, width, classes, FIRST_SEED + seed + trial.seed).to(deq.W)
    if trial.first == "B":
        with torch.no_grad():
            enn.weights[0].copy_(deq.U / deq.U.square().mean().sqrt())
    return enn


def _fitted(enn, X, target) -> Readout:
    mean = target.mean(0)
    readout, _ = solve_targets(enn, X, target - mean, mean, device=target.device)
    return readout


def _says(enn, readout, X) -> torch.Tensor:
    """Returns the classes of the samples."""
    return readout.predict(enn, X, X.device).mean.argmax(1)


def _share(right) -> float:
    return right.double().mean().item()


def _summary(name, first, fitted_to, tries, test, gain) -> Replacement:
    labels, deq_says, says = test.labels.cpu(), test.deq_says.cpu(), torch.stack(tries.says)
    right = (says == labels).double()
    loss, interval = paired_loss(deq_says == labels, says == labels)
    return Replacement(
        name,
        tries.network,
        first,
        fitted_to,
        chosen_by=100 * sum(tries.accuracies) / len(tries.accuracies),
        accuracy=100 * right.mean().item(),
        first_accuracy=100 * right[0].mean().item(),
        agreement=100 * _share(says == deq_says),
        loss=loss,
        loss_interval=interval,
        seeds=len(says),
        enn=tries.enn,
        readout=tries.readout,
        gain=gain,
    )
