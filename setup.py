"""How the flat folder becomes the package `deq_enn`; the rest of the packaging is in pyproject.toml.

In the checkout the modules import each other by flat names (`from utils import generator`), so that a script is read
and run where it lies. Installed like that, `utils`, `model` and `train` would be top-level modules of every project in
that environment, and a project's own `utils.py` would be imported in their place. The copy that goes into a wheel
therefore says `from .utils import generator`: the one token is edited, at the position where the parser finds it, and
nothing is decided at run time (no import hook, no sys.path). `deq_enn.py` becomes the package's `__init__.py`.
"""

import ast
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT, PACKAGE = Path(__file__).resolve().parent, "deq_enn"
MODULES = {path.stem for path in ROOT.glob("*.py")} - {PACKAGE, "setup"}


def with_relative_imports(source, name):
    """The source with each import of a module of this folder made relative to the package."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module in MODULES:
            old, new = f"from {node.module}", f"from .{node.module}"
        elif isinstance(node, ast.Import) and MODULES & {alias.name for alias in node.names}:
            if len(node.names) > 1:
                raise SetupError(f"{name}, line {node.lineno}: import modules of this folder one a line")
            old, new = "import", "from . import"
        else:
            continue
        line = lines[node.lineno - 1]
        start = len(line.encode()[: node.col_offset].decode())  # ast counts bytes
        if not line.startswith(old, start):
            raise SetupError(f"{name}, line {node.lineno}: write the import as '{old} ...'")
        lines[node.lineno - 1] = line[:start] + new + line[start + len(old) :]
    return "".join(lines)


class BuildPackage(build_py):
    def finalize_options(self):
        super().finalize_options()
        if self.editable_mode:
            raise SetupError(
                "an editable install has no copy whose imports could be made relative: use `pip install .`, "
                "or put the checkout itself on PYTHONPATH"
            )

    def find_package_modules(self, package, package_dir):
        return [
            (package, "__init__" if name == PACKAGE else name, f"{name}.py") for name in sorted(MODULES | {PACKAGE})
        ]

    def check_package(self, package, package_dir):
        return None  # it looks for an __init__.py, which deq_enn.py becomes

    def build_module(self, module, module_file, package):
        target = Path(self.get_module_outfile(self.build_lib, package.split("."), module))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(with_relative_imports(Path(module_file).read_text("utf-8"), module_file), "utf-8")
        return str(target), True


setup(cmdclass={"build_py": BuildPackage})
