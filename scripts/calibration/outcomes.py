"""What happens in a case of scripts/calibrate.py: the DEQ and its candidates trained at the width that is asked for.

The readout is solved exactly on the whole training set (machines/readout.py), for several seeds of the weights, and
tested on samples that the verdict never sees. `sgd` and `full` train the same networks by stochastic gradients, each at
a rate of its own, and say whether the exact readout speaks for them.
"""

if __name__ == "__main__":
    raise SystemExit("outcomes.py is a part of scripts/calibrate.py: run that")

import math
import time
from dataclasses import replace
from functools import partial

import torch

from deq_enn.machines.readout import RIDGES, solve
from deq_enn.machines.regression import one_hot_targets
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError, Picard
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.training.learning_rate import choose_rate
from deq_enn.training.loop import TASKS
from deq_enn.training.run_files import Config
from deq_enn.utils.random import generator
from deq_enn.verdicts.candidates import networks
from scripts.calibration.cases import WIDE_DATA, cases

FIRST_SEED = 1000  # no seed of the weights is one that a verdict has drawn
SOLVER = Picard(1e-5, 1000)  # an error that no accuracy shows, and steps enough for a slow equilibrium


def deq_of(case, data, seed=0) -> DEQ:
    return DEQ(
        ACTIVATIONS[case.activation],
        data.X_train.shape[1],
        case.width,
        data.n_classes,
        case.sigma_a2,
        estimate_tau0(data.X_train),
        seed,
        SOLVER,
    )


def builders(case, data) -> dict:
    """{name: function of the seed that gives the network} of the DEQ ("deq") and of every candidate."""
    tau0, p = estimate_tau0(data.X_train), data.X_train.shape[1]
    candidates, _ = networks(deq_of(replace(case, width=1), data), tau0)
    return {
        "deq": lambda seed: deq_of(case, data, seed),
        **{network.name: partial(network.build, p, case.width, data.n_classes) for network in candidates},
    }


def trained_in_any_case(name: str, width: int) -> bool:
    """Of a candidate, whether it is trained before it is chosen; the others are much like one of these."""
    if name in ("plain, depth 1", "plain, depth 2") or "matched ck" in name and "piecewise" in name:
        return True
    return width < 256 and ("piecewise" in name or not name.startswith("matched ntk"))


def best_readout(model, X, y, n_classes) -> tuple[torch.Tensor, torch.Tensor]:
    """weights (m, c) and mean (c,) of `ridge_features.solve`, by whichever of n and m is smaller.

    For n < m the same readout is F^T (F F^T + lambda I)^-1 Y, and costs n^2 m instead of n m^2.
    """
    if len(X) >= model.readout.in_features:
        readout, _ = solve(model, X, y, n_classes)
        return readout.weights, readout.mean
    with torch.no_grad():
        F = torch.cat([model.features(x) for x in X.split(512)]).double()
    targets, mean = one_hot_targets(y, n_classes)
    K = F @ F.T
    first = len(X) - max(len(X) // 5, 1)
    unit, best = K.diagonal()[:first].mean().item(), (math.inf, None)
    for ridge in RIDGES:
        root, failed = torch.linalg.cholesky_ex(K[:first, :first] + ridge * unit * torch.eye(first, dtype=K.dtype))
        if not failed:
            guess = K[first:, :first] @ torch.cholesky_solve(targets[:first], root)
            best = min(best, ((targets[first:] - guess).square().mean().item(), ridge))
    noise = best[1] * K.diagonal().mean().item()
    return F.T @ torch.linalg.solve(K + noise * torch.eye(len(K), dtype=K.dtype), targets), mean


def right(model, data) -> torch.Tensor:
    """(test samples,) bool: which of them the network classifies rightly with its best readout."""
    weights, mean = best_readout(model, data.X_train, data.y_train, data.n_classes)
    with torch.no_grad():
        predicted = [(model.features(x).double() @ weights + mean).argmax(1) for x in data.X_test.split(512)]
    return torch.cat(predicted) == data.y_test


def loss_and_error(deq: torch.Tensor, other: torch.Tensor) -> dict:
    """The loss in points, DEQ less the other, of (seeds, test samples) bool, and its standard error.

    The difference of seed s on sample i is modelled as mu + a_s + b_i + e_si: the error of the mean has a part of each,
    of which the variances over rows and columns count that of e twice.
    """
    d = 100 * (deq.double() - other.double())
    S, n = d.shape
    rows, columns = d.mean(1), d.mean(0)
    rest = (d - rows[:, None] - columns + d.mean()).square().sum() / ((S - 1) * (n - 1))
    between = rows.var() / S
    variance = torch.maximum(between + columns.var() / n - rest / (S * n), between)
    return {
        "accuracy": 100 * other.double().mean().item(),
        "loss": d.mean().item(),
        "error": variance.sqrt().item(),
        "seed_sd": rows.std().item(),
    }


def outcome(case, data, names=None, kept=None) -> tuple[dict, torch.Tensor | None]:
    """What each candidate loses, and which test samples the DEQ has right (seeds, test samples).

    Parameters
    ----------
    names : of the candidates to train; by default those of `trained_in_any_case`.
    kept : the second result of an earlier call, which then is not computed again.
    """
    start, build = time.process_time(), builders(case, data)
    seeds = range(FIRST_SEED, FIRST_SEED + case.seeds)
    record = {"case": case.name, "seeds": case.seeds, "tests": len(data.y_test)}
    try:
        deq = torch.stack([right(build["deq"](seed), data) for seed in seeds]) if kept is None else kept
    except ConvergenceError as error:
        return {**record, "networks": {}, "failed": str(error)}, None
    record["deq"] = 100 * deq.double().mean().item()
    if names is None:
        names = [name for name in build if name != "deq" and trained_in_any_case(name, case.width)]
    record["networks"] = {
        name: loss_and_error(deq, torch.stack([right(build[name](seed), data) for seed in seeds])) for name in names
    }
    return {**record, "seconds": time.process_time() - start}, deq


SGD = dict(train="readout", epochs=10, seeds=3), 16  # and for how many cases
FULL = dict(train="full", epochs=10, seeds=2), 4


def sgd_cases() -> dict:
    """{case: settings of `trained`}: the first small ones of the list."""
    small = [case for case in cases() if case.width <= 256 and case.n <= 5000 and case.data not in WIDE_DATA]
    full = [case for case in small if case.width <= 128 and case.n <= 2000][: FULL[1]]
    readout = [case for case in small if case not in full][: SGD[1]]
    return {case: SGD[0] for case in readout} | {case: FULL[0] for case in full}


def trained(case, data, train: str, epochs: int, seeds: int) -> dict:
    """The DEQ, a match and a plain layer by SGD at a rate of its own: the accuracy of each seed, in %.

    train : "readout", with a match of the conjugate kernel, or "full", all weights, with one of the tangent kernel.
    """
    build = builders(case, data)
    start = "matched ck" if train == "readout" else "matched ntk"
    match = next(name for name in build if name.startswith(start) and "piecewise" in name)
    runs = {}
    for name in ("deq", match, "plain, depth 1"):
        runs[name] = []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            config = Config(case.name, name, case.width, math.nan, epochs, 128, seed, train=train)
            rate, _ = choose_rate(config, data, lambda: build[name](seed))
            task = TASKS[train](build[name](seed), data, replace(config, lr=rate), "cpu")
            for epoch in range(1, epochs + 1):
                task.epoch(torch.randperm(len(data.X_train), generator=generator(seed, "order", epoch)))
            runs[name].append({"lr": rate, "accuracy": 100 * task.evaluate()["test_accuracy"]})
    return {"case": case.name, "train": train, "epochs": epochs, "runs": runs}
