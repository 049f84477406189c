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

SHORT_ROUNDING = 2**-8  # part of a change that a product in bfloat16 may get wrong, as it rounds both of its factors
SHORT_TOLERANCE = 1e-6  # relative change at which the solver takes over
SHORT_PRODUCTS = 200  # products at most, of both precisions


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
    short_A : A in bfloat16 where equilibria may be begun with it (`short_start`), without gradients; else None.
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
        self.short_A: torch.Tensor | None = None
        self.A = normal_weights(dim, dim, seed=(seed, "A"))
        self.B = normal_weights(dim, p, seed=(seed, "first"))
        self.readout = drawn_readout(dim, n_classes, seed)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the equilibrium z (n, m) of inputs x (n, p)."""
        # in v = sqrt(m) z: v = phi(sigma_a A v/sqrt(m) + u). The product is scaled: a scaled A would be a copy of it
        root = math.sqrt(len(self.A))
        u = finite_or_nan((x @ self.B.T).mul_(math.sqrt(1 - self.sigma_a2)))
        start, products = self.phi.fn(u), 0
        if self.short_A is not None:
            start, products = self._short_start(u, start)
        try:
            z = self.fixed_point(self._step, start, self.A, u) / root
            if products:
                self.fixed_point.iterations += products
            return z
        except ConvergenceError as error:
            advice = f"; take a smaller sigma_a^2 (--asquare, now {self.sigma_a2:g})"
            raise explained(error, x, advice) from None

    def _step(self, v: torch.Tensor, A: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.phi.fn(torch.addmm(u, v, A.T, alpha=math.sqrt(self.sigma_a2 / len(A))))

    @torch.no_grad()
    def _short_start(self, u: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Returns a start next to the equilibrium, by products in bfloat16 from v = phi(u), and how many they were.

        The state w = sigma_a A v/sqrt(m) + u changes by A dv, and dv alone is rounded, to `SHORT_ROUNDING` of itself.
        Once dv is that much smaller than at first, one product in float32 removes what all the roundings have left, and
        it is begun again. So it is as iterative refinement of linear systems. The solver then starts from the result,
        with its own tolerance: what is found does not depend on it.
        """
        assert self.short_A is not None
        scale, w, dv, products = math.sqrt(self.sigma_a2 / len(self.A)), u.clone(), v, 0
        largest, began = 1.0, 0.0  # relative change of the last product, and of the first one since all was exact
        while products < SHORT_PRODUCTS:
            exact = largest <= began * SHORT_ROUNDING
            if exact:
                torch.addmm(u, v, self.A.T, alpha=scale, out=w)
            else:
                w.add_(dv.bfloat16() @ self.short_A.T, alpha=scale)
            fresh = self.phi.fn(w)
            dv, v, products = fresh - v, fresh, products + 1
            sizes = torch.linalg.vector_norm(v, dim=1).clamp_min_(torch.finfo(v.dtype).tiny)
            largest = (torch.linalg.vector_norm(dv, dim=1) / sizes).max().item()
            if not largest > SHORT_TOLERANCE:  # NaN is the solver's too
                break
            if exact or products == 1:
                began = largest
        return v, products

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
    return ConvergenceError(f"{error}{advice}", error.solution)


def as_drawn(deq: object) -> bool:
    """Tells whether A and B of a `DEQ`, which nothing stops before its equilibrium, are those that its seed draws."""
    if not isinstance(deq, DEQ) or isinstance(deq.fixed_point, Stopped):
        return False
    return drawn_from(deq.seed, {"A": deq.A, "first": deq.B})
