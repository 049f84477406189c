"""Every weight is trained by SGD on MNIST: does a matched network train like its DEQ?

A ReLU-DEQ, networks with its NTK, networks with its CK only, and an unmatched one, for every learning rate and width;
"rescaled" has its learning rate times beta_1 of the DEQ over its own. All networks of a seed share first-layer weights
and readout, and see the same batches in the same order. Distance: root mean square over time of the difference between
mean training losses, over the drop of the DEQ's loss. Networks start from random functions, which no match makes equal:
at the smallest learning rate f(x) - f_0(x) is trained as well ("centred"), where the NTK alone decides. How lazy: the
relative changes of the weights and of the empirical NTK.

Finished runs are kept in results/training_dynamics, and not done again.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import copy
import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import ROOT, run
from ck_ntk.common.training_curves import NETWORKS, POINTS, RATES, SEEDS, WIDTHS, compare, draw, finite_only, show
from deq_enn.utils.arguments import bounded_float, positive_int

RUNS = ROOT / "results" / "training_dynamics"
SIGMA_A2, BATCH = 0.2, 128
STRIDE = 5  # between the test samples that a curve is evaluated on; the accuracies in the table are of all of them
PROBE = 30  # test samples that the empirical NTK is computed on


# ---------------------------------------------------------------------------------------------------------------
# networks


def build(name, p, width, n_classes, tau0, seed):
    """The network of this name, as model.py draws it; rescaled ones differ in their learning rate only."""
    from deq_enn.matching.two_layer_lrelu import solutions
    from deq_enn.networks.build import build_model
    from deq_enn.networks.enn import ENN
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.theory.coefficients import implicit_ck

    relu, name = ACTIVATIONS["relu"], name.removesuffix("_rescaled")
    if name.startswith("ck"):
        match = solutions(implicit_ck(relu, SIGMA_A2, tau0), tau0)[int(name[-1]) - 1]
        return ENN(match.layers, p, width, n_classes, tau0, seed=seed)
    model, family = {
        "deq": ("inn", "auto"),
        "unmatched": ("relu_enn", "auto"),
        "ntk": ("matched_enn", "auto"),
        "ntk_cubic": ("matched_enn", "hermite"),
    }[name]
    return build_model(model, p, width, n_classes, SIGMA_A2, tau0, seed, relu, "ntk", family)


def tangent_coefficients(model):
    """Of the kernel at infinite width with all weights trained, as a function of the input before its scaling."""
    from deq_enn.networks.deq import DEQ
    from deq_enn.theory.coefficients import KernelCoefficients, explicit_ntk, implicit_ntk

    if isinstance(model, DEQ):
        return implicit_ntk(model.activation, model.sigma_a2, model.tau0, "aAB")
    scale2 = model.input_scale**2
    ntk = explicit_ntk(model.layers, model.tau0 * model.input_scale, "all")
    return KernelCoefficients(ntk.diag, ntk.c1 * scale2, ntk.c2 * scale2**2, ntk.c3 * scale2**2)


def centred(model):
    """The network f(x) - f_0(x), with f_0 its function at the start: the same gradients, from zero."""
    import torch

    class Centred(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model
            self.start = (copy.deepcopy(model),)  # in a tuple, so that it is not trained

        def forward(self, x):
            with torch.no_grad():
                start = self.start[0](x)
            return self.model(x) - start

    return Centred()


def tangent_kernel(model, X):
    """Returns the empirical NTK (n, n) of the first logit, on X (n, p)."""
    import torch

    parameters = list(model.parameters())
    # a readout row of another logit has no gradient but zeros
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(model(x[None])[0, 0], parameters)]) for x in X]
    J = torch.stack(rows)
    return J @ J.T


# ---------------------------------------------------------------------------------------------------------------
# runs


def train_network(config, data, tau0, device="cpu") -> dict:
    """One network's curves; a loss that is not a number or an equilibrium that is lost ends them, and is the result.

    `config.model` is a name of NETWORKS, with "_centred" behind it for f - f_0.
    """
    from dataclasses import replace

    import torch

    from deq_enn.networks.fixed_point import ConvergenceError
    from deq_enn.training.loop import FullTask
    from deq_enn.utils.random import generator

    n, p = data.X_train.shape
    model = build(config.model.removesuffix("_centred"), p, config.dim, data.n_classes, tau0, config.seed).to(device)
    weights = [w.detach().clone() for w in model.parameters()]
    probe = data.X_test[:PROBE].to(device)
    kernel = tangent_kernel(model, probe)
    thinned = replace(data, X_test=data.X_test[::STRIDE], y_test=data.y_test[::STRIDE])
    task = FullTask(centred(model) if config.model.endswith("_centred") else model, thinned, config, device)
    start = task.evaluate()
    history, seconds, stopped = [], 0.0, ""
    clock = time.process_time if device == "cpu" else time.perf_counter  # a GPU's work is no time of this process
    part = config.batch_size * math.ceil(n / config.batch_size / POINTS)
    result = {"model": config.model, "seed": config.seed, "lr": config.lr, "start": start, "curve": history}
    try:
        for epoch in range(1, config.epoch + 1):
            order = torch.randperm(n, generator=generator(config.seed, "order", epoch)).to(device)
            for rows in order.split(part):
                began = clock()
                record = task.epoch(rows)
                seconds += clock() - began
                record |= task.evaluate()
                if not math.isfinite(record["train_loss"] + record["test_loss"]):
                    raise FloatingPointError("the loss is no longer finite")
                history.append({"samples": len(rows), **record})
        task.test, task.y_test = data.X_test.to(device), data.y_test.to(device)
        result |= task.evaluate()
        result["kernel_change"] = ((tangent_kernel(model, probe) - kernel).norm() / kernel.norm()).item()
    except (ConvergenceError, FloatingPointError) as error:
        stopped = str(error).split(" (")[0]
    change = sum((w - w0).square().sum() for w, w0 in zip(model.parameters(), weights))
    result["weight_change"] = (change / sum(w0.square().sum() for w0 in weights)).sqrt().item()
    samples = sum(record["samples"] for record in history)
    return result | {"stopped": stopped, "seconds_an_epoch": seconds / samples * n if samples else None}


def finished(config, data, tau0, device="cpu") -> dict:
    """`train_network`, or what it returned when it was last asked for the same."""
    from deq_enn.utils.files import atomic_write
    from deq_enn.utils.locks import locked

    where = "" if device == "cpu" else f"_{device.partition(':')[0]}"  # its seconds are others
    path = RUNS / f"{config.model}_{config.dim}_{config.lr:.4g}_seed{config.seed}_{config.key}{where}.json"
    if not path.exists():
        with locked(RUNS, "runs", [path.name], advice=""):
            result = train_network(config, data, tau0, device)
        with atomic_write(path, "w") as file:
            json.dump(result, file)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise ValueError(f"{path} is damaged: delete it") from None


def main(args):
    from tqdm import tqdm

    from deq_enn.data.datasets import load_dataset
    from deq_enn.theory.equilibrium import estimate_tau0
    from deq_enn.training.run_files import Config, fingerprint

    widths, lrs = sorted(set(args.dim)), sorted(set(args.lr))
    data = load_dataset("mnist", args.dataset_path)
    key, tau0 = fingerprint(data), estimate_tau0(data.X_train)
    ntks, cks = {}, {}
    for name in NETWORKS:
        model = build(name, 1, 1, 2, tau0, 0)
        ntks[name], cks[name] = tangent_coefficients(model), model.coefficients
    clock = {name: ntks["deq"].c1 / ntks[name].c1 if name.endswith("rescaled") else 1.0 for name in NETWORKS}

    columns = [(lrs[0], True), *((lr, False) for lr in lrs)]
    grid = [
        (lr, width, c, seed, name)
        for width in widths
        for lr, c in columns
        for seed in range(args.seeds)
        for name in NETWORKS
    ]
    runs = {}
    for lr, width, c, seed, name in tqdm(grid, desc="runs", leave=False, disable=None):
        config = Config(
            "mnist",
            name + "_centred" * c,
            width,
            float(f"{lr * clock[name]:.9g}"),  # without the last digits, which are each machine's own
            args.epoch,
            BATCH,
            seed,
            asquare=SIGMA_A2,
            train="full",
            data=key,
        )
        runs.setdefault((lr, width, c), {}).setdefault(name, []).append(finished(config, data, tau0, args.device))
    cells = {
        (lr, width, c): {"lr": lr, "width": width, "centred": c, **compare(networks)}
        for (lr, width, c), networks in runs.items()
    }

    print(f"{'':<30}  gamma^2  kappa^2   beta_1   beta_2   beta_3  learning rate times")
    for name, k in ntks.items():
        print(
            f"{NETWORKS[name]:<30}{cks[name].diag:9.4f}{k.diag:9.4f}{k.c1:9.4f}{k.c2:9.4f}{k.c3:9.4f}{clock[name]:9.4f}"
        )
    for cell in cells.values():
        show(cell)
    numbers = {
        "names": NETWORKS,
        "coefficients": {name: vars(k) for name, k in ntks.items()},
        "rescaled_by": clock,
        "cells": finite_only(list(cells.values())),
    }
    return draw(cells, widths, columns, args.epoch), numbers


if __name__ == "__main__":
    run(
        main,
        __doc__,
        epoch=1,
        dim=list(WIDTHS),
        dataset=True,
        device=True,
        flags={
            "--lr": dict(
                type=bounded_float(0, math.inf, "positive and finite"),
                nargs="+",
                default=list(RATES),
                help=f"rates (default {' '.join(f'{lr:g}' for lr in RATES)})",
            ),
            "--seeds": dict(type=positive_int, default=SEEDS, help=f"number of seeds (default {SEEDS})"),
        },
    )
