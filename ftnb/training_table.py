"""The table that `ftnb.layers.what_is_training` returns: its rows, as text and as a table in a notebook."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class GroupRow:
    """One layer group in the table "What is training?".

    Attributes:
        name: the layer group's name.
        tensors: its number of parameter tensors; `trainable` of them require a gradient, `moved` of them moved.
        size: its number of weights.
        lrs: the learning rates its tensors are stepped with, lowest first; empty if no optimizer holds them.
        mode: "train", "eval" or "mixed", by its modules.
        batch_norm: "moving" or "fixed" running statistics; "" without BatchNorm.
        surprises: what a person would not expect, in words.
    """

    name: str
    tensors: int
    size: int
    trainable: int
    moved: int
    lrs: tuple[float, ...]
    mode: str
    batch_norm: str
    surprises: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of `TrainingTable.COLUMNS`."""
        rates = [f"{lr:.1e}" for lr in (self.lrs[0], self.lrs[-1])] if self.lrs else ["–"]
        grad = {0: "no", self.tensors: "yes"}.get(self.trainable, f"{self.trainable} of {self.tensors}")
        moved = f"{self.moved} of {self.tensors}"
        size = f"{self.size:,}"
        return self.name, size, " to ".join(dict.fromkeys(rates)), grad, self.mode, self.batch_norm or "–", moved


@dataclass(frozen=True)
class TrainingTable:
    """What one training step did to every layer group; a table in a notebook, text elsewhere.

    `notes` are lines for below it: what a cache will save.
    """

    title: str
    rows: tuple[GroupRow, ...]
    notes: tuple[str, ...] = ()
    COLUMNS: ClassVar = ("group", "weights", "rate", "requires grad", "mode", "BatchNorm", "tensors moved")

    @property
    def surprises(self) -> list[str]:
        """All surprises, each with the groups it was seen in."""
        groups: dict[str, list[str]] = {}
        for row in self.rows:
            for surprise in row.surprises:
                groups.setdefault(surprise, []).append(row.name)
        return [f"{', '.join(names)}: {surprise}" for surprise, names in groups.items()]

    def __str__(self) -> str:
        lines = [self.COLUMNS, *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.COLUMNS))]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, *text, *(f"! {surprise}" for surprise in self.surprises), *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def row(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f'<{tag} style="text-align:left">{html.escape(c)}</{tag}>' for c in cells) + "</tr>"

        body = "".join(row(r.cells(), "td") for r in self.rows)
        notes = "".join(f"<li>{html.escape(surprise)}</li>" for surprise in self.surprises)
        caption = f'<caption style="text-align:left">{html.escape(self.title)}</caption>'
        table = f"<table>{caption}<thead>{row(self.COLUMNS, 'th')}</thead><tbody>{body}</tbody></table>"
        lines = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return table + (f"<p><b>Surprises</b></p><ul>{notes}</ul>" if notes else "") + lines
