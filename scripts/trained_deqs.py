"""Trains DEQs of every form, asks for the verdict on each, and holds its intervals against many more samples.

    python scripts/trained_deqs.py --dataset_path DIR --output_path results/trained      (goes on where it was stopped)
    python scripts/trained_deqs.py --output_path results/trained --pack    (the record as docs/trained.json.gz)
    python scripts/trained_deqs.py --report      (tables and figures/trained.png, from that file)

Each DEQ's record is a line of `trained.jsonl`: what it is, what the verdict said, and what was true of every network in
it on 3,000 to 6,000 other samples. Time is that of the process. Those by torchdeq need `pip install torchdeq`.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import gzip
import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.utils.arguments import OneLineParser, check_folder, duration, positive_int
from deq_enn.utils.outcome import one_line

PACKED = Path(__file__).resolve().parents[1] / "docs" / "trained.json.gz"
FIGURE = PACKED.parents[1] / "figures" / "trained.png"
BATCH = 64  # samples of a training step


def make_parser():
    parser = OneLineParser(prog="trained_deqs", description=__doc__)
    parser.add_argument("--dataset_path", type=Path, default=Path("data"), help="folder of the images")
    parser.add_argument("--output_path", type=Path, default=Path("results/trained"), help="folder of trained.jsonl")
    parser.add_argument("--budget", type=duration, default=6.0, help="of each verdict (default 6s)")
    parser.add_argument("--most", type=positive_int, default=10**6, help="trainings and verdicts to do (default all)")
    parser.add_argument("--only", nargs="*", default=[""], metavar="WORD", help="DEQs in whose name and task a word is")
    parser.add_argument("--without", nargs="*", default=[], metavar="WORD", help="not those")
    parser.add_argument("--pack", action="store_true", help="only write the record to docs/trained.json.gz")
    parser.add_argument("--report", action="store_true", help="only say what docs/trained.json.gz holds")
    return parser


def train(case, task, path):
    """The DEQ after its training, from `path` if it was trained before; its seconds; and whether it was trained now."""
    import torch
    from torch.nn.functional import cross_entropy

    from deq_enn.networks.pcdeq import keep_nonnegative
    from deq_enn.training.optimizers import OPTIMIZERS
    from deq_enn.utils.files import atomic_write
    from deq_enn.utils.random import generator

    torch.manual_seed(1)
    X, y = task.train
    module, start = case.make(X[0], task.classes), time.process_time()
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["weights"])
        return module.eval(), state["seconds"], False
    optimizer = OPTIMIZERS["adam"](module.parameters(), lr=case.rate)
    if case.project:
        keep_nonnegative(module, optimizer)
    g = generator("trained", case.name)
    for step in range(case.updates):
        rows = torch.randint(len(X), (BATCH,), generator=g)
        for group in optimizer.param_groups:  # up over a fifth of the steps, down over the rest
            group["lr"] = case.rate * min(
                (step + 1) / (0.2 * case.updates), (case.updates - step) / (0.8 * case.updates)
            )
        optimizer.zero_grad()
        cross_entropy(module(X[rows]), y[rows]).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    seconds = time.process_time() - start
    with atomic_write(path) as file:
        torch.save({"weights": module.state_dict(), "seconds": seconds}, file)
    return module.eval(), seconds, True


def study(case, task, module, seconds, budget):
    """The record of one DEQ that was trained in so many seconds."""
    import resource

    import torch

    from deq_enn.unrolling.by_steps import VerdictBySteps
    from deq_enn.unrolling.judged import Part, outputs_of, quality
    from deq_enn.unrolling.steppers import stopped

    start = time.process_time()
    pending = VerdictBySteps(
        module,
        *task.train,
        held=task.held,
        steps=case.steps,
        budget=budget,
        seen=BATCH * case.updates,
        clock=time.process_time,
    )
    pending.run()
    verdict = pending.conclude()
    used = time.process_time() - start
    X, y = task.more
    start = time.process_time()
    own = outputs_of(module, X[:1000])
    X, y = (t[: 6000 if time.process_time() - start < 0.3 else 3000] for t in (X, y))
    own = torch.cat([own, outputs_of(module, X[1000:])])
    part = Part(X, own, y)
    record = verdict.to_dict()
    for candidate, entry in zip(verdict.candidates, record["candidates"]):
        outputs = outputs_of(candidate.network, X)
        right, own_right = outputs.argmax(1) == y, own.argmax(1) == y
        lost, gained = (own_right & ~right).sum().item(), (right & ~own_right).sum().item()
        entry |= {"true_lost": lost, "true_gained": gained, "true_accuracy": quality(outputs, part)[0]}
    far = outputs_of(stopped(module, 40, case.steps), task.held[0][:500])
    near = outputs_of(module, task.held[0][:500])
    return record | {
        "case": case.name,
        "task": case.task,
        "updates": case.updates,
        "train_seconds": seconds,
        "used": used,
        "budget": budget,
        "more": len(y),
        "true_accuracy": quality(own, part)[0],
        "far": ((far - near).square().mean() / (near - near.mean(0)).square().mean()).sqrt().item(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def packed(records):
    """The records as compressed JSON, without what no table needs, and the same bytes each time."""
    left_out = "reason", "settings", "form", "seconds"
    short = [{key: value for key, value in record.items() if key not in left_out} for record in records]
    text = json.dumps(short, default=float)
    rounded = json.loads(text, parse_float=lambda number: float(f"{float(number):.5g}"))
    return gzip.compress(json.dumps(rounded, separators=(",", ":")).encode(), mtime=0)


def main():
    parser = make_parser()
    args = parser.parse_args()
    check_folder(parser, "output_path", args.output_path)
    with one_line(parser):
        from deq_enn.reporting.records import read_lines
        from deq_enn.utils.files import atomic_write
        from scripts.trained.report import report

        path = args.output_path / "trained.jsonl"
        if args.report:
            from scripts.trained.figure import draw

            records = json.loads(gzip.decompress(PACKED.read_bytes()))
            draw(records, FIGURE)
            print(report(records))
            return
        if not args.pack:
            run(args, path, {(record["case"], record["task"]) for record in read_lines(path)})
        if not (records := read_lines(path)):
            raise ValueError(f"{path} holds no DEQ yet")
        if args.pack:
            with atomic_write(PACKED) as file:
                file.write(packed(records))
        print(report(records))


def asked_for(args):
    """Returns the DEQs of --only and --without; ValueError where there is none."""
    from scripts.trained.deqs import cases

    named = [(case, f"{case.name}, {case.task}") for case in cases()]
    chosen = [
        case
        for case, name in named
        if any(word in name for word in args.only) and not any(word in name for word in args.without)
    ]
    if not chosen:
        raise ValueError(f"none of the {len(named)} DEQs is left by --only and --without, such as {named[0][1]!r}")
    return chosen


def run(args, path, done):
    import torch

    from scripts.trained.tasks import load

    torch.set_num_threads(1)
    tasks, left = {}, args.most
    for case in asked_for(args):
        if (case.name, case.task) in done:
            continue
        for name in {case.task, case.taught or case.task} - tasks.keys():
            tasks[name] = load(name, args.dataset_path, args.output_path / "cache")
        task, slug = tasks[case.task], re.sub(r"\W+", "_", f"{case.name} {case.task}")
        module, seconds, now = train(case, tasks[case.taught or case.task], args.output_path / "cache" / f"{slug}.pt")
        left -= now
        if left <= 0:
            return
        record = study(case, task, module, seconds, args.budget * case.dear)
        torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")  # by a kill or a full disk
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(record) + "\n")
        print(f"{case.name}, {case.task}: {record['module']['accuracy']:.1f}%; {record['answer']} {record['chosen']}",
              flush=True)  # fmt: skip
        left -= 1
        if left <= 0:
            return


if __name__ == "__main__":
    main()
