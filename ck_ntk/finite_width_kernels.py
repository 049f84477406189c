"""How the conjugate kernels of a ReLU-DEQ and of its two matched networks approach the exact one as the width grows.

Both roots of the match share the infinite-width kernel (to O(n^(-1/2)), see the legend) and differ at finite width.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run


def random_features(X, activations, m, generator):
    """Returns the last layer of a random network of width m in float32, on X (n, p)."""
    import math

    import torch

    x = X.float()
    for activation in activations:
        W = torch.randn(x.shape[1], m, generator=generator)
        x = activation.fn(x @ W) / math.sqrt(m)
    return x.double()


def equilibrium(X, activation, sigma_a2, m, generator):
    """Returns z (n, m) of z = phi(sigma_a A z + sigma_b B x)/sqrt(m), by plain iteration, a contraction here."""
    import math

    import torch

    inputs = X.float() @ torch.randn(X.shape[1], m, generator=generator) * math.sqrt(1 - sigma_a2)
    A = torch.randn(m, m, generator=generator) * math.sqrt(sigma_a2)
    z = torch.zeros(len(X), m)
    for _ in range(200):
        previous, z = z, activation.fn(z @ A + inputs) / math.sqrt(m)
        if torch.linalg.vector_norm(z - previous) <= 1e-5 * torch.linalg.vector_norm(z):
            return z.double()
    raise ValueError(
        f"the DEQ of width {m} did not reach its equilibrium at sigma_a^2 = {sigma_a2}: take a smaller one"
    )


def main(args):
    import numpy as np
    from matplotlib import pyplot as plt
    from tqdm import tqdm

    from ck_ntk.common.exact_kernels import explicit_kernels, implicit_kernels
    from ck_ntk.common.panels import draw_errors, log_sizes, scientific
    from ck_ntk.common.samples import mixture
    from ck_ntk.common.slopes import slope_text
    from deq_enn.kernels.distance import relative_error
    from deq_enn.matching.two_layer_lrelu import solutions
    from deq_enn.theory.activations import ACTIVATIONS
    from deq_enn.theory.coefficients import implicit_ck
    from deq_enn.theory.equilibrium import get_tau
    from deq_enn.theory.gaussian import centre
    from deq_enn.utils.random import generator

    if len(args.n) != 1:
        raise ValueError("finite_width_kernels takes one --n")
    n, widths = args.n[0], sorted(set(args.dim))
    sample = mixture(n, 0)
    X, tau0 = sample.X, sample.statistics.tau0
    activation = centre(ACTIVATIONS["relu"], get_tau(ACTIVATIONS["relu"], args.asquare, tau0))
    G, _ = implicit_kernels(X, ACTIVATIONS["relu"], args.asquare, tau0=tau0, device=args.device)
    roots = solutions(implicit_ck(ACTIVATIONS["relu"], args.asquare, tau0), tau0)
    labels = ["ReLU-DEQ"] + [f"L-ReLU-ENN, $b_1/a_1 = {root.b1 / root.a1:.2f}$" for root in roots]
    errors = np.zeros((len(labels), len(widths), args.seeds))
    draws = [(i, k) for i in range(len(widths)) for k in range(args.seeds)]
    for i, k in tqdm(draws, desc="width", leave=False, disable=None):
        m = widths[i]
        features = [
            equilibrium(X, activation, args.asquare, m, generator("deq", m, k)),
            *(random_features(X, root.layers, m, generator("enn", m, k)) for root in roots),
        ]
        errors[:, i, k] = [relative_error(G, z @ z.T) for z in features]
    floors = [relative_error(G, explicit_kernels(X, root.layers, args.device)[0]) for root in roots]

    figure, ax = plt.subplots(figsize=(3.6, 3.0))
    for index, (label, error) in enumerate(zip(labels, errors)):
        draw_errors(ax, widths, error, label + slope_text(error, widths), marker="osD"[index], color=f"C{index}")
    log_sizes(ax, widths, "width $m$")
    ax.set_xticks(widths, [str(m) for m in widths], rotation=30)
    ax.set_ylabel(r"$\|Z Z^\top - G\| \,/\, \|G\|$")
    ax.set_title(f"Gaussian mixture, $n = {n}$")
    ax.legend(
        loc="lower left",
        title_fontsize=7.5,
        alignment="left",
        title=rf"at infinite width $\|\Sigma - G\|/\|G\| \leq {scientific(max(floors))}$",
    )
    ax.set_ylim(bottom=ax.get_ylim()[0] / 6)
    return figure, {
        "widths": widths,
        "errors": dict(zip(["deq", "root_1", "root_2"], errors.tolist())),
        "floors": floors,
    }


if __name__ == "__main__":
    run(main, __doc__, n=[256], seeds=3, dim=[64, 128, 256, 512, 1024, 2048, 4096, 8192])
