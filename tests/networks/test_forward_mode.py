"""Forward mode through equilibria: against finite differences, reverse mode, and the unrolled network."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, linearize, vjp, vmap

from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import Anderson, FixedPoint, Picard
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.networks.trained_deq import adapt
from deq_enn.theory.activations import ACTIVATIONS

SOLVERS = [Picard(1e-13, 500), Anderson(1e-13, 500)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(kind, solver):
    if kind == "conv":
        return ConvDEQ("tanh", (2, 3, 3), 4, 3, 0.4, solver=solver).double(), normal(2, 2, 3, 3)
    if kind == "pcdeq":
        pcdeq = build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 4, 0).double().eval()
        pcdeq.equilibria[0].fixed_point = FixedPoint(solver)
        return pcdeq, normal(2, 784).abs()
    deq = DEQ(ACTIVATIONS["swish"], 5, 8, 3, 0.4, solver=solver).double()
    return (deq if kind == "deq" else adapt(deq)), normal(4, 5)


def as_function(module):
    parameters = {name: value.detach() for name, value in module.named_parameters()}
    return lambda p, X: functional_call(module, p, (X,)), parameters


@pytest.mark.few(4)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["deq", "trained", "conv", "pcdeq"])
def test_the_tangent_is_that_of_finite_differences(kind, solver):
    module, X = network(kind, solver)
    f, p = as_function(module)
    moving = {} if kind == "pcdeq" else p  # torch has no forward mode of its weight norm
    dp, dX = {name: normal(*p[name].shape, seed=k) for k, name in enumerate(moving, 1)}, normal(*X.shape, seed=9)

    def moved(step):
        return f({**p, **{name: p[name] + step * dp[name] for name in dp}}, X + step * dX)

    value, tangent = jvp(lambda some, X: f({**p, **some}, X), (moving, X), (dp, dX))
    expected = (8 * (moved(1e-4) - moved(-1e-4)) - (moved(2e-4) - moved(-2e-4))) / 12e-4
    torch.testing.assert_close(value, module(X))
    torch.testing.assert_close(tangent, expected, rtol=1e-7, atol=1e-8 * expected.abs().max().item())


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_jacobians_of_both_modes_are_one(solver):
    module, X = network("deq", solver)
    f, p = as_function(module)
    for forward, backward in zip(jacfwd(f)(p, X).values(), jacrev(f)(p, X).values(), strict=True):
        torch.testing.assert_close(forward, backward, rtol=1e-9, atol=1e-11)
    x = X[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(module, (x,), check_forward_ad=True)


def test_a_vector_times_the_tangent_kernel():
    """J (J^T v), by one pass backward and one forward, is the product with the Gram matrix of the Jacobians."""
    module, X = network("deq", SOLVERS[0])
    f, p = as_function(module)
    v = normal(4, 3, seed=2)
    product = jvp(lambda p: f(p, X), (p,), (vjp(lambda p: f(p, X), p)[1](v)[0],))[1]
    J = torch.cat([jacobian.flatten(2) for jacobian in jacrev(f)(p, X).values()], 2).flatten(0, 1)
    torch.testing.assert_close(product.flatten(), J @ (J.T @ v.flatten()), rtol=1e-9, atol=1e-11)


def test_every_order_of_modes_has_the_second_derivatives():
    """Forward over forward, where torch passes on no derivative by itself, forward over reverse and its contrary."""
    module, X = network("deq", SOLVERS[0])
    x = X[0]

    def f(x):
        return module(x[None]).square().sum()

    expected = torch.autograd.functional.hessian(f, x)
    assert expected.abs().max() > 1e-3
    for hessian in (jacfwd(jacfwd(f)), jacfwd(jacrev(f)), jacrev(jacfwd(f))):
        torch.testing.assert_close(hessian(x), expected, rtol=1e-8, atol=1e-10)
    along = normal(5, seed=3)
    product = grad(lambda x: jvp(f, (x,), (along,))[1])(x)
    torch.testing.assert_close(product, expected @ along, rtol=1e-8, atol=1e-10)


def test_samples_each_with_a_tangent_and_dual_numbers():
    module, X = network("deq", SOLVERS[1])
    dX = normal(4, 5, seed=4)
    expected = jvp(module, (X,), (dX,))[1]

    def of_sample(x, dx):
        return jvp(lambda x: module(x[None])[0], (x,), (dx,))[1]

    torch.testing.assert_close(vmap(of_sample)(X, dX), expected, rtol=1e-9, atol=1e-11)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(X, dX))).tangent
    torch.testing.assert_close(tangent, expected, rtol=1e-9, atol=1e-11)


def test_what_is_traced_says_why_it_cannot_be():
    module, X = network("deq", SOLVERS[0])
    with pytest.raises(NotImplementedError, match=r"cannot be traced .*: take torch.func.jvp"):
        linearize(module, X)
