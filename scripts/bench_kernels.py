"""Times of the exact kernels beside what they cost at least, X X^T, and beside sampling them.

python scripts/bench_kernels.py   (two minutes on two cores)
"""

import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from gaussian_integration import ACTIVATIONS, gaussian_moments
from kernels import implicit_kernels
from utils import estimate_tau0, generator, get_tau

SIGMA_A2 = 0.2


def best_time(f, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


def monte_carlo(X, activation, width=1000, iterations=8):
    """(seconds per network of this width, networks needed): for a standard error of 1% of the kernel's diagonal scale.

    An entry averages phi(u) phi(v) over the neurons, so its standard error is std[phi(u) phi(v)]/sqrt(neurons).
    """
    n, p = X.shape
    mean = gaussian_moments(activation, get_tau(activation, SIGMA_A2, estimate_tau0(X))).mean
    X = X.float()
    g = generator("monte carlo")

    def network():
        inputs = X @ torch.randn(p, width, generator=g).mul_(math.sqrt(1 - SIGMA_A2))
        A = torch.randn(width, width, generator=g).mul_(math.sqrt(SIGMA_A2 / width))
        z = torch.zeros(n, width)
        for _ in range(iterations):
            z = activation.fn(torch.addmm(inputs, z, A)) - mean
        return z, z @ z.T

    z, _ = network()
    i = torch.arange(0, n - 1)
    products = z[i] * z[i + 1]
    error = products.std(1).mean() / math.sqrt(width) / z.square().mean()
    return best_time(network, 1), math.ceil((error.item() / 0.01) ** 2)


def bench_kernels(sizes=((1600, 2000), (4000, 5000))):
    """Prints the table; each time is the best of three in this one run."""
    for n, p in sizes:
        X = torch.randn(n, p, generator=generator("bench", n), dtype=torch.float64) / math.sqrt(p)
        gram = best_time(lambda: X @ X.T)
        relu, swish, hardtanh = (best_time(lambda: implicit_kernels(X, ACTIVATIONS[name], SIGMA_A2))
                                 for name in ("relu", "swish", "hardtanh"))
        allowed = 4 * gram + (0.3 if n <= 1600 else 0)
        seconds, networks = monte_carlo(X, ACTIVATIONS["relu"])
        print(f"n = {n}, p = {p}, float64")
        print(f"  X @ X.T                   {gram:8.3f} s")
        print(f"  relu, closed form         {relu:8.3f} s   {relu / gram:7.2f} x X @ X.T (allowed {allowed:.3f} s)")
        print(f"  swish, Mehler series      {swish:8.3f} s   {swish / relu:7.2f} x relu (allowed 10)")
        print(f"  hardtanh, quadrature      {hardtanh:8.3f} s   {hardtanh / relu:7.2f} x relu")
        print(f"  Monte Carlo to 1%         {seconds * networks:8.3f} s   {seconds * networks / relu:7.2f} x relu "
              f"({networks} networks of width 1000, no NTK)", flush=True)


if __name__ == "__main__":
    bench_kernels()
