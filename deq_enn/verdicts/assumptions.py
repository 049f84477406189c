"""What a verdict is asked about: input that cannot be used is refused, and the theory's assumptions are tested.

`check_deq`, `check_data` and `check_request` say in one line what is wrong with the input. `applicability` says whether
the theory applies to this DEQ and these data, each assumption as a number beside the value that it should have.

The theory holds for a Gaussian mixture in many dimensions: squared norms concentrate about tau_0^2, and two samples are
nearly orthogonal. For white Gaussian samples of dimension p, |x|^2/tau_0^2 has standard deviation sqrt(2/p), and the
cosines are 1/sqrt(p) root mean square. We call 2/spread^2 the effective dimension of data whose squared norms spread by
`spread`.
"""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from deq_enn.kernels.sample_scales import implicit_scales
from deq_enn.theory.activations import Activation
from deq_enn.theory.equilibrium import as_tensor, check_assumptions, check_sigma_a2, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.random import generator

LEAST = 50  # samples, the fewest that a verdict can rest on
MOST_SPREAD = 2.0  # times the spread of Gaussian data, beyond which an assumption is said to fail
MOST_OFF_SCALE = 0.1  # relative difference of the mean squared norm and tau_0^2, beyond which we say so


# ---------------------------------------------------------------------------------------------------------------
# what can be used


def check_request(
    budget: float = 60.0,
    tolerance: float = 0.5,
    width: int | None = None,
    decide_on: str = "draw",
    risk: float = 0.1,
    seen: float | None = None,
    seed: int = 0,
) -> None:
    """Refuses a budget, tolerance, width, `decide_on`, risk, `seen` or seed that means nothing, by a ValueError."""
    if decide_on not in ("draw", "mean"):
        raise ValueError(f"decide_on must be 'draw' or 'mean', got {decide_on!r}")
    numbers = {"budget (in seconds)": budget, "tolerance": tolerance, "risk": risk}
    for name, value in numbers.items():
        if not isinstance(value, Real):
            raise ValueError(f"{name} must be a number, got {value!r}")
    if not (budget > 0 and tolerance > 0 and math.isfinite(budget + tolerance)):
        raise ValueError(f"budget and tolerance must be positive and finite, got {budget} and {tolerance}")
    if not 0 < risk < 0.5:
        raise ValueError(f"risk must be between 0 and 0.5, a probability, got {risk}")
    _check_whole("width", 1 if width is None else width, 1)
    _check_whole("seed", seed, 0)
    if seen is not None and not seen > 0:
        raise ValueError(f"seen, the samples that the DEQ passed in its training, must be positive, got {seen}")


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"the {name} must be a whole number from {least} on, got {value}")


def check_deq(deq: object) -> None:
    """Refuses what is not a DEQ of this project at initialisation, by a ValueError."""
    missing = [name for name in ("activation", "sigma_a2", "tau0", "A", "B") if not hasattr(deq, name)]
    if missing:
        raise ValueError(
            f"{type(deq).__name__} is not a DEQ of the form z = phi(sigma_a A z + sigma_b B x)/sqrt(m): "
            f"it has no {', '.join(missing)}"
        )


def tensor_of(values: Any, name: str) -> torch.Tensor:
    """Returns anything that numpy takes for an array of numbers as a tensor; ValueError for anything else."""
    if isinstance(values, torch.Tensor):
        return values
    try:
        array = np.asarray(values)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
        return as_tensor(array)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers ({' '.join(str(error).split())[:100]})") from None


def check_data(X: Any, y: Any, p: int) -> tuple[torch.Tensor, torch.Tensor | None, int | None]:
    """Returns X as float32 (n, p), the labels as 0 .. classes - 1 or None, and the number of classes or None.

    Labels are integers or strings, and are numbered in their sorted order. Raises ValueError with what is wrong.
    """
    X = _checked_samples(tensor_of(X, "X"), p)
    if y is None:
        return X, None, None
    strings = None if isinstance(y, torch.Tensor) else np.asarray(y)
    if strings is not None and _are_strings(strings):
        y = np.unique(strings, return_inverse=True)[1].reshape(strings.shape)
    values, y = integer_labels(y, len(X)).unique(return_inverse=True)
    if len(values) < 2:
        only = int(values[0]) if strings is None else strings.flat[0]
        raise ValueError(
            f"all labels are {only}: a verdict on accuracy needs at least two classes; give "
            "y=None for one on kernels alone"
        )
    return X, y, len(values)


def names_of_classes(y: Any) -> tuple[int | str, ...] | None:
    """Returns what the labels are called in the order in which `check_data` numbers them; None for 0, 1, ... alone."""
    if y is None:
        return None
    labels = y.cpu().numpy() if isinstance(y, torch.Tensor) else np.asarray(y)
    names = np.unique(labels).tolist()
    names = tuple(names) if _are_strings(labels) else tuple(int(name) for name in names)
    return None if names == tuple(range(len(names))) else names


def _are_strings(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "USO" and all(isinstance(label, str) for label in labels.flat)


def integer_labels(y: Any, n: int) -> torch.Tensor:
    """Returns the labels of n rows, as they are, in int64 (n,); ValueError where they are not integers."""
    y = tensor_of(y, "y")
    if y.shape == (n, 1):
        y = y[:, 0]
    if y.shape != (n,):
        raise ValueError(f"y must have one label a row of X, ({n},); got shape {tuple(y.shape)}")
    if y.is_complex() or y.is_floating_point() and not (y.isfinite().all() and (y == y.round()).all()):
        raise ValueError("the labels y must be integers")
    return y.long().cpu()


def check_repeated(y: torch.Tensor) -> None:
    """Refuses labels of which most are seen once, by a ValueError: no network can learn one and be tried on it."""
    counts = y.unique(return_counts=True)[1]
    once = int((counts == 1).sum())
    if 2 * once > len(y):
        raise ValueError(
            f"{once} of the {len(y)} labels are seen once, so that no accuracy can be measured; y must be classes, not "
            "numbers of rows or targets of a regression. Leave the labels out (y=None) for a verdict on kernels alone"
        )


def check_held(held: Any) -> None:
    """Refuses samples held out that are not a pair of samples and labels, by a ValueError."""
    if held is not None and not (isinstance(held, (tuple, list)) and len(held) == 2):
        shape = getattr(held, "shape", None)
        got = type(held).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
        raise ValueError(f"held must be a pair (X_test, y_test), or (X_test, None) without labels; got {got}")


def _checked_samples(X, p):
    if X.ndim != 2 or X.shape[1] != p:
        raise ValueError(f"X must be an (n, {p}) matrix, as the DEQ's B has {p} columns; got shape {tuple(X.shape)}")
    if len(X) < LEAST:
        raise ValueError(f"{len(X)} samples are too few to say anything: at least {LEAST} are needed")
    X = X.detach().to("cpu", torch.float32)
    for start, rows in zip(range(0, len(X), 4096), X.split(4096)):
        if not rows.isfinite().all():
            bad = start + int((~rows.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"X has NaN or infinite entries, first in row {bad}")
    return X


# ---------------------------------------------------------------------------------------------------------------
# whether the theory applies


def concentration(X: torch.Tensor, tau0: float, seed: int = 0) -> dict:
    """Returns how the norms and cosines of the rows of X (n, p) spread, beside those of white Gaussian samples.

    Returns
    -------
    norm_spread, norm_mean, norm_farthest : standard deviation, mean and largest size of |x|^2/tau_0^2 - 1.
    cosine, cosine_largest : root mean square and largest size of the cosines of two samples.
    gaussian : the same numbers for n white Gaussian samples of dimension p, drawn with this seed.
    dimensions : 2/norm_spread^2, the dimension of the Gaussian whose norms spread as much.
    """
    X = X.double()
    white = torch.randn(X.shape, dtype=torch.float64, generator=generator("white", seed)) / math.sqrt(X.shape[1])
    own, gaussian = _spread(X / tau0), _spread(white)
    return own | {"dimensions": 2 / max(own["norm_spread"], 1e-12) ** 2, "gaussian": gaussian}


def _spread(X):
    norms2 = X.square().sum(1)
    U = X[norms2 > 0] / norms2[norms2 > 0].sqrt()[:, None]
    cosines = U @ U.T
    cosines.fill_diagonal_(0)
    n = len(U)
    chi = norms2 - 1
    return {
        "norm_mean": chi.mean().item(),
        "norm_spread": chi.std().item(),
        "norm_farthest": chi.abs().max().item(),
        "cosine": math.sqrt(cosines.square().sum().item() / (n * (n - 1))),
        "cosine_largest": cosines.abs().max().item(),
    }


def stability(activation: Activation, sigma_a2: float, tau0: float, norms2: np.ndarray) -> dict:
    """Returns whether the equilibrium exists and is stable, at the scale tau_0 and at each sample's own scale.

    norms2 : (n,) positive squared norms.

    Returns
    -------
    tau : tau_*.
    growth : sigma_a^2 E[phi'^2] at tau_*. The equilibrium is stable where it is below 1.
    growth_largest : the same at the sample where it is largest.
    lipschitz : 2 sigma_a L. Where it is below 1 the equilibrium exists and is unique, whatever the sample.

    Raises
    ------
    ValueError : there is no stable equilibrium.
    """
    check_sigma_a2(sigma_a2)
    tau = get_tau(activation, sigma_a2, tau0)
    moments = gaussian_moments(activation, tau)
    scales = implicit_scales(activation, sigma_a2, norms2, moments.mean)
    assert activation.lipschitz is not None  # an Activation that was not given it has computed it
    return {
        "tau": tau,
        "growth": sigma_a2 * moments.d1_sq,
        "growth_largest": sigma_a2 * float(scales.d1_sq.max()),
        "lipschitz": 2 * math.sqrt(sigma_a2) * activation.lipschitz,
    }


def applicability(activation: Activation, sigma_a2: float, tau0: float, X: torch.Tensor, seed: int = 0) -> dict:
    """Returns `concentration` and `stability`, and under "fails" a sentence for each assumption that does not hold.

    Parameters
    ----------
    tau0 : the scale that the DEQ is centred at.
    X : (n, p); a subsample of one or two thousand is enough.
    """
    norms2 = X.double().square().sum(1)
    c, p = concentration(X, tau0, seed), X.shape[1]
    own = {"concentration": c, "stability": stability(activation, sigma_a2, tau0, norms2[norms2 > 0].numpy())}
    fails = check_assumptions(activation, sigma_a2, tau0)
    if c["norm_spread"] > MOST_SPREAD * c["gaussian"]["norm_spread"]:
        fails.append(
            f"the squared norms do not concentrate: they spread by {c['norm_spread']:.2g} of tau_0^2, those "
            f"of Gaussian data of p = {p} by {c['gaussian']['norm_spread']:.2g}; as much as in "
            f"{max(c['dimensions'], 1):.0f} dimensions"
        )
    if c["cosine"] > MOST_SPREAD * c["gaussian"]["cosine"]:
        fails.append(
            f"two samples are not nearly orthogonal: their cosine is {c['cosine']:.2g} (root mean square), "
            f"that of Gaussian data of p = {p} {c['gaussian']['cosine']:.2g}"
        )
    if abs(c["norm_mean"]) > MOST_OFF_SCALE:
        fails.append(
            f"the data's mean squared norm is {1 + c['norm_mean']:.3g} times the tau_0^2 that the DEQ is centred at"
        )
    return own | {"fails": fails}
