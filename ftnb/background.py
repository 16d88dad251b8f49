# Exported from nbs/52_background.py: edit the lesson, then run `make export`.
"""A training in a thread that can be paused, changed and stopped, and that loses neither its words nor its model."""

import contextlib
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftnb.adapters import merge, merged
from ftnb.charts import History
from ftnb.events import (
    Changed,
    Command,
    Evaluate,
    Evaluated,
    Event,
    Finished,
    Journal,
    Saved,
    SetLr,
    Stop,
    Warned,
    what_counts,
)
from ftnb.runfolder import JOURNAL, MODEL_FOLDERS, SNAPSHOTS, write_model
from ftnb.snapshots import Restored, Snapshots
from ftnb.train import Training

__all__ = [
    "RunError",
    "Record",
    "ENDED",
    "SnapshotTimer",
    "BackgroundTraining",
    "ADVICE",
    "train",
    "hold",
    "enter",
    "take",
    "save",
    "take_snapshot",
    "go_on",
    "end",
    "fail",
    "work",
]


class RunError(RuntimeError):
    """A run that cannot do what was asked of it now, or that failed."""


class Record:
    """What happened in a run: written to the journal, kept as a history for charts, told to whoever listens."""

    def __init__(self) -> None:
        self.history = History()
        self.step = 0
        self.journal: Journal | None = None
        self.lost = False  # whether the journal could not be written to its end
        self._listeners: list[Callable[[Event], object]] = []
        self.seconds: Callable[[], float] = lambda: 0.0  # time since the training began
        self._early: list[Event] = []  # said before there was a journal

    def open(self, path: Path, clock: Callable[[], float]) -> None:
        """Begin the journal; from here on every event is written before it is told.

        Args:
            path: the journal's file.
            clock: the training's own clock, so that its events and ours agree.
        """
        self.journal, self.seconds = Journal(path), clock
        for event in self._early:
            self.journal.append(event)

    def add(self, event: Event) -> None:
        """Write an event down, then tell it."""
        self.step = max(self.step, event.step)
        self._write(event)
        self.history.add(event)
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception as error:  # noqa: BLE001  # whatever a listener does wrong, the training goes on
                self._listeners.remove(listener)
                self.warn("listener_failed", f"a listener failed and is no longer told: {error!r}.")

    def _write(self, event: Event) -> None:
        if self.journal is None:
            self._early.append(event)
        elif not self.lost:
            try:
                self.journal.append(event)
            except OSError as error:  # a full disk: the training is worth more than its diary
                self.lost = True
                self.warn("journal_lost", f"the journal cannot be written any more: {error}.")

    def warn(self, code: str, message: str) -> None:
        """Note a warning."""
        self.add(Warned(step=self.step, time=self.seconds(), code=code, message=message))

    def subscribe(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Call `listener` with every event from now on, in the training's thread; returns what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def sync(self) -> None:
        """Put what was written so far safely on the disk."""
        if self.journal is not None and not self.lost:
            self.journal.sync()

    def close(self) -> None:
        """Put the journal safely on the disk."""
        if self.journal is not None:
            with contextlib.suppress(OSError):
                self.journal.close()


ENDED = ("done", "stopped", "failed")


class SnapshotTimer:
    """When the next snapshot is due: every so many steps, or by the clock.

    Args:
        every: steps between two snapshots; None goes by the clock.
        step: the step that the last one was taken at.
    """

    def __init__(self, every: int | None, step: int = 0) -> None:
        self.every, self.step, self.wait = every, step, 30.0
        self.began = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one should be taken after this step."""
        if step == self.step:
            return False
        return step % self.every == 0 if self.every else time.monotonic() - self.began >= self.wait

    def taken(self, step: int, seconds: float) -> None:
        """Note that one was taken, or tried, and how long it took."""
        self.step, self.wait, self.began = step, max(30.0, 50 * seconds), time.monotonic()


class BackgroundTraining:
    """A training in a thread, with its record and its models in a folder.

    Args:
        training: what to train; from here on, the thread alone may touch it and its model.
        folder: an existing folder for the journal and the models.
        write: writes the model, as it is now, into the folder it is given.
        record: takes down what happens; a new one if not given.
        snapshots: where to keep snapshots; without it there are none.
        snapshot_every: steps between them; None takes one by the clock, so that they cost little.

    Attributes:
        state: "idle", "running", "paused", "stopping", "done", "stopped" or "failed".
        error: what went wrong, in words; `traceback` says where.
        ended: set when the thread has done its last work.
    """

    def __init__(
        self,
        training: Training,
        folder: Path,
        write: Callable[[Path], object],
        record: Record | None = None,
        snapshots: Snapshots | None = None,
        snapshot_every: int | None = None,
    ) -> None:
        self.training: Training | None = training
        self.folder, self.write = folder, write
        self.snapshots, self.timer = snapshots, SnapshotTimer(snapshot_every, training.position.step)
        self.state, self.error, self.traceback = "idle", "", ""
        self.record, self.ended = record or Record(), threading.Event()
        self.unsaved = False  # whether the best model so far could not be written
        self.lock: Any = None  # of the folder, if somebody else might train there
        self._lock, self._go = threading.RLock(), threading.Event()
        self._go.set()
        self._by = {"pause": "user", "resume": "user"}  # who asked last

    def start(self) -> "BackgroundTraining":
        """Begin, in a thread of its own."""
        self._need("start", "idle")
        self.state = "running"
        threading.Thread(target=work, args=(self,), name=f"ftnb-{self.folder.name}", daemon=True).start()
        return self

    def pause(self, *, by: str = "user") -> None:
        """Hold after the micro-batch in hand, in the middle of an evaluation too."""
        with self._lock:
            self._need("pause", "running", "paused")
            if self._go.is_set():
                self._by["pause"] = by
                self._go.clear()

    def resume(self, *, by: str = "user") -> None:
        """Go on after a pause."""
        with self._lock:
            self._need("resume", "running", "paused")
            if not self._go.is_set():
                self._by["resume"] = by
                self._go.set()

    def stop(self, *, by: str = "user") -> None:
        """End after the step in hand and a last evaluation, and keep the model; asked twice, without the evaluation."""
        with self._lock:
            if self.state not in ENDED:
                self._ask(Stop(), "stop", by, "running", "paused", "stopping")
                self.state = "stopping"
                self._go.set()

    def set_lr(self, lr: float, group: str | None = None, *, by: str = "user") -> None:
        """Set the peak learning rate, of all layer groups or of one; the schedule's shape goes on."""
        self._ask(SetLr(lr, group), "set the learning rate", by, "running", "paused")

    def evaluate(self, *, by: str = "user") -> None:
        """Evaluate now, between two steps."""
        self._ask(Evaluate(), "evaluate", by, "running", "paused")

    def plan(self, commands: Iterable[tuple[int, Command]], *, by: str = "plan") -> None:
        """Give commands that each take effect once so many steps are completed, exactly there."""
        for at, command in commands:
            self._ask(command, "plan that", by, "running", "paused", at=at)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep a paused training paused: whoever lets it go on or stops it waits until the `with` block is left.

        Raises:
            RunError: if it is not paused.
        """
        with self._lock:  # the thread cannot leave its pause without it
            self._need("look at the model", "paused")
            yield

    def _ask(self, command: Command, what: str, by: str, *states: str, at: int | None = None) -> None:
        with self._lock:
            self._need(what, *states)
            if self.training is not None:
                self.training.request(command, at, by)

    def _need(self, what: str, *states: str) -> None:
        if self.state not in states:
            raise RunError(f"cannot {what}: the training is {self.state}.{ADVICE.get(self.state, '')}")


ADVICE = {"idle": " Start it first.", **dict.fromkeys(ENDED, " It runs once; make a new one.")}


def train(background: BackgroundTraining, training: Training) -> Finished:
    """Ask the training for its next piece of work until it is over, holding while the gate is closed."""
    while True:
        if not background._go.is_set():
            hold(background, training)
        for event in training.advance():
            if isinstance(event, Finished):
                return event
            take(background, event)
        if training.in_hand is None and training.evaluation is None and background.timer.due(training.position.step):
            take_snapshot(background, training)


def hold(background: BackgroundTraining, training: Training) -> None:
    """Wait at the gate, and say so."""
    training.flush()  # numbers still on a GPU: a person who pauses wants to see all of them
    for event in training.advance() if training.outbox else []:
        take(background, event)
    record = background.record
    take_snapshot(background, training)
    take(background, Changed(step=record.step, time=record.seconds(), what="pause", by=background._by["pause"]))
    enter(background, "paused", since="running")
    background._go.wait()
    take(background, Changed(step=record.step, time=record.seconds(), what="resume", by=background._by["resume"]))
    enter(background, "running", since="paused")


def enter(background: BackgroundTraining, state: str, *, since: str) -> None:
    """Go from one state to the next, unless somebody has asked to stop meanwhile."""
    with background._lock:
        background.state = state if background.state == since else background.state


def take(background: BackgroundTraining, event: Event) -> None:
    """Record an event; save the model if it is the best so far."""
    background.record.add(event)
    if isinstance(event, Evaluated) and event.best:
        background.unsaved = not save(background, "best")


def save(background: BackgroundTraining, what: str) -> bool:
    """Write the model as it is now, "best" or "last"; returns whether it is on the disk."""
    record, target = background.record, background.folder / MODEL_FOLDERS[what]
    assert background.training is not None
    try:
        with merged(background.training.model):  # adapters are folded in while it is written
            write_model(background.write, target)
    except Exception as error:  # noqa: BLE001  # a full disk speaks with many voices; the training is worth more
        record.warn("not_saved", f"the {what} model could not be written to {target}: {error}.")
        return False
    record.add(Saved(step=record.step, time=record.seconds(), what=what, path=target.name))
    return True


def take_snapshot(background: BackgroundTraining, training: Training) -> None:
    """Write the training down as it is, and say so; the journal is put on the disk with it."""
    record, snapshots, begin = background.record, background.snapshots, time.monotonic()
    step = training.position.step
    if snapshots is None or background.timer.step == step:
        return
    try:
        training.flush()
        for event in training.advance() if training.outbox else []:
            take(background, event)
        path = snapshots.save(training)
        place = f"{snapshots.folder.name}/{path.name}"
        record.add(Saved(step=step, time=record.seconds(), what="snapshot", path=place))
        record.sync()
    except Exception as error:  # noqa: BLE001  # as with a model: the training is worth more
        record.warn("not_saved", f"no snapshot could be written at step {step}: {error}")
    background.timer.taken(step, time.monotonic() - begin)


def go_on(background: BackgroundTraining, training: Training, events: list[Event], by: str = "user") -> Restored:
    """Bring a new training to the newest snapshot of a broken-off one and say so in its journal.

    Args:
        background: made for the training, with the folder of the old one; not started yet.
        training: the same recipe's training, as new.
        events: what the journal holds.
        by: who asked.

    Raises:
        SnapshotError: if there is none that is whole, or data or frozen weights are others now.
    """
    record = background.record
    snapshots = background.snapshots or Snapshots(background.folder / SNAPSHOTS)  # also of one that takes none
    restored = snapshots.load(training)
    last = max((event.step for event in events), default=0)
    background.timer.step = record.step = restored.step
    record.open(background.folder / JOURNAL, training.clock)
    for path in restored.skipped:
        record.warn("snapshot_damaged", f"went back to an older snapshot: {path}")
    for note in restored.notes:
        record.warn("not_the_same", f"the result may differ in its last bits from one without the break. {note}.")
    back = Changed(step=restored.step, time=record.seconds(), what="restored", old=last, new=restored.step, by=by)
    record.add(back)
    kept = what_counts([*events, back])
    record.history.restart(kept)
    undone = [event for event in events if id(event) not in {id(e) for e in kept}]
    background.unsaved = any(isinstance(event, Saved) and event.what == "best" for event in undone)
    return restored


def end(background: BackgroundTraining, training: Training, last: Finished) -> None:
    """Save the last model and a snapshot, bring the best model back into memory, and close the journal."""
    saved = save(background, "last")
    take_snapshot(background, training)
    background.snapshots = None  # from here on the model is not what the optimizer belongs to
    if training.best.value is not None:
        training.load_best()
        if background.unsaved:
            saved = save(background, "best") and saved
    if not saved:
        raise RunError(f"a model could not be saved in {background.folder}. It is in memory: make room and save it.")
    merge(training.model)
    background.record.add(replace(last, time=background.record.seconds()))
    background.record.close()
    background.state = "stopped" if last.reason == "stopped" else "done"


def fail(background: BackgroundTraining, error: BaseException) -> None:
    """Keep the words of an error, and whatever model there is."""
    background.error = f"{type(error).__name__}: {error}"
    background.traceback = "".join(traceback.format_exception(error))
    training, record = background.training, background.record
    if training is not None and record.journal is not None:
        save(background, "last")
        with contextlib.suppress(Exception):
            take_snapshot(background, training)
        best = training.best
        if best.value is not None:
            with contextlib.suppress(Exception):  # no memory left, say; the best model is on the disk
                training.load_best()
        with contextlib.suppress(Exception):
            merge(training.model)
        message = background.error
        record.add(
            Finished(
                step=record.step, time=record.seconds(), reason="failed",
                best_step=best.step, best_value=best.value, message=message,
            )
        )  # fmt: skip
        record.close()


def work(background: BackgroundTraining) -> None:
    """The thread's whole life; whatever happens, it ends in one of the three last states."""
    assert background.training is not None
    try:
        if background.record.journal is None:
            background.record.open(background.folder / JOURNAL, background.training.clock)
        end(background, background.training, train(background, background.training))
    except BaseException as error:  # noqa: BLE001  # a thread has nobody to raise to; whoever waits is told
        fail(background, error)
    finally:
        background.state = background.state if background.state in ENDED else "failed"
        background.training = None  # frees the optimizer's memory
        background.ended.set()
