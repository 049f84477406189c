"""The gateway to all experiments: flags in; accuracy logs, a table and a figure out.

    python main.py                                                   the six networks on a Gaussian mixture
    python main.py --dataset mnist --model l_relu_enn --dim 1024     one network on MNIST
    python main.py --model deq matched_enn --activation swish        any DEQ, and the explicit network that matches it
    python main.py --dataset mnist --model linear_pcdeq_1            a positive concave DEQ on MNIST
    torchrun --nproc_per_node 2 main.py --seed 0 1 2                 the runs shared by two processes

--model, --dim and --seed take several values: the data is loaded once and the grid is run. Nothing here is
mathematics, and nothing heavy is imported before the flags are known to be good.
"""

import sys
import warnings

from deq_enn.experiments.accuracy_report import print_theory
from deq_enn.experiments.executors import World
from deq_enn.experiments.flags import parse_arguments
from deq_enn.utils import interrupts
from deq_enn.utils.arguments import FAILED
from deq_enn.utils.interrupts import INTERRUPTED, RESUME


def main(argv=None):
    with World() as world, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"main.py: warning: {message}", file=sys.stderr)  # one line
        parser, arguments = parse_arguments(argv, world, __doc__)
        try:
            grid, results = experiment(parser, arguments, world)
            if world.rank == 0:
                grid.report(results)
        except ValueError as error:
            parser.error(str(error))
        except (RuntimeError, OSError) as error:
            parser.exit(FAILED, f"{parser.prog}: failed: {error}\n")
        except MemoryError as error:
            parser.exit(FAILED, f"{parser.prog}: failed: out of memory ({error})\n")
        except KeyboardInterrupt as error:
            parser.exit(INTERRUPTED, f"{parser.prog}: {error if error.args else 'interrupted'}; {RESUME}\n")


def experiment(parser, arguments, world):
    """The grid, and on rank 0 the result of each configuration."""
    try:
        from deq_enn.experiments.exact_grid import GRIDS
        from deq_enn.training.run_files import Result, check_output
        from deq_enn.utils.devices import get_device

        interrupts.raise_from_now_on()
        folders = arguments.output_path, arguments.save_path
        world.form()
        world.await_leader(*folders)
        device = get_device(world.device(arguments.device))
        grid = GRIDS[arguments.train](arguments)
        grid.load(device)
        configs = grid.configs()
        grid.check_memory(configs, device)
        if world.rank == 0:  # the others come when it may have begun to write there
            check_output(configs, arguments.output_path)
        for warning in grid.warnings():  # before another rank may fail
            print(f"{parser.prog}: warning: {warning}", file=sys.stderr)
        world.let_start("-".join(config.key for config in configs), *folders)
    except OSError as error:  # in the data, so bad input
        raise ValueError(str(error)) from None
    print_theory(grid.data, grid.scales(), grid.theories)
    team = world.team(device) if arguments.together else None
    done = world.map(
        lambda config: vars(grid.train(config, device, team)),
        configs,
        [grid.cost(c) for c in configs],
        together=arguments.together,
    )
    return grid, {config: Result(**values) for config, values in zip(configs, done)}
