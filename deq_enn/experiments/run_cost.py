"""What a run of a grid takes is estimated here, without torch: the longest is begun first."""

from typing import Any

from deq_enn.names import DEQS

READOUT = 4.6  # multiplications of a matrix product that take as long as one of a readout's epoch, which memory bounds


def cost(config: Any, n: int, p: int, n_classes: int) -> float:
    """Estimates what a run takes, in multiplications; only ratios matter.

    n: training and test samples; p: their dimension. Products of the features are counted: a DEQ's 13 iterations
    (measured at sigma_a^2 = 0.2), the steps after which it is stopped, or one layer after the first. A readout epoch is
    bound by memory, not by arithmetic: its multiplications count `READOUT` times.
    """
    m = config.dim
    features = n * m * (p + m * (config.steps or (13 if config.model in DEQS else 1)))
    if config.train == "readout":
        return features + READOUT * config.epoch * n * m * n_classes
    return 3 * config.epoch * features  # forward, and twice as much backward
