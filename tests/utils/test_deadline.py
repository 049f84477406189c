"""A deadline is seen from inside the loops, in other threads too, and only within its block."""

import pytest
import torch

from deq_enn.utils.deadline import OutOfTime, check, deadline
from deq_enn.utils.tiles import for_each
from tests.conftest import Ticks


def test_it_holds_within_its_block():
    clock = Ticks(1.0)
    with deadline(clock, 2.5):
        check()
        check()
        with pytest.raises(OutOfTime):
            check()
        with deadline(clock, 10.0):
            check()
        with pytest.raises(OutOfTime):
            check()
    check()


@pytest.mark.parametrize("threads", [1, 2])
def test_jobs_that_are_left_are_not_begun(threads):
    done, before = [], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with deadline(Ticks(1.0), 3.5), pytest.raises(OutOfTime):
            for_each(done.append, [(k,) for k in range(100)], torch.device("cpu"))
        assert len(done) < 100 and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
