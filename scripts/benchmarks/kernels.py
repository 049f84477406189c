"""Sections of bench.py time the theory: matches, and exact kernels against a plain product and against sampling."""

if __name__ == "__main__":
    raise SystemExit("kernels.py is a part of scripts/bench.py: run that")

import math

from deq_enn.reporting.markdown import head, row
from scripts.benchmarks.timing import seconds


def matching():
    from deq_enn.matching.families import match
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.theory.coefficients import implicit_ck, implicit_ntk

    yield head("DEQ", "kernel", "family", "tau and coefficients", "and the match")
    for name, kernel in (("relu", "ck"), ("tanh", "ck"), ("swish", "ck"), ("relu", "ntk")):
        activation = ACTIVATIONS[name]
        moments = seconds(lambda: (implicit_ck if kernel == "ck" else implicit_ntk)(activation, 0.2), 20)
        taken = seconds(lambda: match(activation, 0.2, kernel=kernel), 5)
        yield row(
            name,
            kernel.upper(),
            match(activation, 0.2, kernel=kernel).family,
            f"{1e3 * moments:.2f} ms",
            f"{1e3 * taken:.1f} ms",
        )


def monte_carlo(X, activation, sigma_a2=0.2, width=1000, iterations=8):
    """Returns the seconds, and the networks, that it takes to sample the conjugate kernel of X to an error of 1%.

    The 1% are of its diagonal. An entry averages phi(u) phi(v) over the neurons, so that its standard error is
    std[phi(u) phi(v)]/sqrt(neurons).
    """
    import torch

    from deq_enn.theory.equilibrium import estimate_tau0, get_tau
    from deq_enn.theory.gaussian import gaussian_moments

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

    from deq_enn.kernels.exact import implicit_kernels
    from deq_enn.theory.activations import ACTIVATIONS

    yield head("CK and NTK, float64", "n = 1600, p = 2000", "n = 4000, p = 5000")
    columns = []
    for n, p in ((1600, 2000), (4000, 5000)):
        X = torch.randn(n, p, dtype=torch.float64) / p**0.5
        gram = seconds(lambda: X @ X.T, 3)
        relu, swish, hardtanh = (
            seconds(lambda: implicit_kernels(X, ACTIVATIONS[name], 0.2), 3) for name in ("relu", "swish", "hardtanh")
        )
        sampled, networks = monte_carlo(X, ACTIVATIONS["relu"])
        columns.append(
            (
                f"{gram:.3f} s",
                f"{relu / gram:.2f} × X Xᵀ",
                f"{swish / relu:.2f} × relu",
                f"{hardtanh / relu:.2f} × relu",
                f"{sampled / relu:.1f} × relu ({networks} networks of width 1000)",
            )
        )
    names = (
        "X Xᵀ",
        "relu, closed form",
        "swish, Mehler series",
        "hardtanh, quadrature",
        "the CK alone by Monte Carlo, standard error 1%",
    )
    for name, *cells in zip(names, *columns):
        yield row(name, *cells)
