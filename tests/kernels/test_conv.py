"""The kernels of convolutional networks: values of a separate computation, one pixel, blocks, and bad input."""

import math
import warnings

import pytest
import torch

from deq_enn.kernels import conv, conv_explicit, pixel_scales
from deq_enn.kernels.box_filter import BoxFilter, WindowEquation
from deq_enn.kernels.compiled import library
from deq_enn.kernels.conv import conv_blocks, conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_blocks, conv_explicit_kernels
from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.kernels.images import foretold
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.equilibrium import estimate_image_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments

RELU, TANH = ACTIVATIONS["relu"], ACTIVATIONS["tanh"]


def waves(n=3, c=2, h=4, w=4):
    """x[i, c, a, b] = sin(1 + 2i + 3c + 5a + 7b)."""
    i, k, a, b = torch.meshgrid(*(torch.arange(size).double() for size in (n, c, h, w)), indexing="ij")
    return torch.sin(1 + 2 * i + 3 * k + 5 * a + 7 * b)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# tau_0 = 1; entries 00, 01, 02, 12 of the CK and of the NTK, from plain iteration in another program
VALUES = {
    ("relu", 0.5, "zero", "flatten"): (
        (0.0892394328, 0.0009656924, -0.0066494115, 0.0032058072),
        (0.2193686058, -0.0143772206, -0.0257982124, -0.0107732937),
    ),
    ("relu", 0.5, "circular", "flatten"): (
        (0.1143123401, -0.0175990323, -0.0286505505, -0.0152408133),
        (0.3230802594, -0.0414589509, -0.0578139393, -0.0375552478),
    ),
    ("relu", 0.5, "circular", "pool"): (
        (0.0151680343, 0.0144653172, 0.0140288157, 0.0115186319),
        (0.0352025928, 0.0293155321, 0.0284396291, 0.0219195478),
    ),
    ("tanh", 0.9, "circular", "flatten"): (
        (0.1274143314, -0.0526549945, -0.0821416921, -0.0483788754),
        (0.5663089921, -0.2232309121, -0.3531950716, -0.2056125530),
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_of_another_computation(case):
    name, sigma_a2, padding, readout = case
    kernels = conv_kernels(waves(), ACTIVATIONS[name], sigma_a2, 3, padding, readout, tau0=1.0)
    for kernel, values in zip(kernels, VALUES[case]):
        got = kernel[[0, 0, 0, 1], [0, 1, 2, 2]]
        torch.testing.assert_close(got, torch.tensor(values, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_equations_hold_at_every_pixel():
    """Zero padding and pooling, by plain iteration over all pairs of pixels with the arc-cosine kernel."""
    x, s, tau0 = waves(2, 1, 3, 4), 0.9, 0.8
    n, _, h, w = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(n * h * w, 1)
    S = (flat @ flat.T).reshape(n, h, w, n, h, w)
    centre = gaussian_moments(RELU, get_tau(RELU, s, tau0)).mean

    def mean(K):  # over both windows at once
        padded = torch.zeros(n, h + 2, w + 2, n, h + 2, w + 2, dtype=torch.float64)
        padded[:, 1:-1, 1:-1, :, 1:-1, 1:-1] = K
        windows = [padded[:, a : a + h, b : b + w, :, a : a + h, b : b + w] for a in range(3) for b in range(3)]
        return sum(windows) / 9

    def moments(L):
        q = L.reshape(n * h * w, -1).diagonal().sqrt()
        ss = torch.outer(q, q).reshape(L.shape)
        rho = (L / ss).clamp(-1, 1)
        g = ss * ((1 - rho**2).clamp_min(0).sqrt() + rho * (math.pi - torch.acos(rho))) / (2 * math.pi)
        m = (q / math.sqrt(2 * math.pi)).reshape(n, h, w)
        left, right = m[..., None, None, None], m[None, None, None]
        return g - centre * (left + right) + centre**2, (math.pi - torch.acos(rho)) / (2 * math.pi)

    L = mean((1 - s) * S)
    for _ in range(70):
        L = mean(s * moments(L)[0] + (1 - s) * S)
    G, dot = moments(L)
    T = {"aA": G, "aAB": G}
    for _ in range(70):
        T = {trained: G + dot * mean(s * K + (1 - s) * S * (trained == "aAB")) for trained, K in T.items()}
    for readout in ("flatten", "pool"):
        for trained in ("aA", "aAB"):
            ck, ntk = conv_kernels(x, RELU, s, 3, "zero", readout, trained, tau0)
            for got, K in ((ck, G), (ntk, T[trained])):
                fields = K.permute(0, 3, 1, 2, 4, 5).reshape(n, n, h * w, h * w)
                want = fields.mean((2, 3)) if readout == "pool" else fields.diagonal(dim1=2, dim2=3).mean(2)
                torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["relu", "tanh", *(a for a in ACTIVATIONS if a not in ("relu", "tanh"))])
def test_one_pixel_is_the_fully_connected_network(name):
    activation, x = ACTIVATIONS[name], noise(6, 3, 1, 1)
    X = x[:, :, 0, 0] / math.sqrt(3)
    for trained in ("aA", "aAB"):
        wanted = implicit_kernels(X, activation, 0.4, trained)
        for readout in ("flatten", "pool"):
            got = conv_kernels(x, activation, 0.4, 1, "zero", readout, trained)
            for kernel, want in zip(got, wanted):
                torch.testing.assert_close(kernel, want, rtol=1e-9, atol=1e-11)
    layers = [activation, TANH]
    for trained in ("all", "frozen_first"):
        wanted = explicit_kernels(X, layers, trained)
        for kernel, want in zip(conv_explicit_kernels(x, layers, [1, 1], trained=trained), wanted):
            torch.testing.assert_close(kernel, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("padding", ["zero", "circular"])
@pytest.mark.parametrize("readout", ["flatten", pytest.param("pool", marks=pytest.mark.slow)])
def test_blocks_are_parts_of_the_whole(padding, readout):
    x = noise(7, 2, 3, 4) if readout == "flatten" else noise(6, 1, 3, 3)
    makers = (
        lambda other=None: conv_blocks(
            x if other is None else x[:4], RELU, 0.6, 3, padding, readout, "aAB", 1.0, other
        ),
        lambda other=None: conv_explicit_blocks(
            x if other is None else x[:4], [RELU, RELU], [3, 1], padding, readout, "all", other
        ),
    )
    for make in makers:
        whole = make().both()
        assert all(torch.equal(K, K.T) for K in whole)
        assert all(torch.linalg.eigvalsh(K)[0] > 0 for K in whole)
        other = make(x[3:])  # one image is in both
        for kernel, want, got, diagonal in zip(("ck", "ntk"), whole, other.both(), other.diagonal()):
            torch.testing.assert_close(got, want[3:, :4], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(diagonal, want.diagonal()[3:], rtol=1e-10, atol=1e-12)
            tile = make().tile(slice(1, 5), slice(2, 6), kernel, torch.empty(4, 4))
            torch.testing.assert_close(tile.double(), want[1:5, 2:6], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_circular_pooling_is_the_mean_over_shifts():
    x = noise(3, 1, 3, 3)  # and with a series for the pair function
    shifts = [x.roll((a, b), (2, 3)) for a in range(3) for b in range(3)]
    for got, parts in zip(
        conv_kernels(x, TANH, 0.5, 3, "circular", "pool"),
        zip(*(conv_kernels(x, TANH, 0.5, 3, "circular", other=shift) for shift in shifts)),
    ):
        torch.testing.assert_close(got, sum(parts) / 9, rtol=1e-9, atol=1e-12)


@pytest.mark.few(1)
@pytest.mark.parametrize("activation", [RELU, pytest.param(TANH, marks=pytest.mark.slow)])
def test_pixels_and_images_that_are_zero(activation):
    """phi(0) is not 0, and 0."""
    x = noise(4, 2, 5, 4)
    x[:, :, :3] = 0  # whole windows, in every image
    x[3] = 0
    ck, ntk = conv_kernels(x, activation, 0.5)
    assert torch.isfinite(ck).all() and torch.isfinite(ntk).all()
    assert activation is RELU or ntk[3].eq(0).all()
    tiny = x.clone()
    tiny[:, :, :3] = 1e-7 * noise(4, 2, 3, 4, seed=1)
    tiny[3] = 1e-7 * noise(2, 5, 4, seed=2)
    for got, want in zip((ck, ntk), conv_kernels(tiny, activation, 0.5)):
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * want.max().item())


def test_an_image_far_smaller_than_the_others():
    """A kinked network multiplies the kernel by what it multiplies the image by."""
    x = noise(3, 1, 4, 4)
    tiny = torch.cat([x, 1e-11 * x[:1]])
    for K in conv_explicit_kernels(tiny, [RELU, RELU], [3, 3]):
        torch.testing.assert_close(K[3, :3], 1e-11 * K[0, :3], rtol=1e-12, atol=0)
        torch.testing.assert_close(K[3, 3], 1e-22 * K[0, 0], rtol=1e-12, atol=0)


@pytest.mark.slow
def test_many_images_that_are_zero():
    """Where nothing is to be solved in a whole block of pairs."""
    x = noise(9, 1, 3, 3)
    x[4:8] = 0
    for K, part in zip(conv_kernels(x, TANH, 0.2, tau0=1.0), conv_kernels(x[:4], TANH, 0.2, tau0=1.0)):
        assert K[4:8].eq(0).all()
        torch.testing.assert_close(K[:4, :4], part, rtol=1e-10, atol=0)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["relu", "tanh", "hardtanh"])
def test_images_that_are_the_same_or_opposite(name):
    x = noise(2, 1, 3, 3)
    for K in conv_kernels(torch.cat([x, x, -x, 2 * x]), ACTIVATIONS[name], 0.7):
        torch.testing.assert_close(K[:2, :2], K[2:4, 2:4], rtol=1e-8, atol=0)
        torch.testing.assert_close(K[:2, 2:4], K[:2, :2], rtol=1e-8, atol=1e-9)
        assert torch.linalg.eigvalsh(K)[0] > -1e-8
        assert name == "relu" or torch.allclose(K[:2, 4:6], -K[:2, :2], rtol=1e-8)


def test_a_kinked_kernel_is_exact_between_an_image_and_its_copy():
    """The residual that is left must not enter the slope of a kink with its root, which is 1e-8 of it."""
    for seed in range(6):
        x = noise(11, 2, 3, 4, seed=seed)
        x[3] = x[2]
        for K in conv_kernels(x, RELU, 0.8):
            torch.testing.assert_close(K[2, 3], K[2, 2], rtol=1e-12, atol=0)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize(
    "readout, padding, size", [("flatten", "zero", 3), ("pool", "zero", 5), ("pool", "circular", 3)]
)
def test_compiled_code_and_torch_agree(name, readout, padding, size, monkeypatch):
    if not library():
        pytest.skip("no C compiler")
    x = noise(11, 2, 3, 4) if readout == "flatten" else noise(5, 2, 3, 3)
    x[3] = x[2]
    results = []
    for trained in ("aAB", "aA"):
        compiled = conv_blocks(x, ACTIVATIONS[name], 0.8, size, padding, readout, trained)
        assert compiled.terms
        with monkeypatch.context() as patch:
            patch.setattr(conv, "library", lambda: None)
            plain = conv_blocks(x, ACTIVATIONS[name], 0.8, size, padding, readout, trained)
        assert not plain.terms
        results += [compiled.both(), plain.both()]
        for a, b in zip(*results[-2:]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(results[0][1], results[2][1], rtol=0.1)


@pytest.mark.parametrize("sizes, padding, readout", [((3, 1), "zero", "flatten"), ((5, 3, 1), "circular", "pool")])
def test_compiled_layers_and_torch_agree(sizes, padding, readout, monkeypatch):
    if not library():
        pytest.skip("no C compiler")
    x, layers = noise(10, 2, 5, 6), [RELU, ACTIVATIONS["leaky_relu"], RELU][: len(sizes)]
    x = x if readout == "flatten" else x[:4]
    x[3] = x[2]
    for trained in ("all", "frozen_first"):
        compiled = conv_explicit_blocks(x, layers, sizes, padding, readout, trained)
        with monkeypatch.context() as patch:
            patch.setattr(conv_explicit, "library", lambda: None)
            plain = conv_explicit_blocks(x, layers, sizes, padding, readout, trained)
        assert compiled.compiled and not plain.compiled
        for a, b in zip(compiled.both(), plain.both()):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_code_that_does_not_compile_is_done_without(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler in ("false", str(tmp_path / "none")):
        monkeypatch.setenv("CC", compiler)
        library.cache_clear()
        assert library() is None
    monkeypatch.undo()
    library.cache_clear()
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name, tolerances",
    [
        ("hardtanh", (1e-12, 1e-8)),
        ("selu", (1e-6, 2e-3)),
        ("relu", (1e-12, 1e-11)),
        ("elu", (1e-9, 2e-6)),
        ("softsign", (5e-8, 1e-4)),
        ("gelu", (1e-12, 1e-12)),
    ],
)
def test_pixels_that_are_parallel_or_nearly_so(name, tolerances):
    """As docs/conv.md has it: an activation with a kink is hardest there, and one without a closed form above all."""
    x = noise(3, 3, 1, 1)
    y = torch.cat([x, x + 1e-2 * x.roll(1, 0), x + 0.2 * x.roll(1, 0)])
    X, Y = (z[..., 0, 0] / math.sqrt(3) for z in (x, y))
    tau0 = X.square().sum(1).mean().sqrt().item()
    wanted = implicit_kernels(X, ACTIVATIONS[name], 0.3, tau0=tau0, other=Y)
    got = conv_kernels(x, ACTIVATIONS[name], 0.3, 1, tau0=tau0, other=y)
    for kernel, want, tolerance in zip(got, wanted, tolerances):
        assert (kernel - want).abs().max() < tolerance * want.abs().max()


def test_window_equation():
    M, s = BoxFilter((4, 6), 3, "zero"), 0.9
    whole = torch.stack([M(row.reshape(4, 6)).reshape(24) for row in torch.eye(24, dtype=torch.float64)], 1)
    values = torch.linalg.eigvalsh(whole)
    torch.testing.assert_close(torch.tensor([M.least, M.most]).double(), values[[0, -1]], rtol=1e-12, atol=0)
    for low in (0.0, -1.0):
        D = low + (1 - low) * torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        b = noise(4, 6, 5)
        x = WindowEquation(M, s, D)(b, 1e-13)
        for k in range(5):
            A = torch.eye(24) - s * whole * D[..., k].reshape(24)
            torch.testing.assert_close(x[..., k].reshape(24), torch.linalg.solve(A, b[..., k].reshape(24)))


def test_names_and_functions_are_activations():
    wanted = conv_kernels(waves(), RELU, 0.5)[1], conv_explicit_kernels(waves(), [RELU, TANH], [3, 1])[1]
    for relu, tanh in (("relu", "tanh"), (torch.relu, torch.tanh)):
        assert torch.equal(conv_kernels(waves(), relu, 0.5)[1], wanted[0])
        assert torch.equal(conv_explicit_kernels(waves(), [relu, tanh], [3, 1])[1], wanted[1])


def test_a_day_is_announced(monkeypatch):
    monkeypatch.setattr(foretold, "DAY", 1e-9)
    for readout in ("flatten", "pool"):
        with pytest.warns(UserWarning, match=r"this kernel of 3 x 3 images will take about .* days"):
            conv_kernels(waves(), RELU, 0.5, readout=readout)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conv_kernels(waves(), RELU, 0.5)


BAD = {
    r"images must be \(n, channels, height, width\), got shape \(3, 4\)": dict(images=torch.ones(3, 4)),
    "NaN or infinite .* first in image 1": dict(images=torch.tensor([1, torch.nan])[:, None, None, None]),
    "all images are zero": dict(images=torch.zeros(2, 1, 3, 3)),
    r"\(2, 4, 4\), the others \(1, 4, 4\)": dict(other=torch.ones(2, 1, 4, 4)),
    "kernel_size must be an odd whole number, so that images keep their size, got 2": dict(kernel_size=2),
    "kernel_size = 5 is larger than the images of 4 x 4": dict(kernel_size=5, padding="circular"),
    "kernel_size = 11 is a window of which most never meets": dict(kernel_size=11),
    "padding must be": dict(padding="same"),
    "readout must be": dict(readout="max"),
    "trained must be": dict(trained="B"),
    "dtype must be torch.float32 or torch.float64, got torch.int64": dict(dtype=torch.int64),
    r"sigma_a\^2 must lie in": dict(sigma_a2=1.0),
    "the activation is 'rleu', not one of relu": dict(activation="rleu"),
    r"no (stable )?(fixed point|equilibrium)|outgrows": dict(activation=ACTIVATIONS["selu"], sigma_a2=0.95),
}


def test_a_diagonal_that_takes_too_long_is_not_said_to_have_no_fixed_point(monkeypatch):
    monkeypatch.setattr(pixel_scales, "_STEPS", 3)
    with pytest.raises(ValueError, match="tanh at .* did not converge in 3 steps; images far smaller than others"):
        conv_kernels(noise(3, 1, 4, 4), TANH, 0.9)


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(message):
    arguments = dict(images=waves(), activation=RELU, sigma_a2=0.5) | BAD[message]
    with pytest.raises(ValueError, match=message) as caught:
        conv_kernels(**arguments)
    assert "\n" not in str(caught.value)
    if "layers" not in message:
        with pytest.raises(ValueError, match="a window for each"):
            conv_explicit_kernels(waves(), [RELU], [3, 3])
        with pytest.raises(ValueError, match=r"dtype must be .* got torch.float16"):
            conv_explicit_kernels(waves(), [RELU], [3], dtype=torch.float16)


def test_other_images_have_no_part_in_the_scale():
    images, other, tau0 = waves(), 3 * waves(2)[:, :, :, [1, 0, 3, 2]], estimate_image_tau0(waves())
    for default, given in zip(
        *(conv_kernels(images, ACTIVATIONS["swish"], 0.4, tau0=t, other=other) for t in (None, tau0))
    ):
        torch.testing.assert_close(default, given)
