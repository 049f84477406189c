"""Ratios of speed, each measured in one process beside its floor or its alternative; absolute times are this machine's.

    python scripts/bench.py                     every section
    python scripts/bench.py features roots      some of them
    python scripts/bench.py --report            all but `roots`, as one Markdown page in results/bench.md

    start      the command line: --help and a bad flag, against the bare interpreter
    matching   tau, coefficients and match of a DEQ: the paper's two, one by quadrature, one tangent kernel
    kernels    exact kernels against X X^T and against Monte Carlo
    kernel_machine  kernels of kernel machines against X X^T, their solvers, two ranks against one process
    features   DEQ and ENN features against the float32 matrix-product peak
    cost       DEQ against matched ENN: seconds and memory of inference, of features, and of training every weight
    solver     a forward solve to 1e-6: Picard, Anderson, and torchdeq's where it is installed (pip install torchdeq)
    readout    an epoch on 60,000 x m features against one product with them
    memory     peak memory of four jobs, each in a process of its own
    growth     log-log slopes of time in n, p and m
    roots      test accuracy of the two roots of the leaky-ReLU match, beside their DEQ
"""

import argparse
import math
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_machine import kernel_machine  # noqa: E402


def seconds(call, repeats=5):
    """Median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


# a section is a generator of the lines of Markdown tables

def row(*cells):
    return f"| {' | '.join(cells)} |"


def head(*cells):
    return f"{row(*cells)}\n{row(*('---' for _ in cells))}"


def start():
    def command(*argv):
        return seconds(lambda: subprocess.run([sys.executable, *argv], capture_output=True))

    bare = command("-c", "pass")
    yield head("command", "seconds", "of the bare interpreter")
    for argv in (["--help"], ["--dim", "0"]):
        taken = command(str(ROOT / "main.py"), *argv)
        yield row(f"`main.py {' '.join(argv)}`", f"{taken:.3f}", f"{taken / bare:.1f}")


def matching():
    from coefficients import implicit_ck, implicit_ntk
    from gaussian_integration import ACTIVATIONS
    from matching import match

    yield head("DEQ", "kernel", "family", "tau and coefficients", "and the match")
    for name, kernel in (("relu", "ck"), ("tanh", "ck"), ("swish", "ck"), ("relu", "ntk")):
        activation = ACTIVATIONS[name]
        moments = seconds(lambda: (implicit_ck if kernel == "ck" else implicit_ntk)(activation, 0.2), 20)
        taken = seconds(lambda: match(activation, 0.2, kernel=kernel), 5)
        yield row(name, kernel.upper(), match(activation, 0.2, kernel=kernel).family, f"{1e3 * moments:.2f} ms",
                  f"{1e3 * taken:.1f} ms")


def matrix_rate(m=2048):
    """Flops a second of a square float32 product."""
    import torch
    A, B = torch.randn(m, m), torch.randn(m, m)
    return 2 * m**3 / seconds(lambda: A @ B, 7)


def features():
    import torch

    from model import build_model
    from train import extract_features

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


def noise(n, p=784):
    import torch
    return torch.randn(n, p) / p**0.5


def peak_memory(program):
    """Bytes that a process of its own takes at most."""
    program = (f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'scripts')]!r}; {program}; "
               "import bench; print(bench.high_water())")
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def high_water():
    """Bytes that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, which on Linux begins with what the parent held
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cost():
    from inference_cost import costs
    from model import build_model

    titles = {"inference": "inference, one row", "features": "features of {} rows",
              "training_step": "training step, {} rows"}
    yield head("dim", "DEQ", "job", "DEQ, ms", "matched ENN, ms", "DEQ / ENN", "DEQ, MB", "matched ENN, MB")
    for dim in (1024, 4096):
        for title, pair in (("ReLU", ("inn", "l_relu_enn")), ("tanh", ("tanh_inn", "h_tanh_enn"))):
            found = costs(*(build_model(name, 784, dim, 10, 0.2) for name in pair), noise(512), budget=30)
            for job, rows in found["rows"].items():
                times = (f"{float(f'{1e3 * t:.3g}'):g}" for t in found["seconds"][job].values())  # three digits
                yield row(str(dim), title, titles[job].format(rows), *times, f"{found['ratios'][job]:.1f}",
                          *(f"{m / 1e6:.0f}" for m in found["memory"][job].values()))
    yield "\nMemory: the weights, and the most that the job holds beside them."


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

    from fixed_point import Anderson, Picard
    from gaussian_integration import ACTIVATIONS
    from model import DEQ

    def ours(method):
        def solve(f, z0):
            solution = method.solve(f, z0)
            return solution.value, solution.iterations
        return solve

    solvers = {"Picard": ours(Picard(1e-6)), "Anderson": ours(Anderson(1e-6)), **torchdeq_solvers()}
    against = ["torchdeq's fastest / Picard"] if len(solvers) > 2 else []
    yield head("dim", "DEQ", *(f"{name}: iterations, ms" for name in solvers), *against)
    for dim, name, sigma_a2 in ((256, "relu", 0.2), (256, "tanh", 0.2), (1024, "relu", 0.2), (1024, "tanh", 0.2),
                                (1024, "relu", 0.8), (4096, "relu", 0.2), (4096, "tanh", 0.2)):
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

    from data_prepare import Dataset
    from train import Config, ReadoutTask

    class Given(torch.nn.Module):
        """A network whose features are its input."""
        def __init__(self):
            super().__init__()
            self.readout = torch.nn.Linear(dim, 10, bias=False)

        def features(self, x):
            return x

    X, y = torch.randn(n, dim) / dim**0.5, torch.arange(n) % 10
    data = Dataset("noise", X, y, X[:n // 6], y[:n // 6], 10, None)
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


JOBS = {
    "import torch": "import torch",
    "τ_0 of 60,000 × 784": "import torch, utils; utils.estimate_tau0(torch.randn(60000, 784))",
    "exact CK and NTK, relu, n = 4000, p = 5000": "import torch, kernels, gaussian_integration as g; "
        "kernels.implicit_kernels(torch.randn(4000, 5000).double() / 5000**0.5, g.ACTIVATIONS['relu'], 0.2)",
    "DEQ features, 60,000 × 784 to dim 1024": "import torch, model, train; "
        "train.extract_features(model.build_model('inn', 784, 1024, 10, 0.2), torch.randn(60000, 784) / 28)",
}


def memory():
    yield head("job", "peak memory", "of the arrays in and out")
    floor = {"τ_0 of 60,000 × 784": 60000 * 784 * 4,
             "exact CK and NTK, relu, n = 4000, p = 5000": 8 * 4000 * (5000 + 2 * 4000),
             "DEQ features, 60,000 × 784 to dim 1024": 4 * 60000 * (784 + 1024)}
    bare = None
    for name, job in JOBS.items():
        peak = peak_memory(job)
        bare = bare or peak
        yield row(name, f"{peak / 2**30:.2f} GB",
                  f"{(peak - bare) / floor[name]:.2f} beyond torch's own" if name in floor else "")


def slope(sizes, times):
    """Least-squares slope of log time against log size, and its standard error."""
    import numpy as np
    from scipy.stats import linregress
    fit = linregress(np.log(sizes), np.log(times))
    return fit.slope, fit.stderr


def growth():
    import torch

    from gaussian_integration import ACTIVATIONS
    from kernels import implicit_kernels
    from model import build_model
    from train import extract_features
    from utils import estimate_tau0

    def rows(n, p):
        return torch.randn(n, p) / p**0.5

    def kernel(n, p, name):
        X = rows(n, p).double()
        return lambda: implicit_kernels(X, ACTIVATIONS[name], 0.2)

    def product(n, p):
        X = rows(n, p).double()
        return lambda: X @ X.T

    def deq(n, p, m):
        X, model = rows(n, p), build_model("inn", p, m, 10, 0.2)
        return lambda: extract_features(model, X)

    def epoch(n, m):
        task, order = readout_task(m, n=n), torch.randperm(n)
        return lambda: task.epoch(order)

    def tau(n, p):
        X = rows(n, p)
        return lambda: estimate_tau0(X)

    n_kernel, n_rows, m = (500, 1000, 2000, 4000), (2048, 4096, 8192, 16384), (256, 512, 1024, 2048)
    jobs = [("τ_0", "n", (15000, 30000, 60000, 120000), lambda n: tau(n, 784)),
            ("X Xᵀ, p = 2000", "n", n_kernel, lambda n: product(n, 2000)),
            ("exact kernels, relu, p = 2000", "n", n_kernel, lambda n: kernel(n, 2000, "relu")),
            ("exact kernels, swish, p = 2000", "n", n_kernel, lambda n: kernel(n, 2000, "swish")),
            ("X Xᵀ, n = 2000", "p", (1000, 2000, 4000, 8000), lambda p: product(2000, p)),
            ("exact kernels, relu, n = 2000", "p", (1000, 2000, 4000, 8000), lambda p: kernel(2000, p, "relu")),
            ("ReLU-DEQ features, dim 512", "n", n_rows, lambda n: deq(n, 784, 512)),
            ("ReLU-DEQ features, n = 2048, dim 512", "p", (256, 1024, 4096, 16384), lambda p: deq(2048, p, 512)),
            ("ReLU-DEQ features, n = 2048", "m", m, lambda m: deq(2048, 784, m)),
            ("readout epoch, dim 512", "n", (7500, 15000, 30000, 60000), lambda n: epoch(n, 512)),
            ("readout epoch, n = 30,000", "m", m, lambda m: epoch(30000, m))]
    yield head("time of", "in", "sizes", "log-log slope")
    for name, variable, sizes, make in jobs:
        gradient, error = slope(sizes, [seconds(make(size), 3) for size in sizes])
        yield row(name, variable, " ".join(map(str, sizes)), f"{gradient:.2f} ± {error:.2f}")


def roots():
    import torch

    import two_layer_lrelu
    from coefficients import implicit_ck
    from data_prepare import load_dataset
    from gaussian_integration import ACTIVATIONS
    from model import DEQ, ENN
    from train import Config, run

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


def monte_carlo(X, activation, sigma_a2=0.2, width=1000, iterations=8):
    """Seconds to sample the conjugate kernel of X to a standard error of 1% of its diagonal, and the networks needed.

    An entry averages phi(u) phi(v) over the neurons, so its standard error is std[phi(u) phi(v)]/sqrt(neurons).
    """
    import torch

    from gaussian_integration import gaussian_moments
    from utils import estimate_tau0, get_tau

    n, p = X.shape
    mean = gaussian_moments(activation, get_tau(activation, sigma_a2, estimate_tau0(X))).mean
    X = X.float()

    def network():
        inputs = X @ torch.randn(p, width).mul_(math.sqrt(1 - sigma_a2))
        A = torch.randn(width, width).mul_(math.sqrt(sigma_a2 / width))
        z = torch.zeros(n, width)
        for _ in range(iterations):
            z = activation.fn(torch.addmm(inputs, z, A)) - mean
        return z, z @ z.T

    z, _ = network()
    products = z[:-1] * z[1:]
    error = products.std(1).mean() / math.sqrt(width) / z.square().mean()
    networks = math.ceil((error.item() / 0.01) ** 2)
    return networks * seconds(network, 1), networks


def kernels():
    import torch

    from gaussian_integration import ACTIVATIONS
    from kernels import implicit_kernels

    yield head("CK and NTK, float64", "n = 1600, p = 2000", "n = 4000, p = 5000")
    columns = []
    for n, p in ((1600, 2000), (4000, 5000)):
        X = torch.randn(n, p, dtype=torch.float64) / p**0.5
        gram = seconds(lambda: X @ X.T, 3)
        relu, swish, hardtanh = (seconds(lambda: implicit_kernels(X, ACTIVATIONS[name], 0.2), 3)
                                 for name in ("relu", "swish", "hardtanh"))
        sampled, networks = monte_carlo(X, ACTIVATIONS["relu"])
        columns.append((f"{gram:.3f} s", f"{relu / gram:.2f} × X Xᵀ", f"{swish / relu:.2f} × relu",
                        f"{hardtanh / relu:.2f} × relu",
                        f"{sampled / relu:.1f} × relu ({networks} networks of width 1000)"))
    names = ("X Xᵀ", "relu, closed form", "swish, Mehler series", "hardtanh, quadrature",
             "the CK alone by Monte Carlo, standard error 1%")
    for name, *cells in zip(names, *columns):
        yield row(name, *cells)


SECTIONS = {f.__name__: f for f in (start, matching, kernels, kernel_machine, features, cost, solver, readout, memory,
                                    growth, roots)}


def machine():
    """The processor, cores and versions, in one line."""
    import numpy
    import scipy
    import torch
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "") if Path("/proc/cpuinfo").exists() else platform.processor()
    return (f"{model or platform.machine()}, {torch.get_num_threads()} threads; python {platform.python_version()}, "
            f"torch {torch.__version__}, numpy {numpy.__version__}, scipy {scipy.__version__}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="*", metavar="section", help=f"from {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--report", nargs="?", const=ROOT / "results" / "bench.md", type=Path, metavar="FILE",
                        help="write the sections (default: all but roots) as one page (default: results/bench.md)")
    args = parser.parse_args()
    chosen = args.section or [name for name in SECTIONS if not (args.report and name == "roots")]
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.exit(2, f"bench.py: error: no section {unknown[0]!r}: choose from {', '.join(SECTIONS)}\n")
    if args.report and args.report.is_dir():
        parser.exit(2, f"bench.py: error: --report {args.report} is a folder: name a file\n")
    command = f"python scripts/bench.py {' '.join(sys.argv[1:])}"
    page = [f"# Ratios of speed\n\n`{command}` on {machine()}"] if args.report else []
    for name in chosen:
        page.append(f"\n## {name}\n")
        print(page[-1], flush=True)
        for line in SECTIONS[name]():
            page.append(line)
            print(line, flush=True)
    if args.report:
        from utils import atomic_write
        with atomic_write(args.report, "w") as file:
            file.write("\n".join(page) + "\n")
        print(f"\n{args.report}")


if __name__ == "__main__":
    main()
