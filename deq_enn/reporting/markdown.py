"""A table of results, and the only writer of Markdown tables: the report, the summary and the benchmarks call it."""

import re
from collections.abc import Collection
from dataclasses import dataclass

LINE = 60  # letters of a cell that is not broken into lines


def row(*cells: str) -> str:
    """Returns one line of a table; a "|" within a cell is escaped."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def head(*names: str, right: Collection[int] = ()) -> str:
    """Returns the two lines that begin a table: the names of its columns, and which of them are set to the right."""
    return f"{row(*names)}\n{row(*('---:' if index in right else '---' for index in range(len(names))))}"


@dataclass(frozen=True)
class Table:
    """A table of texts with a title above and a note below.

    Attributes
    ----------
    header : names of the columns, of which the first names the row.
    rows : lists of str, as long as the header.
    """

    title: str
    header: list
    rows: list
    note: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Says of each column whether its cells are numbers, which are set to the right."""
        return [False] + [
            all(re.match(r"[+−]?\d|–?$", cells[i]) for cells in self.rows) for i in range(1, len(self.header))
        ]

    def kind(self, cell: str, column: int) -> str:
        """Returns "number", "prose" (a cell of more than a line) or "text"."""
        return "number" if self.numeric[column] else "prose" if len(cell) > LINE else "text"

    @property
    def sentences(self) -> bool:
        """Says whether there are cells of more than a line: on a narrow page the cells of a row then lie below."""
        return any(self.kind(cell, column) == "prose" for cells in self.rows for column, cell in enumerate(cells))

    def markdown(self) -> str:
        """Returns the table in Markdown, with its title in bold."""
        right = [index for index, numeric in enumerate(self.numeric) if numeric]
        lines = [head(*self.header, right=right), *(row(*cells) for cells in self.rows)]
        note = f"\n\n{self.note}" if self.note else ""
        return f"**{self.title}**\n\n" + "\n".join(lines) + note + "\n"
