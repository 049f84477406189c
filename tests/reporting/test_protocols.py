"""Two protocols side by side: each claim's verdict on logs where it is known, and on real runs of both."""

import json
from statistics import median

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from deq_enn.experiments import command
from deq_enn.reporting import logs, protocols
from deq_enn.reporting.protocols import COMMON, OWN
from deq_enn.reporting.statistics import holm
from scripts import summarize
from tests.scripts.test_report import numbers, tables_of
from tests.scripts.test_summarize import write_run

RELU = "inn", "l_relu_enn", "relu_enn"
NOISE = np.array([0.9, -1.3, 0.4, 1.1, -0.2, -0.8, 1.4, -1.5])  # a seed each; their mean is 0


def write(folder, gaps, dim=64, seeds=8, models=RELU, spread=0.1, **settings):
    """A DEQ at 90%, its networks lower by so many points on average, with a noise of their own."""
    for index, (model, gap) in enumerate(zip(models, (0.0, *gaps))):
        for seed in range(seeds):
            points = 90 - gap - spread * np.roll(NOISE, 3 * index)[seed]
            write_run(folder, model, dim, seed, last=points / 100, **settings)


def own(rate=10.0):
    return {"own_rate": True, "lr": rate}


def both_of(folder):
    [result] = protocols.protocols(logs.load([folder]))
    return result


def rows_of(both, dim=64, margin=0.5):
    table = protocols.survival_table(both, margin)
    return [row[2:] for row in table.rows if row[0] == str(dim)]


@pytest.mark.parametrize(
    "gaps, equal, worse, nearer",
    [
        ((0.0, 2.0), "holds", "holds", "holds"),  # the paper's claim
        ((1.0, 2.0), "does not hold", "holds", "holds"),
        ((-1.0, -2.0), "does not hold", "does not hold, it is better", "holds"),
        ((-1.0, 0.02), "does not hold", "does not hold, equal within 0.5", "does not hold"),
        ((0.3, 0.0), "holds", "does not hold, equal within 0.5", "does not hold"),
        ((2.0, -1.0), "does not hold", "does not hold, it is better", "does not hold"),  # the DEQ is between them
        ((1.0, -2.0), "does not hold", "does not hold, it is better", "holds"),
        ((0.5, 0.52), "undecided", "holds", "undecided"),
    ],
)
def test_each_claim_where_its_verdict_is_known(tmp_path, gaps, equal, worse, nearer):
    """Under both protocols, of which the other one's gaps are those of the claim that holds."""
    write(tmp_path / "one", (0.0, 2.0))
    write(tmp_path / "own", gaps, **own())
    rows = rows_of(both_of(tmp_path))
    assert [row[0].partition(":")[0] for row in rows] == ["holds"] * 3
    assert [row[1].partition(":")[0] for row in rows] == [equal, worse, nearer]
    expected = {"holds": "both", "undecided": f"{COMMON}; {OWN} undecided"}
    words = [expected.get(each, f"{COMMON}; not {OWN}") for each in (equal, worse, nearer)]
    assert [row[2] for row in rows] == words


def test_noise_few_seeds_and_the_margin_leave_claims_open(tmp_path):
    write(tmp_path / "one", (0.2, 0.6))
    write(tmp_path / "own", (0.2, 0.6), spread=2.0, **own())
    assert [row[1].partition(":")[0] for row in rows_of(both_of(tmp_path))] == ["undecided"] * 3
    assert [row[0].partition(":")[0] for row in rows_of(both_of(tmp_path), margin=0.1)] == [
        "undecided",  # neither within 0.1 nor beyond
        "holds",
        "holds",
    ]
    few = tmp_path / "few"
    write(few / "one", (0.0, 2.0), seeds=3)
    write(few / "own", (0.0, 2.0), seeds=1, **own())
    assert [row[0].partition(":")[0] for row in rows_of(both_of(few))] == ["too few seeds (3 of 8)", "holds", "holds"]
    assert [row[1].partition(":")[0] for row in rows_of(both_of(few))] == [
        "too few seeds (1 of 8)",
        *["too few seeds (1 of 2)"] * 2,
    ]
    refuted = tmp_path / "refuted"
    write(refuted / "one", (3.0, 5.0), seeds=3)
    write(refuted / "own", (3.0, 5.0), seeds=3, **own())
    assert [row[2] for row in rows_of(both_of(refuted))] == ["neither", "both", "both"]


def p_equal(a, b):
    """Two one-sided tests of a difference within half a point."""
    sides = (ttest_1samp(a - b, s * 0.5, alternative="less" if s > 0 else "greater").pvalue for s in (1, -1))
    return max(sides)


def p_values(final, cells):
    """Of each claim, one for each (protocol, DEQ, match, unmatched network), not adjusted."""
    expected = {"equal": [], "worse": [], "nearer": []}
    for protocol, *three in cells:
        a, m, u = (final[protocol, model] for model in three)
        expected["equal"].append(p_equal(a, m))
        expected["worse"].append(ttest_rel(a, u).pvalue)
        expected["nearer"].append(max(ttest_rel(m, u).pvalue, ttest_rel(2 * a, m + u).pvalue))
    return expected


def shown_with(answers, adjusted):
    """How many answers say that a claim holds, with this p; those that do not must be undecided, with reason."""
    shown = 0
    for answer, p in zip(answers, adjusted):
        if answer.startswith("holds"):
            assert answer.endswith(f"p = {p:.2g}") and p < 0.05
            shown += 1
        elif "equal within" not in answer:
            assert answer.startswith("undecided") and p >= 0.05
    return shown


def test_the_p_values_are_those_of_scipy(tmp_path):
    """Both families at one width: adjusted over the four cells of each claim."""
    tanh = "tanh_inn", "h_tanh_enn", "tanh_enn"
    g = np.random.default_rng(1)
    final = {
        (p, m): 90 + g.normal(size=8) * 0.3 - (m == "relu_enn") * 0.8 for p in (COMMON, OWN) for m in (*RELU, *tanh)
    }
    for (protocol, model), values in final.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / protocol, model, 64, seed, last=value / 100, **own() if protocol == OWN else {})
    expected = p_values(final, [(p, *three) for three in (RELU, tanh) for p in (COMMON, OWN)])
    verdicts = protocols.verdicts(both_of(tmp_path), 64)
    shown = 0
    for name, claims in zip(expected, (verdicts[:2], verdicts[2:4], verdicts[4:])):
        answers = [said[protocol][1] for _, said in claims for protocol in (COMMON, OWN)]
        shown += shown_with(answers, holm(expected[name]))
    assert shown >= 5
    first = numbers(verdicts[0][1][COMMON][1].partition(":")[2])
    interval = ttest_rel(final[COMMON, "inn"], final[COMMON, "l_relu_enn"]).confidence_interval(0.95)
    difference = (final[COMMON, "inn"] - final[COMMON, "l_relu_enn"]).mean()
    assert first[:3] == pytest.approx([difference, *interval], abs=0.00501)


def test_a_difference_beyond_the_margin_is_tested_on_both_sides():
    """Which side it lies on is not known before."""
    for sign in (1, -1):
        gaps = sign * np.random.default_rng(0).normal(0.7, 0.3, 8)
        evidence = protocols.equal(
            {"deq": dict(enumerate(gaps)), "enn": dict.fromkeys(range(8), 0.0)}, "deq", "enn", 0.5
        )
        (_, same), (_, beyond) = evidence.tests
        expected = 2 * ttest_1samp(sign * gaps, 0.5, alternative="greater").pvalue
        assert beyond == pytest.approx(expected) and same == pytest.approx(1 - expected / 2)


@pytest.mark.parametrize("gaps", [(0.0, 0.0), (1.0, 1.0), (1.0, -1.0)])
def test_nearer_is_wrongly_said_of_equal_distances_in_at_most_a_twentieth(gaps):
    g, wrong, trials = np.random.default_rng(2), 0, 800
    for _ in range(trials):
        a, m, u = (dict(enumerate(90 - gap + s * g.normal(size=8))) for gap, s in zip((0, *gaps), (0.5, 0.1, 0.5)))
        [(_, p)] = protocols.nearer({"a": a, "m": m, "u": u}, "a", "m", "u", 0.5).tests
        wrong += p < 0.05
    assert wrong / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_only_what_differs_in_the_rate_alone_is_put_together(tmp_path):
    write(tmp_path / "own", (0.0, 1.0), **own(3.0))
    write(tmp_path / "one", (0.0, 1.0))
    write(tmp_path / "small", (0.0, 1.0), lr=0.1)
    write(tmp_path / "adam", (0.0, 1.0), opt="adam")
    write(tmp_path / "longer", (0.0, 1.0), epoch=2, epochs=2)
    write(tmp_path / "elsewhere", (0.0, 1.0), dim=16, asquare=0.5)
    result = protocols.protocols(logs.load([tmp_path]))
    assert sorted(both.common.settings["lr"] for both in result) == [0.1, 1.0]
    write(tmp_path / "wide" / "own", (0.0, 1.0), dim=32, asquare=0.5, **own())
    assert len(protocols.protocols(logs.load([tmp_path]))) == 2  # no width in common
    assert protocols.protocols(logs.load([tmp_path / "own"])) == []
    # a log from before a setting was there
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in ("own_rate", "ridge", "depth"):
            line.get("config", {}).pop(name, None)
    (tmp_path / "one" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(protocols.protocols(logs.load([tmp_path / "one", tmp_path / "own"]))) == 1


@pytest.mark.long
def test_real_runs_of_both_protocols(tmp_path, capsys):
    """The commands of a sweep, tiny: the tables are the logs, and the rates are those that were chosen."""
    flags = ["--model", "inn", "l_relu_enn", "relu_enn", "--dim", "8", "16", "--seed", "0", "1", "--epoch", "1"]
    for name, rate in (("one", "1"), ("own", "auto")):
        places = ["--output_path", str(tmp_path / "logs" / name), "--save_path", str(tmp_path / "saved" / name)]
        command.main([*flags, "--device", "cpu", "--lr", rate, *places])
    capsys.readouterr()
    summarize.main([str(tmp_path / "logs"), "--output_path", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    result = tables_of(printed)
    _, rows = next(v for k, v in result.items() if k.startswith("Test accuracy in %, gmm"))
    assert [row[0] for row in rows] == ["8"] * 3 + ["16"] * 3
    for row, (dim, model) in zip(rows, [(dim, model) for dim in (8, 16) for model in RELU]):
        for column, name in ((2, "one"), (3, "own")):
            files = [tmp_path / "logs" / name / place / f"{dim}_test_{model}_gmm.json" for place in ("", "seed_1")]
            last = [100 * json.loads(file.read_text())[-1] for file in files]
            assert row[column] == f"{np.mean(last):.2f} ± {np.std(last, ddof=1):.2f}"
        files = (tmp_path / "saved" / "own").glob(f"{dim}_{model}_gmm_*.rate.json")
        rates = [json.loads(file.read_text())["lr"] for file in files]
        assert len(rates) == 2 and row[4].split(" (")[0] == f"{median(rates):.3g}"
    _, rows = next(v for k, v in result.items() if k.startswith("Which claim survives which protocol"))
    assert [row[0] for row in rows] == ["8"] * 3 + ["16"] * 3 and "too few seeds (2 of 8)" in rows[0][2]
    assert "at lr 1 for all, or each at its own lr" in printed
    assert {file.stem for file in (tmp_path / "out").glob("*.png")} == {
        f"gmm-sgd{own}-{kind}" for own in ("", "-own-rate") for kind in ("epochs", "widths")
    }
    table = (tmp_path / "out" / "runs.csv").read_text().splitlines()
    column = table[0].split(",").index("own_lr")
    assert sum(bool(line.split(",")[column]) for line in table[1:]) == 12
