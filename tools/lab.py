"""Open JupyterLab: on a learner's copy of the lessons (`make lab`), or on the sources (`make edit`).

The copy lives in `lessons/`, which git ignores. A file there is written only if it is missing or still as it was
copied; what a learner changed, or only ran, is never touched. To take a lesson's newer version, rename yours.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.derive import main as derive_all
from tools.lessons import ROOT

MANIFEST = ".copied.json"  # what each file was when it was copied
FIRST = "00_quickstart.ipynb"


@dataclass
class Copied:
    """What a round of copying did, by file name relative to `lessons/`."""

    new: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # changed here, and newer in the project


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_lessons(source: Path, target: Path) -> Copied:
    """Bring a learner's copy up to date without touching what the learner changed.

    Args:
        source: folder with the lessons' notebooks and `images/`.
        target: the learner's folder; made if missing.

    Raises:
        FileNotFoundError: if `source` holds no notebooks.
    """
    notebooks = sorted(source.glob("*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(f"{source} holds no notebooks: run `make notebooks` first.")
    images = sorted(path for path in (source / "images").rglob("*") if path.is_file())
    target.mkdir(parents=True, exist_ok=True)
    manifest = target / MANIFEST
    known: dict[str, str] = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    result = Copied()
    for path in [*notebooks, *images]:
        name = path.relative_to(source).as_posix()
        copy = target / name
        wanted = _digest(path)
        if copy.exists():
            now = _digest(copy)
            if now not in (wanted, known.get(name)):  # the learner's
                if known.get(name) != wanted:
                    result.kept.append(name)
                continue
            if now != wanted:
                result.updated.append(name)
        else:
            result.new.append(name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        known[name] = wanted
    manifest.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return result


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
