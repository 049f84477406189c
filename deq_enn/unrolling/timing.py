"""What a network costs beside the module in whose place it stands: time, memory, parameters, on this machine.

Three jobs: the scores of one sample, of a batch, and a training step with every weight. Module and network take turns,
so that a drift of the machine's speed meets both, and the least time counts. Memory is that of the weights and of the
most that a batch's scores hold at once (`networks.cost.peak_bytes`).
"""

import contextlib
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deq_enn.networks.cost import peak_bytes
from deq_enn.networks.trained_deq import evaluating
from deq_enn.unrolling.judged import batch_of, device_of, scores
from deq_enn.utils.deadline import OutOfTime, check

FEW = 16  # rows of a batch, at least
STEP = 64  # samples of a training step that is timed, at most
ROUNDS = 9  # turns that each network takes, at most
JOBS = "batch", "row", "step"


def parameters_of(network: nn.Module) -> int:
    """Returns the number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def compared(
    module: nn.Module,
    networks: dict[str, nn.Module],
    X: torch.Tensor,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict]:
    """Measures each network beside the module, on samples X (n, ...), in about so many seconds of the clock.

    Returns
    -------
    {name: {"row", "batch", "step": seconds, least; "memory": bytes; "parameters": number; "saved": {job: the module's
    least time over its own}}}, with "" for the module itself. What there was no time for is None, and "step"
    where a network cannot be trained.
    """
    everything = {"": module, **networks}
    times: dict[tuple[str, str], list[float]] = {(name, job): [] for name in everything for job in JOBS}
    memory: dict[str, int] = {}
    with contextlib.suppress(OutOfTime):
        _take_turns(everything, X, times, memory, clock, clock() + seconds)
    report: dict[str, dict] = {}
    for name, network in everything.items():
        least = {job: min(times[name, job], default=None) for job in JOBS}
        report[name] = {**least, "memory": memory.get(name), "parameters": parameters_of(network)}
    for own in report.values():
        pairs = {job: (report[""][job], own[job]) for job in JOBS}
        own["saved"] = {job: first / second if first and second else None for job, (first, second) in pairs.items()}
    return report


def _take_turns(
    networks: dict[str, nn.Module],
    X: torch.Tensor,
    times: dict[tuple[str, str], list[float]],
    memory: dict[str, int],
    clock: Callable[[], float],
    end: float,
) -> None:
    """Fills in what is timed, each job of each network once a turn, and the memory after the last turn."""
    broken: set[tuple[str, str]] = set()
    X = X[: _rows(networks[""], X, (end - clock()) / (3 * len(networks)), clock)]
    x = X.to(device_of(networks[""]))
    for turn in range(ROUNDS):
        for job in JOBS:
            for name, network in networks.items():
                if (name, job) in broken:
                    continue
                check()
                try:
                    times[name, job].append(_seconds(network, job, X, clock, warm=turn == 0))
                except Exception:  # a network whose parameters take no gradient, or whatever the user's code raises
                    broken.add((name, job))
        if clock() > end:
            break
    for name, network in networks.items():
        check()
        with evaluating(network):
            weights = sum(t.numel() * t.element_size() for t in network.parameters())
            memory[name] = weights + peak_bytes(lambda: network(x))


def _rows(module: nn.Module, X: torch.Tensor, seconds: float, clock: Callable[[], float]) -> int:
    """Returns the rows of a batch that the module takes in at most so many seconds; a slow one is timed on fewer."""
    few = min(FEW, len(X))
    for _ in range(2):
        taken = _seconds(module, "batch", X[:few], clock, warm=False)
    return max(few, min(batch_of(X), int(few * seconds / max(taken, 1e-9))))


def _seconds(network: nn.Module, job: str, X: torch.Tensor, clock: Callable[[], float], warm: bool) -> float:
    """Returns the seconds of one call; with `warm` a call that is not timed goes before."""
    call = _job(network, job, X)
    if warm:
        call()
    start = clock()
    call()
    return clock() - start


def _job(network: nn.Module, job: str, X: torch.Tensor) -> Callable[[], object]:
    device = device_of(network)
    if job == "step":
        x = X[:STEP].to(device)
        y = torch.zeros(len(x), dtype=torch.int64, device=device)
        weights = [parameter for parameter in network.parameters() if parameter.requires_grad]

        def step() -> None:
            with evaluating(network), torch.enable_grad():  # in training mode statistics of the batch would be kept
                loss = cross_entropy(scores(network(x)).float(), y)
                torch.autograd.grad(loss, weights, allow_unused=True)  # backward() may call an optimizer by a hook

        return step
    x = X[: 1 if job == "row" else batch_of(X)].to(device)

    def infer() -> None:
        with evaluating(network):
            network(x)

    return infer
