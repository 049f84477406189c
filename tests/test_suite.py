"""Which checks are run without --long."""

import itertools
from types import SimpleNamespace

import pytest

from tests.conftest import beyond_the_few


class Case:
    """As much of a pytest item as is looked at."""

    path = "test_x.py"

    def __init__(self, name, few=None, place=()):
        self.originalname, self.few = name, few
        self.callspec = SimpleNamespace(indices={f"p{k}": value for k, value in enumerate(place)})

    def get_closest_marker(self, name):
        return SimpleNamespace(args=(self.few,)) if self.few else None


@pytest.mark.parametrize("shape, few", [((3, 6, 7), 7), ((5, 5), 5), ((4, 1), 1), ((3,), 2), ((2, 1), 5)])
def test_so_many_cases_are_run_and_they_have_all_values_of_the_parameters(shape, few):
    places = [*itertools.product(*map(range, shape))]
    marked = [Case("marked", few, place) for place in places]
    left_out = beyond_the_few([*marked, *(Case("other") for _ in range(7))])
    assert left_out <= set(marked)
    kept = [place for place, case in zip(places, marked) if case not in left_out]
    assert len(kept) == min(few, len(places)) and kept[0] == places[0]
    for values, size in zip(zip(*kept), shape):
        assert len(set(values)) == min(size, few)
