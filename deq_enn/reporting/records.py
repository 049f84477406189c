"""The records of runs are read here, without torch: `metrics.jsonl` and other files of one JSON object a line."""

import json
from pathlib import Path


def read_lines(path: Path) -> list[dict]:
    """Returns the records of a file of JSON lines, none without a file.

    A line that is no record is passed over, such as one that a kill or a power cut has left.
    """
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def read_metrics(output_path: Path | str) -> list[dict]:
    """Returns the records of metrics.jsonl that tell of a run: how it began, and its epochs.

    Others are passed over: many programs call a file so.
    """
    return [record for record in read_lines(Path(output_path) / "metrics.jsonl") if _is_of_a_run(record)]


def _is_of_a_run(record: dict) -> bool:
    known = record.keys() >= {"event", "run", "dataset", "model", "dim", "seed"}
    if known and record["event"] == "run":
        return isinstance(record.get("config"), dict)
    return known and (record["event"] != "epoch" or isinstance(record.get("epoch"), int))
