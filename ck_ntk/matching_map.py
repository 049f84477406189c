"""Which explicit network matches the DEQ, for every activation of the registry and sigma_a^2 in (0, 0.25).

Top: the family that `match` takes, a colour, and its number of layers, a digit where either changes; above each
panel the worst residual of the four coefficients. Bottom: slopes of piecewise-linear matches, solid for the first layer
and dashed for the second; a gap is a change of family, of the number of kinks or of the root. The JSON has every
parameter, residual and finite-width error, and why the families tried before do not match.

--random K adds K random DEQs for each activation and kernel, sigma_a^2 uniform in (0, 0.99) and log tau_0 in (0.1, 10):
how many are matched, and of the others why not.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run
from deq_enn.utils.arguments import bounded_float, bounded_int

COLOURS = {
    "hard_tanh": "#56B4E9",
    "l_relu": "#0072B2",
    "piecewise": "#009E73",
    "hermite": "#E69F00",
    "own": "#CC79A7",
    "none": "#FFFFFF",
}
NAMES = {
    "hard_tanh": "hard tanh",
    "l_relu": "L-ReLU",
    "piecewise": "piecewise-linear",
    "hermite": "cubic (Hermite)",
    "own": "own activation",
}
LINES = "-", "--", ":"  # lines of the slopes of the first, second and third layer
COLUMNS = {
    "ck": ("ck", "aAB", "CK"),
    "ntk": ("ntk", "aAB", "NTK, trained $(a, A, B)$"),
    "ntk_aA": ("ntk", "aA", "NTK, trained $(a, A)$"),
}
CURVES = {
    "ck": ("relu", "tanh", "gelu", "elu"),
    "ntk": ("relu", "tanh", "selu", "elu"),
    "ntk_aA": ("relu", "tanh", "selu", "elu"),
}


def study(activation, sigma_a2, tau0, kernel, trained):
    """One cell of the map."""
    from deq_enn.matching.families import match

    try:
        best = match(activation, sigma_a2, tau0, kernel, trained=trained)
    except ValueError as error:
        return {"sigma_a2": sigma_a2, "family": "none", "reason": str(error)}
    return {
        "sigma_a2": sigma_a2,
        "family": best.family,
        "layers": len(best.layers),
        "residual": best.residual,
        "fluctuation": best.fluctuation,
        "parameters": best.parameters,
        "passed_over": best.passed_over,
    }


def random_study(args):
    """{kernel: {"matched", "tried", "residual", "failures": [one dict each]}} of `args.random` DEQs an activation."""
    import torch
    from tqdm import tqdm

    from deq_enn.matching.families import match
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.theory.coefficients import MatchError
    from deq_enn.utils.random import generator

    studied = {}
    for kernel in ("ck", "ntk"):
        failures, residual, tried = [], 0.0, 0
        draws = [(name, k) for name in ACTIVATIONS for k in range(args.random)]
        for name, k in tqdm(draws, desc=f"random, {kernel}", leave=False, disable=None):
            u = torch.rand(2, generator=generator("matching_map", kernel, name, k), dtype=torch.float64).tolist()
            sigma_a2, tau0 = 0.99 * u[0], 10 ** (2 * u[1] - 1)
            tried += 1
            try:
                residual = max(residual, match(ACTIVATIONS[name], sigma_a2, tau0, kernel).residual)
            except ValueError as error:
                failures.append(
                    {
                        "activation": name,
                        "sigma_a2": sigma_a2,
                        "tau0": tau0,
                        "reason": str(error),
                        "kind": "no match" if isinstance(error, MatchError) else "no such DEQ",
                    }
                )
        studied[kernel] = {"tried": tried, "matched": tried - len(failures), "residual": residual, "failures": failures}
    return studied


def print_random(studied):
    for kernel, row in studied.items():
        print(
            f"{kernel.upper()}: {row['matched']} of {row['tried']} random DEQs matched, residual at most "
            f"{row['residual']:.1e}"
        )
        for failure in row["failures"]:
            print(
                "  {kind}: {activation} at sigma_a^2 = {sigma_a2:.3f}, tau_0 = {tau0:.3f}: {reason}".format(**failure)
            )


def slopes(cell):
    """(layer, slope) of a piecewise-linear match, from left to right; of a hard tanh, the one that is not zero."""
    rows = []
    for index, p in enumerate(cell["parameters"], 1):
        values = p["slopes"] if "slopes" in p else (p["b"], p["a"]) if "b" in p else (p["a"],)
        rows += [(index, value) for value in values]
    return rows


def draw_map(ax, cells, grid, title):
    from matplotlib.patches import Rectangle

    step = grid[1] - grid[0]
    for row, line in enumerate(cells.values()):
        before = None
        for cell in line:
            left = cell["sigma_a2"] - step / 2
            ax.add_patch(Rectangle((left, row - 0.42), step, 0.84, color=COLOURS[cell["family"]], lw=0))
            now = cell["family"], cell.get("layers", "")
            if now != before:
                ax.text(
                    left + 0.004,
                    row,
                    str(now[1]),
                    va="center",
                    fontsize=7,
                    color="white" if now[0] in ("l_relu", "piecewise") else "black",
                )
            before = now
    ax.set_xlim(grid[0] - step / 2, grid[-1] + step / 2)
    ax.set_ylim(len(cells) - 0.5, -0.5)
    ax.set_yticks(range(len(cells)), list(cells))
    ax.tick_params(axis="y", length=0)
    worst = max(cell.get("residual", 0.0) for line in cells.values() for cell in line)
    ax.set_title(f"{title}\nresidual $\\leq$ {worst:.0e}")


def runs(line):
    """The line cut where the number of slopes changes, or one of them jumps: where the match is another one."""
    parts = []
    for cell in line:
        now = [value for _, value in slopes(cell)]
        before = [value for _, value in slopes(parts[-1][-1])] if parts else []
        if len(now) == len(before) and max(abs(a - b) for a, b in zip(now, before)) < 0.15:
            parts[-1].append(cell)
        else:
            parts.append([cell])
    return parts


def draw_curves(ax, cells, names):
    from matplotlib.lines import Line2D

    for color, name in enumerate(names):
        for part in runs([cell for cell in cells[name] if cell["family"] in ("hard_tanh", "l_relu", "piecewise")]):
            for curve in zip(*(slopes(cell) for cell in part)):
                ax.plot(
                    [cell["sigma_a2"] for cell in part],
                    [value for _, value in curve],
                    color=f"C{color}",
                    ls=LINES[curve[0][0] - 1],
                    lw=1.0,
                )
    ax.legend(
        handles=[Line2D([], [], color=f"C{color}", label=name) for color, name in enumerate(names)],
        loc="lower center",
        ncols=len(names),
        bbox_to_anchor=(0.5, 1.0),
        columnspacing=1.0,
        handlelength=1.2,
    )


def main(args):
    import numpy as np
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from tqdm import tqdm

    from deq_enn.theory.activations import ACTIVATIONS

    random = random_study(args) if args.random else {}
    print_random(random)
    grid = (np.arange(args.points) + 0.5) * 0.25 / args.points
    numbers = {key: {name: [] for name in ACTIVATIONS} for key in COLUMNS}
    lines = [(key, name) for key in COLUMNS for name in ACTIVATIONS]
    for key, name in tqdm(lines, desc="matches", leave=False, disable=None):
        kernel, trained, _ = COLUMNS[key]
        numbers[key][name] = [study(ACTIVATIONS[name], s, args.tau0, kernel, trained) for s in grid.tolist()]

    figure, axes = plt.subplots(2, len(COLUMNS), figsize=(7.2, 5.2), height_ratios=(1.5, 1), sharex=True)
    for column, (key, (_, _, title)) in enumerate(COLUMNS.items()):
        draw_map(axes[0, column], numbers[key], grid, title)
        draw_curves(axes[1, column], numbers[key], CURVES[key])
        axes[1, column].set_xlabel(r"$\sigma_a^2$")
        axes[1, column].set_xticks([0, 0.1, 0.2])
        if column:
            axes[0, column].set_yticklabels([])
    axes[1, 0].set_ylabel("slopes of the layers")
    handles = [Patch(color=COLOURS[family], label=name) for family, name in NAMES.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    layers = [Line2D([], [], color="0.3", lw=1.0, ls=line, label=f"layer {l}") for l, line in enumerate(LINES, 1)]
    figure.legend(handles=layers, loc="outside lower center", ncols=len(layers))
    return figure, {"matches": numbers, "random": random}


if __name__ == "__main__":
    run(
        main,
        __doc__,
        flags={
            "--points": dict(
                type=bounded_int(2, 200), default=25, metavar="N", help="values of sigma_a^2, 2 to 200 (default 25)"
            ),
            "--random": dict(
                type=bounded_int(0, 10000),
                default=0,
                metavar="K",
                help="random DEQs an activation and kernel (default 0)",
            ),
            "--tau0": dict(
                type=bounded_float(0, math.inf, "positive and finite"),
                default=1.0,
                metavar="T",
                help="scale of the data (default 1)",
            ),
        },
    )
