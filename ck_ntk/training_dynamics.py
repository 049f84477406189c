"""Every weight trained by SGD on MNIST: does a matched network train like its DEQ?

A ReLU-DEQ, networks with its NTK, networks with its CK only, and an unmatched one, for every learning rate and width;
"rescaled" has its learning rate times beta_1 of the DEQ over its own. All networks of a seed share first-layer weights
and readout, and see the same batches in the same order. Distance: root mean square over time of the difference between
mean training losses, over the drop of the DEQ's loss. Networks start from random functions, which no match makes equal:
at the smallest learning rate f(x) - f_0(x) is trained as well ("centred"), where the NTK alone decides. How lazy: the
relative changes of the weights and of the empirical NTK.

Finished runs are kept in results/training_dynamics, and not done again.
"""

import argparse
import copy
import json
import math
import time

from experiment import ROOT, _positive, run

RUNS = ROOT / "results" / "training_dynamics"
SIGMA_A2, BATCH = 0.2, 128
POINTS = 10   # of a curve, an epoch
STRIDE = 5    # between the test samples that a curve is evaluated on; the accuracies in the table are of all of them
PROBE = 30    # test samples that the empirical NTK is computed on

NETWORKS = {"deq": "ReLU-DEQ", "ntk": "NTK-matched, piecewise linear", "ntk_cubic": "NTK-matched, cubic",
            "ck_1": "CK-matched L-ReLU, root 1", "ck_2": "CK-matched L-ReLU, root 2",
            "ck_1_rescaled": "CK-matched, root 1, rescaled", "unmatched": "unmatched ReLU",
            "unmatched_rescaled": "unmatched ReLU, rescaled"}
LOOKS = {"deq": ("black", "-"), "ntk": ("C0", "-"), "ntk_cubic": ("C0", "--"),
         "ck_1": ("C1", "-"), "ck_2": ("C1", "--"), "ck_1_rescaled": ("C1", ":"),
         "unmatched": ("C2", "-"), "unmatched_rescaled": ("C2", ":")}


# ---------------------------------------------------------------------------------------------------------------
# networks

def build(name, p, width, n_classes, tau0, seed):
    """The network of this name, as model.py draws it; rescaled ones differ in their learning rate only."""
    from coefficients import implicit_ck
    from gaussian_integration import ACTIVATIONS
    from model import ENN, build_model
    from two_layer_lrelu import solutions
    relu, name = ACTIVATIONS["relu"], name.removesuffix("_rescaled")
    if name.startswith("ck"):
        found = solutions(implicit_ck(relu, SIGMA_A2, tau0), tau0)[int(name[-1]) - 1]
        return ENN(found.layers, p, width, n_classes, tau0, seed=seed)
    model, family = {"deq": ("inn", "auto"), "unmatched": ("relu_enn", "auto"), "ntk": ("matched_enn", "auto"),
                     "ntk_cubic": ("matched_enn", "hermite")}[name]
    return build_model(model, p, width, n_classes, SIGMA_A2, tau0, seed, relu, "ntk", family)


def tangent_coefficients(model):
    """Of the kernel at infinite width with all weights trained, as a function of the input before its scaling."""
    from coefficients import KernelCoefficients, explicit_ntk, implicit_ntk
    from model import DEQ
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
    """The empirical NTK (n, n) of the first logit, on X (n, p)."""
    import torch
    parameters = list(model.parameters())
    # a readout row of another logit has no gradient but zeros
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(model(x[None])[0, 0], parameters)]) for x in X]
    J = torch.stack(rows)
    return J @ J.T


# ---------------------------------------------------------------------------------------------------------------
# runs

def train_network(config, data, tau0) -> dict:
    """One network's curves; a loss that is not a number or an equilibrium that is lost ends them, and is the result.

    `config.model` is a name of NETWORKS, with "_centred" behind it for f - f_0.
    """
    from dataclasses import replace

    import torch

    from fixed_point import ConvergenceError
    from train import FullTask
    from utils import generator

    n, p = data.X_train.shape
    model = build(config.model.removesuffix("_centred"), p, config.dim, data.n_classes, tau0, config.seed)
    weights = [w.detach().clone() for w in model.parameters()]
    probe = data.X_test[:PROBE]
    kernel = tangent_kernel(model, probe)
    thinned = replace(data, X_test=data.X_test[::STRIDE], y_test=data.y_test[::STRIDE])
    task = FullTask(centred(model) if config.model.endswith("_centred") else model, thinned, config, "cpu")
    start = task.evaluate()
    history, seconds, stopped = [], 0.0, ""
    part = config.batch_size * math.ceil(n / config.batch_size / POINTS)
    result = {"model": config.model, "seed": config.seed, "lr": config.lr, "start": start, "curve": history}
    try:
        for epoch in range(1, config.epoch + 1):
            order = torch.randperm(n, generator=generator(config.seed, "order", epoch))
            for rows in order.split(part):
                began = time.process_time()
                record = task.epoch(rows)
                seconds += time.process_time() - began
                record |= task.evaluate()
                if not math.isfinite(record["train_loss"] + record["test_loss"]):
                    raise FloatingPointError("the loss is no longer finite")
                history.append({"samples": len(rows), **record})
        task.test, task.y_test = data.X_test, data.y_test
        result |= task.evaluate()
        result["kernel_change"] = ((tangent_kernel(model, probe) - kernel).norm() / kernel.norm()).item()
    except (ConvergenceError, FloatingPointError) as error:
        stopped = str(error).split(" (")[0]
    change = sum((w - w0).square().sum() for w, w0 in zip(model.parameters(), weights))
    result["weight_change"] = (change / sum(w0.square().sum() for w0 in weights)).sqrt().item()
    samples = sum(record["samples"] for record in history)
    return result | {"stopped": stopped, "seconds_an_epoch": seconds / samples * n if samples else None}


def finished(config, data, tau0) -> dict:
    """`train_network`, or what it returned when it was last asked for the same."""
    from utils import atomic_write
    path = RUNS / f"{config.model}_{config.dim}_{config.lr:.4g}_seed{config.seed}_{config.key}.json"
    if not path.exists():
        result = train_network(config, data, tau0)
        with atomic_write(path, "w") as file:
            json.dump(result, file)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{path} is damaged: delete it") from None


# ---------------------------------------------------------------------------------------------------------------
# distances

def curves(runs, key):
    """(seeds, points) array of a quantity along one network's runs, up to the first point that one of them lacks."""
    import numpy as np
    length = min(len(r["curve"]) for r in runs)
    return np.array([[record[key] for record in r["curve"][:length]] for r in runs]).reshape(len(runs), length)


def mean_std(values):
    """Mean and standard deviation over the seeds, the first axis; 0 for one seed."""
    import numpy as np
    values = np.asarray(values, dtype=float)
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])


def distance(runs, reference, key):
    """Distance between two networks' mean curves, and its standard error, from the differences seed by seed."""
    import numpy as np
    ours, theirs = curves(runs, key), curves(reference, key)
    length = min(ours.shape[1], theirs.shape[1])
    if not length:
        return math.nan, math.nan
    mean, std = mean_std(ours[:, :length] - theirs[:, :length])
    return math.sqrt(np.mean(mean**2)), math.sqrt(np.mean(std**2) / len(runs))


def compare(runs: dict) -> dict:
    """The networks of one learning rate and width beside the DEQ; `runs` has the runs of each, a seed each."""
    import numpy as np
    deq = runs["deq"]
    losses = curves(deq, "train_loss")
    # before training, the loss of the test samples is that of any samples
    drop = np.mean([r["start"]["test_loss"] for r in deq]) - losses[:, -1].mean() if losses.size else math.nan
    cell = {"drop": drop, "noise": math.sqrt(np.mean(mean_std(losses)[1]**2)) / drop if losses.size else math.nan,
            "networks": {}}
    for name, ours in runs.items():
        done = [r for r in ours if not r["stopped"]]
        row = {"stopped": [{"seed": r["seed"], "after": len(r["curve"]) / POINTS, "why": r["stopped"]}
                           for r in ours if r["stopped"]]}
        row["train_loss"], row["train_loss_std"] = mean_std([r["curve"][-1]["train_loss"] for r in done] or [math.nan])
        row["test_accuracy"], row["test_accuracy_std"] = mean_std([r["test_accuracy"] for r in done] or [math.nan])
        row["distance"], row["distance_error"] = (d / drop for d in distance(ours, deq, "train_loss"))
        row["accuracy_distance"], row["accuracy_distance_error"] = distance(ours, deq, "test_accuracy")
        row["cost"] = float(np.mean([(a["seconds_an_epoch"] or math.nan) / (b["seconds_an_epoch"] or math.nan)
                                     for a, b in zip(ours, deq)]))
        row["weight_change"] = float(np.mean([r["weight_change"] for r in ours]))
        row["kernel_change"] = float(np.mean([r["kernel_change"] for r in done])) if done else math.nan
        row["curve"], row["curve_std"] = (a.tolist() for a in mean_std(curves(ours, "train_loss")))
        row["accuracy_curve"] = mean_std(curves(ours, "test_accuracy"))[0].tolist()
        cell["networks"][name] = {key: float(v) if isinstance(v, np.generic | np.ndarray) else v
                                  for key, v in row.items()}
    return cell


def finite_only(value):
    """The same numbers for a JSON, which has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: finite_only(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite_only(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pair(mean, std, digits, width):
    """A cell of the table; a dash where there is no number."""
    form = f".{digits}f" if mean < 1000 else ".1e"
    return f"{f'{mean:{form}} ± {std:{form}}' if math.isfinite(mean) else '-':>{width}}"


def show(cell):
    print(f"\nlr {cell['lr']:g}, width {cell['width']}{', centred' if cell['centred'] else ''}: the DEQ's loss falls "
          f"by {cell['drop']:.3f}; std over seeds {cell['noise']:.3f} of it")
    print(f"{'':<30}{'training loss':>15}{'test acc. %':>15}{'distance':>17}{'acc. distance %':>17}"
          f"{'cost':>7}{'weights':>9}{'kernel':>8}")
    for name, r in cell["networks"].items():
        last = (f"{value:.{digits}f}" if math.isfinite(value) else "-"
                for value, digits in ((r["cost"], 2), (r["weight_change"], 3), (r["kernel_change"], 3)))
        print(f"{NETWORKS[name]:<30}" + pair(r["train_loss"], r["train_loss_std"], 3, 15)
              + pair(100 * r["test_accuracy"], 100 * r["test_accuracy_std"], 2, 15)
              + pair(r["distance"], r["distance_error"], 4, 17)
              + pair(100 * r["accuracy_distance"], 100 * r["accuracy_distance_error"], 2, 17)
              + "{:>7}{:>9}{:>8}".format(*last))
        if r["stopped"]:
            print(f"    seed {', '.join(str(s['seed']) for s in r['stopped'])} stopped after "
                  f"{', '.join(format(s['after'], '.1f') for s in r['stopped'])} epochs: {r['stopped'][0]['why']}")


# ---------------------------------------------------------------------------------------------------------------
# figure

def draw(cells, widths, columns, epochs):
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    figure, axes = plt.subplots(len(widths) + 1, len(columns), squeeze=False,
                                figsize=(0.4 + 1.4 * len(columns), 0.8 + 1.4 * (len(widths) + 1)))
    for column, (lr, is_centred) in enumerate(columns):
        mine = [cells[lr, width, is_centred] for width in widths]
        for row, (width, cell) in enumerate(zip(widths, mine)):
            ax = axes[row, column]
            for name, r in cell["networks"].items():
                colour, line = LOOKS[name]
                mean, std = np.array(r["curve"]), np.array(r["curve_std"])
                time = (np.arange(len(mean)) + 0.5) / POINTS  # the middle of what each point is a mean over
                if name == "deq":
                    ax.fill_between(time, mean - std, mean + std, color="0.75", lw=0)
                ax.plot(time, mean, line, color=colour, lw=2.5 if name == "deq" else 1,
                        alpha=0.45 if name == "deq" else 1, label=NETWORKS[name])
                if r["stopped"]:
                    ax.plot(time[-1:], mean[-1:], "x", color=colour, ms=4)
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
            stopped = [NETWORKS[name] for name, r in cell["networks"].items() if r["stopped"]]
            if stopped:
                ax.text(0.97, 0.97, f"{len(stopped)} of {len(NETWORKS)} stopped", transform=ax.transAxes, ha="right",
                        va="top", fontsize=7, color="0.35")
            ax.set_xlim(0, epochs)
            ax.set_xticks([0, epochs / 2, epochs], ["0", f"{epochs / 2:g}", str(epochs)])
            ax.set_ylim(top=min(ax.get_ylim()[1], 3))  # what diverges leaves the panel
            if row == 0:
                ax.set_title(f"learning rate {lr:g}" + (", centred" if is_centred else ""))
            ax.set_xlabel("epoch" if row == len(widths) - 1 else "")
            ax.set_ylabel(f"training loss, $m = {width}$" if column == 0 else "")
        ax = axes[-1, column]
        for index, name in enumerate(list(NETWORKS)[1:]):
            colour, line = LOOKS[name]
            beside = [width * 1.05**(index - 3) for width in widths]  # error bars that do not hide one another
            rows = [cell["networks"][name] for cell in mine]
            ax.errorbar(beside, [r["distance"] for r in rows], [r["distance_error"] for r in rows], ls=line,
                        marker="o", ms=2.5, lw=1, color=colour)
        ax.plot(widths, [cell["noise"] for cell in mine], "-.", color="0.5",
                label="std of the DEQ's curve")
        ax.set(xscale="log", yscale="log", xlabel="width $m$", ylim=(1e-3, 1.5))
        ax.set_xticks(widths, widths)
        ax.minorticks_off()
        if column == 0:
            ax.set_ylabel("distance to the DEQ")
        else:
            ax.set_yticklabels([])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    extra, name = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles + extra, labels + name, loc="outside lower center", ncols=3, handlelength=2.6)
    return figure


def main(args):
    from tqdm import tqdm

    from data_prepare import load_dataset
    from train import Config, fingerprint
    from utils import estimate_tau0

    widths, lrs = sorted(set(args.width)), sorted(set(args.lr))
    data = load_dataset("mnist", args.dataset_path)
    key, tau0 = fingerprint(data), estimate_tau0(data.X_train)
    ntks, cks = {}, {}
    for name in NETWORKS:
        model = build(name, 1, 1, 2, tau0, 0)
        ntks[name], cks[name] = tangent_coefficients(model), model.coefficients
    clock = {name: ntks["deq"].c1 / ntks[name].c1 if name.endswith("rescaled") else 1.0 for name in NETWORKS}

    columns = [(lrs[0], True), *((lr, False) for lr in lrs)]
    grid = [(lr, width, c, seed, name) for width in widths for lr, c in columns
            for seed in range(args.seeds) for name in NETWORKS]
    runs = {}
    for lr, width, c, seed, name in tqdm(grid, desc="runs", leave=False, disable=None):
        config = Config("mnist", name + "_centred" * c, width, lr * clock[name], args.epoch, BATCH, seed,
                        asquare=SIGMA_A2, train="full", data=key)
        runs.setdefault((lr, width, c), {}).setdefault(name, []).append(finished(config, data, tau0))
    cells = {(lr, width, c): {"lr": lr, "width": width, "centred": c, **compare(found)}
             for (lr, width, c), found in runs.items()}

    print(f"{'':<30}  gamma^2  kappa^2   beta_1   beta_2   beta_3  learning rate times")
    for name, k in ntks.items():
        print(f"{NETWORKS[name]:<30}{cks[name].diag:9.4f}{k.diag:9.4f}{k.c1:9.4f}{k.c2:9.4f}{k.c3:9.4f}"
              f"{clock[name]:9.4f}")
    for cell in cells.values():
        show(cell)
    numbers = {"names": NETWORKS, "coefficients": {name: vars(k) for name, k in ntks.items()}, "rescaled_by": clock,
               "cells": finite_only(list(cells.values()))}
    return draw(cells, widths, columns, args.epoch), numbers


def _rate(text):
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return value


if __name__ == "__main__":
    run(main, __doc__, epoch=1, width=[64, 256, 512], dataset=True, flags={
        "--lr": dict(type=_rate, nargs="+", default=[0.3, 3.0, 30.0, 200.0], help="rates (default 0.3 3 30 200)"),
        "--seeds": dict(type=_positive, default=3, help="number of seeds (default 3)")})
