"""A softmax readout is trained on the features of a network whose hidden weights stay as drawn.

This is the regime of the conjugate kernel. The features are computed once. Readouts of several learning rates are
trained side by side: a step is bound by the reading of the features, and one reading serves them all.
"""

import copy
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from tqdm import tqdm

from deq_enn.data.datasets import Dataset
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.networks.fixed_point import FixedPoint
from deq_enn.training.optimizers import make_optimizer
from deq_enn.training.run_files import Config
from deq_enn.utils.devices import FastProducts, product
from deq_enn.utils.threads import one_thread
from deq_enn.utils.tiles import for_each

Device = torch.device | str
ROWS = 1024  # samples that readouts side by side are evaluated on at once


def extract_features(
    model: DEQ | ENN, X: torch.Tensor, device: Device = "cpu", batch_size: int = 512
) -> tuple[torch.Tensor, int]:
    """Returns features (n, m) of X (n, p), and the most solver iterations that a batch took.

    They are computed in batches that stay in cache, each on a thread of its own: threads that share a product wait for
    one another, and where another program keeps a core busy that takes far longer than the product. The feature maps of
    convolutions are too large for a batch a thread, and have all threads for each.
    """
    out = torch.empty(len(X), model.readout.in_features, device=device)
    iterations = [0]

    def features_of(rows: slice) -> None:
        network, equilibrium = copy.copy(model), getattr(model, "fixed_point", None)  # the same weights
        if isinstance(equilibrium, FixedPoint):
            equilibrium = FixedPoint(equilibrium.solver)  # it counts the iterations of this batch alone
            vars(network)["fixed_point"] = equilibrium
        with FastProducts():
            out[rows] = network.features(X[rows].to(device))
        iterations.append(equilibrium.iterations if isinstance(equilibrium, FixedPoint) else 0)
        bar.update()

    batches = [(slice(start, start + batch_size),) for start in range(0, len(X), batch_size)]
    with tqdm(total=len(batches), desc="features", leave=False, disable=None, delay=1) as bar, torch.no_grad():
        if any(weight.ndim > 2 for weight in model.parameters()):
            for batch in batches:
                features_of(*batch)
        else:
            for_each(features_of, batches, torch.device(device))
    return out, max(iterations)


class ReadoutTask:
    """A softmax readout, without bias and from zero, on fixed features."""

    def __init__(self, model: DEQ | ENN, data: Dataset, config: Config, device: Device):
        start = time.perf_counter()
        self.train, self.iterations = extract_features(model, data.X_train, device)
        self.test, _ = extract_features(model, data.X_test, device)
        self.seconds = time.perf_counter() - start
        self.y_train, self.y_test = data.y_train.to(device), data.y_test.to(device)
        self.weight = torch.nn.Parameter(torch.zeros(data.n_classes, self.train.shape[1], device=device))
        self.begin(config)
        self.buffer = torch.empty(config.batch_size, self.train.shape[1], device=device)

    def begin(self, config: Config) -> None:
        """Puts the readout and its optimizer where training starts from; `config` may have another learning rate."""
        self.config = config
        with torch.no_grad():
            self.weight.zero_()
        self.optimizer = make_optimizer([self.weight], config)

    def state(self) -> dict:
        """Returns the readout and the optimizer's state."""
        return {"weight": self.weight.detach(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict) -> None:
        """Takes the readout and the optimizer's state from a checkpoint."""
        with torch.no_grad():
            self.weight.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])

    @one_thread()
    @torch.no_grad()
    def epoch(self, order: torch.Tensor) -> dict:
        """Passes over the samples once in the given order. Loss and accuracy are those seen on the way."""
        labels = self.y_train[order][None]
        log_likelihood = torch.empty(1, len(order), device=order.device)
        predicted = torch.empty(len(order), dtype=torch.int64, device=order.device)
        minus_one = torch.full((1, self.config.batch_size), -1.0, device=order.device)
        for start in range(0, len(order), self.config.batch_size):
            rows = slice(start, min(start + self.config.batch_size, len(order)))
            size = rows.stop - rows.start
            x = torch.index_select(self.train, 0, order[rows], out=self.buffer[:size])
            # the samples come last: torch is slow at a softmax over ten neighbours, MKL at a product with ten columns
            log_p = product(self.weight, x).log_softmax(0)
            torch.argmax(log_p.T.contiguous(), 1, out=predicted[rows])
            log_likelihood[:, rows] = log_p.gather(0, labels[:, rows])
            # the gradient of the mean cross-entropy of a linear model, written out: (softmax - onehot) x / n
            delta = log_p.exp_().scatter_add_(0, labels[:, rows], minus_one[:, :size])
            self.weight.grad = product(delta, x.T).div_(size)
            self.optimizer.step()
        return {
            "train_loss": -log_likelihood.double().mean().item(),
            "train_accuracy": (predicted == labels[0]).sum().item() / len(order),
        }

    @one_thread()
    @torch.no_grad()
    def evaluate(self) -> dict:
        """Returns the loss and the accuracy on the test samples."""
        logits = product(self.test, self.weight)
        return {
            "test_loss": F.cross_entropy(logits, self.y_test).item(),
            "test_accuracy": (logits.argmax(1) == self.y_test).sum().item() / len(logits),
        }


class Readouts:
    """These are softmax readouts without bias and from zero, one for each learning rate, on the features of a task.

    Parameters
    ----------
    task : whose training features, labels and optimizer these are; its own readout is left alone.
    rates : of the readouts.
    """

    def __init__(self, task: ReadoutTask, rates: list[float]):
        self.task = task
        classes, width = task.weight.shape
        self.shape = len(rates), classes
        # the readouts lie in one matrix: one product has the logits of all, and one has their gradients
        self.weights = task.weight.new_zeros(len(rates) * classes, width).detach()
        self.gradients = torch.empty_like(self.weights)
        self.buffer = torch.empty_like(task.buffer)
        parameters = [torch.nn.Parameter(weight) for weight in self.weights.split(classes)]
        for parameter, gradient in zip(parameters, self.gradients.split(classes)):
            parameter.grad = gradient
        groups = [{"params": [parameter], "lr": rate} for parameter, rate in zip(parameters, rates)]
        self.optimizer = make_optimizer(groups, replace(task.config, lr=rates[0]))

    @one_thread()
    @torch.no_grad()
    def epoch(self, order: torch.Tensor) -> torch.Tensor:
        """Passes over the training samples of these numbers once; returns which readouts (rates,) are still finite."""
        task, size = self.task, self.task.config.batch_size
        for index in order.split(size):
            x = torch.index_select(task.train, 0, index, out=self.buffer[: len(index)])
            labels = task.y_train[index].expand(self.shape[0], 1, -1)
            # the gradients of ReadoutTask.epoch
            p = product(self.weights, x).view(*self.shape, len(index)).softmax(1)
            p.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=p.dtype))
            torch.div(product(p.view(-1, len(index)), x.T), len(index), out=self.gradients)
            self.optimizer.step()
        return self.weights.view(self.shape[0], -1).isfinite().all(1)

    @one_thread()
    @torch.no_grad()
    def evaluate(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the accuracies (rates,) and the mean cross-entropies (rates,) on the training samples `rows`."""
        correct, loss = torch.zeros(2, self.shape[0], dtype=torch.float64, device=rows.device)
        for index in rows.split(ROWS):
            logits = product(self.task.train[index], self.weights).view(len(index), *self.shape).transpose(1, 2)
            y = self.task.y_train[index][:, None].expand(-1, self.shape[0])
            correct += (logits.argmax(1) == y).sum(0)
            loss += F.cross_entropy(logits, y, reduction="none").sum(0)
        return correct / len(rows), loss / len(rows)
