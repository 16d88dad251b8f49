"""What a training survives, in figures; run by `make chaos`.

    python -m tests.chaos [PART ...] [--tiny] [--seed 2] [--kills 60] [--mutations 10000] [--out tests/chaos/chaos.json]

Parts: resume, peers, faults, sigkills, nan, oom, mutations, replay; all by default. The figures of the parts that were
run are put into the file, those of the others stay.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers

from tests.chaos import faults, kills, mutations, numbers, peers, replays, resume, runs
from tests.chaos.count import Count

HERE = Path(__file__).parent


Part = tuple[Any, Any]  # what the file holds under the part's name, and what it holds of it under "more"


def resume_part(options: argparse.Namespace) -> Part:
    """Going on in the middle of an epoch."""
    rows = resume.resume_table(resume.CASES[1::7] if options.tiny else resume.CASES, breaks=1 if options.tiny else 2)
    return [{"case": row["case"], "max_abs_diff": row["max_abs_diff"]} for row in rows], rows


def peers_part(options: argparse.Namespace) -> Part:
    """The same by transformers.Trainer, for information."""
    table = peers.peers_table((4,) if options.tiny else (4, 10))
    print(f"  {json.dumps(table)}")
    return None, table


def faults_part(options: argparse.Namespace) -> Part:
    """Power cuts, sick disks, damaged files."""
    count = faults.faults_table(options.seed, options.tiny)
    runs.cut_runs(count, Random(options.seed), 2 if options.tiny else 40)
    runs.damaged_journals(count, Random(options.seed), 1 if options.tiny else 5)
    return told(count), {"seed": options.seed, "by_kind": count.by_kind, "stopped_early": count.stopped_early}


def sigkills_part(options: argparse.Namespace) -> Part:
    """Killed processes."""
    count, extra = kills.kills_table(4 if options.tiny else options.kills, options.seed)
    print(f"  {extra['runs']} runs had {extra['lives']} lives; one takes {extra['seconds']:.1f} s undisturbed")
    return told(count), {"by_kind": count.by_kind, **extra}


def told(count: Count) -> dict[str, int]:
    """A count as the file has it; what went wrong is printed."""
    for failure in count.failures[:50]:
        print(f"  WRONG: {failure}")
    print(f"  {json.dumps(count.figures())} {json.dumps(count.by_kind)}")
    return count.figures()


def nan_part(options: argparse.Namespace) -> Part:
    """Numbers that are none."""
    figures, more = numbers.nan_table(*((20, 5) if options.tiny else (300, 60)), seed=options.seed)
    print(f"  {json.dumps(figures)} {json.dumps(more)}")
    return figures, more


def oom_part(options: argparse.Namespace) -> Part:
    """Memory that is full."""
    figures = numbers.oom_table(rooms=(3,)) if options.tiny else numbers.oom_table()
    print(f"  {json.dumps(figures)}")
    return figures, None


def mutations_part(options: argparse.Namespace) -> Part:
    """Spoilt files."""
    if options.tiny:
        tried = mutations.try_some(range(300), options.seed)
    else:
        tried = mutations.mutations_table(options.mutations, options.seed)
    for failure in tried.failures[:50]:
        print(f"  WRONG: {failure}")
    outcomes = {"seed": options.seed, **dict(sorted(tried.outcomes.items()))}
    print("\n".join(f"  {outcome}: {number}" for outcome, number in outcomes.items()))
    return {"tried": tried.tried, "crashes": tried.crashes, "hangs": tried.hangs}, outcomes


def replay_part(options: argparse.Namespace) -> Part:
    """Runs done again from their journals."""
    return replays.replay_table(1 if options.tiny else None), None


PARTS: dict[str, Callable[[argparse.Namespace], Part]] = {
    "resume": resume_part,
    "peers": peers_part,
    "faults": faults_part,
    "sigkills": sigkills_part,
    "nan": nan_part,
    "oom": oom_part,
    "mutations": mutations_part,
    "replay": replay_part,
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run parts, print their tables, and put their figures into the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--tiny", action="store_true", help="a few of each, for the tests")
    parser.add_argument("--seed", type=int, default=2, help="0 and 1 found what was mended since; 2 was fresh")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=HERE / "chaos.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    figures = json.loads(options.out.read_text()) if options.out.exists() else {}
    more = figures.pop("more", {})
    for name in options.parts or PARTS:
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        begin, cpu = time.perf_counter(), time.process_time()
        main_figures, more[name] = PARTS[name](options)
        if main_figures is not None:
            figures[name] = main_figures
        print(f"  {time.perf_counter() - begin:.0f} s, {time.process_time() - cpu:.0f} s of this process", flush=True)
        figures = {key: figures[key] for key in PARTS if key in figures}
        figures["more"] = {key: more[key] for key in PARTS if more.get(key) is not None}
        figures["versions"] = {key: version(key) for key in ("torch", "transformers", "datasets", "safetensors")}
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main(sys.argv[1:])
