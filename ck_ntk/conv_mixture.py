"""How the closed form of a convolutional DEQ's kernels approaches the exact ones on many-channel mixtures.

n images of 6 x 6 pixels and 1.25 n channels, two classes, circular padding. Off the diagonal, in spectral norm; dotted:
the closed form without its quadratic terms, which are 0 for tanh.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run


def errors(x, activation, sigma_a2):
    """Returns the errors off the diagonal of CK and NTK, and of both without the quadratic terms."""
    import numpy as np
    import torch

    from ck_ntk.common.conv_networks import tau0_of
    from deq_enn.kernels.conv import conv_kernels
    from deq_enn.kernels.conv_explicit import tap_matrix
    from deq_enn.kernels.distance import relative_error
    from deq_enn.theory.coefficients import implicit_ck, implicit_ntk
    from deq_enn.theory.mixture import equivalent_conv_kernels

    tau0 = tau0_of(x)
    exact = conv_kernels(x, activation, sigma_a2, 3, "circular", tau0=tau0)
    window = tap_matrix(np.full((3, 3), 1 / 9), tuple(x.shape[2:]), "circular")
    closed = equivalent_conv_kernels(x, activation, sigma_a2, tau0, window)
    flat = x.flatten(1)
    S = flat @ flat.T / flat.shape[1]
    linear = [f(activation, sigma_a2, tau0).c1 * S for f in (implicit_ck, implicit_ntk)]
    off = 1 - torch.eye(len(x), dtype=torch.float64)
    return [relative_error(K * off, M * off) for others in (closed, linear) for K, M in zip(exact, others)]


def main(args):
    import numpy as np
    from matplotlib import pyplot as plt
    from tqdm import tqdm

    from ck_ntk.common.conv_networks import mixture
    from ck_ntk.common.panels import draw_errors, log_sizes
    from ck_ntk.common.slopes import slope_text
    from deq_enn.theory.activations import ACTIVATIONS

    table = {}
    figure, axes = plt.subplots(1, 2, figsize=(6.75, 2.7), sharey=True)
    for ax, (name, s) in zip(axes, (("relu", args.asquare), ("tanh", args.asquare))):
        values = np.array(
            [
                [errors(mixture(n, round(1.25 * n), 6, seed), ACTIVATIONS[name], s) for seed in range(args.seeds)]
                for n in tqdm(args.n, desc=name, leave=False, disable=None)
            ]
        )  # (n, seeds, 4)
        for k, (label, style) in enumerate(
            zip(("CK", "NTK", None, None), (dict(marker="o"), dict(marker="s"), dict(ls=":"), dict(ls=":")))
        ):
            text = label and label + slope_text(values[..., k], args.n)
            draw_errors(ax, args.n, values[..., k], text, color=f"C{k % 2}", **style)
        log_sizes(ax, args.n, "images $n$, with $1.25\\,n$ channels")
        ax.set_title(rf"{name}, $\sigma_a^2 = {s:g}$")
        if ax is axes[0]:
            ax.plot([], [], ":", color="0.4", label="without the quadratic terms")
        ax.legend()
        curves = (f"{name}, {curve}" for curve in ("CK", "NTK", "CK linear", "NTK linear"))
        table |= dict(zip(curves, np.moveaxis(values, -1, 0).tolist()))
    axes[0].set_ylabel("error off the diagonal")
    return figure, {"n": args.n, "errors": table}


if __name__ == "__main__":
    run(main, __doc__, n=[40, 80, 160, 320], seeds=3)
