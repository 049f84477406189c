"""A DEQ and its explicit network are timed here, on this machine and at their width, and their memory is counted.

Three jobs: the class of one row, the features of a batch, and a step of training every weight. Times are those of
`torch.utils.benchmark`, the two networks in turn, so that a drift of the machine's speed meets both. Memory is that of
the weights and of the most that a job holds at once, counted tensor by tensor in this process.
"""

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH, STEP = 512, 128  # rows of a batch of features, and of a training step
ROUNDS = 3  # number of turns that each network takes, if there is time
MOST_ROUNDS = 9  # number of turns where their ratios vary
STEADY = 1.5  # factor between the least and the largest ratio of a turn, up to which they do not vary


def inference(network: Any, X: torch.Tensor) -> Callable[[], object]:
    """Returns a call that gives the class of the first row of X (n, p)."""
    x = X[:1]
    return torch.no_grad()(lambda: network(x).argmax(1))


def features(network: Any, X: torch.Tensor) -> Callable[[], object]:
    """Returns a call that gives the features of the first BATCH rows of X (n, p)."""
    x = X[:BATCH]
    return torch.no_grad()(lambda: network.features(x))


def training_step(network: Any, X: torch.Tensor) -> Callable[[], object]:
    """Returns a call that takes one step of SGD on every weight with the first STEP rows of X (n, p). Its rate is 0."""
    x = X[:STEP]
    y = torch.arange(len(x), device=x.device) % network.readout.out_features
    parameters = list(network.parameters())

    @torch.enable_grad()
    def step():  # by hand: the first optimizer of torch.optim imports a compiler, for seconds
        loss = cross_entropy(network(x), y)
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:  # it is not frozen
                    parameter.add_(parameter.grad, alpha=0.0)

    return step


JOBS = {"inference": inference, "features": features, "training_step": training_step}


class _Storages(TorchDispatchMode):
    """Bytes of the storages made since, and the most that there were at once."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    @classmethod
    def _should_skip_dynamo(cls):  # or the first use takes two seconds, of importing a compiler
        return False

    def _meet(self, tree, made):
        for leaf in tree_leaves(tree):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.sizes:
                    size = self.sizes[storage._cdata] = storage.nbytes() if made else 0
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, key):
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._meet((args, kwargs), made=False)  # what was there before
        result = function(*args, **(kwargs or {}))
        self._meet(result, made=True)
        return result


def peak_bytes(call: Callable[[], object]) -> int:
    """Counts the most bytes of tensors that a call holds at once, beyond those that were there before it.

    On the CPU what an operation takes for itself while it runs is not seen; on CUDA everything is.
    """
    before = 0
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with _Storages() as storages:
        call()
    on_gpu = torch.cuda.max_memory_allocated() - before if torch.cuda.is_available() else 0
    return max(storages.peak, on_gpu)


def _measure(calls: Sequence[Callable[[], object]], seconds: float) -> list[list]:
    """Returns for each call its `Measurement` of every turn, at least one, within about so many seconds.

    Where another program has disturbed a turn, so that the calls' ratio varies from turn to turn by more than STEADY,
    there are more turns, in as many seconds again at most.
    """
    start = time.perf_counter()
    # torch.utils.benchmark imports what warns of a CUDA compiler without a GPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    timers = [Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads()) for call in calls]
    turns = [[] for _ in calls]
    while True:
        for timer, measurements in zip(timers, turns):
            measurements.append(timer.blocked_autorange(min_run_time=max(seconds, 0) / ROUNDS / len(calls)))
        spent, (low, high) = time.perf_counter() - start, _range(turns)
        steady = high <= STEADY * low or len(turns[0]) >= MOST_ROUNDS
        if spent > 2 * seconds or spent > seconds and steady:
            return turns


def _range(turns: list[list]) -> tuple[float, float]:
    """The least and the largest ratio of the first call's time to the last one's, over the turns."""
    ratios = [first.median / last.median for first, last in zip(turns[0], turns[-1])]
    return min(ratios), max(ratios)


def _spread(turns: list) -> float | None:
    """The interquartile range of all calls of one network, None of a single one."""
    times = type(turns[0]).merge(turns)[0]
    return times.iqr if len(times.times) > 1 else None


def costs(deq: Any, enn: Any, X: torch.Tensor, budget: float = 10.0) -> dict:
    """Measures time and memory of `JOBS` with a DEQ and with its explicit network.

    Parameters
    ----------
    deq, enn : networks with `features` and a `readout` (`DEQ`, `ENN`), on one device. They are left unchanged.
    X : (n, p) samples.
    budget : seconds that it may take, a third for each job; each job is done three times at least, whatever it takes.

    Returns
    -------
    dict, ready for JSON:
        "ratios" : of DEQ and ENN, {job: of the median times, "memory": of the memory of `features`}.
        "ranges" : {job: (least, largest)} ratio of a single turn.
        "seconds", "spread" : {job: {"deq": ..., "enn": ...}}, the median over turns and the interquartile range of one
            call (None where there was time for one only).
        "memory" : the same, bytes of the weights and of what the job holds at most.
        "rows" : {job: number}. "width", "threads", "device" : where this was.

    Raises
    ------
    ConvergenceError : the DEQ has no equilibrium at these samples.
    """
    device = next(deq.parameters()).device
    X = X[:BATCH].to(next(deq.parameters()))
    networks = {"deq": deq, "enn": enn}
    seconds, spread, ranges, memory = {}, {}, {}, {}
    before = {p: p.grad for network in networks.values() for p in network.parameters()}
    try:
        for job, make in JOBS.items():
            start, held = time.perf_counter(), {}
            calls = [make(network, X) for network in networks.values()]
            for (name, network), call in zip(networks.items(), calls):  # the first call, which is not timed, as well
                network.zero_grad()
                weights = sum(p.numel() * p.element_size() for p in network.parameters())
                held[name] = weights + peak_bytes(call)
            turns = _measure(calls, start + budget / len(JOBS) - time.perf_counter())
            seconds[job] = {name: median(turn.median for turn in own) for name, own in zip(networks, turns)}
            spread[job] = {name: _spread(own) for name, own in zip(networks, turns)}
            ranges[job] = _range(turns)
            memory[job] = held
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient
    ratios = {job: times["deq"] / times["enn"] for job, times in seconds.items()}
    ratios["memory"] = memory["features"]["deq"] / memory["features"]["enn"]
    rows = {"inference": 1, "features": len(X), "training_step": min(len(X), STEP)}
    return {
        "ratios": ratios,
        "ranges": ranges,
        "seconds": seconds,
        "spread": spread,
        "memory": memory,
        "rows": rows,
        "width": deq.readout.in_features,
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
