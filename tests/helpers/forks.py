"""main.py or another script as `python main.py` runs it, without the seconds that its imports take, and with a fault
where one is wanted.

The process that has collected the tests, and imported everything, forks a server before it runs the first of them, and
the server forks a child for each run that it is asked for: what a test leaves behind does not reach it. A child passes
its write points one by one: a temporary file made, half of a checkpoint written, a rename, half of a metrics line, ...
The fault happens at the k-th of them:

    kill     SIGKILL, as a power cut or the system's out-of-memory killer
    full     no space on the disk, from then on
    ctrl_c   SIGINT, as Ctrl-C
"""

import atexit
import contextlib
import errno
import gc
import importlib
import io
import json
import logging
import mmap
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def rank_environment(rank, size=2, **more):
    return {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", **more}


def at(folder):
    """Flags of main.py: all that a run writes lies below a folder."""
    return "--output_path", folder / "out", "--save_path", folder / "ckpt"


# workers are forked as well, from a process that has imported everything and has no other threads
FORKED = "from deq_enn.experiments import executors; executors.START = 'fork'\n"

# a run that is made, and one whose equilibrium is not found
DIVERGES = "--model", "relu_enn", "tanh_inn", "--dim", 256, "--epoch", 1, "--asquare", 0.99999


class Forks:
    """The other end: `run` one main.py, or several ranks of it, and wait."""

    def __init__(self):
        (jobs, self._jobs), (self._answers, answers) = os.pipe(), os.pipe()
        self.server = os.fork()
        if not self.server:
            try:
                os.close(self._jobs), os.close(self._answers)
                serve(os.fdopen(jobs), os.fdopen(answers, "w"))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)  # nothing that the tests' process does at its end
        os.close(jobs), os.close(answers)
        self._jobs, self._answers = os.fdopen(self._jobs, "w"), os.fdopen(self._answers)

    def ranks(self, *jobs):
        """Runs at once; when one fails the others get SIGTERM, as by torchrun. A dictionary of results for each."""
        self._jobs.write(json.dumps(jobs) + "\n")
        self._jobs.flush()
        return json.loads(self._answers.readline())

    def run(self, *argv, **more):
        """status (minus the signal, where one ended it), out, err, seconds, and moments: the write points passed.

        more : program, main.py if it is not given; cwd; env; fault and at: what happens at which write point;
        fresh: with none of the project's modules, nor its folder as a place of modules, as a process that somebody
        starts elsewhere; kill_after: SIGKILL after so many seconds; setup: Python code that the child runs first;
        finalize: let the interpreter come to its own end.
        """
        return self.ranks({"argv": [*map(str, argv)], **more})[0]

    def prepare(self, module):
        """Imports a module of which the children that follow have need, once for all of them."""
        self.ranks({"prepare": module})

    def close(self):
        self._jobs.close(), self._answers.close()
        os.waitpid(self.server, 0)


# ---------------------------------------------------------------------------------------------------------------
# in the child


class Faults:
    """Patches what main.py writes with; the number of points passed is kept in the memory `passed`.

    That memory is shared with processes forked later, so that a fault strikes in whichever comes to it.
    """

    def __init__(self, fault, at, passed):
        import torch

        self.fault, self.at, self.passed, self.full = fault, at, passed, False
        self.make, self.replace, self.write, self.save = tempfile.mkstemp, os.replace, os.write, torch.save
        tempfile.mkstemp, os.replace, os.write, torch.save = self.mkstemp, self.renamed, self.written, self.saved

    def point(self, before=lambda: None):
        """Counts; does `before` where it is time for the fault. True where the disk is full."""
        count = int.from_bytes(self.passed[:8], "little") + 1
        self.passed[:8] = count.to_bytes(8, "little")
        if count == self.at:
            before()
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "ctrl_c":
                signal.raise_signal(signal.SIGINT)
            self.full = self.fault == "full"
        return self.full

    def space(self, there=True):
        if not there:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def mkstemp(self, *args, **kwargs):
        self.space(not self.point())
        return self.make(*args, **kwargs)

    def renamed(self, a, b):  # takes no space
        self.point()
        self.replace(a, b)
        self.point()

    def written(self, handle, data):
        if handle in (1, 2):
            return self.write(handle, data)
        self.space(not self.point())
        half = []
        if self.point(lambda: half.append(self.write(handle, data[: len(data) // 2]))) and half:
            return half[0]  # as much as there was space for
        return sum(half) + self.write(handle, data[sum(half) :])

    def saved(self, state, file):
        whole = io.BytesIO()
        self.save(state, whole)
        whole = whole.getvalue()
        file.write(whole[: len(whole) // 2])
        file.flush()
        self.space(not self.point())
        file.write(whole[len(whole) // 2 :])


def forget():
    """Takes the project's modules out of this process; torch and the other libraries stay."""
    names = {"deq_enn", "ck_ntk", "scripts", "tests", *(path.stem for path in ROOT.glob("*.py"))}
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    sys.path[:] = [place for place in sys.path if place not in ("", str(ROOT))]


def child(job, out, err, passed):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number, (name, file) in enumerate((("stdout", out), ("stderr", err)), 1):
        os.dup2(file.fileno(), number)
        lines = 1 if name == "stderr" else -1  # which Python buffers by the line
        stream = open(number, "w", lines, encoding="utf-8", errors="backslashreplace", closefd=False)
        setattr(sys, name, stream), setattr(sys, f"__{name}__", stream)
    os.environ.update(job.get("env", {}))
    os.chdir(job.get("cwd") or os.curdir)
    program = ROOT / job.get("program", "main.py")
    sys.argv = [str(program), *job["argv"]]
    if job.get("fresh"):
        forget()
    sys.path.insert(0, str(program.parent))
    Faults(job.get("fault"), job.get("at"), passed)
    exec(job.get("setup", ""), {})
    status = 0
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException as error:
        traceback.print_exc()
        status = 1
        if isinstance(error, KeyboardInterrupt):  # as the interpreter ends then
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    if job.get("finalize"):
        atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)  # the interpreter's own end takes longer than all the rest


def serve(requests, answers):
    warm_up()
    for line in requests:
        jobs = json.loads(line)
        for job in [job for job in jobs if "prepare" in job]:
            importlib.import_module(job["prepare"])
            jobs.remove(job)
        running = {}
        for job in jobs:
            job |= {"out": tempfile.TemporaryFile(), "err": tempfile.TemporaryFile(), "passed": mmap.mmap(-1, 8)}
            pid = os.fork()
            if not pid:
                return child(job, job["out"], job["err"], job["passed"])
            running[pid] = job
        done = wait_for(running)
        print(json.dumps([answer(job, *done[pid]) for pid, job in running.items()]), file=answers, flush=True)


def warm_up():
    """Imports all that main.py needs, even fonts, and forgets what pytest has put into its process."""
    import torch
    import torch.distributed

    from deq_enn.experiments import command, worker

    assert torch.distributed.is_available() and worker
    atexit._clear()
    logging.getLogger().handlers.clear()
    sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # a child would wait for threads that it does not have
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        small = "--model tanh_inn --dim 2 --epoch 1 --train full --device cpu --output_path {0} --save_path {0}"
        command.main(small.format(folder).split())
    gc.freeze()  # or each child's collector would write into, and so copy, all that is there


def wait_for(running):
    """{pid: (status, seconds)}; one is killed when its time has come, and when one fails the others are stopped."""
    began, done = time.monotonic(), {}
    # without a poll where none is due to be killed: the others are to hear of a failure before they see it
    flag = os.WNOHANG if any("kill_after" in job for job in running.values()) else 0
    while len(done) < len(running):
        pid, status = os.waitpid(-1, flag)
        if pid in running:
            done[pid] = os.waitstatus_to_exitcode(status), time.monotonic() - began
        if pid in running and done[pid][0] != 0:
            for other in running.keys() - done.keys():
                os.kill(other, signal.SIGTERM)
        if not pid:
            for other in running.keys() - done.keys():
                if time.monotonic() - began > running[other].get("kill_after", float("inf")):
                    os.kill(other, signal.SIGKILL)
            time.sleep(0.002)
    return done


def answer(job, status, seconds):
    for file in (job["out"], job["err"]):
        file.seek(0)
    return {
        "status": status,
        "seconds": seconds,
        "out": job["out"].read().decode(),
        "err": job["err"].read().decode(),
        "moments": int.from_bytes(job["passed"][:8], "little"),
    }
