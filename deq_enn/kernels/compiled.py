"""The pairs of a convolutional DEQ's kernel are solved in C where a C compiler is at hand, and in torch where none is.

In torch each step of the iterations is a pass over memory. In C a few pairs of images go through all of them in the
cache of one core, which takes a twentieth of the time. conv_pairs.c is the same algorithm as conv.py, and gives the
same numbers to rounding.

The file is compiled once for a machine, in about two seconds, by `cc` (or what the variable CC names), into the user's
cache folder ($XDG_CACHE_HOME or ~/.cache, deq_enn). With DEQ_ENN_COMPILE=0 it is not.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger("kernels")

SOURCE = Path(__file__).with_name("conv_pairs.c")
FLAGS = "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"
WIDE = 8  # columns side by side in conv_pairs.c
_SECONDS = 120  # seconds that a compiler may take


class Problem(ctypes.Structure):
    """These are the numbers that conv_pairs.c is given; it says what each is."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("h", "w", "radius", "wraps", "rows", "cols", "channels", "same")),
        *((name, ctypes.c_int) for name in ("tangent", "injected")),
        *((name, ctypes.c_double) for name in ("sigma_a2", "least", "most", "m2", "h2")),
        *((name, ctypes.c_int) for name in ("degree", "bins")),
        *((name, ctypes.c_double) for name in ("cut", "rounded", "stalled")),
    ]


@cache
def library() -> Any | None:
    """Returns the compiled functions, or None where they are not wanted or cannot be compiled or loaded."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("DEQ_ENN_COMPILE") == "0" or not compiler:
        return None
    try:
        code = ctypes.CDLL(str(_built(compiler)))
        code.conv_pairs.restype = ctypes.c_int
        return code
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        _log.info("convolutional kernels are computed in torch: %s", " ".join(str(error).split())[:200])
        return None


def _built(compiler: str) -> Path:
    """Returns the shared library for this machine, which the first call makes."""
    text = SOURCE.read_bytes()
    machine = "|".join((compiler, *FLAGS, platform.platform(), platform.processor(), _cpu()))
    key = hashlib.sha256(text + machine.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deq_enn"
    target = folder / f"conv_pairs-{key}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / "made.so"
            command = [*compiler.split(), *FLAGS, "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
            os.replace(made, target)
    return target


def _cpu() -> str:
    """Returns the instructions that this processor has, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def conv_pairs(problem: Problem, arrays: list[torch.Tensor | None], tangent: bool) -> list[torch.Tensor]:
    """Returns the sums over pixels of Cov[f(u), f(v)], and of that plus G_dot N, (rows, columns) float64 each.

    Parameters
    ----------
    arrays : those of conv_pairs.c in its order, contiguous and on the CPU.

    Raises
    ------
    ValueError : the equation is not solved. MemoryError : no memory is left.
    """
    code = library()
    assert code is not None
    out = [torch.empty(problem.rows, problem.cols, dtype=torch.float64) for _ in range(1 + tangent)]
    left = ctypes.c_double()
    pointers = [ctypes.c_void_p(None if array is None else array.data_ptr()) for array in [*arrays, out[0], out[-1]]]
    status = code.conv_pairs(ctypes.byref(problem), *pointers, ctypes.byref(left))
    if status == 2:
        raise MemoryError("no memory is left for a tile of a convolutional kernel")
    if status:
        raise ValueError(f"the kernel between images did not converge: residual {left.value:.2g}")
    return out


def conv_values(problem: Problem, rho: torch.Tensor, tables: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Returns the series and its derivative at correlations rho (h, w, rows, columns), float64 each."""
    code = library()
    assert code is not None
    rho = rho.contiguous()
    out = [torch.empty_like(rho), torch.empty_like(rho)]
    code.conv_values(
        ctypes.byref(problem),
        *(ctypes.c_void_p(None if array is None else array.data_ptr()) for array in [rho, *tables, *out]),
    )
    return out
