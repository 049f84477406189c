"""Explicit convolutional networks of infinite width have kernels that go from layer to layer at each pair of pixels.

The network is x_l = sigma_l(W_l * x_{l-1})/sqrt(m_l), x_0 the image over the root of its c channels, with k_l x k_l
filters whose entries have variance 1/k_l^2. With M_l the mean over its window,

    Sigma_l = E[sigma_l(u) sigma_l(v)], (u, v) of covariance M_l Sigma_{l-1},    Sigma_0(p) = x(p).x'(p)/c,
    K_l = Sigma_l + Sigma_dot_l (M_l K_{l-1}),                                   K_0 = Sigma_0,

pixel by pixel (Garriga-Alonso, Rasmussen & Aitchison, ICLR 2019; Arora et al., NeurIPS 2019). A layer with k_l = 1
works on pixels: an equivalent of a convolutional DEQ may be one convolution followed by fully connected layers.

A network of t steps with the image put in at each of them, z_{l+1} = psi(A_l * z_l + B_l * x), is what the unrolled DEQ
and the network of its resolvent are (theory/resolvent.py). Its filters have a variance tap by tap, and a learning rate
tap by tap: with the filters F_A, F_B of the variances and E_A, E_B of their products with the rates,

    Lambda_{l+1} = F_A E[psi psi] + F_B S,      N_{l+1} = E_A E[psi psi] + E_B S + F_A (E[psi' psi'] N_l),

from E[psi psi] = 0, and CK = mean E[phi phi], NTK = mean of E[phi phi] + E[phi' phi'] N at the last step.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from deq_enn.kernels.box_filter import BoxFilter
from deq_enn.kernels.compiled import Problem, conv_layers, library
from deq_enn.kernels.conv_blocks import COMPILED_ENTRIES, ConvBlocks, KinkedPixels, PixelPairs, pixel_pairs
from deq_enn.kernels.images.checks import check_dtype
from deq_enn.kernels.images.foretold import kernels_of
from deq_enn.kernels.sample_scales import explicit_scales
from deq_enn.theory.activations import Activation
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import check_window
from deq_enn.theory.recognise import recognise

_LEAST = 1e-18  # share of a layer's largest scale below which one is 0 in single precision
_RANGE = 1e15  # largest product of scales, and the inverse of the least, that single precision is used for


class _Layer(NamedTuple):
    """A layer has its window, its pair function, and for all pixels scales, their inverses, and means of sigma(u)."""

    M: BoxFilter
    pair: PixelPairs
    s: torch.Tensor
    inverse: torch.Tensor
    mean: torch.Tensor

    def single(self) -> "_Layer":
        """Returns the same in single precision."""
        inverse = torch.where(self.s > _LEAST * self.s.max(), self.inverse, 0)
        return _Layer(self.M, self.pair, self.s.float(), inverse.float(), self.mean.float())


class _Explicit(ConvBlocks):
    def __init__(self, images, layers, kernel_sizes, padding, readout, trained, other, dtype):
        super().__init__(images, other, padding, readout)
        self.trained, self.dtype, self.stack = trained, dtype, []
        shape = self.height, self.width, -1
        second = self._x.square().sum(2)
        tangent = second if trained == "all" else torch.zeros_like(second)
        filters = {}
        for index, (layer, size) in enumerate(zip(layers, kernel_sizes), 1):
            check_window((1, self.height, self.width), size, padding, f"kernel_sizes[{index - 1}]")
            M = filters.setdefault(size, BoxFilter((self.height, self.width), size, padding))
            q = M(second.reshape(shape)).reshape(second.shape)
            scales = explicit_scales(layer, q.sqrt().cpu().numpy().reshape(-1))
            s, mean, new, d1_sq = (
                torch.from_numpy(np.ascontiguousarray(values)).reshape(second.shape).to(self.device)
                for values in (scales.s, scales.mean, scales.second, scales.d1_sq)
            )
            if not bool((new.sum(0) > 0)[q.sum(0) > 0].all()):
                raise ValueError(
                    f"layer {index} ({layer.name}) is zero at its input scale: there is no kernel after it"
                )
            tangent = new + d1_sq * M(tangent.reshape(shape)).reshape(second.shape)
            second = new
            pair = pixel_pairs(layer, scales, second.shape[1], self.device)
            self.stack.append(_Layer(M, pair, s, 1 / s, mean))
        self._own = second, tangent
        self.entries = max(layer.pair.entries for layer in self.stack)
        kinked = all(isinstance(layer.pair, KinkedPixels) for layer in self.stack)
        self.compiled = kinked and self.device.type == "cpu" and library() is not None
        if self.compiled:
            self.entries = COMPILED_ENTRIES
        self.single = dtype == torch.float32 and all(
            layer.pair.narrow and 1 / _RANGE < layer.s.max() ** 2 < _RANGE for layer in self.stack
        )
        self.working = [layer.single() for layer in self.stack] if self.single else self.stack

    def _own_fields(self):
        return self._own

    def _fields(self, rows, cols, tangent, exact):
        sigma, stack = self._products(rows, cols), self.stack
        if self.single and not exact:
            sigma, stack = sigma.float(), self.working
        K = sigma.clone() if self.trained == "all" else torch.zeros_like(sigma)
        for M, pair, s, inverse, mean in stack:
            rho = M(sigma).mul_(rows.of(inverse)).mul_(cols.of(inverse))
            g, dot = pair(rows, cols, rho)
            sigma = g.mul_(rows.of(s)).mul_(cols.of(s)).add_(rows.of(mean) * cols.of(mean))
            if tangent:
                K = dot.mul_(M(K)).add_(sigma)
        return sigma, K if tangent else None

    def offset_sums(self, rows, cols, tangent, exact=False):
        if not self.compiled:
            return super().offset_sums(rows, cols, tangent, exact)
        own, other = rows.rows_of(self._x), cols.rows_of(self._x)
        problem = Problem(
            *rows.pixels.shape,
            wraps=self.padding == "circular",
            rows=own.shape[1],
            cols=other.shape[1],
            channels=own.shape[2],
            same=self._itself(rows, cols),
            tangent=tangent * (1 if self.trained == "all" else 2),
        )
        layers = []
        for M, pair, *values in self.stack if exact else self.working:
            parts = [rows.rows_of(part).T for part in values] + [cols.rows_of(part) for part in values]
            layers.append((pair.m2, pair.h2, M.radius, [part.contiguous() for part in parts]))
        images = (side.to(layers[0][3][0].dtype).contiguous() for side in (own.transpose(0, 1), other.mT))
        return conv_layers(problem, layers, *images)


class _Injected(ConvBlocks):
    """This is the network of `injected_kernels`, with psi(x) = phi(x) - slope x."""

    @property
    def local(self) -> bool:
        """Tells that it does not: a step reaches the whole image."""
        return False

    def __init__(self, images, activation, slope, taps, rates, steps, padding, readout, other):
        super().__init__(images, other, padding, readout)
        shape = (self.height, self.width), padding
        self.F = [tap_matrix(t, *shape).to(self.device) for t in taps]
        self.E = [tap_matrix(t * rates, *shape).to(self.device) for t in taps]
        self.activation, self.slope, self.stack = activation, slope, []
        S = self._x.square().sum(2)
        psi = psi_dot = N = torch.zeros_like(S)
        second = d1_sq = S
        for _ in range(steps):
            q, N = self.F[0] @ psi + self.F[1] @ S, self.E[0] @ psi + self.E[1] @ S + self.F[0] @ (psi_dot * N)
            scales = explicit_scales(activation, q.clamp_min(0).sqrt().cpu().numpy().reshape(-1))
            s, mean, d1, second, d1_sq = (
                torch.from_numpy(np.ascontiguousarray(values)).reshape(S.shape).to(self.device)
                for values in (scales.s, scales.mean, scales.d1, scales.second, scales.d1_sq)
            )
            self.stack.append((pixel_pairs(activation, scales, S.shape[1], self.device), s, mean, d1))
            psi = second + (slope**2 - 2 * slope * d1) * q
            psi_dot = d1_sq - 2 * slope * d1 + slope**2
        self._own = second, second + d1_sq * N
        self.entries = self.stack[0][0].entries

    def _own_fields(self):
        return self._own

    def _fields(self, rows, cols, tangent, exact):
        S = self._products(rows, cols)
        flat = S.flatten(2).flatten(0, 1)
        psi = psi_dot = N = torch.zeros_like(flat)
        G = dot = flat
        for pair, s, mean, d1 in self.stack:
            covariance = self.F[0] @ psi + self.F[1] @ flat
            if tangent:
                N = self.E[0] @ psi + self.E[1] @ flat + self.F[0] @ (psi_dot * N)
            ss = rows.of(s) * cols.of(s)
            g, dot = pair(rows, cols, covariance.reshape(ss.shape) / ss)
            G = g.mul_(ss).add_(rows.of(mean) * cols.of(mean)).reshape(flat.shape)
            dot, slopes = dot.reshape(flat.shape), (rows.of(d1) + cols.of(d1)).reshape(flat.shape)
            shift = self.slope**2 - self.slope * slopes
            psi, psi_dot = torch.addcmul(G, shift, covariance), dot + shift
        return G.reshape(S.shape), torch.addcmul(G, dot, N).reshape(S.shape) if tangent else None


def tap_matrix(taps: np.ndarray, shape: tuple[int, int], padding: str) -> torch.Tensor:
    """Returns the matrix (h w, h w) of a symmetric filter (k, k), which may reach beyond the images of h x w pixels."""
    (h, w), radius = shape, len(taps) // 2
    offsets = np.arange(-radius, radius + 1)
    down, right = (np.subtract.outer(np.arange(size), np.arange(size)) for size in shape)
    if padding == "circular":
        folded = np.zeros(shape)
        np.add.at(folded, (offsets[:, None] % h, offsets % w), taps)
        matrix = folded[down[:, None, :, None] % h, right[None, :, None, :] % w]
    else:
        wide = np.zeros((2 * max(h, radius) + 1, 2 * max(w, radius) + 1))  # offsets that no tap reaches have 0
        middle = len(wide) // 2, wide.shape[1] // 2
        wide[middle[0] + offsets[:, None], middle[1] + offsets] = taps
        matrix = wide[middle[0] + down[:, None, :, None], middle[1] + right[None, :, None, :]]
    return torch.from_numpy(np.ascontiguousarray(matrix.reshape(h * w, h * w)))


def injected_kernels(
    images: torch.Tensor,
    activation: Activation | str | Elementwise,
    taps: tuple[np.ndarray, np.ndarray],
    steps: int,
    slope: float = 0.0,
    rates: np.ndarray | float = 1.0,
    padding: str = "zero",
    readout: str = "flatten",
    other: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact CK and NTK of a network that the image is put into at each of its steps.

    The other parameters and what is returned are those of `conv_explicit_kernels`; "pool" needs circular padding. The
    unrolled DEQ has the taps sigma_a^2/k^2 and sigma_b^2/k^2; `theory.resolvent` has those of its resolvent,
    which need circular padding.

    Parameters
    ----------
    activation : phi as it is, of the last step; the others have psi(x) = phi(x) - slope x.
    taps : (k, k) variances of the taps of the filters on the state and on the image, symmetric.
    steps : number of layers. rates : (k, k) learning rates of the taps.
    """
    if steps < 1:
        raise ValueError(f"a network needs at least one step, got {steps}")
    if readout == "pool" and padding == "zero":
        raise ValueError("readout 'pool' of a network with taps needs padding 'circular'")
    rates = np.broadcast_to(np.asarray(rates, dtype=np.float64), taps[0].shape)
    given = recognise(activation), slope, taps, rates, steps, padding, readout
    return kernels_of(lambda x, others: _Injected(x, *given, others), images, other)


def conv_explicit_blocks(
    images: torch.Tensor,
    layers: Sequence[Activation | str | Elementwise],
    kernel_sizes: Sequence[int],
    padding: str = "zero",
    readout: str = "flatten",
    trained: str = "all",
    other: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConvBlocks:
    """Returns the kernels of `conv_explicit_kernels` as `ConvBlocks`, which has the parameters."""
    if trained not in ("all", "frozen_first"):
        raise ValueError(f"trained must be 'all' or 'frozen_first', got {trained!r}")
    if not layers or len(layers) != len(kernel_sizes):
        raise ValueError(
            f"an explicit network needs at least one layer and a window for each, got {len(layers)} layers and "
            f"{len(kernel_sizes)} windows"
        )
    check_dtype(dtype)
    layers = [recognise(layer) for layer in layers]
    return _Explicit(images, layers, kernel_sizes, padding, readout, trained, other, dtype)


def conv_explicit_kernels(
    images: torch.Tensor,
    layers: Sequence[Activation | str | Elementwise],
    kernel_sizes: Sequence[int],
    padding: str = "zero",
    readout: str = "flatten",
    trained: str = "all",
    other: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact CK and NTK of an explicit convolutional network of infinitely many feature maps.

    Parameters
    ----------
    images, padding, readout, other : as those of `conv.conv_kernels`.
    layers : the activations in order (names and torch functions too), as given: not centred again.
    kernel_sizes : side of each layer's filters, odd.
    trained : "all" weights and the readout, or all but the first filters ("frozen_first").
    dtype : of the kernels. torch.float32 is for kernel machines: pairs are then computed in single precision where that
        is faster (not those of a closed form without a kink at 0), and the diagonal in double precision.

    Returns
    -------
    (ck, ntk) : two (n, n) or (m, n) tensors.

    Raises
    ------
    ValueError : as `conv.conv_kernels`; no layers, or not a window for each.
    """
    given = layers, kernel_sizes, padding, readout, trained
    return kernels_of(lambda x, others: conv_explicit_blocks(x, *given, others, dtype), images, other)
