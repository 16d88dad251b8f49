# Exported from nbs/17_plan.py: edit the lesson, then run `make export`.
"""What a training is given, where everything in it happens, and what it must remember."""

import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ftnb.schedule import Schedule, lr_factor

__all__ = [
    "TrainingError",
    "Settings",
    "Plan",
    "Rates",
    "Best",
]


class TrainingError(ValueError):
    """A training cannot start, or cannot go on, with what it was given."""


@dataclass(frozen=True)
class Settings:
    """The numbers of a training.

    Attributes:
        lr: peak learning rate, of layer groups with multiplier 1.
        num_epochs: passes over the training data.
        accumulation: micro-batches per optimizer step.
        max_grad_norm: bound on the gradients' joint L2 norm; None does not clip.
        weight_decay: AdamW's decoupled decay, on tensors with at least two axes.
        warmup: share of a phase's steps in which the rate rises.
        schedule: "linear", "cosine" or "constant", after the warm-up.
        eval_every: steps between evaluations; None evaluates after each epoch.
        patience: evaluations without a better metric after which to stop early; None never does.
        batch_norm: "moving", or "fixed": statistics stay those of the checkpoint.
        seed: everything random follows from it.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", "fp32", "bf16", "fp16".
    """

    lr: float = 3e-4
    num_epochs: int = 3
    accumulation: int = 1
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.1
    schedule: Schedule = "linear"
    eval_every: int | None = None
    patience: int | None = None
    batch_norm: str = "moving"
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("num_epochs", "accumulation", "eval_every", "patience"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise TrainingError(f"{name} must be a whole number of at least 1, got {value!r}.")
        for name in ("lr", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TrainingError(f"{name} must be positive and finite, got {value!r}.")
        if self.batch_norm not in ("moving", "fixed"):
            raise TrainingError(f"batch_norm must be 'moving' or 'fixed', got {self.batch_norm!r}.")
        if not 0 <= self.weight_decay < math.inf:
            raise TrainingError(f"weight_decay must be zero or positive, got {self.weight_decay!r}.")
        lr_factor(0.0, warmup=self.warmup, schedule=self.schedule)  # checks both


@dataclass(frozen=True)
class Plan:
    """Where everything happens, in optimizer steps.

    Attributes:
        num_batches: micro-batches per epoch.
        accumulation: micro-batches per step; the last step of an epoch may have fewer.
        num_epochs: passes over the data.
        shares: the phases' shares of all steps.
    """

    num_batches: int
    accumulation: int
    num_epochs: int
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.num_batches < 1:
            raise TrainingError("there is nothing to train on: the training data gives no batch.")
        if not math.isclose(sum(self.shares), 1.0, abs_tol=1e-6):
            raise TrainingError(f"the phases' shares must sum to 1, got {self.shares}.")
        starts = [*self.phase_starts, self.num_steps]
        if any(begin >= end for begin, end in itertools.pairwise(starts)):
            raise TrainingError(
                f"{self.num_steps} steps cannot be split into phases with shares {self.shares}: one of them gets no "
                "step. Train longer or use a smaller batch."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return math.ceil(self.num_batches / self.accumulation)

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the whole training."""
        return self.steps_per_epoch * self.num_epochs

    @property
    def phase_starts(self) -> list[int]:
        """The first step of each phase."""
        return [round(sum(self.shares[:i]) * self.num_steps) for i in range(len(self.shares))]

    def phase_at(self, step: int) -> int:
        """Index of the phase that the update after `step` completed steps belongs to."""
        return max(i for i, start in enumerate(self.phase_starts) if start <= step)

    def progress(self, step: int) -> float:
        """How far the update after `step` completed steps is within its phase, from 0 to below 1."""
        starts = [*self.phase_starts, self.num_steps]
        phase = self.phase_at(step)
        return (step - starts[phase]) / (starts[phase + 1] - starts[phase])


@dataclass
class Rates:
    """Peak learning rates that may be changed while training.

    Attributes:
        lr: the peak of a group with multiplier 1.
        own: peaks that were set for single groups, by name.
    """

    lr: float
    own: dict[str, float] = field(default_factory=dict)

    def peak(self, name: str, multiplier: float) -> float:
        """The peak rate of one group."""
        return self.own.get(name, self.lr * multiplier)

    def set(self, lr: float, group: str | None, multipliers: dict[str, float]) -> float:
        """Change all groups in proportion, or one alone; returns the rate that was in force before."""
        if group is not None:
            old = self.peak(group, multipliers[group])
            self.own[group] = lr
            return old
        old, self.lr = self.lr, lr
        self.own = {name: peak * lr / old for name, peak in self.own.items()}
        return old


@dataclass
class Best:
    """The best evaluation so far and the weights it was reached with.

    Attributes:
        higher_is_better: the direction of the metric.
        value: the best value; None before the first evaluation.
        step: the step it was reached at.
        weights: copies, on the CPU, of the tensors that training changes.
        misses: evaluations since then.
    """

    higher_is_better: bool
    value: float | None = None
    step: int | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    misses: int = 0

    def offer(self, value: float, step: int) -> bool:
        """Whether this value is the best so far (NaN never is, unless it is the first)."""
        sign = 1 if self.higher_is_better else -1
        better = self.value is None or sign * value > sign * self.value or (math.isnan(self.value) and value == value)
        if better:
            self.value, self.step, self.misses = value, step, 0
        else:
            self.misses += 1
        return better

    def keep(self, model: nn.Module, names: set[str]) -> None:
        """Copy the tensors named, and all buffers, to the CPU."""
        tensors = {name: p for name, p in model.named_parameters() if name in names} | dict(model.named_buffers())
        self.weights = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}

    def restore(self, model: nn.Module) -> None:
        """Put the kept tensors back into the model."""
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, kept in self.weights.items():
                tensors[name].copy_(kept)
