"""main.py or another script as `python main.py` runs it, without the seconds that its imports take, and with a fault
where one is wanted.

This file run as a program imports everything once, and then forks a child for each run that it is asked for. A child
passes its write points one by one: a temporary file made, half of a checkpoint written, a rename, half of a metrics
line, ... The fault happens at the k-th of them:

    kill     SIGKILL, as a power cut or the system's out-of-memory killer
    full     no space on the disk, from then on
    ctrl_c   SIGINT, as Ctrl-C
"""

import contextlib
import errno
import importlib
import io
import json
import mmap
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rank_environment(rank, size=2, **more):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", **more}


def at(folder):
    """Flags of main.py: all that a run writes lies below a folder."""
    return "--output_path", folder / "out", "--save_path", folder / "ckpt"


# a run that is made, and one whose equilibrium is not found
DIVERGES = "--model", "relu_enn", "tanh_inn", "--dim", 256, "--epoch", 1, "--asquare", 0.99999


class Forks:
    """The other end: `run` one main.py, or several ranks of it, and wait."""

    def __init__(self):
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        # the second as distributed.py has it, which comes too late where torch is there already
        environment |= {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "FATAL"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ranks(self, *jobs):
        """Runs at once; when one fails the others get SIGTERM, as by torchrun. A dictionary of results for each."""
        self.server.stdin.write(json.dumps(jobs) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def run(self, *argv, **more):
        """status (minus the signal, where one ended it), out, err, seconds, and moments: the write points passed.

        more : program, main.py if it is not given; cwd; env; fault and at: what happens at which write point;
        kill_after: SIGKILL after so many seconds; setup: Python code that the child runs first; finalize: let the
        interpreter come to its own end.
        """
        return self.ranks({"argv": [*map(str, argv)], **more})[0]

    def prepare(self, module):
        """Imports a module of which the children that follow have need, once for all of them."""
        self.ranks({"prepare": module})

    def close(self):
        self.server.stdin.close()
        self.server.wait()


# ---------------------------------------------------------------------------------------------------------------
# in the child


def plant(fault, at, passed):
    """Patches what main.py writes with; the number of points passed is kept in the memory `passed`."""
    import torch

    full = False

    def point(before=lambda: None):
        """Counts; does `before` where it is time for the fault. True where the disk is full."""
        nonlocal full
        count = int.from_bytes(passed[:8], "little") + 1
        passed[:8] = count.to_bytes(8, "little")
        if count == at:
            before()
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "ctrl_c":
                signal.raise_signal(signal.SIGINT)
            full = fault == "full"
        return full

    def no_space():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make, replace, write, save = tempfile.mkstemp, os.replace, os.write, torch.save

    def mkstemp(*args, **kwargs):
        if point():
            no_space()
        return make(*args, **kwargs)

    def renamed(a, b):  # takes no space
        point()
        replace(a, b)
        point()

    def written(handle, data):
        if handle in (1, 2):
            return write(handle, data)
        if point():
            no_space()
        half = []
        if point(lambda: half.append(write(handle, data[: len(data) // 2]))) and half:
            return half[0]  # as much as there was space for
        return sum(half) + write(handle, data[sum(half) :])

    def saved(state, file):
        whole = io.BytesIO()
        save(state, whole)
        whole = whole.getvalue()
        file.write(whole[: len(whole) // 2])
        file.flush()
        if point():
            no_space()
        file.write(whole[len(whole) // 2 :])

    tempfile.mkstemp, os.replace, os.write, torch.save = mkstemp, renamed, written, saved


def child(job, out, err, passed):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.environ.update(job.get("env", {}))
    os.chdir(job.get("cwd") or os.curdir)
    program = ROOT / job.get("program", "main.py")
    sys.argv = [str(program), *job["argv"]]
    sys.path.insert(0, str(program.parent))
    plant(job.get("fault"), job.get("at"), passed)
    exec(job.get("setup", ""), {})
    status = 0
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    if job.get("finalize"):
        sys.exit(status)
    sys.stdout.flush()
    os._exit(status)  # the interpreter's own end takes longer than all the rest


def serve():
    sys.path.insert(0, str(ROOT))
    import torch
    import torch.distributed  # noqa: F401

    import main

    torch.set_num_threads(1)  # a child would wait for threads that it does not have
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # imports all, even fonts
        small = "--model tanh_inn --dim 2 --epoch 1 --train full --device cpu --output_path {0} --save_path {0}"
        main.main(small.format(folder).split())
    for line in sys.stdin:
        jobs, running = json.loads(line), {}
        for job in [job for job in jobs if "prepare" in job]:
            importlib.import_module(job["prepare"])
            jobs.remove(job)
        for job in jobs:
            out, err, passed = tempfile.TemporaryFile(), tempfile.TemporaryFile(), mmap.mmap(-1, 8)
            pid = os.fork()
            if not pid:
                return child(job, out, err, passed)
            running[pid] = job | {"out": out, "err": err, "passed": passed}
        began, done, stopped = time.monotonic(), {}, False
        while len(done) < len(jobs):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                done[pid] = os.waitstatus_to_exitcode(status), time.monotonic() - began
                stopped = stopped or done[pid][0] != 0
                if stopped:
                    for other in running.keys() - done.keys():
                        os.kill(other, signal.SIGTERM)
                continue
            for pid in running.keys() - done.keys():
                if time.monotonic() - began > running[pid].get("kill_after", float("inf")):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.002)
        answer = []
        for pid, job in running.items():
            for file in (job["out"], job["err"]):
                file.seek(0)
            answer.append(
                {
                    "status": done[pid][0],
                    "seconds": done[pid][1],
                    "out": job["out"].read().decode(),
                    "err": job["err"].read().decode(),
                    "moments": int.from_bytes(job["passed"][:8], "little"),
                }
            )
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
    os._exit(0)  # as in `child`
