"""Every figure of this project shares its style, how a mean over seeds is drawn, and how a file is written.

Neither torch nor matplotlib is imported before something is drawn, so that the command lines answer at once.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).resolve().parent / "paper.mplstyle"


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation (0 for a single value)."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def geometric_mean(values: Sequence[float]) -> float:
    """Returns exp of the mean logarithm of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))


def curve_look(colour: str, line: str, label: str) -> dict[str, Any]:
    """Returns the keywords of a curve. A DEQ (solid) is a broad pale line, so that the network on top is seen."""
    width = {"linewidth": 3, "alpha": 0.4} if line == "-" else {"linewidth": 1.3}
    return {"color": colour, "linestyle": line, "label": label, **width}


def dot(x: Sequence[float]) -> dict[str, Any]:
    """Returns the keywords of a marker where a curve has a single point, of which a line shows nothing."""
    return {"marker": "o", "markersize": 4} if len(x) == 1 else {}


def draw_band(ax: "Axes", x: Sequence[float], curves: Sequence[Sequence[float]], look: dict[str, Any]) -> None:
    """Draws the mean over `curves`, a seed each, as a line in a band of one standard deviation."""
    mean, std = zip(*map(mean_std, zip(*curves)))
    ax.plot(x, mean, **look, **dot(x))
    ax.fill_between(
        x,
        [m - s for m, s in zip(mean, std)],
        [m + s for m, s in zip(mean, std)],
        color=look["color"],
        alpha=0.15,
        linewidth=0,
    )


def save(figure: "Figure", path: Path | str, **settings: Any) -> None:
    """Writes a figure, of the kind that the path ends in, whole or not at all, and without a date inside.

    The same numbers make the same file.
    """
    from deq_enn.utils.files import atomic_write

    path = Path(path)
    kind = path.suffix[1:]
    with atomic_write(path) as file:
        figure.savefig(
            file, format=kind, metadata={"Software": None} if kind == "png" else {"CreationDate": None}, **settings
        )
