"""Explicit convolutional networks of infinite width have kernels that go from layer to layer at each pair of pixels.

The network is x_l = sigma_l(W_l * x_{l-1})/sqrt(m_l), x_0 the image over the root of its c channels, with k_l x k_l
filters whose entries have variance 1/k_l^2. With M_l the mean over its window,

    Sigma_l = E[sigma_l(u) sigma_l(v)], (u, v) of covariance M_l Sigma_{l-1},    Sigma_0(p) = x(p).x'(p)/c,
    K_l = Sigma_l + Sigma_dot_l (M_l K_{l-1}),                                   K_0 = Sigma_0,

pixel by pixel (Garriga-Alonso, Rasmussen & Aitchison, ICLR 2019; Arora et al., NeurIPS 2019). A layer with k_l = 1
works on pixels: an equivalent of a convolutional DEQ may be one convolution followed by fully connected layers.
"""

from collections.abc import Sequence

import numpy as np
import torch

from deq_enn.kernels.box_filter import BoxFilter
from deq_enn.kernels.conv_blocks import ConvBlocks, check_window, pixel_pairs
from deq_enn.kernels.sample_scales import explicit_scales
from deq_enn.theory.activations import Activation


class _Explicit(ConvBlocks):
    def __init__(self, images, layers, kernel_sizes, padding, readout, trained, other):
        super().__init__(images, other, padding, readout)
        self.layers, self.trained, self.stack = layers, trained, []
        shape = self.height, self.width, -1
        second = self._x.square().sum(2)
        tangent = second if trained == "all" else torch.zeros_like(second)
        filters = {}
        for index, (layer, size) in enumerate(zip(layers, kernel_sizes), 1):
            check_window(size, self.height, self.width, padding, f"kernel_sizes[{index - 1}]")
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
            self.stack.append((M, pair, s, mean))
        self._own = second, tangent
        self.entries = max(pair.entries for _, pair, *_ in self.stack)

    def _own_fields(self):
        return self._own

    def _fields(self, rows, cols, tangent):
        sigma = self._products(rows, cols)
        K = sigma.clone() if self.trained == "all" else torch.zeros_like(sigma)
        for M, pair, s, mean in self.stack:
            ss = rows.of(s) * cols.of(s)
            g, dot = pair(rows, cols, M(sigma).div_(ss))
            sigma = g.mul_(ss).add_(rows.of(mean) * cols.of(mean))
            if tangent:
                K = dot.mul_(M(K)).add_(sigma)
        return sigma, K if tangent else None


def conv_explicit_blocks(
    images: torch.Tensor,
    layers: Sequence[Activation],
    kernel_sizes: Sequence[int],
    padding: str = "zero",
    readout: str = "flatten",
    trained: str = "all",
    other: torch.Tensor | None = None,
) -> ConvBlocks:
    """Returns the kernels of `conv_explicit_kernels` as `ConvBlocks`, which has the parameters."""
    if trained not in ("all", "frozen_first"):
        raise ValueError(f"trained must be 'all' or 'frozen_first', got {trained!r}")
    if not layers or len(layers) != len(kernel_sizes):
        raise ValueError(
            f"an explicit network needs at least one layer and a window for each, got {len(layers)} layers and "
            f"{len(kernel_sizes)} windows"
        )
    return _Explicit(images, layers, kernel_sizes, padding, readout, trained, other)


def conv_explicit_kernels(
    images: torch.Tensor,
    layers: Sequence[Activation],
    kernel_sizes: Sequence[int],
    padding: str = "zero",
    readout: str = "flatten",
    trained: str = "all",
    other: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the exact CK and NTK of an explicit convolutional network of infinitely many feature maps.

    Parameters
    ----------
    images, padding, readout, other : as those of `conv.conv_kernels`.
    layers : the activations in order, as given (not centred again).
    kernel_sizes : side of each layer's filters, odd.
    trained : "all" weights and the readout, or all but the first filters ("frozen_first").

    Returns
    -------
    (ck, ntk) : two (n, n) or (m, n) float64 tensors.

    Raises
    ------
    ValueError : as `conv.conv_kernels`; no layers, or not a window for each.
    """
    return conv_explicit_blocks(images, layers, kernel_sizes, padding, readout, trained, other).both()
