"""Text with marked entities: coloured HTML in a notebook, brackets in a terminal; what is in it is escaped."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from zlib import crc32

_SALT = 15334  # with it the usual types (person, place, organisation; PER, LOC, ORG, MISC …) get hues far apart
_NOTE = "font-size:0.75em;font-weight:600;margin-left:0.35em;white-space:nowrap"
_NAME = "text-align:left;vertical-align:top;padding:0.25em 0.8em 0.25em 0;white-space:nowrap"


@dataclass(frozen=True)
class Mark:
    """An entity in a text.

    Args:
        start: place of its first character.
        end: just behind its last.
        label: its type.
        note: what is wrong with it, such as "missed"; drawn with a dashed line around.
    """

    start: int
    end: int
    label: str
    note: str = ""

    @property
    def says(self) -> str:
        """What stands behind it."""
        return f"{self.label}, {self.note}" if self.note else self.label


@dataclass(frozen=True)
class MarkedText:
    """A named text with marks that do not overlap, in their order."""

    name: str
    text: str
    marks: Sequence[Mark]

    def html(self) -> str:
        """The text with each mark as a coloured box that says its type."""
        parts, at = [], 0
        for mark in self.marks:
            parts += [escape(self.text[at : mark.start]), _box(self.text[mark.start : mark.end], mark)]
            at = mark.end
        return "".join([*parts, escape(self.text[at:])])

    def plain(self) -> str:
        """The text with each mark in brackets: "[Anna|person]"."""
        parts, at = [], 0
        for mark in self.marks:
            parts += [self.text[at : mark.start], f"[{self.text[mark.start : mark.end]}|{mark.says}]"]
            at = mark.end
        return "".join([*parts, self.text[at:]])


@dataclass(frozen=True)
class MarkedTexts:
    """Texts with marks below each other, which a notebook and a terminal can show."""

    lines: Sequence[MarkedText]
    caption: str = ""

    def __len__(self) -> int:
        return len(self.lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="{_NAME}">{escape(line.name)}</td>'
            f'<td style="text-align:left;line-height:1.9">{line.html()}</td></tr>'
            for line in self.lines
        )
        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>' if self.caption else ""
        return f"<table>{caption}<tbody>{rows}</tbody></table>"

    def __repr__(self) -> str:
        width = max((len(line.name) for line in self.lines), default=0)
        rows = [f"{line.name.ljust(width)}  {line.plain()}" for line in self.lines]
        return "\n".join([self.caption, *rows] if self.caption else rows)


def _box(text: str, mark: Mark) -> str:
    # The same type has the same colour everywhere; half transparent, it can be read on a light and on a dark page.
    kind = re.sub("^[BI]-", "", mark.label)
    hue = crc32(f"{_SALT}{kind}".encode()) % 360
    line = f"2px dashed hsl({hue} 70% 45%)" if mark.note else f"1px solid hsl({hue} 70% 45% / 0.5)"
    style = f"background:hsl({hue} 80% 55% / 0.22);border:{line};border-radius:4px;padding:0.1em 0.3em"
    return f'<span style="{style}">{escape(text)}<span style="{_NOTE}">{escape(mark.says)}</span></span>'


def compare(truth: Sequence[Mark], predicted: Sequence[Mark]) -> tuple[list[Mark], list[Mark]]:
    """True and predicted entities of one text, each with what is wrong about it.

    Returns:
        The true ones with the note "missed" (or none), and the predicted ones with "false" (nothing is there), "wrong
        type" (the same characters have another type), "wrong limits" (they only overlap) or none.
    """
    right = {(mark.start, mark.end, mark.label) for mark in truth} & {(m.start, m.end, m.label) for m in predicted}

    def noted(mark: Mark, others: Sequence[Mark], alone: str) -> Mark:
        if (mark.start, mark.end, mark.label) in right:
            return mark
        if any((mark.start, mark.end) == (other.start, other.end) for other in others):
            return Mark(mark.start, mark.end, mark.label, "wrong type")
        if any(mark.start < other.end and other.start < mark.end for other in others):
            return Mark(mark.start, mark.end, mark.label, "wrong limits")
        return Mark(mark.start, mark.end, mark.label, alone)

    found = [noted(mark, truth, "false alarm") for mark in predicted]
    return [noted(mark, predicted, "missed") for mark in truth], found
