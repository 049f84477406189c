"""Where the runs of a grid are made: a pool of processes on this machine, or a Dask cluster.

Runs are independent: they are submitted, the longest first, to a `concurrent.futures.Executor`, of which there are two
here. What is submitted is small, the parsed arguments and a run's Config; a worker loads the data itself (worker.py).

Nothing heavy is imported before it is used.
"""

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path

from deq_enn.utils.interrupts import RESUME

START = "spawn"  # the way in which a worker process begins; a fork would inherit locks that other threads hold
CONNECT = 5  # seconds within which a Dask scheduler has to answer
PATIENCE = 5  # seconds that a stopped worker has to remove its temporary files before it is killed


def run_all(executor: Executor, function: Callable, items: list[tuple], costs: list[float]) -> list:
    """Returns [function(*item) for item in items], of which those with the largest costs are begun first.

    The first failure is raised at once; whoever made the executor stops what is still under way.
    """
    from tqdm import tqdm

    order = sorted(range(len(items)), key=lambda index: -costs[index])
    with _deaf_children():
        futures = {index: executor.submit(function, *items[index]) for index in order}
    done = as_completed(futures.values())
    for future in tqdm(done, desc="runs", total=len(items), leave=False, disable=None, delay=1):
        future.result()
    return [futures[index].result() for index in range(len(items))]


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here never see Ctrl-C, not even during their imports: this process stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def cores() -> int:
    """Returns how many cores this process may use; where the system does not tell, as macOS, all that there are.

    A container or a batch system may bind it to some, or allow it the time of some.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([bound, *_quotas()])


def _quotas(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Returns the cores that each quota of time is worth, on the way from this process's control group to the root."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text("utf-8").splitlines()]
    except OSError:
        return []
    worth = []
    for _, controllers, path in lines:
        group, old = Path(path.strip("/")), "cpu" in controllers.split(",")
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if old else ("cpu.max",) if not controllers else ()
        for folder in (group, *group.parents):
            place = root / ("cpu" if old else "") / folder
            with contextlib.suppress(OSError, ValueError):  # no such file, as in a container; or "max"
                quota, period = map(int, " ".join((place / file).read_text("utf-8") for file in files).split())
                if quota > 0:
                    worth.append(math.ceil(quota / period))
    return worth


def threads_of_each(processes: int) -> int:
    """Divides the cores among the worker processes, unless OMP_NUM_THREADS says what each has."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else max(1, cores() // processes)


@contextlib.contextmanager
def pool(processes: int) -> Iterator[Executor]:
    """Yields an executor of so many worker processes on this machine; none of them outlives the block.

    Raises
    ------
    RuntimeError : a worker was killed from outside.
    """
    from deq_enn.experiments import worker

    threads, given = threads_of_each(processes), os.environ.get("OMP_NUM_THREADS")
    resource_tracker.ensure_running()  # it would unblock Ctrl-C in the midst of `_deaf_children`
    others = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context(START), worker.begin, (threads,))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # is read when a worker's libraries are loaded
    try:
        yield executor
    except BaseException as error:
        executor.shutdown(wait=False, cancel_futures=True)
        _stop(set(multiprocessing.active_children()) - others)
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError(f"a worker process died (killed, or out of memory); {RESUME}") from None
        raise
    finally:
        if given is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = given
        executor.shutdown()


def _stop(children: set) -> None:
    for child in children:
        child.terminate()
    for child in children:
        child.join(PATIENCE)
        child.kill()


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """Yields an executor on the Dask cluster of this scheduler, which begins again what a lost worker had.

    Raises
    ------
    RuntimeError : nobody answers at the address, the connection is lost, one run took several workers with it, or a
        process of the cluster does not find this package.
    """
    from distributed import Client
    from distributed.scheduler import KilledWorker

    for name in ("distributed", "tornado"):  # they log what comes back as an exception as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(f"no Dask scheduler answers at {address} within {CONNECT} s ({reason})") from None
    try:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            warnings.warn(f"the scheduler has no workers yet: start them with `dask worker {address} --nthreads 1`")
        yield client.get_executor()
    except KilledWorker:
        raise RuntimeError(f"several workers died in the same run (killed, or out of memory); {RESUME}") from None
    except (ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "deserialization" not in str(error):
            raise  # of a run
        raise RuntimeError(
            f"the scheduler at {address} or a worker of it does not find this package: install it there, or start them "
            "with PYTHONPATH set to this folder"
        ) from None
    except CancelledError:
        raise RuntimeError(f"the connection to the scheduler at {address} is lost; {RESUME}") from None
    finally:
        client.close()
