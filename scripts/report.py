"""report.html and report.md of a folder that scripts/reproduce.sh wrote: the paper's claims beside what was measured.

    python scripts/report.py results

The page needs no network and no other file: its figures lie in it.
"""

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from curves import KINDS, write_figures  # noqa: E402  (none of these imports torch or matplotlib)
from logs import OPTIMIZERS, load  # noqa: E402
from page import Code, Figure, Heading, Rows, Table, Text, page  # noqa: E402
from plotting import geometric_mean  # noqa: E402
from summarize import Parser  # noqa: E402
from tables import cost_table, difference_table, equality_table, tables  # noqa: E402

PAPER = ("Ling et al., *Deep Equilibrium Models are Almost Equivalent to Not-so-deep Explicit Models for "
         "High-dimensional Gaussian Mixtures*, ICML 2024, arXiv 2402.02697")
# section, what the paper claims, its stages; the authors' slides show pictures without numbers
KERNELS = [
    ("Theorem 1: the conjugate kernel of a DEQ and its equivalent on a Gaussian mixture",
     "‖G − Ḡ‖ is O(n^(−1/2)). A figure of the slides shows the relative error ‖G − Ḡ‖/‖G‖ against n for DEQs of "
     "several activations at σ_a² = 0.2, on a two-class mixture with p/n = 0.8.",
     ["ck_gmm_matching"]),
    ("Theorem 2: the neural tangent kernel of a DEQ and its equivalent on a Gaussian mixture",
     "‖K − K̄‖ is O(n^(−1/2)). The slides state the theorem; the authors' code has a script for its figure.",
     ["gmm_ntk_matching"]),
    ("The same two kernels on images",
     "The authors' code has scripts for both kernels on MNIST; the slides claim nothing beyond mixtures.",
     ["ck_mnist_matching", "mnist_ntk_matching", "cifar10_matching"]),
    ("Example 1: a tanh-DEQ and its hard-tanh network of one hidden layer",
     "‖G − Σ‖ is O(n^(−1/2)) once the activation of the explicit network is matched. A figure of the slides shows "
     "the two kernels to be close.",
     ["gmm_one_layer_matching", "mnist_one_layer_matching"]),
    ("Example 2: a ReLU-DEQ and its leaky-ReLU network of two hidden layers",
     "‖G − Σ‖ is O(n^(−1/2)) once the activations of both layers are matched. A figure of the slides shows the two "
     "kernels to be close.",
     ["gmm_two_layer_relu_matching", "mnist_two_layer_matching"]),
    ("Finite width",
     "No claim: the paper's kernels are those of infinite width. Ours shows how networks of width m approach them.",
     ["finite_width_kernels"]),
    ("Any DEQ",
     "The slides match a tanh-DEQ and a ReLU-DEQ, and say that two hidden layers are needed in general. Ours matches "
     "every activation of the registry.",
     ["any_activation_matching", "matching_map"]),
]
ACCURACY = ("A figure of the slides shows classification accuracies of DEQs and explicit networks trained with SGD; "
            "the authors' code has scripts for MNIST, Fashion-MNIST and CIFAR-10 (features of a VGG16). The take-away "
            "is that the equivalence makes implicit networks explicit and reduces the computation significantly. The "
            "sweeps on a Gaussian mixture, those with Adam, and the three seeds are ours.")
CLAIMED = "A figure of accuracies; the equivalence makes implicit networks explicit, and their computation much less."
NAMES = {"gmm": "Gaussian mixture", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


# ---------------------------------------------------------------------------------------------------------------
# what was measured

def kernel_rows(record, name):
    """Rows [script, curve, slope, error at the least size, at the largest] of a figure's JSON."""
    if "errors" not in record:  # a map, not curves against n
        return []
    sizes, fits = record.get("widths") or record["settings"]["n"], record.get("slopes") or {}
    rows = []
    for curve, errors in record["errors"].items():
        fit = fits.get(curve) or (record.get("slope") if curve == "matched" else None)
        rows.append([f"`{name}`", curve, f"{fit[0]:+.3f} ± {fit[1]:.3f}".replace("-", "−") if fit else "–",
                     *(f"{geometric_mean(errors[i]):.3g} ({sizes[i]})" for i in (0, -1))])
    return rows


def kernel_finding(record, name):
    """A sentence on a figure's JSON, or ""."""
    if "errors" not in record:
        return ""
    errors, sizes = record["errors"], record["settings"].get("n")
    if "matched" in errors:
        matched, unmatched = (geometric_mean(errors[key][-1]) for key in ("matched", "unmatched"))
        slope = f", with slope {signed(record['slope'][0])}" if record.get("slope") else ""
        gap = 1 - min(record["overlaps"])
        return (f"`{name}`: at n = {sizes[-1]} the matched network's kernel is {matched:.2g} from the DEQ's{slope}, "
                f"the unmatched one's {unmatched:.2g}; the overlaps of the two largest eigenvectors are within "
                f"{gap:.1g} of 1.")
    slopes = [fit[0] for fit in (record.get("slopes") or {}).values() if fit]
    if slopes and "relu" in errors:
        last = [geometric_mean(e[-1]) for e in errors.values()]
        return (f"`{name}`: slopes from {signed(min(slopes))} to {signed(max(slopes))} over {len(slopes)} activations; "
                f"at n = {sizes[-1]} errors from {min(last):.2g} to {max(last):.2g}.")
    return ""


def signed(value):
    return f"{value:+.2f}".replace("-", "−")


def kernel_blocks(stages, folder):
    """The section on kernels, and a line (section, claim, findings) for each part of it."""
    blocks, lines = [], []
    for title, claim, names in KERNELS:
        names = [name for name in names if name in stages]
        rows, findings, figures = [], [], []
        for name in names:
            if stages[name]["status"] != "done":
                continue
            path = folder / "figures" / f"{name}.json"
            try:
                record = json.loads(path.read_bytes())
                rows += kernel_rows(record, name)
                findings.append(kernel_finding(record, name))
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{path}: not the numbers of that figure ({type(error).__name__}): delete it and run "
                                 "scripts/reproduce.sh again") from None
            figures.append(Figure(path.with_suffix(".png"), name))
        if not names:
            continue
        blocks += [Heading(3, title), Text(claim, "Paper"),
                   *(Text(finding, "Measured") for finding in findings if finding)]
        if rows:
            size = "width" if names == ["finite_width_kernels"] else "n"
            blocks.append(Rows(Table("Relative spectral error, geometric mean over draws",
                                     ["figure", "curve", f"slope in log {size}", f"error (least {size})",
                                      f"error (largest {size})"], rows)))
        blocks += figures + [block for name in names for block in stage_blocks(name, stages[name])]
        if any(findings):
            lines.append([title, claim, " ".join(filter(None, findings))])
    return blocks, lines


def stage_blocks(name, record):
    if record["status"] == "done":
        return [Code(f"{record['command']}\n# {seconds(record)} s, peak memory {gigabytes(record)} GB")]
    return [Text(f"`{name}` {record['status']}: {record['error']}", "Missing")]


def seconds(record):
    return f"{record['seconds']:.1f}"


def gigabytes(record):
    return f"{record['peak_memory'] / 1e9:.2f}" if record["peak_memory"] else "–"


def sweep_finding(experiment):
    """The paired differences at the largest width and what they show, in a sentence or two, or ""."""
    table, equality, cost = difference_table(experiment), equality_table(experiment), cost_table(experiment)
    if table is None:
        return ""
    width, *cells = table.rows[-1]
    pairs = "; ".join(f"{pair}: {cell}" for pair, cell in zip(table.header[1:], cells))
    verdicts = "; ".join(f"{row[1]}: {row[-1]}" for row in equality.rows if row[0] == width) if equality else \
        "too few seeds for a claim of equality"
    ratios = [f"{row[4]} times ({row[1]})" for row in cost.rows if row[0] == width] if cost else []
    features = f" A DEQ's features take {' and '.join(ratios)} the time of its matched network's." if ratios else ""
    return f"At width {width}, in percentage points: {pairs}. Two one-sided tests: {verdicts}.{features}"


def sweep_blocks(stages, folder):
    """The section on accuracies, and a line (section, claim, finding) for each sweep."""
    blocks, lines = [Text(ACCURACY, "Paper")], []
    for name, record in stages.items():
        if record["kind"] != "sweep":
            continue
        dataset, _, opt = name.rpartition("-")
        title = f"{NAMES.get(dataset, dataset)}, {OPTIMIZERS[opt]}"
        blocks.append(Heading(3, title))
        if record["status"] == "done":
            experiments = load([Path(record["folder"])])
            figures = write_figures(experiments, folder / "figures")
            for index, experiment in enumerate(experiments):
                finding = sweep_finding(experiment)
                if finding:
                    lines.append([title, CLAIMED if opt == "sgd" and dataset != "gmm" else "No claim: ours.", finding])
                    blocks.append(Text(finding, "Measured"))
                blocks += [Rows(table) for table in tables(experiment)]
                blocks += [Figure(figures[index, kind], f"{experiment.title}: test accuracy against {kind[:-1]}")
                           for kind in KINDS]
        blocks += stage_blocks(name, record)
    return blocks, lines


def machine():
    """[(what, value)] of this machine and its software."""
    cpu, memory = platform.processor() or platform.machine(), ""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        cpu = found[1] if found else cpu
        kilobytes = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
        memory = f"{1024 * int(kilobytes[1]) / 1e9:.1f} GB"
    except OSError:  # not Linux
        pass
    try:
        import torch
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    except ImportError:
        device = "unknown"
    return [("date", time.strftime("%Y-%m-%d %H:%M %Z")), ("processor", cpu),
            ("cores", str(len(os.sched_getaffinity(0)))), ("memory", memory or "unknown"), ("GPU", device),
            ("system", f"{platform.system()} {platform.release()}"), ("python", platform.python_version()),
            *((name, importlib.metadata.version(name)) for name in ("torch", "numpy", "scipy", "matplotlib"))]


def stage_table(stages):
    rows = [[f"`{name}`", r["status"], seconds(r) if r["status"] != "skipped" else "–", gigabytes(r),
             str(r.get("processes", "–")), r.get("threads") or "–", r.get("commit") or "–"]
            for name, r in stages.items()]
    total, most = sum(r["seconds"] for r in stages.values()), max(stages.values(), key=lambda r: r["peak_memory"])
    rows.append(["all", "", f"{total:.1f}", gigabytes(most), "", "", ""])
    return Table("Stages: seconds of wall time over all attempts, and peak memory (GB, all processes of the stage)",
                 ["stage", "status", "seconds", "memory", "processes", "OMP_NUM_THREADS", "commit"], rows)


def read_stages(folder):
    """Records of OUTPUT/stages.json.

    Raises
    ------
    ValueError : there are none, or the file is damaged.
    """
    path = Path(folder) / "stages.json"
    if not path.exists():
        raise ValueError(f"{folder}: nothing to report, no stages.json: run scripts/reproduce.sh --output {folder}")
    try:
        stages = json.loads(path.read_bytes())["stages"]
        if any({"status", "seconds", "kind"} - record.keys() for record in stages.values()):
            raise KeyError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{path} is damaged: delete it and run scripts/reproduce.sh again") from None
    if not stages:
        raise ValueError(f"{path}: nothing to report, no stage has been run")
    return stages


def write_report(folder):
    """Write report.html and report.md into the folder; the path of the first.

    Raises
    ------
    ValueError : nothing to report, or logs and numbers that cannot be read, named.
    """
    from utils import atomic_write
    folder = Path(folder)
    stages = read_stages(folder)
    title = "Deep equilibrium models and the shallow networks that equal them: a reproduction"
    states = [r["status"] for r in stages.values()]
    summary = ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(sorted(states)))
    absent = [block for name, r in stages.items() if r["status"] != "done" for block in stage_blocks(name, r)]
    kernels, kernel_lines = kernel_blocks(stages, folder)
    sweeps, sweep_lines = sweep_blocks(stages, folder)
    blocks = [Heading(1, title), Text(f"Of {PAPER}. Of {len(stages)} stages: {summary}."), *absent,
              Rows(Table("What the paper claims, and what was measured", ["", "paper", "measured"],
                         kernel_lines + sweep_lines)),
              Heading(2, "Kernels"), *kernels, Heading(2, "Classification accuracies"), *sweeps,
              Heading(2, "How this was made"), Rows(stage_table(stages)),
              Rows(Table("Machine and software of this report", ["what", "value"], [list(line) for line in machine()]))]
    with atomic_write(folder / "report.md", "w") as file:
        file.write("\n".join(block.markdown(folder) for block in blocks))
    with atomic_write(folder / "report.html", "w") as file:
        file.write(page(blocks, title))
    return folder / "report.html"


def main(argv=None):
    parser = Parser(prog="report.py", description=__doc__)
    parser.add_argument("folder", help="the --output of scripts/reproduce.sh")
    arguments = parser.parse_args(argv)
    try:
        print(write_report(arguments.folder))
    except (ValueError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    main()
