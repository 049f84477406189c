"""The section `kernel_machine` of bench.py forms, factorises and solves kernels over ranks, each against its floor.

As a program, `python -m scripts.benchmarks.machines RANK SIZE PORT N`, it is one rank of a shared machine, and prints
seconds.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__" and len(sys.argv) != 5:
    raise SystemExit("machines.py is a part of scripts/bench.py: run that")

from deq_enn.reporting.markdown import head, row
from scripts.benchmarks.timing import noise

ROOT = Path(__file__).resolve().parents[2]

P = 784  # inputs of the networks


def network(name):
    from deq_enn.networks.build import build_model

    return build_model(name, P, 1, 10, 0.2)


def formed(name, X, kernel):
    from deq_enn.machines.block_rows import Layout, MemoryRows, form
    from deq_enn.machines.run import float32_blocks

    blocks, rows = float32_blocks(network(name), X), MemoryRows(Layout(len(X)))
    form(blocks, kernel, rows)
    return blocks, rows


def gram(X, height=1080):
    """Computes the lower triangle of X X^T, in the block rows and the precision in which it enters a kernel."""
    import torch

    X = X.double()
    for start in range(0, len(X), height):
        torch.mm(X[start : start + height], X[: start + height].T)


def in_turns(calls, repeats=3):
    """Returns the least seconds of each call; they take turns, as a shared machine's speed drifts."""
    least = [float("inf")] * len(calls)
    for _ in range(repeats):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[place] = min(least[place], time.perf_counter() - start)
    return least


def formation(n=5000):
    yield head("network", "kernel", "kernel formation / X X^T")
    X = noise(n)
    for name in ("inn", "l_relu_enn", "relu_enn", "tanh_inn", "h_tanh_enn"):
        for kernel in ("ck", "ntk"):
            floor, taken = in_turns([lambda: gram(X), lambda: formed(name, X, kernel)])
            yield row(name, kernel.upper(), f"{taken / floor:.2f}")


def factorisation(n=6000):
    import torch

    from deq_enn.machines.block_rows import Layout, MemoryRows
    from deq_enn.machines.cholesky import factorise

    X = noise(n)
    K = X @ X.T
    K.diagonal().add_(1)

    def ours():
        rows = MemoryRows(Layout(n))
        for i in range(rows.layout.blocks):
            r = rows.layout.rows(i)
            rows.write(i, K[r, : r.stop].clone())
        factorise(rows, 0.0)

    lapack, taken = in_turns([lambda: torch.linalg.cholesky_ex(K), ours])
    yield "\n" + head("factorisation of block rows", "of n", "/ LAPACK's of the square")
    yield row("float32", str(n), f"{taken / lapack:.2f}")


def shared(rank, size, n):
    """Returns the seconds of kernel, fit by conjugate gradients, and predictions, on this rank."""
    import torch

    from deq_enn.machines.block_rows import Layout, MemoryRows, form
    from deq_enn.machines.conjugate_gradients import fit_shared, predict_shared
    from deq_enn.machines.run import blocks_of
    from deq_enn.utils.team import Team

    generator = torch.Generator().manual_seed(0)
    X, other = (torch.randn(m, P, generator=generator) / P**0.5 for m in (n, 1000))
    labels, team, model = torch.arange(n) % 10, Team(rank, size), network("inn")

    def once():
        blocks, rows = blocks_of(model, X), MemoryRows(Layout(n, 360, rank, size))
        form(blocks, "ck", rows)
        machine = fit_shared(blocks, rows, labels, 10, "ck", 1e-2, team)
        predict_shared(machine, blocks_of(model, X, other), team)

    return in_turns([once])[0]


def ranks(sizes=(3000, 8000)):
    def world(size, threads, n):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "scripts.benchmarks.machines", str(rank), str(size), port, str(n)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        return max(float(process.communicate()[0]) for process in started)

    yield "\n" + head("kernel, conjugate gradients and predictions", "two ranks of one thread / one process of two")
    for n in sizes:
        pairs = [(world(2, 1, n), world(1, 2, n)) for _ in range(2)]
        yield row(f"n = {n}", f"{min(a for a, _ in pairs) / min(b for _, b in pairs):.2f}")


def kernel_machine():
    yield from formation()
    yield from factorisation()
    yield from ranks()


if __name__ == "__main__":
    import torch.distributed as dist

    mine, among, where, samples = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{where}", rank=int(mine), world_size=int(among))
    print(shared(int(mine), int(among), int(samples)))
    dist.destroy_process_group()
