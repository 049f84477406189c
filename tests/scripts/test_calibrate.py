"""The calibration: its cases, its outcomes and their errors, and an analysis of data whose coverage is known."""

import gzip
import hashlib
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from deq_enn.machines.copies import repeated
from deq_enn.reporting.records import read_lines
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.utils.intervals import Z_90
from deq_enn.verdicts import candidates
from deq_enn.verdicts.decision import Question, by_loss
from deq_enn.verdicts.losses.classes import unequal
from deq_enn.verdicts.losses.measurements import measured_apart
from deq_enn.verdicts.losses.model import predict
from deq_enn.verdicts.losses.points import CONSTANTS, measured
from deq_enn.verdicts.result import Candidate as Found
from scripts import calibrate
from scripts.calibration import (
    analysis,
    cases as calibration_cases,
    outcomes as calibration_outcomes,
    report,
    rows,
    verdicts as calibration_verdicts,
)
from scripts.calibration.blind import blind_cases, copies_cases, second_blind_cases
from scripts.calibration.cases import Case, cases, load, sets_constants
from scripts.calibration.fresh import COUNTS, KINDS, OWN, FreshCase, fresh_cases, load_fresh
from scripts.calibration.more_samples import LEAST, LargeCase, fresh_twins, large_cases
from tests.helpers.intervals import gaussian


@pytest.mark.long
def test_the_cases():
    output = cases()
    assert len(output) == len({case.name for case in output}) >= 120
    assert len({case.activation for case in output}) >= 10
    assert {case.data for case in output} == set(calibration_cases.COUNTS)
    assert min(case.sigma_a2 for case in output) == 0.05 and max(case.sigma_a2 for case in output) == 0.9
    for sizes, ends in (([case.width for case in output], (64, 4096)), ([case.n for case in output], (1000, 60_000))):
        assert (min(sizes), max(sizes)) == ends
    assert 0.45 < sum(sets_constants(case.name) for case in output) / len(output) < 0.55


@pytest.mark.slow
def test_the_halves_depend_on_names_alone():
    assert sets_constants("mixed-tanh-0.8-m512-n3000") and not sets_constants("mixed-relu-0.5-m64-n3000")


@pytest.mark.slow
def test_the_fresh_cases():
    output = fresh_cases()
    assert len(output) == len({case.name for case in output}) >= 60
    assert {case.data for case in output} == set(COUNTS) == {name for names in KINDS.values() for name in names}
    assert min(case.sigma_a2 for case in output) == 0.05 and max(case.sigma_a2 for case in output) == 0.97
    assert min(case.width for case in output) == 32 and max(case.width for case in output) == 2048
    assert len({case.activation for case in output} & set(OWN)) == len(OWN)
    assert 0.3 < sum(sets_constants(case.name) for case in output) / len(output) < 0.7


@pytest.mark.parametrize("deal", [blind_cases, second_blind_cases])
def test_a_blind_round_reports_and_is_new(deal):
    blind, fresh, copies = deal(), {case.name for case in fresh_cases()}, copies_cases()
    names = {case.name for case in blind}
    assert len(blind) == len(names) >= 55 and not names & fresh and not names & {case.name for case in copies}
    assert not names & {case.name for case in large_cases()}
    assert names.isdisjoint({case.name for case in blind_cases()}) or deal is blind_cases
    assert {case.data for case in blind} == set(COUNTS) and not any(map(sets_constants, names))
    assert [case.width for case in blind] == sorted(case.width for case in blind) and blind[-1].width == 512
    assert {case.data for case in copies} == {"oversampled"} and all(sets_constants(case.name) for case in copies)
    assert len({case.name for case in copies}) == 10 and not fresh & {case.name for case in copies}


@pytest.mark.parametrize(
    "deal, digest",
    [
        (blind_cases, "add7d3d970b5f475"),
        (second_blind_cases, "eb207517121f91f9"),
        (copies_cases, "df603544cd090cc0"),
        (large_cases, "7839304ee937abe7"),
    ],
)
def test_what_was_run_is_what_was_dealt(deal, digest):
    """Its outcomes and verdicts are kept by name: another deal would report others, as if nobody had looked at them."""
    names = "\n".join(case.name for case in deal())
    assert hashlib.sha256(names.encode()).hexdigest()[:16] == digest


def test_the_cases_with_more_samples():
    fresh, large, twins = {case.name: case for case in fresh_cases()}, large_cases(), fresh_twins()
    assert {case.name for case in large} == set(twins) and len(large) == len(twins) == len(set(twins.values()))
    for case in large:
        twin = fresh[twins[case.name]]
        assert twin.n < LEAST <= case.n and twin.name.rsplit("-", 1)[0] == case.name.rsplit("-", 1)[0]
    case = LargeCase("roll", "relu", 0.2, 32, 6000)
    assert len(load_fresh(case, None).X_train) == 6000 and len(load_fresh(case, None).X_test) == case.tests == 30_000


@pytest.mark.parametrize("name", [name for name in COUNTS if not name.startswith("fashion")])
def test_the_fresh_data(name):
    case = FreshCase(name, "relu", 0.2, 2048, 600)
    data, again = load_fresh(case, None), load_fresh(case, None)
    assert torch.equal(data.X_train, again.X_train) and torch.equal(data.y_test, again.y_test)
    assert len(data.X_train) == len(data.y_train) == 600 and len(data.X_test) == len(data.y_test) == case.tests
    assert data.X_train.isfinite().all() and estimate_tau0(data.X_train) == pytest.approx(1, abs=1e-5)
    assert set(data.y_train.tolist()) == set(range(data.n_classes)) >= set(data.y_test.tolist())
    assert repeated(data.X_train).recur == (name in KINDS["discrete"])
    assert unequal(data.y_train) == (name in ("rare", "unequal"))


@pytest.mark.parametrize(
    "name",
    ["mixed", "two_class", "mixed_spread", "heavy_tails", "few_dimensions", "duplicated", "correlated", "unnormalised"],
)
def test_the_made_up_data(name, monkeypatch):
    monkeypatch.setitem(calibration_cases.LIMITS, 64, (1000, 400, 2))
    case = Case(name, "relu", 0.2, 64, 600)
    data, again = load(case, None), load(case, None)
    assert torch.equal(data.X_train, again.X_train) and torch.equal(data.y_test, again.y_test)
    assert data.X_train.shape[0] == len(data.y_train) == 600 and len(data.X_test) == len(data.y_test) == 400
    assert data.X_train.isfinite().all() and set(data.y_test.tolist()) <= set(range(data.n_classes))
    if name == "unnormalised":
        assert estimate_tau0(data.X_train) > 1.2  # of lognormal norms, sqrt(E r^2) = exp(0.6^2)
    else:
        assert estimate_tau0(data.X_train) == pytest.approx(1, abs=1e-5)
    norms2 = data.X_train.square().sum(1)
    if name.endswith("spread"):
        assert norms2.std() > norms2.mean()
    nearest = (torch.cdist(data.X_train, data.X_train) + 100 * torch.eye(600)).min(1).values
    assert (nearest < 0.1).float().mean() > 0.9 if name == "duplicated" else (nearest > 0).all()


def test_the_error_of_a_loss_is_its_spread():
    """Tables of seeds with a seed's effect, a sample's and chance: the error is what the mean loss spreads by."""
    draw, losses, errors = np.random.default_rng(0), [], []
    for _ in range(400):
        seed, sample = draw.normal(0, 0.03, (6, 1)), draw.normal(0, 0.15, (1, 300))
        deq = draw.random((6, 300)) < 0.8
        other = draw.random((6, 300)) < np.clip(0.75 + seed + sample, 0, 1)
        output = calibration_outcomes.loss_and_error(torch.from_numpy(deq), torch.from_numpy(other))
        losses.append(output["loss"])
        errors.append(output["error"])
    assert np.mean(losses) == pytest.approx(5, abs=0.5)
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(losses), rel=0.1)


def test_measurements_come_back_for_any_constants():
    draw = np.random.default_rng(1)
    group = np.arange(200) // 2
    for width, seeds in ((64, 3), (64, 1), (math.inf, 1)):
        differences = draw.choice([-1, 0, 1], (seeds, 200), p=[0.1, 0.8, 0.1]) + draw.choice([0, 0, 1], (seeds, 1))
        summary = calibration_verdicts.raw_point(width, differences, group)
        json.dumps(summary)
        for constants in (CONSTANTS, replace(CONSTANTS, seeds=0.3, weight=5.0)):
            (point,) = calibration_verdicts.points_of([summary], constants)
            expected = measured(width, differences, group, constants)
            assert vars(point) == pytest.approx(vars(expected))
            if seeds > 1:  # with the user's own draw among them
                parts = calibration_verdicts.points_of(
                    [json.loads(json.dumps(calibration_verdicts.raw_point(width, differences, group, 1)))], constants
                )
                expected = measured_apart(width, differences, group, 1, constants)
                assert [vars(part) for part in parts] == [pytest.approx(vars(each)) for each in expected]


# ---------------------------------------------------------------------------------------------------------------


# of a measurement that says nothing: what is predicted is the prior
VAGUE = {"width": 64, "count": 1000, "loss": 0.0, "seeds": 1, "apart": 5.0, "one": 1e12}
VAGUE |= {"common": 1e12, "of_samples": 1e9, "of_one_seed": 0.0}


def record(case, points=(VAGUE,), name="plain, depth 1", width=64, n=1000):
    return {
        "case": case,
        "width": width,
        "n": n,
        "deq_fluctuation": 1.0,
        "candidates": [
            {
                "name": name,
                "work": 1,
                "distance": {"ck": {"with_factor": 0.1}},
                "fluctuation": 2.0,
                "points": list(points),
                "infinite": {"rms": 0.1, "difference": 0.0},
            }
        ],
    }


def made_up(spread, cases=300, error=0.0):
    """Losses that are Gaussian about 0, in cases of which nothing was measured: the interval is that of the prior."""
    draw = np.random.default_rng(2)
    losses = spread * draw.standard_normal(cases) + error * draw.standard_normal(cases)
    return {
        "verdicts": [record(f"mixed-{i}") for i in range(cases)],
        "sgd": [],
        "outcomes": [
            {"case": f"mixed-{i}", "networks": {"plain, depth 1": {"loss": loss, "error": error}}}
            for i, loss in enumerate(losses)
        ],
    }


def test_the_blind_round_is_reported_by_itself():
    """All of it, with what had no truth; and nothing of it among the fresh cases."""
    blind, fresh = ([case.name for case in deal()[:6]] for deal in (blind_cases, fresh_cases))
    network = {"loss": -20.0, "error": 0.1, "seed_sd": 0.1, "own": {"loss": 0.0, "error": 0.1}}
    networks = {"plain, depth 1": network}
    packed = {
        "verdicts": [record(name) for name in [*blind[:2], *fresh]],
        "outcomes": [{"case": name, "seeds": 2, "networks": networks} for name in [*blind[:2], *fresh]],
        "sgd": [],
    }
    packed["outcomes"].append({"case": blind[2], "networks": {}, "failed": "no equilibrium"})
    lines = list(report.later_cases(packed))
    draw, mean = (
        lines.index(f"\n## Blind rounds: first, at a risk of 5%, {what}\n") for what in ("one draw", "mean over draws")
    )
    for start, covered in ((draw, "100"), (mean, "0")):
        row = next(line for line in lines[start:] if line.startswith("| all |"))
        assert row.startswith("| all | 2 | 2, 100% |") and f"| {covered} |" in row
    dealt = len(blind_cases())
    told = f"- of {dealt} dealt 3 were run; in 1 some DEQ has no equilibrium, which leaves no truth"
    assert [line for line in lines if line.startswith("- of ")] == [told, told]
    halves = [line for line in lines[:draw] if line.startswith("| all | ")]
    assert halves[0].startswith("| all | 6 |")


@pytest.mark.slow
def test_coverage_is_that_of_the_interval():
    prior = predict(calibration_verdicts.points_of([VAGUE]), 64, 1000)
    half = (prior.high - prior.low) / 2
    for times, share in ((1, 0.9), (2, 0.589), (0.5, 0.999)):  # P(|xi| < Z_90/times)
        held = analysis.joined(made_up(times * half / Z_90))
        assert analysis.coverage(held)["as measured"] == pytest.approx(100 * share, abs=4)
    # noise of the outcome is allowed for, and hides nothing else
    held = analysis.joined(made_up(half / Z_90, error=half))
    assert analysis.coverage(held)["covered"] == pytest.approx(90, abs=4)
    assert analysis.coverage(held)["as measured"] < 70
    held = analysis.joined(made_up(3 * half / Z_90, cases=100, error=0.1 * half))
    assert analysis.coverage(held)["covered"] < 50


@pytest.mark.long
def test_the_error_of_a_mean_over_two_seeds_is_drawn_to_that_of_the_other_networks():
    """Two seeds alone may agree by chance, and their mean would seem exact."""
    rng, held, alone = np.random.default_rng(5), [], []
    for _ in range(400):
        draws = rng.normal(0, 1.0, (6, 2))  # networks of a case, whose mean loss is 0
        networks = {
            f"{k}": {"loss": d.mean(), "error": d.std(ddof=1) / 2**0.5, "seed_sd": d.std(ddof=1), "own": {"loss": 3.0}}
            for k, d in enumerate(draws)
        }
        truth = analysis.Truth.of_case({"networks": networks, "seeds": 2}, "mean")
        loss, error = truth.loss_and_error("0")
        held.append(abs(loss) < Z_90 * error)
        alone.append(abs(loss) < Z_90 * networks["0"]["error"])
        assert truth.loss_and_error("another") == (None, None)
    assert np.mean(alone) < 0.75 and 0.8 < np.mean(held) < 0.95
    assert analysis.Truth.of_case({"networks": networks, "seeds": 2}, "draw").loss_and_error("0") == (3.0, None)


@pytest.mark.slow
def test_constants_are_set_so_that_intervals_cover():
    packed = made_up(4.0, cases=50)
    names = {outcome["case"] for outcome in packed["outcomes"]}
    assert analysis.coverage(analysis.joined(packed))["covered"] < 80
    output = analysis.set_constants(packed, names, steps=60)
    held = analysis.joined(packed, output)
    assert analysis.mean_score(held) < analysis.mean_score(analysis.joined(packed))
    assert analysis.coverage(held)["covered"] == pytest.approx(90, abs=4)
    assert held[0].candidates[0].high == pytest.approx(4 * Z_90, rel=0.2)


@pytest.mark.slow
def test_constants_are_set_on_one_half_alone():
    packed = made_up(2.0, cases=40)
    half = {f"mixed-{i}" for i in range(20)}
    output = analysis.set_constants(packed, half, steps=20)
    for outcome in packed["outcomes"][20:]:
        outcome["networks"]["plain, depth 1"]["loss"] += 100
    assert analysis.set_constants(packed, half, steps=20) == output


def candidate(name, low, high, work=1):
    interval = gaussian((low + high) / 2, low, high)
    return analysis.Candidate(name, work, **vars(interval), loss=None, error=None, scores={})


def test_answers_are_those_of_the_verdict():
    draw = np.random.default_rng(3)
    seen = Counter()
    for _ in range(200):
        ends = np.sort(draw.normal(0.5, 1, (3, 2)) + draw.normal(0.3, 1, (1, 1)), axis=1)
        depths = draw.integers(1, 3, 3)
        output = [
            Found(
                f"{i}",
                "plain",
                None,
                None,
                int(depth),
                (),
                1.0,
                None,
                {},
                loss=sum(pair) / 2,
                loss_interval=tuple(pair),
                risk=gaussian(sum(pair) / 2, *pair).risk,
            )
            for i, (depth, pair) in enumerate(zip(depths, ends))
        ]
        said, chosen, _ = by_loss(output, Question(p=10, n=100, width=8, tolerance=0.5), {})
        ours, own = analysis.answer(
            [candidate(single.name, *single.loss_interval, single.work(10, 8)) for single in output]
        )
        assert (said, chosen and chosen.name) == (ours, own and own.name)
        seen[said] += 1
    assert min(seen[said] for said in ("replace", "undecided", "keep")) > 5


def test_answers_at_other_risks():
    """Of a loss of -0.9 ± 1 a twelfth is above the tolerance, of one of 2.5 ± 1 nearly all."""
    below, above = (gaussian(mean, mean - Z_90, mean + Z_90) for mean in (0.5 - 1.4, 2.5))
    cases = []
    for name, interval, loss in (("rings-a", below, 3.0), ("rings-b", below, -1.0), ("rings-c", above, 3.0)):
        only = analysis.Candidate("network", 1, **vars(interval), loss=loss, error=0.1, scores={})
        cases.append(analysis.Held(name, 64, "undecided", None, (only,)))
    lines = [[cell.strip() for cell in line.split("|")[2:-1]] for line in rows.risk_lines("all", cases)]
    assert lines[2] == ["3", "2", "0", "-", "0 of 0", "1 of 2", "0 of 1"]
    assert lines[4] == ["3", "0", "2", "8.1", "1 of 2", "1 of 2", "0 of 1"]
    assert [case.answer for case in rows.at_risk(cases, 0.1)] == ["replace", "replace", "keep"]


def held(answer, *losses, chosen=None, error=0.1):
    output = tuple(analysis.Candidate(f"{i}", 1, 0, -1, 1, 0.2, loss, error, {}) for i, loss in enumerate(losses))
    return analysis.Held("mnist-x", 64, answer, None if chosen is None else output[chosen], output)


def test_what_happened():
    assert held("keep", 2.0, 0.2).happened == "some below"
    assert held("keep", 2.0, 0.4).happened == "too near"  # 0.4 + Z_90 * 0.1 > 0.5
    assert held("keep", 2.0, 0.7).happened == "all above"
    assert not held("replace", 0.6, chosen=0).wrong and held("replace", 0.7, chosen=0).wrong
    assert held("replace", 0.6, chosen=0, error=0.02).wrong
    assert "2 of 4, 50% (7% to 93%)" == rows.rate(2, 4)  # Clopper and Pearson's, from their table
    assert rows.rate(0, 0) == "none of 0"


def test_the_table_by_number_of_samples_compares_the_same_networks(monkeypatch):
    twins = {"rings-a-n6000": "rings-a-n1000", "rings-b-n6000": "rings-b-n1000", "rings-c-n6000": "rings-c-n1000"}
    monkeypatch.setattr(report, "fresh_twins", lambda: twins)
    draws = {}
    for name, answer, losses in (
        ("a", ("undecided", "keep"), (2.0, 0.7)),
        ("b", ("undecided", "undecided"), (2.0, 0.4)),
        ("c", ("keep", None), (2.0, 0.2)),  # no verdict with more samples
    ):
        for n, said in zip((1000, 6000), answer):
            if said is not None:
                case = f"rings-{name}-n{n}"
                draws[case] = replace(held(said, *losses), case=case, n=n)
    lines = list(report._by_samples(draws))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert cells[1][:7] == ["1,000 to 1,000", "2", "2, 100%", "1", "0 of 1", "0 of 0", "0 of 0"]
    assert cells[2][:7] == ["6,000 to 6,000", "2", "1, 50%", "1", "1 of 1", "0 of 0", "0 of 1"]


# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """Two small cases in the place of all, and half of the candidates."""
    monkeypatch.setattr(candidates, "FAMILIES", ("hermite", "piecewise"))
    monkeypatch.setattr(candidates, "PLAIN_DEPTHS", (1,))
    output = [Case("mixed", "tanh", 0.3, 16, 300), Case("few_dimensions", "relu", 0.2, 16, 300)]
    monkeypatch.setitem(calibration_cases.LIMITS, 16, (300, 300, 3))
    for module in (calibration_cases, calibration_outcomes):
        monkeypatch.setattr(module, "cases", lambda: output)
    for name in ("SGD", "FULL"):
        settings, _ = getattr(calibration_outcomes, name)
        monkeypatch.setattr(calibration_outcomes, name, (settings | {"epochs": 1, "seeds": 2}, 1))
    return output


def run(folder, *stages):
    for stage in stages:
        calibrate.main(
            [
                stage,
                "--output_path",
                str(folder),
                "--budget",
                "0.3",
                "--cases",
                "first",
                "--packed",
                str(folder / "packed.json.gz"),
                "--figure",
                str(folder / "figure.png"),
            ]
        )


@pytest.mark.long
def test_from_the_cases_to_the_report(tiny, tmp_path, capsys):
    run(tmp_path, "outcomes", "verdicts", "sgd")
    lines = {stage: (tmp_path / f"{stage}.jsonl").read_text() for stage in ("outcomes", "verdicts", "sgd")}
    assert [json.loads(line)["case"] for line in lines["outcomes"].splitlines()] == [case.name for case in tiny]
    # a verdict that chose what was not trained, and a stage that was killed in a line
    verdicts = [json.loads(line) for line in lines["verdicts"].splitlines()]
    missing = "matched ntk: 1 hermite"
    (single,) = verdicts[0]["candidates"] = [
        single for single in verdicts[0]["candidates"] if single["name"] == missing
    ]
    single["points"] = [
        {
            "width": 16,
            "count": 300,
            "loss": -30.0,
            "seeds": 4,
            "apart": 40.0,
            "one": 1600.0,
            "common": 1.0,
            "of_samples": 0.1,
            "of_one_seed": 0.1,
        }
    ]
    assert missing not in json.loads(lines["outcomes"].splitlines()[0])["networks"]
    (tmp_path / "verdicts.jsonl").write_text("\n".join(map(json.dumps, verdicts)) + "\n" + '{"case": "cut sh')
    run(tmp_path, "outcomes", "verdicts", "pack", "report")
    outcomes = read_lines(tmp_path / "outcomes.jsonl")
    assert [record["case"] for record in outcomes] == [tiny[0].name, tiny[1].name, tiny[0].name]
    assert (
        list(outcomes[2]["networks"]) == [missing, calibration_outcomes.MAJORITY]
        and outcomes[2]["deq"] == outcomes[0]["deq"]
    )
    with gzip.open(tmp_path / "packed.json.gz") as file:
        packed = json.load(file)
    assert {name: len(records) for name, records in packed.items()} == {
        "outcomes": 2,
        "verdicts": 2,
        "again": 0,
        "sgd": 2,
        "left_out": 0,
    }
    assert len(packed["outcomes"][0]["networks"]) == len(outcomes[0]["networks"]) + 1
    text = capsys.readouterr().out
    assert "wrong replace" in text and "| kernel distance |" in text and "readouts by SGD" in text
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    before = (tmp_path / "outcomes.jsonl").read_bytes()
    run(tmp_path, "outcomes", "sgd")
    assert (tmp_path / "outcomes.jsonl").read_bytes() == before


def test_a_line_after_a_cut_one_is_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    calibrate.append(path, {"case": "a"})
    with path.open("a") as file:
        file.write('{"case": "b')
    calibrate.append(path, {"case": "c"})
    calibrate.append(path, {"case": "d"})
    assert [record["case"] for record in read_lines(path)] == ["a", "c", "d"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["report", "--packed", "nowhere.json.gz"], "nowhere.json.gz: cannot be read"),
        (["pack", "--output_path", "nowhere"], "nowhere: no records there"),
        (["verdict"], "invalid choice: 'verdict'"),
    ],
)
def test_bad_flags(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as failure:
        calibrate.main(arguments)
    assert failure.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())
