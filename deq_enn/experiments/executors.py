"""A grid of runs over several processes: a list that the ranks take runs from, one voice, and data-parallel training.

    torchrun --nproc_per_node 2 main.py ...                                                       one machine
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:PORT main.py ...    on each of two

torchrun gives each process its RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; set by hand they do as well. Without
them the world is this process, and nothing of torch.distributed is used. The ranks of a grid exchange no tensors: they
meet at a key-value store, and find each other's logs and checkpoints in folders that they share. Only a run that all
ranks train together (`Team`) has a process group, of gloo or nccl.

Nothing heavy is imported before the world is formed: main.py reads its flags first.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

from deq_enn.names import DEQS
from deq_enn.utils.interrupts import RESUME
from deq_enn.utils.team import Team, one_line_where_a_rank_is_gone

ENDING = signal.SIGTERM, signal.SIGINT


PATIENCE = 5  # seconds: for a network file system to show a file, for torchrun to stop a rank


def cost(config, n: int, p: int, n_classes: int) -> float:
    """What a run takes, in multiplications; only ratios matter. n: training and test samples; p: their dimension.

    Products of the features are counted: a DEQ's 13 iterations (measured at sigma_a^2 = 0.2), or one layer after the
    first. A readout epoch is bound by memory, not by arithmetic: 15 times its multiplications fits the measured times.
    """
    m = config.dim
    features = n * m * (p + m * (13 if config.model in DEQS else 1))
    if config.train == "readout":
        return features + 15 * config.epoch * n * m * n_classes
    return 3 * config.epoch * features  # forward, and twice as much backward


class World:
    """The ranks that share a grid. As a context it gives back, at its end, the streams and signals that it took.

    Attributes
    ----------
    rank, size : of this process and of the world, 0 and 1 alone.
    timeout : seconds (environment variable WORLD_TIMEOUT, default 120) to wait for the world to form, and for a sign of
        life of a rank.
    """

    def __init__(self):
        self.store = self.group = None
        self.stderr = sys.stderr
        self.rank, self.size, self.local_rank, self.timeout = 0, 1, 0, 120.0
        self.speaks = True
        if "WORLD_SIZE" in os.environ:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "WORLD_TIMEOUT")
            given = [os.environ.get(name, default) for name, default in zip(names, ("", "", "0", "120"))]
            try:
                self.rank, self.size, self.local_rank = map(int, given[:3])
                self.timeout = float(given[3])
                good = 0 <= self.rank < self.size and 0 < self.timeout < 1e9
            except ValueError:
                good = False
            if not good:
                self.size = 1  # there is nobody to agree with
                shown = ", ".join(f"{name}={value!r}" for name, value in zip(names, given))
                self.exit(
                    2,
                    f"main.py: error: {shown}: RANK and WORLD_SIZE must be whole numbers, 0 <= RANK < "
                    "WORLD_SIZE, and WORLD_TIMEOUT positive; torchrun sets the first three\n",
                )
        self.speaks = self.rank == 0  # until there is a store, what is wrong is wrong on every rank
        self.told = False  # by another rank
        self.ended = threading.Event()

    def __enter__(self):
        if self.size > 1:
            self.stdout, self.handlers = sys.stdout, {number: signal.getsignal(number) for number in ENDING}
            signal.signal(signal.SIGTERM, self._stopped)
            os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # its errors come back as exceptions as well
            if self.rank:  # no table, no warning, and no progress bar, which is silent where nobody watches
                sys.stdout = sys.stderr = open(os.devnull, "w")
        return self

    def __exit__(self, kind, error, traceback):
        self.ended.set()
        if self.size == 1:
            return
        sys.stdout, sys.stderr = self.stdout, self.stderr
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        with contextlib.suppress(RuntimeError):
            if kind not in (None, SystemExit) and self.store:  # a bug: its traceback follows, the others need not wait
                self.store.add("failed", 1)
            if kind is None and self.group:
                self.group.destroy_process_group()

    @staticmethod
    def _stopped(*_):
        raise KeyboardInterrupt("stopped by SIGTERM, which torchrun sends to all ranks when one has died")

    def exit(self, status=0, message=None):
        """Ends this process. What went wrong is said once in the world, by the rank that comes first with it."""
        if self.size > 1 and status:
            for number in ENDING:  # this process is ending already
                signal.signal(number, signal.SIG_IGN)
            if self.store:
                try:
                    self.speaks = self.store.add("failed", 1) == 1
                except RuntimeError:  # it went with rank 0: unless that has said why, each rank speaks for itself
                    self.speaks = not self.told
        if message and self.speaks:
            print(message, end="", file=self.stderr, flush=True)
            self._let_it_be_heard()
        elif message:  # torchrun stops all ranks once it sees one end: not before the line is out
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(PATIENCE)
        sys.exit(status)

    def form(self):
        """Meets the other ranks. Raises ValueError or RuntimeError, in one line, where that cannot be."""
        if self.size == 1:
            return
        import torch.distributed as dist

        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        try:
            store, *_ = next(dist.rendezvous("env://", timeout=timedelta(seconds=self.timeout)))
        except ValueError as error:
            self.speaks = True
            raise ValueError(f"MASTER_ADDR:MASTER_PORT is {place}: {error}; torchrun sets them") from None
        except RuntimeError as error:
            self.speaks = True
            raise RuntimeError(
                f"rank {self.rank} met no world of {self.size} at {place} ({str(error).splitlines()[0]}): start every "
                f"rank within {self.timeout:g} s (WORLD_TIMEOUT), with the address of rank 0's machine and a free port"
            ) from None
        self.store = dist.PrefixStore("main.py", store)
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self):
        """Says that this rank lives, and listens whether another has failed."""
        due = 0.0
        with contextlib.suppress(RuntimeError):  # the store is gone: the main thread will notice
            while not self.ended.wait(min(0.2, self.timeout / 20)):
                if not self.told and self.store.check(["failed"]):
                    self.told = True
                    self.store.set(f"heard/{self.rank}", "")
                if time.monotonic() >= due:
                    due = time.monotonic() + self.timeout / 20
                    self.store.add(f"beat/{self.rank}", 1)

    def _let_it_be_heard(self):
        """The store ends with rank 0: not before the others know that the failure has been told."""
        if self.rank or not self.store:
            return
        deadline = time.monotonic() + PATIENCE
        with contextlib.suppress(RuntimeError):
            for rank in range(1, self.size):
                while not (self.store.check([f"heard/{rank}"]) or self.store.check([f"done/{rank}"])):
                    if time.monotonic() > deadline:
                        return
                    time.sleep(0.02)

    def _wait(self, key, rank):
        """Waits until that rank has set the key. Ends this process where another has failed.

        Raises RuntimeError where that rank is silent.
        """
        beat, heard = None, time.monotonic()
        while not self.store.check([key]):
            if self.store.check(["failed"]):
                self.exit(1, "main.py: failed\n")  # silently: the other has said why
            now = self.store.add(f"beat/{rank}", 0)
            if now != beat:
                beat, heard = now, time.monotonic()
            elif time.monotonic() - heard > self.timeout:
                raise RuntimeError(
                    f"rank {rank} has given no sign of life for {self.timeout:g} s (WORLD_TIMEOUT); {RESUME}"
                )
            time.sleep(0.05)

    def device(self, name):
        """This rank's device: where the flag names no GPU by number, each rank takes one, as far as there are any."""
        if self.size == 1 or name not in (None, "cuda"):
            return name
        import torch

        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else name

    @one_line_where_a_rank_is_gone()
    def await_leader(self, *folders):
        """Returns at once on rank 0, and elsewhere when rank 0 has called `let_start`: it downloads, and complains.

        Raises ValueError where one of the folders is not the one that rank 0 sees.
        """
        if self.rank == 0:
            return
        self._wait("start", 0)
        name, token = self.store.get("start").decode().split()
        for folder in map(Path, folders):
            deadline = time.monotonic() + PATIENCE  # a network file system may show it late
            while not (folder / name).exists() or (folder / name).read_text() != token:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"rank {self.rank} on {socket.gethostname()} does not see the files of rank 0 in "
                        f"{folder.absolute()}: --output_path and --save_path must be folders that all "
                        "ranks share"
                    )
                time.sleep(0.05)
        self.store.set(f"sees/{self.rank}", "")

    @one_line_where_a_rank_is_gone()
    def let_start(self, grid_key, *folders):
        """Rank 0 is ready, and lets the others begin. Elsewhere: ValueError where the grid is not that of rank 0."""
        if self.size == 1:
            return
        if self.rank:
            if self.store.get("start").decode().split()[0] != self._token_name(grid_key):
                raise ValueError(
                    f"rank {self.rank} on {socket.gethostname()} has other flags or other data than rank 0"
                )
            return
        name, token = self._token_name(grid_key), uuid.uuid4().hex
        files = [Path(folder) / name for folder in folders]
        try:
            for file in files:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(token)
            self.store.set("start", f"{name} {token}")
            for rank in range(1, self.size):
                self._wait(f"sees/{rank}", rank)
        finally:
            for file in files:
                file.unlink(missing_ok=True)

    @staticmethod
    def _token_name(grid_key):
        """A name that is always the same for one grid, so that a token left by a kill goes when the grid is resumed."""
        return f".rank0-{hashlib.sha256(grid_key.encode()).hexdigest()[:16]}"

    @one_line_where_a_rank_is_gone()
    def team(self, device) -> Team:
        """All ranks, for one run."""
        import torch.distributed as dist

        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("team", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.timeout),
        )
        self.group = dist
        return Team(self.rank, self.size)

    @one_line_where_a_rank_is_gone()
    def map(self, function, items, costs, together=False):
        """[function(item) for item in items] on rank 0, each item on one rank; an empty list elsewhere.

        Parameters
        ----------
        function : its values must survive JSON.
        costs : one number an item; the longest are begun first.
        together : all ranks call the function for every item (and are a `Team` in it), and have the values.

        Notes
        -----
        A rank that is free takes the next item from a counter in the store. That is longest-first list scheduling as a
        fixed deal would be, and shorter, but the actual times decide: a wrong cost, a slow machine, or runs that
        --resume skips, leave no rank idle while another has a queue.
        """
        if self.size == 1 or together:
            return [function(item) for item in items]
        order = sorted(range(len(items)), key=lambda index: -costs[index])
        while (place := self.store.add("next", 1) - 1) < len(items):
            self.store.set(f"result/{order[place]}", json.dumps(function(items[order[place]])))
        self.store.set(f"done/{self.rank}", "")
        if self.rank:
            return []
        for rank in range(1, self.size):
            self._wait(f"done/{rank}", rank)
        return [json.loads(self.store.get(f"result/{index}")) for index in range(len(items))]
