"""With `--lr auto` each run has a learning rate of its own, chosen on a validation part of the training set.

One rate for all networks favours those whose kernel has the scale that it suits. Here each run is first made on four
fifths of the training samples at every rate of a grid, for as many epochs as it will have, and the rate of the highest
accuracy on the other fifth is taken (of equal ones the lower loss). Where that is the end of the grid, the grid is
continued. A rate is not taken where the next larger one diverges: on all of the samples it may diverge itself. Test
samples take no part.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deq_enn.data.datasets import Dataset
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.training.loop import FullTask, ReadoutTask, make_optimizer
from deq_enn.training.run_files import Config, kept_rate, rate_path, whole_file
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team

STEP = 10**0.5  # ratio of two neighbouring rates of the grid
# exponents of STEP where the grid begins and ends
GRIDS = {
    ("readout", "sgd"): (-2, 4),
    ("readout", "adam"): (-8, -2),
    ("full", "sgd"): (-4, 1),
    ("full", "adam"): (-9, -4),
}
FURTHER = 4  # steps that the search may take beyond the grid


def split(data: Dataset, seed: int) -> Dataset:
    """Returns the training samples alone: a random fifth of them takes the place of the test samples."""
    order = torch.randperm(len(data.X_train), generator=generator(seed, "validation"))
    fifth = max(len(order) // 5, 1)
    held, kept = order[:fifth], order[fifth:]
    return replace(
        data,
        X_train=data.X_train[kept],
        y_train=data.y_train[kept],
        X_test=data.X_train[held],
        y_test=data.y_train[held],
    )


def _trainer(
    config: Config, data: Dataset, make_model: Callable[[], Any], device: torch.device | str, team: Team
) -> Callable[[float], dict | None]:
    """Returns a function of the rate: what the run has on the validation samples, or None where it diverges."""
    # the features of a readout do not depend on the rate
    shared = ReadoutTask(make_model().to(device), data, config, device) if config.train == "readout" else None

    def start(rate: float) -> ReadoutTask | FullTask:
        chosen = replace(config, lr=rate)
        if shared is None:
            return FullTask(make_model().to(device), data, chosen, device, team)
        with torch.no_grad():
            shared.weight.zero_()
        shared.optimizer = make_optimizer([shared.weight], chosen)
        return shared

    def attempt(rate: float) -> dict | None:
        task = start(rate)
        try:
            for epoch in range(1, config.epoch + 1):
                order = torch.randperm(len(data.X_train), generator=generator(config.seed, "order", epoch)).to(device)
                if not math.isfinite(task.epoch(order)["train_loss"]):
                    return None
            scores = task.evaluate()
        except ConvergenceError:
            return None
        if not math.isfinite(scores["test_loss"]):
            return None
        return {"lr": rate, "validation_accuracy": scores["test_accuracy"], "validation_loss": scores["test_loss"]}

    return attempt


def choose_rate(
    config: Config,
    data: Dataset,
    make_model: Callable[[], Any],
    device: torch.device | str = "cpu",
    team: Team = Team(),
) -> tuple[float, list[dict]]:
    """Chooses the rate for a run; returns it, and what each rate of the grid had on the validation samples.

    Parameters
    ----------
    config : of the run; its own `lr` plays no part.
    make_model : called with no arguments for the network as it is before training.
    team : ranks that share a run with `train` "full", and call this together.

    Raises
    ------
    ValueError : every rate of the grid diverges.
    """
    attempt = _trainer(config, split(data, config.seed), make_model, device, team)
    first, last = GRIDS[config.train, config.opt]
    results = {exponent: attempt(STEP**exponent) for exponent in range(first, last + 1)}  # None: it diverges

    def best() -> int:
        finite = {exponent: result for exponent, result in results.items() if result}
        usable = [exponent for exponent in finite if results.get(exponent + 1, "not tried")] or list(finite)
        if not usable:
            raise ValueError(
                f"{config.title}: training diverges at every rate from {STEP**first:.2g} to "
                f"{STEP**last:.2g}; give --lr a smaller one"
            )
        return max(usable, key=lambda e: (finite[e]["validation_accuracy"], -finite[e]["validation_loss"]))

    for _ in range(FURTHER):
        beyond = best() + (1 if best() == max(results) else -1)
        if beyond in results:
            break
        results[beyond] = attempt(STEP**beyond)
    return STEP ** best(), [result for _, result in sorted(results.items()) if result]


def with_own_rate(
    config: Config,
    data: Dataset,
    make_model: Callable[[], Any],
    save_path: Path | str,
    device: torch.device | str = "cpu",
    resume: bool = False,
    team: Team | None = None,
) -> Config:
    """Returns the configuration with the rate chosen for it, which is kept beside the run's checkpoint."""
    team = team or Team()
    rate = kept_rate(config, save_path) if resume else None
    if rate is None:
        rate, table = choose_rate(config, data, make_model, device, team)
        if team.rank == 0:
            with whole_file(rate_path(config, save_path), "w") as file:
                json.dump({"lr": rate, "table": table}, file)
    return replace(config, lr=rate)
