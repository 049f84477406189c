"""Training loops, checkpoints and accuracy logs.

`--train readout` is the regime of the conjugate kernel: hidden weights stay as drawn, so the features are computed
once and only a linear softmax readout is trained on them, from zero. `--train full` trains every weight; a DEQ's
gradient is implicit (fixed_point.py). A positive concave DEQ has all its weights trained, and projected (pcdeq.py).

A run writes, after each epoch, `{dim}_train_{model}_{dataset}.json` and `{dim}_test_...` (lists of accuracies; seed s
other than 0 in the folder `seed_s`), one line in `metrics.jsonl`, and a checkpoint that holds all of these, so that a
killed run goes on to the same bytes.
"""

import hashlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from data_prepare import Dataset
from distributed import Team
from pcdeq import augment, keep_nonnegative
from utils import atomic_write, generator


# settings that Config did not always have: where they are empty they do not enter the key, so that a run keeps the key,
# and the checkpoint, that it had before them
LATER = "code",


class TrainingError(RuntimeError):
    """Training cannot go on (the loss is no longer a number); the logs so far are kept."""


@dataclass(frozen=True)
class Config:
    """Everything that determines the numbers of one run; `data` is a fingerprint of the samples."""

    dataset: str
    model: str
    dim: int
    lr: float
    epoch: int
    batch_size: int
    seed: int = 0
    opt: str = "sgd"
    asquare: float = 0.2
    train: str = "readout"
    activation: str = ""  # where the model's name does not say it
    match: str = ""   # kernel and family of a matched_enn
    family: str = ""
    weight_decay: float = 0.0  # this and the next two: of a positive concave DEQ
    milestone: int = 0
    aug: bool = False
    data: str = ""
    code: str = ""  # fingerprint of the user's file that `activation` names

    @property
    def key(self) -> str:
        settings = asdict(self)
        for name in LATER:
            if not settings[name]:
                del settings[name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The model in file names: with its activation, and its kernel, where these are the user's choice."""
        if self.train == "pcdeq":
            return self.model
        return "-".join([self.model, *filter(None, (self.activation.rpartition(":")[2], self.match))])

    @property
    def title(self) -> str:
        return f"{self.label} dim {self.dim} seed {self.seed}"


def fingerprint(data: Dataset) -> str:
    """Short hash of a dataset's arrays."""
    digest = hashlib.sha256()
    for array in (data.X_train, data.y_train, data.X_test, data.y_test):
        digest.update(str(tuple(array.shape)).encode())
        digest.update(array.numpy())
    return digest.hexdigest()[:16]


def fingerprint_code(activation: str) -> str:
    """Short hash of the file in "path/to/file.py:name"; empty for an activation from the registry."""
    path, colon, _ = activation.rpartition(":")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if colon else ""


# ---------------------------------------------------------------------------------------------------------------
# files

def log_path(config: Config, output_path, split: str) -> Path:
    folder = Path(output_path) if config.seed == 0 else Path(output_path) / f"seed_{config.seed}"
    return folder / f"{config.dim}_{split}_{config.label}_{config.dataset}.json"


def checkpoint_path(config: Config, save_path) -> Path:
    return Path(save_path) / f"{config.dim}_{config.label}_{config.dataset}_seed{config.seed}_{config.key}.pt"


def best_path(config: Config, save_path) -> Path:
    """The weights after the epoch of the best test accuracy, where every weight is trained."""
    return checkpoint_path(config, save_path).with_suffix(".best.pt")


def read_metrics(output_path) -> list[dict]:
    """The lines of metrics.jsonl; a last line cut short by a kill is passed over."""
    path = Path(output_path) / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(1, path.stat().st_size), os.SEEK_END)
        return file.read()


def check_output(configs: list[Config], output_path) -> None:
    """Raises ValueError if the folder holds a log of the same name that another configuration wrote."""
    owner = {(r["dim"], r["model"], r["dataset"], r["seed"]): r["run"]
             for r in read_metrics(output_path) if r.get("event") == "run"}
    for config in configs:
        path = log_path(config, output_path, "test")
        if path.exists() and owner.get((config.dim, config.label, config.dataset, config.seed)) != config.key:
            raise ValueError(f"{path} is the log of another configuration: pass another --output_path, or move it away")


class RunFiles:
    """The files of one run: accuracy logs, metrics lines, checkpoint. Of ranks that share a run one `writes`."""

    def __init__(self, config: Config, output_path, save_path, writes: bool = True):
        self.config, self.output_path, self.writes = config, Path(output_path), writes
        self.checkpoint, self.best = checkpoint_path(config, save_path), best_path(config, save_path)
        self.history: list[dict] = []
        self.setup_seconds = 0.0  # building the network and its features, over all attempts
        self.output_path.mkdir(parents=True, exist_ok=True)

    def restore(self, device) -> dict | None:
        """State of the checkpoint, with the history and the logs brought up to it; None if there is none."""
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            self.history, self.setup_seconds = state.pop("history"), state.pop("setup_seconds")
        except Exception as error:
            raise ValueError(f"checkpoint {self.checkpoint} is damaged ({type(error).__name__}): delete it, "
                             "or run without --resume") from None
        known = {r["epoch"] for r in read_metrics(self.output_path)
                 if r.get("event") == "epoch" and r["run"] == self.config.key}
        for record in self.history:
            if record["epoch"] not in known:
                self.note("epoch", **record)
        self._write_logs()
        return state

    def epoch_done(self, record: dict, state: dict) -> None:
        """Checkpoint first: whatever is killed after it, `restore` writes again."""
        if not self.writes:
            self.history.append(record)
            return
        if "model" in state and all(record["test_accuracy"] > r["test_accuracy"] for r in self.history):
            with atomic_write(self.best) as file:
                torch.save(state["model"], file)
        self.history.append(record)
        with atomic_write(self.checkpoint) as file:
            torch.save({**state, "history": self.history, "setup_seconds": self.setup_seconds}, file)
        self._write_logs()
        self.note("epoch", **record)

    def result(self) -> "Result":
        return Result(self.history, self.setup_seconds + sum(record["seconds"] for record in self.history))

    def _write_logs(self):
        if not self.writes:
            return
        for split in ("train", "test"):
            with atomic_write(log_path(self.config, self.output_path, split), "w") as file:
                json.dump([record[f"{split}_accuracy"] for record in self.history], file)

    def note(self, event: str, **values) -> None:
        """One line of metrics.jsonl: a single append, so that two processes may share the file."""
        if not self.writes:
            return
        c = self.config
        line = {"event": event, "run": c.key, "dataset": c.dataset, "model": c.label, "dim": c.dim, "seed": c.seed, **values}
        path = self.output_path / "metrics.jsonl"
        torn = b"\n" if path.exists() and _last_byte(path) not in (b"\n", b"") else b""  # a line cut short by a kill
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, torn + (json.dumps(line) + "\n").encode())
        finally:
            os.close(handle)


# ---------------------------------------------------------------------------------------------------------------
# training

def extract_features(model, X: torch.Tensor, device="cpu", batch_size: int = 512) -> tuple[torch.Tensor, int]:
    """Features (n, m) of X (n, p), in batches that stay in cache, and the most solver iterations that a batch took."""
    out = torch.empty(len(X), model.readout.in_features, device=device)
    iterations = 0
    with torch.no_grad():
        for start in tqdm(range(0, len(X), batch_size), desc="features", leave=False, disable=None, delay=1):
            rows = slice(start, start + batch_size)
            out[rows] = model.features(X[rows].to(device))
            iterations = max(iterations, model.fixed_point.iterations if hasattr(model, "fixed_point") else 0)
    return out, iterations


def make_optimizer(parameters, config: Config) -> torch.optim.Optimizer:
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.opt]
    return kind(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


class ReadoutTask:
    """A softmax readout, without bias and from zero, on fixed features."""

    def __init__(self, model, data: Dataset, config: Config, device):
        self.config = config
        self.train, self.iterations = extract_features(model, data.X_train, device)
        self.test, _ = extract_features(model, data.X_test, device)
        self.y_train, self.y_test = data.y_train.to(device), data.y_test.to(device)
        self.weight = torch.nn.Parameter(torch.zeros(data.n_classes, self.train.shape[1], device=device))
        self.optimizer = make_optimizer([self.weight], config)
        self.buffer = torch.empty(config.batch_size, self.train.shape[1], device=device)

    def state(self) -> dict:
        return {"weight": self.weight.detach(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def epoch(self, order: torch.Tensor) -> dict:
        """One pass over the samples in the given order. Loss and accuracy are those seen on the way."""
        labels = self.y_train[order][:, None]
        log_likelihood = torch.empty(len(order), 1, device=order.device)
        predicted = torch.empty(len(order), dtype=torch.int64, device=order.device)
        minus_one = torch.full((self.config.batch_size, 1), -1.0, device=order.device)
        for start in range(0, len(order), self.config.batch_size):
            rows = slice(start, min(start + self.config.batch_size, len(order)))
            size = rows.stop - rows.start
            x = torch.index_select(self.train, 0, order[rows], out=self.buffer[:size])
            # the gradient of the mean cross-entropy of a linear model, written out: (softmax - onehot)^T x / n
            log_p = (x @ self.weight.T).log_softmax(1)
            torch.argmax(log_p, 1, out=predicted[rows])
            torch.gather(log_p, 1, labels[rows], out=log_likelihood[rows])
            delta = log_p.exp_().scatter_add_(1, labels[rows], minus_one[:size])
            self.weight.grad = (delta.T @ x).div_(size)
            self.optimizer.step()
        return {"train_loss": -log_likelihood.double().mean().item(),
                "train_accuracy": (predicted == labels[:, 0]).sum().item() / len(order)}

    @torch.no_grad()
    def evaluate(self) -> dict:
        logits = self.test @ self.weight.T
        return {"test_loss": F.cross_entropy(logits, self.y_test).item(),
                "test_accuracy": (logits.argmax(1) == self.y_test).sum().item() / len(logits)}


class FullTask:
    """Every weight trained, by automatic differentiation (implicit, for a DEQ).

    The ranks of a team take the same steps on the same weights, with the gradient of the whole batch: each computes
    that of its share, and they differ from a single process by rounding (a DEQ: by the solver's tolerance).
    """

    def __init__(self, model, data: Dataset, config: Config, device, team: Team = Team()):
        self.model, self.config, self.team = model.to(device), config, team
        self.network = team.wrap(self.model)
        self.train, self.y_train = data.X_train.to(device), data.y_train.to(device)
        self.test, self.y_test = data.X_test.to(device), data.y_test.to(device)
        self.optimizer = make_optimizer(self.model.parameters(), config)

    def state(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        return self.train[index]

    def epoch(self, order: torch.Tensor) -> dict:
        """One pass over the samples in the given order. Loss and accuracy are those seen on the way."""
        self.model.train()
        sums = torch.zeros(2, dtype=torch.float64, device=order.device)  # of the loss, and of correct predictions
        solvers = [layer.fixed_point for layer in self.model.modules() if hasattr(layer, "fixed_point")]
        forward, backward = [], []
        for index in tqdm(order.split(self.config.batch_size), desc=self.config.model, leave=False, disable=None, delay=1):
            share = self.team.share(index)
            y = self.y_train[share]
            logits = self.network(self.batch(share))
            loss = F.cross_entropy(logits, y, reduction="sum")
            self.optimizer.zero_grad()
            # the gradients will be averaged over the ranks, whose shares differ in size: sums, over the whole batch
            (loss * (self.team.size / len(index))).backward()
            self.optimizer.step()
            sums += torch.stack([loss.detach(), (logits.detach().argmax(1) == y).sum()])
            forward += [solver.iterations for solver in solvers]
            backward += [solver.backward_iterations for solver in solvers]
        loss_sum, correct = self.team.total(sums)
        record = {"train_loss": loss_sum / len(order), "train_accuracy": correct / len(order)}
        if solvers:  # a batch takes as many iterations as its slowest share
            forward, backward = self.team.most(torch.tensor([forward, backward], device=order.device))
            record |= {"forward_iterations": sum(forward) / len(forward),
                       "backward_iterations": sum(backward) / len(backward)}
        return record

    @torch.no_grad()
    def evaluate(self) -> dict:
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.test.device)
        for x, y in self.team.share(list(zip(self.test.split(512), self.y_test.split(512)))):
            logits = self.model(x)
            sums += torch.stack([F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()])
        loss, correct = self.team.total(sums)
        return {"test_loss": loss / len(self.test), "test_accuracy": correct / len(self.test)}


class PcDEQTask(FullTask):
    """A positive concave DEQ: weights kept nonnegative, learning rate times 0.1 after the milestone, images augmented."""

    def __init__(self, model, data: Dataset, config: Config, device):
        super().__init__(model, data, config, device)
        keep_nonnegative(self.model, self.optimizer)
        self.generator = generator(config.seed, "augmentation")
        self.epochs = 0

    def state(self) -> dict:
        return {**super().state(), "augmentation": self.generator.get_state(), "epochs": self.epochs}

    def load(self, state: dict) -> None:
        super().load(state)
        self.generator.set_state(state["augmentation"].cpu())
        self.epochs = state["epochs"]

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        images = super().batch(index).view(-1, *self.model.image_shape)
        return augment(images, self.generator) if self.config.aug else images

    def epoch(self, order: torch.Tensor) -> dict:
        if self.epochs == self.config.milestone > 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.1
        self.epochs += 1
        return super().epoch(order)


TASKS = {"readout": ReadoutTask, "full": FullTask, "pcdeq": PcDEQTask}


@dataclass(frozen=True)
class Result:
    """history : one record an epoch, as in metrics.jsonl; seconds : what the whole run took, setup included."""

    history: list[dict]
    seconds: float


def run(config: Config, data: Dataset, make_model, output_path, save_path, device="cpu", resume: bool = False,
        team: Team | None = None) -> Result:
    """Train one model and write its logs.

    Parameters
    ----------
    make_model : called with no arguments for the network, unless the run is already finished.
    resume : go on from this configuration's checkpoint, if there is one.
    team : the ranks that call this together, to share a run with `train` "full"; rank 0 writes.

    Raises
    ------
    TrainingError : the loss is no longer finite. ConvergenceError : an equilibrium was not found.
    """
    files = RunFiles(config, output_path, save_path, writes=team is None or team.rank == 0)
    state = files.restore(device) if resume else None
    if len(files.history) >= config.epoch:
        return files.result()
    start = time.perf_counter()
    model = make_model().to(device)
    task = FullTask(model, data, config, device, team) if team else TASKS[config.train](model, data, config, device)
    if state:
        task.load(state)
    files.setup_seconds += time.perf_counter() - start
    files.note("run", config=asdict(config), theory=model.describe(), device=str(device), resumed_at=len(files.history),
               setup_seconds=files.setup_seconds, solver_iterations=getattr(task, "iterations", None))
    epochs = range(len(files.history) + 1, config.epoch + 1)
    for epoch in tqdm(epochs, desc=config.title, leave=False, disable=None, delay=1):
        start = time.perf_counter()
        order = torch.randperm(len(data.X_train), generator=generator(config.seed, "order", epoch)).to(device)
        record = {"epoch": epoch, **task.epoch(order), **task.evaluate()}
        if not math.isfinite(record["train_loss"] + record["test_loss"]):
            raise TrainingError(f"{config.title}: the loss became {record['train_loss']} in epoch {epoch}; "
                                f"take a smaller --lr (it was {config.lr:g}). The logs up to epoch {epoch - 1} are kept")
        files.epoch_done({**record, "seconds": time.perf_counter() - start}, task.state())
    return files.result()
