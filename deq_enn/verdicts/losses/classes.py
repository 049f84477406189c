"""Balanced accuracy and the area under the curve stand beside accuracy where classes are unequal.

Where one class in twenty-five is rare, always saying the common one is right for 96 samples of a hundred, and accuracy
hides what a network knows of the rare one. Balanced accuracy is the mean over classes of the share that is recognised.
The area under the curve is the probability that a sample of a class has a higher score for it than one of another
class, averaged over the classes. Half of it is chance, whatever the shares of the classes.

The error of a difference comes from the influence of each sample, which for the area is its placement (DeLong, DeLong &
Clarke-Pearson, Biometrics 44 (1988)), and from the seeds of the weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from deq_enn.machines.leave_one_out import LeftOut
from deq_enn.utils.intervals import Z_90

UNEQUAL = 2.0  # times as many samples of the commonest class as of the rarest, from which on classes are unequal
MEASURES = "balanced_accuracy", "auc"


@dataclass(frozen=True)
class ClassScores:
    """These are the losses of a candidate by both measures, in the order of MEASURES.

    deq, losses : (seeds, 2), of the DEQ and the DEQ's less the candidate's, in points.
    influence : (2, n), summed over the seeds, in points: a sample's share of the loss is its influence over n.
    group : (n,) the same whole number for samples that are left out together, copies of each other; None: none are.
    """

    deq: np.ndarray
    losses: np.ndarray
    influence: np.ndarray
    group: np.ndarray | None = None

    def __add__(self, other: "ClassScores") -> "ClassScores":
        return ClassScores(
            np.concatenate([self.deq, other.deq]),
            np.concatenate([self.losses, other.losses]),
            self.influence + other.influence,
            self.group,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns {measure: {"deq", "loss", "interval"}}, the last with the 90% interval of the mean over seeds."""
        seeds, n = len(self.losses), self.influence.shape[1]
        each = self.influence / seeds
        if self.group is not None:  # a group is one draw
            _, group = np.unique(self.group, return_inverse=True)
            each = np.stack([np.bincount(group, row) for row in each])
        variance = each.shape[1] * each.var(1) / n**2
        if seeds > 1:
            variance += self.losses.var(0, ddof=1) / seeds
        half, loss = Z_90 * np.sqrt(variance), self.losses.mean(0)
        return {
            measure: {
                "deq": float(self.deq[:, k].mean()),
                "loss": float(loss[k]),
                "interval": (float(loss[k] - half[k]), float(loss[k] + half[k])),
            }
            for k, measure in enumerate(MEASURES)
        }


def unequal(y: torch.Tensor) -> bool:
    """Tells whether labels (n,) have a class with at least UNEQUAL times as many samples as another."""
    counts = y.unique(return_counts=True)[1]
    return bool(counts.max() >= UNEQUAL * counts.min())


def compared(
    deq: LeftOut, candidates: dict[str, LeftOut], y: torch.Tensor, classes: int, copies: torch.Tensor | None = None
) -> dict[str, ClassScores]:
    """Returns the scores of one seed for each candidate; none where classes are equal.

    y : (n,) in 0 .. classes - 1. copies : (n,) the same number for samples that are left out together.
    """
    if not unequal(y):
        return {}
    labels = y.cpu().numpy()
    present = [k for k in range(classes) if 0 < (labels == k).sum() < len(labels)]
    own, own_influence = _scores(deq, labels, present)
    scores = {}
    for name, said in candidates.items():
        value, influence = _scores(said, labels, present)
        group = None if copies is None else copies.cpu().numpy()
        scores[name] = ClassScores(own[None], (own - value)[None], own_influence - influence, group)
    return scores


def _scores(said, labels, present):
    """Returns both measures in %, and the influence (2, n) of the samples."""
    right, predicted = said.right.cpu().numpy(), said.predicted.cpu().numpy()
    each = [(_recall(right, labels == k), area_under_curve(predicted[:, k], labels == k)) for k in present]
    values = np.array([[recall[0], area[0]] for recall, area in each])
    influence = np.array([[recall[1], area[1]] for recall, area in each])
    return 100 * values.mean(0), 100 * influence.mean(0)


def _recall(right, own):
    share = right[own].mean()
    return share, np.where(own, (right - share) / own.mean(), 0.0)


def area_under_curve(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the area under the ROC curve, and the influence (n,) of each sample, whose mean is 0.

    score : (n,) larger for the positive, (n,) bool, of which there are some, and of the others too. Ties count half.
    """
    n, positives = len(score), int(positive.sum())
    ranks, among = rankdata(score), np.empty(n)
    for part in (positive, ~positive):
        among[part] = rankdata(score[part])
    below = (ranks - among) / np.where(positive, n - positives, positives)  # share of the other kind that is below
    placement = np.where(positive, below, 1 - below)
    area = float(placement[positive].mean())
    return area, (placement - area) / np.where(positive, positives / n, 1 - positives / n)


def sentence(name: str, scores: dict[str, Any], tolerance: float) -> str | None:
    """Returns a warning where a network certainly loses more than is tolerated by one of the measures, else None.

    scores : of `ClassScores.to_dict`.
    """
    worse = [measure for measure in MEASURES if scores[measure]["interval"][0] > tolerance]
    if not worse:
        return None
    names = {"balanced_accuracy": "balanced accuracy", "auc": "the area under the curve"}
    told = " and ".join(f"{scores[measure]['loss']:+.2f} points of {names[measure]}" for measure in worse)
    return f"The classes are unequal: beside accuracy, {name} loses {told}. Keep the DEQ if that counts for you."
