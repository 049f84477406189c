"""The section `conv` of bench.py times the kernels of convolutional DEQs beside X X^T of the same pixels."""

if __name__ == "__main__":
    raise SystemExit("conv.py is a part of scripts/bench.py: run that")

import math
import time

from deq_enn.reporting.markdown import head, row


def processor_seconds(call, repeats=5):
    """Returns the least processor time of a call, which other programs on the machine disturb less than the clock."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def smooth(n, side, channels=1):
    """Returns n images (n, channels, side, side) of unit variance whose pixels go together as those of photographs."""
    import torch

    x = torch.randn(n, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    return x / x.std()


def conv():
    import torch

    from deq_enn.kernels import conv as module
    from deq_enn.kernels.box_filter import BoxFilter
    from deq_enn.kernels.compiled import library
    from deq_enn.kernels.conv import conv_blocks
    from deq_enn.theory.activations import ACTIVATIONS

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield head("DEQ", "images", "solved in", "us a pair and core", "of X X^T", "of one box filter", "set up, s")
    compiled = library()
    for name, s, side, channels in (
        ("relu", 0.2, 14, 1), ("relu", 0.9, 14, 1), ("relu", 0.9, 28, 1), ("relu", 0.9, 16, 3), ("tanh", 0.9, 14, 1),
    ):  # fmt: skip
        for way in ("C", "C, float32", "torch"):
            if way != "torch" and not compiled or way == "torch" and name == "tanh":
                continue
            module.library = (lambda: None) if way == "torch" else (lambda: compiled)
            n, dtype = 32 if way == "torch" else 64, torch.float32 if "float32" in way else torch.float64
            x = smooth(2 * n, side, channels)
            product = processor_seconds(lambda: torch.mm(x.flatten(1), x.flatten(1).T)) / (2 * n) ** 2
            M, fields = BoxFilter((side, side), 3, "zero"), torch.rand(side, side, 256, dtype=torch.float64)
            filtered = processor_seconds(lambda: M(fields)) / fields.shape[2]
            start = time.process_time()
            blocks = conv_blocks(x[:n], ACTIVATIONS[name], s, other=x[n:], dtype=dtype)
            ready = time.process_time() - start
            taken = processor_seconds(lambda: blocks.both()) / n**2
            yield row(
                f"{name}, σ_a² = {s:g}", f"{side} × {side} × {channels}", way, f"{1e6 * taken:.1f}",
                f"{taken / product:.0f}", f"{taken / filtered:.0f}", f"{ready:.1f}",
            )  # fmt: skip
    module.library = library
    yield "\nGrowth of the time of all pairs, relu, σ_a² = 0.9, log-log slopes:\n"
    yield head("of", "from", "to", "slope")
    relu = ACTIVATIONS["relu"]

    def whole(n, side):
        blocks = conv_blocks(smooth(n, side), relu, 0.9)
        return processor_seconds(lambda: blocks.both())

    yield row("n, 10 × 10", "64", "256", f"{math.log(whole(256, 10) / whole(64, 10), 4):.2f}")
    yield row("P, n = 64", "8 × 8", "24 × 24", f"{math.log(whole(64, 24) / whole(64, 8), 9):.2f}")
    torch.set_num_threads(threads)
