"""Run the lessons whose outputs are stale, and store what they show.

python -m tools.notebooks                     every stale lesson
python -m tools.notebooks nbs/13_events.py    these, stale or not
python -m tools.notebooks --all               every lesson
"""

import argparse
import os
import time
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

from tools.derive import derive, notebook_path, render, write_derived
from tools.lessons import ROOT, lessons, plain_text
from tools.outputs import clean, notebook_findings
from tools.stale import hashes, stale

CELL_TIMEOUT = 180  # seconds
BUDGET = 60  # seconds a lesson may take on two cores


def kernel_environment(root: Path = ROOT) -> dict[str, str]:
    """The environment in which lessons run for the record: no network, at most two threads, this checkout's package."""
    threads = min(2, int(os.environ.get("OMP_NUM_THREADS") or 1))
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    return environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def execute(lesson: Path, root: Path = ROOT) -> NotebookNode:
    """Run all cells of a lesson in a fresh kernel and return its clean notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails.
        nbclient.exceptions.CellTimeoutError: when a cell takes longer than `CELL_TIMEOUT`.
    """
    before = hashes(lesson, root)
    notebook = derive(lesson)
    folder = str(lesson.parent)
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT, record_timing=False, resources={"metadata": {"path": folder}}
    )
    client.execute(env=kernel_environment(root))
    clean(notebook, root)
    notebook.metadata["ftnb"] = before
    return derive(lesson, notebook)


def run(chosen: list[Path], root: Path = ROOT) -> list[str]:
    """Execute lessons and write their notebooks; returns one line for each that failed (its file stays as it was)."""
    failures = []
    total = time.perf_counter()
    for lesson in chosen:
        start = time.perf_counter()
        try:
            notebook = execute(lesson, root)
        except (CellExecutionError, CellTimeoutError) as error:
            failures.append(f"{lesson.name} failed:\n{plain_text(str(error))}")
            print(f"{lesson.name}: failed after {time.perf_counter() - start:.1f} s", flush=True)
            continue
        seconds = time.perf_counter() - start
        path = notebook_path(lesson)
        path.write_text(render(notebook), encoding="utf-8", newline="\n")
        over = f", over the budget of {BUDGET} s" if seconds > BUDGET else ""
        size = path.stat().st_size
        print(f"{lesson.name}: {seconds:.1f} s{over}, {size // 1000} KB", flush=True)
        for finding in notebook_findings(notebook, f"nbs/{path.name}", size):
            print(f"  {finding}", flush=True)
    print(f"{len(chosen)} lessons in {time.perf_counter() - total:.0f} s")
    return failures


def main(argv: list[str] | None = None) -> None:
    """Bring the committed notebooks up to date from the command line."""
    parser = argparse.ArgumentParser(description="Run lessons whose outputs are stale and store what they show.")
    parser.add_argument("lessons", nargs="*", type=Path, help="lesson sources; all stale ones when left out")
    parser.add_argument("--all", action="store_true", help="run every lesson")
    arguments = parser.parse_args(argv)
    for lesson in lessons():
        write_derived(lesson)
    reasons = stale()
    chosen = [path.resolve() for path in arguments.lessons] or (lessons() if arguments.all else list(reasons))
    for lesson in chosen:
        print(f"{lesson.name}: {reasons.get(lesson, 'asked for')}")
    failures = run(chosen)
    if failures:
        raise SystemExit("\n\n".join(failures))


if __name__ == "__main__":
    main()
