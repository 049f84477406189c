"""A quadrature of pairs is as fine as they need: its rules are tried from the cheapest on, until two of them agree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deq_enn.kernels.parallel.in_sectors import ray_moments, sector_moments
from deq_enn.kernels.parallel.in_the_plane import pair_moments
from deq_enn.theory.activations import Activation
from deq_enn.utils.deadline import check


@dataclass(frozen=True)
class Rule:
    """This is a quadrature with so many nodes; rules of one kind differ in nothing else.

    moments : `pair_moments`, or a function of the same parameters. settings : its parameters after the nodes.
    """

    moments: Callable[..., torch.Tensor]
    nodes: int
    settings: tuple[bool, ...] = ()

    @property
    def kind(self) -> tuple[object, ...]:
        """Returns what rules that can be compared have in common."""
        return self.moments, self.settings

    def __call__(self, activation: Activation, centre: float, *pairs: torch.Tensor) -> torch.Tensor:
        """Returns the moments (2, pairs) at a, b, sign and theta, (pairs,) each."""
        return self.moments(activation, centre, *pairs, self.nodes, *self.settings)


IN_THE_PLANE = (  # panels move with the features about 0 in the last ones
    *(Rule(pair_moments, nodes, (False,)) for nodes in (8, 12, 18, 27, 41)),
    *(Rule(pair_moments, nodes, (True,)) for nodes in (8, 12, 18, 27, 41, 62, 93)),
)
IN_SECTORS = (  # for what has a kink at 0 at most; if it has a narrow feature elsewhere, panels in the plane may do
    *(Rule(sector_moments, nodes) for nodes in (16, 23, 33, 47, 66, 93, 131, 184)),
    *IN_THE_PLANE,
)
ON_RAYS = (  # for parallel pairs of what has a kink at 0 at most
    *(Rule(ray_moments, nodes) for nodes in (16, 23, 33, 47, 66, 93, 131, 184, 258)),
    *IN_THE_PLANE,
)


def rounding(activation: Activation, apart: torch.Tensor, dot: torch.Tensor, ab: torch.Tensor) -> torch.Tensor:
    """Returns the error of the mean squared difference of f(u) and f(v) that comes from their rounding.

    Both are f(0) + O(sqrt(ab dot)).
    """
    constant = activation.fn(torch.zeros(1, dtype=torch.float64)).abs()
    size = 1e-15 * ((ab * dot.abs()).sqrt() + constant)
    return size * (apart.sqrt() + size)


def resolved_rule(
    rules: Sequence[Rule],
    activation: Activation,
    centre: float,
    a: torch.Tensor,
    b: torch.Tensor,
    sign: torch.Tensor,
    theta: torch.Tensor,
) -> int:
    """Returns the place of the first rule that agrees with the one before, of the same kind, to 1e-10.

    It is asked for some of the pairs. The error of a Gauss-Legendre rule falls geometrically, so that the finer of the
    two has one of about 1e-14.
    """
    some = torch.cat([torch.stack([t.argmin(), t.argmax()]) for t in (a, b, theta, theta * a, theta * b)]).unique()
    a, b, sign, theta = (t[some] for t in (a, b, sign, theta))
    coarse = None
    for place, rule in enumerate(rules):
        check()
        fine = rule(activation, centre, a, b, sign, theta)
        if coarse is not None and rule.kind == rules[place - 1].kind:
            apart, dot = fine
            floor = torch.stack([rounding(activation, apart, dot, a * b), torch.zeros_like(a)])
            if ((coarse - fine).abs() <= 1e-10 * fine.abs().amax(1, keepdim=True) + floor).all():
                return place
        coarse = fine
    raise ValueError(
        f"the kernel of {activation.name} between nearly parallel samples does not converge: it is not smooth "
        "between its declared kinks; declare them (Activation(..., kinks=...)), or remove such samples"
    )
