"""Ratios of speed, each measured in one process beside its floor or its alternative; absolute times are this machine's.

    python scripts/bench.py                     every section
    python scripts/bench.py features roots      some of them

    start      the command line: --help and a bad flag, against the bare interpreter
    matching   tau, coefficients and the two matches of the paper
    features   DEQ and ENN features against the float32 matrix-product peak; DEQ against ENN
    solver     iterations and time of Picard and Anderson at tolerance 1e-6
    readout    an epoch on 60,000 x m features against one product with them; peak memory
    roots      test accuracy of the two roots of the leaky-ReLU match, beside their DEQ
    kernels    exact kernels against X X^T and against Monte Carlo
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def seconds(call, repeats=5):
    """Median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def start():
    def command(*argv):
        return seconds(lambda: subprocess.run([sys.executable, *argv], capture_output=True))

    bare = command("-c", "pass")
    for argv in (["--help"], ["--dim", "0"]):
        print(f"main.py {' '.join(argv):8} {command(str(ROOT / 'main.py'), *argv):.3f} s, the bare interpreter {bare:.3f} s")


def matching():
    import one_layer_tanh
    import two_layer_lrelu
    from coefficients import implicit_ck
    from gaussian_integration import ACTIVATIONS

    for name, module in (("relu", two_layer_lrelu), ("tanh", one_layer_tanh)):
        target = implicit_ck(ACTIVATIONS[name], 0.2)
        moments = seconds(lambda: implicit_ck(ACTIVATIONS[name], 0.2), 20)
        match = seconds(lambda: module.match(target), 20)
        print(f"{name}: tau and coefficients {1e3 * moments:.2f} ms, the match beyond them {1e3 * match:.3f} ms")


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
    print(f"{'dim':>5} {'model':<11} {'iterations':>10} {'seconds':>8} {'of the matrix-product peak':>27} {'DEQ / its ENN':>14}")
    for dim in (256, 1024, 4096):
        taken = {}
        for name in ("inn", "l_relu_enn", "tanh_inn", "h_tanh_enn"):
            model = build_model(name, p, dim, 10, 0.2)
            rows = X if dim < 4096 else X[:1024]
            before = matrix_rate()  # on either side of each, as a shared machine's speed drifts
            taken[name] = seconds(lambda: extract_features(model, rows), 3) / len(rows)
            peak = max(before, matrix_rate())
            iterations = extract_features(model, rows)[1]
            squares = iterations if iterations else len(model.weights) - 1
            flops = 2 * dim * (p + squares * dim)
            ratio = {"l_relu_enn": "inn", "h_tanh_enn": "tanh_inn"}.get(name)
            print(f"{dim:>5} {name:<11} {iterations or '':>10} {taken[name] * 4096:>8.3f} {flops / taken[name] / peak:>26.0%} "
                  + (f"{taken[ratio] / taken[name]:>14.1f}" if ratio else ""))


def solver():
    import torch

    from fixed_point import Anderson, Picard
    from gaussian_integration import ACTIVATIONS
    from model import DEQ

    X = torch.randn(512, 784) / 28
    for dim in (256, 1024):
        for name, sigma_a2 in (("relu", 0.2), ("tanh", 0.2), ("selu", 0.2), ("relu", 0.8)):
            line = f"dim {dim:<5} {name} sigma_a^2 = {sigma_a2}:"
            for method in (Picard(1e-6), Anderson(1e-6)):
                model = DEQ(ACTIVATIONS[name], 784, dim, 10, sigma_a2, solver=method)
                with torch.no_grad():
                    time_taken = seconds(lambda: model.features(X), 3)
                line += f"   {type(method).__name__} {model.fixed_point.iterations} iterations, {1e3 * time_taken:.0f} ms"
            print(line)


def readout():
    import torch

    from train import Config, ReadoutTask

    class Given(torch.nn.Module):
        """A network whose features are its input."""
        def __init__(self, dim):
            super().__init__()
            self.readout = torch.nn.Linear(dim, 10, bias=False)

        def features(self, x):
            return x

    from data_prepare import Dataset
    for dim in (32, 1024, 4096):
        X, y = torch.randn(60000, dim) / dim**0.5, torch.arange(60000) % 10
        data = Dataset("noise", X, y, X[:10000], y[:10000], 10, None)
        order, weight = torch.randperm(60000), torch.randn(10, dim)
        product = seconds(lambda: X @ weight.T, 5)
        for opt in ("sgd", "adam"):
            task = ReadoutTask(Given(dim), data, Config("noise", "given", dim, 0.1, 1, 128, opt=opt), "cpu")
            epoch = seconds(lambda: task.epoch(order), 3)
            print(f"60000 x {dim:<5} {opt:<5} an epoch {epoch:.3f} s = {epoch / product:.1f} products of all features with the readout")
    print(f"peak memory {peak_memory():.2f} GB")


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
    found = two_layer_lrelu.solutions(implicit_ck(relu, 0.2))
    for dim in (64, 256, 1024):
        line = f"gmm, dim {dim}, 10 epochs, 5 seeds:"
        for name, make in [("DEQ", lambda seed: DEQ(relu, p, dim, classes, 0.2, seed=seed)),
                           *((f"root {m.root}", lambda seed, m=m: ENN(m.layers, p, dim, classes, seed=seed)) for m in found)]:
            accuracy = []
            for seed in range(5):
                with tempfile.TemporaryDirectory() as folder:
                    config = Config("gmm", "root", dim, 1.0, 10, 128, seed)
                    accuracy.append(run(config, data, lambda: make(seed), folder, folder).history[-1]["test_accuracy"])
            std, mean = torch.std_mean(100 * torch.tensor(accuracy))
            line += f"   {name} {mean:.2f} ± {std:.2f}"
        print(line)


def monte_carlo(X, activation, sigma_a2=0.2, width=1000, iterations=8):
    """Seconds to sample the conjugate kernel of X to a standard error of 1% of its diagonal, and the networks needed.

    An entry averages phi(u) phi(v) over the neurons, so its standard error is std[phi(u) phi(v)]/sqrt(neurons).
    """
    import math

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

    for n, p in ((1600, 2000), (4000, 5000)):
        X = torch.randn(n, p, dtype=torch.float64) / p**0.5
        gram = seconds(lambda: X @ X.T, 3)
        relu, swish, hardtanh = (seconds(lambda: implicit_kernels(X, ACTIVATIONS[name], 0.2), 3)
                                 for name in ("relu", "swish", "hardtanh"))
        sampled, networks = monte_carlo(X, ACTIVATIONS["relu"])
        print(f"n = {n}, p = {p}, float64, CK and NTK\n"
              f"  X @ X.T                {gram:8.3f} s\n"
              f"  relu, closed form      {relu:8.3f} s   {relu / gram:6.2f} x X @ X.T\n"
              f"  swish, Mehler series   {swish:8.3f} s   {swish / relu:6.2f} x relu\n"
              f"  hardtanh, quadrature   {hardtanh:8.3f} s   {hardtanh / relu:6.2f} x relu\n"
              f"  Monte Carlo to 1%      {sampled:8.3f} s   {sampled / relu:6.2f} x relu, {networks} networks of width "
              "1000, the CK alone")


SECTIONS = {f.__name__: f for f in (start, matching, features, solver, readout, roots, kernels)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", nargs="*", metavar="section", help=f"from {', '.join(SECTIONS)} (default: all)")
    chosen = parser.parse_args().section or list(SECTIONS)
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.exit(2, f"bench.py: error: no section {unknown[0]!r}: choose from {', '.join(SECTIONS)}\n")
    for name in chosen:
        print(f"\n== {name}")
        SECTIONS[name]()


if __name__ == "__main__":
    main()
