"""Sections of bench.py on single networks: features, a DEQ's solver, the readout, two roots of a match."""

import math
import tempfile
import time
from statistics import median

from scripts.benchmarks.timing import head, row, seconds


def matrix_rate(m=2048):
    """Flops a second of a square float32 product."""
    import torch

    A, B = torch.randn(m, m), torch.randn(m, m)
    return 2 * m**3 / seconds(lambda: A @ B, 7)


def features():
    import torch

    from deq_enn.networks.build import build_model
    from deq_enn.training.loop import extract_features

    p = 784
    X = torch.randn(4096, p) / p**0.5
    yield head("dim", "network", "iterations", "ms a 1000 rows", "of the matrix-product peak")
    for dim in (256, 1024, 4096):
        for name in ("inn", "l_relu_enn", "tanh_inn", "h_tanh_enn"):
            model = build_model(name, p, dim, 10, 0.2)
            rows = X if dim < 4096 else X[:1024]
            before = matrix_rate()  # on either side of each, as a shared machine's speed drifts
            taken = seconds(lambda: extract_features(model, rows), 3) / len(rows)
            peak = max(before, matrix_rate())
            iterations = extract_features(model, rows)[1]
            squares = iterations if iterations else len(model.weights) - 1
            flops = 2 * dim * (p + squares * dim)
            yield row(str(dim), name, str(iterations or ""), f"{1e6 * taken:.1f}", f"{flops / taken / peak:.0%}")


def torchdeq_solvers():
    """{name: solve(f, z0) -> (z, iterations)} of torchdeq at the tolerance of ours; empty where it is not installed."""
    try:
        from torchdeq.solver import get_solver
    except ImportError:
        return {}

    def wrapped(key):
        def solve(f, z0):
            z, _, info = get_solver(key)(f, z0, max_iter=200, tol=1e-6, stop_mode="rel")
            return z, int(info["nstep"].max())

        return solve

    return {f"torchdeq {key}": wrapped(key) for key in ("fixed_point_iter", "anderson", "broyden")}


def solver():
    import torch

    from deq_enn.networks.deq import DEQ
    from deq_enn.networks.fixed_point import Anderson, Picard
    from deq_enn.theory.activations import ACTIVATIONS

    def ours(method):
        def solve(f, z0):
            solution = method.solve(f, z0)
            return solution.value, solution.iterations

        return solve

    solvers = {"Picard": ours(Picard(1e-6)), "Anderson": ours(Anderson(1e-6)), **torchdeq_solvers()}
    against = ["torchdeq's fastest / Picard"] if len(solvers) > 2 else []
    yield head("dim", "DEQ", *(f"{name}: iterations, ms" for name in solvers), *against)
    for dim, name, sigma_a2 in (
        (256, "relu", 0.2),
        (256, "tanh", 0.2),
        (1024, "relu", 0.2),
        (1024, "tanh", 0.2),
        (1024, "relu", 0.8),
        (4096, "relu", 0.2),
        (4096, "tanh", 0.2),
    ):
        model = DEQ(ACTIVATIONS[name], 784, dim, 10, sigma_a2)
        X = torch.randn(512, 784) / 28
        problem = {}

        def record(f, z0, *args):  # the equilibrium problem that the model poses, with the scales folded in
            problem["f"], problem["z0"] = (lambda z: f(z, *args)), z0
            return z0

        model.fixed_point = record
        found, times = {}, {}
        with torch.no_grad():
            model.features(X)
            for key, solve in solvers.items():
                z, iterations = solve(problem["f"], problem["z0"])
                residual = ((problem["f"](z) - z).norm(dim=1) / z.norm(dim=1)).max()
                found[key] = f"stops at {residual:.0e}" if residual > 2e-6 else f"{iterations}"
                times[key] = [] if residual <= 2e-6 else [math.inf]
            for _ in range(15 if dim < 1024 else 5):  # in turns, as a shared machine's speed drifts
                for key in [key for key in solvers if math.inf not in times[key]]:
                    start = time.perf_counter()
                    solvers[key](problem["f"], problem["z0"])
                    times[key].append(time.perf_counter() - start)
        taken = {key: median(values) for key, values in times.items()}
        cells = [found[key] + (f", {1e3 * taken[key]:.0f}" if taken[key] < math.inf else "") for key in solvers]
        other = [key for key in solvers if key.startswith("torchdeq")]
        fastest = min(other, key=taken.get, default=None)
        ratio = [f"{median(a / b for a, b in zip(times[fastest], times['Picard'])):.2f}"] if fastest else []
        yield row(str(dim), f"{name}, σ_a² = {sigma_a2}", *cells, *ratio)


def readout_task(dim, opt="sgd", n=60000):
    """Readout training on n rows of noise."""
    import torch

    from deq_enn.data.datasets import Dataset
    from deq_enn.training.loop import ReadoutTask
    from deq_enn.training.run_files import Config

    class Given(torch.nn.Module):
        """A network whose features are its input."""

        def __init__(self):
            super().__init__()
            self.readout = torch.nn.Linear(dim, 10, bias=False)

        def features(self, x):
            return x

    X, y = torch.randn(n, dim) / dim**0.5, torch.arange(n) % 10
    data = Dataset("noise", X, y, X[: n // 6], y[: n // 6], 10, None)
    return ReadoutTask(Given(), data, Config("noise", "given", dim, 0.1, 1, 128, opt=opt), "cpu")


def readout():
    import torch

    order = torch.randperm(60000)
    yield head("features", "optimizer", "an epoch", "products of all features with the readout")
    for dim in (32, 1024, 4096):
        for opt in ("sgd", "adam"):
            task, weight = readout_task(dim, opt), torch.randn(10, dim)
            product = seconds(lambda: task.train @ weight.T, 5)
            epoch = seconds(lambda: task.epoch(order), 3)
            yield row(f"60000 × {dim}", opt, f"{epoch:.3f} s", f"{epoch / product:.1f}")


def roots():
    import torch

    from deq_enn.data.datasets import load_dataset
    from deq_enn.matching import two_layer_lrelu
    from deq_enn.networks.deq import DEQ
    from deq_enn.networks.enn import ENN
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.theory.coefficients import implicit_ck
    from deq_enn.training.loop import run
    from deq_enn.training.run_files import Config

    data, relu = load_dataset("gmm"), ACTIVATIONS["relu"]
    p, classes = data.X_train.shape[1], data.n_classes
    makers = {"ReLU-DEQ": lambda dim, seed: DEQ(relu, p, dim, classes, 0.2, seed=seed)}
    for found in two_layer_lrelu.solutions(implicit_ck(relu, 0.2)):
        makers[f"root {found.root}"] = lambda dim, seed, found=found: ENN(found.layers, p, dim, classes, seed=seed)
    yield head("`mixed`, 10 epochs, 5 seeds, dim", *makers)
    for dim in (64, 256, 1024):
        cells = []
        for make in makers.values():
            accuracy = []
            for seed in range(5):
                with tempfile.TemporaryDirectory() as folder:
                    config = Config("gmm", "root", dim, 1.0, 10, 128, seed)
                    history = run(config, data, lambda: make(dim, seed), folder, folder).history
                    accuracy.append(history[-1]["test_accuracy"])
            std, mean = torch.std_mean(100 * torch.tensor(accuracy))
            cells.append(f"{mean:.2f} ± {std:.2f}")
        yield row(str(dim), *cells)
