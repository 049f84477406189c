"""The verdict is asked for from Python: should an explicit network replace this DEQ, and which?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deq_enn.unrolling.result import StepVerdict
from deq_enn.verdicts.result import RISK, Verdict

if TYPE_CHECKING:
    from deq_enn.networks.fixed_point import Solver
    from deq_enn.unrolling.steppers import Steps


def verdict(
    deq: Any,
    X: Any,
    y: Any = None,
    *,
    held: tuple[Any, Any] | None = None,
    width: int | None = None,
    budget: float = 60.0,
    tolerance: float = 0.5,
    seed: int = 0,
    decide_on: str = "draw",
    risk: float = RISK,
    solver: Solver | None = None,
    steps: Steps | None = None,
    seen: float | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict | StepVerdict:
    """Returns whether an explicit network should replace a DEQ on these data, and which.

    Parameters
    ----------
    deq : a `DEQ` at initialisation, of which activation, sigma_a^2, width and tau_0 count; or a `ConvDEQ` at
        initialisation, with images (n, c, h, w); or a trained DEQ: any
        module whose equilibria `unrolling.steppers.stopped` can stop after k steps, which is then judged as it is; or
        one of the form that `networks.trained_deq.adapt` understands.
    X, y : training samples, (n, p) or of any shape that a trained module takes, scaled as it takes them, and (n,)
        labels or None: integers, or strings, whose sorted order is that of the outputs. For a trained DEQ they are 0,
        1, ... in the order of its outputs.
    held : (X, y) that a trained DEQ has not seen, on which the loss is measured. A module that is judged as it is
        needs them; else they are by default a fifth of X.
    width : of the networks to compare; by default the DEQ's. A module that is judged as it is has its own.
    budget : seconds for everything.
    tolerance : the loss of accuracy that is acceptable, in percentage points.
    seed : of the subsamples and of the weights that are drawn.
    decide_on : "draw" for the very DEQ that is given and the network of its seed; "mean" for the mean over draws of the
        weights. For a trained DEQ there is but one draw.
    risk : probability, below 0.5, of losing more than the tolerance below which "replace" is said, and of losing less
        below which "keep" is. The losses of a trained DEQ are measured, and their 90% intervals decide.
    solver : of the equilibrium of a trained DEQ, such as Anderson(); by default that of a `DEQ`, else Picard, or
        Anderson where Picard does not converge.
    steps : the user's own way to stop a trained module, steps(module, k) -> the module after k steps. It gets a copy.
    seen : samples that a trained DEQ passed in its training, each time that one was; networks in its place are trained
        on no more.
    progress : whether to show a bar.
    clock : measures the budget; pass time.process_time on a machine that others use.

    Raises
    ------
    ValueError : the samples or labels cannot be used, the module cannot be stopped or its forward is random, or is not
        the equilibrium of its parts, or the DEQ has no stable equilibrium; says why.
    """
    from deq_enn.verdicts.after_training import begin
    from deq_enn.verdicts.assumptions import names_of_classes
    from deq_enn.verdicts.at_initialisation import VerdictAtInitialisation

    pending = begin(
        deq,
        X,
        y,
        held=held,
        width=width,
        budget=budget,
        tolerance=tolerance,
        seed=seed,
        decide_on=decide_on,
        risk=risk,
        clock=clock,
        solver=solver,
        steps=steps,
        seen=seen,
    )
    pending.run(progress)
    answer = pending.conclude()
    if isinstance(pending, VerdictAtInitialisation) and isinstance(answer, Verdict):
        answer.labels = names_of_classes(y)
    return answer
