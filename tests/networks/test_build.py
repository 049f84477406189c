import math

import pytest
import torch

from deq_enn.matching import two_layer_lrelu
from deq_enn.names import MODELS
from deq_enn.networks.build import build_model, matched_enn
from deq_enn.networks.deq import DEQ, as_drawn
from deq_enn.networks.enn import ENN
from deq_enn.networks.fixed_point import Anderson, ConvergenceError, Picard
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.networks.trained_deq import adapt
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import explicit_ck, explicit_ntk, implicit_ck, implicit_ntk
from deq_enn.theory.equilibrium import get_tau
from deq_enn.theory.gaussian import gaussian_moments

P, M, K = 20, 48, 3


def data(n=9, dtype=torch.float32):
    return torch.nn.functional.normalize(torch.randn(n, P, generator=torch.Generator().manual_seed(0), dtype=dtype))


def test_deq_features_solve_the_papers_equation():
    for name in ("inn", "tanh_inn"):
        model = build_model(name, P, M, K, 0.2, seed=5).double()
        model.fixed_point.solver = Picard(1e-14, 500)
        x = data(dtype=torch.float64)
        with torch.no_grad():
            z = model.features(x)
        f = ACTIVATIONS[model.activation.name].fn
        tau = get_tau(model.activation, 0.2, 1.0)
        xi = tau * torch.linspace(-10, 10, 200001, dtype=torch.float64)
        w = torch.exp(-((xi / tau) ** 2) / 2)
        constant = (f(xi) * w).sum() / w.sum()
        right = (f(math.sqrt(0.2) * z @ model.A.T + math.sqrt(0.8) * x @ model.B.T) - constant) / math.sqrt(M)
        torch.testing.assert_close(z, right, rtol=0, atol=1e-8)
        torch.testing.assert_close(model(x), z @ model.readout.weight.T, rtol=0, atol=1e-12)


def test_enn_features_are_the_papers_layers():
    x = data(dtype=torch.float64)
    model = build_model("l_relu_enn", P, M, K, 0.2, seed=5).double()
    match = two_layer_lrelu.match(implicit_ck(ACTIVATIONS["relu"], 0.2))
    for weight, a, b in zip(model.weights, (match.a1, match.a2), (match.b1, match.b2)):
        u = x @ weight.T
        x = (torch.maximum(a * u, b * u) - (a - b) / math.sqrt(2 * math.pi)) / math.sqrt(M)
    torch.testing.assert_close(model.features(data(dtype=torch.float64)), x, rtol=0, atol=1e-12)
    # the unmatched networks: input scaled by sigma_b, every layer centred
    x = data(dtype=torch.float64)
    relu, tanh = (build_model(name, P, M, K, 0.2).double() for name in ("relu_enn", "tanh_enn"))
    assert len(relu.weights) == 2 and len(tanh.weights) == 1
    torch.testing.assert_close(tanh.features(x), torch.tanh(math.sqrt(0.8) * x @ tanh.weights[0].T) / math.sqrt(M))
    tau = math.sqrt(0.8)
    hidden = (torch.relu(tau * x @ relu.weights[0].T) - tau / math.sqrt(2 * math.pi)) / math.sqrt(M)
    tau *= math.sqrt(0.5 - 0.5 / math.pi)
    hidden = (torch.relu(hidden @ relu.weights[1].T) - tau / math.sqrt(2 * math.pi)) / math.sqrt(M)
    torch.testing.assert_close(relu.features(x), hidden, rtol=0, atol=1e-12)


def test_one_seed_shares_the_first_layer_and_the_readout():
    models = {name: build_model(name, P, M, K, 0.2, seed=7) for name in MODELS}
    first = [m.B if isinstance(m, DEQ) else m.weights[0] for m in models.values()]
    assert all(torch.equal(first[0], w) for w in first)
    assert all(torch.equal(models["inn"].readout.weight, m.readout.weight) for m in models.values())
    assert not torch.equal(first[0], build_model("tanh_enn", P, M, K, 0.2, seed=8).weights[0])
    big = build_model("inn", P, 400, K, 0.2)
    for weight in (big.A, big.B):
        assert abs(weight.mean()) < 0.05 and abs(weight.std() - 1) < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_dtype_and_gradients(name):
    model = build_model(name, P, M, K, 0.2, seed=1)
    other = build_model(name, P, M, K, 0.2, seed=2)
    other.load_state_dict(model.state_dict())
    x = data()
    torch.testing.assert_close(other(x), model(x))
    assert model.double()(x.double()).dtype == torch.float64
    model(x.double()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_deq_gradient_is_that_of_unrolled_steps():
    model = build_model("inn", P, M, K, 0.2, seed=3).double()
    model.fixed_point.solver = model.fixed_point.backward_solver = Picard(1e-13)
    x = data(dtype=torch.float64)
    model(x).pow(2).sum().backward()
    A, B, a = (p.detach().clone().requires_grad_() for p in (model.A, model.B, model.readout.weight))
    z = torch.zeros(len(x), M, dtype=torch.float64)
    for _ in range(200):
        z = model.phi.fn(math.sqrt(0.2) * z @ A.T + math.sqrt(0.8) * x @ B.T) / math.sqrt(M)
    (z @ a.T).pow(2).sum().backward()
    for p, q in zip((model.A, model.B, model.readout.weight), (A, B, a)):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_and_autocast_find_the_equilibrium(dtype):
    model, x = build_model("tanh_inn", P, M, K, 0.2, seed=1), data()
    expected = model(x)
    expected.square().sum().backward()
    gradient, eps = model.A.grad.clone(), torch.finfo(dtype).eps
    model.zero_grad()
    with torch.autocast("cpu", dtype):
        outputs = model(x)
        outputs.square().sum().backward()
    torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=8 * eps * expected.abs().max().item())
    assert (model.A.grad - gradient).norm() < 20 * eps * gradient.norm()
    for solver in (Picard(), Anderson()):
        short = build_model("tanh_inn", P, M, K, 0.2, seed=1).to(dtype)
        short.fixed_point.solver = short.fixed_point.backward_solver = solver
        outputs = short(x.to(dtype))
        outputs.square().sum().backward()
        torch.testing.assert_close(outputs.float(), expected, rtol=0, atol=30 * eps * expected.abs().max().item())
        assert (short.A.grad.float() - gradient).norm() < 40 * eps * gradient.norm()


def test_what_is_wrong_is_said_and_nothing_else():
    model, x = build_model("inn", P, M, K, 0.2), data()
    for bad in (math.nan, math.inf):
        x[3, 1] = bad
        with pytest.raises(ConvergenceError, match="^the input has NaN or infinite entries, first in row 3$"):
            model(x)
    model = build_model("inn", P, M, K, 0.2).bfloat16()
    model.fixed_point.solver = Picard(max_steps=1)
    with pytest.raises(ConvergenceError, match="bfloat16 rounds too coarsely for it: take float32$"):
        model(data().bfloat16())


@pytest.mark.parametrize("pair", [("inn", "l_relu_enn"), ("tanh_inn", "h_tanh_enn")])
def test_matched_networks_have_the_deqs_coefficients_and_its_kernel(pair):
    deq, enn = (build_model(name, P, 2500, K, 0.2, seed=1) for name in pair)
    assert vars(enn.coefficients) == pytest.approx(vars(deq.coefficients), abs=1e-13)
    x = data(60)
    with torch.no_grad():
        G, S = (m.features(x).double() for m in (deq, enn))
    G, S = G @ G.T, S @ S.T
    assert (G.diagonal().mean() - deq.coefficients.diag).abs() < 0.02 * deq.coefficients.diag
    assert (S.diagonal().mean() - deq.coefficients.diag).abs() < 0.02 * deq.coefficients.diag
    assert (G - S).abs().mean() < 0.025 * deq.coefficients.diag


@pytest.mark.parametrize("kernel", ["ck", "ntk"])
def test_matched_enn_of_a_deq_module(kernel):
    deq = DEQ(ACTIVATIONS["swish"], P, M, K, 0.15, tau0=0.9, seed=4).double()
    enn = matched_enn(deq, kernel=kernel)
    assert torch.equal(enn.weights[0], deq.B) and enn.weights[0].dtype == torch.float64
    assert enn(data(dtype=torch.float64)).shape == (9, K)
    result = {"ck": implicit_ck, "ntk": implicit_ntk}[kernel](ACTIVATIONS["swish"], 0.15, 0.9)
    made = {"ck": explicit_ck, "ntk": explicit_ntk}[kernel](enn.layers, 0.9)
    assert vars(made) == pytest.approx(vars(result), abs=1e-10)
    assert matched_enn(deq, X=0.95 * data()).tau0 == pytest.approx(0.95)


def test_matched_enn_has_the_deqs_seed():
    deqs = [DEQ(ACTIVATIONS["swish"], P, M, K, 0.2, seed=seed) for seed in (4, 4, 5)]
    first, again, other = map(matched_enn, deqs)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters()):
        assert torch.equal(a, b) and not torch.equal(a, c)
    built = build_model("matched_enn", P, M, K, 0.2, seed=4, activation=ACTIVATIONS["swish"])
    assert torch.equal(built.weights[1], first.weights[1])


def test_unmatched_networks_of_a_given_depth():
    for name, own, published in (("relu_enn", "relu", 2), ("tanh_enn", "tanh", 1), ("unmatched_enn", "swish", 2)):
        for depth in (None, 1, 3):
            enn = build_model(name, P, M, K, 0.2, 0.9, activation=ACTIVATIONS["swish"], depth=depth)
            assert len(enn.layers) == len(enn.weights) == (depth or published)
            tau, x = 0.9 * math.sqrt(0.8), torch.linspace(-3, 3, 31, dtype=torch.float64)
            for layer in enn.layers:
                moments = gaussian_moments(layer, tau)
                assert abs(moments.mean) < 1e-12  # centred at its input scale, and the activation but for a constant
                difference = layer.fn(x) - ACTIVATIONS[own].fn(x)
                assert difference.std() < 1e-12
                tau = math.sqrt(moments.variance)
    with pytest.raises(ValueError, match="depth of at least 1, got 0"):
        build_model("relu_enn", P, M, K, 0.2, depth=0)
    with pytest.raises(ValueError, match="the depth of inn is not free"):
        build_model("inn", P, M, K, 0.2, depth=3)


def test_input_scale_enters_the_coefficients():
    for name in ("relu_enn", "tanh_enn"):
        model = build_model(name, P, M, K, 0.2)
        ck = explicit_ck(model.layers, math.sqrt(0.8))
        c = model.coefficients
        assert (c.diag, c.c1, c.c2, c.c3) == pytest.approx((ck.diag, 0.8 * ck.c1, 0.64 * ck.c2, 0.64 * ck.c3))


@pytest.mark.parametrize("name", ["inn", "tanh_inn", "trained", "pcdeq"])
def test_infinity_in_the_input_is_said_and_not_taken_for_a_saturated_state(name):
    if name == "pcdeq":
        network, p = build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 10).eval(), 784
    else:
        network, p = build_model("inn" if name == "inn" else "tanh_inn", P, M, K, 0.2), P
        network = adapt(network) if name == "trained" else network
    for bad in (math.inf, -math.inf, math.nan):
        x = torch.zeros(3, p)
        x[1, 0] = bad
        with pytest.raises(ConvergenceError, match="^the input has NaN or infinite entries, first in row 1$"):
            network(x)


def test_bad_input():
    with pytest.raises(ValueError, match="unknown model 'inm'"):
        build_model("inm", P, M, K, 0.2)
    with pytest.raises(ValueError, match="not centred"):
        ENN([ACTIVATIONS["relu"]], P, M, K)
    wild = build_model("inn", P, M, K, 0.2)
    with torch.no_grad():
        wild.A.mul_(20)
    for solver in (Picard(), Anderson()):
        wild.fixed_point.solver = solver
        with pytest.raises(ConvergenceError, match=r"take a smaller sigma_a.2 \(--asquare, now 0.2"):
            wild.features(data())


@pytest.mark.parametrize("size", ["dim", "n_classes", "p"])
@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_a_network_without_units_inputs_or_classes_is_refused(size, value):
    sizes = dict(p=3, dim=4, n_classes=2) | {size: value}
    for make in (lambda: DEQ("relu", sigma_a2=0.2, **sizes), lambda: build_model("relu_enn", sigma_a2=0.2, **sizes)):
        with pytest.raises(ValueError, match="must be whole numbers from 1 on"):
            make()


def test_a_match_is_not_scaled_by_rows_of_another_length():
    with pytest.raises(ValueError, match=r"X must be an \(n, 12\) matrix, .* got shape \(64, 3\)"):
        matched_enn(DEQ("tanh", 12, 8, 2, 0.2), torch.randn(64, 3))


def test_a_seed_names_one_network_whatever_torchs_default_type_is(double_by_default):
    wide = DEQ("relu", 5, 16, 3, 0.2)
    torch.set_default_dtype(torch.float32)
    narrow = DEQ("relu", 5, 16, 3, 0.2)
    assert wide.A.dtype == wide.readout.weight.dtype == torch.float64
    assert all(torch.equal(a, b.double()) for a, b in zip(wide.parameters(), narrow.parameters()))
    torch.set_default_dtype(torch.float64)
    assert as_drawn(narrow) and as_drawn(wide)
