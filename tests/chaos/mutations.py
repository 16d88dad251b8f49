"""Spoilt files given to whatever reads them: a right result or an error of ours, and never anything else.

    python -m tests.chaos.mutations NUMBER SEED BEGIN

runs in a process of its own, so that a crash of the interpreter or a hang inside a library ends that process, is
counted, and the rest goes on.
"""

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from ftnb.events import JournalError
from ftnb.plan import TrainingError
from ftnb.pretrained import ModelError
from ftnb.rules import RecipeError
from ftnb.snapshots import SnapshotError
from ftnb.tables import DataError
from tests.chaos.readers import TARGETS, Target, prepare

ROOT = Path(__file__).parent.parent.parent
OURS = (RecipeError, JournalError, DataError, SnapshotError, TrainingError, ModelError)
SECONDS = 10  # that one file may take


class HangError(BaseException):
    """Reading a file took too long."""


@dataclass
class Tried:
    """What came of the spoilt files."""

    tried: int = 0
    crashes: int = 0
    hangs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `HangError` in what takes too long; a library that does not return ends the process."""

    def late(number: int, frame: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def attempt(target: Target, place: Path, random: Random) -> str:
    """Spoil and read one file; returns "right", the name of an error of ours, or what went wrong."""
    try:
        with limited(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(place, random)
    except OURS as error:
        return type(error).__name__ if str(error).strip() else "an error without words"
    except HangError:
        return "hang"
    except Exception as error:  # noqa: BLE001  # that is what is looked for
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else "nowhere"
        return f"crash: {type(error).__name__}: {str(error)[:200]} in {where}"
    finally:
        shutil.rmtree(place / "spoilt", ignore_errors=True)
    return "right"


def kind_of(number: int) -> Target:
    """The kind of file for a mutation's number: all kinds by their shares."""
    place = number * 37 % 100
    for target in TARGETS:
        if place < target.share:
            return target
        place -= target.share
    return TARGETS[0]


def try_some(numbers: range, seed: int, say: Callable[[str], object] = lambda _: None) -> Tried:
    """Mutations by number, in this process."""
    tried = Tried()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        prepare(place)
        for number in numbers:
            target = kind_of(number)
            say(f"at {number} {target.name}")
            outcome = attempt(target, place, Random(f"{seed} {number}"))
            tried.tried += 1
            tried.hangs += outcome == "hang"
            tried.crashes += outcome.startswith(("crash", "an error"))
            tried.outcomes[f"{target.name}: {outcome.split(':')[0]}"] += 1
            if outcome == "hang" or outcome.startswith(("crash", "an error")):
                tried.failures.append(f"{number} {target.name}: {outcome}")
    return tried


def mutations_table(number: int = 10_000, seed: int = 0) -> Tried:
    """Mutations in a process of its own; where it dies, another one goes on behind that place."""
    total, begin = Tried(), 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    while begin < number:
        words = [sys.executable, "-m", "tests.chaos.mutations", str(number), str(seed), str(begin)]
        done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True, timeout=3600)
        lines = done.stdout.splitlines()
        if done.returncode == 0:
            part = json.loads(lines[-1])
            for name in ("tried", "crashes", "hangs", "failures"):
                setattr(total, name, getattr(total, name) + part[name])
            total.outcomes.update(part["outcomes"])
            break
        at = int(lines[-1].split()[1])  # what came before the place is done again, without it
        total.hangs, total.crashes = (
            total.hangs + ("Timeout" in done.stderr),
            total.crashes + ("Timeout" not in done.stderr),
        )
        total.failures.append(f"{lines[-1]}: the process ended with {done.returncode}: {done.stderr[-500:]}")
        part = try_some(range(begin, at), seed)
        total.tried, begin = total.tried + part.tried + 1, at + 1
        total.crashes, total.hangs = total.crashes + part.crashes, total.hangs + part.hangs
        total.failures += part.failures
        total.outcomes += part.outcomes
    return total


if __name__ == "__main__":
    last, of, first = map(int, sys.argv[1:4])
    result = try_some(range(first, last), of, lambda line: print(line, flush=True))
    print(json.dumps(vars(result)))
