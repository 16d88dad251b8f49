"""Export the marked cells of lessons into modules of the package.

A lesson names its module once (`#| default_exp events`) and marks the cells that belong to it (`#| export`).
The exporter reads the `.py` source of the lesson directly, so that a module depends on nothing but that file.

    python -m tools.export                     export every lesson, remove modules whose lesson is gone
    python -m tools.export nbs/13_events.py    export some
"""

import argparse
import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.lessons import ROOT, Cell, lessons, read_cells

HEADER = "# Exported from nbs/{lesson}: edit the lesson, then run `make export`."
HEADER_START = HEADER.partition("{lesson}")[0]


@dataclass(frozen=True)
class ExportedModule:
    """One module as a lesson defines it: where it goes and its whole text."""

    lesson: str
    name: str  # dotted, below the package: "events" or "tasks.text_classification"
    source: str

    def path(self, root: Path = ROOT) -> Path:
        """The module's file below `root`."""
        return root / "ftnb" / (self.name.replace(".", "/") + ".py")


def subtitle(cells: Iterable[Cell], lesson: Path) -> str:
    """The lesson's `> subtitle`, which becomes the module's docstring."""
    for cell in cells:
        match = re.search(r"^> (.+)$", cell.source, re.MULTILINE) if cell.kind == "markdown" else None
        if match:
            return match[1].strip()
    raise ValueError(f"{lesson.name} has no '> subtitle' line under its title; the module's docstring is made of it.")


def public_names(source: str) -> list[str]:
    """Names that the module defines at top level and that do not begin with an underscore, in order."""
    names: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            stored = (n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))
            names += [n.id for n in stored if isinstance(n.ctx, ast.Store)]
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
        ValueError: if the lesson exports cells but names no module, names two, has no subtitle,
            or exports a cell that is not plain Python.
    """
    cells = read_cells(lesson)
    named = [cell.directives["default_exp"] for cell in cells if "default_exp" in cell.directives]
    exported = [cell.body for cell in cells if "export" in cell.directives and cell.body]
    if not named:
        if exported:
            raise ValueError(f"{lesson.name} marks cells with '#| export' but has no '#| default_exp name' cell.")
        return None
    if len(named) > 1 or not re.fullmatch(r"[a-z_]\w*(\.[a-z_]\w*)*", named[0]):
        raise ValueError(f"{lesson.name} must name one module by '#| default_exp name', found: {', '.join(named)}.")
    for body in exported:
        try:
            ast.parse(body)
        except SyntaxError as error:
            line = (error.text or "").strip()
            raise ValueError(f"{lesson.name}: an exported cell is not plain Python ({error.msg}): {line}") from None
    imports, rest = split_imports(exported[0]) if exported else ("", "")
    blocks = [block for block in (rest, *exported[1:]) if block]
    listing = "__all__ = [" + "".join(f'\n    "{n}",' for n in public_names("\n\n".join(blocks))) + "\n]"
    docstring = '"""' + subtitle(cells, lesson).replace("\\", "\\\\").replace('"""', "'''") + '"""'
    top = [part for part in (f"{HEADER.format(lesson=lesson.name)}\n{docstring}", imports, listing) if part]
    source = "\n\n".join(top) + "".join(f"\n\n\n{block}" for block in blocks) + "\n"
    return ExportedModule(lesson.name, named[0], source)


def export_all(root: Path = ROOT) -> list[ExportedModule]:
    """The modules of all lessons, in reading order.

    Raises:
        ValueError: if two lessons export the same module, or one of them cannot be exported.
    """
    homes: dict[str, ExportedModule] = {}
    for lesson in lessons(root):
        module = export_lesson(lesson)
        if module is None:
            continue
        if module.name in homes:
            raise ValueError(f"{lesson.name} and {homes[module.name].lesson} both export ftnb.{module.name}.")
        homes[module.name] = module
    return list(homes.values())


def is_exported(path: Path) -> bool:
    """Whether a file of the package says that it was exported from a lesson."""
    with path.open(encoding="utf-8") as file:
        return file.readline().startswith(HEADER_START)


def orphans(modules: Iterable[ExportedModule], root: Path = ROOT) -> list[Path]:
    """Exported files below `root` that none of `modules` accounts for: their lesson is gone or renamed its module."""
    wanted = {module.path(root) for module in modules}
    return [p for p in sorted((root / "ftnb").rglob("*.py")) if p not in wanted and is_exported(p)]


def write(module: ExportedModule, root: Path = ROOT) -> bool:
    """Write a module's file; False if it already was so.

    Raises:
        ValueError: if a hand-written module stands in the place.
    """
    path = module.path(root)
    if path.exists():
        if path.read_text(encoding="utf-8") == module.source:
            return False
        if not is_exported(path):
            where = path.relative_to(root)
            raise ValueError(f"{module.lesson} would overwrite {where}, which is written by hand. Rename one of them.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(module.source, encoding="utf-8", newline="\n")
    return True


def main(argv: list[str] | None = None) -> None:
    """Export lessons from the command line."""
    parser = argparse.ArgumentParser(description="Export the marked cells of lessons into ftnb/.")
    parser.add_argument("lessons", nargs="*", type=Path, help="lesson sources; all when left out")
    chosen = parser.parse_args(argv).lessons
    try:
        modules = [m for lesson in chosen if (m := export_lesson(lesson))] if chosen else export_all()
        for module in modules:
            if write(module):
                print(f"{module.lesson} -> {module.path().relative_to(ROOT)}")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for path in [] if chosen else orphans(modules):
        path.unlink()
        print(f"removed {path.relative_to(ROOT)}: no lesson exports it")


if __name__ == "__main__":
    main()
