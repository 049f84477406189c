import math

import pytest
import torch

from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import Anderson, ConvergenceError, FixedPoint, Picard
from deq_enn.theory.activations import from_function

SOLVERS = [Picard, Anderson]


def layer(z, W, u):
    return torch.tanh(z @ W.T + u)


def problem(n=7, m=11, radius=0.6, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(m, m, generator=g, dtype=dtype)
    return W * (radius / torch.linalg.matrix_norm(W, 2)), torch.randn(n, m, generator=g, dtype=dtype)


@pytest.mark.parametrize("solver", SOLVERS)
def test_linear_fixed_point_is_the_linear_solve(solver):
    W, u = problem()
    solution = solver(tol=1e-13).solve(lambda z: z @ W.T + u, torch.zeros_like(u))
    exact = torch.linalg.solve(torch.eye(11, dtype=torch.float64) - W, u.T).T
    assert solution.converged and solution.residual.shape == (7,) and solution.residual.max() <= 1e-13
    torch.testing.assert_close(solution.value, exact, rtol=1e-11, atol=1e-11)


def test_anderson_needs_fewer_steps_on_a_slow_contraction():
    W, u = problem(radius=0.97)
    W = (W + W.T) / 2  # real spectrum, spectral radius close to its norm: Picard crawls
    W *= 0.97 / torch.linalg.matrix_norm(W, 2)
    picard = Picard(1e-8, 2000).solve(lambda z: layer(z, W, u / 10), torch.zeros_like(u))
    anderson = Anderson(1e-8, 2000).solve(lambda z: layer(z, W, u / 10), torch.zeros_like(u))
    assert anderson.iterations < 0.7 * picard.iterations
    torch.testing.assert_close(anderson.value, picard.value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_stops_at_the_first_step_where_the_worst_sample_meets_the_tolerance(solver):
    W, u = problem()
    u[0] *= 100  # saturated: converges long before the others
    seen = []

    def f(z):
        fz = layer(z, W, u)
        seen.append(((fz - z).norm(dim=1) / fz.norm(dim=1)).max().item())
        return fz

    solution = solver(tol=1e-6).solve(f, torch.zeros_like(u))
    assert len(seen) == solution.iterations
    assert seen[-1] <= 1e-6 < min(seen[:-1])
    assert solution.residual[0] < solution.residual.max()


@pytest.mark.parametrize("solver", SOLVERS)
def test_divergence_and_running_out_of_steps_raise_unless_told_otherwise(solver):
    W, u = problem()
    with pytest.raises(ConvergenceError, match="diverged"):
        solver(max_steps=5000).solve(lambda z: (z @ W.T * 10).square() + u, u)
    with pytest.raises(ConvergenceError, match=r"did not converge: relative residual .* after 3 iterations") as caught:
        solver(max_steps=3).solve(lambda z: layer(z, W, u), u)
    assert caught.value.solution.iterations == 3
    lenient = solver(max_steps=3, strict=False).solve(lambda z: layer(z, W, u), u)
    assert not lenient.converged and lenient.iterations == 3


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradcheck(solver):
    W, u = problem(n=3, m=4)
    point = FixedPoint(solver(tol=1e-13))
    assert torch.autograd.gradcheck(
        lambda W, u: point(layer, torch.zeros_like(u), W, u), (W.requires_grad_(), u.requires_grad_())
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_is_that_of_200_unrolled_steps(solver):
    W, u = (t.requires_grad_() for t in problem(radius=0.8))
    weight = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = torch.zeros_like(u)
    for _ in range(200):
        z = layer(z, W, u)
    expected = torch.autograd.grad((z * weight).sum(), (W, u))
    point = FixedPoint(solver(tol=1e-13))
    z = point(layer, torch.zeros_like(u), W, u)
    got = torch.autograd.grad((z * weight).sum(), (W, u))
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert point.iterations > 1 and point.backward_iterations > 1


def test_only_wanted_gradients_and_none_for_unused_arguments():
    W, u = problem()
    idle = torch.ones(3, dtype=torch.float64, requires_grad=True)
    u.requires_grad_()
    z = FixedPoint(Picard(1e-12))(lambda z, W, u, idle: layer(z, W, u), torch.zeros_like(u), W, u, idle)
    z.sum().backward()
    assert u.grad is not None and W.grad is None and idle.grad is None


def saved_bytes(steps):
    W, u = (t.requires_grad_() for t in problem(radius=0.999))
    total = 0

    def pack(t):
        nonlocal total
        total += t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        z = FixedPoint(Picard(0.0, steps, strict=False))(layer, torch.zeros_like(u), W, u)
    assert z.requires_grad
    return total


def test_memory_does_not_grow_with_the_number_of_steps():
    assert 0 < saved_bytes(2) == saved_bytes(300)


def test_no_graph_outlives_the_backward_pass():
    import gc
    import weakref

    W, u = (t.requires_grad_() for t in problem())
    z = FixedPoint(Picard(1e-10))(layer, torch.zeros_like(u), W, u)
    node = weakref.ref(z.grad_fn)
    z.sum().backward()
    del z
    gc.collect()
    assert node() is None


@pytest.mark.parametrize("solver", SOLVERS)
def test_derivatives_of_second_order_are_those_of_finite_differences(solver):
    W, u = problem(n=2, m=3)
    point = FixedPoint(solver(tol=1e-13, max_steps=500))

    def equilibrium(W, u):
        return point(layer, torch.zeros_like(u), W, u)

    leaves = W.requires_grad_(), u.requires_grad_()
    assert torch.autograd.gradcheck(equilibrium, leaves) and torch.autograd.gradgradcheck(
        equilibrium, leaves, fast_mode=True
    )


def test_a_penalty_on_the_input_gradient_reaches_every_weight():
    """Its gradient is that of the unrolled network."""
    W, u = problem(n=3, m=6)
    point = FixedPoint(Picard(tol=1e-14, max_steps=500))

    def unrolled(f, z, W, u):
        for _ in range(300):
            z = f(z, W, u)
        return z

    def penalty(solve):
        leaves = W.clone().requires_grad_(), u.clone().requires_grad_()
        (g,) = torch.autograd.grad(solve(layer, torch.zeros_like(u), *leaves).sum(), leaves[1], create_graph=True)
        return torch.autograd.grad(g.square().sum(), leaves)

    for implicit, expected in zip(penalty(point), penalty(unrolled), strict=True):
        torch.testing.assert_close(implicit, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_transforms_of_torch_func(solver):
    """vmap over samples of the Jacobian with respect to the weights, and vmap over weights."""
    W, u = problem(n=3, m=5)
    point = FixedPoint(solver(tol=1e-13, max_steps=500))

    def equilibrium(W, u):
        return point(layer, torch.zeros_like(u)[None], W, u[None])[0]

    jacobians = torch.func.vmap(torch.func.jacrev(equilibrium), (None, 0))(W, u)
    for row, jacobian in zip(u, jacobians):
        expected = torch.autograd.functional.jacobian(lambda W, row=row: equilibrium(W, row), W)
        torch.testing.assert_close(jacobian, expected, rtol=1e-9, atol=1e-11)
    several = torch.stack([W, 0.5 * W, -W])
    values = torch.func.vmap(equilibrium, (0, None))(several, u[0])
    torch.testing.assert_close(values, torch.stack([equilibrium(each, u[0]) for each in several]))


@pytest.mark.parametrize(
    "make",
    [lambda: Picard(tol=-1), lambda: Picard(tol=math.nan), lambda: Anderson(max_steps=0), lambda: Anderson(memory=0)],
)
def test_a_solver_that_cannot_end_well_is_refused(make):
    with pytest.raises(ValueError, match="needs"):
        make()


@pytest.mark.parametrize("solver", [Picard(), Anderson()])
def test_a_sample_at_the_edge_of_a_dead_zone_is_solved_in_double_precision(solver):
    """Its equilibrium, softshrink(u) with u next to 1/2, is so small that the rounding of u is 1e-5 of it."""
    zone = from_function(lambda x: torch.nn.functional.softshrink(x, 0.5), "zone", kinks=(-0.5, 0.5))
    X = torch.randn(2000, 8, generator=torch.Generator().manual_seed(1)) / 8**0.5
    deq = DEQ(zone, 8, 16, 2, 0.05, seed=1, solver=solver)
    with torch.no_grad():
        z, steps = deq.features(X), deq.fixed_point.iterations
        expected = deq.double().features(X.double())
    assert z.dtype == torch.float32 and (steps > 200 or isinstance(solver, Anderson))
    torch.testing.assert_close(z.double(), expected, rtol=0, atol=2e-7)


def test_what_rounding_does_not_stall_has_the_error_of_its_steps():
    """Neither a slow contraction nor a cycle gets more steps, and a function with floats of its own keeps its error."""
    x, own = torch.ones(2, 3), torch.tensor(0.95)
    for f in (
        lambda z, x: 0.95 * z + x,
        lambda z, x: x / z + 1e-3 * x,
        lambda z, x: torch.addmm(x, z, own * torch.eye(3)),
    ):
        with pytest.raises(ConvergenceError, match="after 60 iterations"):
            FixedPoint(Picard(max_steps=60))(f, 2 * x, x)


@pytest.mark.parametrize("solver", [Picard, Anderson])
def test_a_sample_that_is_no_number_has_not_converged(solver):
    def f(z):
        return torch.stack([0 * z[0] + 1, torch.nan * z[1], 0.9 * z[2] + 1])

    solution = solver(max_steps=3, strict=False).solve(f, torch.ones(3, 2))
    assert not solution.converged and solution.unconverged == 2
