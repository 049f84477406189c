"""The pairs of a convolutional network's kernel are computed in C where a C compiler is at hand, else in torch.

In torch each step of the iterations is a pass over memory. In C a few pairs of images go through all of them in the
cache of one core, which takes a tenth of the time. conv_pairs.c has the DEQ's equations, conv_layers.c explicit
networks, and conv_lanes.h what they share. They give the numbers of conv.py and conv_explicit.py to 1e-11. What ends
in _single there has single precision.

The files are compiled once for a machine, in a few seconds, by `cc` (or what the variable CC names), into the user's
cache folder ($XDG_CACHE_HOME or ~/.cache, deq_enn). Where nothing can be written there or loaded from there, each
process compiles them for itself. With DEQ_ENN_COMPILE=0 they are not.
"""

import contextlib
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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deq_enn.kernels.pair_functions import Series

if TYPE_CHECKING:
    from deq_enn.kernels.conv_blocks import Side

_log = logging.getLogger("kernels")

SOURCES = [Path(__file__).with_name(name) for name in ("conv_pairs.c", "conv_layers.c")]
HEADERS = [Path(__file__).with_name(name) for name in ("conv_lanes.h", "conv_typed.h", "conv_work.h", "conv_layers.h")]
FLAGS = "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"
WIDE = 8  # columns side by side in conv_lanes.h; in single precision twice as many
_SECONDS = 120  # seconds that a compiler may take


class Problem(ctypes.Structure):
    """These are the numbers that conv_pairs.c is given; it says what each is."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("h", "w", "radius", "wraps", "rows", "cols", "channels", "same")),
        *((name, ctypes.c_int) for name in ("tangent", "injected")),
        *((name, ctypes.c_double) for name in ("sigma_a2", "least", "most", "m2", "h2")),
        *((name, ctypes.c_int) for name in ("terms", "odd", "bins")),
        ("cut", ctypes.c_double),
        ("single", ctypes.c_int),
        *((name, ctypes.c_double) for name in ("rounded", "stalled")),
    ]


@cache
def library() -> Any | None:
    """Returns the compiled functions, or None where they are not wanted or cannot be compiled or loaded."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("DEQ_ENN_COMPILE") == "0" or not compiler:
        return None
    try:
        try:
            return _built(compiler, _cache_folder())
        except (OSError, RuntimeError):  # it is not known, or cannot be written to or loaded from
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                return _built(compiler, Path(folder))  # what is loaded stays when its file goes
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        reason = " ".join(said.decode(errors="replace").split())[:200]
        _log.info("convolutional kernels are computed in torch: %s", reason)
        return None


def _cache_folder() -> Path:
    """Returns where compiled code is kept; RuntimeError where a user has no home."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))  # one that is not absolute does not count, says its standard
    return (given if given.is_absolute() else Path.home() / ".cache") / "deq_enn"


def _built(compiler: str, folder: Path) -> Any:
    """Returns the compiled functions for this machine, which are made where they are not in the folder yet."""
    text = b"".join(source.read_bytes() for source in (*SOURCES, *HEADERS))
    machine = "|".join((compiler, *FLAGS, platform.platform(), platform.processor(), _cpu()))
    target = folder / f"conv-{hashlib.sha256(text + machine.encode()).hexdigest()[:16]}.so"
    if target.exists():
        with contextlib.suppress(OSError, AttributeError):  # a damaged file is made anew
            return _loaded(target)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / "made.so"
        command = [*compiler.split(), *FLAGS, "-o", str(made), *map(str, SOURCES), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)
        os.replace(made, target)
    return _loaded(target)


def _loaded(path: Path) -> Any:
    """Returns the functions of a shared library."""
    code = ctypes.CDLL(str(path))
    code.conv_pairs.restype = code.conv_layers.restype = code.conv_layers_single.restype = ctypes.c_int
    return code


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
        raise ValueError(
            f"the kernel between images did not converge (residual {left.value:.2g}): take a smaller sigma_a^2"
        )
    return out


def conv_values(problem: Problem, rho: torch.Tensor, tables: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Returns the series and its derivative at correlations rho (h, w, rows, columns), of the dtype of all of them."""
    code = library()
    assert code is not None
    rho = rho.contiguous()
    out = [torch.empty_like(rho), torch.empty_like(rho)]
    (code.conv_values_single if rho.dtype == torch.float32 else code.conv_values)(
        ctypes.byref(problem),
        *(ctypes.c_void_p(None if array is None else array.data_ptr()) for array in [rho, *tables, *out]),
    )
    return out


class Layer(ctypes.Structure):
    """This is a layer of an explicit network as conv_layers.c takes it."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("m2", "h2")),
        ("radius", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("si", "vi", "mi", "sj", "vj", "mj")),
    ]


def conv_layers(
    problem: Problem, layers: list[tuple[float, float, int, list[torch.Tensor]]], own: torch.Tensor, other: torch.Tensor
) -> list[torch.Tensor]:
    """Returns the sums over pixels of the two kernels of an explicit network, (rows, columns) float64 each.

    Parameters
    ----------
    layers : (m2, h2, radius, [si, vi, mi, sj, vj, mj]) as conv_layers.c has them, contiguous and on the CPU.
    own : (rows, pixels, channels) images. other : (pixels, channels, columns). All arrays are float64, or all float32.

    Raises
    ------
    MemoryError : no memory is left.
    """
    code = library()
    assert code is not None
    out = [torch.empty(problem.rows, problem.cols, dtype=torch.float64) for _ in range(1 + bool(problem.tangent))]
    stack = [Layer(m2, h2, radius, *(part.data_ptr() for part in parts)) for m2, h2, radius, parts in layers]
    pointers = [ctypes.c_void_p(part.data_ptr()) for part in (own, other, out[0], out[-1])]
    function = code.conv_layers_single if own.dtype == torch.float32 else code.conv_layers
    if function(ctypes.byref(problem), len(stack), (Layer * len(stack))(*stack), *pointers):
        raise MemoryError("no memory is left for a tile of a convolutional kernel")
    return out


class SeriesTerms:
    """This has the coefficients of a Mehler series at a tile's pixels, and how many of them a correlation needs.

    g = rho sum_l a_l b_l w^l, with w = rho^2 and every other coefficient for an odd activation, and w = rho for others.
    The coefficients have the given dtype, and are as many as it asks for.
    """

    def __init__(self, series: Series, images: int, dtype: torch.dtype = torch.float64):
        self.images, table = images, series.table_for(1.0)
        self.cut = 1.0
        self.reach = np.array([*np.linspace(0.05, 0.95, 19), 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0])
        self.odd = bool(table.weights[2::2].max() < 1e-28 * table.weights.max())
        step = 1 + self.odd
        self.terms, self.single, self.rough = (
            np.array([-(-table.report(r, kept).degree // step) for r in self.reach], dtype=np.int32)
            for kept in (1e-14, 1e-8, 1e-6)
        )
        most = self.terms if dtype == torch.float64 else self.single
        self.lanes, self.kind = (WIDE, np.float64) if dtype == torch.float64 else (2 * WIDE, np.float32)
        self.piece, self.basis, self.d1 = table.piece, table.basis.astype(self.kind, copy=False), table.d1
        self.coefficients = [np.ascontiguousarray(c[:, 1::step][:, : most[-1]], self.kind) for c in table.coefficients]

    def fill(self, problem: Problem, rows: "Side", cols: "Side") -> list[torch.Tensor | None]:
        """Writes the number of terms into the problem, and returns the coefficients of rows and of columns in groups.

        After them come the correlations up to which each number of terms is right, and those numbers for an error of
        rounding and of 1e-6; of 1e-8 both, where single precision suffices.
        """
        terms, rough = (self.single, self.single) if problem.single else (self.terms, self.rough)
        count = int(terms[-1])
        problem.terms, problem.odd, problem.bins, problem.cut = count, self.odd, len(self.reach), self.cut
        own, other = (self._at(side, count) for side in (rows, cols))
        pixels, columns, _ = other.shape
        groups = -(-columns // self.lanes)
        if columns % self.lanes:
            other = torch.nn.functional.pad(other, (0, 0, 0, groups * self.lanes - columns))
        other = other.reshape(pixels, groups, self.lanes, count).mT.contiguous()
        return [own, other, *(torch.from_numpy(values) for values in (self.reach, terms, rough))]

    def _at(self, side, count):
        """Returns the first coefficients (pixels, images, count) of one side, as the table has them."""
        assert isinstance(side.images, slice)
        index = side.pixels.reshape(-1, 1) * self.images + np.arange(side.images.start, side.images.stop)
        piece, out = self.piece[index], np.empty((*index.shape, count), self.kind)
        for number in np.unique(piece):
            c, here = self.coefficients[number][:, :count], index[piece == number]
            out[piece == number] = self.basis[here, : len(c)] @ c
        out[..., 0] = self.d1[index]
        return torch.from_numpy(out)
