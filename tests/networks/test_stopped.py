"""Equilibria that are stopped after k steps, and what a FixedPoint says of samples that miss the tolerance."""

import copy

import pytest
import torch
from torch.nn.utils import prune

from deq_enn.networks.build import matched_enn
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import Anderson, FixedPoint, Picard, stopped
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.networks.trained_deq import adapt


def networks() -> dict[str, torch.nn.Module]:
    deq = DEQ("tanh", 6, 9, 3, 0.6, seed=2)
    return {"deq": deq, "trained": adapt(deq), "pcdeq": build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10)}


def rows(name, n=4):
    return torch.randn(n, 784 if name == "pcdeq" else 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", networks())
def test_a_stopped_network_has_the_outputs_of_the_solver_stopped(name):
    network, x = networks()[name].eval(), rows(name)
    (part,) = (part for part in network.modules() if hasattr(part, "fixed_point"))
    exact = network(x)
    for steps in (0, 1, 4):
        part.fixed_point.solver = Picard(0.0, max(steps, 1), strict=False)
        explicit = stopped(network, steps)
        if steps:
            assert torch.equal(explicit(x), network(x))
        assert {*explicit.state_dict()} == {*network.state_dict()}
    assert not torch.equal(explicit(x), exact)
    torch.testing.assert_close(stopped(network, 60)(x), exact, rtol=1e-3, atol=1e-4)
    assert isinstance(part.fixed_point, FixedPoint)  # the original is as it was


@pytest.mark.parametrize("name", networks())
def test_its_gradients_are_those_of_finite_differences(name):
    """In particular those that go through the start, and those of the weights inside a weight norm."""
    network = stopped(networks()[name], 2).double().eval()
    x = rows(name, 3).double()
    weights = dict(network.named_parameters())
    target = torch.randn(network(x).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gradients = torch.autograd.grad((network(x) * target).sum(), [*weights.values()])
    for (key, weight), gradient in zip(weights.items(), gradients):
        direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        direction *= weight.detach().square().mean().sqrt() + 1e-3  # weights of a pcDEQ begin close to 0
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                moved = {key: weight + sign * 1e-6 * direction}
                values.append((torch.func.functional_call(network, moved, (x,)) * target).sum())
        expected = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-6, atol=1e-7)


def test_the_gradient_is_not_the_implicit_one_of_the_equilibrium():
    network, x = networks()["deq"], rows("deq")
    implicit, explicit = (torch.autograd.grad(each(x).sum(), each.A)[0] for each in (network, stopped(network, 1)))
    assert torch.linalg.norm(implicit - explicit) > 0.1 * torch.linalg.norm(implicit)


def test_what_has_no_equilibrium_cannot_be_stopped_and_what_is_stopped_is_no_deq():
    with pytest.raises(ValueError, match="Linear has no equilibrium"):
        stopped(torch.nn.Linear(2, 2), 3)
    with pytest.raises(ValueError, match="cannot be stopped after -1 steps"):
        stopped(networks()["deq"], -1)
    explicit = stopped(networks()["deq"], 3)
    with pytest.raises(ValueError, match="stopped after 3 steps, an explicit network"):
        adapt(explicit)
    with pytest.raises(ValueError, match="no theory says what replaces"):
        matched_enn(explicit)
    with pytest.raises(ValueError, match="has no equilibrium"):
        stopped(explicit, 1)


def test_equilibria_are_stopped_wherever_they_are_and_weights_that_are_no_leaves_are_copied():
    deq, x = networks()["deq"], rows("deq")
    expected = stopped(deq, 3)(x)
    deq.others, deq.same = [{"one more": FixedPoint()}], deq.fixed_point
    explicit = stopped(deq, 3)
    assert torch.equal(explicit(x), expected) and explicit.same is explicit.fixed_point
    assert explicit.others[0]["one more"].steps == 3 and isinstance(deq.others[0]["one more"], FixedPoint)
    deq.fixed_point.keep = True
    deq(x)  # what it keeps has a graph
    assert torch.equal(stopped(copy.deepcopy(deq), 3)(x), expected)
    assert deq.fixed_point.last and copy.deepcopy(deq).fixed_point.last is None
    prune.random_unstructured(deq, "A", 0.5)
    explicit = stopped(deq, 3)
    explicit(x).sum().backward()
    assert explicit.A_orig.grad.any() and not torch.equal(explicit(x), expected)


def test_samples_that_miss_the_tolerance_are_counted():
    """Of z <- r z + 1 from 0 the residual is r^k / (1 + r + ... + r^k), and that of its adjoint too."""
    rates = torch.tensor([[0.1], [0.5], [0.99], [1.0]], dtype=torch.float64).requires_grad_()
    point = FixedPoint(Picard(1e-6, 40, strict=False))
    z = point(lambda z, r: r * z + 1, torch.zeros(4, 1, dtype=torch.float64), rates)
    assert (point.iterations, point.unconverged) == (40, 2)
    z.sum().backward()
    assert (point.backward_iterations, point.backward_unconverged) == (40, 2)
    with torch.no_grad():
        z = point(lambda z, r: r * z + 1, torch.zeros(2, 1, dtype=torch.float64), rates[:2])
    assert point.unconverged == 0


@pytest.mark.parametrize("solver", [Picard(1e-6, 2, strict=False), Anderson(1e-6, 2, strict=False)])
def test_samples_that_are_no_numbers_miss_the_tolerance_too(solver):
    z = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    limit = torch.tensor([[1.0], [2.0], [torch.nan]], dtype=torch.float64)
    solution = solver.solve(lambda _: limit, z)
    assert solution.unconverged == 1 and not solution.converged
