"""The six networks of the paper, in its scaling, as torch modules.

    DEQ   z = phi(sigma_a A z + sigma_b B x)/sqrt(m)              phi centred at tau_*
    ENN   x_l = sigma_l(W_l x_{l-1})/sqrt(m),  l = 1 .. L         each sigma_l centred at its input scale

with entries of A (m, m), B (m, p), W_l and of the readout all N(0, 1) and |x| of order tau_0. `features(x)` is the
last hidden layer, `forward(x)` the logits. With one seed all networks share B = W_1 and the readout.

    inn          ReLU-DEQ                           l_relu_enn   its matched two-layer leaky-ReLU network
    tanh_inn     tanh-DEQ                           h_tanh_enn   its matched one-layer hard-tanh network
    relu_enn     unmatched: two centred ReLU layers, input scaled by sigma_b
    tanh_enn     unmatched: one tanh layer, input scaled by sigma_b

and three for any activation: deq; matched_enn, its match by matching.py; unmatched_enn, centred layers of it (two, or a
given depth).
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from deq_enn.matching import families
from deq_enn.matching import one_layer_tanh
from deq_enn.matching import two_layer_lrelu
from deq_enn.theory.coefficients import KernelCoefficients, explicit_ck, implicit_ck
from deq_enn.networks.fixed_point import ConvergenceError, FixedPoint, Picard
from deq_enn.theory.activations import ACTIVATIONS, Activation
from deq_enn.theory.gaussian import centre, gaussian_moments
from deq_enn.names import GENERAL, MODELS, UNMATCHED
from deq_enn.matching.other_scale import off_centre
from deq_enn.theory.equilibrium import estimate_tau0, generator, get_tau


def _normal(*shape, seed):
    return nn.Parameter(torch.randn(*shape, generator=generator(*seed)))


def _readout(dim, n_classes, seed):
    readout = nn.Linear(dim, n_classes, bias=False)
    readout.weight = _normal(n_classes, dim, seed=(seed, "readout"))
    return readout


class DEQ(nn.Module):
    """Deep equilibrium model; its features are the fixed point, differentiated implicitly.

    Parameters
    ----------
    activation : not centred; the module centres it at tau_*.
    p, dim, n_classes : input dimension, width m, number of outputs.
    sigma_a2, tau0 : weight variance, and scale of the data, which fix tau_*.
    seed : of the weights.

    Attributes
    ----------
    tau : tau_*.
    coefficients : of its conjugate kernel.
    fixed_point : solver and iteration counts of the last call.
    """

    def __init__(
        self,
        activation: Activation,
        p: int,
        dim: int,
        n_classes: int,
        sigma_a2: float,
        tau0: float = 1.0,
        seed: int = 0,
        solver=Picard(),
    ):
        super().__init__()
        self.activation, self.sigma_a2, self.tau0, self.seed = activation, sigma_a2, tau0, seed
        self.tau = get_tau(activation, sigma_a2, tau0)
        self.phi = centre(activation, self.tau)
        self.coefficients = implicit_ck(activation, sigma_a2, tau0)
        self.fixed_point = FixedPoint(solver)
        self.A = _normal(dim, dim, seed=(seed, "A"))
        self.B = _normal(dim, p, seed=(seed, "first"))
        self.readout = _readout(dim, n_classes, seed)

    def features(self, x):
        """The equilibrium z (n, m) of inputs x (n, p)."""
        # in v = sqrt(m) z, with the scales folded into the weights: v = phi(W v + u)
        root = math.sqrt(len(self.A))
        W = self.A * (math.sqrt(self.sigma_a2) / root)
        u = (x @ self.B.T).mul_(math.sqrt(1 - self.sigma_a2))
        try:
            return self.fixed_point(self._step, self.phi.fn(u.detach()), W, u) / root
        except ConvergenceError as error:
            raise ConvergenceError(
                f"{error}; take a smaller sigma_a^2 (--asquare, now {self.sigma_a2:g})", error.solution
            ) from None

    def _step(self, v, W, u):
        return self.phi.fn(torch.addmm(u, v, W.T))

    def forward(self, x):
        return self.readout(self.features(x))

    def describe(self) -> dict:
        """The scalars of the theory, as they are printed and logged."""
        return {"activation": self.activation.name, "tau0": self.tau0, "tau": self.tau, **_named(self.coefficients)}


class ENN(nn.Module):
    """Explicit network of len(layers) hidden layers of one width.

    Parameters
    ----------
    layers : one activation a hidden layer, used as given (a matched network's are centred already).
    p, dim, n_classes : input dimension, width m, number of outputs.
    tau0 : scale of the data.
    input_scale : factor on the input (sigma_b for the paper's unmatched networks).
    seed : of the weights.
    match : the match that the layers come from, a dataclass, for `describe`. Its layers are centred, and fix the
        coefficients; `layers` may then have constants beside them.
    """

    def __init__(
        self,
        layers: Sequence[Activation],
        p: int,
        dim: int,
        n_classes: int,
        tau0: float = 1.0,
        input_scale: float = 1.0,
        seed: int = 0,
        match=None,
    ):
        super().__init__()
        self.layers, self.tau0, self.input_scale, self.match = tuple(layers), tau0, input_scale, match
        ck = explicit_ck(self.layers if match is None else match.layers, tau0 * input_scale)
        # the kernel of the scaled input, as a function of the input itself
        self.coefficients = KernelCoefficients(
            ck.diag, ck.c1 * input_scale**2, ck.c2 * input_scale**4, ck.c3 * input_scale**4
        )
        self.weights = nn.ParameterList([_normal(dim, p, seed=(seed, "first"))])
        self.weights.extend(_normal(dim, dim, seed=(seed, "hidden", index)) for index in range(2, len(self.layers) + 1))
        self.readout = _readout(dim, n_classes, seed)

    def features(self, x):
        """The last hidden layer (n, m) of inputs x (n, p)."""
        scale = self.input_scale
        for weight, layer in zip(self.weights, self.layers):
            x = layer.fn((x @ weight.T) * scale)
            scale = 1 / math.sqrt(len(weight))
        return x * scale

    def forward(self, x):
        return self.readout(self.features(x))

    def describe(self) -> dict:
        """The scalars of the theory, as they are printed and logged."""
        return {
            "layers": [layer.name for layer in self.layers],
            "tau0": self.tau0,
            "input_scale": self.input_scale,
            **_named(self.coefficients),
            **_scalars(self.match),
        }


def _scalars(match) -> dict:
    """The parameters of a match that can be printed and logged."""
    if match is None:
        return {}
    return {
        name: value
        for name, value in vars(match).items()
        if isinstance(value, (int, float, str)) or name == "parameters"
    }


def _named(ck: KernelCoefficients) -> dict:
    return {"gamma2": ck.diag, "alpha1": ck.c1, "alpha2": ck.c2, "alpha3": ck.c3}


def _centred_layers(activations, tau):
    layers = []
    for activation in activations:
        layers.append(centre(activation, tau))
        tau = math.sqrt(gaussian_moments(activation, tau).variance)
    return layers


def build_model(
    name: str,
    p: int,
    dim: int,
    n_classes: int,
    sigma_a2: float,
    tau0: float = 1.0,
    seed: int = 0,
    activation: Activation | None = None,
    kernel: str = "ck",
    family: str = "auto",
    depth: int | None = None,
) -> nn.Module:
    """One of `MODELS` or `GENERAL` for data of dimension p and scale tau_0, float32 on the CPU.

    Parameters
    ----------
    activation : the DEQ's, for `GENERAL`.
    kernel, family : those of `matching.match`, for matched_enn.
    depth : number of layers of an unmatched network, by default that of `UNMATCHED`.
    """
    relu, tanh = ACTIVATIONS["relu"], ACTIVATIONS["tanh"]
    deqs = {"inn": relu, "tanh_inn": tanh, "deq": activation}
    if depth is not None and name not in UNMATCHED:
        raise ValueError(f"the depth of {name} is not free: choose one of {', '.join(UNMATCHED)} with a depth")
    if name in deqs:
        return DEQ(deqs[name], p, dim, n_classes, sigma_a2, tau0, seed)
    if name in UNMATCHED:
        depth = UNMATCHED[name] if depth is None else depth
        if depth < 1:
            raise ValueError(f"a network needs a depth of at least 1, got {depth}")
        sigma_b, own = math.sqrt(1 - sigma_a2), {"relu_enn": relu, "tanh_enn": tanh}.get(name, activation)
        return ENN(_centred_layers([own] * depth, sigma_b * tau0), p, dim, n_classes, tau0, sigma_b, seed)
    if name == "l_relu_enn":
        found = two_layer_lrelu.match(implicit_ck(relu, sigma_a2, tau0), tau0)
    elif name == "h_tanh_enn":
        found = one_layer_tanh.match(implicit_ck(tanh, sigma_a2, tau0), tau0)
    elif name == "matched_enn":
        found = families.match(activation, sigma_a2, tau0, kernel, family)
    else:
        raise ValueError(f"unknown model {name!r}: choose from {', '.join(MODELS + GENERAL)}")
    return ENN(found.layers, p, dim, n_classes, tau0, seed=seed, match=found)


def matched_enn(deq: DEQ, X: torch.Tensor | None = None, kernel: str = "ck", family: str = "auto") -> ENN:
    """The explicit network that may stand in for a DEQ: same width, kernel, seed, first weights, device and dtype.

    Parameters
    ----------
    deq : its activation, sigma_a^2, width, number of classes and seed are read off it.
    X : (n, p) data that fixes tau_0; by default that of the DEQ.
    kernel, family : see `matching.match`, which raises MatchError where there is no match.

    Returns
    -------
    ENN with a readout of its own, to be trained: the two networks' kernels agree, not their features.

    Raises
    ------
    ValueError : the DEQ is centred at another scale than that of X, too far from it for any network to follow.

    Notes
    -----
    Replacement is in distribution, not pointwise. At width 512 the trained outputs of a DEQ and its matched network
    differ by 0.53 to 0.55 (root mean square), those of two seeds of one DEQ by 0.54 to 0.58.

    The DEQ keeps its constant E[f(tau_* xi)], with the tau_* of its own tau_0. At another scale of X its phi has a
    mean, and so have the layers returned (`off_centre`); `coefficients` are then those of the kernel without it.
    """
    tau0 = deq.tau0 if X is None else estimate_tau0(X)
    found = families.match(deq.activation, deq.sigma_a2, tau0, kernel, family)
    layers = found.layers
    if X is not None:
        layers = off_centre(layers, deq.activation, deq.sigma_a2, tau0, deq.tau0, kernel)
    dim, p = deq.B.shape
    enn = ENN(layers, p, dim, deq.readout.out_features, tau0, seed=deq.seed, match=found).to(deq.B)
    with torch.no_grad():
        enn.weights[0].copy_(deq.B)
    return enn
