"""Source to notebook: deterministic, outputs kept where they hold, differences seen, saving in Jupyter paired."""

import os
import shutil
import time
from pathlib import Path

import nbformat
import pytest

from tests.tools_project import Project, make_project
from tools.derive import check_pairs, derive, read_notebook, render, write_derived
from tools.lessons import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def give_outputs(path: Path) -> None:
    notebook = read_notebook(path)
    for count, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"output {count}\n")]
    path.write_text(render(notebook), encoding="utf-8")


def shown(path: Path) -> dict[str, str]:
    cells = [c for c in read_notebook(path).cells if c.cell_type == "code"]
    return {cell.source: cell.outputs[0].text if cell.outputs else "" for cell in cells}


def test_the_same_source_gives_the_same_bytes(project: Project) -> None:
    lesson = project.root / "nbs" / "13_events.py"
    assert render(derive(lesson)) == render(derive(lesson)) == lesson.with_suffix(".ipynb").read_text()
    assert write_derived(lesson) is False


def test_outputs_stay_with_cells_that_did_not_change(project: Project) -> None:
    path = project.root / "nbs" / "13_events.ipynb"
    give_outputs(path)
    before = shown(path)
    project.replace("nbs/13_events.py", "half(3.0)", "half(5.0)")
    project.replace("nbs/13_events.py", "# %%\nhalf", "# %%\n'new cell'\n\n# %%\nhalf")
    write_derived(path.with_suffix(".py"))
    after = shown(path)
    assert after.pop("half(5.0)") == after.pop("'new cell'") == ""
    assert before.pop("half(3.0)")
    assert after == before
    assert check_pairs(project.root) == []


def test_cell_ids_are_unique_and_survive_an_insertion(project: Project) -> None:
    lesson = project.lesson("20_x.py", "# %%\n1\n\n# %%\n1\n\n# %%\n2\n")
    before = [cell.id for cell in derive(lesson).cells]
    lesson.write_text("# %%\n0\n\n" + lesson.read_text())
    assert len(set(before)) == 3
    assert [cell.id for cell in derive(lesson).cells][1:] == before


def test_solutions_are_folded_and_tags_kept(project: Project) -> None:
    cells = read_notebook(project.root / "nbs" / "13_events.ipynb").cells
    assert cells[-2].metadata == {"tags": ["exercise"]}
    assert cells[-1].metadata == {"tags": ["solution"], "jupyter": {"source_hidden": True}}


def test_file_times_play_no_part(project: Project) -> None:
    project.replace("nbs/13_events.py", "half(3.0)", "half(5.0)")
    later = time.time() + 1000
    os.utime(project.root / "nbs" / "13_events.ipynb", (later, later))
    write_derived(project.root / "nbs" / "13_events.py")
    assert "half(5.0)" in (project.root / "nbs" / "13_events.py").read_text()
    assert "half(5.0)" in (project.root / "nbs" / "13_events.ipynb").read_text()


@pytest.mark.parametrize("name", ["13_events.py", "13_events.ipynb"])
def test_an_edit_on_either_side_is_seen(project: Project, name: str) -> None:
    project.replace(f"nbs/{name}", "half(3.0)", "half(5.0)")
    (finding,) = check_pairs(project.root)
    assert "nbs/13_events.ipynb differs from its .py in cell 5" in finding


def test_edited_tags_are_seen(project: Project) -> None:
    project.replace("nbs/13_events.py", '["exercise"]', '["other"]')
    assert "tags, cell ids or layout" in check_pairs(project.root)[0]


def test_a_cell_more_is_seen(project: Project) -> None:
    path = project.root / "nbs" / "13_events.py"
    path.write_text(path.read_text() + "\n# %%\n1\n")
    assert "has 7 cells, its .py has 8" in check_pairs(project.root)[0]


def test_a_missing_half_is_seen(project: Project) -> None:
    (project.root / "nbs" / "13_events.ipynb").unlink()
    (project.root / "nbs" / "14_charts.py").unlink()
    missing, extra = check_pairs(project.root)
    assert "nbs/13_events.py has no 13_events.ipynb" in missing
    assert "nbs/14_charts.ipynb has no 14_charts.py" in extra


def test_saving_in_jupyter_updates_the_source(project: Project) -> None:
    """What `make edit` relies on, through jupytext's contents manager and this project's settings."""
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class

    shutil.copy(ROOT / "nbs" / "jupytext.toml", project.root / "nbs" / "jupytext.toml")
    lesson = project.root / "nbs" / "13_events.py"
    before = lesson.read_text()
    manager = build_sync_jupytext_contents_manager_class(LargeFileManager)()
    manager.root_dir = str(project.root)
    later = time.time() + 1000  # an .ipynb that was touched later must not win over the .py
    project.replace("nbs/13_events.py", "half(3.0)", "half(4.0)")
    os.utime(lesson.with_suffix(".ipynb"), (later, later))

    model = manager.get("nbs/13_events.ipynb", type="notebook")
    cell = next(c for c in model["content"]["cells"] if c["source"].startswith("half"))
    assert cell["source"] == "half(4.0)"
    cell["source"] = "half(5.0)"
    manager.save({"type": "notebook", "content": model["content"]}, "nbs/13_events.ipynb")

    assert lesson.read_text() == before.replace("half(3.0)", "half(5.0)")
    write_derived(lesson)
    assert check_pairs(project.root) == []
