"""A grid whose runs are made by workers: a pool of processes, and a Dask cluster."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deq_enn.experiments import command, executors, flags
from deq_enn.experiments.executors import run_all
from deq_enn.experiments.run_cost import cost
from deq_enn.reporting.records import read_metrics
from deq_enn.training.run_files import Config
from tests.conftest import ROOT
from tests.helpers.forks import DIVERGES, FORKED, at

GRID = ("--model", "inn", "h_tanh_enn", "relu_enn", "--dim", 8, 16, "--seed", 0, 1, "--epoch", 6)
POOL = "--processes", 2
RESUME = "the same command with --resume goes on from here\n"


@pytest.fixture(scope="module")
def base(small_npz):
    return "--dataset", "npz", "--dataset_path", small_npz, "--batch_size", 59, "--device", "cpu"


def alone(*argv):
    """main.py in this process, in one thread as the workers are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        command.main([*map(str, argv)])
    finally:
        torch.set_num_threads(threads)


def logs(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.json")}


def lines(folder, event):
    """The records of one kind but for what differs from run to run: their times."""
    return sorted(
        json.dumps({k: v for k, v in r.items() if "seconds" not in k}, sort_keys=True)
        for r in read_metrics(folder / "out")
        if r["event"] == event
    )


def same(folder, other):
    assert logs(folder / "out") == logs(other / "out")
    assert lines(folder, "epoch") == lines(other, "epoch")


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    alone(*base, *GRID, *at(folder))
    return folder


def without_seconds(text):
    return re.sub(r" +[\d.]+ s\b", "", text).rpartition("\nlogs in")[0]


def test_costs_put_what_is_long_before_what_is_short():
    usual = {"dataset": "mnist", "model": "inn", "dim": 1024, "lr": 1.0, "epoch": 100, "batch_size": 128}
    price = lambda **changes: cost(Config(**{**usual, **changes}), 70000, 784, 10)
    assert price() > price(model="relu_enn") > price(dim=256) > price(dim=256, model="relu_enn") > price(dim=32)
    assert price(train="full") > 50 * price() and price(epoch=200) > price()
    # docs/training.md: at width 4096 an ENN's features are 10 times as fast
    assert price(dim=4096, epoch=1) / price(dim=4096, epoch=1, model="relu_enn") == pytest.approx(10, rel=0.3)


def test_the_longest_are_begun_first_and_results_keep_their_places():
    begun = []

    def ten_times(item):
        begun.append(item)
        if item == 7:
            raise ValueError("seven")
        return 10 * item

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        assert run_all(executor, ten_times, [(3,), (9,), (1,), (8,)], [3, 9, 1, 8]) == [30, 90, 10, 80]
        assert begun == [9, 8, 3, 1]
        with pytest.raises(ValueError, match="seven"):
            run_all(executor, ten_times, [(7,), (2,)], [7, 2])


# a pool of processes ---------------------------------------------------------------------------------------------


class OneAfterTheOther(concurrent.futures.Executor):
    """Runs what it is given at once, and so begins with what is handed to it first."""

    def submit(self, function, /, *item):
        future = concurrent.futures.Future()
        future.set_result(function(*item))
        return future


def test_the_dearest_are_handed_out_first():
    begun = []
    run_all(OneAfterTheOther(), begun.append, [(3,), (9,), (1,), (8,)], [3, 9, 1, 8])
    assert begun == [9, 8, 3, 1]


def test_two_processes_write_the_bytes_of_one(forks, base, whole, tmp_path, capsys):
    alone(*base, *GRID, *at(whole), "--resume")
    expected = capsys.readouterr().out
    done = forks.run(*base, *GRID, *POOL, *at(tmp_path), setup=FORKED)
    assert (done["status"], done["err"]) == (0, "")
    assert without_seconds(done["out"]) == without_seconds(expected)
    same(tmp_path, whole)
    assert lines(tmp_path, "run") == lines(whole, "run") and len(logs(tmp_path / "out")) == 24
    assert (tmp_path / "out" / "accuracy_npz.png").exists()
    begun = [(r["model"], r["dim"]) for r in read_metrics(tmp_path / "out") if r["event"] == "run"]
    assert begun[0] == ("inn", 16) and begun[-1][1] == 8  # the dearest first; the second process may begin late


def test_what_is_finished_needs_no_processes(base, whole, capsys, monkeypatch):
    alone(*base, *GRID, *at(whole), "--resume")
    expected = capsys.readouterr().out
    monkeypatch.setattr(executors, "pool", lambda workers: pytest.fail(f"{workers} processes are started"))
    alone(*base, *GRID, *POOL, *at(whole), "--resume")
    assert without_seconds(capsys.readouterr().out) == without_seconds(expected)


@pytest.mark.long
def test_processes_that_are_spawned(base, whole, tmp_path):
    """As anybody has them; the other tests fork theirs, which takes no imports."""
    argv = [sys.executable, ROOT / "main.py", *base, *GRID, *POOL, *at(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    same(tmp_path, whole)


@pytest.mark.slow
def test_a_run_that_fails_ends_the_job_with_one_line(forks, base, tmp_path):
    done = forks.run(*base, *DIVERGES, *POOL, *at(tmp_path), setup=FORKED)
    warning, failure = done["err"].splitlines()
    assert done["status"] == 1 and "main.py: warning: sigma_a^2" in warning
    assert failure.startswith("main.py: failed: the equilibrium") and "relative residual" in failure
    explodes = "--model", "relu_enn", "tanh_enn", "--dim", 16, "--epoch", 3, "--lr", 1e30, "--train", "full"
    done = forks.run(*base, *explodes, *POOL, *at(tmp_path / "lr"), setup=FORKED)
    assert done["status"] == 1 and done["err"].count("\n") == 1 and "take a smaller --lr" in done["err"]


# once the first epoch is written: the ids of the workers, and what befalls them
BEFALLS = (
    FORKED
    + """
import os, signal, threading, time
from pathlib import Path
from types import SimpleNamespace

def befall():
    metrics = Path("out", "metrics.jsonl")
    while not metrics.exists() or '"event": "epoch"' not in metrics.read_text():
        time.sleep(0.002)
    children = Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
    workers = [*map(int, children[-2:])]  # the one before them is Python's tracker of resources
    Path("workers").write_text(" ".join(children))
    {}

threading.Thread(target=befall, daemon=True).start()
"""
)


def gone(pid):
    """Whether the process has ended, if perhaps nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    "what, status, words",
    [
        (
            "os.kill(workers[0], signal.SIGKILL)",
            1,
            f"main.py: failed: a worker process died (killed, or out of memory); {RESUME}",
        ),
        (  # as a terminal does: all of them
            "[os.kill(pid, signal.SIGINT) for pid in (*workers, os.getpid())]",
            130,
            f"main.py: interrupted; {RESUME}",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
    ids=["worker killed", "Ctrl-C", "killed"],
)
@pytest.mark.few(1)
@pytest.mark.slow
def test_what_is_stopped_leaves_no_process_and_goes_on(forks, base, whole, tmp_path, what, status, words):
    stopped = forks.run(*base, *GRID, *POOL, *at(Path()), cwd=str(tmp_path), setup=BEFALLS.format(what))
    assert (stopped["status"], stopped["err"]) == (status, words) and "test accuracy" not in stopped["out"]
    workers = [int(pid) for pid in (tmp_path / "workers").read_text().split()]
    deadline = time.monotonic() + 10
    while not all(map(gone, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(workers) == 3 and 0 < len(lines(tmp_path, "epoch")) < len(lines(whole, "epoch"))
    if status == 130:  # of SIGKILL some may be left, until the run goes on
        assert not [*tmp_path.rglob(".*")]
    assert forks.run(*base, *GRID, *POOL, *at(tmp_path), "--resume", setup=FORKED)["status"] == 0
    same(tmp_path, whole)
    assert not [*tmp_path.rglob(".*")]


def test_threads_of_workers_are_a_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(executors, "_quotas", lambda: [])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert [executors.threads_of_each(k) for k in (1, 3, 16)] == [8, 2, 1]
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert executors.threads_of_each(2) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert executors.threads_of_each(2) == 5


OLD_QUOTAS = {
    "a/cpu.cfs_quota_us": "50000",
    "a/cpu.cfs_period_us": "100000",
    "cpu.cfs_quota_us": "-1",
    "cpu.cfs_period_us": "100000",
}


@pytest.mark.parametrize(
    "membership, files, worth",
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000", "cpu.max": "900000 100000"}, [3, 9]),
        ("2:cpu,cpuacct:/a\n1:cpuset:/\n0::/\n", {f"cpu/{name}": text for name, text in OLD_QUOTAS.items()}, [1]),
        ("0::/\n", {}, []),
    ],
)
def test_quotas_of_control_groups(tmp_path, monkeypatch, membership, files, worth):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n", "utf-8")
    (tmp_path / "mine").write_text(membership, "utf-8")
    assert (
        executors._quotas(tmp_path, tmp_path / "mine") == worth and executors._quotas(tmp_path, tmp_path / "no") == []
    )
    monkeypatch.setattr(executors, "_quotas", lambda: worth)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert executors.cores() == min([8, *worth])


def test_appends_of_several_processes_do_not_mix(tmp_path):
    """One write a line, however long it is. Who looks at the end of a file while a long line is being written takes it
    for one that a kill has cut short, and begins with an empty line, which readers pass over."""
    from deq_enn.training.run_files import RunFiles

    children = []
    for seed in range(4):
        if not (child := os.fork()):
            files = RunFiles(Config("d", "m", 1, 1.0, 1, 1, seed=seed), tmp_path, tmp_path)
            for number in range(100):
                files.note("test", number=number, padding="x" * (20_000 if number % 10 == 0 else 50))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    text = (tmp_path / "metrics.jsonl").read_text().splitlines()
    written = [(record["seed"], record["number"]) for record in map(json.loads, filter(None, text))]
    assert sorted(written) == [(seed, number) for seed in range(4) for number in range(100)]


# a Dask cluster --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--processes", 0), "positive whole number"),
        (("--scheduler", "here"), "must be an address such as tcp://HOST:8786, got 'here'"),
        (("--scheduler", "tcp://here:1", *POOL), "not allowed with argument --"),
    ],
)
def test_bad_flags(capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        command.main([*map(str, argv)])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [RuntimeError("Error during deserialization of the task graph.\nThis"), ModuleNotFoundError("deq_enn")]
)
def test_a_cluster_that_lacks_this_package_is_told_apart_from_a_run_that_fails(monkeypatch, error):
    distributed = pytest.importorskip("distributed")
    fake = SimpleNamespace(scheduler_info=lambda **_: {"workers": [1]}, get_executor=lambda: None, close=lambda: None)
    monkeypatch.setattr(distributed, "Client", lambda *_, **__: fake)
    with pytest.raises(RuntimeError, match="^the scheduler at tcp://a:1 or a worker of it does not find this package"):
        with executors.cluster("tcp://a:1"):
            raise error
    with pytest.raises(RuntimeError, match="^the loss became nan$"), executors.cluster("tcp://a:1"):
        raise RuntimeError("the loss became nan")


def test_without_the_package_or_the_scheduler_it_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(executors, "CONNECT", 0.5)
    argv = [*map(str, ("--scheduler", "tcp://127.0.0.1:9", *at(tmp_path)))]
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.count("\n") == 1
    assert said.startswith("main.py: failed: no Dask scheduler answers at tcp://127.0.0.1:9 within 0.5 s (")
    monkeypatch.setattr(flags.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.endswith("is missing: pip install 'deq_enn[cluster]'\n")


@pytest.fixture
def cluster(request, monkeypatch):
    """A scheduler on this machine and two workers of one thread: threads, or processes."""
    import dask
    from distributed import LocalCluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if request.param:  # one process imports, and workers are forked from it; Dask's own would not know this package
        forkserver.set_forkserver_preload(["deq_enn.experiments.worker", "distributed"])
        forkserver.ensure_running()
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    made = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=request.param,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address=None,
        silence_logs=50,
    )
    yield made
    made.close()


@pytest.mark.parametrize("cluster", [False], indirect=True)
@pytest.mark.slow
def test_a_cluster_writes_the_bytes_of_one_process(cluster, base, whole, tmp_path, monkeypatch, capsys):
    """Also where an earlier job has left a checkpoint that is of no use, which only --resume would complain of."""
    monkeypatch.chdir(tmp_path)
    argv = [*base, *GRID, *at(Path()), "--scheduler", cluster.scheduler_address]
    (tmp_path / "ckpt").mkdir()
    for path in (whole / "ckpt").glob("*.pt"):
        (tmp_path / "ckpt" / path.name).write_bytes(b"damaged")
    alone(*argv)
    same(tmp_path, whole)
    assert capsys.readouterr().err == ""
    with pytest.raises(SystemExit) as stop:
        alone(*base, *DIVERGES, *at(tmp_path / "other"), "--scheduler", cluster.scheduler_address)
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1 and len(said) == 2 and said[1].startswith("main.py: failed: the equilibrium")


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [True], indirect=True)
def test_what_a_killed_worker_had_is_made_by_another(cluster, base, whole, tmp_path, capsys):
    """Two worker processes of a real scheduler, one of which is killed once the first epoch is written."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        workers = [*client.run(os.getpid).values()]

    def kill():
        metrics = tmp_path / "out" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count('"event": "epoch"') < 20:
            time.sleep(0.002)
        os.kill(workers[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    alone(*base, *GRID, *at(tmp_path), "--scheduler", cluster.scheduler_address)
    killer.join()
    same_epochs = set(lines(tmp_path, "epoch")), set(lines(whole, "epoch"))
    assert same_epochs[0] == same_epochs[1] and logs(tmp_path / "out") == logs(whole / "out")
    assert len(set(workers)) == 2 and gone(workers[0]) and capsys.readouterr().err == ""
