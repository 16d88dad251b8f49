"""Spoilt files given to whatever reads them: a right result or an error of ours, and never anything else.

    python -m tests.chaos.mutations NUMBER SEED BEGIN

runs in a process of its own, so that a crash of the interpreter or a hang inside a library ends that process, is
counted, and the rest goes on.
"""

import contextlib
import faulthandler
import hashlib
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
from typing import Any

from ftnb.charts import History, history_text
from ftnb.data import load_splits
from ftnb.events import JournalError, SetLr, read_journal, what_counts
from ftnb.plan import TrainingError
from ftnb.pretrained import ModelError
from ftnb.recipe import Recipe
from ftnb.replay import script_of
from ftnb.rules import RecipeError
from ftnb.runfolder import JOURNAL, ORIGIN, RECIPE, branched_at, write_origin
from ftnb.snapshots import MANIFEST, STATE, SnapshotError, Snapshots
from ftnb.tables import DataError
from ftnb.train import Training
from tests.chaos.mutators import MUTATORS, flip_bits, mutate, numbers, values
from tests.chaos.toy import SETTINGS, Toy, fresh, quietly
from tests.tiny import reviews
from tests.toys import toy_learner

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


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        name: what it is.
        share: of all mutations.
        read: spoils a file in the folder with a random generator, and reads it.
    """

    name: str
    share: int
    read: Callable[[Path, Random], object]


def read_snapshot(place: Path, random: Random) -> None:
    """Spoil a file of a snapshot; often the manifest's hashes are made right again, so that the content is read."""
    folder = place / "spoilt"
    shutil.copytree(place / "snapshots", folder)
    snapshots = Snapshots(folder)
    path = snapshots.path(snapshots.steps()[0])
    files = sorted(file.name for file in path.iterdir())
    name = random.choice((*[STATE] * 6, *files))
    rightly = name != MANIFEST and random.random() < 0.9
    mutators = (
        (*[values] * 12, *[numbers] * 4, *MUTATORS)
        if name == STATE
        else (*[flip_bits] * 8, *MUTATORS)
        if name != MANIFEST
        else MUTATORS
    )
    for _ in range(random.choice((1, 1, 3)) if rightly else 1):
        (path / name).write_bytes(mutate((path / name).read_bytes(), random, mutators))
    if rightly:
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
        (path / MANIFEST).write_text(json.dumps(manifest))
    training = Training(toy_learner(num_examples=40), **SETTINGS)
    training.request(SetLr(1e-3))
    snapshots.load(training)
    if training.position.step < training.plan.num_steps:
        training.step()
        training.request(SetLr(1e-3))
    for _ in training:  # to its end: an evaluation, the best model
        pass
    training.load_best()
    snapshots.save(training)


def read_recipe(place: Path, random: Random) -> None:
    """Spoil a recipe; one that can be read can be written and read again."""
    path = place / RECIPE
    path.write_bytes(mutate((place / f"recipe-{random.randrange(3)}.toml").read_bytes(), random))
    recipe = Recipe.load(path)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    recipe.code()


def read_events(place: Path, random: Random) -> None:
    """Spoil a journal; one that can be read gives a history and a script."""
    path = place / JOURNAL
    path.write_bytes(mutate((place / "whole.jsonl").read_bytes(), random, (values, *MUTATORS)))
    events = what_counts(read_journal(path))
    history = History.from_events(events)
    history_text(history)
    script_of(events)


def read_table(place: Path, random: Random) -> None:
    """Spoil a table."""
    suffix = random.choice((".csv", ".tsv", ".jsonl"))
    path = place / f"spoilt{suffix}"
    path.write_bytes(mutate((place / f"table{suffix}").read_bytes(), random))
    splits = load_splits(path, columns={"text": "text", "label": "label"})
    assert len(splits.train) > 0
    assert all(isinstance(text, str) for text in splits.train["text"])


def read_origin(place: Path, random: Random) -> None:
    """Spoil the note of where a branch left its run."""
    path = place / ORIGIN
    path.write_bytes(mutate((place / "whole.json").read_bytes(), random, (values, *MUTATORS)))
    step = branched_at(place)
    assert step is None or (type(step) is int and step >= 0), step


TARGETS = (
    Target("snapshot", 25, read_snapshot),
    Target("recipe", 25, read_recipe),
    Target("journal", 20, read_events),
    Target("table", 25, read_table),
    Target("branch.json", 5, read_origin),
)


def prepare(place: Path) -> None:
    """Whole files to spoil."""
    toy: Toy = fresh(place / "run")
    quietly(toy.run)
    snapshots = Snapshots(toy.folder / "snapshots")
    shutil.copytree(snapshots.path(snapshots.steps()[0]), Snapshots(place / "snapshots").path(snapshots.steps()[0]))
    shutil.copy(toy.folder / JOURNAL, place / "whole.jsonl")
    write_origin(place, "20261123-165312-417-4f", 8)
    (place / ORIGIN).rename(place / "whole.json")
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {
            "strategy": {"name": "top-k", "k": 2}, "columns": {"text": 0, "label": 1},
            "data": {"train": "a.csv", "valid": "b.csv"},
        },
        {"task": "image-classification", "augment": "flip", "max_grad_norm": float("inf"), "patience": 3},
    )  # fmt: skip
    for i, settings in enumerate(kinds):
        (place / f"recipe-{i}.toml").write_text(Recipe(**settings).to_toml(comments=i == 1))
    table = reviews(30)
    csv = [f"{row['text']},{row['label']}" for row in table[:-1]] + ['"so, they ""said""",positive']
    (place / "table.csv").write_text("\n".join(["text,label", *csv]) + "\n")
    (place / "table.tsv").write_text("\n".join(["text\tlabel", *(f"{r['text']}\t{r['label']}" for r in table)]) + "\n")
    (place / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))


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
