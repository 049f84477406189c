"""The command lines share a parser that says in one line what is wrong, the values of flags, and the flags of the data.

Nothing heavy is imported here: --help and a bad flag are answered without waiting for torch.
"""

import argparse
import math
import os
from pathlib import Path

from deq_enn.names import DATASETS, PRESETS

BAD_INPUT, FAILED = 2, 1  # exit statuses; the third is INTERRUPTED


class OneLineParser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):  # one line, without the usage text
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


def positive_int(text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return value


def natural_int(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def bounded_float(low, high, what):
    def parse(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return parse


def rate(text):
    return text if text == "auto" else bounded_float(0, math.inf, "auto, or positive and finite")(text)


def ridge(text):
    return text if text == "auto" else bounded_float(-1e-300, math.inf, "auto, or 0 or positive, and finite")(text)


def byte_count(text):
    """ "8G" and the like: decimal multiples."""
    try:
        value = float(text[:-1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[text[-1:].upper()]
    except (KeyError, ValueError):
        value = 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number with M, G or T, such as 8G, got {text!r}")
    return value


def duration(text):
    """Seconds from "60s", "5m" or a number of seconds."""
    try:
        value = float(text.rstrip("sm")) * (60 if text.endswith("m") else 1)
    except ValueError:
        value = 0
    if not 0 < value < math.inf or text[-2:].strip("0123456789.") not in ("", "s", "m"):
        raise argparse.ArgumentTypeError(f"must be a positive time, such as 60s or 5m, got {text!r}")
    return value


def add_data_flags(add):
    """Those that name the data, by a parser's `add_argument`."""
    add("--dataset", default="gmm", choices=DATASETS, help="default: gmm, a Gaussian mixture that needs no files")
    add("--preset", default="mixed", choices=PRESETS, help="which Gaussian mixture (default: mixed)")
    add("--classes", nargs="+", type=natural_int, metavar="C", help="only these classes, such as 6 8")
    add("--dataset_path", help="folder of the data, or the .npz file (default: data)")
    add("--vgg_path", help="weights of the VGG16 that makes the CIFAR-10 features, or imagenet")


def check_data_flags(parser, arguments):
    if arguments.dataset == "npz" and not arguments.dataset_path:
        parser.error("argument --dataset_path: the npz dataset needs the path of a .npz file")


def check_folder(parser, flag, path):
    import tempfile  # a good command line can wait for it, --help need not

    path = Path(path)
    # of a path through a folder that may not be searched, that folder: os.path.exists says False, Path.exists raises
    existing = next(p for p in (path, *path.absolute().parents) if os.path.exists(p))
    if not existing.is_dir():
        parser.error(f"argument --{flag}: {existing} is a file, not a folder")
    try:  # os.access says yes to root, also of what is no place for files, as /proc
        os.rmdir(tempfile.mkdtemp(dir=existing))
    except OSError:
        parser.error(f"argument --{flag}: {existing} cannot be written to")
