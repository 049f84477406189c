"""The verdict on a DEQ that was trained, as it is handed out: what each network in its place loses, costs, and is.

torch is not needed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

KINDS = {
    "stopped": "stopped after k steps",
    "refitted": "stopped, last layer refitted",
    "distilled": "distilled to k steps",
    "consistent": "distilled along the iteration",
    "explicit": "plain network, trained",
    "matched": "matched network, trained",
}
TIED = "stopped", "refitted", "distilled", "consistent"  # kinds that are made of the module, with k steps
SHOWN = 24  # candidates in the table, at most


@dataclass(eq=False)
class StepCandidate:
    """This is a network in a DEQ's place, with what was measured of it on samples held out. What is not known is None.

    name, kind : of KINDS. k : its steps, None for a network of another form.
    accuracy, agreement, cross_entropy : in %, in % with the module, and the mean over samples.
    loss, interval : accuracy of the module less its own, in points, and the 90% interval, paired over samples.
    seen : samples that its training passed, each time that one was; 0 where nothing was trained. passes : how
        often it passed over all that it had. rate : as of `training.RATES`.
    cost : {"row", "batch", "step", "memory", "parameters", "saved"} of `timing.compared`.
    network : what was measured, and what is exported.
    """

    name: str
    kind: str
    k: int | None
    accuracy: float
    agreement: float
    cross_entropy: float
    loss: float
    interval: tuple[float, float]
    seen: int = 0
    passes: float = 0.0
    rate: float | None = None
    seconds: float = 0.0
    cost: dict | None = None
    network: nn.Module | None = field(default=None, repr=False)

    @property
    def saved(self) -> float | None:
        """Returns the module's time for a batch over its own; None where it was not timed."""
        return None if self.cost is None else self.cost["saved"]["batch"]

    @property
    def work(self) -> float:
        """Returns the time for a batch, by which networks are chosen; without one, the number of steps."""
        if self.cost is not None and self.cost["batch"] is not None:
            return self.cost["batch"]
        return math.inf if self.k is None else 1e6 * self.k

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the network, ready for JSON."""
        return {key: value for key, value in vars(self).items() if key != "network"}


@dataclass(eq=False)
class StepVerdict:
    """The answer for a module as it is, and everything that it rests on.

    answer : "replace", "keep" or "undecided". reason : sentences.
    candidates, chosen : `StepCandidate`s; chosen is None unless the answer is "replace".
    module : {"name", "accuracy", "cross_entropy", "states", "cost"} of what was judged.
    settings : what was asked. seconds : the time taken. untried : what there was no time for, or why it was not tried.
    rows : samples that an export is tried with.
    """

    answer: str
    reason: list[str]
    candidates: tuple[StepCandidate, ...]
    chosen: StepCandidate | None
    module: dict
    settings: dict
    seconds: float
    untried: dict[str, str] = field(default_factory=dict)
    rows: Tensor | None = field(default=None, repr=False)

    def export(
        self, path: Path | str, mean: Tensor | None = None, scale: float = 1.0, labels: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """Writes the chosen network, the very one that was measured, as enn.pt, enn.json, enn.pt2 and enn.onnx.

        Parameters
        ----------
        path : ends in .pt; the others lie beside it.
        mean, scale : for a program that takes samples x of which the module takes (x - mean)/scale.
        labels : the names of the classes, for the files.

        Returns
        -------
        what `unrolling.export.export` returns.

        Raises
        ------
        ValueError : there is no chosen network, or the path cannot be written.
        """
        from deq_enn.unrolling.export import export

        if self.chosen is None or self.chosen.network is None or self.rows is None:
            raise ValueError(f"{path} is not written: the answer is {self.answer}, so that no network was chosen")
        about = {key: value for key, value in self.chosen.to_dict().items() if key != "cost"}
        return export(self.chosen.network, path, self.rows, mean, scale, labels, about)

    def to_dict(self) -> dict[str, Any]:
        """Returns the verdict ready for JSON; the candidates carry no networks."""
        return {
            "form": "steps",
            "answer": self.answer,
            "reason": self.reason,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "chosen": None if self.chosen is None else self.chosen.name,
            "module": self.module,
            "settings": self.settings,
            "seconds": self.seconds,
            "untried": self.untried,
        }

    def table(self) -> str:
        """Returns a table with a line for each candidate, and the answer below it."""
        lines = [
            f"{'in its place':<44}{'accuracy, %':>12}{'as it, %':>10}{'loss, points':>14}{'90% interval':>18}"
            f"{'saved, time':>12}"
        ]
        for c in self.candidates[:SHOWN]:
            saved = "-" if c.saved is None else f"x{c.saved:.3g}"
            interval = "[{:+.2f}, {:+.2f}]".format(*c.interval)
            lines.append(
                f"{c.name:<44}{c.accuracy:>12.2f}{c.agreement:>10.2f}{c.loss:>+14.2f}{interval:>18}{saved:>12}"
            )
        if rest := len(self.candidates[SHOWN:]):
            lines.append(f"and {rest} more")
        lines += [f"not tried: {what}: {why}" for what, why in self.untried.items()]
        return "\n".join([*lines, "", f"{self.answer}: " + " ".join(self.reason)])
