"""Run one lesson from its source and lay its pictures out as files, to be looked at while writing.

Usage: `python -m tools.runlesson nbs/14_charts.py [--out FOLDER]`.
"""

import argparse
import base64
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tools.lessons import ROOT, read_lesson


def run_lesson(lesson: Path, out: Path, timeout: int = 900) -> list[Path]:
    """Execute a lesson in a fresh kernel, write the executed notebook and its PNGs below `out`.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails.
    """
    notebook = read_lesson(lesson)
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3", "language": "python"})
    out.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(lesson.parent)}})
    try:
        client.execute()
    finally:
        nbformat.write(notebook, out / f"{lesson.stem}.ipynb")
    pictures: list[Path] = []
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                pictures.append(out / f"cell{index:02d}-{len(pictures)}.png")
                pictures[-1].write_bytes(base64.b64decode(png))
    return pictures


def main() -> None:
    """Run a lesson from the command line."""
    parser = argparse.ArgumentParser(description="Run one lesson and write its pictures.")
    parser.add_argument("lesson", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the executed notebook and the pictures")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.gettempdir()) / f"run-{arguments.lesson.stem}"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    pictures = run_lesson(arguments.lesson, out)
    print(f"{arguments.lesson.name}: {time.perf_counter() - start:.1f} s; {out / arguments.lesson.stem}.ipynb")
    for picture in pictures:
        print(picture)


if __name__ == "__main__":
    main()
