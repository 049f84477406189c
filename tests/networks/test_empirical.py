"""The empirical tangent kernel: against autograd row by row, and against the exact kernel at infinite width."""

import pytest
import torch

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.networks.build import build_model
from deq_enn.networks.deq import DEQ
from deq_enn.networks.empirical import empirical_ntk
from deq_enn.networks.fixed_point import Picard
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.theory.activations import ACTIVATIONS


def rows(n, p, dtype=torch.float64):
    X = torch.randn(n, p, generator=torch.Generator().manual_seed(n), dtype=dtype)
    return X / X.norm(dim=1, keepdim=True)


def by_autograd(network, X):
    """The mean over the outputs of J J^T, from one backward pass a row and output."""
    jacobians = []
    for x in X:
        out = network(x[None])[0]
        gradients = [torch.autograd.grad(value, [*network.parameters()], retain_graph=True) for value in out]
        jacobians.append(torch.stack([torch.cat([g.flatten() for g in gradient]) for gradient in gradients]))
    J = torch.stack(jacobians)
    return torch.einsum("iko,jko->ij", J, J) / J.shape[1]


def networks():
    deq = DEQ(ACTIVATIONS["swish"], 5, 12, 3, 0.4, solver=Picard(tol=1e-11, max_steps=500)).double()
    return {"deq": deq, "enn": build_model("l_relu_enn", 5, 12, 3, 0.4).double()}


@pytest.mark.parametrize("name", networks())
@pytest.mark.slow
def test_it_is_the_gram_matrix_of_the_jacobians(name):
    network, X = networks()[name], rows(4, 5)
    kernel = empirical_ntk(network, X, chunk=3)
    torch.testing.assert_close(kernel, by_autograd(network, X), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(empirical_ntk(network, X[:1], X), kernel[:1])
    readout = empirical_ntk(network, X, trained=["readout.weight"])  # the conjugate kernel
    torch.testing.assert_close(readout, network.features(X).detach() @ network.features(X).detach().T)


def test_a_positive_concave_deq_has_one_too():
    network, X = build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10, 0).eval(), rows(2, 784, torch.float32).abs()
    torch.testing.assert_close(empirical_ntk(network, X), by_autograd(network, X), rtol=1e-3, atol=1e-4)


@pytest.mark.few(1)
@pytest.mark.parametrize("name, sigma_a2", [("relu", 0.3), ("swish", 0.8), ("tanh", 0.6)])
@pytest.mark.slow
def test_a_wide_deq_has_the_exact_kernel(name, sigma_a2):
    """At width 2,000, four draws: the mean entry by entry within four standard errors, and the whole within 5%."""
    X, f = rows(2, 30, torch.float32), ACTIVATIONS[name]
    draws = torch.stack([empirical_ntk(DEQ(f, 30, 2000, 1, sigma_a2, seed=seed), X).double() for seed in range(4)])
    _, exact = implicit_kernels(X.double(), f, sigma_a2, tau0=1.0)
    error = draws.mean(0) - exact
    assert (error.abs() < 4 * draws.std(0).mean() / 4**0.5).all() and error.norm() < 0.05 * exact.norm()
    _, of_a_plain_network = explicit_kernels(X.double(), [f])
    assert (draws.mean(0) - of_a_plain_network).norm() > 2 * error.norm()


def test_what_cannot_be_had_is_refused():
    network = networks()["deq"]
    with pytest.raises(ValueError, match="rows of a matrix"):
        empirical_ntk(network, torch.zeros(5))
    with pytest.raises(ValueError, match="C is no parameter of the network, which has A, B, readout.weight"):
        empirical_ntk(network, rows(2, 5), trained=["C"])
    assert not empirical_ntk(network, rows(2, 5), trained=[]).any()  # nothing is trained


class Words(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Embedding(5, 4), torch.nn.Flatten(), torch.nn.Linear(12, 2))


def test_of_tokens_and_where_gradients_are_off():
    network, X = Words(), torch.randint(5, (6, 3), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(empirical_ntk(network, X), by_autograd(network, X))
    deq, X = networks()["deq"], rows(3, 5)
    with torch.no_grad():
        kernel = empirical_ntk(deq, X)
    torch.testing.assert_close(kernel, by_autograd(deq, X), rtol=1e-8, atol=1e-10)


def test_samples_may_be_arrays_of_another_dtype():
    network, X = torch.nn.Linear(4, 3), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    expected = empirical_ntk(network, X, X[:2])
    torch.testing.assert_close(empirical_ntk(network, X.double().numpy(), X[:2].numpy()), expected)
    with pytest.raises(ValueError, match="expected numbers"):
        empirical_ntk(network, [["a", "b", "c", "d"]])


@pytest.mark.parametrize("part", [torch.nn.BatchNorm1d(4), torch.nn.Dropout()])
def test_a_network_in_training_mode_is_refused_where_that_matters(part):
    network, X = torch.nn.Sequential(part, torch.nn.Linear(4, 3)), torch.randn(6, 4)
    with pytest.raises(ValueError, match=r"eval\(\) first"):
        empirical_ntk(network.train(), X)
    assert empirical_ntk(network.eval(), X).shape == (6, 6)
