"""Tables of the moments of nearly parallel pairs, against nested quadrature and quadrature in the plane."""

import math

import pytest
import torch

from deq_enn.kernels import pair_functions
from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.kernels.parallel import pairs
from deq_enn.kernels.parallel.in_the_plane import pair_moments
from deq_enn.kernels.parallel.tabulated import NotSmooth, ParallelTable
from deq_enn.theory.activations import ACTIVATIONS, from_function
from deq_enn.utils.random import generator
from tests.helpers.pair_quadrature import BY_HAND, pair_expectation, quadrature

CENTRE = 0.3
SMOOTH = [name for name, activation in ACTIVATIONS.items() if not activation.slopes]


def read(table, a, b, sign, theta):
    """(apart, dot) of pairs of one sign, (2, pairs)."""
    a, b, theta = (torch.tensor(values, dtype=torch.float64) for values in (a, b, theta))
    ((_, some),) = table.parts(a, b, torch.full_like(a, sign))
    return torch.stack(some(theta)[1:])


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["selu", "softsign", "elu", "tanh", "swish"])
def test_a_table_has_the_values_of_nested_quadrature(name):
    activation = ACTIVATIONS[name]
    f, df = BY_HAND[name]
    table = ParallelTable(activation, CENTRE, 0.4, 2.0)
    for sign in (1, -1):
        for a, b, theta in ((0.5, 1.7, 0.2), (1.9, 1.8, 0.9), (0.7, 0.7, 1.5)):
            (apart,), (dot,) = read(table, [a], [b], sign, [theta]).tolist()
            args = activation.kinks, a * a, b * b, sign * a * b * math.cos(theta)
            second, other = (quadrature(lambda x: (f(s * x) - CENTRE) ** 2, (0.0,)) for s in (a, b))
            expected = second + other - 2 * sign * pair_expectation(lambda x: f(x) - CENTRE, *args)
            assert apart == pytest.approx(expected, rel=1e-11)
            if df is not None:
                assert dot == pytest.approx(pair_expectation(df, *args), rel=1e-11)


@pytest.mark.few(1)
@pytest.mark.parametrize("low, high", [(0.3, 1.5), (0.001, 3.0), (0.5, 12.0)])
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.long
def test_a_table_has_the_values_of_quadrature_in_the_plane(name, low, high):
    """Of pairs that are parallel, nearly so, of the same norm and of the farthest, to all digits."""
    table = ParallelTable(ACTIVATIONS[name], CENTRE, low, high)
    middle = math.sqrt(low * high)
    a = [low, middle, middle, high, low, high]
    b = [low, middle * 1.001, middle, high, high, 0.9 * high]
    theta = [0.0, 0.0, 1e-3, 1e-2, 0.3, 1.5]
    for sign in (1.0, -1.0):
        moments = read(table, a, b, sign, theta)
        pairs = (torch.tensor(values, dtype=torch.float64) for values in (a, b, [sign] * 6, theta))
        expected = pair_moments(ACTIVATIONS[name], CENTRE, *pairs, 41, True)
        size = expected.abs().amax(1, keepdim=True)
        assert ((moments - expected).abs() <= 1e-12 * size).all()
        small = expected[0, 1:3]  # a small distance has its digits too
        torch.testing.assert_close(moments[0, 1:3], small, rtol=1e-9, atol=1e-13)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["selu", "softsign", "elu"])
@pytest.mark.long
def test_kernels_by_the_table_are_those_of_pairs_one_by_one(name, monkeypatch):
    """Rows of one dimension, some of them the same, opposite or nearly so, and rows of two."""
    line = torch.tensor([[-1.7], [-0.4], [0.4], [0.8], [0.8 + 1e-8], [1.9]], dtype=torch.float64)
    plane = torch.tensor([[1.0, 0.1], [1.0, 0.11], [-2.0, -0.2], [0.5, 0.05], [0.0, 1.0], [0.02, 2.0]])
    f, kernels = ACTIVATIONS[name], {}
    for few in (0, 100):
        monkeypatch.setattr(pairs, "FEW", few)
        monkeypatch.setattr(pair_functions, "FEW", few)
        kernels[few] = [K for X in (line, plane) for K in (*implicit_kernels(X, f, 0.4), *explicit_kernels(X, [f, f]))]
    for kernel, expected in zip(kernels[0], kernels[100], strict=True):
        assert not torch.equal(kernel, expected)
        torch.testing.assert_close(kernel, expected, rtol=1e-10, atol=1e-11)


def test_what_is_not_smooth_has_no_table():
    jagged = from_function(lambda x: torch.tanh(x) + 0.1 * (x - 0.3).abs(), "jagged")  # a kink that is not declared
    with pytest.raises(NotSmooth, match="not smooth"):
        ParallelTable(jagged, 0.0, 0.5, 1.5)
    for activation in (jagged, from_function(torch.nn.functional.elu, "elsewhere", kinks=(0.5,))):
        assert pairs.Moments(activation, 0.0, 0.5, 1.5).table_for(10 * pairs.FEW) is None


def test_a_table_is_made_on_one_thread_and_torch_has_its_threads_again(monkeypatch):
    seen = []

    class Recording(pairs.ParallelTable):
        def __init__(self, *arguments):
            seen.append(torch.get_num_threads())
            super().__init__(*arguments)

    monkeypatch.setattr(pairs, "ParallelTable", Recording)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        rows = torch.randn(80, 5, generator=generator("rows of one direction each"))
        implicit_kernels(torch.cat([rows, 1.5 * rows]), ACTIVATIONS["tanh"], 0.2)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
