# Exported from nbs/15_schedule.py: edit the lesson, then run `make export`.
"""Warm-up and decay as one pure function, and a test that suggests the learning rate from your own data."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ftnb.devices import to_device

__all__ = [
    "Schedule",
    "SCHEDULES",
    "LossFunction",
    "WARMUP_START",
    "lr_factor",
    "restored",
    "MARGIN",
    "DIVERGED",
    "smooth",
    "suggest_lr",
    "RangeTest",
    "RateGroup",
    "lr_range_test",
]


Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "constant")
LossFunction = Callable[[nn.Module, Any], tuple[Tensor, Any]]


WARMUP_START = 0.01


def lr_factor(progress: float, *, warmup: float = 0.1, schedule: Schedule = "linear") -> float:
    """What to multiply the peak learning rate by at one point of training.

    Args:
        progress: steps done before this one over all steps of the phase, from 0 to 1; the first step's is 0.
        warmup: share of the steps spent rising from `WARMUP_START` to 1, from 0 up to (not including) 1.
        schedule: what follows: a straight line to 0, half a cosine to 0, or constant 1.

    Returns:
        A factor from 0 to 1; above 0 everywhere but at `progress` 1, which no step has.

    Raises:
        ValueError: if an argument is outside its range.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of the steps, from 0 up to but not including 1, got {warmup}.")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress is steps done over all steps, from 0 to 1, got {progress}.")
    if progress < warmup:
        return WARMUP_START + (1 - WARMUP_START) * progress / warmup
    u = (progress - warmup) / (1 - warmup)
    return {"linear": 1 - u, "cosine": (1 + math.cos(math.pi * u)) / 2, "constant": 1.0}[schedule]


@dataclass(frozen=True)
class _ModuleState:
    """Mode and buffers of one module: the tensor objects, and copies of their values."""

    module: nn.Module
    training: bool
    buffers: dict[str, tuple[Tensor | None, Tensor | None]]

    @classmethod
    def of(cls, module: nn.Module) -> "_ModuleState":
        return cls(module, module.training, {name: (b, _copy(b)) for name, b in module._buffers.items()})

    def put_back(self) -> None:
        self.module.training = self.training
        for name, (buffer, value) in self.buffers.items():
            self.module._buffers[name] = buffer  # a forward pass may have bound another tensor to the name
            if buffer is not None and value is not None:
                buffer.copy_(value)


def _copy(tensor: Tensor | None) -> Tensor | None:
    """A copy in main memory: room on an accelerator is scarce, and the way there and back is exact."""
    return None if tensor is None else tensor.detach().to("cpu", copy=True)


def _generators(device: torch.device) -> list[tuple[Callable[[Any], None], Any]]:
    """How to set each random generator back, and its present state: Python, NumPy, torch, the model's device."""
    states: list[tuple[Callable[[Any], None], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),  # noqa: NPY002  # augmentations of others may draw from it
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if device.type == "cuda":
        states.append((partial(torch.cuda.set_rng_state, device=device), torch.cuda.get_rng_state(device)))
    elif device.type == "mps":
        states.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))
    return states


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Do anything to a model inside the `with` block; afterwards it is bit for bit what it was.

    Restored are weights, buffers, gradients, `requires_grad`, train and eval modes, and the random generators of
    Python, NumPy, torch and the model's device. The tensors stay the same objects, so an optimizer built before the
    block stays valid. The copies lie in main memory and need as much of it as the model and its gradients.
    """
    parameters = [(p, _copy(p), p.requires_grad, p.grad, _copy(p.grad)) for p in model.parameters()]
    modules = [_ModuleState.of(module) for module in model.modules()]
    generators = _generators(parameters[0][0].device if parameters else torch.device("cpu"))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value, requires_grad, grad, grad_value in parameters:
                parameter.copy_(cast(Tensor, value))
                parameter.requires_grad_(requires_grad)
                if grad is not None:
                    grad.copy_(cast(Tensor, grad_value))
                parameter.grad = grad
            for state in modules:
                state.put_back()
        for set_state, value in generators:
            set_state(value)


MARGIN = 3.0  # the suggestion stays below the minimum's rate by at least this factor
DIVERGED = 4.0  # a running mean of the loss this many times its best ends a sweep


def smooth(losses: Sequence[float], width: float) -> list[float]:
    """Gaussian-weighted mean around each point; at the ends over the points that exist (no lag, no padding).

    Args:
        losses: evenly spaced values.
        width: standard deviation of the weights, in points.
    """
    index = np.arange(len(losses))
    weights = np.exp(-0.5 * ((index[:, None] - index[None, :]) / width) ** 2)
    return list((weights @ np.asarray(losses) / weights.sum(1)).tolist())


def suggest_lr(lrs: Sequence[float], smoothed: Sequence[float], noise: float) -> tuple[float | None, str]:
    """Choose a rate from a range test's smoothed curve, or say why there is none.

    Args:
        lrs: the rates, rising by a constant factor.
        smoothed: the smoothed loss at each rate.
        noise: standard error of the smoothed loss, in the loss's units; a fall within 3 of it is no fall.

    Returns:
        The suggestion (None if the loss never clearly fell) and the reason in words.
    """
    lowest = int(np.argmin(smoothed))
    highest = max(smoothed[: lowest + 1])
    fall = highest - smoothed[lowest]
    if lowest < 2 or fall <= 3 * noise:
        return None, f"the loss never clearly fell (by {fall:.2g}; noise {noise:.1g}): try more steps or another range"
    start = max(i for i in range(lowest) if smoothed[i] >= highest - fall / 2)  # before, it only wavers
    steepest = start + int(np.argmin(np.gradient(smoothed, np.log10(lrs))[start:lowest]))
    bound = lrs[lowest] / MARGIN
    if lrs[steepest] <= bound:
        return lrs[steepest], "where the smoothed loss falls fastest"
    return bound, f"a third of the rate at the minimum; the loss falls fastest at {lrs[steepest]:.1e}, too close to it"


@dataclass(frozen=True)
class RangeTest:
    """What a learning-rate range test saw.

    Attributes:
        lrs: the peak rate of each step.
        losses: the training loss at each step, before its update.
        smoothed: the same after centred smoothing.
        suggestion: a learning rate to start from; None if the loss never clearly fell.
        reason: in words, how the suggestion came about or why there is none.
        stopped: why the sweep ended before `max_lr`; None if it did not.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None
    reason: str
    stopped: str | None = None

    def plot(self) -> Figure:
        """The curve over a logarithmic axis of rates, with the suggestion marked."""
        figure = Figure(figsize=(6, 3), dpi=80, layout="constrained")
        ax = figure.add_subplot()
        ax.plot(self.lrs, self.losses, ".", ms=3, color="0.7", label="single batches")
        ax.plot(self.lrs, self.smoothed, label="smoothed")
        low, high = min(self.smoothed), max(self.smoothed[: int(np.argmin(self.smoothed)) + 1])
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(1.2 * low - 0.2 * high, 2 * high - low))
        if self.suggestion is not None:
            ax.axvline(self.suggestion, color="C1", ls="--", label=f"suggestion {self.suggestion:.1e}")
        ax.set_title("Learning-rate range test" + (f" ({self.stopped})" if self.stopped else ""), fontsize=10)
        ax.legend(frameon=False, fontsize=8)
        return figure


class RateGroup(Protocol):
    """Parameters that share a rate: `multiplier` times the peak, 0 for frozen ones, whose modules are in eval()."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters, none in two groups."""
        ...

    @property
    def multiplier(self) -> float:
        """Times the peak rate; 0 freezes."""
        ...

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that hold them."""
        ...


class _EpochedBatches(Protocol):
    def epoch(self, epoch: int) -> Iterable[Any]: ...


def _endless(batches: Iterable[Any] | _EpochedBatches) -> Iterator[Any]:
    """Batches again and again: epoch after epoch of `ftnb.data.Batches`, or an iterable from its beginning."""
    epoch = 0
    while True:
        empty = True
        for batch in batches.epoch(epoch) if hasattr(batches, "epoch") else batches:
            yield batch
            empty = False
        if empty:
            problem = "there are no batches" if epoch == 0 else "the batches ran out: a generator can be read only once"
            raise ValueError(f"{problem}. Pass a Batches object, a DataLoader or a list of batches.")
        epoch += 1


def _prepare(model: nn.Module, groups: Sequence[RateGroup] | None) -> torch.optim.AdamW:
    """Set modes and `requires_grad` for a sweep and build its optimizer; `multiplier` travels in each group."""
    model.train()
    if groups is None:
        chosen = [{"params": [p for p in model.parameters() if p.requires_grad], "multiplier": 1.0}]
    else:
        chosen = [{"params": g.parameters, "multiplier": g.multiplier} for g in groups if g.multiplier > 0]
        for group in groups:
            for parameter in group.parameters:
                parameter.requires_grad_(group.multiplier > 0)
            for module in group.modules if group.multiplier == 0 else ():
                module.eval()
    chosen = [group for group in chosen if group["params"]]
    if not chosen:
        raise ValueError("the model has no trainable parameters: every one is frozen (requires_grad is False).")
    return torch.optim.AdamW(chosen, lr=0.0, weight_decay=0.0)


def _sweep(
    model: nn.Module, loss: LossFunction, stream: Iterator[Any], optimizer: torch.optim.Optimizer, lrs: Sequence[float]
) -> tuple[list[float], str | None]:
    """One update at each rate; ends at divergence. Returns the losses and why it ended early, if it did."""
    device = next(p.device for group in optimizer.param_groups for p in group["params"])
    losses: list[float] = []
    average = best = math.inf
    for step, lr in enumerate(lrs):
        optimizer.zero_grad(set_to_none=True)
        value, _ = loss(model, to_device(next(stream), device))
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            return losses[:-1], f"stopped at {lr:.1e}: the loss was {losses[-1]}"
        # a bias-corrected running mean decides about stopping: a single bad batch shall not
        average = losses[0] if step == 0 else average + (losses[-1] - average) / min(step + 1, 10)
        best = min(best, average)
        if step >= 10 and average > DIVERGED * best:
            return losses, f"stopped at {lr:.1e}: the loss was {DIVERGED:g} times its best"
        value.backward()
        for group in optimizer.param_groups:
            group["lr"] = lr * group["multiplier"]
        optimizer.step()
    return losses, None


def lr_range_test(
    model: nn.Module,
    loss: LossFunction,
    batches: Iterable[Any] | _EpochedBatches,
    *,
    param_groups: Sequence[RateGroup] | None = None,
    min_lr: float = 1e-7,
    max_lr: float = 1.0,
    num_steps: int = 100,
) -> RangeTest:
    """Train briefly while the learning rate climbs, and suggest one. The model is afterwards bit for bit as before.

    Args:
        model: any module, on any device.
        loss: takes (model, batch) and returns (mean loss, outputs), as a learner's does.
        batches: training batches; read again from the beginning when they run out.
        param_groups: a phase's groups, for rates that differ by layer; by default all that requires a gradient.
        min_lr: rate of the first step.
        max_lr: rate of the last step, unless the loss diverges before.
        num_steps: number of updates, at least 20.

    Raises:
        ValueError: if the range is impossible, nothing is trainable, there are no batches, or the loss is not finite
            before any update (then the model or the data is at fault, not the rate).

    Source: Smith (2017), "Cyclical learning rates for training neural networks", section 3.3.
    """
    if not 0 < min_lr < max_lr:
        raise ValueError(f"the range must be 0 < min_lr < max_lr, got min_lr={min_lr}, max_lr={max_lr}.")
    if num_steps < 20:
        raise ValueError(f"num_steps must be at least 20 to show a curve, got {num_steps}.")
    lrs = np.geomspace(min_lr, max_lr, num_steps).tolist()
    with restored(model):
        losses, stopped = _sweep(model, loss, _endless(batches), _prepare(model, param_groups), lrs)
    if not losses:
        raise ValueError("the loss is not finite before any update. Check the model's weights and the first batch.")
    return _summary(lrs[: len(losses)], losses, stopped, width=num_steps / 25)


def _summary(lrs: list[float], losses: list[float], stopped: str | None, width: float) -> RangeTest:
    """Smooth the losses and choose a rate."""
    smoothed = smooth(losses, width)
    # the mean over a Gaussian window of this width averages 2 sqrt(pi) width points
    noise = float(np.std(np.subtract(losses, smoothed)[: int(np.argmin(smoothed)) + 1]) / math.sqrt(3.54 * width))
    suggestion, reason = suggest_lr(lrs, smoothed, noise)
    return RangeTest(lrs, losses, smoothed, suggestion, reason, stopped)
