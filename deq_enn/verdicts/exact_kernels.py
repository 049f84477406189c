"""The part of a verdict on a random DEQ at infinite width is here: exact kernels compared, and regression with them.

Both are left out for networks whose kernels take too long, such as those of nearly parallel samples.
"""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch

from deq_enn.kernels.distance import label_alignment, least_distance, relative_error
from deq_enn.machines.copies import Repeated, first_copies
from deq_enn.machines.leave_one_out import Targets, from_kernel
from deq_enn.machines.run import blocks_of
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.deq import DEQ
from deq_enn.utils.deadline import OutOfTime, deadline
from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts.assumptions import LEAST
from deq_enn.verdicts.candidates import Network
from deq_enn.verdicts.losses.measurements import Measurements
from deq_enn.verdicts.result import Candidate

TRIED = 150  # samples of the first kernel, whose time tells how fast this machine is
COMPARED = 600  # samples whose kernels are compared, at most
UNEVEN = 3  # multiple of its share of the time left that one network's kernels may take


class ExactKernels:
    """This computes the exact kernels of a DEQ and its candidates on the first of the samples.

    Parameters
    ----------
    deq : a DEQ at initialisation. X, y : (n, p) samples and (n,) labels in 0 .. classes - 1, or None.
    order, copies : in which samples are taken, and which are copies.
    clock : measures the time.

    Attributes
    ----------
    failed : {name: why} of candidates that have no exact kernel on these samples: such as where the signal of small
        samples dies in an activation's dead zone. Networks of finite width may be measured still.
    """

    def __init__(
        self,
        deq: DEQ | ConvDEQ,
        X: torch.Tensor,
        y: torch.Tensor | None,
        classes: int | None,
        order: torch.Tensor,
        copies: Repeated,
        clock: Callable[[], float],
    ):
        self.deq, self.X, self.y, self.classes, self.clock = deq, X, y, classes, clock
        self.order, self.copies, self.device = order, copies, deq.B.device
        self.failed: dict[str, str] = {}

    def distinct(self, count: int) -> torch.Tensor:
        """Returns the first samples of the order but zero ones and copies, on which exact kernels take long.

        Raises ValueError where there are too few.
        """
        for rows in (self.order[: 5 * count], self.order):
            rows = rows[(self.copies.first[rows] == rows) & (self.X[rows].flatten(1).square().sum(1) > 0)][:count]
            if len(rows) >= LEAST:
                return rows
        raise ValueError(f"nearly all samples are zero or the same: at least {LEAST} others are needed")

    def affordable(self, rows: torch.Tensor, networks: int, seconds: float, end: float) -> torch.Tensor:
        """Returns as many of these rows as can be compared, by the time of a first kernel; none where that takes long.

        networks, seconds : number of networks, and time that they should take together. end : time to give up.
        """
        for count in (TRIED, LEAST):
            start = self.clock()
            with contextlib.suppress(OutOfTime), deadline(self.clock, (start + end) / 2):
                blocks_of(self.deq, self.X[rows[:count]].to(self.device)).both()
                affordable = seconds / ((self.clock() - start) * networks)
                return rows[: max(LEAST, min(COMPARED, int(count * math.sqrt(affordable))))]
        return rows[:0]

    def compare(self, networks: list[Network], rows: torch.Tensor, end: float) -> Iterator[Candidate]:
        """Yields a candidate for each network, with the distance of its exact kernels to the DEQ's on these rows.

        A candidate whose kernel takes too long, or that has none on these samples, is left without.
        """
        X, deq = self.X[rows].to(self.device), None
        with contextlib.suppress(OutOfTime), deadline(self.clock, end):
            deq = blocks_of(self.deq, X).both() if len(rows) else None
        targets = None
        if self.y is not None and self.classes is not None:
            targets = Targets(self.y[rows], self.classes, device=self.device)
        for number, network in enumerate(networks):
            candidate = Candidate.of(network, distance=None, fluctuation=network.fluctuation)
            with contextlib.suppress(OutOfTime), deadline(self.clock, self._share_of(end, len(networks) - number)):
                if deq is not None:
                    try:
                        candidate = self._compared(network, deq, X, targets)
                    except ValueError as error:
                        self.failed[network.name] = str(error)
            yield candidate

    def _share_of(self, end: float, left: int) -> float:
        """Returns the time at which the first of so many networks is given up: at `end`, or UNEVEN times its share."""
        now = self.clock()
        return min(end, now + UNEVEN * (end - now) / left)

    def _compared(self, network, deq, X, targets) -> Candidate:
        own = blocks_of(network.build(X.shape[1], 1, self.classes or 2), X).both()
        distance = {}
        for kernel, K, other in zip(("ck", "ntk"), deq, own):
            (least, factor), own_distance = least_distance(K, other), relative_error(K, other)
            if own_distance < least:  # to the tolerance of the search
                least, factor = own_distance, 1.0
            distance[kernel] = {"relative": own_distance, "factor": factor, "with_factor": least}
        # a rare class may be missing among so few
        alignment = label_alignment(own[0], targets.Y) if targets is not None and bool(targets.Y.any()) else None
        return Candidate.of(network, distance=distance, alignment=alignment, fluctuation=network.fluctuation)

    def regress(
        self, measurements: Measurements, candidates: list[Candidate], count: int, end: float
    ) -> Iterator[str | dict]:
        """Yields what comes next of kernel ridge regression with all networks, each sample predicted by the others.

        Last comes what is known of the DEQ. Networks whose kernels take too long are left out; OutOfTime is raised
        where the DEQ's does. Copies are among the samples only where new ones are copies too. Where all samples are of
        one class, as they may be if others are rare, there is nothing to regress on, and nothing is yielded.
        """
        assert self.y is not None and self.classes is not None, "there are no labels"
        rows, place = self._with_copies(count)
        X, targets = self.X[rows].to(self.device), Targets(self.y[rows], self.classes, device=self.device)
        if not targets.Y.any():
            return
        with deadline(self.clock, end):
            deq = from_kernel(self._kernel(self.deq, X, place), targets)
        machines = {}
        for number, candidate in enumerate(candidates):
            yield f"infinite width, {candidate.name}"
            network = candidate.build(X.shape[1], 1, self.classes)
            with contextlib.suppress(OutOfTime), deadline(self.clock, self._share_of(end, len(candidates) - number)):
                machines[candidate.name] = from_kernel(self._kernel(network, X, place), targets)
        measurements.record(math.inf, {name: machine.right for name, machine in machines.items()}, deq.right)
        for candidate in [candidate for candidate in candidates if candidate.name in machines]:
            machine, (point,) = machines[candidate.name], measurements.points(candidate.name)
            half = Z_90 * math.sqrt(measurements.constants.dependence * point.of_samples)
            candidate.infinite = {
                "accuracy": machine.right.double().mean().item(),
                "samples": len(X),
                "ridge": machine.ridge,
                "rms": (machine.predicted - deq.predicted).square().mean().sqrt().item()
                / deq.predicted.square().mean().sqrt().item(),
                "difference": point.loss,
                "interval": (point.loss - half, point.loss + half),
            }
        yield {"accuracy": deq.right.double().mean().item(), "ridge": deq.ridge}

    def _with_copies(self, count):
        """Returns the rows to predict, and for each of them the place of the first that it equals."""
        rows = self.distinct(count)
        if self.copies.recur:
            rows = self.order[:count]
            rows = rows[self.X[rows].flatten(1).square().sum(1) > 0]
        return rows, first_copies(self.X[rows])

    def _kernel(self, network, X, place):
        """Returns the conjugate kernel of the rows X, computed for the different ones alone."""
        kept, place = place.unique(return_inverse=True)
        K = blocks_of(network, X[kept.to(X.device)]).both()[0]
        return K if len(kept) == len(X) else K[place][:, place]
