# Exported from nbs/16_step.py: edit the lesson, then run `make export`.
"""The arithmetic of one update of the weights: micro-batches, precision, clipping, AdamW, and what is frozen."""

import contextlib
import hashlib
import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftnb.data import Batches
from ftnb.metrics import Metrics

__all__ = [
    "Batch",
    "batch_size",
    "Learner",
    "ParamGroup",
    "Phase",
    "Strategy",
    "Everything",
    "set_trainable",
    "set_modes",
    "build_optimizer",
    "Arithmetic",
    "seed_generators",
    "StepInHand",
    "moving_buffers",
    "micro_batches",
    "cut_batch",
]


Batch = dict[str, Any]


def batch_size(batch: Batch) -> int:
    """Number of examples in a batch: the length of its first tensor. The default weight of a micro-batch."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


@dataclass
class Learner:
    """Everything the loop needs to know of a task.

    Attributes:
        model: the model, on any device; the training moves it.
        train: batches to train on.
        valid: batches to evaluate on.
        loss: takes (model, batch) and returns (mean loss, outputs for the metrics).
        metrics: what an evaluation computes; `metrics.main` chooses the best model.
        weight: number of terms that the loss of a batch is the mean of (examples, or real tokens).
        new_parameters: names of parameters that no checkpoint filled (the new head).
    """

    model: nn.Module
    train: Batches
    valid: Batches
    loss: Callable[[nn.Module, Batch], tuple[Tensor, Any]]
    metrics: Metrics
    weight: Callable[[Batch], int] = batch_size
    new_parameters: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate: `multiplier` times the peak; 0 freezes them and puts `modules` in eval."""

    name: str
    parameters: list[nn.Parameter]
    multiplier: float = 1.0
    modules: list[nn.Module] = field(default_factory=list)


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `share` is its part of all steps (the shares of a strategy sum to 1)."""

    name: str
    share: float
    groups: list[ParamGroup]

    @property
    def trainable(self) -> list[nn.Parameter]:
        """The parameters that this phase trains."""
        return [p for group in self.groups if group.multiplier > 0 for p in group.parameters]


class Strategy(Protocol):
    """What the loop needs of a strategy."""

    def phases(self, model: nn.Module, new_parameters: frozenset[str]) -> list[Phase]:
        """The phases for this model, in order; each names every parameter in exactly one group."""
        ...


@dataclass(frozen=True)
class Everything:
    """The simplest strategy: one group, one phase, one rate."""

    def phases(self, model: nn.Module, new_parameters: frozenset[str]) -> list[Phase]:
        """One phase that trains all parameters."""
        return [Phase("all", 1.0, [ParamGroup("all", list(model.parameters()), 1.0)])]


def set_trainable(phase: Phase) -> None:
    """Let gradients flow to exactly the parameters that the phase trains."""
    for group in phase.groups:
        for parameter in group.parameters:
            parameter.requires_grad_(group.multiplier > 0)


def set_modes(model: nn.Module, phase: Phase, batch_norm: str = "moving") -> None:
    """Put the model in training mode and the phase's frozen modules in evaluation mode.

    Args:
        model: the model.
        phase: says what is frozen; modules of a later group may lie inside those of an earlier one.
        batch_norm: "fixed" keeps every BatchNorm layer at its pretrained statistics, in what trains too.
    """
    model.train()
    for group in phase.groups:
        for module in group.modules:
            module.train(group.multiplier > 0)
    for module in model.modules() if batch_norm == "fixed" else ():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.eval()


def build_optimizer(phase: Phase, weight_decay: float, device: torch.device) -> torch.optim.AdamW:
    """AdamW over a phase's trainable groups; each is split in two, since tensors with fewer than 2 axes get no decay.

    Every optimizer group carries its layer group's `name` and `multiplier`; the loop sets `lr` before each step.

    Raises:
        ValueError: if the phase trains nothing.
    """
    groups: list[dict[str, Any]] = []
    for group in phase.groups:
        if group.multiplier == 0:
            continue
        for decays in (True, False):
            chosen = [p for p in group.parameters if (p.ndim >= 2) == decays]
            common = {"name": group.name, "multiplier": group.multiplier, "lr": 0.0}
            if chosen:
                groups.append({"params": chosen, "weight_decay": weight_decay if decays else 0.0, **common})
    if not groups:
        raise ValueError(f"phase {phase.name!r} trains no parameters: every layer group is frozen.")
    return torch.optim.AdamW(groups, fused=device.type in ("cuda", "cpu"))


@dataclass
class Arithmetic:
    """How one update is computed on one device: precision, backward, clipping, the step.

    Attributes:
        device: where the model is.
        precision: "fp32", "bf16" (autocast) or "fp16" (autocast and gradient scaling).
        max_grad_norm: bound on the joint L2 norm of all gradients; None does not clip.
    """

    device: torch.device
    precision: str = "fp32"
    max_grad_norm: float | None = 1.0
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that a forward pass runs in."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def backward(self, loss: Tensor, share: float) -> None:
        """Add one micro-batch's gradients, weighted by its share n_j / N of the batch."""
        self.scaler.scale(loss * share).backward()

    def update(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip, step, and clear the gradients; skip the step if they are not finite.

        Returns:
            The gradients' joint norm before clipping, a scalar on the device; not finite when the step was skipped.
        """
        self.scaler.unscale_(optimizer) if self.scaler.is_enabled() else None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        _step_if_finite(optimizer, self.scaler, norm)
        optimizer.zero_grad(set_to_none=True)
        return norm


def _step_if_finite(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, norm: Tensor) -> None:
    """Take the optimizer's step unless the gradients' norm is not finite; a CUDA device is not waited for."""
    if scaler.is_enabled():  # the scaler looks for overflows itself
        scaler.step(optimizer)
        scaler.update()
    elif norm.device.type == "cuda":
        optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # read by the fused kernel
        optimizer.step()
    elif math.isfinite(norm.item()):  # a twentieth of the time of torch.isfinite
        optimizer.step()


def seed_generators(device: torch.device, *place: int) -> None:
    """Set the global generators of the CPU and of `device` from integers (seed, step, micro-batch, rank …).

    Different places give unrelated streams (the integers are hashed), equal places equal ones.
    """
    digest = hashlib.blake2b(struct.pack(f"<{len(place)}q", *place), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1  # generators take 63 bits
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


@dataclass
class StepInHand:
    """One optimizer step, possibly half done.

    Attributes:
        batches: its micro-batches (or the parts they were cut into), still on the CPU.
        weights: number of loss terms of each.
        done: how many micro-batches have been computed.
        loss: weighted mean loss so far, a scalar on the device.
        buffers: copies of the buffers that training moves, as they were before the step.
        num_batches: how many batches of the data it takes.
        seconds: time spent computing (waiting in a pause does not count).
    """

    batches: list[Batch]
    weights: list[int]
    buffers: list[tuple[Tensor, Tensor]]
    num_batches: int
    done: int = 0
    loss: Tensor | float = 0.0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every micro-batch has been computed."""
        return self.done == len(self.batches)

    def forget(self, model: nn.Module) -> None:
        """Undo what the half-done step left behind: gradients and moved buffers."""
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in self.buffers:
                buffer.copy_(before)

    def settle(self, norm: Tensor) -> None:
        """Undo the moved buffers, too, if the gradients' norm was not finite; a GPU is not waited for."""
        if not self.buffers or (norm.device.type == "cpu" and math.isfinite(norm.item())):
            return
        for buffer, before in self.buffers:
            buffer.copy_(torch.where(torch.isfinite(norm), buffer, before))


def moving_buffers(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers that a forward pass in training mode moves, each with a copy: BatchNorm's running statistics."""
    batch_norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.training)
    return [(b, b.clone()) for m in batch_norms if m.track_running_stats for b in m.buffers(recurse=False)]


def micro_batches(stream: Iterator[Batch], accumulation: int, draw: Callable[[int], None]) -> list[Batch]:
    """Take up to `accumulation` batches for one step; `draw(i)` is called before each (random augmentation)."""
    batches = []
    for i in range(accumulation):
        draw(i)
        batch = next(stream, None)
        if batch is None:
            break
        batches.append(batch)
    return batches


def cut_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into at most so many parts of nearly equal size, in order.

    Tensors, lists and tuples with one entry for each example are cut; whatever else is in the batch goes to every part.
    """
    n = batch_size(batch)
    if parts <= 1 or n <= 1:
        return [batch]
    cuts = [round(i * n / min(parts, n)) for i in range(min(parts, n) + 1)]

    def part(value: Any, begin: int, end: int) -> Any:
        has_entries = isinstance(value, Tensor | list | tuple) and not (isinstance(value, Tensor) and value.ndim == 0)
        return value[begin:end] if has_entries and len(value) == n else value

    return [{k: part(v, *ends) for k, v in batch.items()} for ends in itertools.pairwise(cuts)]
