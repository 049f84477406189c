"""The study of trained DEQs: its tasks are what they say, its report counts what its record holds."""

import collections
import math

import pytest
import torch

from scripts import trained_deqs
from scripts.trained import figure, report, tasks
from scripts.trained.deqs import ByHand, Flat, Recurrent, by_hand, cases


def test_grids_are_connected_where_a_search_finds_a_way():
    X, y = tasks.connected(60, "test")
    for grid, label in zip(X[:, 0], y):
        side, start = len(grid), [(0, j) for j in range(len(grid)) if grid[0, j] > 0]
        seen, queue = set(start), collections.deque(start)
        while queue:
            i, j = queue.popleft()
            for a, b in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if 0 <= a < side and 0 <= b < side and grid[a, b] > 0 and (a, b) not in seen:
                    seen.add((a, b))
                    queue.append((a, b))
        assert bool(label) == any(i == side - 1 for i, _ in seen)
    assert 0.2 < y.double().mean() < 0.8


def test_rings_and_parity():
    X, y = tasks.rings(500, "test")
    ring = (X[:, :2].norm(dim=1) - 0.5).round()
    assert torch.equal(ring.long() % 2, y)
    X, y = tasks.parity(500, "test")
    assert torch.equal((X[:, : tasks.PARITY] > 0).sum(1) % 2, y)


def test_a_state_is_the_last_one_set_and_turned_since():
    for states in (2, 3):
        X, y = tasks.turns(200, "test", states, 12, 0.1)
        for tokens, label in zip(X.argmax(2).tolist(), y.tolist()):
            last = max((i for i, token in enumerate(tokens) if token < states), default=-1)
            begun = tokens[last] if last >= 0 else 0
            assert label == (begun + tokens[last + 1 :].count(states)) % states


def test_a_sequence_is_its_recurrent_network():
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    module, z = Recurrent(x[0], 2, 6), torch.zeros(3, 6)
    for token in x.unbind(1):
        z = torch.tanh(module.A(z) + module.B(token))
    torch.testing.assert_close(module(x), module.readout(z))


def test_the_figure_tells_the_form_of_a_deq_by_its_name():
    names = {"relu 0.5, width 128, 400 steps": "fully connected", "linear_pcdeq_1 tanh": "positive concave",
             "torchdeq, two states": "by torchdeq", "by hand, Anderson": "by hand",
             "sequence, torchdeq": "sequences"}  # fmt: skip
    assert {name: figure.form(name) for name in names} == names
    assert {figure.form(case.name) for case in cases()} == set(figure.FORMS)


def test_every_case_has_a_name_of_its_own_and_forms_take_turns():
    named = [(case.name, case.task) for case in cases()]
    assert len(named) == len(set(named)) >= 40
    assert len({case.name.partition(" ")[0] for case in cases()[:12]}) >= 6
    x = torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert Flat("tanh", 0.5, 8, x, 3, 1.0)(x[None]).shape == (1, 3)
    module = ByHand(x, 3, 8)
    module.A.weight.data.mul_(0.2)
    torch.testing.assert_close(by_hand(ByHand(x, 3, 8), 1)(x[None]).shape, module(x[None]).shape)
    whole = module(x[None]).detach()
    torch.testing.assert_close(by_hand(module, 60)(x[None]), whole, rtol=1e-3, atol=1e-3)


def record(answer, chosen, losses, more=1000):
    """The record of a DEQ: {name: (loss in points with interval, truly lost)}."""
    candidates = [
        {
            "name": name, "kind": "stopped", "k": k, "loss": loss, "interval": (loss - half, loss + half),
            "agreement": 95.0, "true_lost": lost, "true_gained": 0, "cost": {"saved": {"batch": 3.0}},
        }
        for k, (name, (loss, half, lost)) in enumerate(losses.items(), 1)
    ]  # fmt: skip
    return {
        "case": "case", "task": "task", "answer": answer, "chosen": chosen, "candidates": candidates, "more": more,
        "used": 8.0, "budget": 8.0, "peak_mb": 900.0, "true_accuracy": 90.0,
    }  # fmt: skip


def test_the_report_counts():
    records = [
        record("replace", "a", {"a": (0.1, 0.3, 3)}),  # truly 0.3: right, and covered
        record("replace", "a", {"a": (0.1, 0.3, 20)}),  # truly 2.0: wrong, and not covered
        record("keep", None, {"a": (2.0, 0.5, 20)}),  # rightly
        record("undecided", None, {"a": (2.0, 9.0, 20)}),
    ]
    said = report.report(records)
    assert "*replace* wrong (true loss above 0.5): 1 of 2 (50%)" in said
    assert "*keep* where nothing faster is good enough: 1 of 3 (33%)" in said
    assert "*keep* wrong: 0 of 1 (0%)" in said and "*undecided*: 1 of 4 (25%)" in said
    assert "hold the loss on other samples: 3 of 4 (75%)" in said
    entry, whole = records[0]["candidates"][0], records[0]
    assert report.true_loss(entry, whole) == pytest.approx(0.3)
    assert math.sqrt(report.true_variance(entry, whole)) == pytest.approx(100 * math.sqrt(0.003 * 0.997 / 1000))


def test_words_that_no_deq_has_are_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["trained_deqs", "--output_path", str(tmp_path / "out"), "--only", "nosuch"])
    with pytest.raises(SystemExit) as stop:
        trained_deqs.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "is left by --only and --without" in error and error.count("\n") == 1
    args = trained_deqs.make_parser().parse_args(["--only", "pcdeq", "rings", "--without", "conv", "mnist"])
    assert {case.task for case in trained_deqs.asked_for(args)} == {"rings"}
