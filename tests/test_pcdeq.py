import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.io import savemat

import main
import train
from conftest import ROOT
from data_prepare import DataError, Dataset, load_dataset, svhn_images
from fixed_point import Picard
from pcdeq import CONCAVE, PCDEQS, WIDTHS, PcDEQ, augment, build_pcdeq, keep_nonnegative, rate_bound
from train import Config, best_path, run

sys.path.insert(0, str(ROOT / "ck_ntk"))
import pcdeq_convergence

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
@pytest.mark.parametrize("name, shape, count", [
    ("linear_pcdeq_1", (1, 28, 28), 784 * 80 + 80 + 4 * 80 + 80 * 80 + 80 + 810),
    ("single_conv_pcdeq_1", (1, 28, 28), 82 * 10 + 4 * 82 + 82 * 82 * 9 + 82 + 82 * 9 * 10 + 10),
    ("single_conv_pcdeq_2", (3, 32, 32), 125 * 28 + 4 * 125 + 125 * 125 * 9 + 125 + 125 * 16 * 10 + 10),
])
def test_architecture_is_the_published_one(name, shape, count):
    network = build_pcdeq(name, activation_of(name), shape, 10)
    assert sum(p.numel() for p in network.parameters()) == count
    widths = [layer.inner.weight.shape[0] for layer in network.equilibria]
    assert widths == list(WIDTHS[shape][name[:-len("_pcdeq_1")]])
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
    a, b, c = (build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10, seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    states = [net.state_dict() for net in (a, b, c)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["1.weight"], states[2]["1.weight"])


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


@pytest.mark.parametrize("arguments, message", [
    (("linear_pcdeq_2", "relu6", (1, 28, 28), 10), "linear_pcdeq_2 cannot use activation 'relu6'.*choose from sigmoid"),
    (("multi_conv_pcdeq_1", "sigmoid", (1, 28, 28), 10), "cannot use activation 'sigmoid'.*tanh, softsign, relu6"),
    (("single_conv_pcdeq_1", "gelu", (1, 28, 28), 10), "cannot use activation 'gelu'"),
    (("linear_pcdeq_3", "tanh", (1, 28, 28), 10), "unknown pcDEQ model 'linear_pcdeq_3': choose from linear_pcdeq_1"),
    (("linear_pcdeq_1", "tanh", (1, 32, 32), 10), "takes images of shape 1x28x28 or 3x32x32, got 1x32x32"),
    (("linear_pcdeq_1", "tanh", (784,), 10), "takes images of shape 1x28x28 or 3x32x32, got 784"),
])
def test_what_cannot_be_built_says_so_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_pcdeq(*arguments)
    assert "\n" not in str(caught.value)


def test_images_of_another_shape_are_refused():
    network = build_pcdeq("multi_conv_pcdeq_1", "tanh", (1, 28, 28), 10)
    with pytest.raises(ValueError, match="takes images of shape 1x28x28, got 3x32x32"):
        network(torch.zeros(2, 3, 32, 32))


# ---------------------------------------------------------------------------------------------------------------
# data and training

def write_svhn(folder, n=20, **changes):
    g = np.random.default_rng(0)
    for split in ("train", "test"):
        arrays = {"X": g.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), "y": (np.arange(n) % 10 + 1)[:, None]}
        savemat(folder / f"{split}_32x32.mat", {**arrays, **changes})
    return arrays


def test_svhn_from_mat_files(tmp_path):
    arrays = write_svhn(tmp_path)
    images = svhn_images(tmp_path)
    assert images.test.shape == (20, 3, 32, 32) and images.test.dtype == torch.uint8
    assert images.test[7, 2, 5, 9].item() == arrays["X"][5, 9, 2, 7]
    assert images.test_labels.tolist() == [*range(1, 10), 0] * 2
    data = load_dataset("svhn", tmp_path)
    assert data.X_train.shape == (20, 3072) and data.n_classes == 10
    # a row is the image, pixel by pixel, so that a network may take it back
    centred = images.train.float() - images.train.float().mean(0)
    rows = data.X_train.view(-1, 3, 32, 32)
    torch.testing.assert_close(rows, centred * (rows[0, 0, 0, 0] / centred[0, 0, 0, 0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changes, words", [
    ({"X": np.zeros((32, 32, 3, 5), np.uint8)}, "for 20 labels"),
    ({"X": np.zeros((32, 32, 3, 20))}, "not uint8"),
    ({"y": np.arange(20)[:, None]}, "not in 1 .. 10"),
])
def test_bad_mat_files_are_named_in_one_line(tmp_path, changes, words):
    write_svhn(tmp_path, **changes)
    with pytest.raises(DataError, match="train_32x32.mat.*" + words) as caught:
        svhn_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_mat_files(tmp_path, monkeypatch):
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets, "SVHN", offline)
    with pytest.raises(DataError, match=r"train_32x32.mat: no such file and its download failed \(no network\)"):
        svhn_images(tmp_path)
    assert not list(tmp_path.iterdir())
    write_svhn(tmp_path)
    content = (tmp_path / "test_32x32.mat").read_bytes()
    (tmp_path / "test_32x32.mat").write_bytes(content[:len(content) // 2])
    with pytest.raises(DataError, match="test_32x32.mat: not a .mat file") as caught:
        svhn_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_augmentation_shifts_and_flips_each_image_by_its_own_draw():
    images = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    out = augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(images, before) and torch.equal(out, augment(images, torch.Generator().manual_seed(1)))
    seen = set()
    for image, shown in zip(images, out):
        padded = F.pad(image, (4, 4, 4, 4))
        found = [(down, right, flip) for down in range(9) for right in range(9) for flip in (False, True)
                 if torch.equal(padded[:, down:down + 8, right:right + 8].flip(2 if flip else ()), shown)]
        assert len(found) == 1 or shown.abs().max() == 0
        seen |= set(found)
    downs, rights, flips = map(set, zip(*seen))
    assert downs == rights == set(range(9)) and flips == {False, True}


def toy_digits():
    x, y = small_problem((1, 28, 28), n=80)
    return Dataset("toy", x[:60].flatten(1), y[:60], x[60:].flatten(1), y[60:], 2)


CONFIG = Config(dataset="toy", model="linear_pcdeq_1", dim=80, lr=0.01, epoch=4, batch_size=16, opt="adamw",
                train="pcdeq", activation="tanh", weight_decay=0.1, milestone=2, aug=True)


def train_toy(folder, config=CONFIG, **options):
    networks = []

    def make():
        networks.append(build_pcdeq(config.model, config.activation, (1, 28, 28), 2, config.seed))
        return networks[0]

    return run(config, toy_digits(), make, folder / "out", folder / "ckpt", **options), networks[0]


def test_training_is_adamw_with_a_milestone_and_logs_iterations(tmp_path, monkeypatch):
    rates, decays = [], []
    step = torch.optim.AdamW.step

    def spy(self, *args):
        rates.append(self.param_groups[0]["lr"])
        decays.append(self.param_groups[0]["weight_decay"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    result, network = train_toy(tmp_path)
    assert rates == pytest.approx([0.01] * 8 + [0.001] * 8) and set(decays) == {0.1}  # 4 batches of 60, 4 epochs
    assert all(r["forward_iterations"] >= 1 and r["backward_iterations"] >= 1 for r in result.history)
    layer = network.equilibria[0]
    assert layer.inner.parametrizations.weight.original1.min() == 0 <= layer.inner.weight.min()


def test_the_best_weights_are_kept(tmp_path):
    config = replace(CONFIG, epoch=6, lr=0.03)
    result, network = train_toy(tmp_path, config)
    accuracies = [r["test_accuracy"] for r in result.history]
    network.load_state_dict(torch.load(best_path(config, tmp_path / "ckpt"), weights_only=True))
    data = toy_digits()
    with torch.no_grad():
        accuracy = (network.eval()(data.X_test).argmax(1) == data.y_test).double().mean().item()
    assert accuracy == pytest.approx(max(accuracies)) and accuracies[-1] <= max(accuracies)


def test_a_resumed_run_writes_the_same_numbers(tmp_path, monkeypatch):
    config = replace(CONFIG, epoch=5, milestone=3)  # killed in epoch 4: the resumed run itself must lower the rate
    whole, network = train_toy(tmp_path / "whole", config)
    plain, _ = train_toy(tmp_path / "plain", replace(config, aug=False))
    assert whole.history[0]["train_loss"] != plain.history[0]["train_loss"]
    real, calls = train.PcDEQTask.epoch, []

    def killed(self, order):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, order)

    monkeypatch.setattr(train.PcDEQTask, "epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_toy(tmp_path / "parts", config)
    monkeypatch.setattr(train.PcDEQTask, "epoch", real)
    parts, resumed = train_toy(tmp_path / "parts", config, resume=True)

    def numbers(result):
        return [{k: v for k, v in r.items() if k != "seconds"} for r in result.history]

    assert numbers(parts) == numbers(whole)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), resumed.state_dict().values()))


# ---------------------------------------------------------------------------------------------------------------
# the command line

def refused(capsys, tmp_path, *argv):
    with pytest.raises(SystemExit) as stop:
        main.main([*map(str, argv), "--output_path", str(tmp_path / "out"), "--save_path", str(tmp_path / "ckpt")])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "out").exists()
    return captured.err


def test_bad_input_gets_one_line(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    write_svhn(tmp_path / "data", n=80)
    svhn = ("--dataset", "svhn", "--dataset_path", tmp_path / "data")
    for argv, words in [
        ((*svhn, "--model", "linear_pcdeq_2", "--activation", "relu6"), "linear_pcdeq_2 cannot use activation 'relu6'"),
        ((*svhn, "--model", "multi_conv_pcdeq_1", "--activation", "sigmoid"), "cannot use activation 'sigmoid'"),
        (("--dataset", "gmm", "--preset", "two_class", "--model", "linear_pcdeq_1"), "1x28x28 or 3x32x32, got 1600"),
        ((*svhn, "--model", "linear_pcdeq_1", "linear_pcdeq_2"), "trained alone"),
        ((*svhn, "--model", "linear_pcdeq_1", "--dim", "64"), "--dim: not a setting of linear_pcdeq_1"),
        ((*svhn, "--model", "inn", "--aug"), "--aug: not a setting of inn"),
        ((*svhn, "--model", "linear_pcdeq_1", "--weight_decay", "-1"), "--weight_decay"),
        ((*svhn, "--model", "linear_pcdeq_1", "--milestone", "0"), "--milestone"),
    ]:
        assert words in refused(capsys, tmp_path, *argv)
    (tmp_path / "data" / "test_32x32.mat").write_bytes(b"")
    assert "test_32x32.mat" in refused(capsys, tmp_path, *svhn, "--model", "linear_pcdeq_1")


def test_a_whole_run_and_its_resumption(capsys, tmp_path):
    write_svhn(tmp_path, n=80)
    argv = ["--dataset", "svhn", "--dataset_path", tmp_path, "--model", "linear_pcdeq_2", "--epoch", 2,
            "--batch_size", 32, "--aug", "--milestone", 1, "--weight_decay", 0.03,
            "--output_path", tmp_path / "out", "--save_path", tmp_path / "ckpt"]
    main.main([*map(str, argv)])
    printed = capsys.readouterr().out
    assert "weights = 253450" in printed and "linear_pcdeq_2" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"80_train_linear_pcdeq_2_svhn.json", "80_test_linear_pcdeq_2_svhn.json", "metrics.jsonl",
                     "accuracy_svhn.png"}
    config = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])["config"]
    expected = {"activation": "sigmoid", "weight_decay": 0.03, "milestone": 1, "aug": True, "opt": "adamw", "lr": 7e-4,
                "dim": 80}
    assert expected.items() <= config.items()
    log = (tmp_path / "out" / "80_test_linear_pcdeq_2_svhn.json").read_text()
    main.main([*map(str, argv), "--resume"])
    assert (tmp_path / "out" / "80_test_linear_pcdeq_2_svhn.json").read_text() == log


# ---------------------------------------------------------------------------------------------------------------
# the figure

def test_fitted_rate_of_a_geometric_sequence_and_of_a_finite_one():
    assert pcdeq_convergence.fitted_rate([3 * 0.7**k for k in range(30)]) == pytest.approx(0.7)
    assert pcdeq_convergence.fitted_rate([1.0, 0.5, 1e-3, 0.0]) == 0


@pytest.mark.parametrize("index", range(5))
def test_the_rate_seen_is_that_of_the_jacobian_and_below_the_bound(index):
    name, s, W, b = pcdeq_convergence.random_layers()[index]
    record = pcdeq_convergence.study(name, s, 0.7 * W, b)
    assert record["converged"] and record["radius"] == pytest.approx(0.7)
    assert record["rate"] == pytest.approx(record["jacobian_radius"], rel=0.03)
    assert name == "plain" or record["rate"] <= record["bound"] + 1e-3


def test_only_the_plain_deq_stops_converging():
    for name, s, W, b in pcdeq_convergence.random_layers():
        record = pcdeq_convergence.study(name, s, 5.0 * W, b)
        assert record["converged"] == (name != "plain")
