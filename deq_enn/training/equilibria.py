"""This file settles how the equilibria of a network are found while it is trained, and what is logged of them.

By default each is solved to its own tolerance, and a sample that misses it ends the run. A configuration may name
another solver, go on without convergence (`lenient`), add a penalty on the Jacobian, or stop the equilibria after some
steps, which makes an explicit network of tied weights out of the DEQ.
"""

from typing import Any

import torch

from deq_enn.networks.fixed_point import Anderson, FixedPoint, Picard, equilibria_of, stopped
from deq_enn.networks.jacobian import jacobian_size, spectral_radius
from deq_enn.training.run_files import Config
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team

SOLVERS = {"picard": Picard, "anderson": Anderson}
ROWS = 128  # training samples at whose equilibria the spectral radius is estimated


def prepared(model: torch.nn.Module, config: Config) -> torch.nn.Module:
    """Returns the model with the solver of the configuration, or a copy that is stopped after its steps."""
    if config.steps:
        return stopped(model, config.steps)
    if config.watched:
        for part in equilibria_of(model):
            vars(part)["fixed_point"] = FixedPoint(_solver(vars(part)["fixed_point"].solver, config))
    return model


def _solver(usual: Any, config: Config) -> Picard | Anderson:
    """Returns the usual solver with what the configuration changes."""
    kind = SOLVERS[config.solver] if config.solver else type(usual)
    tol, max_steps = config.solver_tol or usual.tol, config.max_steps or usual.max_steps
    return kind(tol, max_steps, strict=not config.lenient)


class Equilibria:
    """It knows what the equilibria of a network in training add to the loss, and what is logged of them.

    With a configuration that does not watch them these are mean numbers of iterations alone.
    """

    def __init__(self, model: torch.nn.Module, config: Config, team: Team):
        self.points = [vars(part)["fixed_point"] for part in equilibria_of(model)]
        self.watched, self.weight, self.team = config.watched, float(config.jacobian or 0), team
        self.measured = bool(config.jacobian)
        self.probes = generator(config.seed, "jacobian")
        self.start = generator(config.seed, "spectral radius").get_state()
        for point in self.points:
            point.keep = self.measured
        self.begin()

    def begin(self) -> None:
        """Forgets what was counted, before an epoch."""
        self.forward: list[int] = []
        self.backward: list[int] = []
        self.lost, self.size = torch.zeros(2), 0.0

    def penalty(self, batch: int) -> torch.Tensor | None:
        """Returns the penalty on this rank's share of a batch of so many samples, as a sum over them; None without.

        The random numbers are drawn for the whole batch on each rank, so that they do not depend on how it is shared.
        """
        if not self.measured:
            return None
        total = torch.zeros(())
        for point in self.points:
            _, z, _ = point.last
            probe = self.team.share(torch.randn(batch, *z.shape[1:], generator=self.probes)).to(z)
            total = total.to(z) + jacobian_size(point.last, probe).sum()
            point.last = None
        self.size += total.item()
        return self.weight * total if self.weight else None

    def count(self) -> None:
        """Notes the iterations of a step, and the samples that they did not suffice for."""
        self.forward += [point.iterations for point in self.points]
        self.backward += [point.backward_iterations for point in self.points]
        for point in self.points:
            self.lost += torch.tensor([point.unconverged, point.backward_unconverged])

    def record(self, samples: int, device: torch.device) -> dict[str, float]:
        """Returns what is logged of an epoch over so many samples; a batch takes as long as its slowest share."""
        if not self.points:
            return {}
        forward, backward = self.team.most(torch.tensor([self.forward, self.backward], device=device))
        record = {
            "forward_iterations": sum(forward) / len(forward),
            "backward_iterations": sum(backward) / len(backward),
        }
        if self.watched:
            sums = torch.tensor([*self.lost.tolist(), self.size], dtype=torch.float64, device=device)
            forward_lost, backward_lost, size = self.team.total(sums)
            record |= {"forward_unconverged": int(forward_lost), "backward_unconverged": int(backward_lost)}
            if self.measured:
                record["jacobian"] = size / samples
        return record

    def lost_now(self) -> int:
        """Counts the samples that the last solves did not suffice for."""
        return sum(point.unconverged for point in self.points)

    def after_an_epoch(self, model: torch.nn.Module, X: torch.Tensor, lost: int) -> dict[str, float]:
        """Returns what is logged after an epoch, where the equilibria are watched.

        That is how many test samples, `lost` on this rank, missed the tolerance, and the spectral radius of df/dz on
        the first of the training samples X, its mean and its largest over them. Of several equilibria in one network
        each sample has the largest.
        """
        if not (self.watched and self.points):
            return {}
        (total,) = self.team.total(torch.tensor([lost], device=X.device))
        return {"test_unconverged": total, **self._radius(model, X)}

    def _radius(self, model: torch.nn.Module, X: torch.Tensor) -> dict[str, float]:
        kept, draws = [point.keep for point in self.points], torch.Generator()
        draws.set_state(self.start)  # the same start after each epoch, whatever the number of epochs
        for point in self.points:
            point.keep = True
        with torch.no_grad():
            model(X[:ROWS])
        radii = []
        for point, keep in zip(self.points, kept):
            _, z, _ = point.last
            radii.append(spectral_radius(point.last, torch.randn(z.shape, generator=draws).to(z)))
            point.keep, point.last = keep, None
        largest = torch.stack(radii).amax(0)
        return {"spectral_radius": largest.mean().item(), "largest_spectral_radius": largest.max().item()}
