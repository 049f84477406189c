"""The guarantee of positive concave DEQs, seen: plain iteration converges geometrically for any nonnegative weights.

Left: relative residual of the worst of 64 inputs against the iteration, for layers of 80 units trained on MNIST.
Middle: a random tanh layer, its weights scaled to larger and larger spectral radius, beside a plain DEQ
z = tanh(W z + x) of the same size and radius, whose weights have both signs: it stops converging. Right: the fitted
geometric rate against the spectral radius. All in float64. The table sets beside each rate what it should be, the
spectral radius of the Jacobian J at the fixed point, and the bound that pcdeq.py proves (from five steps).
"""

import math

import torch
import torch.nn.functional as F

from data_prepare import load_dataset
from experiment import run
from fixed_point import Picard
from pcdeq import CONCAVE, PcDEQ, build_pcdeq, keep_nonnegative, rate_bound
from utils import generator

UNITS, INPUTS = 80, 64
STEPS, FLOOR = 2000, 1e-12
ACTIVATIONS = [*CONCAVE["1"], *CONCAVE["2"]]
COLOURS = dict(zip([*ACTIVATIONS, "plain"], ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#000000")))
CURVES = {0.5: "#a6cee3", 1.0: "#4a98c9", 2.0: "#1764ab", 4.0: "#08306b"}     # spectral radius: colour
RADII = torch.logspace(-1, 2, 61, dtype=torch.float64).tolist()              # of the right panel


def residuals(s, W, b) -> list[float]:
    """Worst relative residual of each step of z <- s(W z + b) from z = s(b), until FLOOR or for STEPS."""
    z, history = s(b), []
    while len(history) < STEPS and not (history and history[-1] <= FLOOR):
        solution = Picard(0.0, 1, strict=False).solve(lambda z: s(torch.addmm(b, z, W.T)), z)
        z = solution.value
        history.append(solution.residual.max().item())
    return history


def fitted_rate(history) -> float:
    """exp of the least-squares slope of the log residual over the second half of the steps; 0 if the last is 0."""
    if history[-1] == 0:
        return 0.0
    y = torch.tensor(history[len(history) // 2 - 1:], dtype=torch.float64).log()
    k = torch.arange(len(y), dtype=torch.float64) - (len(y) - 1) / 2
    return math.exp((k @ y / k.square().sum()).item())


def study(layer, s, W, b) -> dict:
    """Convergence of z = s(W z + b), W (m, m) and b (n, m), and the theory beside it."""
    history = residuals(s, W, b)
    record = {"layer": layer, "radius": torch.linalg.eigvals(W).abs().max().item(), "residuals": history,
              "converged": history[-1] <= FLOOR, "rate": fitted_rate(history)}
    if record["converged"]:
        z = Picard(FLOOR, STEPS).solve(lambda z: s(torch.addmm(b, z, W.T)), s(b)).value
        x = torch.addmm(b, z, W.T).requires_grad_()
        slope, = torch.autograd.grad(s(x).sum(), x)
        record["jacobian_radius"] = torch.linalg.eigvals(slope[:, :, None] * W).abs().max().item()
        if layer != "plain":
            record["bound"] = rate_bound(lambda z: s(torch.addmm(b, z, W.T)), z, 5).max().item()
    return record


def trained(activation, data, epochs):
    """`study` of the layer of a linear pcDEQ after some epochs of MNIST, on what 64 test images feed it."""
    kind = "1" if activation in CONCAVE["1"] else "2"
    network = build_pcdeq(f"linear_pcdeq_{kind}", activation, (1, 28, 28), data.n_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=7e-4, weight_decay=1e-2, fused=True)
    keep_nonnegative(network, optimizer)
    for epoch in range(epochs):
        for rows in torch.randperm(len(data.X_train), generator=generator("order", epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(data.X_train[rows]), data.y_train[rows]).backward()
            optimizer.step()
    network.eval()
    layer, fed = network.equilibria[0], []
    layer.register_forward_pre_hook(lambda _, x: fed.append(x[0]))
    with torch.no_grad():
        accuracy = (network(data.X_test).argmax(1) == data.y_test).double().mean().item()
        W, b = layer.inner.weight.double(), layer.positive(fed[0][:INPUTS].double())
    return {**study(activation, layer.s, W, b), "test_accuracy": accuracy}


def random_layers():
    """(name, s, W of spectral radius 1, b) of a random layer of each kind; the same inputs x for all."""
    g = generator("pcdeq_convergence")
    positive = torch.rand(UNITS, UNITS, generator=g, dtype=torch.float64)
    signed = torch.randn(UNITS, UNITS, generator=g, dtype=torch.float64)
    positive, signed = (W / torch.linalg.eigvals(W).abs().max() for W in (positive, signed))
    x = torch.randn(INPUTS, UNITS, generator=g, dtype=torch.float64)
    layers = [PcDEQ(UNITS, activation, conv=False) for activation in ACTIVATIONS]
    return [*((layer.activation, layer.s, positive, layer.positive(x)) for layer in layers),
            ("plain", torch.tanh, signed, x)]


def largest_radius(s, W, b) -> float:
    """The largest spectral radius, to 1e-3, up to which the plain DEQ converges in STEPS."""
    low, high = 0.5, 4.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if residuals(s, middle * W, b)[-1] <= FLOOR else (low, middle)
    return low


def show(weights, records):
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
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.4))
    for r in learned:
        left.semilogy(range(1, len(r["residuals"]) + 1), r["residuals"], color=COLOURS[r["layer"]],
                      label=f"{r['layer']}, rate {r['rate']:.2f}")
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
        right.semilogx(radii, values[:len(radii)], "--" if layer == "plain" else "-", color=COLOURS[layer],
                       label="plain DEQ, tanh" if layer == "plain" else layer)
    right.axvspan(critical, RADII[-1], color="0.93", zorder=0, linewidth=0)
    right.text(0.98, 0.97, "here the plain DEQ\ndoes not converge", transform=right.transAxes, ha="right", va="top",
               fontsize=7, color="0.35")
    right.set(title="geometric rate, random layers", xlabel=r"spectral radius $\rho(W)$", ylim=(0, 1))
    right.set_xlim(RADII[0], RADII[-1])
    left.legend(loc="upper right")
    middle.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    right.legend(loc="upper right", bbox_to_anchor=(1, 0.8))
    return figure


def main(args):
    data = load_dataset("mnist", args.dataset_path)
    learned = [trained(activation, data, args.epoch) for activation in ACTIVATIONS]
    layers = random_layers()
    curves = [{**study(name, s, scale * W, b), "scale": scale} for name, s, W, b in layers for scale in CURVES]
    rates = {name: [fitted_rate(residuals(s, radius * W, b)) for radius in RADII if name != "plain" or radius < 2]
             for name, s, W, b in layers}
    critical = largest_radius(*layers[-1][1:])
    print("weights  layer      rho(W)  steps    rate  rho(J)   bound      (steps: to a residual of 1e-4)")
    show("trained", learned)
    show("random", curves)
    print(f"the plain DEQ stops converging at spectral radius {critical:.3f}")
    numbers = {"trained": learned, "random": curves, "radii": RADII, "rates": rates, "plain_converges_up_to": critical}
    return draw(learned, curves, rates, critical), numbers


if __name__ == "__main__":
    run(main, __doc__, epoch=2, dataset=True)
