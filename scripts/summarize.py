"""Makes tables (Markdown), a CSV and figures of accuracy logs: mean and spread over seeds, DEQ minus ENN, cost.
Where the same networks were trained at one learning rate and each at its own, which claim survives which protocol; and
of several experiments together, which claim of the paper holds where.

    python scripts/summarize.py results/mnist-sgd                     one folder of logs
    python scripts/summarize.py results --output_path results/summary every folder of logs below it
    python scripts/summarize.py results/mnist-sgd results/mnist-sgd-own-rate    both protocols
    python scripts/summarize.py results/mnist-sgd --epoch 10          as it stood after 10 epochs
    python scripts/summarize.py results/mnist-sgd --dim 1024 --model inn l_relu_enn --epoch 1 10 100
                                  these runs alone, tested for equality after each of these epochs together

A log is {dim}_test_{model}_{dataset}.json beside {dim}_train_..., lists of accuracies by epoch (seed s other than 0 in
seed_{s}/), as main.py and the authors' code write them. metrics.jsonl beside them, where there is one, adds settings
and times. TensorBoard event files (package tensorboard) are read from folders named {dim}_{model}_{dataset}, in
seed_{s}/ likewise, from the scalars with "acc" in their names.

In deq_enn/reporting, logs.py reads, tables.py, protocols.py and curves.py show, and statistics.py compares.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from deq_enn.utils import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once("summarize.py: interrupted")

from deq_enn.reporting.across import draw_survey, survey_table
from deq_enn.reporting.curves import KINDS, write_figures
from deq_enn.reporting.logs import chosen, first_epochs, load
from deq_enn.reporting.protocols import protocol_tables, protocols
from deq_enn.reporting.statistics import MARGIN
from deq_enn.reporting.tables import tables, write_csv
from deq_enn.utils.arguments import OneLineParser, bounded_float, check_folder, old_spelling, positive_int
from deq_enn.utils.outcome import one_line


def main(argv=None):
    parser = OneLineParser(prog="summarize.py", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="folder of logs, or of folders of logs")
    parser.add_argument("--output_path", default="results/summary", metavar="DIR", help="default: results/summary")
    old_spelling(parser, "--output", "--output_path")
    parser.add_argument(
        "--margin",
        type=bounded_float(0, 100, "between 0 and 100"),
        default=MARGIN,
        metavar="POINTS",
        help=f"within which accuracies count as equal, in percentage points (default: {MARGIN:g})",
    )
    parser.add_argument(
        "--epoch",
        nargs="+",
        type=positive_int,
        metavar="E",
        help="accuracies as they stood after E epochs (default: after the last); of several the tests of equality are "
        "made together, and all else is shown after the last of them",
    )
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME", help="only these networks, as logs call them")
    parser.add_argument("--dim", nargs="+", type=positive_int, default=[], metavar="M", help="only these widths")
    arguments = parser.parse_args(argv)
    output = Path(arguments.output_path)
    check_folder(parser, "output_path", output)
    try:
        experiments = chosen(load(arguments.paths), arguments.model, arguments.dim)
        epochs = sorted(set(arguments.epoch or ()))
        if epochs:
            experiments = [first_epochs(experiment, epochs[-1]) for experiment in experiments]
        from deq_enn.utils.files import atomic_write

        figures = write_figures(experiments, output, arguments.margin)
        parts = []
        for index, experiment in enumerate(experiments):
            parts += [
                f"## {experiment.title}\n",
                *(
                    table.markdown()
                    for table in tables(experiment, arguments.margin, epochs if len(epochs) > 1 else ())
                ),
                *(f"![{kind}]({figures[index, kind].name})\n" for kind in KINDS),
            ]
        for both in protocols(experiments):
            parts += [f"## {both.title}\n", *(t.markdown() for t in protocol_tables(both, arguments.margin))]
        if table := survey_table(experiments, arguments.margin):
            draw_survey(experiments, output / "claims.png", arguments.margin)
            figures[len(experiments), "claims"] = output / "claims.png"
            parts += ["## All experiments\n", table.markdown(), "![claims](claims.png)\n"]
        text = "\n".join(parts)
        with atomic_write(output / "summary.md", "w") as file:
            file.write(text)
        with atomic_write(output / "runs.csv", "w") as file:
            write_csv(experiments, file)
    except (ValueError, OSError) as error:
        parser.error(error)
    with one_line(parser):
        print(text)
        print(f"{output / 'summary.md'}, {output / 'runs.csv'}, {len(figures)} figures")


if __name__ == "__main__":
    main()
