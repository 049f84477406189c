"""Explicit networks of finite width, drawn: what the error of a kernel at width m is held against."""

import math

import torch

from deq_enn.utils.random import generator

AT_ONCE = 2**20  # entries of the weights of as many networks as are drawn at once


def sampled(layers, tau0, m, draws, trained):
    """Kernel entries (draws, 2), off and on the diagonal, of random networks of width m at two orthogonal inputs."""
    g, out = generator("fluctuation", m), []
    for first in range(0, draws, step := max(AT_ONCE // m**2, 1)):
        some = min(step, draws - first)
        x, signals = (torch.eye(2, dtype=torch.float64) * tau0).expand(some, 2, 2), []
        for layer in layers:
            W = torch.randn(some, m, x.shape[2], generator=g, dtype=torch.float64)
            u = x @ W.mT
            signals.append((x @ x.mT, layer.derivative(u) / math.sqrt(m), W))
            x = layer.fn(u) / math.sqrt(m)
        K = x @ x.mT
        backward = torch.randn(some, 1, m, generator=g, dtype=torch.float64).expand(some, 2, m)
        for index, (gram, slope, W) in reversed(list(enumerate(signals))):
            backward = backward * slope
            if trained == "all" or (trained == "frozen_first" and index):
                K = K + gram * (backward @ backward.mT)
            backward = backward @ W
        out.append(K[:, 0, [1, 0]])
    return torch.cat(out).numpy()
