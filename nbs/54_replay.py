# %% [markdown]
# # Again, and otherwise
#
# > A run done again from its journal, hand-made changes included; and one branched off where it could go otherwise.
#
# At the end you can prove that a result was not luck of the moment, and answer "what if I had halved the rate there?" without starting from scratch. Runs in about 20 s on a CPU.

# %%
#| default_exp replay

# %%
#| export
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from safetensors.torch import load_file

from ftnb.durable import make_folder
from ftnb.events import (
    Changed,
    Command,
    Evaluate,
    Evaluated,
    Event,
    Finished,
    Journal,
    JournalError,
    Saved,
    SetLr,
    SetParts,
    Stop,
    Warned,
    read_journal,
    what_counts,
)
from ftnb.recipe import RecipeError, without_memory
from ftnb.run import Run, RunError, begin
from ftnb.runfolder import JOURNAL, LAST, SNAPSHOTS, branched_at, claim, model_folder, write_folder, write_origin
from ftnb.snapshots import Snapshots
from ftnb.waiting import wait_for

# %%
import tempfile

import torch

from ftnb.events import Stepped
from ftnb.recipe import Recipe

# %% [markdown]
# ## A journal is a script
#
# A training that nobody touches is repeated by its recipe: same seed, same weights (lesson 18). As soon as a hand is on the slider, the recipe is only half of the truth. The other half stands in the journal: who changed what, after how many steps. Read with the eyes of somebody who wants to do it again, it is a list of commands, each with the step at which it took effect.
#
# Two kinds need thought. An evaluation that was asked for in the middle of a step happened after it, so its place is where the result stands. A stop took effect where the run ended.

# %%
#| export
def script_of(events: Iterable[Event]) -> list[tuple[int, Command]]:
    """The commands of a journal, each with the number of completed steps at which to give it again.

    Args:
        events: as `read_journal` gives them; what a return to a snapshot has undone does not count.

    Raises:
        JournalError: if an event says that something impossible was set.
    """
    events = what_counts(events)
    script: list[tuple[int, Command]] = []
    for i, event in enumerate(events):
        if not isinstance(event, Changed) or event.by in ("strategy", "settings"):
            continue
        if event.what in ("lr", "parts") and isinstance(event.new, int | float):
            try:
                command = SetLr(event.new, event.group) if event.what == "lr" else SetParts(int(event.new))
            except (ValueError, OverflowError) as error:  # a damaged journal
                raise JournalError(f"{event.what} after step {event.step}: {error}") from None
            script.append((event.step, command))
        elif event.what == "evaluate":
            done = (e.step for e in events[i:] if isinstance(e, Evaluated))
            script.append((next(done, event.step), Evaluate()))
    last = next((e for e in reversed(events) if isinstance(e, Finished)), None)
    if last is not None and last.reason in ("stopped", "failed"):
        stops = sum(isinstance(e, Changed) and e.what == "stop" for e in events)
        hurried = last.reason == "failed" or stops > 1  # without a last evaluation
        script += [(last.step, Stop())] * (2 if hurried else 1)
    return script

# %% [markdown]
# ## Doing it again
#
# A replay is a new run of the same recipe with these commands planned before its start. What comes out is compared tensor by tensor with what the first run left on the disk.

# %%
#| export
@dataclass(frozen=True)
class Replayed:
    """A run that was done again, and how far its last weights are from those of the first time (0: bit for bit).

    `damaged` are the lines of its journal that could not be read: what they said was not done again.
    """

    run: Run
    max_abs_diff: float
    damaged: tuple[str, ...] = ()

    def __str__(self) -> str:
        same, far = "the same weights, bit for bit", f"weights off by up to {self.max_abs_diff:.1e}"
        lines = [f"{same if self.max_abs_diff == 0 else far}; {self.run.folder}", *self.damaged]
        return "\n".join([*lines, "What these lines said was not done again."] if self.damaged else lines)


def replay(run: Run, folder: str | os.PathLike[str] | None = None) -> Replayed:
    """Do a run again from its journal, hand-made changes included, and compare the weights.

    Args:
        run: one that has ended, perhaps read back with `Run.open`.
        folder: where to keep the new run; a new folder below `runs/` by default.

    Raises:
        RunError: if the run has not ended or holds no model, or the new one failed.
        JournalError: if it cannot be told where it begins.
    """
    damaged: list[str] = []
    events = read_journal(run.folder / JOURNAL, damaged=damaged) if (run.folder / JOURNAL).exists() else []
    if not any(isinstance(event, Finished) for event in what_counts(events)):
        words = "has no end in its journal, so there is nothing to compare. Let it end: resume()."
        raise RunError("\n".join([f"run {run.id} {words}", *damaged]))
    weights_of(run.folder)  # before the work: is there something to compare with?
    step, own = branched_at(run.folder), own_events(events)
    if step is not None and own is events:
        where = "its branch.json says that it left another run, and no line of its journal that can be read says where"
        raise JournalError("\n".join([f"run {run.id}: {where}, so its own commands cannot be told.", *damaged]))
    again = Run(run.recipe, folder)
    again.plan(script_of(own), by="replay")
    if step is None:
        for line in damaged:
            again.record.warn("journal_damaged", line)
        again.start()
    else:
        start_from(run, again, step, by="replay")
    wait_for(again)
    if again.state == "failed":
        raise RunError(f"the replay failed: {again.error}\nIt is in {again.folder}.")
    return Replayed(again, difference(run.folder, again.folder), tuple(damaged))


def own_events(events: Sequence[Event]) -> Sequence[Event]:
    """The events of a run without those that it has from the run it branched off."""
    notes = [i for i, event in enumerate(events) if isinstance(event, Changed) and event.what == "branched"]
    return events[notes[-1] :] if notes else events


def weights_of(folder: Path, what: str = LAST) -> dict[str, Any]:
    """The tensors of a model that a run left in its folder, by name.

    Raises:
        RunError: if there is none.
    """
    place = model_folder(folder / what)
    files = sorted(place.glob("*.safetensors")) if place is not None else []
    if not files:
        raise RunError(f"{folder} holds no {what}, so there are no weights to compare.")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference between two runs' last weights; infinite if names or shapes differ."""
    a, b = weights_of(one), weights_of(other)
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        return float("inf")
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a if a[name].numel())

# %% [markdown]
# ## Doing it otherwise
#
# A branch begins with a snapshot of another run and goes on with other numbers. Its folder is a run's folder like any other: the journal of its parent up to that step, its own recipe, and the snapshot that it began with, which is never cleared away. Some settings cannot change on the way, because the snapshot depends on them (the model, the data, the order of the examples); for those there is no branch but a new run.

# %%
#| export
CHANGEABLE = (
    "lr", "num_epochs", "schedule", "warmup", "weight_decay", "max_grad_norm", "eval_every", "patience", "device",
    "snapshot_every", "keep_snapshots", "snapshot_gb",
)  # fmt: skip


def branch(
    run: Run,
    step: int | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    by: str = "user",
    **changes: Any,
) -> Run:
    """Start another run from a snapshot of a run, with some settings changed from there on.

    Args:
        run: where to branch off; it may have ended, also in another process.
        step: the snapshot's step; the newest by default.
        folder: where to keep the branch; a new folder below `runs/` by default.
        by: who asked.
        **changes: settings of the recipe, for example `lr=1e-4`.

    Returns:
        The new run, training.

    Raises:
        RunError: if there is no such snapshot.
        RecipeError: if a setting cannot be changed on the way.
    """
    recipe = run.recipe.replace(**changes)
    if fixed := [name for name in changes if name not in CHANGEABLE]:
        raise RecipeError(
            f"{', '.join(fixed)} cannot change on the way, a snapshot needs it; these can: {', '.join(CHANGEABLE)}. "
            "A new run from the start: Run(run.recipe.replace(...))."
        )
    steps = Snapshots(run.folder / SNAPSHOTS).steps()
    if not steps or (step is not None and step not in steps):
        there = ", ".join(map(str, steps)) or "none"
        which = f"run {run.id} has no snapshot of step {step}" if steps else f"run {run.id} has no snapshot"
        raise RunError(f"{which}; there are {there}. Recipe: snapshot_every, keep_snapshots.")
    other = Run(recipe, folder)
    start_from(run, other, steps[-1] if step is None else step, by)
    return other


def start_from(run: Run, other: Run, step: int, by: str = "user") -> None:
    """Make the folder of a run that begins with a snapshot of another one, and start it.

    Lines of the other one's journal that cannot be read are left out, and a warning in the new one says so.
    """
    claim(other.folder, without_memory(other.recipe).to_toml())
    try:
        source, target = (Snapshots(of.folder / SNAPSHOTS).path(step) for of in (run, other))
        make_folder(target.parent)
        write_folder(lambda part: shutil.copytree(source, part, dirs_exist_ok=True), target)
        write_origin(other.folder, run.id, step)
        journal = Journal(other.folder / JOURNAL)
        events = read_journal(run.folder / JOURNAL, damaged=(damaged := list[str]()))
        for event in upto(events, step, run.id, by):
            journal.append(event)
        for line in damaged:
            journal.append(Warned(step=step, code="journal_damaged", message=line))
        journal.close()
        other._state = "preparing"
        begin(other, prepare_in_thread=False, before=("stopped", "", ""), by=by)
    except BaseException:
        shutil.rmtree(other.folder, ignore_errors=True)
        raise


def upto(events: Sequence[Event], step: int, run: str, by: str = "user") -> list[Event]:
    """A journal up to the snapshot of a step, with a note where it was left."""
    saved = [i for i, e in enumerate(events) if isinstance(e, Saved) and e.what == "snapshot" and e.step == step]
    end = saved[-1] if saved else max((i for i, e in enumerate(events) if e.step <= step), default=-1) + 1
    time = events[max(0, end - 1)].time if events else 0.0
    note = Changed(step=step, time=time, what="branched", old=run, new=step, by=by)
    return [*events[:end], note, *events[end : end + 1]]

# %% [markdown]
# Two runs side by side want one picture:

# %%
#| export
def overlay(runs: Sequence[Run]) -> Figure:
    """The curves of several runs in one picture: the smoothed training loss and the metric on validation data.

    A dotted line marks where a branch begins.
    """
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 3), dpi=80)
    for i, run in enumerate(runs):
        for ax, curve, style in zip(axes, ("smooth", "metric"), ("-", "o-"), strict=True):
            points = run.history.curves[curve].points()
            label = f"{run.folder.name}, lr {run.recipe.lr:g}"
            ax.plot([x for x, _ in points], [y for _, y in points], style, color=f"C{i}", label=label, markersize=3)
            if (step := branched_at(run.folder)) is not None:
                ax.axvline(step, color=f"C{i}", linestyle=":", linewidth=1)
    for ax, name in zip(axes, ("training loss (smoothed)", f"validation {runs[0].history.metric}"), strict=True):
        ax.set(xlabel="step", ylabel=name)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=7)
    fig.tight_layout()
    plt.close(fig)
    return fig

# %% [markdown]
# ## A hand on the slider
#
# The run below is the quickstart's task with a hand on it: after step 6 the rate is raised to three times what it was, after step 14 it is lowered to a third of the recipe's, and an evaluation is asked for in between. (The hand is a listener, so that the lesson does the same on every machine; a panel's slider sends the same commands.)

# %%
torch.set_num_threads(1)
place = Path(tempfile.mkdtemp())
recipe = Recipe(num_epochs=3, eval_every=4, snapshot_every=4, keep_snapshots=10, device="cpu")

def steered() -> Run:
    run = Run(recipe, place / "steered")
    hands = {6: lambda: run.set_lr(1.5e-3), 10: run.evaluate, 14: lambda: run.set_lr(1.7e-4)}
    run.subscribe(lambda e: hands[e.step]() if isinstance(e, Stepped) and e.step in hands else None)
    run.start().wait()
    return run

run = steered()
script_of(run.events)

# %%
assert [(at, type(command).__name__) for at, command in script_of(run.events)] == [(6, "SetLr"), (10, "Evaluate"), (14, "SetLr")]

# %% [markdown]
# ## The experiment: the same again
#
# **Claim.** The replay ends with the weights of the steered run, bit for bit; a run of the recipe alone does not. One differing bit in the first, or none in the second, would refute it.

# %%
again = replay(run, place / "again")
untouched = Run(recipe, place / "untouched").start()
untouched.wait()
str(again).partition(";")[0], difference(run.folder, untouched.folder)

# %%
assert again.max_abs_diff == 0.0 and difference(run.folder, untouched.folder) > 1e-3

# %% [markdown]
# It is also a test of other people's results: somebody sends you a folder, and `ftnb replay FOLDER` says whether its weights come out of its journal. The scope of "bit for bit" is that of lesson 51: the same versions, the same number of threads, a CPU or deterministic kernels.
#
# ## What if?
#
# Was it a good idea to raise the rate after step 6? A branch answers that from step 4 on, without the steps before. Here is one that leaves the rate alone, and one that lowers it at once:

# %%
alone = run.branch(4, folder=place / "alone")
alone.wait()  # one after the other: two trainings at once in one process share the random numbers' generator
lower = run.branch(4, folder=place / "lower", lr=1e-4)
lower.wait()
overlay([run, alone, lower])

# %%
accuracy = {name: one.task.evaluate("test")["accuracy"] for name, one in (("steered", run), ("left alone", alone), ("lower", lower))}
{name: round(value, 3) for name, value in accuracy.items()}, difference(alone.folder, untouched.folder)

# %%
assert difference(alone.folder, untouched.folder) == 0.0

# %% [markdown]
# The branch without a change is the untouched run, to the bit: that is what makes the comparison fair. The three differ in nothing but what was changed after step 4. It is still one seed. Which of them is *better* is a question for several seeds, and not for this picture.
#
# What cannot change on the way is refused:

# %%
try:
    run.branch(4, batch_size=4)
except RecipeError as error:
    message = str(error)
message

# %%
assert "batch_size cannot change on the way" in message

# %% [markdown]
# ## The story: the setting that was ignored
#
# Somebody resumes with another learning rate, and the old one goes on. Loading the optimizer's state puts the old rate back into its groups, and the scheduler's state the old shape; what was typed is ignored without a word (pytorch/examples#816, huggingface/transformers#9099, mosaicml/composer#3154, roboflow/rf-detr#1209). In plain torch:

# %%
weight = torch.nn.Parameter(torch.zeros(1))
old = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.01)
resumed = torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.1)
resumed.load_state_dict(old.state_dict())
resumed.param_groups[0]["lr"], resumed.param_groups[0]["weight_decay"]

# %%
assert resumed.param_groups[0]["lr"] == 1e-3

# %% [markdown]
# In a branch, the numbers typed are in force, and each is written into the journal with its old value:

# %%
[(e.what, e.old, e.new) for e in lower.events if isinstance(e, Changed) and e.by == "settings"]

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `hands_on`: how many commands a run's result depends on (a rate that was set, a batch that was cut), so that 0 means: the recipe alone gives it.

# %% tags=["exercise"]
def hands_on(run: Run) -> int:
    ...  # your code here

# %% tags=["solution"]
def hands_on(run: Run) -> int:
    return sum(isinstance(command, SetLr | SetParts) for _, command in script_of(run.events))

# %%
assert hands_on(run) == 2 and hands_on(untouched) == 0

# %% [markdown]
# **2 (medium).** Write `turn_down`: branch a run at its best evaluation's nearest earlier snapshot, with a fifth of its rate, and return the branch when it has ended. (`run.history.best` is a pair of step and value.)

# %% tags=["exercise"]
def turn_down(run: Run, folder: Path) -> Run:
    ...  # your code here

# %% tags=["solution"]
def turn_down(run: Run, folder: Path) -> Run:
    steps = Snapshots(run.folder / SNAPSHOTS).steps()
    at = max((step for step in steps if step <= run.history.best[0]), default=steps[0])
    other = run.branch(at, folder=folder, lr=run.recipe.lr / 5)
    other.wait()
    return other

# %%
gentle = turn_down(untouched, place / "gentle")
assert gentle.state == "done" and branched_at(gentle.folder) <= untouched.history.best[0]

# %% [markdown]
# ## Summary
# - A recipe repeats a run that nobody touched; recipe and journal together repeat one that somebody steered, within the scope of lesson 51.
# - A replay plans the journal's commands at their steps and compares the weights.
# - A branch starts from a snapshot with other numbers, which are in force and written down; what a snapshot depends on cannot change.
#
# **What next:** `ftnb replay` and `ftnb branch --step 100 --set lr=1e-4` do this from a terminal. **Sources:** the threads named above; PyTorch's documentation on reproducibility.
