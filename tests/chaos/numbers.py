"""Numbers that are none, and memory that is full, put into trainings on purpose."""

import math
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from ftnb.events import Stepped, Warned
from ftnb.step import Batch, Learner, batch_size
from ftnb.train import Training
from tests.toys import loss, points, toy_learner, weights

SETTINGS: dict[str, Any] = {"lr": 1e-2, "num_epochs": 2, "device": "cpu"}


@dataclass
class Poisoned:
    """A learner with something wrong in it, and the words that must be said of it."""

    learner: Learner
    said: str


def poison(random: Random) -> Poisoned:
    """A learner with one bad example, one bad loss, or one bad gradient."""
    learner, kind = toy_learner(seed=random.randrange(100)), random.choice(("example", "loss", "gradient"))
    value, at = random.choice((math.nan, math.inf, -math.inf)), random.randrange(50)
    if kind == "example":
        learner.train.examples[at]["x"] = learner.train.examples[at]["x"].clone()
        learner.train.examples[at]["x"][random.randrange(6)] = value
        return Poisoned(learner, f"row {at} ")
    calls = [0]

    def once(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        calls[0] += 1
        value_now, outputs = loss(model, batch)
        if calls[0] != at % 6 + 1:
            return value_now, outputs
        if kind == "loss":
            return value_now * value, outputs
        parameter = random.choice([p for p in model.parameters() if p.requires_grad])
        return value_now + (parameter - parameter.detach()).sum() * value, outputs

    learner.loss = once
    return Poisoned(learner, "this update was skipped")


def nan_table(number: int = 300, clean: int = 60, seed: int = 0) -> tuple[dict[str, int], dict[str, int]]:
    """The entry "nan", and beside it how many were not said, or said without the right example.

    Reached is what left a number that is none in the weights or statistics, or let the bad step change them at all.
    """
    random, reached, unsaid = Random(seed), 0, 0
    for _ in range(number):
        poisoned = poison(random)
        training = Training(poisoned.learner, **SETTINGS, accumulation=random.choice((1, 1, 3)))
        before, changed = weights(training.model).clone(), False
        while not training.finished:
            event, now = training.step(), weights(training.model)
            skipped = isinstance(event, Stepped) and not math.isfinite(event.grad_norm)
            changed, before = changed or (skipped and not torch.equal(now, before)), now.clone()
        reached += bool(changed or not torch.isfinite(before).all())
        warned = [event.message for event in training.log if isinstance(event, Warned) and event.code == "non_finite"]
        unsaid += not any(poisoned.said in message for message in warned)
    false_alarms = 0
    for i in range(clean):
        learner = toy_learner(seed=i)
        learner.train.examples = points(50, 1000 + i)
        training = Training(learner, **{**SETTINGS, "lr": random.choice((1e-3, 1e-2, 1.0, 10.0))}, seed=i)
        false_alarms += sum(isinstance(event, Warned) for event in training)
    figures = {"injected": number, "reached_weights": reached, "false_alarms": false_alarms}
    return figures, {"not_said": unsaid, "clean_trainings": clean}


class Plain(nn.Module):
    """Without dropout and BatchNorm, so that parts of a batch can give the gradient of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Two logits for each point."""
        return self.head(self.trunk(x))


def gradients(room: int | None, accumulation: int) -> list[Tensor]:
    """The gradient of each step, where memory holds so many examples at a time; the weights stand still."""
    torch.manual_seed(0)
    learner, seen = toy_learner(model=Plain()), []

    def narrow(model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        if room is not None and batch_size(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(model, batch)

    learner.loss = narrow
    training = Training(learner, **{**SETTINGS, "lr": 1e-30}, accumulation=accumulation, weight_decay=0.0)
    update = training.arithmetic.update

    def watched(optimizer: torch.optim.Optimizer) -> Tensor:
        seen.append(torch.cat([p.grad.flatten() for p in training.model.parameters() if p.grad is not None]).clone())
        return update(optimizer)

    training.arithmetic.update = watched  # type: ignore[method-assign]
    for _ in training:
        pass
    return seen


def oom_table(rooms: tuple[int, ...] = (7, 5, 4, 3, 2, 1)) -> dict[str, float]:
    """The entry "oom": the largest difference of a gradient, relative to its norm, that full memory makes."""
    error = 0.0
    for accumulation in (1, 2, 3):
        whole = gradients(None, accumulation)
        for room in rooms:
            parts = gradients(room, accumulation)
            assert len(parts) == len(whole)
            error = max(error, *(float((a - b).norm() / b.norm()) for a, b in zip(parts, whole, strict=True)))
    return {"gradient_error": error}
