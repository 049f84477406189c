"""The stages of scripts/reproduce.py: their plan, which is that of the other scripts, and the time that is left."""

import re
from types import SimpleNamespace

import pytest

from ck_ntk.common.training_curves import NETWORKS
from scripts import reproduce
from scripts.reproduction import claims, machine, records, stages
from tests.conftest import ROOT
from tests.scripts.test_reproduce import arguments
from tests.scripts.test_summarize import write_grid


def test_the_plan_is_that_of_the_scripts():
    everything = stages.plan(arguments(ROOT, quick=False, processes=2, dataset_path="D"))
    sweeps = {s.name: " ".join(s.command) for s in everything if s.kind == "sweep"}
    text = (ROOT / "scripts" / "sweep.sh").read_text()
    dims, epochs = re.search(r"--dim ([\d ]+) --epoch (\d+)", text).groups()
    assert tuple(map(int, dims.split())) == stages.DIMS and int(epochs) == stages.EPOCHS
    for dataset in ("mnist", "fashion_mnist", "cifar10"):
        script = (ROOT / "scripts" / f"{dataset}.sh").read_text()
        for opt in ("sgd", "adam"):
            rate = re.search(rf"\[{opt}\]=([\d.]+)", script)[1]
            assert f"--dataset {dataset} --dataset_path D --dim" in sweeps[f"{dataset}-{opt}"]
            assert f"--seed 0 1 2 --epoch 100 --opt {opt} --lr {rate} " in sweeps[f"{dataset}-{opt}"]
            assert " main.py --processes 2 " in sweeps[f"{dataset}-{opt}"]
        # each at its own rate: the same widths, seeds and epochs
        other = re.sub(r"-sgd(?= )", "-sgd-own-rate", sweeps[f"{dataset}-sgd"])
        assert sweeps[f"{dataset}-sgd-own-rate"] == re.sub(r"--lr \S+", "--lr auto", other)
    kinds = ("sgd", "adam", "sgd-own-rate")
    assert set(sweeps) == {f"{d}-{kind}" for d in ("gmm", "mnist", "fashion_mnist", "cifar10") for kind in kinds}
    scripts = {f.stem for f in (ROOT / "ck_ntk").glob("*.py")}
    shell = set(re.findall(r"\w+", (ROOT / "scripts" / "figures.sh").read_text()))
    assert shell & scripts <= set(stages.FIGURES) <= scripts
    assert {s.name for s in everything if s.kind == "figure"} == set(stages.FIGURES)
    named = {name for _, _, names in claims.KERNELS + claims.TRAINING for name in names}
    assert named == set(stages.FIGURES)  # each has its place in the report
    quick = stages.plan(arguments(ROOT, processes=64))
    assert {s.data for s in quick} == {"gmm", "mnist"} and sum(s.cost for s in quick) < 300
    eight = {s.name: s for s in stages.plan(arguments(ROOT, quick=False, seeds=8))}
    assert "--seed 0 1 2 3 4 5 6 7 --epoch" in " ".join(eight["mnist-sgd"].command)
    three = next(s for s in everything if s.name == "mnist-sgd")
    assert eight["mnist-sgd"].cost - 5 == pytest.approx((three.cost - 5) * 8 / 3)
    # a run whose rate is chosen: no features once more, and so many attempts
    cost = {d: stages.own_rate_cost("mnist", (1024,), d, 1) - stages.sweep_cost("mnist", (1024,), d, 1) for d in (0, 7)}
    alone = {d: stages.sweep_cost("mnist", (1024,), d, 1) - 5 for d in (0, 7)}
    assert cost[0] == pytest.approx(0)
    assert cost[7] == pytest.approx(stages.ATTEMPTS * 0.8 * (alone[7] - alone[0]))
    # no process without a run
    assert "--processes 36 " in " ".join(next(s for s in quick if s.name == "gmm-sgd").command)


def test_time_left():
    def stage(kind, cost):
        return SimpleNamespace(kind=kind, cost=cost, done=0)

    left = records.time_left
    assert left([stage("figure", 30), stage("sweep", 70)], []) == pytest.approx(100)
    # a machine of half the speed: the stages to come and the present one are counted at its rate, figures at their own
    slow = [("sweep", 1e6, 2e6)]
    assert left([stage("sweep", 70), stage("figure", 5)], slow) == pytest.approx(145, rel=1e-3)
    assert left([], slow, stage("sweep", 100), behind=50, fresh=50, elapsed=100) == pytest.approx(100, rel=1e-3)
    # what was done before a resumption has no part in the rate
    resumed = left([], [("sweep", 1e6, 1e6)], stage("sweep", 1000), behind=900, fresh=10, elapsed=10)
    assert resumed == pytest.approx(100, rel=1e-3)
    # what the current sweep shows counts for those to come; without anything known, the machine's own rate does
    both = left([stage("sweep", 1000)], [], stage("sweep", 1e6), behind=1e6, fresh=1e6, elapsed=3e6)
    assert both == pytest.approx(3000, rel=1e-3)
    assert left([stage("sweep", 70), stage("figure", 30)], [], prior=2.0) == pytest.approx(200)
    # what logs of earlier sittings show to be done
    begun = SimpleNamespace(kind="sweep", cost=70, done=60)
    assert left([begun, stage("figure", 30)], [], prior=2.0) == pytest.approx(80)
    # a sweep that had nothing left to do took its time for its data
    assert left([stage("sweep", 100)], [*slow, ("sweep", 0.0, 90.0)]) == left([stage("sweep", 100)], slow)
    # never negative, and never at the end while a stage runs
    assert left([], [], stage("sweep", 10), behind=12, fresh=12, elapsed=12) == 0
    assert left([], [], stage("figure", 10), elapsed=4) == pytest.approx(6)
    assert left([], [], stage("figure", 10), elapsed=50) == 5
    assert [records.clock(s) for s in (7, 65, 3661, 36000)] == ["0:07", "1:05", "1:01:01", "10:00:00"]


def test_progress_of_a_sweep_is_its_cost_at_the_end(tmp_path, monkeypatch):
    models, dims = ("inn", "l_relu_enn"), (16, 64)
    monkeypatch.setattr(stages, "MODELS", models)
    command = "main.py --dim 16 64 --seed 0 1 2 3 --epoch 3".split()
    stage = SimpleNamespace(folder=str(tmp_path), data="gmm", command=command)
    progress = records.SweepProgress(stage)
    assert progress() == 0
    write_grid(tmp_path, models, dims, (0,))
    third = progress()
    write_grid(tmp_path, models, dims, (1, 2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epoch", "model": "inn", "dim": 16, "seed": 3, "ep')  # being written
    assert progress() == pytest.approx(3 * third) == pytest.approx(stages.sweep_cost("gmm", dims, 3) - 5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('och": 1}\n')
    assert progress() > 3 * third
    assert records.SweepProgress(stage)() == progress()
    fewer = SimpleNamespace(folder=str(tmp_path), data="gmm", command="main.py --dim 16 64 --seed 1".split())
    assert records.SweepProgress(fewer)() == pytest.approx(third)  # the folder holds more
    own = SimpleNamespace(folder=str(tmp_path / "own"), data="gmm", command=command)
    write_grid(tmp_path / "own", models, dims, (0, 1, 2), own_rate=True)
    assert records.SweepProgress(own)() == pytest.approx(stages.own_rate_cost("gmm", dims, 3) - 5)


def test_logs_of_earlier_sittings_are_no_work_that_is_left(tmp_path, monkeypatch):
    """The plan has less of a sweep to do by what its folder holds, and this sitting's cost is without it."""
    models, dims = ("inn", "l_relu_enn"), (16, 64)
    monkeypatch.setattr(stages, "MODELS", models)
    cost = stages.sweep_cost("gmm", dims, 3)
    command = ["python", *"main.py --dim 16 64 --seed 0 1 2 --epoch 3".split()]
    stage = stages.Stage("sweep", "sweep", command, [], cost, "gmm", str(tmp_path / "logs"))
    kept, teller = records.Records(tmp_path / "stages.json"), reproduce.Teller()
    assert [left.done for left in reproduce.to_do([stage], kept, None, teller)] == [0]
    write_grid(tmp_path / "logs", models, dims, (0,))
    [begun] = reproduce.to_do([stage], kept, None, teller)
    assert begun.done == pytest.approx((cost - 5) / 3)
    for _ in range(2):  # of two attempts at the same command the costs add up
        kept.note(begun, seconds=4.0, cost=10.0, status="interrupted")
    assert (kept.stages["sweep"]["cost"], kept.stages["sweep"]["seconds"]) == (20, 8)
    for peak in (3, 2):
        kept.note(begun, peak_memory=peak)
    assert kept.stages["sweep"]["peak_memory"] == 3


def test_the_rate_of_a_machine_is_one_where_it_does_what_is_expected(monkeypatch):
    """If three cores take twice and eight times the expected time for products and a readout each, the rate is 4/3."""
    samples, width = machine.SAMPLES, machine.FEATURES
    run = SimpleNamespace(SIZES={"x": (samples, 0, 1, machine.CLASSES)})
    monkeypatch.setattr(stages, "SIZES", run.SIZES)
    epoch = stages.seconds("x", "relu_enn", width, 1) - stages.seconds("x", "relu_enn", width)
    rows, columns = machine.PRODUCT
    times = iter((2 * rows * columns**2 / stages.MULTIPLICATIONS, 8 * epoch))
    monkeypatch.setattr(machine, "cores", lambda: 3)
    monkeypatch.setattr(machine, "least_seconds", lambda call: next(times))
    assert machine.machine_rate() == pytest.approx(4 / 3)


def test_disk_grows_with_widths_seeds_and_epochs(tmp_path):
    everything = {s.name: s for s in stages.plan(arguments(tmp_path, quick=False))}
    few, many = (machine.disk(everything[name]) for name in ("mnist-sgd", "mnist-adam"))
    assert machine.disk(everything["ck_gmm_matching"]) < few < many < 1e8
    eight = {s.name: s for s in stages.plan(arguments(tmp_path, quick=False, seeds=8))}
    assert machine.disk(eight["mnist-sgd"]) - machine.FIGURE == pytest.approx(8 / 3 * (few - machine.FIGURE))


def test_networks_that_a_figure_keeps_are_work_that_is_done(tmp_path):
    """All of them are its cost, a DEQ's share is larger, and those of other grids or kept twice count for nothing."""
    stage = SimpleNamespace(kind="figure", cost=100.0, done=0, runs=str(tmp_path))
    assert records.done_of(stage) == 0 == records.done_of(SimpleNamespace(kind="figure", cost=100.0, runs=""))
    names = list(NETWORKS)

    def keep(name, width, rates=(0.3, 3, 30, 200), seeds=3):
        for lr in rates:
            for seed in range(seeds):
                (tmp_path / f"{name}_{width}_{lr:.4g}_seed{seed}_0123.json").write_text("{}")

    keep("deq", 64, seeds=1, rates=(0.3,))
    of_deq = records.done_of(stage)
    keep("deq", 128)
    (tmp_path / "deq_64_0.3_seed0_4567.json").write_text("{}")
    assert records.done_of(stage) == of_deq > 0
    keep("ntk", 64, seeds=1, rates=(0.3,))
    assert records.done_of(stage) < 2 * of_deq
    for name in names:
        for width in records.WIDTHS:
            keep(name, width)
            keep(f"{name}_centred", width, rates=(0.3,))
    assert records.done_of(stage) == pytest.approx(100)
    # the plan counts what is left, and the end is told from what this sitting has done
    assert records.time_left([], [], stage, behind=60, fresh=20, elapsed=1e6) == pytest.approx(1.6e6, rel=1e-4)
