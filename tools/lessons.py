"""Where lessons are and how they are read: one place for all tools."""

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
DIRECTIVE = re.compile(r"^#\|\s*(\w+)[ \t]*(.*?)\s*$")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
DIRECTIVES = ("default_exp", "export")


@dataclass(frozen=True)
class Cell:
    """One cell of a lesson; `directives` are its leading `#|` lines, which `body` no longer holds."""

    kind: str  # "markdown", "code" or "raw"
    source: str
    tags: tuple[str, ...] = ()
    directives: dict[str, str] = field(default_factory=dict)
    body: str = ""


def lessons(root: Path = ROOT) -> list[Path]:
    """All lesson sources, in reading order."""
    return sorted((root / "nbs").glob("[0-9][0-9]_*.py"))


def number(lesson: Path) -> int:
    """The lesson's place in the reading order: 13 for `13_events.py`."""
    return int(lesson.name[:2])


def read_lesson(lesson: Path) -> NotebookNode:
    """The lesson's source as a notebook without outputs."""
    return jupytext.read(lesson, fmt="py:percent")


def split_directives(source: str) -> tuple[dict[str, str], str]:
    """Take the leading `#| name value` lines off a code cell."""
    directives: dict[str, str] = {}
    lines = source.splitlines()
    while lines and (match := DIRECTIVE.match(lines[0])):
        directives[match[1]] = match[2]
        lines.pop(0)
    return directives, "\n".join(lines).strip("\n")


@functools.cache
def _parse(name: str, text: str) -> tuple[Cell, ...]:
    cells = []
    for node in jupytext.reads(text, fmt="py:percent").cells:
        directives, body = split_directives(node.source) if node.cell_type == "code" else ({}, node.source)
        for directive in directives:
            if directive not in DIRECTIVES:
                raise ValueError(f"{name}: unknown directive '#| {directive}'; there are {', '.join(DIRECTIVES)}.")
        cells.append(Cell(node.cell_type, node.source, tuple(node.metadata.get("tags", ())), directives, body))
    return tuple(cells)


def read_cells(lesson: Path) -> tuple[Cell, ...]:
    """The cells of a lesson, in order.

    Raises:
        ValueError: if a cell carries a directive that does not exist (a misspelt one would silently export nothing).
    """
    return _parse(lesson.name, lesson.read_text(encoding="utf-8"))


def plain_text(text: str) -> str:
    """A kernel's message without its colours."""
    return ANSI.sub("", text)


def code(lesson: Path) -> str:
    """All code of a lesson as one module's text, shell and magic lines left out."""
    lines = "\n\n".join(cell.body for cell in read_cells(lesson) if cell.kind == "code").splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
