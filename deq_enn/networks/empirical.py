"""The empirical neural tangent kernel of a network of finite width is found by automatic differentiation.

It is what `kernels.exact` approaches as the width grows, with an error of the order m^(-1/2). Jacot, Gabriel & Hongler,
NeurIPS 2018, define it; for a DEQ the Jacobian goes through the implicit function theorem (`fixed_point`), not through
the iterations.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from deq_enn.theory.equilibrium import as_tensor


def empirical_ntk(
    network: nn.Module,
    X: torch.Tensor | np.ndarray,
    other: torch.Tensor | np.ndarray | None = None,
    trained: Sequence[str] | None = None,
    chunk: int = 8,
) -> torch.Tensor:
    """Returns the tangent kernel (n, n') of a network between samples X (n, ...) and other (n', ...), or X again.

    Entry (i, j) is the sum over all trained parameters of df_k(x_i)/dtheta df_k(x_j)/dtheta, averaged over the outputs
    k. At infinite width the outputs have one kernel in common, and different outputs none between them.

    Parameters
    ----------
    network : any module that takes samples (n, ...) and gives (n, k) outputs: a DEQ, an ENN, a ConvDEQ, a user's own.
    trained : names of the parameters that count (`network.named_parameters()`); by default all of them.
    chunk : samples whose Jacobians are computed at once.

    Raises
    ------
    ValueError : X is a single sample, other has another shape, a name is not that of a parameter, or the network is
        one that treats samples of a batch together in training (batch normalisation, dropout) and is in training mode.

    Notes
    -----
    One parameter is taken at a time, so that the memory is that of n + n' Jacobians of the largest one.
    A product with a vector needs no Jacobian: `torch.func.vjp` of the network, and `torch.func.jvp` of what that gives.
    """
    X, other = as_tensor(X), None if other is None else as_tensor(other)
    if X.ndim < 2 or other is not None and other.shape[1:] != X.shape[1:]:
        raise ValueError("the samples must be rows of a matrix (n, p), or images (n, c, h, w), of one shape")
    together = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
    if any(isinstance(part, together) and part.training for part in network.modules()):
        raise ValueError(
            "the network has batch normalisation or dropout, and is in training mode: call its eval() first"
        )
    parameters = {name: value.detach() for name, value in network.named_parameters()}
    names = list(parameters) if trained is None else list(trained)
    unknown = set(names) - parameters.keys()
    if unknown:
        raise ValueError(f"{min(unknown)} is no parameter of the network, which has {', '.join(parameters)}")
    buffers = dict(network.named_buffers())

    def outputs(value, name, x):
        return functional_call(network, {**parameters, name: value, **buffers}, (x[None],))[0]

    def jacobians(name, rows):
        """(rows, outputs, entries of the parameter)."""
        derivative = jacrev(lambda value, x: outputs(value, name, x))
        return vmap(derivative, (None, 0), chunk_size=chunk)(parameters[name], rows).flatten(2)

    weights = next(iter(parameters.values()))
    X = X.to(weights) if X.is_floating_point() else X  # they may be tokens
    if other is not None:
        other = other.to(weights) if other.is_floating_point() else other
    kernel = weights.new_zeros(len(X), len(X if other is None else other))
    with torch.enable_grad():  # a DEQ's backward pass asks whether it may be differentiated in turn
        for name in names:
            left = jacobians(name, X)
            right = left if other is None else jacobians(name, other)
            kernel += torch.einsum("iko,jko->ij", left, right) / left.shape[1]
    return kernel
