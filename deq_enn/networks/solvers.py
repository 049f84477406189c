"""Fixed points z = f(z) are solved for here; nothing is known of gradients.

A solver is a small frozen object with `solve(f, z0) -> Solution`. `fixed_point` differentiates what it finds.

Reference: Walker & Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 2011.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


class ConvergenceError(RuntimeError):
    """A fixed-point iteration diverged or ran out of steps; `solution` is where it stood."""

    def __init__(self, message: str, solution: "Solution"):
        super().__init__(message)
        self.solution = solution


@dataclass(frozen=True)
class Solution:
    """This is what a solver ends with.

    value : the last f(z). residual : (n,) |f(z) - z| / |f(z)| of each sample. iterations : applications of f.
    unconverged : how many samples miss the tolerance.
    """

    value: torch.Tensor
    residual: torch.Tensor
    iterations: int
    converged: bool
    unconverged: int = 0


class Solver(Protocol):
    """What can solve z = f(z): `Picard` and `Anderson` do."""

    def solve(self, f: Callable[[torch.Tensor], torch.Tensor], z0: torch.Tensor) -> Solution:
        """Returns the fixed point that the iteration from z0 (n, ...) reaches."""
        ...


ROUNDINGS = 8  # least tolerance of a relative residual, in roundings of its dtype; float32 keeps 1e-6


def reachable(tol: float, z: torch.Tensor) -> float:
    """Returns the tolerance, or what the rounding of z's dtype leaves of it."""
    return max(tol, ROUNDINGS * torch.finfo(z.dtype).eps)


def relative_residual(fz: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Returns |f(z) - z| / |f(z)| of each sample, (n,)."""
    sample = tuple(range(1, fz.ndim))  # not flatten, which copies channels-last images
    size = torch.linalg.vector_norm(fz, dim=sample)
    return torch.linalg.vector_norm(fz - z, dim=sample) / size.clamp_min_(torch.finfo(fz.dtype).tiny)


def _finish(value: torch.Tensor, residual: torch.Tensor, iterations: int, tol: float, strict: bool) -> Solution:
    """Returns the solution, or raises ConvergenceError where it is none and the solver is strict."""
    worst = residual.max().item() if len(residual) else 0.0
    unconverged = 0 if worst <= tol else len(residual) - int((residual <= tol).sum())  # NaN misses it
    solution = Solution(value, residual, iterations, worst <= tol, unconverged)
    if strict and not solution.converged:
        how = "diverged" if not math.isfinite(worst) else "did not converge"
        raise ConvergenceError(
            f"the equilibrium {how}: relative residual {worst:.3g} after {iterations} iterations (tolerance {tol:g})",
            solution,
        )
    return solution


def _check(tol: float, max_steps: int) -> None:
    """Raises ValueError where a solver could never end well."""
    if not tol >= 0 or max_steps < 1:
        raise ValueError(f"a solver needs tol >= 0 and max_steps >= 1, got tol = {tol} and max_steps = {max_steps}")


@dataclass(frozen=True)
class Picard:
    """z <- f(z) until the worst sample's relative residual is at most `tol`, or 8 roundings of a short dtype.

    Raises ConvergenceError on divergence or after `max_steps` applications, unless `strict` is False.
    """

    tol: float = 1e-6
    max_steps: int = 200
    strict: bool = True

    def __post_init__(self):
        _check(self.tol, self.max_steps)

    @torch.no_grad()
    def solve(self, f: Callable[[torch.Tensor], torch.Tensor], z0: torch.Tensor) -> Solution:
        """Iterates f from z0 (n, ...)."""
        step, z, tol = 1, z0, reachable(self.tol, z0)
        while True:
            fz = f(z)
            residual = relative_residual(fz, z)
            worst = residual.max().item() if len(residual) else 0.0
            if worst <= tol or not math.isfinite(worst) or step >= self.max_steps:
                return _finish(fz, residual, step, tol, self.strict)
            step, z = step + 1, fz


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration takes the affine combination of the last `memory` points with the least residual.

    Each sample of the batch has its own combination. Fewer applications of f than Picard, each with `memory` extra
    passes over the iterate: worth it where f is a large matrix product or contracts slowly.
    """

    tol: float = 1e-6
    max_steps: int = 200
    strict: bool = True
    memory: int = 5
    ridge: float = 1e-10

    def __post_init__(self):
        _check(self.tol, self.max_steps)
        if self.memory < 1:
            raise ValueError(f"Anderson needs a memory of 1 or more, got {self.memory}")

    @torch.no_grad()
    def solve(self, f: Callable[[torch.Tensor], torch.Tensor], z0: torch.Tensor) -> Solution:
        """Iterates f from z0 (n, ...), each time from the best combination of the last points."""
        n, memory, tol = len(z0), self.memory, reachable(self.tol, z0)
        shape, z = z0.shape, z0.flatten(1)
        values = z.new_zeros(n, memory, z.shape[1])  # f(z_j), the latest `memory` of them, in a ring
        residuals = torch.zeros_like(values)  # f(z_j) - z_j
        gram = z.new_zeros(n, memory, memory).double()  # of the residuals; one row is new each step
        step = 0
        while True:
            step += 1
            fz = f(z.view(shape)).flatten(1)
            slot, known = (step - 1) % memory, min(step, memory)
            values[:, slot] = fz
            torch.sub(fz, z, out=residuals[:, slot])
            row = torch.bmm(residuals[:, :known], residuals[:, slot, :, None])[..., 0].double()
            gram[:, slot, :known] = row
            gram[:, :known, slot] = row
            size = torch.linalg.vector_norm(fz, dim=1).clamp_min(torch.finfo(fz.dtype).tiny)
            residual = row[:, slot].sqrt().to(size.dtype) / size
            worst = residual.max().item() if n else 0.0
            if worst <= tol or not math.isfinite(worst) or step >= self.max_steps:
                return _finish(fz.view(shape), residual, step, tol, self.strict)
            weights = best_combination(gram[:, :known, :known], self.ridge).to(z.dtype)
            z = torch.bmm(weights[:, None], values[:, :known])[:, 0]


def best_combination(gram: torch.Tensor, ridge: float) -> torch.Tensor:
    """Returns the weights (n, k), whose sum is 1, of the combination of k residuals that is the least in norm.

    gram : (n, k, k) float64 products of the residuals. The normal equations are scaled to a unit diagonal, to which the
        ridge is added. A residual that is exactly 0 takes all the weight.
    """
    scale = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-200).rsqrt()
    system = gram * scale[:, :, None] * scale[:, None, :]
    system = system + ridge * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(system, scale[:, :, None])[..., 0] * scale
    return weights / weights.sum(1, keepdim=True)
