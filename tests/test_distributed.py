"""Grids and runs shared by processes: two ranks by torchrun and by hand, and single parts over a store in memory."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import distributed
import main
import train
from conftest import ROOT
from distributed import Team, World, cost
from train import Config, read_metrics

ALONE = {**{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")},
         "OMP_NUM_THREADS": "1"}
PIPES = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
GRID = ("--model", "inn", "h_tanh_enn", "relu_enn", "--dim", 8, 16, "--seed", 0, 1, "--epoch", 30)
FULL = ("--model", "inn", "--dim", 24, "--epoch", 3, "--train", "full", "--opt", "adam", "--lr", 0.05)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rank_environment(rank, size=2, **more):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", **more}


def two_ranks(forks, program, *argv, cwd):
    """Both ranks of a world started by hand: (status, stdout, stderr) of each."""
    job = {"program": str(program), "argv": [*map(str, argv)], "cwd": str(cwd)}
    port = str(free_port())
    done = forks.ranks(*({**job, "env": rank_environment(rank, MASTER_PORT=port)} for rank in (0, 1)))
    return [(rank["status"], rank["out"], rank["err"]) for rank in done]


def torchrun(*argv, cwd):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen([*launcher, ROOT / "main.py", *map(str, argv)], cwd=cwd, env=ALONE, **PIPES)


@pytest.fixture(scope="module")
def base(small_npz):
    # the last batch has one sample, so that one of two ranks has none
    return "--dataset", "npz", "--dataset_path", small_npz, "--batch_size", 59, "--device", "cpu"


def at(folder):
    return "--output_path", folder / "out", "--save_path", folder / "ckpt"


def alone(*argv):
    """main.py in this process, in one thread as the ranks are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main.main([*map(str, argv)])
    finally:
        torch.set_num_threads(threads)


def logs(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.json")}


def epochs(folder):
    return sorted((r["run"], r["epoch"]) for r in read_metrics(folder) if r["event"] == "epoch")


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    alone(*base, *GRID, *at(folder))
    return folder


def without_seconds(text):
    return re.sub(r" +[\d.]+ s\b", "", text).rpartition("\nlogs in")[0]


# ---------------------------------------------------------------------------------------------------------------
# two processes

def test_two_ranks_write_the_bytes_of_one_process(base, whole, tmp_path, capsys):
    alone(*base, *GRID, *at(whole), "--resume")
    expected = capsys.readouterr().out
    process = torchrun(*base, *GRID, *at(tmp_path), cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and err == ""
    assert without_seconds(out) == without_seconds(expected)
    assert len(logs(tmp_path / "out")) == 24 and logs(tmp_path / "out") == logs(whole / "out")
    assert epochs(tmp_path / "out") == epochs(whole / "out")
    assert (tmp_path / "out" / "accuracy_npz.png").exists()
    assert not [path for path in tmp_path.rglob(".*")]  # nothing is left of the search for shared folders


def test_a_killed_rank_ends_the_job_and_resume_finishes_it(base, whole, tmp_path):
    process = torchrun(*base, *GRID, *at(tmp_path), cwd=tmp_path)
    deadline = time.time() + 120
    while not list(tmp_path.glob("ckpt/*.pt")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {part: int(child) for child in children for part in Path(f"/proc/{child}/environ").read_text().split("\0")
             if part.startswith("RANK=")}
    os.kill(ranks["RANK=1"], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "test accuracy" not in out
    line, = [line for line in err.splitlines() if line.startswith("main.py: ")]
    assert "has died" in line and "--resume" in line
    before = epochs(tmp_path / "out")
    assert 0 < len(set(before)) < len(epochs(whole / "out"))
    alone(*base, *GRID, *at(tmp_path), "--resume")
    assert logs(tmp_path / "out") == logs(whole / "out")
    assert set(epochs(tmp_path / "out")) == set(epochs(whole / "out"))


GRADIENTS = """
import sys
import torch
import torch.distributed as dist
from data_prepare import Dataset
from distributed import World
from fixed_point import Picard
from gaussian_integration import ACTIVATIONS
from model import DEQ, build_model
from train import Config, FullTask

def weights_after_an_epoch(name, team):
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(30, 6, generator=g, dtype=torch.float64), torch.arange(30) % 3
    data = Dataset("toy", X[:22], y[:22], X[22:], y[22:], 3)
    # batches of 7, 7, 7 and 1
    config = Config(dataset="toy", model=name, dim=8, lr=5.0, epoch=1, batch_size=7, train="full")
    model = (DEQ(ACTIVATIONS["tanh"], 6, 8, 3, 0.2, solver=Picard(tol=1e-14)) if name == "deq" else
             build_model("l_relu_enn", 6, 8, 3, 0.2)).double()
    task = FullTask(model, data, config, "cpu", team)
    record = {**task.epoch(torch.arange(22)), **task.evaluate()}
    return record, {k: v.detach().clone() for k, v in model.state_dict().items()}

if __name__ == "__main__":
    with World() as world:
        world.form()
        team = world.team(torch.device("cpu"))
        found = {name: weights_after_an_epoch(name, team) for name in ("deq", "enn")}
        with open(f"{sys.argv[1]}/{world.rank}.pt", "wb") as file:
            torch.save(found, file)
"""


def test_steps_of_two_ranks_are_those_of_one(forks, tmp_path):
    """To rounding in float64: the mean over shares of 4 and 3, and of 1 and 0; losses, accuracies, iterations."""
    (tmp_path / "steps.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + GRADIENTS)
    for status, _, err in two_ranks(forks, tmp_path / "steps.py", tmp_path, cwd=tmp_path):
        assert status == 0, err
    scope = {"__name__": "steps"}
    exec(GRADIENTS, scope)
    for name in ("deq", "enn"):
        record, weights = scope["weights_after_an_epoch"](name, Team())
        ranks = [torch.load(tmp_path / f"{rank}.pt")[name] for rank in (0, 1)]
        for got, after in ranks:
            assert got == pytest.approx(record, rel=1e-6)
            assert all(torch.allclose(after[key], weights[key], rtol=0, atol=1e-11) for key in weights)
    assert len(weights) == 3 and record["train_loss"] > 0.5


def test_a_full_run_shared_by_two_ranks_goes_on_from_a_checkpoint(forks, base, tmp_path, monkeypatch):
    alone(*base, *FULL, *at(tmp_path / "whole"))
    original, done = train.RunFiles.epoch_done, []

    def dies_in_the_second(self, record, state):
        if done:
            raise KeyboardInterrupt
        done.append(original(self, record, state))

    monkeypatch.setattr(train.RunFiles, "epoch_done", dies_in_the_second)
    with pytest.raises(SystemExit):
        alone(*base, *FULL, *at(tmp_path / "both"))
    assert len(epochs(tmp_path / "both" / "out")) == 1
    command = ROOT / "main.py", *base, *FULL, *at(tmp_path / "both"), "--resume"
    (status, out, err), second = two_ranks(forks, *command, cwd=tmp_path)
    assert status == 0 and err == "" and out.count("inn  ") == 2  # the theory and the table
    assert second == (0, "", "")
    expected, got = ([{k: v for k, v in r.items() if isinstance(v, (int, float)) and k != "seconds"} for r in
                      read_metrics(tmp_path / name / "out") if r["event"] == "epoch"] for name in ("whole", "both"))
    for one, other in zip(expected, got, strict=True):  # one writer: no line twice
        assert other == pytest.approx(one, rel=1e-4)
    assert len(got) == 3
    for path, content in logs(tmp_path / "whole" / "out").items():
        assert json.loads((tmp_path / "both" / "out" / path).read_text()) == pytest.approx(json.loads(content))


def test_a_run_that_fails_is_told_once_and_ends_every_rank(base, tmp_path):
    process = torchrun(*base, "--model", "relu_enn", "tanh_inn", "--dim", 256, "--epoch", 1, "--asquare", 0.99999,
                       *at(tmp_path), cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    warning, failure = [line for line in err.splitlines() if line.startswith("main.py: ")]
    assert "warning: sigma_a^2" in warning and "failed: the equilibrium" in failure and "relative residual" in failure
    assert process.returncode != 0 and "main.py\", line" not in err  # torchrun's own traceback, and none of ours


def test_a_rank_without_a_world_gives_up_in_one_line(forks, tmp_path):
    done = forks.run(cwd=str(tmp_path), env=rank_environment(1, MASTER_PORT=str(free_port()), WORLD_TIMEOUT="1"))
    assert done["status"] == 1 and done["err"].count("\n") == 1 and not os.listdir(tmp_path)
    assert "rank 1 met no world of 2" in done["err"]
    assert "start every rank within 1 s (WORLD_TIMEOUT)" in done["err"]


# ---------------------------------------------------------------------------------------------------------------
# parts, in this process

@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", 0)


def in_world(monkeypatch, capsys, *argv, **environment):
    """Status and stderr of main.py in this process, with these environment variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        main.main([*map(str, argv)])
    told = capsys.readouterr()
    assert told.out == ""
    return stop.value.code, told.err


@pytest.mark.parametrize("argv, words", [
    (("--dim", 0), "positive whole number"),
    (("--model", "inn", "--dim", 8), "2 ranks for 1 run (models x dims x seeds): start at most one rank a run"),
    (("--dataset", "mnist", "--model", "linear_pcdeq_1"), "2 ranks for 1 run "),
])
def test_bad_flags_are_told_by_rank_0(monkeypatch, capsys, impatient, argv, words):
    status, err = in_world(monkeypatch, capsys, *argv, **rank_environment(0))
    assert status == 2 and words in err and err.count("\n") == 1
    assert in_world(monkeypatch, capsys, *argv, **rank_environment(1)) == (2, "")


def test_as_many_ranks_as_runs_and_one_full_run_are_fine(monkeypatch):
    four_runs = ["--model", "inn", "relu_enn", "--dim", "8", "9"]
    one_full_run = ["--model", "inn", "--dim", "8", "--train", "full"]
    for size, argv in ((4, four_runs), (7, one_full_run)):
        for name, value in rank_environment(0, size).items():
            monkeypatch.setenv(name, value)
        assert main.parse_arguments(argv, World())[1].together == (size == 7)


@pytest.mark.parametrize("environment", [
    {"RANK": ""}, {"RANK": "2"}, {"RANK": "-1"}, {"RANK": "one"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "two"},
    {"WORLD_TIMEOUT": "0"}, {"WORLD_TIMEOUT": "nan"},
])
def test_bad_environments(monkeypatch, capsys, environment):
    status, err = in_world(monkeypatch, capsys, **{**rank_environment(0), **environment})
    assert status == 2 and err.count("\n") == 1 and "0 <= RANK < WORLD_SIZE" in err


def test_a_world_whose_other_rank_never_comes(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, err = in_world(monkeypatch, capsys, **rank_environment(0, MASTER_PORT=str(free_port()), WORLD_TIMEOUT="1"))
    assert status == 1 and "rank 0 met no world of 2" in err and "1/2 clients joined" in err and err.count("\n") == 1
    status, err = in_world(monkeypatch, capsys, **rank_environment(0, MASTER_PORT="here"))
    assert status == 2 and "MASTER_ADDR:MASTER_PORT is 127.0.0.1:here" in err and err.count("\n") == 1
    assert not os.listdir(tmp_path)


def worlds(monkeypatch, size=2):
    """The ranks of a world over one store in memory."""
    found, store = [], dist.HashStore()
    for rank in range(size):
        for name, value in rank_environment(rank, size).items():
            monkeypatch.setenv(name, value)
        found.append(World())
        found[-1].store, found[-1].timeout = store, 20
    return found


def together(*calls):
    """The calls at the same time, each in its thread; what they returned, or raised."""
    results = [None] * len(calls)

    def caught(index):
        try:
            results[index] = calls[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=caught, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_the_longest_items_begin_first_and_each_is_done_once(monkeypatch):
    begun, both = [], threading.Barrier(2, timeout=20)

    def task(world):
        def run(item):
            begun.append((item, world.rank))
            if item in (9, 8):  # the two longest are under way at the same time
                both.wait()
            return {"rank": world.rank, "ten": 10 * item}
        return run

    items = [3, 9, 1, 8, 2]
    first, second = worlds(monkeypatch)
    values, nothing = together(*(lambda world=world: world.map(task(world), items, items) for world in (first, second)))
    assert [value["ten"] for value in values] == [30, 90, 10, 80, 20] and nothing == []
    assert {item for item, _ in begun[:2]} == {9, 8} and sorted(item for item, _ in begun) == sorted(items)
    assert {value["rank"] for value in values} == {0, 1}
    assert World.map(first, len, ["a", "bc"], [1, 2], together=True) == [1, 2]


def test_rank_0_does_not_wait_for_a_rank_that_is_silent(monkeypatch):
    first, second = worlds(monkeypatch)
    first.timeout = second.timeout = 1
    done = []
    with pytest.raises(RuntimeError, match="rank 1 has given no sign of life for 1 s .*--resume"):
        first.map(done.append, [1, 2], [1, 2])
    assert done == [2, 1]
    # one that lives may take its time
    threading.Thread(target=second._beat, daemon=True).start()
    timer = threading.Timer(2, lambda: second.store.set("done/1", ""))
    timer.start()
    first._wait("done/1", 1)
    second.ended.set()


def test_the_first_rank_that_fails_speaks_and_the_others_end(monkeypatch, capsys, impatient, request):
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored, where a background shell began the suite
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    first, second = worlds(monkeypatch)
    for world, message in ((second, "rank 1 is out of luck\n"), (first, "so is rank 0\n")):
        with pytest.raises(SystemExit) as stop, world:
            world.exit(1, message)
        assert stop.value.code == 1
    with pytest.raises(SystemExit), first:
        first._wait("done/1", 1)
    told = capsys.readouterr()
    assert told.err == "rank 1 is out of luck\n" and told.out == ""
    monkeypatch.setattr(second, "store", dist.PrefixStore("gone", second.store))
    monkeypatch.setattr(dist.PrefixStore, "add", lambda *_: (_ for _ in ()).throw(dist.DistNetworkError("broken pipe")))
    with pytest.raises(SystemExit), second:  # rank 0 took the store with it
        second.exit(1, "the connection is lost\n")
    assert capsys.readouterr().err == "the connection is lost\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_only_rank_0_is_heard(monkeypatch, capsys):
    for world in worlds(monkeypatch):
        with world:
            print("table")
            print("warning", file=sys.stderr)
    assert capsys.readouterr() == ("table\n", "warning\n")


def test_others_begin_when_rank_0_is_ready_in_the_same_folders(monkeypatch, impatient, tmp_path):
    first, second = worlds(monkeypatch)
    order = []

    def leads():
        time.sleep(0.3)
        order.append("loaded")
        first.let_start("grid", tmp_path / "out", tmp_path / "ckpt")

    def follows():
        second.await_leader(tmp_path / "out", tmp_path / "ckpt")
        order.append("follows")

    assert together(leads, follows) == [None, None] and order == ["loaded", "follows"]
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    second.let_start("grid")
    with pytest.raises(ValueError, match="rank 1 .* has other flags or other data than rank 0"):
        second.let_start("another grid")
    first, second = worlds(monkeypatch)
    first.timeout = 1
    _, refusal = together(leads, lambda: second.await_leader(tmp_path / "elsewhere"))
    assert isinstance(refusal, ValueError)
    assert "--output_path and --save_path must be folders that all ranks share" in str(refusal)


def test_lost_connections_become_advice(monkeypatch):
    with pytest.raises(RuntimeError, match=r"connection to another rank is lost \(broken pipe\); .*--resume"):
        with distributed.one_line_where_a_rank_is_gone():
            raise dist.DistNetworkError("broken pipe\nframe #0")
    with pytest.raises(RuntimeError, match="is lost; ") as caught:
        with distributed.one_line_where_a_rank_is_gone():
            raise RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer")
    assert caught.value.__suppress_context__
    with pytest.raises(train.TrainingError):  # others stay as they are
        with distributed.one_line_where_a_rank_is_gone():
            raise train.TrainingError("loss")


def test_costs_put_what_is_long_before_what_is_short():
    usual = {"dataset": "mnist", "model": "inn", "dim": 1024, "lr": 1.0, "epoch": 100, "batch_size": 128}
    price = lambda **changes: cost(Config(**{**usual, **changes}), 70000, 784, 10)
    assert price() > price(model="relu_enn") > price(dim=256) > price(dim=256, model="relu_enn") > price(dim=32)
    assert price(train="full") > 50 * price() and price(epoch=200) > price()
    # README: at width 4096 an ENN's features are 10 times as fast
    assert price(dim=4096, epoch=1) / price(dim=4096, epoch=1, model="relu_enn") == pytest.approx(10, rel=0.3)


def test_single_process_has_no_world(monkeypatch, capsys):
    monkeypatch.setattr(dist, "rendezvous", lambda *a, **k: pytest.fail("formed a world"))
    for size in ({}, {"WORLD_SIZE": "1", "RANK": "0"}):
        for name, value in size.items():
            monkeypatch.setenv(name, value)
        with World() as world:
            world.form()
            world.await_leader("nowhere")
            world.let_start("", "nowhere")
            assert (world.rank, world.size, world.device(None)) == (0, 1, None)
            assert world.map(len, ["abc", ""], [0, 1]) == [3, 0]
            print("heard")
    assert capsys.readouterr().out == "heard\nheard\n" and not Path("nowhere").exists()
