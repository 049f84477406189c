"""The sections `conv` and `conv_networks` of bench.py time convolutional DEQs: their kernels, and the networks.

Kernels are timed beside X X^T of the same pixels, those of explicit networks too. A DEQ is timed beside its match.
"""

if __name__ == "__main__":
    raise SystemExit("conv.py is a part of scripts/bench.py: run that")

import math
import time

from deq_enn.reporting.markdown import head, row

IMAGES, BATCH = 1000, 50  # images, and of them in a batch, that networks are timed with


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
    yield from explicit(compiled)
    yield "\nGrowth of the time of all pairs, relu, σ_a² = 0.9, log-log slopes:\n"
    yield head("of", "from", "to", "slope")
    relu = ACTIVATIONS["relu"]

    def whole(n, side):
        blocks = conv_blocks(smooth(n, side), relu, 0.9)
        return processor_seconds(lambda: blocks.both())

    yield row("n, 10 × 10", "64", "256", f"{math.log(whole(256, 10) / whole(64, 10), 4):.2f}")
    yield row("P, n = 64", "8 × 8", "24 × 24", f"{math.log(whole(64, 24) / whole(64, 8), 9):.2f}")
    torch.set_num_threads(threads)


def explicit(compiled):
    """Yields the table of explicit networks, whose two precisions take turns."""
    import torch

    from deq_enn.kernels import conv_explicit as module
    from deq_enn.kernels.compiled import library
    from deq_enn.kernels.conv_explicit import conv_explicit_blocks
    from deq_enn.matching.families import match
    from deq_enn.theory.activations import ACTIVATIONS

    yield "\nExplicit networks, us a pair and core:\n"
    yield head("layers", "images", "in C", "in C, float32", "in torch", "in torch, float32")
    names = {f"{name}, {depth} of 3 × 3": (name, depth) for name in ("relu", "tanh", "gelu") for depth in (1, 2, 3)}
    networks = {title: ([ACTIVATIONS[name]] * depth, [3] * depth) for title, (name, depth) in names.items()}
    networks["match of relu, σ_a² = 0.5"] = match(ACTIVATIONS["relu"], 0.5, 1.0).layers, [3, 1]
    networks["hardtanh, 1 of 3 × 3"] = [ACTIVATIONS["hardtanh"]], [3]
    networks["erf, 2 of 3 × 3"] = [ACTIVATIONS["erf"]] * 2, [3] * 2
    for title, (layers, sizes) in networks.items():
        for side, channels in ((14, 1), (28, 1), (16, 3)):
            kinked = all(f.slopes and f.kinks in ((), (0.0,)) for f in layers)
            if side != 14 and title not in ("relu, 2 of 3 × 3", "tanh, 2 of 3 × 3"):
                continue
            cells, n = [], 64
            x = smooth(2 * n, side, channels)
            for way in (compiled, None) if kinked else (compiled,):
                module.library = lambda way=way: way
                made = [
                    conv_explicit_blocks(x[:n], layers, sizes, other=x[n:], dtype=dtype)
                    for dtype in (torch.float64, torch.float32)
                ]
                turns = [[processor_seconds(blocks.both, 1) for blocks in made] for _ in range(4)]
                cells += [f"{1e6 * min(times) / n**2:.1f}" for times in zip(*turns)]
            yield row(title, f"{side} × {side} × {channels}", *cells, *[""] * (4 - len(cells)))
    module.library = library


def conv_networks():
    """Times a convolutional DEQ and its match by turns, batch by batch."""
    import torch

    from deq_enn.networks.conv_enn import build_conv
    from deq_enn.networks.cost import features, training_step
    from deq_enn.theory.equilibrium import estimate_image_tau0

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = smooth(IMAGES, 14).float()
    tau0 = estimate_image_tau0(x)
    yield f"{IMAGES:,} images of 14 × 14, relu, σ_a² = 0.5, batches of {BATCH}; seconds of one core.\n"
    yield head("channels", "job", "DEQ", "match", "DEQ / match", "of single batches")
    for channels in (16, 64, 128):
        pair = [
            build_conv(name, (1, 14, 14), channels, 10, 0.5, "relu", tau0) for name in ("conv_deq", "matched_conv_enn")
        ]
        for title, job in (("features", features), ("an epoch, every weight", training_step)):
            times = []
            for start in range(0, IMAGES, BATCH):
                calls = [job(network, x[start : start + BATCH]) for network in pair]
                if not start:
                    [call() for call in calls]  # the first is slower
                times.append([processor_seconds(call, 1) for call in calls])
            deq, match = map(sum, zip(*times))
            ratios = sorted(a / b for a, b in times)
            middle = f"{ratios[len(ratios) // 4]:.1f} to {ratios[-1 - len(ratios) // 4]:.1f}"
            yield row(str(channels), title, f"{deq:.2f}", f"{match:.3f}", f"{deq / match:.1f}", middle)
    torch.set_num_threads(threads)
    yield "\nThe last column is the middle half of the ratios."
