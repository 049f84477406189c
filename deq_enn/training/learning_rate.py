"""With `--lr auto` each run has a learning rate of its own, chosen on a validation part of the training set.

One rate for all networks favours those whose kernel has the scale that it suits. Here each run is first made on four
fifths of the training samples at every rate of a grid, for as many epochs as it will have, and the rate of the highest
accuracy on the other fifth is taken (of equal ones the lower loss). Where that is the end of the grid, the grid is
continued. A rate is not taken where the next larger one diverges: on all of the samples it may diverge itself. Test
samples take no part.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from deq_enn.data.datasets import Dataset
from deq_enn.networks.fixed_point import ConvergenceError
from deq_enn.training.loop import FullTask
from deq_enn.training.readout import Readouts, ReadoutTask
from deq_enn.training.run_files import Config, kept_rate, rate_path, records_of, whole_file
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team
from deq_enn.utils.tiles import for_each

STEP = 10**0.5  # ratio of two neighbouring rates of the grid
# exponents of STEP where the grid begins and ends
GRIDS = {
    ("readout", "sgd"): (-2, 4),
    ("readout", "adam"): (-8, -2),
    ("full", "sgd"): (-4, 1),
    ("full", "adam"): (-9, -4),
}
FURTHER = 4  # steps that the search may take beyond the grid
TOGETHER = 4  # rates on the CPU whose readouts share one reading of the features; the seven of a grid suit two cores


def parts(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the numbers of the validation samples, a random fifth of n training samples, and those of the others."""
    order = torch.randperm(n, generator=generator(seed, "validation"))
    fifth = max(n // 5, 1)
    return order[:fifth], order[fifth:]


def split(data: Dataset, seed: int) -> Dataset:
    """Returns the training samples alone: the validation samples take the place of the test samples."""
    held, kept = parts(len(data.X_train), seed)
    return replace(
        data,
        X_train=data.X_train[kept],
        y_train=data.y_train[kept],
        X_test=data.X_train[held],
        y_test=data.y_train[held],
    )


Scores = dict[float, dict | None]  # of each rate, what it has on the validation samples; None where it diverges


def _orders(config: Config, rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields the order of the training samples `rows` in each epoch."""
    for epoch in range(1, config.epoch + 1):
        order = torch.randperm(len(rows), generator=generator(config.seed, "order", epoch))
        yield rows[order.to(rows.device)]


def _score(rate: float, accuracy: float, loss: float) -> dict | None:
    return {"lr": rate, "validation_accuracy": accuracy, "validation_loss": loss} if math.isfinite(loss) else None


def _readouts(task: ReadoutTask) -> Callable[[list[float]], Scores]:
    """Returns a function that trains a task's readout at each of some rates, side by side on the same features.

    On the CPU they are trained in groups, each on a thread of its own. The groups do not depend on how many threads
    there are, and so no rate does.
    """
    config, device = task.config, task.train.device
    held, kept = (rows.to(device) for rows in parts(len(task.train), config.seed))

    def attempts(rates: list[float]) -> Scores:
        scores: Scores = {}
        size = TOGETHER if device.type == "cpu" else len(rates)
        groups = [(rates[start : start + size],) for start in range(0, len(rates), size)]
        for_each(lambda group: scores.update(_scores(task, group, held, kept)), groups, device)
        return {rate: scores[rate] for rate in rates}

    return attempts


def _scores(task: ReadoutTask, rates: list[float], held: torch.Tensor, kept: torch.Tensor) -> Scores:
    """Returns what readouts of these rates, trained on the samples `kept`, have on the samples `held`."""
    readouts, finite = Readouts(task, rates), torch.ones(len(rates), dtype=torch.bool)
    for order in _orders(task.config, kept):
        finite = readouts.epoch(order)
        if not finite.any():
            break
    accuracies, losses = (scores.tolist() for scores in readouts.evaluate(held))
    return {
        rate: _score(rate, *scores) if good else None
        for rate, good, *scores in zip(rates, finite.tolist(), accuracies, losses)
    }


def _networks(
    config: Config, data: Dataset, make_model: Callable[[], Any], device: torch.device | str, team: Team
) -> Callable[[list[float]], Scores]:
    """Returns a function that trains every weight of a network at each of some rates, one after the other."""
    inner = split(data, config.seed)
    rows = torch.arange(len(inner.X_train), device=device)

    def attempt(rate: float) -> dict | None:
        task = FullTask(make_model().to(device), inner, replace(config, lr=rate), device, team)
        try:
            for order in _orders(config, rows):
                if not math.isfinite(task.epoch(order)["train_loss"]):
                    return None
            scores = task.evaluate()
        except ConvergenceError:
            return None
        return _score(rate, scores["test_accuracy"], scores["test_loss"])

    return lambda rates: {rate: attempt(rate) for rate in rates}


def choose_rate(
    config: Config,
    data: Dataset,
    make_model: Callable[[], Any],
    device: torch.device | str = "cpu",
    team: Team = Team(),
    task: ReadoutTask | None = None,
) -> tuple[float, list[dict]]:
    """Chooses the rate for a run; returns it, and what each rate of the grid had on the validation samples.

    Parameters
    ----------
    config : of the run; its own `lr` plays no part.
    make_model : called with no arguments for the network as it is before training.
    team : ranks that share a run with `train` "full", and call this together.
    task : of the run, where it trains a readout and the features are there already.

    Raises
    ------
    ValueError : every rate of the grid diverges.
    """
    readout = config.train == "readout"
    if readout and task is None:
        task = ReadoutTask(make_model().to(device), data, config, device)
    attempts = _readouts(task) if task else _networks(config, data, make_model, device, team)
    ahead = 2 if readout else 1  # rates beyond the grid that are tried at once: side by side the second costs little
    first, last = GRIDS[config.train, config.opt]
    tried = attempts([STEP**exponent for exponent in range(first, last + 1)])
    results = {exponent: tried[STEP**exponent] for exponent in range(first, last + 1)}  # None: it diverges

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
        sign = 1 if best() == max(results) else -1
        beyond = best() + sign
        if beyond in results:
            break
        if STEP**beyond not in tried:
            tried |= attempts([STEP ** (beyond + sign * step) for step in range(ahead)])
        results[beyond] = tried[STEP**beyond]
    return STEP ** best(), [result for _, result in sorted(results.items()) if result]


def logged_rate(config: Config, output_path: Path | str) -> float | None:
    """Returns the learning rate that a run says in its log to have had, None where there is no such log."""
    logged = [record.get("config", {}) for record in records_of(config.key, Path(output_path))]
    rates = [settings["lr"] for settings in logged if "lr" in settings]
    return float(rates[-1]) if rates else None


def with_own_rate(
    config: Config,
    data: Dataset,
    make_model: Callable[[], Any],
    output_path: Path | str,
    save_path: Path | str,
    device: torch.device | str = "cpu",
    resume: bool = False,
    team: Team | None = None,
) -> tuple[Config, ReadoutTask | None]:
    """Returns the configuration with the rate chosen for it, which is kept beside the run's checkpoint.

    With `resume` a rate that was chosen before is taken from there, or from the log of the run.
    The second is the task of the run, where features were computed for the choice: `run` need not do it again.
    """
    team = team or Team()
    rate, task = None, None
    if resume:
        rate = kept_rate(config, save_path) or logged_rate(config, output_path)
    if rate is None:
        if config.train == "readout":
            task = ReadoutTask(make_model().to(device), data, config, device)
        rate, table = choose_rate(config, data, make_model, device, team, task)
        if team.rank == 0:
            with whole_file(rate_path(config, save_path), "w") as file:
                json.dump({"lr": rate, "table": table}, file)
    chosen = replace(config, lr=rate)
    if task:
        task.begin(chosen)
    return chosen, task
