"""Two protocols of an experiment stand side by side: the paper's learning rate for all, and each network's own.

The tables are accuracies, differences, rates, and which claim of the paper survives which protocol.

The claims are on accuracies a of the DEQ, m of its matched and u of its unmatched network, paired over the seeds:

- a = m within the margin. Holds by two one-sided tests; does not hold where the difference is shown to be larger.
- u < a. Holds, or its contrary, by the paired t; does not hold either where a = u within the margin.
- |a - m| < |a - u|. As (a - u)^2 - (a - m)^2 = (m - u)(2a - m - u), it holds where these two factors have the same
  sign, and its contrary where they have not: both signs have to be shown, so the p-value is the larger of the two.

Each p-value is adjusted by Holm's method over the cells of its claim at its width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from deq_enn.reporting.logs import Experiment
from deq_enn.reporting.markdown import Table
from deq_enn.reporting.statistics import LEAST_SEEDS, MARGIN, compare, holm
from deq_enn.reporting.tables import (
    accuracy_cell,
    difference_cell,
    differences,
    final,
    is_matched,
    name_of,
    pairs_of,
    seeds_of,
)

COMMON, OWN = "one rate for all", "each its own"
LEVEL = 0.05  # significance level of the answers
HOLDS, FAILS = "holds", "does not hold"

Accuracies = dict[str, dict[int, float]]  # {model: {seed: test accuracy in %}}


# ---------------------------------------------------------------------------------------------------------------
# claims


@dataclass(frozen=True)
class Evidence:
    """The seeds of a cell say this on a claim.

    Attributes
    ----------
    numbers : in words.
    n, least : seeds that there are, and that it takes.
    tests : (answer, p-value) of each, the same tests in all cells of a claim; NaN with too few seeds for it. Of several
        answers that are significant the first is given.
    """

    numbers: str
    n: int
    least: int
    tests: tuple


def equal(accuracies: Accuracies, deq: str, enn: str, margin: float) -> Evidence | None:
    """Tests whether the two networks are equal within the margin."""
    paired = compare(accuracies[deq], accuracies[enn], margin)
    if not paired:
        return None
    beyond = 2 * (1 - paired.p_equality)  # two-sided, of a difference of the margin at most
    tests = (HOLDS, paired.p_equality if paired.enough else math.nan), (FAILS, beyond)
    return Evidence(difference_cell(paired), paired.n, LEAST_SEEDS, tests)


def worse(accuracies: Accuracies, deq: str, enn: str, margin: float) -> Evidence | None:
    """Tests whether the explicit network is worse than the DEQ."""
    paired = compare(accuracies[deq], accuracies[enn], margin)
    if not paired:
        return None
    sign = HOLDS if paired.mean > 0 else f"{FAILS}, it is better"
    same = f"{FAILS}, equal within {margin:g}"
    tests = (sign, paired.p_difference), (same, paired.p_equality if paired.enough else math.nan)
    return Evidence(difference_cell(paired), paired.n, 2, tests)


def nearer(accuracies: Accuracies, deq: str, matched: str, unmatched: str, margin: float) -> Evidence | None:
    """Tests whether the matched network is nearer to the DEQ than the unmatched one."""
    a, m, u = (accuracies[model] for model in (deq, matched, unmatched))
    seeds = a.keys() & m.keys() & u.keys()
    first = compare({s: m[s] for s in seeds}, {s: u[s] for s in seeds})
    second = compare({s: 2 * a[s] for s in seeds}, {s: m[s] + u[s] for s in seeds})
    if not (first and second):
        return None
    answer = HOLDS if first.mean * second.mean > 0 else FAILS
    distances = [abs(sum(a[s] - x[s] for s in seeds)) / len(seeds) for x in (m, u)]
    tests = ((answer, max(first.p_difference, second.p_difference)),)
    return Evidence("{:.2f} against {:.2f}".format(*distances), len(seeds), 2, tests)


def claims_of(experiment: Experiment) -> list[tuple[str, Callable[..., Evidence | None], tuple[str, ...]]]:
    """Returns [(claim in words, its test, models)], claim by claim."""
    pairs = pairs_of(experiment)
    matched, unmatched = ([pair for pair in pairs if is_matched(pair[1]) == wanted] for wanted in (True, False))
    both = [(deq, enn, other) for deq, enn in matched for own, other in unmatched if own == deq]
    return [
        *(("{1} equal to the {0}", equal, pair) for pair in matched),
        *(("{1} worse than the {0}", worse, pair) for pair in unmatched),
        *(("{1} nearer to the {0} than the {2}", nearer, three) for three in both),
    ]


def answers(cells: Sequence[Evidence | None]) -> list[tuple[bool | None, str]]:
    """Returns for each Evidence of a claim, or None, whether it holds (None: not known), and the answer in words."""
    known = [cell for cell in cells if cell]
    sure = {id(cell): [] for cell in known}
    for same_test in zip(*(cell.tests for cell in known)):
        tested = [(cell, answer, p) for cell, (answer, p) in zip(known, same_test) if not math.isnan(p)]
        for (cell, answer, _), p in zip(tested, holm([p for *_, p in tested])):
            if p < LEVEL:
                sure[id(cell)].append((answer, p))
    said = []
    for cell in cells:
        if cell is None:
            said.append((None, "–"))
        elif sure[id(cell)]:
            answer, p = sure[id(cell)][0]
            said.append((answer == HOLDS, f"{answer}: {cell.numbers}, p = {p:.2g}"))
        elif cell.n < cell.least:
            said.append((None, f"too few seeds ({cell.n} of {cell.least}): {cell.numbers}"))
        else:
            said.append((None, f"undecided: {cell.numbers}"))
    return said


def survives(common: bool | None, own: bool | None) -> str:
    """Says which protocols a claim survives, from whether it holds in each (None: not known)."""
    if common is own:
        return {True: "both", False: "neither", None: "undecided"}[common]
    words = {True: "{}", False: "not {}", None: "{} undecided"}
    return "; ".join(words[held].format(name) for held, name in ((common, COMMON), (own, OWN)))


# ---------------------------------------------------------------------------------------------------------------
# two experiments


@dataclass(frozen=True)
class Protocols:
    """This holds the same networks on the same samples, at one rate for all and each at its own."""

    common: Experiment
    own: Experiment

    @property
    def title(self) -> str:
        """Returns the data set and the settings in words."""
        return self.own.title.replace(self.own.rate, f"({self.common.rate} for all, or {self.own.rate})")

    @property
    def dims(self) -> list[int]:
        """Returns the widths that both experiments have."""
        return [dim for dim in self.common.dims if dim in self.own.dims]

    @property
    def models(self) -> list[str]:
        """Returns the models that both experiments have."""
        return [model for model in self.common.models if model in self.own.models]


def protocols(experiments: list[Experiment]) -> list[Protocols]:
    """Returns every two of the experiments that differ in this alone and have a width in common."""

    def rest(experiment):
        # a setting that older logs do not have is empty
        return {key: value for key, value in experiment.settings.items() if value and key not in ("lr", "own_rate")}

    pairs = [
        Protocols(common, own)
        for own in experiments
        for common in experiments
        if own.own_rate and common.settings and not common.own_rate
        if rest(common) == rest(own) and common.first == own.first
    ]
    return [both for both in pairs if both.dims]


def accuracies_table(both: Protocols) -> Table:
    """Returns the accuracies of both protocols and the learning rates of each network's own."""

    def rates(model, dim):
        """Median and range over the seeds."""
        chosen = sorted(run.own_lr or math.nan for run in both.own.of(model, dim).values())
        if not chosen:
            return "–"
        return f"{median(chosen):.3g}" + (f" ({chosen[0]:.3g} to {chosen[-1]:.3g})" if chosen[0] < chosen[-1] else "")

    rows = [
        [
            str(dim),
            name_of(model),
            accuracy_cell(both.common, model, dim),
            accuracy_cell(both.own, model, dim),
            rates(model, dim),
        ]
        for dim in both.dims
        for model in both.models
    ]
    seeds = ", ".join(f"{seeds_of(e, both.dims)} {name}" for e, name in ((both.common, COMMON), (both.own, OWN)))
    return Table(
        f"Test accuracy in %, {both.title}",
        ["width", "network", COMMON, OWN, "its own rate"],
        rows,
        f"Mean ± standard deviation: {seeds}. Rates: median over the seeds, and in brackets the least and the largest.",
    )


def differences_table(both: Protocols, margin: float = MARGIN) -> Table | None:
    """Returns the paired differences in both protocols, or None where there is no pair."""
    pairs = [pair for pair in pairs_of(both.common) if pair in pairs_of(both.own)]
    rows = []
    for pair in pairs:
        pairwise = [differences(experiment, *pair, margin) for experiment in (both.common, both.own)]
        for dim in both.dims:
            cells = [difference_cell(each[dim]) if dim in each else "–" for each in pairwise]
            rows.append([dim, " − ".join(map(name_of, pair)), *cells])
    rows.sort(key=lambda row: row[0])
    if not rows:
        return None
    return Table(
        f"DEQ − ENN, test accuracy in percentage points, paired over seeds, {both.title}",
        ["width", "pair", COMMON, OWN],
        [[str(dim), *cells] for dim, *cells in rows],
        "In brackets the 95% interval of the paired t, each by itself; without one, a single seed.",
    )


def verdicts(both: Protocols, dim: int, margin: float = MARGIN) -> list[tuple[str, dict[str, tuple[bool | None, str]]]]:
    """Returns [(claim, {protocol: (whether it holds or None, the answer in words)})] at a width."""
    accuracies = [
        {model: final(experiment.of(model, dim)) for model in experiment.models}
        for experiment in (both.common, both.own)
    ]
    claims = [claim for claim in claims_of(both.common) if claim in claims_of(both.own)]
    rows = []
    for test in (equal, worse, nearer):
        mine = [(words, its, models) for words, its, models in claims if its is test]
        cells = [its(each, *models, margin) for _, its, models in mine for each in accuracies]
        said = answers(cells)
        for index, (words, _, models) in enumerate(mine):
            rows.append(
                (words.format(*map(name_of, models)), dict(zip((COMMON, OWN), said[2 * index : 2 * index + 2])))
            )
    return rows


def survival_table(both: Protocols, margin: float = MARGIN) -> Table | None:
    """Says which claim survives which protocol; None where there is no claim to test."""
    rows = [
        [str(dim), claim, said[COMMON][1], said[OWN][1], survives(said[COMMON][0], said[OWN][0])]
        for dim in both.dims
        for claim, said in verdicts(both, dim, margin)
    ]
    if not rows:
        return None
    return Table(
        f"Which claim survives which protocol, {both.title}",
        ["width", "claim", COMMON, OWN, "survives"],
        rows,
        "DEQ − ENN in percentage points with its 95% interval, and for 'nearer' the two distances of the means to the "
        f"DEQ's. Equal: within {margin:g} points, by two one-sided tests, from {LEAST_SEEDS} seeds on; it does not "
        "hold where the difference is shown to be larger. Worse: by the paired t, two-sided; it does not hold where "
        f"the network is better, or equal within {margin:g}. Nearer: by the signs of m − u and 2a − m − u, the "
        "accuracies of DEQ, matched and unmatched network being a, m and u. p: adjusted by Holm's method over the "
        "cells of the claim at its width, so that an interval can exclude what its row leaves undecided; the answers "
        "are at 5%.",
    )


def protocol_tables(both: Protocols, margin: float = MARGIN) -> list[Table]:
    """Returns the tables of two protocols that have something to say."""
    made = accuracies_table(both), differences_table(both, margin), survival_table(both, margin)
    return [table for table in made if table]


def protocol_finding(both: Protocols) -> str:
    """Says which claim survives which protocol at the largest width, in a sentence, or ""."""
    dim = both.dims[-1]
    said = verdicts(both, dim)
    lines = [f"{claim}: {survives(answer[COMMON][0], answer[OWN][0])}" for claim, answer in said]
    return f"Survives at width {dim}: {'; '.join(lines)}." if lines else ""
