"""Export the marked cells of lessons into modules of the package.

A lesson names its module once (`#| default_exp events`) and marks the cells that belong to it (`#| export`).
The exporter reads the `.py` source of the lesson directly, so that a module depends on nothing but that file.

    python -m tools.export                     export every lesson
    python -m tools.export nbs/13_events.py    export some
"""

import argparse
import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_EXP = re.compile(r"^#\|\s*default_exp\s+([\w.]+)\s*$", re.MULTILINE)
EXPORT = re.compile(r"^#\|\s*export\s*\n", re.MULTILINE)


@dataclass(frozen=True)
class ExportedModule:
    """One module as a lesson defines it: where it goes and its whole text."""

    lesson: str
    name: str  # dotted, below the package: "events" or "tasks.text_classification"
    source: str

    def path(self, root: Path = ROOT) -> Path:
        """The module's file below `root`."""
        return root / "ftnb" / (self.name.replace(".", "/") + ".py")


def read_cells(lesson: Path) -> list[tuple[str, str]]:
    """The cells of a percent-format lesson as (cell type, source), in order."""
    notebook = jupytext.read(lesson, fmt="py:percent")
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def subtitle(cells: Iterable[tuple[str, str]], lesson: Path) -> str:
    """The lesson's `> subtitle`, which becomes the module's docstring."""
    for kind, source in cells:
        match = re.search(r"^> (.+)$", source, re.MULTILINE) if kind == "markdown" else None
        if match:
            return match[1].strip()
    raise ValueError(f"{lesson.name} has no '> subtitle' line under its title; the module's docstring is taken from it.")


def public_names(source: str) -> list[str]:
    """Names that the module defines at top level and that do not begin with an underscore, in order."""
    names: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.append(node.target.id)
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def split_imports(source: str) -> tuple[str, str]:
    """Split the first exported cell into its leading imports and what follows them."""
    body = ast.parse(source).body
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    if not imports:
        return "", source
    last = max(node.end_lineno or node.lineno for node in imports)
    lines = source.splitlines()
    return "\n".join(lines[:last]).strip("\n"), "\n".join(lines[last:]).strip("\n")


def export_lesson(lesson: Path) -> ExportedModule | None:
    """Build the module that a lesson exports; None for a lesson that exports nothing.

    Raises:
        ValueError: if the lesson exports cells but names no module, or has no subtitle.
    """
    cells = read_cells(lesson)
    code = [source for kind, source in cells if kind == "code"]
    name = next((match[1] for source in code if (match := DEFAULT_EXP.search(source))), None)
    exported = [EXPORT.sub("", source, count=1).strip("\n") for source in code if EXPORT.match(source)]
    if name is None:
        if exported:
            raise ValueError(f"{lesson.name} marks cells with '#| export' but has no '#| default_exp name' cell.")
        return None
    imports, rest = split_imports(exported[0]) if exported else ("", "")
    blocks = [block for block in (rest, *exported[1:]) if block]
    names = public_names("\n\n".join(blocks))
    listing = "__all__ = [" + "".join(f'\n    "{n}",' for n in names) + "\n]"
    header = f"# Exported from nbs/{lesson.name}: edit the lesson, then run `make export`."
    docstring = '"""' + subtitle(cells, lesson).replace('"""', "'''") + '"""'
    top = [part for part in (f"{header}\n{docstring}", imports, listing) if part]
    source = "\n\n".join(top) + "\n\n\n" + "\n\n\n".join(blocks) + "\n"
    return ExportedModule(lesson.name, name, source)


def lessons(root: Path = ROOT) -> list[Path]:
    """All lesson sources, in reading order."""
    return sorted((root / "nbs").glob("[0-9][0-9]_*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the marked cells of lessons into ftnb/.")
    parser.add_argument("lessons", nargs="*", type=Path, help="lesson sources; all when left out")
    for lesson in parser.parse_args().lessons or lessons():
        module = export_lesson(lesson)
        if module is None:
            continue
        path = module.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != module.source:
            path.write_text(module.source, encoding="utf-8")
            print(f"{lesson.name} -> {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
