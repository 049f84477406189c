"""The command lines share a parser that says in one line what is wrong, the values of flags, and the flags of the data.

Nothing heavy is imported here: --help and a bad flag are answered without waiting for torch.
"""

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from deq_enn.names import ACTIVATIONS, DATASETS, PRESETS
from deq_enn.utils.files import check_network_name
from deq_enn.utils.terminal import spell_what_is_not_shown

OWN_FILES = ".npz", ".npy", ".csv"  # ends of the names of files that the npz dataset reads
ASQUARE = 0.2  # sigma_a^2 where --asquare is not given
BAD_INPUT, FAILED = 2, 1  # exit statuses; the third is INTERRUPTED


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage text, and shows a module's docstring as it is.

    No abbreviation is taken for a flag: `--seed` would be taken for `--seeds`, and mean something else.
    """

    def __init__(self, **options: Any):
        spell_what_is_not_shown()
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.ended = False  # whether this parser has ended the program

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints --help and errors; a reader who has gone, as `| true`, is no failure."""
        file = file or sys.stderr
        try:
            file.write(message)
            file.flush()
        except (OSError, AttributeError):  # a closed pipe, or a stream that the shell has closed
            with contextlib.suppress(OSError, ValueError, AttributeError):  # or the interpreter tries once more
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, file.fileno())
                os.close(nowhere)

    def show(self, text: str) -> None:
        """Prints a text to stdout, as --help is printed: that nobody reads it is no failure."""
        if sys.stdout is not None:  # which the shell has closed (>&-)
            self._print_message(text, sys.stdout)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the program, which is then known not to be the end that a user's code makes."""
        self.ended = True
        super().exit(status, message)

    def error(self, message: object) -> NoReturn:
        """Exits with status 2 after "NAME: error: MESSAGE"."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\n")


class _Renamed(argparse.Action):
    """The old spelling of a flag says the new one on stderr, at its first use, and does what the new one does."""

    def __init__(self, old: str, target: argparse.Action):
        shape = {key: getattr(target, key) for key in ("dest", "nargs", "type", "choices", "metavar")}
        super().__init__([old], default=argparse.SUPPRESS, help=argparse.SUPPRESS, **shape)
        self.target, self.told = target, False

    def __call__(self, parser, namespace, values, option_string=None):
        new = self.target.option_strings[0]
        if not self.told:
            print(f"{parser.prog}: {option_string} is now {new}", file=sys.stderr)
        self.told = True
        self.target(parser, namespace, values, new)


def old_spelling(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    """Lets the flag `old` stand for `new`, which the parser has; on stderr it says once which to use."""
    target = next(action for action in parser._actions if new in action.option_strings)
    parser._add_action(_Renamed(old, target))


def positive_int(text: str) -> int:
    """Reads a whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text!r}")
    return value


def odd_int(text: str) -> int:
    """Reads an odd whole number from 1 on."""
    if not text.isdecimal() or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be an odd whole number such as 3, got {text!r}")
    return int(text)


def natural_int(text: str) -> int:
    """Reads a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def step_count(text: str) -> int:
    """Reads after how many steps an equilibrium is stopped; "inf", which is not at all, becomes 0."""
    if text == "inf":
        return 0
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be a positive whole number or inf, got {text!r}") from None


def class_label(text: str) -> int | str:
    """Reads the label of a class, a whole number such as -1 or a name."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def activation_name(text: str) -> str:
    """Reads the name of an activation, or path/to/file.py:name with a file that is there; its code is not run yet."""
    if text in ACTIVATIONS:
        return text
    path, colon, _ = text.rpartition(":")
    if not colon:
        known = ", ".join(ACTIVATIONS)
        raise argparse.ArgumentTypeError(
            f"unknown activation {text!r}: choose from {known}, or give path/to/file.py:name"
        )
    if not os.path.exists(path):
        raise argparse.ArgumentTypeError(f"activation {text!r}: there is no file {path}")
    return text


def bounded_int(low: int, high: int) -> Callable[[str], int]:
    """Returns a reader of whole numbers from `low` to `high`, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number between {low} and {high}, got {text!r}")
        return value

    return parse


def bounded_float(low: float, high: float, what: str) -> Callable[[str], float]:
    """Returns a reader of numbers strictly between `low` and `high`, which an error describes by `what`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value < high:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return parse


def probability(high: float) -> Callable[[str], float]:
    """Returns a reader of probabilities strictly between 0 and `high`, from "0.1" or "10%"."""

    def parse(text: str) -> float:
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            value = math.nan
        if not 0 < value < high:
            raise argparse.ArgumentTypeError(f"must be between 0 and {high:g}, such as 0.1 or 10%, got {text!r}")
        return value

    return parse


def scale(text: str) -> float:
    """Reads a scale such as tau_0, whose fourth power is to be a float."""
    return bounded_float(1e-70, 1e70, "positive and finite, between 1e-70 and 1e70")(text)


def rate(text: str) -> float | str:
    """Reads a learning rate, which may be "auto"."""
    return text if text == "auto" else bounded_float(0, math.inf, "auto, or positive and finite")(text)


def ridge(text: str) -> float | str:
    """Reads a ridge, which may be 0 or "auto"."""
    return text if text == "auto" else bounded_float(-1e-300, math.inf, "auto, or 0 or positive, and finite")(text)


def ridge_size(text: str) -> int:
    """Reads how many samples choose a ridge, whose last fifth has one sample at least."""
    value = positive_int(text)
    if value < 5:
        raise argparse.ArgumentTypeError(f"a ridge is chosen on 5 training samples or more, got {text}")
    return value


def byte_count(text: str) -> float:
    """Reads a number of bytes such as "8G"; the multiples are decimal."""
    try:
        value = float(text[:-1]) * {"M": 1e6, "G": 1e9, "T": 1e12}[text[-1:].upper()]
    except (KeyError, ValueError):
        value = 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number with M, G or T, such as 8G, got {text!r}")
    return value


def duration(text: str) -> float:
    """Reads seconds from "60s", "5m" or a number of seconds."""
    try:
        value = float(text.rstrip("sm")) * (60 if text.endswith("m") else 1)
    except ValueError:
        value = 0
    if not 0 < value < math.inf or text[-2:].strip("0123456789.") not in ("", "s", "m"):
        raise argparse.ArgumentTypeError(f"must be a positive time, such as 60s or 5m, got {text!r}")
    return value


def scheduler_address(text: str) -> str:
    """Checks the form of a Dask scheduler's address."""
    if not re.fullmatch(r"(tcp|tls|ws|wss|ucx)://\S+:\d+", text):
        raise argparse.ArgumentTypeError(f"must be an address such as tcp://HOST:8786, got {text!r}")
    return text


def add_asquare(add: Callable[..., object], default: float | None = ASQUARE) -> None:
    """Adds --asquare. A default of None is left to whoever sorts the flags out later, who takes ASQUARE as well."""
    add(
        "--asquare",
        type=bounded_float(0, 1, "between 0 and 1"),
        default=default,
        help="sigma_a^2 of the DEQ; sigma_b^2 = 1 - sigma_a^2 (default: 0.2)",
    )


def add_data_flags(add: Callable[..., object]) -> None:
    """Adds the flags that name the data, by a parser's `add_argument`."""
    add("--dataset", default="gmm", choices=DATASETS, help="default: gmm, a Gaussian mixture that needs no files")
    add("--preset", choices=PRESETS, help="which Gaussian mixture (default: mixed)")
    add("--classes", nargs="+", type=class_label, metavar="C", help="only these classes, such as 6 8")
    add(
        "--dataset_path", help="folder of the data; of npz the .npz, .npy or .csv file, or their folder (default: data)"
    )
    add("--vgg_path", help="weights of the VGG16 that makes the CIFAR-10 features, or imagenet")


def check_data_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses data flags that do not go together, and fills in the default of --preset."""
    a = arguments
    if a.dataset == "npz" and not a.dataset_path:
        parser.error("argument --dataset_path: the npz dataset needs the path of a .npz, .npy or .csv file")
    if a.dataset == "gmm" and str(a.dataset_path or "").lower().endswith(OWN_FILES):
        parser.error(f"argument --dataset_path: a Gaussian mixture reads no file; for {a.dataset_path}: --dataset npz")
    for flag, owner in (("preset", "gmm"), ("vgg_path", "cifar10")):
        if getattr(a, flag) is not None and a.dataset != owner:
            parser.error(f"argument --{flag}: it is for --dataset {owner}, not for {a.dataset}")
    a.preset = a.preset or PRESETS[0]


def check_folder(parser: argparse.ArgumentParser, flag: str, path: Path | str) -> None:
    """Refuses a folder that cannot be made or written to; `flag` is its flag without the dashes."""
    import tempfile  # a good command line can wait for it, --help need not

    path = Path(path)
    # os.path.exists returns False inside an unreadable folder, where Path.exists would raise; so this finds that folder
    existing = next(p for p in (path, *path.absolute().parents) if os.path.exists(p))
    if not existing.is_dir():
        parser.error(f"argument --{flag}: {existing} is a file, not a folder")
    try:  # os.access says yes to root even where no file can be made, as in /proc
        os.rmdir(tempfile.mkdtemp(dir=existing))
    except OSError:
        parser.error(f"argument --{flag}: {existing} cannot be written to")


def check_files(parser: argparse.ArgumentParser, **paths: Path | str | None) -> None:
    """Refuses files that are not there, before anything is loaded; {flag without dashes: its path, or None}."""
    for flag, path in paths.items():
        if path and not os.path.exists(path):
            parser.error(f"argument --{flag}: there is no file {path}")


def check_network_path(parser: argparse.ArgumentParser, flag: str, path: str) -> None:
    """Refuses a path that `networks.export` could not write a network to, without making its folder."""
    try:
        check_network_name(path)
    except ValueError as error:
        parser.error(f"argument --{flag}: {error}")
    check_folder(parser, flag, Path(path).parent)
