"""What is printed reaches every terminal: characters that one cannot show are spelled in ASCII, never an error."""

import codecs
import io
import sys

_SPELLED = {
    "σ": "sigma",
    "τ": "tau",
    "φ": "phi",
    "±": "+-",
    "×": "x",
    "−": "-",
    "–": "-",
    "²": "^2",
    "ᵀ": "^T",
    "‖": "||",
}  # what tables and lines are printed with; any other character becomes its \\u number


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    spelled = (_SPELLED.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters)
    return "".join(spelled), error.end


def spell_what_is_not_shown() -> None:
    """Lets stdout and stderr spell what their encoding lacks, as under LC_ALL=C or in an old Windows console."""
    codecs.register_error("spelled", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a closed one is None, a test's may be a StringIO
            stream.reconfigure(errors="spelled")
