"""This file computes the scales tau_0 of samples and tau_*, and checks the assumptions behind them.

Of images, tau_0 is that of what drives a pixel. A convolution keeps the size of the image: its kernel is k x k with k
odd, and around the image lie zeros ("zero") or the image again ("circular"). At infinite width it takes a kernel
between pixels to its mean over the k x k window, M, which divides by k^2 also where the window reaches over the border.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from deq_enn.names import PADDINGS
from deq_enn.theory.activations import Activation
from deq_enn.theory.brackets import root_between
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.theory.recognise import recognise

HUGE = 1e150  # Lipschitz constant whose square is a float still, as that of exp(x^2) is not


def as_tensor(values: Any) -> torch.Tensor:
    """Returns a tensor of an array of any strides and byte order, or of a list; a tensor is returned as it is.

    Raises
    ------
    ValueError : it does not hold numbers.
    """
    if isinstance(values, torch.Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"expected numbers, got an array of {array.dtype} and shape {array.shape}")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=False))


def estimate_tau0(X: torch.Tensor | np.ndarray) -> float:
    """Returns tau_0 = sqrt(mean squared row norm) of the data X (n, p), in O(n p) time without an (n, n) matrix."""
    X = as_tensor(X)
    if X.ndim != 2 or not len(X):
        raise ValueError(f"X must be a non-empty (n, p) matrix, got shape {tuple(X.shape)}")
    total = math.fsum(rows.double().square().sum().item() for rows in X.split(4096))
    if not math.isfinite(total):
        bad = (~X.isfinite().all(1)).nonzero()
        where = f"NaN or infinite entries, first in row {int(bad[0])}" if len(bad) else "entries whose squares overflow"
        raise ValueError(f"X has {where}")
    if not total > 0:
        raise ValueError("X is zero, which may be so after centring only")
    return math.sqrt(total / len(X))


def check_window(image_shape: Sequence[int], kernel_size: int, padding: str, name: str = "kernel_size") -> None:
    """Raises ValueError for a kernel size, which is called `name`, or padding that images (c, h, w) do not take."""
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"an image has the shape (channels, height, width), got {tuple(image_shape)}")
    if padding not in PADDINGS:
        raise ValueError(f"padding must be {' or '.join(PADDINGS)}, got {padding!r}")
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{name} must be an odd whole number, so that images keep their size, got {kernel_size!r}")
    if padding == "circular" and kernel_size > min(image_shape[1:]):
        raise ValueError(
            f"{name} = {kernel_size} is larger than the images of {' x '.join(map(str, image_shape[1:]))} pixels, "
            "which circular padding does not allow: take a smaller one, or padding 'zero'"
        )
    if kernel_size > 2 * max(image_shape[1:]) + 1:
        raise ValueError(
            f"{name} = {kernel_size} is a window of which most never meets the images of "
            f"{' x '.join(map(str, image_shape[1:]))} pixels: take at most {2 * max(image_shape[1:]) + 1}"
        )


def coverage(height: int, width: int, kernel_size: int, padding: str = "zero") -> torch.Tensor:
    """Returns in how many of its k^2 windows each pixel lies, divided by k^2, as (h, w) float64: M of a kernel of ones.

    It is 1 everywhere with circular padding, and less than 1 at the border with zeros.
    """
    ones = torch.ones(1, 1, height, width, dtype=torch.float64)
    if padding == "circular":
        return ones[0, 0]
    return avg_pool2d(ones, kernel_size, stride=1, padding=kernel_size // 2)[0, 0]


def estimate_image_tau0(images: torch.Tensor | np.ndarray, kernel_size: int = 3, padding: str = "zero") -> float:
    """Returns tau_0 of a convolutional DEQ on images (n, c, h, w), the root of the mean of M S_ii over all pixels.

    S_ii(p) = |x_i(p)|^2/c. So tau_0 is the root mean square of the entries, less what zeros at the border take away.

    Raises
    ------
    ValueError : no images, a kernel that they do not take, entries that are not finite, or images that are all zero.
    """
    images = as_tensor(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must have the shape (n, channels, height, width), got {tuple(images.shape)}")
    check_window(images.shape[1:], kernel_size, padding)
    height, width = images.shape[2:]
    weight = coverage(height, width, kernel_size, padding).to(images.device)
    total = math.fsum(
        (part.double().square().mean(1) * weight).mean((1, 2)).sum().item() for part in images.split(1024)
    )
    if not math.isfinite(total):
        bad = (~images.flatten(1).isfinite().all(1)).nonzero()
        where = (
            f"NaN or infinite entries, first in image {int(bad[0])}" if len(bad) else "entries whose squares overflow"
        )
        raise ValueError(f"the images have {where}")
    if not total > 0:
        raise ValueError("the images are zero, which may be so after centring only")
    return math.sqrt(total / len(images))


def check_sigma_a2(sigma_a2: float) -> None:
    """Raises ValueError for a weight variance outside (0, 1)."""
    if not 0 < sigma_a2 < 1:
        raise ValueError(f"sigma_a^2 must lie in (0, 1), got {sigma_a2}")


def check_stable(activation: Activation, sigma_a2: float, d1_sq: float, jumps: Sequence[float] = ()) -> None:
    """Refuses a DEQ whose equilibrium is not stable: `d1_sq`, E[f'^2] at its scale tau_*, must be below 1/sigma_a^2.

    A small change of the state grows by sigma_a^2 E[f'^2] with each application of a wide layer. From 1 on the
    iteration does not settle, and the tangent kernel is infinite. `jumps` : where f jumps, for the message.
    """
    if math.isinf(d1_sq):
        raise ValueError(
            f"E[f'^2] of {activation.name} is infinite, {jump_places(jumps)}: at no sigma_a^2 has the DEQ "
            "a stable equilibrium; take a continuous activation"
        )
    if sigma_a2 * d1_sq >= 1:
        raise ValueError(
            f"the DEQ of {activation.name} at sigma_a^2 = {sigma_a2:g} has no stable equilibrium: "
            f"sigma_a^2 E[phi'^2] = {sigma_a2 * d1_sq:.4g} must be below 1; take a smaller sigma_a^2"
        )


def jump_places(jumps: Sequence[float]) -> str:
    """Returns the clause of an error message that names the first places where a function jumps."""
    shown = ", ".join(f"{x:.6g}" for x in jumps[:3]) + (f" and {len(jumps) - 3} more places" if len(jumps) > 3 else "")
    return f"as it jumps at x = {shown}" if jumps else "as it jumps"


def get_tau(activation: Activation | str | Elementwise, sigma_a2: float, tau0: float) -> float:
    """Returns tau_*, the positive solution of tau^2 = sigma_a^2 Var[f(tau xi)] + sigma_b^2 tau_0^2 (before Theorem 1).

    The activation is an `Activation`, a name of the registry or a torch function. It is centred at tau_* itself, so
    that its second moment there is the variance of the given f. The equation is solved on a bracket to machine
    precision.

    Raises
    ------
    ValueError : sigma_a^2 outside (0, 1), tau_0 not positive, no fixed point below 1e8 max(tau_0, 1),
        or an activation whose moments `gaussian_moments` refuses.
    """
    activation = recognise(activation)
    check_sigma_a2(sigma_a2)
    if not (tau0 > 0 and math.isfinite(tau0)):
        raise ValueError(f"tau_0 must be positive and finite, got {tau0}")

    def excess(tau):
        return sigma_a2 * gaussian_moments(activation, tau).variance + (1 - sigma_a2) * tau0**2 - tau**2

    low = math.sqrt(1 - sigma_a2) * tau0
    slack = 1 - sigma_a2 * min(activation.lipschitz, HUGE) ** 2
    # Poincare: Var[f(tau xi)] <= L^2 tau^2, which bounds the fixed point where sigma_a^2 L^2 < 1
    high = low / math.sqrt(slack) * (1 + 1e-9) if slack > 0 else 1.1 * low
    while excess(high) > 0:
        low, high = high, 1.1 * high  # small steps: the excess may dip below 0 for a short while only
        if high > 1e8 * max(tau0, 1.0):
            raise ValueError(
                f"no tau_* exists for activation {activation.name} at sigma_a^2 = {sigma_a2}: "
                "sigma_a^2 Var[f(tau xi)] outgrows tau^2; take a smaller sigma_a^2"
            )
    return root_between(excess, low, high, xtol=1e-16 * low) if excess(low) > 0 else low


def check_assumptions(activation: Activation | str | Elementwise, sigma_a2: float, tau0: float = 1.0) -> list[str]:
    """Returns a sentence for each condition of the paper's Assumption (3) that fails; none if all hold."""
    activation, failed = recognise(activation), []
    moments = gaussian_moments(activation, get_tau(activation, sigma_a2, tau0))
    unbounded = moments.jumps or activation.lipschitz > HUGE
    lipschitz, curvature = math.inf if unbounded else activation.lipschitz, moments.sq_dd
    if 4 * sigma_a2 * lipschitz**2 >= 1:
        failed.append(
            f"sigma_a^2 = {sigma_a2:g} is not below 1/(4 L^2) = {1 / (4 * lipschitz**2):.4g} (L = "
            f"{lipschitz:.4g} for {activation.name}): the equilibrium need not exist or be unique"
        )
    if curvature > 0 and sigma_a2 >= 2 / curvature:
        failed.append(
            f"sigma_a^2 = {sigma_a2:g} is not below 2/E[(phi^2)''] = {2 / curvature:.4g} at tau_*: "
            "the diagonal of the kernel need not converge"
        )
    return failed
