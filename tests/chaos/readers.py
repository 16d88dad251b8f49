"""The readers of files that are given spoilt ones: snapshots, recipes, journals, tables, a branch's note."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ftnb.charts import History, history_text
from ftnb.data import load_splits
from ftnb.events import SetLr, read_journal, what_counts
from ftnb.recipe import Recipe
from ftnb.replay import script_of
from ftnb.runfolder import JOURNAL, ORIGIN, RECIPE, branched_at, write_origin
from ftnb.snapshots import MANIFEST, STATE, Snapshots
from ftnb.train import Training
from tests.chaos.mutators import MUTATORS, flip_bits, mutate, numbers, values
from tests.chaos.toy import SETTINGS, Toy, fresh, quietly
from tests.tiny import reviews
from tests.toys import toy_learner


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
    events = what_counts(read_journal(path, damaged=[]))
    history_text(History.from_events(events))
    script_of(events)
    read_journal(path)


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
    toy.training.request(SetLr(2e-3, "all"), at=13)
    toy.training.request(SetLr(1e-3), at=14)
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
