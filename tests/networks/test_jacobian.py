"""The size and the spectral radius of an equilibrium's Jacobian, against the matrix that autograd forms."""

import pytest
import torch

from deq_enn.networks.deq import DEQ
from deq_enn.networks.jacobian import jacobian_size, spectral_radius
from deq_enn.networks.pcdeq import build_pcdeq


def system_of(network, x):
    """The network's last equilibrium layer as the solver leaves it."""
    (part,) = (part for part in network.modules() if hasattr(part, "fixed_point"))
    part.fixed_point.keep = True
    network(x)
    return part.fixed_point.last


def exact(system):
    """df/dz of each sample, (n, d, d), formed by autograd."""
    f, z, args = system
    d = z[0].numel()
    matrix = torch.autograd.functional.jacobian(lambda z: f(z, *args), z).reshape(len(z), d, len(z), d)
    return torch.stack([matrix[i, :, i] for i in range(len(z))])


def cases():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=g, dtype=torch.float64)
    yield system_of(DEQ("tanh", 8, 30, 3, 0.8).double(), x)
    yield system_of(DEQ("relu", 8, 30, 3, 0.8).double(), x)
    images = torch.rand(2, 784, generator=g, dtype=torch.float64)
    yield system_of(build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10).double().eval(), images)


@pytest.mark.slow
def test_hutchinsons_estimate_is_the_squared_frobenius_norm_in_the_mean():
    """Over the unit vectors, whose products are the rows, exactly; over 4,000 normal ones within five deviations."""
    for system in cases():
        size = exact(system).square().flatten(1).sum(1) / system[1][0].numel()
        rows = [jacobian_size(system, e.expand_as(system[1])) for e in torch.eye(system[1].shape[1]).double()]
        torch.testing.assert_close(sum(rows), size)
        g = torch.Generator().manual_seed(1)
        draws = torch.stack(
            [
                jacobian_size(system, torch.randn(system[1].shape, generator=g, dtype=torch.float64)).detach()
                for _ in range(400)
            ]
        )
        assert ((draws.mean(0) - size).abs() <= 5 * draws.std(0) / 20).all()


@pytest.mark.slow
def test_the_penaltys_gradient_is_that_of_the_exact_norm_at_a_fixed_state():
    f, z, (A, u) = next(cases())
    A, u = (t.detach().requires_grad_() for t in (A, u))
    rows = [jacobian_size((f, z, (A, u)), e.expand_as(z)) for e in torch.eye(30).double()]
    got = torch.autograd.grad(sum(rows).sum(), (A, u))

    def norm(A, u):
        jacobian = torch.vmap(torch.func.jacrev(lambda z, u: f(z[None], A, u[None])[0]))(z, u)
        return jacobian.square().sum() / 30

    for value, expected in zip(got, torch.func.grad(norm, (0, 1))(A, u)):
        torch.testing.assert_close(value, expected)


def test_spectral_radii_are_those_of_the_eigenvalues():
    for system in cases():
        expected = torch.linalg.eigvals(exact(system)).abs().amax(1)
        start = torch.randn(system[1].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        torch.testing.assert_close(spectral_radius(system, start), expected, rtol=0.01, atol=1e-12)


@pytest.mark.parametrize(
    "matrix, radius",
    [
        ([[0.0, -0.7], [0.7, 0.0]], 0.7),  # a complex pair
        ([[0.6, 0.0], [0.0, -0.6]], 0.6),  # two of one modulus
        ([[0.5, 1.0], [0.0, 0.5]], 0.5),  # no basis of eigenvectors
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
        ([[0.9, 0.0], [0.0, 0.1]], 0.9),
        ([[1.3]], 1.3),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spectral_radius_of_small_matrices(matrix, radius, dtype):
    J = torch.tensor(matrix, dtype=dtype)
    start = torch.randn(3, len(J), generator=torch.Generator().manual_seed(0), dtype=dtype)
    got = spectral_radius((lambda z, J: z @ J.T, torch.zeros(3, len(J), dtype=dtype), (J,)), start)
    torch.testing.assert_close(got, torch.full((3,), radius, dtype=torch.float64), rtol=0.01, atol=1e-6)


def test_the_size_of_a_share_without_samples():
    """What a rank has of a last batch that is smaller than there are ranks."""
    deq = DEQ("tanh", 4, 8, 2, 0.2)
    deq.fixed_point.keep = True
    deq(torch.zeros(0, 4))
    assert jacobian_size(deq.fixed_point.last, torch.zeros(0, 8)).shape == (0,)
