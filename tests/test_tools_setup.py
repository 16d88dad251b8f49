"""Set-up and the quickstart's runner."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import quickstart, setup_venv
from tools.lessons import ROOT


def sh(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `tools/setup.sh` in a copy of the project that has nothing but the tools."""
    return subprocess.run(
        ["/bin/sh", "tools/setup.sh", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tools").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "tools/__init__.py", "tools/setup.sh", "tools/setup_venv.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_no_python_gets_one_sentence(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    for name in ("dirname", "sh"):
        path = shutil.which(name)
        assert path is not None
        tools.mkdir(exist_ok=True)
        (tools / name).symlink_to(path)
    script(tools / "python3", "exit 127")  # a name on the PATH that starts nothing
    done = sh(checkout, "lab", PATH=str(tools))
    assert done.returncode == 1
    assert done.stderr.startswith("Python 3.11 or newer is needed and none was found")
    assert len(done.stderr.splitlines()) == 1


def test_a_python_too_old_gets_one_sentence(checkout: Path) -> None:
    old = script(checkout / "old-python", "exit 1")
    done = sh(checkout, "lab", PYTHON=str(old))
    assert done.returncode == 1
    assert done.stderr == f"PYTHON={old} is not a Python 3.11 or newer: name another, or leave PYTHON out.\n"


def test_a_broken_venv_gets_one_sentence(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    done = sh(checkout, "lab")
    assert done.returncode == 1
    assert "delete .venv and run this again" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_python_without_venv_gets_one_sentence(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_venv.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    with pytest.raises(setup_venv.SetupError, match="no module ensurepip") as error:
        setup_venv.main("lab", checkout)
    assert "-venv" in str(error.value)
    assert not (checkout / ".venv").exists()


def test_pip_installs_once_for_each_state_of_the_files(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = checkout / "pip.log"
    script(checkout / ".venv" / "bin" / "python", f'echo "$@" >> {log}')
    setup_venv.main("lab", checkout)
    setup_venv.main("lab", checkout)
    assert len(log.read_text().splitlines()) == 1
    assert "install -c constraints.txt -e .[lab]" in log.read_text().replace("--quiet ", "")

    setup_venv.main("dev", checkout)
    setup_venv.main("lab", checkout)  # dev holds lab
    assert len(log.read_text().splitlines()) == 2

    text = (checkout / "pyproject.toml").read_text()
    (checkout / "pyproject.toml").write_text(text.replace("line-length = 120", "line-length = 100"))
    setup_venv.main("dev", checkout)
    assert len(log.read_text().splitlines()) == 2  # nothing that is installed changed
    with (checkout / "constraints.txt").open("a") as file:
        file.write("zzz==1\n")
    setup_venv.main("lab", checkout)
    assert len(log.read_text().splitlines()) == 3


def test_a_failed_installation_is_not_remembered(checkout: Path) -> None:
    script(checkout / ".venv" / "bin" / "python", "exit 1")
    with pytest.raises(setup_venv.SetupError, match="Installing failed"):
        setup_venv.main("lab", checkout)
    assert setup_venv.installed(checkout) == set()


LESSON = """\
# %% [markdown]
# # Quickstart
#
# > One sitting.

# %%
value = 0.5

# %% [markdown]
# ## Train

# %%
import os, sys
print("quickstart: too early")
value += 0.25

# %% [markdown]
# ## Save

# %%
f"quickstart: accuracy 0.50 -> {value:.2f}, offline {os.environ['HF_HUB_OFFLINE']}"
"""


def test_the_quickstart_shows_progress_and_ends_with_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lesson = tmp_path / "00_quickstart.py"
    lesson.write_text(LESSON)
    assert quickstart.run(lesson, tmp_path) == "quickstart: accuracy 0.50 -> 0.75, offline 1"
    said = [line.partition(" …")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert said == ["Quickstart", "Train", "Save"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value += 0.25", "raise ValueError('no data')", "failed in 'Train': ValueError: no data"),
        ("value += 0.25", "os._exit(1)", "The kernel died in 'Train'"),
        ('f"quickstart: a', 'f"a', "shows no line"),
    ],
)
def test_a_quickstart_that_fails_says_where(tmp_path: Path, old: str, new: str, message: str) -> None:
    lesson = tmp_path / "00_quickstart.py"
    lesson.write_text(LESSON.replace(old, new).replace('print("quickstart: too early")', ""))
    with pytest.raises(SystemExit) as stopped:
        quickstart.run(lesson, tmp_path)
    assert message in str(stopped.value)


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"lab", "edit", "quickstart", "test", "check", "export", "notebooks"} <= set(done.stdout.split())


def test_the_stamp_names_the_extras(checkout: Path) -> None:
    script(checkout / ".venv" / "bin" / "python", "exit 0")
    setup_venv.main("dev", checkout)
    assert json.loads((checkout / ".venv" / setup_venv.STAMP).read_text())["extras"] == ["dev", "lab"]
