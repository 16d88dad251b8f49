"""Whether a committed notebook's outputs still belong to its code.

Running a lesson stores two hashes in the notebook: of its own code, and of everything of the package that it imports
(modules, directly and through others, and the built-in checkpoints). Prose may change without a new run.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from nbformat import NotebookNode

from tools.derive import notebook_path, read_notebook
from tools.imports import LOADING, ImportGraph, imports_of, module_files, reachable
from tools.lessons import ROOT, code, lessons, read_cells


def _digest(parts: Iterable[bytes]) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(hashlib.sha256(part).digest())
    return hasher.hexdigest()[:16]


def hashes(lesson: Path, root: Path = ROOT, graph: ImportGraph | None = None) -> dict[str, str]:
    """What a lesson's outputs depend on, as `source_hash` and `modules_hash`."""
    graph = graph or ImportGraph(root)
    files = module_files(root)
    reached = {node.removesuffix(LOADING) for node in reachable(graph.edges, graph.targets(imports_of(code(lesson))))}
    weights = sorted(p for p in (root / "ftnb" / "weights").rglob("*") if p.is_file() and p.suffix != ".md")
    cells = (cell.source.encode() for cell in read_cells(lesson) if cell.kind == "code")
    used = [files[name] for name in sorted(reached)] + (weights if reached else [])
    return {"source_hash": _digest(cells), "modules_hash": _digest(path.read_bytes() for path in used)}


def why_stale(notebook: NotebookNode, current: dict[str, str]) -> str | None:
    """Why outputs no longer belong to the code, in words; None if they do."""
    stored = notebook.metadata.get("ftnb", {})
    if not stored:
        return "was never run"
    if stored.get("source_hash") != current["source_hash"]:
        return "its code changed since it was run"
    if stored.get("modules_hash") != current["modules_hash"]:
        return "a module that it imports changed since it was run"
    return None


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Lessons whose committed outputs are out of date, with the reason."""
    graph = ImportGraph(root)
    reasons = {}
    for lesson in lessons(root):
        path = notebook_path(lesson)
        notebook = read_notebook(path) if path.exists() else None
        reason = why_stale(notebook, hashes(lesson, root, graph)) if notebook else "has no notebook"
        if reason:
            reasons[lesson] = reason
    return reasons


def report_stale(root: Path = ROOT) -> list[str]:
    """One line for each notebook with stale outputs."""
    return [f"nbs/{lesson.stem}.ipynb: {reason} (`make notebooks` runs it)" for lesson, reason in stale(root).items()]
