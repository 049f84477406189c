"""notebooks/tour.ipynb: what is committed is what its cells compute today, and what its text claims is so."""

import ast
import contextlib
import io
import json
import math
import os
import re
import sys

import matplotlib
import pytest

from tests.conftest import ROOT

PATH = ROOT / "notebooks" / "tour.ipynb"
NOTEBOOK = json.loads(PATH.read_text())
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")


FIRST = 9  # cells up to the comparison with the predicted spectrum


@pytest.fixture(scope="module")
def tour(pytestconfig):
    """(namespace, printed text of each cell, number of figures of each cell) of one run from the notebook's folder.

    The cells after FIRST (matches, finite widths, tangent kernels, trainings) run with --long.
    """
    from matplotlib import pyplot as plt

    namespace, printed, figures = {}, [], []
    here, path, backend = os.getcwd(), list(sys.path), matplotlib.get_backend()
    try:
        os.chdir(PATH.parent)
        plt.switch_backend("Agg")
        plt.close("all")  # what other tests left open
        with matplotlib.rc_context():
            for cell in CODE if pytestconfig.getoption("--long") else CODE[:FIRST]:
                with contextlib.redirect_stdout(io.StringIO()) as out:
                    exec("".join(cell["source"]), namespace)
                printed.append(out.getvalue())
                for number in plt.get_fignums():  # whatever cannot be drawn fails here
                    plt.figure(number).canvas.draw()
                figures.append(len(plt.get_fignums()))
                plt.close("all")
    finally:
        plt.close("all")
        plt.switch_backend(backend)
        os.chdir(here)
        sys.path[:] = path
    return namespace, printed, figures


def committed_text(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def test_committed_as_executed_from_top_to_bottom():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert NOTEBOOK["metadata"]["kernelspec"]["name"] == "python3"
    assert PATH.stat().st_size < 1.5e6
    for cell in CODE:
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                assert output["name"] == "stdout", output["text"]  # a warning on stderr, otherwise
            else:  # no value of a last expression, whose repr no reader wants
                assert output["output_type"] == "display_data" and set(output["data"]) == {"image/png"}, output
        assert not re.search(r"/(work|home|tmp|root|Users)/", committed_text(cell) + "".join(cell["source"]))


def test_cells_are_short_and_call_public_functions_only():
    assert len(NOTEBOOK["cells"]) <= 30
    for cell in CODE:
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= 22 and max(map(len, source.splitlines())) <= 105, source
        nodes = list(ast.walk(ast.parse(source)))
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in nodes), source
        names = [alias.name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
        names += [node.attr for node in nodes if isinstance(node, ast.Attribute)]
        assert not [name for name in names if name.startswith("_")], source


def test_runs_from_the_repository_root_too(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))
    namespace = {}
    with matplotlib.rc_context():
        exec("".join(CODE[0]["source"]), namespace)
    assert namespace["ROOT"] == ROOT


def test_what_the_cells_import_is_there(monkeypatch):
    """Those that only --long runs included."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    trees = [ast.parse("".join(cell["source"])) for cell in CODE]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert len(imports) > 20
    exec(compile(ast.Module(imports, []), str(PATH), "exec"), {})


@pytest.mark.slow
def test_printed_text_is_the_committed_text(tour):
    _, printed, figures = tour
    for cell, text, drawn in zip(CODE, printed, figures):
        committed = committed_text(cell)
        assert " ".join(NUMBER.sub("#", text).split()) == " ".join(NUMBER.sub("#", committed).split())
        # training in float32 depends on the machine's order of summation
        tolerance = 0.03 if "float32" in cell["metadata"].get("tags", ()) else 0.005
        for new, old in zip(NUMBER.findall(text), NUMBER.findall(committed)):
            assert math.isclose(float(new), float(old), rel_tol=tolerance), (new, old, text)
        assert drawn == sum(output["output_type"] == "display_data" for output in cell["outputs"])
    assert sum(figures) >= (5 if len(printed) > FIRST else 2)


@pytest.mark.slow
def test_what_the_text_claims(tour):
    names = tour[0]
    # section 4: the regression reads off the scalars (white data), the error falls like n^(-1/2) or a little faster
    ck = names["implicit_ck"](names["relu"], names["sigma_a2"], tau0=1.0)
    for fitted, formula in zip(names["fitted"].tolist(), (ck.c1, ck.c2, ck.c3)):
        assert fitted == pytest.approx(formula, rel=0.005)
    assert all(-0.8 < slope < -0.35 for slope in names["slopes"].values())
    # section 5: isolated eigenvalues where they are predicted, the atom at the mean of the lowest eigenvalues
    isolated = names["compare_isolated"](names["limit"], names["values"])
    assert isolated["actual"] == pytest.approx(isolated["predicted"], rel=0.05) and len(isolated["actual"]) == 2
    assert names["lowest"].mean() == pytest.approx(names["limit"].atom, rel=0.05)


@pytest.mark.long
def test_what_the_text_claims_of_matches(tour):
    names = tour[0]
    # section 6: matched kernels agree, at finite width too; unmatched do not
    for matched, unmatched in names["apart"].values():
        assert matched < unmatched / 10
    deq, matched, unmatched = (names["distance"][name].mean(1) for name in ("inn", "l_relu_enn", "relu_enn"))
    assert unmatched[-1] > 2 * matched[-1] and (deq[1:] < deq[:-1]).all() and (matched[1:] < matched[:-1]).all()
    # section 7
    apart = {kernel: names["relative_error"](names["K"], M) for kernel, M in names["tangent"].items()}
    assert apart["ntk"] < apart["ck"] / 10


@pytest.mark.long
def test_what_the_text_claims_of_training(tour):
    names = tour[0]
    # section 8: the matched network follows the DEQ, the unmatched one stays below both, from the first epoch on
    deq, matched, unmatched = (
        [record["test_accuracy"] for record in names["readout"][name].history]
        for name in ("inn", "l_relu_enn", "relu_enn")
    )
    for a, b, c in zip(deq, matched, unmatched):
        assert abs(a - b) < (a - c) / 4
    # section 9: the loss of the NTK-matched network is nearest; the CK-matched one is below, the unmatched one above
    deq, ntk, ck_matched, unmatched = (
        names["losses"][name].mean(0)[-1] for name in ("inn", "matched_enn", "l_relu_enn", "relu_enn")
    )
    assert abs(ntk - deq) < 0.25 * min(deq - ck_matched, unmatched - deq)
