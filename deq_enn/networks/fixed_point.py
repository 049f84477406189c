"""Fixed points are solved for here, and differentiated without their iterations.

A solver is a small frozen object with `solve(f, z0) -> Solution`; it knows nothing of gradients. `FixedPoint` puts
any two of them (forward, backward) behind the implicit function theorem: for z = f(z, theta) and an incoming
gradient g,

    dL/dtheta = v^T df/dtheta,   v = g + (df/dz)^T v,

so the backward pass is another fixed point, and memory holds one application of f however many steps were made. The
backward pass can be differentiated again (`create_graph`, `torch.func`): v is then differentiated as z is.

`stopped(module, k)` makes of a module's equilibria explicit networks of k tied steps, trained by backpropagation.

References: Bai, Kolter & Koltun, Deep equilibrium models, NeurIPS 2019; Walker & Ni, Anderson acceleration for
fixed-point iterations, SIAM J. Numer. Anal. 2011.
"""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn


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


_OF_ROUNDING = 16  # residual of a stalled iteration at most, in roundings of its function
ROUNDINGS = 8  # least tolerance of a relative residual, in roundings of its dtype; float32 keeps 1e-6


SHORT = torch.float16, torch.bfloat16


def _autocast(z: torch.Tensor) -> bool:
    """Tells whether operations on z's device are cast to short floats."""
    return z.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(z.device.type)


def _without_autocast(z: torch.Tensor) -> AbstractContextManager[object]:
    return torch.autocast(z.device.type, enabled=False) if _autocast(z) else nullcontext()


def _reachable(tol: float, z: torch.Tensor) -> float:
    """Returns the tolerance, or what the rounding of z's dtype leaves of it."""
    return max(tol, ROUNDINGS * torch.finfo(z.dtype).eps)


def _residual(fz: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
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
        step, z, tol = 1, z0, _reachable(self.tol, z0)
        while True:
            fz = f(z)
            residual = _residual(fz, z)
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
        n, memory, tol = len(z0), self.memory, _reachable(self.tol, z0)
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


def _solved(solver, f, z0, args):
    """Returns the solution of z = f(z, *args), of one that is stalled by rounding in double precision."""
    try:
        return solver.solve(lambda z: f(z, *args), z0)
    except ConvergenceError as error:
        if error.solution.value.dtype != torch.float32:
            raise
        try:
            return _in_double(solver, f, error.solution, args)
        except (RuntimeError, TypeError):  # it is not stalled, or f or the device has no such floats
            raise error from None


def _in_double(solver, f, stalled, args):
    """Returns the solution in float64, from where float32 is stalled, as float32.

    A sample next to the edge of a dead zone is much smaller than what it comes from, and so than its rounding.
    """
    finer = [a.double() if a.is_floating_point() else a for a in args]
    z, residual = stalled.value, stalled.residual
    noise = _residual(f(z.double(), *finer), f(z, *args).double())
    if not ((residual <= noise * _OF_ROUNDING) | (residual <= _reachable(getattr(solver, "tol", 0.0), z))).all():
        raise ConvergenceError("it is not rounding that keeps it from the equilibrium", stalled)
    end = solver.solve(lambda z: f(z, *finer), z.double())
    return replace(
        end,
        value=end.value.to(z.dtype),
        residual=end.residual.to(z.dtype),
        iterations=stalled.iterations + end.iterations,
    )


class _Implicit(torch.autograd.Function):
    """The value z of z = f(z, *args) as a function of the args, to any order, for autograd and for torch.func."""

    @staticmethod
    def forward(owner, f, z0, *args):
        solution = _solved(owner.solver, f, z0, args)
        owner.iterations, owner.unconverged = solution.iterations, solution.unconverged
        return solution.value

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.owner, ctx.f, _, *args = inputs
        ctx.save_for_backward(output, *args)

    @staticmethod
    def backward(ctx, gradient):
        z, *args = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        with _without_autocast(z):
            if torch.is_grad_enabled():  # create_graph, or a transform of torch.func: to be differentiated in turn
                gradients = _differentiable_adjoint(ctx.owner, ctx.f, gradient, z, *args)
            else:
                gradients = _adjoint(ctx.owner, ctx.f, gradient, z, args, needed)
        return None, None, None, *(value if need else None for value, need in zip(gradients, needed))

    @staticmethod
    def vmap(info, in_dims, owner, f, z0, *args):
        """One solve for the whole batch of problems: the new dimension and that of the samples become one."""
        size, dim = info.batch_size, in_dims[2]
        start = z0.expand(size, *z0.shape) if dim is None else z0.movedim(dim, 0)
        batched = torch.vmap(f, in_dims=(0, *in_dims[3:]))

        def flat(z, *args):
            return batched(z.unflatten(0, (size, -1)), *args).flatten(0, 1)

        return _Implicit.apply(owner, flat, start.flatten(0, 1), *args).unflatten(0, (size, -1)), 0


def _adjoint(owner, f, gradient, z, args, needed):
    """The gradients of the args that need one (None for the others), from one linearisation of f that is kept."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        args = [a.detach().requires_grad_(need) for a, need in zip(args, needed)]
        fz = f(z, *args)

    def adjoint(v):
        return gradient + torch.autograd.grad(fz, z, v, retain_graph=True)[0]

    solution = owner.backward_solver.solve(adjoint, gradient)
    owner.backward_iterations, owner.backward_unconverged = solution.iterations, solution.unconverged
    wanted = [a for a, need in zip(args, needed) if need]
    values = iter(torch.autograd.grad(fz, wanted, solution.value, allow_unused=True))
    return [next(values) if need else None for need in needed]


def _differentiable_adjoint(owner, f, gradient, z, *args):
    """The gradients of all args, as differentiable functions of the gradient, of z and of the args.

    v = g + (df/dz)^T v is a fixed point like the equilibrium itself, so that it is differentiated in the same way. The
    linearisation of f is made anew in each of its iterations, since v has to be a function of z and the args alone.
    """

    def adjoint(v, g, z, *args):
        return g + torch.func.vjp(lambda z: f(z, *args), z)[1](v)[0]

    inner = FixedPoint(owner.backward_solver)
    v = inner(adjoint, gradient.detach(), gradient, z, *args)
    owner.backward_iterations, owner.backward_unconverged = inner.iterations, inner.unconverged
    return torch.func.vjp(lambda *args: f(z, *args), *args)[1](v)


class FixedPoint:
    """z = f(z, *args) by `solver`, differentiable in the args by `backward_solver` (the same by default).

    `f` must be a pure function of z (n, ...) and the tensors `args`: a tensor that it closes over gets no gradient. The
    start z0 gets none either; hand it over with its graph all the same, which a `Stopped` in this place needs.

    Attributes
    ----------
    iterations, backward_iterations : of the last call.
    unconverged, backward_unconverged : samples of the last call that its solver, where it is not strict, gave up.
    keep, last : while `keep` is set, f, z without its graph, and the args of the last call.
    """

    def __init__(self, solver: Solver = Picard(), backward_solver: Solver | None = None):
        self.solver = solver
        self.backward_solver = backward_solver or solver
        self.iterations = self.backward_iterations = self.unconverged = self.backward_unconverged = 0
        self.keep = False
        self.last: tuple[Callable[..., torch.Tensor], torch.Tensor, tuple[torch.Tensor, ...]] | None = None

    def __call__(self, f: Callable[..., torch.Tensor], z0: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        z0 = z0.detach()
        if not _autocast(z0):
            return self._solve(f, z0, *args)
        with _without_autocast(z0):  # whose short floats do not contract below their rounding
            return self._solve(f, *(a.float() if a.dtype in SHORT else a for a in (z0, *args)))

    def _solve(self, f, z0, *args):
        z = _Implicit.apply(self, f, z0, *args)
        if self.keep:
            self.last = f, z.detach(), args
        return z


class Stopped:
    """f(... f(f(z0, *args), *args) ..., *args), with f applied `steps` times, in the place of a `FixedPoint`.

    It is an explicit network of tied weights, differentiated by backpropagation through its steps and its start. The
    count is that of the solvers: `Picard(max_steps=steps, strict=False)` has the same value. The start of this
    project's DEQs, phi(B x), is a layer of its own, so that k steps are k + 1 layers, of which k share A.
    """

    def __init__(self, steps: int):
        if steps < 0:
            raise ValueError(f"a network cannot be stopped after {steps} steps")
        self.steps = self.iterations = steps

    def __call__(self, f: Callable[..., torch.Tensor], z0: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        z = z0
        for _ in range(self.steps):
            z = f(z, *args)
        return z


def equilibria_of(module: nn.Module) -> list[nn.Module]:
    """Returns the parts of a module, itself included, that have an equilibrium: a `FixedPoint` as `fixed_point`."""
    return [part for part in module.modules() if isinstance(getattr(part, "fixed_point", None), FixedPoint)]


def stopped(module: nn.Module, steps: int) -> nn.Module:
    """Returns a copy of a module, each of whose equilibria is `Stopped` after so many steps.

    Understood are `DEQ`, `TrainedDEQ`, `PcDEQNetwork`, and any module that has its equilibria from a `FixedPoint` kept
    as the attribute `fixed_point`. The copy has weights of its own, is trained by backpropagation, and can be exported.

    Raises
    ------
    ValueError : the module has no such equilibrium, or one that is called otherwise, or `steps` is negative.
    """
    explicit = copy.deepcopy(module)
    parts = equilibria_of(explicit)
    names = {key for part in module.modules() for key, value in vars(part).items() if isinstance(value, FixedPoint)}
    if not parts or len(names) > 1:
        raise ValueError(
            f"{type(module).__name__} has no equilibrium by a FixedPoint that could be stopped, or not all are called "
            "fixed_point; deq_enn.unrolling.steppers.stopped finds those of other names, and torchdeq's"
        )
    for part in parts:
        vars(part)["fixed_point"] = Stopped(steps)
    return explicit
