"""The package `deq_enn`, built and imported as somebody else's project would have it."""

import json
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from deq_enn import __init__
from tests.conftest import ROOT

FLAT = sorted(path.stem for path in ROOT.glob("*.py") if path.stem not in ("deq_enn", "setup"))


def build(tmp_path):
    """The wheel, from a copy of what it is made of, since a build leaves folders behind where it is made."""
    source = tmp_path / "source"
    (source / "ck_ntk").mkdir(parents=True)
    for path in [
        *ROOT.glob("*.py"),
        ROOT / "pyproject.toml",
        ROOT / "README.md",
        ROOT / "LICENSE",
        ROOT / "ck_ntk" / "paper.mplstyle",
    ]:
        shutil.copy(path, source / path.relative_to(ROOT))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(tmp_path),
            str(source),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    zipfile.ZipFile(build(folder)).extractall(folder / "site")
    return folder / "site"


PROGRAM = """
import importlib, json, sys
import utils  # this project's own
import torch
from deq_enn import ACTIVATIONS, DEQ, implicit_kernels, match, matched_enn
import deq_enn
found = match(ACTIVATIONS["tanh"], 0.2)
X = torch.tensor({rows}, dtype=torch.float64)
ck, ntk = implicit_kernels(X, ACTIVATIONS["swish"], 0.2)
deq = DEQ(ACTIVATIONS["relu"], p=3, dim=8, n_classes=2, sigma_a2=0.2)
enn = matched_enn(deq)
out = enn(X.float())
for name in {flat}:
    importlib.import_module("deq_enn." + name)
from deq_enn.plotting import STYLE
print(json.dumps(dict(
    parameters=found.parameters, ck=ck.tolist(), ntk=ntk.tolist(), out=out.tolist(), utils=utils.OWNER,
    style=STYLE.exists(), top=sorted(set(sys.modules) & set({flat})), names=sorted(deq_enn.__all__),
    inside=sorted({{m.__file__ for n, m in sys.modules.items() if n.partition(".")[0] == "deq_enn"}}))))
"""


# a process that has imported torch and ours becomes one that has imported torch alone
FORGET = """
import sys
for name in {flat}:
    sys.modules.pop(name, None)
sys.path[:] = [{site!r}, *(path for path in sys.path if not path.startswith({root!r}) or "site-packages" in path)]
"""


def test_another_project_imports_it_and_keeps_its_own_modules(forks, installed, tmp_path):
    """From a folder whose modules have the names of ours: those stay what they are, and the numbers are the same."""
    for name in FLAT:
        (tmp_path / f"{name}.py").write_text("raise ImportError('the module of another project')\n")
    (tmp_path / "utils.py").write_text("OWNER = 'me'\n")
    rows = [[0.6, -0.5, 0.2], [0.1, 0.9, -0.7], [-1.0, 0.3, 0.4]]
    (tmp_path / "theirs.py").write_text(PROGRAM.format(rows=rows, flat=FLAT))
    forget = FORGET.format(flat=[*FLAT, "deq_enn"], site=str(installed), root=str(ROOT))
    done = forks.run(program=str(tmp_path / "theirs.py"), cwd=str(tmp_path), setup=forget)
    assert done["status"] == 0, done["err"]
    found = json.loads(done["out"])
    assert found["utils"] == "me" and found["top"] == ["utils"] and found["style"]
    assert len(found["inside"]) == len(FLAT) + 1
    assert all(path.startswith(str(installed)) for path in found["inside"])
    assert found["names"] == sorted(__init__.__all__)
    X, activations = torch.tensor(rows, dtype=torch.float64), __init__.ACTIVATIONS
    ck, ntk = __init__.implicit_kernels(X, activations["swish"], 0.2)
    torch.testing.assert_close(torch.tensor(found["ck"], dtype=torch.float64), ck)
    torch.testing.assert_close(torch.tensor(found["ntk"], dtype=torch.float64), ntk)
    assert found["parameters"] == json.loads(json.dumps(__init__.match(activations["tanh"], 0.2).parameters))
    enn = __init__.matched_enn(__init__.DEQ(activations["relu"], p=3, dim=8, n_classes=2, sigma_a2=0.2))
    torch.testing.assert_close(torch.tensor(found["out"]), enn(X.float()))


def test_the_wheel_holds_the_modules_and_nothing_else_of_the_folder(installed):
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    outside = {path for path in files if not path.startswith("deq_enn")}
    assert not outside
    assert {f"deq_enn/{name}.py" for name in [*FLAT, "__init__"]} == {path for path in files if path.endswith(".py")}


def test_requirements_are_the_packages_and_the_tests_own():
    """requirements.txt names every dependency of the package, with the same bound."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = {line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert set(project["dependencies"]) <= lines
