"""What every figure of this project shares: its style, how a mean over seeds is drawn, how a file is written.

Neither torch nor matplotlib is imported before something is drawn, so that the command lines answer at once.
"""

import math
from pathlib import Path

STYLE = Path(__file__).resolve().parent / "paper.mplstyle"


def mean_std(values):
    """Mean and sample standard deviation (0 for a single value)."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def geometric_mean(values):
    """exp of the mean logarithm of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))


def curve_look(colour, line, label):
    """Keywords of a curve. A DEQ (solid) is a broad pale line, so that the network on top of it can be seen."""
    width = {"linewidth": 3, "alpha": 0.4} if line == "-" else {"linewidth": 1.3}
    return {"color": colour, "linestyle": line, "label": label, **width}


def draw_band(ax, x, curves, look):
    """The mean over `curves` (one a seed, each as long as x) as a line, and a band of one standard deviation."""
    mean, std = zip(*map(mean_std, zip(*curves)))
    ax.plot(x, mean, **look)
    ax.fill_between(
        x,
        [m - s for m, s in zip(mean, std)],
        [m + s for m, s in zip(mean, std)],
        color=look["color"],
        alpha=0.15,
        linewidth=0,
    )


def save(figure, path, **settings):
    """Write a figure, of the kind that the path ends in, whole or not at all, and without a date inside.

    The same numbers make the same file.
    """
    from deq_enn.utils.files import atomic_write

    path = Path(path)
    kind = path.suffix[1:]
    with atomic_write(path) as file:
        figure.savefig(
            file, format=kind, metadata={"Software": None} if kind == "png" else {"CreationDate": None}, **settings
        )
