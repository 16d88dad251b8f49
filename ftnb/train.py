# Exported from nbs/19_train.py: edit the lesson, then run `make export`.
"""A training is an iterator of events that can be stepped, steered, stopped, interrupted, and go on."""

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

__all__ = [
    "Request",
    "Training",
]


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
