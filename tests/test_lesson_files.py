"""A learner's copy of the lessons follows the project and never loses the learner's work."""

from pathlib import Path

import pytest

from ftnb.lesson_files import Copied, copy_lessons


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "nbs", tmp_path / "lessons"
    (source / "images").mkdir(parents=True)
    for name in ("00_a.ipynb", "01_b.ipynb", "images/x.svg", "00_a.py"):
        (source / name).write_text(f"first {name}")
    return source, target


def test_the_learner_gets_notebooks_and_images(folders: tuple[Path, Path]) -> None:
    copied = copy_lessons(*folders)
    assert copied.new == ["00_a.ipynb", "01_b.ipynb", "images/x.svg"]
    assert not (folders[1] / "00_a.py").exists()
    assert copy_lessons(*folders) == Copied()


def test_a_changed_copy_is_never_touched_and_others_follow(folders: tuple[Path, Path]) -> None:
    source, target = folders
    copy_lessons(source, target)
    (target / "00_a.ipynb").write_text("mine")
    assert copy_lessons(source, target) == Copied()  # nothing newer: nothing to say
    for name in ("00_a.ipynb", "01_b.ipynb"):
        (source / name).write_text("second")
    copied = copy_lessons(source, target)
    assert (copied.updated, copied.kept) == (["01_b.ipynb"], ["00_a.ipynb"])
    assert (target / "00_a.ipynb").read_text() == "mine"
    assert (target / "01_b.ipynb").read_text() == "second"
    assert copy_lessons(source, target).kept == ["00_a.ipynb"]  # said again until it is settled
    (target / "00_a.ipynb").rename(target / "mine.ipynb")
    assert copy_lessons(source, target).new == ["00_a.ipynb"]


def test_files_that_were_there_before_the_first_copy_are_kept(folders: tuple[Path, Path]) -> None:
    source, target = folders
    target.mkdir()
    (target / "00_a.ipynb").write_text("mine")
    assert copy_lessons(source, target).kept == ["00_a.ipynb"]


def test_no_notebooks_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make notebooks"):
        copy_lessons(tmp_path, tmp_path / "lessons")
