"""One computation that two ranks share, started by torchrun and by hand: full training, and kernel machines."""

import json
import os

import pytest
import torch
import torch.distributed.run

from deq_enn.experiments import command
from deq_enn.reporting.records import read_metrics
from deq_enn.training import loop
from deq_enn.utils.team import Team
from tests.conftest import ROOT
from tests.experiments.test_executors import alone, logs
from tests.helpers.forks import at, free_port, rank_environment

FULL = ("--model", "inn", "--dim", 24, "--epoch", 3, "--train", "full", "--opt", "adam", "--lr", 0.05)
FULL += "--batch_size", 59  # the last batch has one sample, so that one of two ranks has none
KERNEL = ("--train", "kernel", "--model", "inn", "relu_enn", "--match", "ntk", "--ridge", 0.01, 0.1)


def two_ranks(forks, program, *argv, cwd, **more):
    """Both ranks of a world started by hand: (status, stdout, stderr) of each."""
    job = {"program": str(program), "argv": [*map(str, argv)], "cwd": str(cwd), **more}
    port = str(free_port())
    done = forks.ranks(*({**job, "env": rank_environment(rank, MASTER_PORT=port)} for rank in (0, 1)))
    return [(rank["status"], rank["out"], rank["err"]) for rank in done]


@pytest.fixture(scope="module")
def shared_steps(forks):
    """Torch imports a compiler for a run that ranks share; not each of them."""
    forks.prepare("torch._dynamo")


@pytest.fixture(scope="module")
def base(small_npz):
    return "--dataset", "npz", "--dataset_path", small_npz, "--device", "cpu"


def epochs(folder):
    return [record for record in read_metrics(folder / "out") if record["event"] == "epoch"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (("--dim", 0), "positive whole number"),
        (("--dim", 8, "--processes", 2), "not for the ranks of torchrun"),
        (("--dim", 8), "for the runs of a grid start main.py without it, with --processes 2"),
        (("--dim", 8, 9, "--model", "inn", "--train", "full"), "a single run with --train full"),
        (("--dataset", "mnist", "--model", "linear_pcdeq_1"), "with --processes 2"),
    ],
)
def test_what_ranks_do_not_share_is_refused_by_rank_0(forks, tmp_path, argv, words):
    (status, _, said), (other, *silence) = two_ranks(forks, ROOT / "main.py", *argv, cwd=tmp_path)
    assert (status, said.count("\n")) == (2, 1) and words in said and not os.listdir(tmp_path)
    assert silence == ["", ""] and other != 0


@pytest.mark.parametrize("bad", [{"RANK": ""}, {"RANK": "2"}, {"RANK": "-1"}, {"RANK": "one"}, {"WORLD_SIZE": "two"}])
def test_bad_environments(monkeypatch, capsys, bad):
    for name, value in {**rank_environment(0), **bad}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        command.main([])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and "0 <= RANK < WORLD_SIZE" in said


GRADIENTS = """
import sys
import torch
from deq_enn.data.datasets import Dataset
from deq_enn.utils.team import team_of_ranks
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
    with team_of_ranks(torch.device("cpu")) as team:
        results = {name: weights_after_an_epoch(name, team) for name in ("deq", "enn")}
        with open(f"{sys.argv[1]}/{team.rank}.pt", "wb") as file:
            torch.save(results, file)
"""


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert len(epochs(tmp_path / "both")) == 1
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
    for first, other in zip(expected, got, strict=True):  # one writer: no line twice
        assert other == pytest.approx(first, rel=1e-4)
    assert len(got) == 3
    for path, content in logs(tmp_path / "whole" / "out").items():
        assert json.loads((tmp_path / "both" / "out" / path).read_text()) == pytest.approx(json.loads(content))


@pytest.mark.slow
def test_a_kernel_machine_by_block_rows_is_that_of_one_process(forks, base, tmp_path):
    """Also where all rows are in one block, so that a rank has none."""
    alone(*base, *KERNEL, *at(tmp_path / "alone"))
    for name, setup in (("rows", "from deq_enn.machines import run; run.HEIGHT = 12"), ("row", "")):
        argv = *base, *KERNEL, *at(tmp_path / name)
        ranks = two_ranks(forks, ROOT / "main.py", *argv, cwd=tmp_path, setup=setup)
        assert [rank[::2] for rank in ranks] == [(0, "")] * 2 and ranks[1][1] == ""
        assert logs(tmp_path / name / "out") == logs(tmp_path / "alone" / "out")
        for shared, whole in zip(epochs(tmp_path / name), epochs(tmp_path / "alone"), strict=True):
            for score in ("ridge", "noise", "test_mse", "test_accuracy", "scale2"):
                assert shared[score] == pytest.approx(whole[score], rel=1e-5)
        assert not [*(tmp_path / name / "ckpt").glob("*.kernel")]


@pytest.mark.slow
def test_a_run_that_fails_is_told_once_and_ends_every_rank(forks, shared_steps, base, tmp_path):
    diverges = *base, *FULL, "--model", "tanh_inn", "--dim", 256, "--epoch", 1, "--asquare", 0.99999
    ranks = two_ranks(forks, ROOT / "main.py", *diverges, *at(tmp_path), cwd=tmp_path)
    warning, failure = [line for _, _, err in ranks for line in err.splitlines()]
    assert "main.py: warning: sigma_a^2" in warning and "main.py: failed: the equilibrium" in failure
    assert "relative residual" in failure and 1 in (status for status, _, _ in ranks)


@pytest.mark.slow
def test_a_rank_that_fails_alone_is_heard_alone(forks, shared_steps, base, tmp_path):
    """The other has lost it, and is silent."""
    alone_fails = (
        "import os\nfrom deq_enn.training import loop\ndef fails(*_):\n    raise loop.TrainingError('out of luck')\n"
        "if os.environ['RANK'] == '{}': loop.FullTask.evaluate = fails"
    )
    for rank in (0, 1):
        argv = *base, *FULL, *at(tmp_path / str(rank))
        ranks = two_ranks(forks, ROOT / "main.py", *argv, cwd=tmp_path, setup=alone_fails.format(rank))
        assert ranks[rank][::2] == (1, "main.py: failed: out of luck\n") and ranks[1 - rank][2] == ""


@pytest.mark.slow
def test_ranks_that_differ_are_refused(forks, shared_steps, base, tmp_path):
    port = str(free_port())
    jobs = (
        {
            "argv": [*map(str, (*base, *FULL, "--seed", rank, *at(tmp_path)))],
            "cwd": str(tmp_path),
            "env": rank_environment(rank, MASTER_PORT=port),
        }
        for rank in (0, 1)
    )
    said = "".join(rank["err"] for rank in forks.ranks(*jobs))
    assert said.count("\n") == 1 and "the ranks have different flags or data" in said
    assert not [*tmp_path.rglob("*.jsonl")]


@pytest.mark.slow
def test_a_rank_without_a_world_gives_up_in_one_line(forks, base, tmp_path):
    hasty = "from deq_enn.utils import team; team.TIMEOUT = 0.5"
    for rank, words in ((1, "rank 1 met no world of 2"), (0, "1/2 clients joined")):
        environment = rank_environment(rank, MASTER_PORT=str(free_port()))
        done = forks.run(*base, *FULL, *at(tmp_path), cwd=str(tmp_path), env=environment, setup=hasty)
        assert done["status"] == 1 and done["err"].count("\n") == 1 and not os.listdir(tmp_path)
        assert words in done["err"] and "start every rank within 0.5 s" in done["err"]


KILLER = """
import os, signal, threading, time
from pathlib import Path

def kill_rank_1():
    metrics = Path("out", "metrics.jsonl")
    while not metrics.exists() or '"event": "epoch"' not in metrics.read_text():
        time.sleep(0.01)
    for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
        if "RANK=1" in Path("/proc", child, "environ").read_text().split("\\0"):
            os.kill(int(child), signal.SIGKILL)

threading.Thread(target=kill_rank_1, daemon=True).start()
"""


@pytest.mark.long
def test_a_killed_rank_ends_the_job_and_resume_finishes_it(forks, base, tmp_path):
    """The real torchrun, itself a fork: its ranks are new processes. A thread within it kills one of them."""
    long = *FULL, "--epoch", 12
    launcher = torch.distributed.run.__file__
    argv = ["--standalone", "--nproc_per_node", "2", ROOT / "main.py", *base, *long, *at(tmp_path)]
    done = forks.run(*argv, program=launcher, cwd=str(tmp_path), setup=KILLER)
    assert done["status"] != 0 and "test accuracy" not in done["out"]
    (line,) = [line for line in done["err"].splitlines() if line.startswith("main.py: ")]
    assert ("has died" in line or "connection to another rank is lost" in line) and "--resume" in line
    assert 0 < len(epochs(tmp_path)) < 12
    done = forks.run(*argv, "--resume", program=launcher, cwd=str(tmp_path))
    assert done["status"] == 0, done["err"]
    assert len(epochs(tmp_path)) == 12
    alone(*base, *long, *at(tmp_path / "alone"))
    for shared, other in zip(epochs(tmp_path), epochs(tmp_path / "alone"), strict=True):
        assert shared["test_loss"] == pytest.approx(other["test_loss"], rel=1e-3)
