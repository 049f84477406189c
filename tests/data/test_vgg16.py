"""The VGG16, its features and their cache, and files of weights."""

import os
import warnings

import pytest
import torch

from deq_enn.data import vgg16
from deq_enn.data.datasets import load_dataset
from deq_enn.data.images import DataError, cifar10_images
from deq_enn.data.vgg16 import VGG16, cifar10_features, load_vgg16
from deq_enn.training.run_files import fingerprint
from tests.conftest import one_line
from tests.helpers.image_files import write_cifar

SMALL = (8, "M", 8, "M", 8, "M", 8, "M", 512, "M")  # a VGG that is cheap to run


@pytest.fixture
def small_vgg(monkeypatch, tmp_path):
    """The file of a small network's weights."""
    monkeypatch.setattr(vgg16, "VGG16_WIDTHS", SMALL)
    torch.manual_seed(0)
    torch.save(VGG16().state_dict(), tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


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


def test_a_run_on_features_is_the_same_run_on_another_processor(tmp_path, small_vgg):
    write_cifar(tmp_path)
    here = load_dataset("cifar10", tmp_path, vgg_path=small_vgg)
    (cache,) = (tmp_path / ".feature_cache").iterdir()
    torch.save(tuple(X * (1 + 1e-6) + 1e-7 for X in torch.load(cache, weights_only=True)), cache)
    there = load_dataset("cifar10", tmp_path, vgg_path=small_vgg)
    assert not torch.equal(there.X_train, here.X_train) and fingerprint(there) == fingerprint(here)
    first, second = here.classes[:2]
    some = [load_dataset("cifar10", tmp_path, vgg_path=small_vgg, classes=order) for order in ([0, 1], [1, 0])]
    assert [data.classes for data in some] == [(first, second), (second, first)]
    state = torch.load(small_vgg, weights_only=True)
    state["hidden.0.bias"] += 1
    torch.save(state, small_vgg)
    others = [load_dataset("cifar10", tmp_path, vgg_path=small_vgg), *some]
    assert len({fingerprint(data) for data in [here, *others]}) == 4  # other weights, classes, and order of classes


def test_features_are_deterministic_and_kept(tmp_path, small_vgg, monkeypatch):
    write_cifar(tmp_path)
    X, y, X_test, y_test = cifar10_features(tmp_path, small_vgg)
    net = load_vgg16(small_vgg)
    with torch.no_grad():  # every image by itself: neither dropout nor batch statistics
        alone = torch.cat([net.features(x[None]) for x in cifar10_images(tmp_path).train])
    assert X.shape == (20, 256) and X_test.shape == (10, 256) and X.dtype == torch.float32
    assert torch.allclose(X, alone, atol=1e-5) and len(y_test) == 10
    cached = list((tmp_path / ".feature_cache").iterdir())
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
    assert len(calls) == 4 and len(list((tmp_path / ".feature_cache").iterdir())) == 3  # other images
    data = load_dataset("cifar10", tmp_path, vgg_path=small_vgg)
    assert data.X_train.square().sum(1).mean().item() == pytest.approx(1, abs=1e-5) and data.n_classes == 10


def test_damaged_cache_is_computed_again(tmp_path, small_vgg):
    write_cifar(tmp_path)
    X = cifar10_features(tmp_path, small_vgg)[0]
    (cache,) = (tmp_path / ".feature_cache").iterdir()
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
    assert not list((tmp_path / ".feature_cache").iterdir())


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
    cases = {
        "hidden.0.bias is missing": missing,
        "features.0.weight is not one of its": unknown,
        "hidden.0.bias has shape": shape,
        "not a state_dict": [1, 2],
        "not a readable": whole[: len(whole) // 2],
        "not a readable weight": b"PK foreign",
    }
    for what, content in cases.items():
        path = tmp_path / "bad.pth"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(DataError, match=what) as error:
            load_dataset("cifar10", tmp_path, vgg_path=path)
        assert str(path) in one_line(error)
    with pytest.raises(DataError, match="scripts/pretrain_vgg.py") as error:
        load_dataset("cifar10", tmp_path, vgg_path=tmp_path / "none.pth")
    one_line(error)


def test_an_installed_package_without_weights_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr(vgg16, "VGG16_WEIGHTS", tmp_path / "site-packages" / "pretrained" / "cifar10_vgg16.pth")
    with pytest.raises(DataError, match="fetch pretrained/cifar10_vgg16.pth .*give --vgg_path FILE") as error:
        load_dataset("cifar10", tmp_path)
    one_line(error)
    assert not list(tmp_path.iterdir())


def test_a_pickled_object_in_a_weight_file_is_not_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"hidden.0.bias": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(DataError, match="not a readable weight file"):
        load_vgg16(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
def test_imagenet_weights_without_a_network(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network here")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError, match="no network here.*leave --vgg_path out") as error:
        cifar10_features(tmp_path, "imagenet")
    one_line(error)


@pytest.mark.slow
def test_imagenet_features(tmp_path, monkeypatch):
    write_cifar(tmp_path)
    import torchvision.models

    build = torchvision.models.vgg16
    monkeypatch.setattr("torchvision.models.vgg16", lambda weights: build(init_weights=False))
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda layer: None)  # 120 million that features do not use
    X, _, X_test, _ = cifar10_features(tmp_path, "imagenet")
    assert X.shape == (20, 512) and X_test.shape == (10, 512)
