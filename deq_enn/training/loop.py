"""A network is trained here, epoch by epoch, on one of three tasks.

`--train readout` trains a linear softmax readout alone, on features that are computed once (training/readout.py).
`--train full` trains every weight; a DEQ's gradient is implicit (networks/fixed_point.py), unless it is stopped after
some steps (training/equilibria.py). A positive concave DEQ has all its weights trained, and projected
(networks/pcdeq.py). What a run writes is in run_files.py.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tqdm import tqdm

from deq_enn.data.datasets import Dataset
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.networks.pcdeq import PcDEQNetwork, augment, keep_nonnegative
from deq_enn.training.equilibria import Equilibria
from deq_enn.training.optimizers import make_optimizer
from deq_enn.training.readout import ReadoutTask
from deq_enn.training.run_files import Config, Result, RunFiles
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team
from deq_enn.utils.threads import is_small, on_one_thread_if_small

Device = torch.device | str


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is no longer a number, or an equilibrium is lost); the logs so far are kept."""


class Task(Protocol):
    """What `run` trains: `ReadoutTask`, `FullTask` and `PcDEQTask` are of this form."""

    def state(self) -> dict:
        """Returns what a checkpoint holds."""
        ...

    def load(self, state: dict) -> None:
        """Goes on from what a checkpoint holds."""
        ...

    def epoch(self, order: torch.Tensor) -> dict:
        """Passes over the training samples once, in the given order; returns the loss and the accuracy on the way."""
        ...

    def evaluate(self) -> dict:
        """Returns the loss and the accuracy on the test samples."""
        ...


class FullTask:
    """Every weight is trained, by automatic differentiation (implicit, for a DEQ).

    The ranks of a team take the same steps on the same weights, with the gradient of the whole batch: each computes
    that of its share, and they differ from a single process by rounding (a DEQ: by the solver's tolerance).
    """

    def __init__(
        self, model: DEQ | ENN | PcDEQNetwork, data: Dataset, config: Config, device: Device, team: Team = Team()
    ):
        self.model, self.config, self.team = model.to(device), config, team
        self.network = team.wrap(self.model)
        self.train, self.y_train = data.X_train.to(device), data.y_train.to(device)
        self.test, self.y_test = data.X_test.to(device), data.y_test.to(device)
        self.optimizer = make_optimizer(self.model.parameters(), config)
        self.equilibria = Equilibria(self.model, config, team)
        self.small = is_small(self.model)

    def state(self) -> dict:
        """Returns the weights, the optimizer's state, and that of the random numbers of a penalty."""
        drawn = {"probes": self.equilibria.probes.get_state()} if self.config.jacobian else {}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **drawn}

    def load(self, state: dict) -> None:
        """Takes the same from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.config.jacobian:
            self.equilibria.probes.set_state(state["probes"].cpu())

    def batches(self, order: torch.Tensor) -> list[torch.Tensor]:
        """Returns the numbers of the training samples of each step."""
        return [*order.split(self.config.batch_size)]

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Returns the training samples of these numbers, as the network takes them."""
        return self.train[index]

    @on_one_thread_if_small
    def epoch(self, order: torch.Tensor) -> dict:
        """Passes over the samples once in the given order. Loss and accuracy are those seen on the way."""
        self.model.train()
        sums = torch.zeros(2, dtype=torch.float64, device=order.device)  # of the loss, and of correct predictions
        self.equilibria.begin()
        for index in tqdm(self.batches(order), desc=self.config.model, leave=False, disable=None, delay=1):
            share = self.team.share(index)
            y = self.y_train[share]
            logits = self.network(self.batch(share))
            loss = F.cross_entropy(logits, y, reduction="sum")
            penalty = self.equilibria.penalty(len(index))
            self.optimizer.zero_grad()
            # the gradients will be averaged over the ranks, whose shares differ in size: sums, over the whole batch
            whole = loss if penalty is None else loss + penalty
            (whole * (self.team.size / len(index))).backward()
            self.optimizer.step()
            sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == y).sum()])
            self.equilibria.count()
        loss_sum, correct = self.team.total(sums)
        record = {"train_loss": loss_sum / len(order), "train_accuracy": correct / len(order)}
        return record | self.equilibria.record(len(order), order.device)

    @on_one_thread_if_small
    @torch.no_grad()
    def evaluate(self) -> dict:
        """Returns the loss and the accuracy on the test samples, over all ranks, and the state of the equilibria."""
        self.model.eval()
        sums, lost = torch.zeros(2, dtype=torch.float64, device=self.test.device), 0
        for x, y in self.team.share(list(zip(self.test.split(512), self.y_test.split(512)))):
            logits = self.model(x)
            sums += torch.stack([F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()])
            lost += self.equilibria.lost_now()
        loss, correct = self.team.total(sums)
        record = {"test_loss": loss / len(self.test), "test_accuracy": correct / len(self.test)}
        return record | self.equilibria.after_an_epoch(self.model, self.train, lost)


class PcDEQTask(FullTask):
    """A positive concave DEQ is trained: its weights stay nonnegative, its rate falls to a tenth at the milestone."""

    def __init__(self, model: PcDEQNetwork, data: Dataset, config: Config, device: Device):
        super().__init__(model, data, config, device)
        self.image_shape = model.image_shape
        keep_nonnegative(model, self.optimizer)
        self.generator = generator(config.seed, "augmentation")
        self.epochs = 0

    def state(self) -> dict:
        """Returns also the state of the augmentation, and how many epochs are done."""
        return {**super().state(), "augmentation": self.generator.get_state(), "epochs": self.epochs}

    def load(self, state: dict) -> None:
        """Takes also the state of the augmentation, and how many epochs are done."""
        super().load(state)
        self.generator.set_state(state["augmentation"].cpu())
        self.epochs = state["epochs"]

    def batches(self, order: torch.Tensor) -> list[torch.Tensor]:
        """Returns the same; of units a last single sample, which has no variance, goes with the batch before."""
        batches = super().batches(order)
        if len(batches[-1]) == 1 and any(isinstance(layer, torch.nn.BatchNorm1d) for layer in self.model.modules()):
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Returns the training images of these numbers, shifted and flipped at random where that is asked for."""
        images = super().batch(index).view(-1, *self.image_shape)
        return augment(images, self.generator) if self.config.aug else images

    def epoch(self, order: torch.Tensor) -> dict:
        """Passes over the samples once; after the milestone with a tenth of the rate."""
        if self.epochs == self.config.milestone > 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.1
        self.epochs += 1
        return super().epoch(order)

    def evaluate(self) -> dict:
        """Returns what a `FullTask` does; with `precise_bn` by statistics of the weights as they are now."""
        if self.config.precise_bn:
            self.estimate_statistics()
        return super().evaluate()

    @on_one_thread_if_small
    @torch.no_grad()
    def estimate_statistics(self) -> None:
        """Sets the mean and variance of each batch normalisation to means over batches of training images.

        Precise BatchNorm of Wu & Johnson, Rethinking "Batch" in BatchNorm (arXiv 2105.07576, 2021), section 3. What is
        set is kept in the checkpoint. Training does not look at it.
        """
        layers = [layer for layer in self.model.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # then all batches count alike
        self.model.train()
        of_this_epoch = generator(self.config.seed, "statistics", self.epochs)
        order = torch.randperm(len(self.train), generator=of_this_epoch).to(self.train.device)
        batches = [batch for batch in self.batches(order) if len(batch) > 1] or self.batches(order)
        for index in batches[: self.config.precise_bn]:
            self.model(self.train[index])
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


TASKS: dict[str, Callable[..., Task]] = {"readout": ReadoutTask, "full": FullTask, "pcdeq": PcDEQTask}


def has_equilibrium(model: torch.nn.Module, data: Dataset, device: Device) -> bool:
    """Tells whether the solver finds the model's equilibrium for every sample."""
    try:
        with torch.no_grad():
            for X in (data.X_train, data.X_test):
                for x in X.split(512):
                    model(x.to(device))
    except ConvergenceError:
        return False
    return True


def run(
    config: Config,
    data: Dataset,
    make_model: Callable[[], Any],
    output_path: Path | str,
    save_path: Path | str,
    device: Device = "cpu",
    resume: bool = False,
    team: Team | None = None,
    lengthen: bool = True,
    prepared: ReadoutTask | None = None,
) -> Result:
    """Trains one model and writes its logs.

    Parameters
    ----------
    make_model : called with no arguments for the network, unless the run is already finished.
    resume : go on from this configuration's checkpoint, if there is one; or, with `lengthen`, from that of the same
        run with fewer epochs.
    team : the ranks that call this together, to share a run with `train` "full"; rank 0 writes.
    prepared : the task of this run, where `with_own_rate` has computed its features.

    Raises
    ------
    TrainingError : the loss is no longer finite, or an equilibrium that the initial weights have is lost.
    ConvergenceError : the initial weights have no equilibrium that the solver finds.
    """
    files = RunFiles(config, output_path, save_path, writes=team is None or team.rank == 0)
    state = files.restore(device, lengthen) if resume else None
    if len(files.history) >= config.epoch:
        return files.result()
    start = time.perf_counter()
    model = make_model().to(device)
    kind = partial(FullTask, team=team) if team else TASKS[config.train]
    task: Task = prepared or kind(model, data, config, device)
    if state:
        with files.damaged():
            task.load(state)
    files.setup_seconds += time.perf_counter() - start + (prepared.seconds if prepared else 0)
    files.note(
        "run",
        config=config.record(),
        theory=model.describe(),
        device=str(device),
        resumed_at=len(files.history),
        setup_seconds=files.setup_seconds,
        solver_iterations=getattr(task, "iterations", None),
        **({"classes": data.mapping} if data.mapping else {}),
    )
    epochs = range(len(files.history) + 1, config.epoch + 1)
    for epoch in tqdm(epochs, desc=config.title, leave=False, disable=None, delay=1):
        start = time.perf_counter()
        order = torch.randperm(len(data.X_train), generator=generator(config.seed, "order", epoch)).to(device)
        smaller, kept = f"take a smaller --lr (it was {config.lr:g})", f"The logs up to epoch {epoch - 1} are kept"
        try:
            record = {"epoch": epoch, **task.epoch(order), **task.evaluate()}
        except ConvergenceError as error:
            if config.train == "readout" or not has_equilibrium(make_model().to(device), data, device):
                raise
            worst, iterations = error.solution.residual.max().item(), error.solution.iterations
            raise TrainingError(
                f"{config.title}: the steps of epoch {epoch} lost the equilibrium, which the initial "
                f"weights have (relative residual {worst:.3g} after {iterations} iterations); "
                f"{smaller}, or go on all the same with --lenient. {kept}"
            ) from None
        if not math.isfinite(record["train_loss"] + record["test_loss"]):
            raise TrainingError(
                f"{config.title}: the loss became {record['train_loss']} in epoch {epoch}; {smaller}. {kept}"
            )
        files.epoch_done({**record, "seconds": time.perf_counter() - start}, task.state())
    return files.result()
