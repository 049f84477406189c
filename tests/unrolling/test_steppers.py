"""A stopped module makes k steps of the module's own iteration, whoever wrote it, and the module is as it was."""

import copy
import threading
from typing import NamedTuple

import pytest
import torch
from torch import nn

from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import Anderson, FixedPoint, Picard
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.unrolling.steppers import anderson_steps, can_be_stopped, stopped, unrolled_parts
from deq_enn.utils.random import generator
from tests.unrolling.modules import ByHand, Foreign, K, M, P, TwoEquilibria, by_hand


def rows(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=generator("unrolling", *shape)).to(dtype)


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_our_deqs_stop_where_picard_would(dtype):
    deq, x = DEQ("tanh", P, M, K, 0.3).to(dtype), rows(5, P, dtype=dtype)
    for k in (1, 2, 5):
        deq.fixed_point = FixedPoint(Picard(max_steps=k, strict=False))
        torch.testing.assert_close(stopped(deq, k)(x), deq(x))
    deq.fixed_point = FixedPoint(Anderson())  # whatever the solver, steps are plain
    torch.testing.assert_close(stopped(deq, 60)(x), deq(x), rtol=1e-4, atol=1e-5)


def test_steps_of_anderson_are_those_of_the_solver():
    deq, x = DEQ("tanh", P, M, K, 0.9), rows(5, P)
    for k in (1, 2, 3, 8):
        deq.fixed_point = FixedPoint(Anderson(max_steps=k, strict=False))
        torch.testing.assert_close(stopped(deq, k, anderson_steps)(x), deq(x), rtol=1e-4, atol=1e-5)
    foreign = Foreign().eval()
    assert isinstance(foreign.deq, nn.Module) and not unrolled_parts(foreign)
    near, far = stopped(foreign, 20, anderson_steps)(rows(4, P))[0], stopped(foreign, 150)(rows(4, P))[0]
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, s", (("linear_pcdeq_1", "tanh"), ("multi_conv_pcdeq_2", "sigmoid")))
def test_pcdeqs_stop_at_every_equilibrium(name, s):
    network, x = build_pcdeq(name, s, (1, 28, 28), 10).eval(), rows(3, 784)
    before = state_of(network)
    for layer in network.equilibria:
        layer.fixed_point = FixedPoint(Picard(max_steps=2, strict=False))
    explicit = stopped(network, 2)
    torch.testing.assert_close(explicit(x), network(x))
    assert len(unrolled_parts(explicit)) == len(network.equilibria)
    assert all(isinstance(layer.fixed_point, FixedPoint) for layer in network.equilibria)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_states_in_tuples_damping_and_outputs_beside_the_scores():
    module, x = Foreign().eval(), rows(4, P)
    z, s, u = torch.zeros(4, M), torch.zeros(4, 4, M), module.first(x)
    for k in range(1, 4):
        new, more = module.step(z, s, u)
        z, s = 0.8 * new + 0.2 * z, 0.8 * more + 0.2 * s
        scores, said = stopped(module, k)(x)
        torch.testing.assert_close(scores, module.readout(z + s.mean(1)))
    assert said == {"steps": 15}
    torch.testing.assert_close(stopped(module, 15)(x)[0], module(x)[0])


def test_torchdeq_itself():
    torchdeq = pytest.importorskip("torchdeq")
    for solver in ("fixed_point_iter", "simple_fixed_point_iter", "anderson", "broyden"):
        for core in ("indexing", "sliced"):
            if solver.startswith("simple") and core == "indexing":  # torchdeq 0.1.0 fails there on two states
                continue
            deq = torchdeq.get_deq(core=core, f_solver=solver, f_max_iter=80, f_tol=1e-7)
            module, x = Foreign(deq).eval(), rows(4, P)
            assert can_be_stopped(module)
            if "fixed_point" in solver:
                few = copy.deepcopy(module)
                few.deq.eval_f_max_iter, few.deq.f_tol = 3, 0.0
                torch.testing.assert_close(stopped(module, 3)(x)[0], few(x)[0])
            torch.testing.assert_close(stopped(module, 80)(x)[0], module(x)[0], rtol=1e-3, atol=1e-4)
            assert module.deq is deq


def test_torchdeq_with_its_own_weight_norm():
    torchdeq = pytest.importorskip("torchdeq")
    norm = pytest.importorskip("torchdeq.norm")

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.B, self.A, self.readout = nn.Linear(P, M), nn.Linear(M, M), nn.Linear(M, K)
            self.deq = torchdeq.get_deq(f_tol=1e-6)
            norm.apply_norm(self.A, "weight_norm")

        def forward(self, x):
            norm.reset_norm(self)
            z, _ = self.deq(lambda z: torch.tanh(0.5 * self.A(z) + self.B(x)), x.new_zeros(len(x), M))
            return self.readout(z[-1])

    module, x = Normed().eval(), rows(4, P)
    torch.testing.assert_close(stopped(module, 60)(x), module(x), rtol=1e-3, atol=1e-4)
    own = stopped(module, 2, shared=False)
    own(x).square().sum().backward()
    assert all(p.grad is None for p in module.parameters()) and any(p.grad is not None for p in own.A.parameters())


def test_several_equilibria_of_images_and_units_in_a_list():
    module, x = TwoEquilibria(), rows(3, 1, 8, 8)
    module.solve = [FixedPoint(Picard(max_steps=3, strict=False)) for _ in range(2)]
    explicit = stopped(module, 3)
    torch.testing.assert_close(explicit(x), module(x))
    assert isinstance(module.solve[0], FixedPoint) and not isinstance(explicit.solve[0], FixedPoint)


def test_a_users_own_way():
    module, x = ByHand(), rows(4, 7, P)
    assert not can_be_stopped(module)
    with pytest.raises(ValueError, match="ByHand cannot be stopped after k steps: .* steps=my_function"):
        stopped(module, 2)
    short = copy.deepcopy(module)
    short.most = 2
    torch.testing.assert_close(stopped(module, 2, by_hand)(x), short(x))
    assert module.most == 50
    for steps, message in (
        (lambda module, k: None, "must return a torch.nn.Module, got NoneType"),
        (lambda module, k: module.nothing, r"steps\(module, 2\) fails \(AttributeError"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            stopped(module, 2, steps)
        assert "\n" not in str(caught.value)


def test_the_steps_are_differentiated_through_their_start():
    deq, x = DEQ("tanh", P, M, K, 0.3).double(), rows(3, P, dtype=torch.float64)
    explicit = stopped(deq, 1, shared=False)
    explicit(x).square().sum().backward()
    A, B = deq.A.detach().requires_grad_(), deq.B.detach().requires_grad_()
    u = (x @ B.T) * 0.7**0.5
    z = deq.phi.fn(deq.phi.fn(u) @ A.T * (0.3 / M) ** 0.5 + u) / M**0.5
    deq.readout(z).square().sum().backward()
    torch.testing.assert_close(explicit.A.grad, A.grad)
    torch.testing.assert_close(explicit.B.grad, B.grad)


def test_weights_are_shared_or_their_own():
    deq = DEQ("relu", P, M, K, 0.2)
    assert stopped(deq, 1).A is deq.A
    assert stopped(deq, 1, shared=False).A is not deq.A


def test_what_cannot_be_stopped():
    with pytest.raises(ValueError, match="must be a torch.nn.Module, got int"):
        stopped(3, 1)
    with pytest.raises(ValueError, match="after one step or more, got 0"):
        stopped(DEQ("relu", P, M, K, 0.2), 0)
    locked = DEQ("relu", P, M, K, 0.2)
    locked.lock = threading.Lock()
    with pytest.raises(ValueError, match="DEQ cannot be copied"):
        stopped(locked, 1)


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize(
    "keep, first",
    (
        (lambda a, b: (a, b), lambda kept: kept[0]),
        (lambda a, b: [{"both": [a, (b,)]}], lambda kept: kept[0]["both"][0]),
        (lambda a, b: Pair(a, b), lambda kept: kept.first),
        (lambda a, b: {"a": a, "b": [b, "and more"]}, lambda kept: kept["a"]),
    ),
)
def test_equilibria_within_lists_and_tuples_are_stopped_all(keep, first):
    """One left as it is would make a network of k steps of what solves an equilibrium still."""
    module = TwoEquilibria()
    a, b = module.solve
    module._kept = keep(a, b)
    explicit = stopped(module, 2)
    parts = unrolled_parts(explicit)
    assert len(parts) == 2 and first(explicit._kept) is explicit.solve[0] and first(module._kept) is a
    assert type(explicit._kept) is type(module._kept)
    del module.solve
    assert can_be_stopped(module) and len(unrolled_parts(stopped(module, 2))) == 2


def test_deqs_of_torchdeq_in_a_list_are_stopped():
    module, x = Foreign().eval(), rows(4, P)
    expected = stopped(module, 3)(x)[0]
    deq = module.deq
    del module.deq
    module.deqs = [deq]
    module._solved = lambda f, start: None
    explicit = stopped(module, 3)
    explicit._solved = lambda f, start: (explicit.deqs[0](f, start, solver_kwargs={"tau": 0.8})[0][-1], None)
    torch.testing.assert_close(explicit(x)[0], expected)
    assert [part.steps for part in unrolled_parts(explicit)] == [3] and module.deqs == [deq]


def test_what_holds_itself_is_looked_through_once():
    module = DEQ("relu", P, M, K, 0.2)
    module.notes = {"solvers": [module.fixed_point]}
    module.notes["notes"] = module.notes
    explicit = stopped(module, 2)
    assert explicit.notes["notes"]["solvers"] == [explicit.fixed_point] == unrolled_parts(explicit)
