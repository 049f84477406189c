"""Kernels between images are asked for with arrays (n, c, h, w) and a dtype, which are looked at here."""

import torch

from deq_enn.theory.equilibrium import as_tensor


def check_dtype(dtype: torch.dtype) -> None:
    """Raises ValueError, in one line, for a dtype that kernels of images do not have."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


def check_images(images: torch.Tensor, name: str) -> torch.Tensor:
    """Returns images (n, c, h, w) in float64; raises ValueError, in one line, for what is no such array."""
    images = as_tensor(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{name} must be (n, channels, height, width), got shape {tuple(images.shape)}")
    images = images.detach().double()
    squares = images.square().sum((1, 2, 3))
    if not bool(torch.isfinite(squares).all()):
        bad = int((~torch.isfinite(squares)).nonzero()[0])
        raise ValueError(f"{name} have NaN or infinite (or overflowing) pixels, first in image {bad}")
    return images
