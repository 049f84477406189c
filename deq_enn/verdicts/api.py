"""The verdict from Python: should an explicit network replace this DEQ, and which?"""

import time

from deq_enn.verdicts.result import Verdict


def verdict(
    deq,
    X,
    y=None,
    *,
    held=None,
    width: int | None = None,
    budget: float = 60.0,
    tolerance: float = 0.5,
    seed: int = 0,
    progress: bool = False,
    clock=time.perf_counter,
) -> Verdict:
    """Whether an explicit network should replace a DEQ for these data, and which.

    Parameters
    ----------
    deq : model.DEQ at initialisation, of which activation, sigma_a^2, width and tau_0 count; or a DEQ that was trained,
        ours or any module that `trained_deq.adapt` understands.
    X, y : (n, p) training samples, scaled as the DEQ has them, and (n,) integer labels or None. Those of a trained DEQ
        are 0, 1, ... in the order of its outputs.
    held : of a trained DEQ, (X, y) that it was not trained on, for the loss; by default a fifth of X.
    width : by default that of the DEQ.
    budget : seconds, for all of it.
    tolerance : the loss of accuracy that may be had, in percentage points.
    seed : of the subsamples and of the weights that are drawn.
    progress : whether a bar is shown.
    clock : that the budget is measured by; time.process_time on a machine that others use.

    Raises
    ------
    ValueError : the samples or labels cannot be used, or the DEQ has no stable equilibrium; says why.
    """
    from deq_enn.verdicts.after_training import inquire

    inquiry = inquire(deq, X, y, held=held, width=width, budget=budget, tolerance=tolerance, seed=seed, clock=clock)
    inquiry.run(progress)
    return inquiry.conclude()
