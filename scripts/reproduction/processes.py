"""A stage's process and its children are watched here: their memory, how they are stopped, their last error."""

if __name__ == "__main__":
    raise SystemExit("processes.py is a part of scripts/reproduce.py: run that")

import os
import re
import signal
import subprocess
from pathlib import Path


def descendants(pid):
    """Returns the process and its children's children: a sweep has worker processes."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # ended meanwhile
            continue
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def memory(pid):
    """Returns the bytes that a process and its descendants hold, shared pages once; 0 where /proc does not tell."""
    total = 0
    for member in descendants(pid):
        try:
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text(encoding="utf-8")
        except OSError:
            continue
        match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)
        total += 1024 * int(match[1]) if match else 0
    return total


def stop(process):
    """Sends Ctrl-C to the stage too, so that it leaves whole files, and harder signals where it does not listen."""
    for kind, patience in ((signal.SIGINT, 20), (signal.SIGTERM, 20), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, kind)
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            process.wait()
            return


def error_line(log, status):
    """Returns the line in which the stage says what went wrong, else its last one."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    # torchrun has its own say after it
    named = [line for line in lines if re.match(r"\S+\.py: (error|failed): ", line)]
    return (named or lines or ["no output"])[-1][:300] + f" (exit status {status})"
