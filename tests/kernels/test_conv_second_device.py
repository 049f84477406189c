"""The kernels of images on a second device that is pretended (helpers/second_device.py): no tensor is mixed."""

import pytest
import torch

from deq_enn.kernels.conv import conv_kernels
from deq_enn.kernels.conv_explicit import conv_explicit_kernels
from deq_enn.kernels.images import foretold
from tests.helpers.second_device import second_device

IMAGES = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def second(monkeypatch):
    with second_device(monkeypatch) as device:
        yield device


@pytest.mark.parametrize("readout", ["flatten", "pool"])
@pytest.mark.parametrize("kind", ["relu", "tanh", "erf", "hardtanh"])
@pytest.mark.long
def test_kernels_of_images(second, kind, readout):
    X, other = IMAGES.split(3)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        for kernels, others in (
            (lambda x, o: conv_kernels(x, kind, 0.2, readout=readout, other=o, dtype=dtype), None),
            (lambda x, o: conv_explicit_kernels(x, [kind] * 2, [3, 1], readout=readout, other=o, dtype=dtype), other),
        ):
            on_cpu = kernels(X, others)
            result = kernels(X.to(second), None if others is None else others.to(second))
            for ours, theirs in zip(on_cpu, result):
                assert theirs.device.type == second.type
                assert (ours - theirs.cpu()).abs().max() <= tolerance * ours.abs().max()


@pytest.mark.long
def test_a_day_is_announced_there(second, monkeypatch):
    monkeypatch.setattr(foretold, "DAY", 1e-9)
    with pytest.warns(UserWarning, match="this kernel of 3 x 5 images"):
        conv_kernels(IMAGES.to(second), "relu", 0.5, other=IMAGES[:3].to(second))
