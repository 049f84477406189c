"""The ranks that compute one thing together, under torchrun: the steps of one full training, or one kernel machine.

    torchrun --nproc_per_node 2 main.py --train kernel ...

torchrun gives each process its RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; set by hand they do as well.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deq_enn.utils.interrupts import RESUME, SilentEnd

if TYPE_CHECKING:  # a command line is checked before torch is imported
    import torch

TIMEOUT = 1800  # seconds that a rank waits for the others, also while rank 0 downloads the data
LINGER = 3  # seconds that rank 0, whose store says who speaks, waits at most for the others after a failure
PATIENCE = 1  # seconds after which a rank that has nothing to say ends: torchrun stops all once it sees one end


class Team:
    """The ranks that train one run together, each on its share of every batch. By default: this process alone."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    def share(self, rows: Any) -> Any:
        """Returns the rows that are this rank's share; none, where there are fewer rows than ranks."""
        return rows[self.rank :: self.size]

    def wrap(self, model: "torch.nn.Module") -> "torch.nn.Module":
        """Returns the model with gradients that are means over the ranks once `backward` is through."""
        if self.size == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)

    def total(self, values: "torch.Tensor") -> list:
        """Returns the sums over the ranks of a tensor's entries, as a list."""
        return self._reduce(values, "SUM")

    def most(self, values: "torch.Tensor") -> list:
        """Returns the maxima over the ranks of a tensor's entries, as a list."""
        return self._reduce(values, "MAX")

    def _reduce(self, values: "torch.Tensor", kind: str) -> list:
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(values, getattr(dist.ReduceOp, kind))
        return values.tolist()

    @contextlib.contextmanager
    def rank_0_first(self, device: "torch.device") -> Iterator[None]:
        """Lets rank 0 go through the block alone, such as for a download, and then the others."""
        import torch

        if self.rank:
            self.total(torch.zeros(1, device=device))
        yield
        if not self.rank:
            self.total(torch.zeros(1, device=device))

    def agree(self, text: str, device: "torch.device") -> None:
        """Compares a text over the ranks. Raises ValueError on each of them where it is not the same on all."""
        import hashlib
        import socket

        import torch

        number = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
        if self.most(torch.tensor([number, -number], device=device)) != [number, -number]:
            raise ValueError(
                f"rank {self.rank} on {socket.gethostname()}: the ranks have different flags or data, or see different "
                "checkpoints; --save_path must be a folder that all ranks share"
            )


def ranks() -> tuple[int, int, int]:
    """Returns RANK, WORLD_SIZE and LOCAL_RANK, (0, 1, 0) without torchrun; ValueError where they are not such."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0
    given = [os.environ.get("RANK", ""), os.environ["WORLD_SIZE"], os.environ.get("LOCAL_RANK", "0")]
    if not all(number.isdecimal() for number in given) or not int(given[0]) < int(given[1]):
        shown = ", ".join(f"{name}={value!r}" for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), given))
        raise ValueError(f"{shown}: must be whole numbers, 0 <= RANK < WORLD_SIZE; torchrun sets them")
    return int(given[0]), int(given[1]), int(given[2])


@contextlib.contextmanager
def one_voice(rank: int) -> Iterator[None]:
    """Drops what other ranks than 0 print, and lets rank 0 be heard before one of them ends."""
    if rank == 0:
        yield
        return
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        try:
            yield
        except SystemExit:
            time.sleep(2 * PATIENCE)
            raise


@contextlib.contextmanager
def team_of_ranks(device: "torch.device") -> Iterator[Team]:
    """Yields the team of all ranks of torchrun; their process group ends with the block.

    Of an exception that several ranks have, as a lost connection, the rank that comes first with it raises it; the
    others end silently.
    """
    from datetime import timedelta

    import torch.distributed as dist

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # its errors come back as exceptions as well
    rank, size, _ = ranks()
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        with one_voice(rank), one_line_where_a_rank_is_gone():
            store = _meet(rank, size)
            backend = "nccl" if device.type == "cuda" else "gloo"
            wait = timedelta(seconds=TIMEOUT)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
            try:
                yield Team(rank, size)
            except BaseException:
                told: list[int] = []  # a signal that comes now must not raise in the midst of asking who speaks
                signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
                if not _first(store, told):
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    time.sleep(PATIENCE)
                    raise SilentEnd(1) from None
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until it has spoken
                if backend == "gloo" and rank == 0:  # the others see it now, and may still ask its store
                    dist.destroy_process_group()
                    _await_all(store, size)
                raise
            dist.destroy_process_group()
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(*_):
    raise KeyboardInterrupt("stopped by SIGTERM, which torchrun sends to all ranks when one has died")


def _meet(rank: int, size: int):
    from datetime import timedelta

    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage] left out of its __all__
    from torch.distributed.rendezvous import rendezvous

    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=TIMEOUT)))
    except ValueError as error:
        raise ValueError(f"MASTER_ADDR:MASTER_PORT is {place}: {error}; torchrun sets them") from None
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {rank} met no world of {size} at {place} ({str(error).splitlines()[0]}): start every rank within "
            f"{TIMEOUT:g} s, with the address of rank 0's machine and a free port"
        ) from None
    return PrefixStore("deq_enn", store)


def _first(store, told: list[int]) -> bool:
    """Whether no other rank has failed before.

    Where the store has gone, rank 0 has ended, and has said why if it could. torchrun has then stopped this rank, as
    `told` has it, or stops it within LINGER; where nobody does, it is the first that can speak.
    """
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:
        if told:
            return False
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LINGER)
        signal.signal(signal.SIGTERM, before)
        return True


def _await_all(store, size: int) -> None:
    """Keeps the store until every rank has asked it who speaks, or LINGER is over."""
    deadline = time.monotonic() + LINGER
    with contextlib.suppress(RuntimeError):
        while store.add("failed", 0) < size and time.monotonic() < deadline:
            time.sleep(0.02)


@contextlib.contextmanager
def one_line_where_a_rank_is_gone() -> Iterator[None]:
    """Turns the errors of broken connections, which quote sources and stacks, into advice."""
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if isinstance(error, DistError):
            detail = f" ({str(error).splitlines()[0]})"
        elif "gloo" in str(error):  # it raises plain RuntimeErrors that name its source files
            detail = ""
        else:
            raise
        raise RuntimeError(f"the connection to another rank is lost{detail}; {RESUME}") from None
