"""The networks that may replace a DEQ: which there are, and that matches match."""

import pytest
import torch

from deq_enn.machines.leave_one_out import Targets, from_features
from deq_enn.machines.precise_readout import features
from deq_enn.machines.readout import solve
from deq_enn.networks.deq import DEQ
from deq_enn.networks.export import export, rebuild
from deq_enn.theory.activations import ACTIVATIONS, from_function
from deq_enn.utils.deadline import deadline
from deq_enn.verdicts import candidates
from deq_enn.verdicts.decision import Decision, but_for_the_matches
from tests.conftest import Ticks


def test_candidates_of_a_relu_deq():
    deq = DEQ(ACTIVATIONS["relu"], 5, 8, 2, 0.2)
    result, refused = candidates.networks(deq, 1.0)
    by_name = {network.name: network for network in result}
    assert len(by_name) == len(result)
    roots = [network for network in result if network.family == "l_relu"]
    assert len(roots) == 2 and {"ck hard_tanh", "ntk l_relu"} <= set(refused)
    for network in result:
        assert network.build(5, 8, 2).coefficients.diag > 0
        if network.kernel == "ck":
            achieved = network.build(5, 8, 2).coefficients
            assert [achieved.diag, achieved.c1, achieved.c2, achieved.c3] == pytest.approx(
                [deq.coefficients.diag, deq.coefficients.c1, deq.coefficients.c2, deq.coefficients.c3], rel=1e-9
            )
    assert roots[0].layers[0].slopes != pytest.approx(roots[1].layers[0].slopes, abs=0.1)
    assert [network.depth for network in result if network.kind == "plain"] == [1, 2, 3]
    assert torch.equal(
        by_name["plain, depth 1"].build(5, 8, 2, seed=3).weights[0], DEQ(ACTIVATIONS["relu"], 5, 8, 2, 0.2, seed=3).B
    )


@pytest.mark.slow
def test_matches_at_another_scale_than_the_deqs():
    deq = DEQ(ACTIVATIONS["swish"], 5, 8, 2, 0.2, tau0=1.0)
    same, _ = candidates.networks(deq, 1.02)  # as a subsample may be
    other, refused = candidates.networks(deq, 1.6)
    assert same[0].tau0 == 1.0 and other[0].tau0 == 1.6
    assert all(network.match.tau0 == network.tau0 for network in same + other if network.match)


def test_what_there_is_no_time_to_match_is_said_and_the_deq_is_not_kept_for_it():
    """The clock jumps in the midst of a search; what was matched before stays, and plain networks are always there."""
    deq = candidates.Scales(ACTIVATIONS["tanh"], 0.2, 1.0)
    with deadline(Ticks(1.0), 4.5):
        networks, refused = candidates.networks(deq, 1.0)
    whole, _ = candidates.networks(deq, 1.0)
    late = [name for name, why in refused.items() if why == candidates.NO_TIME]
    assert "ck hard_tanh" not in late and {"ntk hard_tanh", "ntk hermite"} <= set(late)
    names = [network.name for network in networks]
    assert 3 < len(names) < len(whole) and set(names) <= {network.name for network in whole}
    assert names[-3:] == ["plain, depth 1", "plain, depth 2", "plain, depth 3"]
    for answer, now in (("keep", "undecided"), ("replace", "replace")):
        decision = but_for_the_matches(Decision(answer, None, ["Measured."]), late)
        assert decision.answer == now and "no match was looked for in" in decision.reason[1]
    assert but_for_the_matches(Decision("keep", None, []), []).answer == "keep"


def test_layers_in_which_the_signal_dies_are_no_candidates():
    """Each layer of a wide dead zone passes on so little that the third is constant."""
    dead = from_function(lambda x: torch.nn.functional.softshrink(x, 0.5), "dead_zone", (-0.5, 0.5))
    made, refused = candidates.networks(candidates.Scales(dead, 0.9, 1.0), 1.0)
    assert [network.depth for network in made if network.kind == "plain"] == [1, 2]
    assert "dies" in refused["plain, depth 3"]


@pytest.mark.parametrize("width", [16, 700])  # fewer features than samples, and more
def test_a_network_in_which_every_signal_dies_says_the_commonest_class(width, blobs):
    X, y = blobs
    network = candidates.plain_networks(ACTIVATIONS["tanh"], 0.2, 1.0)[0].build(20, width, 3)
    network.features = lambda X: torch.zeros(len(X), width, dtype=X.dtype)
    network, readout = candidates.fitted(network, X, y, 3)
    assert not readout.weights.any() and readout.mean.argmax() == y.mode().values


def test_the_ridge_that_is_handed_out_is_the_one_that_was_measured(monkeypatch, blobs):
    """Whatever the order of the samples; the readout is that of all of them, and copies are left out together."""
    X, y = blobs
    network, _ = candidates.fitted(DEQ(ACTIVATIONS["tanh"], 20, 16, 3, 0.2), X, y, 3)
    copies = torch.arange(600) // 2
    expected = from_features(features(network, X), Targets(y, 3, copies))
    ridges = []
    for order in (torch.arange(600), torch.arange(600).flip(0)):
        _, readout = candidates.fitted(network, X[order], y[order], 3, copies[order])
        ridges.append(readout.ridge)
        torch.testing.assert_close(readout.weights, solve(network, X, y, 3, [expected.ridge])[0].weights)
    assert ridges == [expected.ridge] * 2
    monkeypatch.setattr(candidates, "FEATURE_BYTES", 4 * 16 * 300)
    _, readout = candidates.fitted(network, X, y, 3)
    assert readout.ridge == from_features(features(network, X[:300]), Targets(y[:300], 3)).ridge
    torch.testing.assert_close(readout.weights, solve(network, X, y, 3, [readout.ridge])[0].weights)


@pytest.mark.slow
def test_a_network_whose_readout_needs_float64_is_written_in_it(tmp_path):
    """Rings in the plane: in float32 the network that is handed out would not do what was predicted of it."""
    g = torch.Generator().manual_seed(2)
    X = 2 * torch.rand(1500, 2, generator=g) - 1
    y = (4 * X.norm(dim=1) % 2 < 1).long()
    network = candidates.plain_networks(ACTIVATIONS["swish"], 0.2, 1.0)[0]
    fitting = candidates.Fitting(network, (X, y, torch.arange(1500)), 2, 100, 0)
    enn, readout = fitting.fit()
    assert readout.ridge < 1e-8 and enn.weights[0].dtype == torch.float64
    export(fitting.exported(), tmp_path / "enn.pt", X[:64].double())
    rebuilt = rebuild(tmp_path / "enn.pt")
    right = rebuilt(X.double()).argmax(1) == y
    plain, _ = solve(network.build(2, 100, 2, 0), X, y, 2)
    before = plain.predict(network.build(2, 100, 2, 0), X).mean.argmax(1) == y
    assert right.double().mean() > before.double().mean() + 0.05
