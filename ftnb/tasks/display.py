"""A small table that a notebook shows as HTML and a terminal as text; whatever is in it is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import shorten

_CELL = "text-align:left;vertical-align:top;padding:0.25em 0.8em;"


@dataclass(frozen=True)
class TextTable:
    """Rows of short texts under named columns.

    Args:
        columns: the heading of each column.
        rows: the cells, as text.
        caption: a sentence above the table.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    caption: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_html_(self) -> str:
        head = "".join(f'<th style="{_CELL}">{escape(column)}</th>' for column in self.columns)
        # A long text wraps; the short cells beside it do not.
        body = "".join(
            "<tr>"
            + "".join(f'<td style="{_CELL}white-space:{_wrap(cell)}">{escape(cell)}</td>' for cell in row)
            + "</tr>"
            for row in self.rows
        )
        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>' if self.caption else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        cells = [tuple(shorten(cell, 70, placeholder=" …") for cell in row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.columns, *cells, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [self.columns, *cells]
        ]
        return "\n".join([self.caption, *lines] if self.caption else lines)


def _wrap(cell: str) -> str:
    return "normal" if len(cell) > 30 else "nowrap"
