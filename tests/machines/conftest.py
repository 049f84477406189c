"""The problem that the tests of kernel machines share."""

import pytest

from tests.helpers.kernel_rank import make_problem


@pytest.fixture(scope="module")
def problem():
    return make_problem()
