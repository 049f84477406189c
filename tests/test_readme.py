"""What README.md and docs/ tell a reader to type is what the commands take, and prints what stands there."""

import re
import shlex
import subprocess
import sys
from collections import defaultdict

import pytest

from deq_enn.commands import export, match
from deq_enn.experiments.flags import parse_arguments
from deq_enn.verdicts import command as verdict
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARSERS = {
    "run": parse_arguments,
    "verdict": lambda argv: verdict.make_parser().parse_args(argv),
    "match": lambda argv: match.make_parser().parse_args(argv),
    "export": lambda argv: export.make_parser().parse_args(argv),
}
LEFT_OUT = "...", "$", "DATASET", "|", "--help"  # signs of a command that is not written out, or that only asks


def lines():
    """Yields (page, line) of every fence and of all code within a sentence."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for fence in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
            yield from ((page.name, line.split(" #")[0]) for line in fence.splitlines())
        yield from ((page.name, " ".join(code.split())) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))


def matching(pattern):
    """Returns (page, groups) of the lines that the pattern fits, without those that are not written out."""
    pairs = ((page, re.match(pattern, line)) for page, line in lines() if not any(sign in line for sign in LEFT_OUT))
    return [(page, pair.groups()) for page, pair in pairs if pair]


COMMANDS = [
    (page, name or "run", shlex.split(words))
    for page, (name, words) in matching(
        r"(?:python main\.py|(?:python -m deq_enn|deq-enn) (run|verdict|match|export)\b) (.*)"
    )
]


def test_there_are_commands_of_every_kind():
    assert len(COMMANDS) > 30 and {name for _, name, _ in COMMANDS} == set(PARSERS)


@pytest.mark.parametrize("page, name, argv", COMMANDS, ids=[f"{page}-{' '.join(argv)}" for page, _, argv in COMMANDS])
def test_the_commands_of_the_pages_are_taken(page, name, argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_file.py").touch()
    PARSERS[name](argv)


@pytest.mark.slow
def test_the_other_programs_have_the_flags_that_the_pages_give_them():
    wanted = defaultdict(set)
    for _, (program, words) in matching(r"python ([\w/]+\.py)\b(.*)"):
        assert (ROOT / program).is_file()
        wanted[program] |= set(re.findall(r"--\w+", words))
    assert len(wanted) > 15
    for program in wanted.keys() - {"main.py"}:
        if flags := wanted[program]:
            argv = [sys.executable, program, "--help"]
            done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=True)
            assert flags <= set(re.findall(r"--\w+", done.stdout)), program


@pytest.mark.slow
def test_the_python_of_the_readme_prints_what_it_says(capsys):
    code, printed = re.search(
        r"```python\n(.*?)```\n\n```\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.S
    ).groups()
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == printed
