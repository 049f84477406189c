"""The commands of the package: `python -m deq_enn COMMAND ...`, and `deq-enn COMMAND ...` once it is installed.

    run      the experiments: data, networks, training, logs (the same as main.py)
    verdict  should this DEQ be replaced, by what, and what will it cost?
    match    the explicit network of a DEQ: its layers in numbers, without any training
    export   the matched network with its readout, as files that need nothing of this project

`deq-enn COMMAND --help` lists the flags of each.
"""

import _signal  # pyright: ignore[reportMissingImports]  # built in, so that nothing is loaded ahead of these lines
import sys

if __name__ == "__main__" or sys.argv[0].endswith("deq-enn"):
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # Ctrl-C during the imports ends it as it does any program

import importlib

from deq_enn.utils import interrupts
from deq_enn.utils.arguments import BAD_INPUT, OneLineParser

COMMANDS = {
    "run": ("deq_enn.experiments.command", f"deq-enn run: interrupted; {interrupts.RESUME}"),
    "verdict": ("deq_enn.verdicts.command", "deq-enn verdict: interrupted, before anything was found"),
    "match": ("deq_enn.commands.match", "deq-enn match: interrupted"),
    "export": ("deq_enn.commands.export", "deq-enn export: interrupted, nothing was written"),
}


def main(argv: list[str] | None = None) -> None:
    """Runs the command that the first argument names; nothing heavy is imported before its flags are checked."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in ("-h", "--help"):
        OneLineParser(prog="deq-enn").show(f"{__doc__}\n")
        return
    if not argv or argv[0] not in COMMANDS:
        given = f"unknown command {argv[0]!r}" if argv else "no command given"
        print(f"deq-enn: error: {given}: take one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    module, words = COMMANDS[argv[0]]
    interrupts.leave_at_once(words)
    name = {"prog": "deq-enn run"} if argv[0] == "run" else {}  # else it calls itself main.py
    try:
        importlib.import_module(module).main(argv[1:], **name)
    finally:
        interrupts.ignore()


if __name__ == "__main__":
    main()
