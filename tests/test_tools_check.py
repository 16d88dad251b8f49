"""Settings, style, types and sizes: each check passes on a sound project and sees what was broken on purpose."""

import subprocess
from pathlib import Path

import pytest

from tests.tools_project import Project, make_project
from tools import check
from tools.requirements import check_requirements, freeze, needed


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path)


def test_settings_agree(project: Project) -> None:
    assert check_requirements(project.root) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "finding"),
    [
        ("constraints.txt", "torch==", "torch>=", "is not of the form name==version"),
        ("constraints.txt", "torch==", "torch @ file:///x#", "is not of the form name==version"),
        ("constraints.txt", "torchmetrics==", "torchnothing==", "has no version for torchmetrics, which pyproject"),
        ("constraints.txt", "tornado==", "tornadonothing==", "has no version for tornado, which a dependency needs"),
        ("constraints.txt", "torch==", "nvidia-cublas==1\ntorch==", "pins nvidia-cublas, which follows torch"),
        ("constraints.txt", "torch==", "six==1\ntorch==", "pins six twice"),
        ("constraints.txt", "xxhash==", "aaa==1\nxxhash==", "is not sorted"),
        ("pyproject.toml", '"torch>=2.11"', '"torch>=99"', "pyproject.toml wants >=99"),
        ("pyproject.toml", '"torch>=2.11"', '"torch>=2.11", "flask"', "has no version for flask"),
        ("pyproject.toml", 'target-version = "py311"', 'target-version = "py312"', "tool.ruff.target-version is py312"),
        ("pyproject.toml", 'requires-python = ">=3.11"', 'requires-python = ">=3.13"', "environment.yml takes python"),
        ("environment.yml", "-e .[lab]", "-e .", "should install by pip exactly"),
        ("environment.yml", "  - pip\n", "  - pip\n  - numpy\n", "it takes numpy, pip, python"),
        ("environment.yml", "python=", "python>=", "should name one version of python"),
        ("environment.yml", "name: ftnb", "name: other", "is named 'other'"),
        ("nbs/13_events.py", "import math", "import flask", "ftnb.events imports flask, which pyproject.toml does not"),
        ("nbs/14_charts.py", "quarter(4.0)", "import flask", "14_charts.py imports flask"),
    ],
)
def test_settings_that_disagree_are_seen(project: Project, file: str, old: str, new: str, finding: str) -> None:
    project.replace(file, old, new)
    project.update()
    findings = check_requirements(project.root)
    assert any(finding in found for found in findings), findings


def test_what_is_needed_goes_through_extras_and_leaves_the_accelerator_out() -> None:
    names = needed(frozenset({"torch"}))
    assert {"torch", "sympy", "mpmath"} <= names
    assert not any(name.startswith(("nvidia-", "cuda-", "triton")) for name in names)
    assert "setuptools" in names


def test_constraints_are_what_is_installed() -> None:
    lines = [line for line in freeze().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0])
    assert all("+" not in line and "/" not in line for line in lines)


def test_style_passes_and_its_breach_is_seen(project: Project) -> None:
    assert check.check_ruff(project.root) == []
    project.module("plain.py", "import os\n")
    assert any("F401" in finding for finding in check.check_ruff(project.root))


def test_layout_of_hand_written_files_is_checked(project: Project) -> None:
    project.module("plain.py", '"""Plain."""\n\nA = { "x":1 }\n')
    assert any("Would reformat" in finding or "reformatted" in finding for finding in check.check_ruff(project.root))


def test_types_pass_and_their_breach_is_seen(project: Project) -> None:
    (project.root / "tools" / "empty.py").write_text("")
    assert check.check_types(project.root) == []
    project.module("plain.py", 'def f() -> int:\n    return "no"\n')
    assert any("plain.py:2: error" in finding for finding in check.check_types(project.root))


def test_big_files_are_seen(project: Project) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project.root, check=True)
    assert check.check_sizes(project.root) == []
    project.module("big.bin", "x" * 1_000_001)
    project.module("weights/bert/model.safetensors", "x" * 4_000_001)
    small, weights = check.check_sizes(project.root)
    assert small.startswith("ftnb/big.bin has 1.0 MB")
    assert weights.startswith("ftnb/weights/bert/model.safetensors has 4.0 MB")


def test_a_project_that_cannot_be_read_is_a_finding(project: Project) -> None:
    project.module("broken.py", "def f(:\n")
    findings = check.run_check(check.CHECKS["imports"], project.root)
    assert findings[0].startswith("SyntaxError")


def test_the_command_prints_findings_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(check, "CHECKS", {"good": lambda root: [], "bad": lambda root: ["something is wrong"]})
    with pytest.raises(SystemExit) as stopped:
        check.main(["good", "bad"])
    assert stopped.value.code == 1
    assert "good: no findings" in (said := capsys.readouterr().out)
    assert "bad: 1 findings" in said
    assert "  something is wrong" in said
    check.main(["good"])
