"""Positive concave DEQs: the guarantee, gradients, weights that stay nonnegative, and the six networks."""

import math

import pytest
import torch
import torch.nn.functional as F

from deq_enn.names import PCDEQS
from deq_enn.networks.fixed_point import Picard
from deq_enn.networks.pcdeq import CONCAVE, WIDTHS, PcDEQ, augment, build_pcdeq, keep_nonnegative, rate_bound

ACTIVATIONS = [*CONCAVE["1"], *CONCAVE["2"]]


def activation_of(name, index=0):
    return list(CONCAVE[name[-1]])[index]


def make_layer(activation, m=9, conv=False, radius=3.0, seed=0):
    """A float64 layer whose W is dense, random and of the given spectral radius (3: no contraction in any norm)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = PcDEQ(m, activation, conv).double()
        W = torch.rand(*layer.inner.weight.shape, dtype=torch.float64)
        matrix = W if W.ndim == 2 else W.sum((2, 3))
        layer.inner.weight = W * (radius / torch.linalg.eigvals(matrix).abs().max())  # through the parametrization
    return layer


def inputs(layer, n=5, seed=0):
    shape = (n, layer.inner.weight.shape[0], *([6, 6] if layer.inner.weight.ndim == 4 else []))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------
# the guarantee


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_fixed_point_from_twenty_nonnegative_starts_at_the_promised_rate(activation, conv):
    layer = make_layer(activation, conv=conv)
    W, b = layer.inner.weight.detach(), layer.positive(inputs(layer))

    def f(z):
        return layer.step(z, W, b)

    top = layer.s(torch.tensor(1e9, dtype=torch.float64)).item()
    star = Picard(1e-15, 5000, strict=False).solve(f, f(torch.zeros_like(b))).value
    rate = rate_bound(f, star)
    a_priori = 1 - layer.s(b).flatten(1).amin(1) / top
    assert (star > 0).all() and (0 <= rate).all() and (rate <= a_priori + 1e-12).all() and (a_priori < 1).all()
    if activation == "sigmoid":
        assert a_priori.max() <= 0.5
    g = torch.Generator().manual_seed(1)
    for start in range(20):
        z = torch.rand(b.shape, generator=g, dtype=torch.float64) * 10 ** (start % 7 - 3)
        z *= torch.rand(b.shape, generator=g, dtype=torch.float64) < 0.8  # some coordinates start at 0
        distance = ((z - star).abs() / star).flatten(1).amax(1)
        for _ in range(30):
            z = f(z)
            shrunk = ((z - star).abs() / star).flatten(1).amax(1)
            assert (shrunk <= rate * distance + 1e-11).all()
            distance = shrunk
        torch.testing.assert_close(Picard(1e-13, 5000).solve(f, z).value, star, rtol=1e-9, atol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jacobian_radius_is_below_the_rate_and_the_asymptotic_mapping_is_zero(activation):
    layer = make_layer(activation)
    W, b = layer.inner.weight.detach(), layer.positive(inputs(layer, n=1))
    star = Picard(1e-14, 5000).solve(lambda z: layer.step(z, W, b), torch.zeros_like(b)).value
    J = torch.autograd.functional.jacobian(lambda z: layer.step(z[None], W, b)[0], star[0])
    rate = rate_bound(lambda z: layer.step(z, W, b), star).item()
    assert torch.linalg.eigvals(J).abs().max().item() <= rate + 1e-12 < 1 + 1e-12
    sharper = [rate_bound(lambda z: layer.step(z, W, b), star, steps).item() for steps in (1, 3, 6)]
    assert torch.linalg.eigvals(J).abs().max().item() - 1e-12 <= sharper[2] <= sharper[1] <= sharper[0] == rate
    ray = torch.rand(1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for t in (1e3, 1e6):
        assert (layer.step(t * ray, W, b) / t).max() <= 6 / t


@pytest.mark.parametrize("activation", CONCAVE["1"])
def test_without_its_positive_input_pcdeq_1_has_two_fixed_points(activation):
    layer = make_layer(activation, radius=2.0)
    W, b = layer.inner.weight.detach(), torch.zeros(1, 9, dtype=torch.float64)
    assert layer.step(b, W, b).abs().max() == 0
    positive = Picard(1e-12, 5000).solve(lambda z: layer.step(z, W, b), torch.ones_like(b)).value
    assert positive.min() > 0.01


def test_pcdeq_2_needs_no_positive_input():
    layer = make_layer("sigmoid", radius=50.0)
    W, b = layer.inner.weight.detach(), torch.zeros(1, 9, dtype=torch.float64)
    low, high = (Picard(1e-14).solve(lambda z: layer.step(z, W, b), torch.full_like(b, z0)) for z0 in (0.0, 1e6))
    torch.testing.assert_close(low.value, high.value)
    assert rate_bound(lambda z: layer.step(z, W, b), low.value).item() <= 0.5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_input_is_positive_or_nonnegative_however_negative_x_is(activation):
    layer = PcDEQ(4, activation, conv=False)
    b = layer.positive(torch.tensor([[-1e6, -50.0, -1.0, 2.0]]))
    assert (b > 0).all() if activation in CONCAVE["1"] else (b == torch.tensor([0.0, 0, 0, 2])).all()
    x = torch.linspace(0, 20, 2001, dtype=torch.float64)
    s = layer.s(x)
    assert (s.diff() >= 0).all() and (s.diff().diff() <= 1e-12).all()  # nondecreasing and concave on x >= 0


@pytest.mark.parametrize("conv", [False, True])
def test_the_layer_solves_its_equation_and_starts_one_step_from_zero(conv):
    layer = make_layer("tanh", conv=conv)
    x = inputs(layer)
    z, b = layer(x), F.softplus(x, beta=5)
    torch.testing.assert_close(torch.tanh(layer.inner(z) + b), z, rtol=0, atol=1e-4)
    W = layer.inner.weight.detach()
    from_zero = Picard(1e-4).solve(lambda z: layer.step(z, W, b), torch.zeros_like(b))
    assert layer.fixed_point.iterations == from_zero.iterations - 1
    assert torch.equal(z, from_zero.value)


# ---------------------------------------------------------------------------------------------------------------
# gradients


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_is_that_of_unrolled_iteration(activation, conv):
    layer = make_layer(activation, m=5, conv=conv, radius=1.2)
    layer.fixed_point.solver = layer.fixed_point.backward_solver = Picard(1e-13, 5000)
    x = inputs(layer, n=3).requires_grad_()
    weight = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    wanted = [x, *layer.parameters()]
    assert len(wanted) == 3
    b = layer.positive(x)
    z = torch.zeros_like(b)
    for _ in range(400):
        z = layer.step(z, layer.inner.weight, b)
    expected = torch.autograd.grad((z * weight).sum(), wanted)
    z = layer(x)
    got = torch.autograd.grad((z * weight).sum(), wanted)
    for a, e in zip(got, expected):
        assert e.abs().max() > 1e-6
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)
    assert layer.fixed_point.iterations > 1 and layer.fixed_point.backward_iterations > 1


@pytest.mark.parametrize("activation", ["tanh", "softsign", "sigmoid"])
def test_gradcheck(activation):
    layer = make_layer(activation, m=4, radius=1.2)
    layer.fixed_point.solver = layer.fixed_point.backward_solver = Picard(1e-14, 5000, strict=False)
    names, tensors = zip(*layer.named_parameters())

    def run(x, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors)), (x,))

    x = inputs(layer, n=2)
    x += 0.1 * x.sign()  # off the kink of relu
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *tensors))


# ---------------------------------------------------------------------------------------------------------------
# training keeps the weights nonnegative


def small_problem(shape, n=48):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, *shape, generator=g)
    return x, (x[:, 0, :14].mean((1, 2)) > 0).long()


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["linear_pcdeq_1", "linear_pcdeq_2", "multi_conv_pcdeq_1", "multi_conv_pcdeq_2"])
def test_every_weight_is_nonnegative_at_every_step(name):
    network = build_pcdeq(name, activation_of(name), (1, 28, 28), 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.1)
    keep_nonnegative(network, optimizer)
    seen, clipped = [], 0

    def look(layer, _):  # before every forward pass, at the weights it is about to use
        nonlocal clipped
        g, v = layer.inner.parametrizations.weight.original0, layer.inner.parametrizations.weight.original1
        assert g.min() >= 0 and v.min() >= 0 and layer.inner.weight.min() >= 0
        clipped += (v == 0).sum().item()
        seen.append(layer)

    for layer in network.equilibria:
        layer.register_forward_pre_hook(look)
    x, y = small_problem((1, 28, 28))
    steps = 30 if name.startswith("linear") else 4
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    network(x)
    assert len(seen) == (steps + 1) * len(network.equilibria)
    assert clipped > 0  # the projection had work to do
    assert losses[-1] < losses[0]


def test_a_row_without_a_direction_has_weight_zero_and_can_come_back():
    layer = PcDEQ(3, "tanh", conv=False)
    g, v = layer.inner.parametrizations.weight.original0, layer.inner.parametrizations.weight.original1
    with torch.no_grad():
        v[1] = -1.0
        g[2] = -1.0
    layer.project_()
    assert (layer.inner.weight[1:] == 0).all() and (layer.inner.weight[0] > 0).all()
    layer(torch.ones(2, 3)).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert g.grad[1] > 0  # a larger g raises the output: the row is not dead for good


# ---------------------------------------------------------------------------------------------------------------
# the networks


@pytest.mark.few(6)
@pytest.mark.parametrize("shape", WIDTHS)
@pytest.mark.parametrize("name", PCDEQS)
def test_networks_of_both_image_sizes_train_a_step(name, shape):
    torch.manual_seed(0)
    network = build_pcdeq(name, activation_of(name), shape, 10)
    x = torch.randn(3, *shape)
    logits = network(x)
    assert logits.shape == (3, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    points = [layer.fixed_point for layer in network.equilibria]
    assert len(points) == (3 if name.startswith("multi") else 1)
    assert all(1 <= count < 1000 for point in points for count in (point.iterations, point.backward_iterations))
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x.flatten(1)), network(x))


# published: 70k parameters for the linear and single-convolution networks on MNIST, 41k for three convolutions
@pytest.mark.parametrize(
    "name, shape, count",
    [
        ("linear_pcdeq_1", (1, 28, 28), 784 * 80 + 80 + 4 * 80 + 80 * 80 + 80 + 810),
        ("single_conv_pcdeq_1", (1, 28, 28), 82 * 10 + 4 * 82 + 82 * 82 * 9 + 82 + 82 * 9 * 10 + 10),
        ("single_conv_pcdeq_2", (3, 32, 32), 125 * 28 + 4 * 125 + 125 * 125 * 9 + 125 + 125 * 16 * 10 + 10),
    ],
)
def test_architecture_is_the_published_one(name, shape, count):
    network = build_pcdeq(name, activation_of(name), shape, 10)
    assert sum(p.numel() for p in network.parameters()) == count
    widths = [layer.inner.weight.shape[0] for layer in network.equilibria]
    assert widths == list(WIDTHS[shape][name[: -len("_pcdeq_1")]])
    for layer in network.equilibria:
        m, W = layer.inner.weight.shape[0], layer.inner.weight
        assert 0 <= W.min() and 0.009 / math.sqrt(2 * m) < W.max() <= 0.01 / math.sqrt(2 * m) + 1e-9


def test_widths_and_size_are_described_and_augmentation_widens_three_convolutions_on_colour():
    plain, augmented = (build_pcdeq("multi_conv_pcdeq_1", "relu6", (3, 32, 32), 10, augmented=a) for a in (False, True))
    assert plain.describe()["widths"] == [20, 50, 80] and augmented.describe()["widths"] == [100, 120, 140]
    assert plain.describe()["weights"] == sum(p.numel() for p in plain.parameters())
    for name, shape in (("multi_conv_pcdeq_1", (1, 28, 28)), ("single_conv_pcdeq_1", (3, 32, 32))):
        widths = [build_pcdeq(name, "tanh", shape, 10, augmented=flag).describe()["widths"] for flag in (False, True)]
        assert widths[0] == widths[1]


def test_one_seed_one_network_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c, d = (build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10, seed) for seed in (1, 1, 2, 10**20))
    assert torch.rand(1) == expected
    states = [net.state_dict() for net in (a, b, c)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not any(torch.equal(states[0]["1.weight"], other["1.weight"]) for other in (states[2], d.state_dict()))


@pytest.mark.parametrize("name", ["linear_pcdeq_2", "multi_conv_pcdeq_1"])
def test_state_dict_round_trip(name, tmp_path):
    x, y = small_problem((1, 28, 28), n=8)
    network = build_pcdeq(name, activation_of(name), (1, 28, 28), 2, seed=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    keep_nonnegative(network, optimizer)
    F.cross_entropy(network(x), y).backward()
    optimizer.step()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other = build_pcdeq(name, activation_of(name), (1, 28, 28), 2, seed=2)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(network.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("linear_pcdeq_2", "relu6", (1, 28, 28), 10),
            "linear_pcdeq_2 cannot use activation 'relu6'.*choose from sigmoid",
        ),
        (("multi_conv_pcdeq_1", "sigmoid", (1, 28, 28), 10), "cannot use activation 'sigmoid'.*tanh, softsign, relu6"),
        (("single_conv_pcdeq_1", "gelu", (1, 28, 28), 10), "cannot use activation 'gelu'"),
        (
            ("linear_pcdeq_3", "tanh", (1, 28, 28), 10),
            "unknown pcDEQ model 'linear_pcdeq_3': choose from linear_pcdeq_1",
        ),
        (("linear_pcdeq_1", "tanh", (1, 32, 32), 10), "takes images of shape 1x28x28 or 3x32x32, got 1x32x32"),
        (("linear_pcdeq_1", "tanh", (784,), 10), "takes images of shape 1x28x28 or 3x32x32, got 784"),
    ],
)
def test_what_cannot_be_built_says_so_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_pcdeq(*arguments)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_are_refused():
    network = build_pcdeq("multi_conv_pcdeq_1", "tanh", (1, 28, 28), 10)
    with pytest.raises(ValueError, match=r"takes images \(n, 1, 28, 28\) or as rows, got \(2, 3, 32, 32\)"):
        network(torch.zeros(2, 3, 32, 32))


@pytest.mark.slow
def test_augmentation_shifts_and_flips_each_image_by_its_own_draw():
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    out = augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(images, before) and torch.equal(out, augment(images, torch.Generator().manual_seed(1)))
    seen = set()
    for image, shown in zip(images, out):
        padded = F.pad(image, (4, 4, 4, 4))
        result = [
            (down, right, flip)
            for down in range(9)
            for right in range(9)
            for flip in (False, True)
            if torch.equal(padded[:, down : down + 8, right : right + 8].flip(2 if flip else ()), shown)
        ]
        assert len(result) == 1 or shown.abs().max() == 0
        seen |= set(result)
    downs, rights, flips = map(set, zip(*seen))
    assert downs == rights == set(range(9)) and flips == {False, True}


@pytest.mark.parametrize("name, s", (("linear_pcdeq_1", "tanh"), ("single_conv_pcdeq_2", "sigmoid")))
def test_no_images_have_no_logits(name, s):
    network = build_pcdeq(name, s, (1, 28, 28), 7).eval()
    for empty in (torch.zeros(0, 784), torch.zeros(0, 1, 28, 28)):
        assert network(empty).shape == (0, 7)
    for x in (torch.zeros(784), torch.zeros(3, 783)):
        with pytest.raises(ValueError, match=r"takes images \(n, 1, 28, 28\) or as rows, got \("):
            network(x)
