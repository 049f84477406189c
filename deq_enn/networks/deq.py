"""The deep equilibrium model z = phi(sigma_a A z + sigma_b B x)/sqrt(m), equations (1) to (3) of the paper."""

import math

import torch
from torch import nn

from deq_enn.networks.enn import named_scalars
from deq_enn.networks.fixed_point import ConvergenceError, FixedPoint, Picard, Solver, Stopped
from deq_enn.theory.activations import Activation
from deq_enn.theory.coefficients import implicit_ck
from deq_enn.theory.elementwise import Elementwise
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.gaussian import centre
from deq_enn.theory.recognise import recognise
from deq_enn.utils.random import drawn_from, drawn_readout, normal_weights


class DEQ(nn.Module):
    """Deep equilibrium model; its features are the fixed point, differentiated implicitly.

    Parameters
    ----------
    activation : an Activation, a name of the registry or a torch function; the module centres it at tau_*.
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
        activation: Activation | str | Elementwise,
        p: int,
        dim: int,
        n_classes: int,
        sigma_a2: float,
        tau0: float = 1.0,
        seed: int = 0,
        solver: Solver = Picard(),
    ):
        super().__init__()
        activation = recognise(activation)
        self.activation, self.sigma_a2, self.tau0, self.seed = activation, sigma_a2, tau0, seed
        self.tau = get_tau(activation, sigma_a2, tau0)
        self.phi = centre(activation, self.tau)
        self.coefficients = implicit_ck(activation, sigma_a2, tau0)
        self.fixed_point = FixedPoint(solver)
        self.A = normal_weights(dim, dim, seed=(seed, "A"))
        self.B = normal_weights(dim, p, seed=(seed, "first"))
        self.readout = drawn_readout(dim, n_classes, seed)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the equilibrium z (n, m) of inputs x (n, p)."""
        # in v = sqrt(m) z: v = phi(sigma_a A v/sqrt(m) + u). The product is scaled: a scaled A would be a copy of it
        root = math.sqrt(len(self.A))
        u = finite_or_nan((x @ self.B.T).mul_(math.sqrt(1 - self.sigma_a2)))
        try:
            return self.fixed_point(self._step, self.phi.fn(u), self.A, u) / root
        except ConvergenceError as error:
            advice = f"; take a smaller sigma_a^2 (--asquare, now {self.sigma_a2:g})"
            raise explained(error, x, advice) from None

    def _step(self, v: torch.Tensor, A: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.phi.fn(torch.addmm(u, v, A.T, alpha=math.sqrt(self.sigma_a2 / len(A))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits (n, n_classes) of inputs x (n, p)."""
        return self.readout(self.features(x))

    def describe(self) -> dict:
        """Returns the scalars of the theory, as they are printed and logged."""
        return {
            "activation": self.activation.name,
            "tau0": self.tau0,
            "tau": self.tau,
            **named_scalars(self.coefficients),
        }


def finite_or_nan(u: torch.Tensor) -> torch.Tensor:
    """Returns u with NaN for infinity, which no solver passes over; a bounded activation makes it a finite state."""
    return torch.where(u.isfinite(), u, torch.nan)


def explained(error: ConvergenceError, x: torch.Tensor, advice: str) -> ConvergenceError:
    """Returns the error with its cause: the input x (n, p), the rounding of its floats, or else what `advice` says."""
    try:
        bad = (~x.isfinite().all(1)).nonzero()
    except RuntimeError:  # under torch.func.vmap, where nothing may depend on values
        return ConvergenceError(f"{error}{advice}", error.solution)
    if len(bad):
        return ConvergenceError(f"the input has NaN or infinite entries, first in row {int(bad[0])}", error.solution)
    value = error.solution.value
    if torch.finfo(value.dtype).eps > 1e-4 and value.isfinite().all():
        advice = f"; {str(value.dtype).removeprefix('torch.')} rounds too coarsely for it: take float32"
    elif error.solution.iterations < Picard.max_steps and error.solution.residual.isfinite().all():
        advice = "; allow it more iterations (--max_steps)"  # which somebody has made so few
    return ConvergenceError(f"{error}{advice}", error.solution)


def as_drawn(deq: object) -> bool:
    """Tells whether A and B of a `DEQ`, which nothing stops before its equilibrium, are those that its seed draws."""
    if not isinstance(deq, DEQ) or isinstance(deq.fixed_point, Stopped):
        return False
    return drawn_from(deq.seed, {"A": deq.A, "first": deq.B})
