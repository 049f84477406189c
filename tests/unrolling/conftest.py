"""Networks of these tests are drawn from torch's global state, which other tests move."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """The same weights whatever ran before: not all that may be drawn have one equilibrium."""
    torch.manual_seed(0)
