"""What a worker process does: it loads the data and builds the grid once, and makes the runs that it is handed."""

import functools
import glob
import json
import multiprocessing
import os
import signal
import socket
import threading
from argparse import Namespace
from pathlib import Path

import torch

from deq_enn.experiments.exact_grid import GRIDS
from deq_enn.experiments.grid import Grid
from deq_enn.training.run_files import Config, checkpoint_path
from deq_enn.utils.devices import get_device, numbered
from deq_enn.utils.interrupts import INTERRUPTED

FAILURES = ValueError, OSError, MemoryError, RuntimeError  # errors of a run, each with its exit status in command.main

FOLDERS = "output_path", "save_path"  # flags of the folders that all workers share

_one_at_a_time = threading.Lock()  # a Dask worker may have several threads; a run has all of a process's


def begin(threads: int) -> None:
    """Prepares a process of a pool: it is silent, unwinds when it is stopped, and ends with its parent."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(INTERRUPTED)


def for_other_machines(options: dict, configs: list[Config]) -> dict:
    """Prepares the arguments of a job for a cluster, whose workers have working directories of their own.

    A run that is begun again elsewhere, since its worker was lost, goes on from its checkpoint. So every run is told to
    resume; where the job itself was not, what earlier jobs have left is removed here, and shorter runs are no start.
    """
    paths = {flag: options[flag] for flag in (*FOLDERS, "dataset_path", "vgg_path")}
    if ":" in (options["activation"] or ""):  # a file's path, and a name in it
        paths["activation"] = options["activation"]
    if options["dataset"] != "gmm":
        paths["dataset_path"] = paths["dataset_path"] or "data"
    for folder in FOLDERS:
        Path(options[folder]).mkdir(parents=True, exist_ok=True)
    for old in () if options["resume"] else configs:
        path = checkpoint_path(old, options["save_path"])
        for file in path.parent.glob(f"{glob.escape(path.stem)}.*"):
            file.unlink()
    whole = {flag: str(Path(path).absolute()) for flag, path in paths.items() if path and path != "imagenet"}
    return options | whole | {"resume": True}


def do_run(arguments: dict, config: Config) -> dict:
    """Makes one run of the grid that the arguments ask for, and returns its `Result` as a dictionary."""
    with _one_at_a_time:
        try:
            grid, device, data = _prepared(json.dumps(arguments, sort_keys=True))
            if arguments["scheduler"]:
                _check_machine(grid, config, data, device)
            return vars(grid.train(config, device))
        except KeyboardInterrupt:  # stopped: nothing more is taken from the queue
            os._exit(INTERRUPTED)
        except FAILURES as error:  # its own class may not survive pickling, nor should the tensors that it holds
            kind = next(kind for kind in FAILURES if isinstance(error, kind))
            raise kind(str(error)) from None


def _check_machine(grid: Grid, config: Config, data: str, device: torch.device) -> None:
    """Raises ValueError where another machine lacks what the one that handed out the run has."""
    here = f"the worker on {socket.gethostname()}"
    for folder in FOLDERS:
        path = getattr(grid.arguments, folder)
        if not os.path.isdir(path):
            raise ValueError(f"{here} does not see {path}: --{folder} must be a folder that all workers share")
    if data != config.data:
        raise ValueError(f"{here} has other data in --dataset_path")
    grid.check_memory([config], device)


@functools.lru_cache(1)
def _prepared(arguments: str) -> tuple[Grid, torch.device, str]:
    """Returns the grid with its data, the device, and the fingerprint of the data."""
    options = Namespace(**json.loads(arguments))
    name = multiprocessing.current_process().name  # SpawnProcess-3, and so on: they take the GPUs in turns
    number = name.rpartition("-")[2]
    device = get_device(numbered(options.device, int(number) if number.isdecimal() else 0))
    grid = GRIDS[options.train](options)
    grid.load(device)
    return grid, device, grid.key
