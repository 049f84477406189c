"""Which claim of the paper survives on which data, by which optimizer and protocol, is answered here in one table.

The claims and their tests are those of `protocols`. Here a claim has a row for each experiment and a column for each
width, and one figure has the same cells in colours. The p-values of a kind of claim are adjusted by Holm's method over
the widths and networks of an experiment: each experiment says something wrong on a kind of claim by chance in no more
than 5%.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deq_enn.names import DATASET_TITLES, counted
from deq_enn.reporting.logs import OPTIMIZERS, Experiment
from deq_enn.reporting.markdown import Table
from deq_enn.reporting.protocols import Evidence, answers, claims_of, equal, nearer, worse
from deq_enn.reporting.statistics import LEAST_SEEDS, MARGIN
from deq_enn.reporting.style import STYLE, save
from deq_enn.reporting.tables import final, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {True: "#b5d3ea", False: "#f5c6a0", None: "#ececec"}  # a claim that holds, one that does not, an open one
WORDS = {True: "holds", False: "fails", None: "open"}


@dataclass(frozen=True)
class Cell:
    """A claim at one width of one experiment: whether it holds (None: not known), in numbers, from so many seeds."""

    holds: bool | None
    numbers: str
    seeds: int
    enough: bool

    @property
    def words(self) -> str:
        """Returns the answer and its numbers, short enough for a cell."""
        answer = WORDS[self.holds] if self.enough else f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        return f"{answer}, {self.numbers}"


@dataclass(frozen=True)
class Claim:
    """A claim in words, and its cells: {index of the experiment: {width: Cell}}."""

    words: str
    cells: dict[int, dict[int, Cell]]


def named(experiment: Experiment) -> str:
    """Names an experiment in a table or beside a figure: data, optimizer, protocol, epochs."""
    settings, title = experiment.settings, DATASET_TITLES.get(experiment.dataset, experiment.dataset)
    if not settings:
        return f"{title}, {experiment.folders[0].name}"
    how = "exact readout" if settings["train"] == "ridge" else OPTIMIZERS[settings["opt"]]
    rate = ", own rates" * experiment.own_rate
    every = ", every weight" * (settings["train"] == "full")
    epochs = "" if settings["train"] == "ridge" else f", {counted(experiment.epochs, 'epoch')}"
    return f"{title}, {how}{rate}{every}{epochs}"


def survey(experiments: list[Experiment], margin: float = MARGIN) -> list[Claim]:
    """Returns every claim that some experiment can speak on, with the answers of all of them.

    Parameters
    ----------
    experiments : of any data and settings.
    margin : in percentage points, within which two accuracies count as equal.
    """
    claims: dict[str, dict[int, dict[int, Cell]]] = {}
    for test in (equal, worse, nearer):
        for index, experiment in enumerate(experiments):
            asked = _asked(experiment, test, margin)
            for (words, dim, evidence), (holds, _) in zip(asked, answers([each for *_, each in asked])):
                cell = Cell(holds, _short(evidence), evidence.n, holds is not None or evidence.n >= evidence.least)
                claims.setdefault(words, {}).setdefault(index, {})[dim] = cell
    return [Claim(words, cells) for words, cells in claims.items()]


def _asked(experiment: Experiment, test: Callable, margin: float) -> list[tuple[str, int, Evidence]]:
    """[(claim in words, width, what the seeds say)] of one kind of claim."""
    asked = []
    for words, its, models in claims_of(experiment):
        for dim in experiment.dims if its is test else ():
            accuracies = {model: final(experiment.of(model, dim)) for model in models}
            if evidence := its(accuracies, *models, margin):
                asked.append((words.format(*map(name_of, models)), dim, evidence))
    return asked


def _short(evidence: Evidence) -> str:
    """The mean difference, or the two distances of "nearer"."""
    return evidence.numbers.partition(" [")[0].replace(" against ", " : ")


def survey_table(experiments: list[Experiment], margin: float = MARGIN) -> Table | None:
    """Says which claim holds where; None for fewer than two experiments, or where there is no claim to test."""
    if len(experiments) < 2 or not (claims := survey(experiments, margin)):
        return None
    dims = sorted({dim for claim in claims for cells in claim.cells.values() for dim in cells})
    rows = [
        [claim.words, named(experiments[index]), *(cells[dim].words if dim in cells else "–" for dim in dims)]
        for claim in claims
        for index, cells in claim.cells.items()
    ]
    note = (
        'Numbers are DEQ − ENN in percentage points, the mean over seeds; of "nearer" the distances of the matched and '
        f"of the unmatched network to the DEQ. Equal: within {margin:g} points, by two one-sided tests, from "
        f"{LEAST_SEEDS} seeds on; it fails where the difference is shown to be larger. Worse: by the paired t; it "
        f"fails where the network is better, or equal within {margin:g}. Open: neither is shown. All at 5%, adjusted "
        "by Holm's method over an experiment's cells of a kind of claim. With too few seeds for the test the cell has "
        "their number."
    )
    return Table("Which claim holds where, by width", ["claim", "experiment", *map(str, dims)], rows, note)


def draw_survey(experiments: list[Experiment], path: Path, margin: float = MARGIN) -> None:
    """Draws the table into a file: a panel a claim, a row an experiment, a column a width."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    claims = survey(experiments, margin)
    dims = sorted({dim for claim in claims for cells in claim.cells.values() for dim in cells})
    columns = 2 if len(claims) > 1 else 1
    rows = -(-len(claims) // columns)
    names = list(map(named, experiments))
    width = 0.07 * max(map(len, names)) + columns * (0.62 * len(dims) + 0.2)  # names stand left of the panels
    height = 0.5 + rows * (0.24 * len(experiments) + 0.75)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, sharey=True)
        for ax, claim in zip(axes.flat, claims):
            _draw_claim(ax, claim, dims)
        for ax in axes.flat[len(claims) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_yticks(range(len(experiments)), names)
        axes[0, 0].set_ylim(len(experiments) - 0.5, -0.5)
        handles = [Patch(facecolor=COLOURS[holds], label=WORDS[holds]) for holds in COLOURS]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        save(figure, path, dpi=200)
        plt.close(figure)


def _draw_claim(ax: "Axes", claim: Claim, dims: list[int]) -> None:
    from matplotlib.patches import Rectangle

    for row, cells in claim.cells.items():
        for dim, cell in cells.items():
            x = dims.index(dim)
            ax.add_patch(Rectangle((x - 0.5, row - 0.5), 1, 1, facecolor=COLOURS[cell.holds], edgecolor="white"))
            ax.text(x, row, cell.numbers, ha="center", va="center", fontsize=5.5)
    ax.set_title(textwrap.fill(claim.words, 13 * len(dims)), fontsize=7)
    ax.set(xlabel="width $m$", xlim=(-0.5, len(dims) - 0.5))
    ax.set_xticks(range(len(dims)), [str(dim) for dim in dims])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
