"""The scales tau_0 of the data and tau_* of the equilibrium, and the assumptions of the paper's theorems.

Beside them stand seeds, the device, and files that are written whole or not at all. The code lives in
`deq_enn/theory/equilibrium.py` and `deq_enn/utils/`.
"""

from deq_enn.theory.equilibrium import check_assumptions, check_sigma_a2, check_stable, estimate_tau0, get_tau
from deq_enn.utils.devices import get_device
from deq_enn.utils.files import atomic_write
from deq_enn.utils.random import generator

__all__ = [
    "atomic_write",
    "check_assumptions",
    "check_sigma_a2",
    "check_stable",
    "estimate_tau0",
    "generator",
    "get_device",
    "get_tau",
]
