"""Cases of scripts/calibrate.py that nobody had tuned to: few dimensions, discrete, imbalanced, heavy tails, manifolds.

They were added after an independent check had broken the verdict on such data. They have activations of the registry
and functions as users bring them, sigma_a^2 up to 0.97, widths from 32 to 2,048, and small data sets, so that all of
them are trained in minutes. As in `cases.py`, the deck is dealt by one seed, and a hash of a case's name says whether
it sets constants or only reports.
"""

if __name__ == "__main__":
    raise SystemExit("fresh.py is a part of scripts/calibrate.py: run that")

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from deq_enn.data.datasets import Dataset, normalise
from deq_enn.data.images import mnist_images
from deq_enn.theory.activations import ACTIVATIONS, Activation, from_function
from deq_enn.theory.equilibrium import estimate_tau0, get_tau
from deq_enn.theory.gaussian import gaussian_moments
from deq_enn.utils.random import generator
from scripts.calibration.cases import Case

SEED = 28
# data set: number of its cases
COUNTS = {
    "rings": 7,
    "shells": 3,
    "spirals": 6,
    "checkerboard": 4,
    "parity": 4,
    "chance": 2,
    "bits": 4,
    "table": 4,
    "rounded": 3,
    "oversampled": 4,
    "rare": 3,
    "unequal": 4,
    "tails": 4,
    "roll": 4,
    "curve": 3,
    "fashion": 5,
    "fashion_tops": 2,
}
KINDS = {
    "few dimensions": ("rings", "shells", "spirals", "checkerboard"),
    "discrete": ("parity", "bits", "table", "rounded"),
    "copies": ("oversampled",),
    "imbalanced or at chance": ("rare", "unequal", "chance"),
    "heavy tails": ("tails",),
    "manifolds": ("roll", "curve"),
    "Fashion-MNIST": ("fashion", "fashion_tops"),
}
SIGMA_A2 = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.97)
SLOW = (0.9, 0.95, 0.97, 0.9, 0.95, 0.97, 0.5, 0.2)  # sigma_a^2 in few dimensions, where a DEQ may be right to stay
# activations in few dimensions: an odd one makes an odd network, which can tell no ring from another
NOT_ODD = "gelu3 swish relu gelu elu gelu3 selu softplus mish leaky_relu gelu3 sin2".split()
WIDTHS = {32: 12, 64: 17, 128: 17, 256: 12, 512: 5, 1024: 2, 2048: 1}
TRAINING = (1000, 1500, 2000, 3000, 3000)
# of a width: the largest training set, the test set, and how many seeds of weights beside the user's own
LIMITS = {
    32: (3000, 3000, 5),
    64: (2000, 3000, 4),
    128: (2000, 2500, 3),
    256: (1500, 2000, 3),
    512: (1500, 2000, 2),
    1024: (1000, 1500, 2),
    2048: (1000, 1000, 2),
}
# more of the one kind of data on which a pilot saw DEQs with an odd activation do better than every network
EXTRA = (
    ("roll", "tanh", 0.8, 32, 1500),
    ("roll", "softsign", 0.95, 64, 1500),
    ("roll", "erf", 0.65, 64, 2000),
    ("roll", "sin", 0.8, 32, 3000),
    ("roll", "tanh", 0.9, 128, 2000),
    ("roll", "hardtanh", 0.5, 64, 1500),
    ("roll", "asinh", 0.9, 32, 2000),
    ("roll", "bump", 0.8, 64, 2000),
    ("roll", "erf", 0.5, 32, 2000),
    ("roll", "tanh", 0.5, 128, 1500),
)
WIDEST = 128  # largest width in few dimensions, where float64 and slow equilibria take long
STABLE = 0.8  # largest sigma_a^2 E[phi'^2] of a case, as in cases.py


def gelu3(x):
    return F.gelu(3 * x) / 3


def sin2(x):
    return torch.sin(2 * x) / 2


def bump(x):
    return x * torch.exp(-(x**2) / 2)


def dead_zone(x):
    return F.softshrink(x, 0.5)


OWN: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        from_function(gelu3),
        from_function(sin2),
        from_function(bump),
        from_function(torch.asinh, "asinh"),
        from_function(dead_zone, kinks=(-0.5, 0.5)),
    )
}


@dataclass(frozen=True)
class FreshCase(Case):
    """This is a case of this file."""

    @property
    def tests(self) -> int:
        return LIMITS[self.width][1]

    @property
    def seeds(self) -> int:
        return LIMITS[self.width][2]


def activation_of(case: Case) -> Activation:
    return OWN[case.activation] if case.activation in OWN else ACTIVATIONS[case.activation]


def fresh_cases() -> list[Case]:
    """Returns all of them, in an order in which any first part is a fair sample."""
    listed = dealt(COUNTS, WIDTHS, SEED) | {case.name: case for case in (FreshCase(*row) for row in EXTRA)}
    return sorted(listed.values(), key=lambda case: case.digest)


def dealt(counts: dict[str, int], widths: dict[int, int], seed: int) -> dict[str, FreshCase]:
    """Returns {name: case}, dealt by this seed from the decks of this file.

    counts : {data set: number of its cases}. widths : {width: number of its cases}, of as many cases.
    """
    data = [name for name, count in counts.items() for _ in range(count)]
    functions = [*ACTIVATIONS, *OWN, *OWN, "gelu3", "gelu3"]
    decks: dict[str, list] = {"width": [width for width, count in widths.items() for _ in range(count)]}
    assert len(decks["width"]) == len(data)
    decks |= {"activation": functions, "sigma_a2": [*SIGMA_A2], "n": [*TRAINING], "slow": [*SLOW], "even": NOT_ODD}
    columns = {name: shuffled(deck * math.ceil(len(data) / len(deck)), name, seed) for name, deck in decks.items()}
    listed = {}
    for row in zip(data, *columns.values()):
        c = dict(zip(("data", *columns), row))
        slow, even = c.pop("slow"), c.pop("even")
        if c["data"] in KINDS["few dimensions"]:
            c["width"] = min(c["width"], WIDEST)
            c["sigma_a2"], c["activation"] = slow, even
        case = affordable(**c)
        listed[case.name] = case
    return listed


def affordable(data: str, activation: str, sigma_a2: float, width: int, n: int) -> FreshCase:
    """Returns the case with no more samples than its width can afford, and a sigma_a^2 with which a DEQ is stable."""
    lower = [s for s in reversed(SIGMA_A2) if s <= sigma_a2]
    stable = next(s for s in lower if _converges(activation, s))
    return FreshCase(data, activation, stable, width, min(n, LIMITS[width][0]))


def shuffled(values: list, column: str, seed: int) -> list:
    """Returns the values in the order in which this seed deals the column."""
    order = torch.randperm(len(values), generator=generator("fresh calibration cases", column, seed))
    return [values[i] for i in order]


@cache
def _converges(name, sigma_a2):
    f = OWN[name] if name in OWN else ACTIVATIONS[name]
    try:
        tau = get_tau(f, sigma_a2, 1.0)
        return sigma_a2 * max(gaussian_moments(f, scale).d1_sq for scale in (tau, tau / 3)) < STABLE
    except ValueError:
        return False


# ---------------------------------------------------------------------------------------------------------------
# the data


def load_fresh(case: Case, path) -> Dataset:
    """Returns the training and test samples of a case, normalised; tau_0 is 1.

    path : the folder of Fashion-MNIST.
    """
    X, y, X_test, y_test = (_images if case.data.startswith("fashion") else _drawn)(case, path)
    normalise(X, X_test)
    scale = estimate_tau0(X)
    return Dataset(case.name, X / scale, y, X_test / scale, y_test, int(y.max()) + 1)


@cache
def _fashion(path):
    return mnist_images(path, "fashion_mnist")


def _images(case, path):
    images, parts = _fashion(str(path)), []
    for part, size, X, y in (
        ("train", case.n, images.train, images.train_labels),
        ("test", case.tests, images.test, images.test_labels),
    ):
        order = torch.randperm(len(X), generator=generator("samples", part, case.name))
        if case.data == "fashion_tops":  # T-shirt, pullover and shirt
            order, y = order[torch.isin(y[order], torch.tensor([0, 2, 6]))], y // 3
        parts += [X[order[:size]].flatten(1).float(), y[order[:size]]]
    return parts


def _drawn(case, _):
    """Returns training and test samples, independent, in random order."""
    parts = []
    for part, n in (("train", case.n), ("test", case.tests)):
        X, y = _SOURCES[case.data](n, generator("samples", part, case.name))
        if case.data == "oversampled" and part == "train":  # a third of the samples, some of them many times
            kept = torch.randint(n // 3, (n,), generator=generator("oversampled", case.name))
            X, y = X[kept], y[kept]
        order = torch.randperm(n, generator=generator("order", part, case.name))
        parts += [X[order].float(), y[order]]
    return parts


def _on_spheres(count, p):
    """Returns a source of spheres about the origin of R^p, a little blurred, with labels that alternate."""

    def source(n, draw):
        sphere = torch.randint(count, (n,), generator=draw)
        direction = F.normalize(torch.randn(n, p, generator=draw))
        return direction * ((sphere + 0.6 + 0.12 * torch.randn(n, generator=draw)) / count)[:, None], sphere % 2

    return source


def _spirals(n, draw, arms=3, turns=1.5):
    arm, t = torch.randint(arms, (n,), generator=draw), torch.rand(n, generator=draw).sqrt()
    angle = 2 * math.pi * (turns * t + arm / arms)
    X = t[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return X + 0.03 * torch.randn(n, 2, generator=draw), arm


def _checkerboard(n, draw):
    X = 2 * torch.rand(n, 2, generator=draw) - 1
    return X, (2 * (X + 1)).floor().long().sum(1) % 2


def _parity(n, draw):
    """Draws ten bits, labelled by the parity of the first three; a twentieth of the labels is random."""
    bits = torch.randint(2, (n, 10), generator=draw)
    return 2.0 * bits - 1, _some_random(bits[:, :3].sum(1) % 2, 2, 0.05, draw)


def _chance(n, draw):
    """Draws twenty dimensions, labelled by the parity of the signs of eight: so few samples teach nothing of that."""
    X = torch.randn(n, 20, generator=draw)
    return X, (X[:, :8] > 0).sum(1) % 2


def _bits(n, draw):
    """Draws eight bits, one-hot, with labels from a fixed table; a fifth of the labels is random."""
    bits = torch.randint(2, (n, 8), generator=draw)
    labels = torch.randint(2, (256,), generator=generator("bits", SEED))
    y = labels[(bits * 2 ** torch.arange(8)).sum(1)]
    return F.one_hot(bits, 2).flatten(1).float(), _some_random(y, 2, 0.2, draw)


def _table(n, draw):
    """Draws five attributes of four unequally frequent categories, one-hot; three classes by pairs of them, noisy."""
    fixed = generator("table", SEED)
    attributes = torch.multinomial(torch.tensor([0.5, 0.25, 0.15, 0.1]), 5 * n, True, generator=draw).view(n, 5)
    scores = torch.randn(4, 4, 4, 3, generator=fixed)  # of neighbouring attributes
    total = sum(scores[k][attributes[:, k], attributes[:, k + 1]] for k in range(4))
    return F.one_hot(attributes, 4).flatten(1).float(), _some_random(total.argmax(1), 3, 0.1, draw)


def _rounded(n, draw):
    """Draws three measured quantities, written with few digits, and four classes by waves."""
    fixed = generator("rounded", SEED)
    w, a = torch.randn(3, 6, generator=fixed), torch.randn(6, 4, generator=fixed)
    X = torch.randn(n, 3, generator=draw)
    y = (torch.sin(1.5 * X @ w) @ a).argmax(1)
    return (2.5 * X).round(), y


def _oversampled(n, draw):
    return _clusters(n, draw, torch.ones(4), 20, 2.0)


def _rare(n, draw):
    """Draws a faint sign of four samples in a hundred."""
    X = torch.randn(n, 30, generator=draw)
    chance = 0.04 * torch.exp(0.9 * X[:, 0] - 0.4 + 0.3 * (X[:, 1] ** 2 - 1))
    return X, (torch.rand(n, generator=draw) < chance.clamp_max(0.9)).long()


def _unequal(n, draw):
    return _clusters(n, draw, torch.tensor([0.8, 0.15, 0.05]), 30, 3.0)


def _clusters(n, draw, shares, p, apart):
    """Draws a Gaussian cluster and one of another spread for each class, in p dimensions."""
    y = torch.multinomial(shares, n, True, generator=draw)
    side = torch.randint(2, (n,), generator=draw)
    centres = torch.randn(2, len(shares), p, generator=generator("clusters", p, SEED)) * apart / math.sqrt(p)
    return centres[side, y] + (0.5 + 0.3 * side)[:, None] * torch.randn(n, p, generator=draw), y


def _tails(n, draw, p=40, classes=4):
    """Draws Student's t of two degrees of freedom in each entry, about class means."""
    y = torch.randint(classes, (n,), generator=draw)
    chi2 = torch.randn(2, n, p, generator=draw).square().sum(0)
    return torch.randn(n, p, generator=draw) / (chi2 / 2).sqrt() + 3 * torch.eye(classes, p)[y], y


def _roll(n, draw):
    """Draws a Swiss roll in thirty dimensions with stripes of two classes along it."""
    t, height = torch.rand(n, generator=draw), torch.rand(n, generator=draw)
    angle = 3 * math.pi * (0.5 + t)
    roll = torch.stack([angle * angle.cos() / 10, angle * angle.sin() / 10, 1.5 * height], 1)
    turned = torch.linalg.qr(torch.randn(30, 3, generator=generator("roll", SEED)))[0]
    return roll @ turned.T + 0.01 * torch.randn(n, 30, generator=draw), ((8 * t).long() + (2 * height).long()) % 2


def _curve(n, draw):
    """Draws a closed curve in twenty dimensions, cut into twelve arcs of three classes."""
    t = torch.rand(n, generator=draw)
    waves = 2 * math.pi * t[:, None] * torch.arange(1, 6)
    mixed = torch.randn(10, 20, generator=generator("curve", SEED))
    mixed = mixed / torch.arange(1, 6).repeat(2)[:, None]
    X = torch.cat([waves.sin(), waves.cos()], 1) @ mixed
    return X + 0.05 * torch.randn(n, 20, generator=draw), (12 * t).long() % 3


def _some_random(y, classes, share, draw):
    chosen = torch.rand(len(y), generator=draw) < share
    return torch.where(chosen, torch.randint(classes, (len(y),), generator=draw), y)


_SOURCES = {
    "rings": _on_spheres(6, 2),
    "shells": _on_spheres(4, 3),
    "spirals": _spirals,
    "checkerboard": _checkerboard,
    "parity": _parity,
    "chance": _chance,
    "bits": _bits,
    "table": _table,
    "rounded": _rounded,
    "oversampled": _oversampled,
    "rare": _rare,
    "unequal": _unequal,
    "tails": _tails,
    "roll": _roll,
    "curve": _curve,
}
