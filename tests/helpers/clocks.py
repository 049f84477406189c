"""Budgets by the processor's clock: on a machine that others use, a second of it does as much as on a quiet one."""

import time

from deq_enn.unrolling.by_steps import VerdictBySteps
from deq_enn.verdicts import api
from deq_enn.verdicts.after_training import VerdictAfterTraining
from deq_enn.verdicts.at_initialisation import VerdictAtInitialisation
from deq_enn.verdicts.measured_loss import replacements

BUDGETED = VerdictBySteps.__init__, VerdictAfterTraining.__init__, VerdictAtInitialisation.__init__


def by_the_processor(patch):
    """Verdicts that are given no clock take the process's own time."""
    for call in (*BUDGETED, api.verdict, replacements):
        assert call.__kwdefaults__["clock"] is time.perf_counter
        patch.setitem(call.__kwdefaults__, "clock", time.process_time)
