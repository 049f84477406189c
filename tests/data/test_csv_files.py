"""CSV tables with one column of labels."""

import numpy as np
import pytest

from deq_enn.data.csv_files import read_csv
from deq_enn.data.datasets import load_dataset
from deq_enn.data.images import DataError
from tests.conftest import one_line

ROWS = "5.1,3.5,setosa\n4.9,3,virginica\n1e-3,-2,setosa\n"


@pytest.mark.parametrize(
    "text, words",
    [
        (ROWS, "column 3 of a table without names"),
        ("a,b,species\n" + ROWS, "column 'species', the features are the other 2"),
        ("a,b,Label\n" + ROWS, "column 'Label'"),
        (",a,b,species\n" + "".join(f"{i},{row}\n" for i, row in enumerate(ROWS.split())), "is left out"),
        ("\ufeffclass,a,b\nsetosa,5.1,3.5\nvirginica,4.9,3\nsetosa,0.001,-2\n", "column 'class'"),
        ("a;b;target\n" + ROWS.replace(",", ";"), "column 'target'"),
        ('"a","b, in cm","label"\n' + ROWS.replace("setosa", '"setosa"'), "column 'label'"),
        (ROWS.replace("\n", "\r\n") + "\r\n", "column 3"),
        ("\n\na;b;target\n" + ROWS.replace(",", ";"), "column 'target'"),
        ('a,"b,\nin cm",label\n' + ROWS, "column 'label'"),
    ],
)
def test_forms_of_one_table(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.warns(UserWarning, match=words):
        X, y = read_csv(tmp_path / "a.csv")
    assert X.dtype == np.float32 and np.array_equal(X, np.float32([[5.1, 3.5], [4.9, 3], [1e-3, -2]]))
    assert y.tolist() == ["setosa", "virginica", "setosa"]


@pytest.mark.filterwarnings("ignore:.*labels are")
def test_labels_that_look_like_something_else(tmp_path):
    """The name of a column of labels is no name where it is a label itself, and long numbers are names."""
    (tmp_path / "a.csv").write_text("1,2,y\n3,4,n\n5,6,y\n", encoding="utf-8")
    X, y = read_csv(tmp_path / "a.csv")
    assert X.tolist() == [[1, 2], [3, 4], [5, 6]] and y.tolist() == ["y", "n", "y"]
    (tmp_path / "a.csv").write_text("0,1,y\n1,2,n\n3,4,n\n", encoding="utf-8")
    assert read_csv(tmp_path / "a.csv")[1].tolist() == ["n", "n"]
    (tmp_path / "a.csv").write_text("1,12345678901234567890\n2,12345678901234567891\n", encoding="utf-8")
    assert read_csv(tmp_path / "a.csv")[1].tolist() == ["12345678901234567890", "12345678901234567891"]


@pytest.mark.filterwarnings("ignore:.*labels are")
def test_labels_that_are_numbers(tmp_path):
    for text, labels in (("1,2\n3,7\n", [2, 7]), ("1,2.0\n3,7.0\n", [2, 7]), ("y,a\n10,0\n-1,1\n", [10, -1])):
        (tmp_path / "a.csv").write_text(text, encoding="utf-8")
        y = read_csv(tmp_path / "a.csv")[1]
        assert y.dtype.kind in "if" and y.tolist() == labels


@pytest.mark.parametrize(
    "text, words",
    [
        ("a,b,label\n1,2,x\n3,four,y\n", "row 3 has 'four' in column 'b', not a number"),
        ("a,b,label\n1,2,x\n3,,y\n", "row 3 has '' in column 'b'"),
        ("1,2,x\n3,4,y\n5,6\n", "row 3 has 2 cells, the first row 3"),
        ("a,label\n1,x\n2,\n", "row 3 has no label"),
        ("a;b;kind\n1,5;2;x\n3,5;4;y\n", "row 2 has '1,5' in column 'a', not a number; write a decimal point"),
        ("1\n2\n", "two or more columns"),
        ("", "two or more columns"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*labels are")
def test_what_is_no_table(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words) as error:
        read_csv(tmp_path / "a.csv")
    assert "a.csv" in one_line(error)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00,1\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_csv(tmp_path / "a.csv")


@pytest.mark.filterwarnings("ignore:.*(labels are|no test set)")
def test_a_table_is_a_data_set_alone_or_with_its_test_set(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train", 30), ("test", 12)):
        rows = [f"{a},{b},{'xyz'[i % 3]}" for i, (a, b) in enumerate(rng.normal(size=(n, 2)))]
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,label", *rows]), encoding="utf-8")
    both = load_dataset("npz", tmp_path)
    assert (len(both.X_train), len(both.X_test), both.classes) == (30, 12, ("x", "y", "z"))
    alone = load_dataset("npz", tmp_path / "train.csv")
    assert (len(alone.X_train), len(alone.X_test), alone.n_classes) == (24, 6, 3)
