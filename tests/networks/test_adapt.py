"""Only the user's own network is judged: what its forward does is compared with z = phi(A z + B x + b)."""

import multiprocessing
import pickle

import pytest
import torch
from torch import nn

from deq_enn.matching.families import match
from deq_enn.networks.build import build_model, matched_enn
from deq_enn.networks.deq import DEQ
from deq_enn.networks.export import ExportedENN
from deq_enn.networks.fixed_point import Anderson, Picard
from deq_enn.networks.trained_deq import adapt
from deq_enn.theory.activations import ACTIVATIONS, piecewise_linear
from deq_enn.theory.recognise import recognise

P, M, K = 4, 8, 2


def data(n=64, p=P):
    return nn.functional.normalize(torch.randn(n, p, generator=torch.Generator().manual_seed(0)))


class Written(nn.Module):
    """A DEQ as users write it; `before`, `cell` and `after` are what they add."""

    def __init__(self, activation=None):
        super().__init__()
        torch.manual_seed(0)
        self.A, self.B = nn.Linear(M, M, bias=False), nn.Linear(P, M)
        self.A.weight.data.mul_(0.5)
        self.activation, self.readout = activation or nn.Tanh(), nn.Linear(M, K)

    def before(self, x):
        return x

    def cell(self, z, x):
        return self.activation(self.A(z) + self.B(x))

    def forward(self, x):
        x = self.before(x)
        z = x.new_zeros(len(x), M)
        for _ in range(100):
            z = self.cell(z, x)
        return self.readout(z)


class Scaled(Written):
    def before(self, x):
        return (x - 0.2) * 3


class Normalised(Written):
    def before(self, x):
        return (x - 0.1307) / 0.3081


class LayerNormed(Written):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(M)

    def cell(self, z, x):
        return self.norm(super().cell(z, x))


class Outside(Written):
    def cell(self, z, x):
        return self.A(self.activation(z)) + self.B(x)


class Skipping(Written):
    def cell(self, z, x):
        return torch.tanh(self.A(z) + self.B(x) + 0.3 * z)


class Other(Written):
    def forward(self, x):
        return 7 + x[:, :2]


class Features(DEQ):
    def features(self, x):
        return super().features(3 * x)


class Forward(DEQ):
    def forward(self, x):
        return super().forward(x - 0.5)


def hooked():
    deq = DEQ("tanh", P, M, K, 0.2)
    deq.register_forward_pre_hook(lambda module, args: (args[0] - 0.3,))
    return deq


class OptimizedModule(nn.Module):
    """What torch.compile returns, without its import of 20 s."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


def patched():
    deq = DEQ("tanh", P, M, K, 0.2)
    deq.forward = lambda x: DEQ.forward(deq, x - 0.3)
    return deq


OTHERS = [
    Scaled,
    Normalised,
    LayerNormed,
    Outside,
    Skipping,
    Other,
    hooked,
    patched,
    lambda: Features("tanh", P, M, K, 0.2),
    lambda: Forward("tanh", P, M, K, 0.2),
    lambda: OptimizedModule(Scaled()),
    lambda: nn.DataParallel(Scaled()),
]


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.parametrize("X", [None, data()], ids=["probe", "samples"])
def test_a_forward_that_does_something_else_is_refused_with_the_difference(make, X):
    with pytest.raises(
        ValueError, match="what its forward uses: outputs differ by .*, relative .*beforehand"
    ) as caught:
        adapt(make(), X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_network_is_taken_in_every_dtype(dtype):
    for module in (Written().to(dtype), OptimizedModule(Written().to(dtype)), nn.DataParallel(Written().to(dtype))):
        x, deq = data().to(dtype), adapt(module)
        inner = module if isinstance(module, Written) else next(module.children())
        with torch.no_grad():
            torch.testing.assert_close(deq(x), inner(x), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_what_torch_compile_returns_is_the_module():
    deq = DEQ("tanh", P, M, K, 0.2)
    assert torch.equal(adapt(torch.compile(deq)).W, adapt(deq).W)
    with pytest.raises(ValueError, match="outputs differ by"):
        adapt(torch.compile(Scaled()))


def test_a_network_is_judged_in_evaluation_mode_and_left_as_it_was():
    module = Written(nn.Sequential(nn.Tanh(), nn.Dropout(0.5)))
    module.readout.eval()
    with pytest.warns(UserWarning, match="Written is in training mode and has dropout: it is judged in evaluation"):
        deq = adapt(module, data())
    assert module.training and module.activation[1].training and not module.readout.training
    assert deq.activation is ACTIVATIONS["tanh"]
    module.eval()
    torch.testing.assert_close(deq(data()), module(data()), rtol=1e-3, atol=1e-4)


def test_a_forward_that_is_random_fails_or_returns_something_else_is_refused():
    class Random(Written):
        def before(self, x):
            return x + torch.rand_like(x)

    class Images(Written):
        def before(self, x):
            return x.reshape(len(x), 28, 28)

    class Half(Written):
        def forward(self, x):
            return super().forward(x)[:, :1]

    class Tuple(Written):
        def forward(self, x):
            return super().forward(x), {"steps": 100}

    for module, message in (
        (Random(), "Random's forward is random even in evaluation mode"),
        (Images(), r"Images's forward fails on rows of shape \(64, 4\) .*adapt\(A="),
        (Half(), r"its outputs are \(64, 1\), readout\(z\) is \(64, 2\)"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            adapt(module)
        assert "\n" not in str(caught.value)
    assert adapt(Tuple()).sigma_a2 == adapt(Written()).sigma_a2


def test_an_activation_is_not_taken_for_one_that_agrees_near_zero():
    for activation in (nn.ReLU6(), lambda x: x.clamp(0, 8), nn.Threshold(0.05, 0)):
        module = Written(activation)
        module.B.weight.data.mul_(20)
        module.B.bias.data.zero_()
        deq = adapt(module)
        assert deq.activation is not ACTIVATIONS["relu"]
        torch.testing.assert_close(deq(3 * data()), module(3 * data()), rtol=1e-3, atol=1e-3)


def test_parts_by_name_are_the_module():
    module = Written()
    parts = dict(A=module.A, B=module.B.weight, bias=module.B.bias, activation="tanh", readout=module.readout)
    assert torch.equal(adapt(**parts)(data()), adapt(module)(data()))
    arrays = {"A": module.A.weight, "B": module.B.weight, "bias": module.B.bias}
    arrays = {name: value.detach().numpy().copy(order="F") for name, value in arrays.items()}
    assert torch.equal(adapt(**parts | arrays)(data()), adapt(module)(data()))
    with pytest.raises(ValueError, match="a module or its parts by name, not both"):
        adapt(module, A=module.A)
    with pytest.raises(ValueError, match="it has no B, readout"):
        adapt(A=module.A, activation="relu")
    with pytest.raises(ValueError, match=r"its B must be an nn.Linear or a matrix, got Conv2d of shape \(8, 1, 3, 3\)"):
        adapt(**parts | {"B": nn.Conv2d(1, 8, 3)})
    with pytest.raises(ValueError, match=r"the bias must be a tensor of shape \(m,\), got list"):
        adapt(**parts | {"bias": module.B.bias.tolist()})
    for change in ({"A": module.A.weight.double()}, {"bias": module.B.bias.double()}, {"A": torch.eye(M).long()}):
        with pytest.raises(ValueError, match="must be of one type of floats, got .*torch.float32"):
            adapt(**parts | change)


def test_rows_that_are_the_same_say_nothing():
    for X in (data()[:1], data()[:1].repeat(9, 1)):
        with pytest.raises(ValueError, match="X must have different rows"):
            adapt(Written(), X)


class Turning(Written):
    """Eigenvalues down to -1.4: Picard swings about the equilibrium for ever, and Anderson finds it."""

    def __init__(self):
        super().__init__()
        self.A.weight.data = -torch.diag(torch.linspace(0.2, 1.4, M))
        self.B.weight.data.mul_(0.3)
        self.B.bias.data.zero_()

    def forward(self, x):
        z = Anderson().solve(lambda z: self.cell(z, x), x.new_zeros(len(x), M)).value
        return self.readout(z)


def test_an_equilibrium_that_only_anderson_finds():
    module = Turning()
    deq = adapt(module, data())
    assert isinstance(deq.fixed_point.solver, Anderson)
    torch.testing.assert_close(deq(data()), module(data()), rtol=1e-3, atol=1e-3)
    assert adapt(module, data(), solver=Anderson(max_steps=77)).fixed_point.solver.max_steps == 77
    with pytest.raises(ValueError, match="give a solver that finds it, such as solver=Anderson"):
        adapt(module, data(), solver=Picard())


def test_a_match_is_of_a_deq_as_it_was_drawn():
    deq = DEQ("tanh", P, M, K, 0.2)
    assert matched_enn(deq).layers
    with torch.no_grad():
        deq.A[0, 0] += 0.1
    for trained in (deq, adapt(deq), Written()):
        with pytest.raises(ValueError, match=r"no theory says what replaces a trained one: verdict\(deq, X, y\)"):
            matched_enn(trained)
    with pytest.raises(ValueError, match="outputs differ by"):
        matched_enn(Features("tanh", P, M, K, 0.2))


def test_what_has_no_equilibrium_says_so():
    module = Written(nn.ReLU())
    module.A.weight.data = 3 * torch.eye(M)
    for X, where in ((None, r"random rows; compare it on yours: adapt\(module, X\)"), (data(), "these samples")):
        with pytest.raises(ValueError, match=f"can be solved on {where}: by Picard and by Anderson the equilibrium d"):
            adapt(module, X)


def outputs(network):
    return network(data()).detach()


@pytest.mark.long
def test_a_spawned_worker_takes_networks():
    networks = [DEQ("swish", P, M, K, 0.2), adapt(Written()), matched_enn(DEQ("gelu", P, M, K, 0.2))]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for network, there in zip(networks, pool.map(outputs, networks)):
            assert torch.equal(there, outputs(network))


def test_networks_can_be_kept(tmp_path):
    deq = DEQ("swish", P, M, K, 0.2)
    layers = (piecewise_linear("mine", (0.0,), (0.5, 1)), recognise("gelu"))
    for network in (deq, matched_enn(deq), adapt(deq), adapt(Written()), ExportedENN(P, [M, M], K, layers)):
        torch.save(network, tmp_path / "network.pt")
        for again in (pickle.loads(pickle.dumps(network)), torch.load(tmp_path / "network.pt", weights_only=False)):
            assert torch.equal(again(data()), network(data()))
    assert build_model("unmatched_enn", P, M, K, 0.2, activation="tanh").layers[0].name == "tanh"
    result = match("relu", 0.2)
    again = pickle.loads(pickle.dumps(result))
    assert again.parameters == result.parameters and again.layers[0].slopes == result.layers[0].slopes


def test_a_deq_with_a_solver_of_another_form_is_refused():
    deq = DEQ("tanh", 5, 8, 3, 0.2)
    deq.fixed_point = lambda f, z, *args: f(z, *args)
    with pytest.raises(ValueError, match="its fixed_point must be a FixedPoint, got function"):
        adapt(deq)
