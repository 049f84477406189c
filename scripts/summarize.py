"""Accuracy logs to tables (Markdown), a CSV and figures: mean and standard deviation over seeds, DEQ minus ENN, cost.

    python scripts/summarize.py results/mnist-sgd                     one folder of logs
    python scripts/summarize.py results --output results/summary      every folder of logs below it

A log is {dim}_test_{model}_{dataset}.json beside {dim}_train_..., lists of accuracies by epoch (seed s other than 0 in
seed_{s}/), as main.py and the authors' code write them. metrics.jsonl beside them, where there is one, adds settings
and times. TensorBoard event files (package tensorboard) are read from folders named {dim}_{model}_{dataset}, in
seed_{s}/ likewise, from the scalars with "acc" in their names.
"""

import argparse
import csv
import json
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from main import BAD_INPUT, DATASETS, LOOKS, mean_std  # noqa: E402  (imports neither torch nor matplotlib)

# of models that are named with their activation
LINES = {"deq": ("-", "{}-DEQ"), "matched_enn": ("--", "matched {}-ENN"), "unmatched_enn": (":", "unmatched {}-ENN")}
PAIRS = [("inn", "l_relu_enn"), ("inn", "relu_enn"), ("tanh_inn", "h_tanh_enn"), ("tanh_inn", "tanh_enn")]
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
PER_RUN = ("model", "dim", "seed", "activation", "match", "family")  # of a configuration: what differs inside a table

# fashion_mnist before mnist, as both end a name; another code's dataset is what follows the last underscore
NAME = rf"(.+?)_({'|'.join(sorted(DATASETS, key=len, reverse=True))}|[^_]+)"
LOG = re.compile(rf"(\d+)_(train|test)_{NAME}\.json")
EVENTS = re.compile(rf"(\d+)_{NAME}")


class Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):  # one line, without the usage text
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


class LogError(ValueError):
    """Logs that cannot be read or must not be put together."""


@dataclass(frozen=True)
class Run:
    """One network's accuracies by epoch, in [0, 1]; config and seconds are None where no metrics.jsonl tells them."""

    folder: Path  # of the logs, without seed_{s}
    dataset: str
    model: str
    dim: int
    seed: int
    train: tuple
    test: tuple
    config: dict | None = None
    setup_seconds: float | None = None  # the network, and its features of training and test samples
    epoch_seconds: float | None = None  # median over the epochs

    @property
    def title(self):
        return f"{self.folder}: {self.model} {self.dataset} dim {self.dim} seed {self.seed}"


@dataclass
class Experiment:
    """The runs of one table: same dataset and settings, several models, widths and seeds."""

    dataset: str
    settings: dict  # {} where the logs do not tell them
    folders: list
    runs: dict = field(default_factory=dict)  # (model, dim, seed): Run
    unfinished: list = field(default_factory=list)

    @property
    def epochs(self):
        return self.settings.get("epoch") or max(len(run.test) for run in self.runs.values())

    @property
    def title(self):
        s = self.settings
        if not s:
            return f"{self.dataset}, {self.folders[0]}, {self.epochs} epochs"
        trained = "readout trained" if s["train"] == "readout" else "every weight trained"
        return f"{self.dataset}, {trained} by {OPTIMIZERS[s['opt']]} at lr {s['lr']:g}, {s['epoch']} epochs"

    @property
    def slug(self):
        return f"{self.dataset}-{self.settings['opt']}" if self.settings else f"{self.dataset}-{self.folders[0].name}"

    @property
    def models(self):
        known = list(LOOKS)
        return sorted({m for m, _, _ in self.runs}, key=lambda m: (known.index(m) if m in known else len(known), m))

    @property
    def dims(self):
        return sorted({dim for _, dim, _ in self.runs})

    def of(self, model, dim):
        """{seed: Run} of one cell."""
        return {seed: run for (m, d, seed), run in sorted(self.runs.items()) if (m, d) == (model, dim)}


# ---------------------------------------------------------------------------------------------------------------
# reading

def as_fractions(values, source):
    """Accuracies in [0, 1]; a list with a value above 1 is in percent."""
    if not (isinstance(values, list) and values and all(type(v) in (int, float) and 0 <= v <= 100 for v in values)):
        raise LogError(f"{source}: not a list of accuracies")
    return tuple(v / 100 for v in values) if max(values) > 1 else tuple(values)


def home(folder):
    """(folder without seed_{s}, s)."""
    match = re.fullmatch(r"seed_(\d+)", folder.name)
    return (folder.parent, int(match[1])) if match else (folder, 0)


def read_json_logs(path):
    """{(folder, dataset, model, dim, seed): {"train": ..., "test": ...}} of every log below the path."""
    found = {}
    for file in sorted(path.rglob("*.json")):
        match = LOG.fullmatch(file.name)
        if not match:
            continue
        try:
            values = json.loads(file.read_bytes())
        except ValueError as error:
            raise LogError(f"{file}: broken JSON ({error})") from None
        folder, seed = home(file.parent)
        dim, split, model, dataset = match.groups()
        found.setdefault((folder, dataset, model, int(dim), seed), {})[split] = as_fractions(values, file)
    return found


def read_events(path):
    """The same of TensorBoard event files."""
    folders = sorted({file.parent for file in path.rglob("events.out.tfevents.*")})
    if not folders:
        return {}
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise LogError(f"{folders[0]} holds TensorBoard event files, and the package tensorboard is not installed: "
                       "pip install tensorboard") from None
    found = {}
    for folder in folders:
        match = EVENTS.fullmatch(folder.name)
        if not match:
            raise LogError(f"{folder}: name event files' folder {{dim}}_{{model}}_{{dataset}}, such as 256_inn_mnist")
        try:
            events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
            scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if "acc" in tag.lower()}
        except Exception as error:  # tensorboard raises many kinds on a damaged file
            raise LogError(f"{folder}: damaged event files ({type(error).__name__})") from None
        parent, seed = home(folder.parent)
        splits = found.setdefault((parent, match[3], match[2], int(match[1]), seed), {})
        for tag, events in scalars.items():
            split = "train" if "train" in tag.lower() else "test"
            if split in splits:
                raise LogError(f"{folder}: several scalars for the {split} accuracy ({tag} is one)")
            splits[split] = as_fractions([e.value for e in sorted(events, key=lambda e: e.step)], f"{folder}, {tag}")
    return found


def read_times(folder):
    """{(dataset, model, dim, seed): (config, setup seconds, {epoch: record})} from metrics.jsonl."""
    from train import read_metrics
    owner, setup, epochs = {}, {}, {}
    for record in read_metrics(folder):
        key = record["run"]
        if record["event"] == "run":
            owner[record["dataset"], record["model"], record["dim"], record["seed"]] = record
            # a resumed run adds its set-ups up; the least is that of one
            setup[key] = min(record["setup_seconds"], setup.get(key, math.inf))
        elif record["event"] == "epoch":
            epochs.setdefault(key, {})[record["epoch"]] = record
    return {name: (record["config"], setup[record["run"]], epochs.get(record["run"], {}))
            for name, record in owner.items()}


def read_runs(path):
    """Every Run below the path.

    Raises
    ------
    LogError : a file that cannot be read, no logs, or a log that is not the one its metrics.jsonl tells of.
    """
    if not path.is_dir():
        raise LogError(f"{path}: no such folder")
    found = {**read_json_logs(path), **read_events(path)}
    if not found:
        raise LogError(f"{path}: no accuracy logs ({{dim}}_test_{{model}}_{{dataset}}.json) and no TensorBoard "
                       "event files")
    times = {folder: read_times(folder) for folder in {name[0] for name in found}}
    runs = []
    for (folder, *name), splits in found.items():
        dataset, model, dim, seed = name
        config, setup, epochs = times[folder].get(tuple(name), (None, None, {}))
        run = Run(folder, dataset, model, dim, seed, splits.get("train", ()), splits.get("test", ()), config, setup,
                  median(r["seconds"] for r in epochs.values()) if epochs else None)
        if not run.test:
            raise LogError(f"{run.title}: a log of the training accuracy without one of the test accuracy")
        # a killed run's last epoch may be in the one file and not yet in the other
        if any(epochs[e]["test_accuracy"] != run.test[e - 1] for e in epochs if e <= len(run.test)):
            raise LogError(f"{run.title}: the log and metrics.jsonl tell of two configurations: take one of them away")
        runs.append(run)
    return runs


def shared(config):
    return {key: value for key, value in (config or {}).items() if key not in PER_RUN}


def differing(one, other):
    """In words, what two configurations differ in."""
    if not (one and other):
        return "one of them without a configuration in metrics.jsonl"
    return ", ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in one if one.get(key) != other.get(key))


def group(runs):
    """Experiments of equal dataset and settings, unfinished runs apart.

    Raises
    ------
    LogError : one name (folder, dataset, model) with two configurations, or one run twice with other numbers.
    """
    experiments, names = {}, {}
    for run in runs:
        # over its widths and seeds, a name has one configuration
        mine = {k: v for k, v in (run.config or {}).items() if k not in ("dim", "seed")}
        first, theirs = names.setdefault((run.folder, run.dataset, run.model), (run, mine))
        if theirs != mine:
            raise LogError(f"{run.title} and dim {first.dim} seed {first.seed} are two configurations under one name "
                           f"({differing(mine, theirs)}): summarise them from folders of their own")
        settings = shared(run.config)
        key = (run.dataset, json.dumps(settings, sort_keys=True) if settings else str(run.folder))
        experiment = experiments.setdefault(key, Experiment(run.dataset, settings, []))
        if run.folder not in experiment.folders:
            experiment.folders.append(run.folder)
        twin = experiment.runs.setdefault((run.model, run.dim, run.seed), run)
        if (twin.test, twin.train, twin.config) != (run.test, run.train, run.config):
            raise LogError(f"{run.title} is also in {twin.folder}, with other numbers: leave one of them out")
    for experiment in experiments.values():
        for name in [name for name, run in experiment.runs.items() if len(run.test) < experiment.epochs]:
            run = experiment.runs.pop(name)
            experiment.unfinished.append(f"{run.model} dim {run.dim} seed {run.seed} ({len(run.test)} epochs)")
    finished = [e for e in experiments.values() if e.runs]
    if not finished:
        raise LogError(f"{runs[0].folder}: no run is finished (resume it with main.py --resume)")
    return sorted(finished, key=lambda e: (e.dataset, e.title))


def load(paths):
    return group([run for path in dict.fromkeys(map(Path, paths)) for run in read_runs(path)])


# ---------------------------------------------------------------------------------------------------------------
# numbers and tables

@dataclass(frozen=True)
class Table:
    title: str
    header: list
    rows: list  # of lists of str
    note: str = ""

    @property
    def numeric(self):
        """For each column, whether its cells are numbers (set to the right); the first names the row."""
        return [False] + [all(re.match(r"[+−]?\d|–?$", row[i]) for row in self.rows)
                          for i in range(1, len(self.header))]

    def markdown(self):
        def line(cells):
            return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

        rule = ["---:" if numeric else "---" for numeric in self.numeric]
        note = f"\n\n{self.note}" if self.note else ""
        return f"**{self.title}**\n\n" + "\n".join(map(line, [self.header, rule, *self.rows])) + note + "\n"


def name_of(model):
    kind, _, rest = model.partition("-")
    return LOOKS[model][2] if model in LOOKS else LINES[kind][1].format(rest) if kind in LINES and rest else model


def pairs_of(experiment):
    """(DEQ, explicit network) that are compared, in the order of the models."""
    pairs = [pair for pair in PAIRS if set(pair) <= set(experiment.models)]
    for deq in (m for m in experiment.models if m.startswith("deq-")):
        activation = re.escape(deq.removeprefix("deq-"))
        pairs += [(deq, m) for m in experiment.models
                  if re.fullmatch(rf"matched_enn-{activation}-(ck|ntk)|unmatched_enn-{activation}", m)]
    return pairs


def paired_interval(one, other):
    """Mean of one - other over the seeds that both have, half the width of its 95% paired-t interval, and how many.

    The half-width is NaN for a single seed.
    """
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    if not differences:
        return math.nan, math.nan, 0
    mean, std = mean_std(differences)
    n = len(differences)
    if n == 1:
        return mean, math.nan, 1
    from scipy.stats import t
    return mean, float(t.ppf(0.975, n - 1)) * std / math.sqrt(n), n


def final(runs):
    """{seed: test accuracy in % after the last epoch}"""
    return {seed: 100 * run.test[-1] for seed, run in runs.items()}


def differences(experiment, deq, enn):
    """{dim: paired_interval} of the final test accuracies in %."""
    found = {dim: paired_interval(final(experiment.of(deq, dim)), final(experiment.of(enn, dim)))
             for dim in experiment.dims}
    return {dim: interval for dim, interval in found.items() if interval[2]}


def accuracy_table(experiment):
    rows, counts = [], set()
    for dim in experiment.dims:
        row = [str(dim)]
        for model in experiment.models:
            values = list(final(experiment.of(model, dim)).values())
            counts.add(len(values))
            mean, std = mean_std(values) if values else (0, 0)
            row.append(f"{mean:.2f} ± {std:.2f}" if len(values) > 1 else f"{mean:.2f}" if values else "–")
        rows.append(row)
    counts.discard(0)
    most = f"{max(counts)} seed{'s' * (max(counts) > 1)}"
    seeds = f"{min(counts)} to {most}" if len(counts) > 1 else most
    note = f"Unfinished and left out: {', '.join(experiment.unfinished)}." if experiment.unfinished else ""
    return Table(f"Test accuracy in % ({experiment.title}; mean ± standard deviation, {seeds})",
                 ["width", *map(name_of, experiment.models)], rows, note)


def difference_table(experiment):
    """None where there is no pair."""
    pairs = [(pair, differences(experiment, *pair)) for pair in pairs_of(experiment)]
    if not pairs:
        return None

    def cell(interval):
        mean, half, n = interval
        text = f"{mean:+.2f}" if n == 1 else f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"
        return text.replace("-", "−")

    rows = [[str(dim), *(cell(found[dim]) if dim in found else "–" for _, found in pairs)] for dim in experiment.dims]
    return Table(f"DEQ − ENN, test accuracy in percentage points, paired over seeds ({experiment.title})",
                 ["width", *(f"{name_of(deq)} − {name_of(enn)}" for (deq, enn), _ in pairs)], rows,
                 "In brackets the 95% interval of the paired t; without one, a single seed.")


def cost_table(experiment):
    """None where no times are known."""
    def typical(model, dim, what):
        times = [getattr(run, what) for run in experiment.of(model, dim).values() if getattr(run, what) is not None]
        return median(times) if times else None
    pairs = [(deq, enn) for deq, enn in pairs_of(experiment) if not name_of(enn).startswith("unmatched")]
    rows = []
    for dim in experiment.dims:
        for deq, enn in pairs:
            setup = [typical(model, dim, "setup_seconds") for model in (deq, enn)]
            epoch = [typical(model, dim, "epoch_seconds") for model in (deq, enn)]
            if None not in setup + epoch:
                rows.append([str(dim), name_of(deq), *(f"{s:.3g}" for s in setup), f"{setup[0] / setup[1]:.1f}",
                             *(f"{s:.3g}" for s in epoch)])
    if not rows:
        return None
    return Table(f"Cost of a DEQ and of its matched ENN, seconds ({experiment.title}; median over seeds)",
                 ["width", "DEQ", "features, DEQ", "features, ENN", "ratio", "epoch, DEQ", "epoch, ENN"], rows,
                 "Features: building the network and passing all training and test samples through it once.")


def tables(experiment):
    made = accuracy_table(experiment), difference_table(experiment), cost_table(experiment)
    return [table for table in made if table]


def write_csv(experiments, file):
    """One row a run."""
    keys = list(dict.fromkeys(key for e in experiments for key in e.settings if key != "dataset"))
    out = csv.writer(file, lineterminator="\n")
    out.writerow(["dataset", "model", "dim", "seed", "epochs", "train_accuracy", "test_accuracy", "setup_seconds",
                  "epoch_seconds", *keys, "folder"])
    for e in experiments:
        for (model, dim, seed), run in sorted(e.runs.items()):
            out.writerow([e.dataset, model, dim, seed, len(run.test), run.train[-1] if run.train else "", run.test[-1],
                          run.setup_seconds, run.epoch_seconds, *(e.settings.get(key) for key in keys), run.folder])


# ---------------------------------------------------------------------------------------------------------------
# figures

def looks(experiment):
    """{model: keywords of a curve}"""
    found, colours = {}, {}
    for model in experiment.models:
        kind, _, rest = model.partition("-")
        if model in LOOKS:
            colour, line, _ = LOOKS[model]
        else:
            family = re.sub(r"-(ck|ntk)$", "", rest) if kind in LINES else model
            colour = colours.setdefault(family, f"C{2 + len(colours)}")
            line = LINES[kind][0] if kind in LINES else "-."
        # a DEQ is a broad pale line, so that the network on top of it can be seen to be there
        found[model] = {"color": colour, "linestyle": line, "label": name_of(model),
                        **({"linewidth": 3, "alpha": 0.4} if line == "-" else {"linewidth": 1.3})}
    return found


def legend_below(figure, handles, columns):
    """{label: handle} row by row, a family of three in a row, where matplotlib goes column by column."""
    order = [label for column in range(columns) for label in list(handles)[column::columns]]
    figure.legend([handles[label] for label in order], order, loc="outside lower center", ncols=columns, handlelength=3)


def epoch_figure(experiment):
    """Test accuracy against epoch, a panel a width: mean over seeds, and a band of one standard deviation."""
    from matplotlib import pyplot as plt
    dims, style = experiment.dims, looks(experiment)
    columns = min(3, len(dims))
    rows = math.ceil(len(dims) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.75 if columns > 1 else 3.6, 2.1 * rows + 0.6), squeeze=False)
    epochs = range(1, experiment.epochs + 1)
    for ax, dim in zip(axes.flat, dims):
        for model, look in style.items():
            runs = list(experiment.of(model, dim).values())
            if runs:
                mean, std = zip(*(mean_std([100 * run.test[e - 1] for run in runs]) for e in epochs))
                ax.plot(epochs, mean, **look)
                ax.fill_between(epochs, [m - s for m, s in zip(mean, std)], [m + s for m, s in zip(mean, std)],
                                color=look["color"], alpha=0.15, linewidth=0)
        ax.set(title=f"width {dim}", xlabel="epoch")
        if experiment.epochs > 20:
            ax.set_xscale("log")
        else:
            ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in axes.flat[len(dims):]:
        ax.set_axis_off()
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy (%)")
    handles = {label: h for ax in axes.flat for h, label in zip(*ax.get_legend_handles_labels())}
    legend_below(figure, handles, 3 if columns > 1 else 2)
    return figure


def width_figure(experiment):
    """Final test accuracy against width, mean ± standard deviation; beside it DEQ - ENN with 95% intervals."""
    from matplotlib import pyplot as plt
    dims, style, pairs = experiment.dims, looks(experiment), pairs_of(experiment)
    panels = 2 if pairs else 1
    figure, axes = plt.subplots(1, panels, figsize=(3.375 * panels, 3.1), squeeze=False)
    left = axes[0, 0]
    for model, look in style.items():
        points = [(dim, list(final(experiment.of(model, dim)).values())) for dim in dims]
        points = [(dim, *mean_std(values), len(values)) for dim, values in points if values]
        widths, mean, std, n = zip(*points)
        left.errorbar(widths, mean, std if max(n) > 1 else None, **look)
    left.set(ylabel="test accuracy (%)", title=f"after {experiment.epochs} epochs")
    if pairs:
        right = axes[0, 1]
        right.axhline(0, color="0.55", linewidth=0.6)
        seeds = set()
        for index, (deq, enn) in enumerate(pairs):
            found = differences(experiment, deq, enn)
            shift = 1.04 ** (index - (len(pairs) - 1) / 2)  # side by side, or the bars hide one another
            bars = [half for _, half, _ in found.values()]
            seeds |= {n for _, _, n in found.values()}
            right.errorbar([dim * shift for dim in found], [mean for mean, _, _ in found.values()],
                           None if any(map(math.isnan, bars)) else bars, color=style[enn]["color"],
                           linestyle=style[enn]["linestyle"], marker="o", markersize=3)
        right.set(ylabel="DEQ − ENN (percentage points)",
                  title="difference" if seeds == {1} else "difference, 95% interval")
    for ax in axes.flat:
        ax.set(xlabel="width $m$", xscale="log")
        ax.set_xticks(dims, dims)
        ax.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    legend_below(figure, dict(zip(labels, handles)), 3 if pairs else 2)
    return figure


FIGURES = {"epochs": epoch_figure, "widths": width_figure}


def write_figures(experiments, folder):
    """{(index of the experiment, kind): path}"""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from utils import atomic_write
    written = {}
    slugs = [e.slug for e in experiments]
    for index, experiment in enumerate(experiments):
        slug = slugs[index] + (f"-{slugs[:index].count(slugs[index]) + 1}" if slugs.count(slugs[index]) > 1 else "")
        for kind, draw in FIGURES.items():
            with plt.style.context(ROOT / "ck_ntk" / "paper.mplstyle"):
                figure = draw(experiment)
                written[index, kind] = Path(folder) / f"{slug}-{kind}.png"
                with atomic_write(written[index, kind]) as file:
                    figure.savefig(file, format="png", dpi=200)
                plt.close(figure)
    return written


def main(argv=None):
    parser = Parser(prog="summarize.py", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folder of logs, or of folders of logs")
    parser.add_argument("--output", default="results/summary", metavar="DIR", help="default: results/summary")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output)
    try:
        experiments = load(arguments.paths)
        if output.exists() and not output.is_dir():
            raise LogError(f"--output {output} is a file, not a folder")
        from utils import atomic_write
        figures = write_figures(experiments, output)
        parts = []
        for index, experiment in enumerate(experiments):
            parts += [f"## {experiment.title}\n", *(table.markdown() for table in tables(experiment)),
                      *(f"![{kind}]({figures[index, kind].name})\n" for kind in FIGURES)]
        text = "\n".join(parts)
        with atomic_write(output / "summary.md", "w") as file:
            file.write(text)
        with atomic_write(output / "runs.csv", "w") as file:
            write_csv(experiments, file)
    except (ValueError, OSError) as error:
        parser.error(error)
    print(text)
    print(f"{output / 'summary.md'}, {output / 'runs.csv'}, {len(figures)} figures")


if __name__ == "__main__":
    main()
