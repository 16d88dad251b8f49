"""The engine beside others: prints a table for each part and puts it into `bench.json`. Run by `make bench`.

    python -m tests.bench [--part overhead --part padding …] [--pairs 7] [--tiny] [--out tests/bench/bench.json]

Figures are medians over interleaved pairs on one thread, with their ranges. A part that is not run keeps the figures
and the date that it has in the file. `--tiny` runs everything small, to see that it works: what it says of time means
nothing, and it is written only where `--out` says.
"""

import argparse
import datetime
import json
import math
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from tests.bench.parts import PARTS, real_setup, tiny_setup

OUT = Path(__file__).with_name("bench.json")
LIBRARIES = ("torch", "transformers", "accelerate", "lightning", "datasets", "numpy")


def versions() -> dict[str, str | None]:
    """Of the libraries that are compared or used; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def put(figures: dict[str, Any], part: str, value: Any) -> None:
    """Put a part's figures in their place, as plain JSON."""
    if part == "import_seconds":
        figures["import_seconds"], figures["import_seconds_range"] = value
    else:
        figures[part] = plain(value)


def plain(value: Any) -> Any:
    """Numbers that JSON has no word for as None, tuples as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(value: Any) -> str:
    """A figure for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{as_text(value[0])} to {as_text(value[1])}" if isinstance(value, list) and len(value) == 2 else str(value)


def table(value: Any) -> str:
    """A part's figures as a table."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        cells = [list(value[0]), *([as_text(of) for of in row.values()] for row in value)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
    if isinstance(value, dict):
        inner = {name: of for name, of in value.items() if isinstance(of, dict | list) and not _is_range(of)}
        lines = [f"{name:24} {as_text(of)}" for name, of in value.items() if name not in inner]
        return "\n".join([*lines, *(f"{name}:\n{table(of)}" for name, of in inner.items())])
    return as_text(value)


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], dict)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the parts that are asked for; returns all figures, old ones too."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--part", action="append", choices=list(PARTS), help="only this one; may be given several times"
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    out = arguments.out or (None if arguments.tiny else OUT)
    figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out is not None and out.exists() else {}
    print(", ".join(f"{name} {number}" for name, number in versions().items()), flush=True)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        setup = tiny_setup(folder) if arguments.tiny else real_setup(arguments.pairs, folder)
        for part in arguments.part or PARTS:
            begin = time.perf_counter()
            value = PARTS[part](setup)
            seconds = time.perf_counter() - begin
            if value is None:
                print(f"\n{part}: not there yet")
                continue
            put(figures, part, value)
            today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
            figures.setdefault("measured", {})[part] = {
                "date": today, "pairs": setup.pairs, "threads": torch.get_num_threads(), "seconds": round(seconds),
                "versions": versions(),
            }  # fmt: skip
            figures["versions"] = versions()
            print(f"\n{part}\n{table(figures[part])}", flush=True)
            if out is not None:  # after each part: the next one may take an hour
                out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
