"""Open JupyterLab: on a learner's copy of the lessons (`make lab`), or on the sources (`make edit`).

The copy lives in `lessons/`, which git ignores. A file there is written only if it is missing or still as it was
copied; what a learner changed, or only ran, is never touched. To take a lesson's newer version, rename yours.
"""

import argparse
import os
import sys
from pathlib import Path

from ftnb.lesson_files import copy_lessons
from tools.derive import main as derive_all
from tools.lessons import ROOT

FIRST = "00_quickstart.ipynb"


def open_lab(folder: Path, notebook: str, arguments: list[str]) -> None:
    """Replace this process by JupyterLab, with `folder` as its root and `notebook` open."""
    os.chdir(folder)
    command = [sys.executable, "-m", "jupyterlab", notebook, f"--ServerApp.root_dir={folder}", *arguments]
    os.execv(sys.executable, command)


def main(argv: list[str] | None = None) -> None:
    """Prepare the lessons and open JupyterLab; further arguments go to JupyterLab."""
    parser = argparse.ArgumentParser(description="Open JupyterLab on a copy of the lessons, or on the sources.")
    parser.add_argument(
        "--edit", action="store_true", help="open the sources, paired: saving a notebook updates its .py"
    )
    parser.add_argument("--prepare-only", action="store_true", help="bring the files up to date and open nothing")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.edit:
        derive_all([])
        folder, first = ROOT, f"nbs/{FIRST}"
    else:
        try:
            copied = copy_lessons(ROOT / "nbs", ROOT / "lessons")
        except FileNotFoundError as error:
            raise SystemExit(str(error)) from None
        if copied.new or copied.updated:
            print(f"lessons/: {len(copied.new)} new, {len(copied.updated)} updated.")
        for name in copied.kept:
            print(f"lessons/{name} has your changes and stays; rename or delete it to get the newer one.")
        folder, first = ROOT / "lessons", FIRST
    if not arguments.prepare_only:
        open_lab(folder, first, rest)


if __name__ == "__main__":
    main()
