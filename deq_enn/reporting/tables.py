"""An experiment has these tables: accuracies, paired differences, tests of equality, cost; and a CSV of its runs."""

import csv
import math
import re
from collections.abc import Sequence
from statistics import median
from typing import TextIO

from deq_enn.reporting.logs import VARIANT, Experiment, Run, first_epochs
from deq_enn.reporting.looks import LOOKS
from deq_enn.reporting.markdown import Table
from deq_enn.reporting.statistics import LEAST_SEEDS, MARGIN, Paired, compare, holm, in_words
from deq_enn.reporting.style import mean_std

PAIRS = [("inn", "l_relu_enn"), ("inn", "relu_enn"), ("tanh_inn", "h_tanh_enn"), ("tanh_inn", "tanh_enn")]
# of models that are named with their activation
LINES = {
    "deq": ("-", "{}-DEQ"),
    "matched_enn": ("--", "matched {}-ENN"),
    "unmatched_enn": (":", "unmatched {}-ENN"),
    "conv_deq": ("-", "convolutional {}-DEQ"),
    "matched_conv_enn": ("--", "matched convolutions {}"),
    "plain_conv": (":", "plain convolutions {}"),
}
# networks that a DEQ of any activation is compared with; {} is what its name has after the first hyphen
RIVALS = {
    "deq": r"matched_enn-{}-(ck|ntk)|unmatched_enn-{}(-depth\d+)?",
    "conv_deq": r"matched_conv_enn-{}-(ck|ntk)|plain_conv-{}(-depth\d+)?",
}
DEPTH = re.compile(r"(.+)-depth(\d+)")  # of an unmatched or plain network whose depth was given


def name_of(model: str) -> str:
    """Returns the name that tables and legends give a model."""
    if match := VARIANT.fullmatch(model):
        base, steps, weight = match.groups()
        how = f"{steps} step{'s' * (steps != '1')}" if steps else f"Jacobian penalty {weight}"
        return f"{name_of(base)}, {how}"
    if match := DEPTH.fullmatch(model):
        return f"{name_of(match[1])} of depth {match[2]}"
    kind, _, rest = model.partition("-")
    return LOOKS[model][2] if model in LOOKS else LINES[kind][1].format(rest) if kind in LINES and rest else model


def pairs_of(experiment: Experiment) -> list[tuple[str, str]]:
    """Returns the pairs (DEQ, explicit network) that are compared, in the order of the models.

    A DEQ is compared with its matched and unmatched networks, and with itself stopped after some steps.
    """
    models, pairs = experiment.models, []
    variants = {m: match for m in models if (match := VARIANT.fullmatch(m))}
    bases = [deq for deq, _ in PAIRS] + [m for m in models if m.partition("-")[0] in RIVALS]
    bases += [match[1] for match in variants.values()]
    for base in dict.fromkeys(m for m in bases if m not in variants):
        kind, _, rest = base.partition("-")
        own = [enn for deq, enn in PAIRS if deq == base]
        explicit = [m for enn in own for m in models if m == enn or (match := DEPTH.fullmatch(m)) and match[1] == enn]
        if kind in RIVALS:
            names = RIVALS[kind].replace("{}", re.escape(rest))
            explicit += [m for m in models if re.fullmatch(names, m)]
        explicit += [m for m, match in variants.items() if match[1] == base and match[2]]
        solved = [m for m in models if m == base or m in variants and variants[m][1] == base and variants[m][3]]
        pairs += [(deq, enn) for deq in solved for enn in explicit]
    return pairs


def is_matched(enn: str) -> bool:
    """Says whether an explicit network is matched to a DEQ."""
    return not name_of(enn).startswith(("unmatched", "plain"))


def final(runs: dict[int, Run]) -> dict[int, float]:
    """Returns {seed: test accuracy in % after the last epoch}."""
    return {seed: 100 * run.test[-1] for seed, run in runs.items()}


def differences(experiment: Experiment, deq: str, enn: str, margin: float = MARGIN) -> dict[int, Paired]:
    """Returns {dim: Paired} of the final test accuracies in %."""
    compared = {
        dim: compare(final(experiment.of(deq, dim)), final(experiment.of(enn, dim)), margin) for dim in experiment.dims
    }
    return {dim: paired for dim, paired in compared.items() if paired}


def accuracy_cell(experiment: Experiment, model: str, dim: int) -> str:
    """Returns the mean and standard deviation over the seeds, in %."""
    values = list(final(experiment.of(model, dim)).values())
    if not values:
        return "–"
    mean, std = mean_std(values)
    return f"{mean:.2f} ± {std:.2f}" if len(values) > 1 else f"{mean:.2f}"


def seeds_of(experiment: Experiment, dims: list[int]) -> str:
    """Says how many seeds there are."""
    counts = {len(experiment.of(model, dim)) for model in experiment.models for dim in dims} - {0}
    most = f"{max(counts)} seed{'s' * (max(counts) > 1)}"
    return f"{min(counts)} to {most}" if len(counts) > 1 else most


def difference_cell(paired: Paired) -> str:
    """Returns a mean difference and its 95% interval, where there is one."""
    text = f"{paired.mean:+.2f}"
    if paired.n > 1:
        text += f" [{paired.mean - paired.half:+.2f}, {paired.mean + paired.half:+.2f}]"
    return text.replace("-", "−")


def accuracy_table(experiment: Experiment) -> Table:
    """Returns the accuracies of every network (columns) at every width (rows)."""
    rows = [[str(dim), *(accuracy_cell(experiment, m, dim) for m in experiment.models)] for dim in experiment.dims]
    note = f"Unfinished and left out: {', '.join(experiment.unfinished)}." if experiment.unfinished else ""
    seeds = seeds_of(experiment, experiment.dims)
    return Table(
        f"Test accuracy in % ({experiment.title}; mean ± standard deviation, {seeds})",
        ["width", *map(name_of, experiment.models)],
        rows,
        note,
    )


def difference_table(experiment: Experiment) -> Table | None:
    """Returns the paired differences of DEQ and explicit network, or None where there is no pair."""
    pairs = [(pair, differences(experiment, *pair)) for pair in pairs_of(experiment)]
    if not pairs:
        return None

    rows = [
        [str(dim), *(difference_cell(by_dim[dim]) if dim in by_dim else "–" for _, by_dim in pairs)]
        for dim in experiment.dims
    ]
    most = max((paired.n for _, by_dim in pairs for paired in by_dim.values()), default=0)
    note = "In brackets the 95% interval of the paired t, each by itself; without one, a single seed."
    if most < LEAST_SEEDS:
        note += (
            f" Not enough seeds for a claim of equality ({most} of {LEAST_SEEDS}): that an interval holds 0 shows none."
        )
    return Table(
        f"DEQ − ENN, test accuracy in percentage points, paired over seeds ({experiment.title})",
        ["width", *(f"{name_of(deq)} − {name_of(enn)}" for (deq, enn), _ in pairs)],
        rows,
        note,
    )


def equality_table(experiment: Experiment, margin: float = MARGIN, epochs: Sequence[int] = ()) -> Table | None:
    """Says whether the ENN is as good as the DEQ, up to a margin in points; None where no pair has enough seeds.

    epochs : after which the runs are looked at, all of them tested together; none: after the last.
    """
    stages = [(str(epoch), first_epochs(experiment, epoch)) for epoch in epochs] or [("", experiment)]
    compared = [
        (epoch, dim, deq, enn, paired)
        for epoch, stage in stages
        for deq, enn in pairs_of(stage)
        for dim, paired in differences(stage, deq, enn, margin).items()
    ]
    tested = [paired for *_, paired in compared if paired.enough]
    if not tested:
        return None
    different, equal = (holm([getattr(paired, which) for paired in tested]) for which in ("p_difference", "p_equality"))
    adjusted = {id(paired): p for paired, p in zip(tested, zip(different, equal))}
    rows = []
    for epoch, dim, deq, enn, paired in compared:
        p = adjusted.get(id(paired), (math.nan, math.nan))
        low, high = paired.mean - paired.half_90, paired.mean + paired.half_90
        interval = f"[{low:+.2f}, {high:+.2f}]".replace("-", "−") if paired.n > 1 else "–"
        rows.append(
            [
                *([epoch] if epoch else []),
                str(dim),
                f"{name_of(deq)} − {name_of(enn)}",
                str(paired.n),
                f"{paired.mean:+.2f}".replace("-", "−"),
                interval,
                *(f"{value:.2g}" if paired.enough else "–" for value in p),
                in_words(paired, *p, margin),
            ]
        )
    note = (
        "Paired t over the seeds. p, difference: two-sided, of no difference. p, equality: two one-sided tests (TOST) "
        f"of a difference of {margin:g} or more, either way. Both adjusted by Holm's method over the {len(tested)} "
        f"row{'s' * (len(tested) > 1)} tested; the verdicts are at 5%. A row needs {LEAST_SEEDS} seeds."
    )
    return Table(
        f"Equal within {margin:g} percentage points? ({experiment.title})",
        [
            *(["after epoch"] if epochs else []),
            "width",
            "pair",
            "seeds",
            "mean difference",
            "90% interval",
            "p, difference",
            "p, equality",
            "verdict",
        ],
        rows,
        note,
    )


def cost_table(experiment: Experiment) -> Table | None:
    """Returns the times of DEQs and of their matched networks, or None where no times are known.

    Where every weight is trained features are not computed ahead, and only an epoch is compared.
    """

    def typical(model, dim, what):
        times = [getattr(run, what) for run in experiment.of(model, dim).values() if getattr(run, what) is not None]
        return median(times) if times else math.nan

    parts = {"features": "setup_seconds"} if experiment.settings.get("train", "readout") != "full" else {}
    parts["epoch"] = "epoch_seconds"
    rows = []
    for dim in experiment.dims:
        for deq, enn in pairs_of(experiment):
            times = [[typical(model, dim, what) for model in (deq, enn)] for what in parts.values()]
            if is_matched(enn) and not any(math.isnan(seconds) for pair in times for seconds in pair):
                cells = [[f"{of_deq:.3g}", f"{of_enn:.3g}", f"{of_deq / of_enn:.1f}"] for of_deq, of_enn in times]
                rows.append([str(dim), name_of(deq), name_of(enn), *sum(cells, [])])
    if not rows:
        return None
    return Table(
        f"Cost of a DEQ and of its matched ENN, seconds ({experiment.title}; median over seeds)",
        ["width", "DEQ", "ENN", *(f"{part}, {what}" for part in parts for what in ("DEQ", "ENN", "ratio"))],
        rows,
        "Features: building the network and passing all training and test samples through it once."
        * ("features" in parts),
    )


def tables(experiment: Experiment, margin: float = MARGIN, epochs: Sequence[int] = ()) -> list[Table]:
    """Returns the tables of an experiment that have something to say; `epochs` as `equality_table` has them."""
    made = (
        accuracy_table(experiment),
        difference_table(experiment),
        equality_table(experiment, margin, epochs),
        cost_table(experiment),
    )
    return [table for table in made if table]


def write_csv(experiments: list[Experiment], file: TextIO) -> None:
    """Writes a row for each run."""
    keys = list(dict.fromkeys(key for e in experiments for key in e.settings if key != "dataset"))
    out = csv.writer(file, lineterminator="\n")
    out.writerow(
        [
            "dataset",
            "model",
            "dim",
            "seed",
            "epochs",
            "train_accuracy",
            "test_accuracy",
            "setup_seconds",
            "epoch_seconds",
            *keys,
            "own_lr",
            "folder",
        ]
    )
    for e in experiments:
        for (model, dim, seed), run in sorted(e.runs.items()):
            out.writerow(
                [
                    e.dataset,
                    model,
                    dim,
                    seed,
                    len(run.test),
                    run.train[-1] if run.train else "",
                    run.test[-1],
                    run.setup_seconds,
                    run.epoch_seconds,
                    *(e.settings.get(key) for key in keys),
                    run.own_lr,
                    run.folder,
                ]
            )
