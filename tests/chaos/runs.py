"""Real runs of a recipe on a tiny text task, as a person has them: whole, killed, and with the power cut."""

import shutil
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from ftnb.events import Stepped
from ftnb.recipe import Recipe, RecipeError
from ftnb.replay import weights_of
from ftnb.run import Run
from ftnb.runfolder import JOURNAL
from tests.chaos.count import FAMILIES, Count, place
from tests.chaos.faults import damages, record
from tests.chaos.toy import whole_steps
from tests.tiny import tiny_bert, write_csv

EVERY = 3  # steps between two snapshots


def tiny_recipe(folder: Path, **settings: object) -> Recipe:
    """A recipe with a table and a model of 8,000 parameters in a folder."""
    if not (folder / "bert").exists():
        tiny_bert(folder / "bert")
        write_csv(folder / "reviews.csv")
    numbers = {"lr": 1e-3, "num_epochs": 3, "batch_size": 8, "snapshot_every": EVERY, "device": "cpu"}
    return Recipe(data=str(folder / "reviews.csv"), model=str(folder / "bert"), **{**numbers, **settings})


def last_weights(folder: Path) -> Tensor:
    """All weights at the end of a run, as one vector."""
    return torch.cat([tensor.flatten() for _, tensor in sorted(weights_of(folder).items())])


def cut_runs(count: Count, random: Random, number: int) -> None:
    """Cut the power at random operations of a real run, and go on with it as a person would."""
    with place() as name:
        root = Path(name)
        recipe = tiny_recipe(root / "place", num_epochs=2)
        (root / "first").mkdir()
        run = Run(recipe, root / "first" / "run")
        recorded = record(lambda: run.start().wait(), root / "first", lambda: run.history.step)
        wanted = last_weights(run.folder)
        operations = recorded.disk.operations
        for at in sorted(random.sample(range(recorded.committed + 1, len(operations)), number)):
            target = root / f"cut-{at}"
            done = recorded.cut(at, random, target, None)
            go_on(count, target / "run", done, wanted, f"cut at {operations[at].kind} {operations[at].path}")
            shutil.rmtree(target)


def go_on(count: Count, folder: Path, done: int, wanted: Tensor, what: str) -> None:
    """Read a run back, let it go on to its end, and count what came of it."""
    without, restored, problem = int(not whole_steps(folder)), 0, ""
    try:
        again = Run.open(folder)
        if again.state != "done":
            again.resume()
            again.wait()
        problem = "" if torch.equal(last_weights(folder), wanted) else "other weights"
        restored = next((e.step for e in again.events if getattr(e, "what", "") == "restored"), done)
    except (*FAMILIES, RecipeError) as error:
        problem = f"{type(error).__name__}: {error}"
    if problem or without:
        count.failures.append(f"real run, {what}, after {done} steps: {problem or 'no valid snapshot'}")
    intervals = max(0, -(-(done - restored) // EVERY)) if not problem else 0
    count.add("real run", runs_lost=int(bool(problem)), without_valid_snapshot=without, intervals_lost_max=intervals)


def damaged_journals(count: Count, random: Random, rounds: int) -> None:
    """Damage the journal of a run that was stopped, which then goes on."""
    with place() as name:
        root = Path(name)
        recipe = tiny_recipe(root / "place", num_epochs=2)
        whole, stopped = Run(recipe, root / "whole"), Run(recipe, root / "stopped")
        whole.start().wait()
        end = 2 * EVERY + 1
        stopped.subscribe(lambda e: stopped.stop() if isinstance(e, Stepped) and e.step == end else None)
        stopped.start().wait()
        for number in range(rounds):
            for kind, damage in damages(random):
                if kind != "missing":  # without a journal a folder is no run
                    folder = root / f"{kind}-{number}"
                    shutil.copytree(stopped.folder, folder)
                    damage(folder / JOURNAL)
                    go_on(count, folder, 2 * EVERY + 1, last_weights(whole.folder), f"{kind} of the journal")
                    shutil.rmtree(folder)
