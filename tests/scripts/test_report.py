"""The report: one page that needs no other file, every number recomputed from the logs."""

import html
import json
import re
import sys

import numpy as np
import pytest
from scipy.stats import ttest_rel

from deq_enn.names import MODELS
from deq_enn.reporting.page import inline
from scripts import report
from scripts.reproduction import claims, findings, records as stage_records
from scripts.reproduction.stages import Stage
from tests.conftest import ROOT
from tests.helpers.pages import check_page, check_widths
from tests.scripts.test_summarize import made_up, write_grid


def test_a_report_of_nothing(tmp_path, capsys):
    for content, words in (
        (None, "nothing to report, no stages.json"),
        ("{", "is damaged"),
        ('{"stages": {}}', "no stage has been run"),
        ('{"stages": {"a": {}}}', "is damaged"),
    ):
        if content is not None:
            (tmp_path / "stages.json").write_text(content)
        with pytest.raises(SystemExit) as stop:
            report.main([str(tmp_path)])
        captured = capsys.readouterr()
        assert stop.value.code == 2 and words in captured.err and captured.err.count("\n") == 1
        assert not list(tmp_path.glob("report.*"))


def tables_of(markdown):
    """{title: (header, [rows])} of the Markdown tables."""
    result = {}
    for title, body in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", markdown, re.M):
        lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines()]
        result[title] = lines[0], lines[2:]
    return result


def numbers(text):
    return [float(x) for x in re.findall(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-"))]


def stage(out, name, kind="figure", data="gmm"):
    return Stage(name, kind, [sys.executable, f"{name}.py"], [], 10.0, data, str(out / name))


def write_figure(out, name, numbers):
    from matplotlib import pyplot as plt

    (out / "figures").mkdir(parents=True, exist_ok=True)
    (out / "figures" / f"{name}.json").write_text(json.dumps(numbers))
    plt.figure(figsize=(3.6, 3)).savefig(out / "figures" / f"{name}.png")
    plt.close()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A report of synthetic logs and of the numbers of one figure."""
    out = tmp_path_factory.mktemp("report")
    accuracies = write_grid(out / "mnist-sgd", MODELS, (16, 64), (0, 1, 2), dataset="mnist")
    done = [
        stage(out, "gmm_one_layer_matching"),
        stage(out, "mnist-sgd", "sweep", "mnist"),
        stage(out, "gmm-adam", "sweep"),
    ]
    errors = {"matched": [[0.04, 0.01], [0.02, 0.005]], "unmatched": [[0.5, 0.5], [0.5, 0.5]]}
    write_figure(
        out,
        "gmm_one_layer_matching",
        {"settings": {"n": [100, 200]}, "errors": errors, "slope": [-1.0, 0.25], "overlaps": [0.9999, 0.99]},
    )
    records = stage_records.Records(out / "stages.json")
    for index, single in enumerate(done):
        records.note(single, 10.0 + index, 10**9, status=("done", "done", "failed")[index], error=("", "", "no")[index])
    records.save(done)
    return report.write_report(out), accuracies, done


def test_the_page_needs_nothing_else(reported):
    page, _, done = reported
    text = page.read_text()
    check_page(text, pictures=3)
    for stage in done[:2]:
        assert html.escape(stage_records.shown(stage.command)) in text
    for word in ("torch", "numpy", "scipy", "processor", "cores", "memory", "peak memory 1.00 GB", "11.0 s"):
        assert word in text


@pytest.mark.slow
def test_nothing_lies_beyond_the_windows_edge(reported, tmp_path):
    check_widths(reported[0], tmp_path)


def test_every_number_of_the_report_is_that_of_the_logs(reported):
    page, accuracies, _ = reported
    text = page.with_suffix(".md").read_text()
    result = tables_of(text)
    order = ("inn", "l_relu_enn", "relu_enn", "tanh_inn", "h_tanh_enn", "tanh_enn")
    final = {(m, d): 100 * np.array([accuracies[m, d, s][-1] for s in (0, 1, 2)]) for m in order for d in (16, 64)}
    header, rows = next(v for k, v in result.items() if k.startswith("Test accuracy"))
    assert [numbers(" ".join(row)) for row in rows] == [
        [d, *(round(x, 2) for m in order for x in (final[m, d].mean(), final[m, d].std(ddof=1)))] for d in (16, 64)
    ]
    header, rows = next(v for k, v in result.items() if k.startswith("DEQ − ENN"))
    for d, row in zip((16, 64), rows):
        expected = [d]
        for a, b in (("inn", "l_relu_enn"), ("inn", "relu_enn"), ("tanh_inn", "h_tanh_enn"), ("tanh_inn", "tanh_enn")):
            interval = ttest_rel(final[a, d], final[b, d]).confidence_interval(0.95)
            expected += [(final[a, d] - final[b, d]).mean(), *interval]
        assert numbers(" ".join(row)) == [pytest.approx(x, abs=0.00501) for x in expected]
    header, rows = next(v for k, v in result.items() if k.startswith("Cost"))
    assert [row[3:] for row in rows] == [["1", "1", "1.0", "0.2", "0.2", "1.0"]] * 4
    header, rows = result["Relative spectral error, geometric mean over draws"]
    assert [numbers(" ".join(row[2:])) for row in rows] == [
        [-1.0, 0.25, 0.02, 100, 0.01, 200],
        [0.0, 0.0, 0.5, 100, 0.5, 200],
    ]
    assert "n = 200 the matched network's kernel is 0.01 from the DEQ's, with slope −1.00, the unmatched" in text
    assert "within 0.01 of 1" in text
    assert text.count("too few seeds for a claim of equality") == 2 and "(3 of 8)" in text
    _, rows = next(v for k, v in result.items() if k.startswith("Stages"))
    assert [row[1:4] for row in rows] == [
        ["done", "10.0", "1.00"],
        ["done", "11.0", "1.00"],
        ["failed", "12.0", "1.00"],
        ["", "33.0", "1.00"],
    ]
    # the page shows the same cells
    shown = [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page.read_text())]
    for _, rows in result.values():
        for cell in (cell for row in rows for cell in row):
            assert html.unescape(re.sub("<[^>]+>", "", inline(cell))) in map(html.unescape, shown)


def test_the_report_claims_equality_where_eight_seeds_show_it(tmp_path):
    for seeds, words in (
        (8, "Two one-sided tests: ReLU-DEQ − matched L-ReLU-ENN: equal within 0.5."),
        (3, "Two one-sided tests: too few seeds for a claim of equality."),
    ):
        experiment = made_up(tmp_path / str(seeds), {16: (2.0, 0.1), 64: (0.0, 0.1)}, seeds)
        assert findings.sweep_finding(experiment).endswith(words)


@pytest.mark.long
def test_both_protocols_stand_side_by_side(tmp_path):
    """Each data set's two sweeps with SGD, and not the one with Adam; every claim in the first table."""
    names = "mnist-sgd", "mnist-adam", "mnist-sgd-own-rate"
    settings = {"lr": 1.0}, {"opt": "adam", "lr": 0.001}, {"own_rate": True, "lr": 30.0}
    done = [stage(tmp_path, name, "sweep", "mnist") for name in names]
    records = stage_records.Records(tmp_path / "stages.json")
    for single, more in zip(done, settings):
        write_grid(tmp_path / single.name, MODELS, (16, 64), (0, 1, 2), dataset="mnist", **more)
        records.note(single, 1.0, 10**9, status="done", error="")
    records.save(done)
    text = report.write_report(tmp_path).with_suffix(".md").read_text()
    result = tables_of(text)
    _, rows = next(v for k, v in result.items() if k.startswith("Test accuracy in %, mnist"))
    assert len(rows) == 12 and {row[-1] for row in rows} == {"30"}
    [(_, rows)] = [v for k, v in result.items() if k.startswith("Which claim survives which protocol")]
    assert [row[0] for row in rows] == ["16"] * 6 + ["64"] * 6
    _, lines = result["What the paper claims, and what was measured"]
    assert [line[0] for line in lines] == [
        "MNIST, SGD",
        "MNIST, Adam",
        "MNIST, SGD, each at its own rate",
        f"MNIST: {claims.BOTH_RATES}",
    ]
    for row in rows[6:]:
        assert f"{row[1]}: {row[-1]}" in lines[-1][-1]
    kinds = {
        f"{name}-{kind}.png" for name in ("mnist-sgd", "mnist-adam", "mnist-sgd-own-rate") for kind in report.KINDS
    }
    assert {file.name for file in (tmp_path / "figures").glob("*.png")} == kinds


def test_what_is_trained_whole_has_its_tables_and_sentences(tmp_path):
    """The numbers of training_dynamics.py and pcdeq_convergence.py, those of the largest width, in order."""

    def cell(width, lr, centred, **distances):
        return {
            "width": width,
            "lr": lr,
            "centred": centred,
            "networks": {name: {"distance": d, "distance_error": d and d / 10} for name, d in distances.items()},
        }

    names = {"deq": "ReLU-DEQ", "ntk": "NTK-matched", "unmatched": "unmatched ReLU"}
    cells = [
        cell(16, 3.0, False, deq=0.0, ntk=0.9, unmatched=0.9),
        cell(64, 30.0, False, deq=0.0, ntk=0.05, unmatched=None),
        cell(64, 3.0, False, deq=0.0, ntk=0.012, unmatched=0.25),
        cell(64, 3.0, True, deq=0.0, ntk=0.003, unmatched=0.34),
    ]
    layer = {"layer": "tanh", "converged": True, "radius": 0.5, "rate": 0.21, "jacobian_radius": 0.205, "bound": 0.3}
    random = [{**layer, "radius": 4.0}, {"layer": "plain", "converged": False, "radius": 2.0}]
    trained = [{**layer, "test_accuracy": 0.9712}, {**layer, "rate": 0.4, "test_accuracy": 0.96}]
    pcdeq = {"trained": trained, "random": random, "plain_converges_up_to": 1.25}
    figures = {"training_dynamics": {"names": names, "cells": cells}, "pcdeq_convergence": pcdeq}
    records = stage_records.Records(tmp_path / "stages.json")
    for name, numbers_of_it in figures.items():
        write_figure(tmp_path, name, numbers_of_it)
        records.note(stage(tmp_path, name), 1.0, 10**9, status="done", error="")
    records.save([stage(tmp_path, name) for name in figures])
    page = report.write_report(tmp_path)
    text = page.with_suffix(".md").read_text()
    header, rows = next(v for k, v in tables_of(text).items() if k.startswith("Distance to the DEQ's curve"))
    assert header == ["network", "lr 3, centred", "lr 3", "lr 30"]
    assert rows == [
        ["NTK-matched", "0.003 ± 0.000", "0.012 ± 0.001", "0.050 ± 0.005"],
        ["unmatched ReLU", "0.340 ± 0.034", "0.250 ± 0.025", "–"],
    ]
    assert "learning rate of 3 the curve of training loss of the NTK-matched network is 0.012 of the drop" in text
    assert "that of the unmatched one 0.25." in text
    _, rows = next(v for k, v in tables_of(text).items() if k.startswith("Layers of 80 units"))
    assert rows[0] == ["tanh", "0.5000", "0.2100", "0.2050", "0.3000", "97.12"]
    assert "the trained ones at rates from 0.21 to 0.40, random ones up to a spectral radius of 4; a plain DEQ" in text
    assert page.read_text().count("data:image/png;base64") == 2
    random[0]["converged"] = False
    assert "not every positive concave layer converges: tanh;" in findings.pcdeq_finding(pcdeq, "")
    write_figure(tmp_path, "training_dynamics", {"cells": [{}]})
    with pytest.raises(ValueError, match="training_dynamics.json: not the numbers of that figure"):
        report.write_report(tmp_path)
    (tmp_path / "figures" / "training_dynamics.png").write_bytes(b"")
    with pytest.raises(ValueError, match="training_dynamics.png: missing or empty: delete it and run"):
        report.write_report(tmp_path)


def test_a_page_of_docs_has_the_pictures_that_the_repository_has(tmp_path):
    names = "ck_gmm_matching", "gmm_one_layer_matching"
    made = [stage(tmp_path, name) for name in names]
    records = stage_records.Records(tmp_path / "stages.json")
    for single in made:
        write_figure(tmp_path, single.name, {"settings": {"n": [100, 200]}, "errors": {"relu": [[0.2], [0.1]]}})
        records.note(single, 1.0, 10**9, status="done", error="")
        records.stages[single.name]["command"] = ".venv/bin/python x.py --dataset_path /secret/place --n 1"
    records.save(made)
    report.main([str(tmp_path), "--page", str(tmp_path / "docs" / "page.md")])
    text = (tmp_path / "docs" / "page.md").read_text()
    [picture] = re.findall(r"\]\((.+\.png)\)", text)
    assert (tmp_path / "docs" / picture).resolve() == ROOT / "figures" / "ck_gmm_matching.png"
    assert "\npython x.py --dataset_path DIR --n 1\n" in text and "/secret" not in text
    assert "](figures/gmm_one_layer_matching.png)" in (tmp_path / "report.md").read_text()


def test_every_figure_has_its_sentence():
    """Numbers made up, as the figures' scripts write them."""
    widths = {
        "widths": [64, 256],
        "errors": {"deq": [[0.8], [0.4]], "root_1": [[1.0], [0.5]], "root_2": [[1.2], [0.6]]},
    }
    assert "at width 256 the DEQ's kernel is 0.4 from its limit, those of its two matched networks 0.5 and 0.6" in (
        findings.finding(widths, "finite_width_kernels")
    )
    curves = {"ck relu matched": [[0.1]], "ntk tanh matched": [[0.01]], "ck relu unmatched": [[0.9]]}
    features = {"settings": {"n": [200]}, "errors": curves}
    said = findings.finding(features, "cifar10_matching")
    assert "matched networks are 0.01 to 0.1 from their DEQs, unmatched networks are 0.9 to 0.9" in said
    row = {"matched": [[0.1], [0.02]], "unmatched": [[0.5], [0.4]]}
    every = {"settings": {"n": [100, 200]}, "kernels": {k: {"relu": row, "tanh": row} for k in ("ck", "ntk")}}
    said = findings.finding(every, "any_activation_matching")
    assert "at n = 200 the networks matched to 2 DEQs" in said and said.count("are 0.02 to 0.02 from theirs") == 2
    cells = [{"family": "hard_tanh", "residual": 1e-15}, {"family": None, "residual": None}]
    said = findings.finding({"matches": {"ck": {"tanh": cells}, "ntk_aA": {"tanh": cells[:1]}}}, "matching_map")
    assert "1 of 2 in CK, 1 of 1 in NTK trained in (a, A)" in said and "is 1e-15" in said
    errors = {"resolvent": [[0.1, 0.2], [0.01, 0.02]], "unrolled": [[0.3, 0.4], [0.03, 0.04]]}
    said = findings.finding({"convolutional": {"0.5": {"errors": errors}}}, "resolvent_network")
    assert "after 2 steps" in said and "0.01 (CK) and 0.02 (NTK) from the DEQ at σ_a² = 0.5" in said
    networks = {"matched": [1, 0.002, 1, 0.004], "plain 1": [1, 0.1, 1, 0.2]}
    [table] = findings.figure_tables({"conv_matching": {"distances": {"relu": {"mnist": {"0.5": networks}}}}})
    assert table.rows == [["relu", "mnist", "0.5", "–", "–", "0.002 / 0.004", "0.1 / 0.2", "–"]]
