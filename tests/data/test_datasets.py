"""Gaussian mixtures, .npz files, and how every data set is normalised."""

import math

import numpy as np
import pytest
import torch

from deq_enn.data.datasets import load_dataset
from deq_enn.data.images import DataError
from deq_enn.data.mixtures import GMM_PRESETS, draw_preset, gaussian_mixture, mixed, two_class
from deq_enn.utils.random import generator
from tests.conftest import one_line


def write_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "X_train": rng.normal(3, 2, (30, 5)),
        "y_train": np.arange(30) % 3,
        "X_test": rng.normal(3, 2, (12, 5)),
        "y_test": np.arange(12) % 3,
        **changes,
    }
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return arrays


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


@pytest.mark.parametrize(
    "covariances, what",
    [
        ([1.0], "1 covariances"),
        ([1.0, -1.0], "negative"),
        ([1.0, torch.ones(3)], "shape"),
        ([1.0, -torch.eye(4)], "positive definite"),
        ([1.0, torch.eye(4) + torch.triu(torch.ones(4, 4)) / 9], "symmetric"),
    ],
)
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
@pytest.mark.slow
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
    for arguments in (
        ("gmn", {}),
        ("gmm", {"preset": "mixd"}),
        ("gmm", {"classes": [0, 1]}),
        ("mnist", {"path": tmp_path / "nothing"}),
    ):
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


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"X_test": None, "y_test": None}, "holds no X_test, y_test"),
        ({"X_train": NAN}, "X_train has a NaN or infinite entry in row 17, column 3"),
        ({"X_test": INFINITE}, "X_test has a NaN or infinite"),
        ({"X_train": np.full((30, 5), 1e300)}, "X_train has the entry 1e\\+300, too large for float32"),
        ({"X_test": LARGE}, "X_test has the entry -1e\\+200, too large for float32 .* in row 4, column 1"),
        ({"X_train": np.ones((29, 5))}, "29 rows, y_train 30"),
        ({"X_test": np.ones((12, 4))}, "5 columns, X_test 4"),
        ({"X_train": np.ones(30)}, "shape"),
        ({"X_train": np.ones((0, 5)), "y_train": np.ones(0)}, "non-empty"),
        ({"y_train": np.ones((30, 1, 2))}, "one label a row"),
        ({"y_train": np.ones((30, 2))}, "one-hot"),
        ({"y_train": np.linspace(0, 1, 30)}, "not integers"),
        ({"y_test": np.array([np.nan] * 12)}, "not integers"),
        ({"y_train": np.array(["a"] * 30)}, "are strings, of the other numbers"),
        ({"X_train": np.full((30, 5), "a")}, "store real numbers"),
        ({"y_test": np.full(12, 4)}, "label 4, which y_train never has"),
        ({"X_train": np.array([{"a": 1}] * 30, dtype=object)}, "pickled object"),
        ({"X_train": np.ones((30, 5))}, "nothing to normalise by"),
        ({"y_train": np.zeros(30), "y_test": np.zeros(12)}, "at least two classes"),
    ],
)
def test_bad_npz(tmp_path, changes, what):
    write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(DataError, match=what) as error:
        load_dataset("npz", tmp_path / "a.npz")
    one_line(error)


def test_files_that_are_no_npz(tmp_path):
    np.save(tmp_path / "array.npy", np.ones(3))
    write_npz(tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    (tmp_path / "text.npz").write_text("X_train")
    for path in ("array.npy", "short.npz", "flipped.npz", "text.npz", "."):
        with pytest.raises(DataError) as error:
            load_dataset("npz", tmp_path / path)
        assert str(tmp_path) in one_line(error)
    with pytest.raises(DataError, match="--dataset_path"):
        load_dataset("npz")


def test_the_mixed_classes_have_about_the_norm_of_white_noise():
    *_, statistics = draw_preset("mixed", 0)
    assert statistics.tau0 == pytest.approx(1, abs=0.01)
    assert statistics.t.tolist() == pytest.approx([-9, -3, 3, 9], abs=1)
