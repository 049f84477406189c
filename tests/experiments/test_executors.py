"""Parts of distributed.py in this process, over a store in memory."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from deq_enn.experiments import command, executors
from deq_enn.experiments.executors import World, cost
from deq_enn.training import loop
from deq_enn.training.run_files import Config
from tests.helpers.forks import free_port, rank_environment


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(executors, "PATIENCE", 0)


def in_world(monkeypatch, capsys, *argv, **environment):
    """Status and stderr of main.py in this process, with these environment variables."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        command.main([*map(str, argv)])
    told = capsys.readouterr()
    assert told.out == ""
    return stop.value.code, told.err


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--dim", 0), "positive whole number"),
        (("--model", "inn", "--dim", 8), "2 ranks for 1 run (models x dims x seeds): start at most one rank a run"),
        (("--dataset", "mnist", "--model", "linear_pcdeq_1"), "2 ranks for 1 run "),
    ],
)
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
        assert command.parse_arguments(argv, World())[1].together == (size == 7)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": ""},
        {"RANK": "2"},
        {"RANK": "-1"},
        {"RANK": "one"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "two"},
        {"WORLD_TIMEOUT": "0"},
        {"WORLD_TIMEOUT": "nan"},
    ],
)
def test_bad_environments(monkeypatch, capsys, environment):
    status, err = in_world(monkeypatch, capsys, **{**rank_environment(0), **environment})
    assert status == 2 and err.count("\n") == 1 and "0 <= RANK < WORLD_SIZE" in err


def test_a_world_whose_other_rank_never_comes(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, err = in_world(
        monkeypatch, capsys, **rank_environment(0, MASTER_PORT=str(free_port()), WORLD_TIMEOUT="0.5")
    )
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
    first.timeout = second.timeout = 0.5
    done = []
    with pytest.raises(RuntimeError, match="rank 1 has given no sign of life for 0.5 s .*--resume"):
        first.map(done.append, [1, 2], [1, 2])
    assert done == [2, 1]
    # one that lives may take its time
    threading.Thread(target=second._beat, daemon=True).start()
    timer = threading.Timer(1, lambda: second.store.set("done/1", ""))
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
        with executors.one_line_where_a_rank_is_gone():
            raise dist.DistNetworkError("broken pipe\nframe #0")
    with pytest.raises(RuntimeError, match="is lost; ") as caught:
        with executors.one_line_where_a_rank_is_gone():
            raise RuntimeError("[/third_party/gloo/gloo/transport/tcp/pair.cc:545] Connection closed by peer")
    assert caught.value.__suppress_context__
    with pytest.raises(loop.TrainingError):  # others stay as they are
        with executors.one_line_where_a_rank_is_gone():
            raise loop.TrainingError("loss")


def test_costs_put_what_is_long_before_what_is_short():
    usual = {"dataset": "mnist", "model": "inn", "dim": 1024, "lr": 1.0, "epoch": 100, "batch_size": 128}
    price = lambda **changes: cost(Config(**{**usual, **changes}), 70000, 784, 10)
    assert price() > price(model="relu_enn") > price(dim=256) > price(dim=256, model="relu_enn") > price(dim=32)
    assert price(train="full") > 50 * price() and price(epoch=200) > price()
    # docs/training.md: at width 4096 an ENN's features are 10 times as fast
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
