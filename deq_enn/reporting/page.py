"""Pages are made from the templates beside this file; a page holds its pictures and needs no other file.

Texts may have *emphasis*, `code`, powers as in n^(-1/2), and Greek letters with an index, by name or by letter
(sigma_a^2, τ_0): `inline` makes HTML of them, so that a symbol looks the same wherever it comes from.
"""

import base64
import html
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from deq_enn.utils.files import atomic_write

FULL_WIDTH = 7.0  # inches of a figure as wide as the page
PAGE_WIDTH = 57.0  # rem of the text on a wide screen; base.html has it too, with its margins
GREEK: dict[str, str] = dict(zip("sigma tau phi alpha beta gamma kappa".split(), "στφαβγκ"))
MARKUP = (
    (r"`([^`]+)`", r"<code>\1</code>"),
    (r"(?<=[στφαβγκ])_(\w|\*)", r"<sub>\1</sub>"),
    (r"\*([^*<>]+)\*", r"<em>\1</em>"),
    (r"\^\(([^)]+)\)|\^(\d)", r"<sup>\1\2</sup>"),
    (r"²", r"<sup>2</sup>"),
)


def inline(text: str) -> Markup:
    """Returns the HTML of a text with this module's marks; what else it holds is escaped."""
    text = re.sub(rf"\b({'|'.join(GREEK)})(?=[_^'])", lambda name: GREEK[name[1]], text)
    text = html.escape(text, quote=False)
    for pattern, replacement in MARKUP:
        text = re.sub(pattern, replacement, text)
    return Markup(text)


def heading(text: str) -> Markup:
    """Returns the HTML of a column's name, in which a hyphen, as in ReLU-DEQ, does not end a line."""
    return Markup(str(inline(text)).replace("-", "\N{NON-BREAKING HYPHEN}"))


@dataclass(frozen=True)
class Picture:
    """A picture is a PNG figure with its caption, and a text for who cannot see it (the caption, if there is none)."""

    path: Path
    caption: str
    description: str = ""

    @property
    def alt(self) -> str:
        """Returns the text in place of the picture, without marks."""
        return (self.description or self.caption).replace("`", "")

    @cached_property
    def data(self) -> str:
        """Returns the file in base64."""
        return base64.b64encode(self.path.read_bytes()).decode()

    def relative(self, folder: Path | str) -> str:
        """Returns the path from the folder to the picture."""
        return os.path.relpath(self.path, folder)

    @property
    def width(self) -> str:
        """Returns the width in rem: all figures have one scale, so that their letters are of one size."""
        from PIL import Image

        with Image.open(self.path) as image:
            share = min(1, image.width / image.info.get("dpi", (200, 200))[0] / FULL_WIDTH)
        return f"{PAGE_WIDTH * share:.1f}"


def render(template: str, **content: Any) -> str:
    """Returns the page that the template makes of the content."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": inline, "heading": heading}
    return environment.get_template(template).render(content) + "\n"


def write_verdict(folder: Path | str, draw: Callable[[Path], bool], caption: str, **content: Any) -> list[Path]:
    """Writes verdict.png and verdict.html, whole or not at all, and returns their paths.

    draw : makes the figure at a path, and tells whether there was anything to draw; else the page has none.
    content : of the template verdict.html, beside the figure with its caption.
    """
    picture, page = Path(folder) / "verdict.png", Path(folder) / "verdict.html"
    pictures = [Picture(picture, caption)] if draw(picture) else []
    text = render("verdict.html", pictures=pictures, **content)
    with atomic_write(page, "w") as file:
        file.write(text)
    return [*(drawn.path for drawn in pictures), page]
