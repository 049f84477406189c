"""The scales of the theory and its assumptions: tau_0 of the data, tau_* of the equilibrium, and when they exist.

`get_tau` solves tau_*^2 = sigma_a^2 E[phi^2(tau_* xi)] + sigma_b^2 tau_0^2, on which every coefficient of a DEQ's
kernels depends. `check_assumptions` says which of the paper's conditions fail. Beside them stand the small things that
all programs share: seeds, the device, and files that are written whole or not at all.

The code lives in `deq_enn/theory/equilibrium.py` and `deq_enn/utils/`.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

if __name__ == "__main__":
    raise SystemExit("utils.py has names to import and is no program: python main.py --help")

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
