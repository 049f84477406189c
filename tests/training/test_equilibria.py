"""DEQs trained in other ways than to a strict equilibrium: stopped, leniently, with a penalty; and what is logged."""

import json
from dataclasses import replace

import pytest
import torch

from deq_enn.experiments import command
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import Anderson, Picard, Stopped
from deq_enn.networks.pcdeq import build_pcdeq
from deq_enn.reporting.records import read_metrics
from deq_enn.training.equilibria import Equilibria, prepared
from deq_enn.training.loop import FullTask, TrainingError, run
from deq_enn.training.run_files import Config
from deq_enn.utils.random import generator
from deq_enn.utils.team import Team
from tests.training.test_loop import model_of, toy
from tests.training.test_pcdeq_training import CONFIG as PCDEQ, toy_digits

BASE = Config(dataset="toy", model="tanh_inn", dim=16, lr=0.1, epoch=2, batch_size=32, train="full", asquare=0.4)


def go(config, folder, **options):
    return run(config, toy(), lambda: prepared(model_of(config), config), folder / "out", folder / "ckpt", **options)


def test_by_default_keys_and_logs_are_what_they_were(tmp_path):
    """The keys are those of version 1.0.0."""
    assert replace(BASE, train="readout").key == "079c4004b1a42b7e" and BASE.key == "46634ad1b3580f72"
    assert BASE.label == "tanh_inn" and not BASE.watched
    go(BASE, tmp_path)
    start, *epochs = read_metrics(tmp_path / "out")
    assert [*start["config"]][-1] == "code"
    assert {*epochs[0]} == {
        *("event", "run", "dataset", "model", "dim", "seed", "epoch", "seconds"),
        *("train_loss", "train_accuracy", "test_loss", "test_accuracy", "forward_iterations", "backward_iterations"),
    }


def test_each_setting_has_a_key_of_its_own():
    given = {"steps": 3, "solver": "anderson", "max_steps": 50, "solver_tol": 1e-3, "lenient": True, "jacobian": "0"}
    assert len({BASE.key, *(replace(BASE, **{name: value}).key for name, value in given.items())}) == 7
    labels = [replace(BASE, **{name: value}).label for name, value in given.items()]
    assert labels == ["tanh_inn-steps3", *["tanh_inn"] * 4, "tanh_inn-jacobian0"]
    assert replace(PCDEQ, steps=3).label == "linear_pcdeq_1-steps3"


def test_a_stopped_network_is_trained_through_its_steps(tmp_path):
    """As an unrolled network that is written out here, by torch's own optimizer."""
    config = replace(BASE, steps=2)
    result = go(config, tmp_path)
    data, deq = toy(), model_of(config)
    optimizer = torch.optim.SGD(deq.parameters(), lr=0.1)
    root = 16**0.5
    for epoch, record in enumerate(result.history, 1):
        losses = 0.0
        for index in torch.randperm(100, generator=generator(0, "order", epoch)).split(32):
            u = 0.6**0.5 * data.X_train[index] @ deq.B.T
            z = deq.phi.fn(u)
            for _ in range(2):
                z = deq.phi.fn(0.4**0.5 / root * z @ deq.A.T + u)
            loss = torch.nn.functional.cross_entropy(deq.readout(z / root), data.y_train[index])
            losses += loss.item() * len(index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert record["train_loss"] == pytest.approx(losses / 100, rel=1e-5)
        assert "forward_iterations" not in record and "spectral_radius" not in record


def test_solvers_are_those_that_were_asked_for():
    def solver(**settings):
        point = prepared(model_of(BASE), replace(BASE, **settings)).fixed_point
        return point.solver

    assert solver() == Picard() and solver(solver="anderson") == Anderson()
    assert solver(max_steps=7, lenient=True) == Picard(1e-6, 7, strict=False)
    assert solver(solver_tol=1e-3, jacobian="0") == Picard(1e-3, 200)
    assert isinstance(prepared(model_of(BASE), replace(BASE, steps=4)).fixed_point, Stopped)
    explicit = replace(BASE, model="h_tanh_enn")
    assert prepared(model := model_of(explicit), replace(explicit, lenient=True)) is model
    layers = prepared(build_pcdeq("linear_pcdeq_1", "tanh", (1, 28, 28), 2), replace(PCDEQ, lenient=True)).equilibria
    assert [layer.fixed_point.solver for layer in layers] == [Picard(1e-4, 1000, strict=False)]


def test_a_lenient_run_goes_on_and_counts(tmp_path):
    strict = replace(BASE, max_steps=4)
    with pytest.raises(RuntimeError, match=r"did not converge.*allow it more iterations \(--max_steps\)"):
        go(strict, tmp_path / "strict")
    result = go(replace(strict, lenient=True), tmp_path)
    for record in result.history:  # four steps suffice for nobody at a tolerance of 1e-6
        assert (record["forward_unconverged"], record["backward_unconverged"], record["test_unconverged"]) == (
            *(100, 100),
            50,
        )
        assert record["forward_iterations"] == 4
    enough = go(replace(BASE, lenient=True), tmp_path / "enough").history[-1]
    assert enough["forward_unconverged"] == enough["backward_unconverged"] == enough["test_unconverged"] == 0
    assert enough["train_loss"] == go(BASE, tmp_path / "usual").history[-1]["train_loss"]


def test_what_ends_a_strict_run_names_the_lenient_mode(tmp_path):
    with pytest.raises(TrainingError, match="or go on all the same with --lenient. The logs up to epoch 0 are kept"):
        go(replace(BASE, lr=1e30), tmp_path)


def exact_radii(deq, X):
    deq.fixed_point.keep = True
    deq(X)
    f, z, args = deq.fixed_point.last
    jacobian = torch.vmap(torch.func.jacrev(lambda z, u: f(z[None], args[0], u[None])[0]))(z, args[1])
    return torch.linalg.eigvals(jacobian.double()).abs().amax(1)


def test_the_spectral_radius_in_the_log_is_that_of_the_trained_network(tmp_path):
    config = replace(BASE, epoch=1, lenient=True, lr=1.0)
    record = go(config, tmp_path).history[-1]
    (path,) = (tmp_path / "ckpt").glob("*[!t].pt")
    deq = model_of(config)
    deq.load_state_dict(torch.load(path, weights_only=True)["model"])
    radii = exact_radii(deq, toy().X_train[:128])
    assert record["spectral_radius"] == pytest.approx(radii.mean().item(), rel=0.01)
    assert record["largest_spectral_radius"] == pytest.approx(radii.max().item(), rel=0.02)


def test_the_size_in_the_log_is_that_of_a_sample(tmp_path):
    """The mean of |df/dz|^2 over its rows, by Hutchinson's numbers at a hundred samples."""
    record = go(replace(BASE, epoch=1, jacobian="0", lr=1e-12), tmp_path).history[-1]
    deq = model_of(BASE)
    deq.fixed_point.keep = True
    deq(toy().X_train)
    f, z, args = deq.fixed_point.last
    jacobian = torch.vmap(torch.func.jacrev(lambda z, u: f(z[None], args[0], u[None])[0]))(z, args[1])
    assert record["jacobian"] == pytest.approx(jacobian.square().sum().item() / 16 / 100, rel=0.2)


@pytest.mark.slow
def test_the_penalty_makes_the_jacobian_small(tmp_path):
    without = go(replace(BASE, epoch=6, jacobian="0"), tmp_path / "0").history
    penalised = go(replace(BASE, epoch=6, jacobian="100"), tmp_path / "100").history
    assert without[-1]["train_loss"] == go(replace(BASE, epoch=6), tmp_path).history[-1]["train_loss"]
    assert penalised[0]["jacobian"] < without[0]["jacobian"]
    assert penalised[-1]["jacobian"] < 0.5 * without[-1]["jacobian"]
    assert penalised[-1]["spectral_radius"] < 0.8 * without[-1]["spectral_radius"]


@pytest.mark.slow
def test_a_step_with_the_penalty_is_the_gradient_of_the_exact_one_in_the_mean():
    """Over many draws of Hutchinson's numbers, of the weights A after one step."""
    config = replace(BASE, batch_size=100, jacobian="2", dim=5)
    data = toy()
    order = torch.arange(100)

    def moved(seed, weight):
        chosen = replace(config, seed=0, jacobian=weight)
        model = prepared(model_of(chosen), chosen)
        task = FullTask(model, data, chosen, "cpu")
        task.equilibria.probes.manual_seed(seed)
        task.epoch(order)
        return model.A.detach()

    deq, plain = model_of(config), moved(0, "0")
    drift = torch.stack([moved(seed, "2") for seed in range(100)]) - plain
    deq.fixed_point.keep = True
    deq(data.X_train)
    f, z, (A, u) = deq.fixed_point.last

    def size(A):
        jacobian = torch.vmap(torch.func.jacrev(lambda z, u: f(z[None], A, u[None])[0]))(z, u.detach())
        return 2 * jacobian.square().sum() / 5 / 100

    expected = -0.1 * torch.func.grad(size)(A.detach())
    assert ((drift.mean(0) - expected).abs() <= 5 * drift.std(0) / 10 + 1e-6).all()
    assert expected.abs().max() > 10 * drift.std(0).max() / 10


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "settings", [{"steps": 2}, {"jacobian": "0.5", "lenient": True}, {"solver": "anderson", "solver_tol": 1e-4}]
)
def test_a_run_resumes_to_the_same_bytes(tmp_path, settings, monkeypatch):
    config = replace(BASE, epoch=3, **settings)
    go(config, tmp_path / "whole")
    epoch = FullTask.epoch

    def killed(self, order):
        if len(list((tmp_path / "ckpt").glob("*.pt"))):
            raise KeyboardInterrupt
        return epoch(self, order)

    with monkeypatch.context() as patch:
        patch.setattr(FullTask, "epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            go(config, tmp_path)
    result = go(config, tmp_path, resume=True)
    whole = [r for r in read_metrics(tmp_path / "whole" / "out") if r["event"] == "epoch"]
    for record, expected in zip(result.history, whole, strict=True):
        assert {k: v for k, v in record.items() if k != "seconds"} == {
            k: v for k, v in expected.items() if k in record and k != "seconds"
        }


@pytest.mark.slow
def test_pcdeqs_are_stopped_and_watched_too(tmp_path):
    def history(folder, **settings):
        config = replace(PCDEQ, epoch=2, **settings)

        def make():
            return prepared(build_pcdeq(config.model, config.activation, (1, 28, 28), 2, config.seed), config)

        return run(config, toy_digits(), make, tmp_path / folder / "out", tmp_path / folder / "ckpt").history

    stopped = history("steps", steps=2)
    usual, watched = history("usual"), history("watched", lenient=True, jacobian="0")
    assert "forward_iterations" not in stopped[-1] and stopped[-1]["train_loss"] != usual[-1]["train_loss"]
    for record, expected in zip(watched, usual):
        assert record["train_loss"] == expected["train_loss"]
        assert 0 < record["spectral_radius"] <= record["largest_spectral_radius"] < 1 and record["jacobian"] > 0


@pytest.mark.slow
def test_the_grid_of_steps_its_table_and_its_resumption(tmp_path, capsys):
    flags = ["--model", "tanh_inn", "h_tanh_enn", "--train", "full", "--dim", "8", "--epoch", "1", "--asquare", "0.5"]
    flags += ["--steps", "1", "3", "inf", "--lenient", "--max_steps", "3", "--lr", "0.1"]
    flags += ["--output_path", str(tmp_path / "out"), "--save_path", str(tmp_path / "ckpt")]
    command.main(flags)
    printed = capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").glob("*_test_*")}
    assert names == {
        f"8_test_{model}_gmm.json" for model in ("tanh_inn", "tanh_inn-steps1", "tanh_inn-steps3", "h_tanh_enn")
    }
    table = printed[printed.index("test accuracy in %") :].splitlines()
    assert [row[:19].rstrip() for row in table[2:6]] == [
        *("tanh_inn, 1 step", "tanh_inn, 3 steps"),
        *("tanh_inn", "h_tanh_enn"),
    ]
    assert "tanh_inn dim 8 seed 0: in the last epoch" in table[6] and "missed the solver's tolerance" in table[6]
    configs = {r["model"]: r["config"] for r in read_metrics(tmp_path / "out") if r["event"] == "run"}
    assert configs["tanh_inn-steps3"]["steps"] == 3 and "lenient" not in configs["tanh_inn-steps3"]
    assert configs["tanh_inn"]["lenient"] is True and "lenient" not in configs["h_tanh_enn"]
    before = {name: json.loads((tmp_path / "out" / name).read_text()) for name in names}
    command.main([*flags, "--resume"])
    assert before == {name: json.loads((tmp_path / "out" / name).read_text()) for name in names}


class Two(torch.nn.Module):
    """One DEQ on the features of another, which is easier to find."""

    def __init__(self):
        super().__init__()
        self.first, self.second = model_of(replace(BASE, asquare=0.1)), DEQ("tanh", 16, 12, 3, 0.6, tau0=0.3)

    def forward(self, x):
        return self.second(self.first.features(x))


def test_of_several_equilibria_each_sample_has_the_largest_radius():
    network, X = Two(), toy().X_train
    said = Equilibria(network, replace(BASE, lenient=True), Team()).after_an_epoch(network, X, 0)
    radii = torch.stack([exact_radii(network.first, X), exact_radii(network.second, network.first.features(X))])
    assert radii[0].max() < radii[1].min()
    assert said["spectral_radius"] == pytest.approx(radii.amax(0).mean().item(), rel=0.01)
    assert said["largest_spectral_radius"] == pytest.approx(radii.max().item(), rel=0.02)
