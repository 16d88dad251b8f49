"""How long `import ftnb` takes in a process of its own."""

import statistics
import subprocess
import sys

CODE = "import time; begin = time.perf_counter(); import ftnb; print(time.perf_counter() - begin)"


def import_seconds(times: int = 9) -> tuple[float, list[float]]:
    """The median over fresh processes, and the range; a first one, which may have to write bytecode, is left out."""
    found = []
    for _ in range(times + 1):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    return statistics.median(found[1:]), [min(found[1:]), max(found[1:])]
