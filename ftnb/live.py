"""What a loop needs to live in a notebook: words without waiting, held interrupts, an eye on shared dice."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ftnb.events import Event, Stepped


@contextlib.contextmanager
def held_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C (or ■) back; yields a function that says whether it was pressed. The second one raises.

    Off the main thread, or where the handler is not Python's to replace, nothing is held.
    """
    presses = 0

    def note(_signum: int, _frame: Any) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt

    old = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if old is None:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: presses > 0
    finally:
        signal.signal(signal.SIGINT, old)


@dataclass
class EventBuffer:
    """Events in order; steps whose numbers are still on the device hold back what came after them.

    Attributes:
        eager: fetch at once (a CPU); otherwise at most every `interval` seconds or `max_steps` steps.
    """

    eager: bool
    interval: float = 0.25
    max_steps: int = 50
    waiting: list[Event | tuple[dict[str, Any], Tensor]] = field(default_factory=list)
    since: float = field(default_factory=time.perf_counter)
    examples: int = 0
    seconds: float = 0.0

    def add_step(self, fields: dict[str, Any], loss: Tensor, norm: Tensor, examples: int, seconds: float) -> None:
        """Note a step; `loss` and `norm` are scalars on the device."""
        self.waiting.append((fields, torch.stack([loss.float(), norm.float()])))
        self.examples += examples
        self.seconds += seconds

    def ready(self, force: bool = False) -> list[Event]:
        """The events that can be told now, fetched from the device in one go."""
        if not self.waiting:
            return []
        due = time.perf_counter() - self.since >= self.interval or len(self.waiting) >= self.max_steps
        if not (force or self.eager or due):
            return []
        scalars = [item[1] for item in self.waiting if isinstance(item, tuple)]
        numbers = iter(torch.stack(scalars).tolist() if scalars else [])
        rate = self.examples / self.seconds if self.seconds > 0 else math.nan
        events = [self._told(item, numbers, rate) for item in self.waiting]
        self.waiting, self.since, self.examples, self.seconds = [], time.perf_counter(), 0, 0.0
        return events

    @staticmethod
    def _told(item: Event | tuple[dict[str, Any], Tensor], numbers: Iterator[list[float]], rate: float) -> Event:
        if isinstance(item, Event):
            return item
        loss, norm = next(numbers)
        return Stepped(**item[0], loss=loss, grad_norm=norm, examples_per_second=rate)


@dataclass
class GeneratorWatch:
    """Notices that another thread drew from the global generator while this one was training."""

    state: Tensor | None = None
    at: float = 0.0

    def disturbed(self) -> bool:
        """Whether the state moved since `mark`. A gap of over 0.5 s is a pause, in which others may draw."""
        if self.state is None or time.monotonic() - self.at > 0.5:
            return False
        return not torch.equal(self.state, torch.default_generator.get_state())

    def mark(self) -> None:
        """Remember the state; only needed in a background thread."""
        if threading.current_thread() is not threading.main_thread():
            self.state, self.at = torch.default_generator.get_state(), time.monotonic()
