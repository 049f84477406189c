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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.reporting.curves import KINDS, write_figures
from deq_enn.reporting.logs import OPTIMIZERS, load
from deq_enn.reporting.page import Code, Figure, Heading, Rows, Table, Text, page
from deq_enn.reporting.protocols import protocol_finding, protocol_tables, protocols
from deq_enn.reporting.tables import tables
from deq_enn.utils.arguments import OneLineParser
from scripts.reproduction.claims import (
    ACCURACY,
    BOTH_RATES,
    CLAIMED,
    KERNELS,
    OURS,
    PROTOCOLS,
    TRAINING,
    figure_tables,
    finding,
    sweep_finding,
)
from scripts.reproduction.stages import OWN_RATE

PAPER = (
    "Ling et al., *Deep Equilibrium Models are Almost Equivalent to Not-so-deep Explicit Models for "
    "High-dimensional Gaussian Mixtures*, ICML 2024, arXiv 2402.02697"
)
NAMES = {"gmm": "Gaussian mixture", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


# ---------------------------------------------------------------------------------------------------------------
# what was measured


def read_figure(folder, name):
    """The numbers of a figure, and a sentence on them."""
    path = folder / "figures" / f"{name}.json"
    try:
        record = json.loads(path.read_bytes())
        figure_tables({name: record})  # what is not there is missed here
        return record, finding(record, name)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: not the numbers of that figure ({type(error).__name__}): delete it and run "
            "scripts/reproduce.sh again"
        ) from None


def figure_blocks(parts, stages, folder):
    """The section on figures, and a line (part, claim, findings) for each part of it that has been run."""
    blocks, lines = [], []
    for title, claim, names in parts:
        names = [name for name in names if name in stages]
        if not names:
            continue
        done = {name: read_figure(folder, name) for name in names if stages[name]["status"] == "done"}
        findings = [sentence for _, sentence in done.values() if sentence]
        blocks += [Heading(3, title), Text(claim, "Paper"), *(Text(sentence, "Measured") for sentence in findings)]
        blocks += [Rows(table) for table in figure_tables({name: record for name, (record, _) in done.items()})]
        blocks += [Figure(folder / "figures" / f"{name}.png", name) for name in done]
        blocks += [block for name in names for block in stage_blocks(name, stages[name])]
        if findings:
            lines.append([title, claim, " ".join(findings)])
    return blocks, lines


def stage_blocks(name, record):
    if record["status"] == "done":
        return [Code(f"{record['command']}\n# {seconds(record)} s, peak memory {gigabytes(record)} GB")]
    return [Text(f"`{name}` {record['status']}: {record['error']}", "Missing")]


def seconds(record):
    return f"{record['seconds']:.1f}"


def gigabytes(record):
    return f"{record['peak_memory'] / 1e9:.2f}" if record["peak_memory"] else "–"


def sweep_blocks(stages, folder):
    """The section on accuracies, and a line (section, claim, finding) for each sweep and each two protocols."""
    blocks, lines, measured = [Text(ACCURACY, "Paper")], [], []
    for name, record in stages.items():
        if record["kind"] != "sweep":
            continue
        own_rate = name.endswith(OWN_RATE)
        dataset, _, opt = name.removesuffix(OWN_RATE).rpartition("-")
        title = f"{NAMES.get(dataset, dataset)}, {OPTIMIZERS[opt]}{', each at its own rate' * own_rate}"
        blocks.append(Heading(3, title))
        if record["status"] == "done":
            experiments = load([Path(record["folder"])])
            measured += experiments
            figures = write_figures(experiments, folder / "figures")
            claimed = CLAIMED if opt == "sgd" and dataset != "gmm" and not own_rate else OURS
            for index, experiment in enumerate(experiments):
                finding = sweep_finding(experiment)
                if finding:
                    lines.append([title, claimed, finding])
                    blocks.append(Text(finding, "Measured"))
                blocks += [Rows(table) for table in tables(experiment)]
                blocks += [
                    Figure(figures[index, kind], f"{experiment.title}: test accuracy against {kind[:-1]}")
                    for kind in KINDS
                ]
        blocks += stage_blocks(name, record)
    found = protocols(measured)
    if found:
        blocks += [Heading(3, BOTH_RATES), Text(PROTOCOLS)]
    for both in found:
        title, finding = NAMES.get(both.own.dataset, both.own.dataset), protocol_finding(both)
        blocks.append(Heading(4, title))
        if finding:
            lines.append([f"{title}: {BOTH_RATES}", CLAIMED if both.own.dataset != "gmm" else OURS, finding])
            blocks.append(Text(finding, "Measured"))
        blocks += [Rows(table) for table in protocol_tables(both)]
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
    return [
        ("date", time.strftime("%Y-%m-%d %H:%M %Z")),
        ("processor", cpu),
        ("cores", str(len(os.sched_getaffinity(0)))),
        ("memory", memory or "unknown"),
        ("GPU", device),
        ("system", f"{platform.system()} {platform.release()}"),
        ("python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in ("torch", "numpy", "scipy", "matplotlib")),
    ]


def stage_table(stages):
    rows = [
        [
            f"`{name}`",
            r["status"],
            seconds(r) if r["status"] != "skipped" else "–",
            gigabytes(r),
            str(r.get("processes", "–")),
            r.get("threads") or "–",
            r.get("commit") or "–",
        ]
        for name, r in stages.items()
    ]
    total, most = sum(r["seconds"] for r in stages.values()), max(stages.values(), key=lambda r: r["peak_memory"])
    rows.append(["all", "", f"{total:.1f}", gigabytes(most), "", "", ""])
    return Table(
        "Stages: seconds of wall time over all attempts, and peak memory (GB, all processes of the stage)",
        ["stage", "status", "seconds", "memory", "processes", "OMP_NUM_THREADS", "commit"],
        rows,
    )


def read_stages(folder):
    """The records of OUTPUT_PATH/stages.json are read.

    Raises
    ------
    ValueError : there are none, or the file is damaged.
    """
    path = Path(folder) / "stages.json"
    if not path.exists():
        raise ValueError(
            f"{folder}: nothing to report, no stages.json: run scripts/reproduce.sh --output_path {folder}"
        )
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
    from deq_enn.utils.files import atomic_write

    folder = Path(folder)
    stages = read_stages(folder)
    title = "Deep equilibrium models and the shallow networks that equal them: a reproduction"
    states = [r["status"] for r in stages.values()]
    summary = ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(sorted(states)))
    absent = [block for name, r in stages.items() if r["status"] != "done" for block in stage_blocks(name, r)]
    kernels, kernel_lines = figure_blocks(KERNELS, stages, folder)
    sweeps, sweep_lines = sweep_blocks(stages, folder)
    training, training_lines = figure_blocks(TRAINING, stages, folder)
    if training:
        training.insert(0, Heading(2, "Beyond the readout"))
    blocks = [
        Heading(1, title),
        Text(f"Of {PAPER}. Of {len(stages)} stages: {summary}."),
        *absent,
        Rows(
            Table(
                "What the paper claims, and what was measured",
                ["", "paper", "measured"],
                kernel_lines + sweep_lines + training_lines,
            )
        ),
        Heading(2, "Kernels"),
        *kernels,
        Heading(2, "Classification accuracies"),
        *sweeps,
        *training,
        Heading(2, "How this was made"),
        Rows(stage_table(stages)),
        Rows(Table("Machine and software of this report", ["what", "value"], [list(line) for line in machine()])),
    ]
    with atomic_write(folder / "report.md", "w") as file:
        file.write("\n".join(block.markdown(folder) for block in blocks))
    with atomic_write(folder / "report.html", "w") as file:
        file.write(page(blocks, title))
    return folder / "report.html"


def main(argv=None):
    parser = OneLineParser(prog="report.py", description=__doc__)
    parser.add_argument("folder", help="the --output_path of scripts/reproduce.sh")
    arguments = parser.parse_args(argv)
    try:
        print(write_report(arguments.folder))
    except (ValueError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    main()
