import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import data_prepare
import vgg16
from conftest import ROOT
from data_prepare import (
    CIFAR10_CLASSES,
    GMM_PRESETS,
    VGG16,
    DataError,
    cifar10_features,
    cifar10_images,
    gaussian_mixture,
    load_dataset,
    load_vgg16,
    mixed,
    mnist_images,
    two_class,
)
from utils import generator

SMALL = (8, "M", 8, "M", 8, "M", 8, "M", 512, "M")  # a VGG that is cheap to run


@pytest.fixture
def small_vgg(monkeypatch, tmp_path):
    """The file of a small network's weights, with the cache in the test's folder."""
    monkeypatch.setattr(vgg16, "VGG16_WIDTHS", SMALL)
    monkeypatch.setattr(vgg16, "FEATURE_CACHE", tmp_path / "cache")
    torch.manual_seed(0)
    torch.save(VGG16().state_dict(), tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


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
    from PIL import Image
    """JPEG files in the folders of CIFAR-10: noise about a colour of the class."""
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


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {"X_train": rng.normal(3, 2, (30, 5)), "y_train": np.arange(30) % 3,
              "X_test": rng.normal(3, 2, (12, 5)), "y_test": np.arange(12) % 3, **changes}
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return arrays


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


# Gaussian mixtures --------------------------------------------------------------------------------------------

def covariance(p, seed):
    root = torch.randn(p, 2 * p, dtype=torch.float64, generator=generator("cov", seed))
    return root @ root.T / (2 * p)


def test_mixture_has_the_moments_asked_for():
    p, n = 6, 200_000
    means = 3 * torch.randn(3, p, dtype=torch.float64, generator=generator("means"))
    covariances = [2.0, torch.arange(1.0, p + 1), covariance(p, 0)]
    X, y, _ = gaussian_mixture(means, covariances, [n, n, n], generator(0))
    full = [2.0 * torch.eye(p), torch.diag(torch.arange(1.0, p + 1)), covariances[2]]
    for a in range(3):
        rows = math.sqrt(p) * X[y == a]
        assert torch.allclose(rows.mean(0), means[a], atol=5 * math.sqrt(6 / n))
        assert torch.allclose(rows.T.cov(), full[a].double(), atol=0.06)


def test_mixture_statistics_follow_their_definitions():
    p = 50
    means = 4 * torch.eye(3, p, dtype=torch.float64)
    covariances = [1.5, 1 + torch.arange(p).double() / p, covariance(p, 1)]
    full = [1.5 * torch.eye(p, dtype=torch.float64), torch.diag(covariances[1]), covariances[2]]
    counts = [10, 20, 30]
    X, y, s = gaussian_mixture(means, covariances, counts, generator(1))
    assert torch.equal(s.J, torch.nn.functional.one_hot(y).double()) and s.J.sum(0).tolist() == counts
    mean_covariance = sum(c / 60 * C for c, C in zip(counts, full))
    for a in range(3):
        assert s.t[a].item() == pytest.approx(torch.trace(full[a] - mean_covariance).item() / math.sqrt(p))
        for b in range(3):  # the full covariances: the authors' code has them centred
            assert s.T[a, b].item() == pytest.approx(torch.trace(full[a] @ full[b]).item() / p)
    assert s.tau0 == pytest.approx(math.sqrt(torch.trace(mean_covariance).item() / p))
    noise = X - means[y] / math.sqrt(p)
    expected = torch.tensor([torch.trace(C).item() / p for C in full])[y]
    assert torch.allclose(s.psi, noise.square().sum(1) - expected)
    # chi_i = t_a/sqrt(p) + psi_i, up to the contribution of the means
    chi = noise.square().sum(1) - s.tau0**2
    assert torch.allclose(chi, s.J @ s.t / math.sqrt(p) + s.psi)


@pytest.mark.parametrize("covariances, what", [
    ([1.0], "1 covariances"), ([1.0, -1.0], "negative"), ([1.0, torch.ones(3)], "shape"),
    ([1.0, -torch.eye(4)], "positive definite"), ([1.0, torch.eye(4) + torch.triu(torch.ones(4, 4)) / 9], "symmetric")])
def test_mixture_refuses_what_is_no_covariance(covariances, what):
    with pytest.raises(DataError, match=what):
        gaussian_mixture(torch.zeros(2, 4), covariances, [5, 5], generator(0))


def test_two_class_is_the_papers():
    X, y, s = two_class(1000, generator(0))
    p = X.shape[1]
    assert p == 800 and y.bincount().tolist() == [500, 500]
    assert (s.t[1] - s.t[0]).item() == pytest.approx(8)  # tr(C_2 - C_1)/sqrt(p)
    means = math.sqrt(p) * torch.stack([X[y == a].mean(0) for a in range(2)])
    assert means[0, 0].item() == pytest.approx(8, abs=0.3) and means[1, 1].item() == pytest.approx(8, abs=0.3)
    assert abs(means[0, 1].item()) < 0.3 and abs(means[1, 0].item()) < 0.3


@pytest.mark.parametrize("preset", GMM_PRESETS)
def test_presets_load_normalised_with_statistics_to_match(preset):
    data = load_dataset("gmm", preset=preset)
    s, n, p = data.statistics, *data.X_train.shape
    assert (n, len(data.X_test)) == GMM_PRESETS[preset][1:] and data.n_classes == s.J.shape[1]
    assert torch.equal(s.J.argmax(1), data.y_train) and torch.equal(data.y_test.unique(), torch.arange(data.n_classes))
    chi = data.X_train.double().square().sum(1) - s.tau0**2
    theory = s.J @ s.t / math.sqrt(p) + s.psi
    assert (chi - theory).std() < 0.3 * chi.std()  # what is left are means and their products with the noise
    assert s.tau0 == pytest.approx(1, abs=0.05)
    # S_ij^2 averages to T_ab/p over the pairs of two classes, the means apart
    X = data.X_train.double()
    X = X - torch.stack([X[data.y_train == a].mean(0) for a in range(data.n_classes)])[data.y_train]
    for a in range(data.n_classes - 1):
        overlap = (X[data.y_train == a] @ X[data.y_train == a + 1].T).square().mean()
        assert p * overlap.item() == pytest.approx(s.T[a, a + 1].item(), rel=0.02)
    again, other = load_dataset("gmm", preset=preset), load_dataset("gmm", preset=preset, seed=1)
    assert torch.equal(data.X_test, again.X_test) and not torch.equal(data.X_train, other.X_train)


def test_statistics_are_rescaled_with_the_rows(monkeypatch):
    def loud(n, generator):  # tr C / p far from 1, so that rows are divided by about 4
        return gaussian_mixture(torch.zeros(2, 100), [9.0, 16.0], [n // 2, n - n // 2], generator)
    monkeypatch.setitem(GMM_PRESETS, "loud", (loud, 500, 100))
    data = load_dataset("gmm", preset="loud")
    s, X = data.statistics, data.X_train.double()
    assert s.tau0 == pytest.approx(1, abs=0.02)
    chi = X.square().sum(1) - s.tau0**2
    assert (chi - s.J @ s.t / 10 - s.psi).abs().max() < 0.05 and s.psi.std() > 0.1
    assert s.T[0, 1].item() == pytest.approx(9 * 16 / 12.5**2, rel=0.05)


def test_classes_of_mixed_differ_in_mean_trace_and_shape():
    _, _, s = mixed(40, generator(0))
    assert (s.t.diff() > 1).all()
    shape = s.T / torch.outer(s.T.diag().sqrt(), s.T.diag().sqrt())  # 1 where C_a and C_b are proportional
    assert (shape[~torch.eye(len(shape), dtype=torch.bool)] < 0.95).all()


def test_unknown_names(tmp_path):
    for arguments in (("gmn", {}), ("gmm", {"preset": "mixd"}), ("gmm", {"classes": [0, 1]}),
                      ("mnist", {"path": tmp_path / "nothing"})):
        with pytest.raises(DataError) as error:
            load_dataset(arguments[0], **arguments[1])
        one_line(error)


# npz and normalisation ----------------------------------------------------------------------------------------

def test_normalised_by_the_training_rows_alone(tmp_path):
    arrays = write_npz(tmp_path / "a.npz")
    data = load_dataset("npz", tmp_path / "a.npz")
    assert data.X_train.dtype == data.X_test.dtype == torch.float32 and data.y_train.dtype == torch.int64
    centred = arrays["X_train"] - arrays["X_train"].mean(0)
    scale = math.sqrt((centred**2).sum(1).mean())
    assert np.allclose(data.X_train, centred / scale, atol=1e-6)
    assert np.allclose(data.X_test, (arrays["X_test"] - arrays["X_train"].mean(0)) / scale, atol=1e-6)
    assert data.X_train.square().sum(1).mean().item() == pytest.approx(1, abs=1e-6)
    assert np.allclose(data.mean, arrays["X_train"].mean(0), atol=1e-6) and data.scale == pytest.approx(scale)
    # other test rows leave the training rows as they are
    write_npz(tmp_path / "b.npz", X_test=1e6 * arrays["X_test"])
    assert torch.equal(load_dataset("npz", tmp_path / "b.npz").X_train, data.X_train)


def test_labels_become_0_to_k(tmp_path):
    write_npz(tmp_path / "a.npz", y_train=np.tile([7.0, -2, 5], 10), y_test=np.array([5, 7, -2] * 4))
    data = load_dataset("npz", tmp_path / "a.npz")
    assert data.y_train[:3].tolist() == [2, 0, 1] and data.y_test[:3].tolist() == [1, 2, 0] and data.n_classes == 3
    picked = load_dataset("npz", tmp_path / "a.npz", classes=[7, -2])
    assert picked.y_train[:4].tolist() == [0, 1, 0, 1] and len(picked.X_train) == 20 and picked.n_classes == 2
    assert picked.X_train.mean(0).abs().max() < 1e-6  # centred anew


@pytest.mark.parametrize("classes", [[0], [0, 0], [0, 9]])
def test_classes_that_cannot_be_picked(tmp_path, classes):
    write_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match="class"):
        load_dataset("npz", tmp_path / "a.npz", classes=classes)


NAN, INFINITE = np.ones((30, 5)), np.ones((12, 5))
NAN[17, 3], INFINITE[0, 0] = np.nan, np.inf
LARGE = np.ones((12, 5))
LARGE[4, 1] = -1e200


@pytest.mark.parametrize("changes, what", [
    ({"X_test": None, "y_test": None}, "holds no X_test, y_test"),
    ({"X_train": NAN}, "X_train has a NaN or infinite entry in row 17, column 3"),
    ({"X_test": INFINITE}, "X_test has a NaN or infinite"),
    ({"X_train": np.full((30, 5), 1e300)}, "X_train has the entry 1e\\+300, too large for float32"),
    ({"X_test": LARGE}, "X_test has the entry -1e\\+200, too large for float32 .* in row 4, column 1"),
    ({"X_train": np.ones((29, 5))}, "29 rows, y_train 30"),
    ({"X_test": np.ones((12, 4))}, "5 columns, X_test 4"),
    ({"X_train": np.ones((30, 5, 1))}, "shape"),
    ({"X_train": np.ones((0, 5)), "y_train": np.ones(0)}, "non-empty"),
    ({"y_train": np.full((30, 1), 1)}, "one label a row"),
    ({"y_train": np.linspace(0, 1, 30)}, "not integers"),
    ({"y_test": np.array([np.nan] * 12)}, "not integers"),
    ({"y_train": np.array(["a"] * 30)}, "store real numbers"),
    ({"y_test": np.full(12, 4)}, "label 4, which y_train never has"),
    ({"X_train": np.array([{"a": 1}] * 30, dtype=object)}, "pickled object"),
    ({"X_train": np.ones((30, 5))}, "nothing to normalise by"),
    ({"y_train": np.zeros(30), "y_test": np.zeros(12)}, "at least two classes"),
])
def test_bad_npz(tmp_path, changes, what):
    write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=what) as error:
        load_dataset("npz", tmp_path / "a.npz")
    one_line(error)


def test_files_that_are_no_npz(tmp_path):
    np.save(tmp_path / "array.npy", np.ones(3))
    write_npz(tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    (tmp_path / "text.npz").write_text("X_train")
    for path in ("array.npy", "short.npz", "flipped.npz", "text.npz", "."):
        with pytest.raises(DataError) as error:
            load_dataset("npz", tmp_path / path)
        assert str(tmp_path) in one_line(error)
    with pytest.raises(DataError, match="--dataset_path"):
        load_dataset("npz")


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


@pytest.mark.parametrize("file", data_prepare.MNIST_FILES)
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:7], lambda b: b"", lambda b: b + b"\0",
                                    lambda b: b"\x1f\x8b" + b[2:], None])
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
    assert sorted(os.listdir("data/FashionMNIST/raw")) == sorted(data_prepare.MNIST_FILES) and os.listdir("data") == [
        "FashionMNIST"
    ]


def test_real_mnist_in_bounded_memory(real_data):
    code = """
import resource, sys
from data_prepare import load_dataset
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
data = load_dataset("mnist", sys.argv[1])
matrix = 4 * (data.X_train.numel() + data.X_test.numel())
assert data.X_train.shape == (60000, 784) and data.X_test.shape == (10000, 784)
assert abs(data.X_train.square().sum(1).mean() - 1) < 1e-5
print(peak(), (peak() - before) / matrix)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(real_data)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    peak, ratio = map(float, run.stdout.split())
    assert peak < 1.5e9 and ratio < 3


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
    for content in (whole[:len(whole) // 2], b"", b"not an image"):
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


def test_vgg16_is_the_published_network():
    net = VGG16().eval()
    convolutions = [m.weight.shape[0] for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Linear)] == [
        (512, 512),
        (256, 512),
        (10, 256),
    ]
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert net.features(x).shape == (2, 256) and (net.features(x) >= 0).all()
        assert torch.equal(net(x), net.readout[-1](net.features(x)))  # no dropout in evaluation mode


def test_features_are_deterministic_and_kept(tmp_path, small_vgg, monkeypatch):
    write_cifar(tmp_path)
    X, y, X_test, y_test = cifar10_features(tmp_path, small_vgg)
    net = load_vgg16(small_vgg)
    with torch.no_grad():  # every image by itself: neither dropout nor batch statistics
        alone = torch.cat([net.features(x[None]) for x in cifar10_images(tmp_path).train])
    assert X.shape == (20, 256) and X_test.shape == (10, 256) and X.dtype == torch.float32
    assert torch.allclose(X, alone, atol=1e-5) and len(y_test) == 10
    cached = list((tmp_path / "cache").iterdir())
    assert len(cached) == 1
    calls = []
    extract = vgg16._extract
    monkeypatch.setattr(vgg16, "_extract", lambda *a: calls.append(1) or extract(*a))
    assert torch.equal(cifar10_features(tmp_path, small_vgg)[0], X) and not calls  # read from the cache
    state = torch.load(small_vgg, weights_only=True)
    state["hidden.0.bias"] += 1
    torch.save(state, small_vgg)
    assert not torch.equal(cifar10_features(tmp_path, small_vgg)[0], X) and len(calls) == 2  # other weights
    (tmp_path / "cifar10" / "test" / "cat" / "0000.jpg").write_bytes(
        (tmp_path / "cifar10" / "test" / "dog" / "0000.jpg").read_bytes()
    )
    cifar10_features(tmp_path, small_vgg)
    assert len(calls) == 4 and len(list((tmp_path / "cache").iterdir())) == 3  # other images
    data = load_dataset("cifar10", tmp_path, vgg_path=small_vgg)
    assert data.X_train.square().sum(1).mean().item() == pytest.approx(1, abs=1e-5) and data.n_classes == 10


def test_damaged_cache_is_computed_again(tmp_path, small_vgg):
    write_cifar(tmp_path)
    X = cifar10_features(tmp_path, small_vgg)[0]
    cache, = (tmp_path / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        assert torch.equal(cifar10_features(tmp_path, small_vgg)[0], X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cifar10_features(tmp_path, small_vgg)


def test_full_disk_leaves_no_cache_and_the_run_goes_on(tmp_path, small_vgg, monkeypatch):
    write_cifar(tmp_path)

    def full(features, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert cifar10_features(tmp_path, small_vgg)[0].shape == (20, 256)
    assert not list((tmp_path / "cache").iterdir())


def test_float16_weights_give_float32_features(tmp_path, small_vgg):
    write_cifar(tmp_path)
    state = torch.load(small_vgg, weights_only=True)
    torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "half.pth")
    X, full = cifar10_features(tmp_path, tmp_path / "half.pth")[0], cifar10_features(tmp_path, small_vgg)[0]
    assert X.dtype == torch.float32 and torch.allclose(X, full, atol=0.02 * full.abs().max())


def test_weight_files_that_do_not_fit(tmp_path, small_vgg):
    state = torch.load(small_vgg, weights_only=True)
    missing, unknown, shape = dict(state), dict(state), dict(state)
    del missing["hidden.0.bias"]
    unknown["features.0.weight"] = torch.zeros(1)
    shape["hidden.0.bias"] = torch.zeros(5)
    whole = small_vgg.read_bytes()
    cases = {"hidden.0.bias is missing": missing, "features.0.weight is not one of its": unknown,
             "hidden.0.bias has shape": shape, "not a state_dict": [1, 2], "not a readable": whole[:len(whole) // 2],
             "not a readable weight": b"PK foreign"}
    for what, content in cases.items():
        path = tmp_path / "bad.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(DataError, match=what) as error:
            load_dataset("cifar10", tmp_path, vgg_path=path)
        assert str(path) in one_line(error)
    with pytest.raises(DataError, match="scripts/pretrain_vgg.py") as error:
        load_dataset("cifar10", tmp_path, vgg_path=tmp_path / "none.pth")
    one_line(error)


def test_a_pickled_object_in_a_weight_file_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)
    torch.save({"hidden.0.bias": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match="not a readable weight file"):
        load_vgg16(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()


def test_imagenet_weights_without_a_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError, match="no network here.*leave --vgg_path out") as error:
        cifar10_features(tmp_path, "imagenet")
    one_line(error)


def test_imagenet_features(tmp_path, monkeypatch):
    write_cifar(tmp_path)
    monkeypatch.setattr(vgg16, "FEATURE_CACHE", tmp_path / "cache")
    import torchvision.models
    build = torchvision.models.vgg16
    monkeypatch.setattr("torchvision.models.vgg16", lambda weights: build())
    X, _, X_test, _ = cifar10_features(tmp_path, "imagenet")
    assert X.shape == (20, 512) and X_test.shape == (10, 512)
