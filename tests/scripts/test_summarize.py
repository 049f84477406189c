"""Synthetic logs in a folder: the tables against a recomputation, what is refused, and what a figure draws."""

import csv
import io
import json
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from deq_enn.reporting import curves, logs, statistics, tables
from deq_enn.training.run_files import Config, check_output
from scripts import kernel_table, summarize
from tests.conftest import ROOT


def accuracies(model, dim, seed, split, epochs=3):
    """Any curve, another one for each name."""
    g = np.random.default_rng([*map(ord, model), dim, seed, split == "test"])
    return np.sort(g.uniform(0.5, 0.9, epochs)).tolist()


def write_run(folder, model, dim, seed, dataset="gmm", metrics=True, epochs=3, setup=1.0, last=None, **settings):
    """One run's logs as main.py writes them, with metrics.jsonl or, as by the authors' code, without.

    last : its final test accuracy, where it is not to be any.
    """
    place = folder / f"seed_{seed}" if seed else folder
    place.mkdir(parents=True, exist_ok=True)
    train, test = (accuracies(model, dim, seed, split, epochs) for split in ("train", "test"))
    test[-1] = test[-1] if last is None else last
    for split, values in (("train", train), ("test", test)):
        (place / f"{dim}_{split}_{model}_{dataset}.json").write_text(json.dumps(values))
    if metrics:
        settings = {"lr": 1.0, "epoch": 3, "batch_size": 10, "data": "x"} | settings
        config = Config(dataset=dataset, model=model, dim=dim, seed=seed, **settings)
        head = {"run": config.key, "dataset": dataset, "model": model, "dim": dim, "seed": seed}
        lines = [{**head, "event": "run", "config": vars(config), "setup_seconds": setup}]
        lines += [
            {**head, "event": "epoch", "epoch": e, "test_accuracy": test[e - 1], "seconds": 0.1 * e * setup}
            for e in range(1, epochs + 1)
        ]
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return test


def write_grid(folder, models=("inn", "l_relu_enn", "relu_enn"), dims=(16, 64), seeds=(0, 1, 2), **more):
    return {(m, d, s): write_run(folder, m, d, s, **more) for m in models for d in dims for s in seeds}


def cells(table):
    return {row[0]: dict(zip(table.header[1:], row[1:])) for row in table.rows}


def refused(capsys, *paths, output):
    with pytest.raises(SystemExit) as stop:
        summarize.main([*map(str, paths), "--output_path", str(output)])
    assert stop.value.code == 2 and not output.exists()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("summarize.py: error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.slow
def test_the_tables_are_the_logs(tmp_path, capsys):
    tests = write_grid(tmp_path / "a")
    summarize.main([str(tmp_path), "--output_path", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    [experiment] = logs.load([tmp_path / "a"])
    accuracy, difference, cost = tables.tables(experiment)
    for dim in (16, 64):
        final = {m: 100 * np.array([tests[m, dim, s][-1] for s in (0, 1, 2)]) for m in experiment.models}
        for model, values in final.items():
            shown = cells(accuracy)[str(dim)][tables.name_of(model)]
            assert shown == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
        for enn, name in (("l_relu_enn", "matched L-ReLU-ENN"), ("relu_enn", "unmatched ReLU-ENN")):
            low, high = ttest_rel(final["inn"], final[enn]).confidence_interval(0.95)
            text = f"{(final['inn'] - final[enn]).mean():+.2f} [{low:+.2f}, {high:+.2f}]".replace("-", "−")
            assert cells(difference)[str(dim)][f"ReLU-DEQ − {name}"] == text and text in printed
    assert cost.rows[0] == [
        "16",
        "ReLU-DEQ",
        "matched L-ReLU-ENN",
        "1",
        "1",
        "1.0",
        "0.2",
        "0.2",
        "1.0",
    ]  # medians of 0.1, 0.2 and 0.3
    assert printed.startswith((tmp_path / "out" / "summary.md").read_text())
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(r["model"], int(r["dim"]), int(r["seed"])): float(r["test_accuracy"]) for r in rows} == {
        name: values[-1] for name, values in tests.items()
    }
    assert {(r["lr"], r["opt"], r["dataset"]) for r in rows} == {("1.0", "sgd", "gmm")}


def test_set_up_is_that_of_one_attempt_and_cost_is_a_ratio(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "inn", 16, seed, setup=6.0)
        write_run(tmp_path, "l_relu_enn", 16, seed, setup=2.0)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    again = json.loads(lines[0]) | {"setup_seconds": 11.0}  # resumed: the sum of both attempts
    killed = '{"event": "epo'
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(again), killed]))
    [experiment] = logs.load([tmp_path])
    cost = ["16", "ReLU-DEQ", "matched L-ReLU-ENN", "6", "2", "3.0", "1.2", "0.4", "3.0"]
    assert tables.cost_table(experiment).rows == [cost]


def test_where_every_weight_is_trained_no_features_are_compared(tmp_path):
    for model in ("inn", "l_relu_enn"):
        write_run(tmp_path, model, 16, 0, train="full")
    [experiment] = logs.load([tmp_path])
    table = tables.cost_table(experiment)
    assert table.header == ["width", "DEQ", "ENN", "epoch, DEQ", "epoch, ENN", "epoch, ratio"] and not table.note
    assert [len(row) for row in table.rows] == [6]


def test_the_authors_logs(tmp_path):
    """No metrics.jsonl, percentages, a dataset whose name ends in another's."""
    for model in ("inn", "l_relu_enn"):
        for dim in (16, 64):
            write_run(tmp_path, model, dim, 0, "fashion_mnist", metrics=False)
            file = tmp_path / f"{dim}_test_{model}_fashion_mnist.json"
            file.write_text(json.dumps([100 * a for a in json.loads(file.read_text())]))
    [experiment] = logs.load([tmp_path])
    assert experiment.dataset == "fashion_mnist"
    assert experiment.models == ["inn", "l_relu_enn"] and experiment.dims == [16, 64]
    accuracy, difference = tables.tables(experiment)  # and no cost
    values = [100 * accuracies(m, 64, 0, "test")[-1] for m in ("inn", "l_relu_enn")]
    assert accuracy.rows[1] == ["64", *(f"{v:.2f}" for v in values)]
    assert difference.rows[1] == ["64", f"{values[0] - values[1]:+.2f}".replace("-", "−")]  # one seed: no interval


def test_pairs_of_convolutional_networks(tmp_path):
    models = "conv_deq-relu-pool", "matched_conv_enn-relu-pool-ck", "plain_conv-relu-pool-depth3", "plain_conv-relu"
    write_grid(tmp_path, models, (16,), (0,), metrics=False)
    [experiment] = logs.load([tmp_path])
    assert tables.pairs_of(experiment) == [(models[0], models[1]), (models[0], models[2])]
    assert [tables.is_matched(model) for model in models[1:]] == [True, False, False]


def test_pairs_of_any_activation(tmp_path):
    models = (
        "deq-leaky_relu",
        "deq-elu",
        "matched_enn-leaky_relu-ck",
        "matched_enn-leaky_relu-ntk",
        "matched_enn-elu-ck",
        "unmatched_enn-leaky_relu",
        "matched_enn-relu-ck",
        "mine",
    )
    write_grid(tmp_path, models, (16,), (0,), metrics=False)
    [experiment] = logs.load([tmp_path])
    assert tables.pairs_of(experiment) == [
        ("deq-elu", "matched_enn-elu-ck"),
        *(
            ("deq-leaky_relu", m)
            for m in ("matched_enn-leaky_relu-ck", "matched_enn-leaky_relu-ntk", "unmatched_enn-leaky_relu")
        ),
    ]
    assert tables.name_of("unmatched_enn-leaky_relu") == "unmatched leaky_relu-ENN"
    assert tables.name_of("mine") == "mine"


def test_a_deq_is_compared_with_unmatched_networks_of_every_depth(tmp_path):
    models = "inn", "relu_enn", "relu_enn-depth3", "deq-relu", "unmatched_enn-relu-depth1", "unmatched_enn-relu"
    write_grid(tmp_path, models, (16,), (0,), metrics=False)
    [experiment] = logs.load([tmp_path])
    assert set(tables.pairs_of(experiment)) == {
        *(("inn", enn) for enn in ("relu_enn", "relu_enn-depth3")),
        *(("deq-relu", enn) for enn in ("unmatched_enn-relu-depth1", "unmatched_enn-relu")),
    }
    assert not any(tables.is_matched(enn) for _, enn in tables.pairs_of(experiment))
    assert tables.name_of("relu_enn-depth3") == "unmatched ReLU-ENN of depth 3"
    assert tables.name_of("unmatched_enn-relu-depth1") == "unmatched relu-ENN of depth 1"


def test_a_deq_is_compared_with_itself_stopped_and_with_a_penalty(tmp_path):
    """The settings of its solver do not set it apart from the explicit networks of its grid."""
    given = {"train": "full", "lenient": True}
    for model, settings in {
        "inn": given,
        "inn-jacobian0.1": given | {"jacobian": "0.1"},
        "inn-steps10": {"steps": 10},
        "inn-steps2": {"steps": 2},
        "l_relu_enn": {},
        "linear_pcdeq_1": given,
        "linear_pcdeq_1-steps1": {"steps": 1},
    }.items():
        write_run(tmp_path, model, 16, 0, **({"train": "full"} | settings))
    [experiment] = logs.load([tmp_path])
    assert experiment.models[:5] == ["inn", "inn-jacobian0.1", "inn-steps2", "inn-steps10", "l_relu_enn"]
    explicit = ("l_relu_enn", "inn-steps2", "inn-steps10")
    assert tables.pairs_of(experiment) == [
        *(("inn", enn) for enn in explicit),
        *(("inn-jacobian0.1", enn) for enn in explicit),
        ("linear_pcdeq_1", "linear_pcdeq_1-steps1"),
    ]
    names = [tables.name_of(model) for model in ("inn-jacobian0.1", "inn-steps10", "linear_pcdeq_1-steps1")]
    assert names == ["ReLU-DEQ, Jacobian penalty 0.1", "ReLU-DEQ, 10 steps", "linear_pcdeq_1, 1 step"]
    assert [row[2] for row in tables.cost_table(experiment).rows][:3] == [
        *("matched L-ReLU-ENN", "ReLU-DEQ, 2 steps", "ReLU-DEQ, 10 steps")
    ]
    assert curves.looks(experiment)["inn-steps2"]["linestyle"] == "-."


def test_pairs_only_over_common_seeds():
    result = statistics.compare({0: 1.0, 1: 4.0, 2: 9.0}, {1: 1.0, 2: 2.0, 3: 50.0})
    assert (result.mean, result.n) == (5.0, 2)
    assert result.half == pytest.approx(12.706205 * np.sqrt(8) / np.sqrt(2), rel=1e-6)
    alone = statistics.compare({0: 1.0}, {0: 2.0})
    assert (alone.mean, alone.n) == (-1.0, 1) and np.isnan([alone.half, alone.p_difference, alone.p_equality]).all()
    assert statistics.compare({0: 1.0}, {}) is None


# ---------------------------------------------------------------------------------------------------------------
# tests of a difference and of equality


@pytest.mark.parametrize("mean, spread", [(0.0, 0.3), (0.1, 0.05), (-0.45, 0.2), (0.7, 0.1), (0.02, 3.0)])
@pytest.mark.parametrize("n", [2, 8, 20])
def test_both_tests_are_those_of_scipy(mean, spread, n):
    g = np.random.default_rng([n, int(1000 * spread)])
    other = g.uniform(80, 90, n)
    single = other + mean + spread * g.standard_normal(n)
    result = statistics.compare(dict(enumerate(single)), dict(enumerate(other)), 0.5)
    assert result.p_difference == pytest.approx(ttest_rel(single, other).pvalue, rel=1e-8)
    above = ttest_1samp(single - other, -0.5, alternative="greater").pvalue
    below = ttest_1samp(single - other, 0.5, alternative="less").pvalue
    assert result.p_equality == pytest.approx(max(above, below), rel=1e-8)
    for half, level in ((result.half, 0.95), (result.half_90, 0.90)):
        interval = ttest_rel(single, other).confidence_interval(level)
        assert (result.mean - half, result.mean + half) == pytest.approx((interval.low, interval.high))
    # the interval and the test say the same
    assert (result.p_equality < 0.05) == (-0.5 < result.mean - result.half_90 and result.mean + result.half_90 < 0.5)


def test_seeds_that_all_agree():
    def of(difference):
        result = statistics.compare({s: 90.0 + difference for s in range(8)}, {s: 90.0 for s in range(8)})
        return result.p_difference, result.p_equality

    assert (of(0.0), of(0.25), of(-0.25), of(0.5), of(1.0)) == ((1, 0), (0, 0), (0, 0), (0, 1), (0, 1))


def test_few_seeds_that_agree_to_the_last_digit_show_nothing():
    """Accuracies are counts: two of two differences are the same by chance, and no error is left to divide by."""
    pair = [{0: 90.13, 1: 90.27}, {0: 90.11, 1: 90.25}]
    few = statistics.compare(*pair, 0.5)
    assert few.mean == pytest.approx(0.02) and few.p_difference == few.p_equality == 1
    many = statistics.compare({s: 90.13 for s in range(8)}, {s: 90.11 for s in range(8)}, 0.5)
    assert many.p_difference == many.p_equality == 0


def test_few_seeds_hold_zero_but_do_not_show_equality():
    """What the README once claimed of three seeds: an interval that holds 0, of a difference that may be a point."""
    three = statistics.compare({0: 90.1, 1: 89.0, 2: 91.0}, {0: 90.0, 1: 90.0, 2: 90.0})
    assert abs(three.mean) < three.half and three.p_equality > 0.2
    assert statistics.in_words(three, three.p_difference, 0.0) == "not enough seeds (3 of 8)"


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.2, 0.001, 0.6, 0.03], [0.5, 0.5], [0.0, 1.0], [0.02]])
def test_holm_is_the_closure_of_bonferroni(p_values):
    """By definition: an adjusted p-value is the largest Bonferroni p of all the sets of hypotheses that hold it."""
    everything = range(len(p_values))
    for index, adjusted in enumerate(statistics.holm(p_values)):
        sets = [s for size in everything for s in combinations(everything, size + 1) if index in s]
        assert adjusted == pytest.approx(min(1.0, max(len(s) * min(p_values[i] for i in s) for s in sets)))


def made_up(folder, differences, seeds):
    """Logs of DEQs and matched networks whose final accuracies differ by (mean, spread) points, a width a pair."""
    for dim, (mean, spread) in differences.items():
        for seed in range(seeds):
            noise = np.linspace(-1.5, 1.5, seeds)[seed]
            for model, value in (("inn", 90.0), ("l_relu_enn", 90.0 - mean - spread * noise)):
                place = folder / f"seed_{seed}" if seed else folder
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{dim}_test_{model}_gmm.json").write_text(json.dumps([value]))
    [experiment] = logs.load([folder])
    return experiment


def test_equality_is_claimed_where_it_is_shown(tmp_path):
    cases = {16: (0.0, 0.1), 32: (0.2, 0.02), 64: (2.0, 0.1), 128: (0.0, 5.0), 256: (-0.8, 0.02)}
    experiment = made_up(tmp_path / "eight", cases, 8)
    table = tables.equality_table(experiment)
    assert {row[0]: row[-1] for row in table.rows} == {
        "16": "equal within 0.5",
        "32": "equal within 0.5, yet higher",
        "64": "higher",
        "128": "undecided",
        "256": "lower",
    }
    result = list(tables.differences(experiment, "inn", "l_relu_enn").values())
    for column, which in ((5, "p_difference"), (6, "p_equality")):
        adjusted = statistics.holm([getattr(paired, which) for paired in result])
        assert [row[column] for row in table.rows] == [f"{p:.2g}" for p in adjusted]
    assert "over the 5 rows" in table.note and table.rows[0][2] == "8"
    wide = {row[0]: row[-1] for row in tables.equality_table(experiment, margin=3.0).rows}
    assert wide["64"] == "equal within 3, yet higher"
    few = made_up(tmp_path / "three", cases, 3)
    assert tables.equality_table(few) is None
    assert "Not enough seeds for a claim of equality (3 of 8)" in tables.difference_table(few).note


def test_a_row_with_too_few_seeds_is_not_counted(tmp_path):
    made_up(tmp_path, {16: (0.0, 0.1)}, 8)
    [short, enough] = tables.equality_table(made_up(tmp_path, {8: (0.0, 0.1)}, 3)).rows
    assert short[-1] == "not enough seeds (3 of 8)" and short[5:7] == ["–", "–"]
    assert enough[-1] == "equal within 0.5"
    assert "over the 1 row tested" in tables.equality_table(logs.load([tmp_path])[0]).note


@pytest.mark.slow
def test_the_margin_of_the_command(tmp_path, capsys):
    made_up(tmp_path / "a", {16: (0.3, 0.02)}, 8)
    for flags, word in (([], "equal within 0.5, yet higher"), (["--margin", "0.1"], "| higher |")):
        summarize.main([str(tmp_path / "a"), "--output_path", str(tmp_path / "out"), *flags])
        assert word in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        summarize.main([str(tmp_path / "a"), "--margin", "0"])
    assert stop.value.code == 2 and "between 0 and 100" in capsys.readouterr().err


@pytest.mark.long
def test_settings_make_tables_of_their_own_and_machines_may_share_one(tmp_path):
    write_grid(tmp_path / "sgd0", seeds=(0,))
    write_grid(tmp_path / "sgd1", seeds=(1, 2))  # another machine's share of the same grid
    write_grid(tmp_path / "adam", opt="adam", lr=0.001)
    write_grid(tmp_path / "mnist", dataset="mnist")
    experiments = logs.load([tmp_path])
    assert [(e.dataset, e.settings["opt"], len(e.runs)) for e in experiments] == [
        ("gmm", "adam", 18),
        ("gmm", "sgd", 18),
        ("mnist", "sgd", 18),
    ]
    assert len(set(curves.write_figures(experiments, tmp_path / "out").values())) == 6


def test_a_folder_of_outputs_may_be_named_by_its_seed(tmp_path):
    """As where each seed is run into `--output_path seed_s`: the log of seed 0 lies in the folder itself."""
    for seed in (0, 1):
        write_grid(tmp_path / f"seed_{seed}", seeds=(seed,))
    (experiment,) = logs.load([tmp_path])
    assert len(experiment.runs) == 12 and {seed for *_, seed in experiment.runs} == {0, 1}


def test_an_unfinished_run_is_named_and_left_out(tmp_path):
    write_grid(tmp_path, ("inn",), (16,), (0, 1))
    write_run(tmp_path, "inn", 16, 2, epochs=2)
    [experiment] = logs.load([tmp_path])
    table = tables.accuracy_table(experiment)
    assert "2 seeds" in table.title and table.note == "Unfinished and left out: inn dim 16 seed 2 (2 epochs)."
    alone = tmp_path / "alone"
    write_run(alone, "inn", 16, 0, epochs=1)
    with pytest.raises(logs.LogError, match="no run is finished"):
        logs.load([alone])


@pytest.mark.slow
def test_the_tables_after_an_earlier_epoch(tmp_path, capsys):
    """Runs of 3 epochs as they stood after 2 are runs of 2 epochs; an unfinished one is left out all the same."""
    tests = write_grid(tmp_path / "a", dims=(16,))
    write_run(tmp_path / "a", "inn", 16, 3, epochs=2)
    summarize.main([str(tmp_path / "a"), "--output_path", str(tmp_path / "out"), "--epoch", "2"])
    printed = capsys.readouterr().out
    values = 100 * np.array([tests["inn", 16, s][1] for s in (0, 1, 2)])
    assert f"| 16 | {values.mean():.2f} ± {values.std(ddof=1):.2f} |" in printed and "lr 1, after 2 epochs" in printed
    [experiment] = logs.load([tmp_path / "a"])
    [axis] = curves.epoch_figure(logs.first_epochs(experiment, 2)).axes
    assert all(list(line.get_xdata()) == [1, 2] for line in axis.lines)
    assert "have no more" in refused(capsys, tmp_path / "a", "--epoch", "4", output=tmp_path / "other")


def test_several_epochs_are_tested_together_and_runs_may_be_chosen(tmp_path, capsys):
    write_grid(tmp_path / "a", dims=(16, 64), seeds=range(8))
    chosen = "--dim", "64", "--model", "inn", "l_relu_enn"
    summarize.main([str(tmp_path / "a"), "--output_path", str(tmp_path / "out"), "--epoch", "3", "1", *chosen])
    printed = capsys.readouterr().out
    assert "unmatched" not in printed and "| 16 |" not in printed and "after 3 epochs" in printed
    [experiment] = logs.chosen(logs.load([tmp_path / "a"]), chosen[3:], [64])
    rows = tables.equality_table(experiment, epochs=(1, 3)).rows
    assert [row[0] for row in rows] == ["1", "3"] and all(" | ".join(row) in printed for row in rows)
    alone = [tables.equality_table(logs.first_epochs(experiment, epoch)).rows[0] for epoch in (1, 3)]
    for column in (5, 6):  # p-values by Holm's method over both
        p = statistics.holm([float(row[column]) for row in alone])
        assert [float(row[column + 1]) for row in rows] == pytest.approx(p, rel=0.1)
    for flag, words in (("--dim", "these logs have 16, 64"), ("--model", "these logs have inn, l_relu_enn, relu_enn")):
        assert words in refused(capsys, tmp_path / "a", flag, "7", output=tmp_path / "other")


@pytest.mark.parametrize(
    "line",
    [
        {"step": 1, "loss": 2},
        {"event": "run"},
        {"event": "run", "run": "x", "dataset": "gmm", "model": "inn", "dim": 16, "seed": 0},
        {"event": "epoch", "run": "x", "dataset": "gmm", "model": "inn", "dim": 16, "seed": 0},
        ["a list"],
    ],
)
def test_lines_of_another_program_in_metrics_are_passed_over(tmp_path, line):
    write_run(tmp_path / "a", "inn", 16, 0)
    before = logs.load([tmp_path / "a"])
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert logs.load([tmp_path / "a"]) == before
    check_output([Config(dataset="gmm", model="inn", dim=8, lr=1.0, epoch=1, batch_size=1)], tmp_path / "a")
    with pytest.raises(ValueError, match="no kernel machines"):
        kernel_table.machines(tmp_path / "a")


def test_nothing_to_read(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.json").write_text("{}")
    for name, words in (("empty", "no accuracy logs"), ("other", "no accuracy logs"), ("nowhere", "no such folder")):
        message = refused(capsys, tmp_path / name, output=tmp_path / "out")
        assert words in message and str(tmp_path / name) in message


@pytest.mark.parametrize(
    "content, words",
    [
        ("[0.5, 0.6", "broken JSON"),
        ('{"a": 1}', "not a list of accuracies"),
        ("[]", "not a list"),
        ("[0.5, NaN]", "not a list"),
        ("[0.5, 120]", "not a list"),
        ("[true]", "not a list"),
    ],
)
def test_broken_logs_are_named(tmp_path, capsys, content, words):
    write_grid(tmp_path / "a")
    (tmp_path / "a" / "seed_1" / "64_test_inn_gmm.json").write_text(content)
    message = refused(capsys, tmp_path / "a", output=tmp_path / "out")
    assert words in message and "seed_1/64_test_inn_gmm.json" in message


def test_two_configurations_under_one_name(tmp_path, capsys):
    write_run(tmp_path / "lr", "inn", 16, 0)
    write_run(tmp_path / "lr", "inn", 16, 1, lr=0.5)
    message = refused(capsys, tmp_path / "lr", output=tmp_path / "out")
    assert "inn gmm dim 16 seed 1" in message and "lr 0.5 and 1.0" in message
    write_run(tmp_path / "family", "matched_enn-elu-ck", 16, 0, family="auto")
    write_run(tmp_path / "family", "matched_enn-elu-ck", 64, 0, family="hermite")
    assert "family hermite and auto" in refused(capsys, tmp_path / "family", output=tmp_path / "out")
    write_run(tmp_path / "foreign", "inn", 16, 0)
    write_run(tmp_path / "foreign", "inn", 16, 1, metrics=False)
    assert "without a configuration" in refused(capsys, tmp_path / "foreign", output=tmp_path / "out")
    write_run(tmp_path / "overwritten", "inn", 16, 0)
    (tmp_path / "overwritten" / "16_test_inn_gmm.json").write_text("[0.1, 0.2, 0.3]")
    message = refused(capsys, tmp_path / "overwritten", output=tmp_path / "out")
    assert "metrics.jsonl tell of two configurations" in message and "inn gmm dim 16 seed 0" in message
    write_run(tmp_path / "twice", "inn", 16, 0)
    for split in ("train", "test"):
        (tmp_path / "twin").mkdir(exist_ok=True)
        (tmp_path / "twin" / f"16_{split}_inn_gmm.json").write_text("[0.1, 0.2, 0.3]")
    lines = (tmp_path / "twice" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "twin" / "metrics.jsonl").write_text(lines[0] + "\n")
    assert "with other numbers" in refused(capsys, tmp_path / "twice", tmp_path / "twin", output=tmp_path / "out")


def test_a_train_log_alone(tmp_path, capsys):
    write_run(tmp_path / "a", "inn", 16, 0)
    (tmp_path / "a" / "16_test_inn_gmm.json").unlink()
    assert "without one of the test accuracy" in refused(capsys, tmp_path / "a", output=tmp_path / "out")


def test_curves_and_intervals_that_are_drawn(tmp_path):
    tests = write_grid(tmp_path)
    [experiment] = logs.load([tmp_path])
    axes = curves.epoch_figure(experiment).axes
    assert [ax.get_title() for ax in axes] == ["width 16", "width 64"]
    drawn = {line.get_label(): line.get_ydata() for line in axes[1].lines}
    expected = np.mean([tests["l_relu_enn", 64, s] for s in (0, 1, 2)], 0)
    assert np.allclose(drawn["matched L-ReLU-ENN"], 100 * expected)
    left, right = curves.width_figure(experiment).axes
    assert len(left.containers) == 3 and len(right.containers) == 2
    segments = right.containers[0].lines[2][0].get_segments()
    a, b = ([100 * tests[m, 64, s][-1] for s in (0, 1, 2)] for m in ("inn", "l_relu_enn"))
    assert np.allclose([y for _, y in segments[1]], ttest_rel(a, b).confidence_interval(0.95))


def test_event_files_need_their_package(tmp_path, capsys, monkeypatch):
    (tmp_path / "tb" / "16_inn_gmm").mkdir(parents=True)
    (tmp_path / "tb" / "16_inn_gmm" / "events.out.tfevents.1").touch()
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    assert "pip install tensorboard" in refused(capsys, tmp_path / "tb", output=tmp_path / "out")


def test_event_files(tmp_path):
    pytest.importorskip("tensorboard", reason="the optional package tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    for seed in (0, 1):
        with SummaryWriter(str(tmp_path / (f"seed_{seed}" if seed else ".") / "16_inn_gmm")) as writer:
            for epoch in range(3):
                writer.add_scalar("train/accuracy", 0.5 + epoch / 8, epoch)
                writer.add_scalar("test/accuracy", 0.25 + epoch / 8 + seed / 16, epoch)
                writer.add_scalar("test/loss", 3.0, epoch)
    [experiment] = logs.load([tmp_path])
    assert experiment.runs["inn", 16, 1].test == (0.3125, 0.4375, 0.5625)
    assert experiment.runs["inn", 16, 0].train[-1] == 0.75


def test_help_and_bad_flags_do_not_import_torch():
    code = (
        "import sys; from scripts import summarize\ntry: summarize.main([{}])\n"
        "except SystemExit as e: print(e.code, 'torch' in sys.modules)"
    )
    for flag, status in (("'--help'", "0"), ("", "2")):
        done = subprocess.run([sys.executable, "-c", code.format(flag)], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == f"{status} False"


def test_the_csv_has_what_each_split_ended_with(tmp_path):
    test = write_run(tmp_path, "inn", 16, 0)
    tables.write_csv(logs.load([tmp_path]), file := io.StringIO())
    (row,) = csv.DictReader(file.getvalue().splitlines())
    assert float(row["test_accuracy"]) == test[-1] and row["epochs"] == "3" and float(row["epoch_seconds"]) == 0.2
    assert float(row["train_accuracy"]) == accuracies("inn", 16, 0, "train")[-1] != test[-1]


def test_a_width_that_a_network_lacks_does_not_count_as_no_seeds(tmp_path):
    write_grid(tmp_path)
    write_run(tmp_path, "inn", 128, 0)
    [experiment] = logs.load([tmp_path])
    assert tables.seeds_of(experiment, [16, 64]) == "3 seeds"
    assert tables.seeds_of(experiment, experiment.dims) == "1 to 3 seeds"


def test_a_list_with_a_value_above_1_is_in_percent():
    assert logs.as_fractions([0.25, 1.0], "log") == (0.25, 1.0) and logs.as_fractions([1, 50], "log") == (0.01, 0.5)
