"""Real processes, ended by SIGKILL at random moments: a run goes on in the next, is killed again, and so on.

A process of its own loads the libraries once and forks a child for each life of a run; it trains nothing itself.

    python -m tests.chaos.kills FOLDER NUMBER SEED
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch

from ftnb.events import JournalError, Stepped, read_journal, what_counts
from ftnb.recipe import Recipe
from ftnb.run import Run
from ftnb.runfolder import JOURNAL
from tests.chaos.count import Count, place
from tests.chaos.runs import EVERY, last_weights, tiny_recipe
from tests.chaos.toy import whole_steps

ROOT = Path(__file__).parent.parent.parent


def live(act: Callable[[], object], log: Path) -> int:
    """Do something in a child process; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(log, "a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                act()
                code = 0
            except BaseException:  # noqa: BLE001  # a child has nobody to raise to
                traceback.print_exc(file=file)
    finally:
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """Wait for a child's end; returns its exit code, or None if it still lives."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def done_in(folder: Path) -> int:
    """Steps that a run's journal knows of and that count."""
    try:
        events = what_counts(read_journal(folder / JOURNAL))
    except (OSError, JournalError):
        return 0
    return max((event.step for event in events if isinstance(event, Stepped)), default=0)


def begin(recipe: Recipe, folder: Path) -> None:
    """A run's first life."""
    Run(recipe, folder).start().wait()


def go_on(folder: Path) -> None:
    """A later life."""
    run = Run.open(folder)
    if run.state != "done":
        run.resume()
        run.wait()


def kill_many(place: Path, number: int, seed: int) -> dict[str, Any]:
    """Kill runs until so many kills have hit; every run must end with the weights of one that was left alone.

    Returns:
        A `Count` as a dictionary, with "lives" and "killed_in_last_save" beside it.
    """
    count, random, log = Count(), Random(seed), place / "log.txt"
    recipe = tiny_recipe(place, num_epochs=6)
    seconds, whole = [], place / "whole"
    for again in range(2):  # the first child also fills the caches of the disk
        begun = time.monotonic()
        folder = whole if again else place / "warm"
        assert ended(live(lambda folder=folder: begin(recipe, folder), log), 120) == 0, log.read_text()
        seconds.append(time.monotonic() - begun)
    wanted, chain, lives = last_weights(whole), 0, 0
    while count.injected < number:
        chain, attempt = chain + 1, 0
        folder = place / f"run-{chain}-{attempt}"
        while True:
            lives += 1
            first = not whole_steps(folder)
            if first:  # nothing to go on from: it begins anew, elsewhere
                attempt += 1
                folder = place / f"run-{chain}-{attempt}"
            act = (lambda f=folder: begin(recipe, f)) if first else (lambda f=folder: go_on(f))
            pid = live(act, log)
            code = ended(pid, random.uniform(0.05, 1.0) * seconds[-1] if count.injected < number else 120)
            if code is not None:
                break
            os.kill(pid, signal.SIGKILL)
            ended(pid, 120)
            done, there = done_in(folder), whole_steps(folder)
            committed = done > EVERY  # the first snapshot was through before the next step
            count.add(
                "before the first snapshot" if not there else "in training",
                without_valid_snapshot=int(committed and not there),
                intervals_lost_max=max(0, -(-(done - max(there, default=0)) // EVERY)),
            )
        if code != 0 or not torch.equal(last_weights(folder), wanted):
            count.runs_lost += 1
            count.failures.append(f"run {folder.name} ended with {code}: {log.read_text()[-2000:]}")
    return {**asdict(count), "lives": lives, "runs": chain, "seconds": seconds[-1]}


def kills_table(number: int = 60, seed: int = 0) -> tuple[Count, dict[str, Any]]:
    """Kills in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with place() as name:
        words = [sys.executable, "-m", "tests.chaos.kills", name, str(number), str(seed)]
        done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"the process that kills ended with {done.returncode}:\n{done.stderr[-4000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    extra = {name: result.pop(name) for name in ("lives", "runs", "seconds")}
    return Count(**result), extra


if __name__ == "__main__":
    print(json.dumps(kill_many(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
