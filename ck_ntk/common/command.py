"""The figure scripts share this before torch is loaded: flags, errors as one line, a JSON and a figure per script.

A script has a docstring, a function main(args) -> (figure, numbers), and a call of `run`. It is started from the
repository root as `python ck_ntk/NAME.py`.
"""

if __name__ == "__main__":
    raise SystemExit("command.py is shared by the figures: run one of ck_ntk/*.py")

import json
import sys
from pathlib import Path

from deq_enn.reporting.style import STYLE, save
from deq_enn.utils import interrupts
from deq_enn.utils.arguments import OneLineParser, bounded_float, bounded_int, check_folder, old_spelling, positive_int
from deq_enn.utils.locks import locked
from deq_enn.utils.outcome import one_line

ROOT = Path(__file__).resolve().parents[2]

SIZE = bounded_int(16, 20000)  # number of samples of an exact kernel
ASQUARE = dict(
    type=bounded_float(0, 1, "between 0 and 1"),
    default=0.2,
    metavar="S",
    help="sigma_a^2, with sigma_b^2 = 1 - sigma_a^2 (default 0.2)",
)
DEVICE = dict(help="cpu, cuda or cuda:0 (default: CUDA if there is one)")
MNIST, FASHION = "mnist", "fashion_mnist"
IMAGES = {"--dataset": dict(choices=(MNIST, FASHION), default=MNIST, help=f"the images (default {MNIST})")}
OLD = {"--sigma_a2": "--asquare", "--width": "--dim", "--output": "--output_path"}


def make_parser(
    name,
    description,
    *,
    n=None,
    seeds=None,
    epoch=None,
    spectrum=None,
    dim=None,
    dataset=False,
    device=False,
    flags=None,
):
    """Returns the parser of a script; see `run`."""
    parser = OneLineParser(prog=name, description=description)
    add = parser.add_argument
    if n:
        add("--n", type=SIZE, nargs="+", default=n, help=f"numbers of samples (default {n})")
        add("--seeds", type=positive_int, default=seeds, help=f"draws of each size (default {seeds})")
        add("--asquare", **ASQUARE)
    for flag, default, kind, nargs, what in (
        ("--epoch", epoch, positive_int, None, "epochs of training"),
        ("--spectrum", spectrum, SIZE, None, "number of samples of the spectrum shown"),
        ("--dim", dim, positive_int, "+", "widths m"),
    ):
        if default:
            add(flag, type=kind, nargs=nargs, default=default, help=f"{what} (default {default})")
    if dataset:
        without = dataset if isinstance(dataset, str) else "default data"
        add("--dataset_path", default=None, help=f"folder with the files of the images ({without})")
    on_device = {"--device": DEVICE} if n or device else {}
    for flag, settings in (on_device | (flags or {})).items():
        add(flag, **settings)
    folder = ROOT / "results" / "figures"
    add("--output_path", type=Path, default=folder, help="folder (default results/figures)")
    for old, new in OLD.items():
        if parser.get_default(new[2:]) is not None:
            old_spelling(parser, old, new)
    return parser


def write(name, args, figure, numbers):
    """Writes NAME.png, NAME.pdf and, with the settings beside the numbers, NAME.json; returns the path of the PNG.

    A figure of another data set than MNIST has the data set's name after its own.
    """
    from deq_enn.utils.files import atomic_write

    if isinstance(dataset := getattr(args, "dataset", MNIST), str) and dataset != MNIST:
        name = f"{name}_{dataset}"

    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    for kind in ("png", "pdf"):
        save(figure, args.output_path / f"{name}.{kind}")
    with atomic_write(args.output_path / f"{name}.json", "w") as file:
        json.dump({"settings": settings, **numbers}, file, indent=1)
    return args.output_path / f"{name}.png"


def run(main, description, **options):
    """Parses the flags, calls main(args) and writes what it returns to NAME.json, NAME.png and NAME.pdf.

    Parameters
    ----------
    main : args -> (matplotlib figure, dict of numbers). A ValueError or OSError ends the script with status 2, a
        RuntimeError (a training that diverged) with 1, each with one line.
    options : of `make_parser`. `n`, `seeds` are defaults of the flags that kernels of samples take; `epoch`,
        `spectrum`, `dim` and `dataset` add one flag each. `dataset` says whether there is MNIST to read; a string says
        in the help what happens without. `device` adds the flag of that name, which those with `n` have. `flags` :
        {flag: keywords of add_argument} of this script alone.
    """
    name = Path(sys.argv[0]).stem
    interrupts.leave_at_once(f"{name}: interrupted")
    parser = make_parser(name, description, **options)
    args = parser.parse_args()
    if options.get("n"):
        args.n = sorted(set(args.n))
    check_folder(parser, "output_path", args.output_path)  # before anything is computed
    with one_line(parser), locked(args.output_path, "output_path", [name]):
        if hasattr(args, "device"):
            from deq_enn.utils.devices import get_device

            args.device = str(get_device(args.device))
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        interrupts.raise_from_now_on()
        with plt.style.context(STYLE):
            try:
                figure, numbers = main(args)
            except OSError as error:  # in the data, so bad input
                raise ValueError(str(error)) from None
            path = write(name, args, figure, numbers)
        print(path)
