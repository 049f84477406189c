"""How fast the network of a DEQ's resolvent comes to the DEQ's kernels, layer by layer, beside plain unrolling.

(a) Convolutional DEQs of images, ReLU: distances against the number of steps, and the proved rates as slopes. Rates of
the taps are in the NTK alone.
(b) Fully connected DEQs of a Gaussian mixture, where the resolvent is a number: distances against sigma_a^2 of its
network of 1 to 3 layers, and of the match of two.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import SIZE, run

NEAR_ONE = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def convolutional(x, activation, sigma_a2, steps):
    """Returns {network: [(CK, NTK) distance of each number of steps]} and both rates."""
    import numpy as np

    from ck_ntk.common.conv_networks import tau0_of
    from deq_enn.kernels.conv import conv_kernels
    from deq_enn.kernels.conv_explicit import injected_kernels
    from deq_enn.kernels.distance import relative_error
    from deq_enn.theory.resolvent import resolvent_network

    tau0 = tau0_of(x)
    deq = conv_kernels(x, activation, sigma_a2, 3, "circular", tau0=tau0)
    net = resolvent_network(activation, sigma_a2, tau0, hops=10)
    box = np.full((3, 3), 1 / 9)
    settings = {
        "unrolled": ((sigma_a2 * box, (1 - sigma_a2) * box), 0.0, 1.0),
        "resolvent": ((net.hidden, net.injected), net.d1, net.rates),
        "resolvent, one rate": ((net.hidden, net.injected), net.d1, 1.0),
    }
    errors = {}
    for name, (taps, slope, rates) in settings.items():
        errors[name] = [
            [
                relative_error(K, other)
                for K, other in zip(deq, injected_kernels(x, net.outer, taps, t, slope, rates, "circular"))
            ]
            for t in range(1, steps + 1)
        ]
    return errors, {"resolvent": net.kappa, "unrolled": net.plain}


def fully_connected(X, activation, sigma_a2):
    """Returns {network: (CK, NTK) distance} of networks of few layers to a fully connected DEQ at samples X (n, p)."""
    from ck_ntk.common.conv_networks import tau0_of
    from deq_enn.kernels.conv_explicit import injected_kernels
    from deq_enn.kernels.distance import relative_error
    from deq_enn.kernels.exact import explicit_kernels, implicit_kernels
    from deq_enn.matching.families import match
    from deq_enn.theory.resolvent import resolvent_network

    x = (X * X.shape[1] ** 0.5)[:, :, None, None]  # one pixel, whose norm is over the root of its channels
    tau0 = tau0_of(x)
    deq = implicit_kernels(X, activation, sigma_a2, tau0=tau0)
    net = resolvent_network(activation, sigma_a2, tau0, kernel_size=1)
    others = {
        f"resolvent {t}": injected_kernels(x, net.outer, (net.hidden, net.injected), t, net.d1, net.rates)
        for t in (1, 2, 3)
    }
    for kernel in ("ck", "ntk"):
        others[f"matched {kernel}"] = explicit_kernels(X, match(activation, sigma_a2, tau0, kernel=kernel).layers)
    return {name: [relative_error(K, other) for K, other in zip(deq, pair)] for name, pair in others.items()}


def draw_steps(ax, errors, rates, which):
    for name, look in (
        ("unrolled", dict(color="C0", marker="o")),
        ("resolvent", dict(color="C1", marker="s")),
        ("resolvent, one rate", dict(color="C1", marker="s", mfc="white", ls=":")),
    ):
        if name == "resolvent, one rate" and not which:  # it has the same CK
            continue
        values = [pair[which] for pair in errors[name]]
        steps = range(1, len(values) + 1)
        ax.plot(steps, values, label=name, ms=3, **look)
        if name in rates:
            bound = [values[0] * rates[name] ** (t - 1) for t in steps]
            ax.plot(steps, bound, color=look["color"], lw=0.7, ls="--", label=f"{name}: proved rate")
    ax.set(yscale="log", xlabel="steps", xticks=range(1, len(errors["resolvent"]) + 1))


def draw_near_one(ax, table, which):
    looks = {
        **{f"resolvent {t}": dict(color="C1", marker="ov^"[t - 1]) for t in (1, 2, 3)},
        f"matched {('ck', 'ntk')[which]}": dict(color="C2", marker="s"),
    }
    for name, look in looks.items():
        label = "matched for this kernel" if name.startswith("matched") else name
        ax.plot([1 - s for s in table], [row[name][which] for row in table.values()], label=label, ms=3, **look)
    ax.set(xscale="log", yscale="log", xlabel=r"$1 - \sigma_a^2$")
    ax.invert_xaxis()


def main(args):
    from matplotlib import pyplot as plt

    from ck_ntk.common.conv_networks import draw
    from ck_ntk.common.samples import mixture
    from deq_enn.theory.activations import ACTIVATIONS

    x = draw(args.dataset, args.dataset_path, args.samples)
    X = mixture(4 * args.samples, 0).X
    steps = {f"{s:g}": convolutional(x, ACTIVATIONS["relu"], s, args.steps) for s in (0.5, 0.9)}
    near = {a: {s: fully_connected(X, ACTIVATIONS[a], s) for s in NEAR_ONE} for a in ("relu", "tanh")}
    figure, axes = plt.subplots(2, 4, figsize=(6.75, 4.6), sharey="row")
    panels = [(s, which) for s in steps for which in (0, 1)]
    for ax, (s, which) in zip(axes[0], panels):
        draw_steps(ax, *steps[s], which)
        ax.set_title(rf"{('CK', 'NTK')[which]}, images, $\sigma_a^2 = {s}$")
    panels = [(a, which) for a in near for which in (0, 1)]
    for ax, (a, which) in zip(axes[1], panels):
        draw_near_one(ax, near[a], which)
        ax.set_title(f"{('CK', 'NTK')[which]}, fully connected, {a}")
    for row, place in zip(axes, ("outside upper center", "outside lower center")):
        handles, labels = row[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc=place, ncols=3 if len(labels) > 4 else 4, columnspacing=1.2)
    for row in axes:
        row[0].set_ylabel("distance to the DEQ")
    return figure, {
        "convolutional": {s: {"errors": errors, "rates": rates} for s, (errors, rates) in steps.items()},
        "fully connected": {a: {f"{s:g}": row for s, row in table.items()} for a, table in near.items()},
    }


if __name__ == "__main__":
    run(
        main,
        __doc__,
        flags={
            "--dataset_path": dict(default="data", help="folder with the image files (default data)"),
            "--samples": dict(type=SIZE, default=64, help="images; four times as many samples (default 64)"),
            "--steps": dict(type=int, choices=range(2, 9), default=5, help="steps, 2 to 8 (default 5)"),
            "--dataset": dict(
                choices=("mnist", "fashion_mnist", "cifar10_images"), default="mnist", help="images (default mnist)"
            ),
        },
    )
