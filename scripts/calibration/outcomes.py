"""What happens in a case of scripts/calibrate.py: the DEQ and its candidates trained at the width that is asked for.

The readout is solved exactly on the whole training set, with the ridge that best predicts each training sample by the
others (`verdicts.candidates.fitted`), for several seeds of the weights, and tested on samples that the verdict never
sees. `sgd` and `full` train the same networks by stochastic gradients, each at
a rate of its own, and say whether the exact readout speaks for them.
"""

if __name__ == "__main__":
    raise SystemExit("outcomes.py is a part of scripts/calibrate.py: run that")

import math
import time
from dataclasses import replace
from functools import partial

import torch

from deq_enn.machines.copies import repeated
from deq_enn.machines.precise_readout import features
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import ConvergenceError, Picard
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.training.learning_rate import choose_rate
from deq_enn.training.loop import TASKS
from deq_enn.training.run_files import Config
from deq_enn.utils.random import generator
from deq_enn.verdicts.candidates import fitted, networks
from scripts.calibration.cases import WIDE_DATA, cases
from scripts.calibration.fresh import activation_of

FIRST_SEED = 1000  # no seed of the weights is one that a verdict has drawn
OWN_SEED = 0  # of the DEQ that the verdict is asked about, and of the network that it would hand out
MAJORITY = "the commonest class"  # no network, but what each has to be better than
SOLVER = Picard(1e-5, 1000)  # an error that no accuracy shows, and steps enough for a slow equilibrium


def deq_of(case, data, seed=0) -> DEQ:
    return DEQ(
        activation_of(case),
        data.X_train.shape[1],
        case.width,
        data.n_classes,
        case.sigma_a2,
        estimate_tau0(data.X_train),
        seed,
        SOLVER,
    )


def builders(case, data) -> dict:
    """Returns {name: function of the seed that gives the network} of the DEQ ("deq") and of every candidate."""
    tau0, p = estimate_tau0(data.X_train), data.X_train.shape[1]
    candidates, _ = networks(deq_of(replace(case, width=1), data), tau0)
    return {
        "deq": lambda seed: deq_of(case, data, seed),
        **{network.name: partial(network.build, p, case.width, data.n_classes) for network in candidates},
    }


def trained_in_any_case(name: str, width: int) -> bool:
    """Tells whether a candidate is trained before it is chosen; the others are much like one of these."""
    if name.startswith("plain") or "piecewise" in name:
        return True
    return width < 256 and not name.startswith("matched ntk")


def right(model, data, copies) -> torch.Tensor:
    """Tells which test samples the network classifies rightly with its best readout, (test samples,) bool.

    copies : which training samples are left out together, for the choice of the ridge.
    """
    model, readout = fitted(model, data.X_train, data.y_train, data.n_classes, copies)
    F = features(model, data.X_test.to(model.readout.weight))
    return (F.double() @ readout.weights + readout.mean).argmax(1) == data.y_test


def loss_and_error(deq: torch.Tensor, other: torch.Tensor) -> dict:
    """Returns the loss in points, DEQ less the other, of (seeds, test samples) bool, and its standard error.

    The difference of seed s on sample i is modelled as mu + a_s + b_i + e_si: the error of the mean has a part of each,
    of which the variances over rows and columns count that of e twice. `utils.intervals.paired_loss` is for a DEQ that
    is what it is; here each seed draws both networks, and e is taken out of the variances rather than bounded.
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
    """Returns what each candidate loses, and which test samples the DEQ has right (seeds, test samples).

    The first seed is the user's own: its loss stands under "own", with the error of the test samples alone, and the
    others give the mean. Beside the candidates stands what is lost by saying the commonest class of all samples.

    Parameters
    ----------
    names : of the candidates to train; by default those of `trained_in_any_case`.
    kept : the second result of an earlier call, which then is not computed again.
    """
    start, build, copies = time.process_time(), builders(case, data), repeated(data.X_train).left_out
    seeds = [OWN_SEED, *range(FIRST_SEED, FIRST_SEED + case.seeds)]
    record = {"case": case.name, "seeds": case.seeds, "tests": len(data.y_test)}
    try:
        deq = torch.stack([right(build["deq"](seed), data, copies) for seed in seeds]) if kept is None else kept
    except ConvergenceError as error:
        return {**record, "networks": {}, "failed": str(error)}, None
    record["deq"] = 100 * deq[1:].double().mean().item()
    if names is None:
        names = [name for name in build if name != "deq" and trained_in_any_case(name, case.width)]
    record["networks"] = {}
    for name in names:
        other = torch.stack([right(build[name](seed), data, copies) for seed in seeds])
        record["networks"][name] = _compared(deq, other)
    commonest = data.y_test == data.y_train.mode().values
    record["networks"][MAJORITY] = _compared(deq, commonest.expand(len(seeds), -1))
    return {**record, "seconds": time.process_time() - start}, deq


def _compared(deq, other):
    """Returns the loss of (seeds, test samples) bool, of the seeds but the first, and that of the first."""
    own = 100 * (deq[0].double() - other[0].double())
    return loss_and_error(deq[1:], other[1:]) | {
        "own": {"loss": own.mean().item(), "error": (own.std() / math.sqrt(len(own))).item()}
    }


SGD = dict(train="readout", epochs=10, seeds=3), 16  # and for how many cases
FULL = dict(train="full", epochs=10, seeds=2), 4


def sgd_cases() -> dict:
    """Returns {case: settings of `trained`}: the first small ones of the list."""
    small = [case for case in cases() if case.width <= 256 and case.n <= 5000 and case.data not in WIDE_DATA]
    full = [case for case in small if case.width <= 128 and case.n <= 2000][: FULL[1]]
    readout = [case for case in small if case not in full][: SGD[1]]
    return {case: SGD[0] for case in readout} | {case: FULL[0] for case in full}


def trained(case, data, train: str, epochs: int, seeds: int) -> dict:
    """Trains the DEQ, a match and a plain layer by SGD at rates of their own; returns the accuracy of each seed, in %.

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
