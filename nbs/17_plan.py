# %% [markdown]
# # The plan of a training
#
# > What a training is given, where everything in it happens, and what it must remember.
#
# At the end you can say at which step each phase begins, what a change of the learning rate in the middle means, and why the best model is not the last one. Runs in about 5 s on a CPU.

# %%
#| default_exp plan

# %%
#| export
import itertools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ftnb.schedule import Schedule, lr_factor

# %%
import matplotlib.pyplot as plt

# %% [markdown]
# ## Numbers, checked before anything runs
#
# A run that fails after an hour because `patience` was 0.5 has wasted the hour. So all the numbers of a training are one frozen record, which refuses impossible values when it is made.

# %%
#| export
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

# %%
try:
    Settings(lr=-1.0)
except TrainingError as error:
    refused = str(error)
refused

# %% [markdown]
# ## The plan
#
# How many steps there are, where each phase begins, and how far a step is within its phase: these follow from a few integers and are worth a small object of their own.

# %%
#| export
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

# %%
plan = Plan(num_batches=10, accumulation=4, num_epochs=4, shares=(0.25, 0.75))
plan.steps_per_epoch, plan.num_steps, plan.phase_starts, [round(plan.progress(step), 2) for step in range(6)]

# %%
assert plan.phase_starts == [0, 3] and plan.progress(2) < 1 and plan.progress(3) == 0

# %% [markdown]
# ## A rate that can be changed
#
# What a person changes during a run is the *peak*; the schedule's shape goes on from there. A change for all keeps the proportions between the layer groups.

# %%
#| export
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

# %%
rates = Rates(lr=1e-3)
rates.set(5e-4, "head", {"trunk": 0.1, "head": 1.0})
rates.set(2e-3, None, {"trunk": 0.1, "head": 1.0})
rates.peak("trunk", 0.1), rates.peak("head", 1.0)

# %%
assert math.isclose(rates.peak("trunk", 0.1), 2e-4) and math.isclose(rates.peak("head", 1.0), 1e-3)

# %% [markdown]
# ## The best so far
#
# The last model is rarely the best: a run that goes on too long learns its training examples by heart while the validation metric falls. So the loop remembers the best evaluation and the weights it was reached with. Only the tensors that training changes are copied; a frozen backbone is still what it was.

# %%
#| export
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

# %%
toy = nn.Linear(2, 2)
best = Best(higher_is_better=True)
for step, value in ((10, 0.7), (20, 0.8), (30, 0.75)):
    nn.init.constant_(toy.weight, value)
    if best.offer(value, step):
        best.keep(toy, {"weight"})
best.restore(toy)
best.step, best.misses, toy.weight.data

# %%
assert best.step == 20 and torch.allclose(toy.weight.data, torch.full((2, 2), 0.8))

# %% [markdown]
# A training that has not improved for `patience` evaluations stops early: `misses` counts them.
#
# ## The experiment: best against last
#
# **Claim.** On data with wrong labels, the best checkpoint by validation beats the last one on *test* data; and its validation score is too good to be true, because it was chosen for being high. We train a small network far too long on 80 points with a quarter of the labels flipped, over 12 seeds. If best and last tied on the test set, the first half would be refuted; if validation and test agreed at the best step, the second.

# %%
def points(n: int, noise: float, g: torch.Generator) -> tuple[Tensor, Tensor]:
    X = torch.randn(n, 10, generator=g)
    y = (X[:, 0] + X[:, 1] > 0).long()
    flipped = torch.rand(n, generator=g) < noise
    return X, torch.where(flipped, 1 - y, y)

def accuracy(model: nn.Module, X: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (model(X).argmax(-1) == y).float().mean().item()

# %%
def best_and_last(seed: int, num_steps: int = 300) -> tuple[float, float, float]:
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
    (X, y), (X_valid, y_valid), (X_test, y_test) = points(80, 0.25, g), points(60, 0.0, g), points(2000, 0.0, g)
    optimizer, best = torch.optim.AdamW(model.parameters(), lr=1e-2), Best(higher_is_better=True)
    for step in range(1, num_steps + 1):
        nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0 and best.offer(accuracy(model, X_valid, y_valid), step):
            best.keep(model, {name for name, _ in model.named_parameters()})
    last = accuracy(model, X_test, y_test)
    best.restore(model)
    return best.value or 0.0, accuracy(model, X_test, y_test), last

# %%
results = torch.tensor([best_and_last(seed) for seed in range(12)])  # (seeds, 3)
results.mean(0)

# %%
fig, ax = plt.subplots(figsize=(6, 3), dpi=80)
labels = ["best, on validation\n(what it was chosen by)", "best, on test", "last, on test"]
ax.plot(range(3), results.T, color="0.75", lw=1, marker="o", ms=4)
ax.plot(range(3), results.mean(0), color="C0", lw=2.5, marker="o", label="mean of 12 seeds")
ax.set(xticks=range(3), xticklabels=labels, xlim=(-0.4, 2.4), ylabel="accuracy", title="Which model to keep")
ax.legend(frameon=False)
fig.tight_layout()
plt.show()

# %%
chosen, best_test, last_test = results.unbind(1)
assert (best_test - last_test).mean() > 0.03 and (chosen - best_test).mean() > 0.0

# %% [markdown]
# So keep the best, but quote its *test* score. The validation score of a chosen model is a maximum over tries.
#
# ## The story: seven hours, and the worst model kept
#
# Whoever keeps "the best" model must know which way is better, and a program that does not know guesses. transformers' `Trainer` guessed by the name: smaller was better for `loss` and `eval_loss`, larger for everything else. Somebody measured on several data sets, so the loss was called `eval_NAME_loss`; after seven hours of training the *largest* loss had been kept, and the good models were gone (huggingface/transformers#31142, May 2024). Since then any name that ends in "loss" will do; a `perplexity` still counts as better when it is larger, unless `greater_is_better` says otherwise.

# %%
def guessed(name: str) -> bool:
    return name not in ("loss", "eval_loss")

losses = ((100, 0.69), (200, 0.41), (300, 0.38), (400, 0.45))
by_name, told = Best(guessed("eval_reviews_loss")), Best(higher_is_better=False)
for step, loss in losses:
    by_name.offer(loss, step)
    told.offer(loss, step)
{"guessed by the name": (by_name.step, by_name.value), "told": (told.step, told.value)}

# %%
assert by_name.value == max(loss for _, loss in losses) and told.value == min(loss for _, loss in losses)

# %% [markdown]
# Here nothing is guessed: a metric brings its direction along ([lesson 12](12_metrics.ipynb)), and `Best` cannot be made without one.

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `rate_at`: the learning rate in force at the update after `step` completed steps.

# %% tags=["exercise"]
def rate_at(plan: Plan, rates: Rates, step: int, warmup: float = 0.1) -> float:
    ...  # your code here

# %% tags=["solution"]
def rate_at(plan: Plan, rates: Rates, step: int, warmup: float = 0.1) -> float:
    return rates.peak("all", 1.0) * lr_factor(plan.progress(step), warmup=warmup)

# %%
straight = Plan(num_batches=10, accumulation=1, num_epochs=1)
assert math.isclose(rate_at(straight, Rates(lr=2.0), step=5, warmup=0.0), 1.0)

# %% [markdown]
# **2 (medium).** A run of 5,000 steps is evaluated every 10 and every 500 steps. Which of the two ends with the more flattering best validation score, if the model has long stopped changing and only chance moves the score? Write `flattery`: the mean over seeds of the maximum of `n` draws from a normal distribution around 0.8 with standard deviation 0.02.

# %% tags=["exercise"]
def flattery(n: int, seeds: int = 200) -> float:
    ...  # your code here

# %% tags=["solution"]
def flattery(n: int, seeds: int = 200) -> float:
    g = torch.Generator().manual_seed(0)
    return (0.8 + 0.02 * torch.randn(seeds, n, generator=g)).max(1).values.mean().item()

# %%
assert flattery(500) > flattery(10) > 0.8

# %% [markdown]
# ## Summary
# - The numbers of a training are one frozen record, checked before the start.
# - Steps, epochs and phases follow from a few integers; a phase has its own warm-up and decay.
# - A live change sets the peak, for all groups in proportion or for one alone.
# - Keep the best model, and do not quote the score it was chosen by.
#
# **What next:** lesson 18 is the loop that follows this plan. **Sources:** Prechelt (1998), "Early stopping, but when?"; huggingface/transformers#31142.
