"""What an activation is taken for: only what it is, by identity or by the type and the parameters of its module."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.matching.families import match
from deq_enn.networks.deq import DEQ
from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, piecewise_linear
from deq_enn.theory.coefficients import explicit_ck, explicit_ntk, implicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import check_assumptions, get_tau
from deq_enn.theory.recognise import recognise

x = torch.cat([torch.linspace(-60, 60, 2401), torch.linspace(-0.1, 0.1, 401)]).double()

OF_THE_REGISTRY = [
    ("relu", (nn.ReLU(), nn.ReLU(inplace=True), F.relu, torch.relu, nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))),
    ("tanh", (nn.Tanh(), torch.tanh, "tanh", nn.Sequential(nn.Tanh()))),
    ("swish", (nn.SiLU(), F.silu)),
    ("gelu", (nn.GELU(), F.gelu)),
    ("leaky_relu", (nn.LeakyReLU(), F.leaky_relu)),
    ("elu", (nn.ELU(), nn.CELU(), F.elu)),
    ("selu", (nn.SELU(), F.selu)),
    ("hardtanh", (nn.Hardtanh(), F.hardtanh)),
    ("sigmoid", (nn.Sigmoid(), torch.sigmoid)),
    ("softplus", (nn.Softplus(), F.softplus)),
    ("mish", (nn.Mish(), F.mish)),
    ("softsign", (nn.Softsign(), F.softsign)),
    ("erf", (torch.erf,)),
    ("sin", (torch.sin,)),
]
OTHERS = [
    nn.ReLU6(),
    F.relu6,
    lambda x: x.clamp(0, 8),
    nn.Threshold(0.05, 0),
    nn.GELU("tanh"),
    nn.LeakyReLU(0.2),
    nn.PReLU(),
    nn.RReLU(),
    nn.ELU(0.5),
    nn.CELU(2.0),
    nn.Hardtanh(-2, 3),
    nn.Hardtanh(0.5, 3),
    nn.Softplus(2.0, 15.0),
    nn.Softshrink(0.3),
    nn.Hardshrink(0.3),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Identity(),
    functools.partial(F.leaky_relu, negative_slope=0.3),
    nn.Sequential(nn.Tanh(), nn.Softsign()),
]


@pytest.mark.parametrize("name, brought", OF_THE_REGISTRY)
def test_one_of_the_registry_is_known(name, brought):
    for given in brought:
        assert recognise(given) is ACTIVATIONS[name]


@pytest.mark.parametrize("given", OTHERS, ids=[str(number) for number in range(len(OTHERS))])
def test_any_other_stays_the_function_that_it_is(given):
    own = recognise(given)
    assert own not in ACTIVATIONS.values()
    if isinstance(given, nn.Module):
        given = given.eval().double()
    with torch.no_grad():
        torch.testing.assert_close(own.fn(x), given(x), rtol=1e-7, atol=1e-7)
    corners = torch.tensor([*own.kinks, 0.0, 8.0]).double()  # those of what is the user's own as well
    at = x[((x[:, None] - corners).abs() > 1e-4).all(1)]
    slope = (own.fn(at + 1e-6) - own.fn(at - 1e-6)) / 2e-6
    torch.testing.assert_close(own.derivative(at), slope, rtol=1e-3, atol=1e-3)


def test_a_subclass_is_not_what_it_inherits_from():
    class Leaking(nn.ReLU):
        def forward(self, x):
            return super().forward(x) + 0.1 * x

    assert recognise(Leaking()).fn(torch.tensor(-1.0)) == pytest.approx(-0.1)


def test_declared_kinks_are_used():
    def mine(x):
        return torch.where(x > 0.3, x, 0.3 + 0 * x)

    mine.kinks = (0.3,)
    assert recognise(mine).kinks == (0.3,)
    brought = piecewise_linear("brought", (1.0,), (0, 1))
    assert recognise(brought) is brought


@pytest.mark.parametrize(
    "given, message",
    [
        ("swosh", "the activation is 'swosh', not one of relu, "),
        (nn.Softmax(-1), "not an elementwise torch function: its value at one number depends on the others"),
        (nn.PReLU(24), "not an elementwise torch function: a PReLU of 24 slopes is another function for each unit"),
        (torch.sum, "it must map a tensor to a tensor of the same shape"),
        (lambda x: x + torch.rand_like(x), "is random"),
        (5, "int cannot be called"),
    ],
)
def test_what_is_no_activation_is_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        recognise(given)
    assert "\n" not in str(caught.value)


def test_a_match_and_a_deq_take_names_and_functions():
    assert match(F.silu, 0.2).layers[0].slopes == match(ACTIVATIONS["swish"], 0.2).layers[0].slopes
    assert DEQ("swish", 4, 8, 2, 0.2).activation is ACTIVATIONS["swish"]
    with pytest.raises(ValueError, match="the activation is 'swosh'"):
        DEQ("swosh", 4, 8, 2, 0.2)


def test_kinks_that_are_no_sorted_numbers_are_refused():
    for kinks in ((1.0, 0.0), (float("nan"),), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="kinks (and slopes )?must be"):
            piecewise_linear("bad", kinks, range(len(kinks) + 1))
    with pytest.raises(ValueError, match="kinks and slopes must be finite"):
        Activation("bad", torch.relu, torch.relu, (0,), slopes=(0, float("inf")))


@pytest.mark.parametrize("keep", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
def test_an_activation_can_be_kept(keep):
    assert all(keep(own) is own for own in ACTIVATIONS.values())
    for own in (
        piecewise_linear("mine", (-1, 2), (0, 3, 1), 0.5),
        from_function(torch.atan),
        recognise(nn.GELU("tanh")),
    ):
        again = keep(own)
        assert torch.equal(again.fn(x), own.fn(x)) and torch.equal(again.derivative(x), own.derivative(x))
        assert (again.kinks, again.slopes, again.lipschitz) == (own.kinks, own.slopes, own.lipschitz)


def test_scalars_and_kernels_take_names_and_functions():
    X = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) / 3
    known = ACTIVATIONS["swish"]
    for given in ("swish", F.silu, nn.SiLU()):
        assert get_tau(given, 0.3, 1.1) == get_tau(known, 0.3, 1.1)
        assert check_assumptions(given, 0.9) == check_assumptions(known, 0.9)
        assert implicit_ck(given, 0.3) == implicit_ck(known, 0.3)
        assert implicit_ntk(given, 0.3) == implicit_ntk(known, 0.3)
        for own, expected in zip(implicit_kernels(X, given, 0.3), implicit_kernels(X, known, 0.3)):
            assert torch.equal(own, expected)
        for own, expected in zip(explicit_kernels(X, [given, "erf"]), explicit_kernels(X, [known, ACTIVATIONS["erf"]])):
            assert torch.equal(own, expected)
    assert explicit_ck(["tanh"]) == explicit_ck([ACTIVATIONS["tanh"]])
    assert explicit_ntk([torch.tanh, nn.Tanh()]) == explicit_ntk([ACTIVATIONS["tanh"]] * 2)
    with pytest.raises(ValueError, match="the activation is 'swosh', not one of relu"):
        implicit_kernels(X, "swosh", 0.3)


def changed(kind):
    module = nn.ReLU()
    if kind == "hook":
        module.register_forward_hook(lambda module, inputs, output: 2 * output)
    elif kind == "pre-hook":
        module.register_forward_pre_hook(lambda module, inputs: 2 * inputs[0])
    elif kind == "within":
        module = nn.Sequential(module)
        module.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        module.forward = lambda x: 2 * torch.relu(x)
    return module


@pytest.mark.parametrize("kind", ("hook", "pre-hook", "within", "forward"))
def test_a_module_that_is_changed_is_not_what_its_type_says(kind):
    activation = recognise(changed(kind))
    assert torch.equal(activation.fn(x), 2 * x.clamp(min=0)) and activation is not ACTIVATIONS["relu"]
    assert torch.equal(activation.derivative(x[x != 0]), 2.0 * (x[x != 0] > 0))


def test_a_class_is_no_activation():
    with pytest.raises(ValueError, match="SiLU is a class; give SiLU()"):
        recognise(nn.SiLU)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_module_is_a_function_of_ones_own():
    assert torch.equal(recognise(torch.jit.script(nn.ReLU())).fn(x), x.clamp(min=0))
