"""The guarantee of positive concave DEQs, seen: plain iteration converges geometrically for any nonnegative weights.

Left: relative residual of the worst of 64 inputs against the iteration, for layers of 80 units trained on MNIST.
Middle: a random tanh layer, its weights scaled to larger and larger spectral radius, beside a plain DEQ
z = tanh(W z + x) of the same size and radius, whose weights have both signs: it stops converging. Right: the fitted
geometric rate against the spectral radius. All in float64. The table sets beside each rate what it should be, the
spectral radius of the Jacobian J at the fixed point, and the bound that pcdeq.py proves (from five steps).
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ck_ntk.common.command import run

LOOKS = {"tanh": "#0072B2", "softsign": "#009E73", "relu6": "#D55E00", "sigmoid": "#CC79A7", "plain": "#000000"}
CURVES = {0.5: "#a6cee3", 1.0: "#4a98c9", 2.0: "#1764ab", 4.0: "#08306b"}  # spectral radius: colour
RADII = [10 ** (k / 20 - 1) for k in range(61)]  # of the right panel


def show(weights, records):
    from ck_ntk.common.convergence_rates import STEPS

    for r in records:
        line = f"{weights:8s} {r['layer']:9s} {r['radius']:7.3f} "
        if r["converged"]:
            steps = next(k for k, residual in enumerate(r["residuals"], 1) if residual <= 1e-4)
            bound = f"{r['bound']:7.4f}" if "bound" in r else "   none"
            print(line + f"{steps:6d} {r['rate']:7.4f} {r['jacobian_radius']:7.4f} {bound}")
        else:
            print(line + f"  does not converge: residual {r['residuals'][-1]:.2g} after {STEPS} steps")


def draw(learned, curves, rates, critical):
    from matplotlib import pyplot as plt

    from ck_ntk.common.convergence_rates import FLOOR

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.4))
    for r in learned:
        left.semilogy(
            range(1, len(r["residuals"]) + 1),
            r["residuals"],
            color=LOOKS[r["layer"]],
            label=f"{r['layer']}, rate {r['rate']:.2f}",
        )
    left.set(title="trained pcDEQ layers", xlabel="iteration", ylabel="relative residual", xlim=(0, None))
    left.set_ylim(FLOOR, 3)
    for r in curves:
        if r["layer"] in ("tanh", "plain"):
            line, label = ("-", rf"$\rho(W) = {r['scale']:g}$") if r["layer"] == "tanh" else ("--", None)
            steps = range(1, len(r["residuals"]) + 1)
            middle.semilogy(steps, r["residuals"], line, color=CURVES[r["scale"]], label=label)
    middle.plot([], [], "-", color="0.4", label="pcDEQ, tanh")
    middle.plot([], [], "--", color="0.4", label="plain DEQ, tanh")
    middle.set(title="random layers", xlabel="iteration", xlim=(0, 125), ylim=(FLOOR, 3))
    for layer, values in rates.items():
        radii = [r for r in RADII if layer != "plain" or r < critical]
        right.semilogx(
            radii,
            values[: len(radii)],
            "--" if layer == "plain" else "-",
            color=LOOKS[layer],
            label="plain DEQ, tanh" if layer == "plain" else layer,
        )
    right.axvspan(critical, RADII[-1], color="0.93", zorder=0, linewidth=0)
    right.text(
        0.98,
        0.97,
        "here the plain DEQ\ndoes not converge",
        transform=right.transAxes,
        ha="right",
        va="top",
        fontsize=7,
        color="0.35",
    )
    right.set(title="geometric rate, random layers", xlabel=r"spectral radius $\rho(W)$", ylim=(0, 1))
    right.set_xlim(RADII[0], RADII[-1])
    left.legend(loc="upper right")
    middle.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    right.legend(loc="upper right", bbox_to_anchor=(1, 0.8))
    return figure


def main(args):
    from ck_ntk.common.convergence_rates import (
        ACTIVATIONS,
        fitted_rate,
        largest_radius,
        random_layers,
        residuals,
        study,
        trained,
    )
    from deq_enn.data.datasets import load_dataset

    data = load_dataset("mnist", args.dataset_path)
    learned = [trained(activation, data, args.epoch, args.device) for activation in ACTIVATIONS]
    layers = random_layers()
    curves = [{**study(name, s, scale * W, b), "scale": scale} for name, s, W, b in layers for scale in CURVES]
    rates = {
        name: [fitted_rate(residuals(s, radius * W, b)) for radius in RADII if name != "plain" or radius < 2]
        for name, s, W, b in layers
    }
    critical = largest_radius(*layers[-1][1:])
    print("weights  layer      rho(W)  steps    rate  rho(J)   bound      (steps: to a residual of 1e-4)")
    show("trained", learned)
    show("random", curves)
    print(f"the plain DEQ stops converging at spectral radius {critical:.3f}")
    numbers = {"trained": learned, "random": curves, "radii": RADII, "rates": rates, "plain_converges_up_to": critical}
    return draw(learned, curves, rates, critical), numbers


if __name__ == "__main__":
    run(main, __doc__, epoch=2, dataset=True, device=True)
