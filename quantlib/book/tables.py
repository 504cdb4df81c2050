"""Tables of measured numbers, for pages. Start from :func:`show_table`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

from quantlib.book.figures import show_captioned


@dataclass(frozen=True)
class Marked:
    """A cell with a meaning: "exact" (the value as trained, blue) or "off" (off the scale: its bar is broken)."""

    value: object
    meaning: str

    def __str__(self) -> str:
        return str(self.value)


exact = partial(Marked, meaning="exact")  # a cell that holds the value as trained
off_scale = partial(Marked, meaning="off")  # a cell whose number is too large to be drawn beside the others


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "", bars: bool = False, wide: bool = False
) -> None:
    """Show a table: HTML in a browser, aligned columns where there is only text.

    header, rows  words and numbers, shown as str() gives them; a cell may be exact(…) or off_scale(…)
    caption       what was measured, on what
    bars          a bar for each number of the last column, in the book
    wide          as wide as text and margin together

    Raises ValueError if a row is not as long as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells does not fit a header of {len(header)}: {[str(c) for c in row]}")
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    html = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    about = {"caption": caption, "bars": bars, "wide": wide}
    show_captioned({"text/html": html, "text/plain": _plain([header, *rows])}, about)


def _cell(value: object) -> str:
    meaning = f' class="{value.meaning}"' if isinstance(value, Marked) else ""
    return f"<td{meaning}>{escape(str(value))}</td>"


def _plain(lines: Sequence[Sequence[object]]) -> str:
    columns = []
    for column in zip(*lines, strict=True):
        taken = [sum(not unicodedata.combining(c) for c in str(cell)) for cell in column]  # of a terminal
        columns.append([" " * (max(taken) - t) + str(cell) for t, cell in zip(taken, column, strict=True)])
    return "\n".join(map("  ".join, zip(*columns, strict=True)))
