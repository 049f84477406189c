"""The figure of any_activation_matching.py shows distances to every DEQ's kernels, and accuracies."""

if __name__ == "__main__":
    raise SystemExit("any_activation.py is shared by the figures: run one of ck_ntk/*.py")

from ck_ntk.matching_map import COLOURS, NAMES as FAMILIES
from deq_enn.names import counted

NETWORKS = {
    "deq": "DEQ",
    "matched": "matched ENN",
    "unmatched": "unmatched ENN",
    "own_lr": r"unmatched ENN, its learning rate raised to make up for $\alpha_1$",
}


def geometric_mean(values):
    import numpy as np

    return np.exp(np.log(values).mean(-1))


def starred(name, kernels):
    return name + "*" * bool(kernels["ck"][name]["violates"])


def draw_distances(ax, args, table, spread):
    """Draws a cell for each activation, and in it the distances against n, on a log axis of its own."""
    import numpy as np

    from ck_ntk.common.panels import GREY

    n, guide = np.array(args.n, dtype=float), geometric_mean(spread)
    within = 0.7 * (np.log(n / n[0]) / max(np.log(n[-1] / n[0]), 1e-9) - 0.5)
    for cell, row in enumerate(table.values()):
        matched = geometric_mean(row["matched"])
        ax.plot(cell + within, matched, color=COLOURS[row["family"]], marker="o", ms=2.5)
        ax.plot(cell + within, matched[0] * guide / guide[0], ":", color=GREY, lw=1.0, zorder=1)
        ax.plot(cell + within, geometric_mean(row["unmatched"]), color="black", marker="^", ms=2, lw=0.8)
        ax.plot(cell + within, geometric_mean(row["unmatched_scaled"]), color="black", lw=0.8, ls=(0, (3, 1)))
    ax.set(yscale="log", ylabel="distance to the DEQ")


def draw_accuracies(ax, numbers, families):
    import numpy as np
    from matplotlib.lines import Line2D

    # the DEQ is a broad pale disk, so that the network on top of it can be seen to be there
    looks = {
        "deq": dict(marker="o", ms=8, color="0.8"),
        "matched": dict(marker="o", ms=3),
        "unmatched": dict(marker="^", ms=3, color="black"),
        "own_lr": dict(marker="^", ms=3.5, color="black", mfc="white", mew=0.7),
    }
    for cell, (name, row) in enumerate(numbers.items()):
        for network, look in looks.items():
            values = 100 * np.array(row[network])
            # side by side
            shift = {"unmatched": -0.16, "own_lr": 0.16}.get(network, 0)
            look = {"color": COLOURS[families[name]], **look}
            spread = values.std(ddof=1) if len(values) > 1 else None
            ax.errorbar(cell + shift, values.mean(), spread, elinewidth=0.8, **look)
    ax.set_ylabel("test accuracy (%)")
    low, high = ax.get_ylim()
    ax.set_ylim(top=high + 0.25 * (high - low))
    ax.legend(
        handles=[
            Line2D([], [], ls="", label=label, **{"color": "C0", **looks[network]})
            for network, label in NETWORKS.items()
        ],
        loc="upper center",
        ncols=len(NETWORKS),
    )


def draw(args, kernels, spread, accuracies):
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    from ck_ntk.common.panels import GREY

    sizes = f" to {args.n[-1]} from left to right" if len(args.n) > 1 else ""
    titles = [f"{kernel.upper()}, Gaussian mixture, $n = {args.n[0]}${sizes}" for kernel in kernels]
    if accuracies:
        titles.append(f"MNIST, trained readout of {args.dim[0]} features, {counted(args.epoch, 'epoch')}")
    figure, axes = plt.subplots(len(titles), 1, figsize=(6.75, 0.6 + 1.85 * len(titles)), sharex=True)
    for ax, kernel in zip(axes, kernels):
        draw_distances(ax, args, kernels[kernel], spread)
    if accuracies:
        draw_accuracies(axes[2], accuracies, {name: row["family"] for name, row in kernels["ck"].items()})
    names = [starred(name, kernels) for name in kernels["ck"]]
    for ax, letter, title in zip(axes, "abc", titles):
        ax.set_title(f"({letter}) {title}")
        for edge in range(1, len(names)):
            ax.axvline(edge - 0.5, color="0.9", lw=0.5, zorder=0)
    axes[-1].set_xlim(-0.5, len(names) - 0.5)
    axes[-1].set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes[-1].tick_params(axis="x", length=0)
    used = {row["family"] for table in kernels.values() for row in table.values()}
    handles = [
        Line2D([], [], color=COLOURS[family], marker="o", ms=2.5, label=f"matched: {label}")
        for family, label in FAMILIES.items()
        if family in used
    ]
    handles += [
        Line2D([], [], color="black", marker="^", ms=2, lw=0.8, label="unmatched"),
        Line2D([], [], color="black", lw=0.8, ls=(0, (3, 1)), label="unmatched, times the best factor"),
        Line2D([], [], color=GREY, ls=":", label=r"as the spread of $\|x_i\|^2$"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1.2)
    return figure
