"""The section `growth` of bench.py fits by what power of the samples n, the inputs p and the width m time grows."""

if __name__ == "__main__":
    raise SystemExit("growth.py is a part of scripts/bench.py: run that")

from deq_enn.reporting.markdown import head, row
from scripts.benchmarks.networks import readout_task
from scripts.benchmarks.timing import seconds


def slope(sizes, times):
    """Returns the least-squares slope of log time against log size, and its standard error."""
    import numpy as np
    from scipy.stats import linregress

    fit = linregress(np.log(sizes), np.log(times))
    return fit.slope, fit.stderr


def growth():
    import torch

    from deq_enn.kernels.exact import implicit_kernels
    from deq_enn.networks.build import build_model
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.theory.equilibrium import estimate_tau0
    from deq_enn.training.readout import extract_features

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
    jobs = [
        ("τ_0", "n", (15000, 30000, 60000, 120000), lambda n: tau(n, 784)),
        ("X Xᵀ, p = 2000", "n", n_kernel, lambda n: product(n, 2000)),
        ("exact kernels, relu, p = 2000", "n", n_kernel, lambda n: kernel(n, 2000, "relu")),
        ("exact kernels, swish, p = 2000", "n", n_kernel, lambda n: kernel(n, 2000, "swish")),
        ("X Xᵀ, n = 2000", "p", (1000, 2000, 4000, 8000), lambda p: product(2000, p)),
        ("exact kernels, relu, n = 2000", "p", (1000, 2000, 4000, 8000), lambda p: kernel(2000, p, "relu")),
        ("ReLU-DEQ features, dim 512", "n", n_rows, lambda n: deq(n, 784, 512)),
        ("ReLU-DEQ features, n = 2048, dim 512", "p", (256, 1024, 4096, 16384), lambda p: deq(2048, p, 512)),
        ("ReLU-DEQ features, n = 2048", "m", m, lambda m: deq(2048, 784, m)),
        ("readout epoch, dim 512", "n", (7500, 15000, 30000, 60000), lambda n: epoch(n, 512)),
        ("readout epoch, n = 30,000", "m", m, lambda m: epoch(30000, m)),
    ]
    yield head("time of", "in", "sizes", "log-log slope")
    for name, variable, sizes, make in jobs:
        gradient, error = slope(sizes, [seconds(make(size), 3) for size in sizes])
        yield row(name, variable, " ".join(map(str, sizes)), f"{gradient:.2f} ± {error:.2f}")
