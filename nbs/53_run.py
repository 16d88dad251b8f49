# %% [markdown]
# # Runs
#
# > One run of a recipe, seen and steered while the notebook stays free, and kept in a folder.
#
# At the end you can start a fine-tuning with one line, change it while it runs, stop it and keep the model, and find everything again next week. Runs in about 30 s on a CPU.

# %%
#| default_exp run

# %%
#| export
import contextlib
import os
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ftnb.background import ENDED, BackgroundTraining, Record, RunError, go_on, work
from ftnb.charts import History, history_text, plot_history
from ftnb.events import Command, Event, Finished, read_journal, what_counts
from ftnb.recipe import Recipe, make_learner, prepare_task, training_settings, without_memory
from ftnb.registry import RUNS
from ftnb.runfolder import (
    JOURNAL,
    MODEL_FOLDERS,
    RECIPE,
    SNAPSHOTS,
    branched_at,
    claim,
    find_run,
    hold_folder,
    is_held,
    model_folder,
    new_id,
    refuse_taken,
    runs_root,
)
from ftnb.saved import load_task
from ftnb.snapshots import Snapshots
from ftnb.strategies import strategy_from
from ftnb.train import Training
from ftnb.waiting import Bar, quiet_bars, wait_for
from ftnb.widgets.figure import Picture

# %%
import _thread
import tempfile
import time

import matplotlib.pyplot as plt
import torch
from safetensors.torch import save_model
from transformers import pipeline

from ftnb.events import Changed, Evaluated, Stepped
from ftnb.pretrained import quiet_transformers
from ftnb.schedule import lr_factor

# %% [markdown]
# ## From a recipe to a running training
#
# Lesson 50 made a recipe of numbers and names, lesson 52 put a training into a thread. A *run* joins them. First it fetches and checks everything that the recipe names, in the cell that calls `start()`, so that a wrong column is an error there and then. Only when all is well does a folder appear; a run that could not begin leaves nothing behind.

# %%
#| export
def build(
    recipe: Recipe, folder: Path, record: Record, *, again: bool = False, by: str = "user"
) -> tuple[Any, BackgroundTraining]:
    """Load and check what a recipe names, and make its training and its folder.

    Args:
        recipe: what to run.
        folder: where to keep it.
        record: takes down what happens.
        again: go on in a folder that holds a broken-off run of this recipe, from its newest snapshot.
        by: who asked to go on.

    Returns:
        The task object, and the training, ready to start; it holds the lock of the folder.

    Raises:
        ValueError: if data, model, strategy or device cannot be used, or there is no snapshot that fits them.
        FileExistsError: if the folder holds a run already, or another process trains in it.
    """
    refuse_taken(folder) if not again else None
    task = prepare_task(recipe)
    learner = make_learner(task, recipe)
    training = Training(learner, strategy_from(recipe.strategy), **training_settings(recipe))
    named = without_memory(recipe)
    claim(folder, named.to_toml()) if not again else None
    snapshots = snapshots_of(recipe, folder)
    background = BackgroundTraining(training, folder, task.save, record, snapshots, recipe.snapshot_every)
    background.lock = hold_folder(folder)
    try:
        if again:
            go_on(background, training, read_journal(folder / JOURNAL, damaged=(damaged := list[str]())), by)
            for line in damaged:
                record.warn("journal_damaged", line)
    except BaseException:
        background.lock.release()
        raise
    for warning in task.warnings if not again else []:
        record.warn("data", warning)
    if named is not recipe and not again:
        record.warn("data_in_memory", "the data was in memory: the folder alone cannot repeat this run.")
    return task, background


def snapshots_of(recipe: Recipe, folder: Path) -> Snapshots | None:
    """Where and how a run keeps its snapshots; None if its recipe wants none."""
    room = int(recipe.snapshot_gb * 1e9) if recipe.snapshot_gb is not None else None
    first = branched_at(folder)
    always = frozenset() if first is None else frozenset({first})
    return Snapshots(folder / SNAPSHOTS, recipe.keep_snapshots, room, always) if recipe.keep_snapshots else None

# %% [markdown]
# ## The run
#
# Before the training there are two more states: `idle → preparing → running ⇄ paused → stopping → done | stopped | failed`. The commands are those of the background training; asked for too early, while the model is still being loaded, they wait.

# %%
#| export
class Run:
    """One training of a recipe, in a thread of its own, with a folder that keeps what it was and what came out.

    Args:
        recipe: what to run; it is not changed.
        folder: where to keep it; by default a new folder in `runs/`, or in the folder that `FTNB_RUNS` names.
        key: a name under which `current_run(key)` finds it again, for a cell that is run twice.

    Attributes:
        id: a name that sorts by time.
        task: the task object (data, model, predictions), once prepared.
        record: journal, history and listeners.
        ended: set when the thread has done its last work.
    """

    def __init__(self, recipe: Recipe, folder: str | os.PathLike[str] | None = None, *, key: str | None = None) -> None:
        self.recipe, self.key, self.id = recipe, key, new_id()
        self.folder = Path(folder).expanduser().absolute() if folder is not None else runs_root() / self.id
        self.task: Any = None
        self.record, self.ended = Record(), threading.Event()
        self._state, self._error, self._traceback = "idle", "", ""  # as long as there is no background training
        self._background: BackgroundTraining | None = None
        self._early: list[Callable[[BackgroundTraining], None]] = []  # commands given while preparing
        self._lock = threading.RLock()

    @property
    def state(self) -> str:
        """One of idle, preparing, running, paused, stopping, done, stopped, failed."""
        return self._background.state if self._background is not None else self._state

    @property
    def error(self) -> str:
        """What went wrong, in words; empty if nothing did."""
        return self._background.error if self._background is not None else self._error

    @property
    def traceback(self) -> str:
        """Where it went wrong, as text."""
        return self._background.traceback if self._background is not None else self._traceback

    def start(self, *, prepare_in_thread: bool = False) -> "Run":
        """Load data and model, then train in a thread; returns as soon as the thread runs.

        Args:
            prepare_in_thread: load in the thread, too; an error then ends in the state "failed".

        Raises:
            RunError: if the run was started before.
            ValueError: if the recipe's data, model, strategy or device cannot be used.
            FileExistsError: if the folder holds another run.
        """
        with self._lock:
            if self.state != "idle":
                raise RunError(f"run {self.id} was started before; it is {self.state}. A new one: Run(run.recipe).")
            self._state = "preparing"
        begin(self, prepare_in_thread=prepare_in_thread)
        return self

    def pause(self, *, by: str = "user") -> None:
        """Hold after the micro-batch in hand, in the middle of an evaluation too."""
        self._command("pause", by=by)

    def resume(self, *, by: str = "user", prepare_in_thread: bool = False) -> None:
        """Go on: after a pause, or after a stop, an error or the end of the process from the newest snapshot.

        Raises:
            RunError: if it is done, or has no snapshot.
            ValueError: if data or model are no longer what they were.
            FileExistsError: if another process trains in the folder.
        """
        with self._lock:
            if self.state not in ("stopped", "failed"):
                self._command("resume", by=by)
                return
            if not self.can_go_on:
                raise RunError(f"run {self.id} has no snapshot to go on from in {self.folder / SNAPSHOTS}.")
            before = (self.state, self.error, self.traceback)
            self._state, self._background, self._error = "preparing", None, ""
            self.task = None  # its memory is needed for the new one
            self.ended.clear()
        begin(self, prepare_in_thread=prepare_in_thread, before=before, by=by)

    def replay(self, folder: str | os.PathLike[str] | None = None) -> Any:
        """Do the run again from its journal, hand-made changes included (lesson 54); returns what came out.

        Raises:
            RunError: if it has not ended.
        """
        return import_module("ftnb.replay").replay(self, folder)

    def branch(
        self,
        step: int | None = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        by: str = "user",
        **changes: Any,
    ) -> "Run":
        """Start another run from one of the snapshots, with other numbers from there on (lesson 54).

        Args:
            step: the snapshot's step; the newest one by default.
            folder: where to keep the branch; by default a new folder.
            by: who asked.
            **changes: `lr`, `num_epochs`, `schedule`, `warmup`, `weight_decay`, `max_grad_norm`, `eval_every` …

        Raises:
            RunError: if there is no such snapshot.
            RecipeError: if a change cannot be made in the middle of a run.
        """
        branched: Run = import_module("ftnb.replay").branch(self, step, folder=folder, by=by, **changes)
        return branched

    @property
    def last_snapshot(self) -> int | None:
        """The step of the newest snapshot; None if there is none."""
        return next(reversed(Snapshots(self.folder / SNAPSHOTS).steps()), None)

    @property
    def can_go_on(self) -> bool:
        """Whether it was stopped or broken off, and has a snapshot to go on from."""
        return self.state in ("stopped", "failed") and self.last_snapshot is not None

    def stop(self, *, by: str = "user") -> None:
        """End after the step in hand and a last evaluation, and keep the model; asked twice, without the evaluation."""
        self._command("stop", by=by)

    def set_lr(self, lr: float, group: str | None = None, *, by: str = "user") -> None:
        """Set the peak learning rate, of all layer groups or of one; the schedule's shape goes on.

        Raises:
            ValueError: if the rate is impossible or no such group trains.
        """
        self._command("set_lr", lr, group, by=by)

    def evaluate(self, *, by: str = "user") -> None:
        """Evaluate now, between two steps."""
        self._command("evaluate", by=by)

    def plan(self, commands: Iterable[tuple[int, Command]], *, by: str = "plan") -> None:
        """Give commands, also before the start, that each take effect once so many steps are completed."""
        self._command("plan", tuple(commands), by=by)

    def wait(self, timeout: float | None = None) -> str:
        """Wait for the end and return the state; after `timeout` seconds, return it anyway.

        An interrupt (■, Ctrl-C) asks the run to stop and keep the model; a second one leaves it and is raised.

        Raises:
            RunError: if the run failed, or was never started.
        """
        return verdict(self, wait_for(self, timeout))

    @property
    def history(self) -> History:
        """What a chart needs, growing while the run trains."""
        return self.record.history

    @property
    def events(self) -> list[Event]:
        """Everything that happened so far, from the journal."""
        path = self.folder / JOURNAL
        return read_journal(path, damaged=[]) if path.exists() else []

    @property
    def model(self) -> Any:
        """The model: while it trains, as it is; afterwards with the best weights. None before it is loaded."""
        return task_of(self).model if self.task is not None or self.state in ENDED else None

    def predict(self, inputs: Any) -> Any:
        """The task's predictions for some inputs: after the end by the best model, in a pause by the model as it is.

        Raises:
            RunError: while it trains; the training alone may touch the model then.
        """
        with self.at_rest() as task:
            return task.predict(inputs)

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[Any]:
        """The task, with a model that stays as it is inside the `with` block: after the end, or in a pause.

        In a pause the training goes on afterwards as if nobody had looked; asking it to go on waits until then.

        Raises:
            RunError: while it trains.
        """
        if self.state in ENDED:
            yield task_of(self)
        elif self.state == "paused" and self._background is not None:
            with self._background.held():
                yield self.task
        else:
            raise RunError(f"run {self.id} is {self.state}; ask the model in a pause or at the end: pause() or wait().")

    def report(self) -> Picture:
        """The chart as a static picture, with one line that says how it went."""
        return plot_history(self.history, state=self.state)

    def subscribe(self, listener: Callable[[Event], object]) -> Callable[[], None]:
        """Call `listener` with every event, in the training's thread; returns what ends the subscription."""
        return self.record.subscribe(listener)

    @staticmethod
    def open(folder: str | os.PathLike[str] = "") -> "Run":
        """Read a run back from its folder: recipe, events, history, and the model for predictions.

        Args:
            folder: its path, or its name below `runs/`; without it the newest run there is.

        Raises:
            RunError: if there is no such run.
        """
        place = find_run(folder)
        if place is None and not os.fspath(folder):
            raise RunError(f"there are no runs in {runs_root()}.")
        return open_run(place or Path(folder).expanduser().absolute())

    def __repr__(self) -> str:
        return f"Run {self.id}, {history_text(self.history, state=self.state)}, in {self.folder}"

    def _command(self, name: str, *arguments: Any, by: str) -> None:
        """Hand a command on, or keep it until there is a training; `stop` after the end is no mistake."""
        with self._lock:
            if self._background is not None:
                getattr(self._background, name)(*arguments, by=by)
            elif self._state == "preparing" or (self._state == "idle" and name == "plan"):
                self._early.append(lambda background: getattr(background, name)(*arguments, by=by))
            elif not (name == "stop" and self._state in ENDED):
                raise RunError(f"cannot {name.replace('_', ' ')}: run {self.id} is {self._state}.")

# %% [markdown]
# Its thread prepares, if that was left to it, and then works as lesson 52 has shown.

# %%
#| export
def begin(
    run: Run, *, prepare_in_thread: bool, before: tuple[str, str, str] = ("idle", "", ""), by: str = "user"
) -> None:
    """Prepare a run and start its thread; where that cannot be, the run is as it was `before` (state, error, where)."""
    again = before[0] != "idle"
    try:
        if not prepare_in_thread:
            prepare(run, again, by)
    except BaseException:
        run._state, run._error, run._traceback = before
        run.ended.set() if again else None
        raise
    RUNS.begin(run)
    threading.Thread(target=work_on, args=(run, again, by), name=f"ftnb-{run.id}", daemon=True).start()


def prepare(run: Run, again: bool = False, by: str = "user") -> None:
    """Build a run's training, and pass on the commands that came meanwhile."""
    run.record.journal, run.record.lost = None, False
    task, background = build(run.recipe, run.folder, run.record, again=again, by=by)
    with run._lock:
        background.state = "running"
        for command in run._early:
            try:
                command(background)
            except (ValueError, RunError) as error:  # a wrong command must not cost the run
                run.record.warn("refused", str(error))
        run._early.clear()
        run.task, run._background = task, background


def work_on(run: Run, again: bool = False, by: str = "user") -> None:
    """The body of a run's thread."""
    try:
        if run._background is None:
            with quiet_bars():
                prepare(run, again, by)
        assert run._background is not None
        work(run._background)
    except Exception as error:  # noqa: BLE001  # only preparing raises; a thread has nobody to raise to
        run._error, run._traceback = f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))
        run._state = "failed"
    finally:
        if run._background is not None and run._background.lock is not None:
            run._background.lock.release()
        RUNS.end(run)
        run.ended.set()

# %% [markdown]
# ## Waiting, and finding it again
#
# Waiting is the main thread's business, so that ■ arrives there (`ftnb/waiting.py`). The first ■ asks the run to stop and keep its model; the second leaves it to itself. Somebody who runs a cell again must find the run that is there and not start a second one, so the process keeps a list of its runs (`ftnb/registry.py`). When a script comes to its end, or a kernel is restarted, that list asks every live run to stop, and waits for its model.

# %%
#| export
def verdict(run: Run, state: str) -> str:
    """Return a state, or raise if it is the state of a failed run, or of one that never began."""
    if state == "failed":
        raise RunError(f"run {run.id} failed. {run.error}\nWhat it kept is in {run.folder}; run.traceback says where.")
    if state == "idle":
        raise RunError(f"run {run.id} was never started, so there is nothing to wait for. Call start() first.")
    return state


def runs() -> list[Run]:
    """The runs of this process that somebody still holds, oldest first."""
    return [run for _, run in sorted(RUNS.known.items())]


def get_run(id: str) -> Run:
    """The run with this id.

    Raises:
        RunError: if this process has none.
    """
    if id not in RUNS.known:
        raise RunError(f"there is no run {id!r} here; there are {', '.join(sorted(RUNS.known)) or 'none'}.")
    return RUNS.known[id]


def current_run(key: str = "") -> Run | None:
    """The run started last under this key (without one: the last of all), or None."""
    current: Run | None = RUNS.current(key)
    return current

# %% [markdown]
# And everything that matters is in the folder, for another day:

# %%
#| export
def open_run(folder: Path) -> Run:
    """Read a run back from its folder; one that this process has already is returned as it is."""
    for run in runs():
        if run.folder == folder and run.state != "idle":
            return run
    if not (folder / RECIPE).exists() or not (folder / JOURNAL).exists():
        raise RunError(f"{folder} holds no run; a run's folder has a {RECIPE} and an {JOURNAL}.")
    run = Run(Recipe.load(folder), folder)
    events = what_counts(read_journal(folder / JOURNAL, damaged=[]))
    run.id, run.record.history = folder.name, History.from_events(events)
    last = next((event for event in reversed(events) if isinstance(event, Finished)), None)
    if last is None:
        busy = is_held(folder)
        run._error = "another process is training it." if busy else "the process that trained it was ended."
    elif last.reason == "failed":
        run._error = last.message
    run._state = "failed" if run._error else "stopped" if last and last.reason == "stopped" else "done"
    run.ended.set()
    RUNS.known[run.id] = run
    return run


def task_of(run: Run) -> Any:
    """A run's task object; for one read back, a task without data that holds the best model, or else the last."""
    if run.task is None:
        folders = (model_folder(run.folder / name) for name in MODEL_FOLDERS.values())
        folder = next((folder for folder in folders if folder is not None), None)
        if folder is None:
            raise RunError(f"{run.folder} holds no model: the run ended before one was saved.")
        run.task = load_task(folder)
    return run.task

# %%
#| export
def finetune(
    recipe: Recipe | str | os.PathLike[str] | None = None,
    *,
    wait: bool = True,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Fine-tune: run a recipe (an object, a file, or the default one) with some settings changed.

    Args:
        recipe: what to run.
        wait: return when it has ended, with a progress bar meanwhile; otherwise return at once.
        folder: where to keep the run; by default a new folder below `runs/`.
        progress: whether to show the bar.
        **settings: settings of the recipe, as in `finetune(model="builtin:bert-reviews", lr=1e-4)`.

    Raises:
        ValueError: if the recipe, its data or its model cannot be used; before any training.
        RunError: if the run failed.
    """
    base = recipe if isinstance(recipe, Recipe) else Recipe() if recipe is None else Recipe.load(recipe)
    run = Run(base.replace(**settings), folder).start()
    if wait:
        with contextlib.closing(Bar(run, show=progress)) as bar:
            state = wait_for(run, tick=bar.tick, say=bar.say)
        verdict(run, state)
    return run

# %% [markdown]
# ## A run from start to end
#
# Runs go into `runs/` unless somebody says otherwise; here, into a folder that the system clears away. The run gets a key, as the panel gives it one. A listener raises nothing and draws nothing, it only asks: at step 6, the learning rate is to be halved. The cell is over as soon as data and model are loaded.

# %%
torch.set_num_threads(1)
os.environ["FTNB_RUNS"] = tempfile.mkdtemp()
run = Run(Recipe(num_epochs=2, eval_every=4, device="cpu"), key="lesson 53")
run.subscribe(lambda e: run.set_lr(2.5e-4, by="step 6") if isinstance(e, Stepped) and e.step == 6 else None)
run.start()
run.state

# %% [markdown]
# This cell may be run as often as you like. It finds the run by its key and starts nothing:

# %%
found = current_run("lesson 53")
found is run, found.wait()

# %%
run.report()

# %%
assert found is run and run.state == "done" and run.history.best is not None

# %% [markdown]
# What is left is a folder. The recipe says what was asked for, the journal what happened, line by line:

# %%
print(*sorted(path.name for path in run.folder.iterdir() if not path.name.startswith(".")), sep="\n")
print(*(line[:110] for line in (run.folder / "events.jsonl").read_text().splitlines() if '"changed"' in line or '"saved"' in line), sep="\n")

# %% [markdown]
# And the model is one that the rest of the world can load. Our predictions and those of a `transformers` pipeline on the same folder are the same:

# %%
texts = run.task.splits.test["text"][:4]
ours = [prediction.label for prediction in run.predict(texts)]
with quiet_transformers():
    classify = pipeline("text-classification", model=str(run.folder / "model"))
theirs = [answer["label"] for answer in classify(list(texts))]
list(zip(ours, theirs, run.task.splits.test["label"][:4], strict=True))

# %%
assert ours == theirs

# %% [markdown]
# ## Stopped, and on again
#
# In the folder lie snapshots, too ([lesson 51](51_snapshots.ipynb)). A run that was stopped, that failed, or whose process was killed goes on from the newest one: `resume()`, in this process or in another one after `Run.open(folder)`. Here is one that is stopped at step 10 of 16 and told to go on. It ends with the weights of a run that nobody stopped:

# %%
def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])

whole = finetune(num_epochs=2, device="cpu", progress=False)
halted = Run(whole.recipe)
off = halted.subscribe(lambda e: halted.stop() if isinstance(e, Stepped) and e.step == 10 else None)
halted.start().wait()
off()  # or it would stop itself again
before = halted.state, halted.can_go_on, halted.last_snapshot
halted.resume()
before, halted.wait(), torch.equal(weights(halted), weights(whole))

# %%
assert before == ("stopped", True, 10) and torch.equal(weights(halted), weights(whole))

# %% [markdown]
# For the common case, one line is enough. It waits, with a progress bar where you want one, and a mistake in it is named before anything is loaded:

# %%
quick = finetune(num_epochs=1, strategy="head", device="cpu", progress=False)
quick.state, quick.recipe.code()

# %%
try:
    finetune(learning_rate=1e-4)
except ValueError as error:
    message = str(error)
message

# %%
assert "'lr'" in message and quick.state == "done"

# %% [markdown]
# ## The experiment: what a live change of the learning rate does, and what it cannot do
#
# **Claim 1.** A live learning rate sets the *peak*; the schedule's shape goes on. Every step's rate in the journal is, to the last bit, peak × shape, with the old peak before the change and the new one from the next step on.

# %%
def rates(run: Run) -> list[float]:
    return [event.lr for event in run.events if isinstance(event, Stepped)]

num_steps = len(rates(run))
shape = [lr_factor(step / num_steps, warmup=run.recipe.warmup, schedule=run.recipe.schedule) for step in range(num_steps)]
expected = [(5e-4 if step < 6 else 2.5e-4) * factor for step, factor in enumerate(shape)]
max(abs(one - other) for one, other in zip(rates(run), expected, strict=True))

# %%
assert rates(run) == expected

# %% [markdown]
# **Claim 2.** People reach for the slider when a run goes wrong: the loss jumps, the rate was too high, so turn it down. We expect that this saves the run. *Hot* starts at twenty times the usual rate and is turned down to the usual one after the first epoch; *calm* has the usual rate all along. Hot has two more epochs to catch up. Four seeds; the claim would be refuted if hot runs ended more than five points of test accuracy behind their calm twins.

# %%
def steered(seed: int, hot: bool) -> Run:
    usual = Recipe(num_epochs=3, eval_every=4, seed=seed, device="cpu")
    run = Run(usual.replace(lr=20 * usual.lr) if hot else usual)
    if hot:
        run.subscribe(lambda e: run.set_lr(usual.lr) if isinstance(e, Stepped) and e.step == 8 else None)
    run.start().wait()
    return run

calm, hot = ([steered(seed, is_hot) for seed in range(100, 104)] for is_hot in (False, True))
test_accuracy = {name: [round(r.task.evaluate("test")["accuracy"], 3) for r in group] for name, group in (("calm", calm), ("hot", hot))}
test_accuracy

# %%
fig, ax = plt.subplots(figsize=(6.5, 3), dpi=80)
for group, color, name in ((calm, "C0", "calm"), (hot, "C3", "hot until step 8")):
    for i, one in enumerate(group):
        points = [(e.step, e.metrics["accuracy"]) for e in one.events if isinstance(e, Evaluated)]
        ax.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=name if i == 0 else None)
ax.axvline(8, color="gray", linestyle="--", linewidth=0.8)
ax.axhline(0.5, color="gray", linestyle=":", linewidth=0.8)
ax.set(xticks=range(0, 25, 4), xlabel="step", ylabel="validation accuracy", ylim=(0.4, 1), title="Turned down at step 8: some recover in part, some not at all")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(0.6, 0.31))
fig.subplots_adjust(bottom=0.17)
plt.show()

# %%
behind = [usual - burnt for usual, burnt in zip(test_accuracy["calm"], test_accuracy["hot"], strict=True)]
assert min(behind) > 0.05

# %% [markdown]
# The claim is refuted: none of the four catches up. Some stay where tossing a coin would be, others recover and remain eight points or more behind. Two epochs at the right rate do not repair what one at a far too high rate did: it overwrote what pretraining had put there, and the labelled reviews do not hold it (the test reviews use words that no labelled one contains). A live rate is good for *less* or *more* of what is going well. When a fine-tuning has been burnt, stop it and start again from the checkpoint; `run.recipe.replace(lr=...)` is one line.
#
# The chart of the worst of them shows how easy it is to be fooled. After the change the loss comes down and calms, as if it were healing. But it settles at $\ln 2 \approx 0.693$, which is the loss of tossing a coin:

# %%
worst = min(range(len(hot)), key=lambda i: test_accuracy["hot"][i])
hot[worst].report()

# %% [markdown]
# ## The story: stop, and where is my model?
#
# Train until it is good enough, press Ctrl-C, use the model: users of a guitar-amplifier trainer had done so for years, until an update of the framework below it. The framework caught the interrupt, shut down gracefully, and ended the process, so that the line after `fit()` that exports the model was never reached (sdatkinson/neural-amp-modeler#501, after Lightning-AI/pytorch-lightning#19976). Whether a stopped training leaves a usable model is asked in many trackers (coqui-ai/Trainer#99, hiyouga/LlamaFactory#9319). Where saving comes *after* the loop, it does not. Here is that script, interrupted at step 70:

# %%
def everybodys_script(folder: Path) -> None:
    model, X = torch.nn.Linear(8, 2), torch.randn(32, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(100):
        torch.nn.functional.cross_entropy(model(X), (X[:, 0] > 0).long()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 70:
            _thread.interrupt_main()  # what ■ and Ctrl-C do
            time.sleep(0.01)
    save_model(model, str(folder / "model.safetensors"))

theirs = Path(tempfile.mkdtemp())
try:
    everybodys_script(theirs)
except KeyboardInterrupt:
    print("interrupted")
list(theirs.iterdir())

# %% [markdown]
# The same interrupt, while a cell waits for a run of a thousand epochs:

# %%
endless = Run(Recipe(num_epochs=1000, device="cpu"))
endless.subscribe(lambda e: _thread.interrupt_main() if isinstance(e, Stepped) and e.step == 3 else None)
endless.start()
state = endless.wait()
state, sorted(path.name for path in endless.folder.iterdir() if path.is_dir())

# %%
assert not list(theirs.iterdir())
assert state == "stopped" and len(endless.predict(list(texts))) == 4

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `who_did_what`: the changes of a run as sentences such as `'step 6: lr 0.0005 → 0.00025, by step 6'`, for a colleague who takes over.

# %% tags=["exercise"]
def who_did_what(run: Run) -> list[str]:
    ...  # your code here

# %% tags=["solution"]
def who_did_what(run: Run) -> list[str]:
    changes = (event for event in run.events if isinstance(event, Changed))
    return [f"step {e.step}: {e.what} {e.old} → {e.new}, by {e.by}" for e in changes]

# %%
assert who_did_what(run) == ["step 6: lr 0.0005 → 0.00025, by step 6"]

# %% [markdown]
# **2 (medium).** Write `best_of`: run a recipe with several seeds, one after the other, and return the run with the best validation metric. (`history.best` is a pair of step and value.) Which promise about your test figure do you lose by this?

# %% tags=["exercise"]
def best_of(recipe: Recipe, seeds: list[int]) -> Run:
    ...  # your code here

# %% tags=["solution"]
def best_of(recipe: Recipe, seeds: list[int]) -> Run:
    candidates = [finetune(recipe, seed=seed, progress=False) for seed in seeds]
    return max(candidates, key=lambda run: run.history.best[1])

# %%
winner = best_of(Recipe(num_epochs=1, strategy="head", device="cpu"), seeds=[0, 1])
assert winner.recipe.seed in (0, 1) and winner.state == "done"

# %% [markdown]
# ## Summary
# - A run is a recipe, a thread and a folder. What cannot work is refused before any training; what was trained is on the disk at every moment.
# - Commands are the same from a cell, a panel and a script, and the journal names who gave them.
# - A live learning rate scales what is to come. It does not undo what a far too high one has done.
# - ■ in `run.wait()` means "stop and keep the model"; `run.resume()` goes on with it.
#
# **What next:** lesson 56 puts buttons on it; `ftnb run recipe.toml` does the same from a terminal, and `ftnb show` draws what happened. With a real model: `finetune(data="reviews.csv", model="google-bert/bert-base-uncased", lr=3e-5)`. **Sources:** the threads named above; Python's `threading`, `signal` and `atexit`.
