"""Holds the verdict against what happens: cases whose networks are trained for real, and the verdict of each.

    python scripts/calibrate.py cases                         the list
    python scripts/calibrate.py outcomes --dataset_path data  trains the networks of every case, readouts solved exactly
    python scripts/calibrate.py verdicts --dataset_path data  the verdict of each, on its training set
    python scripts/calibrate.py again --dataset_path data     the same once more, kept beside the first verdicts
    python scripts/calibrate.py sgd --dataset_path data       some of the networks by SGD, a few with all weights
    python scripts/calibrate.py left_out --dataset_path data  leave-one-out beside new samples, on data drawn anew
    python scripts/calibrate.py pack                          all of that as one file, docs/calibration.json.gz
    python scripts/calibrate.py constants                     those of the interval, set on one half of the cases
    python scripts/calibrate.py report                        tables, and figures/calibration.png of the blind rounds

The last two read the packed file alone. The stages before it append one JSON line a case to a file of their own in
--output_path and pass over the cases that are there. So a stage that was stopped goes on, and verdicts can be redone
without the trainings. `outcomes` once more after `verdicts` trains the networks that a verdict has chosen and that were
not trained before. The trainings of the first 131 cases take some 15 minutes of one core, and each verdict --budget
seconds. `cases`, `outcomes`, `verdicts`, `again` and `constants` take the fresh cases, which came later, or those of
--cases; those of `--cases more`, `--cases blind` and `--cases blind2` set no constant.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import gzip
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.utils.arguments import OneLineParser, check_folder, duration, old_spelling
from deq_enn.utils.outcome import one_line

ROOT = Path(__file__).resolve().parents[1]
PACKED = ROOT / "docs" / "calibration.json.gz"
FIGURE = ROOT / "figures" / "calibration.png"
STAGES = ("cases", "outcomes", "verdicts", "again", "sgd", "left_out", "pack", "constants", "report")


def append(path: Path, record: dict) -> None:
    """Appends one line in one write; a line that a kill has cut short is closed first."""
    line = json.dumps(record) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def records_of(arguments, *stages) -> dict[str, list[dict]]:
    """Returns the records of each stage so far."""
    from deq_enn.reporting.records import read_lines

    return {stage: read_lines(arguments.output_path / f"{stage}.jsonl") for stage in stages}


def chosen_cases(arguments):
    """Returns the cases of --cases."""
    from scripts.calibration.blind import blind_cases, copies_cases, second_blind_cases
    from scripts.calibration.cases import cases
    from scripts.calibration.fresh import fresh_cases
    from scripts.calibration.more_samples import large_cases

    of = {"fresh": (fresh_cases,), "more": (large_cases,), "copies": (copies_cases,), "first": (cases,)}
    of |= {"blind": (blind_cases,), "blind2": (second_blind_cases,)}
    of["all"] = fresh_cases, copies_cases, cases
    return [case for make in of[arguments.cases] for case in make()]


def list_cases(arguments):
    from scripts.calibration.cases import sets_constants

    for case in chosen_cases(arguments):
        print(
            f"{case.data:<16}{case.activation:<12}{case.sigma_a2:<6g}width {case.width:<6}n {case.n:<8}"
            f"{'constants' if sets_constants(case.name) else 'report'}"
        )


def _each(arguments, stage, chosen, work):
    """Appends work(case, data) of every chosen case to the stage's file."""
    from scripts.calibration.cases import load
    from scripts.calibration.fresh import FreshCase, load_fresh

    for number, case in enumerate(chosen, 1):
        data = (load_fresh if isinstance(case, FreshCase) else load)(case, arguments.dataset_path)
        append(arguments.output_path / f"{stage}.jsonl", work(case, data))
        print(f"{stage}: {number} of {len(chosen)}, {case.name}", flush=True)


def _left(arguments, stage, chosen):
    done = {record["case"] for record in records_of(arguments, stage)[stage]}
    return [case for case in chosen if case.name not in done]


def outcomes(arguments):
    import torch

    from scripts.calibration.analysis import joined
    from scripts.calibration.outcomes import outcome

    cases = chosen_cases(arguments)

    def kept(case):
        return arguments.output_path / "deq_right" / f"{case.name}.pt"

    def work(case, data, names=None):
        record, right = outcome(case, data, names, torch.load(kept(case), weights_only=True) if names else None)
        if right is not None:
            kept(case).parent.mkdir(exist_ok=True)
            torch.save(right, kept(case))
        return record

    _each(arguments, "outcomes", _left(arguments, "outcomes", cases), work)
    for of in ("draw", "mean"):
        held = joined(records_of(arguments, "outcomes", "verdicts"), of=of)
        missing = {case.case: case.chosen.name for case in held if case.chosen and case.chosen.loss is None}
        _each(
            arguments,
            "outcomes",
            [case for case in cases if case.name in missing],
            lambda case, data, missing=missing: work(case, data, [missing[case.name]]),
        )


def verdicts(arguments):
    """Makes the verdicts, or those of the stage `again`."""
    from scripts.calibration.verdicts import verdict_of

    _each(
        arguments,
        arguments.stage,
        _left(arguments, arguments.stage, chosen_cases(arguments)),
        lambda case, data: verdict_of(case, data, arguments.budget),
    )


def sgd(arguments):
    from scripts.calibration.outcomes import sgd_cases, trained

    chosen = sgd_cases()
    _each(arguments, "sgd", _left(arguments, "sgd", chosen), lambda case, data: trained(case, data, **chosen[case]))


def left_out(arguments):
    from scripts.calibration.left_out import held_against_new_samples, repeated_cases

    chosen = _left(arguments, "left_out", repeated_cases())
    for number, case in enumerate(chosen, 1):
        append(arguments.output_path / "left_out.jsonl", held_against_new_samples(case, arguments.dataset_path))
        print(f"left_out: {number} of {len(chosen)}, {case.name}", flush=True)


def pack(arguments):
    from deq_enn.utils.files import atomic_write
    from scripts.calibration.analysis import merged

    lines = records_of(arguments, "outcomes", "verdicts", "again", "sgd", "left_out")
    if not any(lines.values()):
        raise ValueError(f"{arguments.output_path}: no records there; make them with the other stages")
    if arguments.packed.exists():  # the other cases stay
        before = read_packed(arguments.packed)
        lines = {stage: before.get(stage, []) + records for stage, records in lines.items()}
    content = {stage: list(merged(records).values()) for stage, records in lines.items()}
    with atomic_write(arguments.packed) as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(json.dumps(_rounded(content)).encode())
    print(f"{arguments.packed}: {', '.join(f'{len(records)} {stage}' for stage, records in content.items())}")


def _rounded(value):
    """Returns the value with floats of six digits, which is all that is known of them."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def read_packed(path: Path) -> dict:
    try:
        with gzip.open(path) as file:
            return json.load(file)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); make it with the stage pack") from None


def constants(arguments):
    from scripts.calibration.analysis import set_constants
    from scripts.calibration.cases import sets_constants

    half = {case.name for case in chosen_cases(arguments) if sets_constants(case.name)}
    chosen = set_constants(read_packed(arguments.packed), half)
    for name, value in vars(chosen).items():
        print(f"    {name}: float = {value:.3g}")


def report(arguments):
    from scripts.calibration.analysis import joined
    from scripts.calibration.figure import draw
    from scripts.calibration.report import report_lines
    from scripts.calibration.rounds import by_todays_code

    packed = read_packed(arguments.packed)
    print("\n".join(report_lines(packed)))
    draw(by_todays_code(packed) or joined(packed), arguments.figure)
    print(f"\n{arguments.figure}")


def main(argv=None):
    parser = OneLineParser(prog="calibrate.py", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--cases",
        choices=("fresh", "more", "copies", "blind", "blind2", "first", "all"),
        default="fresh",
        help="the later ones, these with more samples, more oversampled rows, the blind rounds, the first 131, or all "
        "deals of which some set constants (default: fresh)",
    )
    parser.add_argument("--dataset_path", default="data", help="folder of MNIST and CIFAR-10 (default: data)")
    parser.add_argument(
        "--output_path",
        type=Path,
        default=ROOT / "results" / "calibration",
        help="folder of the stages' files (default: results/calibration)",
    )
    old_spelling(parser, "--output", "--output_path")
    parser.add_argument(
        "--budget", type=duration, default=10.0, help="processor time of a verdict, such as 60s (default: 10s)"
    )
    parser.add_argument("--packed", type=Path, default=PACKED, help="(default: docs/calibration.json.gz)")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="(default: figures/calibration.png)")
    arguments = parser.parse_args(argv)
    run = {
        "cases": list_cases,
        "outcomes": outcomes,
        "verdicts": verdicts,
        "again": verdicts,
        "sgd": sgd,
        "left_out": left_out,
        "pack": pack,
        "constants": constants,
        "report": report,
    }[arguments.stage]
    if arguments.stage == "report":
        check_folder(parser, "figure", arguments.figure.parent)
    if arguments.stage in ("outcomes", "verdicts", "again", "sgd", "left_out"):
        check_folder(parser, "output_path", arguments.output_path)
    with one_line(parser):
        if arguments.stage in ("outcomes", "verdicts", "again", "sgd", "left_out"):
            arguments.output_path.mkdir(parents=True, exist_ok=True)
        run(arguments)


if __name__ == "__main__":
    main()
