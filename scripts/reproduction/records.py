"""reproduce.py keeps here what each stage did and how far a sweep is, and so how much time is left."""

if __name__ == "__main__":
    raise SystemExit("records.py is a part of scripts/reproduce.py: run that")

import json
import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

from ck_ntk.common.training_curves import NETWORKS, RATES, SEEDS, WIDTHS
from deq_enn.experiments.run_cost import cost
from scripts.reproduction.stages import ROOT, SIZES, choice, seconds, values

RENAMED = {"--output": "--output_path", "--width": "--dim"}


class Records:
    """OUTPUT_PATH/stages.json holds {stage: what it did}, and is written after every change."""

    def __init__(self, path):
        self.path, self.stages = path, {}
        try:
            if path.exists():
                self.stages = json.loads(path.read_bytes())["stages"]
                for record in self.stages.values():  # as the commands were called before their flags had one name
                    record["task"] = [RENAMED.get(word, word) for word in record["task"]]
                    record["seconds"], record["cost"] = float(record["seconds"]), float(record["cost"])
                    record["kind"], record["status"] = str(record["kind"]), str(record["status"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{path} is damaged: delete it (finished sweeps resume all the same)") from None

    def finished(self, stage):
        record = self.stages.get(stage.name, {})
        return (
            record.get("status") == "done"
            and record["task"] == task(stage)
            and all(Path(output).exists() for output in stage.outputs)
        )

    def note(self, stage, seconds=0.0, peak_memory=0, cost=0.0, **settings):
        """Seconds, memory and the cost that was done are those of all attempts at the same command."""
        before = self.stages.get(stage.name, {})
        if before.get("task") != task(stage):
            before = {"seconds": 0.0, "peak_memory": 0, "cost": 0.0}
        self.stages[stage.name] = {
            **before,
            "kind": stage.kind,
            "data": stage.data,
            "task": task(stage),
            "cost": before["cost"] + cost,
            "command": shown(stage.command),
            "folder": stage.folder,
            "seconds": before["seconds"] + seconds,
            "peak_memory": max(before["peak_memory"], peak_memory),
            **settings,
        }

    def save(self, stages):
        from deq_enn.utils.files import atomic_write

        order = [stage.name for stage in stages]
        with atomic_write(self.path, "w") as file:
            json.dump({"stages": {name: self.stages[name] for name in order if name in self.stages}}, file, indent=1)


def task(stage):
    """Returns the command without its interpreter and `--processes`: as many as you like make the same logs."""
    script = next(i for i, word in enumerate(stage.command) if word.endswith(".py"))
    words = stage.command[script:]
    if "--processes" in words:
        place = words.index("--processes")
        words = words[:place] + words[place + 2 :]
    return words


def shown(command):
    """Returns the command as it is typed in the repository root, for the report."""
    python = Path(command[0])
    return shlex.join([str(python.relative_to(ROOT)) if python.is_relative_to(ROOT) else command[0], *command[1:]])


def commit():
    def git(*words):
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        changed = " with changes" if git("status", "--porcelain", "-uno") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except OSError:  # no git here
        return ""


class SweepProgress:
    """Counts the seconds of a sweep's cost that metrics.jsonl shows to be done, from where the last look ended."""

    def __init__(self, stage):
        self.path, self.data = Path(stage.folder) / "metrics.jsonl", stage.data
        self.grid = set(values(stage, "--dim")), set(values(stage, "--seed"))  # the folder may hold more than these
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
        if what not in self.seen and str(r["dim"]) in self.grid[0] and str(r["seed"]) in self.grid[1]:
            self.seen.add(what)
            run = self.data, r["model"], r["dim"]
            features = seconds(*run)
            if r["event"] != "run":
                self.done += seconds(*run, 1) - features
            else:  # its own rate is found before it begins
                self.done += features + (choice(*run, r["config"]["epoch"]) if r["config"].get("own_rate") else 0)


ROUNDS = SEEDS * (1 + len(RATES))  # trainings of a network and width by training_dynamics; one rate is centred too
# name, width, rate and seed in the file name of a network that it keeps
KEPT = re.compile(rf"(\w+)_({'|'.join(map(str, WIDTHS))})_([\d.e+-]+)_seed([0-2])_")


def kept_share(folder):
    """Returns how much of the networks that training_dynamics trains is done, in [0, 1], by what they cost."""

    def weight(width, is_deq):
        model = "deq" if is_deq else "matched_enn"
        return cost(SimpleNamespace(model=model, dim=width, train="full", epoch=1, steps=0), *SIZES["mnist"][1:])

    kept = {match.groups() for file in Path(folder).glob("*.json") if (match := KEPT.match(file.name))}
    others = len(NETWORKS) - 1
    total = ROUNDS * sum(weight(width, True) + others * weight(width, False) for width in WIDTHS)
    return min(sum(weight(int(width), name.startswith("deq")) for name, width, _, _ in kept) / total, 1)


def progress_of(stage):
    """Returns a function that tells the seconds of a stage's cost that are done; None where nothing shows them."""
    if stage.kind == "sweep":
        return SweepProgress(stage)
    return (lambda: stage.cost * kept_share(stage.runs)) if stage.runs else None


def done_of(stage):
    """Returns the seconds of a stage's cost that are seen to be done, in this sitting or in earlier ones."""
    progress = progress_of(stage)
    return min(progress(), stage.cost) if progress else 0.0


# ---------------------------------------------------------------------------------------------------------------
# time left


def rate(work, prior=1.0):
    """Returns the seconds that a second of cost takes, of [(cost, seconds)]; 5 s of cost count at the prior rate.

    What cost nothing, such as a sweep that was finished before, took time for its data alone, and tells no rate.
    """
    work = [(cost, seconds) for cost, seconds in work if cost >= 1]
    return (5 * prior + sum(seconds for _, seconds in work)) / (5 + sum(cost for cost, _ in work))


def time_left(todo, work, current=None, behind=0.0, fresh=0.0, elapsed=0.0, prior=1.0):
    """Returns the seconds expected for the stages `todo` and for the rest of the `current` one.

    work : [(kind, cost, seconds)] of what is done.
    behind : cost of the current stage that is done; `fresh` of it was done in the `elapsed` seconds since its start.
    prior : seconds that this machine takes for a second of cost, where nothing is known yet.
    What is known of the current sweep counts for the sweeps to come too. Most figures tell nothing of their progress:
    such a one is never nearer to its end than a tenth of the time that it has taken.
    """
    rates = {kind: rate([w[1:] for w in work if w[0] == kind], prior) for kind in ("figure", "sweep")}
    seen = [(fresh, elapsed)] if current and fresh else []
    now = rate(seen, rates[current.kind]) if current else prior
    if current and current.kind == "sweep":
        rates["sweep"] = rate([*(w[1:] for w in work if w[0] == "sweep"), *seen], prior)
    left = sum((stage.cost - stage.done) * rates[stage.kind] for stage in todo)
    if current and (current.kind == "sweep" or behind):
        left += max(current.cost - behind, 0) * now
    elif current:
        left += max(current.cost * rates["figure"] - elapsed, elapsed / 10)
    return left


def clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
