import os

import pytest
import torch

from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function
from deq_enn.theory.equilibrium import check_assumptions, check_stable, estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.devices import get_device
from deq_enn.utils.files import atomic_write
from deq_enn.utils.random import generator


def test_tau0_is_the_root_of_the_mean_squared_norm_also_across_chunks():
    X = torch.randn(9001, 5, generator=torch.Generator().manual_seed(0))
    assert estimate_tau0(X) == pytest.approx((X.double() ** 2).sum(1).mean().sqrt().item(), rel=1e-12)
    assert estimate_tau0(2 * X) == pytest.approx(2 * estimate_tau0(X))  # a root: the authors' code has none


@pytest.mark.parametrize("X", [torch.zeros(3, 2), torch.full((3, 2), float("nan")), torch.zeros(0, 2), torch.ones(3)])
def test_tau0_of_unusable_data(X):
    with pytest.raises(ValueError):
        estimate_tau0(X)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("sigma_a2", [0.01, 0.2, 0.24])
@pytest.mark.parametrize("tau0", [0.3, 1.0, 3.0])
def test_tau_solves_its_equation(name, sigma_a2, tau0):
    tau = get_tau(ACTIVATIONS[name], sigma_a2, tau0)
    right = sigma_a2 * gaussian_moments(ACTIVATIONS[name], tau).variance + (1 - sigma_a2) * tau0**2
    assert tau**2 == pytest.approx(right, rel=1e-13)


def test_tau_of_relu_in_closed_form():
    k = 0.5 - 1 / (2 * torch.pi)
    assert get_tau(ACTIVATIONS["relu"], 0.2, 1.5) == pytest.approx((0.8 * 2.25 / (1 - 0.2 * k)) ** 0.5, rel=1e-14)


@pytest.mark.slow
def test_tau_by_iteration_of_a_wide_random_layer():
    g = torch.Generator().manual_seed(0)
    xi, tau2 = torch.randn(2_000_000, generator=g, dtype=torch.float64), 1.0
    for _ in range(30):
        tau2 = 0.2 * torch.nn.functional.silu(tau2**0.5 * xi).var().item() + 0.8
    assert get_tau(ACTIVATIONS["swish"], 0.2, 1.0) == pytest.approx(tau2**0.5, abs=1e-3)


def test_no_tau():
    square = Activation("square", lambda x: x * x, lambda x: 2 * x)
    with pytest.raises(ValueError, match="no tau_.* for activation square"):
        get_tau(square, 0.5, 1.0)  # tau^4 - tau^2 + 1/2 has no root
    for sigma_a2 in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(ValueError, match=r"\(0, 1\)"):
            get_tau(ACTIVATIONS["relu"], sigma_a2, 1.0)
    with pytest.raises(ValueError, match="tau_0"):
        get_tau(ACTIVATIONS["relu"], 0.2, 0.0)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("tau0", [1e-8, 1e-5, 1e5, 1e8])
def test_tau_at_small_and_large_scales(name, tau0):
    a, sigma_a2 = ACTIVATIONS[name], 0.4
    if name == "sin" and tau0 > 1:
        with pytest.raises(ValueError, match="sin at scale .* does not converge"):
            get_tau(a, sigma_a2, tau0)
        return
    tau = get_tau(a, sigma_a2, tau0)
    right = sigma_a2 * gaussian_moments(a, tau).variance + (1 - sigma_a2) * tau0**2
    assert tau**2 == pytest.approx(right, rel=1e-13, abs=0)
    # where f is linear on either side of 0, tau is proportional to tau_0
    left, right = a.derivative((-1) ** torch.arange(1, 3) * (1e-3 if tau0 < 1 else 1e3) * tau0).tolist()
    k = (left**2 + right**2) / 2 - (right - left) ** 2 / (2 * torch.pi)
    assert tau / tau0 == pytest.approx(((1 - sigma_a2) / (1 - sigma_a2 * k)) ** 0.5, rel=1e-4)


@pytest.mark.slow
def test_tau_of_an_activation_with_a_jump():
    sign = from_function(torch.sign)
    for tau0 in (1e-8, 1e-3, 1.0, 1e6):  # Var[2 sign] = 4 at every scale
        tau = get_tau(Activation("2 sign", lambda x: 2 * torch.sign(x), sign.derivative, (0,)), 0.9, tau0)
        assert tau == pytest.approx((3.6 + 0.1 * tau0**2) ** 0.5, rel=1e-13)


def test_stability():
    check_stable(ACTIVATIONS["relu"], 0.9, 0.5)
    with pytest.raises(
        ValueError, match=r"selu at sigma_a\^2 = 0.9 has no stable equilibrium: sigma_a\^2 E\[phi'\^2\] = 1.08 "
    ):
        check_stable(ACTIVATIONS["selu"], 0.9, 1.2)
    with pytest.raises(ValueError, match="no stable"):
        check_stable(ACTIVATIONS["selu"], 0.5, 2.0)
    with pytest.raises(
        ValueError, match=r"E\[f'\^2\] of relu is infinite, as it jumps at x = -1, 0.3, 2 and 1 more places"
    ):
        check_stable(ACTIVATIONS["relu"], 0.01, float("inf"), (-1.0, 0.3, 2.0, 5.0))


def test_assumptions():
    step = Activation("step", lambda x: (x > 0).to(x.dtype), torch.zeros_like, (0,))
    assert "L = inf for step" in check_assumptions(step, 0.01)[0]
    assert check_assumptions(Activation("flat", torch.ones_like, torch.zeros_like), 0.9) == []

    assert check_assumptions(ACTIVATIONS["relu"], 0.24) == []
    assert "1/(4 L^2) = 0.25" in check_assumptions(ACTIVATIONS["relu"], 0.25)[0]
    assert "0.08088" in check_assumptions(ACTIVATIONS["selu"], 0.2)[0]
    assert check_assumptions(ACTIVATIONS["sigmoid"], 0.9) == []  # 1/(4 L^2) = 4


def test_generators_are_reproducible_and_distinct():
    draw = lambda *seeds: torch.randn(4, generator=generator(*seeds))
    assert torch.equal(draw(1, "A"), draw(1, "A"))
    assert len({tuple(draw(*s).tolist()) for s in [(1, "A"), (1, "B"), (2, "A"), (1, "A", 0)]}) == 4


def test_devices():
    assert get_device("cpu").type == "cpu"
    assert get_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name, words in (("cuda:99", "99"), ("gpu", "not one that torch knows"), ("meta", "not supported")):
        with pytest.raises(ValueError, match=words):
            get_device(name)


def test_atomic_write_replaces_on_success_and_leaves_nothing_on_failure(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path, "w") as file:
        file.write("one")
    with pytest.raises(KeyboardInterrupt), atomic_write(path, "w") as file:
        file.write("half of tw")
        file.flush()
        raise KeyboardInterrupt
    assert path.read_text() == "one" and os.listdir(path.parent) == ["file"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_tau0_names_the_first_row_that_is_not_finite():
    X = torch.ones(9, 3)
    X[7, 1], X[4, 2] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="NaN or infinite entries, first in row 4"):
        estimate_tau0(X)
