"""Imports point backwards: every way to break the rule is seen, and nothing else."""

from pathlib import Path

import pytest

from tests.tools_project import EVENTS, Project, make_project
from tools.imports import ImportGraph, check_imports


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def test_backwards_is_allowed(project: Project) -> None:
    assert ImportGraph(project.root).edges["ftnb.charts"] >= {"ftnb.events"}
    assert check_imports(project.root) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from ftnb.charts import quarter",
        "import ftnb.charts",
        "from ftnb import charts",
        "from .charts import quarter",
        "def late() -> None:\n    from ftnb.charts import quarter",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ftnb.charts import quarter",
    ],
)
def test_a_module_that_imports_forwards_is_seen(project: Project, statement: str) -> None:
    project.replace("nbs/14_charts.py", "from ftnb.events import half", "half = abs")  # no cycle, only forwards
    project.replace("nbs/13_events.py", "import math", f"import math\n{statement}")
    project.update()
    (finding,) = check_imports(project.root)
    assert finding.startswith("ftnb.events imports ftnb.charts of the later lesson 14_charts.py;")


def test_forwards_through_plain_modules_is_seen(project: Project) -> None:
    project.replace("nbs/14_charts.py", "from ftnb.events import half", "half = abs")
    project.replace("nbs/13_events.py", "import math", "import math\nimport ftnb.plumbing.a")
    project.module("plumbing/__init__.py", "")
    project.module("plumbing/a.py", "from ftnb.plumbing import b\n")
    project.module("plumbing/b.py", "def f():\n    import ftnb.charts\n")
    project.update()
    (finding,) = check_imports(project.root)
    assert "through ftnb.plumbing.a, ftnb.plumbing.b;" in finding


def test_a_demo_cell_that_uses_a_later_lesson_is_seen(project: Project) -> None:
    project.replace("nbs/13_events.py", "half(3.0)", "import ftnb.charts\nhalf(3.0)")
    findings = check_imports(project.root)
    assert findings[0].startswith("a demo cell of 13_events.py imports ftnb.charts of the later lesson")


def test_a_demo_cell_that_imports_its_own_module_is_seen(project: Project) -> None:
    project.replace("nbs/13_events.py", "half(3.0)", "from ftnb.events import half\nhalf(3.0)")
    assert check_imports(project.root)[0].startswith("a demo cell of 13_events.py imports its own module;")


def test_a_lesson_that_exports_nothing_may_import_anything(project: Project) -> None:
    project.lesson("00_start.py", "# %%\nfrom ftnb.charts import quarter\n")
    assert check_imports(project.root) == []


def test_a_cycle_through_plain_modules_is_seen(project: Project) -> None:
    project.module("a.py", "import ftnb.b\n")
    project.module("b.py", "def f():\n    from ftnb import c\n")
    project.module("c.py", "from ftnb.a import x\n")
    assert check_imports(project.root) == ["import cycle: ftnb.a -> ftnb.b -> ftnb.c -> ftnb.a"]


def test_what_a_package_loads_counts_for_its_modules(project: Project) -> None:
    project.module("tasks/__init__.py", "import ftnb.charts\n")
    project.module("tasks/plain.py", "")
    project.replace("nbs/13_events.py", "import math", "import math\nimport ftnb.tasks.plain")
    project.replace("nbs/14_charts.py", "from ftnb.events import half", "half = abs")
    project.update()
    assert "through ftnb.tasks (while loading);" in check_imports(project.root)[0]


def test_names_that_a_package_looks_up_later_count_for_who_asks(project: Project) -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ftnb.charts import quarter\n"
    project.module("__init__.py", lazy)
    project.replace("nbs/14_charts.py", "from ftnb.events import half", "from ftnb import __version__\nhalf = abs")
    project.update()
    assert check_imports(project.root) == []
    project.replace("nbs/13_events.py", "import math", "import math\nfrom ftnb import quarter")
    project.update()
    assert "ftnb.events imports ftnb.charts" in check_imports(project.root)[0]


def test_two_lessons_with_one_number_are_seen(project: Project) -> None:
    project.lesson("13_other.py", EVENTS.replace("default_exp events", "default_exp other"))
    assert "13_events.py and 13_other.py have the same number" in check_imports(project.root)[0]
