"""Every DEQ against its match: distances recomputed, wrong matches seen, trainings resumed, the command lines."""

import argparse
import functools
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from ck_ntk import any_activation_matching as study, matching_map
from ck_ntk.common import command, samples, slopes
from deq_enn.data.datasets import Dataset
from deq_enn.kernels import distance as kernel_distance
from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
from deq_enn.matching import families
from deq_enn.matching.two_layer_lrelu import solutions
from deq_enn.networks import build as model
from deq_enn.theory import activations
from deq_enn.theory.activations import ACTIVATIONS, piecewise_linear
from deq_enn.theory.coefficients import implicit_ck
from deq_enn.theory.equilibrium import estimate_tau0
from deq_enn.theory.gaussian import centred_layers
from deq_enn.utils.random import generator
from tests.conftest import ROOT

match = functools.cache(families.match)  # the tests here ask for the same ones again and again


def keep(monkeypatch, *names):
    """A registry of these activations only, so that a script takes seconds. Another one, not the registry with names
    taken out: put back, they would stand at its end, and tests that come later in this process read its order."""
    monkeypatch.setattr(families, "match", match)
    kept = {name: activation for name, activation in ACTIVATIONS.items() if name in names}
    monkeypatch.setattr(activations, "ACTIVATIONS", kept)


@pytest.fixture
def few(monkeypatch):
    keep(monkeypatch, "relu", "tanh", "elu")


def arguments(**settings):
    settings = {"trainings": settings.get("seeds", 1)} | settings
    defaults = dict(
        device="cpu", n=[64], seeds=1, asquare=0.2, epoch=2, dim=[16], dataset_path=None, activation=None, margin=0.5
    )
    return argparse.Namespace(**defaults | settings)


def sample(n, seed=0):
    X = samples.mixture(n, seed).X
    return X / estimate_tau0(X)


def unmatched_enn(name):
    return model.build_model("unmatched_enn", 1, 1, 2, 0.2, activation=ACTIVATIONS[name])


def both_matches(name):
    return {kernel: match(ACTIVATIONS[name], 0.2, kernel=kernel) for kernel in ("ck", "ntk")}


# -- kernels -----------------------------------------------------------------------------------------------------


def test_distances_of_the_relu_networks_recomputed():
    X, relu = sample(96), ACTIVATIONS["relu"]
    deq = implicit_kernels(X, relu, 0.2, "aAB", 1.0)
    roots = [explicit_kernels(X, root.layers)[0] for root in solutions(implicit_ck(relu, 0.2, 1.0), 1.0)]
    scale = math.sqrt(0.8)
    plain = explicit_kernels(scale * X, centred_layers([ACTIVATIONS["relu"]] * 2, scale))

    def distance(M, other):
        return np.linalg.norm((M - other).numpy(), 2) / np.linalg.norm(M.numpy(), 2)

    result = study.distances(X, relu, 0.2, both_matches("relu"), unmatched_enn("relu"))
    assert min(abs(result["ck"][0] / distance(deq[0], root) - 1) for root in roots) < 1e-2
    for index, kernel in enumerate(("ck", "ntk")):
        matched, unmatched, scaled, factor = result[kernel]
        assert unmatched == pytest.approx(distance(deq[index], plain[index]), rel=1e-3)
        assert scaled == pytest.approx(distance(deq[index], factor * plain[index]), rel=1e-2)
        around = [distance(deq[index], c * factor * plain[index]) for c in (0.9, 0.97, 1.03, 1.1)]
        assert scaled < min(around) and matched < 0.1 * unmatched


@pytest.mark.slow
def test_the_best_factor_is_that_of_a_fine_grid():
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0):
        roots = rng.normal(size=(2, 12, 20))
        M, other = (torch.from_numpy(size * root @ root.T) for root in roots)
        distance, factor = kernel_distance.least_distance(M, other)
        norms = [np.linalg.norm(M - c * other, 2) / np.linalg.norm(M, 2) for c in np.linspace(0, 3, 3001)]
        assert distance == pytest.approx(min(norms), abs=1e-3)
        assert kernel_distance.least_distance(M, 7 * other)[1] == pytest.approx(factor / 7, abs=1e-2)
    assert kernel_distance.least_distance(M, M / 5) == pytest.approx((0, 5), abs=1e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["tanh", "swish"])
@pytest.mark.slow
def test_a_wrong_match_is_seen(name):
    def distances(n, matches):
        return study.distances(sample(n), ACTIVATIONS[name], 0.2, matches, unmatched_enn(name))

    right = both_matches(name)
    wrong = {
        kernel: replace(result, layers=(*result.layers[:-1], steeper(result.layers[-1])))
        for kernel, result in right.items()
    }
    all_three = distances(96, wrong), distances(384, wrong), distances(384, right)
    for kernel in right:
        small, large, true = (result[kernel][0] for result in all_three)
        assert large > 0.9 * small and large > 2.5 * true, kernel  # it does not fall


def steeper(layer):
    slopes = [1.05 * slope for slope in layer.slopes]
    return piecewise_linear("wrong", layer.kinks, slopes, float(layer.fn(torch.tensor(0.0))))


@pytest.mark.slow
def test_the_scripts_numbers_and_panels(few, capsys):
    args = arguments(n=[48, 144], seeds=2)
    figure, numbers = study.main(args)
    assert "the MNIST table is skipped: no --dataset_path" in capsys.readouterr().out
    assert len(figure.axes) == 2 and numbers["accuracies"] is None
    json.dumps(numbers)
    x = sample(144)
    again = {
        name: study.distances(x, ACTIVATIONS[name], 0.2, both_matches(name), unmatched_enn(name))
        for name in ("relu", "tanh", "elu")
    }
    for kernel in ("ck", "ntk"):
        assert list(numbers["kernels"][kernel]) == ["relu", "tanh", "elu"]
        for name, row in numbers["kernels"][kernel].items():
            assert row["slope"][0] < -0.15, (kernel, name)
            assert np.shape(row["matched"]) == (2, 2) and np.min(row["unmatched"]) > np.max(row["matched"])
            columns = ("matched", "unmatched", "unmatched_scaled", "factor")
            assert again[name][kernel] == pytest.approx(tuple(row[column][1][0] for column in columns), rel=1e-12)
    assert numbers["spread"][1][0] == pytest.approx(float(np.std((x.numpy() ** 2).sum(1), ddof=1)))
    row = numbers["kernels"]["ck"]["relu"]
    assert (row["family"], row["layers"]) == ("l_relu", 2)
    assert row["slope"] == pytest.approx(slopes.fit_slope(args.n, row["matched"]))
    plt.close(figure)


# -- accuracies --------------------------------------------------------------------------------------------------


def small_data():
    X = torch.randn(300, 20, generator=generator("any activation"))
    y = (X[:, :3].sum(1) > 0).long() + (X.square().sum(1) > 20).long()
    X /= estimate_tau0(X)
    return Dataset("mnist", X[:200], y[:200], X[200:], y[200:], 3)


@pytest.mark.long
def test_trainings_resume_without_being_done_again(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    build, built = model.build_model, []

    def counting(name, p, dim, *others, **named):
        if dim > 1:  # not the one that only has coefficients
            built.append(name)
            if len(built) == stop:
                raise KeyboardInterrupt
        return build(name, p, dim, *others, **named)

    monkeypatch.setattr(model, "build_model", counting)
    args, data, stop = arguments(seeds=2), small_data(), 12
    with pytest.raises(KeyboardInterrupt):
        study.study_accuracies(args, data)
    built, stop = [], None
    numbers = study.study_accuracies(args, data)
    assert len(built) == 24 - 11
    table = capsys.readouterr().out
    built = []
    assert study.study_accuracies(args, data) == numbers and not built
    assert table.endswith(capsys.readouterr().out)
    monkeypatch.setattr(study, "RUNS", tmp_path / "others")
    assert study.study_accuracies(args, data) == numbers and len(built) == 24  # in one go: the same numbers
    built = []
    study.study_accuracies(arguments(seeds=2, epoch=3), data)  # other settings do not stand in one another's way
    assert len(built) == 24
    figure = study.draw(args, *study.study_kernels(args), numbers)
    assert len(figure.axes) == 3
    plt.close(figure)


def test_own_learning_rate_makes_up_for_alpha_1(few, tmp_path, monkeypatch):
    """SGD at lr c on the features f is SGD at lr 1 on sqrt(c) f: the checkpoint's weights, trained here that way."""
    monkeypatch.setattr(study, "RUNS", tmp_path / "runs")
    data = small_data()
    row, tau0 = study.study_accuracies(arguments(), data)["relu"], estimate_tau0(data.X_train)
    # alpha_1 of centred ReLU layers is 1/4 each; sigma_b^2 is the input's
    assert row["lr"] == pytest.approx(implicit_ck(ACTIVATIONS["relu"], 0.2, tau0).c1 / (0.8 / 16), rel=1e-12)
    net = model.build_model("unmatched_enn", 20, 16, 3, 0.2, tau0, 0, ACTIVATIONS["relu"])
    f = math.sqrt(row["lr"]) * net.features(data.X_train).detach()
    readout = torch.zeros(3, 16, requires_grad=True)
    for epoch in (1, 2):
        for rows in torch.randperm(200, generator=generator(0, "order", epoch)).split(128):
            loss = torch.nn.functional.cross_entropy(f[rows] @ readout.T, data.y_train[rows])
            readout = (readout - torch.autograd.grad(loss, readout)[0]).detach().requires_grad_()
    close = [
        torch.allclose(torch.load(path)["weight"], math.sqrt(row["lr"]) * readout, rtol=1e-4, atol=1e-6)
        for path in (tmp_path / "runs").rglob("*_unmatched_enn-relu_*.pt")
    ]
    assert sorted(close) == [False, True]  # the other one at lr 1


def test_a_row_of_the_accuracy_table():
    row = {"lr": 4.25, "deq": [0.90, 0.92], "matched": [0.89, 0.92], "unmatched": [0.80, 0.84], "own_lr": [0.91, 0.91]}
    words = study.accuracy_row("relu", row).replace(" ± ", "±").split()
    assert words == [
        "relu",
        "91.00±1.41",
        "90.50±2.12",
        "82.00±2.83",
        "91.00±0.00",
        "4.250",
        "+0.50±0.50",
        "+9.00±1.00",
        "+0.00±1.00",
    ]
    single = study.accuracy_row("relu", {"lr": 1.0} | {key: row[key][:1] for key in study.NETWORKS}).split()
    assert single == ["relu", "90.00", "89.00", "80.00", "91.00", "1.000", "+1.00", "+10.00", "-1.00"]


@pytest.mark.slow
def test_equality_is_tested_over_all_activations_together(few, capsys):
    """Eight seeds made up: the printed p-values are Holm's of scipy's, and three seeds make no claim."""
    from scipy.stats import ttest_1samp

    args = arguments(n=[32], trainings=8)
    kernels, _ = study.study_kernels(args)
    spread = np.linspace(-1, 1, 8)
    points = {"relu": 0.2 + 0.1 * spread, "tanh": 0.3 * spread, "elu": 1.0 + spread}
    accuracies = {name: {"deq": (0.9 + d / 100).tolist(), "matched": [0.9] * 8} for name, d in points.items()}
    study.print_equality(args, accuracies, kernels)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    p = {
        name: max(ttest_1samp(d, -0.5, alternative="greater").pvalue, ttest_1samp(d, 0.5, alternative="less").pvalue)
        for name, d in points.items()
    }
    order = sorted(p, key=p.get)
    adjusted, least = {}, 0.0
    for rank, name in enumerate(order):
        adjusted[name] = least = max(least, min(1.0, (3 - rank) * p[name]))
    for name, words in (("relu", "equal within 0.5, yet higher"), ("tanh", "equal within 0.5"), ("elu", "higher")):
        assert lines[name].endswith(f"  {words}") and f"{adjusted[name]:.2g}" in lines[name].split()
    study.print_equality(args, {name: {key: row[key][:3] for key in row} for name, row in accuracies.items()}, kernels)
    assert capsys.readouterr().out.count("not enough seeds (3 of 8)") == 3


@pytest.mark.slow
def test_what_violates_assumption_3_has_a_star(monkeypatch, capsys):
    keep(monkeypatch, "relu", "tanh", "erf", "gelu", "selu")
    args = arguments(n=[32])
    study.print_kernels(args, *study.study_kernels(args))
    printed = capsys.readouterr().out
    for name, bound in (("erf", "0.1963"), ("gelu", "0.1962"), ("selu", "0.08088")):
        assert f"\n{name}*" in printed and f"1/(4 L^2) = {bound}" in printed
    assert "\nrelu " in printed and "for relu" not in printed


# -- command lines -----------------------------------------------------------------------------------------------


@pytest.fixture
def call(forks):
    return lambda name, *flags: SimpleNamespace(**forks.run(*flags, program=f"ck_ntk/{name}.py", cwd=str(ROOT)))


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("any_activation_matching", ["--epoch", "0"], "positive"),
        ("any_activation_matching", ["--asquare", "1"], "between 0 and 1"),
        ("any_activation_matching", ["--margin", "0"], "between 0 and 100"),
        ("matching_map", ["--points", "1"], "between 2 and 200"),
        ("matching_map", ["--points", "x"], "--points"),
        ("matching_map", ["--tau0", "nan"], "positive and finite"),
        ("matching_map", ["--n", "64"], "--n"),
        ("matching_map", ["--random", "-1"], "between 0 and 10000"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(call, tmp_path, name, flags, message):
    done = call(name, *flags, "--output_path", str(tmp_path / "figures"))
    assert done.status == 2 and done.err.count("\n") == 1 and message in done.err
    assert not done.out and not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_said_before_the_kernels():
    for settings, message in (
        (dict(dim=[8, 16]), "one --dim"),
        (dict(dataset_path="no/folder"), "no such file"),
        (dict(activation=["relu", "foo"]), "--activation foo: choose from relu"),
    ):
        with pytest.raises(ValueError, match=message):
            study.main(arguments(n=[20000], **settings))


@pytest.mark.parametrize(
    "error, status, message",
    [
        (RuntimeError("lost\nits way"), 1, "any: failed: lost its way\n"),
        (KeyboardInterrupt(), 130, "any: interrupted\n"),
        (OSError("disk"), 2, "any: error: disk\n"),
    ],
)
def test_failures_are_one_line_with_their_status(tmp_path, monkeypatch, capsys, error, status, message):
    def fail(args):
        raise error

    monkeypatch.setattr(sys, "argv", ["any.py", "--extra", "3", "--output_path", str(tmp_path / "figures")])
    with pytest.raises(SystemExit) as end:
        command.run(fail, "", flags={"--extra": dict(type=int)})
    assert end.value.code == status and capsys.readouterr().err == message and not list(tmp_path.iterdir())


@pytest.mark.long
def test_matching_map_writes_every_match(tmp_path, monkeypatch, capsys):
    keep(monkeypatch, "relu", "tanh", "elu", "selu", "gelu")
    monkeypatch.setattr(sys, "argv", ["matching_map.py", "--output_path", str(tmp_path)])
    flags = {
        "--points": dict(type=int, default=2),
        "--tau0": dict(type=float, default=1.0),
        "--random": dict(type=int, default=1),
    }
    command.run(matching_map.main, "", flags=flags)
    numbers = json.loads((tmp_path / "matching_map.json").read_text())
    assert numbers["random"]["ntk"]["tried"] == 5
    assert numbers["settings"]["points"] == 2 and set(numbers["matches"]) == {"ck", "ntk", "ntk_aA"}
    for key, (kernel, trained, _) in matching_map.COLUMNS.items():
        for name, (first, second) in numbers["matches"][key].items():
            assert (first["sigma_a2"], second["sigma_a2"]) == pytest.approx((0.0625, 0.1875))
            result = match(ACTIVATIONS[name], second["sigma_a2"], 1.0, kernel, trained=trained)
            assert (second["family"], second["layers"]) == (result.family, len(result.layers))
            assert second["residual"] < 1e-10


@pytest.mark.long
def test_random_deqs_are_counted_and_what_fails_is_said(monkeypatch, capsys):
    keep(monkeypatch, "relu", "tanh", "selu", "sin")
    result = matching_map.random_study(argparse.Namespace(random=6))
    for kernel, row in result.items():
        assert row["tried"] == 24 == row["matched"] + len(row["failures"]) and 0 < row["residual"] < 1e-10
        for failure in row["failures"]:
            with pytest.raises(ValueError) as error:
                match(ACTIVATIONS[failure["activation"]], failure["sigma_a2"], failure["tau0"], kernel)
            assert str(error.value) == failure["reason"]
    assert any(failure["kind"] == "no match" for row in result.values() for failure in row["failures"])
    matching_map.print_random(result)
    assert f"CK: {result['ck']['matched']} of 24 random DEQs matched" in capsys.readouterr().out
