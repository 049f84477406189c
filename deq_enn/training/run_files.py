"""A run's settings, and the files that it leaves.

After each epoch a run writes `{dim}_train_{model}_{dataset}.json` and `{dim}_test_...` (lists of accuracies; seed s
other than 0 in the folder `seed_s`), one line in `metrics.jsonl`, and a checkpoint that holds all of these, so that a
killed run goes on to the same bytes.
"""

import contextlib
import functools
import glob
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from deq_enn.data.datasets import Dataset
from deq_enn.reporting.records import read_metrics
from deq_enn.utils.files import atomic_write, sweep
from deq_enn.utils.interrupts import RESUME

# settings that Config did not always have; where they are empty they do not enter the key, so that an older run keeps
# its key, and its checkpoint
EQUILIBRIUM = "steps", "solver", "max_steps", "solver_tol", "lenient", "jacobian"
CONVOLUTION = "kernel_size", "padding", "pool"
LATER = "code", "ridge", "train_size", "depth", "own_rate", *EQUILIBRIUM, *CONVOLUTION, "precise_bn", "ridge_size"


@dataclass(frozen=True)
class Config:
    """Everything that determines the numbers of one run; `data` is a fingerprint of the samples."""

    dataset: str
    model: str
    dim: int | str  # "inf" for a kernel machine
    lr: float
    epoch: int
    batch_size: int
    seed: int = 0
    opt: str = "sgd"
    asquare: float = 0.2
    train: str = "readout"
    activation: str = ""  # where the model's name does not say it
    match: str = ""  # kernel and family of a matched_enn
    family: str = ""
    weight_decay: float = 0.0  # this and the next two: of a positive concave DEQ
    milestone: int = 0
    aug: bool = False
    data: str = ""
    ridge: str = ""  # this and the next two: of --train ridge and kernel, where they are given
    train_size: int = 0
    depth: int = 0
    own_rate: bool = False  # `lr` is chosen for this run, and follows from the rest
    code: str = ""  # fingerprint of the user's file that `activation` names
    steps: int = 0  # after which the equilibrium is stopped; this and the next five: of training every weight of a DEQ
    solver: str = ""  # where they are given
    max_steps: int = 0
    solver_tol: float = 0.0
    lenient: bool = False
    jacobian: str = ""
    kernel_size: int = 0  # this and the next two: of a convolutional network
    padding: str = ""
    pool: bool = False
    precise_bn: int = 0  # batches of which a positive concave DEQ's test has its statistics; 0: the running means
    ridge_size: int = 0  # samples that choose the ridge of a kernel machine; 0: 8,000

    @property
    def key(self) -> str:
        """Returns the short hash of all settings, by which a run finds its checkpoint."""
        settings = asdict(self)
        if self.own_rate:
            del settings["lr"]
        for name in LATER:
            if not settings[name]:
                del settings[name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def watched(self) -> bool:
        """Says whether the equilibria are solved for in a way that was asked for, and what comes of it is logged."""
        return bool(self.solver or self.max_steps or self.solver_tol or self.lenient or self.jacobian)

    def record(self) -> dict[str, Any]:
        """Returns all settings as they are logged; those of later kinds of training where they are given."""
        sometimes = *EQUILIBRIUM, *CONVOLUTION, "precise_bn", "ridge_size"
        return {name: value for name, value in asdict(self).items() if value or name not in sometimes}

    @property
    def label(self) -> str:
        """Returns the model as file names have it: with the activation and the kernel that the user has chosen."""
        training = f"steps{self.steps}" if self.steps else f"jacobian{self.jacobian}" if self.jacobian else ""
        if self.train == "pcdeq":
            return "-".join(filter(None, (self.model, training, "precise-bn" if self.precise_bn else "")))
        exact = self.train if self.train in ("ridge", "kernel") else training
        parts = (
            self.activation.rpartition(":")[2],
            f"k{self.kernel_size}" if self.kernel_size not in (0, 3) else "",
            self.padding if self.padding != "zero" else "",
            "pool" if self.pool else "",
            f"depth{self.depth}" if self.depth else "",
            self.match,
            exact,
            f"n{self.train_size}" if self.train_size else "",
        )
        return "-".join([self.model, *filter(None, parts)])

    @property
    def title(self) -> str:
        """Returns what messages call the run."""
        return f"{self.label} dim {self.dim} seed {self.seed}"


def fingerprint(data: Dataset) -> str:
    """Returns a short hash of a dataset's arrays; of rows that were computed, of what they were computed from.

    So a run on features of images is the same run on another machine, whose features differ in their last bits.
    """
    digest = hashlib.sha256(data.source.encode())
    for array in (data.X_train, data.y_train, data.X_test, data.y_test):
        digest.update(str(tuple(array.shape)).encode())
        if not (data.source and array.is_floating_point()):
            digest.update(array.numpy().data)
    return digest.hexdigest()[:16]


def fingerprint_code(activation: str) -> str:
    """Returns a short hash of the file in "path/to/file.py:name"; empty for an activation from the registry."""
    path, colon, _ = activation.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if colon else ""


def log_path(config: Config, output_path: Path | str, split: str) -> Path:
    """Returns where the accuracies of a run lie; `split` is train, test or predicted."""
    folder = Path(output_path) if config.seed == 0 else Path(output_path) / f"seed_{config.seed}"
    return folder / f"{config.dim}_{split}_{config.label}_{config.dataset}.json"


def checkpoint_path(config: Config, save_path: Path | str) -> Path:
    """Returns where the checkpoint of a run lies."""
    return Path(save_path) / f"{config.dim}_{config.label}_{config.dataset}_seed{config.seed}_{config.key}.pt"


def best_path(config: Config, save_path: Path | str) -> Path:
    """Returns where the weights are kept that were best by test accuracy, of runs that train every weight.

    The published code of the pcDEQs keeps such weights, so they are here too; but what is chosen on the test set is no
    estimate of what a network does on new data. Logs, tables and figures report the last epoch, whatever the test
    accuracy of the others.
    """
    return checkpoint_path(config, save_path).with_suffix(".best.pt")


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(1, path.stat().st_size), os.SEEK_END)
        return file.read()


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a log or a checkpoint as `atomic_write` does, with an OSError that says which file failed, and why."""
    try:
        with atomic_write(path, mode) as file:
            yield file
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save makes it a RuntimeError
        if not isinstance(cause, OSError):
            raise
        raise OSError(f"{path} could not be written ({cause.strerror or cause}); {RESUME}") from None


def shorter(config: Config) -> Iterator[Config]:
    """Yields the runs that this one may have begun as, the longest first: the same with fewer epochs."""
    for epoch in range(config.epoch - 1, 0, -1):
        yield replace(config, epoch=epoch)


def rate_path(config: Config, save_path: Path | str) -> Path:
    """Returns where the learning rate is kept that was chosen for a run."""
    return checkpoint_path(config, save_path).with_suffix(".rate.json")


def kept_rate(config: Config, save_path: Path | str) -> float | None:
    """Returns the learning rate that was chosen for a run, None where none is kept."""
    try:
        return float(json.loads(rate_path(config, save_path).read_text(encoding="utf-8"))["lr"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_output(configs: list[Config], output_path: Path | str, resume: bool = False) -> None:
    """Raises ValueError if the folder holds a log of the same name that another configuration wrote.

    With `resume` one with fewer epochs is no other.
    """
    owner = {
        (r["dim"], r["model"], r["dataset"], r["seed"]): r["run"]
        for r in read_metrics(output_path)
        if r.get("event") == "run"
    }
    for config in configs:
        path = log_path(config, output_path, "test")
        key = owner.get((config.dim, config.label, config.dataset, config.seed))
        if not path.exists() or key == config.key or resume and any(key == other.key for other in shorter(config)):
            continue
        raise ValueError(f"{path} is the log of another configuration: pass another --output_path, or move it away")


def records_of(key: str, output_path: Path) -> list[dict]:
    """Returns the records of a run in metrics.jsonl, which is read once for all runs as long as it is the same."""
    path = output_path / "metrics.jsonl"
    if not path.exists():
        return []
    status = path.stat()
    return _by_run(output_path, status.st_size, status.st_mtime_ns).get(key, [])


@functools.lru_cache(maxsize=1)
def _by_run(output_path: Path, size: int, modified: int) -> dict[str, list[dict]]:
    """Returns the records of each run; size and time of the last change tell one state of the file from another."""
    records: dict[str, list[dict]] = {}
    for record in read_metrics(output_path):
        records.setdefault(record["run"], []).append(record)
    return records


@dataclass(frozen=True)
class Result:
    """This is what a run ends with.

    history : one record an epoch, as in metrics.jsonl; seconds : what the whole run took, setup included.
    """

    history: list[dict]
    seconds: float


def finished(config: Config, output_path: Path | str) -> bool:
    """Tells whether the log has all epochs; whose log it is, `check_output` knows.

    A log that cannot be read, such as one that a power cut has emptied, has none: it is written again.
    """
    try:
        return len(json.loads(log_path(config, output_path, "test").read_text(encoding="utf-8"))) >= config.epoch
    except (OSError, ValueError, TypeError):
        return False


class RunFiles:
    """A run has accuracy logs, lines of metrics.jsonl, a checkpoint, and the weights that were best by test accuracy.

    Where several ranks share a run, one `writes`.
    """

    def __init__(self, config: Config, output_path: Path | str, save_path: Path | str, writes: bool = True):
        self.config, self.output_path, self.writes = config, Path(output_path), writes
        self.checkpoint, self.best = checkpoint_path(config, save_path), best_path(config, save_path)
        self.history: list[dict] = []
        self.setup_seconds = 0.0  # building the network and its features, over all attempts
        self.logs = {split: log_path(config, output_path, split) for split in ("train", "test")}
        self.output_path.mkdir(parents=True, exist_ok=True)
        if writes:
            sweep(self.checkpoint, self.best, *self.logs.values())

    def restore(self, device: torch.device | str, lengthen: bool = True) -> dict | None:
        """Returns the state of the checkpoint, None if there is none; brings the history and the logs up to it.

        `lengthen` : take that of the same run with fewer epochs, too.

        A run whose logs are whole needs no checkpoint: logs are kept, and copied, without the weights.
        """
        source = self._source(lengthen)
        if source is None:
            self._restore_logs()
            return None
        with self.damaged(source):
            state = torch.load(source, map_location=device, weights_only=True)
            self.history, self.setup_seconds = state.pop("history"), state.pop("setup_seconds")
            state.pop("config", None)  # an older checkpoint has none
            epochs = [record["epoch"] for record in self.history if {"test_accuracy", "seconds"} <= record.keys()]
            if not epochs or epochs != [*range(1, len(self.history) + 1)]:
                raise TypeError("not a history")
        mine = records_of(self.config.key, self.output_path)
        known = {r["epoch"] for r in mine if r.get("event") == "epoch"}
        if len(self.history) >= self.config.epoch and not any(r.get("event") == "run" for r in mine):
            # a finished run in another folder of logs: nothing else will say whose they are
            settings = {"resumed_at": len(self.history), "setup_seconds": self.setup_seconds}
            self.note("run", config=self.config.record(), **settings)
        for record in self.history:
            if record["epoch"] not in known:
                self.note("epoch", **record)
        self._write_logs()
        return state

    def _restore_logs(self) -> None:
        """Takes the history of a finished run from its logs; one that is not finished has none without checkpoint."""
        if not finished(self.config, self.output_path):
            return
        mine = records_of(self.config.key, self.output_path)
        epochs = {r["epoch"]: r for r in mine if r.get("event") == "epoch"}  # of several attempts the last counts
        if sorted(epochs) != [*range(1, self.config.epoch + 1)]:
            return
        named = self.line("epoch")
        self.history = [{k: v for k, v in epochs[e].items() if k not in named} for e in sorted(epochs)]
        self.setup_seconds = next((r.get("setup_seconds", 0.0) for r in reversed(mine) if r.get("event") == "run"), 0.0)

    def _source(self, lengthen: bool) -> Path | None:
        """Returns the checkpoint to go on from: this run's, or else that of the same run with fewer epochs.

        A rate that was chosen for fewer epochs may be another, and then that run is no part of this one.
        """
        folder, mine = self.checkpoint.parent, self.config
        same = checkpoint_path(mine, folder).name.removesuffix(f"{mine.key}.pt")  # runs that differ in settings alone
        lengthen = lengthen and any(folder.glob(f"{glob.escape(same)}*.pt"))
        for config in itertools.chain([mine], shorter(mine) if lengthen else ()):
            if config != mine and mine.own_rate and kept_rate(config, folder) != mine.lr:
                continue
            if (path := checkpoint_path(config, folder)).exists():
                best = best_path(config, folder)
                if self.writes and best.exists() and best != self.best:
                    with whole_file(self.best) as file:
                        file.write(best.read_bytes())
                return path
        return None

    @contextlib.contextmanager
    def damaged(self, path: Path | None = None) -> Iterator[None]:
        """Says of what fails in the block, the reading of the checkpoint, that the file is damaged."""
        path = path or self.checkpoint
        try:
            yield
        except PermissionError:
            raise ValueError(f"checkpoint {path} may not be read by this user") from None
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} is damaged ({type(error).__name__}): delete it, or run without --resume"
            ) from None

    def epoch_done(self, record: dict, state: dict) -> None:
        """Writes the checkpoint, then the logs: whatever is killed after the checkpoint, `restore` writes again."""
        if not self.writes:
            self.history.append(record)
            return
        if "model" in state and all(record["test_accuracy"] > r["test_accuracy"] for r in self.history):
            with whole_file(self.best) as file:
                torch.save(state["model"], file)
        self.history.append(record)
        with whole_file(self.checkpoint) as file:
            known = {"config": self.config.record(), "history": self.history, "setup_seconds": self.setup_seconds}
            torch.save(state | known, file)
        self._write_logs()
        self.note("epoch", **record)

    def result(self) -> Result:
        """Returns the history and the seconds of all attempts."""
        return Result(self.history, self.setup_seconds + sum(record["seconds"] for record in self.history))

    def _write_logs(self):
        if not self.writes:
            return
        for split, path in self.logs.items():
            if f"{split}_accuracy" not in self.history[0]:  # an exact readout is not tried on its training samples
                continue
            with whole_file(path, "w") as file:
                json.dump([record[f"{split}_accuracy"] for record in self.history], file)

    def line(self, event: str) -> dict[str, Any]:
        """Returns what every line of metrics.jsonl begins with: what happened, and to which run."""
        c = self.config
        return {"event": event, "run": c.key, "dataset": c.dataset, "model": c.label, "dim": c.dim, "seed": c.seed}

    def note(self, event: str, **values: Any) -> None:
        """Appends one line to metrics.jsonl, in a single write, so that two processes may share the file."""
        if not self.writes:
            return
        line = self.line(event) | values
        path = self.output_path / "metrics.jsonl"
        torn = b"\n" if path.exists() and _last_byte(path) not in (b"\n", b"") else b""  # a line cut short by a kill
        data = torn + (json.dumps(line) + "\n").encode()
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                while data:  # a second time where the disk is full, for its error
                    data = data[os.write(handle, data) :]
            finally:
                os.close(handle)
        except OSError as error:
            raise OSError(f"{path} could not be written ({error.strerror}); {RESUME}") from None
