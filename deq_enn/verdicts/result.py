"""A verdict as it is handed out: the answer, and the candidates with everything known about each.

torch is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from deq_enn.matching.families import Match
    from deq_enn.networks.enn import ENN
    from deq_enn.networks.export import ExportedENN
    from deq_enn.theory.activations import Activation
    from deq_enn.verdicts.candidates import Network
    from deq_enn.verdicts.losses.model import Interval
    from deq_enn.verdicts.losses.points import Measured
    from deq_enn.verdicts.measured_loss import Replacement

# what is said below the losses of a random DEQ; docs/calibration.md has the numbers behind it
NOTES = (
    "loss: test accuracy of the DEQ less that of the network, readouts solved exactly (ridge regression). By SGD, at a",
    "rate of its own, a network may lose points more or less: these intervals do not hold for it.",
)
RISK = 0.1  # probability of losing more than the tolerance below which a network may be taken, if no other is named
BEST_SHOWN = 10  # replacements of a trained DEQ in the table, at most


@dataclass(eq=False)
class Candidate:
    """This is a network that may replace the DEQ, with what is known about it. What is not known is None.

    name, kind, kernel, family, depth, layers, input_scale, match : of the network (`candidates.Network`).
    distance : {"ck": {relative, factor, with_factor}, "ntk": ...}, the spectral distance of its exact kernel to the
        DEQ's. It is None for the replacement of a trained DEQ, and where the budget was spent before.
    alignment : of the leading eigenvectors of its CK with the labels, 0 to 1 (`kernels.distance.label_alignment`).
    fluctuation : m times the mean squared relative error of an entry of its CK at width m, off the diagonal plus on it.
    infinite : {accuracy, samples, ridge, rms, difference, interval} of exact kernel ridge regression. difference is
        the loss in points with its 90% interval; rms compares the predictions with the DEQ's.
    loss, loss_interval : in points, at the width asked for, in the mean over draws of the weights, and its 90%
        interval. They are None where no network of finite width was measured.
    risk : probability that this loss is above the tolerance. None for a trained DEQ.
    draw_loss, draw_interval, draw_risk : the same of one draw: of the DEQ that was given and of the network of its
        seed. They are None for a trained DEQ, whose weights are the only ones.
    class_scores : of `losses.classes.ClassScores.to_dict`, where classes are unequal.
    width_from : the width from which on the risk of the mean is below the one that is taken.
    measured : the measurements that the loss rests on.
    cost : {inference, features, training_step, memory}, ratios DEQ/candidate, and measured, everything that
        `networks.cost.costs` returned. Networks of as many multiplications cost nearly the same: one is timed.
    network : the `candidates.Network`.
    replacement : of a trained DEQ, the `measured_loss.Replacement` whose loss was measured.
    """

    name: str
    kind: str
    kernel: str | None
    family: str | None
    depth: int
    layers: tuple[Activation, ...]
    input_scale: float
    match: Match | None
    distance: dict | None
    alignment: float | None = None
    fluctuation: float | None = None
    infinite: dict | None = None
    loss: float | None = None
    loss_interval: tuple[float, float] | None = None
    draw_loss: float | None = None
    draw_interval: tuple[float, float] | None = None
    risk: float | None = None
    draw_risk: float | None = None
    class_scores: dict | None = None
    width_from: int | None = None
    measured: tuple[Measured, ...] = ()
    cost: dict | None = None
    network: Network | None = field(default=None, repr=False)
    replacement: Replacement | None = field(default=None, repr=False)

    @classmethod
    def of(cls, network: Network, **known: Any) -> Candidate:
        """Returns the candidate that this network is, with what is known about it."""
        keys = "name", "kind", "kernel", "family", "depth", "layers", "input_scale", "match"
        return cls(**{key: getattr(network, key) for key in keys} | known, network=network)

    def keep_losses(self, mean: Interval, draw: Interval) -> None:
        """Keeps what is known of the loss in the mean over draws, and of that of one draw."""
        self.loss, self.loss_interval, self.risk = mean.mean, (mean.low, mean.high), mean.risk
        self.draw_loss, self.draw_interval, self.draw_risk = draw.mean, (draw.low, draw.high), draw.risk

    @property
    def ck_distance(self) -> float:
        """Returns the distance of its conjugate kernel, after the best rescaling; infinite where none is known."""
        return math.inf if self.distance is None else self.distance["ck"]["with_factor"]

    @property
    def known_interval(self) -> tuple[float, float]:
        """Returns the interval of a candidate whose loss is known."""
        assert self.loss_interval is not None, f"the loss of {self.name} is not known"
        return self.loss_interval

    def interval_of(self, of: str) -> tuple[float, float]:
        """Returns the known interval of one "draw", where there is one, or of the "mean"."""
        return self.draw_interval if of == "draw" and self.draw_interval is not None else self.known_interval

    def loss_of(self, of: str) -> float:
        """Returns the known loss of one "draw", where there is one, or the "mean"."""
        loss = self.draw_loss if of == "draw" and self.draw_loss is not None else self.loss
        assert loss is not None, f"the loss of {self.name} is not known"
        return loss

    def risk_of(self, of: str) -> float:
        """Returns the known risk of one "draw", where there is one, or of the "mean"."""
        risk = self.draw_risk if of == "draw" and self.draw_risk is not None else self.risk
        assert risk is not None, f"the loss of {self.name} is not known"
        return risk

    def build(self, p: int, width: int, classes: int, seed: int = 0) -> ENN:
        """Builds the network for inputs (n, p), with untrained weights."""
        assert self.network is not None, f"{self.name} was made without its network"
        return self.network.build(p, width, classes, seed)

    def work(self, p: int, width: int) -> int:
        """Returns how many multiplications the features of one sample of p entries take."""
        return self.network.work(p, width) if self.network else width * (p + (self.depth - 1) * width)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the network itself, ready for JSON."""
        keys = (
            "name",
            "kind",
            "kernel",
            "family",
            "depth",
            "input_scale",
            "distance",
            "alignment",
            "fluctuation",
            "infinite",
            "loss",
            "loss_interval",
            "draw_loss",
            "draw_interval",
            "risk",
            "draw_risk",
            "class_scores",
            "width_from",
            "cost",
        )
        return (
            ({} if self.replacement is None else self.replacement.to_dict())
            | {key: getattr(self, key) for key in keys}
            | {
                "layers": [layer.name for layer in self.layers],
                "parameters": None if self.match is None else list(self.match.parameters),
                "measured": [point.to_dict() for point in self.measured],
            }
        )


class Maker(Protocol):
    """This can make the chosen network with its readout: a replacement that was measured, or one yet to be fitted."""

    def exported(
        self, mean: Tensor | None = None, scale: float = 1.0, labels: Sequence[Any] | None = None
    ) -> ExportedENN:
        """Returns the network for rows x of which the DEQ takes (x - mean)/scale."""
        ...


@dataclass(eq=False)
class Verdict:
    """This is the answer, with everything that it rests on.

    answer : "replace", "keep", "undecided", or "majority" where the DEQ is no better than always saying the commonest
        class. reason : sentences.
    applies : of `assumptions.applicability`; empty for a trained DEQ.
    candidates, chosen : `Candidate`s; chosen is None unless the answer is "replace".
    settings : what was asked. seconds : the time taken.
    refused : {kernel and family: why it has no match}.
    deq : what was measured of the DEQ, such as its accuracies.
    drift : of a trained DEQ, how far its weights are from random ones (`weight_drift.drift`).
    maker, rows : what `export` writes and tries the programs with; None without a chosen network.
    labels : what the classes are called, in the order of the network's outputs; None where that is 0, 1, ...
    """

    answer: str
    reason: list[str]
    applies: dict
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    settings: dict
    seconds: float
    refused: dict = field(default_factory=dict)
    deq: dict = field(default_factory=dict)
    drift: dict | None = None
    maker: Maker | None = field(default=None, repr=False)
    rows: Tensor | None = field(default=None, repr=False)
    labels: Sequence[Any] | None = None

    def export(
        self, path: Path | str, mean: Tensor | None = None, scale: float = 1.0, labels: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """Writes the chosen network, with its readout, as enn.pt, enn.json, enn.pt2 and enn.onnx for a `path` enn.pt.

        For a trained DEQ it is the very network whose loss was measured, with its first weights
        (`Replacement.first_accuracy`). Else it has the weights of the verdict's seed, and the ridge regression on all
        samples for a readout.

        Parameters
        ----------
        mean, scale : for an exported network that takes rows x of which the DEQ takes (x - mean)/scale; by default it
            takes what the DEQ takes.
        labels : the names of the classes, for the files; by default those that the verdict was given.

        Returns
        -------
        what `networks.export.export` returns.

        Raises
        ------
        ValueError : there is no chosen network, or no readout as there were no labels; or the path cannot be written.
        """
        from deq_enn.networks.export import export

        if self.chosen is None or self.maker is None or self.rows is None:
            raise ValueError(f"{path} is not written: the answer is {self.answer}, so that no network was chosen")
        labels = self.labels if labels is None else labels
        rows = self.rows.flatten(1)  # images as they lie
        return export(self.maker.exported(mean, scale, labels), path, rows * scale + (0 if mean is None else mean))

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict ready for JSON; the candidates carry no networks."""
        return {
            "answer": self.answer,
            "reason": self.reason,
            "applies": self.applies,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "chosen": None if self.chosen is None else self.chosen.name,
            "refused": self.refused,
            "deq": self.deq,
            "drift": self.drift,
            "settings": self.settings,
            "seconds": self.seconds,
        }

    def table(self) -> str:
        """Returns a table with a line for each candidate, what its numbers mean, and the answer below it."""
        if any(candidate.replacement for candidate in self.candidates):
            lines = _measured_table(self.candidates)
        else:
            lines = [*_predicted_table(self.candidates), *_class_table(self.candidates)]
            if any(candidate.loss is not None for candidate in self.candidates):
                lines += ["", *NOTES]
        return "\n".join([*lines, "", f"{self.answer}: " + " ".join(self.reason)])


def _interval(ends):
    return "-" if ends is None else "[{:+.2f}, {:+.2f}]".format(*ends)


def _distances(distance):
    """Returns the two cells of the kernels' distances, or dashes where they were not compared."""
    if distance is None:
        return f"{'-':>12}{'-':>9}"
    return f"{distance['ck']['with_factor']:>12.1e}{distance['ntk']['with_factor']:>9.1e}"


def _predicted_table(candidates):
    """Returns the lines for candidates whose loss is predicted."""
    lines = [
        f"{'candidate':<28}{'CK distance':>12}{'NTK':>9}{'inf. width':>11}"
        f"{'loss, points':>14}{'90%: mean':>17}{'one draw':>17}{'from width':>11}{'speed':>7}"
    ]
    for candidate in candidates:
        infinite = "-" if candidate.infinite is None else f"{candidate.infinite['difference']:+.2f}"
        loss = "-" if candidate.loss is None else f"{candidate.loss:+.2f}"
        speed = "-" if candidate.cost is None else f"x{candidate.cost['features']:.3g}"
        lines.append(
            f"{candidate.name:<28}{_distances(candidate.distance)}{infinite:>11}{loss:>14}"
            f"{_interval(candidate.loss_interval):>17}{_interval(candidate.draw_interval):>17}"
            f"{candidate.width_from or '-':>11}{speed:>7}"
        )
    return lines


def _class_table(candidates):
    """Returns the lines on balanced accuracy and the area under the curve; none where classes are equal."""
    if not (scored := [candidate for candidate in candidates if candidate.class_scores]):
        return []
    first = scored[0].class_scores
    balanced, area = first["balanced_accuracy"]["deq"], first["auc"]["deq"]
    lines = [
        "",
        f"unequal classes, measured at width {first['width']} on {first['samples']} samples; the DEQ has a balanced "
        f"accuracy of {balanced:.1f}% and an area under the curve of {area:.1f}%",
        f"{'lost, points':<28}"
        + "".join(
            f"{title:>18}" for title in ("balanced accuracy", "90% interval", "area under curve", "90% interval")
        ),
    ]
    for candidate in scored:
        scores = candidate.class_scores
        cells = [(f"{scores[key]['loss']:+.2f}", _interval(scores[key]["interval"])) for key in first["measures"]]
        lines.append(f"{candidate.name:<28}" + "".join(f"{cell:>18}" for pair in cells for cell in pair))
    return lines


def _measured_table(candidates):
    """Returns the lines for the replacements of a trained DEQ that did best on the samples that choose."""
    lines = [
        f"{'replacement':<56}{'chosen by, %':>13}{'accuracy, %':>12}{'as the DEQ, %':>14}{'loss, points':>13}"
        f"{'90% interval':>18}"
    ]
    for candidate in candidates[:BEST_SHOWN]:
        r = candidate.replacement
        lines.append(
            f"{candidate.name:<56}{r.chosen_by:>13.2f}{r.accuracy:>12.2f}{r.agreement:>14.2f}{candidate.loss:>+13.2f}"
            f"{_interval(candidate.loss_interval):>18}"
        )
    if rest := len(candidates[BEST_SHOWN:]):
        lines.append(f"and {rest} that did worse on the samples that choose")
    return lines
