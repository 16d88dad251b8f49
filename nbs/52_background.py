# %% [markdown]
# # Training in the background
#
# > A training in a thread that can be paused, changed and stopped, and that loses neither its words nor its model.
#
# At the end you can steer a training while the notebook stays free, prove that a pause changes nothing, and say what is on the disk after a stop, an error or a power cut. Runs in about 20 s on a CPU.

# %%
#| default_exp background

# %%
#| export
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

# %%
import gc
import random
import tempfile
import weakref

import matplotlib.pyplot as plt
import torch

from ftnb.events import Stepped, read_journal
from ftnb.runfolder import model_folder
from ftnb.tasks.text_classification import TextClassification

# %% [markdown]
# ## Why a thread
#
# While a cell trains, the notebook is deaf: a click on a button waits until the cell is over. So we train in a thread of its own, and the cell that started it returns at once. The rule that keeps this safe is short: **the thread alone touches model and optimizer; everybody else asks.** A request is a small object in a queue, and the thread looks into the queue between two micro-batches.
#
# Three things are needed: a gate that holds the thread during a pause, a record of what happened, and a short list of states. Python's `threading.Event` is the gate: `wait()` returns while it is set, and blocks while it is not.

# %%
gate, laps = threading.Event(), []
walker = threading.Thread(target=lambda: [gate.wait() and laps.append(lap) for lap in range(3)], daemon=True)
walker.start()
before = list(laps)
gate.set()
walker.join()
before, laps

# %%
assert before == [] and laps == [0, 1, 2]

# %% [markdown]
# ## The record
#
# Whatever happens is written down before anybody is told: one line of JSON, handed to the system at once, so that a crash loses nothing that was said. A listener that fails is dropped with a warning; a broken chart must not cost a night of training.

# %%
#| export
class RunError(RuntimeError):
    """A run that cannot do what was asked of it now, or that failed."""

# %%
#| export
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

# %% [markdown]
# Two listeners, one of them broken. The second one still hears everything, and the warning, too:

# %%
record, heard = Record(), []
record.subscribe(lambda event: 1 / 0)
record.subscribe(lambda event: heard.append(event.kind))
record.warn("example", "the first event")
record.warn("example", "the second event")
heard

# %%
assert heard == ["warned", "warned", "warned"]


# %% [markdown]
# ## The training and its thread
#
# Asking is always quick: a method puts the request into a queue and returns. What it did, and at which step, stands in the record as a `changed` event, with a note who asked. From outside, a background training is in one of these states, and it always ends in one of the last three:
#
# `idle → running ⇄ paused → stopping → done | stopped | failed`

#
# Beside the models, the thread keeps snapshots ([lesson 51](51_snapshots.ipynb)) to go on from. How often? Every so many steps if somebody says so. Otherwise by the clock: at most every half minute, and rarely enough that writing them takes no more than a fiftieth of the time.

# %%
#| export
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

# %% [markdown]
# The thread does one piece of work at a time and looks at the gate in between. That is all there is to a pause. The loop of the lessons before keeps its state in fields, so not asking for the next piece *is* the pause, in the middle of an evaluation as well as between two micro-batches.

# %%
#| export
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

# %% [markdown]
# What the training says goes into the record. A new best model is saved at once, before the weights move on. Saving is where most "it was there and then it was gone" stories begin. So the folder is written beside the old one, put on the disk, and swapped in as a whole (`ftnb/runfolder.py`). If the disk is full, that is a warning now, one more attempt at the end, and an error only if that fails as well.

# %%
#| export
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

# %% [markdown]
# A snapshot is taken between two pieces of work, whenever one is due, and also in a pause and at the end: a person who pauses may close the computer. One that cannot be written is a warning; the older ones are still there.

# %%
#| export
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

# %% [markdown]
# At the end both models are on the disk, and the one in memory is the best. Adapters ([lesson 22](22_adapters.ipynb)) are folded into the weights then, and for the moment of each saving before: whoever gets the model need not know of them. An error in the thread must not vanish, and it must not cost the model either. The *words* of the error are kept, not the exception itself; the story below shows why.

# %%
#| export
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

# %% [markdown]
# ## A minute at the controls
#
# Here is a real one: the built-in BERT on the built-in reviews. The cell that starts it is over at once. A listener, which runs in the training's own thread, asks for a pause after the third step, so that what follows does not depend on how fast your machine is.

# %%
torch.set_num_threads(1)
place = Path(tempfile.mkdtemp())

def background_training(name: str, **changes: object) -> BackgroundTraining:
    task = TextClassification.prepare("builtin:reviews", "builtin:bert-reviews")
    settings = {"lr": 5e-4, "num_epochs": 2, "device": "cpu"} | changes
    (place / name).mkdir()
    return BackgroundTraining(Training(task.learner(batch_size=16), **settings), place / name, task.save)

def until(background: BackgroundTraining, *states: str) -> str:
    while background.state not in states:
        time.sleep(0.01)
    return background.state

# %%
background = background_training("first")
background.record.subscribe(lambda e: background.pause(by="step 3") if isinstance(e, Stepped) and e.step == 3 else None)
background.start()
background.state

# %% [markdown]
# While it is paused, the learning rate is lowered, and an evaluation is asked for. Both wait in the queue. Then it goes on, and is stopped two steps later.

# %%
until(background, "paused")
background.set_lr(1e-4)
background.evaluate()
background.record.subscribe(lambda e: background.stop(by="step 5") if isinstance(e, Stepped) and e.step == 5 else None)
background.resume()
background.ended.wait()
[(e.what, e.step, e.by) for e in read_journal(place / "first" / JOURNAL) if isinstance(e, Changed)]

# %%
assert background.state == "stopped"
assert sorted(path.name for path in (place / "first").iterdir()) == ["events.jsonl", "model", "model-last"]

# %% [markdown]
# Two models are there, the best and the last. Neither can ever be half there. A write that breaks off in the middle, as in a power cut, leaves what was there before:

# %%
def breaks_off(folder: Path) -> None:
    (folder / "config.json").write_text('{"half": ')
    raise OSError("the power is gone")

model = place / "first" / "model"
before = (model / "config.json").read_bytes()
with contextlib.suppress(OSError):
    write_model(breaks_off, model)
model_folder(model) == model, (model / "config.json").read_bytes() == before

# %%
assert (model / "config.json").read_bytes() == before

# %% [markdown]
# ## The experiment: a pause changes nothing
#
# **Claim.** A training that is paused again and again, at moments nobody chose, in the middle of steps and of evaluations, while other cells draw random numbers, ends with the weights of one that was left alone, bit for bit. The claim would be refuted by one differing bit.
#
# It is not obvious: a pause that let the trainer finish its epoch would pass this test and be useless, and one that dropped the micro-batches of a half-done step would move the weights. So the steps use two micro-batches each, and there are four evaluations to be caught in.

# %%
def disturb(background: BackgroundTraining, seed: int) -> int:
    moments, pauses = random.Random(seed), 0
    while background.state not in ENDED:
        time.sleep(moments.uniform(0.02, 0.3))
        try:
            background.pause()
        except RunError:  # it has ended meanwhile
            break
        pauses += until(background, "paused", *ENDED) == "paused"
        torch.randn(1000)  # another cell is used in the meantime
        time.sleep(0.15)
        if background.state == "paused":
            background.resume()
    background.ended.wait()
    return pauses

def weights(background: BackgroundTraining) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in final[background].values()])

# %%
final = {}

def run_to_the_end(name: str, seed: int | None) -> tuple[BackgroundTraining, int]:
    background = background_training(name, num_epochs=2, accumulation=2, eval_every=2)
    model = background.training.learner.model
    background.start()
    pauses = disturb(background, seed) if seed is not None else 0
    background.ended.wait()
    final[background] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return background, pauses

alone, _ = run_to_the_end("alone", seed=None)
disturbed = [run_to_the_end(f"disturbed {seed}", seed) for seed in range(3)]
[(pauses, torch.equal(weights(alone), weights(background))) for background, pauses in disturbed]

# %%
assert all(pauses > 0 and torch.equal(weights(alone), weights(background)) for background, pauses in disturbed)

# %%
def steps_over_time(background: BackgroundTraining) -> tuple[list[float], list[float]]:
    events = read_journal(background.folder / JOURNAL)
    points = [(e.time, e.step) for e in events if isinstance(e, Stepped | Changed)]
    return [time for time, _ in points], [step for _, step in points]

fig, ax = plt.subplots(figsize=(6.5, 3), dpi=80)
for (background, pauses), color in zip([*disturbed, (alone, 0)], ("C1", "C2", "C4", "C0"), strict=True):
    times, steps = steps_over_time(background)
    ax.plot(times, steps, color=color, linewidth=1.5, label=f"{pauses} pauses" if pauses else "left alone")
    ax.plot(times[-1], steps[-1], "o", color=color)
ax.set(xlabel="seconds", ylabel="step", title="Other times, the same weights")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
fig.subplots_adjust(bottom=0.17)
plt.show()

# %% [markdown]
# Each flat stretch is a pause or an evaluation. Why it holds: the order of the examples follows from seed and epoch, the random numbers of a micro-batch from seed, step and micro-batch (lesson 16), and a half-done step waits in a field (lesson 18). Nothing depends on *when*.

# %% [markdown]
# ## The story: the error that kept the memory
#
# You interrupt a training in a notebook, or it runs out of GPU memory, and the next attempt fails at once: the memory is still taken. People delete the model, collect garbage, empty the cache, and restart the kernel in the end (pytorch/pytorch#27600, and #36874 for interactive consoles). What holds the memory is the *exception*: it keeps its traceback, the traceback keeps every function's frame, and a frame keeps its local variables, the failed batch's activations among them. A notebook remembers the last exception for you.

# %%
alive = []

def failing_step() -> None:
    activations = torch.zeros(1000, 1000)
    alive.append(weakref.ref(activations))
    raise RuntimeError("out of memory")

def remember(keep: str) -> object:
    try:
        failing_step()
    except RuntimeError as error:
        return error if keep == "the exception" else f"{type(error).__name__}: {error}"

kept = {keep: remember(keep) for keep in ("the exception", "its words")}
gc.collect()
{keep: reference() is not None for keep, reference in zip(kept, alive, strict=True)}

# %%
assert alive[0]() is not None and alive[1]() is None

# %% [markdown]
# So the thread keeps the words and the traceback *as text*. Here is a training whose loss breaks in its fifth call. The weights of its fourth step are on the disk, and the batch is gone from memory:

# %%
broken, calls = background_training("broken"), []
learner = broken.training.learner
healthy_loss = learner.loss

def breaks_at_the_fifth(model: torch.nn.Module, batch: dict) -> tuple:
    calls.append(weakref.ref(batch["input_ids"]))
    if len(calls) == 5:
        raise RuntimeError("out of memory")
    return healthy_loss(model, batch)

learner.loss = breaks_at_the_fifth
broken.start().ended.wait()
gc.collect()
broken.state, broken.error, broken.record.step, sorted(path.name for path in broken.folder.iterdir()), calls[-1]() is None

# %%
assert broken.state == "failed" and "breaks_at_the_fifth" in broken.traceback
assert (broken.folder / "model-last").exists() and broken.record.step == 4 and calls[-1]() is None

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `seconds_paused`: how long a training was paused in all, from its events.

# %% tags=["exercise"]
def seconds_paused(events: list[Event]) -> float:
    ...  # your code here

# %% tags=["solution"]
def seconds_paused(events: list[Event]) -> float:
    total = 0.0
    for event in events:
        if isinstance(event, Changed) and event.what in ("pause", "resume"):
            total += event.time if event.what == "resume" else -event.time
    return total

# %%
pause = [Changed(step=3, time=2.0, what="pause"), Changed(step=3, time=5.5, what="resume")]
assert seconds_paused(pause) == 3.5 and seconds_paused([]) == 0.0

# %% [markdown]
# **2 (medium).** Write `stop_when_good`: a listener that stops a training as soon as its accuracy reaches a target. A listener runs in the training's thread and may ask for anything.

# %% tags=["exercise"]
def stop_when_good(background: BackgroundTraining, target: float) -> None:
    ...  # your code here

# %% tags=["solution"]
def stop_when_good(background: BackgroundTraining, target: float) -> None:
    def listen(event: Event) -> None:
        if isinstance(event, Evaluated) and event.metrics["accuracy"] >= target:
            background.stop(by=f"accuracy {target}")

    background.record.subscribe(listen)

# %%
good_enough = background_training("good enough", num_epochs=20, eval_every=2)
stop_when_good(good_enough, target=0.6)
good_enough.start().ended.wait()
best = good_enough.record.history.best
assert good_enough.state == "stopped" and best[1] >= 0.6 and good_enough.record.step < 160

# %% [markdown]
# ## Summary
# - A thread trains, everybody else asks; requests take effect between two pieces of work and are written down with step and name.
# - A pause is not asking for the next piece of work. It changes no bit of the result.
# - What was said is on the disk before it is shown; a model folder is the old one or the new one, never half of one.
# - Of an error, keep the words. The exception itself holds the memory of everything it passed through.
#
# **What next:** lesson 53 joins this with a recipe: one line starts a run, a folder keeps it. **Sources:** Python's `threading` and `traceback`; pytorch/pytorch#27600 and #36874; `os.replace` and `fsync` in the Python documentation.
