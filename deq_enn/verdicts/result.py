"""What a verdict consists of: the candidates with what was found of each, and the answer. torch is not needed here."""

import math
from dataclasses import dataclass, field


@dataclass(eq=False)
class Candidate:
    """A network that may replace the DEQ, and what was found of it.

    name, kind, kernel, family, depth, layers, input_scale, match : of the network (`candidates.Network`).
    distance : {"ck": {relative, factor, with_factor}, "ntk": ...}, spectral, of its exact kernel to the DEQ's.
    alignment : of the leading eigenvectors of its CK with the labels, 0 to 1 (`kernel_distance.label_alignment`).
    fluctuation : m times the squared relative error of its CK at width m.
    infinite : {accuracy, difference, interval, rms}: by exact kernel ridge regression; difference in points, DEQ less
        candidate, with its 90% interval; rms of the difference of the predictions.
    loss, loss_interval : in points, at the width asked for, and its 90% interval.
    width_from : the width from which on the upper end is below the tolerance, or None.
    measured : the points that the loss rests on.
    cost : {inference, features, training_step, memory}: ratios DEQ/candidate; measured : all that
        `inference_cost.costs` found. None where there was no time; networks of one depth cost nearly the same.
    network : the `candidates.Network`.
    replacement : of a trained DEQ, `replacement.Replacement`, whose loss is measured; `distance` is then None.
    """

    name: str
    kind: str
    kernel: str | None
    family: str | None
    depth: int
    layers: tuple
    input_scale: float
    match: object
    distance: dict
    alignment: float | None = None
    fluctuation: float | None = None
    infinite: dict | None = None
    loss: float | None = None
    loss_interval: tuple | None = None
    width_from: int | None = None
    measured: tuple = ()
    cost: dict | None = None
    network: object = field(default=None, repr=False)
    replacement: object = field(default=None, repr=False)

    @classmethod
    def of(cls, network, **found):
        """The candidate that a `candidates.Network` is, with what was found of it."""
        keys = "name", "kind", "kernel", "family", "depth", "layers", "input_scale", "match"
        return cls(**{key: getattr(network, key) for key in keys} | found, network=network)

    def build(self, p: int, width: int, classes: int, seed: int = 0):
        """The `model.ENN` for inputs (n, p), to be trained."""
        return self.network.build(p, width, classes, seed)

    def work(self, p: int, width: int) -> int:
        """Multiplications of the features of one sample."""
        return width * (p + (self.depth - 1) * width)

    def to_dict(self) -> dict:
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
            "width_from",
            "cost",
        )
        return (
            ({} if self.replacement is None else self.replacement.to_dict())
            | {key: getattr(self, key) for key in keys}
            | {
                "layers": [layer.name for layer in self.layers],
                "parameters": None if self.match is None else list(self.match.parameters),
                "measured": [
                    {k: v if math.isfinite(v) else "inf" for k, v in vars(point).items()} for point in self.measured
                ],
            }
        )


@dataclass(eq=False)
class Verdict:
    """The answer, and all that it rests on.

    answer : "replace", "keep" or "undecided". reason : sentences. applies : `applicability.applicability`.
    candidates, chosen : `Candidate`s. refused : {kernel and family: why it has no match}. drift : of a trained DEQ.
    settings : what was asked. deq : accuracies of the DEQ as measured. seconds : taken.
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

    def to_dict(self) -> dict:
        """JSON-ready."""
        return {
            "answer": self.answer,
            "reason": self.reason,
            "applies": self.applies,
            "candidates": [one.to_dict() for one in self.candidates],
            "chosen": None if self.chosen is None else self.chosen.name,
            "refused": self.refused,
            "deq": self.deq,
            "drift": self.drift,
            "settings": self.settings,
            "seconds": self.seconds,
        }

    def table(self) -> str:
        """A line for each candidate, and the answer."""
        if any(one.replacement for one in self.candidates):
            return "\n".join([*self._measured(), "", f"{self.answer}: " + " ".join(self.reason)])
        lines = [
            f"{'candidate':<28}{'CK distance':>12}{'x factor':>10}{'NTK':>9}{'inf. width':>11}"
            f"{'loss, points':>14}{'90% interval':>18}{'from width':>11}{'speed':>7}"
        ]
        for one in self.candidates:
            ck, ntk = one.distance["ck"], one.distance["ntk"]
            infinite = "-" if one.infinite is None else f"{one.infinite['difference']:+.2f}"
            loss = "-" if one.loss is None else f"{one.loss:+.2f}"
            interval = "-" if one.loss is None else "[{:+.2f}, {:+.2f}]".format(*one.loss_interval)
            speed = "-" if one.cost is None else f"x{one.cost['features']:.3g}"
            lines.append(
                f"{one.name:<28}{ck['relative']:>12.1e}{ck['with_factor']:>10.1e}{ntk['relative']:>9.1e}"
                f"{infinite:>11}{loss:>14}{interval:>18}{one.width_from or '-':>11}{speed:>7}"
            )
        return "\n".join([*lines, "", f"{self.answer}: " + " ".join(self.reason)])

    def _measured(self):
        """Lines of the replacements of a trained DEQ, those that did best on the samples that choose."""
        shown = self.candidates[:10]
        lines = [
            f"{'replacement':<56}{'chosen by, %':>13}{'accuracy, %':>12}{'as the DEQ, %':>14}{'loss, points':>13}"
            f"{'90% interval':>18}"
        ]
        for one in shown:
            r, interval = one.replacement, "[{:+.2f}, {:+.2f}]".format(*one.loss_interval)
            lines.append(
                f"{one.name:<56}{r.chosen_by:>13.2f}{r.accuracy:>12.2f}{r.agreement:>14.2f}{one.loss:>+13.2f}"
                f"{interval:>18}"
            )
        rest = len(self.candidates) - len(shown)
        return [*lines, f"and {rest} that did worse on the samples that choose"] if rest else lines
