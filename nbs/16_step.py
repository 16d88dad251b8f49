# %% [markdown]
# # One optimizer step
#
# > The arithmetic of one update of the weights: micro-batches, precision, clipping, AdamW, and what is frozen.
#
# At the end you can write an update that gives the same weights whether the batch came whole or in pieces, that survives a batch of garbage, and that leaves frozen layers alone. Runs in about 15 s on a CPU.

# %%
#| default_exp step

# %%
#| export
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

# %%
import time

import matplotlib.pyplot as plt
import torch.nn.functional as F

# %% [markdown]
# ## What a loop needs to know
#
# A training loop knows nothing of words or pictures. It needs a model, batches to train on and batches to judge by, a loss, and metrics. We call these five a **learner**; a task (lessons 30 and up) supplies them. Two details decide whether accumulation is right, so they are part of the contract: `loss` returns a *mean*, and `weight` says over how many terms that mean was taken.

# %%
#| export
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

# %% [markdown]
# ## Which parameters, at which rate
#
# A strategy (lesson 21) answers in **phases**: stretches of training with one fixed set of trainable parameters. In each phase, every layer group has a multiplier on the learning rate; zero means frozen. The loop only needs this much of a strategy, and any object with a `phases` method will do.

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# Frozen means *constant*. Setting `requires_grad = False` is only half of it: dropout would still roll its dice in a frozen layer, and a BatchNorm would still move its running statistics. So frozen modules also go into `eval()`. Groups are taken in order, because what trains may lie *inside* what is frozen (an adapter in a block).

# %%
#| export
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

# %%
trunk, head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)
net = nn.Sequential(trunk, head)
head_only = Phase("head", 1.0, [ParamGroup("trunk", list(trunk.parameters()), 0.0, [trunk]), ParamGroup("head", list(head.parameters()))])
set_trainable(head_only)
set_modes(net, head_only)
before = trunk[1].running_mean.clone()
net(torch.randn(8, 4) + 3).sum().backward()
[name for name, p in net.named_parameters() if p.grad is not None]

# %%
assert torch.equal(trunk[1].running_mean, before) and trunk[0].weight.grad is None

# %% [markdown]
# ## AdamW, once per phase
#
# Weight decay pulls weights towards zero. That regularises matrices; for biases and the gains of normalisation layers, which are vectors, it only shifts their level, so they are left out, as in BERT's own code. PyTorch's *fused* AdamW does the whole update in one kernel, on the CPU too.

# %%
#| export
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

# %%
build_optimizer(head_only, weight_decay=0.01, device=torch.device("cpu"))

# %% [markdown]
# ## A batch in pieces
#
# When a batch does not fit into memory, it is computed in micro-batches whose gradients add up. The loss over the whole batch is a mean over $N = \sum_j n_j$ terms; the loss of piece $j$ is a mean over its own $n_j$. So the pieces must be weighted:
#
# $$L = \sum_j \frac{n_j}{N} L_j .$$
#
# Dividing by the *number of pieces* instead is only right if all pieces are equally large. It is one of the oldest bugs in the field (see the story below).
#
# Three more things happen in an update, and the order matters: micro-batches are computed under *autocast* (half precision where it is safe), gradients are unscaled before they are measured, and clipped once, after the last piece.

# %%
#| export
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

# %% [markdown]
# ## A batch of garbage
#
# One overflow in a forward pass makes the loss infinite, its gradient NaN, and after the update *every* weight NaN: the model is lost. Looking at the norm before stepping costs one number. On a GPU, looking would make the CPU wait for the device at every step. The fused optimizers take a flag instead, which stays on the device and turns the update into nothing.

# %%
#| export
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

# %%
weight = nn.Parameter(torch.ones(2, 2))
one = Phase("all", 1.0, [ParamGroup("all", [weight])])
arithmetic, optimizer = Arithmetic(torch.device("cpu")), build_optimizer(one, 0.0, torch.device("cpu"))
optimizer.param_groups[0]["lr"] = 0.1
arithmetic.backward((weight * math.inf).sum(), share=1.0)
norm = arithmetic.update(optimizer)
norm, weight.data

# %%
assert not torch.isfinite(norm) and torch.equal(weight.data, torch.ones(2, 2))

# %% [markdown]
# ## Dice that can be thrown again
#
# Dropout draws from PyTorch's global generator, which every cell of a notebook shares. To repeat a run, or to resume one in the middle, we do not try to save and restore a stream: before each micro-batch the generator is *set*, from the run's seed and the place in the run. The place is all one needs to know.

# %%
#| export
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

# %%
def dropped(*place: int) -> list[float]:
    seed_generators(torch.device("cpu"), *place)
    return F.dropout(torch.ones(6), 0.5).tolist()

dropped(0, 1, 0), dropped(0, 1, 1), dropped(0, 1, 0)

# %%
assert dropped(0, 1, 0) == dropped(0, 1, 0) and dropped(0, 1, 0, 5) != dropped(0, 1, 0, 6)

# %% [markdown]
# ## The step as an object that can be left half done
#
# A person may press stop, or an example may raise, in the middle of a batch. The weights change only at the very end of a step, so a half-done one can simply be forgotten: clear the gradients, put back the few buffers that a forward pass moves (BatchNorm's statistics), and the last completed step is in place. The object below holds all that belongs to one unfinished step.

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# A forward pass on a batch of garbage spoils the running statistics, and no later batch mends them: a mean that has met NaN stays NaN. `settle` puts them back.

# %%
batch_norm = nn.BatchNorm1d(4)
work = StepInHand([], [], moving_buffers(batch_norm), num_batches=1)
batch_norm(torch.full((8, 4), math.nan))
spoiled = batch_norm.running_mean.clone()
work.settle(torch.tensor(math.nan))
spoiled, batch_norm.running_mean

# %%
assert spoiled.isnan().all() and torch.equal(batch_norm.running_mean, torch.zeros(4))

# %% [markdown]
# When memory runs out, the same gradient can be had from smaller pieces. A batch is a dictionary; everything in it that has one entry for each example is cut, the rest is left as it is.

# %%
#| export
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

# %%
[part["x"].tolist() for part in cut_batch({"x": torch.arange(5), "scale": 2.0}, 2)]

# %%
assert torch.cat([part["x"] for part in cut_batch({"x": torch.arange(17)}, 4)]).equal(torch.arange(17))

# %% [markdown]
# ## The experiment: whole or in pieces
#
# **Claim.** With weights $n_j/N$, a batch in pieces of any sizes gives the gradient of the whole batch to rounding; dividing by the number of pieces does not. We cut batches of 64 rows at random places, over 20 seeds. An error beyond rounding in our column would refute the claim.

# %%
def gradient(model: nn.Module, X: Tensor, y: Tensor, cuts: list[int], weighted: bool) -> Tensor:
    model.zero_grad()
    for piece_X, piece_y in zip(X.tensor_split(cuts), y.tensor_split(cuts), strict=True):
        share = len(piece_X) / len(X) if weighted else 1 / (len(cuts) + 1)
        Arithmetic(torch.device("cpu")).backward(F.cross_entropy(model(piece_X), piece_y), share)
    return torch.cat([p.grad.flatten() for p in model.parameters()])

def relative_error(seed: int, weighted: bool, pieces: int = 4) -> float:
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    X, y = torch.randn(64, 16, generator=g).double(), torch.randint(3, (64,), generator=g)
    cuts = (torch.randperm(63, generator=g)[: pieces - 1] + 1).sort().values.tolist()
    whole = gradient(model, X, y, [], weighted=True)
    return ((gradient(model, X, y, cuts, weighted) - whole).norm() / whole.norm()).item()

# %%
seeds = range(20)
ours = [relative_error(seed, weighted=True) for seed in seeds]
naive = [relative_error(seed, weighted=False) for seed in seeds]

# %%
fig, ax = plt.subplots(figsize=(6, 2.6), dpi=80)
ax.scatter(naive, [1] * 20, alpha=0.6, label="divided by the number of pieces")
ax.scatter(ours, [0] * 20, alpha=0.6, label="weighted by size")
ax.set(xscale="log", yticks=[0, 1], yticklabels=["weighted", "unweighted"], ylim=(-0.6, 1.6))
ax.set(xlabel="relative error of the gradient (20 seeds, double precision)", title="A batch of 64 cut at random into four pieces")
fig.tight_layout()
plt.show()

# %%
assert max(ours) < 1e-12 and min(naive) > 1e-3

# %% [markdown]
# ## What the fused update saves
#
# AdamW's formulas are a dozen small operations per tensor. For a small model their overhead is a good part of the step. The two runs below alternate, so that a noisy machine disturbs both alike.

# %%
def updates_per_second(fused: bool, seconds: float = 0.2) -> float:
    parameters = [nn.Parameter(torch.randn(128, 128)) for _ in range(40)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer, count, begin = torch.optim.AdamW(parameters, fused=fused), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        optimizer.step()
        count += 1
    return count / (time.perf_counter() - begin)

# %%
ratios = sorted(updates_per_second(True) / updates_per_second(False) for _ in range(7))
f"fused is {ratios[3]:.1f} times as fast as default (median of 7 pairs, {ratios[0]:.1f} to {ratios[-1]:.1f})"

# %% [markdown]
# ## The story: the accumulation bug of 2024
#
# In October 2024 it was noticed that fine-tuning with accumulation reached a worse loss than the same batch computed at once, in nearly every trainer at the same time. Language models average their loss over *tokens*, micro-batches of different texts hold different numbers of tokens, and the loops divided by the number of micro-batches. The long texts lost their vote. It had been there for years, since the loss falls anyway. The `weight` in our learner exists because of it. Here are two micro-batches, 100 tokens that want the weight to grow and 2 that want it to shrink.

# %%
def direction(weighted: bool) -> float:
    w = nn.Parameter(torch.zeros(()))
    for tokens, target in ((100, +1.0), (2, -1.0)):
        share = tokens / 102 if weighted else 1 / 2
        Arithmetic(torch.device("cpu")).backward(((w - target * torch.ones(tokens)) ** 2).mean(), share)
    return -w.grad.item()

direction(weighted=True), direction(weighted=False)

# %%
assert direction(weighted=True) > 1.9 and direction(weighted=False) == 0.0

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `count_decayed`: the number of weights (not tensors) that weight decay acts on in an optimizer.

# %% tags=["exercise"]
def count_decayed(optimizer: torch.optim.Optimizer) -> int:
    ...  # your code here

# %% tags=["solution"]
def count_decayed(optimizer: torch.optim.Optimizer) -> int:
    return sum(p.numel() for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"])

# %%
assert count_decayed(build_optimizer(head_only, 0.01, torch.device("cpu"))) == 8

# %% [markdown]
# **2 (medium).** A phase in which only biases train is called BitFit (Ben Zaken et al., 2022). Write it: a `Phase` of two groups, one of them frozen.

# %% tags=["exercise"]
def bitfit(model: nn.Module) -> Phase:
    ...  # your code here

# %% tags=["solution"]
def bitfit(model: nn.Module) -> Phase:
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    rest = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    return Phase("bitfit", 1.0, [ParamGroup("weights", rest, 0.0), ParamGroup("biases", biases)])

# %%
set_trainable(bitfit(net))
assert all(p.requires_grad == name.endswith("bias") for name, p in net.named_parameters())

# %% [markdown]
# ## Summary
# - A micro-batch counts by its number of loss terms; divided by the number of pieces, the gradient is wrong.
# - Clip once, after the last piece, after unscaling; skip the update when the norm is not finite.
# - Frozen means no gradient *and* evaluation mode.
# - Randomness is set from the place in the run, so any step can be repeated.
#
# **What next:** lesson 17 plans how many of these steps there are, lesson 18 puts them into a loop that can be paused, steered and stopped. **Sources:** Loshchilov and Hutter (2019), arXiv:1711.05101 (AdamW); Micikevicius et al. (2018), arXiv:1710.03740 (mixed precision); Ben Zaken et al. (2022), arXiv:2106.10199; the accumulation bug: huggingface/transformers#34191.
