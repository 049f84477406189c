"""Grids and runs shared by two processes, started by torchrun and by hand."""

import json
import os
import re

import pytest
import torch
import torch.distributed.run

from deq_enn.experiments import command as main
from deq_enn.reporting.records import read_metrics
from deq_enn.training import loop
from deq_enn.utils.team import Team
from tests.conftest import ROOT
from tests.helpers.forks import DIVERGES, at, free_port, rank_environment

GRID = ("--model", "inn", "h_tanh_enn", "relu_enn", "--dim", 8, 16, "--seed", 0, 1, "--epoch", 30)
FULL = ("--model", "inn", "--dim", 24, "--epoch", 3, "--train", "full", "--opt", "adam", "--lr", 0.05)


def two_ranks(forks, program, *argv, cwd):
    """Both ranks of a world started by hand: (status, stdout, stderr) of each."""
    job = {"program": str(program), "argv": [*map(str, argv)], "cwd": str(cwd)}
    port = str(free_port())
    done = forks.ranks(*({**job, "env": rank_environment(rank, MASTER_PORT=port)} for rank in (0, 1)))
    return [(rank["status"], rank["out"], rank["err"]) for rank in done]


@pytest.fixture(scope="module")
def shared_steps(forks):
    """Torch imports a compiler for a run that ranks share; not each of them."""
    forks.prepare("torch._dynamo")


@pytest.fixture(scope="module")
def base(small_npz):
    # the last batch has one sample, so that one of two ranks has none
    return "--dataset", "npz", "--dataset_path", small_npz, "--batch_size", 59, "--device", "cpu"


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


def test_two_ranks_write_the_bytes_of_one_process(forks, base, whole, tmp_path, capsys):
    alone(*base, *GRID, *at(whole), "--resume")
    expected = capsys.readouterr().out
    first, second = two_ranks(forks, ROOT / "main.py", *base, *GRID, *at(tmp_path), cwd=tmp_path)
    assert first[::2] == (0, "") and second == (0, "", "")
    assert without_seconds(first[1]) == without_seconds(expected)
    assert len(logs(tmp_path / "out")) == 24 and logs(tmp_path / "out") == logs(whole / "out")
    assert epochs(tmp_path / "out") == epochs(whole / "out")
    assert (tmp_path / "out" / "accuracy_npz.png").exists()
    assert not [path for path in tmp_path.rglob(".*")]  # nothing is left of the search for shared folders


KILLER = """
import os, signal, threading, time
from pathlib import Path

def kill_rank_1():
    metrics = Path("out", "metrics.jsonl")
    while not metrics.exists() or '"epoch"' not in metrics.read_text():
        time.sleep(0.01)
    for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        if "RANK=1" in Path("/proc", child, "environ").read_text().split("\\0"):
            os.kill(int(child), signal.SIGKILL)

threading.Thread(target=kill_rank_1, daemon=True).start()
"""


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_resume_finishes_it(forks, base, whole, tmp_path):
    """The real torchrun, itself a fork: its ranks are new processes. A thread within it kills one of them."""
    launcher = torch.distributed.run.__file__
    argv = ["--standalone", "--nproc_per_node", "2", ROOT / "main.py", *base, *GRID, *at(tmp_path)]
    done = forks.run(*argv, program=launcher, cwd=str(tmp_path), setup=KILLER)
    assert done["status"] != 0 and "test accuracy" not in done["out"]
    (line,) = [line for line in done["err"].splitlines() if line.startswith("main.py: ")]
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
from deq_enn.data.datasets import Dataset
from deq_enn.experiments.executors import World
from deq_enn.networks.fixed_point import Picard
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.networks.deq import DEQ
from deq_enn.networks.build import build_model
from deq_enn.training.loop import FullTask
from deq_enn.training.run_files import Config

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


def test_steps_of_two_ranks_are_those_of_one(forks, shared_steps, tmp_path):
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


def test_a_full_run_shared_by_two_ranks_goes_on_from_a_checkpoint(forks, shared_steps, base, tmp_path, monkeypatch):
    alone(*base, *FULL, *at(tmp_path / "whole"))
    original, done = loop.RunFiles.epoch_done, []

    def dies_in_the_second(self, record, state):
        if done:
            raise KeyboardInterrupt
        done.append(original(self, record, state))

    monkeypatch.setattr(loop.RunFiles, "epoch_done", dies_in_the_second)
    with pytest.raises(SystemExit):
        alone(*base, *FULL, *at(tmp_path / "both"))
    assert len(epochs(tmp_path / "both" / "out")) == 1
    command = ROOT / "main.py", *base, *FULL, *at(tmp_path / "both"), "--resume"
    (status, out, err), second = two_ranks(forks, *command, cwd=tmp_path)
    assert status == 0 and err == "" and out.count("inn  ") == 2  # the theory and the table
    assert second == (0, "", "")
    expected, got = (
        [
            {k: v for k, v in r.items() if isinstance(v, (int, float)) and k != "seconds"}
            for r in read_metrics(tmp_path / name / "out")
            if r["event"] == "epoch"
        ]
        for name in ("whole", "both")
    )
    for one, other in zip(expected, got, strict=True):  # one writer: no line twice
        assert other == pytest.approx(one, rel=1e-4)
    assert len(got) == 3
    for path, content in logs(tmp_path / "whole" / "out").items():
        assert json.loads((tmp_path / "both" / "out" / path).read_text()) == pytest.approx(json.loads(content))


def test_a_run_that_fails_is_told_once_and_ends_every_rank(forks, base, tmp_path):
    ranks = two_ranks(forks, ROOT / "main.py", *base, *DIVERGES, *at(tmp_path), cwd=tmp_path)
    told = [line for _, _, err in ranks for line in err.splitlines()]
    warning, failure = told  # of both ranks together, and no traceback
    assert "main.py: warning: sigma_a^2" in warning and "main.py: failed: the equilibrium" in failure
    assert "relative residual" in failure and 1 in (status for status, _, _ in ranks)


def test_a_rank_that_is_stopped_after_rank_0_has_told_why_is_silent(forks, base, tmp_path):
    """The store, by which ranks agree on who speaks, ends with rank 0."""
    argv = [*map(str, (*base, *DIVERGES, "--model", "tanh_inn", "--seed", 0, 1, *at(tmp_path)))]
    port = str(free_port())
    busy = (
        "import time; from deq_enn.experiments import executors, grid; "
        "executors.PATIENCE, grid.run = 0.5, lambda *_: time.sleep(60)"
    )
    ranks = forks.ranks(
        *(
            {"argv": argv, "cwd": str(tmp_path), "env": rank_environment(rank, MASTER_PORT=port), "setup": setup}
            for rank, setup in enumerate(("", busy))
        )
    )
    assert (ranks[0]["status"], ranks[1]["status"], ranks[1]["err"]) == (1, 130, "")
    assert "main.py: failed: the equilibrium" in ranks[0]["err"]


def test_a_rank_without_a_world_gives_up_in_one_line(forks, tmp_path):
    done = forks.run(cwd=str(tmp_path), env=rank_environment(1, MASTER_PORT=str(free_port()), WORLD_TIMEOUT="0.5"))
    assert done["status"] == 1 and done["err"].count("\n") == 1 and not os.listdir(tmp_path)
    assert "rank 1 met no world of 2" in done["err"]
    assert "start every rank within 0.5 s (WORLD_TIMEOUT)" in done["err"]
