"""A training that is left in the middle of an epoch and goes on from the disk, against the same one left alone."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftnb.events import Command, SetLr, SetParts
from ftnb.snapshots import Snapshots
from ftnb.strategies import strategy_from
from ftnb.tasks import task_class
from ftnb.train import Training
from ftnb.trunk_cache import TrunkCache
from tests.tiny import tiny_bert, write_csv
from tests.tiny_images import stripe_folder, tiny_resnet


@dataclass(frozen=True)
class Case:
    """One kind of training.

    Attributes:
        name: what is special about it.
        task: the task's name.
        options: of the task's `prepare`.
        learner: of the task's `learner`.
        strategy: as a recipe names it.
        settings: of the training.
        cached: whether the output of frozen layers is kept.
        live: a command that is given by hand, two steps before it is left.
    """

    name: str
    task: str = "text-classification"
    options: dict[str, Any] = field(default_factory=dict)
    learner: dict[str, Any] = field(default_factory=dict)
    strategy: Any = "full"
    settings: dict[str, Any] = field(default_factory=dict)
    cached: bool = False
    live: Command | None = None


def pictures(name: str, augment: str, workers: int) -> Case:
    """A case on pictures."""
    return Case(name, "image-classification", {"augment": augment}, {"num_workers": workers})


RATE = SetLr(1e-3)
CASES = (
    Case("plain (length buckets)"),
    Case("accumulation of 3", settings={"accumulation": 3}),
    Case("accumulation of 3, live rate", settings={"accumulation": 3}, live=RATE),
    pictures("pictures", "none", 0),
    pictures("augmentation, 0 workers", "strong", 0),
    pictures("augmentation, 2 workers", "strong", 2),
    Case("2 workers", learner={"num_workers": 2}),
    Case("live rate", live=RATE),
    Case("batches in 2 parts", live=SetParts(2)),
    Case("lp-ft", strategy="lp-ft"),
    Case("lp-ft, live rate", strategy="lp-ft", live=RATE),
    Case("gradual", strategy="gradual"),
    Case("lora", strategy={"name": "lora", "rank": 2}),
    Case("reinit", strategy="reinit"),
    Case("trunk cache, head", strategy="head", cached=True),
    Case("trunk cache, lp-ft", strategy="lp-ft", cached=True),
    Case("trunk cache, gradual, live rate", strategy="gradual", cached=True, live=RATE),
)


def all_weights(model: torch.nn.Module) -> Tensor:
    """All tensors of a model, buffers too, as one vector."""
    return torch.cat([tensor.detach().flatten().double() for tensor in model.state_dict().values()])


def places(folder: Path) -> dict[str, tuple[str, str]]:
    """Data and model of each task."""
    return {
        "text-classification": (write_csv(folder / "reviews.csv", 70), tiny_bert(folder / "bert")),
        "image-classification": (stripe_folder(folder / "stripes", 25), tiny_resnet(folder / "resnet")),
    }


def build(case: Case, place: tuple[str, str]) -> Training:
    """The case's training, from the beginning."""
    learner = task_class(case.task).prepare(*place, **case.options).learner(batch_size=8, **case.learner)
    cache = TrunkCache(min_speedup=1.0) if case.cached else None
    settings = {"lr": 3e-3, "num_epochs": 4, "device": "cpu", **case.settings}
    return Training(learner, strategy_from(case.strategy), cache=cache, **settings)


def walk(training: Training, steps: int | None, live: Command | None = None, at: int = -1) -> Training:
    """Train for some steps, or to the end; a command is given after step `at`."""
    while not training.finished and (steps is None or training.position.step < steps):
        if live is not None and training.position.step == at:
            training.request(live)
        training.step()
    return training


def max_abs_diff(case: Case, place: tuple[str, str], at: int) -> float:
    """How far apart the weights end, with a break after `at` steps and without."""
    whole = walk(build(case, place), None, case.live, at - 2)
    first = walk(build(case, place), at, case.live, at - 2)
    assert not first.finished
    assert 0 < first.position.batch < first.plan.num_batches, "a break in the middle of an epoch is wanted"
    with tempfile.TemporaryDirectory() as folder:
        Snapshots(Path(folder)).save(first)
        torch.manual_seed(123)  # whatever another process has drawn
        second = build(case, place)
        assert Snapshots(Path(folder)).load(second).step == at
    walk(second, None)
    assert second.best.value == whole.best.value
    return (all_weights(whole.model) - all_weights(second.model)).abs().max().item()


def resume_table(
    cases: tuple[Case, ...] = CASES, breaks: int = 2, say: Callable[[str], object] = print
) -> list[dict[str, Any]]:
    """Rows of the table "resume": the largest difference of each case over several breaks."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        of_task = places(Path(name))
        for case in cases:
            plan = build(case, of_task[case.task]).plan
            per_epoch = plan.steps_per_epoch
            candidates = [s for s in range(2, plan.num_steps) if s % per_epoch]
            chosen = [candidates[(2 * i + 1) * len(candidates) // (2 * breaks)] for i in range(breaks)]
            differences = [max_abs_diff(case, of_task[case.task], at) for at in chosen]
            rows.append({"case": case.name, "max_abs_diff": max(differences), "breaks": chosen})
            say(f"  resume, {case.name}: {max(differences):.1e} (breaks after {chosen} of {plan.num_steps} steps)")
    return rows
