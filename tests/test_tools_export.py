"""Lesson to module: what is exported, what is refused, what counts as out of step."""

from pathlib import Path

import pytest

from tests.tools_project import CHARTS, EVENTS, Project, make_project
from tools.check import check_exports
from tools.export import export_lesson, public_names, write


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def test_module_has_header_docstring_names_and_only_marked_cells(project: Project) -> None:
    text = (project.root / "ftnb" / "events.py").read_text()
    assert text.splitlines()[0] == "# Exported from nbs/13_events.py: edit the lesson, then run `make export`."
    namespace: dict = {}
    exec(text, namespace)
    assert namespace["__doc__"] == "What a training says."
    assert namespace["__all__"] == ["half"]
    assert namespace["half"](3.0) == 1.5
    assert "third" not in namespace


def test_exporting_twice_writes_nothing(project: Project) -> None:
    module = export_lesson(project.root / "nbs" / "13_events.py")
    assert module is not None
    assert write(module, project.root) is False


def test_names_of_all_forms_of_assignment() -> None:
    assert public_names("A, (B, _c) = 1, (2, 3)\nD: int = 4\nx.e = 1\nf[g] = 2\nclass H: pass") == ["A", "B", "D", "H"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#| default_exp events", "", "no '#| default_exp name'"),
        ("# > What a training says.", "#", "no '> subtitle'"),
        ("#| export\ndef", "#| exprot\ndef", "unknown directive '#| exprot'"),
        ("half(3.0)", "#| default_exp other", "must name one module"),
        ("    return math", "    return = math", "not plain Python"),
    ],
)
def test_a_lesson_that_cannot_be_exported_says_why(project: Project, old: str, new: str, message: str) -> None:
    project.replace("nbs/13_events.py", old, new)
    with pytest.raises(ValueError, match="13_events.py") as error:
        export_lesson(project.root / "nbs" / "13_events.py")
    assert message in str(error.value)


def test_a_hand_written_module_is_not_overwritten(project: Project) -> None:
    project.module("events.py", "by_hand = True\n")
    module = export_lesson(project.root / "nbs" / "13_events.py")
    assert module is not None
    with pytest.raises(ValueError, match="written by hand"):
        write(module, project.root)
    assert "written by hand" in check_exports(project.root)[0]


def test_in_step(project: Project) -> None:
    assert check_exports(project.root) == []


def test_an_edited_module_is_seen(project: Project) -> None:
    project.replace("ftnb/events.py", "-1)", "-2)")
    assert check_exports(project.root) == [
        "ftnb/events.py differs from what nbs/13_events.py exports: run `make export`."
    ]


def test_an_edited_lesson_is_seen(project: Project) -> None:
    project.replace("nbs/14_charts.py", "half(half(x))", "half(x) / 2")
    assert len(check_exports(project.root)) == 1


def test_a_missing_module_is_seen(project: Project) -> None:
    (project.root / "ftnb" / "charts.py").unlink()
    assert "ftnb/charts.py is missing" in check_exports(project.root)[0]


def test_a_module_whose_lesson_is_gone_is_seen(project: Project) -> None:
    (project.root / "nbs" / "14_charts.py").unlink()
    assert "no lesson exports it" in check_exports(project.root)[0]


def test_a_folder_without_init_is_seen(project: Project) -> None:
    project.lesson("30_tasks.py", EVENTS.replace("default_exp events", "default_exp tasks.text"))
    project.update()
    assert check_exports(project.root) == ["ftnb/tasks/text.py has no ftnb/tasks/__init__.py beside it."]


def test_two_lessons_cannot_export_one_module(project: Project) -> None:
    project.lesson("15_more.py", CHARTS)
    with pytest.raises(ValueError, match="both export ftnb.charts"):
        check_exports(project.root)
