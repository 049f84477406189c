"""DEQs of every form that the verdict is tried on, small enough to be trained in seconds.

Ours (fully connected, the six positive concave ones), those by torchdeq (convolutional, with two states, like a
transformer), and one written by hand with Anderson's method. Those by torchdeq need it: `pip install torchdeq`.
"""

if __name__ == "__main__":
    raise SystemExit("deqs.py is a part of scripts/trained_deqs.py: run that")

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from deq_enn.names import PCDEQ_ACTIVATIONS
from deq_enn.networks import pcdeq
from deq_enn.networks.deq import DEQ
from deq_enn.networks.fixed_point import Anderson, FixedPoint, Picard

LENIENT = Picard(tol=1e-3, max_steps=40, strict=False)  # of our DEQs, as torchdeq's users have it
FAR = {"f_max_iter": 50, "b_max_iter": 50}  # more steps than there are tokens in a short sequence
FARTHER = 70  # than in a long one
CONCAVE = (0.01, 60), (0.1, 90)  # rate and steps of training of the positive concave DEQs, linear and convolutional
NARROW = {"linear": (80,), "single_conv": (8,), "multi_conv": (6, 8, 12)}  # channels: the published ones take hours


@dataclass(frozen=True)
class Case:
    """This is a DEQ to be trained: its task, how it is made and trained, and how it is stopped where it cannot say.

    make : (sample, classes) -> module. rate : of Adam, at most. updates : steps of training. project : whether its
    weights are kept nonnegative. taught : the task that it is trained on, where that is another, of shorter samples.
    """

    name: str
    task: str
    make: Callable[[torch.Tensor, int], nn.Module]
    rate: float
    updates: int
    project: bool = False
    steps: Callable[[nn.Module, int], nn.Module] | None = None
    taught: str | None = None

    @property
    def dear(self) -> int:
        """Returns how many times as much time a verdict on it needs."""
        if self.taught or self.name.startswith("torchdeq, conv"):
            return 10
        return 3 if any(word in self.name for word in ("conv", "attention", "sequence")) else 1


class Flat(nn.Module):
    """Our fully connected DEQ, on samples scaled to a mean squared norm of 1."""

    def __init__(self, activation: str, sigma_a2: float, width: int, sample: torch.Tensor, classes: int, gain: float):
        super().__init__()
        self.scale = gain / sample.numel() ** 0.5
        self.deq = DEQ(activation, sample.numel(), width, classes, sigma_a2, tau0=gain)
        self.deq.fixed_point = FixedPoint(LENIENT)

    def forward(self, x):
        return self.deq(x.flatten(1) * self.scale)


class Convolutional(nn.Module):
    """This is a convolutional DEQ by torchdeq, with group norm, at half the side of the image."""

    def __init__(self, sample: torch.Tensor, classes: int, channels: int, stride: int, options: dict):
        super().__init__()
        self.stem = nn.Conv2d(sample.shape[0], channels, 3, stride, 1)
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) for _ in range(3))
        side = (sample.shape[1] - 1) // stride + 1
        self.pool = nn.AvgPool2d(max(side // 4, 1))
        self.readout = nn.Linear(channels * (side // max(side // 4, 1)) ** 2, classes)
        self.deq = torchdeq_of(options)

    def cell(self, z, u):
        z = self.norms[0](torch.relu(self.first(z)))
        return self.norms[2](torch.relu(z + self.norms[1](u + self.second(z))))

    def forward(self, x):
        u = self.stem(x)
        z, _ = self.deq(lambda z: self.cell(z, u), torch.zeros_like(u))
        return self.readout(self.pool(z[-1]).flatten(1))


class TwoStates(nn.Module):
    """Two states of different sizes that drive each other, by torchdeq, with weight norm."""

    def __init__(self, sample: torch.Tensor, classes: int, width: int, options: dict):
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.lift = nn.Linear(sample.numel(), width)
        self.own, self.up = norm(nn.Linear(width, width)), norm(nn.Linear(width // 2, width))
        self.down, self.other = norm(nn.Linear(width, width // 2)), norm(nn.Linear(width // 2, width // 2))
        self.readout = nn.Linear(width + width // 2, classes)
        self.deq = torchdeq_of(options)

    def forward(self, x):
        u = self.lift(x.flatten(1))

        def cell(z, s):
            return torch.tanh(0.6 * self.own(z) + 0.3 * self.up(s) + u), torch.tanh(0.5 * self.other(s) + self.down(z))

        out, _ = self.deq(cell, (torch.zeros_like(u), u.new_zeros(len(u), self.down.out_features)))
        return self.readout(torch.cat(list(out[-1]), 1))


class Attention(nn.Module):
    """This is like a transformer: attention and a small network, with layer norm and the input injected, over rows."""

    def __init__(self, sample: torch.Tensor, classes: int, width: int, options: dict):
        super().__init__()
        rows, columns = sample.shape[-2:]
        self.lift = nn.Linear(columns, width)
        self.place = nn.Parameter(0.1 * torch.randn(rows, width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.readout = nn.Linear(width, classes)
        self.deq = torchdeq_of(options)

    def cell(self, z, u):
        q, k, v = self.qkv(z).chunk(3, -1)
        attended = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v
        z = self.norms[0](u + self.out(attended))
        return self.norms[1](z + self.narrow(torch.relu(self.wide(z))))

    def forward(self, x):
        u = self.lift(x.flatten(0, -3).reshape(-1, *x.shape[-2:])) + self.place
        z, _ = self.deq(lambda z: self.cell(z, u), torch.zeros_like(u))
        return self.readout(z[-1].mean(1))


class ByHand(nn.Module):
    """A loop of one's own by Anderson's method, with the gradient of one more application, as is often written."""

    def __init__(self, sample: torch.Tensor, classes: int, width: int):
        super().__init__()
        self.A, self.B = nn.Linear(width, width, bias=False), nn.Linear(sample.numel(), width)
        self.readout = nn.Linear(width, classes)
        self.k: int | None = None
        nn.init.orthogonal_(self.A.weight, 0.8)

    def cell(self, z, u):
        return torch.relu(self.A(z) + u)

    def forward(self, x):
        u = self.B(x.flatten(1))
        if self.k is not None:
            z = torch.zeros_like(u)
            for _ in range(self.k):
                z = self.cell(z, u)
            return self.readout(z)
        solver = Anderson(tol=1e-4, max_steps=40, strict=False)
        z = solver.solve(lambda z: self.cell(z, u), torch.zeros_like(u)).value
        return self.readout(self.cell(z, u))


class Recurrent(nn.Module):
    """The states of a recurrent network, z_t = tanh(A z_(t-1) + B x_t), all at once as an equilibrium.

    Each step of the iteration takes the states one token further; the last one is read out. It is solved by torchdeq,
    or by this project's solver where none is given.
    """

    def __init__(self, sample: torch.Tensor, classes: int, width: int, deq: nn.Module | None = None):
        super().__init__()
        self.A, self.B = nn.Linear(width, width, bias=False), nn.Linear(sample.shape[-1], width)
        nn.init.orthogonal_(self.A.weight)
        self.readout, self.deq = nn.Linear(width, classes), deq
        if deq is None:
            self.fixed_point = FixedPoint(Picard(tol=1e-3, max_steps=FARTHER, strict=False))

    @staticmethod
    def cell(z, u, A):
        before = nn.functional.pad(z[:, :-1], (0, 0, 1, 0))
        return torch.tanh(before @ A.T + u)

    def forward(self, x):
        u = self.B(x.flatten(0, -3).reshape(-1, *x.shape[-2:]))
        if self.deq is None:
            z = self.fixed_point(self.cell, torch.zeros_like(u), u, self.A.weight)
        else:
            z = self.deq(lambda z: self.cell(z, u, self.A.weight), torch.zeros_like(u))[0][-1]
        return self.readout(z[:, -1])


def by_hand(module: nn.Module, k: int) -> nn.Module:
    """Stops a `ByHand` after k plain steps."""
    assert isinstance(module, ByHand)
    module.k = k
    return module


def torchdeq_of(options: dict) -> nn.Module:
    """Returns a DEQ of torchdeq with these options."""
    import torchdeq

    return torchdeq.get_deq(**{"f_max_iter": 14, "b_max_iter": 8, "f_tol": 1e-3, "b_tol": 1e-3} | options)


def _pcdeq(name: str, activation: str) -> Callable[[torch.Tensor, int], nn.Module]:
    def make(sample: torch.Tensor, classes: int) -> nn.Module:
        shape = tuple(sample.shape)
        before = pcdeq.WIDTHS[shape]
        pcdeq.WIDTHS[shape] = NARROW
        try:
            return pcdeq.build_pcdeq(name, activation, shape, classes)
        finally:
            pcdeq.WIDTHS[shape] = before

    return make


def cases() -> list[Case]:
    """Returns every DEQ of the study, the different forms taking turns, so that a shorter study has them all."""
    ift, phantom = {"ift": True}, {"grad": 2, "tau": 0.9}
    anderson = {"ift": True, "f_solver": "anderson"}
    full = [
        Case(
            f"{activation} {sigma_a2:g}, width {width}, {updates} steps",
            task,
            lambda x, c, a=activation, s=sigma_a2, w=width, g=gain: Flat(a, s, w, x, c, g),
            rate,
            updates,
        )
        for activation, sigma_a2, width, task, updates, rate, gain in (
            ("relu", 0.5, 128, "fashion_mnist", 400, 0.03, 1.0),
            ("tanh", 0.8, 128, "fashion_mnist", 500, 0.01, 1.0),
            ("swish", 0.5, 128, "mnist", 500, 0.03, 1.0),
            ("relu", 0.9, 64, "rings", 500, 0.01, 2.0),
            ("relu", 0.2, 128, "mnist", 100, 0.03, 1.0),
            ("tanh", 0.4, 64, "mnist", 200, 0.02, 1.0),
            ("relu", 0.8, 64, "rings", 500, 0.01, 2.0),
            ("swish", 0.9, 128, "fashion_mnist", 300, 0.02, 1.0),
            ("relu", 0.5, 256, "fashion_mnist", 100, 0.02, 1.0),
            ("tanh", 0.5, 128, "parity", 600, 0.03, 2.0),
            ("relu", 0.9, 64, "mnist", 300, 0.02, 1.0),
            ("swish", 0.4, 64, "parity", 600, 0.03, 2.0),
            ("tanh", 0.9, 256, "mnist", 200, 0.01, 1.0),
            ("relu", 0.3, 64, "parity", 600, 0.03, 2.0),
            ("swish", 0.3, 64, "rings", 500, 0.05, 2.0),
            ("relu", 0.8, 128, "mnist", 400, 0.02, 1.0),
            ("tanh", 0.8, 64, "fashion_mnist", 600, 0.01, 1.0),
            ("tanh", 0.2, 64, "rings", 2000, 0.03, 2.0),
            ("relu", 0.5, 128, "fashion_mnist", 5000, 0.02, 1.0),
        )
    ]
    concave = [
        Case(f"{name} {activation}", task, _pcdeq(name, activation), *CONCAVE["conv" in name], project=True)
        for task in ("mnist", "fashion_mnist")
        for name in pcdeq.PCDEQS
        for activation in (PCDEQ_ACTIVATIONS[name[-1]][0],)
    ]
    other = [
        Case("torchdeq, convolutional", "fashion_mnist", lambda x, c: Convolutional(x, c, 8, 2, ift), 0.02, 250),
        Case("torchdeq, attention", "mnist", lambda x, c: Attention(x, c, 24, ift), 0.005, 250),
        Case("torchdeq, two states", "mnist", lambda x, c: TwoStates(x, c, 96, ift), 0.01, 200),
        Case("torchdeq, convolutional", "connected", lambda x, c: Convolutional(x, c, 8, 1, ift), 0.01, 300),
        Case("by hand, Anderson", "fashion_mnist", lambda x, c: ByHand(x, c, 128), 0.003, 250, steps=by_hand),
        Case("torchdeq, convolutional", "cifar10", lambda x, c: Convolutional(x, c, 8, 2, phantom), 0.02, 250),
        Case("torchdeq, two states, Anderson", "rings", lambda x, c: TwoStates(x, c, 48, anderson), 0.01, 600),
        Case("torchdeq, two states, phantom", "fashion_mnist", lambda x, c: TwoStates(x, c, 96, phantom), 0.01, 200),
        Case("by hand, Anderson", "rings", lambda x, c: ByHand(x, c, 64), 0.01, 500, steps=by_hand),
        Case("torchdeq, attention, Anderson", "fashion_mnist", lambda x, c: Attention(x, c, 24, anderson), 0.005, 250),
        Case("torchdeq, conv., phantom", "connected", lambda x, c: Convolutional(x, c, 8, 1, phantom), 0.01, 300),
        Case("by hand, Anderson", "parity", lambda x, c: ByHand(x, c, 64), 0.01, 500, steps=by_hand),
    ]  # fmt: skip
    sequences = [
        Case("sequence, torchdeq", "switches", lambda x, c: Recurrent(x, c, 32, torchdeq_of(ift | FAR)), 0.01, 600),
        Case("sequence, ours", "turns", lambda x, c: Recurrent(x, c, 32), 0.01, 600),
        Case("sequence, long", "long turns", lambda x, c: Recurrent(x, c, 32), 0.01, 600, taught="turns"),
        Case("sequence, long", "long switches", lambda x, c: Recurrent(x, c, 32), 0.01, 600, taught="switches"),
        Case("sequence of 48", "long turns", lambda x, c: Recurrent(x, c, 48), 0.01, 600, taught="turns"),
    ]  # fmt: skip
    lists = [full, concave, other, sequences]
    return [group[i] for i in range(max(map(len, lists))) for group in lists if i < len(group)]
