"""Sections of bench.py time single networks: features, a DEQ's solver, the readout, two roots of a match."""

if __name__ == "__main__":
    raise SystemExit("networks.py is a part of scripts/bench.py: run that")

import math
import tempfile
import time
from statistics import median

from deq_enn.reporting.markdown import head, row
from scripts.benchmarks.timing import seconds


def matrix_rate(m=2048):
    """Returns the flops a second of a square float32 product, by the library that features take."""
    import torch

    from deq_enn.utils.devices import product

    A, B = torch.randn(m, m), torch.randn(m, m)
    return 2 * m**3 / seconds(lambda: product(A, B), 7)


def features():
    import torch

    from deq_enn.networks.build import build_model
    from deq_enn.training.readout import extract_features

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
    """Returns {name: solve(f, z0) -> (z, iterations)} of torchdeq at our tolerance; empty where it is not installed."""
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


SOLVED = (  # width, activation and sigma_a^2 of the DEQs whose equilibria are solved for
    (256, "relu", 0.2),
    (256, "tanh", 0.2),
    (1024, "relu", 0.2),
    (1024, "tanh", 0.2),
    (1024, "relu", 0.8),
    (4096, "relu", 0.2),
    (4096, "tanh", 0.2),
)
TOLERANCE = 1e-6  # relative residual at which a solver stops


def our_solvers():
    """Returns {name: solve(f, z0) -> (z, iterations)} of this project."""
    from deq_enn.networks.fixed_point import Anderson, Picard

    def wrapped(method):
        def solve(f, z0):
            solution = method.solve(f, z0)
            return solution.value, solution.iterations

        return solve

    return {"Picard": wrapped(Picard(TOLERANCE)), "Anderson": wrapped(Anderson(TOLERANCE))}


def posed(dim, name, sigma_a2):
    """Returns (f, z0), the equilibrium problem that a DEQ poses on 512 rows of noise, with the scales folded in."""
    import torch

    from deq_enn.networks.deq import DEQ
    from deq_enn.theory.activations import ACTIVATIONS

    model = DEQ(ACTIVATIONS[name], 784, dim, 10, sigma_a2)
    X = torch.randn(512, 784) / 28
    problem = []

    def record(f, z0, *args):
        problem.extend((lambda z: f(z, *args), z0))
        return z0

    model.fixed_point = record
    model.features(X)
    return problem


def once(solve, f, z0):
    """Says what a solver attains, and whether that is the tolerance."""
    z, iterations = solve(f, z0)
    residual = ((f(z) - z).norm(dim=1) / z.norm(dim=1)).max()
    solved = bool(residual <= 2 * TOLERANCE)
    return f"{iterations}" if solved else f"stops at {residual:.0e}", solved


def solver():
    import torch

    solvers = {**our_solvers(), **torchdeq_solvers()}
    others = [name for name in solvers if name.startswith("torchdeq")]
    against = ["torchdeq's fastest / Picard"] if others else []
    yield head("dim", "DEQ", *(f"{name}: iterations, ms" for name in solvers), *against)
    for dim, activation, sigma_a2 in SOLVED:
        with torch.no_grad():
            f, z0 = posed(dim, activation, sigma_a2)
            attained = {name: once(solve, f, z0) for name, solve in solvers.items()}
            times = {name: [] for name, (_, solved) in attained.items() if solved}
            for _ in range(15 if dim < 1024 else 5):  # in turns, as a shared machine's speed drifts
                for name in times:
                    start = time.perf_counter()
                    solvers[name](f, z0)
                    times[name].append(time.perf_counter() - start)
        taken = {name: median(values) for name, values in times.items()}
        cells = [words + (f", {1e3 * taken[name]:.0f}" if solved else "") for name, (words, solved) in attained.items()]
        if others:
            fastest = min(others, key=lambda name: taken.get(name, math.inf))
            ratios = [a / b for a, b in zip(times.get(fastest, [math.inf]), times["Picard"])]
            cells.append(f"{median(ratios):.2f}")
        yield row(str(dim), f"{activation}, σ_a² = {sigma_a2}", *cells)


def readout_task(dim, opt="sgd", n=60000):
    """Returns the training of a readout on n rows of noise."""
    import torch

    from deq_enn.data.datasets import Dataset
    from deq_enn.training.readout import ReadoutTask
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

    from deq_enn.training.readout import Readouts
    from deq_enn.utils.devices import product
    from deq_enn.utils.threads import one_thread

    order = torch.randperm(60000)
    products = "products of all features with the readout, one thread"
    yield head("features", "optimizer", "an epoch", products, "two rates side by side, epochs", "four rates, epochs")
    for dim in (32, 1024, 4096):
        for opt in ("sgd", "adam"):
            task, weight = readout_task(dim, opt), torch.randn(10, dim)
            with one_thread():
                floor = seconds(lambda: product(task.train, weight), 5)
            epoch = seconds(lambda: task.epoch(order), 3)
            together = [Readouts(task, [1e-3] * rates) for rates in (2, 4)]  # as a thread of `--lr auto` trains them
            ratios = [seconds(lambda: readouts.epoch(order), 3) / epoch for readouts in together]
            yield row(
                f"60000 × {dim}", opt, f"{epoch:.3f} s", f"{epoch / floor:.1f}", *(f"{ratio:.2f}" for ratio in ratios)
            )


def products():
    import torch

    from deq_enn.utils.devices import has_fast_onednn

    yield f"`has_fast_onednn()` is {has_fast_onednn()} here.\n"
    yield head("float32 product", "torch.mm (MKL)", "by oneDNN, of that", "in bfloat16, of that")
    for n, k, m in ((512, 784, 1024), (512, 1024, 1024), (512, 4096, 4096), (10, 4096, 128), (40, 4096, 128)):
        A, B = torch.randn(n, k), torch.randn(m, k)
        A16, B16 = A.bfloat16(), B.bfloat16()
        repeats = 3 + 10**9 // (n * k * m)
        taken = seconds(lambda: A @ B.T, repeats)
        others = (lambda: torch.ops.mkldnn._linear_pointwise(A, B, None, "none", [], ""), lambda: A16 @ B16.T)
        ratios = (f"{seconds(other, repeats) / taken:.2f}" for other in others)
        yield row(f"{n} × {k}, {k} × {m}", f"{1000 * taken:.2f} ms", *ratios)


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
    for match in two_layer_lrelu.solutions(implicit_ck(relu, 0.2)):
        makers[f"root {match.root}"] = lambda dim, seed, match=match: ENN(match.layers, p, dim, classes, seed=seed)
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
