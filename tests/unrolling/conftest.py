"""Networks of these tests are drawn from torch's global state, which other tests move; budgets are the processor's."""

import pytest
import torch

from tests.helpers.clocks import by_the_processor


@pytest.fixture(autouse=True)
def seeded():
    """The same weights whatever ran before: not all that may be drawn have one equilibrium."""
    torch.manual_seed(0)


@pytest.fixture(scope="package", autouse=True)
def on_a_busy_machine():
    with pytest.MonkeyPatch.context() as patch:
        by_the_processor(patch)
        yield
