"""A page is a list of blocks, each of which knows its HTML and its Markdown; the page needs no other file."""

import base64
import html
import os
import re
from dataclasses import dataclass
from pathlib import Path

FULL_WIDTH = 7.0  # inches of a figure as wide as the page


def inline(text):
    """HTML of a text with *emphasis*, `code`, n^(-1/2) and σ_a."""
    text = html.escape(text)
    for pattern, tag in (
        (r"`([^`]+)`", "code"),
        (r"\*([^*]+)\*", "em"),
        (r"\^\(([^)]+)\)", "sup"),
        (r"(?<=σ)_(\w)", "sub"),
    ):
        text = re.sub(pattern, rf"<{tag}>\1</{tag}>", text)
    return text


@dataclass(frozen=True)
class Table:
    title: str
    header: list
    rows: list  # of lists of str
    note: str = ""

    @property
    def numeric(self):
        """For each column, whether its cells are numbers (set to the right); the first names the row."""
        return [False] + [
            all(re.match(r"[+−]?\d|–?$", row[i]) for row in self.rows) for i in range(1, len(self.header))
        ]

    def markdown(self):
        def line(cells):
            return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

        rule = ["---:" if numeric else "---" for numeric in self.numeric]
        note = f"\n\n{self.note}" if self.note else ""
        return f"**{self.title}**\n\n" + "\n".join(map(line, [self.header, rule, *self.rows])) + note + "\n"


@dataclass(frozen=True)
class Heading:
    level: int
    text: str

    def markdown(self, folder):
        return f"{'#' * self.level} {self.text}\n"

    def html(self):
        return f"<h{self.level}>{inline(self.text)}</h{self.level}>"


@dataclass(frozen=True)
class Text:
    text: str
    label: str = ""  # such as "Paper", set apart

    def markdown(self, folder):
        return (f"*{self.label}:* " if self.label else "") + self.text + "\n"

    def html(self):
        label = f"<span class=label>{self.label}</span> " if self.label else ""
        return f"<p{' class=' + self.label.lower() if self.label else ''}>{label}{inline(self.text)}</p>"


@dataclass(frozen=True)
class Code:
    text: str

    def markdown(self, folder):
        return f"```\n{self.text}\n```\n"

    def html(self):
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclass(frozen=True)
class Rows:
    table: Table

    def markdown(self, folder):
        return self.table.markdown()

    def html(self):
        def row(cells, tag):
            kinds = [
                "number" if numeric else "prose" if len(cell) > 60 else "text"
                for numeric, cell in zip(self.table.numeric, cells)
            ]
            # a non-breaking hyphen keeps ReLU-DEQ on one line
            texts = [inline(cell).replace("-", "&#8209;") if tag == "th" else inline(cell) for cell in cells]
            return "<tr>" + "".join(f"<{tag} class={kind}>{text}</{tag}>" for kind, text in zip(kinds, texts)) + "</tr>"

        note = f"<p class=note>{inline(self.table.note)}</p>" if self.table.note else ""
        head, body = row(self.table.header, "th"), "".join(row(cells, "td") for cells in self.table.rows)
        return (
            f"<div class=table><table><caption>{inline(self.table.title)}</caption><thead>{head}</thead>"
            f"<tbody>{body}</tbody></table></div>{note}"
        )


@dataclass(frozen=True)
class Figure:
    path: Path
    caption: str

    def markdown(self, folder):
        return f"![{self.caption}]({os.path.relpath(self.path, folder)})\n"

    def html(self):
        from PIL import Image

        data = base64.b64encode(self.path.read_bytes()).decode()
        with Image.open(self.path) as image:  # all figures at one scale, so that their letters are of one size
            share = min(1, image.width / image.info.get("dpi", (200, 200))[0] / FULL_WIDTH)
        caption = html.escape(self.caption)
        return (
            f'<figure><img style="width: {100 * share:.0f}%" alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 Charter, "Bitstream Charter", "STIX Two Text", Cambria, Georgia, serif;
  color: #1a1a1a; background: #fff; max-width: 60rem; margin: 2.5rem auto 5rem; padding: 0 1.5rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid #ccc; }
h3 { font-size: 1.08rem; margin: 2rem 0 .5rem; }
p { margin: .6rem 0; }
p.paper { background: #f4f6f8; border-left: 3px solid #0072b2; padding: .6rem .9rem; }
.label { font: 600 .72rem/1 system-ui, sans-serif; text-transform: uppercase; letter-spacing: .05em;
  color: #0072b2; margin-right: .3rem; }
p.note, figcaption { font-size: .85rem; color: #555; }
div.table { overflow-x: auto; margin: 1.2rem 0 .4rem; }
table { border-collapse: collapse; font: .82rem/1.4 system-ui, sans-serif; font-variant-numeric: tabular-nums;
  width: 100%; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: bottom; }
td { vertical-align: top; white-space: nowrap; border-top: 1px solid #eee; }
.number { text-align: right; }
td.prose { white-space: normal; min-width: 16rem; }
thead th { border-top: 1.5px solid #333; border-bottom: 1px solid #333; font-weight: 600; }
tbody tr:last-child td { border-bottom: 1.5px solid #333; }
pre { font: .78rem/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; background: #f6f6f6; padding: .6rem .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0; }
code { font: .88em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
figure { margin: 1.2rem 0; text-align: center; }
figure img { height: auto; }
@media print { body { margin: 0; } figure, table { break-inside: avoid; } }
"""


def page(blocks, title):
    body = "\n".join(block.html() for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )
