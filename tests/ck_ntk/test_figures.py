"""The figure scripts: their limits and predictions against actual spectra, their slopes, their command line."""

import argparse
import functools
import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from scipy.stats import linregress

from ck_ntk import cifar10_matching, finite_width_kernels
from ck_ntk.common import command, kernel_figures, panels, samples, slopes
from deq_enn.data.mixtures import gaussian_mixture
from deq_enn.kernels.distance import relative_error
from deq_enn.kernels.exact import implicit_kernels
from deq_enn.theory import limiting_spectrum
from deq_enn.theory.activations import ACTIVATIONS
from deq_enn.theory.coefficients import KernelCoefficients, implicit_ck, implicit_ntk
from deq_enn.theory.mixture import equivalent_kernel
from deq_enn.utils.locks import locked
from deq_enn.utils.random import generator
from tests.conftest import ROOT

GMM = [
    "ck_gmm_matching",
    "gmm_ntk_matching",
    "gmm_one_layer_matching",
    "gmm_two_layer_relu_matching",
    "finite_width_kernels",
]
MNIST = ["ck_mnist_matching", "mnist_ntk_matching", "mnist_one_layer_matching", "mnist_two_layer_matching"]


# -- the limiting spectrum ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 1.25, 3.0])
def test_one_white_class_is_marchenko_pastur(ratio):
    bulk = limiting_spectrum.Bulk(np.array([ratio]), np.ones((1, 1)), np.array([400]))
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    x = np.linspace(low, high, 42)[1:-1]
    expected = np.sqrt((high - x) * (x - low)) / (2 * math.pi * ratio * x)
    np.testing.assert_allclose(bulk.density(x), expected, rtol=2e-3)
    assert bulk.density(np.array([low / 2, high * 1.2])).max() < 1e-3
    left, right = bulk.support()
    assert left == pytest.approx(low, rel=0.05) and right == pytest.approx(high, rel=0.02)


@pytest.mark.slow
def test_density_of_two_anisotropic_classes_is_that_of_a_draw():
    p, counts = 600, [300, 600]
    groups = np.array([[1.0, 5.0, 0.4], [0.3, 1.0, 2.0]])
    multiplicity = np.array([200, 100, 300])
    X, _, _ = gaussian_mixture(
        torch.zeros(2, p), list(torch.from_numpy(np.repeat(groups, multiplicity, 1))), counts, generator("anisotropic")
    )
    actual = np.linalg.eigvalsh((X @ X.T).numpy())
    bulk = limiting_spectrum.Bulk(np.array(counts) / p, groups, multiplicity)
    grid = np.geomspace(actual[actual > 1e-9].min() / 2, actual.max() * 1.3, 3000)
    density = bulk.density(grid)
    below = np.concatenate([[0], np.cumsum(np.diff(grid) * (density[1:] + density[:-1]) / 2)])
    assert below[-1] == pytest.approx(p / 900, abs=2e-3)  # the rest is the atom at 0
    result = (actual[None] < grid[::50, None]).mean(1)
    assert np.abs(below[::50] + 1 - p / 900 - result).max() < 0.01


@pytest.mark.few(1)
@pytest.mark.parametrize("which", ["ck", "ntk"])
@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.slow
def test_isolated_eigenvalues_are_where_they_are_predicted(which, name):
    sample = samples.mixture(1200, 3)
    tau0 = sample.statistics.tau0
    coefficients = (
        implicit_ck(ACTIVATIONS[name], 0.2, tau0) if which == "ck" else implicit_ntk(ACTIVATIONS[name], 0.2, tau0)
    )
    values = torch.linalg.eigvalsh(equivalent_kernel(coefficients, sample.X, sample.statistics)).numpy()
    limit = limiting_spectrum.limiting_spectrum(sample, coefficients)
    assert len(limit.isolated) == (values > 1.1 * limit.x[-1]).sum() >= 2
    np.testing.assert_allclose(limit.isolated, values[-len(limit.isolated) :], rtol=0.05)
    assert (np.abs(values / limit.atom - 1) < 1e-6).mean() == pytest.approx(limit.atom_mass, abs=0.01)


@pytest.mark.slow
def test_covariance_and_fluctuation_terms_make_isolated_eigenvalues_of_their_own():
    # no means, and c2, c3 large: every isolated eigenvalue is due to t, T and psi
    n, p = 1200, 800
    scales = np.array([1.0, 1 + 12 / math.sqrt(p)])
    X, y, statistics = gaussian_mixture(torch.zeros(2, p), scales.tolist(), [n // 2, n // 2], generator("spikes"))
    sample = samples.Sample(X, y, statistics, scales[:, None], np.array([p]), np.zeros((1, 2, 2)), 2 * scales**2 / p)
    for c2, c3 in ((3.0, 0.0), (0.0, 6.0), (1.0, 4.0)):
        coefficients = KernelCoefficients(2.0, 1.0, c2, c3)
        values = torch.linalg.eigvalsh(equivalent_kernel(coefficients, X, statistics)).numpy()
        limit = limiting_spectrum.limiting_spectrum(sample, coefficients)
        outside = values[values > 1.03 * limit.x[-1]]
        assert len(limit.isolated) >= len(outside) >= 1
        np.testing.assert_allclose(limit.isolated[-len(outside) :], outside, rtol=0.05)


@pytest.mark.parametrize("n, p", [(600, 400), (300, 400)])
def test_the_fluctuation_of_norms_alone_makes_an_isolated_eigenvalue(n, p):
    """One white class has neither t nor a mean; the rest of the spectrum and the atom add up to 1."""
    X, _, statistics = gaussian_mixture(torch.zeros(1, p), [1.0], [n], generator("norms", n))
    sample = samples.Sample(X, None, statistics, np.ones((1, 1)), np.array([p]), np.zeros((1, 1, 1)), np.array([2 / p]))
    coefficients = KernelCoefficients(1.0, 0.2, 5.0, 0.0)
    values = torch.linalg.eigvalsh(equivalent_kernel(coefficients, X, statistics)).numpy()
    limit = limiting_spectrum.limiting_spectrum(sample, coefficients)
    assert len(limit.isolated) == 1 and limit.isolated[0] == pytest.approx(values[-1], rel=0.1)
    assert limit.atom_mass == pytest.approx(max(0, 1 - p / n))
    assert np.trapezoid(limit.density, limit.x) + limit.atom_mass == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_isolated_eigenvalues_that_coincide_are_counted_each(classes):
    """Classes of equal size with means of equal length have eigenvalues that differ by chance alone."""
    p, mean = 400, 4.0
    M = mean * torch.eye(classes, p, dtype=torch.float64)
    draw = generator("coincide", classes)
    X, y, statistics = gaussian_mixture(M, [1.0] * classes, [600 // classes] * classes, draw)
    ones, halves = np.ones((classes, 2)), np.array([p // 2, p // 2])
    overlaps = np.stack([(M[:, ::2] @ M[:, ::2].T).numpy(), (M[:, 1::2] @ M[:, 1::2].T).numpy()])
    sample = samples.Sample(X, y, statistics, ones, halves, overlaps, np.full(classes, 2 / p))
    coefficients = KernelCoefficients(1.0, 0.2, 0.0, 0.0)
    values = torch.linalg.eigvalsh(equivalent_kernel(coefficients, X, statistics)).numpy()
    limit = limiting_spectrum.limiting_spectrum(sample, coefficients)
    assert len(limit.isolated) == classes == (values > 1.1 * limit.x[-1]).sum()
    assert np.ptp(limit.isolated) < 1e-3 * limit.isolated[0]
    assert np.mean(limit.isolated) == pytest.approx(values[-classes:].mean(), rel=0.03)


@pytest.mark.slow
def test_a_spectrum_without_isolated_eigenvalues_has_its_place():
    grid = np.geomspace(0.1, 1, 50)
    limit = SimpleNamespace(x=grid, density=np.ones(50), isolated=np.array([]), atom=0.1, atom_mass=0.0)
    figure, (_, ax) = plt.subplots(1, 2, figsize=(6.75, 2.7), layout="constrained")
    panels.draw_spectrum(ax, {"exact": (grid, "C0")}, limit, "the CK")
    figure.canvas.draw()
    assert ax.get_position().width > 0.3
    plt.close(figure)


# -- errors and slopes -------------------------------------------------------------------------------------------


def test_fit_slope_is_ordinary_least_squares():
    errors = np.exp(np.random.default_rng(0).normal(size=(4, 3))) * np.array([8, 4, 2, 1])[:, None]
    expected = linregress(np.repeat(np.log([1, 2, 4, 8]), 3), np.log(errors).reshape(-1))
    assert slopes.fit_slope([1, 2, 4, 8], errors) == pytest.approx((expected.slope, expected.stderr))
    # of the t distribution with 10 degrees of freedom
    assert slopes.slope_interval([1, 2, 4, 8], errors) == pytest.approx(
        (expected.slope - 2.228139 * expected.stderr, expected.slope + 2.228139 * expected.stderr), rel=1e-6
    )
    assert slopes.fit_slope([5], errors[:1]) is None and slopes.slope_interval([5], errors[:1]) is None


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ck", "ntk"])
def test_spectral_error_falls_like_the_square_root(which):
    sizes, names = [200, 400, 800], ("relu", "tanh")
    errors = {name: np.zeros((len(sizes), 2)) for name in names}
    for i, n in enumerate(sizes):
        for k in (0, 1):
            sample = samples.mixture(n, k)
            for name in names:
                M, coefficients = kernel_figures.deq_kernel(which, sample, name, 0.2)
                errors[name][i, k] = relative_error(M, equivalent_kernel(coefficients, sample.X, sample.statistics))
    for name in names:
        slope, error = slopes.fit_slope(sizes, errors[name])
        assert -0.6 < slope < -0.4 and error < 0.05, (name, slope, error)


def test_full_and_centred_covariances_are_told_apart():
    n, p = 800, 640
    scales = [1.0, 1 + 8 / math.sqrt(p)]
    X, _, statistics = gaussian_mixture(torch.zeros(2, p), scales, [n // 2, n // 2], generator("centred"))
    deviations = torch.tensor(scales, dtype=torch.float64) - sum(scales) / 2
    centred = replace(statistics, T=torch.outer(deviations, deviations))  # tr(C°_a C°_b)/p, as the authors' code has it
    ck, _ = implicit_kernels(X, ACTIVATIONS["relu"], 0.2, tau0=statistics.tau0)
    coefficients = implicit_ck(ACTIVATIONS["relu"], 0.2, statistics.tau0)
    # along the direction that T is about, sqrt(n)^-1 (1, ..., 1), where the rest of the error is small
    ones = torch.ones(n, dtype=torch.float64) / math.sqrt(n)
    right, wrong = (
        abs((ones @ (ck - equivalent_kernel(coefficients, X, s)) @ ones).item()) for s in (statistics, centred)
    )
    assert right < 0.2 * wrong


# -- the scripts -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(forks):
    return lambda name, *flags: SimpleNamespace(**forks.run(*flags, program=f"ck_ntk/{name}.py", cwd=str(ROOT)))


HELP = """
import contextlib, io, runpy, sys
path, loaded = sys.path[1:], set(sys.modules)
for script, flags in {scripts}.items():
    sys.path[:] = ["ck_ntk", *path]  # its own folder and nothing of this project beside it, as a user starts it
    for name in set(sys.modules) - loaded:
        del sys.modules[name]
    sys.argv, text = [script, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            runpy.run_path(f"ck_ntk/{{script}}.py", run_name="__main__")
    except SystemExit as end:
        assert not end.code
    assert all(flag in text.getvalue() for flag in ["--output_path", *flags]), script
    assert not {{"torch", "numpy", "matplotlib"}} & set(sys.modules), script
"""


def test_help_comes_without_torch():
    scripts = {path.stem: [] for path in (ROOT / "ck_ntk").glob("*.py") if "__main__" in path.read_text()}
    scripts |= {name: ["--asquare"] for name in GMM + MNIST}
    scripts |= {
        "training_dynamics": ["--lr", "--dim"],
        "pcdeq_convergence": ["--epoch"],
        "any_activation_matching": ["--dim"],
        "matching_map": ["--points"],
        "conv_matching": ["--dataset"],
        "conv_mixture": ["--n"],
        "resolvent_network": ["--dataset"],
        "steps": ["--samples"],
    }
    assert len(scripts) == 19
    program = HELP.format(scripts=scripts)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--n", "0"], "between 16"),
        (["--n", "many"], "--n"),
        (["--n"], "--n"),
        (["--seeds", "0"], "positive whole number"),
        (["--asquare", "1"], "between 0 and 1"),
        (["--asquare", "nan"], "between 0 and 1"),
        (["--wrong"], "--wrong"),
        (["--spectrum", "9"], "16"),
        (["--output_path", "deq_enn/reporting/paper.mplstyle"], "not a folder"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(run, tmp_path, flags, message):
    output = [] if "--output_path" in flags else ["--output_path", str(tmp_path / "figures")]
    done = run("ck_gmm_matching", *flags, *output)
    assert done.status == 2 and done.err.count("\n") == 1 and message in done.err
    assert not list(tmp_path.iterdir())


def test_old_spellings_of_flags_are_answered_by_the_new(capsys):
    parser = command.make_parser("NAME", "", n=[64], seeds=1, dim=[8])
    old = parser.parse_args(["--sigma_a2", "0.3", "--width", "16", "32", "--output", "folder"])
    lines = ["--sigma_a2 is now --asquare", "--width is now --dim", "--output is now --output_path"]
    assert capsys.readouterr().err.splitlines() == [f"NAME: {line}" for line in lines]
    assert old == parser.parse_args(["--asquare", "0.3", "--dim", "16", "32", "--output_path", "folder"])
    assert not capsys.readouterr().err and parser.format_help().count("--seeds") == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "7"])  # not a number of draws


def test_missing_data_and_impossible_kernels_are_one_line_too(run, tmp_path):
    for name, flags in (
        ("ck_mnist_matching", ["--dataset_path", str(tmp_path / "none")]),
        ("finite_width_kernels", ["--n", "64", "--dim", "64", "--asquare", "0.999999"]),
    ):
        done = run(name, *flags, "--output_path", str(tmp_path / "figures"))
        lines = [
            line
            for line in done.err.replace("\r", "\n").split("\n")
            if line and "it/s" not in line and "0/3" not in line
        ]
        assert done.status == 2 and len(lines) == 1, done.err
        assert not list(tmp_path.iterdir())


def test_one_process_at_a_time_makes_a_figure(run, tmp_path):
    flags = "--n", "64", "--output_path", str(tmp_path)
    with locked(tmp_path, "output_path", ["ck_gmm_matching"]):
        done = run("ck_gmm_matching", *flags)
    assert (done.status, done.err.count("\n")) == (2, 1) and f"is at work in {tmp_path}" in done.err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_libraries_are_loaded_is_one_line(tmp_path):
    code = f"""
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "matplotlib":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["ck_ntk/matching_map.py", "--output_path", {str(tmp_path)!r}]
runpy.run_path("ck_ntk/matching_map.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "matching_map: interrupted\n")


@pytest.mark.long
def test_a_script_writes_its_numbers_and_figures(run, tmp_path):
    flags = ["--n", "64", "128", "--seeds", "2", "--spectrum", "128", "--output_path", str(tmp_path)]
    done = run("gmm_two_layer_relu_matching", *flags)
    assert done.status == 0, done.err
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        f"gmm_two_layer_relu_matching.{kind}" for kind in ("json", "pdf", "png")
    ]
    numbers = json.loads((tmp_path / "gmm_two_layer_relu_matching.json").read_text())
    assert numbers["settings"]["n"] == [64, 128] and numbers["settings"]["asquare"] == 0.2
    assert np.max(numbers["errors"]["matched"]) < 1e-3 < np.min(numbers["errors"]["unmatched"])  # what matching buys
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    assert run("gmm_two_layer_relu_matching", *flags).status == 0
    assert before == {f.name: f.read_bytes() for f in tmp_path.iterdir()}


def small(**settings):
    """Three sizes are as few as have a slope with an error."""
    sizes = {"n": [64, 96, 128], "seeds": 1, "asquare": 0.2, "spectrum": 128, "dim": [64, 256], "device": "cpu"}
    return argparse.Namespace(**sizes | settings)


@pytest.fixture
def shown(monkeypatch, name):
    """All activations once for each data set and each kernel; else one of either kind, a closed form and a series."""
    if name not in ("ck_gmm_matching", "mnist_ntk_matching"):
        monkeypatch.setattr(samples, "SHOWN", ("relu", "elu"))


@pytest.mark.few(2)
@pytest.mark.parametrize("name", GMM[:3])
@pytest.mark.slow
def test_the_other_mixture_scripts_run(name, shown):
    figure, numbers = importlib.import_module(f"ck_ntk.{name}").main(small())
    plt.close(figure)
    json.dumps(numbers)


def test_finite_width_approaches_the_exact_kernel():
    figure, numbers = finite_width_kernels.main(small(n=[64], seeds=2))
    plt.close(figure)
    for errors in numbers["errors"].values():
        assert np.mean(errors[1]) < 0.75 * np.mean(errors[0])


read_once = functools.cache(samples.images)


@pytest.mark.few(1)
@pytest.mark.parametrize("name, dataset", [*((name, "mnist") for name in MNIST), (MNIST[0], "fashion_mnist")])
@pytest.mark.slow
def test_scripts_on_images_run(real_data, name, dataset, shown, monkeypatch):
    monkeypatch.setattr(samples, "images", read_once)
    settings = small(dataset=dataset, dataset_path=str(real_data))
    figure, numbers = importlib.import_module(f"ck_ntk.{name}").main(settings)
    plt.close(figure)
    assert np.max([np.max(e) for e in numbers["errors"].values()]) < 1


@pytest.mark.parametrize("dataset, stem", [("mnist", "name"), ("fashion_mnist", "name_fashion_mnist")])
def test_another_data_set_has_files_of_its_own(tmp_path, dataset, stem):
    figure = plt.figure()
    path = command.write("name", argparse.Namespace(dataset=dataset, output_path=tmp_path), figure, {"x": 1})
    plt.close(figure)
    assert path == tmp_path / f"{stem}.png" and {f.stem for f in tmp_path.iterdir()} == {stem}
    assert json.loads((tmp_path / f"{stem}.json").read_text())["settings"]["dataset"] == dataset


@pytest.mark.slow
def test_cifar10_script_tells_matched_from_unmatched(monkeypatch):
    asked = []
    monkeypatch.setattr(
        samples, "real_data", lambda *args: asked.append(args) or samples.mixture
    )  # a mixture for features
    figure, numbers = cifar10_matching.main(small(n=[64, 128], dataset_path="folder"))
    plt.close(figure)
    assert asked == [("cifar10", "folder", (3, 5))]
    for kernel in ("ck", "ntk"):
        for name in ("relu", "tanh", "swish"):
            matched, unmatched = (
                np.mean(numbers["errors"][f"{kernel} {name} {kind}"]) for kind in ("matched", "unmatched")
            )
            assert matched < unmatched, (kernel, name)
    assert np.max(numbers["errors"]["ck relu matched"]) < 2e-3 < np.min(numbers["errors"]["ck relu unmatched"])


# -- image by image ----------------------------------------------------------------------------------------------


def images():
    from deq_enn.data.datasets import Dataset

    X = torch.randn(260, 30, generator=generator("images"))
    X /= X.square().sum(1).mean().sqrt()
    y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
    return Dataset("mnist", X[:200], y[:200], X[200:], y[200:], 3)


@pytest.mark.slow
def test_outputs_are_those_of_a_readout_trained_from_zero():
    from ck_ntk import pointwise
    from deq_enn.networks.build import build_model
    from deq_enn.theory.equilibrium import estimate_tau0

    data = images()
    args = argparse.Namespace(asquare=0.2, epoch=2, device="cpu")
    result = pointwise.outputs("matched_enn", ACTIVATIONS["relu"], data, 16, 3, args)
    net = build_model("matched_enn", 30, 16, 3, 0.2, estimate_tau0(data.X_train), 3, ACTIVATIONS["relu"])
    features, readout = net.features(data.X_train).detach(), torch.zeros(3, 16, requires_grad=True)
    for epoch in (1, 2):
        for rows in torch.randperm(200, generator=generator(0, "order", epoch)).split(128):  # the order of seed 0
            loss = torch.nn.functional.cross_entropy(features[rows] @ readout.T, data.y_train[rows])
            readout = (readout - torch.autograd.grad(loss, readout)[0]).detach().requires_grad_()
    torch.testing.assert_close(result, (net.features(data.X_test) @ readout.T).detach(), rtol=1e-4, atol=1e-6)


def test_distances_of_outputs(monkeypatch, capsys):
    from ck_ntk import pointwise
    from deq_enn.data import datasets

    assert pointwise.compare(torch.tensor([[1.0, 2.0], [0.0, 5.0]]), torch.tensor([[1.0, 2.0], [4.0, 3.0]])) == (
        pytest.approx(math.sqrt((16 + 4) / 4)),
        0.5,
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: images())
    args = argparse.Namespace(
        asquare=0.2, epoch=1, dim=[64, 16], seeds=3, activation="relu", dataset_path="x", device="cpu"
    )
    figure, numbers = pointwise.main(args)
    plt.close(figure)
    json.dumps(numbers)
    printed = capsys.readouterr().out
    assert args.dim == [16, 64] and set(numbers["pairs"]) == set(map(pointwise.label, pointwise.PAIRS))
    out = {
        (network, s): pointwise.outputs(network, ACTIVATIONS["relu"], images(), 64, s, args)
        for network in ("deq", "matched_enn")
        for s in range(3)
    }
    expected = [
        (out["deq", a] - out["matched_enn", b]).square().mean().sqrt().item() for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    distances = [rms for rms, _ in numbers["pairs"]["DEQ and matched ENN, two seeds"][1]]
    assert distances == pytest.approx(expected, rel=1e-5)
    assert f"RMS {np.mean(expected):.3f}" in printed
    size = np.sqrt(np.mean([out["deq", s].square().mean().item() for s in range(3)]))
    assert numbers["outputs"][1] == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize(
    "settings, message", [(dict(seeds=1), "--seeds 2 or more"), (dict(activation="foo"), "must be one of relu")]
)
def test_pointwise_refuses_what_it_cannot_compare(settings, message):
    from ck_ntk import pointwise

    with pytest.raises(ValueError, match=message):
        pointwise.main(argparse.Namespace(**dict(seeds=4, activation="relu", dim=[8]) | settings))
