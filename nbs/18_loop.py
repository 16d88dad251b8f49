# %% [markdown]
# # The training loop
#
# > The whole loop on one screen: an object that does one piece of work at a time and can be left at any point.
#
# At the end you can read the whole loop, drive it by hand, and break it without losing a step. Runs in about 15 s on a CPU.

# %%
#| default_exp loop

# %%
#| export
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ftnb.devices import choose_device, choose_precision, free_cached_memory, out_of_memory, to_device
from ftnb.events import Changed, Evaluated, Event, Finished, Started, Warned
from ftnb.live import EventBuffer, GeneratorWatch
from ftnb.plan import Best, Plan, Rates, Settings, TrainingError
from ftnb.schedule import lr_factor
from ftnb.step import (
    Arithmetic,
    Batch,
    Learner,
    StepInHand,
    Strategy,
    batch_size,
    build_optimizer,
    cut_batch,
    micro_batches,
    moving_buffers,
    seed_generators,
    set_modes,
    set_trainable,
)

# %%
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch.nn.functional as F
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ftnb.data import Batches
from ftnb.metrics import Metrics
from ftnb.step import Everything

# %% [markdown]
# ## The loop everybody writes, and what it cannot do
#
# `for epoch in …: for batch in …:` owns the thread until it is over. To look at the model in the middle one must stop it; having stopped it, one cannot go on. So we turn the loop inside out: a training is an *object* that does one piece of work whenever it is asked. Pausing is not asking. Everything it knows between two pieces is in its fields, so nothing is lost when somebody interrupts.
#
# These are the fields that move: where it is, and an evaluation that may be half done (a half-done step is lesson 16's `StepInHand`).

# %%
#| export
@dataclass
class Position:
    """Where a training is: completed steps, the epoch, batches consumed in it, the phase, the last evaluation.

    `parts` says into how many parts every batch is cut, because memory ran out with fewer.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    phase: int = -1
    evaluated_at: int = 0
    parts: int = 1


@dataclass
class EvaluationInHand:
    """One pass over the validation data, possibly half done. `loss` is a weighted sum on the device."""

    stream: Iterator[Batch]
    loss: Tensor | float = 0.0
    weight: int = 0
    seconds: float = 0.0

# %% [markdown]
# One thing the loop leaves to somebody else. If the first layers are frozen, their output for an example never changes, and a cache can keep it (lesson 23). The loop need not know how: at each phase it tells the cache, and before each step it asks for the learner to take the step with. A cache that is not full yet answers `None` after filling a little, so that one can pause in the middle of that, too.

# %%
#| export
class Cache(Protocol):
    """What the loop needs of a cache of frozen layers."""

    def enter(self, loop: "Loop") -> None:
        """A phase begins, or goes on from a loaded state: whatever was cached may no longer fit."""
        ...

    def learner(self, loop: "Loop") -> Learner | None:
        """The learner for the next step: `loop.plain`, or one that replays; None if a piece of filling was done."""
        ...

# %% [markdown]
# ## The loop, on one screen
#
# `work` does *one* piece: a micro-batch, or one batch of an evaluation. `_train` is one turn of the loop everybody writes. The weights change in one place only, `_update`; whatever raises before it, `forget` throws the half-done piece away, and the last completed step is in place.

# %%
#| export
class Loop:
    """Train a learner piece by piece: `work()` until `finished`. What happens is put into `buffer` as events."""

    def __init__(
        self, learner: Learner, strategy: Strategy, settings: Settings, cache: Cache | None = None
    ) -> None:
        self.learner, self.plain, self.settings, self.cache = learner, learner, settings, cache
        self.device = choose_device(settings.device)
        self.model = learner.model.to(self.device)
        self.precision = choose_precision(settings.precision, self.device, self.model)
        with torch.random.fork_rng(devices=[]):  # a strategy may add weights that start from random numbers
            seed_generators(torch.device("cpu"), settings.seed, -2)
            self.phases = strategy.phases(self.model, learner.new_parameters)
        shares = tuple(phase.share for phase in self.phases)
        self.plan = Plan(len(learner.train), settings.accumulation, settings.num_epochs, shares)
        self.arithmetic = Arithmetic(self.device, self.precision, settings.max_grad_norm)
        self.rates, self.position, self.best = Rates(settings.lr), Position(), Best(learner.metrics.higher_is_better)
        self.buffer = EventBuffer(eager=self.device.type == "cpu")
        self.optimizer: torch.optim.AdamW | None = None
        self.in_hand: StepInHand | None = None
        self.evaluation: EvaluationInHand | None = None
        self.reason: str | None = None  # why it finished
        self.stopping = self.evaluation_asked = False
        self._stream: Iterator[Batch] | None = None
        self._watch = GeneratorWatch()
        self._required_grad = {p: p.requires_grad for p in self.model.parameters()}
        self._began: float | None = None
        self._batch_norm = True  # whether the model has layers whose buffers move
        self._largest = 0  # examples in the largest part of the piece in hand

    def work(self) -> None:
        """Do one piece of work. An exception leaves the last completed step in place."""
        if self._began is None:
            self._start()
        full = ""
        try:
            self._piece()
        except BaseException as error:
            self.forget()
            if not out_of_memory(error):
                raise
            full = f"{type(error).__name__}: {error}"  # its words; the error holds the memory of all it passed through
        if full:
            self._use_less_memory(full)
        self._watch.mark()

    def _piece(self) -> None:
        """A micro-batch, a batch of an evaluation, or the end."""
        if self.in_hand is None and self.evaluation is None and self._evaluation_due():
            self.model.eval()
            self.learner.metrics.to(self.device)
            self.learner.metrics.reset()
            self.evaluation = EvaluationInHand(self.learner.valid.epoch(0))
        if self.evaluation is not None:
            self._evaluate(self.evaluation)
        elif self.in_hand is None and self._over():
            self._finish()
        else:
            self._train()

    def _train(self) -> None:
        """One micro-batch; after the last one of a step, the update."""
        begin = time.perf_counter()
        self.in_hand = work = self.in_hand or self._next_step()
        if work is None:
            return
        seed_generators(self.device, self.settings.seed, self.position.step, work.done)
        share = work.weights[work.done] / max(1, sum(work.weights))
        if share > 0 or not any(work.weights):  # the mean of no terms is no number
            with self.arithmetic.autocast():
                loss, _ = self.learner.loss(self.model, to_device(work.batches[work.done], self.device))
            self.arithmetic.backward(loss, share)
            work.loss = work.loss + loss.detach() * share
        work.done += 1
        norm = self._update() if work.complete else None
        work.seconds += time.perf_counter() - begin
        if norm is not None:
            self._complete(work, norm)

    def _update(self) -> Tensor:
        """Set the rates and let the optimizer step; returns the gradients' norm before clipping."""
        assert self.optimizer is not None
        s = self.settings
        factor = lr_factor(self.plan.progress(self.position.step), warmup=s.warmup, schedule=s.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates.peak(group["name"], group["multiplier"]) * factor
        norm = self.arithmetic.update(self.optimizer)
        if self.in_hand is not None:
            self.in_hand.settle(norm)
        return norm

    def _next_step(self) -> StepInHand | None:
        """Fetch the micro-batches of the next step; enter the phase it belongs to. None while a cache is filled."""
        p, s = self.position, self.settings
        if (phase := self.plan.phase_at(p.step)) != p.phase:
            self._enter(phase)
        if not self.model.training:  # after an evaluation, or when somebody predicted in between
            set_modes(self.model, self.phases[p.phase], s.batch_norm)
        if self._watch.disturbed():
            self.warn("rng_disturbed", "another cell drew random numbers while training; a repetition may differ.")
        if self.cache is not None:
            if (learner := self.cache.learner(self)) is None:
                return None
            if learner is not self.learner:
                self.learner, self._stream = learner, None
        self._stream = self._stream or self.learner.train.epoch(p.epoch, start=p.batch)
        draw = partial(seed_generators, self.device, s.seed, p.step, -1)  # for random augmentation
        batches = micro_batches(self._stream, s.accumulation, draw)
        if not batches:
            raise TrainingError(f"the training data ended after {p.batch} of {self.plan.num_batches} batches.")
        parts = [part for batch in batches for part in cut_batch(batch, p.parts)]
        weights = [self.learner.weight(part) for part in parts]
        self._largest = max(map(batch_size, parts))
        buffers = moving_buffers(self.model) if self._batch_norm else []  # looking for them takes 0.1 ms a step
        return StepInHand(parts, weights, buffers, len(batches))

    def _complete(self, work: StepInHand, norm: Tensor) -> None:
        """The step is done: move on and note it."""
        assert self.optimizer is not None
        assert isinstance(work.loss, Tensor)
        p = self.position
        p.step, p.batch, self.in_hand = p.step + 1, p.batch + work.num_batches, None
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        fields = {"step": p.step, "time": self.clock(), "epoch": p.epoch + p.batch / self.plan.num_batches, "lr": lr}
        self.buffer.add_step(fields, work.loss, norm, sum(map(batch_size, work.batches)), work.seconds)
        if p.batch >= self.plan.num_batches:
            p.epoch, p.batch, self._stream = p.epoch + 1, 0, None

    def _evaluate(self, evaluation: EvaluationInHand) -> None:
        """One batch of an evaluation; after the last one, its result."""
        begin = time.perf_counter()
        batch = next(evaluation.stream, None)
        if batch is None:
            self._conclude(evaluation)
            return
        parts = cut_batch(batch, self.position.parts)
        self._largest = max(map(batch_size, parts))
        for part in parts:
            weight, on_device = self.learner.weight(part), to_device(part, self.device)
            with torch.no_grad(), self.arithmetic.autocast():
                loss, outputs = self.learner.loss(self.model, on_device)
                self.learner.metrics.update(outputs, on_device)
            evaluation.loss = evaluation.loss + (loss.float() * weight if weight else 0.0)
            evaluation.weight += weight
        evaluation.seconds += time.perf_counter() - begin

    def _use_less_memory(self, full: str) -> None:
        """Memory ran out: from here on cut every batch into twice as many parts, with the same gradient."""
        p = self.position
        if self._largest <= 1:
            raise TrainingError(
                f"memory is full even with one example at a time ({full.splitlines()[0]}). Use shorter inputs, a "
                "smaller model, fewer layers to train (strategies 'head', 'top-k', 'lora'), or precision='bf16'."
            )
        free_cached_memory(self.device)
        old, p.parts = p.parts, 2 * p.parts
        self.add(Changed, what="parts", old=old, new=p.parts, by="memory")
        self.warn("out_of_memory", f"memory was full; from here on, batches are computed in {p.parts} parts.")

    def _conclude(self, evaluation: EvaluationInHand) -> None:
        """An evaluation is complete: note it, and keep the weights if it is the best so far."""
        p, metrics = self.position, self.learner.metrics.compute()
        best = self.best.offer(metrics[self.learner.metrics.main], p.step)
        if best:
            trained = {parameter for phase in self.phases for parameter in phase.trainable}
            self.best.keep(self.model, {name for name, q in self.model.named_parameters() if q in trained})
        self.evaluation, self.evaluation_asked, p.evaluated_at = None, False, p.step
        loss, epoch = float(evaluation.loss) / max(1, evaluation.weight), p.epoch + p.batch / self.plan.num_batches
        self.add(Evaluated, epoch=epoch, loss=loss, metrics=metrics, seconds=evaluation.seconds, best=best)

    def _start(self) -> None:
        """The first event; a training that goes on from a state has already said it."""
        self._began = time.perf_counter()
        first, metrics, plan = self.phases[0], self.learner.metrics, self.plan
        self.add(
            Started,
            num_steps=plan.num_steps,
            steps_per_epoch=plan.steps_per_epoch,
            num_epochs=plan.num_epochs,
            num_examples=self.learner.train.num_examples,
            num_parameters=sum(p.numel() for p in self.model.parameters()),
            num_trainable=sum(p.numel() for p in first.trainable),
            device=str(self.device),
            precision=self.precision,
            metric=metrics.main,
            higher_is_better=metrics.higher_is_better,
            groups=tuple(group.name for group in first.groups),
        )

    def _enter(self, index: int) -> torch.optim.AdamW:
        """Begin a phase: what trains, and a new optimizer (moments of parameters that go on training are kept)."""
        phase, old = self.phases[index], self.optimizer
        set_trainable(phase)
        set_modes(self.model, phase, self.settings.batch_norm)
        self.optimizer = build_optimizer(phase, self.settings.weight_decay, self.device)
        self._batch_norm = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in self.model.modules())
        if old is not None:
            mine = {p for group in self.optimizer.param_groups for p in group["params"]}
            self.optimizer.state.update({p: state for p, state in old.state.items() if p in mine})
        previous = self.phases[self.position.phase].name if self.position.phase >= 0 else None
        self.position.phase = index
        if len(self.phases) > 1:
            self.add(Changed, what="phase", old=previous, new=phase.name, by="strategy")
        if self.cache is not None:
            self.learner, self._stream = self.plain, None
            self.cache.enter(self)
        return self.optimizer

    def _evaluation_due(self) -> bool:
        p, every = self.position, self.settings.eval_every
        if self.evaluation_asked or p.step == p.evaluated_at:
            return self.evaluation_asked
        periodic = p.step % every == 0 if every else p.batch == 0
        return periodic or p.step == self.plan.num_steps or self.stopping

    def _over(self) -> bool:
        patience = self.settings.patience
        tired = patience is not None and self.best.misses >= patience
        return self.stopping or tired or self.position.step >= self.plan.num_steps

    def _finish(self) -> None:
        """The end: flags as they were, the model ready to predict, the last event."""
        for parameter, flag in self._required_grad.items():
            parameter.requires_grad_(flag)
        self.model.eval()
        complete = self.position.step >= self.plan.num_steps
        self.reason = "done" if complete else "stopped" if self.stopping else "early_stopping"
        self.add(Finished, reason=self.reason, best_step=self.best.step, best_value=self.best.value)

    def forget(self) -> None:
        """Throw a half-done piece of work away; the last completed step stays."""
        if self.in_hand is not None:
            self.in_hand.forget(self.model)
        self.in_hand = self.evaluation = self._stream = None
        self.model.zero_grad(set_to_none=True)

    def add(self, kind: type[Event], **fields: Any) -> None:
        """Note an event that happens now."""
        self.buffer.waiting.append(kind(step=self.position.step, time=self.clock(), **fields))

    def warn(self, code: str, message: str) -> None:
        """Note a warning."""
        self.add(Warned, code=code, message=message)

    def clock(self) -> float:
        """Seconds since the start, pauses included; goes on where a loaded state left off."""
        return time.perf_counter() - self._began if self._began is not None else 0.0

# %% [markdown]
# ## Piece by piece
#
# A toy to look at it: points in eight dimensions, a small network with dropout, 44 examples in batches of 8, two micro-batches to a step. Everything real (words, pictures, BERT) only changes what is inside the learner.

# %%
def points(n: int, seed: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 8, generator=g)
    return [{"x": x, "labels": y} for x, y in zip(X, (X[:, 0] + X[:, 1] > 0).long(), strict=True)]

def stack(examples: list[dict[str, Tensor]]) -> Batch:
    return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}

def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    logits = model(batch["x"])
    return F.cross_entropy(logits, batch["labels"]), logits

# %%
def toy_learner(seed: int = 0, num_examples: int = 44, batch: int = 8, width: int = 32) -> Learner:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 2))
    accuracy = MetricCollection({"accuracy": MulticlassAccuracy(2, average="micro")})
    metrics = Metrics(accuracy, lambda logits, batch: (logits, batch["labels"]), main="accuracy")
    train = Batches(points(num_examples, seed), stack, batch, shuffle=True, seed=seed)
    return Learner(model, train, Batches(points(32, seed + 1000), stack, 16), loss, metrics)

# %%
loop = Loop(toy_learner(), Everything(), Settings(lr=1e-2, accumulation=2, device="cpu"))
for _ in range(3):
    loop.work()
    print(loop.position, "| micro-batches of the next step done:", loop.in_hand.done if loop.in_hand else 0)

# %% [markdown]
# The third piece began the second step and left it half done. What has happened so far waits in the buffer as events.

# %%
[event.kind for event in loop.buffer.ready(force=True)]

# %%
assert loop.position.step == 1 and loop.in_hand.done == 1

# %%
while loop.reason is None:
    loop.work()
events = loop.buffer.ready(force=True)
events[-1]

# %% [markdown]
# ## The experiment: breaking it anywhere
#
# **Claim.** Wherever an example raises, in a first, middle or last micro-batch or in an evaluation, the training can simply go on, and ends with *bitwise* the weights of a run that was never disturbed. We break 30 runs, each at another forward pass. A single different bit in one of them would refute the claim.

# %%
class Breaks(nn.Module):
    """Passes through to a model, and raises at one call."""

    def __init__(self, model: nn.Module, at: int | None) -> None:
        super().__init__()
        self.model, self.at, self.calls = model, at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("a bad example")
        return self.model(x)

# %%
def start_again_with_leftovers(loop: Loop) -> None:
    """What a careless loop does: repeat the step, with the gradients and statistics that the first try left."""
    loop.in_hand = loop.evaluation = loop._stream = None

# %%
def final_weights(at: int | None, forget: bool = True) -> Tensor:
    learner = toy_learner()
    learner.model = Breaks(learner.model, at)
    loop = Loop(learner, Everything(), Settings(lr=1e-2, num_epochs=4, accumulation=2, device="cpu"))
    if not forget:
        loop.forget = lambda: start_again_with_leftovers(loop)
    while loop.reason is None:
        try:
            loop.work()
        except RuntimeError:
            pass  # and on we go
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()])

# %%
undisturbed = final_weights(None)
careful = [(final_weights(at) - undisturbed).abs().max().item() for at in range(1, 31)]
careless = [(final_weights(at, forget=False) - undisturbed).abs().max().item() for at in range(1, 31)]
max(careful), max(careless)

# %%
assert max(careful) == 0.0 and max(careless) > 0.0

# %%
fig, ax = plt.subplots(figsize=(6.4, 2.6), dpi=80)
ax.plot(range(1, 31), careless, "o", color="C1", ms=8, label="leftovers kept")
ax.plot(range(1, 31), careful, "o", color="C0", ms=4, label="half-done work forgotten")
ax.set(xlabel="forward pass that raised", ylabel="weight difference")
ax.set_title("After an error, going on: distance from the undisturbed run", fontsize=11)
ax.legend(frameon=False)
fig.tight_layout()
plt.show()

# %% [markdown]
# ## When memory is full
#
# An example longer than all others comes, and the GPU has no room for its batch. Usually the run is over, and the next attempt begins with a guess at a smaller batch size. But a step that can be forgotten can also be done again, and the gradient of a batch is the weighted sum of its parts' (lesson 16). So the loop forgets, cuts every batch in two from here on, says so, and does the same step again. Here the "memory" holds three examples:

# %%
def loss_in_little_memory(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    if len(batch["x"]) > 3:
        raise torch.OutOfMemoryError("no room for more than three examples")
    return loss(model, batch)

def first_steps(loss_function: Callable, num_steps: int = 6) -> tuple[Tensor, Loop]:
    learner = toy_learner()
    torch.manual_seed(0)
    learner.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    learner.loss = loss_function
    loop = Loop(learner, Everything(), Settings(lr=1e-2, device="cpu"))
    while loop.position.step < num_steps:
        loop.work()
    return torch.cat([p.detach().flatten() for p in loop.model.parameters()]), loop

(roomy, _), (narrow, small) = first_steps(loss), first_steps(loss_in_little_memory)
changes = [event for event in small.buffer.ready(force=True) if isinstance(event, Changed)]
[f"{e.what} {e.old} → {e.new} after step {e.step}" for e in changes], (roomy - narrow).abs().max().item()

# %%
assert small.position.parts == 4 and (roomy - narrow).abs().max() < 1e-6

# %% [markdown]
# The exact equality needs layers that treat every example by itself. Dropout draws other dice, and BatchNorm sees smaller batches. The error itself is not kept, only its words: a traceback holds the memory of everything it passed through.
#
# ## What it costs
#
# The object keeps more books than a bare loop. Is that felt? Both do the same arithmetic below, clipping included, on a network whose step takes a few milliseconds; they alternate, and the ratio is taken pair by pair.

# %%
def bare_seconds(learner: Learner) -> float:
    optimizer, begin = torch.optim.AdamW(learner.model.parameters(), fused=True), time.perf_counter()
    learner.model.train()
    for batch in learner.train.epoch(0):
        value, _ = learner.loss(learner.model, batch)
        value.backward()
        nn.utils.clip_grad_norm_(learner.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - begin

# %%
def loop_seconds(learner: Learner) -> float:
    loop = Loop(learner, Everything(), Settings(num_epochs=2, device="cpu"))
    begin = time.perf_counter()
    while loop.position.epoch == 0:
        loop.work()
        loop.buffer.ready()
    return time.perf_counter() - begin

# %%
big = {"num_examples": 2560, "batch": 128, "width": 2048}
ratios = sorted(loop_seconds(toy_learner(seed, **big)) / bare_seconds(toy_learner(seed, **big)) for seed in range(7))
f"{ratios[3]:.2f} times the bare loop (median of 7 pairs, {ratios[0]:.2f} to {ratios[-1]:.2f})"

# %% [markdown]
# ## The story: half an update
#
# A notebook's stop button raises an exception between two Python statements. A plain optimizer updates one tensor after the other, in Python. Press at the wrong moment, and some layers have taken the step and others have not: a model that no step of training ever produced. Few loops guard against it. Lightning, since 2024, ends the whole program, so that a stop in a notebook loses what was not saved (Lightning-AI/pytorch-lightning#19976). Here is that moment.

# %%
layers = [nn.Parameter(torch.zeros(1)) for _ in range(4)]

def plain_step(press_after: int) -> None:
    for i, p in enumerate(layers):
        p.data += 1.0
        if i == press_after:
            raise KeyboardInterrupt

try:
    plain_step(press_after=1)
except KeyboardInterrupt:
    pass
[p.item() for p in layers]

# %%
assert len({p.item() for p in layers}) == 2  # half updated

# %% [markdown]
# Lesson 19 holds the button back to the end of the step.
#
# ## Exercises
#
# **1 (easy).** Write `run_epochs`: drive a loop until it has completed `n` epochs (or is over), and return the number of pieces of work it took.

# %% tags=["exercise"]
def run_epochs(loop: Loop, n: int) -> int:
    ...  # your code here

# %% tags=["solution"]
def run_epochs(loop: Loop, n: int) -> int:
    pieces = 0
    while loop.reason is None and loop.position.epoch < n:
        loop.work()
        pieces += 1
    return pieces

# %%
assert run_epochs(Loop(toy_learner(), Everything(), Settings(device="cpu")), 1) == 6

# %% [markdown]
# **2 (medium).** An evaluation makes pieces of work too. How many pieces does a whole run of two epochs take (6 batches of training data, 2 of validation data, accumulation 1)? An evaluation needs one piece more to conclude, and the end is a piece. Write the formula.

# %% tags=["exercise"]
def pieces_of_work(train_batches: int, valid_batches: int, num_epochs: int) -> int:
    ...  # your code here

# %% tags=["solution"]
def pieces_of_work(train_batches: int, valid_batches: int, num_epochs: int) -> int:
    return num_epochs * (train_batches + valid_batches + 1) + 1

# %%
assert pieces_of_work(6, 2, 2) == run_epochs(Loop(toy_learner(), Everything(), Settings(num_epochs=2, device="cpu")), 99)

# %% [markdown]
# ## Summary
# - The loop does one piece of work when asked; between two pieces, everything is in its fields.
# - Weights change in one place. Before it, a half-done step can be forgotten without a trace.
# - Evaluations go batch by batch like training, so nothing has to wait for their end.
# - When memory is full, the step is done again in parts, with the same gradient.
#
# **What next:** lesson 19 puts a conversation on top: requests, interrupts, state. **Sources:** the loop of `karpathy/nanoGPT` (one screen); Lightning-AI/pytorch-lightning#19976.
