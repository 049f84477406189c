"""The curves of training_dynamics.py are compared here: distances between networks' losses, a table, a figure."""

if __name__ == "__main__":
    raise SystemExit("training_curves.py is shared by the figures: run one of ck_ntk/*.py")

import math

POINTS = 10  # points of a curve in each epoch
WIDTHS, RATES, SEEDS = (64, 256, 512), (0.3, 3.0, 30.0, 200.0), 3  # that are trained unless flags say otherwise

NETWORKS = {
    "deq": "ReLU-DEQ",
    "ntk": "NTK-matched, piecewise linear",
    "ntk_cubic": "NTK-matched, cubic",
    "ck_1": "CK-matched L-ReLU, root 1",
    "ck_2": "CK-matched L-ReLU, root 2",
    "ck_1_rescaled": "CK-matched, root 1, rescaled",
    "unmatched": "unmatched ReLU",
    "unmatched_rescaled": "unmatched ReLU, rescaled",
}
LOOKS = {
    "deq": ("black", "-"),
    "ntk": ("C0", "-"),
    "ntk_cubic": ("C0", "--"),
    "ck_1": ("C1", "-"),
    "ck_2": ("C1", "--"),
    "ck_1_rescaled": ("C1", ":"),
    "unmatched": ("C2", "-"),
    "unmatched_rescaled": ("C2", ":"),
}


def curves(runs, key):
    """Returns a quantity along one network's runs (seeds, points), up to the first point that a run lacks."""
    import numpy as np

    length = min(len(r["curve"]) for r in runs)
    return np.array([[record[key] for record in r["curve"][:length]] for r in runs]).reshape(len(runs), length)


def mean_std(values):
    """Returns mean and standard deviation over the seeds, the first axis; 0 for one seed."""
    import numpy as np

    values = np.asarray(values, dtype=float)
    return values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])


def distance(runs, reference, key):
    """Returns the distance between two networks' mean curves, and its standard error, from paired differences."""
    import numpy as np

    ours, theirs = curves(runs, key), curves(reference, key)
    length = min(ours.shape[1], theirs.shape[1])
    if not length:
        return math.nan, math.nan
    mean, std = mean_std(ours[:, :length] - theirs[:, :length])
    return math.sqrt(np.mean(mean**2)), math.sqrt(np.mean(std**2) / len(runs))


def compare(runs: dict) -> dict:
    """Compares the networks of one learning rate and width with the DEQ; `runs` has the runs of each, a seed each."""
    import numpy as np

    deq = runs["deq"]
    losses = curves(deq, "train_loss")
    drop, noise = math.nan, math.nan
    if losses.size:
        # before training, the loss of the test samples is that of any samples
        drop = np.mean([r["start"]["test_loss"] for r in deq]) - losses[:, -1].mean()
        noise = math.sqrt(np.mean(mean_std(losses)[1] ** 2)) / drop
    return {"drop": drop, "noise": noise, "networks": {name: beside(ours, deq, drop) for name, ours in runs.items()}}


def beside(runs, deq, drop) -> dict:
    """Returns the numbers of one network's runs beside those of the DEQ, whose loss falls by `drop`."""
    import numpy as np

    done = [r for r in runs if not r["stopped"]]
    row = {
        "stopped": [
            {"seed": r["seed"], "after": len(r["curve"]) / POINTS, "why": r["stopped"]} for r in runs if r["stopped"]
        ]
    }
    row["train_loss"], row["train_loss_std"] = mean_std([r["curve"][-1]["train_loss"] for r in done] or [math.nan])
    row["test_accuracy"], row["test_accuracy_std"] = mean_std([r["test_accuracy"] for r in done] or [math.nan])
    row["distance"], row["distance_error"] = (d / drop for d in distance(runs, deq, "train_loss"))
    row["accuracy_distance"], row["accuracy_distance_error"] = distance(runs, deq, "test_accuracy")
    row["cost"] = np.mean([seconds(ours) / seconds(theirs) for ours, theirs in zip(runs, deq)])
    row["weight_change"] = np.mean([r["weight_change"] for r in runs])
    row["kernel_change"] = np.mean([r["kernel_change"] for r in done]) if done else math.nan
    row["curve"], row["curve_std"] = (a.tolist() for a in mean_std(curves(runs, "train_loss")))
    row["accuracy_curve"] = mean_std(curves(runs, "test_accuracy"))[0].tolist()
    return {key: float(v) if isinstance(v, np.generic | np.ndarray) else v for key, v in row.items()}


def seconds(record):
    """Returns the seconds of an epoch, NaN where none was finished."""
    return record["seconds_an_epoch"] or math.nan


def finite_only(value):
    """Returns the same numbers for a JSON, which has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: finite_only(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite_only(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def pair(mean, std, digits, width):
    """Returns a cell of the table; a dash where there is no number."""
    form = f".{digits}f" if mean < 1000 else ".1e"
    return f"{f'{mean:{form}} ± {std:{form}}' if math.isfinite(mean) else '-':>{width}}"


def show(cell):
    print(
        f"\nlr {cell['lr']:g}, width {cell['width']}{', centred' if cell['centred'] else ''}: the DEQ's loss falls "
        f"by {cell['drop']:.3f}; std over seeds {cell['noise']:.3f} of it"
    )
    print(
        f"{'':<30}{'training loss':>15}{'test acc. %':>15}{'distance':>17}{'acc. distance %':>17}"
        f"{'cost':>7}{'weights':>9}{'kernel':>8}"
    )
    for name, r in cell["networks"].items():
        last = (
            f"{value:.{digits}f}" if math.isfinite(value) else "-"
            for value, digits in ((r["cost"], 2), (r["weight_change"], 3), (r["kernel_change"], 3))
        )
        print(
            f"{NETWORKS[name]:<30}"
            + pair(r["train_loss"], r["train_loss_std"], 3, 15)
            + pair(100 * r["test_accuracy"], 100 * r["test_accuracy_std"], 2, 15)
            + pair(r["distance"], r["distance_error"], 4, 17)
            + pair(100 * r["accuracy_distance"], 100 * r["accuracy_distance_error"], 2, 17)
            + "{:>7}{:>9}{:>8}".format(*last)
        )
        if r["stopped"]:
            print(
                f"    seed {', '.join(str(s['seed']) for s in r['stopped'])} stopped after "
                f"{', '.join(format(s['after'], '.1f') for s in r['stopped'])} epochs: {r['stopped'][0]['why']}"
            )


# ---------------------------------------------------------------------------------------------------------------
# figure


def draw(cells, widths, columns, epochs):
    """Draws a column for each learning rate: a panel of curves for each width, and below them the distances."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(widths) + 1, len(columns), squeeze=False, figsize=(0.4 + 1.4 * len(columns), 0.8 + 1.4 * (len(widths) + 1))
    )
    for column, (lr, is_centred) in enumerate(columns):
        mine = [cells[lr, width, is_centred] for width in widths]
        for row, (width, cell) in enumerate(zip(widths, mine)):
            ax = axes[row, column]
            draw_losses(ax, cell, epochs)
            if row == 0:
                ax.set_title(f"learning rate {lr:g}" + (", centred" if is_centred else ""))
            ax.set_xlabel("epoch" if row == len(widths) - 1 else "")
            ax.set_ylabel(f"training loss, $m = {width}$" if column == 0 else "")
        draw_distances(axes[-1, column], mine, widths)
        if column == 0:
            axes[-1, column].set_ylabel("distance to the DEQ")
        else:
            axes[-1, column].set_yticklabels([])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    extra, name = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles + extra, labels + name, loc="outside lower center", ncols=3, handlelength=2.6)
    return figure


def draw_losses(ax, cell, epochs):
    """Draws the curves of training loss at one learning rate and width; a cross where a network stopped."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for name, r in cell["networks"].items():
        draw_curve(ax, name, r)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    stopped = [NETWORKS[name] for name, r in cell["networks"].items() if r["stopped"]]
    if stopped:
        note = f"{len(stopped)} of {len(cell['networks'])} stopped"
        ax.text(0.97, 0.97, note, transform=ax.transAxes, ha="right", va="top", fontsize=7, color="0.35")
    ax.set_xlim(0, epochs)
    ax.set_xticks([0, epochs / 2, epochs], ["0", f"{epochs / 2:g}", str(epochs)])
    ax.set_ylim(top=min(ax.get_ylim()[1], 3))  # what diverges leaves the panel


def draw_curve(ax, name, record):
    """Draws one network's curve; the DEQ's is broad and pale, in a band of one standard deviation."""
    import numpy as np

    colour, line = LOOKS[name]
    mean, std = np.array(record["curve"]), np.array(record["curve_std"])
    time = (np.arange(len(mean)) + 0.5) / POINTS  # the middle of what each point is a mean over
    width, alpha = (2.5, 0.45) if name == "deq" else (1, 1)
    if name == "deq":
        ax.fill_between(time, mean - std, mean + std, color="0.75", lw=0)
    ax.plot(time, mean, line, color=colour, lw=width, alpha=alpha, label=NETWORKS[name])
    if record["stopped"]:
        ax.plot(time[-1:], mean[-1:], "x", color=colour, ms=4)


def draw_distances(ax, cells, widths):
    """Draws the distance of each network to the DEQ against the width, beside the DEQ's own spread over seeds."""
    for index, name in enumerate(list(cells[0]["networks"])[1:]):
        colour, line = LOOKS[name]
        shifted = [width * 1.05 ** (index - 3) for width in widths]  # error bars that do not hide one another
        rows = [cell["networks"][name] for cell in cells]
        distances, errors = ([r[key] for r in rows] for key in ("distance", "distance_error"))
        ax.errorbar(shifted, distances, errors, ls=line, marker="o", ms=2.5, lw=1, color=colour)
    ax.plot(widths, [cell["noise"] for cell in cells], "-.", color="0.5", label="std of the DEQ's curve")
    ax.set(xscale="log", yscale="log", xlabel="width $m$", ylim=(1e-3, 1.5))
    ax.set_xticks(widths, widths)
    ax.minorticks_off()
