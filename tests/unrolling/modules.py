"""DEQs of several makers, small, that the tests of `deq_enn.unrolling` stop, train and judge."""

import torch
from torch import nn

from deq_enn.networks.fixed_point import FixedPoint, Picard

P, M, K = 6, 24, 3


class DEQBase(nn.Module):
    """Stands for torchdeq's class of that name: the same call, by plain iteration."""

    __module__ = "torchdeq.core"

    def forward(self, func, z_init, solver_kwargs=None, **ignored):
        single = isinstance(z_init, torch.Tensor)
        tau, z = (solver_kwargs or {}).get("tau", 1.0), z_init if single else tuple(z_init)
        for _ in range(15):
            new = func(z) if single else func(*z)
            z = tau * new + (1 - tau) * z if single else tuple(tau * a + (1 - tau) * b for a, b in zip(new, z))
        return [z if single else list(z)], {"nstep": torch.tensor([15.0])}


class Foreign(nn.Module):
    """A DEQ by torchdeq with two states, of units and of a sequence, weight norm, LayerNorm, and a damping."""

    def __init__(self, deq=None):
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(P, M))
        self.cell, self.other, self.norm = nn.Linear(M, M), nn.Linear(M, M), nn.LayerNorm(M)
        self.readout = nn.Linear(M, K)
        self.deq = DEQBase() if deq is None else deq
        with torch.no_grad():
            self.cell.weight.mul_(0.5)
            self.other.weight.mul_(0.5)

    def step(self, z, s, u):
        new = torch.tanh(self.cell(z) + 0.3 * s.mean(1) + u)
        return new, torch.tanh(0.5 * self.norm(self.other(s)) + new[:, None])

    def forward(self, x):
        u = self.first(x)
        start = u.new_zeros(len(x), M), u.new_zeros(len(x), 4, M)
        (z, s), _ = self._solved(lambda z, s: self.step(z, s, u), start)
        return self.readout(z + s.mean(1)), {"steps": 15}

    def _solved(self, f, start):
        out, info = self.deq(f, start, solver_kwargs={"tau": 0.8})
        return out[-1], info


class TwoEquilibria(nn.Module):
    """Two of this project's fixed points, one of images and one of units, one of them in a list."""

    def __init__(self):
        super().__init__()
        self.lift, self.mix = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.down, self.cell, self.readout = nn.Linear(16, M), nn.Linear(M, M, bias=False), nn.Linear(M, K)
        self.solve = [FixedPoint(Picard(tol=1e-5)), FixedPoint(Picard(tol=1e-5))]
        with torch.no_grad():
            self.mix.weight.mul_(0.5)

    def forward(self, x):
        u = self.lift(x)
        weight = self.mix.weight
        z = self.solve[0](
            lambda z, W, u: torch.relu(nn.functional.conv2d(z, W, padding=1) + u), torch.relu(u), weight, u
        )
        v = self.down(nn.functional.adaptive_avg_pool2d(z, 2).flatten(1))
        z = self.solve[1](lambda z, W, v: torch.tanh(z @ W.T + v), torch.tanh(v), self.cell.weight, v)
        return self.readout(z)


class ByHand(nn.Module):
    """A loop of the user's own, over rows of a sequence, which only he can stop."""

    def __init__(self):
        super().__init__()
        self.lift, self.cell, self.readout = nn.Linear(P, M), nn.Linear(M, M), nn.Linear(M, K)
        self.most = 50
        with torch.no_grad():
            self.cell.weight.mul_(0.6)

    def forward(self, x):
        u, z = self.lift(x.mean(1)), 0
        for _ in range(self.most):
            z = torch.tanh(u + self.cell(z) if torch.is_tensor(z) else u)
        return self.readout(z)


def by_hand(module, k):
    module.most = k
    return module
