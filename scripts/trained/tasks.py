"""Labelled samples that DEQs are trained on: images, rings, parity, connected grids, sequences that turn a state.

Each task has a training set, samples held out for a verdict, and more of the same kind that tell what was true.
"""

if __name__ == "__main__":
    raise SystemExit("tasks.py is a part of scripts/trained_deqs.py: run that")

import functools
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from deq_enn.data.images import IMAGES
from deq_enn.utils.random import generator

TRAIN, HELD, MORE = 6000, 4000, 6000  # samples of each part
DRAWN = 6000  # held out where samples are drawn and cost nothing
RINGS, BITS, PARITY, GRID = 4, 20, 3, 8  # rings; bits, and how many of them count; side of a grid
OPEN = 0.6  # share of a grid's cells that are open
TURN = 0.2  # share of the tokens that turn a state to the next
SHORT, LONG = (24, 0.1), (56, 0.02)  # tokens of a sequence, and the share of them that set a state


@dataclass(frozen=True)
class Task:
    """(X, y) to train on, `held` for the verdict, `more` to tell what was true; samples of any shape."""

    name: str
    classes: int
    train: tuple[torch.Tensor, torch.Tensor]
    held: tuple[torch.Tensor, torch.Tensor]
    more: tuple[torch.Tensor, torch.Tensor]


def load(name: str, folder: Path, cache: Path) -> Task:
    """Returns the task of that name; `folder` has the images, `cache` keeps those that are slow to read."""
    if name in ("mnist", "fashion_mnist"):
        data = IMAGES[name](folder)
        X, y = data.train.float().reshape(-1, 1, 28, 28), data.train_labels
        X_test, y_test = data.test.float().reshape(-1, 1, 28, 28), data.test_labels
        return _parts(name, 10, X, y, X_test, y_test)
    if name == "cifar10":
        X, y, X_test, y_test = _cifar10(folder / "cifar10-jpeg.tar.xz", cache / "cifar10.pt")
        return _parts(name, 10, X, y, X_test, y_test)
    classes, draw = DRAWS[name]
    return _parts(name, classes, *draw(TRAIN, "train"), *draw(DRAWN + MORE, "test"), scale=False, n_held=DRAWN)


def _parts(name, classes, X, y, X_test, y_test, scale=True, n_held=HELD) -> Task:
    g = generator("trained tasks", name)
    rows, test = torch.randperm(len(X), generator=g)[:TRAIN], torch.randperm(len(X_test), generator=g)
    X, y, X_test, y_test = X[rows], y[rows], X_test[test], y_test[test]
    if scale:
        mean, std = X.mean(), X.std()
        X, X_test = (X - mean) / std, (X_test - mean) / std
    held, more = slice(n_held), slice(n_held, n_held + MORE)
    return Task(name, classes, (X, y), (X_test[held], y_test[held]), (X_test[more], y_test[more]))


def rings(n: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns points of the plane (n, 3) in rings, whose two classes take turns; the third entry is 1.

    Without it a ReLU-DEQ, which has no bias, would be homogeneous: it would not see the radius.
    """
    g = generator("rings", part)
    ring = torch.randint(RINGS, (n,), generator=g)
    radius = 0.5 + ring + 0.7 * (torch.rand(n, generator=g) - 0.5)
    angle = 2 * torch.pi * torch.rand(n, generator=g)
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.ones(n)], 1)
    return points, ring % 2


def parity(n: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns rows of +1 and -1 (n, BITS), and the parity of the first few of them."""
    bits = torch.randint(2, (n, BITS), generator=generator("parity", part))
    return (2 * bits - 1).float(), bits[:, :PARITY].sum(1) % 2


def connected(n: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns grids (n, 1, side, side) of open cells, and whether open cells lead from the top to the bottom."""
    cells = torch.rand(n, 1, GRID, GRID, generator=generator("connected", part)) < OPEN
    wet = torch.zeros_like(cells)
    wet[:, :, 0] = cells[:, :, 0]
    for _ in range(GRID * GRID):
        spread = wet.clone()
        spread[:, :, 1:] |= wet[:, :, :-1]
        spread[:, :, :-1] |= wet[:, :, 1:]
        spread[..., 1:] |= wet[..., :-1]
        spread[..., :-1] |= wet[..., 1:]
        wet = spread & cells
    return 2 * cells.float() - 1, wet[:, 0, -1].any(1).long()


def turns(n: int, part: str, states: int, length: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns sequences (n, length, states + 2) of tokens, and the state that they end in.

    A token sets the state to a certain one, or turns it to the next, or does nothing. It begins with the first. The
    last few tokens alone do not tell the state, unless it was set among them.
    """
    g = generator("turns", part, states)
    shares = torch.tensor([share / states] * states + [TURN, 1 - share - TURN])
    tokens = torch.multinomial(shares.expand(n, -1), length, replacement=True, generator=g)
    state = torch.zeros(n, dtype=torch.int64)
    for token in tokens.T:
        state = torch.where(token < states, token, (state + (token == states)) % states)
    return torch.nn.functional.one_hot(tokens, states + 2).float(), state


DRAWS = {
    "rings": (2, rings),
    "parity": (2, parity),
    "connected": (2, connected),
    "switches": (2, functools.partial(turns, states=2, length=SHORT[0], share=SHORT[1])),
    "turns": (3, functools.partial(turns, states=3, length=SHORT[0], share=SHORT[1])),
    "long switches": (2, functools.partial(turns, states=2, length=LONG[0], share=LONG[1])),
    "long turns": (3, functools.partial(turns, states=3, length=LONG[0], share=LONG[1])),
}


def _cifar10(archive: Path, cache: Path) -> tuple[torch.Tensor, ...]:
    """Images (n, 3, 32, 32) and labels of both parts, from an archive of JPEG files; kept at `cache`."""
    if cache.exists():
        return tuple(torch.load(cache, weights_only=True))
    from PIL import Image

    images: dict[str, list] = {"train": [], "test": []}
    names: list[str] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3 or parts[-3] not in images:
                continue
            if parts[-2] not in names:
                names.append(parts[-2])
            number = int(Path(parts[-1]).stem)
            if parts[-3] == "train" and number >= TRAIN // 5:  # enough for the training set
                continue
            file = tar.extractfile(member)
            assert file is not None
            with Image.open(io.BytesIO(file.read())) as image:
                pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
            images[parts[-3]].append((pixels.view(32, 32, 3).permute(2, 0, 1).float(), parts[-2]))
    order = sorted(names)
    tensors: list[torch.Tensor] = []
    for part in ("train", "test"):
        tensors += [torch.stack([x for x, _ in images[part]]), torch.tensor([order.index(k) for _, k in images[part]])]
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, cache)
    return tuple(tensors)


Maker = Callable[[Task], torch.nn.Module]
