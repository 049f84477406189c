"""What this machine offers: a device, and how much memory is free, to refuse what cannot fit."""

import os
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")
# for each version: limit, use, and the statistic that counts what of the use can be taken back
FILES = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("memory.max", "memory.current", "inactive_file"),
}


def has_fast_bfloat16(device: torch.device | str) -> bool:
    """Tells whether the device is a processor with instructions for products in bfloat16.

    Such products take a third to a fifth of float32's time. Other processors emulate them, slower than float32.
    """
    asked = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return torch.device(device).type == "cpu" and any(supported() for supported in asked)


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
