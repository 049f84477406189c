"""Holds the verdict against what happens: 130 cases, their trained networks, the verdict of each, and the report.

    python scripts/calibrate.py cases                                    the list
    python scripts/calibrate.py outcomes --dataset_path data             trains every network of every case
    python scripts/calibrate.py sgd --dataset_path data                  some of them by SGD, and with all weights
    python scripts/calibrate.py verdicts --dataset_path data --budget 10 the verdict of each case, on its training set
    python scripts/calibrate.py pack                                     the above as one file, docs/calibration.json.gz
    python scripts/calibrate.py report                                   tables and figures/calibration.png, from it

Each of the first stages appends a JSON line a case to a file of its own in --output, and passes over the cases that are
there, so that it can be stopped and started again, and verdicts redone without the trainings.
"""

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

PACKED = ROOT / "docs" / "calibration.json.gz"
FIGURE = ROOT / "figures" / "calibration.png"


def append(path: Path, record: dict) -> None:
    """One line in one write; a line that a kill has cut short is closed first."""
    line = json.dumps(record) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict]:
    """The records of a file, without a line that is cut short."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def each_case(arguments, stage, work, chosen):
    """Appends work(case, data) of every chosen case that the stage's file does not have yet."""
    from calibration_cases import load
    path = arguments.output / f"{stage}.jsonl"
    done = {record["case"] for record in read_lines(path)}
    left = [case for case in chosen if case.name not in done]
    for number, case in enumerate(left, 1):
        record = work(case, load(case, arguments.dataset_path))
        append(path, record)
        print(f"{stage} {number} of {len(left)}: {case.name}", flush=True)


def outcomes(arguments):
    import torch
    from calibration_cases import cases
    from calibration_outcomes import outcome
    folder = arguments.output / "deq_right"
    folder.mkdir(parents=True, exist_ok=True)

    def work(case, data):
        record, right = outcome(case, data)
        if right is not None:
            torch.save(right, folder / f"{case.name}.pt")
        return record

    each_case(arguments, "outcomes", work, [c for c in cases() if arguments.data in (None, c.data)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--dataset_path"); parser.add_argument("--output", type=Path); parser.add_argument("--data")
    a = parser.parse_args()
    outcomes(a)
