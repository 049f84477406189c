"""The verdict on a convolutional DEQ at initialisation: candidates, kernels, readouts, and what is refused."""

import time
from types import SimpleNamespace

import pytest
import torch

from deq_enn import verdict
from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_kernels
from deq_enn.machines import precise_readout
from deq_enn.networks.conv_deq import ConvDEQ
from deq_enn.networks.conv_enn import ConvENN, conv_network_of
from deq_enn.networks.export import export, rebuild
from deq_enn.networks.fixed_point import Anderson
from deq_enn.theory.equilibrium import estimate_image_tau0
from deq_enn.verdicts import at_initialisation
from deq_enn.verdicts.convolutional import CALIBRATED, ConvMeasurements, VerdictOnConvolutions, conv_networks
from deq_enn.verdicts.decision import Question, by_loss
from deq_enn.verdicts.result import Candidate
from tests.conftest import Ticks


def bars(n):
    """Images (n, 1, 6, 6) of two classes, a bar across or a bar down, with noise."""
    g = torch.Generator().manual_seed(0)
    X, y, at = 0.5 * torch.randn(n, 1, 6, 6, generator=g), torch.arange(n) % 2, torch.randint(6, (n,), generator=g)
    for x, label, place in zip(X, y, at):
        x[0, place if label else slice(None), slice(None) if label else place] += 1.5
    X -= X.mean(0)
    return X / X.square().mean().sqrt(), y


def test_the_candidates_are_matches_and_plain_convolutions():
    deq = ConvDEQ("relu", (1, 6, 6), 8, 2, 0.3, kernel_size=5, padding="circular", readout="pool")
    networks, refused = conv_networks(deq)
    assert not refused and [n.kernel_sizes for n in networks] == [(5, 1), (5,), (5, 5), (5, 5, 5), (5, 1)]
    for network in networks:
        enn = network.build(0, 8, 2, seed=0)
        assert (
            isinstance(enn, ConvENN)
            and torch.equal(enn.weights[0], deq.B)
            and (enn.padding, enn.sees) == ("circular", "pool")
        )


def test_the_cheapest_is_that_of_the_least_multiplications():
    """A 1x1 convolution costs a ninth of a 3x3 one, whatever the depth of both."""
    deq = ConvDEQ("relu", (2, 6, 5), 8, 2, 0.3)
    networks, _ = conv_networks(deq)
    for network in networks:
        assert network.work(60, 8) == 6 * 5 * sum(weight.numel() for weight in network.build(0, 8, 2).weights)
    known = {"distance": None, "loss": 0.0, "loss_interval": (-0.1, 0.1), "risk": 0.0}
    accepted = [Candidate.of(network, **known) for network in networks[::-1]]
    question = Question(60, 100, 8, 0.5, "mean")
    two_layers = [candidate for candidate in accepted if candidate.depth == 2]
    chosen = by_loss(two_layers, question, {}).chosen
    assert {candidate.network.kernel_sizes for candidate in two_layers} == {(3, 1), (3, 3)}
    assert chosen.network.kernel_sizes == (3, 1)


def test_one_network_of_each_number_of_multiplications_is_timed(monkeypatch):
    X, y = bars(60)
    deq, timed = ConvDEQ("relu", (1, 6, 6), 4, 2, 0.3), []
    making = VerdictOnConvolutions(deq, X, y, budget=60.0, clock=Ticks(0.001))
    making.candidates = [Candidate.of(network, distance=None) for network in conv_networks(deq)[0]]
    monkeypatch.setattr(
        at_initialisation, "costs", lambda deq, enn, X, seconds: timed.append(enn.kernel_sizes) or {"ratios": {}}
    )
    assert len([*making.measure_costs(1.0)]) == 5  # "costs", and each
    assert sorted(timed) == [(3,), (3, 1), (3, 3), (3, 3, 3)]


def test_a_pass_in_float64_is_expected_to_take_several_times_that_in_float32(monkeypatch):
    """Its time follows from the number of channels, and not from that of the features, which is 36 times as large."""
    X, y = bars(60)
    deq = ConvDEQ("tanh", (1, 6, 6), 4, 2, 0.3)
    networks, _ = conv_networks(deq)
    rows, clock = torch.arange(60), Ticks(1e-9)
    passes = ConvMeasurements(deq, networks[:1], X, y, rows, rows, 2, clock=clock)
    monkeypatch.setattr(precise_readout, "too_small", lambda *_: True)
    passes.rate, names = 1.0, [networks[0].name]
    before = {name: passes.work_of(name, 4, 60) for name in ("deq", *names)}
    passes.end = 20 * sum(before.values())
    passes.measure(4, 60)
    assert passes.precise == {"deq", *names}
    passes.iterations.clear()
    steps = passes.work_of("deq", 4, 60) / (2 * before["deq"])  # an equilibrium takes 2.4 times as many
    assert 1.2 < steps < 2.4 and passes.work_of(names[0], 4, 60) == 2 * before[names[0]]


@pytest.mark.long
def test_it_compares_kernels_and_measures_readouts(tmp_path):
    X, y = bars(400)
    deq = ConvDEQ("relu", (1, 6, 6), 16, 2, 0.3, estimate_image_tau0(X), seed=3)
    result = verdict(deq, X, y, budget=4, tolerance=3, clock=time.process_time)
    assert result.answer in ("replace", "undecided", "keep", "majority") and CALIBRATED in result.reason
    names = {candidate.name: candidate for candidate in result.candidates}
    assert {"plain, 1 of 3x3", "plain, 2 of 3x3", "plain, 3 of 3x3"} < names.keys() and len(names) == 5
    match = next(candidate for name, candidate in names.items() if name.startswith("matched ck: 3x3 1x1"))
    assert match.distance["ck"]["relative"] < 0.05 < names["plain, 3 of 3x3"].distance["ck"]["relative"]
    assert match.infinite["samples"] > 40 and match.measured and match.loss_interval
    assert any(point.width == 16 for point in match.measured)
    rows = X[:40]
    K = conv_kernels(rows, deq.activation, 0.3, tau0=deq.tau0)[0]
    own = conv_explicit_kernels(rows, match.layers, (3, 1))[0]
    assert match.distance["ck"]["relative"] == pytest.approx(
        (torch.linalg.matrix_norm(K - own, 2) / torch.linalg.matrix_norm(K, 2)).item(), rel=0.5
    )
    assert "plain, 3 of 3x3" in result.table() and result.to_dict()["settings"]["readout"] == "flatten"
    if result.chosen:
        result.export(tmp_path / "enn.pt", scale=2.0)
        enn, readout = result.maker.fit()
        scores = readout.predict(enn, X).mean
        assert (scores.argmax(1) == y).double().mean() > 0.6
        torch.testing.assert_close(
            rebuild(tmp_path / "enn.pt")(2 * X.flatten(1)).double(), scores, atol=1e-4, rtol=1e-3
        )


@pytest.mark.parametrize("sees, padding", [("flatten", "zero"), ("pool", "circular")])
def test_what_is_exported_is_the_network_on_images_as_they_lie(tmp_path, sees, padding):
    X, _ = bars(8)
    deq = ConvDEQ("relu", (1, 6, 6), 5, 2, 0.3, padding=padding, readout=sees)
    enn = conv_networks(deq)[0][0].build(0, 5, 3, seed=1)
    generator = torch.Generator().manual_seed(0)
    readout = SimpleNamespace(
        weights=torch.randn(enn.features(X).shape[1], 3, generator=generator), mean=torch.tensor([0.1, 0.2, 0.7])
    )
    mean, labels = torch.randn(36, generator=generator), ("a", "b", "c")
    network = conv_network_of(enn, readout, mean, 2.5, labels)
    rows = 2.5 * X.flatten(1) + mean
    export(network, tmp_path / "enn.pt", rows)
    again = rebuild(tmp_path / "enn.pt")
    assert again.labels == labels
    want = enn.features(X) @ readout.weights + readout.mean
    torch.testing.assert_close(again(rows), want, atol=2e-5, rtol=1e-4)
    said = tmp_path / "enn.json"
    said.write_text(said.read_text().replace('"padding": "', '"padding": "no '))
    with pytest.raises(ValueError, match="does not describe a network"):
        rebuild(tmp_path / "enn.pt")


def test_what_it_does_not_take_is_said():
    X, y = bars(60)
    deq = ConvDEQ("relu", (1, 6, 6), 8, 2, 0.3)
    with pytest.raises(ValueError, match=r"X must be images \(n, 1, 6, 6\), as the DEQ takes them, got \(60, 36\)"):
        verdict(deq, X.flatten(1), y)
    with pytest.raises(ValueError, match="a solver is for a trained DEQ"):
        verdict(deq, X, y, solver=Anderson())
    for bad in (None, [["a"]], [object()]):
        with pytest.raises(ValueError, match="X must be an array of numbers|X must be images"):
            verdict(deq, bad, y)
    with pytest.raises(ValueError, match="no held-out samples"):  # another network than the class's is judged as it is
        verdict(Brightened("relu", (1, 6, 6), 8, 2, 0.3), X, y)


class Brightened(ConvDEQ):
    def maps(self, x):
        return super().maps(x + 1)
