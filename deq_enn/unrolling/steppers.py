"""Any DEQ can be stopped here: each of its equilibria is replaced by k steps of its own iteration.

`stopped(module, k)` returns a module of the same weights that makes k steps and no more. It understands

- every module whose equilibria are solved by `networks.fixed_point.FixedPoint`: our DEQ, all six pcDEQs, a user's own;
- every module with a DEQ of torchdeq in it (`torchdeq.get_deq()`), with one state or with a tuple of them;
  both may be attributes, or lie in lists, tuples and dictionaries that are;
- anybody's, by a function of the user's, `steps(module, k) -> module`:

    def steps(module, k):            # module is a copy, which may be changed; its weights are the user's
        module.most_iterations = k   # of a loop written by hand, for example
        module.tolerance = 0.0
        return module                # or any other nn.Module that makes k steps

`steps=anderson_steps` makes k steps of Anderson's method in place of plain ones, for equilibria that plain iteration
does not find.

A step is one application of the equilibrium's function, from the point where the module itself starts. k = 1 is thus
one application, whatever the start: our DEQ starts from phi(B x), so that k steps are k + 1 layers. The steps are
differentiated one by one, so that a stopped module can be trained on. The user's module is never changed.

torchdeq: Geng & Kolter, TorchDEQ: a library for deep equilibrium models, arXiv 2310.18605.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from deq_enn.networks.fixed_point import Anderson, FixedPoint, Stopped, best_combination, copied, held_by, put_in_place

Steps = Callable[[nn.Module, int], nn.Module]  # a user's own way to stop a module after k steps
State = torch.Tensor | tuple[torch.Tensor, ...]

ADVICE = (
    "it has no equilibrium of this project's FixedPoint or of torchdeq; say how to stop it: "
    "steps=my_function, my_function(module, k) -> the module stopped after k steps"
)


class Unrolled(Stopped):
    """This is `Stopped` for states of one tensor or several, which can be watched, damped, and begun elsewhere.

    Parameters
    ----------
    k : applications of f.
    accelerated : whether to start each step from the best combination of the last points (Anderson's method), whose
        weights are not differentiated.
    damping : z <- damping f(z) + (1 - damping) z, torchdeq's `tau`.

    Attributes
    ----------
    start : where set, the state that takes the place of z0.
    last : the state at the end of the last call, detached; None where `keep` is False.
    calls : since it was set to 0.
    """

    def __init__(self, k: int, accelerated: bool = False, damping: float = 1.0):
        super().__init__(k)
        self.accelerated, self.damping = accelerated, damping
        self.start: State | None = None
        self.last: State | None = None
        self.keep, self.calls = False, 0

    def __call__(self, f: Callable[..., torch.Tensor], z0: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        z = self.run(lambda z: f(z, *args), z0)
        assert isinstance(z, torch.Tensor)
        return z

    def run(self, f: Callable[[Any], Any], z: Any) -> State:
        """Returns the state after k steps of f from z, a tensor or a tuple of them."""
        self.calls += 1
        if self.start is not None:
            z = self.start
        if self.accelerated:
            z = _accelerated(f, z, self.steps)
        else:
            for _ in range(self.steps):
                z = _mixed(f(z), z, self.damping)
        if self.keep:
            self.last = z.detach() if isinstance(z, torch.Tensor) else tuple(part.detach() for part in z)
        return z


def _mixed(new: Any, old: Any, damping: float) -> State:
    if not isinstance(new, torch.Tensor):
        return tuple(_mixed(*pair, damping) for pair in zip(new, old))  # type: ignore[misc]
    return new if damping == 1.0 else damping * new + (1 - damping) * old


def _accelerated(f: Callable[[Any], Any], z: Any, k: int) -> State:
    """Makes k steps of Anderson's method, as `networks.fixed_point.Anderson` does, of a tensor or a tuple."""
    parts = (z,) if isinstance(z, torch.Tensor) else tuple(z)
    shapes, sizes = [part.shape for part in parts], [part[0].numel() for part in parts]

    def flat(state: Any) -> torch.Tensor:
        return torch.cat([part.flatten(1) for part in ((state,) if isinstance(state, torch.Tensor) else state)], 1)

    def whole(rows: torch.Tensor) -> Any:
        state = tuple(part.reshape(shape) for part, shape in zip(rows.split(sizes, 1), shapes))
        return state[0] if isinstance(z, torch.Tensor) else state

    values: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    now = flat(z)
    for step in range(k):
        values = [*values, flat(f(whole(now)))][-Anderson.memory :]
        residuals = [*residuals, (values[-1] - now).detach().double()][-Anderson.memory :]
        if step < k - 1:
            stacked = torch.stack(residuals, 1)
            weights = best_combination(stacked @ stacked.transpose(1, 2), Anderson.ridge).to(now.dtype)
            now = (weights[:, :, None] * torch.stack(values, 1)).sum(1)
    return whole(values[-1])


class UnrolledTorchDEQ(nn.Module):
    """This makes k plain steps in the place of a DEQ of torchdeq; it is called as that is, and returns the like."""

    def __init__(self, k: int, accelerated: bool = False):
        super().__init__()
        self.unrolled = Unrolled(k, accelerated)

    def forward(
        self, func: Callable[..., Any], z_init: Any, solver_kwargs: dict | None = None, **ignored: Any
    ) -> tuple[list, dict]:
        """Returns ([state], statistics) as torchdeq does in evaluation mode; the state is a list where z_init is one.

        func, z_init : as torchdeq has them, f(z) of a tensor or f(*z) of a tuple or list. Of `solver_kwargs` a damping
        `tau` is taken.
        """
        self.unrolled.damping = float((solver_kwargs or {}).get("tau", self.unrolled.damping))
        single = isinstance(z_init, torch.Tensor)
        state = self.unrolled.run(func if single else lambda z: func(*z), z_init if single else tuple(z_init))
        unknown = torch.full((1,), -1.0)
        said = {key: unknown for key in ("abs_lowest", "rel_lowest", "abs_trace", "rel_trace", "sradius")}
        return [state if single else list(state)], said | {"nstep": torch.full((1,), float(self.unrolled.steps))}


# ---------------------------------------------------------------------------------------------------------------
# stopping


def stopped(module: nn.Module, k: int, steps: Steps | None = None, shared: bool = True) -> nn.Module:
    """Returns a module that makes k steps at each equilibrium of this one, in evaluation mode.

    Parameters
    ----------
    module : left as it is.
    steps : the user's own way; by default FixedPoint and torchdeq are looked for.
    shared : whether the weights are the module's own tensors, as for a measurement; else they are copies, to train.

    Raises
    ------
    ValueError : in one line, where the module cannot be copied or stopped.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"a DEQ must be a torch.nn.Module, got {type(module).__name__}")
    if k < 1:
        raise ValueError(f"a DEQ is stopped after one step or more, got {k}")
    explicit = copied(module, shared)
    if steps is None:
        _replace(explicit, k)
        return explicit.eval()
    try:
        result = steps(explicit, k)
    except Exception as error:  # whatever the user's code raises
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"steps(module, {k}) fails ({type(error).__name__}: {reason}); it gets a copy of the module, and returns a "
            "module that stops after so many steps"
        ) from None
    if not isinstance(result, nn.Module):
        raise ValueError(f"steps(module, {k}) must return a torch.nn.Module, got {type(result).__name__}")
    return result.eval()


def anderson_steps(module: nn.Module, k: int) -> nn.Module:
    """Puts k steps of Anderson's method in the place of each equilibrium of a module, in place: for `steps=`."""
    _replace(module, k, accelerated=True)
    return module


def can_be_stopped(module: Any) -> bool:
    """Tells whether `stopped` finds an equilibrium without the user's help."""
    return isinstance(module, nn.Module) and any(map(_is_equilibrium, held_by(module)))


def unrolled_parts(module: nn.Module) -> list[Unrolled]:
    """Returns the `Unrolled`s of a stopped module, in the order of its parts; none where a user's function made it."""
    parts = (each.unrolled if isinstance(each, UnrolledTorchDEQ) else each for each in held_by(module))
    return list({id(part): part for part in parts if isinstance(part, Unrolled)}.values())


def _is_equilibrium(value: object) -> bool:
    """Tells whether a value is a FixedPoint or a DEQ of torchdeq."""
    return isinstance(value, FixedPoint) or any(
        kind.__name__ == "DEQBase" and kind.__module__.partition(".")[0] == "torchdeq" for kind in type(value).__mro__
    )


def _replace(module: nn.Module, k: int, accelerated: bool = False) -> None:
    """Puts k steps in the place of every equilibrium."""
    if not can_be_stopped(module):
        raise ValueError(f"{type(module).__name__} cannot be stopped after k steps: {ADVICE}")

    def other(value: object) -> object:
        return (UnrolledTorchDEQ if isinstance(value, nn.Module) else Unrolled)(k, accelerated)

    put_in_place(module, _is_equilibrium, other)
