"""Measures ratios of speed, each in one process beside its floor or its alternative; times are this machine's.

python scripts/bench.py                     every section
python scripts/bench.py features roots      some of them
python scripts/bench.py --report            all but `roots`, as one Markdown page in results/bench.md

start      the command line: --help and a bad flag, against the bare interpreter
matching   tau, coefficients and match of a DEQ: the paper's two, one by quadrature, one tangent kernel
kernels    exact kernels against X X^T and against Monte Carlo
conv       kernels of convolutional DEQs and networks, a pair of images beside X X^T, and growth in n and in pixels
conv_networks  features and training of a convolutional DEQ, against its match
kernel_machine  kernels of kernel machines against X X^T, their solvers, two ranks against one process
features   DEQ and ENN features against the float32 matrix-product peak
cost       DEQ against matched ENN: seconds and memory of inference, of features, and of training every weight
solver     a forward solve to 1e-6: Picard, Anderson, and torchdeq's where it is installed (pip install torchdeq)
products   products of float32 matrices by MKL, by oneDNN and in bfloat16
readout    an epoch on 60,000 x m features against one product with them
memory     peak memory of four jobs, each in a process of its own
growth     log-log slopes of time in n, p and m
roots      test accuracy of the two roots of the leaky-ReLU match, beside their DEQ
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import platform
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.reporting.markdown import head, row
from deq_enn.utils.arguments import OneLineParser, check_folder
from deq_enn.utils.outcome import one_line
from scripts.benchmarks.conv import conv, conv_networks
from scripts.benchmarks.growth import growth
from scripts.benchmarks.kernels import kernels, matching
from scripts.benchmarks.machines import kernel_machine
from scripts.benchmarks.networks import features, products, readout, roots, solver
from scripts.benchmarks.timing import noise, seconds

ROOT = Path(__file__).resolve().parents[1]


def start():
    def command(*argv):
        return seconds(lambda: subprocess.run([sys.executable, *argv], capture_output=True))

    bare = command("-c", "pass")
    yield head("command", "seconds", "of the bare interpreter")
    for argv in (["--help"], ["--dim", "0"]):
        taken = command(str(ROOT / "main.py"), *argv)
        yield row(f"`main.py {' '.join(argv)}`", f"{taken:.3f}", f"{taken / bare:.1f}")


def peak_memory(program):
    """Returns the bytes that a process of its own takes at most."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}; "
        "from scripts.bench import high_water; print(high_water())"
    )
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def high_water():
    """Returns the bytes that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # not getrusage, which on Linux begins with what the parent held
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def cost():
    from deq_enn.networks.build import build_model
    from deq_enn.networks.cost import costs

    titles = {
        "inference": "inference, one row",
        "features": "features of {} rows",
        "training_step": "training step, {} rows",
    }
    yield head("dim", "DEQ", "job", "DEQ, ms", "matched ENN, ms", "DEQ / ENN", "DEQ, MB", "matched ENN, MB")
    for dim in (1024, 4096):
        for title, pair in (("ReLU", ("inn", "l_relu_enn")), ("tanh", ("tanh_inn", "h_tanh_enn"))):
            measured = costs(*(build_model(name, 784, dim, 10, 0.2) for name in pair), noise(512), budget=30)
            for job, rows in measured["rows"].items():
                times = (f"{float(f'{1e3 * t:.3g}'):g}" for t in measured["seconds"][job].values())  # three digits
                yield row(
                    str(dim),
                    title,
                    titles[job].format(rows),
                    *times,
                    f"{measured['ratios'][job]:.1f}",
                    *(f"{m / 1e6:.0f}" for m in measured["memory"][job].values()),
                )
    yield "\nMemory: the weights, and the most that the job holds beside them."


JOBS = {
    "import torch": "import torch",
    "τ_0 of 60,000 × 784": "import torch, deq_enn; deq_enn.estimate_tau0(torch.randn(60000, 784))",
    "exact CK and NTK, relu, n = 4000, p = 5000": "import torch, deq_enn; "
    "X = torch.randn(4000, 5000).double() / 5000**0.5; deq_enn.implicit_kernels(X, deq_enn.ACTIVATIONS['relu'], 0.2)",
    "DEQ features, 60,000 × 784 to dim 1024": "import torch, deq_enn; "
    "from deq_enn.training.readout import extract_features; "
    "extract_features(deq_enn.build_model('inn', 784, 1024, 10, 0.2), torch.randn(60000, 784) / 28)",
}


def memory():
    yield head("job", "peak memory", "of the arrays in and out")
    floor = {
        "τ_0 of 60,000 × 784": 60000 * 784 * 4,
        "exact CK and NTK, relu, n = 4000, p = 5000": 8 * 4000 * (5000 + 2 * 4000),
        "DEQ features, 60,000 × 784 to dim 1024": 4 * 60000 * (784 + 1024),
    }
    bare = None
    for name, job in JOBS.items():
        peak = peak_memory(job)
        bare = bare or peak
        yield row(
            name,
            f"{peak / 2**30:.2f} GB",
            f"{(peak - bare) / floor[name]:.2f} beyond torch's own" if name in floor else "",
        )


SECTIONS = {
    f.__name__: f
    for f in (
        start,
        matching,
        kernels,
        conv,
        conv_networks,
        kernel_machine,
        features,
        cost,
        solver,
        products,
        readout,
        memory,
        growth,
        roots,
    )  # fmt: skip
}


def machine():
    """Names the processor, cores and versions in one line."""
    import numpy
    import scipy
    import torch

    model = (
        next(
            (
                line.partition(":")[2].strip()
                for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
                if line.startswith("model name")
            ),
            "",
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return (
        f"{model or platform.machine()}, {torch.get_num_threads()} threads; python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {numpy.__version__}, scipy {scipy.__version__}"
    )


def main():
    parser = OneLineParser(prog="bench.py", description=__doc__)
    parser.add_argument("section", nargs="*", metavar="section", help=f"from {', '.join(SECTIONS)} (default: all)")
    parser.add_argument(
        "--report",
        nargs="?",
        const=ROOT / "results" / "bench.md",
        type=Path,
        metavar="FILE",
        help="write the sections (default: all but roots) as one page (default: results/bench.md)",
    )
    args = parser.parse_args()
    chosen = args.section or [name for name in SECTIONS if not (args.report and name == "roots")]
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    if args.report and args.report.is_dir():
        parser.error(f"--report {args.report} is a folder: name a file")
    if args.report:
        check_folder(parser, "report", args.report.parent)
    with one_line(parser):
        measure(chosen, args.report)


def measure(chosen, report):
    """Prints the sections, and writes them on one page where that has a path."""
    command = f"python scripts/bench.py {' '.join(sys.argv[1:])}"
    page = [f"# Ratios of speed\n\n`{command}` on {machine()}"] if report else []
    for name in chosen:
        page.append(f"\n## {name}\n")
        print(page[-1], flush=True)
        for line in SECTIONS[name]():
            page.append(line)
            print(line, flush=True)
    if report:
        from deq_enn.utils.files import atomic_write

        with atomic_write(report, "w") as file:
            file.write("\n".join(page) + "\n")
        print(f"\n{report}")


if __name__ == "__main__":
    main()
