"""The package `deq_enn` as somebody else's project has it: installed as a copy, and installed to be edited."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import deq_enn
from tests.conftest import ROOT

PIP = sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"
OPTIONS = "--no-index", "--no-deps", "--no-build-isolation"

PROGRAM = """
import json, sys
import utils  # the project's own
import deq_enn
assert not [name for name in sys.modules if name.startswith("deq_enn.")]  # each name is imported where it is used
from deq_enn.reporting.style import STYLE
from deq_enn import ACTIVATIONS, DEQ, match, matched_enn
deq = DEQ(ACTIVATIONS["relu"], p=3, dim=8, n_classes=2, sigma_a2=0.2)
print(json.dumps(dict(
    slope=match(ACTIVATIONS["tanh"], 0.2).layers[0].slopes, layers=len(matched_enn(deq).layers), utils=utils.OWNER,
    style=STYLE.exists(), place=deq_enn.__file__, version=deq_enn.__version__)))
"""


def pip(*command):
    done = subprocess.run([*PIP, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the package is made of: a build leaves folders behind where it is made."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "deq_enn", source / "deq_enn", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The folder that the wheel is unpacked into, with nothing else in it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", *OPTIONS, "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    zipfile.ZipFile(path).extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def editable(source, tmp_path_factory):
    """The folder of an editable install: a pointer to the source and nothing else."""
    folder = tmp_path_factory.mktemp("editable")
    pip("install", "--editable", source, "--target", folder, *OPTIONS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_another_project_imports_it_beside_its_own_modules(forks, kind, source, tmp_path, request):
    """From a folder with a `utils.py` of its own. The numbers are those of the checkout."""
    place = request.getfixturevalue(kind)
    (tmp_path / "utils.py").write_text("OWNER = 'me'\n")
    (tmp_path / "theirs.py").write_text(f"import site; site.addsitedir({str(place)!r})\n" + PROGRAM)
    done = forks.run(program=str(tmp_path / "theirs.py"), cwd=str(tmp_path), fresh=True)
    assert done["status"] == 0, done["err"]
    said = json.loads(done["out"])
    assert said["utils"] == "me" and said["style"] and said["version"] == deq_enn.__version__
    assert said["place"].startswith(str(place if kind == "wheel" else source))
    (layer,) = deq_enn.match(deq_enn.ACTIVATIONS["tanh"], 0.2).layers
    assert said["slope"] == list(layer.slopes) and said["layers"] == 2


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    files = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert not [path for path in files if not path.startswith("deq_enn")]
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deq_enn").rglob("*.py")}
    assert modules == {path for path in files if path.endswith(".py")}
    assert {"deq_enn/py.typed", "deq_enn/reporting/paper.mplstyle", "deq_enn/reporting/templates/base.html"} <= files
    (entry,) = [path for path in files if path.endswith("entry_points.txt")]
    assert "deq-enn = deq_enn.__main__:main" in (wheel / entry).read_text()


def test_public_names_are_there_and_nowhere_twice():
    assert sorted(deq_enn._MODULE_OF) == sorted(deq_enn.__all__)
    for name in deq_enn.__all__:
        value = getattr(deq_enn, name)
        assert getattr(value, "__module__", "deq_enn").startswith("deq_enn"), name


def test_the_reference_lists_every_public_name():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    table = "".join(line for line in page.splitlines(keepends=True) if line.startswith("|"))
    assert sorted(re.findall(r"`(\w+)`", table.partition("---")[2])) == sorted(deq_enn.__all__)


@pytest.mark.parametrize(
    "program, given, spins",
    [
        (str(ROOT / "main.py"), {}, "10000"),
        ("-m", {}, "10000"),
        (str(ROOT / "main.py"), {"GOMP_SPINCOUNT": "7"}, "7"),
        (str(ROOT / "main.py"), {"OMP_WAIT_POLICY": "active"}, "None"),
        ("/home/somebody/train.py", {}, "None"),
    ],
)
def test_threads_of_its_own_programs_wait_for_each_other_briefly(program, given, spins):
    """What the user has set stays, and so do programs of somebody else."""
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = f"import sys; sys.argv = [{program!r}]; import os, deq_enn; print(os.environ.get('GOMP_SPINCOUNT'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=others | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spins


def test_requirements_are_the_packages_and_the_tests_own():
    """requirements.txt names every dependency of the package, with the same bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = {line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert set(project["dependencies"]) <= lines


def test_version_is_said_once_and_cited():
    """pyproject.toml takes it from the package; CITATION.cff and the changelog's newest entry name the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert f"\nversion: {deq_enn.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    assert released[0] == deq_enn.__version__ and len(released) == len(set(released))
