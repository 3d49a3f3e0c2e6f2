"""Tables of numbers for terminals of any width: no number and no name is cut or split.

Where a table is too wide, the parts of its cells (relative L1 and VRMSE, a value and its interval) are
put one above the other; where that is too wide as well, its columns are printed as several tables.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich import table
from rich.console import Console
from rich.text import Text

_SHORT = {
    "lead time": "lead\ntime",
    "autoregressive": "auto-\nregressive",
    "persistence": "persist-\nence",
}
_WORD_WIDTH = 12  # of names and words, where columns have to be narrow
_BORDER = 3  # characters that a column takes in addition to its text


@dataclass(frozen=True)
class Column:
    """A heading and a cell for each row, as text or with a colour.

    `is_text`: words, which may be put on several lines.
    """

    heading: str
    cells: Sequence[str | Text]
    is_text: bool = False

    @property
    def width(self) -> int:
        lines = [line for text in self.cells for line in str(text).split("\n")]
        return max(len(line) for line in (*lines, *self.heading.split("\n")))

    def narrow(self) -> Column:
        """The same with lines as short as they can be."""
        heading = "\n".join(
            _SHORT.get(line) or "\n".join(_folded(line)) for line in self.heading.split("\n")
        )
        return Column(heading, [self._narrow_cell(cell) for cell in self.cells], self.is_text)

    def _narrow_cell(self, cell: str | Text) -> str | Text:
        if self.is_text:
            lines = "\n".join(_folded(str(cell)))
        else:
            lines = str(cell).replace(" / ", "\n").replace(" (", "\n(")
        return Text(lines, style=cell.style) if isinstance(cell, Text) else lines


def print_table(console: Console, title: str, index: Column, columns: Sequence[Column]) -> None:
    """Print a table whose first column is `index`; `title` is plain text."""
    if _width([index, *columns]) <= console.width:
        _print(console, title, [index, *columns])
        return
    index, narrow = index.narrow(), [column.narrow() for column in columns]
    title = title.replace("relative L1 / VRMSE", "relative L1 above VRMSE")
    for number, part in enumerate(_parts(index, narrow, console.width)):
        _print(console, title if number == 0 else f"{title} (continued)", [index, *part])


def _parts(index: Column, columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Return the columns in parts that fit next to the index, at least one in each."""
    parts: list[list[Column]] = []
    for column in columns:
        if parts and _width([index, *parts[-1], column]) <= width:
            parts[-1].append(column)
        else:
            parts.append([column])
    return parts


def _width(columns: Sequence[Column]) -> int:
    return 1 + sum(column.width + _BORDER for column in columns)


def _print(console: Console, title: str, columns: Sequence[Column]) -> None:
    shown = table.Table(title=Text(title))
    for column in columns:
        shown.add_column(Text(column.heading), no_wrap=True, overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        # no markup is read in it, by whatever console
        shown.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    console.print(shown)


def _folded(text: str) -> list[str]:
    return textwrap.wrap(text, _WORD_WIDTH) or [""]
