"""The logs of the sweeps that are kept in docs/logs: the page that tells of them says what they say."""

import json
import statistics
import tarfile
from pathlib import Path

import pytest

from deq_enn.reporting import across, logs, tables
from deq_enn.reporting.markdown import row
from deq_enn.reporting.statistics import compare

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "docs" / "logs"
ARCHIVES = sorted(
    archive for archive in LOGS.glob("*.tar.xz") if archive.name.endswith(("-sgd.tar.xz", "-adam.tar.xz"))
)
PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
OWN_RATES = sorted(a for a in LOGS.glob("*-own-rate.tar.xz") if "-full-" not in a.name)
WIDE = sorted(LOGS.glob("*-wide.tar.xz"))
DATASETS = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
MODELS = "inn", "l_relu_enn", "relu_enn", "tanh_inn", "h_tanh_enn", "tanh_enn"


@pytest.mark.slow
def test_the_table_of_claims_is_that_of_the_kept_logs(tmp_path):
    for archive in ARCHIVES:
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path, filter="data")
    table = across.survey_table(logs.load([tmp_path]))
    assert table is not None and len(ARCHIVES) >= 8
    for cells in table.rows:
        if "nearer" not in cells[0]:  # those are in the figure alone
            assert row(*cells) in PAGE, cells


def test_the_accuracies_at_own_rates_are_those_of_the_kept_logs(tmp_path):
    """The mean and deviation over two seeds of the last epoch, network by network."""
    assert len(OWN_RATES) >= 6
    for archive in OWN_RATES:
        dataset, optimiser = archive.name.removesuffix("-own-rate.tar.xz").rsplit("-", 1)
        folder = tmp_path / f"{dataset}-{optimiser}-own-rate"
        with tarfile.open(archive) as packed:
            packed.extractall(tmp_path, filter="data")
        for width in (256, 1024):
            cells = [DATASETS[dataset], {"sgd": "SGD", "adam": "Adam"}[optimiser], str(width)]
            for model in MODELS:
                name = f"{width}_test_{model}_{dataset}.json"
                last = [100 * json.loads((place / name).read_text())[-1] for place in (folder, folder / "seed_1")]
                cells.append(f"{statistics.mean(last):.2f} ± {statistics.stdev(last):.2f}")
            assert row(*cells) in PAGE, cells


def test_the_tests_of_equality_by_epoch_are_those_of_the_kept_logs(tmp_path):
    """Mean difference and both p-values of each row, tested together as `summarize.py --dim M --epoch ...` does."""
    experiments = logs.load([unpacked("mnist-sgd", tmp_path)])
    epochs = 1, 3, 10, 30, 100
    for width, models in ((1024, ("inn", "l_relu_enn", "tanh_inn", "h_tanh_enn")), (256, ("inn", "l_relu_enn"))):
        [experiment] = logs.chosen(experiments, models, [width])
        table = tables.equality_table(experiment, epochs=epochs)
        assert table is not None and len(table.rows) == len(epochs) * len(models) // 2
        for epoch, _, pair, _, mean, _, *p, _ in table.rows:
            start = f"| {epoch} | {'ReLU' if 'ReLU' in pair else 'tanh'} |" if width == 1024 else f"| {epoch} | "
            [line] = [
                line
                for line in PAGE.splitlines()
                if line.startswith(start) and f"| {mean} |" in line and row(*p)[:-2] in line
            ]


def unpacked(name, folder):
    """The folder of an experiment of docs/logs."""
    with tarfile.open(LOGS / f"{name}.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    return folder / name


def last_accuracies(folder, log, seeds):
    """The accuracies after the last epoch, in %, of each seed."""
    places = [folder / (f"seed_{seed}" if seed else "") / log for seed in range(seeds)]
    return [100 * json.loads(place.read_text())[-1] for place in places]


def accuracies_cell(accuracies):
    """Their mean and standard deviation as the page has them."""
    return f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"


def test_the_own_activation_of_the_tanh_deq_is_as_near_as_the_page_says(tmp_path):
    own = unpacked("fashion_mnist-own-activation", tmp_path)
    for width, name, seeds in ((4096, "fashion_mnist-adam-wide", 3), (1024, "fashion_mnist-adam", 8)):
        accuracies = last_accuracies(own, f"{width}_test_matched_enn-tanh-ck_fashion_mnist.json", seeds)
        deq = last_accuracies(unpacked(name, tmp_path), f"{width}_test_tanh_inn_fashion_mnist.json", seeds)
        text = " ".join(PAGE.split())
        assert accuracies_cell(accuracies) in text
        assert tables.difference_cell(compare(dict(enumerate(deq)), dict(enumerate(accuracies)))) in text


@pytest.mark.parametrize("name", [archive.name.removesuffix(".tar.xz") for archive in WIDE])
def test_the_accuracies_of_width_4096_are_those_of_the_kept_logs(tmp_path, name):
    folder, dataset = unpacked(name, tmp_path), name.rsplit("-", 2)[0]
    cells = [accuracies_cell(last_accuracies(folder, f"4096_test_{model}_{dataset}.json", 3)) for model in MODELS]
    assert row("4096, three seeds", *cells) in PAGE, cells


def test_the_tables_of_the_mixture_are_those_of_the_kept_logs(tmp_path):
    """Eight seeds up to width 1024, three at 4096 and at own rates."""
    names = "gmm-sgd", "gmm-adam", "gmm-sgd-own-rate-long"
    folders = {name: [unpacked(name, tmp_path)] for name in names}
    for name in names[:2]:
        folders[name].append(unpacked(f"{name}-wide", tmp_path))
    experiments = {name: logs.load(paths) for name, paths in folders.items()}
    for width in (32, 128, 256, 1024, 4096):
        label, cells = str(width) + ", three seeds" * (width == 4096), []
        for name, parts in experiments.items():
            [experiment] = [part for part in parts if width in part.dims]
            for enn in ("l_relu_enn", "relu_enn"):
                cells.append(tables.difference_cell(tables.differences(experiment, "inn", enn)[width]))
            if name in names[:2]:
                assert row(label, *(tables.accuracy_cell(experiment, model, width) for model in MODELS)) in PAGE
        assert row(label, *cells) in PAGE, cells


@pytest.mark.parametrize("rate", ["one", "own"])
def test_the_table_with_every_weight_trained_is_that_of_the_kept_logs(tmp_path, rate):
    with tarfile.open(LOGS / f"fashion_mnist-full-{rate}-rate.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    [experiment] = logs.load([tmp_path / f"fashion_mnist-full-{rate}-rate"])
    places = {
        "DEQ": "deq-{}",
        "NTK match": "matched_enn-{}-ntk",
        "CK match": "matched_enn-{}-ck",
        "one plain layer": "unmatched_enn-{}-depth1",
        "two plain layers": "unmatched_enn-{}-depth2",
    }
    for name, place in places.items():
        cells = [name]
        for activation in ("relu", "tanh"):
            deq, model = f"deq-{activation}", place.format(activation)
            cells.append(tables.accuracy_cell(experiment, model, 256))
            apart = tables.differences(experiment, deq, model)[256]
            cells.append(tables.difference_cell(apart) if model != deq else "")
        assert row(*cells).replace("|  |", "| |") in TRAINING, cells


def test_the_accuracies_of_positive_concave_networks_are_those_of_the_kept_logs(tmp_path):
    """On MNIST and Fashion-MNIST, side by side: epochs, and the accuracies of the last one."""
    folders = {data: unpacked(f"{data}-pcdeq", tmp_path) for data in ("mnist", "fashion_mnist")}
    tests = sorted(folders["mnist"].glob("*_test_*.json"))
    for test in tests:
        ends, epochs = [], set()
        for data, folder in folders.items():
            tested = folder / test.name.replace("_mnist.json", f"_{data}.json")
            for path in (folder / tested.name.replace("_test_", "_train_"), tested):
                accuracies = json.loads(path.read_text())
                ends.append(f"{100 * accuracies[-1]:.2f}%")
                epochs.add(len(accuracies))
        assert len(epochs) == 1 and row(*map(str, epochs), *ends).lstrip("|") in TRAINING, test.name
    assert len(tests) == 6


def test_the_epochs_of_a_positive_concave_network_on_cifar10_are_those_of_the_kept_logs(tmp_path):
    lines = (unpacked("cifar10-pcdeq", tmp_path) / "metrics.jsonl").read_text().splitlines()
    epochs = {r["epoch"]: r for r in map(json.loads, lines) if r["event"] == "epoch"}
    assert list(epochs) == list(range(1, 9))
    for number, r in epochs.items():
        accuracy, bold = f"{100 * r['test_accuracy']:.2f}%", "**" * (number == len(epochs))
        shown = f"{r['train_loss']:.3f}", f"{100 * r['train_accuracy']:.1f}%", f"{bold}{accuracy}{bold}"
        iterations = (f"{r[f'{way}_iterations']:.1f}" for way in ("forward", "backward"))
        assert row(str(number), *shown, *iterations, f"{r['seconds']:.0f}") in TRAINING, number


def test_the_kernel_machines_of_fashion_mnist_are_those_of_the_kept_logs():
    """Accuracy, and the DEQ less the network with its interval, of each network in CK."""
    from scripts.kernel_table import table

    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    columns = []
    for activation in ("relu", "tanh"):
        lines = [line for line in table(LOGS / f"kernels-fashion_mnist-{activation}") if "| 60000 |" in line]
        columns.append([line.strip("| ").split("|")[3:5] for line in lines])
    names = "DEQ", "its match", "one plain layer", "two plain layers", "three plain layers"
    for name, *cells in zip(names, *columns, strict=True):
        shown = [cell.strip().replace("-", "−") for pair in cells for cell in pair]
        assert row(name, *shown).replace("|  |", "| |") in page, shown


def test_the_relu_deq_and_its_match_agree_on_every_image_of_fashion_mnist():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    folder = LOGS / "kernels-fashion_mnist-relu-ridge"
    deq, matched = (
        json.loads((folder / f"inf_predicted_{model}-relu-ck-kernel_fashion_mnist.json").read_text())
        for model in ("deq", "matched_enn")
    )
    right = sum(a == b for a, b in zip(deq["predicted"], deq["labels"], strict=True))
    assert deq == matched and len(deq["labels"]) == 10_000 and f"have {right / 100:.2f} each" in " ".join(page.split())
    runs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {run["config"]["ridge_size"] for run in runs if run["event"] == "run"} == {20_000}
    assert {round(run["ridge"], 3) for run in runs if run["event"] == "epoch"} == {0.032}
