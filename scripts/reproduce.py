"""Makes every table and figure of the paper, stage by stage, and a report beside what the paper claims.

    scripts/reproduce.sh --dataset_path DIR           everything, in hours; results/report.html and .md
    scripts/reproduce.sh --quick --dataset_path DIR   a small grid, minutes; results/quick/report.html
    scripts/reproduce.sh --seeds 8 --dataset_path DIR enough seeds to claim that networks are equal; longer by 8/3

A stage is one command. What it did (seconds, memory, error) is kept in OUTPUT_PATH/stages.json, what it printed in
OUTPUT_PATH/logs. The same command goes on where it was stopped: finished stages are passed over, and a sweep resumes at
its last epoch. A stage that fails does not stop the others; data that is not there is skipped, with its reason. The
plan is said first: what is left to do, the time that it takes at this machine's speed, and the disk.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.experiments.executors import cores
from deq_enn.reporting.statistics import LEAST_SEEDS
from deq_enn.utils.arguments import FAILED, OneLineParser, check_folder, old_spelling, positive_int
from deq_enn.utils.interrupts import INTERRUPTED
from deq_enn.utils.locks import locked
from deq_enn.utils.outcome import lasting_streams
from scripts.report import write_report
from scripts.reproduction.processes import error_line, memory, stop
from scripts.reproduction.records import Records, clock, commit, done_of, progress_of, time_left
from scripts.reproduction.stages import SEEDS, missing, plan

ROOT = Path(__file__).resolve().parents[1]

POLL, SAY = 1, 60  # seconds between looks at a stage, and between lines where nobody watches


def run_stage(stage, processes, log, tell):
    """Runs a stage's command, calls `tell` meanwhile, and returns (exit status, seconds, peak memory in bytes)."""
    progress = progress_of(stage) or (lambda: 0.0)
    before = progress()
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if processes > 1 and stage.kind == "sweep" else {})}
    log.parent.mkdir(parents=True, exist_ok=True)
    start, peak = time.monotonic(), 0
    with log.open("ab") as file:
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                peak = max(peak, memory(process.pid))
                tell(before, progress(), time.monotonic() - start)
                try:
                    process.wait(POLL)
                except subprocess.TimeoutExpired:
                    pass
        except BaseException as error:
            stop(process)
            error.stage_result = time.monotonic() - start, peak
            raise
    return process.returncode, time.monotonic() - start, peak


class Teller:
    """Keeps the progress line: on a terminal one that is written over, elsewhere a new one a minute."""

    def __init__(self):
        self.terminal, self.last = sys.stderr.isatty(), time.monotonic()

    def progress(self, text):
        if self.terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last >= SAY:
            self.line(text)

    def line(self, text):
        self.last = time.monotonic()
        print(("\r\033[K" if self.terminal else "") + text, file=sys.stderr, flush=True)


def to_do(stages, records, dataset_path, teller):
    """Returns the stages that are left; why others are passed over is told, and noted where data is missing."""
    todo, told = [], {}  # told: {reason: the first stage that is skipped for it}
    for stage in stages:
        reason = missing(stage.data, dataset_path)
        if reason:
            records.note(stage, status="skipped", error=reason)
            first = told.setdefault(reason, stage.name)
            teller.line(f"{stage.name}: skipped" + (f": {reason}" if first == stage.name else f", as {first}"))
        elif records.finished(stage):
            teller.line(f"{stage.name}: finished before")
        else:
            todo.append(replace(stage, done=done_of(stage)))
    records.save(stages)
    return todo


def say_plan(todo, output_path, teller):
    """Says what is left to do, with its hours and its disk; returns the rate of this machine, measured now."""
    from scripts.reproduction.machine import disk, machine_rate, megabytes

    if not todo:
        return 1.0
    prior = machine_rate()
    for stage in todo:
        needed = clock(time_left([stage], [], prior=prior))
        teller.line(f"  {stage.name:<30} about {needed:>8}  {megabytes(disk(stage)):>7}")
    hours, size = time_left(todo, [], prior=prior) / 3600, megabytes(sum(map(disk, todo)))
    teller.line(
        f"plan: {len(todo)} stages, about {hours:.1f} hours at the speed of this machine now, {size} in {output_path}"
    )
    return prior


def attempt(stage, arguments, tell):
    """Runs a stage, and returns (outcome, error, seconds, peak memory); "interrupted" is an outcome too."""
    log = arguments.output_path / "logs" / f"{stage.name}.log"
    log.unlink(missing_ok=True)
    try:
        status, seconds, peak = run_stage(stage, arguments.processes, log, tell)
    except KeyboardInterrupt as error:
        return "interrupted", "interrupted", *getattr(error, "stage_result", (0.0, 0))
    return ("done", "", seconds, peak) if status == 0 else ("failed", error_line(log, status), seconds, peak)


def reproduce(stages, arguments):
    """Runs what is not finished; True if nothing failed."""
    records, teller, version = Records(arguments.output_path / "stages.json"), Teller(), commit()
    todo = to_do(stages, records, arguments.dataset_path, teller)
    measured = []  # of this sitting alone: earlier ones may have had another machine
    prior = say_plan(todo, arguments.output_path, teller)
    while todo:
        stage, place = todo.pop(0), f"[{len(stages) - len(todo)}/{len(stages)}]"
        teller.line(
            f"{place} {stage.name}: about {clock(time_left([stage], measured, prior=prior))}, "
            f"all that is left about {clock(time_left([stage, *todo], measured, prior=prior))}"
        )

        def tell(before, now, elapsed):
            left = time_left(todo, measured, stage, now, now - before, elapsed, prior)
            share = f" {now / stage.cost:.0%}" if progress_of(stage) else ""
            teller.progress(f"{place} {stage.name}{share}, {clock(elapsed)}; all that is left about {clock(left)}")

        outcome, error, seconds, peak = attempt(stage, arguments, tell)
        shared = stage.kind == "sweep" and arguments.processes > 1
        cost = done_of(stage) - stage.done if progress_of(stage) else stage.cost * (outcome == "done")
        records.note(
            stage,
            seconds,
            peak,
            cost=cost,
            status=outcome,
            error=error,
            commit=version,
            processes=arguments.processes if shared else 1,
            threads="1" if shared else os.environ.get("OMP_NUM_THREADS", ""),
        )
        records.save(stages)
        if outcome == "interrupted":
            raise KeyboardInterrupt(stage.name)
        if outcome == "done":
            measured.append((stage.kind, cost, seconds))
        teller.line(f"{place} {stage.name}: {outcome} after {clock(seconds)}" + (f": {error}" if error else ""))
    return all(records.stages[stage.name]["status"] != "failed" for stage in stages if stage.name in records.stages)


def parse_arguments(argv=None):
    parser = OneLineParser(prog="reproduce.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small grid, on the mixture and MNIST only")
    parser.add_argument("--dataset_path", type=Path, metavar="DIR", help="folder of the data (default: data)")
    parser.add_argument(
        "--output_path", type=Path, metavar="DIR", help="default: results, or results/quick with --quick"
    )
    old_spelling(parser, "--output", "--output_path")
    parser.add_argument(
        "--seeds",
        type=positive_int,
        metavar="K",
        default=SEEDS,
        help=f"of every sweep, from 0 on (default: {SEEDS}; a claim of equality takes {LEAST_SEEDS})",
    )
    parser.add_argument(
        "--processes",
        type=positive_int,
        metavar="K",
        default=cores(),
        help="that share a sweep's runs, one thread each (default: one a core)",
    )
    arguments = parser.parse_args(argv)
    arguments.output_path = arguments.output_path or Path("results/quick" if arguments.quick else "results")
    if arguments.dataset_path and not os.path.isdir(arguments.dataset_path):
        parser.error(f"argument --dataset_path: {arguments.dataset_path}: no such folder, or it may not be looked into")
    check_folder(parser, "output_path", arguments.output_path)
    return parser, arguments


def interrupt(*_):
    raise KeyboardInterrupt


def main(argv=None):
    os.chdir(ROOT)
    parser, arguments = parse_arguments(argv)
    for kind in (signal.SIGINT, signal.SIGTERM):  # also where a background shell made us deaf to the first
        signal.signal(kind, interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # a terminal that is closed, but not where nohup was said
        signal.signal(signal.SIGHUP, interrupt)
    try:
        with lasting_streams(), locked(arguments.output_path, "stages", advice=", or pass another --output_path"):
            good = reproduce(plan(arguments), arguments)
            page = write_report(arguments.output_path)
            print(page)
    except KeyboardInterrupt as stopped:
        where = f" in {stopped.args[0]}" if stopped.args else ""
        parser.exit(INTERRUPTED, f"\n{parser.prog}: interrupted{where}; the same command goes on from here\n")
    except ValueError as error:
        parser.error(error)
    except OSError as error:
        parser.exit(FAILED, f"{parser.prog}: failed: {error}\n")
    if not good:
        parser.exit(FAILED, f"{parser.prog}: failed: not every stage succeeded, see {page}\n")


if __name__ == "__main__":
    main()
