"""The six networks of the paper, in its scaling, are built here as torch modules.

    DEQ   z = phi(sigma_a A z + sigma_b B x)/sqrt(m)              phi centred at tau_*
    ENN   x_l = sigma_l(W_l x_{l-1})/sqrt(m),  l = 1 .. L         each sigma_l centred at its input scale

with entries of A (m, m), B (m, p), W_l and of the readout all N(0, 1) and |x| of order tau_0. `features(x)` is the
last hidden layer, `forward(x)` the logits. With one seed all networks share B = W_1 and the readout.

    inn          ReLU-DEQ                           l_relu_enn   its matched two-layer leaky-ReLU network
    tanh_inn     tanh-DEQ                           h_tanh_enn   its matched one-layer hard-tanh network
    relu_enn     unmatched: two centred ReLU layers, input scaled by sigma_b
    tanh_enn     unmatched: one tanh layer, input scaled by sigma_b

and three for any activation: deq; matched_enn, its match by `matching.families`; unmatched_enn, centred layers of it
(two, or a given depth).
"""

import math

import numpy as np
import torch

from deq_enn.matching import families, one_layer_tanh, two_layer_lrelu
from deq_enn.matching.other_scale import layers_at_scale
from deq_enn.names import DEQS, GENERAL, MODELS, UNMATCHED
from deq_enn.networks.deq import DEQ, as_drawn
from deq_enn.networks.enn import ENN, AnyMatch
from deq_enn.networks.trained_deq import adapt
from deq_enn.theory.activations import ACTIVATIONS, Activation
from deq_enn.theory.coefficients import implicit_ck
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import as_tensor, estimate_tau0
from deq_enn.theory.gaussian import centred_layers
from deq_enn.theory.recognise import recognise


def build_model(
    name: str,
    p: int,
    dim: int,
    n_classes: int,
    sigma_a2: float,
    tau0: float = 1.0,
    seed: int = 0,
    activation: Activation | str | Elementwise | None = None,
    kernel: str = "ck",
    family: str = "auto",
    depth: int | None = None,
) -> DEQ | ENN:
    """Builds one of `MODELS` or `GENERAL` for data of dimension p and scale tau_0.

    Its weights have torch's default device and type, which are the CPU and float32.

    Parameters
    ----------
    activation : the DEQ's, for `GENERAL`.
    kernel, family : those of `matching.families.match`, for matched_enn.
    depth : number of layers of an unmatched network, by default that of `UNMATCHED`.
    """
    if depth is not None and name not in UNMATCHED:
        raise ValueError(f"the depth of {name} is not free: choose one of {', '.join(UNMATCHED)} with a depth")
    if name not in MODELS + GENERAL:
        raise ValueError(f"unknown model {name!r}: choose from {', '.join(MODELS + GENERAL)}")
    own = {"inn": "relu", "relu_enn": "relu", "tanh_inn": "tanh", "tanh_enn": "tanh"}
    phi = ACTIVATIONS[own[name]] if name in own else None if activation is None else recognise(activation)
    if name in GENERAL and phi is None:
        raise ValueError(f"{name} is of any activation: give it one, such as ACTIVATIONS['swish']")
    if name in DEQS:
        assert phi is not None
        return DEQ(phi, p, dim, n_classes, sigma_a2, tau0, seed)
    if name in UNMATCHED:
        assert phi is not None
        depth = UNMATCHED[name] if depth is None else depth
        if depth < 1:
            raise ValueError(f"a network needs a depth of at least 1, got {depth}")
        sigma_b = math.sqrt(1 - sigma_a2)
        return ENN(centred_layers([phi] * depth, sigma_b * tau0), p, dim, n_classes, tau0, sigma_b, seed)
    match = _match(name, phi, sigma_a2, tau0, kernel, family)
    return ENN(match.layers, p, dim, n_classes, tau0, seed=seed, match=match)


def _match(
    name: str, activation: Activation | None, sigma_a2: float, tau0: float, kernel: str, family: str
) -> AnyMatch:
    """Returns the match of the DEQ that a matched network stands in for."""
    if name == "l_relu_enn":
        return two_layer_lrelu.match(implicit_ck(ACTIVATIONS["relu"], sigma_a2, tau0), tau0)
    if name == "h_tanh_enn":
        return one_layer_tanh.match(implicit_ck(ACTIVATIONS["tanh"], sigma_a2, tau0), tau0)
    assert activation is not None
    return families.match(activation, sigma_a2, tau0, kernel, family)


def matched_enn(deq: DEQ, X: torch.Tensor | np.ndarray | None = None, kernel: str = "ck", family: str = "auto") -> ENN:
    """Builds the explicit network that may stand in for a DEQ.

    It has the DEQ's kernel, width, seed, first weights, device and dtype.

    Parameters
    ----------
    deq : as it was drawn; its activation, sigma_a^2, width, number of classes and seed are read off it.
    X : (n, p) data that fixes tau_0; by default that of the DEQ.
    kernel, family : see `matching.families.match`, which raises MatchError where there is no match.

    Returns
    -------
    ENN with a readout of its own, to be trained: the two networks' kernels agree, not their features.

    Raises
    ------
    ValueError : the DEQ was trained, or X has other columns, or the DEQ is centred at another scale than that of X,
        too far from it for any network to follow.

    Notes
    -----
    Replacement is in distribution, not pointwise. On MNIST at width 512 the trained outputs of a DEQ and its matched
    network, which share the first weights, differ by 0.44 to 0.47 (root mean square), and those of two seeds of one DEQ
    by 0.54 to 0.57 (docs/training.md).

    The DEQ keeps its constant E[f(tau_* xi)], with the tau_* of its own tau_0. At another scale of X its phi has a
    mean, and so have the layers returned (`layers_at_scale`); `coefficients` are then those of the kernel without it.
    """
    if not as_drawn(deq):
        raise ValueError(
            f"{type(deq).__name__} is not a DEQ with the weights that its seed draws, and no theory says what replaces "
            "a trained one: verdict(deq, X, y) measures it"
        )
    if type(deq) is not DEQ:
        adapt(deq)  # refuses a subclass whose forward is another
    dim, p = deq.B.shape
    X = None if X is None else as_tensor(X)
    if X is not None and (X.ndim != 2 or X.shape[1] != p):
        raise ValueError(f"X must be an (n, {p}) matrix, as the DEQ's B has {p} columns; got shape {tuple(X.shape)}")
    tau0 = deq.tau0 if X is None else estimate_tau0(X)
    match = families.match(deq.activation, deq.sigma_a2, tau0, kernel, family)
    layers = match.layers
    if X is not None:
        layers = layers_at_scale(layers, deq.activation, deq.sigma_a2, tau0, deq.tau0, kernel)
    enn = ENN(layers, p, dim, deq.readout.out_features, tau0, seed=deq.seed, match=match).to(deq.B)
    with torch.no_grad():
        enn.weights[0].copy_(deq.B)
    return enn
