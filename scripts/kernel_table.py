"""Prints the table "Matched, unmatched, or plain?" of folders of kernel machines: accuracies, paired differences.

    python scripts/kernel_table.py results/kernels-mnist-relu [FOLDER ...]

Of each folder, which main.py --train kernel has written, the largest training size is taken. The conjugate and the
tangent kernel have a table each, with the networks as rows: the test accuracy in %, and DEQ less network in points with
the 95% interval of the paired bootstrap over the test samples. Label probabilities and the calibration error are there
where one process made the run.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.names import DEQS
from deq_enn.reporting.markdown import head, row
from deq_enn.utils.arguments import OneLineParser
from deq_enn.utils.outcome import one_line

COLUMNS = ("n", "ridge", "accuracy", "DEQ less it", "log P(label)", "calibration error")


def machines(folder):
    """Returns {(kernel, activation, network): (config, record)} of the largest training size, of the least seed."""
    from deq_enn.experiments.exact_report import entry
    from deq_enn.reporting.records import read_metrics
    from deq_enn.training.run_files import Config

    configs, best = {}, {}
    for line in read_metrics(folder):
        if line.get("event") == "run" and line["config"]["train"] == "kernel":
            configs[line["run"]] = Config(**line["config"])
        elif line.get("event") == "epoch" and line["run"] in configs:
            c = configs[line["run"]]
            place, rank = (c.match, c.activation, entry(c.model, c.depth)), (-line["train_size"], c.seed)
            if place not in best or rank < best[place][0]:
                best[place] = rank, c, line
    if not best:
        raise ValueError(f"{folder}: no kernel machines; make them with main.py --train kernel --output_path {folder}")
    return {place: (c, line) for place, (_, c, line) in sorted(best.items(), key=_rank)}


def _rank(item):
    """Returns where a table and a row stand: CK before NTK, and the DEQ before its match before the others."""
    (kernel, activation, network), (_, config, _) = item
    return kernel, activation, config.model not in DEQS, "unmatched" in network, network


def table(folder):
    """Yields lines of Markdown."""
    from deq_enn.experiments.exact_report import right
    from deq_enn.machines.scores import bootstrap_difference
    from deq_enn.training.run_files import log_path

    records = machines(folder)
    for kernel, activation in dict.fromkeys((kernel, activation) for kernel, activation, _ in records):
        rows = {name: value for (k, a, name), value in records.items() if (k, a) == (kernel, activation)}
        dataset = next(iter(rows.values()))[0].dataset
        yield f"\n**{kernel.upper()}, {activation.rpartition(':')[2] or 'networks of the paper'}, {dataset}**\n"
        yield head("network", *COLUMNS)
        reference = next((name for name in rows if name in DEQS), None)
        for name, (_, record) in rows.items():
            difference = ""
            if reference not in (None, name):
                pair = (right([log_path(rows[n][0], folder, "predicted")]) for n in (reference, name))
                difference = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(100 * x for x in bootstrap_difference(*pair)))
            scores = (record.get(f"test_{score}") for score in ("log_likelihood", "calibration_error"))
            cells = (
                f"{record['train_size']}",
                f"{record['ridge']:.2g}",
                f"{100 * record['test_accuracy']:.2f}",
                difference,
                *("" if score is None else f"{score:.4f}" for score in scores),
            )
            yield row(name, *cells)


def main():
    parser = OneLineParser(prog="kernel_table.py", description=__doc__)
    parser.add_argument("folder", nargs="+", type=Path)
    for folder in parser.parse_args().folder:
        try:
            text = "\n".join(table(folder))
        except (ValueError, OSError) as error:
            parser.error(error)
        with one_line(parser):
            print(text)


if __name__ == "__main__":
    main()
