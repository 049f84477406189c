"""The parser that the commands share, and old spellings of flags."""

import argparse
import os

import pytest

from deq_enn.utils.arguments import (
    OneLineParser,
    add_data_flags,
    bounded_float,
    bounded_int,
    old_spelling,
    positive_int,
)


@pytest.fixture
def parser():
    parser = OneLineParser(prog="NAME")
    parser.add_argument("--asquare", type=bounded_float(0, 1, "between 0 and 1"), default=0.2)
    parser.add_argument("--dim", type=positive_int, nargs="+", default=[64])
    old_spelling(parser, "--sigma_a2", "--asquare")
    old_spelling(parser, "--width", "--dim")
    return parser


def test_an_old_spelling_does_what_the_new_does_and_says_it_once(parser, capsys):
    arguments = parser.parse_args(["--sigma_a2", "0.3", "--width", "8", "16", "--sigma_a2=0.4"])
    assert vars(arguments) == {"asquare": 0.4, "dim": [8, 16]}
    assert capsys.readouterr().err == "NAME: --sigma_a2 is now --asquare\nNAME: --width is now --dim\n"


def test_new_spellings_say_nothing(parser, capsys):
    assert vars(parser.parse_args([])) == {"asquare": 0.2, "dim": [64]}
    assert vars(parser.parse_args(["--asquare", "0.5"])) == {"asquare": 0.5, "dim": [64]}
    assert capsys.readouterr().err == ""
    assert "sigma_a2" not in parser.format_help() + parser.format_usage()


def test_a_reader_who_has_gone_is_no_failure(parser):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as nobody:
        parser.print_help(nobody)
        parser.print_help(nobody)
    parser.print_help(None)


@pytest.mark.parametrize("flag", ["--sigma_a2", "--asquare"])
def test_values_of_either_are_checked(parser, capsys, flag):
    with pytest.raises(SystemExit) as exit:
        parser.parse_args([flag, "2"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"NAME: error: argument {flag}: must be between 0 and 1, got '2'\n"


@pytest.mark.parametrize("text", ["15", "31", "1.5", "x", ""])
def test_whole_numbers_between_bounds(text):
    assert bounded_int(16, 30)("16") == 16 and bounded_int(16, 30)("30") == 30
    with pytest.raises(argparse.ArgumentTypeError, match="between 16 and 30"):
        bounded_int(16, 30)(text)


def test_classes_are_whole_numbers_of_either_sign_or_names():
    parser = OneLineParser(prog="NAME")
    add_data_flags(parser.add_argument)
    assert parser.parse_args(["--classes", "-1", "1", "cat", "-"]).classes == [-1, 1, "cat", "-"]
