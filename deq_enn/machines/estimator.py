"""A kernel machine has the conventions of scikit-learn's classifiers, which need not be installed.

    KernelMachine(activation="tanh", sigma_a2=0.2).fit(X, y).predict(X_new)

Labels may be anything that numpy sorts, such as strings.

Two of scikit-learn's 55 checks of an estimator ask more than a kernel machine gives by itself. They are
`check_decision_proba_consistency` and `check_methods_subset_invariance`, and they pass. Of two classes the decision
function is the log odds, since the probabilities of a Gaussian process depend on its variance too. Below 2,500 samples
no prediction depends on the batch.
"""

import math
import sys
import warnings
from dataclasses import dataclass
from importlib import import_module
from numbers import Integral
from typing import Any

import numpy as np
import torch

from deq_enn.kernels.blocks import KernelTiles
from deq_enn.machines.block_rows import HEIGHT, Layout, MemoryRows, form
from deq_enn.machines.regression import RIDGES, Machine, Prediction, choose_ridge, fit, mean_diagonal, one_hot_targets
from deq_enn.machines.run import INTERPOLATED, float32_blocks, subset
from deq_enn.machines.scores import class_probabilities

CPU = torch.device("cpu")  # place of all that a machine holds, whatever torch's default device is
LEAST = 5  # samples from which on a ridge can be chosen
PARAMETERS = "network", "layers", "activation", "sigma_a2", "kernel", "ridge", "ridge_size"


class NotFitted(ValueError, AttributeError):
    """The machine has not been fitted; it is both kinds of error, as scikit-learn's is."""


@dataclass(frozen=True)
class _DEQ:
    activation: Any
    sigma_a2: float
    tau0: float


@dataclass(frozen=True)
class _Layers:
    layers: Any
    input_scale: float = 1.0


class KernelMachine:
    """This is a classifier by kernel ridge regression with the exact kernel of an infinitely wide network.

    Parameters
    ----------
    network : a DEQ or an explicit network of this package, of any width, whose images are rows; or instead of it
    layers : activations of an explicit network; or
    activation, sigma_a2 : of a DEQ. An activation is an `Activation`, a name of the registry, a torch function or
        module, here as in `layers`. Samples are taken as they are: bring them to a mean squared norm of about 1.
    kernel : "ck" (a trained readout) or "ntk" (all weights trained).
    ridge : a multiple of the kernel's mean diagonal, or "auto", chosen on training samples.
    ridge_size : of these the first so many choose it; the last fifth of them is predicted by the others. None: a third
        of them, or 8,000 where that is more.

    Attributes
    ----------
    classes_ : the sorted labels. n_features_in_ : entries of a sample. machine_ : the fitted `regression.Machine`.
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        network: Any = None,
        *,
        layers: Any = None,
        activation: Any = None,
        sigma_a2: float = 0.2,
        kernel: str = "ck",
        ridge: float | str = "auto",
        ridge_size: int | None = None,
    ):
        self.network, self.layers, self.activation = network, layers, activation
        self.sigma_a2, self.kernel, self.ridge, self.ridge_size = sigma_a2, kernel, ridge, ridge_size

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the parameters by name."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **parameters: Any) -> "KernelMachine":
        """Sets some of the parameters, and returns the machine."""
        for name, value in parameters.items():
            if name not in PARAMETERS:
                raise ValueError(f"KernelMachine has no parameter {name!r}: it has {', '.join(PARAMETERS)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        """Returns what scikit-learn asks of an estimator; it alone calls this, and brings the form of the answer."""
        utils = import_module("sklearn.utils")
        return utils.Tags(
            estimator_type=self._estimator_type,
            target_tags=utils.TargetTags(required=True),
            classifier_tags=utils.ClassifierTags(),
            input_tags=utils.InputTags(),
        )

    def fit(self, X: Any, y: Any) -> "KernelMachine":
        """Fits the machine to samples X (n, p) with labels y (n,), and returns it.

        Raises
        ------
        ValueError : parameters, samples or labels that cannot be used.
        """
        if self.kernel not in ("ck", "ntk"):
            raise ValueError(f"kernel must be 'ck' or 'ntk', got {self.kernel!r}")
        X = _samples(X)
        labels = _labels(y, len(X))
        classes, index = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError("a classifier needs at least two classes, got one class")
        self._check_choice(len(X))
        with CPU:
            order = subset(len(X), len(X), 0)  # the ridge is chosen on the first rows
            rows = X[order]
            machine = self._fitted(rows, torch.from_numpy(index)[order], len(classes))
        self.machine_, self.X_, self.n_features_in_, self.classes_ = machine, rows, rows.shape[1], classes
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns the predicted targets (m, c); of two classes the log odds of the second (m,)."""
        prediction = self._predicted(X)
        if len(self.classes_) > 2:
            return prediction.mean.numpy()
        log_p = class_probabilities(prediction)
        return (log_p[:, 1] - log_p[:, 0]).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns the probabilities of the classes (m, c), under the predictive distribution of a Gaussian process."""
        return class_probabilities(self._predicted(X)).exp().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Returns the label (m,) of the largest predicted target."""
        largest = self._predicted(X).mean.argmax(1)
        return self.classes_[largest.numpy()]

    def score(self, X: Any, y: Any) -> float:
        """Returns the accuracy on samples with these labels."""
        predicted = self.predict(X)
        return float((predicted == _labels(y, len(predicted))).mean())

    def _model(self, X: torch.Tensor) -> Any:
        """Returns the network whose kernel is meant, for training samples X."""
        given = [value for value in (self.network, self.layers, self.activation) if value is not None]
        if len(given) != 1:
            raise ValueError("give one of network, layers and activation")
        if self.network is not None:
            if not (hasattr(self.network, "input_scale") or hasattr(self.network, "tau0")):
                raise ValueError(
                    f"{type(self.network).__name__} is no DEQ or explicit network as this package draws them"
                )
            return self.network
        if self.layers is not None:
            return _Layers(tuple(self.layers))
        return _DEQ(self.activation, self.sigma_a2, X.square().sum(1).mean().sqrt().item())

    def _blocks(self, X: torch.Tensor, other: torch.Tensor | None = None) -> KernelTiles:
        """Returns the kernel of training samples X, or between them and others."""
        model = self._model(X)
        if shape := getattr(model, "image_shape", None):
            if X.shape[1] != math.prod(shape):
                raise ValueError(
                    f"X must have rows of {math.prod(shape)} entries, an image {shape} each; got {X.shape[1]}"
                )
            X, other = X.view(-1, *shape), None if other is None else other.view(-1, *shape)
        return float32_blocks(model, X, other)

    def _check_choice(self, n: int) -> None:
        """Raises ValueError where n samples, or those of them that may choose, are too few to choose a ridge."""
        size = self.ridge_size
        if self.ridge != "auto":
            return
        if n < LEAST:
            raise ValueError(f"a ridge is chosen on at least {LEAST} samples, got {n}: give ridge=...")
        if size is not None and (not isinstance(size, Integral) or size < LEAST):
            raise ValueError(f"ridge_size must be None or an integer of at least {LEAST}, got {size!r}")

    def _fitted(self, X: torch.Tensor, labels: torch.Tensor, classes: int) -> Machine:
        blocks = self._blocks(X)
        rows = MemoryRows(Layout(len(X), HEIGHT))
        form(blocks, self.kernel, rows)
        ridge = self.ridge
        if isinstance(ridge, str):
            if ridge != "auto":
                raise ValueError(f"ridge must be 'auto' or a number, got {ridge!r}")
            targets, unit = one_hot_targets(labels, classes)[0], mean_diagonal(blocks, self.kernel)
            ridge, _ = choose_ridge(rows, targets, unit, RIDGES, self.ridge_size)
        return fit(blocks, rows, labels, classes, self.kernel, ridge)

    def _predicted(self, X: Any) -> Prediction:
        if not hasattr(self, "machine_"):
            raise _not_fitted("this KernelMachine is not fitted yet: call fit(X, y) first")
        X = _samples(X)
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but KernelMachine is expecting {self.n_features_in_} features as input"
            )
        with CPU:
            return self.machine_.predict(self._blocks(self.X_, X), double=len(self.X_) < INTERPOLATED)


def _array(values: Any) -> np.ndarray:
    """Returns an array, also of a tensor that has a graph, is on a GPU, or is of floats that NumPy lacks."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values)


def _labels(y: Any, n: int) -> np.ndarray:
    if y is None:
        raise ValueError("KernelMachine requires y to be passed, but the target y is None")
    labels = _array(y)
    if labels.shape == (n, 1):
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected: it is taken as one label a row",
            _theirs("DataConversionWarning") or UserWarning,
        )
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise ValueError(f"y must have one label a row of X, ({n},); got shape {labels.shape}")
    if labels.dtype.kind == "f" and (labels != np.floor(labels)).any():  # NaN too
        raise ValueError("Unknown label type: y has continuous values, and a classifier needs classes")
    return labels


def _theirs(name: str) -> Any:
    """Returns an exception of scikit-learn's, None where that is not loaded."""
    return getattr(sys.modules.get("sklearn.exceptions"), name, None)


def _not_fitted(message: str) -> NotFitted:
    """Returns the error, which is also scikit-learn's own where that is loaded."""
    theirs = _theirs("NotFittedError")
    return type("NotFitted", (NotFitted, theirs), {})(message) if theirs else NotFitted(message)


def _samples(X: Any) -> torch.Tensor:
    if hasattr(X, "toarray"):
        raise ValueError("X is sparse, and sparse input is not supported: give X.toarray()")
    array = _array(X)
    if array.ndim != 2:
        raise ValueError(f"X must be an (n, p) matrix, got shape {array.shape}. Reshape your data")
    for size, what in zip(array.shape, ("sample(s)", "feature(s)")):
        if not size:
            raise ValueError(f"X has 0 {what} (shape={array.shape}) while a minimum of 1 is required.")
    if np.iscomplexobj(array):
        raise ValueError("Complex data not supported: X must have real entries")
    samples = torch.from_numpy(np.array(array, dtype=np.float64))
    if not samples.isfinite().all():
        raise ValueError("X has NaN or infinite entries")
    return samples
