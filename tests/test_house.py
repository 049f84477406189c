"""These are the rules of CONTRIBUTING.md that a program can check: rooms, their sizes, and what may not be in them.

Complexity, branches and statements are ruff's (pyproject.toml), arrows are import-linter's, types are pyright's.
"""

import ast
import functools
import gc
import subprocess

import pytest

from tests.conftest import ROOT

DOORWAYS = {
    "main.py", "data_prepare.py", "model.py", "train.py", "utils.py",
    "gaussian_integration.py", "two_layer_lrelu.py", "one_layer_tanh.py",
}  # fmt: skip


@functools.cache
def modules():
    """{path from the root: (text, tree)} of every Python file that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split()
    if not listed:
        pytest.skip("no git checkout")
    texts = {path: (ROOT / path).read_text("utf-8") for path in listed if (ROOT / path).exists()}
    gc.disable()  # half of the time is spent on looking for garbage among the trees
    try:
        return {path: (text, ast.parse(text)) for path, text in texts.items()}
    finally:
        gc.enable()


def code():
    """Those of them that are not tests."""
    return {path: both for path, both in modules().items() if not path.startswith("tests/")}


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_eight_doorways_at_the_top_of_at_most_40_lines():
    top = {path: text for path, (text, _) in modules().items() if "/" not in path}
    assert top.keys() == DOORWAYS
    assert not {path for path, text in top.items() if text.count("\n") > 40}
    for path in top:  # what a doorway hands on, it names
        assert "__all__ = [" in top[path] and "import *" not in top[path]


def test_rooms_are_small():
    folders = {}
    for path in modules():
        if path.startswith("deq_enn/"):
            folders.setdefault(path.rpartition("/")[0], []).append(path)
    assert not {folder: len(paths) for folder, paths in folders.items() if len(paths) - 1 > 14}  # __init__ apart
    lengths = {path: text.count("\n") for path, (text, _) in code().items()}
    for other in {*ROOT.glob("deq_enn/**/*.[ch]"), *ROOT.glob("scripts/*.sh")}:
        lengths[str(other.relative_to(ROOT))] = other.read_text("utf-8").count("\n")
    assert not {path: lines for path, lines in lengths.items() if lines > 400}


def test_the_readme_is_of_120_lines_at_most():
    assert (ROOT / "README.md").read_text("utf-8").count("\n") <= 120


def test_functions_are_short():
    lengths = {
        f"{path}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for path, (_, tree) in code().items()
        for node in functions(tree)
    }
    assert not {place: length for place, length in lengths.items() if length > 80}


def test_no_local_is_called_found_or_one():
    def bound(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id, node.lineno
            elif isinstance(node, ast.arg):
                yield node.arg, node.lineno

    assert not [
        f"{path}:{line} {name}"
        for path, (_, tree) in modules().items()
        for name, line in bound(tree)
        if name in ("found", "one")
    ]


def public_functions(tree):
    """Functions of a module, and methods of its classes, whose names do not begin with an underscore; __init__ too."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                    method.name == "__init__" or not method.name.startswith("_")
                ):
                    yield method


def test_public_functions_are_annotated():
    missing = []
    for path, (_, tree) in modules().items():
        if not path.startswith("deq_enn/"):
            continue
        for node in public_functions(tree):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if bare or node.returns is None and node.name != "__init__":
                missing.append(f"{path}:{node.lineno} {node.name} {' '.join(bare)}")
    assert not missing


def test_public_functions_have_docstrings():
    assert not [
        f"{path}:{node.lineno} {node.name}"
        for path, (_, tree) in modules().items()
        if path.startswith("deq_enn/")
        for node in public_functions(tree)
        if node.name != "__init__" and not ast.get_docstring(node)
    ]


def test_only_commands_put_the_root_on_the_path():
    """A command lies in scripts/ or ck_ntk/ itself; no import is exempted from its place.

    The package changes the path in one place: a user's file may import what lies beside it.
    """
    for path, (text, _) in code().items():
        if "sys.path" in text and "scripts/" in path or "ck_ntk/" in path and "sys.path" in text:
            assert path.count("/") == 1, path
        assert "E402" not in text, path
    changing = {path for path, (text, _) in code().items() if path.startswith("deq_enn/") and "sys.path" in text}
    assert changing == {"deq_enn/unrolling/sources.py"}


def test_text_files_name_their_encoding():
    """Which is else that of the machine; ruff's PLW1514 sees those of open(), and of a Path whose type it can tell."""
    mute = [
        f"{path}:{call.lineno}"
        for path, (_, tree) in code().items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("read_text", "write_text")
        and len(call.args) < (1 if call.func.attr == "read_text" else 2)
        and not any(keyword.arg == "encoding" for keyword in call.keywords)
    ]
    assert not mute
