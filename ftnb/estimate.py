# Exported from nbs/24_estimate.py: edit the lesson, then run `make export`.
"""What a training will need, counted before it starts: weights, gradients, moments, activations, and the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from ftnb.data import Batches
from ftnb.devices import choose_device, choose_precision, to_device
from ftnb.ledger import Ledger, shares, twin_of, with_numbers
from ftnb.nested import tensors_in
from ftnb.plan import Settings
from ftnb.step import (
    Arithmetic,
    Batch,
    Learner,
    Phase,
    Strategy,
    moving_buffers,
    set_modes,
    set_trainable,
)
from ftnb.trunk_fill import in_words

__all__ = [
    "longest_batch",
    "num_shapes",
    "PhaseMemory",
    "StepMemory",
    "count_step",
    "count_phase",
    "count_phases",
    "Overheads",
    "MAX_PROGRAMS",
    "CPU_POINT",
    "CPU_BOUND",
    "GPU_POINT",
    "GPU_BOUND",
    "Estimate",
    "estimate",
]


def longest_batch(batches: Batches) -> Batch:
    """The batch of the longest examples; where examples have no length, the first ones."""
    count = min(batches.batch_size, batches.num_examples)
    order = range(count) if batches.lengths is None else np.argsort(-np.asarray(batches.lengths), kind="stable")[:count]
    batch: Batch = batches.collate([batches.examples[int(i)] for i in order])
    return batch

def num_shapes(batches: Batches, num_epochs: int = 1) -> int:
    """How many different shapes the batches of some epochs have (at most 50 epochs are looked at)."""
    lengths = batches.lengths
    orders = (batch for epoch in range(min(num_epochs, 50)) for batch in batches.order(epoch))
    return len({(len(batch), max(lengths[i] for i in batch) if lengths is not None else 0) for batch in orders})


@dataclass(frozen=True)
class PhaseMemory:
    """What one phase holds, in bytes.

    Attributes:
        name: of the phase.
        weights: parameters and buffers of the whole model.
        gradients: of what trains and is reached by a gradient.
        moments: AdamW's state.
        activations: what the forward pass of a micro-batch keeps for the backward pass, the batch included.
        moments_of: bytes alive, by kind, at the peak of a step, the update, an evaluation and keeping the best.
        churn: bytes that came and went in blocks below 32 MiB, in a micro-batch and an evaluation batch.
        programs: different shapes of bf16 products on a CPU, in a step and in an evaluation batch.
        flops: multiplications and additions of a micro-batch and of an evaluation batch.
    """

    name: str
    weights: int
    gradients: int
    moments: int
    activations: int
    moments_of: dict[str, dict[str, int]]
    churn: tuple[int, int] = (0, 0)
    programs: tuple[int, int] = (0, 0)
    flops: tuple[int, int] = (0, 0)

    @property
    def worst(self) -> str:
        """The moment at which most is alive."""
        return max(self.moments_of, key=lambda moment: sum(self.moments_of[moment].values()))

    @property
    def parts(self) -> dict[str, int]:
        """What is alive at the worst moment, by kind."""
        return self.moments_of[self.worst]

    @property
    def peak(self) -> int:
        """Bytes alive at the worst moment."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class StepMemory:
    """What a step left in a ledger: bytes kept for the backward pass, of gradients, and of the moments they bring."""

    activations: int
    gradients: int
    moments: int

def count_step(
    model: nn.Module, phase: Phase, learner: Learner, arithmetic: Arithmetic, settings: Settings, ledger: Ledger
) -> StepMemory:
    """Compute the micro-batches of a step (two are enough: in the second, the first one's gradients are there).

    The model keeps the phase's modes and flags, and no gradients.
    """
    set_trainable(phase)
    set_modes(model, phase, settings.batch_norm)
    model.zero_grad(set_to_none=True)
    hooks = [p.register_post_accumulate_grad_hook(partial(_note_gradient, ledger)) for p in phase.trainable]
    batch, activations = to_device(longest_batch(learner.train), arithmetic.device), 0
    with ledger:
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.note(tensor, "weights")
        for tensor in tensors_in(batch):
            ledger.note(tensor)
        before = moving_buffers(model)
        for _ in range(min(2, settings.accumulation)):
            with arithmetic.autocast():
                loss, outputs = learner.loss(model, batch)
            activations = activations or ledger.live["activations"]
            arithmetic.scaler.scale(loss).backward()
            del loss, outputs
        del before
    for hook in hooks:
        hook.remove()
    sizes = [p.grad.untyped_storage().nbytes() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return StepMemory(activations, sum(sizes), 2 * sum(sizes) + 4 * len(sizes))  # AdamW counts steps in 4 bytes

def _note_gradient(ledger: Ledger, parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        ledger.note(parameter.grad, "gradients")


def count_phase(
    model: nn.Module,
    phase: Phase,
    learner: Learner,
    arithmetic: Arithmetic,
    settings: Settings,
    beside: Mapping[str, int],
) -> PhaseMemory:
    """Go through a step and an evaluation batch of a phase with a ledger.

    Args:
        model: the model, or a twin of it without numbers; it keeps the phase's flags, and eval mode.
        phase: of this model.
        learner: gives batches and loss.
        arithmetic: device and precision.
        settings: accumulation, fixed BatchNorm.
        beside: bytes that lie in main memory all the time, by kind: the copy of the "best weights", and others.
    """
    device, passes = arithmetic.device, min(2, settings.accumulation)
    ledger = Ledger(device, block=512 if device.type == "cuda" else 1)
    step = count_step(model, phase, learner, arithmetic, settings, ledger)
    of_step, freed, programs, flops = dict(ledger.at_peak), ledger.freed, len(ledger.programs), ledger.flops
    batch = to_device(longest_batch(learner.valid), device)
    model.eval()
    for tensor in tensors_in(batch):
        ledger.note(tensor)
    ledger.forget_peak()
    with ledger, torch.no_grad(), arithmetic.autocast():
        result = learner.loss(model, batch)
    del result
    always = {"moments": step.moments, **(beside if device.type == "cpu" else {})}
    twice = {name: n * (1 + (name == "best weights")) for name, n in always.items()}  # the old copy and the new one
    weights = {"weights": ledger.live["weights"]}
    return PhaseMemory(
        phase.name,
        weights["weights"],
        step.gradients,
        step.moments,
        step.activations,
        {
            "a step": {**of_step, **always},
            "the update": {**weights, "gradients": step.gradients, **always},
            "an evaluation": {**ledger.at_peak, **always},
            "keeping the best": {**weights, **twice},
        },
        (freed // passes, ledger.freed - freed),
        (programs, len(ledger.programs) - programs),
        (flops // passes, ledger.flops - flops),
    )


def count_phases(learner: Learner, strategy: Strategy, settings: Settings, device: torch.device) -> list[PhaseMemory]:
    """Count the phases of a training that may need most, on a twin without numbers; the model stays as it is.

    A phase that trains a part of what another one trains needs less, and is left out. A model whose course depends on
    its own numbers (a detector that sorts its proposals) is run for real instead, with random numbers if it has none.
    """
    model, phases = twin_of(learner.model, strategy, learner.new_parameters, device)
    arithmetic = Arithmetic(device, choose_precision(settings.precision, device, model), settings.max_grad_norm)
    notes = vars(model).get("replaced_weights", {})  # what a strategy keeps of blocks that it started anew
    trained = {p for phase in phases for p in phase.trainable}
    best = sum(t.nbytes for t in (*trained, *model.buffers()))
    beside = {"best weights": best, "replaced weights": sum(t.nbytes for t in notes.values())}
    try:
        return [count_phase(model, phase, learner, arithmetic, settings, beside) for phase in _largest(phases)]
    except (DataDependentOutputException, DynamicOutputShapeException):
        pass
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        real = with_numbers(learner.model, device)
        phases = strategy.phases(real, learner.new_parameters)
        return [count_phase(real, phase, learner, arithmetic, settings, beside) for phase in _largest(phases)]

def _largest(phases: Sequence[Phase]) -> list[Phase]:
    sets = [frozenset(phase.trainable) for phase in phases]
    inside = [any(of < s or (of == s and j < i) for j, s in enumerate(sets)) for i, of in enumerate(sets)]
    return [phase for phase, is_inside in zip(phases, inside, strict=True) if not is_inside]


@dataclass(frozen=True)
class Overheads:
    """What a process needs beyond the tensors that are alive: `share` of them, `hole` of what came and went, and more.

    Attributes:
        share: times the bytes alive.
        hole: of each byte that came and went in smaller blocks, what the allocator cannot use again.
        program: bytes for each program that oneDNN writes.
        least: bytes, whatever the training.
    """

    share: float
    hole: float
    program: float
    least: float

    def of(self, peak: int, churn: int, programs: int) -> int:
        """Bytes in all."""
        return int(self.share * peak + self.hole * min(churn, 4 * peak) + self.program * programs + self.least)

MAX_PROGRAMS = 1024  # oneDNN keeps no more
# Fitted to 86 trainings of development seeds on a CPU, each in a process of its own.
CPU_POINT, CPU_BOUND = Overheads(1.0, 0.24, 0.12e6, 0.0), Overheads(1.25, 0.45, 0.7e6, 20e6)
# On a CUDA GPU the allocator is torch's own and the workspace of cuBLAS is in it; these are from its documentation.
GPU_POINT, GPU_BOUND = Overheads(1.0, 0.0, 0.0, 8.5e6), Overheads(1.1, 0.0, 0.0, 100e6)

@dataclass(frozen=True)
class Estimate:
    """What a training will need.

    Attributes:
        phases: what each phase holds.
        device: where.
        precision: of the arithmetic.
        point: bytes by which the process will grow (on a GPU: that will be allocated), as likely too high as too low.
        bound: bytes that will hardly be exceeded.
    """

    phases: list[PhaseMemory]
    device: str
    precision: str
    point: int
    bound: int

    @property
    def worst(self) -> PhaseMemory:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.peak)

    def __str__(self) -> str:
        phase = self.worst
        parts = ", ".join(f"{kind} {in_words(size)}" for kind, size in shares(phase.parts))
        what = "allocated" if self.device.startswith("cuda") else "of memory"
        return f"about {in_words(self.point)} {what}, at most {in_words(self.bound)}; most in {phase.worst}: {parts}."

def estimate(learner: Learner, strategy: Strategy, settings: Settings | None = None, **changes: Any) -> Estimate:
    """How much memory a training will need, without doing any of it.

    Args:
        learner: its model may be on the meta device, without weights; it stays as it is. A batch is collated.
        strategy: which layer groups train.
        settings: the numbers.
        **changes: single ones of them, such as `accumulation=4`.

    Raises:
        ValueError: if the strategy does not fit the model, or the device is not there.
    """
    settings = replace(settings or Settings(), **changes)
    device = choose_device(settings.device)
    phases = count_phases(learner, strategy, settings, device)
    shapes = num_shapes(learner.train, settings.num_epochs), num_shapes(learner.valid)

    def needed(overheads: Overheads, phase: PhaseMemory) -> int:
        programs = min(MAX_PROGRAMS, sum(n * m for n, m in zip(phase.programs, shapes, strict=True)))
        return overheads.of(phase.peak, max(phase.churn), programs)

    kinds = (GPU_POINT, GPU_BOUND) if device.type == "cuda" else (CPU_POINT, CPU_BOUND)
    point, bound = (max(needed(kind, phase) for phase in phases) for kind in kinds)
    return Estimate(phases, str(device), choose_precision(settings.precision, device, learner.model), point, bound)
