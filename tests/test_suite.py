"""Which checks are run without --long."""

from types import SimpleNamespace

import pytest

from tests.conftest import beyond_the_few


class Case:
    """As much of a pytest item as is looked at."""

    path = "test_x.py"

    def __init__(self, name, few=None):
        self.originalname, self.few = name, few

    def get_closest_marker(self, name):
        return SimpleNamespace(args=(self.few,)) if self.few else None


@pytest.mark.parametrize("cases, few", [(126, 21), (25, 6), (4, 1), (3, 2), (2, 5)])
def test_so_many_cases_are_run_and_they_are_spread(cases, few):
    marked = [Case("marked", few) for _ in range(cases)]
    left_out = beyond_the_few([*marked, *(Case("other") for _ in range(7))])
    assert left_out <= set(marked)
    kept = [number for number, case in enumerate(marked) if case not in left_out]
    assert len(kept) == min(few, cases) and kept[0] == 0
    assert max(b - a for a, b in zip(kept, [*kept[1:], cases])) <= -(-cases // len(kept))
