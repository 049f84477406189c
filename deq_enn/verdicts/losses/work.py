"""How much work a pass is, in multiplications of float32: its time is that of the last pass, times the ratio of both.

Narrow networks take their time for much else than products, and would make the rest of a pass look as slow. So a step
of a unit is worth STEP products beside its own, and a readout some such steps for each sample and each of its features.
The numbers were measured on one core, at widths from 32 to 1,024. An equilibrium takes as many steps as at infinite
width, and somewhat more, until draws of that width have shown how many it takes.
"""

import math

from deq_enn.machines.leave_one_out import CHOICE
from deq_enn.machines.readout import RIDGES
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.verdicts.candidates import RandomDEQ

EIGEN = 9  # multiplications for each entry and row of a matrix that the time of its eigenvectors is worth
STEP = 400  # multiplications that a step of one unit is worth beside its products, 300 to 900 by the activation
FEATURE_STEPS, SAMPLE_STEPS = 3, 100  # such steps of the readout of a sample, for each of its features and beside them
READOUT = 8e7  # multiplications that a readout is worth however few samples it has
FLOAT64 = 2  # times the work in float32 that the same in float64 is
LONGER = 2.4  # times the steps to an equilibrium in float32 that one in float64 takes
FINITE = 1.7  # times the steps at infinite width that a network of width 128 or 256 takes
UNKNOWN_STEPS = 15.0  # steps to an equilibrium of which nothing is known


def solve_work(n: int, m: int, classes: int) -> float:
    """Returns the multiplications that it is worth to leave out n samples with m features one by one."""
    k, choice = min(n, m), min(n, CHOICE)
    products = n * n * m if n <= m else (2 * n + choice) * m * m
    products += EIGEN * k**3 + len(RIDGES) * (1 + classes) * choice * k
    return 2 * products + STEP * n * (FEATURE_STEPS * k + SAMPLE_STEPS) + READOUT


def steps_to_equilibrium(deq: RandomDEQ, tolerance: float, most: int) -> float:
    """Returns how many steps of z = f(z) a DEQ takes until z changes by this share of its norm only, or `most`.

    At infinite width the square of the change shrinks by sigma_a^2 E[phi'^2] with each step.
    """
    try:
        moments = gaussian_moments(deq.activation, get_tau(deq.activation, deq.sigma_a2, deq.tau0))
    except ValueError:
        return UNKNOWN_STEPS
    growth = deq.sigma_a2 * moments.d1_sq
    if not 0 < growth < 1:
        return UNKNOWN_STEPS
    return min(FINITE * 2 * math.log(tolerance) / math.log(growth), most)
