"""The driver with fake stages, its plan, its clock, and the report: one page, every number recomputed from the logs."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import report  # noqa: E402
import reproduce  # noqa: E402
from page import inline  # noqa: E402
from test_summarize import made_up, write_grid  # noqa: E402


def fake(folder, name, code="", kind="figure", data="gmm", cost=10.0):
    """A stage that counts its runs in NAME.count and leaves NAME.out behind."""
    script = folder / f"{name}.py"
    script.write_text(f"import sys, pathlib, time, json\nhere = pathlib.Path({str(folder)!r})\n"
                      f"with (here / '{name}.count').open('a') as f: f.write('x')\n{code}\n"
                      f"(here / '{name}.out').touch()\n")
    return reproduce.Stage(name, kind, [sys.executable, str(script)], [folder / f"{name}.out"], cost, data,
                           str(folder / name))


def arguments(folder, **more):
    return SimpleNamespace(**{"output": folder / "out", "dataset_path": None, "processes": 1, "quick": True, "seeds": 3,
                              **more})


def count(folder, name):
    file = folder / f"{name}.count"
    return len(file.read_text()) if file.exists() else 0


def records(folder):
    return json.loads((folder / "out" / "stages.json").read_text())["stages"]


def test_a_failing_stage_does_not_stop_the_others(tmp_path, capsys):
    bad = "print('main.py: error: no such thing\\ntorchrun has its say', file=sys.stderr); sys.exit(2)"
    stages = [fake(tmp_path, "first"), fake(tmp_path, "broken", bad),
              fake(tmp_path, "crash", "raise OSError('no space')"), fake(tmp_path, "last")]
    assert not reproduce.reproduce(stages, arguments(tmp_path))
    found = records(tmp_path)
    assert [(name, record["status"]) for name, record in found.items()] == [
        ("first", "done"), ("broken", "failed"), ("crash", "failed"), ("last", "done")]
    assert found["broken"]["error"] == "main.py: error: no such thing (exit status 2)"
    assert found["crash"]["error"] == "OSError: no space (exit status 1)"
    page = report.write_report(tmp_path / "out")
    text = page.read_text() + page.with_suffix(".md").read_text()
    assert text.count("no such thing (exit status 2)") >= 2
    assert "OSError: no space" in text and "2 done, 2 failed" in text


def test_finished_stages_are_passed_over_and_others_are_not(tmp_path, capsys):
    stages = [fake(tmp_path, "good"),
              fake(tmp_path, "moody", "if not (here / 'repaired').exists(): sys.exit('broken')")]
    assert not reproduce.reproduce(stages, arguments(tmp_path))
    (tmp_path / "repaired").touch()
    assert reproduce.reproduce(stages, arguments(tmp_path))
    assert (count(tmp_path, "good"), count(tmp_path, "moody")) == (1, 2)
    assert "good: finished before" in capsys.readouterr().err and records(tmp_path)["moody"]["error"] == ""
    (tmp_path / "good.out").unlink()  # its output is lost
    reproduce.reproduce(stages, arguments(tmp_path))
    # another command
    other = reproduce.Stage("moody", "figure", [*stages[1].command, "--n", "5"], stages[1].outputs, 10.0)
    reproduce.reproduce([stages[0], other], arguments(tmp_path))
    assert (count(tmp_path, "good"), count(tmp_path, "moody")) == (2, 3)
    # the launcher is no part of the task: the same logs from more processes
    command = [sys.executable, "-m", "torch.distributed.run", *stages[0].command[1:]]
    torchrun = reproduce.Stage("good", "figure", command, stages[0].outputs, 10.0)
    reproduce.reproduce([torchrun], arguments(tmp_path))
    assert count(tmp_path, "good") == 2


def test_data_that_is_not_there_is_skipped_with_its_reason(tmp_path, capsys, monkeypatch):
    import data_prepare

    def no_network(path, folder, name):
        raise data_prepare.DataError(f"{path}: no {name} found and its download failed (no network)")
    monkeypatch.setattr("images._download_mnist", no_network)
    stages = [fake(tmp_path, "digits", data="mnist"), fake(tmp_path, "photos", data="cifar10"),
              fake(tmp_path, "mixture")]
    assert reproduce.reproduce(stages, arguments(tmp_path, dataset_path=tmp_path))  # a skipped stage is no failure
    found = records(tmp_path)
    assert [found[s.name]["status"] for s in stages] == ["skipped", "skipped", "done"] and not count(tmp_path, "digits")
    assert "no mnist found" in found["digits"]["error"] and "cifar-10-batches-py" in found["photos"]["error"]
    assert "no mnist found" in report.write_report(tmp_path / "out").with_suffix(".md").read_text()


def test_an_interrupted_stage_ends_in_one_line_and_goes_on(tmp_path):
    """Ctrl-C reaches the stage too, which has a process group of its own."""
    slow = ("(here / 'pid').write_text(str(__import__('os').getpid()))\n"
            "if not (here / 'again').exists():\n    (here / 'started').touch()\n    time.sleep(60)")
    fake(tmp_path, "before"), fake(tmp_path, "slow", slow)
    driver = tmp_path / "driver.py"
    driver.write_text(f"import sys\nsys.path[:0] = [{str(ROOT / 'scripts')!r}]\nimport pathlib, reproduce\n"
                      f"here = pathlib.Path({str(tmp_path)!r})\n"
                      "reproduce.plan = lambda a: [reproduce.Stage(n, 'figure', [sys.executable, str(here / f'{n}.py')]"
                      ", [here / f'{n}.out'], 10.0) for n in ('before', 'slow')]\n"
                      "reproduce.main(['--output', str(here / 'out')])\n")
    for kind in (signal.SIGINT, signal.SIGTERM):
        (tmp_path / "started").unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, str(driver)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True)
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(kind)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and out == "" and "Traceback" not in err
        assert err.splitlines()[-1] == "reproduce.sh: interrupted in slow; the same command goes on from here"
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)
        assert records(tmp_path)["slow"]["status"] == "interrupted" and not (tmp_path / "out" / "report.html").exists()
    (tmp_path / "again").touch()
    done = subprocess.run([sys.executable, str(driver)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out' / 'report.html'}\n"
    assert (count(tmp_path, "before"), count(tmp_path, "slow")) == (1, 3)


def test_a_failure_is_status_1_and_bad_input_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "plan", lambda a: [fake(tmp_path, "broken", "sys.exit('broken pipe')")])
    (tmp_path / "file").touch()
    for argv, status, words in ((["--output", str(tmp_path / "out")], 1, "not every stage succeeded"),
                                (["--output", str(tmp_path / "file")], 2, "is a file, not a folder"),
                                (["--dataset_path", str(tmp_path / "no")], 2, "no such folder"),
                                (["--processes", "0"], 2, "positive whole number"), (["--fast"], 2, "--fast")):
        with pytest.raises(SystemExit) as stop:
            reproduce.main(argv)
        assert stop.value.code == status and words in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "out" / "stages.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--output", str(tmp_path / "out")])
    assert stop.value.code == 2 and "stages.json is damaged" in capsys.readouterr().err


def test_a_report_of_nothing(tmp_path, capsys):
    for content, words in ((None, "nothing to report, no stages.json"), ("{", "is damaged"),
                           ('{"stages": {}}', "no stage has been run"), ('{"stages": {"a": {}}}', "is damaged")):
        if content is not None:
            (tmp_path / "stages.json").write_text(content)
        with pytest.raises(SystemExit) as stop:
            report.main([str(tmp_path)])
        captured = capsys.readouterr()
        assert stop.value.code == 2 and words in captured.err and captured.err.count("\n") == 1
        assert not list(tmp_path.glob("report.*"))


def test_memory_counts_a_childs_child(tmp_path):
    stage = fake(tmp_path, "hungry", "import subprocess\nsubprocess.run([sys.executable, '-c', "
                                     "'import time; x = bytearray(2 * 10**8); time.sleep(2)'])")
    status, _, peak = reproduce.run_stage(stage, 1, tmp_path / "log", lambda *_: None)
    assert status == 0 and 2e8 < peak < 4e8


# ---------------------------------------------------------------------------------------------------------------
# plan and clock

def test_the_plan_is_that_of_the_scripts():
    everything = reproduce.plan(arguments(ROOT, quick=False, processes=2, dataset_path="D"))
    sweeps = {s.name: " ".join(s.command) for s in everything if s.kind == "sweep"}
    text = (ROOT / "scripts" / "sweep.sh").read_text()
    dims, epochs = re.search(r"--dim ([\d ]+) --epoch (\d+)", text).groups()
    assert tuple(map(int, dims.split())) == reproduce.DIMS and int(epochs) == reproduce.EPOCHS
    for dataset in ("mnist", "fashion_mnist", "cifar10"):
        script = (ROOT / "scripts" / f"{dataset}.sh").read_text()
        for opt in ("sgd", "adam"):
            rate = re.search(rf"\[{opt}\]=([\d.]+)", script)[1]
            assert f"--dataset {dataset} --dataset_path D --dim" in sweeps[f"{dataset}-{opt}"]
            assert f"--seed 0 1 2 --epoch 100 --opt {opt} --lr {rate} " in sweeps[f"{dataset}-{opt}"]
            assert "-m torch.distributed.run --standalone --nproc_per_node 2 main.py " in sweeps[f"{dataset}-{opt}"]
    assert set(sweeps) == {f"{d}-{o}" for d in ("gmm", "mnist", "fashion_mnist", "cifar10") for o in ("sgd", "adam")}
    scripts = {f.stem for f in (ROOT / "ck_ntk").glob("*.py")}
    shell = set(re.findall(r"\w+", (ROOT / "scripts" / "figures.sh").read_text()))
    assert shell & scripts <= set(reproduce.FIGURES) <= scripts
    assert {s.name for s in everything if s.kind == "figure"} == set(reproduce.FIGURES)
    named = {name for _, _, names in report.KERNELS for name in names}
    assert named == set(reproduce.FIGURES)  # each has its place in the report
    quick = reproduce.plan(arguments(ROOT, processes=64))
    assert {s.data for s in quick} == {"gmm", "mnist"} and sum(s.cost for s in quick) < 300
    eight = {s.name: s for s in reproduce.plan(arguments(ROOT, quick=False, seeds=8))}
    assert "--seed 0 1 2 3 4 5 6 7 --epoch" in " ".join(eight["mnist-sgd"].command)
    three = next(s for s in everything if s.name == "mnist-sgd")
    assert eight["mnist-sgd"].cost - 5 == pytest.approx((three.cost - 5) * 8 / 3)
    # no rank without a run
    assert "--nproc_per_node 36 " in " ".join(next(s for s in quick if s.name == "gmm-sgd").command)


def test_time_left():
    def stage(kind, cost):
        return SimpleNamespace(kind=kind, cost=cost)
    left = reproduce.time_left
    assert left([stage("figure", 30), stage("sweep", 70)], []) == pytest.approx(100)
    # a machine of half the speed: the stages to come and the present one are counted at its rate, figures at their own
    slow = [("sweep", 1e6, 2e6)]
    assert left([stage("sweep", 70), stage("figure", 5)], slow) == pytest.approx(145, rel=1e-3)
    assert left([], slow, stage("sweep", 100), behind=50, fresh=50, elapsed=100) == pytest.approx(100, rel=1e-3)
    # what was done before a resumption has no part in the rate
    resumed = left([], [("sweep", 1e6, 1e6)], stage("sweep", 1000), behind=900, fresh=10, elapsed=10)
    assert resumed == pytest.approx(100, rel=1e-3)
    # never negative, and never at the end while a stage runs
    assert left([], [], stage("sweep", 10), behind=12, fresh=12, elapsed=12) == 0
    assert left([], [], stage("figure", 10), elapsed=4) == pytest.approx(6)
    assert left([], [], stage("figure", 10), elapsed=50) == 5
    assert [reproduce.clock(s) for s in (7, 65, 3661, 36000)] == ["0:07", "1:05", "1:01:01", "10:00:00"]


def test_progress_of_a_sweep_is_its_cost_at_the_end(tmp_path, monkeypatch):
    models, dims = ("inn", "l_relu_enn"), (16, 64)
    monkeypatch.setattr(reproduce, "MODELS", models)
    stage = SimpleNamespace(folder=str(tmp_path), data="gmm")
    progress = reproduce.SweepProgress(stage)
    assert progress() == 0
    write_grid(tmp_path, models, dims, (0,))
    third = progress()
    write_grid(tmp_path, models, dims, (1, 2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "model": "inn", "dim": 16, "seed": 3, "ep')  # being written
    assert progress() == pytest.approx(3 * third) == pytest.approx(reproduce.sweep_cost("gmm", dims, 3) - 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('och": 1}\n')
    assert progress() > 3 * third
    assert reproduce.SweepProgress(stage)() == progress()


# ---------------------------------------------------------------------------------------------------------------
# the report

class Page(HTMLParser):
    """What a page refers to, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.links, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "link", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def tables_of(markdown):
    """{title: (header, [rows])} of the Markdown tables."""
    found = {}
    for title, body in re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n)+)", markdown, re.M):
        lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines()]
        found[title] = lines[0], lines[2:]
    return found


def numbers(text):
    return [float(x) for x in re.findall(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text.replace("−", "-"))]


@pytest.fixture
def reported(tmp_path):
    """A report of synthetic logs and of the numbers of one figure."""
    from matplotlib import pyplot as plt
    models = reproduce.MODELS
    out = tmp_path / "out"
    accuracies = write_grid(out / "mnist-sgd", models, (16, 64), (0, 1, 2), dataset="mnist")
    stages = [fake(tmp_path, "gmm_one_layer_matching"), fake(tmp_path, "mnist-sgd", kind="sweep"),
              fake(tmp_path, "gmm-adam", kind="sweep")]
    stages[1] = reproduce.Stage(**{**vars(stages[1]), "folder": str(out / "mnist-sgd"), "data": "mnist"})
    errors = {"matched": [[0.04, 0.01], [0.02, 0.005]], "unmatched": [[0.5, 0.5], [0.5, 0.5]]}
    (out / "figures").mkdir()
    (out / "figures" / "gmm_one_layer_matching.json").write_text(json.dumps(
        {"settings": {"n": [100, 200]}, "errors": errors, "slope": [-1.0, 0.25], "overlaps": [0.9999, 0.99]}))
    plt.figure(figsize=(3.6, 3)).savefig(out / "figures" / "gmm_one_layer_matching.png")
    reproduce.missing.cache_clear()
    records = reproduce.Records(out / "stages.json")
    for index, stage in enumerate(stages):
        records.note(stage, 10.0 + index, 10**9, status=("done", "done", "failed")[index], error=("", "", "no")[index])
    records.save(stages)
    return report.write_report(out), accuracies, stages


def test_the_page_needs_nothing_else(reported):
    page, _, stages = reported
    text = page.read_text()
    parsed = Page(text)
    assert not parsed.open
    assert [link.partition(",")[0] for link in parsed.links] == ["data:image/png;base64"] * 3
    assert not re.search(r"https?://|@import|url\(|<script", text)
    for stage in stages[:2]:
        assert html.escape(reproduce.shown(stage.command)) in text
    for word in ("torch", "numpy", "scipy", "processor", "cores", "memory", "peak memory 1.00 GB", "11.0 s"):
        assert word in text


def test_every_number_of_the_report_is_that_of_the_logs(reported):
    page, accuracies, _ = reported
    text = page.with_suffix(".md").read_text()
    found = tables_of(text)
    order = ("inn", "l_relu_enn", "relu_enn", "tanh_inn", "h_tanh_enn", "tanh_enn")
    final = {(m, d): 100 * np.array([accuracies[m, d, s][-1] for s in (0, 1, 2)]) for m in order for d in (16, 64)}
    header, rows = next(v for k, v in found.items() if k.startswith("Test accuracy"))
    assert [numbers(" ".join(row)) for row in rows] == [
        [d, *(round(x, 2) for m in order for x in (final[m, d].mean(), final[m, d].std(ddof=1)))] for d in (16, 64)]
    header, rows = next(v for k, v in found.items() if k.startswith("DEQ − ENN"))
    for d, row in zip((16, 64), rows):
        expected = [d]
        for a, b in (("inn", "l_relu_enn"), ("inn", "relu_enn"), ("tanh_inn", "h_tanh_enn"), ("tanh_inn", "tanh_enn")):
            interval = ttest_rel(final[a, d], final[b, d]).confidence_interval(0.95)
            expected += [(final[a, d] - final[b, d]).mean(), *interval]
        assert numbers(" ".join(row)) == [pytest.approx(x, abs=0.00501) for x in expected]
    header, rows = next(v for k, v in found.items() if k.startswith("Cost"))
    assert [row[2:] for row in rows] == [["1", "1", "1.0", "0.2", "0.2"]] * 4
    header, rows = found["Relative spectral error, geometric mean over draws"]
    assert [numbers(" ".join(row[2:])) for row in rows] == [[-1.0, 0.25, 0.02, 100, 0.01, 200], [0.5, 100, 0.5, 200]]
    assert "n = 200 the matched network's kernel is 0.01 from the DEQ's, with slope −1.00, the unmatched" in text
    assert "within 0.01 of 1" in text
    assert text.count("too few seeds for a claim of equality") == 2 and "(3 of 8)" in text
    _, rows = next(v for k, v in found.items() if k.startswith("Stages"))
    assert [row[1:4] for row in rows] == [["done", "10.0", "1.00"], ["done", "11.0", "1.00"],
                                          ["failed", "12.0", "1.00"], ["", "33.0", "1.00"]]
    # the page shows the same cells
    shown = [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page.read_text())]
    for _, rows in found.values():
        for cell in (cell for row in rows for cell in row):
            assert html.unescape(re.sub("<[^>]+>", "", inline(cell))) in map(html.unescape, shown)


def test_the_report_claims_equality_where_eight_seeds_show_it(tmp_path):
    for seeds, words in ((8, "Two one-sided tests: ReLU-DEQ − matched L-ReLU-ENN: equal within 0.5."),
                         (3, "Two one-sided tests: too few seeds for a claim of equality.")):
        experiment = made_up(tmp_path / str(seeds), {16: (2.0, 0.1), 64: (0.0, 0.1)}, seeds)
        assert report.sweep_finding(experiment).endswith(words)


def test_a_small_sweep_from_end_to_end(tmp_path, monkeypatch, capsys):
    """The real commands: one sweep on the mixture and one figure, and their report; the second time nothing is run."""
    monkeypatch.setattr(reproduce, "QUICK_DIMS", (8,))
    monkeypatch.setattr(reproduce, "QUICK_EPOCHS", 1)
    monkeypatch.setattr(reproduce, "QUICK_FIGURE_FLAGS", ["--n", "32", "64", "--seeds", "1", "--spectrum", "32"])
    real_plan = reproduce.plan
    names = "gmm_one_layer_matching", "gmm-sgd"
    monkeypatch.setattr(reproduce, "plan", lambda a: [s for s in real_plan(a) if s.name in names])
    for words in ("done after", "finished before"):
        reproduce.main(["--quick", "--output", str(tmp_path), "--processes", "1", "--seeds", "2"])
        captured = capsys.readouterr()
        assert captured.err.count(words) == 2 and captured.out == f"{tmp_path / 'report.html'}\n"
    text = (tmp_path / "report.md").read_text()
    assert "Gaussian mixture, SGD" in text and "2 done" in text
    assert "main.py --dataset gmm --dim 8 --seed 0 1 --epoch 1 --opt sgd --lr 1" in text
    _, [row] = next(v for k, v in tables_of(text).items() if k.startswith("Test accuracy"))
    files = [tmp_path / "gmm-sgd" / folder / "8_test_inn_gmm.json" for folder in ("", "seed_1")]
    last = [100 * json.loads(file.read_text())[-1] for file in files]
    assert row[1] == f"{np.mean(last):.2f} ± {np.std(last, ddof=1):.2f}"
