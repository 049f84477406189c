"""A network is trained for a share of the budget here, at a rate of its own: students of the module, and its rivals.

Adam, with the rate rising over the first tenth and falling to zero as a cosine. The rate of a parameter is a multiple
of the root mean square that it starts with, so that the same multiples serve networks whose weights are of size one
(those of this project) and of size 1/sqrt(m). The multiple is chosen on training samples that are set apart, by short
trials of each. The number of steps follows from the time that the trials took, and then is fixed.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from deq_enn.networks.fixed_point import SHORT
from deq_enn.training.optimizers import OPTIMIZERS
from deq_enn.utils.deadline import check
from deq_enn.utils.random import generator
from deq_enn.utils.threads import is_small, one_thread

BATCH = 64  # samples of a training step
RATES = (0.01, 0.03)  # multiples of a parameter's root mean square that are tried, for what is trained already
RATES_FROM_SCRATCH = (0.03, 0.1, 0.3)
LEAST_SIZE = 0.01  # root mean square that a parameter counts with, at least: biases start at zero
TRIALS = 0.3  # share of the time for the trials of the rates
FEWEST_STEPS = 5  # steps of a trial, at least
RISE = 0.1  # share of the steps in which the rate rises
CLIP = 1.0  # norm of a gradient, at most

Objective = Callable[[nn.Module, torch.Tensor], torch.Tensor]  # (network, rows of the training set) -> loss


@dataclass(frozen=True)
class Trained:
    """This is a network after its training.

    rate : a multiple as in RATES. steps : that were made. seen : samples that were passed, each time that one was.
    passes : over all samples. seconds : with the trials.
    """

    network: nn.Module
    rate: float
    steps: int
    seen: int
    passes: float
    seconds: float


def train(
    make: Callable[[], nn.Module],
    objective: Objective,
    score: Callable[[nn.Module], float],
    samples: int,
    *,
    seconds: float,
    clock: Callable[[], float],
    seed: int = 0,
    rates: Sequence[float] = RATES,
    most_seen: float = math.inf,
) -> Trained:
    """Trains a network for about so many seconds, at the rate that does best in short trials.

    Parameters
    ----------
    make : returns the network at its start, each time the same.
    objective : the loss of a batch, from the network and the indices of its samples.
    score : what is to be small on samples set apart from training.
    samples : number of training samples.
    most_seen : samples that are passed, at most, each time that one is.

    Raises
    ------
    ValueError : the loss is no number at any rate.
    """
    start, most_steps = clock(), max(most_seen / min(BATCH, samples), FEWEST_STEPS)
    rates, end = list(rates), start + 1.02 * seconds
    results: list[tuple[float, float]] = []
    per_step, steps = 0.0, 0
    for number, rate in enumerate(rates):
        left = start + TRIALS * seconds - clock()
        network, began = make(), clock()
        if number == 0:  # one step to warm up, a few to be timed
            _steps(network, objective, samples, FEWEST_STEPS, rate, seed, clock, end)
            per_step = max((clock() - began) / FEWEST_STEPS, 1e-6)
            steps = max(FEWEST_STEPS, int((left - (clock() - began)) / per_step / len(rates)))
            steps = int(min(steps, max(FEWEST_STEPS, TRIALS * most_steps)))
            network, began = make(), clock()
        _steps(network, objective, samples, steps, rate, seed, clock, end)
        per_step = max((clock() - began) / steps, 1e-6)
        value = score(network)
        results.append((value if math.isfinite(value) else math.inf, rate))
    best, rate = min(results)
    if best == math.inf:
        raise ValueError("its loss is no number at any rate that was tried")
    left = start + seconds - clock()
    steps = int(max(steps, min(left / per_step, most_steps)))
    network = make()
    done = _steps(network, objective, samples, steps, rate, seed, clock, end)
    seen = done * min(BATCH, samples)
    return Trained(network.eval(), rate, done, seen, seen / samples, clock() - start)


def _steps(
    network: nn.Module,
    objective: Objective,
    samples: int,
    steps: int,
    rate: float,
    seed: int,
    clock: Callable[[], float],
    end: float,
) -> int:
    """Trains in place and returns the steps that were made: fewer where the time is up or the loss is no number.

    It looks at the deadline before each step.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad and parameter.numel()]
    # short floats lose small steps, and the squares of gradients: their steps are made in float32
    masters = [p.detach().float() if p.dtype in SHORT else p for p in parameters]
    groups = [
        {"params": [master], "lr": rate * max(master.detach().float().square().mean().sqrt().item(), LEAST_SIZE)}
        for master in masters
    ]
    optimizer = OPTIMIZERS["adam"](groups, lr=rate)
    tops = [group["lr"] for group in optimizer.param_groups]
    g, order = generator("unrolling", seed), torch.empty(0, dtype=torch.int64, device="cpu")
    with one_thread() if is_small(network) else nullcontext():
        for step in range(steps):
            check()
            if clock() > end:
                return step
            if len(order) < min(BATCH, samples):
                order = torch.randperm(samples, generator=g, device="cpu")
            rows, order = order[:BATCH], order[BATCH:]
            factor = _schedule((step + 0.5) / steps)
            for group, top in zip(optimizer.param_groups, tops):
                group["lr"] = factor * top
            network.zero_grad()
            with torch.enable_grad():
                loss = objective(network, rows)
                loss.backward()
            if not math.isfinite(loss.item()):
                return step
            _make_step(optimizer, parameters, masters)
    return steps


@torch.no_grad()
def _make_step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], masters: list[torch.Tensor]) -> None:
    """Makes a step of the masters, which are the parameters or stand for them in float32, with clipped gradients."""
    apart = [(parameter, master) for parameter, master in zip(parameters, masters) if master is not parameter]
    for parameter, master in apart:
        master.grad = None if parameter.grad is None else parameter.grad.float()
    torch.nn.utils.clip_grad_norm_(masters, CLIP)
    optimizer.step()
    for parameter, master in apart:
        parameter.copy_(master)


def _schedule(progress: float) -> float:
    """Returns the share of the largest rate at this share of the steps."""
    if progress < RISE:
        return progress / RISE
    return 0.5 * (1 + math.cos(math.pi * (progress - RISE) / (1 - RISE)))
