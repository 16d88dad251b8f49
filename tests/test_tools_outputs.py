"""What may be committed of a notebook's outputs, and whether they still belong to the code."""

import base64
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from tests.tools_project import Project, make_project
from tools import notebooks
from tools.derive import check_pairs, read_notebook, render, write_derived
from tools.outputs import WIDGET_VIEW, check_outputs, clean, hide_machine, report_stderr
from tools.stale import hashes, report_stale, stale

PNG = base64.b64encode(b"a picture").decode()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def view(model: str) -> NotebookNode:
    return nbformat.v4.new_output("display_data", data={WIDGET_VIEW: {"model_id": model}, "text/plain": "Box()"})


def picture() -> NotebookNode:
    return nbformat.v4.new_output("display_data", data={"image/png": PNG})


def text(words: str, name: str = "stdout") -> NotebookNode:
    return nbformat.v4.new_output("stream", name=name, text=words)


def store(project: Project, *outputs: list[NotebookNode], clean_first: bool = True) -> None:
    """Give the cells of lesson 14 these outputs, in order, as if it had been run."""
    path = project.root / "nbs" / "14_charts.ipynb"
    notebook = read_notebook(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, some in zip(cells, outputs, strict=False):
        cell.outputs = some
    if clean_first:
        clean(notebook, project.root)
    path.write_text(render(notebook), encoding="utf-8")


def test_a_clean_notebook_passes(project: Project) -> None:
    store(project, [text("hello")], [picture()])
    assert check_outputs(project.root) == []


def test_a_big_notebook_is_seen(project: Project) -> None:
    store(project, [text("x" * 300_001)])
    assert "nbs/14_charts.ipynb has 30" in check_outputs(project.root)[0]


def test_an_error_is_seen(project: Project) -> None:
    store(project, [nbformat.v4.new_output("error", ename="ValueError", evalue="bad", traceback=[])])
    (finding,) = check_outputs(project.root)
    assert "cell 2 ('#| default_exp charts'), ends in ValueError: bad" in finding


def test_widget_state_is_seen(project: Project) -> None:
    path = project.root / "nbs" / "14_charts.ipynb"
    notebook = read_notebook(path)
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    path.write_text(render(notebook), encoding="utf-8")
    assert "carries widget state" in check_outputs(project.root)[0]


def test_a_widget_view_that_was_not_cleaned_is_seen(project: Project) -> None:
    store(project, [view("a"), picture()], clean_first=False)
    assert "carries a widget's view" in check_outputs(project.root)[0]


@pytest.mark.parametrize(
    ("outputs", "passes"),
    [
        ([[view("a"), picture()]], True),
        ([[view("a")], [picture()]], True),
        ([[view("a")], [], [picture()]], False),
        ([[picture()], [view("a")]], False),
        ([[view("a"), text("done")]], False),
    ],
)
def test_a_widget_needs_a_picture_beside_it(project: Project, outputs: list, passes: bool) -> None:
    store(project, *outputs)
    findings = check_outputs(project.root)
    assert (findings == []) is passes
    assert passes or "showed a widget and leaves no picture" in findings[0]


def test_a_widget_is_remembered_when_the_notebook_is_derived_again(project: Project) -> None:
    store(project, [view("a")])
    write_derived(project.root / "nbs" / "14_charts.py")
    assert len(check_outputs(project.root)) == 1
    assert check_pairs(project.root) == []


def test_progress_bars_go_without_a_trace(project: Project) -> None:
    notebook = read_notebook(project.root / "nbs" / "14_charts.ipynb")
    bar = {"bar": {"model_name": "FloatProgressModel", "state": {}}}
    box = {"box": {"model_name": "HBoxModel", "state": {"children": ["IPY_MODEL_bar"]}}}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": bar | box}}
    notebook.cells[1].outputs = [view("box")]
    clean(notebook, project.root)
    assert notebook.cells[1].outputs == []
    assert "ftnb" not in notebook.cells[1].metadata
    assert "widgets" not in notebook.metadata


def test_pieces_of_one_stream_become_one(project: Project) -> None:
    notebook = read_notebook(project.root / "nbs" / "14_charts.ipynb")
    notebook.cells[1].outputs = [text("a"), text("b"), text("c", "stderr"), text("d")]
    clean(notebook, project.root)
    assert [output.text for output in notebook.cells[1].outputs] == ["ab", "c", "d"]


def test_the_machine_is_hidden(tmp_path: Path) -> None:
    temporary = tempfile.gettempdir()
    told = f"{tmp_path}/nbs/a.csv {tmp_path}/ftnb <Box at 0x7f3a9c0d1e20> {temporary}/tmpab12cd/x {Path.home()}/data"
    assert hide_machine(told, tmp_path) == "a.csv ~/ftnb/ftnb <Box at 0x…> /tmp/…/x ~/data"


def test_standard_error_is_reported(project: Project) -> None:
    store(project, [text("a warning", "stderr")])
    assert report_stderr(project.root) == ["nbs/14_charts.ipynb, cell 2, shows: 'a warning'"]


def mark_as_run(project: Project, stem: str) -> None:
    path = project.root / "nbs" / f"{stem}.ipynb"
    notebook = read_notebook(path)
    notebook.metadata["ftnb"] = hashes(path.with_suffix(".py"), project.root)
    path.write_text(render(notebook), encoding="utf-8")


def test_stale_outputs_are_reported_with_the_reason(project: Project) -> None:
    assert "nbs/13_events.ipynb: was never run (`make notebooks` runs it)" in report_stale(project.root)
    project.lesson("40_use.py", "# %% [markdown]\n# # Use\n\n# %%\nfrom ftnb.charts import quarter\n")
    project.update()
    for stem in ("13_events", "14_charts", "40_use"):
        mark_as_run(project, stem)
    assert report_stale(project.root) == []

    project.replace("nbs/40_use.py", "# # Use", "# # Using")  # prose
    project.update()
    assert stale(project.root) == {}

    project.replace("nbs/13_events.py", "-1)", "-2)")
    project.update()
    reasons = {path.stem: reason for path, reason in stale(project.root).items()}
    assert reasons == {
        "13_events": "its code changed since it was run",
        "14_charts": "a module that it imports changed since it was run",
        "40_use": "a module that it imports changed since it was run",  # through ftnb.charts
    }


def test_a_changed_checkpoint_makes_outputs_stale(project: Project) -> None:
    mark_as_run(project, "14_charts")
    weights = project.root / "ftnb" / "weights" / "bert"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(b"new")
    assert project.root / "nbs" / "14_charts.py" in stale(project.root)


def test_running_a_lesson_stores_clean_outputs_and_its_hashes(project: Project) -> None:
    lesson = project.root / "nbs" / "13_events.py"
    assert notebooks.run([lesson], project.root) == []
    stored = read_notebook(lesson.with_suffix(".ipynb"))
    demo = next(cell for cell in stored.cells if cell.source == "half(3.0)")
    assert demo.outputs[0].data["text/plain"] == "1.5"
    assert lesson not in stale(project.root)
    assert check_pairs(project.root) == check_outputs(project.root) == []
    first = lesson.with_suffix(".ipynb").read_text()
    notebooks.run([lesson], project.root)
    assert lesson.with_suffix(".ipynb").read_text() == first


def test_a_lesson_that_fails_keeps_its_notebook(project: Project) -> None:
    lesson = project.root / "nbs" / "13_events.py"
    before = lesson.with_suffix(".ipynb").read_text()
    project.replace("nbs/13_events.py", "half(3.0)", "assert half(3.0) == 2, 'no'")
    (failure,) = notebooks.run([lesson], project.root)
    assert "13_events.py failed" in failure
    assert "AssertionError: no" in failure
    assert lesson.with_suffix(".ipynb").read_text() == before


def test_large_pictures_are_stored_with_fewer_colours_and_small_ones_as_they_are():
    import base64
    import io

    import numpy as np
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    from PIL import Image

    def output(side: int):
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((4 * side, 4 * side), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        smooth.save(buffer, "PNG")
        return new_output("display_data", {"image/png": base64.b64encode(buffer.getvalue()).decode()})

    notebook = new_notebook(cells=[new_code_cell("x", outputs=[output(60), output(8)])])
    large, small = (o.data["image/png"] for o in notebook.cells[0].outputs)
    clean(notebook)
    after = [o.data["image/png"] for o in notebook.cells[0].outputs]
    assert len(after[0]) < 0.7 * len(large)
    assert after[1] == small
    images = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in (large, after[0])]
    assert np.abs(np.subtract(*(np.asarray(image, dtype=int) for image in images))).mean() < 12
