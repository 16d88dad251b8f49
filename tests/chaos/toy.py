"""A training of a second's fraction, in a folder, in the background: what the faults are tried out on."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ftnb.background import BackgroundTraining, go_on
from ftnb.events import Event, Stepped, read_journal
from ftnb.runfolder import JOURNAL, RECIPE, SNAPSHOTS, claim
from ftnb.snapshots import SnapshotError, Snapshots, read_state
from ftnb.train import Training
from tests.toys import toy_learner, weights

EVERY = 2  # steps between two snapshots
SETTINGS: dict[str, Any] = {"lr": 1e-2, "num_epochs": 3, "device": "cpu"}
TEXT = "# a recipe\nlr = 0.01\n"


@dataclass
class Toy:
    """A training in a folder; `last` are its weights after the last step, if it came so far."""

    folder: Path
    keep: int = 2
    kind: type[Snapshots] = Snapshots
    last: Tensor | None = None
    background: BackgroundTraining = field(init=False)
    training: Training = field(init=False)

    def __post_init__(self) -> None:
        self.training = training = Training(toy_learner(num_examples=40), **SETTINGS)
        snapshots = self.kind(self.folder / SNAPSHOTS, self.keep)

        def write(folder: Path) -> None:
            save_file({name: t.clone() for name, t in training.model.state_dict().items()}, folder / "m.safetensors")
            (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))

        self.background = BackgroundTraining(training, self.folder, write, None, snapshots, EVERY)
        self.background.record.subscribe(self._keep_last)

    def _keep_last(self, event: Event) -> None:
        if isinstance(event, Stepped) and event.step == self.training.plan.num_steps:
            self.last = weights(self.training.model).clone()

    def step(self) -> int:
        """Completed steps."""
        return self.training.position.step

    def go_on(self) -> int:
        """Go back to the newest snapshot of the folder, as a run does; returns its step."""
        if (self.folder / RECIPE).read_text() != TEXT:
            raise SnapshotError(f"{self.folder / RECIPE} is damaged.")
        step = go_on(self.background, self.training, read_journal(self.folder / JOURNAL)).step
        if step == self.training.plan.num_steps:
            self.last = weights(self.training.model).clone()
        return step

    def run(self) -> "Toy":
        """Train to the end."""
        self.background.start()
        if not self.background.ended.wait(60):
            raise TimeoutError("the training hangs.")
        return self


def fresh(folder: Path, **options: Any) -> Toy:
    """A new training in a new folder; making the folder is part of what may fail."""
    claim(folder, TEXT)
    return Toy(folder, **options)


def whole_steps(folder: Path) -> list[int]:
    """The steps of the snapshots that can be read."""
    snapshots, steps = Snapshots(folder / SNAPSHOTS), []
    for step in snapshots.steps():
        try:
            read_state(snapshots.path(step))
        except SnapshotError:
            continue
        steps.append(step)
    return steps


def reference() -> Tensor:
    """The weights of an uninterrupted training."""
    learner = toy_learner(num_examples=40)
    training = Training(learner, **SETTINGS)
    for _ in training:
        pass
    return weights(training.model).clone()


def same(a: Tensor | None, b: Tensor) -> bool:
    """Whether weights are the same, bit for bit."""
    return a is not None and torch.equal(a, b)


def quietly(act: Callable[[], Any]) -> Any:
    """Do something without the words of threads that die."""
    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        return act()
    finally:
        threading.excepthook = hook
