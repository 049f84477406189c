"""What the figure scripts share before torch is loaded: flags, errors as one line, a JSON and a figure per script.

A script has a docstring, a function main(args) -> (figure, numbers), and a call of `run`. It is started from the
repository root as `python ck_ntk/NAME.py`.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from deq_enn.reporting.style import STYLE, save

ROOT = Path(__file__).resolve().parents[2]


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return value


def _size(text):
    value = int(text)
    if not 16 <= value <= 20000:
        raise argparse.ArgumentTypeError(f"{text}: take between 16 and 20000 samples")
    return value


def _variance(text):
    value = float(text)
    if not (0 < value < 1 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1)")
    return value


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")  # one line, where argparse prints its usage too


def run(main, description, *, n=None, seeds=None, epoch=None, spectrum=None, width=None, dataset=False, flags=None):
    """Parses the flags, calls main(args) and writes what it returns to NAME.json, NAME.png and NAME.pdf.

    Parameters
    ----------
    main : args -> (matplotlib figure, dict of numbers). A ValueError or OSError ends the script with status 2, a
        RuntimeError (a training that diverged) with 1, each with one line.
    n, seeds : defaults of the flags that kernels of samples take; `epoch`, `spectrum`, `width`, `dataset` add one each.
    dataset : whether there is MNIST to read; a string says in the help what happens without.
    flags : {flag: keywords of add_argument} of this script alone.
    """
    name = Path(sys.argv[0]).stem
    parser = _Parser(prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if n:
        parser.add_argument("--n", type=_size, nargs="+", default=n, help=f"numbers of samples (default {n})")
        parser.add_argument("--seeds", type=_positive, default=seeds, help=f"draws of each size (default {seeds})")
        parser.add_argument(
            "--sigma_a2",
            "--asquare",
            type=_variance,
            default=0.2,
            metavar="S",
            help="sigma_a^2, with sigma_b^2 = 1 - sigma_a^2 (default 0.2)",
        )
    if epoch:
        parser.add_argument("--epoch", type=_positive, default=epoch, help=f"epochs of training (default {epoch})")
    if spectrum:
        parser.add_argument(
            "--spectrum",
            type=_size,
            default=spectrum,
            help=f"number of samples of the spectrum shown (default {spectrum})",
        )
    if width:
        parser.add_argument("--width", type=_positive, nargs="+", default=width, help=f"widths m (default {width})")
    if dataset:
        without = dataset if isinstance(dataset, str) else "default data"
        parser.add_argument("--dataset_path", default=None, help=f"folder with the MNIST files ({without})")
    for flag, settings in (flags or {}).items():
        parser.add_argument(flag, **settings)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results" / "figures", help="folder (default results/figures)"
    )
    args = parser.parse_args()
    if n:
        args.n = sorted(set(args.n))
    try:
        if args.output.exists() and not args.output.is_dir():
            raise ValueError(f"--output {args.output} is not a folder")
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        from deq_enn.utils.files import atomic_write

        with plt.style.context(STYLE):
            figure, numbers = main(args)
            settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
            for kind in ("png", "pdf"):
                save(figure, args.output / f"{name}.{kind}")
            with atomic_write(args.output / f"{name}.json", "w") as file:
                json.dump({"settings": settings, **numbers}, file, indent=1)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except RuntimeError as error:
        parser.exit(1, f"{name}: failed: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{name}: interrupted\n")
    print(f"{args.output / name}.png")
