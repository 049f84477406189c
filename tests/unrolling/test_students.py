"""The last layer of a stopped network is refitted the same, however its weight is made."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from deq_enn.networks.fixed_point import FixedPoint, Picard
from deq_enn.unrolling import students
from deq_enn.unrolling.judged import Part, outputs_of
from deq_enn.unrolling.steppers import stopped
from deq_enn.utils.random import generator
from tests.unrolling.modules import K, M, P


class Plain(nn.Module):
    """A DEQ whose readout may be reparametrised."""

    def __init__(self, bias=True):
        super().__init__()
        self.lift, self.cell, self.out = nn.Linear(P, M), nn.Linear(M, M), nn.Linear(M, K, bias=bias)
        self.solve = FixedPoint(Picard(tol=1e-5))

    def forward(self, x):
        u = self.lift(x)
        return self.out(self.solve(lambda z: torch.tanh(0.4 * self.cell(z) + u), torch.tanh(u)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "reparametrise",
    [parametrizations.weight_norm, nn.utils.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.0)],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_layer_whose_weight_is_computed_is_refitted_as_a_plain_one(reparametrise, bias):
    torch.manual_seed(0)
    plain = Plain(bias)
    other = Plain(bias)
    other.load_state_dict(plain.state_dict())
    reparametrise(other.out)
    X = torch.randn(200, P, generator=generator("refitted"))
    part = Part(X, outputs_of(plain, X), torch.zeros(len(X), dtype=torch.int64))
    torch.testing.assert_close(outputs_of(other, X), part.outputs, rtol=1e-5, atol=1e-5)
    made = []
    for module in (plain, other):
        layer = students.last_linear(module, X[:2])
        assert layer == "out"
        network = students.refitted(stopped(module, 1, shared=False), layer, part, part)
        made.append(outputs_of(network, X))
        assert (made[-1] - part.outputs).square().mean() < (
            outputs_of(stopped(module, 1), X) - part.outputs
        ).square().mean() / 2
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)
    assert "weight" not in dict(other.out.named_parameters(recurse=False))  # the module is as it was
