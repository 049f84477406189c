"""These are grids of runs without steps: networks at infinite width (--train kernel), exact readouts (--train ridge).

Each run is one solve, so its history has one entry. The labels that it predicts for the test samples, beside the true
ones, are a log of their own, `{dim}_predicted_{model}_{dataset}.json`: two networks are compared sample by sample.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from deq_enn.experiments import exact_report
from deq_enn.experiments.grid import GRIDS as STEPPED, Grid
from deq_enn.machines import readout as ridge_features, regression
from deq_enn.machines.run import Plan, Samples, Settings, plan, run_machine, subset
from deq_enn.machines.scores import score as scores_of
from deq_enn.names import DEQS
from deq_enn.training.run_files import Config, Result, RunFiles, finished, log_path, whole_file
from deq_enn.utils.devices import available
from deq_enn.utils.team import Team, ranks

WIDTHLESS = "inf"  # what is called the width of a kernel machine


class ExactGrid(Grid):
    """Each run is one solve: models, unmatched ones of each depth, x widths x training sizes x seeds."""

    def check_sizes(self, n: int) -> None:
        """Raises ValueError where a size does not suit the training set of n samples."""
        sizes = self.arguments.train_size
        for size in sizes or ():
            if size > n:
                raise ValueError(f"--train_size {size} is larger than the training set of {n}")
        if min(sizes or [n]) < 5:
            raise ValueError("a ridge needs at least 5 training samples to be chosen on")

    def settings(self, model: str) -> dict:
        """Returns the settings of a run without steps."""
        a = self.arguments
        ridge = "" if a.ridge == ["auto"] else " ".join(f"{value:.17g}" for value in sorted(a.ridge))
        return super().settings(model) | {"lr": 0.0, "epoch": 1, "batch_size": 0, "opt": "", "ridge": ridge}

    def configs(self) -> list[Config]:
        """Returns the Config of each run of the grid."""
        a = self.arguments
        return [
            Config(
                dataset=a.dataset,
                model=model,
                dim=dim,
                seed=seed,
                data=self.key,
                train_size=size,
                depth=depth,
                **self.settings(model),
            )
            for seed in a.seed
            for size in a.train_size or [0]
            for dim in self.widths()
            for model, depth in self.networks
        ]

    def widths(self) -> list:
        """Returns the widths of the grid."""
        return self.arguments.dim

    def ridges(self, grid: Sequence[float]) -> Sequence[float]:
        """Returns the ridges to choose from: the grid, or what was given."""
        given = self.arguments.ridge
        return grid if given == ["auto"] else sorted(given)

    def samples(self, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns training samples and labels of the run, in its order."""
        data, n = self.data_of(config.model), len(self.data.X_train)
        order = subset(n, config.train_size or n, config.seed)
        return data.X_train[order], data.y_train[order]

    def works_on(self, config: Config, device: torch.device, team: Team) -> torch.device:
        """Returns where the run is computed, on a machine with this device."""
        return device

    def solve(self, config: Config, device: torch.device, team: Team) -> tuple[dict, torch.Tensor]:
        """Returns what is logged of the run, and the predicted labels of the test samples."""
        raise NotImplementedError

    def train(self, config: Config, device: torch.device, team: Team | None = None) -> Result:
        """Does the run and writes its logs and predictions; a `team` of ranks shares it."""
        a, team = self.arguments, team or Team()
        files = RunFiles(config, a.output_path, a.save_path, writes=team.rank == 0)
        state = files.restore("cpu") if a.resume else None
        if state:
            self._write_predicted(config, state["predicted"], team)
        if state or files.history and log_path(config, a.output_path, "predicted").exists():
            return files.result()
        files.history.clear()  # of logs without the predictions: they are made again
        files.note(
            "run",
            config=config.record(),
            theory=self.networks[config.model, config.depth].describe(),
            device=str(self.works_on(config, device, team)),
            resumed_at=0,
            setup_seconds=0.0,
            **({"classes": self.data.mapping} if self.data.mapping else {}),
        )
        start = time.perf_counter()
        record, predicted = self.solve(config, device, team)
        files.epoch_done({"epoch": 1, **record, "seconds": time.perf_counter() - start}, {"predicted": predicted})
        self._write_predicted(config, predicted, team)
        return files.result()

    def _write_predicted(self, config, predicted, team):
        if team.rank == 0:
            with whole_file(log_path(config, self.arguments.output_path, "predicted"), "w") as file:
                json.dump({"predicted": predicted.tolist(), "labels": self.data.y_test.tolist()}, file)

    def report(self, results: dict[Config, Result]) -> None:
        """Prints the tables and draws the figure of the results."""
        exact_report.print_report(self.arguments, results)
        sys.stdout.flush()  # in a pipe too the table is there, whatever becomes of the figure
        path = exact_report.plot(self.arguments, self.data, results, self.key)
        print(f"\nlogs in {self.arguments.output_path}, figure {path}")


def choice_of(config: Config) -> int:
    """Returns how many training samples choose the ridge of a kernel machine."""
    return config.ridge_size or regression.CHOICE


class KernelGrid(ExactGrid):
    """The networks are at infinite width."""

    def widths(self) -> list:
        """Returns what stands for the width of a kernel machine in the logs."""
        return [WIDTHLESS]

    def settings(self, model: str) -> dict:
        """Returns the settings of a kernel machine, with its kernel."""
        # the kernel of every model, and not of a match alone
        return super().settings(model) | {"match": self.arguments.match}

    def configs(self) -> list[Config]:
        """Returns the Config of each run, with how many samples choose its ridge."""
        return [replace(config, ridge_size=self._ridge_size(config)) for config in super().configs()]

    def _ridge_size(self, config: Config) -> int:
        """Returns the setting of a run, 0 for `CHOICE`, as in older logs, and for a single ridge."""
        if len(self.ridges(regression.RIDGES)) == 1:
            return 0
        size = self.arguments.ridge_size or regression.default_choice(self._sizes(config)[0])
        return 0 if size == regression.CHOICE else size

    def cost(self, config: Config) -> float:
        """Estimates what forming and factorising the kernel take."""
        n, _, p = self._sizes(config)
        pair = 1000 * p if self.convolutional(config.model) else p  # each pixel of each pair is an equation of its own
        return n * n * (n / 3 + pair)

    def _sizes(self, config: Config) -> tuple[int, int, int]:
        """Returns the numbers of training and of test samples of the run, and their dimension."""
        data = self.data_of(config.model)
        return config.train_size or len(data.X_train), len(data.X_test), data.X_train[0].numel()

    def plan(self, config: Config, size: int) -> Plan:
        """Settles how the run fits into memory, shared by `size` ranks; ValueError where it does not."""
        n, m, p = self._sizes(config)
        loaded = 4 * (len(self.data.X_train) + m) * p
        memory = self.arguments.memory or 0.9 * (available() or math.inf) + loaded
        return plan(n, m, p, memory, loaded, size, choice_of(config))

    def check_memory(self, configs: list[Config], device: torch.device) -> None:
        """Raises ValueError where a kernel that is still to be made fits neither memory nor disk."""
        a = self.arguments
        if a.processes and not a.memory:  # as much for each, whatever the others have taken when it begins
            a.memory = 0.9 * (available() or math.inf) / a.processes
        for config in configs:
            if not (a.resume and finished(config, a.output_path)):
                self.plan(config, ranks()[1] if a.together else 1)

    def works_on(self, config: Config, device: torch.device, team: Team) -> torch.device:
        """Returns the GPU, if there is one that the kernel fits into. A kernel on disk or of ranks is the CPU's."""
        if device.type == "cpu" or team.size > 1 or not self.plan(config, 1).in_memory:
            return torch.device("cpu")
        try:
            there = plan(*self._sizes(config), 0.9 * (available(device) or math.inf), choice=choice_of(config))
        except ValueError:
            return torch.device("cpu")
        return device if there.in_memory else torch.device("cpu")

    def solve(self, config: Config, device: torch.device, team: Team) -> tuple[dict, torch.Tensor]:
        """Fits the kernel machine of the run."""
        a = self.arguments
        files = Path(a.save_path) / f"inf_{config.label}_{config.dataset}_seed{config.seed}_{config.key}"
        if not a.resume:  # what a killed run has left
            shared = ("factor", "json") if team.rank == 0 else ()
            for end in (f"rank{team.rank}.kernel", f"rank{team.rank}.json", *shared):
                Path(f"{files}.{end}").unlink(missing_ok=True)
        d, ridges = self.data_of(config.model), self.ridges(regression.RIDGES)
        samples = Samples(*self.samples(config), d.X_test, d.y_test, d.n_classes)
        where = self.works_on(config, device, team)
        memory = self.plan(config, team.size)
        settings = Settings(a.match, ridges, memory, files, config.key, team, where, choice_of(config))
        return run_machine(self.networks[config.model, config.depth], samples, settings)


class RidgeGrid(ExactGrid):
    """The networks have finite width and their best readout."""

    def cost(self, config: Config) -> float:
        """Estimates what features and normal equations take, in multiplications."""
        if own := self.convolutional(config.model):
            return own.cost(config)
        n, m, p = config.train_size or len(self.data.X_train), int(config.dim), self.data.X_train.shape[1]
        return (n + len(self.data.X_test)) * m * (p + m * (13 if config.model in DEQS else 1)) + n * m * m

    def memory(self, config: Config) -> dict[str, int]:
        """Counts the bytes of the weights and of the normal equations."""
        if own := self.convolutional(config.model):
            return own.memory(config)
        m, p = int(config.dim), self.data.X_train.shape[1]
        squares = len([*self.networks[config.model, config.depth].parameters()]) - 2
        # the sums of the two parts and of all samples, and the matrix that is factorised
        return {"weights": 4 * (m * (p + self.data.n_classes) + squares * m * m), "normal equations": 5 * 8 * m * m}

    def solve(self, config: Config, device: torch.device, team: Team) -> tuple[dict, torch.Tensor]:
        """Solves the readout of the run from its normal equations."""
        model = self.network(config.model, int(config.dim), config.seed, config.depth).to(device)
        X, y = self.samples(config)
        ridges = self.ridges(ridge_features.RIDGES)
        readout, table = ridge_features.solve(model, X, y, self.data.n_classes, ridges, device)
        prediction = readout.predict(model, self.data_of(config.model).X_test, device)
        scores = scores_of(prediction, self.data.y_test)
        return (
            {f"test_{name}": value for name, value in scores.items()}
            | {
                "ridge": readout.ridge,
                "noise": readout.noise,
                "scale2": readout.scale2,
                "log_evidence": readout.log_evidence,
                "ridge_table": table,
                "train_size": len(X),
            },
            prediction.mean.argmax(1),
        )


GRIDS = STEPPED | {"kernel": KernelGrid, "ridge": RidgeGrid}
