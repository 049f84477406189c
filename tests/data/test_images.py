"""Files of images: idx (MNIST and its like), folders (CIFAR-10), .mat (SVHN); damaged, missing, downloaded."""

import gzip
import os

import numpy as np
import pytest
import torch

from deq_enn.data import images
from deq_enn.data.datasets import load_dataset
from deq_enn.data.images import DataError, cifar10_images, mnist_images, svhn_images
from tests.conftest import one_line
from tests.helpers.image_files import idx_bytes, write_cifar, write_mnist, write_svhn


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", refuse)


# MNIST and Fashion-MNIST --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, folder", [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"), ("mnist", ".")]
)
def test_idx_files_where_they_lie(tmp_path, name, folder):
    write_mnist(tmp_path / folder)
    images = mnist_images(tmp_path, name)
    pixels = np.frombuffer((tmp_path / folder / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    assert (
        images.train.dtype == torch.uint8
        and images.train.shape == (60, 1, 28, 28)
        and images.test.shape == (20, 1, 28, 28)
    )
    assert np.array_equal(images.train.numpy().ravel(), pixels) and images.test_labels.tolist() == list(range(10)) * 2
    data = load_dataset(name, tmp_path, classes=[8, 6])
    assert data.X_train.shape == (12, 784) and data.y_train.tolist() == [1, 0] * 6 and data.n_classes == 2
    assert data.X_train.square().sum(1).mean().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("packed", [(), (0, 3), (0, 1, 2, 3)])
def test_idx_files_as_they_are_published(tmp_path, no_network, name, folder, dotted, packed):
    write_mnist(tmp_path / folder / "raw")
    expected = mnist_images(tmp_path, name)
    for number, file in enumerate(images.MNIST_FILES):
        path = tmp_path / folder / "raw" / file
        content = path.read_bytes()
        path.unlink()
        file = file.replace("-idx", ".idx") if dotted else file
        if number in packed:
            file, content = f"{file}.gz", gzip.compress(content)
        (path.parent / file).write_bytes(content)
    for path in (tmp_path, tmp_path / folder, tmp_path / folder / "raw"):
        data = mnist_images(path, name)
        assert torch.equal(data.train, expected.train) and torch.equal(data.test_labels, expected.test_labels)
    other = "mnist" if name == "fashion_mnist" else "fashion_mnist"
    for path in (tmp_path / folder, tmp_path / folder / "raw"):  # not taken for the other, which has the same names
        with pytest.raises(DataError, match=f"no {other} found"):
            mnist_images(path, other)


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b"text" + b, lambda b: b[:40] + b"\0\0" + b[42:]])
def test_damaged_gz_is_named(tmp_path, damage):
    write_mnist(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    packed = gzip.compress(file.read_bytes())
    file.unlink()
    (tmp_path / f"{file.name}.gz").write_bytes(damage(packed))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz: truncated or damaged") as error:
        mnist_images(tmp_path)
    one_line(error)


def test_a_file_that_ends_within_its_header_is_named(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:9])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: truncated, damaged or no idx file"):
        mnist_images(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10_images", "svhn"])
def test_a_failed_download_leaves_no_folder(tmp_path, no_network, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="download failed"):
        load_dataset(name)
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="download failed"):
        load_dataset(name)
    assert (tmp_path / "data").is_dir()  # one that was there stays


def test_a_file_in_place_of_a_folder(tmp_path):
    np.savez(tmp_path / "mnist.npz", x_train=np.ones((2, 28, 28)))
    with pytest.raises(DataError, match="take --dataset npz"):
        load_dataset("mnist", tmp_path / "mnist.npz")


@pytest.mark.parametrize("file", images.MNIST_FILES)
@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b[:7], lambda b: b"", lambda b: b + b"\0", lambda b: b"\x1f\x8b" + b[2:], None],
)
def test_damaged_idx_file_is_named(tmp_path, file, damage):
    write_mnist(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / file
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(DataError) as error:
        load_dataset("mnist", tmp_path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(
    "content, words",
    [
        (idx_bytes(np.zeros((60, 28))), "uint8 in 2 dimensions, not uint8 in 3"),
        (bytes([0, 0, 12, 3]) + np.array([1, 2, 2, *range(4)], ">i4").tobytes(), "int32 in 3 dimensions, not uint8"),
        (bytes([0, 0, 10, 3]) + np.array([1, 2, 2, *range(4)], ">i4").tobytes(), "truncated, damaged or no idx file"),
        (bytes([0, 0, 8, 3]) + np.array([0, 28, 28], ">u4").tobytes(), "truncated, damaged or no idx file"),
        (b"not a file of numbers", "truncated, damaged or no idx file"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_of_another_kind_are_refused(tmp_path, content, words, packed):
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.unlink()
    path = tmp_path / f"{path.name}.gz" if packed else path
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=words) as error:
        mnist_images(tmp_path)
    assert str(path) in one_line(error)


def test_idx_files_that_do_not_fit_one_another(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(19) % 10))
    with pytest.raises(DataError, match="19 labels for the 20 images"):
        load_dataset("mnist", tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(20)))
    with pytest.raises(DataError, match="label 19"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_no_files_and_no_network(tmp_path, no_network, name):
    with pytest.raises(DataError, match="download failed.*put train-images-idx3-ubyte"):
        load_dataset(name, tmp_path)
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_download_lands_in_torchvisions_layout(tmp_path, monkeypatch):
    def download(url, download_root, filename, md5):
        write_mnist(tmp_path / "published")
        os.makedirs(download_root, exist_ok=True)
        file = filename.removesuffix(".gz")
        with open(os.path.join(download_root, file), "wb") as out:
            out.write((tmp_path / "published" / file).read_bytes())

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", download)
    monkeypatch.chdir(tmp_path)
    data = load_dataset("fashion_mnist")  # the default folder is made
    assert data.X_train.shape == (60, 784)
    assert sorted(os.listdir("data/FashionMNIST/raw")) == sorted(images.MNIST_FILES) and os.listdir("data") == [
        "FashionMNIST"
    ]


MEMORY = """
import re, sys
import torchvision.datasets  # whose libraries are no part of what is measured
from data_prepare import load_dataset

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = peak()
data = load_dataset("mnist", sys.argv[1])
matrix = 4 * (data.X_train.numel() + data.X_test.numel())
assert data.X_train.shape == (60000, 784) and data.X_test.shape == (10000, 784)
assert abs(data.X_train.square().sum(1).mean() - 1) < 1e-5
print(peak(), (peak() - before) / matrix)
"""


@pytest.mark.slow
def test_real_mnist_in_bounded_memory(forks, real_data, tmp_path):
    (tmp_path / "load.py").write_text(MEMORY)
    done = forks.run(real_data, program=str(tmp_path / "load.py"))
    assert done["status"] == 0, done["err"]
    peak, ratio = map(float, done["out"].split())
    assert peak < 1.5e9 and 1 < ratio < 3  # 1: the matrices themselves


# CIFAR-10 -----------------------------------------------------------------------------------------------------


def test_image_folder(tmp_path):
    from PIL import Image

    write_cifar(tmp_path)
    images = cifar10_images(tmp_path)
    assert images.train.shape == (20, 3, 32, 32) and images.train.dtype == torch.uint8
    assert images.train_labels.tolist() == [
        a for a in range(10) for _ in range(2)
    ] and images.test_labels.tolist() == list(range(10))
    with Image.open(tmp_path / "cifar10" / "train" / "bird" / "0001.jpg") as image:
        assert np.array_equal(images.train[5].permute(1, 2, 0), np.asarray(image))


def test_bad_image_folders(tmp_path, no_network):
    with pytest.raises(DataError, match="no CIFAR-10 found"):
        cifar10_images(tmp_path)
    write_cifar(tmp_path)
    victim = tmp_path / "cifar10" / "test" / "frog" / "0000.jpg"
    whole = victim.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an image"):
        victim.write_bytes(content)
        with pytest.raises(DataError, match="corrupt image") as error:
            cifar10_images(tmp_path)
        assert str(victim) in one_line(error)
    victim.unlink()
    with pytest.raises(DataError, match="frog: holds no"):
        cifar10_images(tmp_path)
    victim.parent.rmdir()
    with pytest.raises(DataError, match="class folder missing: frog"):
        cifar10_images(tmp_path)


def test_images_of_another_size(tmp_path):
    write_cifar(tmp_path, size=16)
    with pytest.raises(DataError, match="16 x 16"):
        cifar10_images(tmp_path)


# SVHN


def test_svhn_from_mat_files(tmp_path):
    arrays = write_svhn(tmp_path)
    images = svhn_images(tmp_path)
    assert images.test.shape == (20, 3, 32, 32) and images.test.dtype == torch.uint8
    assert images.test[7, 2, 5, 9].item() == arrays["X"][5, 9, 2, 7]
    assert images.test_labels.tolist() == [*range(1, 10), 0] * 2
    data = load_dataset("svhn", tmp_path)
    assert data.X_train.shape == (20, 3072) and data.n_classes == 10
    # a row is the image, pixel by pixel, so that a network may take it back
    centred = images.train.float() - images.train.float().mean(0)
    rows = data.X_train.view(-1, 3, 32, 32)
    torch.testing.assert_close(rows, centred * (rows[0, 0, 0, 0] / centred[0, 0, 0, 0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"X": np.zeros((32, 32, 3, 5), np.uint8)}, "for 20 labels"),
        ({"X": np.zeros((32, 32, 3, 20))}, "not uint8"),
        ({"y": np.arange(20)[:, None]}, "not in 1 .. 10"),
    ],
)
def test_bad_mat_files_are_named_in_one_line(tmp_path, changes, words):
    write_svhn(tmp_path, **changes)
    with pytest.raises(DataError, match="train_32x32.mat.*" + words) as caught:
        svhn_images(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_mat_files(tmp_path, monkeypatch):
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torchvision.datasets, "SVHN", offline)
    with pytest.raises(DataError, match=r"train_32x32.mat: no such file and its download failed \(no network\)"):
        svhn_images(tmp_path)
    assert not list(tmp_path.iterdir())
    write_svhn(tmp_path)
    content = (tmp_path / "test_32x32.mat").read_bytes()
    (tmp_path / "test_32x32.mat").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="test_32x32.mat: not a .mat file") as caught:
        svhn_images(tmp_path)
    assert "\n" not in str(caught.value)
