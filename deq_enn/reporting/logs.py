"""Accuracy logs of main.py, of the authors' code, or of TensorBoard are read here and grouped into experiments."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from statistics import median

from deq_enn.names import DATASETS, counted
from deq_enn.reporting.looks import LOOKS

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
# settings that differ inside a table
EQUILIBRIUM = ("steps", "solver", "max_steps", "solver_tol", "lenient", "jacobian")  # of DEQs alone
CONVOLUTION = ("kernel_size", "padding", "pool")  # of convolutional networks alone
PER_RUN = ("model", "dim", "seed", "activation", "match", "family", "depth", *EQUILIBRIUM, *CONVOLUTION)
VARIANT = re.compile(r"(.+)-(?:steps(\d+)|jacobian(.+))")  # of a DEQ: stopped after some steps, or with a penalty

# fashion_mnist before mnist, as both end a name; another code's dataset is what follows the last underscore
NAME = rf"(.+?)_({'|'.join(sorted(DATASETS, key=len, reverse=True))}|[^_]+)"
LOG = re.compile(rf"(\d+)_(train|test)_{NAME}\.json")
EVENTS = re.compile(rf"(\d+)_{NAME}")


class LogError(ValueError):
    """Logs that cannot be read or must not be put together."""


@dataclass(frozen=True)
class Run:
    """A run holds one network's accuracies by epoch, in [0, 1]; config and seconds are None without metrics.jsonl."""

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
    own_lr: float | None = None  # where `--lr auto` chose it; the config's is then "auto"

    @property
    def title(self) -> str:
        """Names the run in an error."""
        return f"{self.folder}: {self.model} {self.dataset} dim {self.dim} seed {self.seed}"


@dataclass
class Experiment:
    """An experiment holds the runs of one table: same dataset and settings, several models, widths and seeds."""

    dataset: str
    settings: dict  # {} where the logs do not tell them
    folders: list
    runs: dict = field(default_factory=dict)  # (model, dim, seed): Run
    unfinished: list = field(default_factory=list)
    first: int | None = None  # only so many epochs are looked at

    @property
    def epochs(self) -> int:
        """Returns the number of epochs that a finished run has."""
        return self.first or self.settings.get("epoch") or max(len(run.test) for run in self.runs.values())

    @property
    def own_rate(self) -> bool:
        """Says whether each network has a learning rate of its own."""
        return self.settings.get("lr") == "auto"

    @property
    def rate(self) -> str:
        """Says which learning rate the networks have."""
        return "each at its own lr" if self.own_rate else f"at lr {self.settings['lr']:g}"

    @property
    def title(self) -> str:
        """Returns the data set and the settings in words."""
        s = self.settings
        epochs = f"after {counted(self.first, 'epoch')}" if self.first else counted(self.epochs, "epoch")
        if not s:
            return f"{self.dataset}, {self.folders[0]}, {epochs}"
        if s["train"] == "ridge":
            return f"{self.dataset}, readout solved exactly" + (f", n = {s['train_size']}" if s["train_size"] else "")
        trained = "readout trained" if s["train"] == "readout" else "every weight trained"
        return f"{self.dataset}, {trained} by {OPTIMIZERS[s['opt']]} {self.rate}, {epochs}"

    @property
    def slug(self) -> str:
        """Returns the beginning of the names of its figures."""
        if not self.settings:
            return f"{self.dataset}-{self.folders[0].name}"
        return f"{self.dataset}-{self.settings['opt'] or self.settings['train']}" + "-own-rate" * self.own_rate

    @property
    def models(self) -> list[str]:
        """Returns the models in the order of tables and legends."""
        known = list(LOOKS)

        def place(model: str) -> tuple:
            match = VARIANT.fullmatch(model)
            base, steps = (match[1], int(match[2] or 0)) if match else (model, 0)
            return known.index(base) if base in known else len(known), base, steps, model

        return sorted({m for m, _, _ in self.runs}, key=place)

    @property
    def dims(self) -> list[int]:
        """Returns the widths in ascending order."""
        return sorted({dim for _, dim, _ in self.runs})

    def of(self, model: str, dim: int) -> dict[int, Run]:
        """Returns {seed: Run} of a model at a width."""
        return {seed: run for (m, d, seed), run in sorted(self.runs.items()) if (m, d) == (model, dim)}


# ---------------------------------------------------------------------------------------------------------------
# reading


def as_fractions(values: object, source: object) -> tuple[float, ...]:
    """Returns accuracies in [0, 1]; a list with a value above 1 is in percent."""
    if not (isinstance(values, list) and values and all(type(v) in (int, float) and 0 <= v <= 100 for v in values)):
        raise LogError(f"{source}: not a list of accuracies")
    return tuple(v / 100 for v in values) if max(values) > 1 else tuple(values)


def home(folder: Path) -> tuple[Path, int]:
    """Returns (folder without seed_{s}, s). A folder of that name that has a metrics.jsonl is one of outputs itself."""
    match = re.fullmatch(r"seed_(\d+)", folder.name)
    return (folder.parent, int(match[1])) if match and not (folder / "metrics.jsonl").exists() else (folder, 0)


def read_json_logs(path: Path) -> dict[tuple, dict[str, tuple]]:
    """Returns {(folder, dataset, model, dim, seed): {"train": ..., "test": ...}} of every log below the path."""
    logs = {}
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
        logs.setdefault((folder, dataset, model, int(dim), seed), {})[split] = as_fractions(values, file)
    return logs


def read_events(path: Path) -> dict[tuple, dict[str, tuple]]:
    """Returns the same of TensorBoard event files."""
    folders = sorted({file.parent for file in path.rglob("events.out.tfevents.*")})
    if not folders:
        return {}
    try:
        module = import_module("tensorboard.backend.event_processing.event_accumulator")
    except ImportError:
        raise LogError(
            f"{folders[0]} holds TensorBoard event files, and the package tensorboard is not installed: "
            "pip install tensorboard"
        ) from None
    logs = {}
    for folder in folders:
        match = EVENTS.fullmatch(folder.name)
        if not match:
            raise LogError(f"{folder}: name event files' folder {{dim}}_{{model}}_{{dataset}}, such as 256_inn_mnist")
        try:
            events = module.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
            scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if "acc" in tag.lower()}
        except Exception as error:  # tensorboard raises many kinds on a damaged file
            raise LogError(f"{folder}: damaged event files ({type(error).__name__})") from None
        parent, seed = home(folder.parent)
        splits = logs.setdefault((parent, match[3], match[2], int(match[1]), seed), {})
        for tag, events in scalars.items():
            split = "train" if "train" in tag.lower() else "test"
            if split in splits:
                raise LogError(f"{folder}: several scalars for the {split} accuracy ({tag} is one)")
            splits[split] = as_fractions([e.value for e in sorted(events, key=lambda e: e.step)], f"{folder}, {tag}")
    return logs


def read_times(folder: Path) -> dict[tuple, tuple]:
    """Returns {(dataset, model, dim, seed): (config, setup seconds, {epoch: record}, own lr)} of metrics.jsonl."""
    from deq_enn.reporting.records import read_metrics

    owner, setup, epochs, chosen = {}, {}, {}, {}
    for record in read_metrics(folder):
        key = record["run"]
        if record["event"] == "run":
            owner[record["dataset"], record["model"], record["dim"], record["seed"]] = record
            if record["config"].get("own_rate"):  # chosen, so not a setting that a table's runs share
                chosen[key] = record["config"]["lr"]
                record["config"]["lr"] = "auto"
            # a resumed run adds its set-ups up; the least is that of one
            if (seconds := record.get("setup_seconds")) is not None:
                setup[key] = min(seconds, setup.get(key, math.inf))
        elif record["event"] == "epoch":
            epochs.setdefault(key, {})[record["epoch"]] = record
    return {
        name: (record["config"], setup.get(key), epochs.get(key, {}), chosen.get(key))
        for name, record in owner.items()
        for key in [record["run"]]
    }


def read_runs(path: Path) -> list[Run]:
    """Returns every Run below the path.

    Raises
    ------
    LogError : a file that cannot be read, no logs, or a log that is not the one its metrics.jsonl tells of.
    """
    if not path.is_dir():
        raise LogError(f"{path}: no such folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise LogError(f"{path}: the folder cannot be read")
    logs = {**read_json_logs(path), **read_events(path)}
    if not logs:
        raise LogError(
            f"{path}: no accuracy logs ({{dim}}_test_{{model}}_{{dataset}}.json) and no TensorBoard event files"
        )
    times = {folder: read_times(folder) for folder in {name[0] for name in logs}}
    runs = []
    for (folder, *name), splits in logs.items():
        dataset, model, dim, seed = name
        config, setup, epochs, own_lr = times[folder].get(tuple(name), (None, None, {}, None))
        run = Run(
            folder,
            dataset,
            model,
            dim,
            seed,
            splits.get("train", ()),
            splits.get("test", ()),
            config,
            setup,
            median(r["seconds"] for r in epochs.values()) if epochs else None,
            own_lr,
        )
        if not run.test:
            raise LogError(f"{run.title}: a log of the training accuracy without one of the test accuracy")
        # a killed run's last epoch may be in the one file and not yet in the other
        if any(epochs[e]["test_accuracy"] != run.test[e - 1] for e in epochs if e <= len(run.test)):
            raise LogError(f"{run.title}: the log and metrics.jsonl tell of two configurations: take one of them away")
        runs.append(run)
    return runs


def shared(config: dict | None) -> dict:
    """Returns the settings that all runs of a table have in common."""
    return {key: value for key, value in (config or {}).items() if key not in PER_RUN}


def differing(first: dict, second: dict) -> str:
    """Says in what two configurations differ."""
    if not (first and second):
        return "one of them without a configuration in metrics.jsonl"
    return ", ".join(
        f"{key} {first.get(key)} and {second.get(key)}" for key in first if first.get(key) != second.get(key)
    )


def group(runs: list[Run]) -> list[Experiment]:
    """Returns experiments of equal dataset and settings, unfinished runs apart.

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
            raise LogError(
                f"{run.title} and dim {first.dim} seed {first.seed} are two configurations under one name "
                f"({differing(mine, theirs)}): summarise them from folders of their own"
            )
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
            experiment.unfinished.append(
                f"{run.model} dim {run.dim} seed {run.seed} ({counted(len(run.test), 'epoch')})"
            )
    finished = [e for e in experiments.values() if e.runs]
    if not finished:
        raise LogError(f"{runs[0].folder}: no run is finished (resume it with main.py --resume)")
    return sorted(finished, key=lambda e: (e.dataset, e.title))


def first_epochs(experiment: Experiment, epochs: int) -> Experiment:
    """Returns the same runs as they stood after so many epochs.

    Raises
    ------
    LogError : they were shorter.
    """
    if epochs > experiment.epochs:
        raise LogError(f"--epoch {epochs}: the runs of {experiment.title} have no more")
    runs = {
        name: replace(run, train=run.train[:epochs], test=run.test[:epochs]) for name, run in experiment.runs.items()
    }
    return replace(experiment, runs=runs, first=epochs)


def chosen(experiments: Sequence[Experiment], models: Sequence[str] = (), dims: Sequence[int] = ()) -> list[Experiment]:
    """Returns the experiments with the runs of these models and widths alone; none given: of all.

    Raises
    ------
    LogError : no experiment has a run of one of them.
    """
    for what, wanted, there in (
        ("--model", models, {model for e in experiments for model in e.models}),
        ("--dim", dims, {dim for e in experiments for dim in e.dims}),
    ):
        if missing := [value for value in wanted if value not in there]:
            raise LogError(f"{what} {missing[0]}: these logs have {', '.join(map(str, sorted(there)))}")
    kept = []
    for experiment in experiments:
        runs = {
            name: run
            for name, run in experiment.runs.items()
            if (not models or name[0] in models) and (not dims or name[1] in dims)
        }
        kept += [replace(experiment, runs=runs)] if runs else []
    return kept


def load(paths: Sequence[Path | str]) -> list[Experiment]:
    """Reads every log below the paths."""
    return group([run for path in dict.fromkeys(map(Path, paths)) for run in read_runs(path)])
