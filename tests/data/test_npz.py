"""A user's own files, in the forms that they are published in, are the same data set."""

import json
import zipfile

import numpy as np
import pytest
import torch

from deq_enn.data.datasets import load_dataset, load_training, load_training_set
from deq_enn.data.images import DataError
from deq_enn.experiments import command as gateway
from tests.conftest import one_line

RNG = np.random.default_rng(0)
X, X_TEST = RNG.normal(3, 2, (30, 12)).astype(np.float32), RNG.normal(3, 2, (12, 12)).astype(np.float32)
Y, Y_TEST = np.arange(30) % 3, np.arange(12) % 3
NAMED = np.array(["setosa", "versicolor", "virginica"])


def load(path, **arrays):
    np.savez(path, **arrays)
    return load_dataset("npz", path)


def same(data, expected):
    return all(
        torch.equal(getattr(data, part), getattr(expected, part)) for part in ("X_train", "y_train", "X_test", "y_test")
    )


@pytest.fixture
def expected(tmp_path):
    return load(tmp_path / "expected.npz", X_train=X, y_train=Y, X_test=X_TEST, y_test=Y_TEST)


def test_names_of_keras_and_of_medmnist(tmp_path, expected):
    keras = load(tmp_path / "mnist.npz", x_train=X.reshape(30, 3, 4), y_train=Y, x_test=X_TEST, y_test=Y_TEST)
    columns = dict(train_labels=Y[:, None].astype(np.uint8), test_labels=Y_TEST[:, None].astype(np.uint8))
    images = dict(train_images=X.reshape(30, 3, 4), test_images=X_TEST.reshape(12, 3, 4))
    medmnist = load(tmp_path / "m.npz", **images, **columns, val_images=X[:2], val_labels=Y[:2, None])
    assert same(keras, expected) and same(medmnist, expected)


def test_colours_are_flattened_channel_by_channel(tmp_path):
    images = RNG.integers(0, 256, (42, 3, 8, 8), dtype=np.uint8)
    first, last, flat = (
        load(tmp_path / f"{i}.npz", X_train=Z[:30], y_train=Y, X_test=Z[30:], y_test=Y_TEST)
        for i, Z in enumerate((images, images.transpose(0, 2, 3, 1), images.reshape(42, -1)))
    )
    assert same(first, flat) and same(last, flat)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8", "int64", "bool"])
def test_types_of_numbers(tmp_path, dtype):
    whole = (np.round(X) % 2).astype(dtype)
    data = load(tmp_path / "a.npz", X_train=whole, y_train=Y.astype("int8"), X_test=whole[:12], y_test=Y_TEST * 1.0)
    plain = load(tmp_path / "b.npz", X_train=np.round(X) % 2, y_train=Y, X_test=np.round(X[:12]) % 2, y_test=Y_TEST)
    assert same(data, plain)


@pytest.mark.parametrize(
    "code, classes",
    [
        (lambda y: y + 1, (1, 2, 3)),
        (lambda y: np.eye(3)[y], (0, 1, 2)),
        (lambda y: np.eye(3, dtype=bool)[y], (0, 1, 2)),
        (lambda y: NAMED[y], tuple(NAMED)),
        (lambda y: NAMED[y][:, None], tuple(NAMED)),
        (lambda y: NAMED[y].astype("S"), tuple(NAMED)),
    ],
)
def test_labels_become_0_to_k_and_keep_their_names(tmp_path, expected, code, classes):
    data = load(tmp_path / "a.npz", X_train=X, y_train=code(Y), X_test=X_TEST, y_test=code(Y_TEST))
    assert same(data, expected) and data.classes == classes and data.n_classes == 3
    assert data.mapping == (None if classes == (0, 1, 2) else classes)
    picked = load_dataset("npz", tmp_path / "a.npz", classes=[classes[2], classes[0]])
    assert picked.classes == (classes[2], classes[0]) and picked.y_train[:3].tolist() == [1, 0, 1]


@pytest.mark.slow
def test_the_log_has_the_mapping(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", X_train=X, y_train=NAMED[Y], X_test=X_TEST, y_test=NAMED[Y_TEST])
    for train in ("readout", "ridge"):
        out = tmp_path / train
        gateway.main(
            [
                *("--dataset", "npz", "--dataset_path", str(tmp_path / "a.npz"), "--classes", "virginica", "setosa"),
                *("--model", "l_relu_enn", "--dim", "4", "--train", train, "--output_path", str(out)),
                *(
                    "--save_path",
                    str(tmp_path / "save"),
                    *(("--epoch", "1", "--batch_size", "4") * (train == "readout")),
                ),
            ]
        )
        notes = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
        assert [note["classes"] for note in notes if note["event"] == "run"] == [["virginica", "setosa"]]


def test_ends_of_names_in_capitals(tmp_path, expected):
    for key, array in dict(X_train=X, y_train=Y, X_test=X_TEST, y_test=Y_TEST).items():
        np.save(tmp_path / key, array)
        (tmp_path / f"{key}.npy").rename(tmp_path / f"{key}.NPY")
    assert same(load_dataset("npz", tmp_path), expected)
    assert same(load_dataset("npz", tmp_path / "X_train.NPY"), expected)
    (tmp_path / "A.CSV").write_text("a,b,label\n1,2,0\n3,5,1\n", "utf-8")
    with pytest.warns(UserWarning, match="column 'label'"):
        assert load_training_set("npz", tmp_path / "A.CSV").classes == (0, 1)


def test_npy_files_in_a_folder_and_beside_each_other(tmp_path, expected):
    for key, array in dict(X_train=X, y_train=Y, X_test=X_TEST, y_test=Y_TEST).items():
        np.save(tmp_path / key, array)
    assert same(load_dataset("npz", tmp_path), expected)
    assert same(load_dataset("npz", tmp_path / "X_train.npy"), expected)
    np.save(tmp_path / "X", X)
    np.save(tmp_path / "y", NAMED[Y])
    pair = load_training_set("npz", tmp_path / "X.npy")
    assert torch.equal(pair.X, expected.X_train) and pair.classes == tuple(NAMED) and pair.test is None
    np.save(tmp_path / "other", X)
    with pytest.raises(DataError, match="call it X.npy"):
        load_dataset("npz", tmp_path / "other.npy")


def test_a_fifth_of_each_class_is_held_out_where_there_is_no_test_set(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.arange(200.0).reshape(100, 2), y=np.repeat([5, 6], [60, 40]))
    with pytest.warns(UserWarning, match="20 of the 100 samples"):
        data = load_dataset("npz", tmp_path / "a.npz")
    assert data.y_test.bincount().tolist() == [12, 8] and data.y_train.bincount().tolist() == [48, 32]
    rows = torch.cat([data.X_train, data.X_test]) * data.scale + data.mean
    assert sorted(rows[:, 0].round().int().tolist()) == list(range(0, 200, 2))
    X, y, *_ = load_training("npz", tmp_path / "a.npz")
    assert len(X) == len(y) == 100


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"y_train": np.array(["a", "b", "c"] * 10), "y_test": np.array(["a", "d"] * 6)}, "y_test has label d"),
        ({"y_train": np.eye(3)[Y] + np.eye(3)[0]}, "one-hot"),
        ({"y_train": Y.astype(complex)}, "integers or strings"),
        ({"y_train": np.array(["a", None] * 15, object)}, "pickled object, .*array.astype"),
        ({"y_train": np.zeros(30, "U1"), "y_test": np.zeros(12, "U1")}, "at least two classes"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, changes, what):
    arrays = dict(X_train=X, y_train=Y, X_test=X_TEST, y_test=Y_TEST) | changes
    with pytest.raises(DataError, match=what) as error:
        load(tmp_path / "a.npz", **arrays)
    one_line(error)


@pytest.mark.parametrize("size", [(4, 3), (2, 3, 2)])
def test_images_of_two_sizes(tmp_path, size):
    """They may have as many pixels: then only the shape tells."""
    with pytest.raises(DataError, match=r"images of X_train are 1 x 3 x 4 \(.*\), those of X_test") as error:
        load(
            tmp_path / "a.npz", X_train=X.reshape(30, 3, 4), y_train=Y, X_test=X_TEST.reshape(12, *size), y_test=Y_TEST
        )
    one_line(error)


def test_members_that_are_not_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", y_train=Y, X_test=X_TEST, y_test=Y_TEST)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("X_train", "1 2 3")
    with pytest.raises(DataError, match="X_train is not an array"):
        load_dataset("npz", tmp_path / "a.npz")


def test_files_that_are_not_there(tmp_path):
    for path, what in ((tmp_path / "no.npz", "no such file"), (tmp_path, "folder without X_train.npy")):
        for loader in (load_dataset, load_training):
            with pytest.raises(DataError, match=what) as error:
                loader("npz", path)
            assert "download" not in one_line(error)


def test_classes_of_few_samples_leave_no_test_set(tmp_path, recwarn):
    with pytest.raises(DataError, match="no test set, and no class has the 5 samples that one takes") as error:
        load(tmp_path / "a.npz", X=X, y=np.arange(len(X)))
    one_line(error)
    assert not recwarn.list  # a warning that none of them is held out would say less
    many = np.arange(100)
    with pytest.raises(DataError, match="no test sample has one of the classes 0, 1, .* and 80 more$"):
        np.savez(tmp_path / "b.npz", X_train=np.eye(101), y_train=np.append(many, 100), X_test=X_TEST[:1, [0] * 101],
                 y_test=[100])  # fmt: skip
        load_dataset("npz", tmp_path / "b.npz", classes=many.tolist())
