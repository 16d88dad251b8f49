# %% [markdown]
# # Learning-rate schedules
#
# > Warm-up and decay as one pure function, and a test that suggests the learning rate from your own data.
#
# At the end you can draw any schedule before using it, find a learning rate for a new model with one short sweep, and say what warm-up buys and when it is needed. Runs in about 40 s on a CPU.

# %%
#| default_exp schedule

# %%
#| export
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

Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES: tuple[Schedule, ...] = ("linear", "cosine", "constant")
LossFunction = Callable[[nn.Module, Any], tuple[Tensor, Any]]

# %%
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from ftnb.builtin.reviews import labelled_reviews
from ftnb.pretrained import load_pretrained

# %% [markdown]
# ## One number per step
#
# A schedule multiplies the learning rate you set (the *peak*) by a factor between 0 and 1. The factor depends only on how far training has come, $t \in [0, 1]$, so it can be drawn before the first step, needs no state to save, and goes on unchanged when somebody moves the peak while the run is alive. With a warm-up of length $w$:
#
# $$f(t) = \begin{cases} s + (1 - s)\,t / w & t < w \\ g\!\left(\dfrac{t - w}{1 - w}\right) & t \ge w \end{cases} \qquad g(u) = \begin{cases} 1 - u & \text{linear} \\ \tfrac12\,(1 + \cos \pi u) & \text{cosine} \\ 1 & \text{constant.}\end{cases}$$
#
# The warm-up starts at $s = 0.01$, not at 0: a step with rate zero costs as much as any other and changes nothing.

# %%
#| export
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

# %% [markdown]
# Two steps of a ten-step phase whose first tenth is warm-up: the first, which is small but not zero, and the one halfway down.

# %%
lr_factor(0.0), lr_factor(0.55)

# %%
assert lr_factor(0.0) > 0 and lr_factor(0.1) == 1.0 and abs(lr_factor(0.55) - 0.5) < 1e-9 and lr_factor(1.0) == 0.0

# %% [markdown]
# The three shapes with a tenth of warm-up, and the linear one without. The linear one with a short warm-up is also known as the *slanted triangle*.

# %%
progress = np.linspace(0, 1, 301)
fig, ax = plt.subplots(figsize=(6, 2.6), dpi=80)
for schedule in SCHEDULES:
    ax.plot(progress, [lr_factor(t, schedule=schedule) for t in progress], label=schedule)
ax.plot(progress, [lr_factor(t, warmup=0.0) for t in progress], "k:", lw=1, label="linear, warmup=0")
ax.set(xlabel="progress", ylabel="factor", title="What multiplies the peak rate")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Leaving no trace
#
# A test that trains a model for a hundred steps at absurd rates must leave nothing behind: not in the weights, not in BatchNorm's statistics, not in the modes and gradients, and not in the random generators, or else looking would change the run that follows. So the whole state is copied first and put back afterwards, also when the test fails or is interrupted.

# %%
#| export
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

# %% [markdown]
# A dropout, a BatchNorm and a gradient, put through an update:

# %%
torch.manual_seed(0)
small = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)).eval()
before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
with restored(small):
    small.train()(torch.randn(16, 4)).sum().backward()
    torch.optim.SGD(small.parameters(), lr=1.0).step()
    moved = [name for name, tensor in small.state_dict().items() if not tensor.equal(before[name])]
moved

# %%
assert len(moved) >= 6 and all(tensor.equal(before[name]) for name, tensor in small.state_dict().items())
assert not small.training and small[0].weight.grad is None

# %% [markdown]
# ## The range test
#
# Train for a hundred steps while the rate climbs from far too small to far too large, each step by the same factor, and write the loss down. On the left nothing happens, in the middle the loss falls, on the right it blows up. One short sweep shows the whole range of usable rates (Smith, 2017).
#
# Single batches are noisy, so the curve is smoothed, with a *centred* window: a running average would lag behind, and a lag towards larger rates is the wrong side to err on. The suggestion is the rate at which the smoothed loss falls fastest after it has passed half of its fall for good (before that it wavers with small batches, and a steep fall may be noise), and never more than a third of the rate at its minimum: at the minimum itself, falling and rising are already in balance, and a real run stays near its peak for much longer than the one step of the sweep. (The third was chosen on three models, a fine-tuned small one, a fine-tuned larger one and one from scratch, with other seeds than those below.)

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# The sweep itself. It trains with AdamW, as the loop will, since the right rate depends on the optimizer. Groups with their own multiplier keep it, so the rate found is the *peak* that a strategy scales; groups with multiplier 0 are frozen and in evaluation mode.

# %%
#| export
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

# %%
#| export
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

# %% [markdown]
# On the built-in pretrained BERT with a new head and 128 labelled reviews. The sweep leaves the far right as soon as the loss is four times its best; the picture cuts it off there too.

# %%
def new_classifier(seed: int) -> nn.Module:
    return load_pretrained("builtin:bert-reviews", "text-classification", ["negative", "positive"], seed=seed).model

tokenizer = load_pretrained("builtin:bert-reviews", "text-classification", ["negative", "positive"]).processor

def tensors(reviews: list[dict[str, str]]) -> dict[str, Tensor]:
    inputs = dict(tokenizer([review["text"] for review in reviews], padding=True, return_tensors="pt"))
    return inputs | {"labels": torch.tensor([int(review["label"] == "positive") for review in reviews])}

def random_batches(data: dict[str, Tensor], seed: int, batch_size: int = 16) -> list[dict[str, Tensor]]:
    order = torch.randperm(len(data["labels"]), generator=torch.Generator().manual_seed(seed))
    return [{name: values[i] for name, values in data.items()} for i in order.split(batch_size)]

def model_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
    longest = batch["attention_mask"].sum(1).max()  # no need to compute what is padding for all
    outputs = model(batch["input_ids"][:, :longest], batch["attention_mask"][:, :longest], labels=batch["labels"])
    return outputs.loss, outputs

# %%
classifier, reviews = new_classifier(seed=0), tensors(labelled_reviews("train", seed=0))
weights_before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
test = lr_range_test(classifier, model_loss, random_batches(reviews, seed=0))
test.plot()

# %%
f"{test.suggestion:.1e}", test.reason, test.stopped

# %%
assert test.suggestion is not None and 1e-5 < test.suggestion < 1e-2
assert all(tensor.equal(weights_before[name]) for name, tensor in classifier.state_dict().items())

# %% [markdown]
# ## The experiment: one sweep against a grid
#
# **Claim.** Training at the suggested rate does about as well as at the best rate of a grid, for the price of one short sweep instead of a training at each rate. Three seeds draw their own reviews, heads and batches; each trains for 16 steps at three rates, and at its own suggestion. (Seed 0 is the one of the sweep above.) Accuracy is measured on validation reviews. The claim would be refuted if the suggestion lay more than five points below the best rate of the grid.

# %%
def fine_tune(seed: int, lr: float, num_steps: int = 16, warmup: float = 0.1) -> nn.Module:
    torch.manual_seed(seed)
    model, data = new_classifier(seed).train(), tensors(labelled_reviews("train", seed=seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(step / num_steps, warmup=warmup)
        rows = torch.randint(len(data["labels"]), (16,))
        model_loss(model, {name: values[rows] for name, values in data.items()})[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()

valid = tensors(labelled_reviews("valid"))

@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    return (model(**valid).logits.argmax(-1) == valid["labels"]).float().mean().item()

# %%
def sweep(seed: int) -> float:
    batches = random_batches(tensors(labelled_reviews("train", seed=seed)), seed)
    return lr_range_test(new_classifier(seed), model_loss, batches).suggestion

seeds, grid = (0, 11, 12), (1e-4, 5e-4, 2.5e-3)
suggestions = [test.suggestion, sweep(11), sweep(12)]
on_grid = torch.tensor([[accuracy(fine_tune(s, lr)) for lr in grid] for s in seeds])  # (seeds, rates)
suggested = torch.tensor([accuracy(fine_tune(s, lr)) for s, lr in zip(seeds, suggestions, strict=True)])

# %%
fig, ax = plt.subplots(figsize=(6, 3), dpi=80)
for i, seed in enumerate(seeds):
    ax.plot(grid, on_grid[i], "o-", color=f"C{i}", alpha=0.5, label=f"grid, seed {seed}")
    ax.plot(suggestions[i], suggested[i], "*", ms=14, color=f"C{i}", mec="k", label=f"suggestion, seed {seed}")
ax.set(xscale="log", xlabel="peak learning rate", ylabel="validation accuracy", title="One sweep (stars) against a grid (dots)")
ax.legend(frameon=False, fontsize=8)
plt.show()

# %%
behind = on_grid.max(1).values.mean() - suggested.mean()
f"best of the grid {on_grid.max(1).values.mean():.3f}, at the suggestion {suggested.mean():.3f}"

# %%
assert behind < 0.05

# %% [markdown]
# The best of a grid is chosen after the fact, on the very reviews that judge it, so it looks a little better than it is. And the sweep knows nothing of how long you will train: a run ten times as long wants a somewhat lower rate. Take the suggestion as the middle of a range of about one third to three times it.

# %% [markdown]
# ## The story: why Transformers were trained with warm-up
#
# The first Transformer was trained with a warm-up, every later one copied it, and it took almost three years until somebody could say what it was for. Xiong et al. (2020) found the reason in one place: where the LayerNorm stands. In the original, *post-LN*, it comes after each residual sum; at the start of training the gradients near the output are then as large in a deep network as in a shallow one, though many more layers change at once, and a full-size step does damage that is not repaired. With the LayerNorm inside the branch, *pre-LN*, they shrink with the depth $L$ as $1/\sqrt{L}$. BERT is post-LN; GPT-2 and ViT are pre-LN.
#
# The gradient of the second feed-forward matrix of the *last* layer, at random weights, in small Transformers that read digits row by row:

# %%
class RowReader(nn.Module):
    def __init__(self, pre_ln: bool, num_layers: int = 6, d: int = 16):
        super().__init__()
        self.embed, self.fc = nn.Linear(8, d), nn.Linear(d, 10)
        self.positions = nn.Parameter(0.02 * torch.randn(8, d))
        layer = nn.TransformerEncoderLayer(d, d // 8, 2 * d, dropout=0.0, batch_first=True, norm_first=pre_ln)
        last_norm = nn.LayerNorm(d) if pre_ln else None
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False, norm=last_norm)
        for weight in (p for p in self.encoder.parameters() if p.ndim == 2):
            nn.init.xavier_uniform_(weight)  # the layers are copies of one; each gets its own numbers

    def forward(self, X: Tensor) -> Tensor:  # (B, 8, 8) -> (B, 10)
        return self.fc(self.encoder(self.embed(X) + self.positions).mean(1))

X, y = (torch.tensor(a) for a in load_digits(return_X_y=True))
X = (X.float() / 8 - 1).view(-1, 8, 8)

# %%
def last_gradient(pre_ln: bool, num_layers: int, seed: int) -> float:
    torch.manual_seed(seed)
    model = RowReader(pre_ln, num_layers, d=64)
    nn.functional.cross_entropy(model(X[:64]), y[:64]).backward()
    return model.encoder.layers[-1].linear2.weight.grad.norm().item()

depths = (2, 4, 8, 16)
norms = {name: torch.tensor([[last_gradient(pre_ln, n, s) for s in range(5)] for n in depths]) for name, pre_ln in (("post-LN", False), ("pre-LN", True))}
fig, ax = plt.subplots(figsize=(6, 2.8), dpi=80)
for name, values in norms.items():  # (depths, seeds)
    ax.plot(depths, values.median(1).values, "o-", label=name)
    ax.fill_between(depths, values.min(1).values, values.max(1).values, alpha=0.2)
ax.set(xscale="log", xticks=depths, xticklabels=depths, xlabel="number of layers", ylabel="gradient norm", ylim=(0, None), title="Last layer, before the first step (median, range of 5 seeds)")
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %%
deep_over_shallow = {name: (values[-1].median() / values[0].median()).item() for name, values in norms.items()}
deep_over_shallow

# %%
assert deep_over_shallow["pre-LN"] < 0.6 < deep_over_shallow["post-LN"]

# %% [markdown]
# And what follows from it: the post-LN network from scratch, with and without a fifth of the steps as warm-up, at a moderate and at a bold rate.

# %%
def read_digits(seed: int, lr: float, warmup: float, num_steps: int = 60) -> float:
    torch.manual_seed(seed)
    model, train_rows, test_rows = RowReader(pre_ln=False), *torch.randperm(len(X)).split([1200, 597])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(step / num_steps, warmup=warmup)
        rows = train_rows[torch.randint(1200, (32,))]
        nn.functional.cross_entropy(model(X[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return (model(X[test_rows]).argmax(-1) == y[test_rows]).float().mean().item()

# %%
rates, warmups = (3e-3, 1e-2), (0.0, 0.2)
digits = torch.tensor([[[read_digits(s, lr, w) for s in range(3)] for w in warmups] for lr in rates])  # (rates, warmups, seeds)
fig, ax = plt.subplots(figsize=(6, 2.8), dpi=80)
for j, warmup in enumerate(warmups):
    positions = [i + 0.3 * (j - 0.5) for i in range(len(rates))]
    ax.bar(positions, digits[:, j].mean(1), width=0.28, label=f"warmup={warmup:g}", alpha=0.6)
    for i, x in enumerate(positions):
        ax.plot([x] * 3, digits[i, j], "k.", ms=5)
ax.axhline(0.1, color="0.6", lw=0.8, ls=":")
ax.set(xticks=range(len(rates)), xticklabels=[f"lr={lr:g}" for lr in rates], ylabel="test accuracy", title="Post-LN from scratch (dots: 3 seeds; dotted: chance)")
ax.legend(frameon=False, fontsize=8, loc="upper center")
plt.show()

# %%
gain = digits[:, 1].mean(1) - digits[:, 0].mean(1)
gain.tolist()

# %%
assert gain[1] > 0.1 and gain[1] > gain[0]

# %% [markdown]
# At the moderate rate warm-up hardly matters; at the bold one it decides. Fine-tuning is the gentle case: the weights are no longer random, the rates are small, and only the new head starts from nothing. A warm-up of a tenth costs little there, so it is the default; it also covers the first steps of Adam, whose estimate of the gradients' size is then one batch old.
#
# ## Exercises
#
# **1 (easy).** ULMFiT's *slanted triangle* is a short linear rise and a long linear fall. Which share of a run does our linear schedule with a tenth of warm-up spend above half of its peak? Count it over 1,000 steps.

# %% tags=["exercise"]
def share_above_half(warmup: float = 0.1, num_steps: int = 1000) -> float:
    ...  # your code here

# %% tags=["solution"]
def share_above_half(warmup: float = 0.1, num_steps: int = 1000) -> float:
    return sum(lr_factor(step / num_steps, warmup=warmup) > 0.5 for step in range(num_steps)) / num_steps

# %%
assert abs(share_above_half() - 0.5) < 0.01 and abs(share_above_half(warmup=0.5) - 0.5) < 0.01

# %% [markdown]
# **2 (medium).** A restart every `period` of the progress, each a cosine from 1 to 0 without warm-up (Loshchilov and Hutter's warm restarts), built from `lr_factor`.

# %% tags=["exercise"]
def warm_restarts(progress: float, period: float) -> float:
    ...  # your code here

# %% tags=["solution"]
def warm_restarts(progress: float, period: float) -> float:
    return lr_factor(progress % period / period, warmup=0.0, schedule="cosine")

# %%
assert warm_restarts(0.0, 0.25) == warm_restarts(0.25, 0.25) == 1.0
assert abs(warm_restarts(0.375, 0.25) - 0.5) < 1e-9 and warm_restarts(0.2499, 0.25) < 1e-3

# %% [markdown]
# ## Summary
# - A schedule is a pure function of progress; the live learning rate is its peak, so a person can move the peak while the shape goes on.
# - A range test shows all usable rates in one short sweep and leaves model and generators bit for bit as they were. Its suggestion is the start of a search, not its end.
# - Warm-up matters where the first gradients are uneven and the rate is bold: post-LN Transformers from scratch. In fine-tuning it is cheap insurance.
#
# **What next:** [16](16_step.ipynb) puts the factor to use in a single update, [19](19_train.ipynb) in the whole loop. With a real model: `lr_range_test` on `google-bert/bert-base-uncased` usually points at some 1e-5 to 1e-4.
#
# **Sources:** Smith (2017), arXiv:1506.01186; Howard and Ruder (2018), arXiv:1801.06146; Xiong et al. (2020), arXiv:2002.04745; Loshchilov and Hutter (2017), arXiv:1608.03983.
