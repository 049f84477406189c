"""Explicit networks of finite width, drawn: what the error of a kernel at width m is held against."""

import math

import numpy as np
import torch

from utils import generator


def sampled(layers, tau0, m, draws, trained):
    """Kernel entries (draws, 2), off and on the diagonal, of random networks of width m at two orthogonal inputs."""
    g, out = generator("fluctuation", m), []
    for _ in range(draws):
        x, signals = torch.eye(2, dtype=torch.float64) * tau0, []
        for layer in layers:
            W = torch.randn(m, x.shape[1], generator=g, dtype=torch.float64)
            u = x @ W.T
            signals.append((x @ x.T, layer.derivative(u) / math.sqrt(m), W))
            x = layer.fn(u) / math.sqrt(m)
        K = x @ x.T
        backward = torch.randn(m, generator=g, dtype=torch.float64).expand(2, m)
        for index, (gram, slope, W) in reversed(list(enumerate(signals))):
            backward = backward * slope
            if trained == "all" or (trained == "frozen_first" and index):
                K = K + gram * (backward @ backward.T)
            backward = backward @ W
        out.append((K[0, 1].item(), K[0, 0].item()))
    return np.array(out)
