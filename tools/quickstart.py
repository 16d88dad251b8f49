"""Run the quickstart lesson without a browser and say what it achieved: `make quickstart`.

Prints each section's heading as it starts and its seconds when it is done. The lesson's last code cell shows a line
that begins with `quickstart:`; it is printed last.
"""

import ast
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from tools.derive import derive
from tools.lessons import ROOT, plain_text
from tools.notebooks import kernel_environment

LESSON = "00_quickstart.py"
RESULT = "quickstart:"
CELL_TIMEOUT = 600  # seconds; a slow machine may take its time


def sections(notebook: NotebookNode) -> list[tuple[str, list[int]]]:
    """The lesson's headings in order, each with the indices of the code cells below it."""
    heading = "Start"
    found: list[tuple[str, list[int]]] = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#{1,3} (.+)$", cell.source, re.MULTILINE)
            heading = headings[-1].strip() if headings else heading
        elif cell.cell_type == "code":
            if not found or found[-1][0] != heading:
                found.append((heading, []))
            found[-1][1].append(index)
    return found


def result_line(notebook: NotebookNode) -> str | None:
    """The last line that begins with `quickstart:` among everything that the lesson showed as text."""
    found = None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            if text[:1] in "'\"" and output.output_type != "stream":
                text = str(ast.literal_eval(text))
            for line in text.splitlines():
                found = line.strip() if line.strip().startswith(RESULT) else found
    return found


@contextmanager
def _timed(heading: str) -> Iterator[None]:
    """Print a heading, its running seconds on a terminal, and its seconds at the end."""
    start = time.perf_counter()
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1.0):
            print(f"\r  {heading} … {time.perf_counter() - start:.0f} s", end="", flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if sys.stdout.isatty():
        ticker.start()
    print(f"  {heading} …", end="", flush=True)
    try:
        yield
    finally:
        done.set()
        if ticker.is_alive():
            ticker.join()
        again = f"\r  {heading} …" if sys.stdout.isatty() else ""
        print(f"{again} {time.perf_counter() - start:.1f} s ", flush=True)


def run(lesson: Path, folder: Path = ROOT) -> str:
    """Run a lesson in a kernel, in `folder`, with progress on the screen; returns its result line.

    Raises:
        SystemExit: if a cell fails or takes too long, or the lesson shows no result.
    """
    notebook = derive(lesson)
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": str(folder)}})
    heading = ""
    try:
        # What a cell says comes through the protocol; the kernel's own standard error is notes for its developers.
        with client.setup_kernel(env=kernel_environment(), stderr=subprocess.DEVNULL):
            for heading, indices in sections(notebook):
                with _timed(heading):
                    for index in indices:
                        client.execute_cell(notebook.cells[index], index)
    except CellExecutionError as error:
        raise SystemExit(
            f"The quickstart failed in {heading!r}: {error.ename}: {error.evalue}\n\n{plain_text(str(error))}"
        ) from None
    except DeadKernelError:
        raise SystemExit(f"The kernel died in {heading!r}; often that means too little memory.") from None
    except KeyboardInterrupt:
        raise SystemExit(f"Stopped by hand in {heading!r}.") from None
    except CellTimeoutError:
        raise SystemExit(f"The quickstart took longer than {CELL_TIMEOUT} s in one cell of {heading!r}.") from None
    line = result_line(notebook)
    if line is None:
        raise SystemExit(f"{lesson.name} ran, but shows no line that begins with {RESULT!r}.")
    return line


def main() -> None:
    """Run the quickstart from the command line."""
    start = time.perf_counter()
    lesson = ROOT / "nbs" / LESSON
    print(f"Running {lesson.relative_to(ROOT)} in a kernel; it saves under runs/.")
    line = run(lesson)
    print(f"{time.perf_counter() - start:.0f} s in all\n{line}")


if __name__ == "__main__":
    main()
