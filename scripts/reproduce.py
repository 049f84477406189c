"""Every table and figure of the paper, stage by stage, and a report beside what the paper claims.

    scripts/reproduce.sh --dataset_path DIR           everything, hours; results/report.html and report.md
    scripts/reproduce.sh --quick --dataset_path DIR   a small grid, minutes; results/quick/report.html
    scripts/reproduce.sh --seeds 8 --dataset_path DIR enough seeds to claim that networks are equal; longer by 8/3

A stage is one command. What it did (seconds, memory, error) is kept in OUTPUT/stages.json, what it printed in
OUTPUT/logs. The same command goes on where it was stopped: finished stages are passed over, a sweep resumes at its
last epoch. A stage that fails does not stop the others; data that is not there is skipped, with its reason.
"""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from comparison import LEAST_SEEDS  # noqa: E402  (none of these imports torch)
from distributed import cost  # noqa: E402
from main import FAILED, INTERRUPTED, MODELS, positive_int  # noqa: E402
from processes import error_line, memory, stop  # noqa: E402
from report import write_report  # noqa: E402
from summarize import Parser  # noqa: E402

DIMS, EPOCHS, SEEDS = (32, 128, 256, 1024, 4096), 100, 3  # scripts/sweep.sh, and how many seeds
SGD, ADAM = {"gmm": 1, "mnist": 1, "fashion_mnist": 1, "cifar10": 0.1}, 0.001  # learning rates, of those that source it
SIZES = {"gmm": (6000, 4000, 200, 4), "mnist": (60000, 10000, 784, 10), "fashion_mnist": (60000, 10000, 784, 10),
         "cifar10": (50000, 10000, 256, 10)}  # training and test samples, p, classes
# name: seconds at full size and with --quick on two cores of 2026, None: not part of --quick; data
FIGURES = {"ck_gmm_matching": (60, 4, "gmm"), "gmm_ntk_matching": (60, 4, "gmm"),
           "gmm_one_layer_matching": (40, 4, "gmm"), "gmm_two_layer_relu_matching": (30, 4, "gmm"),
           "finite_width_kernels": (20, 4, "gmm"),
           "ck_mnist_matching": (40, 5, "mnist"), "mnist_ntk_matching": (40, 5, "mnist"),
           "mnist_one_layer_matching": (30, 5, "mnist"), "mnist_two_layer_matching": (30, 5, "mnist"),
           "cifar10_matching": (60, None, "cifar10"), "any_activation_matching": (120, None, "gmm"),
           "matching_map": (120, None, "gmm")}
QUICK_DIMS, QUICK_EPOCHS, QUICK_DATA = (64, 256), 5, ("gmm", "mnist")
QUICK_FIGURE = {"finite_width_kernels": ["--n", "128", "--seeds", "2", "--width", "64", "128", "256", "512"]}
QUICK_FIGURE_FLAGS = ["--n", "100", "200", "400", "--seeds", "2", "--spectrum", "400"]
MULTIPLICATIONS = 7.5e10  # a second, float32, on both of these cores
PASS = 0.06  # seconds of an epoch over 60,000 samples, whatever the width
POLL, SAY = 1, 60  # seconds between looks at a stage, and between lines where nobody watches


# ---------------------------------------------------------------------------------------------------------------
# what is to be done

@dataclass(frozen=True)
class Stage:
    """One command. `cost`: expected seconds; `outputs`: files that are there once it is finished."""

    name: str
    kind: str  # "sweep" or "figure"
    command: list
    outputs: list
    cost: float
    data: str = "gmm"
    folder: str = ""  # of a sweep's logs


def seconds(dataset, model, dim, epochs=0):
    """Expected of a run: its features, and its epochs."""
    n, n_test, p, n_classes = SIZES[dataset]
    work = cost(SimpleNamespace(model=model, dim=dim, train="readout", epoch=epochs), n + n_test, p, n_classes)
    return work / MULTIPLICATIONS + epochs * n / 60000 * PASS


def sweep_cost(dataset, dims, epochs, seeds=SEEDS):
    return 5 + seeds * sum(seconds(dataset, model, dim, epochs) for model in MODELS for dim in dims)


def launch(script, processes):
    """The start of a command: torchrun deals the runs of a grid out over processes of one thread each."""
    if processes == 1:
        return [sys.executable, script]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), script]


def plan(arguments):
    """Every stage, in order: what is cheap first."""
    output, data = arguments.output, ["--dataset_path", str(arguments.dataset_path)] if arguments.dataset_path else []
    stages = []
    for name, (full, quick, dataset) in FIGURES.items():
        if arguments.quick and quick is None:
            continue
        flags = QUICK_FIGURE.get(name, QUICK_FIGURE_FLAGS) if arguments.quick else []
        folder = output / "figures"
        command = [sys.executable, f"ck_ntk/{name}.py", *flags, *(data if dataset != "gmm" else []),
                   "--output", str(folder)]
        outputs = [folder / f"{name}.json", folder / f"{name}.png"]
        stages.append(Stage(name, "figure", command, outputs, quick if arguments.quick else full, dataset))
    dims, epochs = (QUICK_DIMS, QUICK_EPOCHS) if arguments.quick else (DIMS, EPOCHS)
    for dataset in QUICK_DATA if arguments.quick else SIZES:
        for opt, lr in (("sgd", SGD[dataset]), ("adam", ADAM)):
            name = f"{dataset}-{opt}"
            processes = min(arguments.processes, len(MODELS) * len(dims) * arguments.seeds)  # a run is not shared
            command = [*launch("main.py", processes), "--dataset", dataset, *(data if dataset != "gmm" else []),
                       "--dim", *map(str, dims), "--seed", *map(str, range(arguments.seeds)), "--epoch", str(epochs),
                       "--opt", opt, "--lr", str(lr), "--output_path", str(output / name),
                       "--save_path", str(output / "checkpoints" / name), "--resume"]
            stages.append(Stage(name, "sweep", command, [output / name / f"accuracy_{dataset}.png"],
                                sweep_cost(dataset, dims, epochs, arguments.seeds), dataset, str(output / name)))
    return stages


@functools.cache
def missing(dataset, path):
    """Why the data set is not there, or "". MNIST and its like are downloaded where there is a network."""
    path = Path(path or "data")
    if dataset == "gmm":
        return ""
    if dataset == "cifar10":
        from data_prepare import VGG16_WEIGHTS
        if not (path / "cifar10").is_dir() and not (path / "cifar-10-batches-py").is_dir():
            return f"neither cifar10/ nor cifar-10-batches-py/ in {path}"
        missing_weights = f"no {VGG16_WEIGHTS.relative_to(ROOT)} (scripts/pretrain_vgg.py makes it)"
        return "" if VGG16_WEIGHTS.exists() else missing_weights
    from data_prepare import DataError, mnist_images
    try:
        mnist_images(path, dataset)
    except DataError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------------------------------------------------
# what has been done

class Records:
    """OUTPUT/stages.json: {stage: what is known of it}, written after every change."""

    def __init__(self, path):
        self.path, self.stages = path, {}
        try:
            if path.exists():
                self.stages = json.loads(path.read_bytes())["stages"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path} is damaged: delete it (finished sweeps resume all the same)") from None

    def finished(self, stage):
        record = self.stages.get(stage.name, {})
        return (record.get("status") == "done" and record["task"] == task(stage)
                and all(Path(output).exists() for output in stage.outputs))

    def note(self, stage, seconds=0.0, peak_memory=0, **values):
        """Seconds and memory are those of all attempts at the same command."""
        before = self.stages.get(stage.name, {})
        if before.get("task") != task(stage):
            before = {"seconds": 0.0, "peak_memory": 0}
        self.stages[stage.name] = {**before, "kind": stage.kind, "data": stage.data, "task": task(stage),
                                   "cost": stage.cost, "command": shown(stage.command), "folder": stage.folder,
                                   "seconds": before["seconds"] + seconds,
                                   "peak_memory": max(before["peak_memory"], peak_memory), **values}

    def save(self, stages):
        from utils import atomic_write
        order = [stage.name for stage in stages]
        with atomic_write(self.path, "w") as file:
            json.dump({"stages": {name: self.stages[name] for name in order if name in self.stages}}, file, indent=1)


def task(stage):
    """The command without its launcher: as many processes as you like make the same logs."""
    script = next(i for i, word in enumerate(stage.command) if word.endswith(".py"))
    return stage.command[script:]


def shown(command):
    """For the report, to be typed in the repository root."""
    python = Path(command[0])
    return shlex.join([str(python.relative_to(ROOT)) if python.is_relative_to(ROOT) else command[0], *command[1:]])


def commit():
    def git(*words):
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""
    try:
        changed = " with changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except OSError:  # no git here
        return ""


class SweepProgress:
    """Seconds of a sweep's cost that its metrics.jsonl shows to be done, read on from where the last look ended."""

    def __init__(self, stage):
        self.path, self.data = Path(stage.folder) / "metrics.jsonl", stage.data
        self.position, self.seen, self.done = 0, set(), 0.0

    def __call__(self):
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self.position)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written
                    self.position += len(line)
                    self.count(line)
        return self.done

    def count(self, line):
        try:
            r = json.loads(line)
            what = r["event"], r["model"], r["dim"], r["seed"], r.get("epoch")
        except (ValueError, KeyError):
            return
        if what not in self.seen:
            self.seen.add(what)
            features = seconds(self.data, r["model"], r["dim"])
            self.done += features if r["event"] == "run" else seconds(self.data, r["model"], r["dim"], 1) - features


# ---------------------------------------------------------------------------------------------------------------
# time left

def rate(work, prior=1.0):
    """Seconds that a second of cost takes, from [(cost, seconds)]; 5 s of cost count as taken at the prior rate."""
    return (5 * prior + sum(seconds for _, seconds in work)) / (5 + sum(cost for cost, _ in work))


def time_left(todo, work, current=None, behind=0.0, fresh=0.0, elapsed=0.0):
    """Seconds expected for the stages `todo` and for the rest of the `current` one.

    work : [(kind, cost, seconds)] of what is done.
    behind : cost of the current stage that is done; `fresh` of it was done in the `elapsed` seconds since its start.
    A figure tells nothing of its progress: it is never nearer to its end than a tenth of the time that it has taken.
    """
    rates = {kind: rate([w[1:] for w in work if w[0] == kind]) for kind in ("figure", "sweep")}
    left = sum(stage.cost * rates[stage.kind] for stage in todo)
    if current and current.kind == "sweep":
        left += max(current.cost - behind, 0) * rate([(fresh, elapsed)] if fresh else [], rates["sweep"])
    elif current:
        left += max(current.cost * rates["figure"] - elapsed, elapsed / 10)
    return left


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


# ---------------------------------------------------------------------------------------------------------------
# running

def run_stage(stage, processes, log, tell):
    """(exit status, seconds, peak memory in bytes). `tell(done, elapsed)` is called while it runs."""
    progress = SweepProgress(stage) if stage.kind == "sweep" else lambda: 0.0
    before = progress()
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if processes > 1 and stage.kind == "sweep" else {})}
    log.parent.mkdir(parents=True, exist_ok=True)
    start, peak = time.monotonic(), 0
    with log.open("ab") as file:
        process = subprocess.Popen(stage.command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                                   env=environment, start_new_session=True)
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
    """The progress line: on a terminal one that is written over, elsewhere a new one a minute."""

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


def reproduce(stages, arguments):
    """Run what is not finished; True if nothing failed."""
    records, teller, version = Records(arguments.output / "stages.json"), Teller(), commit()
    todo = []
    for stage in stages:
        reason = missing(stage.data, arguments.dataset_path)
        if reason:
            records.note(stage, status="skipped", error=reason)
            teller.line(f"{stage.name}: skipped: {reason}")
        elif records.finished(stage):
            teller.line(f"{stage.name}: finished before")
        else:
            todo.append(stage)
    records.save(stages)
    measured = [(r["kind"], r["cost"], r["seconds"]) for r in records.stages.values() if r["status"] == "done"]
    while todo:
        stage, place = todo.pop(0), f"[{len(stages) - len(todo)}/{len(stages)}]"
        teller.line(f"{place} {stage.name}: about {clock(time_left([stage], measured))}, "
                    f"all that is left about {clock(time_left([stage, *todo], measured))}")

        def tell(before, now, elapsed):
            left = time_left(todo, measured, stage, now, now - before, elapsed)
            share = f" {now / stage.cost:.0%}" if stage.kind == "sweep" else ""
            teller.progress(f"{place} {stage.name}{share}, {clock(elapsed)}; all that is left about {clock(left)}")

        log = arguments.output / "logs" / f"{stage.name}.log"
        log.unlink(missing_ok=True)
        try:
            status, seconds, peak = run_stage(stage, arguments.processes, log, tell)
            outcome = "done" if status == 0 else "failed"
        except KeyboardInterrupt as error:
            seconds, peak = getattr(error, "stage_result", (0.0, 0))
            status, outcome = INTERRUPTED, "interrupted"
        error = "" if outcome == "done" else error_line(log, status) if outcome == "failed" else "interrupted"
        shared = stage.kind == "sweep" and arguments.processes > 1
        records.note(stage, seconds, peak, status=outcome, error=error, commit=version,
                     processes=arguments.processes if shared else 1,
                     threads="1" if shared else os.environ.get("OMP_NUM_THREADS", ""))
        records.save(stages)
        if outcome == "interrupted":
            raise KeyboardInterrupt(stage.name)
        if outcome == "done":
            measured.append((stage.kind, stage.cost, records.stages[stage.name]["seconds"]))
        teller.line(f"{place} {stage.name}: {outcome} after {clock(seconds)}" + (f": {error}" if error else ""))
    return all(r["status"] != "failed" for r in records.stages.values())


def parse_arguments(argv=None):
    parser = Parser(prog="reproduce.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small grid, on the mixture and MNIST only")
    parser.add_argument("--dataset_path", type=Path, metavar="DIR", help="folder of the data (default: data)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: results, or results/quick with --quick")
    parser.add_argument("--seeds", type=positive_int, metavar="K", default=SEEDS,
                        help=f"of every sweep, from 0 on (default: {SEEDS}; a claim of equality takes {LEAST_SEEDS})")
    parser.add_argument("--processes", type=positive_int, metavar="K", default=len(os.sched_getaffinity(0)),
                        help="that share a sweep's runs, one thread each (default: one a core)")
    arguments = parser.parse_args(argv)
    arguments.output = arguments.output or Path("results/quick" if arguments.quick else "results")
    if arguments.dataset_path and not arguments.dataset_path.is_dir():
        parser.error(f"argument --dataset_path: {arguments.dataset_path}: no such folder")
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"argument --output: {arguments.output} is a file, not a folder")
    return parser, arguments


def interrupt(*_):
    raise KeyboardInterrupt


def main(argv=None):
    os.chdir(ROOT)
    parser, arguments = parse_arguments(argv)
    for kind in (signal.SIGINT, signal.SIGTERM):  # also where a background shell made us deaf to the first
        signal.signal(kind, interrupt)
    try:
        good = reproduce(plan(arguments), arguments)
        page = write_report(arguments.output)
    except KeyboardInterrupt as stopped:
        where = f" in {stopped.args[0]}" if stopped.args else ""
        parser.exit(INTERRUPTED, f"\n{parser.prog}: interrupted{where}; the same command goes on from here\n")
    except (ValueError, OSError) as error:
        parser.error(error)
    print(page)
    if not good:
        parser.exit(FAILED, f"{parser.prog}: failed: not every stage succeeded, see {page}\n")


if __name__ == "__main__":
    main()
