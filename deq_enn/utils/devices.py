"""What this machine offers: a device, how much memory is free, to refuse what cannot fit, and its fastest products."""

import functools
import os
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

CPUINFO = Path("/proc/cpuinfo")
CGROUPS = Path("/sys/fs/cgroup")
# for each version: limit, use, and the statistic that counts what of the use can be taken back
FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("memory.max", "memory.current", "inactive_file"),
}


@functools.cache
def has_fast_onednn() -> bool:
    """Tells whether this is a processor for which MKL, torch's default, has no AVX-512, as it has none for AMD's.

    oneDNN multiplies float32 matrices there in 0.45 to 0.95 of the time, by generation (`scripts/bench.py products`).
    """
    try:
        amd = "AuthenticAMD" in CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
    wide = getattr(torch.cpu, "_is_avx512_supported", bool)()
    return amd and wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits(*matrices: torch.Tensor) -> bool:
    return has_fast_onednn() and all(
        M.ndim == 2 and M.dtype == torch.float32 and M.device.type == "cpu" and M.numel() for M in matrices
    )


def product(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Returns A B^T of matrices (n, k) and (m, k), by the fastest library there is. No gradient goes through it."""
    return torch.ops.mkldnn._linear_pointwise(A, B, None, "none", [], "") if _suits(A, B) else A @ B.T


class FastProducts(TorchFunctionMode):
    """Within this the calling thread's products of two matrices are those of `product`. No gradient goes through it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Calls `func`, or what is faster."""
        kwargs = kwargs or {}
        if func in (torch.Tensor.matmul, torch.Tensor.__matmul__, torch.matmul) and not kwargs and _suits(*args):
            return product(args[0], args[1].T)
        if func is torch.addmm and set(kwargs) <= {"alpha"} and _suits(*args[1:]):
            return product(args[1], args[2].T).mul_(kwargs.get("alpha", 1)).add_(args[0])
        return func(*args, **kwargs)


def available(device: torch.device | str = "cpu") -> int | None:
    """Returns the bytes that can still be allocated on the device; None where the system does not tell.

    On the CPU these are the machine's, or less where a control group (a container, a batch system) allows less.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [*_machine(), *_control_groups()]
    return max(min(limits), 0) if limits else None


def _machine() -> list[int]:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        return [1024 * int(lines["MemAvailable"].split()[0])]
    except (OSError, KeyError, ValueError):  # not Linux: all of it, as nobody says what is taken
        try:
            return [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
        except (OSError, ValueError, AttributeError):
            return []


def _control_groups(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Returns the bytes that each memory limit leaves, on the way from this process's control group to the root."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in lines:
        if controllers not in FILES:
            continue
        limit, use, reclaimable = FILES[controllers]
        group = Path(path.strip("/"))
        for folder in (group, *group.parents):
            folder = root / controllers / folder
            try:
                statistics = dict(
                    line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
                )
                left.append(
                    int((folder / limit).read_text(encoding="utf-8"))
                    - int((folder / use).read_text(encoding="utf-8"))
                    + int(statistics.get(reclaimable, 0))
                )
            except (OSError, ValueError):  # no such file, as in a container that sees its group as the root; or "max"
                continue
    return left


def shown(size: float) -> str:
    """Returns a number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.0f} PB"


def numbered(name: str | None, number: int) -> str | None:
    """Names the GPU of a process with this number, where there are GPUs and the name leaves open which."""
    if name not in (None, "cuda") or not torch.cuda.is_available():
        return name
    return f"cuda:{number % torch.cuda.device_count()}"


def get_device(name: str | None = None) -> torch.device:
    """Returns the named device. Without a name it is CUDA if there is one, else the CPU.

    Raises ValueError for a device that torch does not know, or that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not one that torch knows: use cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"device {name!r} is not there: torch sees {count} CUDA device{'s' * (count != 1)}; use cpu")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use cpu, cuda or cuda:0")
    return device
