"""Fixed points are differentiated here without the iterations that found them.

`FixedPoint` puts any two solvers of `solvers` (forward, backward) behind the implicit function theorem: for
z = f(z, theta) and an incoming gradient g,

    dL/dtheta = v^T df/dtheta,   v = g + (df/dz)^T v,

so the backward pass is another fixed point, and memory holds one application of f however many steps were made. The
backward pass can be differentiated again (`create_graph`, `torch.func`): v is then differentiated as z is. In forward
mode (`torch.func.jvp`, `jacfwd`) the tangent is a third fixed point, v = (df/dz) v + (df/dtheta) dtheta.

`stopped(module, k)` makes of a module's equilibria explicit networks of k tied steps, trained by backpropagation.

Reference: Bai, Kolter & Koltun, Deep equilibrium models, NeurIPS 2019.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad

from deq_enn.networks.solvers import (
    Anderson,
    ConvergenceError,
    Picard,
    Solution,
    Solver,
    best_combination,
    reachable,
    relative_residual,
)

__all__ = [
    "Anderson",
    "ConvergenceError",
    "FixedPoint",
    "Picard",
    "Solution",
    "Solver",
    "Stopped",
    "best_combination",
    "copied",
    "equilibria_of",
    "held_by",
    "put_in_place",
    "stopped",
]
_OF_ROUNDING = 16  # residual of a stalled iteration at most, in roundings of its function
SHORT = torch.float16, torch.bfloat16
OF_ANY_MODULE = frozenset(vars(nn.Module()))  # attributes that torch gives every module


def _autocast(z: torch.Tensor) -> bool:
    """Tells whether operations on z's device are cast to short floats."""
    return z.device.type in ("cpu", "cuda") and torch.is_autocast_enabled(z.device.type)


def _without_autocast(z: torch.Tensor) -> AbstractContextManager[object]:
    return torch.autocast(z.device.type, enabled=False) if _autocast(z) else nullcontext()


def _traced() -> bool:
    """Tells whether make_fx records what is done. torch has no public question for it, and may drop the private one."""
    try:
        return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    except AttributeError:
        return False


def _solved(solver, f, z0, args):
    """Returns the solution of z = f(z, *args), of one that is stalled by rounding in double precision."""
    if _traced():
        raise NotImplementedError(
            "an equilibrium takes as many steps as its values need, which cannot be traced (torch.func.linearize, "
            "make_fx): take torch.func.jvp for tangents, or stopped(module, steps) for a program"
        )
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
    noise = relative_residual(f(z.double(), *finer), f(z, *args).double())
    if not ((residual <= noise * _OF_ROUNDING) | (residual <= reachable(getattr(solver, "tol", 0.0), z))).all():
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
        ctx.save_for_forward(output, *args)

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
    def jvp(ctx, _owner, _f, _z0, *tangents):
        # torch lets no forward derivative through here, so that of two levels the outer one would be lost
        z, *args = (_primal(t) for t in ctx.saved_tensors)
        with _without_autocast(z), forward_ad._set_fwd_grad_enabled(True):
            return _tangent(ctx.owner, ctx.f, z, args, [t if t is None else _primal(t) for t in tangents])

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


def _tangent(owner, f, z, args, tangents):
    """Returns the derivative of z where the args move along the tangents (None: not at all), itself differentiable.

    It is the fixed point v = (df/dz) v + (df/dargs) tangents.
    """
    moving = [k for k, tangent in enumerate(tangents) if tangent is not None]

    def of_moving(*values):
        new = dict(zip(moving, values))
        return f(z, *(new.get(k, a) for k, a in enumerate(args)))

    def step(v, source, z, *args):
        return source + _pushed(lambda z: f(z, *args), [z], [v])

    source = _pushed(of_moving, [args[k] for k in moving], [tangents[k] for k in moving])
    return FixedPoint(owner.backward_solver)(step, source, source, z, *args)


def _primal(tensor):
    """Returns a tensor without its forward derivative of the present level."""
    return forward_ad.unpack_dual(tensor, level=0).primal


def _pushed(f, at, tangents):
    """Returns the derivative of f along tangents, by reverse mode twice: autograd.forward_ad cannot be nested."""
    pulled = torch.func.vjp(f, *at)
    return torch.func.vjp(pulled[1], torch.zeros_like(pulled[0]))[1](tuple(tangents))[0]


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

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy has: not the last call, whose tensors have graphs."""
        return vars(self) | {"last": None}

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

    Understood are `DEQ`, `TrainedDEQ`, `PcDEQNetwork`, and any module whose equilibria are those of a `FixedPoint` that
    is an attribute, or lies in a list, a tuple or a dictionary that is. The copy has weights of its own, is trained by
    backpropagation, and can be exported.

    Raises
    ------
    ValueError : the module has no such equilibrium or cannot be copied, or `steps` is negative.
    """
    explicit = copied(module)
    if not any(isinstance(each, FixedPoint) for each in held_by(explicit)):
        raise ValueError(
            f"{type(module).__name__} has no equilibrium by a FixedPoint that could be stopped; "
            "deq_enn.unrolling.steppers.stopped finds those of torchdeq"
        )
    put_in_place(explicit, lambda value: isinstance(value, FixedPoint), lambda value: Stopped(steps))
    return explicit


# ---------------------------------------------------------------------------------------------------------------
# what a module holds


def copied(module: nn.Module, shared: bool = False) -> nn.Module:
    """Returns the module once more, with copies of its tensors, or where they are `shared` with the same ones.

    Weights that are computed from others, as by pruning or torchdeq's weight norm, are no leaves, which deepcopy
    refuses. Raises ValueError, in one line, for a module that holds what cannot be copied.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach() if shared else value.detach().clone()
    if shared:
        memo |= {id(value): value for value in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # a lock, a file, a generator, or whatever else a module may hold
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {reason}), and it is not changed; "
            "leave out what copy.deepcopy does not take"
        ) from None


def held_by(module: nn.Module) -> Iterator[object]:
    """Yields all that the parts of a module hold of their own, also within lists, tuples and dictionaries."""
    return (each for place, key in _places(module) for each in _within(place[key]))


def put_in_place(module: nn.Module, wanted: Callable[[object], bool], other: Callable[[object], object]) -> None:
    """Puts other(value) in the place of each value that is wanted and that parts of the module hold.

    A value that is held in several places stays one.
    """
    made: dict[int, tuple[object, object]] = {}

    def once(value: object) -> object:
        if id(value) not in made:  # the old one is kept, so that no other gets its id
            made[id(value)] = value, other(value)
        return made[id(value)][1]

    for place, key in [*_places(module)]:
        if (new := _with_others(place[key], wanted, once)) is not place[key]:
            place[key] = new


def _places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the places where parts of a module hold something of their own: dictionaries, and keys of them."""
    for part in module.modules():
        yield from ((part._modules, key) for key in [*part._modules])
        yield from ((vars(part), key) for key in [*vars(part)] if key not in OF_ANY_MODULE)


def _within(value: object, above: tuple[int, ...] = ()) -> Iterator[object]:
    """Yields a value and, where it is a list, a tuple or a dictionary, all that it holds, one within another.

    above : the ids of those that the value is in, and may hold itself.
    """
    yield value
    if isinstance(value, (list, tuple, dict)) and id(value) not in above:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _within(item, (*above, id(value)))


def _with_others(value: Any, wanted: Callable, other: Callable, above: tuple[int, ...] = ()) -> Any:
    """Puts others in the place of what is wanted within a value, lists and dictionaries in place, and returns it."""
    if wanted(value):
        return other(value)
    if id(value) in above:
        return value
    above = *above, id(value)
    if isinstance(value, (list, dict)):
        for key, item in [*(value.items() if isinstance(value, dict) else enumerate(value))]:
            if (new := _with_others(item, wanted, other, above)) is not item:
                value[key] = new
    elif isinstance(value, tuple) and any(map(wanted, _within(value))):
        items = [_with_others(item, wanted, other, above) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
