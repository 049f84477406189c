"""A program that is started where its requirements are not installed says so in one line, and not in a traceback.

`deq_enn/__init__.py` calls `say_in_one_line`, and every program imports that first, whichever it is. A program of a
user's own that imports deq_enn keeps its traceback.
"""

import os
import sys
from types import TracebackType

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REQUIRED = "torch", "torchvision", "numpy", "scipy", "tqdm", "matplotlib", "jinja2"  # as in requirements.txt
INSTALLED = "deq-enn"  # name of the program that pip installs


def say_in_one_line() -> None:
    """Lets a program of this project end with one line, and status 1, where a package that it requires is missing.

    Nothing is changed for any other program.
    """
    if sys.argv[:1] != ["-m"] and not our_program():  # with -m the program has its name later
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in REQUIRED and (program := our_program()):
            print(f"{program}: failed: {advice(package)}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = hook


def our_program() -> str | None:
    """Returns the name of the program that runs, None where it is no program of this project."""
    path = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or sys.argv[0])
    if os.path.basename(path) == INSTALLED or os.path.dirname(path) == os.path.join(ROOT, "deq_enn"):
        return INSTALLED
    own = ROOT, os.path.join(ROOT, "ck_ntk"), os.path.join(ROOT, "scripts")
    return os.path.basename(path) if os.path.dirname(path) in own and os.path.isfile(path) else None


def advice(package: str) -> str:
    """Returns what is missing and what to do."""
    install = f"pip install {package}"
    if os.path.exists(os.path.join(ROOT, "requirements.txt")):
        install = "bash scripts/venv.sh and source .venv/bin/activate, or pip install -r requirements.txt"
    return f"the package {package} is not installed in {sys.executable}; run {install}"
