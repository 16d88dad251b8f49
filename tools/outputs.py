"""What a committed notebook may hold: small, without errors, widget state or a machine's traces, and with pictures.

`clean` brings a freshly executed notebook into that form; `check_outputs` says where a committed one is not in it.
"""

import base64
import io
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from PIL import Image

from tools.derive import notebook_path, read_notebook
from tools.lessons import ROOT, lessons

MAX_BYTES = 300_000
LARGE_PICTURE = 20_000  # characters of base64
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/svg+xml", "image/jpeg")
ADDRESS = re.compile(r"\b0x[0-9a-f]{8,16}\b")
SEEN_WIDGET = {"widget": True}  # what a cell's metadata keeps (under "ftnb") of a widget that it showed


def clean(notebook: NotebookNode, root: Path = ROOT) -> None:
    """Take out of an executed notebook, in place, what should not be committed.

    Widget views go (their state lives in a kernel that is gone), and the cell remembers that it showed one, so that
    `check_outputs` can ask for a picture. Progress bars are views too, and go without a trace. Timing, temporary
    names, paths of this machine and object addresses go, so that a second run gives the same text.
    """
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        views = [output for output in cell.outputs if WIDGET_VIEW in output.get("data", {})]
        shown = [view for view in views if not _is_progress_bar(view.data[WIDGET_VIEW].get("model_id", ""), state)]
        cell.metadata.pop("ftnb", None)
        if shown:
            cell.metadata["ftnb"] = dict(SEEN_WIDGET)
        cell.outputs = _merge_streams(output for output in cell.outputs if output not in views)
        for output in cell.outputs:
            output.pop("transient", None)
            _clean_texts(output, root)
            _shrink_picture(output)


def _is_progress_bar(model_id: str, state: dict[str, Any]) -> bool:
    """Whether a view is a tqdm bar: a box around a FloatProgress."""
    children = state.get(model_id, {}).get("state", {}).get("children", [])
    models = (state.get(str(child).removeprefix("IPY_MODEL_"), {}) for child in children)
    return any(model.get("model_name") == "FloatProgressModel" for model in models)


def _merge_streams(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Join pieces of one stream that follow each other: how they were cut depends on the moment."""
    merged: list[NotebookNode] = []
    for output in outputs:
        previous = merged[-1] if merged else None
        if output.output_type == "stream" and previous is not None and previous.get("name") == output.name:
            previous.text += output.text
        else:
            merged.append(output)
    return merged


def _shrink_picture(output: NotebookNode) -> None:
    """Store a large picture with 256 colours of its own choice: noisy photographs become a third, the eye sees none."""
    png = output.get("data", {}).get("image/png")
    if not png or len(png) < LARGE_PICTURE:
        return
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(buffer, "PNG", optimize=True)
    smaller = base64.b64encode(buffer.getvalue()).decode("ascii")
    if len(smaller) < len(png):
        output.data["image/png"] = smaller


def _clean_texts(output: NotebookNode, root: Path) -> None:
    if output.output_type == "stream":
        output.text = hide_machine(output.text, root)
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(value, str):
            output.data[kind] = hide_machine(value, root)


def hide_machine(text: str, root: Path = ROOT) -> str:
    """Replace this machine's paths, temporary names and addresses by what a reader elsewhere would see."""
    temporary = re.escape(tempfile.gettempdir())
    text = text.replace(str(root / "nbs") + "/", "").replace(str(root), "~/ftnb")
    text = re.sub(rf"{temporary}/(ipykernel_\d+|tmp\w+|[\w-]+-\w{{8}})", "/tmp/…", text)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"(?<![\w/]){re.escape(home)}(?=/|\b)", "~", text)
    return ADDRESS.sub("0x…", text)


def _has_picture(cell: NotebookNode) -> bool:
    return any(kind in output.get("data", {}) for output in cell.outputs for kind in PICTURES)


def notebook_findings(notebook: NotebookNode, name: str, size: int) -> list[str]:
    """What is wrong with one committed notebook."""
    findings = []
    if size > MAX_BYTES:
        findings.append(f"{name} has {size // 1000} KB; at most {MAX_BYTES // 1000}: fewer or smaller pictures.")
    if "widgets" in notebook.metadata:
        findings.append(f"{name} carries widget state: run `make notebooks`.")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        first = cell.source.strip().partition("\n")[0][:60]
        where = f"{name}, cell {notebook.cells.index(cell) + 1} ({first!r}),"
        for output in cell.outputs:
            if output.output_type == "error":
                findings.append(f"{where} ends in {output.ename}: {output.evalue[:100]}")
            if WIDGET_VIEW in output.get("data", {}):
                findings.append(f"{where} carries a widget's view: run `make notebooks`.")
        pictured = _has_picture(cell) or (following is not None and _has_picture(following))
        if cell.metadata.get("ftnb", {}).get("widget") and not pictured:
            findings.append(f"{where} showed a widget and leaves no picture; show one here or in the next cell.")
    return findings


def check_outputs(root: Path = ROOT) -> list[str]:
    """Committed notebooks that are too big, broken, or without a picture where a widget was."""
    findings = []
    for lesson in lessons(root):
        path = notebook_path(lesson)
        if path.exists():
            findings += notebook_findings(read_notebook(path), f"nbs/{path.name}", path.stat().st_size)
    return findings


def report_stderr(root: Path = ROOT) -> list[str]:
    """Committed cells that show text on standard error: mostly warnings that a reader should not meet."""
    notebooks = [path for lesson in lessons(root) if (path := notebook_path(lesson)).exists()]
    return [
        f"nbs/{path.name}, cell {position}, shows: {output.text.strip()[:120]!r}"
        for path in notebooks
        for position, cell in enumerate(read_notebook(path).cells, start=1)
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]
