# %% [markdown]
# # A training you can talk to
#
# > A training is an iterator of events that can be stepped, steered, stopped, interrupted, and go on.
#
# At the end you can step through a training by hand, change it while it runs, interrupt it, move it to another object and go on. Runs in about 20 s on a CPU.

# %%
#| default_exp train

# %%
#| export
import copy
import math
import queue
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ftnb.events import Changed, Command, Evaluate, Event, SetLr, SetParts, Stepped, Stop, Warned
from ftnb.live import held_interrupts
from ftnb.loop import Cache, Loop, Position
from ftnb.non_finite import explain
from ftnb.plan import Best, Rates, Settings, TrainingError
from ftnb.step import Everything, Learner, Strategy

# %%
import signal

import matplotlib.pyplot as plt
import torch.nn.functional as F
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from ftnb.data import Batches
from ftnb.events import Evaluated
from ftnb.metrics import Metrics

# %% [markdown]
# ## A conversation
#
# What people touch is a thin layer on top. It takes requests from any thread and carries them out *between* two pieces of work; it hands the events on, one at a time (`for event in training`), step by step (`training.step()`), or as they come (`training.advance()`, which a background run uses).
#
# The ■ of a notebook raises `KeyboardInterrupt` wherever the program happens to be. `held_interrupts` takes the signal, remembers it, and the interrupt is raised when the step in hand is complete. Pressed twice, it is raised at once, and the half-done step is forgotten.

# %%
#| export
@dataclass(frozen=True, eq=False)
class Request:
    """A command on its way: what is asked, after how many completed steps (None: at once), and by whom."""

    command: Command
    at: int | None
    by: str


_COMMANDS = {of.__name__: of for of in (SetLr, SetParts, Evaluate, Stop)}  # those that may wait for a step


def _as_data(command: Command) -> dict[str, Any]:
    return {"kind": type(command).__name__, **asdict(command)}


def _command(data: dict[str, Any]) -> Command:
    fields = {name: value for name, value in data.items() if name != "kind"}
    return _COMMANDS[data["kind"]](**fields)


class Training(Loop):
    """Train a learner; iterate over it to get its events.

    Args:
        learner: model, data, loss and metrics.
        strategy: which layer groups train, when, at which rates; None trains everything.
        settings: the numbers; keyword arguments change single ones, as in `Training(learner, lr=1e-4)`.
        cache: keeps the output of frozen layers, for example `ftnb.trunk_cache.TrunkCache()`; None computes it anew.

    Raises:
        TrainingError: if the settings or the plan are impossible.
        ftnb.devices.DeviceError: if the device or precision is not available.
    """

    max_bad_steps = 20  # updates in a row without finite gradients after which the training gives up

    def __init__(
        self,
        learner: Learner,
        strategy: Strategy | None = None,
        settings: Settings | None = None,
        *,
        cache: Cache | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(learner, strategy or Everything(), replace(settings or Settings(), **changes), cache)
        self.log: list[Event] = []  # everything that happened
        self.outbox: deque[Event] = deque()  # what the iteration has not handed out yet
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._later: list[Request] = []  # what waits for its step
        self._bad_steps = 0

    @property
    def finished(self) -> bool:
        """Whether the last event has been made."""
        return self.reason is not None

    def request(self, command: Command, at: int | None = None, by: str = "user") -> None:
        """Ask for something, from any thread; it takes effect before the next micro-batch or evaluation batch.

        Args:
            command: what to do.
            at: the number of completed steps to wait for; None is at once.
            by: who asks, for the event that says that it took effect.

        Raises:
            TrainingError: if a layer group is named that never trains here.
        """
        if isinstance(command, SetLr) and command.group is not None and command.group not in self._multipliers():
            raise TrainingError(f"no layer group {command.group!r} trains; there are {', '.join(self._multipliers())}.")
        self._requests.put(Request(command, at, by))

    def work(self) -> None:
        """Obey what was asked, do one piece of work, and pass on what happened."""
        if self._began is None:
            self._start()
        self._obey()
        try:
            super().work()
        finally:
            self._tell()

    def advance(self) -> list[Event]:
        """Do one piece of work (a micro-batch or an evaluation batch) and return the events that are ready."""
        if not self.outbox and not self.finished:
            self.work()
        events = list(self.outbox)
        self.outbox.clear()
        return events

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        with held_interrupts() as pressed:
            while not self.outbox and not (pressed() and self.in_hand is None):
                if self.finished:
                    raise StopIteration
                self.work()
        if pressed():
            raise KeyboardInterrupt
        return self.outbox.popleft()

    def step(self) -> Stepped | None:
        """Run to the end of the next optimizer step and return its event; None when the training is over.

        Other events on the way (an evaluation, a new phase) are in `log`, as all events are.
        """
        before = self.position.step
        with held_interrupts() as pressed:
            while self.position.step == before and not self.finished and not (pressed() and self.in_hand is None):
                self.work()
            self.flush()
        if pressed():
            raise KeyboardInterrupt
        self.outbox.clear()
        return next((e for e in reversed(self.log) if isinstance(e, Stepped)), None) if not self.finished else None

    def _obey(self) -> None:
        """Carry out what was asked since the last piece of work, and what was asked for this step; say so."""
        while not self._requests.empty():
            self._later.append(self._requests.get_nowait())
        done = self.position.step if self.in_hand is None else -1  # in the middle of a step, no other one begins
        due = [request for request in self._later if request.at is None or request.at <= done]
        self._later = [request for request in self._later if request not in due]
        for request in due:
            command = request.command
            if isinstance(command, SetLr):
                old = self.rates.set(command.lr, command.group, self._multipliers())
                self.add(Changed, what="lr", old=old, new=command.lr, group=command.group, by=request.by)
                continue
            if isinstance(command, SetParts):
                old, self.position.parts = self.position.parts, command.parts
                self.add(Changed, what="parts", old=old, new=command.parts, by=request.by)
                continue
            self.add(Changed, what=type(command).__name__.lower(), by=request.by)
            if isinstance(command, Evaluate):
                self.evaluation_asked = True
            elif isinstance(command, Stop):
                if self.stopping:  # asked twice: without the last evaluation
                    self.evaluation, self.position.evaluated_at = None, self.position.step
                self.stopping = True

    def _multipliers(self) -> dict[str, float]:
        """The multiplier of every group that trains in some phase; where phases differ, the current phase's."""
        current = self.phases[max(0, self.position.phase)]
        groups = [g for phase in (*reversed(self.phases), current) for g in phase.groups if g.multiplier > 0]
        return {group.name: group.multiplier for group in groups}

    def flush(self) -> None:
        """Fetch what is still on the device; the events come with the next `advance`, `step` or iteration."""
        self._tell(force=True)

    def _tell(self, force: bool = False) -> None:
        """Pass on the events whose numbers have arrived, and watch them for numbers that are none."""
        at_rest = self.finished or (self.evaluation is None and self.position.evaluated_at == self.position.step)
        for event in self.buffer.ready(force or at_rest):
            self._pass_on(event)
            if isinstance(event, Stepped):
                self._bad_steps = 0 if math.isfinite(event.grad_norm) else self._bad_steps + 1
                if self._bad_steps == 1 and not self.arithmetic.scaler.is_enabled():  # fp16 overflows are normal
                    message = f"step {event.step}: loss or gradients are not finite; this update was skipped."
                    message = f"{message} {self._why(event.step)}".strip()
                    self._pass_on(Warned(step=event.step, time=event.time, code="non_finite", message=message))
        if self._bad_steps >= self.max_bad_steps:
            self._bad_steps = 0
            raise TrainingError(
                f"{self.max_bad_steps} steps in a row had no finite gradients; the weights are those of the last good "
                "step. Lower the learning rate, or look for examples that make the loss infinite."
            )

    def _why(self, step: int) -> str:
        """Which examples and which layer made a step's numbers not finite, in words; empty if that cannot be found."""
        epoch, within = divmod(step - 1, self.plan.steps_per_epoch)
        first = within * self.settings.accumulation
        try:
            batches = self.plain.train.order(epoch)[first : first + self.settings.accumulation]
            return explain(self.plain, [i for batch in batches for i in batch], self.arithmetic)
        except Exception:  # noqa: BLE001  # an explanation must not end what it explains
            return ""

    def _pass_on(self, event: Event) -> None:
        self.log.append(event)
        self.outbox.append(event)

    def load_best(self) -> None:
        """Put the best weights seen so far into the model.

        Raises:
            TrainingError: if nothing was evaluated yet.
        """
        if self.best.value is None:
            raise TrainingError("there is no best model yet: no evaluation has finished.")
        self.best.restore(self.model)

    def state_dict(self, copied: bool = True) -> dict[str, Any]:
        """Everything needed to go on elsewhere from the last completed step, as tensors and plain data.

        Args:
            copied: copy the tensors; without it they are the training's own, to be written down before its next step.
        """
        optimizer = self.optimizer.state_dict() if self.optimizer is not None else None
        keep = copy.deepcopy if copied else lambda value: value
        return {
            "settings": asdict(self.settings),
            "position": asdict(self.position),
            "rates": asdict(self.rates),
            "best": keep(vars(self.best)),
            "model": keep(self._tensors()),
            "optimizer": keep(optimizer),
            "scaler": self.arithmetic.scaler.state_dict(),
            "planned": [asdict(r) | {"command": _as_data(r.command)} for r in self._later if r.at is not None],
            "time": self.clock(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters (shared ones once) and buffers, as they were after the last completed step."""
        moved = {id(buffer): before for buffer, before in (self.in_hand.buffers if self.in_hand else [])}
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {name: moved.get(id(tensor), tensor).detach() for name, tensor in named}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the learner and the strategy must be the ones it was taken from.

        Other numbers in the settings (rate, epochs, schedule, decay, clipping) are in force from here on, and said.

        Raises:
            TrainingError: if a setting differs that the state depends on, or the model is another.
        """
        mine, theirs = asdict(self.settings), state["settings"]
        differs = {name: theirs.get(name) for name in mine if mine[name] != theirs.get(name)}
        if fixed := [name for name in differs if name in ("accumulation", "batch_norm", "seed", "precision")]:
            raise TrainingError(f"the state comes from a training with other settings: {', '.join(fixed)}.")
        own = self._tensors()
        shapes = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (own, state["model"]))
        if other := {name for name, _ in set.symmetric_difference(*(set(of.items()) for of in shapes))}:
            raise TrainingError(f"the state comes from another model; {min(other)} and {len(other) - 1} more differ.")
        self.forget()
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state["model"][name])
        self.optimizer, self.position = None, Position()
        if state["optimizer"] is not None:
            optimizer = self._enter(state["position"]["phase"])
            own_numbers = [{**group, "params": None} for group in optimizer.param_groups]
            optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            for group, numbers in zip(optimizer.param_groups, own_numbers, strict=True):
                group.update({**numbers, "params": group["params"]})  # what a phase and the settings say, not a file
        self.position = Position(**state["position"])
        self.rates, self.best = Rates(**copy.deepcopy(state["rates"])), Best(**copy.deepcopy(state["best"]))
        self.arithmetic.scaler.load_state_dict(state["scaler"])
        self.buffer.waiting.clear()
        self._later = [Request(_command(r["command"]), r["at"], r["by"]) for r in state["planned"]]
        self.reason, self.stopping, self.evaluation_asked, self._bad_steps = None, False, False, 0
        self._began = time.perf_counter() - state["time"]
        for name, old in differs.items():
            if name == "lr":
                self.rates.set(self.settings.lr, None, {})
            if name != "device":
                self.add(Changed, what=name, old=old, new=mine[name], by="settings")

# %% [markdown]
# ## Three ways to drive
#
# The toy of lesson 18: points, a small network with dropout, 44 examples.

# %%
def points(n: int, seed: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 8, generator=g)
    return [{"x": x, "labels": y} for x, y in zip(X, (X[:, 0] + X[:, 1] > 0).long(), strict=True)]

def stack(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([e[name] for e in examples]) for name in examples[0]}

def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    logits = model(batch["x"])
    return F.cross_entropy(logits, batch["labels"]), logits

# %%
def toy_learner(seed: int = 0, num_examples: int = 44) -> Learner:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
    accuracy = MetricCollection({"accuracy": MulticlassAccuracy(2, average="micro")})
    metrics = Metrics(accuracy, lambda logits, batch: (logits, batch["labels"]), main="accuracy")
    train = Batches(points(num_examples, 0), stack, 8, shuffle=True, seed=0)
    return Learner(model, train, Batches(points(200, 1), stack, 64), loss, metrics)

# %% [markdown]
# As a `for` loop over events:

# %%
training = Training(toy_learner(), lr=1e-2, num_epochs=2, device="cpu")
for event in training:
    if isinstance(event, Evaluated):
        print(f"epoch {event.epoch:.0f}: loss {event.loss:.3f}, accuracy {event.metrics['accuracy']:.2f}")

# %% [markdown]
# One step at a time, by hand, with a look at anything in between:

# %%
training = Training(toy_learner(), lr=1e-2, device="cpu")
training.step(), training.model[0].weight.norm().item()

# %%
training.step().step

# %% [markdown]
# ## Changing it while it runs
#
# A request may come from a button, a terminal or another thread. It takes effect between two pieces of work and comes back as a `changed` event.

# %%
training = Training(toy_learner(num_examples=400), lr=3e-3, num_epochs=8, device="cpu")
history = []
for event in training:
    history.append(event)
    if isinstance(event, Stepped) and event.step == 150:
        training.request(SetLr(lr=2e-2))
    if isinstance(event, Stepped) and event.step == 300:
        training.request(Stop())
[(e.step, e.what, e.new) for e in history if isinstance(e, Changed)], history[-1].reason

# %%
steps = [e for e in history if isinstance(e, Stepped)]
fig, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.8), dpi=80)
left.plot([e.step for e in steps], [e.lr for e in steps])
left.set(xlabel="step", ylabel="learning rate", title="a new peak, the shape goes on")
right.plot([e.step for e in steps], [e.loss for e in steps], alpha=0.4, label="train")
scores = [e for e in history if isinstance(e, Evaluated)]
right.plot([e.step for e in scores], [e.loss for e in scores], "o-", label="validation")
right.set(xlabel="step", ylabel="loss", title="stopped at step 300, judged there")
right.legend(frameon=False)
for ax in (left, right):
    ax.axvline(150, color="0.6", ls=":", lw=1)
fig.tight_layout()
plt.show()

# %%
assert steps[-1].step == 300 and scores[-1].step == 300
assert math.isclose(steps[150].lr / steps[149].lr, 2e-2 / 3e-3, rel_tol=0.01)

# %% [markdown]
# ## Numbers that are none
#
# One example is broken, as when a file was cut off: its pixels are NaN. The step that meets it is skipped on all sides (weights, moments, BatchNorm's statistics), and the warning says which example it was and where the numbers stopped being numbers. For that, the step's examples are looked at one by one, once, when it has happened.

# %%
broken = toy_learner()
broken.model.insert(1, nn.BatchNorm1d(32))
broken.train.examples[30]["x"][:] = math.nan
training = Training(broken, lr=1e-2, num_epochs=1, device="cpu")
[event.message for event in training if isinstance(event, Warned)]

# %%
assert ["row 30" in event.message for event in training.log if isinstance(event, Warned)] == [True]
moments = [value for state in training.optimizer.state.values() for value in state.values()]
assert all(torch.isfinite(tensor).all() for tensor in (*training.model.state_dict().values(), *moments))

# %% [markdown]
# ## Interrupting it
#
# The cell below presses ■ on itself in the middle of the third step. The step is completed first, then the interrupt is raised, and the same object goes on.

# %%
learner, calls = toy_learner(), []

def loss_that_is_interrupted(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    calls.append(1)
    if len(calls) == 3:
        signal.raise_signal(signal.SIGINT)
    return loss(model, batch)

learner.loss = loss_that_is_interrupted
training = Training(learner, lr=1e-2, device="cpu")
try:
    for event in training:
        pass
except KeyboardInterrupt:
    interrupted_at = training.position.step
interrupted_at, [event.kind for event in training][-1]

# %%
assert interrupted_at == 3 and training.finished

# %% [markdown]
# ## The experiment: the same training elsewhere
#
# **Claim.** `state_dict()` holds *everything*: a training that moves to a fresh object in the middle of an epoch ends with bitwise the weights of one that never moved. Model and optimizer alone, the usual two, do not suffice. We move at 15 different steps, with dropout and a shuffled order. One different bit in our column, or none in the other, would refute the claim.

# %%
def moved(at: int, everything: bool = True) -> Tensor:
    first, second = (Training(toy_learner(seed), lr=1e-2, num_epochs=3, device="cpu") for seed in (0, 7))
    for _ in range(at):
        first.step()
    state = first.state_dict()
    if not everything:  # the usual two: where the run is, is lost
        state["position"] = {**state["position"], "batch": 0}
    second.load_state_dict(state)
    for _ in second:
        pass
    return torch.cat([p.detach().flatten() for p in second.model.parameters()])

# %%
whole = moved(0)
ours = [(moved(at) - whole).abs().max().item() for at in range(1, 16)]
usual = [(moved(at, everything=False) - whole).abs().max().item() for at in range(1, 16)]
max(ours), [f"{x:.0e}" for x in usual]

# %%
assert max(ours) == 0.0 and max(usual) > 1e-3

# %% [markdown]
# Where the second list shows zeros, the move happened at the end of an epoch: there the usual two are enough.
#
# ## The story: the generator that died
#
# The obvious way to write a training that can be looped over is a generator function with `yield` in the loop. It is half as long, and it has a flaw that is felt only on the worst day: an exception, ■ included, *finishes* a generator. All local variables, step counter, data position, are gone, and the next `next` says the training is over.

# %%
def generator_training():
    for step in range(100):
        if step == 3:
            raise KeyboardInterrupt
        yield step

by_generator = generator_training()
try:
    for step in by_generator:
        pass
except KeyboardInterrupt:
    pass
list(by_generator)  # the remaining 96 steps

# %%
assert list(by_generator) == []

# %% [markdown]
# That is why a `Training` is an object with fields, and why `state_dict` was easy to write.
#
# ## Exercises
#
# **1 (easy).** Write `train_until`: run a training until its training loss, averaged over the last 10 steps, falls below a target, then ask it to stop; return the number of steps.

# %% tags=["exercise"]
def train_until(training: Training, target: float) -> int:
    ...  # your code here

# %% tags=["solution"]
def train_until(training: Training, target: float) -> int:
    recent = deque(maxlen=10)
    for event in training:
        if isinstance(event, Stepped):
            recent.append(event.loss)
            if len(recent) == 10 and sum(recent) / 10 < target:
                training.request(Stop())
    return training.position.step

# %%
assert train_until(Training(toy_learner(), lr=1e-2, num_epochs=100, device="cpu"), target=0.4) < 600

# %% [markdown]
# **2 (medium).** *Snapshot branching.* Write `branch`: from one training at its present step, make two that go on with different peak rates, and return both final validation losses.

# %% tags=["exercise"]
def branch(training: Training, rates: tuple[float, float]) -> list[float]:
    ...  # your code here

# %% tags=["solution"]
def branch(training: Training, rates: tuple[float, float]) -> list[float]:
    losses = []
    for lr in rates:
        other = Training(toy_learner(), settings=training.settings)
        other.load_state_dict(training.state_dict())
        other.request(SetLr(lr=lr))
        losses.append([e.loss for e in other if isinstance(e, Evaluated)][-1])
    return losses

# %%
trunk = Training(toy_learner(), lr=1e-2, device="cpu")
trunk.step()
assert len(set(branch(trunk, (1e-2, 1e-4)))) == 2

# %% [markdown]
# ## Summary
# - A training is an iterator: loop over it, step it, or advance it piece by piece.
# - Requests take effect between two pieces of work and come back as events.
# - ■ waits for the step boundary; afterwards the same object goes on.
# - `state_dict()` is everything: going on elsewhere is bitwise the same.
#
# **What next:** lessons 20 and 21 decide which layers train at which rate; lesson 52 puts a training into the background. **Sources:** PEP 255 (a generator that raised is finished); Lightning-AI/pytorch-lightning#20666.
