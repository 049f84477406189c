"""The modules under test lie in the repository root; real data, if any, in ../shared/data beside it."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture
def real_data():
    """The folder with the real MNIST; the test is skipped where it is not."""
    path = ROOT.parent / "shared" / "data"
    if not (path / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        pytest.skip(f"no real MNIST under {path}")
    return path
