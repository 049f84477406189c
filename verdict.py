"""Should this DEQ be replaced, by what, and what will it cost? One command, within a minute, from the training set.

    python verdict.py --dataset mnist --activation swish --asquare 0.3 --dim 1024
    python verdict.py --dataset npz --dataset_path mine.npz --activation my_file.py:my_function --asquare 0.1

`verdict(deq, X, y)` is the same from Python. Does the theory apply, what could replace the DEQ, how far are their
kernels from the DEQ's on these data, what is lost, what is saved: docs/verdict.md says how the answer is reached.
"""

import interrupts

if __name__ == "__main__":
    interrupts.leave_at_once("verdict.py: interrupted, before anything was found")

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

from findings import Candidate, Verdict  # noqa: E402, F401  (of the public names of this module)
from flags import (  # noqa: E402
    FAILED,
    INTERRUPTED,
    OneLineParser,
    add_data_flags,
    bounded_float,
    check_data_flags,
    check_folder,
    duration,
    natural_int,
    positive_int,
)
from names import ACTIVATIONS  # noqa: E402


def verdict(deq, X, y=None, *, width: int | None = None, budget: float = 60.0, tolerance: float = 0.5, seed: int = 0,
            progress: bool = False, clock=time.perf_counter) -> Verdict:
    """Whether an explicit network should replace a DEQ for these data, and which.

    Parameters
    ----------
    deq : model.DEQ at initialisation: its activation, sigma_a^2, width and tau_0 count.
    X, y : (n, p) training samples, scaled as the DEQ has them, and (n,) integer labels or None.
    width : by default that of the DEQ.
    budget : seconds, for all of it.
    tolerance : the loss of accuracy that may be had, in percentage points.
    seed : of the subsamples and of the weights that are drawn.
    progress : whether a bar is shown.
    clock : that the budget is measured by; time.process_time on a machine that others use.

    Raises
    ------
    ValueError : the samples or labels cannot be used, or the DEQ has no stable equilibrium; says why.
    """
    from inquiry import Inquiry
    inquiry = Inquiry(deq, X, y, width=width, budget=budget, tolerance=tolerance, seed=seed, clock=clock)
    inquiry.run(progress)
    return inquiry.conclude()


def make_parser():
    parser = OneLineParser(prog="verdict.py", description=__doc__)
    add = parser.add_argument
    add_data_flags(add)
    add("--activation", required=True, metavar="NAME", help=f"of the DEQ: {', '.join(ACTIVATIONS)}, or "
        "path/to/file.py:name, whose code is run")
    add("--asquare", type=bounded_float(0, 1, "between 0 and 1"), default=0.2,
        help="sigma_a^2 of the DEQ; sigma_b^2 = 1 - sigma_a^2 (default: 0.2)")
    add("--dim", type=positive_int, default=1024, help="width of the DEQ and of what replaces it (default: 1024)")
    add("--budget", type=duration, default=60.0, metavar="TIME", help="time to take, such as 30s or 5m (default: 60s)")
    add("--tolerance", type=bounded_float(0, 100, "between 0 and 100"), default=0.5, metavar="POINTS",
        help="loss of test accuracy that may be had, in percentage points (default: 0.5)")
    add("--seed", type=natural_int, default=0, help="of subsamples and weights (default: 0)")
    add("--output", default="results/verdict", help="folder for verdict.json (default: results/verdict)")
    return parser


def main(argv=None):
    parser = make_parser()
    arguments = parser.parse_args(argv)
    check_data_flags(parser, arguments)
    check_folder(parser, "output", arguments.output)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"verdict.py: warning: {message}", file=sys.stderr)
        try:
            inquiry = prepare(arguments)
            try:
                inquiry.run(progress=sys.stderr.isatty())
            except KeyboardInterrupt:
                print("interrupted; known so far:")
                print(inquiry.conclude().table())
                parser.exit(INTERRUPTED, "verdict.py: interrupted, nothing was written\n")
            finish(inquiry.conclude(), arguments)
        except ValueError as error:
            parser.error(str(error))
        except (RuntimeError, OSError) as error:
            parser.exit(FAILED, f"verdict.py: failed: {error}\n")
        except MemoryError as error:
            parser.exit(FAILED, f"verdict.py: failed: out of memory ({error})\n")
        except KeyboardInterrupt:
            parser.exit(INTERRUPTED, "verdict.py: interrupted, before anything was found\n")


def prepare(arguments):
    """The inquiry that the flags ask for; ValueError for what is wrong with the data or the DEQ."""
    from data_prepare import load_training
    from gaussian_integration import load_activation
    from inquiry import Inquiry
    from model import DEQ

    interrupts.raise_from_now_on()
    a = arguments
    activation = load_activation(a.activation)
    try:
        X, y, mean, scale = load_training(a.dataset, a.dataset_path, preset=a.preset, classes=a.classes,
                                          vgg_path=a.vgg_path)
    except OSError as error:
        raise ValueError(str(error)) from None
    deq = DEQ(activation, X.shape[1], a.dim, 2 if y is None else int(y.max()) + 1, a.asquare, seed=a.seed)
    print(f"{a.dataset}: {len(X)} training samples, p = {X.shape[1]}; DEQ of {activation.name}, sigma_a^2 = "
          f"{a.asquare:g}, width {a.dim}", flush=True)
    return Inquiry(deq, X, y, budget=a.budget, tolerance=a.tolerance, seed=a.seed)


def finish(found: Verdict, arguments):
    """Prints the verdict and writes it."""
    from utils import atomic_write
    for sentence in found.applies["fails"]:
        print(f"assumption: {sentence}")
    print(found.table())
    path = Path(arguments.output) / "verdict.json"
    settings = {"dataset": arguments.dataset, "dataset_path": arguments.dataset_path, **found.settings}
    with atomic_write(path, "w") as file:
        json.dump(found.to_dict() | {"settings": settings}, file, indent=1, allow_nan=False)
    print(f"\n{found.seconds:.0f} s; {path}")


if __name__ == "__main__":
    try:
        main()
    finally:
        interrupts.ignore()
