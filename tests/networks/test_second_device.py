"""Everything that a GPU may do, on a second device that is pretended (helpers/second_device.py): no tensor is mixed."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy

from ck_ntk import training_dynamics
from ck_ntk.common import convergence_rates
from ck_ntk.common.kernel_figures import deq_kernel
from deq_enn.data.datasets import Dataset
from deq_enn.kernels.distance import label_alignment, least_distance, relative_error
from deq_enn.kernels.exact import explicit_kernels, implicit_blocks, implicit_kernels
from deq_enn.kernels.interpolated import Interpolated
from deq_enn.machines import leave_one_out, readout
from deq_enn.machines.leave_one_out import Targets
from deq_enn.machines.run import Plan, Samples, Settings, run_machine
from deq_enn.networks.build import build_model
from deq_enn.networks.conv_enn import build_conv
from deq_enn.networks.cost import costs
from deq_enn.networks.deq import DEQ, as_drawn
from deq_enn.networks.empirical import empirical_ntk
from deq_enn.networks.export import network_of
from deq_enn.networks.fixed_point import Anderson
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.networks.trained_deq import adapt
from deq_enn.theory.activations import ACTIVATIONS, from_function
from deq_enn.training.equilibria import prepared
from deq_enn.training.loop import TASKS
from deq_enn.training.run_files import Config
from deq_enn.verdicts import api, measured_loss
from deq_enn.verdicts.candidates import plain_networks
from deq_enn.verdicts.losses.measurements import Measurements
from deq_enn.verdicts.measured_loss import replacements
from deq_enn.verdicts.weight_drift import drift
from tests.conftest import Ticks
from tests.helpers.second_device import SECOND, Elsewhere, second_device


@pytest.fixture
def second(monkeypatch):
    with second_device(monkeypatch) as device:
        yield device


def samples(n=60, p=12, classes=3):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    X = torch.randn(n, p, generator=g)
    X[torch.arange(n), y] += 2
    return X / X.square().sum(1).mean().sqrt(), y


def there(*tensors):
    return all(isinstance(t, Elsewhere) for t in tensors)


def near(here, elsewhere, rtol=1e-4):
    assert there(elsewhere)
    assert torch.allclose(here, elsewhere.cpu(), rtol=rtol, atol=rtol * here.abs().max().item())


MIXED = {
    "add": (lambda a, b: a + b, True),
    "add a number": (lambda a, b: a + b.sum(), False),
    "add to a number": (lambda a, b: a.sum().add_(b), True),
    "where": (lambda a, b: torch.where(a > 0, a, b[0, 0]), False),
    "matmul": (lambda a, b: a @ b, True),
    "addmm": (lambda a, b: torch.addmm(a, a, b), True),
    "cat": (lambda a, b: torch.cat([a, b]), True),
    "stack": (lambda a, b: torch.stack([a, b]), True),
    "copy": (lambda a, b: a.copy_(b), False),
    "assign": (lambda a, b: a.__setitem__(slice(1), b[:1]), False),
    "index": (lambda a, b: a[(b[0] * 0).long()], False),
    "index the other": (lambda a, b: b[(a[0] * 0).long()], True),
    "index_select": (lambda a, b: a.index_select(0, (b[0] * 0).long()), True),
    "gather": (lambda a, b: a.gather(0, (b * 0).long()), True),
    "mask": (lambda a, b: a[b[0] > 5], False),
    "put": (lambda a, b: a.__setitem__((b[0] * 0).long(), 0.0), False),
    "generator": (lambda a, b: torch.randn(3, device=a.device, generator=torch.Generator()), True),
    "out": (lambda a, b: torch.mm(a, a, out=b), True),
    "numpy": (lambda a, b: a.numpy(), True),
    "cross entropy": (lambda a, b: cross_entropy(a, b[0].long()), True),
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.few(6)
@pytest.mark.slow
def test_the_pretended_device_has_the_rules_of_cuda(name, monkeypatch):
    """torch's own fake tensors say of CUDA what may meet the CPU."""
    work, refused = MIXED[name]
    with second_device(monkeypatch) as device:
        ours = _fails(work, torch.ones(4, 4).to(device), torch.ones(4, 4))
    assert ours == refused
    with FakeTensorMode():
        torchs = _fails(work, torch.ones(4, 4, device="cuda"), torch.ones(4, 4))
    assert torchs == refused or name in ("mask", "numpy", "generator", "out", "index the other")


def _fails(work, *tensors):
    try:
        work(*tensors)
    except Exception:
        return True
    return False


# ---------------------------------------------------------------------------------------------------------------
# networks

OWN = from_function(lambda x: torch.tanh(x) * 1.1, "own")


@pytest.mark.parametrize("name", ("inn", "tanh_inn", "relu_enn", "l_relu_enn", "h_tanh_enn", "deq", "matched_enn"))
@pytest.mark.few(2)
def test_networks(second, name):
    X, y = samples()
    activation = OWN if name in ("deq", "matched_enn") else None
    model = build_model(name, 12, 16, 3, 0.2, activation=activation)
    expected = model(X)
    (slopes,) = torch.autograd.grad(cross_entropy(expected, y), [model.readout.weight])
    model = model.to(second)
    scores = model(X.to(second))
    near(expected, scores)
    cross_entropy(scores, y.to(second)).backward()
    near(slopes, model.readout.weight.grad)


@pytest.mark.parametrize("name", ("conv_deq", "matched_conv_enn", "plain_conv"))
@pytest.mark.parametrize("train", ("readout", "full"))
@pytest.mark.few(2)
@pytest.mark.slow
def test_convolutions_and_a_step_of_their_training(second, name, train):
    X, y = samples(n=30, p=2 * 4 * 4)
    images = X.view(-1, 2, 4, 4) * 32**0.5
    data = Dataset("toy", images[:20], y[:20], images[20:], y[20:], 3, None)
    config = Config("toy", name, 8, lr=0.1, epoch=1, batch_size=10, train=train)

    def outcome(device):
        torch.manual_seed(0)
        network = prepared(build_conv(name, (2, 4, 4), 8, 3, 0.2, "relu"), config).to(device)
        scores = network(images.to(device)).detach()
        task = TASKS[train](network, data, config, device)
        return scores, task.epoch(torch.arange(20).to(device)) | task.evaluate()

    (expected, ours), (scores, theirs) = outcome("cpu"), outcome(second)
    near(expected, scores)
    assert theirs == pytest.approx(ours, rel=1e-3)


@pytest.mark.long
def test_anderson_adapted_and_empirical(second):
    X, _ = samples(n=6)
    deq = DEQ(OWN, 12, 16, 3, 0.2, solver=Anderson())
    expected, kernel = deq(X), empirical_ntk(deq, X)
    deq = deq.to(second)
    near(expected, deq(X.to(second)))
    near(kernel, empirical_ntk(deq, X.to(second)))
    near(expected, adapt(deq)(X.to(second)))
    near(expected, adapt(deq).shuffled(0)(X.to(second)) * 0 + deq(X.to(second)))
    assert as_drawn(deq)


class Mine(torch.nn.Module):
    """A user's own, whose activation holds a tensor."""

    def __init__(self):
        super().__init__()
        self.A, self.B = torch.nn.Linear(16, 16), torch.nn.Linear(12, 16)
        with torch.no_grad():
            self.A.weight.mul_(0.5)
        self.readout = torch.nn.Linear(16, 3)
        self.slope = torch.nn.Parameter(torch.tensor([0.9]), requires_grad=False)

    def activation(self, x):
        return torch.tanh(x * self.slope)

    def forward(self, x):
        u, z = self.B(x), 0.0 * self.B(x)
        for _ in range(100):
            z = self.activation(self.A(z) + u)
        return self.readout(z)


def test_an_activation_that_holds_tensors_of_the_device(second):
    torch.manual_seed(0)
    X, y = samples(n=60)
    module = Mine()
    expected = module(X).detach()
    module = module.to(second)
    near(expected, adapt(module)(X.to(second)).detach())


@pytest.mark.parametrize("name, activation", [("linear_pcdeq_1", "tanh"), ("single_conv_pcdeq_2", "sigmoid")])
@pytest.mark.long
def test_pcdeq(second, name, activation):
    images = torch.rand(4, 784, generator=torch.Generator().manual_seed(0))
    network = build_pcdeq(name, activation, (1, 28, 28), 3)
    expected = network(images)
    near(expected, build_pcdeq(name, activation, (1, 28, 28), 3).to(second)(images.to(second)))


@pytest.mark.long
def test_costs(second):
    X, _ = samples()
    deq, enn = (build_model(name, 12, 16, 3, 0.2).to(second) for name in ("inn", "l_relu_enn"))
    assert costs(deq, enn, X, 0.01)["device"] == str(SECOND)


@pytest.mark.long
def test_an_exported_network_is_on_the_cpu(second, tmp_path):
    X, y = samples()
    enn = build_model("l_relu_enn", 12, 16, 3, 0.2)
    expected = enn(X).detach()
    enn = enn.to(second)
    solved, _ = readout.solve(enn, X, y, 3, device=second)
    for network in (network_of(enn), network_of(enn, solved, X[0].to(second), 2.0)):
        assert not any(map(there, network.state_dict().values()))
    assert torch.allclose(network_of(enn)(X), expected, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# training


@pytest.mark.parametrize(
    "train, model, options",
    [
        ("readout", "inn", {}),
        ("readout", "inn", {"opt": "adam"}),
        ("full", "inn", {"opt": "adamw"}),
        ("full", "l_relu_enn", {}),
        ("full", "tanh_inn", {"steps": 2}),
        ("full", "tanh_inn", {"solver": "anderson", "lenient": True, "jacobian": "0.5"}),
        ("pcdeq", "linear_pcdeq_1", {"aug": True, "milestone": 1}),
    ],
)
@pytest.mark.few(1)
def test_a_step_of_training(second, train, model, options):
    p = 784 if train == "pcdeq" else 12
    X, y = samples(p=p)
    data = Dataset("toy", X[:40], y[:40], X[40:], y[40:], 3, None)
    config = Config("toy", model, 16, lr=0.1, epoch=1, batch_size=16, train=train, **options)

    def epoch(device):
        torch.manual_seed(0)
        network = build_pcdeq(model, "tanh", (1, 28, 28), 3) if train == "pcdeq" else build_model(model, p, 16, 3, 0.2)
        task = TASKS[train](prepared(network, config).to(device), data, config, device)
        record = task.epoch(torch.arange(40).to(device)) | task.evaluate()
        task.load(task.state())
        return record

    assert epoch(second) == pytest.approx(epoch("cpu"), rel=1e-3)


@pytest.mark.long
def test_trainings_of_figures(second):
    """`train_network` of training_dynamics.py, and a pcDEQ of pcdeq_convergence.py."""
    X, y = samples(p=784)
    data = Dataset("toy", X[:40], y[:40], X[40:], y[40:], 3, None)
    config = Config("toy", "deq_centred", 16, lr=0.1, epoch=1, batch_size=16, train="full")
    ours, theirs = (training_dynamics.train_network(config, data, 1.0, device) for device in ("cpu", str(second)))
    for key in ("test_accuracy", "kernel_change", "weight_change"):
        assert ours[key] == pytest.approx(theirs[key], rel=1e-3)
    ours, theirs = (convergence_rates.trained("tanh", data, 1, device) for device in ("cpu", second))
    assert ours["rate"] == pytest.approx(theirs["rate"], rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------
# readouts and kernels


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "kept"])
@pytest.mark.parametrize("match", ["ck", "ntk"])
def test_kernel_machine(second, match, on_disk, tmp_path):
    """Formed, factorised, refined and predicted there, also where the kernel is kept on disk for a killed run."""
    X, y = samples(n=60)
    parts = Samples(X[:40], y[:40], X[40:], y[40:], 3)
    model = build_model("tanh_inn", 12, 1, 3, 0.2)

    def go(device):
        files = tmp_path / str(device) if on_disk else None
        settings = Settings(match, (1e-3, 1e-2), Plan(True, 16, 0), files, "key", device=device)
        return run_machine(model, parts, settings)

    ours, theirs = go("cpu"), go(second)
    assert torch.equal(ours[1], theirs[1])
    for name in ("test_mse", "test_log_density", "ridge", "log_evidence"):
        assert ours[0][name] == pytest.approx(theirs[0][name], rel=1e-4)


@pytest.mark.slow
def test_ridge_readout(second):
    X, y = samples()
    model = build_model("inn", 12, 16, 3, 0.2)
    expected, table = readout.solve(model, X, y, 3)
    mean = expected.predict(model, X).mean
    model = model.to(second)
    for data in (X, X.to(second)):
        for labels in (y, y.to(second)):
            solved, own = readout.solve(model, data, labels, 3)
            assert solved.ridge == expected.ridge
            assert torch.allclose(solved.predict(model, data).mean, mean, atol=1e-4)


@pytest.mark.parametrize("width", (16, 100))
@pytest.mark.long
def test_leave_one_out(second, width):
    X, y = samples()
    copies = torch.arange(60)
    copies[1] = 0
    F = build_model("l_relu_enn", 12, width, 3, 0.2).features(X).detach()
    expected = leave_one_out.from_features(F, Targets(y, 3, copies))
    targets = Targets(y, 3, copies, device=second)
    result = leave_one_out.from_features(F.to(second), targets)
    near(expected.predicted, result.predicted)
    assert result.ridge == expected.ridge and torch.equal(result.right.cpu(), expected.right)


KINDS = ["relu", "tanh", "erf", "sin", "hardtanh", OWN]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "name", kind))
@pytest.mark.long
def test_exact_kernels(second, kind):
    activation = ACTIVATIONS.get(kind, OWN)
    X, other = samples(n=8)[0].split(6)
    if kind in ("relu", OWN):
        X[5] = -2 * X[1]
    for kernels, second_set in (
        (lambda X, other: implicit_kernels(X, activation, 0.2, other=other), None),
        (lambda X, other: explicit_kernels(X, [activation, activation], other=other), other),
    ):
        expected = kernels(X, second_set)
        result = kernels(X.to(second), None if second_set is None else second_set.to(second))
        for ours, theirs in zip(expected, result):
            near(ours, theirs, 1e-10)


@pytest.mark.long
def test_kernels_of_figures_are_computed_on_the_device(second):
    sample = SimpleNamespace(X=samples(n=8)[0].double(), statistics=SimpleNamespace(tau0=1.0))
    expected, _ = deq_kernel("ck", sample, "relu", 0.2)
    assert torch.equal(deq_kernel("ck", sample, "relu", 0.2, second)[0], expected)


@pytest.mark.long
def test_interpolated_kernels(second):
    X, _ = samples(n=40)

    def blocks(X, other=None):
        return implicit_blocks(X, ACTIVATIONS["tanh"], 0.2, other=other)

    expected = Interpolated(blocks, X).tile(slice(0, 40), slice(0, 40))
    result = Interpolated(blocks, X.to(second)).tile(slice(0, 40), slice(0, 40))
    near(expected, result, 1e-6)


# ---------------------------------------------------------------------------------------------------------------
# the verdict


@pytest.mark.long
def test_measurements_and_distances(second):
    X, y = samples(n=150)
    deq, order, copies = build_model("inn", 12, 32, 3, 0.2), torch.arange(150), torch.arange(150)
    plain = plain_networks(deq.activation, 0.2, 1.0)[:1]
    here = Measurements(deq, plain, X, y, order, copies, 3)
    there_too = Measurements(deq, plain, X, y, order, copies, 3, device=second)
    for measurements in (here, there_too):
        measurements.measure(16, 150)
    assert there_too.accuracy == here.accuracy
    (K, T), targets = implicit_kernels(X.to(second), deq.activation, 0.2), Targets(y, 3, device=second)
    assert label_alignment(K, targets.Y) > 0 and relative_error(K, T) > least_distance(K, T)[0]
    near(leave_one_out.from_kernel(K.cpu(), Targets(y, 3)).predicted, leave_one_out.from_kernel(K, targets).predicted)


@pytest.mark.long
def test_drift_and_replacements(second, monkeypatch):
    X, y = samples(n=150)
    plain = plain_networks(OWN, 0.2, 1.0)[:1]
    monkeypatch.setattr(measured_loss, "networks", lambda deq, tau0: (plain, {}))
    deq = adapt(build_model("inn", 12, 16, 3, 0.2))
    here, losses = drift(deq, X, copies=2), replacements(deq, X, y, budget=1, most_seeds=1, clock=Ticks(1.0))
    deq = deq.to(second)
    assert drift(deq, X, copies=2)["infinite"] == pytest.approx(here["infinite"], rel=1e-3)
    for held in (None, (X, y)):
        elsewhere = replacements(deq, X, y, held, budget=1, most_seeds=1, clock=Ticks(1.0))
        assert elsewhere.accuracy == losses.accuracy or held
    best = elsewhere.replacements[0]
    assert not any(map(there, network_of(best.enn, best.readout, None, 1 / best.gain).state_dict().values()))


@pytest.mark.long
def test_verdict_at_initialisation(second):
    X, y = samples(n=150)
    deq = build_model("inn", 12, 32, 3, 0.2)
    here = api.verdict(deq, X, y, budget=2, clock=Ticks(0.01))
    verdict = api.verdict(deq.to(second), X, y, budget=2, clock=Ticks(0.01))
    assert verdict.answer == here.answer and verdict.candidates
    assert verdict.settings["device"] == str(second)


@pytest.mark.long
def test_verdict_after_training(second):
    X, y = samples(n=150)
    deq = build_model("tanh_inn", 12, 32, 3, 0.2)
    with torch.no_grad():
        signs = torch.arange(32) % 2 * 2.0 - 1
        deq.A.add_(0.35 * torch.outer(signs, signs))  # of rank one, which shuffling loses
    here = api.verdict(deq, X, y, budget=2, clock=Ticks(0.01))
    verdict = api.verdict(deq.to(second), X, y, budget=2, clock=Ticks(0.01))
    assert verdict.drift["left"] and verdict.answer == here.answer
    assert verdict.candidates[0].loss == pytest.approx(here.candidates[0].loss, abs=5)
