"""The verdict at initialisation from Python: what it holds, answers and refuses."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deq_enn.machines.copies import copies, repeated
from deq_enn.networks.deq import DEQ
from deq_enn.networks.enn import ENN
from deq_enn.networks.export import rebuild
from deq_enn.theory.activations import ACTIVATIONS, from_function
from deq_enn.verdicts import api, decision
from deq_enn.verdicts.after_training import begin
from deq_enn.verdicts.at_initialisation import GRACE, VerdictAtInitialisation
from deq_enn.verdicts.losses import measurements
from deq_enn.verdicts.page import write
from deq_enn.verdicts.result import Candidate
from tests.conftest import Ticks
from tests.helpers.intervals import gaussian


@pytest.fixture(scope="module")
def outcome(deq, blobs):
    return api.verdict(deq, *blobs, budget=1.0, tolerance=5.0, clock=Ticks())


def test_what_a_verdict_holds(outcome, blobs):
    assert outcome.answer in ("replace", "keep", "undecided") and all(outcome.reason)
    names = [single.name for single in outcome.candidates]
    assert "matched ck: 1 hard_tanh" in names and "plain, depth 3" in names and len(set(names)) == len(names)
    for single in outcome.candidates:
        low, high = single.loss_interval
        assert low < single.loss < high
        for kernel in ("ck", "ntk"):
            d = single.distance[kernel]
            assert 0 <= d["with_factor"] <= d["relative"] + 1e-12 and d["factor"] > 0
        assert 0 <= single.alignment <= 1 and 0 <= single.infinite["accuracy"] <= 1
        assert single.infinite["interval"][0] <= single.infinite["difference"] <= single.infinite["interval"][1]
        enn = single.build(20, 16, 3, seed=5)
        assert isinstance(enn, ENN) and len(enn.weights) == single.depth == len(single.layers)
        assert torch.equal(enn.weights[0], DEQ(ACTIVATIONS["tanh"], 20, 16, 3, 0.2, seed=5).B)
    matched = next(single for single in outcome.candidates if single.name == "matched ck: 1 hard_tanh")
    plain = next(single for single in outcome.candidates if single.name == "plain, depth 3")
    assert matched.distance["ck"]["relative"] < plain.distance["ck"]["relative"] / 5
    assert outcome.settings["n"] == 600 and outcome.settings["width"] == 64 and outcome.settings["classes"] == 3
    assert not outcome.drift


def test_what_only_a_trained_deq_needs_is_said_to_be_unused(deq, blobs):
    with pytest.warns(UserWarning, match="as its seed draws it: .* held and seen not used"):
        begin(deq, *blobs, held=blobs, seen=10.0)


def test_what_is_exported_has_the_labels_that_the_verdict_was_given(deq, blobs, tmp_path):
    """Strings whose sorted order is not that in which they came."""
    X, y = blobs
    names = np.array(["dog", "ant", "cat"])[y]
    result = api.verdict(deq, X, names, budget=1.0, tolerance=30.0, clock=Ticks())
    result.export(tmp_path / "enn.pt")
    assert json.loads((tmp_path / "enn.json").read_text("utf-8"))["labels"] == ["ant", "cat", "dog"]
    network = rebuild(tmp_path / "enn.pt")
    predicted = np.array(network.labels)[network(X).argmax(1)]
    assert (predicted == names).mean() > 0.7
    result.export(tmp_path / "own.pt", labels=["a", "c", "d"])
    assert rebuild(tmp_path / "own.pt").labels == ("a", "c", "d")


def test_a_verdict_is_ready_for_json_and_for_a_terminal(outcome):
    read = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    assert read["answer"] == outcome.answer and len(read["candidates"]) == len(outcome.candidates)
    assert {p["width"] for p in read["candidates"][0]["measured"]} >= {"inf", 32}
    table = outcome.table()
    assert all(single.name in table for single in outcome.candidates) and outcome.answer in table
    assert max(map(len, table.splitlines()[:-1])) <= 132


def discrete(columns):
    """2,000 samples of so many columns with four values each; of one column, 200 different ones."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(200, 1, generator=g) if columns == 1 else torch.randint(4, (2000, columns), generator=g).float()
    X = X - X.mean(0)
    return X / X.square().sum(1).mean().sqrt(), (X.sum(1) > 0).long()


@pytest.mark.parametrize(
    "columns, labels", [(1, True), *(pytest.param(*case, marks=pytest.mark.long) for case in ((3, True), (1, False)))]
)
@pytest.mark.long
def test_a_budget_is_kept_where_kernels_take_long(columns, labels):
    """Nearly parallel pairs of an activation with a kink away from 0, which have no table."""
    (X, y), clock = discrete(columns), Ticks(0.05)
    bent = from_function(lambda x: torch.nn.functional.elu(x - 0.5), "bent", kinks=(0.5,))
    verdict = api.verdict(DEQ(bent, columns, 32, 2, 0.2, seed=0), X, y if labels else None, budget=4.0, clock=clock)
    assert clock.now < 4.0 * 1.1 + GRACE
    missing = [candidate.name for candidate in verdict.candidates if candidate.distance is None]
    assert bool(missing) == any("For want of time" in sentence for sentence in verdict.reason)
    assert verdict.table() and json.dumps(verdict.to_dict(), allow_nan=False)
    assert missing if columns == 1 else verdict.candidates


@pytest.mark.parametrize("positives", [1, 3])
def test_a_class_so_rare_that_no_sample_of_the_kernels_has_it(deq, blobs, positives):
    X, _ = blobs
    y = torch.zeros(len(X), dtype=torch.int64)
    y[60 : 60 * (positives + 1) : 60] = 1
    result = api.verdict(deq, X, y, budget=3.0, clock=Ticks(0.02))
    json.dumps(result.to_dict(), allow_nan=False)
    compared = [c for c in result.candidates if c.distance is not None]
    assert compared and all(c.alignment is None or 0 <= c.alignment <= 1 for c in compared)


@pytest.mark.slow
def test_without_labels_the_kernels_decide(deq, blobs):
    outcome = api.verdict(deq, blobs[0], budget=0.5, clock=Ticks())
    assert outcome.answer == "replace" and outcome.chosen.distance["ck"]["with_factor"] < decision.NEAR
    assert "no labels" in " ".join(outcome.reason) and outcome.chosen.loss is None
    json.dumps(outcome.to_dict(), allow_nan=False)


def candidate(name, depth, mean, low, high):
    single = Candidate(name, "plain", None, None, depth, (), 1.0, None, {"ck": {"with_factor": 0.1}})
    single.interval = gaussian(mean, low, high)
    return single


@pytest.fixture
def judged(deq, blobs, monkeypatch):
    def judge(*candidates, tolerance=0.5):
        work = VerdictAtInitialisation(deq, *blobs, tolerance=tolerance)
        work.candidates = list(candidates)
        work.measurements = type(
            "Measured",
            (),
            {
                "passes": {(64, 600): {}},
                "accuracy": {},
                "equilibria": lambda *_: (0, 0),
                "interval": lambda *_: gaussian(20.0, 19.0, 21.0),  # what the DEQ gains on the commonest class
            },
        )()
        monkeypatch.setattr(work, "_interval", lambda single, of=None: single.interval)
        return work

    return judge


def test_infinite_width_alone_decides_nothing(judged):
    work = judged(candidate("good", 1, 0.0, -0.3, 0.3))
    assert work.decide()[0] == "replace"
    work.measurements.passes = {(math.inf, 150): {}}
    answer, chosen, reason = work.decide()
    assert answer == "undecided" and chosen is None and "--budget" in reason[0]


def test_a_deq_that_has_an_equilibrium_at_some_seeds_is_judged_by_those(judged):
    work = judged(candidate("good", 1, 0.2, -0.1, 0.4))
    work.measurements.equilibria = lambda width: (5, 2)
    answer, chosen, reason = work.decide()
    assert answer == "replace" and "(2 of 5 draws" in reason[0] and "draws that have one" in reason[1]


@pytest.mark.slow
def test_a_deq_without_an_equilibrium_at_its_width_has_a_verdict(tmp_path, blobs):
    outcome = api.verdict(DEQ(ACTIVATIONS["erf"], 20, 16, 3, 0.99), *blobs, budget=1.0)
    draws = outcome.deq["draws"]
    assert draws["width"] == 16 and 1 <= draws["drawn"] == draws["without_equilibrium"] <= measurements.DRAWS
    assert outcome.answer == "undecided" and outcome.chosen is None
    said = f"no equilibrium at width 16 ({draws['drawn']} of {draws['drawn']} draws"
    assert said in outcome.reason[0] and "--dim" in outcome.reason[0] and "--asquare" in outcome.reason[0]
    for single in outcome.candidates:
        assert single.loss is None and single.infinite and single.distance["ck"]["relative"] > 0
    assert said in outcome.table()
    numbers = json.loads(json.dumps(outcome.to_dict(), allow_nan=False))
    pages = [path.read_text() for path in map(Path, write(numbers, tmp_path)) if path.suffix == ".html"]
    assert said in pages[0]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda X, y: (X[:20], y[:20]), "too few"),
        (lambda X, y: (X, y[:-1]), "one label a row"),
        (lambda X, y: (X, 0 * y), "all labels are 0"),
        (lambda X, y: (X, y + 0.5), "integers"),
        (lambda X, y: (X[:, :7], y), r"\(n, 20\)"),
        (lambda X, y: (torch.where(torch.arange(600)[:, None] == 33, float("nan"), X), y), "row 33"),
        (lambda X, y: (0 * X, y), "zero"),
    ],
)
def test_samples_that_cannot_be_used(deq, blobs, change, words):
    with pytest.raises(ValueError, match=words):
        api.verdict(deq, *change(*blobs), budget=1.0)


def test_what_is_not_a_deq(blobs):
    with pytest.raises(ValueError, match="Linear is not a DEQ.*activation"):
        api.verdict(torch.nn.Linear(20, 3), *blobs)


class Jumping(Ticks):
    """A clock that jumps by so many seconds at one of its looks."""

    def __init__(self, look, seconds):
        super().__init__()
        self.left, self.jump = look, seconds

    def __call__(self):
        self.left -= 1
        self.now += self.jump * (not self.left)
        return super().__call__()


@pytest.fixture(scope="module")
def looks(blobs):
    """How often the clock is looked at in a whole verdict, and the DEQ."""
    deq, clock = DEQ(ACTIVATIONS["relu"], 20, 16, 3, 0.5), Ticks()
    api.verdict(deq, *blobs, budget=1.0, clock=clock)
    return round(clock.now / clock.seconds), deq


@pytest.mark.few(1)
@pytest.mark.parametrize("stage", range(1, 20, 2))
@pytest.mark.slow
def test_wherever_the_time_runs_out_nothing_is_claimed_that_was_not_measured(
    few_candidates, monkeypatch, looks, blobs, stage
):
    """A machine that is suddenly busy, swaps or has a slow kernel: the clock jumps over the rest of the budget."""
    count, deq = looks
    monkeypatch.setattr(VerdictAtInitialisation, "measure_costs", lambda *_: iter(()))
    clock = Jumping(stage * count // 30, 10.0)  # the later looks are measurements all alike
    work = VerdictAtInitialisation(deq, *blobs, budget=1.0, clock=clock)
    work.run()
    verdict = work.conclude()
    for each in verdict.candidates:
        measured_at = [point.width for point in each.measured if math.isfinite(point.width)]
        assert (each.loss_interval is not None) == (each.draw_interval is not None) == bool(measured_at)
    if verdict.answer == "replace":
        assert any(math.isfinite(point.width) for point in verdict.chosen.measured)
    if verdict.answer == "keep":
        assert all(each.loss_interval for each in verdict.candidates)
    assert verdict.table() and json.dumps(verdict.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["rare", "chance"])
def test_a_deq_that_knows_no_more_than_the_commonest_class_is_said_to(few_candidates, deq, blobs, labels):
    X, _ = blobs
    g = torch.Generator().manual_seed(5)
    y = (torch.rand(600, generator=g) < (0.04 if labels == "rare" else 0.5)).long()
    verdict = api.verdict(deq, X, y, budget=0.6, clock=Ticks())
    assert verdict.answer == "majority" and verdict.chosen is None and "commonest class" in verdict.reason[0]
    scored = [candidate.class_scores for candidate in verdict.candidates if candidate.class_scores]
    assert bool(scored) == (labels == "rare") == ("area under curve" in verdict.table())


@pytest.mark.slow
def test_a_candidate_without_an_exact_kernel_is_measured_all_the_same(blobs):
    """The signal of a small sample dies in the second layer's dead zone, so that this network has no kernel there."""
    X, y = blobs
    X = X * torch.where(torch.arange(len(X)) % 7 == 0, 0.2, 1.06)[:, None]
    dead_zone = from_function(lambda x: torch.nn.functional.softshrink(x, 0.5), "dead_zone", kinks=(-0.5, 0.5))
    deq = DEQ(dead_zone, 20, 64, 3, 0.05)
    work = VerdictAtInitialisation(deq, X, y, budget=3.0, clock=Ticks())
    work.run()
    verdict = work.conclude()
    without = [candidate for candidate in verdict.candidates if candidate.name in work.not_compared]
    assert without and all(candidate.distance is None and candidate.loss is not None for candidate in without)
    said = [sentence for sentence in verdict.reason if sentence.startswith("No kernels were compared of plain")]
    assert len(said) == len(without) and "is constant" in said[0] and not any("want of time" in s for s in said)
    assert any(candidate.distance for candidate in verdict.candidates)


@pytest.mark.parametrize("seconds, rows", [(0.001, 512), (0.005, 256), (0.02, 32), (1.0, None)])
def test_times_are_those_of_as_many_rows_as_fit_into_the_budget(deq, blobs, seconds, rows):
    """Of a DEQ that takes so many seconds for a row."""
    now = [0.0]

    def slow_features(X):
        now[0] += seconds * len(X)

    work = VerdictAtInitialisation(deq, *blobs, budget=10.0, clock=lambda: now[0])
    assert work._rows_costed(SimpleNamespace(B=deq.B, features=slow_features), 0.0) == rows
    now[0] = 10.0  # the budget is spent, but for a second
    assert work._rows_costed(SimpleNamespace(B=deq.B, features=slow_features), 1.0) == (64 if rows == 512 else None)


@pytest.mark.slow
def test_rows_that_come_again_are_predicted_by_their_copies(few_candidates):
    """Bits with labels from a table: new rows are copies, which the table tells all of, and are recognised as such."""
    g = torch.Generator().manual_seed(6)
    bits = torch.randint(2, (1200, 6), generator=g)
    y = torch.randint(2, (64,), generator=g)[(bits * 2 ** torch.arange(6)).sum(1)]
    X = torch.nn.functional.one_hot(bits, 2).flatten(1).float()
    X = X - X.mean(0)
    deq = DEQ(ACTIVATIONS["relu"], 12, 128, 2, 0.3)
    verdict = api.verdict(deq, X, y, budget=0.6, clock=Ticks())
    assert verdict.settings["copies"] == {"samples": 1200, "recur": True}
    assert any("will be copies too" in sentence for sentence in verdict.reason)
    accuracy = {}
    for groups in (repeated(X).left_out, copies(X)):
        taken = measurements.Measurements(deq, [], X, y, torch.arange(1200), groups, 2)
        taken.measure(128, 1200)
        accuracy[len(groups.unique())] = taken.accuracy[128, 1200][0]
    assert accuracy[1200] > 0.95 and accuracy[64] < 0.75


@pytest.mark.slow
def test_the_user_s_own_weights_are_measured_first(few_candidates, blobs):
    deq = DEQ(ACTIVATIONS["tanh"], 20, 64, 3, 0.2, seed=77)
    work = VerdictAtInitialisation(deq, *blobs, budget=2.0, clock=Ticks())
    work.run()
    verdict = work.conclude()
    at_width = {place: seeds for place, seeds in work.measurements.seeds.items() if place[0] == 64}
    assert at_width and all(seed[0] == 77 for seeds in at_width.values() for seed in seeds.values())
    assert any(point.own for candidate in verdict.candidates for point in candidate.measured)
    assert verdict.maker is None or verdict.maker.seed == 77
    with torch.no_grad():
        deq.A.mul_(1.01)  # it is no longer as it was drawn
    assert VerdictAtInitialisation(deq, *blobs).own_seed is None
