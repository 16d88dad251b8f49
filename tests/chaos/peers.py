"""What `transformers.Trainer` does with a break in the middle of an epoch, as information beside our own figures.

The same little network and data as `tests/toys.py`; the trainer is stopped by a callback right after it saved a
checkpoint, and another one goes on with `resume_from_checkpoint`. "Augmentation" adds noise when an example is read.
"""

import contextlib
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.toys import Net, points, weights


class Points(Dataset):
    """The examples, perhaps with noise that is drawn when they are read."""

    def __init__(self, augmented: bool) -> None:
        self.examples, self.augmented = points(50, 1), augmented

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        x = self.examples[i]["x"]
        return {**self.examples[i], "x": x + 0.3 * torch.randn_like(x) if self.augmented else x}


class WithLoss(nn.Module):
    """The network in the form that the trainer wants."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class StopAt(TrainerCallback):
    """Save and stop after a step, as a kill right after a checkpoint would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.at:
            control.should_save = control.should_training_stop = True


def trainer(folder: Path, augmented: bool, workers: int, at: int | None) -> Trainer:
    """A trainer at its defaults, on three epochs."""
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=8, learning_rate=1e-2,
        dataloader_num_workers=workers, seed=0, use_cpu=True, save_strategy="no", logging_strategy="no",
        report_to=[], disable_tqdm=True,
    )  # fmt: skip
    return Trainer(
        WithLoss(), arguments, train_dataset=Points(augmented), callbacks=[StopAt(at)] if at is not None else []
    )


def trainer_diff(augmented: bool, workers: int, at: int) -> float:
    """How far apart the weights end, with a break after `at` steps and without."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(None):
        whole = trainer(Path(name, "whole"), augmented, workers, None)
        whole.train()
        trainer(Path(name, "broken"), augmented, workers, at).train()
        second = trainer(Path(name, "broken"), augmented, workers, None)
        second.train(resume_from_checkpoint=str(Path(name, "broken", f"checkpoint-{at}")))
    assert second.state.global_step == whole.state.global_step
    return (weights(whole.model) - weights(second.model)).abs().max().item()


def peers_table(breaks: tuple[int, ...] = (4, 10)) -> dict[str, Any]:
    """The largest difference over the breaks, by case, with the versions."""
    cases = {"plain": (False, 0), "augmentation, 0 workers": (True, 0), "augmentation, 2 workers": (True, 2)}
    rows = [
        {"case": name, "max_abs_diff": max(trainer_diff(*case, at) for at in breaks)} for name, case in cases.items()
    ]
    return {
        "transformers.Trainer": rows,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
    }
