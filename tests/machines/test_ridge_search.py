"""The search for a ridge against trying every one, and against the three searches that it took the place of."""

import math

import numpy as np
import pytest

from deq_enn.machines.ridge_search import downhill, least_error, search_ridges


@pytest.mark.parametrize("size", range(2, 15))
def test_the_least_of_a_falling_and_rising_error_is_found_without_trying_every_ridge(size):
    ridges = [10.0**k for k in range(size)]
    for least in range(size):
        for refused in range(size - 1):  # ridges too small to factorise the kernel with
            tried = []

            def evaluate(some):
                tried.extend(some)
                return [
                    {"ridge": r, "mse": abs(ridges.index(r) - least - 0.2)} for r in some if ridges.index(r) >= refused
                ]

            table = sorted(search_ridges(ridges, evaluate, 2), key=lambda row: row["ridge"])
            assert least_error(table) == ridges[max(least, refused)], (least, refused)
            assert [row["ridge"] for row in table] == sorted(tried)[-len(table) :]
            assert len(tried) == len(set(tried)) <= (size + 1) // 2 + 2
    assert search_ridges(ridges, lambda some: [], 2) == []


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_downhill_finds_the_least_from_anywhere_and_tries_no_more_than_it_must(size):
    ridges = [10.0**k for k in range(size)]
    for start in range(size):
        for least in range(size):
            for refused in range(size):  # the first so many have no solution
                tried = []

                def evaluate(some):
                    tried.extend(some)
                    solved = [i for i in map(ridges.index, some) if i >= refused]
                    return [{"ridge": ridges[i], "mse": abs(i - least)} for i in solved]

                table = downhill(ridges, ridges[start], evaluate)
                assert least_error(table) == ridges[max(least, refused)]
                assert len(tried) == len(set(tried)) <= abs(max(least, refused) - start) + 3
    assert downhill(ridges, ridges[-1], lambda some: []) == []


# the searches as they were in three modules -------------------------------------------------------------------------


def coarse_to_fine(ridges, evaluate):
    """That of regression.py: every second ridge, and then those beside the best of these."""
    ridges = sorted(ridges)
    table, rest = evaluate(ridges[::2]), ridges[1::2]
    if table:
        best = ridges.index(min(table, key=lambda row: row["mse"])["ridge"])
        rest = [ridges[i] for i in (best - 1, best + 1) if 0 <= i < len(ridges)]
    return sorted(table + evaluate(rest), key=lambda row: row["ridge"])


def least(squared_error, ridges):
    """That of leave_one_out.py: every fourth ridge, then those two and one beside the best so far."""
    known = {}
    tried = list(range(0, len(ridges), 4))
    for step in (2, 1, 0):
        known |= {i: squared_error(ridges[i]) for i in tried if i not in known and 0 <= i < len(ridges)}
        best = min(known, key=known.get)
        tried = [best - step, best + step]
    return ridges[best]


def whole_grid(ridges, evaluate):
    """That of readout.py: every ridge."""
    return [row for ridge in ridges for row in evaluate([ridge])]


@pytest.mark.parametrize("seed", range(200))
def test_the_choices_are_those_of_the_three_searches_before(seed):
    """Errors of any shape, with ties, and with ridges that have no solution."""
    random = np.random.default_rng(seed)
    size = int(random.integers(1, 30))
    ridges = [10.0**k for k in range(size)]
    errors = np.round(random.uniform(size=size), int(random.integers(1, 4))).tolist()
    for i in range(int(random.integers(size))) if seed % 2 else ():
        errors[i] = math.inf
    if seed % 3 == 0:
        errors = sorted(errors, key=lambda error: abs(error - errors[size // 2]) if error < math.inf else math.inf)

    def squared_error(ridge):
        asked.append(ridge)
        return errors[ridges.index(ridge)]

    def evaluate(some):
        rows = [{"ridge": ridge, "mse": squared_error(ridge)} for ridge in some]
        return [row for row in rows if row["mse"] < math.inf]

    asked = []
    before, tried = coarse_to_fine(ridges[::-1], evaluate), list(asked)
    asked.clear()
    after = sorted(search_ridges(ridges, evaluate, 2), key=lambda row: row["ridge"])
    assert (after, asked) == (before, tried)
    assert search_ridges(ridges, evaluate) == whole_grid(ridges, evaluate)
    if min(errors[::4]) < math.inf:  # a Cholesky factor exists for all large ridges, so that the last coarse one has it
        asked.clear()
        before, tried = least(squared_error, ridges), list(asked)
        asked.clear()
        assert (least_error(search_ridges(ridges, evaluate, 4)), asked) == (before, tried)
