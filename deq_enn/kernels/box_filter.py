"""The mean over a window of pixels, and the linear equation that it gives the tangent kernel of a convolutional DEQ.

Arrays have their pixels first, (h, w, ...), so that a shift by a pixel is a slice, and everything behind it is one
contiguous block. The window's sum is separable: two sums along an axis.

x = b + s M (D x) is solved by the Chebyshev semi-iteration (Golub & Varga, Numer. Math. 3, 1961). For D >= 0 the
operator s M D is similar to the symmetric s D^(1/2) M D^(1/2). Its eigenvalues lie between those of M times s max D,
which gives the two numbers that the iteration needs. It takes about half as many steps as plain iteration, and no inner
products.
"""

import math

import numpy as np
import torch

from deq_enn.utils.tiles import largest


class BoxFilter:
    """This is M, the mean over the k x k window about each pixel; what lies outside the image is 0 or wraps around.

    Parameters
    ----------
    shape : (h, w) of the images. size : k, odd.

    Attributes
    ----------
    least, most : bounds of the eigenvalues of M, which is symmetric.
    """

    def __init__(self, shape: tuple[int, int], size: int, padding: str):
        self.size, self.radius, self.wraps = size, size // 2, padding == "circular"
        ends = []
        for length in shape:
            x = torch.eye(length, dtype=torch.float64)
            values = np.linalg.eigvalsh((self._sum(x, 0) / size).numpy())
            ends.append((values[0], values[-1]))
        corners = [a * b for a in ends[0] for b in ends[1]]
        self.least, self.most = min(corners), max(corners)

    def _sum(self, x, axis):
        length, out = x.shape[axis], x.clone()
        for shift in range(1, self.radius + 1):
            if shift < length:
                kept = length - shift
                out.narrow(axis, shift, kept).add_(x.narrow(axis, 0, kept))
                out.narrow(axis, 0, kept).add_(x.narrow(axis, shift, kept))
            if self.wraps:
                out.narrow(axis, 0, shift).add_(x.narrow(axis, length - shift, shift))
                out.narrow(axis, length - shift, shift).add_(x.narrow(axis, 0, shift))
        return out

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sum over the window, k^2 M x, for x (h, w, ...)."""
        return x if self.size == 1 else self._sum(self._sum(x, 0), 1)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Returns M x for x (h, w, ...), a new tensor."""
        return self.total(x) / self.size**2


class WindowEquation:
    """This is the equation x = b + s M (D x) for one array D (h, w, ...), solved for any number of right sides b.

    s |D| must be below 1 everywhere.
    """

    def __init__(self, M: BoxFilter, s: float, D: torch.Tensor):
        self.M, self.s, self.D = M, s, D
        low, high = (value.item() for value in torch.aminmax(D))
        self.local = torch.mul(D, -s).add_(1).reciprocal_()  # the solution where nothing varies over a window
        if low >= 0:
            # eigenvalues of 1 - s M D
            ends = 1 - s * high * M.most, 1 - s * high * min(M.least, 0.0)
            self.centre, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
        else:  # plain iteration, a contraction in the largest entry
            self.centre, half = 1.0, 0.0
            self.rate = s * max(high, -low)
        self.ratio = half / self.centre
        if low >= 0:
            self.rate = (1 - math.sqrt(1 - self.ratio**2)) / self.ratio if self.ratio else 0.0

    def steps(self, tolerance: float) -> int:
        """Returns the number of steps that make an error smaller by this factor."""
        if self.M.size == 1 or self.rate == 0:
            return 0
        return max(1, math.ceil(math.log(2 / tolerance) / -math.log(self.rate)))

    def __call__(self, b: torch.Tensor, tolerance: float) -> torch.Tensor:
        """Returns x with its error below tolerance times that of the first guess, b/(1 - s D)."""
        x = b * self.local
        if not (steps := self.steps(tolerance)):
            return x
        gain = self.s / self.M.size**2
        before, omega = None, 1.0
        for _ in range(steps):
            new = self.M.total(self.D * x)
            new.mul_(omega * gain / self.centre).add_(b, alpha=omega / self.centre)
            new.add_(x, alpha=omega * (1 - 1 / self.centre))
            if before is not None and self.ratio:
                new.add_(before, alpha=1 - omega)
            before, x = x, new
            omega = 1 / (1 - self.ratio**2 * (omega / 4 if omega != 1 else 0.5))
        return x


def error_of(x: torch.Tensor, weight: torch.Tensor) -> float:
    """Returns the largest |entry| of x times weight."""
    return largest(x * weight)
