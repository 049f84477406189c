"""Small files of images as the tests of several modules write them."""

import numpy as np
from scipy.io import savemat

from deq_enn.data.images import CIFAR10_CLASSES


def idx_bytes(array):
    """The published idx format: 0, 0, type code 8 (unsigned byte), number of dimensions, big-endian sizes, data."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def write_mnist(folder, seed=0, sizes=(60, 20)):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in zip(("train", "t10k"), sizes):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(rng.integers(0, 256, (n, 28, 28))))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(n) % 10))


def write_cifar(folder, per_class=(2, 1), size=32):
    """JPEG files in the folders of CIFAR-10: noise about a colour of the class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, n in zip(("train", "test"), per_class):
        for label, name in enumerate(CIFAR10_CLASSES):
            place = folder / "cifar10" / part / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 100, (size, size, 3)) + np.array(
                    [15 * label, 70 * (label % 3), 30 * (label % 5)]
                )
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:04}.jpg")


def write_svhn(folder, n=20, **changes):
    g = np.random.default_rng(0)
    for split in ("train", "test"):
        arrays = {"X": g.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), "y": (np.arange(n) % 10 + 1)[:, None]}
        savemat(folder / f"{split}_32x32.mat", {**arrays, **changes})
    return arrays
