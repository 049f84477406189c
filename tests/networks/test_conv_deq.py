"""Convolutional networks: against patches by hand, fully connected networks, unrolling, and the exact kernels.

The exact kernels of these three images are those of an independent solution in float64 (tau_0 = 1).
"""

import math

import pytest
import torch
from torch.nn.functional import pad

from deq_enn.kernels.conv import conv_kernels
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.deq import DEQ
from deq_enn.networks.empirical import empirical_ntk
from deq_enn.networks.fixed_point import Anderson, ConvergenceError, Picard
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_image_tau0
from deq_enn.theory.gaussian import centre

i, c, a, b = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (3, 2, 4, 4)), indexing="ij")
IMAGES = torch.sin(1 + 2 * i + 3 * c + 5 * a + 7 * b)
SHAPE = (2, 4, 4)
# entries 00, 01, 02, 12 of the conjugate and the tangent kernel
EXACT = {
    ("relu", 0.5, "zero", "flatten"): (
        (0.0892394328, 0.0009656924, -0.0066494115, 0.0032058072),
        (0.2193686058, -0.0143772206, -0.0257982124, -0.0107732937),
    ),
    ("relu", 0.5, "circular", "pool"): (
        (0.0151680343, 0.0144653172, 0.0140288157, 0.0115186319),
        (0.0352025928, 0.0293155321, 0.0284396291, 0.0219195478),
    ),
}
SETTINGS = [*EXACT, ("tanh", 0.4, "circular", "flatten")]
PLACES = [0, 0, 0, 1], [0, 1, 2, 2]
EXACTLY = Picard(tol=1e-13, max_steps=1000)


def patches(x, weight, padding):
    """The convolution by hand, tap by tap, on images shifted against one another."""
    k, (h, w) = weight.shape[-1], x.shape[2:]
    half, mode = k // 2, {"zero": "constant", "circular": "circular"}[padding]
    wide = pad(x, (half,) * 4, mode=mode)
    return sum(
        torch.einsum("oc,ncab->noab", weight[:, :, u, v], wide[:, :, u : u + h, v : v + w])
        for u in range(k)
        for v in range(k)
    )


def deq(padding="zero", readout="flatten", activation="relu", sigma_a2=0.5, m=6, k=3, **options):
    options = {"solver": EXACTLY, "kernel_size": k, "padding": padding, "readout": readout} | options
    return ConvDEQ(activation, SHAPE, m, 3, sigma_a2, **options).double()


@pytest.mark.few(2)
@pytest.mark.parametrize("padding, k, readout", [("zero", 3, "flatten"), ("circular", 3, "pool"), ("zero", 5, "pool")])
def test_the_feature_maps_solve_their_equation(padding, k, readout):
    network = deq(padding, readout, "tanh", 0.3, k=k)
    with torch.no_grad():
        z, out = network.maps(IMAGES), network(IMAGES)
    drive = math.sqrt(0.3) * patches(z, network.A, padding) + math.sqrt(0.7 / 2) * patches(IMAGES, network.B, padding)
    torch.testing.assert_close(z, centre(network.activation, network.tau).fn(drive / k) / 6**0.5, rtol=0, atol=1e-11)
    seen = z.mean((2, 3)) if readout == "pool" else z.flatten(1) / 4
    torch.testing.assert_close(out, seen @ network.readout.weight.T, rtol=0, atol=1e-12)


def test_with_one_pixel_it_is_the_fully_connected_deq():
    """Weight by weight, with the features, the logits and the gradient."""
    X = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 7**0.5
    dense = DEQ("swish", 7, 12, 3, 0.5, seed=4, solver=EXACTLY).double()
    conv = ConvDEQ("swish", (7, 1, 1), 12, 3, 0.5, seed=4, kernel_size=1, solver=EXACTLY).double()
    for network, x in ((dense, X), (conv, math.sqrt(7) * X[:, :, None, None])):
        network(x).square().sum().backward()
    torch.testing.assert_close(conv.features(math.sqrt(7) * X[:, :, None, None]), dense.features(X))
    for name in ("A", "B", "readout.weight"):
        ours, theirs = conv.get_parameter(name), dense.get_parameter(name)
        torch.testing.assert_close(ours.flatten(), theirs.flatten(), rtol=0, atol=0)
        torch.testing.assert_close(ours.grad.flatten(), theirs.grad.flatten())


def unrolled(network, x, A, B, W, steps=30):
    """The logits after so many steps of the equation, by patches."""
    s, m, k, channels = network.sigma_a2, len(A), A.shape[-1], x.shape[1]
    z, u = x.new_zeros(len(x), m, *x.shape[2:]), math.sqrt((1 - s) / channels) / k * patches(x, B, network.padding)
    for _ in range(steps):
        z = network.phi.fn(math.sqrt(s) / k * patches(z, A, network.padding) + u) / m**0.5
    return (z.mean((2, 3)) if network.sees == "pool" else z.flatten(1) / network.pixels**0.5) @ W.T


@pytest.mark.few(1)
@pytest.mark.parametrize("padding, readout", [("circular", "pool"), ("zero", "flatten")])
def test_first_and_second_derivatives_are_those_of_unrolled_steps(padding, readout):
    network = ConvDEQ("gelu", (1, 3, 3), 4, 2, 0.2, padding=padding, readout=readout, solver=EXACTLY).double()
    places = [p for _, p in sorted(network.named_parameters())]
    results = []
    for output in (lambda x: network(x), lambda x: unrolled(network, x, *places)):
        x = IMAGES[:2, :1, :3, :3].clone().requires_grad_()
        first = torch.autograd.grad(output(x).square().sum(), [x, *places], create_graph=True)
        second = torch.autograd.grad(sum((g * torch.sin(g)).sum() for g in first), [x, *places])
        results.append((*first, *second))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_its_gradient_is_that_of_differences():
    network = ConvDEQ("tanh", (1, 3, 3), 2, 1, 0.2, solver=EXACTLY).double()
    x = IMAGES[:1, :1, :3, :3].clone().requires_grad_()
    given = [p.detach().clone().requires_grad_() for p in (network.A, network.B)]

    def output(x, A, B):
        return torch.func.functional_call(network, {"A": A, "B": B}, (x,))

    assert torch.autograd.gradcheck(output, (x, *given), fast_mode=True)


def exact(setting):
    """Both kernels at the four places: those above, and otherwise as `kernels.conv` has them."""
    if setting in EXACT:
        return [torch.tensor(kernel, dtype=torch.float64) for kernel in EXACT[setting]]
    name, sigma_a2, padding, readout = setting
    kernels = conv_kernels(IMAGES, ACTIVATIONS[name], sigma_a2, 3, padding, readout, tau0=1.0)
    return [kernel[PLACES] for kernel in kernels]


def error_at(setting, m, draws):
    """The draws' conjugate kernels (draws, 4) at width m, less the exact one."""
    name, sigma_a2, padding, readout = setting
    kernels = []
    for seed in range(draws):
        network = deq(padding, readout, name, sigma_a2, m, seed=seed, solver=Picard(1e-8, 500))
        with torch.no_grad():
            F = network.features(IMAGES)
        kernels.append((F @ F.T)[PLACES])
    return torch.stack(kernels) - exact(setting)[0]


@pytest.mark.few(2)
@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting)))
def test_wide_ones_have_the_exact_conjugate_kernel(setting):
    """The mean of the draws is within four standard errors, and the error falls as m^(-1/2)."""
    narrow, wide = error_at(setting, 12, 48), error_at(setting, 96, 16)
    spread = wide.std(0) / 16**0.5
    assert (wide.mean(0).abs() < 4 * spread).all()
    rate = math.log(narrow.norm(dim=1).square().mean() / wide.norm(dim=1).square().mean()) / math.log(96 / 12)
    assert 0.5 < rate < 1.5  # of 1, with an error of 0.2 by so few draws


@pytest.mark.few(2)
@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting)))
def test_wide_ones_have_the_exact_tangent_kernel(setting):
    """The mean of the draws is within four standard errors, and a bias of the order 1/m."""
    (name, sigma_a2, padding, readout), solver, m = setting, Picard(1e-7, 500), 48
    networks = [deq(padding, readout, name, sigma_a2, m, seed=seed, solver=solver) for seed in range(6)]
    kernels, expected = torch.stack([empirical_ntk(network, IMAGES)[PLACES] for network in networks]), exact(setting)[1]
    error = (kernels.mean(0) - expected).abs()
    assert (error < 4 * kernels.std(0) / 6**0.5 + 2 * expected[0] / m).all() and error.norm() < 0.1 * expected.norm()


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="kernel_size must be an odd whole number, so.*got 4"):
        deq(k=4)
    with pytest.raises(ValueError, match="kernel_size = 5 is larger than the images of 4 x 4 pixels"):
        deq("circular", k=5)
    with pytest.raises(ValueError, match="padding must be zero or circular, got 'same'"):
        deq("same")
    with pytest.raises(ValueError, match="readout must be flatten or pool, got 'mean'"):
        deq(readout="mean")
    with pytest.raises(ValueError, match="images of shape 2x4x4, got 1x4x4"):
        deq()(IMAGES[:, :1])
    with pytest.raises(ValueError, match="images of shape 2x4x4, got 32"):
        deq()(IMAGES.flatten(1))
    bad = IMAGES.clone()
    bad[1, 0, 2, 2] = math.nan
    with pytest.raises(ConvergenceError, match="NaN or infinite entries, first in row 1"):
        deq()(bad)
    with pytest.raises(ValueError, match="NaN or infinite entries, first in image 1"):
        estimate_image_tau0(bad)
    with pytest.raises(ValueError, match="images are zero"):
        estimate_image_tau0(0 * IMAGES)


def test_tau0_is_the_mean_of_what_drives_a_pixel():
    """It is M S_ii, of which zeros at the border take a part; circular images lose nothing."""
    S = IMAGES.square().mean(1, keepdim=True)
    window = torch.ones(1, 1, 3, 3, dtype=torch.float64) / 9
    for padding in ("zero", "circular"):
        expected = patches(S, window, padding).mean().sqrt().item()
        assert estimate_image_tau0(IMAGES, 3, padding) == pytest.approx(expected, rel=1e-12)
    assert estimate_image_tau0(IMAGES, 3, "circular") == pytest.approx(IMAGES.square().mean().sqrt().item(), rel=1e-12)


@pytest.mark.slow
def test_anderson_and_short_floats():
    network = deq(activation="tanh", sigma_a2=0.6).float()
    expected = network(IMAGES.float())
    network.fixed_point.solver = Anderson(tol=1e-6)
    torch.testing.assert_close(network(IMAGES.float()), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        network(IMAGES.float()).square().sum().backward()
    assert torch.isfinite(network.A.grad).all()
