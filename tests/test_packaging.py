"""What an installed copy holds that a checkout takes for granted."""

import subprocess
import sys
import zipfile

import pytest

from tools.lessons import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in the wheel."""
    pytest.importorskip("hatchling", reason="hatchling comes with the extra 'dev'")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_the_wheel_holds_the_lessons_and_not_their_sources(wheel: set[str]) -> None:
    stored = {f"ftnb/lessons/{path.name}" for path in (ROOT / "nbs").glob("*.ipynb")}
    assert {name for name in wheel if name.startswith("ftnb/lessons/") and name.endswith(".ipynb")} == stored
    assert not any(name.endswith((".py", ".toml")) for name in wheel if name.startswith("ftnb/lessons/"))


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: set[str]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "ftnb"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    present = {name for name in listed if (ROOT / name).exists()}
    assert present <= wheel
    assert {name.partition("/")[0] for name in wheel} <= {"ftnb"} | {
        n.split("/")[0] for n in wheel if ".dist-info" in n
    }


def test_the_console_script_exists(wheel: set[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
