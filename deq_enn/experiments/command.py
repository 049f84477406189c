"""This is the gateway to all experiments: flags go in; accuracy logs, a table and a figure come out.

    python main.py                                                   the six networks on a Gaussian mixture
    python main.py --dataset mnist --model l_relu_enn --dim 1024     one network on MNIST
    python main.py --model deq matched_enn --activation swish        any DEQ, and the explicit network that matches it
    python main.py --dataset mnist --model linear_pcdeq_1            a positive concave DEQ on MNIST
    python main.py --seed 0 1 2 --processes 2                        the runs shared by two processes

--model, --dim and --seed take several values: the data is loaded once and the grid is run. Nothing here is
mathematics, and nothing heavy is imported before the flags are known to be good.
"""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deq_enn.experiments.accuracy_report import print_theory
from deq_enn.experiments.flags import parse_arguments
from deq_enn.utils import interrupts
from deq_enn.utils.interrupts import RESUME
from deq_enn.utils.locks import locked
from deq_enn.utils.outcome import one_line
from deq_enn.utils.team import Team, ranks, team_of_ranks

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import torch

    from deq_enn.experiments.grid import Grid
    from deq_enn.training.run_files import Config, Result


def main(argv: Sequence[str] | None = None, prog: str = "main.py") -> None:
    """Runs the grid of a command line, and ends the process with one line where that fails."""
    parser, arguments = parse_arguments(argv, prog, __doc__)
    with one_line(parser, f"; {RESUME}"):
        experiment(parser.prog, arguments)


def experiment(prog: str, arguments: Namespace) -> None:
    """Makes the runs of the grid, here, in worker processes, or together with other ranks, and reports them."""
    from deq_enn.experiments.executors import cluster, pool
    from deq_enn.training.run_files import finished
    from deq_enn.utils.devices import get_device, numbered

    interrupts.raise_from_now_on()
    device = get_device(numbered(arguments.device, ranks()[2]) if arguments.together else arguments.device)
    with contextlib.ExitStack() as stack:
        first = not arguments.together or ranks()[0] == 0  # it holds the folders, also for other ranks and for workers
        if first:
            stack.enter_context(locked(arguments.output_path, "output_path"))
        team = stack.enter_context(team_of_ranks(device)) if arguments.together else None
        executor = stack.enter_context(cluster(arguments.scheduler)) if arguments.scheduler else None
        grid, configs = prepare(prog, arguments, device, team)
        if first:
            stack.enter_context(locked(arguments.save_path, "save_path", [config.key for config in configs]))
        print_theory(grid.data, grid.scales(), grid.theories)
        resumed = [config for config in configs if arguments.resume and finished(config, arguments.output_path)]
        workers = min(arguments.processes or 1, len(configs) - len(resumed))  # what is finished needs none
        if workers > 1:
            executor = stack.enter_context(pool(workers))
        if executor:
            results = hand_out(executor, grid, configs)
        else:
            results = [grid.train(config, device, team) for config in configs]
        if first:
            grid.report(dict(zip(configs, results)))


def prepare(
    prog: str, arguments: Namespace, device: "torch.device", team: Team | None
) -> tuple["Grid", list["Config"]]:
    """Loads the data and settles the runs. Raises ValueError where something is wrong with either."""
    from deq_enn.experiments.exact_grid import GRIDS
    from deq_enn.training.run_files import check_output, checkpoint_path

    try:
        grid = GRIDS[arguments.train](arguments)
        with team.rank_0_first(device) if team else contextlib.nullcontext():
            grid.load(device)
        configs = grid.configs()
        if not arguments.scheduler:  # whose workers know what memory they have
            grid.check_memory(configs, device)
        check_output(configs, arguments.output_path, arguments.resume)
        for warning in grid.warnings():
            print(f"{prog}: warning: {warning}", file=sys.stderr)
    except OSError as error:  # in the data, so bad input
        raise ValueError(str(error)) from None
    if team:
        seen = [checkpoint_path(config, arguments.save_path).exists() for config in configs]
        team.agree(f"{[config.key for config in configs]} {seen if arguments.resume else ''}", device)
    return grid, configs


def hand_out(executor: "Executor", grid: "Grid", configs: list["Config"]) -> list["Result"]:
    """Has the workers make the runs, the longest first; the results come in the order of the configurations."""
    from deq_enn.experiments.executors import run_all
    from deq_enn.experiments.worker import do_run, for_other_machines
    from deq_enn.training.run_files import Result

    options = dict(vars(grid.arguments))
    if options["scheduler"]:
        options = for_other_machines(options, configs)
    costs = [grid.cost(config) for config in configs]
    return [Result(**values) for values in run_all(executor, do_run, [(options, config) for config in configs], costs)]
