"""A kernel of a day is announced before it begins: by a few images, with a time that holds."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deq_enn.kernels.conv import conv_blocks, conv_kernels
from deq_enn.kernels.conv_blocks import Side
from deq_enn.kernels.conv_explicit import conv_explicit_blocks, injected_kernels
from deq_enn.kernels.images import foretold


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def deq(x, other, readout="pool"):
    return conv_blocks(x, "relu", 0.5, readout=readout, other=other)


def layers(x, other, readout="pool"):
    return conv_explicit_blocks(x, ["relu", "tanh"], [3, 1], readout=readout, other=other)


@pytest.mark.parametrize("make", [deq, layers])
@pytest.mark.parametrize("others", [0, 700])
def test_a_few_images_tell_of_a_day(make, others, monkeypatch):
    monkeypatch.setattr(foretold, "DAY", 1e-9)
    monkeypatch.setattr(foretold, "ENOUGH", 0)
    asked = []

    def counted(x, other):
        asked.append((len(x), 0 if other is None else len(other)))
        return make(x, other)

    x, other = noise(600, 1, 8, 8), noise(others, 1, 8, 8) if others else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # so that it goes no further
        rows = others or 600
        with pytest.raises(UserWarning, match=f"this kernel of {rows} x 600 images will take about .* days on this"):
            foretold.kernels_of(counted, x, other)
    assert asked == [(256, 256 if others else 0)]


def test_what_takes_no_day_is_not_timed():
    asked = []
    foretold.announce(lambda *given: asked.append(given), noise(100, 1, 6, 6))
    assert not asked


@pytest.mark.parametrize("readout", ["flatten", "pool"])
@pytest.mark.parametrize("others", [0, 30])
def test_the_time_is_that_of_all_pairs(readout, others, monkeypatch):
    asked = []
    monkeypatch.setattr(foretold, "DAY", 0.1)
    monkeypatch.setattr(foretold, "seconds_of_pair", lambda blocks, tangent: asked.append(tangent) or 1e-2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x = noise(40, 1, 5, 4)
    with pytest.warns(UserWarning) as caught:
        foretold.announce(lambda *given: deq(*given, readout), x, noise(others, 1, 5, 4) if others else None, False, 2)
    pairs = 30 * 40 if others else 40 * 40  # one tile
    days = 0.1 * float(re.search("about (.*) days", str(caught[0].message))[1])
    assert days == pytest.approx(pairs * (400 if readout == "pool" else 20) * 1e-2 / 2, rel=1e-3) and asked == [False]


class Clocked:
    """A kernel whose parts take as long as a clock is told."""

    shape, first, device, local = (500, 500), 0, torch.device("cpu"), True

    def __init__(self, readout, clock):
        like = deq(noise(1, 1, 12, 12), None, readout)
        self.pixels, self.count, self.offsets = like.pixels, like.count, like.offsets
        self.readout, self.clock = readout, clock

    def side(self):
        return 64

    def cost(self, size):
        """Returns the seconds of a pair of pixels at an offset that has so many."""
        return 1e-7 * (1 + size / 36)

    def offset_sums(self, rows, cols, tangent):
        assert rows.pixels.shape == cols.pixels.shape and isinstance(rows, Side)
        count = [side.images.stop - side.images.start for side in (rows, cols)]
        self.clock.now += 1e-3 + self.cost(self.true_size(rows, cols)) * rows.pixels.size * count[0] * count[1]
        return [torch.zeros(1)]

    def true_size(self, rows, cols):
        place = [np.array(np.unravel_index(side.pixels[0, 0], (12, 12))) for side in (rows, cols)]
        return int(np.prod(12 - abs(place[1] - place[0])))


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_the_time_of_a_pair_is_the_mean_over_offsets(readout, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(foretold, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    blocks = Clocked(readout, clock)
    sizes = np.array([p.size for p, _ in blocks.offsets()])
    exact = (sizes * blocks.cost(sizes)).sum() / sizes.sum()
    assert foretold.seconds_of_pair(blocks) == pytest.approx(exact, rel=0.1)
    assert clock.now < 10


def test_bad_input_is_left_to_the_kernel(monkeypatch):
    monkeypatch.setattr(foretold, "DAY", 1e-9)
    with pytest.raises(ValueError, match="first in image 1"):
        conv_kernels(torch.tensor([1, torch.nan, 2])[:, None, None, None], "relu", 0.5)
    with pytest.raises(ValueError, match=r"must be \(n, channels, height, width\)"):
        conv_kernels(torch.ones(3, 4), "relu", 0.5)


def test_networks_with_taps_are_announced(monkeypatch):
    monkeypatch.setattr(foretold, "DAY", 1e-9)
    taps = np.full((3, 3), 0.05), np.full((3, 3), 0.05)
    with pytest.warns(UserWarning, match="this kernel of 4 x 4 images"):
        injected_kernels(noise(4, 1, 4, 4), "relu", taps, 2, padding="circular", readout="pool")
