"""Writes report.html and report.md of a folder of scripts/reproduce.sh: the paper's claims beside what was measured.

    python scripts/report.py results

The page needs no network and no other file: its figures lie in it.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import ast
import importlib.metadata
import json
import platform
import re
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.experiments.executors import cores
from deq_enn.names import DATASET_TITLES
from deq_enn.reporting.curves import KINDS, write_figures
from deq_enn.reporting.logs import OPTIMIZERS, load
from deq_enn.reporting.markdown import Table
from deq_enn.reporting.page import Picture, render
from deq_enn.reporting.protocols import protocol_finding, protocol_tables, protocols
from deq_enn.reporting.tables import tables
from deq_enn.utils.arguments import OneLineParser, check_folder
from deq_enn.utils.outcome import one_line
from scripts.reproduction.claims import ACCURACY, BOTH_RATES, CLAIMED, KERNELS, OURS, PROTOCOLS, TRAINING
from scripts.reproduction.findings import figure_tables, finding, sweep_finding
from scripts.reproduction.stages import OWN_RATE, ROOT

PAPER = (
    "Ling et al., *Deep Equilibrium Models are Almost Equivalent to Not-so-deep Explicit Models for "
    "High-dimensional Gaussian Mixtures*, ICML 2024, arXiv 2402.02697"
)
TITLE = "Deep equilibrium models and the shallow networks that equal them: a reproduction"


# ---------------------------------------------------------------------------------------------------------------
# what was measured


def read_figure(folder, name):
    """Returns the numbers of a figure, and a sentence on them."""
    path = folder / "figures" / f"{name}.json"
    picture = path.with_suffix(".png")
    if not (picture.exists() and picture.stat().st_size):
        raise ValueError(f"{picture}: missing or empty: delete it and run scripts/reproduce.sh again")
    try:
        record = json.loads(path.read_bytes())
        figure_tables({name: record})  # what is not there is missed here
        return record, finding(record, name)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: not the numbers of that figure ({type(error).__name__}): delete it and run "
            "scripts/reproduce.sh again"
        ) from None


@dataclass
class Section:
    """A section of the report, in the order in which the templates show it."""

    title: str
    level: int = 3
    paper: str = ""
    text: str = ""
    measured: list = field(default_factory=list)
    tables: list = field(default_factory=list)
    pictures: list = field(default_factory=list)
    commands: list = field(default_factory=list)
    missing: list = field(default_factory=list)

    def tell(self, name, record):
        """Adds what was run, or why nothing was."""
        if record["status"] == "done":
            self.commands.append(f"{record['command']}\n# {seconds(record)} s, peak memory {gigabytes(record)} GB")
        else:
            self.missing.append(absence(name, record))


def absence(name, record):
    return f"`{name}` {record['status']}: {record['error']}"


def about(name):
    """Says what a figure shows: the first paragraph of its script's docstring."""
    tree = ast.parse((ROOT / "ck_ntk" / f"{name}.py").read_text(encoding="utf-8"))
    return " ".join((ast.get_docstring(tree) or "").partition("\n\n")[0].split())


def figure_sections(parts, stages, folder):
    """Returns the sections on figures, and a line (part, claim, findings) for each part of it that has been run."""
    sections, lines = [], []
    for title, claim, names in parts:
        names = [name for name in names if name in stages]
        if not names:
            continue
        done = {name: read_figure(folder, name) for name in names if stages[name]["status"] == "done"}
        findings = [sentence for _, sentence in done.values() if sentence]
        section = Section(title, paper=claim, measured=findings)
        section.tables = figure_tables({name: record for name, (record, _) in done.items()})
        section.pictures = [
            Picture(folder / "figures" / f"{name}.png", f"`{name}`. {about(name)}", f"{name}: {about(name)}")
            for name in done
        ]
        for name in names:
            section.tell(name, stages[name])
        sections.append(section)
        if findings:
            lines.append([title, claim, " ".join(findings)])
    return sections, lines


def seconds(record):
    return f"{record['seconds']:.1f}"


def gigabytes(record):
    return f"{record['peak_memory'] / 1e9:.2f}" if record["peak_memory"] else "–"


def sweep_section(name, record, folder):
    """Returns the section of one sweep, its experiments, and a line (section, claim, finding) for each of these."""
    own_rate = name.endswith(OWN_RATE)
    dataset, _, opt = name.removesuffix(OWN_RATE).rpartition("-")
    section = Section(f"{DATASET_TITLES.get(dataset, dataset)}, {OPTIMIZERS[opt]}{', each at its own rate' * own_rate}")
    experiments, lines = [], []
    if record["status"] == "done":
        experiments = load([Path(record["folder"])])
        figures = write_figures(experiments, folder / "figures")
        claimed = CLAIMED if opt == "sgd" and dataset != "gmm" and not own_rate else OURS
        for index, experiment in enumerate(experiments):
            if sentence := sweep_finding(experiment):
                lines.append([section.title, claimed, sentence])
                section.measured.append(sentence)
            section.tables += tables(experiment)
            section.pictures += [
                Picture(figures[index, kind], f"{experiment.title}: test accuracy against {kind[:-1]}")
                for kind in KINDS
            ]
    section.tell(name, record)
    return section, experiments, lines


def protocol_section(both):
    """Returns the section of two protocols side by side, and a line (section, claim, finding) or none."""
    title, sentence = DATASET_TITLES.get(both.own.dataset, both.own.dataset), protocol_finding(both)
    section = Section(title, level=4, measured=[sentence] if sentence else [], tables=protocol_tables(both))
    claimed = CLAIMED if both.own.dataset != "gmm" else OURS
    return section, [[f"{title}: {BOTH_RATES}", claimed, sentence]] if sentence else []


def sweep_sections(stages, folder):
    """Returns the sections on accuracies, and a line (section, claim, finding) for each that has a finding."""
    sections, lines, measured = [], [], []
    for name, record in stages.items():
        if record["kind"] == "sweep":
            section, experiments, more = sweep_section(name, record, folder)
            sections.append(section)
            measured += experiments
            lines += more
    pairs = protocols(measured)
    if pairs:
        sections.append(Section(BOTH_RATES, text=PROTOCOLS))
    for both in pairs:
        section, more = protocol_section(both)
        sections.append(section)
        lines += more
    return sections, lines


def machine():
    """Returns [(what, value)] of this machine and its software."""
    cpu, memory = platform.processor() or platform.machine(), ""
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
        cpu = model[1] if model else cpu
        if kilobytes := re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="utf-8"), re.M):
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
        ("cores", str(cores())),
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
        "Runs that were finished before, in the same folders, are in no stage's seconds: such a sweep took time for "
        "its data alone.",
    )


def read_stages(folder):
    """Reads the records of OUTPUT_PATH/stages.json.

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


def contents(folder, stages):
    """Returns what the templates show: names and texts, tables and pictures."""
    states = [r["status"] for r in stages.values()]
    summary = ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(sorted(states)))
    kernels, kernel_lines = figure_sections(KERNELS, stages, folder)
    sweeps, sweep_lines = sweep_sections(stages, folder)
    training, training_lines = figure_sections(TRAINING, stages, folder)
    parts = [
        {"title": "Kernels", "paper": "", "sections": kernels},
        {"title": "Classification accuracies", "paper": ACCURACY, "sections": sweeps},
        {"title": "Beyond the readout", "paper": "", "sections": training},
    ]
    return {
        "title": TITLE,
        "summary": f"Of {PAPER}. Of {len(stages)} stages: {summary}.",
        "missing": [absence(name, r) for name, r in stages.items() if r["status"] != "done"],
        "overview": Table(
            "What the paper claims, and what was measured",
            ["", "paper", "measured"],
            kernel_lines + sweep_lines + training_lines,
        ),
        "parts": parts if training else parts[:-1],
        "making": [
            stage_table(stages),
            Table("Machine and software of this report", ["what", "value"], [list(line) for line in machine()]),
        ],
    }


def write_report(folder):
    """Writes report.html and report.md into the folder and returns the path of the first.

    Raises
    ------
    ValueError : nothing to report, or logs and numbers that cannot be read, named.
    """
    from deq_enn.utils.files import atomic_write

    folder = Path(folder)
    content = contents(folder, read_stages(folder))
    for name in ("report.md", "report.html"):
        text = render(name, folder=folder, **content)
        with atomic_write(folder / name, "w") as file:
            file.write(text)
    return folder / "report.html"


def write_page(folder, page):
    """Writes the report as a page of docs/, with those of its pictures that the repository has in figures/.

    Raises ValueError as `write_report` does.
    """
    from deq_enn.utils.files import atomic_write

    content = contents(Path(folder), read_stages(folder))
    for part in content["parts"]:
        for section in part["sections"]:
            kept = [replace(picture, path=ROOT / "figures" / picture.path.name) for picture in section.pictures]
            section.pictures = [picture for picture in kept if picture.path.exists()]
    text = render("report.md", folder=Path(page).resolve().parent, **content)
    text = re.sub(r"--dataset_path \S+", "--dataset_path DIR", text).replace("\n.venv/bin/python ", "\npython ")
    with atomic_write(page, "w") as file:
        file.write(text)


def main(argv=None):
    parser = OneLineParser(prog="report.py", description=__doc__)
    parser.add_argument("folder", help="the --output_path of scripts/reproduce.sh")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write a page of docs/ too, with the pictures of figures/ alone"
    )
    arguments = parser.parse_args(argv)
    if arguments.page:
        check_folder(parser, "page", arguments.page.parent)
    with one_line(parser):
        if arguments.page:
            write_page(arguments.folder, arguments.page)
        print(write_report(arguments.folder))


if __name__ == "__main__":
    main()
