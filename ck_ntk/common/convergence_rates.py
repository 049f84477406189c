"""Plain iteration of z = s(W z + b) is measured here: its residuals, their rate, and what theory says of that rate.

The layers have 80 units and are trained or random. They belong to positive concave DEQs (pcdeq.py) and to a plain DEQ
whose weights have both signs. All is in float64.
"""

if __name__ == "__main__":
    raise SystemExit("convergence_rates.py is shared by the figures: run one of ck_ntk/*.py")

import math

import torch
import torch.nn.functional as F

from deq_enn.networks.fixed_point import Picard
from deq_enn.networks.pcdeq import CONCAVE, PcDEQ, build_pcdeq, keep_nonnegative, rate_bound
from deq_enn.utils.random import generator

UNITS, INPUTS = 80, 64
STEPS, FLOOR = 2000, 1e-12
ACTIVATIONS = [*CONCAVE["1"], *CONCAVE["2"]]


def residuals(s, W, b) -> list[float]:
    """Returns the worst relative residual of each step of z <- s(W z + b) from z = s(b), until FLOOR or for STEPS."""
    z, history = s(b), []
    while len(history) < STEPS and not (history and history[-1] <= FLOOR):
        solution = Picard(0.0, 1, strict=False).solve(lambda z: s(torch.addmm(b, z, W.T)), z)
        z = solution.value
        history.append(solution.residual.max().item())
    return history


def fitted_rate(history) -> float:
    """Returns exp of the slope of the log residual over the second half of the steps; 0 if the last is 0."""
    if history[-1] == 0:
        return 0.0
    y = torch.tensor(history[len(history) // 2 - 1 :], dtype=torch.float64).log()
    k = torch.arange(len(y), dtype=torch.float64) - (len(y) - 1) / 2
    return math.exp((k @ y / k.square().sum()).item())


def study(layer, s, W, b) -> dict:
    """Measures the convergence of z = s(W z + b), W (m, m) and b (n, m), and the theory beside it."""
    history = residuals(s, W, b)
    record = {
        "layer": layer,
        "radius": torch.linalg.eigvals(W).abs().max().item(),
        "residuals": history,
        "converged": history[-1] <= FLOOR,
        "rate": fitted_rate(history),
    }
    if record["converged"]:
        z = Picard(FLOOR, STEPS).solve(lambda z: s(torch.addmm(b, z, W.T)), s(b)).value
        x = torch.addmm(b, z, W.T).requires_grad_()
        (slope,) = torch.autograd.grad(s(x).sum(), x)
        record["jacobian_radius"] = torch.linalg.eigvals(slope[:, :, None] * W).abs().max().item()
        if layer != "plain":
            record["bound"] = rate_bound(lambda z: s(torch.addmm(b, z, W.T)), z, 5).max().item()
    return record


def trained(activation, data, epochs, device="cpu"):
    """Trains a linear pcDEQ for some epochs of MNIST and returns the `study` of its layer on 64 test images.

    The training is on the device, and the study on the CPU.
    """
    kind = "1" if activation in CONCAVE["1"] else "2"
    network = build_pcdeq(f"linear_pcdeq_{kind}", activation, (1, 28, 28), data.n_classes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=7e-4, weight_decay=1e-2, fused=True)
    keep_nonnegative(network, optimizer)
    for epoch in range(epochs):
        for rows in torch.randperm(len(data.X_train), generator=generator("order", epoch)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(data.X_train[rows].to(device)), data.y_train[rows].to(device)).backward()
            optimizer.step()
    network.eval()
    layer, fed = network.equilibria[0], []
    layer.register_forward_pre_hook(lambda _, x: fed.append(x[0]))
    with torch.no_grad():
        accuracy = (network(data.X_test.to(device)).argmax(1).cpu() == data.y_test).double().mean().item()
        W, b = layer.inner.weight.cpu().double(), layer.positive(fed[0][:INPUTS].cpu().double())
    return {**study(activation, layer.s, W, b), "test_accuracy": accuracy}


def random_layers():
    """Returns (name, s, W of spectral radius 1, b) of a random layer of each kind; the inputs x are the same."""
    g = generator("pcdeq_convergence")
    positive = torch.rand(UNITS, UNITS, generator=g, dtype=torch.float64)
    signed = torch.randn(UNITS, UNITS, generator=g, dtype=torch.float64)
    positive, signed = (W / torch.linalg.eigvals(W).abs().max() for W in (positive, signed))
    x = torch.randn(INPUTS, UNITS, generator=g, dtype=torch.float64)
    layers = [PcDEQ(UNITS, activation, conv=False) for activation in ACTIVATIONS]
    return [
        *((layer.activation, layer.s, positive, layer.positive(x)) for layer in layers),
        ("plain", torch.tanh, signed, x),
    ]


def largest_radius(s, W, b) -> float:
    """Finds the largest spectral radius, to 1e-3, up to which the plain DEQ converges in STEPS."""
    low, high = 0.5, 4.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if residuals(s, middle * W, b)[-1] <= FLOOR else (low, middle)
    return low
