"""The flags ask for a grid of runs: models x widths x seeds, for each kind of training.

A grid knows what its networks are built with, trained by, and called in the logs. A kind of training is a class in a
table `GRIDS`, here or in exact_grid.py, and a row of default flags in flags.DEFAULTS; nothing else of main.py knows
which there are.
"""

import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import cast

import torch

from deq_enn.data.datasets import Dataset, load_dataset
from deq_enn.experiments.accuracy_report import entry, plot, print_rates, print_table, print_unconverged
from deq_enn.experiments.convolutions import Convolutions, named
from deq_enn.experiments.flags import SOLVING
from deq_enn.experiments.run_cost import cost
from deq_enn.names import CONVOLUTIONAL, DEPTHS, DEQS, GENERAL, PCDEQS
from deq_enn.networks.build import build_model
from deq_enn.networks.conv_deq import ConvNetwork
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.networks.pcdeq import WIDTHS, PcDEQNetwork, build_pcdeq
from deq_enn.theory.activations import Activation, load_activation
from deq_enn.theory.equilibrium import check_assumptions, estimate_tau0
from deq_enn.training.equilibria import prepared
from deq_enn.training.learning_rate import with_own_rate
from deq_enn.training.loop import run
from deq_enn.training.run_files import Config, Result, fingerprint, fingerprint_code, finished
from deq_enn.utils.devices import available, shown
from deq_enn.utils.files import sweep
from deq_enn.utils.team import Team

Network = DEQ | ENN | ConvNetwork | PcDEQNetwork


class Grid:
    """The grid has the paper's networks and those of --activation, of each width; those of free depth, of each depth.

    Attributes
    ----------
    data, tau0, key : the data set, its scale and its fingerprint, once `load` has been called.
    convolutions : the same of convolutional networks; None without such a network.
    networks : for each model and depth (0: as published), its network of width 1, which holds all that does not depend
        on width.
    theories : for each of these, by its name in tables, the scalars that are printed and logged.
    """

    def __init__(self, arguments: Namespace):
        self.arguments = arguments
        self.activation = load_activation(arguments.activation) if arguments.activation else None

    def load(self, device: torch.device) -> None:
        """Loads the data, and settles what depends on it. Raises ValueError where the data or its shape is wrong."""
        a = self.arguments
        self.data = load_dataset(
            self.dataset(), a.dataset_path, preset=a.preset, classes=a.classes, vgg_path=a.vgg_path, device=device
        )
        self.check_sizes(len(self.data.X_train))
        self.tau0, self.key = estimate_tau0(self.data.X_train), fingerprint(self.data)
        self.convolutions = None
        if own := named(a):
            assert self.activation is not None
            dense = len(own) < len(a.model)  # fully connected networks take the rows
            self.convolutions = Convolutions(a, self.activation, self.data, keep=dense)
            if not dense:
                self.data = self.convolutions.data
        self.networks = {
            (model, depth): self.network(model, 1, 0, depth)
            for model in a.model
            for depth in (a.depth if a.depth and model in DEPTHS else [0])
        }
        self.theories = {entry(*place): network.describe() for place, network in self.networks.items()}
        for name, theory in self.theories.items():
            if theory.get("gamma2") == 0:
                raise ValueError(f"{name}: the activation is constant at the scale of these data: it passes nothing on")

    def check_sizes(self, n: int) -> None:
        """Raises ValueError where the training set of n samples is too small for what was asked."""
        size = self.arguments.batch_size
        if size > n:
            raise ValueError(f"--batch_size {size} is larger than the training set of {n}")

    def convolutional(self, model: str) -> Convolutions | None:
        """Returns what a convolutional network needs; None for any other."""
        return self.convolutions if model in CONVOLUTIONAL else None

    def data_of(self, model: str) -> Dataset:
        """Returns the samples as the network takes them: rows, or images."""
        own = self.convolutional(model)
        return own.data if own else self.data

    def tau0_of(self, model: str) -> float:
        """Returns the scale of the samples as the network takes them."""
        own = self.convolutional(model)
        return own.tau0 if own else self.tau0

    def dataset(self) -> str:
        """Names the data set as `load_dataset` knows it."""
        return self.arguments.dataset

    def scales(self) -> dict[str, float]:
        """Returns the numbers, by name, that are printed of the data beside its size."""
        images = {"tau_0 of the images": self.convolutions.tau0} if self.convolutions else {}
        return {"tau_0": self.tau0, **images, "sigma_a^2": self.arguments.asquare}

    def network(self, model: str, dim: int, seed: int, depth: int = 0) -> Network:
        """Builds the network with its random weights; depth 0: as published."""
        a = self.arguments
        if own := self.convolutional(model):
            return own.network(model, dim, seed, depth)
        return build_model(
            model,
            self.data.X_train.shape[1],
            dim,
            self.data.n_classes,
            a.asquare,
            self.tau0,
            seed,
            self.activation,
            a.match,
            a.family,
            depth or None,
        )

    def settings(self, model: str) -> dict:
        """Returns the settings of a run's Config beside its data, model, width and seed."""
        a = self.arguments
        settings = {
            "train": a.train,
            "lr": a.lr,
            "epoch": a.epoch,
            "batch_size": a.batch_size,
            "opt": a.opt,
            "asquare": a.asquare,
        }
        if a.lr == "auto":
            settings |= {"lr": 0.0, "own_rate": True}
        if model in GENERAL + CONVOLUTIONAL:
            settings |= {"activation": a.activation, "code": fingerprint_code(a.activation)}
        if model in ("matched_enn", "matched_conv_enn"):
            settings |= {"match": a.match, "family": a.family}
        own = self.convolutional(model)
        return settings | own.settings() if own else settings

    def equilibrium(self, model: str, steps: int) -> dict:
        """Returns the settings of the model's equilibrium, stopped after so many steps, or solved for if they are 0."""
        a = self.arguments
        if steps or model not in DEQS + PCDEQS:
            return {"steps": steps}
        given = {name: getattr(a, name) or SOLVING[name] for name in ("solver", "max_steps", "solver_tol", "lenient")}
        return given | {"jacobian": "" if a.jacobian is None else f"{a.jacobian:g}"}

    def configs(self) -> list[Config]:
        """Returns the Config of each run of the grid."""
        a = self.arguments
        entries = [
            (model, depth, steps)
            for model, depth in self.networks
            for steps in (a.steps if a.steps and model in DEQS + PCDEQS else [0])
        ]
        return [
            Config(
                dataset=a.dataset,
                model=model,
                dim=dim,
                seed=seed,
                data=self.key,
                depth=depth,
                **self.settings(model),
                **self.equilibrium(model, steps),
            )
            for seed in a.seed
            for dim in a.dim
            for model, depth, steps in entries
        ]

    def warnings(self) -> list[str]:
        """Says which assumptions of the theory do not hold."""
        return [
            warning
            for (model, _), network in self.networks.items()
            if model in DEQS
            for warning in check_assumptions(
                cast(Activation, network.activation), self.arguments.asquare, self.tau0_of(model)
            )
        ]

    def memory(self, config: Config) -> dict[str, int]:
        """Counts the bytes that the run takes at least, by what takes them."""
        if own := self.convolutional(config.model):
            return own.memory(config)
        data, m = self.data, int(config.dim)
        # a first layer and a readout, and between them a square matrix for an equilibrium or for each further layer
        squares = len([*self.networks[config.model, config.depth].parameters()]) - 2
        weights = m * (data.X_train.shape[1] + data.n_classes) + squares * m * m
        if config.train == "readout":
            return {"weights": 4 * weights, "features": 4 * m * (len(data.X_train) + len(data.X_test))}
        return {
            "weights": 4 * weights,
            "gradients": 4 * weights,
            "optimizer": {"sgd": 0, "adam": 8}[config.opt] * weights,
            "features": 4 * m * config.batch_size * (config.steps + 1),  # of each step, to go back through it
        }

    def check_memory(self, configs: list[Config], device: torch.device) -> None:
        """Raises ValueError where runs that are still to be made cannot fit, before anything of them is allocated."""
        free = available(device)
        if free is None:
            return
        a, sizes = self.arguments, []
        where = "" if device.type == "cpu" else "of the GPU "
        for config in configs:
            if a.resume and finished(config, a.output_path):
                continue
            parts = self.memory(config)
            sizes.append(sum(parts.values()))
            if sizes[-1] > free:
                listed = ", ".join(f"{name} {shown(size)}" for name, size in parts.items() if size)
                raise ValueError(
                    f"--dim {config.dim}: {config.model} takes at least {shown(sizes[-1])} of memory "
                    f"({listed}), and {shown(free)} {where}are free: take a smaller width"
                )
        sharing = -(-(a.processes or 1) // (torch.cuda.device_count() if device.type == "cuda" else 1))
        together = sum(sorted(sizes)[-sharing:])
        if together > free:
            raise ValueError(
                f"--processes {a.processes}: the largest runs take at least {shown(together)} of memory at the same "
                f"time, and {shown(free)} {where}are free: take fewer processes"
            )

    def cost(self, config: Config) -> float:
        """Estimates the cost of a run, by which the longest is begun first (`run_cost.cost`)."""
        if own := self.convolutional(config.model):
            return own.cost(config)
        data = self.data
        return cost(config, len(data.X_train) + len(data.X_test), data.X_train.shape[1], data.n_classes)

    def train(self, config: Config, device: torch.device, team: Team | None = None) -> Result:
        """Does the run and writes its logs; a `team` of ranks shares it."""
        a, data = self.arguments, self.data_of(config.model)

        def make_model():
            return prepared(self.network(config.model, int(config.dim), config.seed, config.depth), config)

        task = None
        if config.own_rate:
            config, task = with_own_rate(config, data, make_model, a.output_path, a.save_path, device, a.resume, team)
        return run(config, data, make_model, a.output_path, a.save_path, device, a.resume, team, a.lengthen, task)

    def report(self, results: dict[Config, Result]) -> None:
        """Prints the table and draws the figure of the results, a `Result` for each configuration."""
        by_entry = {(entry(c.model, c.depth, c.steps), c.dim, c.seed): result for c, result in results.items()}
        print_table(self.arguments, by_entry)
        print_unconverged(by_entry)
        if self.arguments.lr == "auto":
            print_rates(self.arguments, results)
        sys.stdout.flush()  # in a pipe too the table is there, whatever becomes of the figure
        figure = Path(self.arguments.output_path) / f"accuracy_{self.arguments.dataset}.png"
        sweep(figure)
        plot(self.arguments, self.data, by_entry, figure)
        print(f"\nlogs in {self.arguments.output_path}, figure {figure}")


class PcDEQGrid(Grid):
    """The network is a positive concave DEQ on images, of its published width."""

    def __init__(self, arguments: Namespace):
        self.arguments = arguments
        self.activation = arguments.activation or ("tanh" if arguments.model[0][-1] == "1" else "sigmoid")

    def load(self, device: torch.device) -> None:
        """Loads the data; the width follows from its shape."""
        super().load(device)
        self.arguments.dim = [self.theories[self.arguments.model[0]]["widths"][-1]]

    def check_sizes(self, n: int) -> None:
        """Raises ValueError also where batches of one row are to be normalised."""
        super().check_sizes(n)
        if self.arguments.batch_size == 1 and self.arguments.model[0].startswith("linear"):
            raise ValueError(
                "--batch_size 1: batches of one sample have no variance to be normalised by; take 2 or more"
            )

    def dataset(self) -> str:
        """Names the data set, of CIFAR-10 its images."""
        given = self.arguments.dataset
        return "cifar10_images" if given == "cifar10" else given  # a convolution has no use for VGG16 features

    def scales(self) -> dict[str, float]:
        """Returns the scale of the data: a positive concave DEQ has no sigma_a^2."""
        return {"tau_0": self.tau0}

    def network(self, model: str, dim: int, seed: int, depth: int = 0) -> Network:
        """Builds the positive concave DEQ, whose width and depth its name and data determine."""
        p = self.data.X_train.shape[1]
        shape = {math.prod(shape): shape for shape in WIDTHS}.get(p, (p,))
        return build_pcdeq(model, self.activation, shape, self.data.n_classes, seed, self.arguments.aug)

    def warnings(self) -> list[str]:
        """Returns none: its equilibrium exists whatever the data."""
        return []

    def memory(self, config: Config) -> dict[str, int]:
        """Counts weights, gradients and the optimizer's state, the bytes that the run takes at least."""
        weights = self.theories[config.model]["weights"]
        return {"weights": 4 * weights, "gradients": 4 * weights, "optimizer": 8 * weights}

    def settings(self, model: str) -> dict:
        """Returns what determines a run of a positive concave DEQ beside its data, model, width and seed."""
        a = self.arguments
        return {
            "train": a.train,
            "lr": a.lr,
            "epoch": a.epoch,
            "batch_size": a.batch_size,
            "opt": "adamw",
            "weight_decay": a.weight_decay,
            "milestone": a.milestone,
            "aug": a.aug,
            "activation": self.activation,
            "precise_bn": a.precise_bn,
        }


GRIDS = {"readout": Grid, "full": Grid, "pcdeq": PcDEQGrid}
