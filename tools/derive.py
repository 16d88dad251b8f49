"""Derive a lesson's `.ipynb` from its `.py` source.

The `.py` is always right: file times play no part. Outputs of cells whose source did not change are kept, and the same
source gives the same bytes, so a derived notebook changes only where its lesson did.

    python -m tools.derive                     derive every lesson
    python -m tools.derive nbs/13_events.py    derive some
"""

import argparse
import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from tools.lessons import ROOT, lessons, read_lesson

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
LANGUAGE = {"file_extension": ".py", "mimetype": "text/x-python", "name": "python", "pygments_lexer": "ipython3"}
SOURCE_METADATA = ("tags",)  # what a `.py` cell says about itself; the rest of a cell's metadata is made here


def notebook_path(lesson: Path) -> Path:
    """The derived notebook beside a lesson's source."""
    return lesson.with_suffix(".ipynb")


def read_notebook(path: Path) -> NotebookNode:
    """A stored notebook, in the current format."""
    return nbformat.read(path, as_version=4)


def render(notebook: NotebookNode) -> str:
    """A notebook as the text of its file."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def cell_metadata(source: NotebookNode) -> dict[str, Any]:
    """A derived cell's metadata: its tags, and solutions folded away."""
    metadata = {key: source.metadata[key] for key in SOURCE_METADATA if key in source.metadata}
    if "solution" in metadata.get("tags", ()):
        metadata["jupyter"] = {"source_hidden": True}
    return metadata


def derive(lesson: Path, existing: NotebookNode | None = None) -> NotebookNode:
    """Build a lesson's notebook from its source, with the outputs that `existing` holds for unchanged cells.

    Cells that occur more than once are matched in order. What a cell's run left in the metadata
    (`ftnb`: for instance, that it showed a widget) goes with its outputs.
    """
    kept: dict[str, list[NotebookNode]] = defaultdict(list)
    for cell in existing.cells if existing else []:
        if cell.cell_type == "code":
            kept[cell.source].append(cell)
    seen: Counter[tuple[str, str]] = Counter()
    cells = []
    for source in read_lesson(lesson).cells:
        key = (source.cell_type, source.source)
        seen[key] += 1
        identity = hashlib.sha256("\n".join([*key, str(seen[key])]).encode()).hexdigest()[:12]
        fields: dict[str, Any] = {"id": identity, "metadata": cell_metadata(source)}
        if source.cell_type == "code":
            old = kept[source.source].pop(0) if kept[source.source] else None
            if old is not None:
                fields |= {"outputs": old.outputs, "execution_count": old.execution_count}
                if "ftnb" in old.metadata:
                    fields["metadata"]["ftnb"] = old.metadata["ftnb"]
            cells.append(nbformat.v4.new_code_cell(source.source, **fields))
        elif source.cell_type == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(source.source, **fields))
        else:
            cells.append(nbformat.v4.new_raw_cell(source.source, **fields))
    metadata: dict[str, Any] = {"kernelspec": KERNELSPEC, "language_info": LANGUAGE}
    if existing and "ftnb" in existing.metadata:
        metadata["ftnb"] = existing.metadata["ftnb"]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    notebook.nbformat_minor = 5
    return notebook


def write_derived(lesson: Path) -> bool:
    """Bring a lesson's notebook up to date with its source; False if it was."""
    path = notebook_path(lesson)
    text = render(derive(lesson, read_notebook(path) if path.exists() else None))
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8", newline="\n")
    return True


def check_pairs(root: Path = ROOT) -> list[str]:
    """Lessons whose `.ipynb` is missing or is not what their `.py` gives, and notebooks without a lesson."""
    findings = []
    sources = lessons(root)
    for lesson in sources:
        path = notebook_path(lesson)
        if not path.exists():
            findings.append(f"nbs/{lesson.name} has no {path.name}: run `make notebooks`.")
            continue
        stored = read_notebook(path)
        derived = derive(lesson, stored)
        if path.read_text(encoding="utf-8") != render(derived):
            findings.append(f"nbs/{path.name} {_difference(stored, derived)}: run `python -m tools.derive`.")
    extra = set((root / "nbs").glob("*.ipynb")) - {notebook_path(lesson) for lesson in sources}
    findings += [f"nbs/{path.name} has no {path.stem}.py: a lesson's source is its .py." for path in sorted(extra)]
    return findings


def _difference(stored: NotebookNode, derived: NotebookNode) -> str:
    """Where a stored notebook first differs from what its source gives, in words."""
    for position, (old, new) in enumerate(zip(stored.cells, derived.cells, strict=False), start=1):
        if (old.cell_type, old.source) != (new.cell_type, new.source):
            first = (new.source or old.source).strip().partition("\n")[0][:60]
            return f"differs from its .py in cell {position} ({first!r})"
    if len(stored.cells) != len(derived.cells):
        return f"has {len(stored.cells)} cells, its .py has {len(derived.cells)}"
    return "differs from its .py in tags, cell ids or layout"


def main(argv: list[str] | None = None) -> None:
    """Derive notebooks from the command line."""
    parser = argparse.ArgumentParser(description="Derive lessons' .ipynb from their .py, keeping outputs that hold.")
    parser.add_argument("lessons", nargs="*", type=Path, help="lesson sources; all when left out")
    for lesson in parser.parse_args(argv).lessons or lessons():
        if write_derived(lesson):
            print(f"{lesson.name} -> {notebook_path(lesson).name}")


if __name__ == "__main__":
    main()
