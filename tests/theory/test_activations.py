"""Activations: derivatives, Lipschitz constants, jumps, what is refused, a function from a user's file."""

import copy
import math
import os
import pickle

import pytest
import torch

from deq_enn.networks.deq import DEQ
from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function, load_activation, piecewise_linear
from deq_enn.theory.equilibrium import check_assumptions, get_tau
from deq_enn.theory.gaussian import centre, gaussian_moments
from tests.conftest import one_line
from tests.helpers.pair_quadrature import torch_quadrature as quad
from tests.theory.test_gaussian import ROOT_2_PI, names


@names
def test_derivative_and_lipschitz_constant(name):
    activation = ACTIVATIONS[name]
    x = torch.linspace(-9.007, 9.003, 100001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation.fn(x).sum(), x)
    torch.testing.assert_close(activation.derivative(x.detach()), slope, rtol=0, atol=1e-13)
    assert slope.abs().max() <= activation.lipschitz * (1 + 1e-6)
    assert slope.abs().max() >= activation.lipschitz * 0.999
    if activation.slopes:
        same = piecewise_linear("again", activation.kinks, activation.slopes, activation.fn(torch.zeros(())).item())
        torch.testing.assert_close(same.fn(x), activation.fn(x), rtol=0, atol=1e-14)
        torch.testing.assert_close(same.derivative(x), activation.derivative(x), rtol=0, atol=1e-14)


def tanh_and_step(x):
    return torch.tanh(x) + 0.5 * (x > 0.3)


@pytest.mark.parametrize("kinks", [(), (0.3,)])
def test_a_jump_counts_in_every_derivative(kinks):
    tau, k, tanh = 0.8, 0.3 / 0.8, ACTIVATIONS["tanh"]
    m = gaussian_moments(Activation("jumping", tanh_and_step, tanh.derivative, kinks), tau)
    smooth = gaussian_moments(tanh, tau)
    density = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
    mean = 0.25 * math.erfc(k / math.sqrt(2))
    phi = lambda x: tanh_and_step(tau * x) - mean
    before = math.tanh(0.3) - mean
    assert m.d1_sq == math.inf and m.jumps == pytest.approx((0.3,), abs=1e-13)
    assert m.mean == pytest.approx(mean, abs=1e-13)
    assert m.variance == pytest.approx(quad(lambda x: phi(x) ** 2, (k,)), rel=1e-11)
    assert m.d1 == pytest.approx(smooth.d1 + 0.5 * density / tau, rel=1e-12)
    assert m.d2 == pytest.approx(smooth.d2 + 0.5 * k * density / tau**2, rel=1e-11)
    inner = quad(lambda x: 2 * x * phi(x) * tanh.derivative(tau * x), (k,)) / tau
    assert m.sq_dd == pytest.approx(inner + ((before + 0.5) ** 2 - before**2) * k * density / tau**2, rel=1e-11)


@pytest.mark.parametrize(
    "activation, place, d1, variance",
    [
        (Activation("step", lambda x: (x > 0).to(x.dtype), torch.zeros_like, (0,)), 0.0, 1 / ROOT_2_PI, 0.25),
        (from_function(torch.sign, "sign"), 0.0, 2 / ROOT_2_PI, 1.0),
        (from_function(lambda x: torch.where(x > 1, 2 * x, 2 * x - 3)), 1.0, 2 + 3 * math.exp(-0.5) / ROOT_2_PI, None),
        (from_function(lambda x: torch.where(x > 0.5003, x, -x), kinks=(0.5003,)), 0.5003, None, None),
    ],
)
def test_jumps_of_steps_and_of_piecewise_functions(activation, place, d1, variance):
    m = gaussian_moments(activation, 1.0)
    assert m.d1_sq == math.inf and m.jumps == pytest.approx((place,), abs=1e-13)
    assert d1 is None or m.d1 == pytest.approx(d1, rel=1e-12)
    assert variance is None or m.variance == pytest.approx(variance, rel=1e-12)
    # d1 is linear regression on x, whatever the function
    assert m.d1 == pytest.approx(quad(lambda x: x * activation.fn(x), (place,)), rel=1e-11)


def test_a_piecewise_function_without_a_jump_has_none():
    for kinks in ((), (0.5,)):
        bent = from_function(lambda x: torch.where(x > 0.5, 2 * x - 0.5, x), kinks=kinks)
        m = gaussian_moments(bent, 1.0)
        p = 0.5 * math.erfc(0.5 / math.sqrt(2))
        assert (m.jumps, m.d1, m.d1_sq) == ((), pytest.approx(1 + p, rel=1e-12), pytest.approx(1 + 3 * p, rel=1e-12))


TANH = ACTIVATIONS["tanh"]


@pytest.mark.parametrize("tau", [1e-6, 0.3, 1.0, 30.0, 1e5])
@pytest.mark.parametrize(
    "fn, derivative, kinks",
    [
        (torch.tanh, torch.sigmoid, ()),
        (torch.tanh, lambda x: 1.001 * TANH.derivative(x), ()),
        (torch.nn.functional.leaky_relu, lambda x: 0.02 + 0.98 * (x > 0).double(), (0,)),
        (torch.relu, torch.sign, ()),
    ],
)
def test_a_derivative_that_is_not_its_functions_is_refused(fn, derivative, kinks, tau):
    with pytest.raises(
        ValueError, match="activation w: its derivative is not that of its function. From x = 0 to .* by"
    ):
        gaussian_moments(Activation("w", fn, derivative, kinks), tau)


def test_a_derivative_wrong_in_places_or_in_no_mean_is_refused_with_both_numbers():
    for wrong in (
        lambda x: TANH.derivative(x) + 0.1 * (x > 2),
        lambda x: (1 + 1e-8) * TANH.derivative(x),
        # odd: E[f'] is right; and of no mean over any panel
        lambda x: TANH.derivative(x) + 0.01 * torch.sin(8 * math.pi * x),
    ):
        with pytest.raises(
            ValueError, match=r"at scale 1, E\[f'\] = 0.60\d+, while by Stein's lemma .* = 0.605705509602"
        ):
            gaussian_moments(Activation("w", torch.tanh, wrong), 1.0)


def test_a_derivative_right_to_rounding_is_accepted():
    right = gaussian_moments(TANH, 1.0)
    result = gaussian_moments(Activation("w", torch.tanh, lambda x: (1 + 1e-12) * TANH.derivative(x)), 1.0)
    assert result.d1 == pytest.approx(right.d1, rel=1e-11) and not result.jumps
    # torch's softplus has a jump of 2e-9 at 20
    assert not gaussian_moments(from_function(torch.nn.functional.softplus), 10.0).jumps


def test_a_steep_but_continuous_function_is_no_jump():
    m = gaussian_moments(from_function(lambda x: torch.tanh(1e6 * (x - 0.37))), 1.0)
    density = math.exp(-(0.37**2) / 2) / math.sqrt(2 * math.pi)
    assert not m.jumps and m.d1 == pytest.approx(2 * density, rel=1e-9)
    assert m.d1_sq == pytest.approx(1e6 * 4 / 3 * density, rel=1e-9)


def test_what_is_no_activation_is_refused_by_name():
    with pytest.raises(ValueError, match="activation explosive .*(too fast|not finite)"):
        gaussian_moments(
            Activation("explosive", lambda x: torch.exp(x * x), lambda x: 2 * x * torch.exp(x * x), lipschitz=1.0), 1.0
        )
    with pytest.raises(ValueError, match="summed is not elementwise"):
        gaussian_moments(Activation("summed", lambda x: x.sum(), lambda x: x, lipschitz=1.0), 1.0)
    with pytest.raises(ValueError, match="tau must be positive"):
        gaussian_moments(ACTIVATIONS["relu"], 0.0)
    with pytest.raises(ValueError, match="1 kinks need 2 slopes"):
        Activation("bent", torch.relu, torch.relu, (0,), 1.0, (0, 1, 2))


def test_centre():
    for a in ACTIVATIONS.values():
        assert abs(gaussian_moments(centre(a, 1.7), 1.7).mean) < 1e-14
    assert centre(ACTIVATIONS["tanh"], 2.0) is ACTIVATIONS["tanh"]


def test_a_file_changes_no_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.py").write_text(
        "import os, torch\nos.chdir('elsewhere')\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\ndef cube(x):\n    return x**3\n",
        "utf-8",
    )
    cube = load_activation("a.py:cube")
    for again in (cube, pickle.loads(pickle.dumps(cube))):  # from the file where it is
        assert again.name == "cube" and os.getcwd() == str(tmp_path)
        assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_an_activation_from_a_file(tmp_path):
    (tmp_path / "a.py").write_text(
        "import torch\ndef cube(x):\n    return x**3 / 6 + x\n"
        "flat = 3\ndef flat_fn(x):\n    return torch.ones_like(x)\n"
    )
    cube = load_activation(f"{tmp_path / 'a.py'}:cube")
    assert cube.name == "cube" and load_activation("relu") is ACTIVATIONS["relu"]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(cube.derivative(x), x**2 / 2 + 1)
    assert gaussian_moments(cube, 1.0).d1 == pytest.approx(1.5, abs=1e-12)
    assert load_activation(f"{tmp_path / 'a.py'}:flat_fn").lipschitz == 0
    for spec, words in (
        ("nope", "unknown activation"),
        ("no/file.py:f", "there is no file"),
        (f"{tmp_path / 'a.py'}:flat", "no function"),
        (f"{tmp_path / 'a.py'}:none", "no function"),
    ):
        with pytest.raises(ValueError, match=words):
            load_activation(spec)
    (tmp_path / "broken.py").write_text("def f(x:\n")
    with pytest.raises(ValueError, match="does not run: SyntaxError"):
        load_activation(f"{tmp_path / 'broken.py'}:f")
    (tmp_path / "odd.py").write_text("def f(x):\n    return x.numpy()\n")
    with pytest.raises(ValueError, match="not an elementwise torch function"):
        load_activation(f"{tmp_path / 'odd.py'}:f")


@pytest.mark.parametrize(
    "code, words",
    [
        ("import sys; sys.exit(0)", "ends the program"),
        ("raise KeyError('a')", "does not run: KeyError"),
        ("import torch\ndef f(x):\n    raise OSError('no')", "not an elementwise torch function"),
    ],
)
def test_a_file_that_fails_or_ends_the_program_is_refused_in_one_line(tmp_path, code, words):
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    with pytest.raises(ValueError, match=words) as error:
        load_activation(f"{tmp_path}/mine.py:f")
    one_line(error)


def test_a_slope_whose_square_overflows_is_no_overflow():
    steep = from_function(lambda x: torch.exp(x * x), "steep")
    with pytest.raises(ValueError, match="steep .*no finite Gaussian moments"):
        get_tau(steep, 0.01, 1.0)
    assert 0.29 < get_tau(steep, 0.01, 0.3) < 0.3
    assert "L = inf" in check_assumptions(steep, 0.01, 0.3)[0]


def test_an_activation_from_a_file_can_be_kept_and_sent_to_another_process(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "import torch\nfrom deq_enn import Activation\ncurve = lambda x: torch.atan(x) + x / 3\n"
        "own = Activation('own', lambda x: torch.tanh(2 * x), lambda x: 2 / torch.cosh(2 * x) ** 2)\n"
    )
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for name in ("curve", "own"):
        activation = load_activation(f"{file}:{name}")
        deq = DEQ(activation, 3, 5, 2, 0.1).double()
        again = pickle.loads(pickle.dumps(deq))
        assert again.activation.name == name and torch.equal(again.activation.derivative(x), activation.derivative(x))
        assert torch.equal(again(x.view(3, 3)), deq(x.view(3, 3)))
        assert copy.deepcopy(activation).fn is activation.fn
    sent = pickle.dumps(deq)
    file.write_text("other = 3\n")
    with pytest.raises(ValueError, match=r"the activation own was defined in .*a.py, where it no longer is"):
        pickle.loads(sent)
