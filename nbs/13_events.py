# %% [markdown]
# # Events
#
# > What a training says about itself, as plain data: everything that watches a run reads this and nothing else.
#
# At the end you can read a run's journal line by line, add an observer of your own without touching the loop, and say what a crash leaves behind. Runs in about 5 s on a CPU.

# %%
#| default_exp events

# %%
#| export
import dataclasses
import json
import math
import operator
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ftnb.durable import sync_folder

# %%
import tempfile
import time
from collections.abc import Iterator

# %% [markdown]
# ## Why not print, why not callbacks
#
# A loop that prints can be watched by one person, once. A loop that calls back must know whom to call, and a chart that throws takes the training with it. So ours does neither. It *says* what happened, in small records of numbers and strings. A chart, a journal, a panel, a test and your own `for` loop all read the same records, and none of them can reach back into the model.
#
# Seven kinds of event are enough: `started`, `step`, `evaluated`, `saved`, `changed`, `warned`, `finished`. Each carries the optimizer step it belongs to and the seconds since the run began.

# %%
#| export
@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened in training.

    Attributes:
        step: optimizer steps completed when it happened (0 before the first).
        time: seconds since the run started, pauses included.
    """

    kind: ClassVar[str] = "event"
    step: int
    time: float = 0.0

# %%
#| export
@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The run begins: its length, size and where it computes."""

    kind: ClassVar[str] = "started"
    num_steps: int
    steps_per_epoch: int
    num_epochs: int
    num_examples: int
    num_parameters: int
    num_trainable: int
    device: str
    precision: str
    metric: str
    higher_is_better: bool = True
    groups: tuple[str, ...] = ()

# %% [markdown]
# A `step` is one update of the weights, however many micro-batches it took. `epoch` is fractional: 1.5 means halfway through the second pass. `lr` is the highest rate in force, that is the rate of the new head; the other groups have a fixed share of it (lesson 21).

# %%
#| export
@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """One optimizer step. `loss` is the mean over the step's examples, `grad_norm` the norm before clipping."""

    kind: ClassVar[str] = "step"
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    examples_per_second: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """One pass over a split without training. `best` is true when the chosen metric was never better before."""

    kind: ClassVar[str] = "evaluated"
    epoch: float
    loss: float
    metrics: dict[str, float]
    seconds: float = 0.0
    split: str = "valid"
    best: bool = False

# %%
#| export
@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """A model or a snapshot was written: `what` is "best", "last" or "snapshot"; `path` is that in the run's folder."""

    kind: ClassVar[str] = "saved"
    what: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Changed(Event):
    """Something was changed while training: by a person, by the strategy, or by the training itself."""

    kind: ClassVar[str] = "changed"
    what: str
    old: float | str | None = None
    new: float | str | None = None
    group: str | None = None
    by: str = "user"

# %%
#| export
@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something a person should know; `code` is for programs, `message` for people."""

    kind: ClassVar[str] = "warned"
    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The last event. `reason` is "done", "stopped", "early_stopping" or "failed"."""

    kind: ClassVar[str] = "finished"
    reason: str
    best_step: int | None = None
    best_value: float | None = None
    message: str = ""

# %% [markdown]
# A record cannot be changed after the fact, so two observers never disagree.

# %%
event = Stepped(step=12, time=1.5, epoch=0.75, loss=0.61, lr=3e-4, grad_norm=1.2)
event

# %%
try:
    event.loss = 0.0
except dataclasses.FrozenInstanceError as error:
    refused = str(error)
refused

# %% [markdown]
# ## Commands go the other way
#
# What a person says to a live run is data too. A button, a terminal and a line of code all build the same record, and the trainer reads it between two pieces of work: nobody else touches the model or the optimizer. What took effect comes back as a `changed` event with its step. That makes a hand-steered run repeatable.

# %%
#| export
@dataclass(frozen=True)
class Pause:
    """Hold the run after the work in hand; nothing is lost."""


@dataclass(frozen=True)
class Resume:
    """Go on after a pause."""


@dataclass(frozen=True)
class Stop:
    """End the run after the step in hand and keep the best and the last model."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate on the validation split now."""

# %%
#| export
@dataclass(frozen=True)
class SetLr:
    """Set the peak learning rate; the schedule's shape goes on.

    Attributes:
        lr: the new peak, positive and finite.
        group: the name of one layer group to change alone; None changes all in proportion.
    """

    lr: float
    group: str | None = None

    def __post_init__(self) -> None:
        if type(self.lr) not in (int, float) or not 0 < self.lr <= sys.float_info.max:  # a whole number may be larger
            raise ValueError(f"lr must be a positive finite number, got {self.lr!r}.")


@dataclass(frozen=True)
class SetParts:
    """Compute each batch in so many parts, from the next step on: less memory, the same gradient.

    Attributes:
        parts: at least 1; 1 computes it whole.
    """

    parts: int

    def __post_init__(self) -> None:
        if type(self.parts) is not int or self.parts < 1:
            raise ValueError(f"parts must be a whole number of at least 1, got {self.parts!r}.")


Command = Pause | Resume | Stop | Evaluate | SetLr | SetParts

# %%
try:
    SetLr(lr=-1.0)
except ValueError as error:
    refused = str(error)
refused

# %%
assert "positive" in refused

# %% [markdown]
# ## One line of text per event
#
# On disk an event is one line of JSON. JSON has no word for infinity or "not a number", yet a diverging run produces exactly those; Python would write a bare `NaN`, which other readers refuse. We write them as strings and read them back as numbers.

# %%
#| export
SCHEMA_VERSION = 1
KINDS: dict[str, type[Event]] = {
    cls.kind: cls for cls in (Started, Stepped, Evaluated, Saved, Changed, Warned, Finished)
}


class JournalError(ValueError):
    """A journal or one of its lines cannot be read."""


class NewerJournalError(JournalError):
    """A journal that a newer version has written."""


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value

# %%
#| export
def to_json(event: Event) -> str:
    """Write an event as one line of strict JSON (no newline inside, no bare NaN)."""
    fields = {f.name: _encode(getattr(event, f.name)) for f in dataclasses.fields(event)}
    return json.dumps({"kind": event.kind, **fields}, allow_nan=False, ensure_ascii=False)

# %%
to_json(Stepped(step=3, epoch=0.1, loss=math.nan, lr=1e-3, grad_norm=math.inf))

# %% [markdown]
# Reading is strict about what it needs and relaxed about what it does not know: a field that a later version added is passed over, a missing or mistyped one is an error that says which.

# %%
#| export
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def _decode(name: str, annotation: Any, value: Any) -> Any:
    """Bring a JSON value back to the type that a field is annotated with."""
    wants_float = annotation is float or (isinstance(value, str) and annotation == float | str | None)
    if wants_float and isinstance(value, str) and value in _NON_FINITE:
        return _NON_FINITE[value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise JournalError(f"field {name!r} has a whole number of more than 64 bits.")
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if annotation == tuple[str, ...] and isinstance(value, list):
        return tuple(str(item) for item in value)
    if annotation == dict[str, float] and isinstance(value, dict):
        return {str(key): _decode(f"{name}.{key}", float, item) for key, item in value.items()}
    if annotation in (int, float, str, bool) and type(value) is not annotation:
        raise JournalError(f"field {name!r} must be {annotation.__name__}, got {value!r}.")
    return value

# %%
#| export
def from_json(line: str) -> Event:
    """Read one event back from its line.

    Raises:
        JournalError: if the line is no JSON object, its kind is unknown, or a field is missing or of the wrong type.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise JournalError(f"not a line of JSON: {line[:60]!r} ({error}).") from None
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str) or data["kind"] not in KINDS:
        raise JournalError(f"not an event: {line[:60]!r}; expected a 'kind' out of {', '.join(KINDS)}.")
    cls = KINDS[data["kind"]]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    known = {name: _decode(name, fields[name].type, value) for name, value in data.items() if name in fields}
    missing = [name for name, f in fields.items() if name not in known and f.default is dataclasses.MISSING]
    if missing:
        raise JournalError(f"a {data['kind']!r} event lacks {', '.join(missing)}: {line[:60]!r}.")
    return cls(**known)

# %%
from_json(to_json(event)) == event

# %%
assert from_json(to_json(event)) == event
assert math.isnan(from_json(to_json(Stepped(step=1, epoch=0.1, loss=math.nan, lr=1.0, grad_norm=1.0))).loss)

# %% [markdown]
# ## The journal
#
# A run's events go to a file, one line each, flushed as they come. The first line names the schema, so that a later version knows what it reads. Appending is the safest way to write: whatever kills the process, the lines that were there stay there, and at most the last one is cut short.

# %%
#| export
class Journal:
    """Append events to a file, one JSON line each; every line is handed to the system at once.

    Args:
        path: the file; created with its header line if it does not exist, continued if it does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists():
            _drop_torn_line(self.path)
        fresh = not self.path.exists() or self.path.stat().st_size == 0
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")
        if fresh:
            self._write(json.dumps({"schema": SCHEMA_VERSION}))
            self.sync()
            sync_folder(self.path.parent)

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def append(self, event: Event) -> None:
        """Write one event."""
        self._write(to_json(event))

    def sync(self) -> None:
        """Put what was written safely on the disk: after a power cut, too, it is there."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Put the file safely on the disk and close it. Closing twice is fine."""
        if not self._file.closed:
            self.sync()
            self._file.close()

# %%
#| export
def _drop_torn_line(path: Path) -> None:
    """Cut an unfinished last line off a journal, so that what is appended next starts a line of its own."""
    with open(path, "rb+") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            file.truncate(end)


def _check_header(line: str) -> None:
    try:
        version = operator.index(json.loads(line)["schema"])
    except (ValueError, KeyError, TypeError, RecursionError):
        found = f"found {line[:60]!r}"
        raise JournalError(f"this is no journal: its first line should be {{'schema': …}}, {found}.") from None
    if version > SCHEMA_VERSION:
        raise NewerJournalError(f"schema {version!r}; this ftnb reads up to {SCHEMA_VERSION}. Upgrade ftnb.")

# %%
#| export
def read_journal(path: str | os.PathLike[str], *, damaged: list[str] | None = None) -> list[Event]:
    """Read all events of a journal; a last line cut short by a crash is left out.

    Args:
        path: the file.
        damaged: takes up what is wrong with lines that cannot be read, which are then passed over; without it they
            are an error. Reading a table of results should fail; a run that can go on should not, for one line.

    Raises:
        JournalError: if the file is no journal, comes from a newer version, or is damaged before its last line.
    """
    path = Path(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    lines = text.split("\n")
    whole = lines[:-1]  # what follows the last newline is empty, or torn
    events: list[Event] = []
    if not whole:
        if damaged is None:
            raise JournalError(f"{path} is empty or has no complete line; it is not a journal.")
        damaged.append(f"{path} is empty.")
    for number, line in enumerate(whole, start=1):
        try:
            if number == 1:
                _check_header(line)
            else:
                events.append(from_json(line))
        except NewerJournalError as error:
            raise NewerJournalError(f"{path}: {error}") from None
        except JournalError as error:
            if damaged is None:
                raise JournalError(f"{path}, line {number}: {error}") from None
            damaged.append(f"{path}, line {number}, is passed over: {error}")
    if whole and lines[-1] and damaged is not None:
        damaged.append(f"{path}, line {len(lines)}, is left out: it was cut short, as when a process ends in mid-word.")
    return events

# %% [markdown]
# An observer is a `for` loop. This one needs nothing but the file.

# %%
folder = tempfile.TemporaryDirectory()
journal = Journal(Path(folder.name) / "events.jsonl")
for step in range(1, 6):
    journal.append(Stepped(step=step, epoch=step / 5, loss=1 / step, lr=1e-3, grad_norm=1.0))
journal.close()
[(e.step, round(e.loss, 2)) for e in read_journal(journal.path)]

# %% [markdown]
# A training that was killed goes on from its last snapshot ([lesson 51](51_snapshots.ipynb)), and what happened after that snapshot happens again. The journal keeps both, since both happened. For a curve, or for doing it all again, only one of them counts:

# %%
#| export
def what_counts(events: Iterable[Event]) -> list[Event]:
    """The events without those that a return to a snapshot has undone.

    A `changed` event of "restored" says which snapshot was gone back to; what followed the `saved` event of that
    snapshot (where a crash swallowed it: its step) is left out, warnings excepted.
    """
    kept: list[Event] = []
    for event in events:
        if isinstance(event, Changed) and event.what == "restored":
            saved = ((i, e) for i, e in enumerate(kept) if isinstance(e, Saved) and e.what == "snapshot")
            at = [i for i, e in saved if e.step == event.step]
            before = at[-1] if at else max((i for i, e in enumerate(kept) if e.step <= event.step), default=-1)
            kept = kept[: before + 1] + [e for e in kept[before + 1 :] if isinstance(e, Warned)]
        kept.append(event)
    return kept

# %%
lost_and_redone = [
    Saved(step=1, what="snapshot", path="snapshots/step-00000001"),
    Changed(step=1, what="lr", old=1e-3, new=1e-4),
    Stepped(step=2, epoch=0.4, loss=0.9, lr=1e-4, grad_norm=1.0),
    Changed(step=1, what="restored", old=2, new=1),
    Stepped(step=2, epoch=0.4, loss=0.7, lr=1e-3, grad_norm=1.0),
]
[(e.kind, e.step) for e in what_counts(lost_and_redone)]

# %%
assert [e.loss for e in what_counts(lost_and_redone) if isinstance(e, Stepped)] == [0.7]

# %% [markdown]
# ## The experiment: what a crash leaves behind
#
# **Claim.** Wherever a crash cuts the file, every event that was completely written is read back, and the journal can be continued. We cut it after *every* byte beyond the header, which covers every crash that leaves a prefix. One unreadable prefix, or one lost complete line, would refute the claim.

# %%
whole = journal.path.read_bytes()
header_end = whole.index(b"\n") + 1
torn = Path(folder.name) / "torn.jsonl"

def survivors(cut: int) -> tuple[int, int]:
    torn.write_bytes(whole[:cut])
    before = len(read_journal(torn))
    again = Journal(torn)
    again.append(Warned(step=5, code="resumed", message="went on after the crash"))
    again.close()
    return before, len(read_journal(torn))

# %%
counts = [survivors(cut) for cut in range(header_end, len(whole) + 1)]
complete = [whole[:cut].count(b"\n") - 1 for cut in range(header_end, len(whole) + 1)]
len(counts), counts[0], counts[-1]

# %%
assert [before for before, _ in counts] == complete
assert all(after == before + 1 for before, after in counts)

# %% [markdown]
# ## What it costs
#
# Writing and flushing a line must be nothing beside a step, or people will switch the journal off.

# %%
journal = Journal(Path(folder.name) / "timed.jsonl")
begin = time.perf_counter()
for step in range(2000):
    journal.append(Stepped(step=step, epoch=0.0, loss=0.5, lr=1e-3, grad_norm=1.0))
microseconds = (time.perf_counter() - begin) / 2000 * 1e6
journal.close()
f"{microseconds:.0f} µs per event"

# %% [markdown]
# ## The story: the loss of 0.0 that was not a number
#
# `transformers.Trainer` filters what it logs: by default (`logging_nan_inf_filter`) a non-finite loss does not enter the running sum; the mean of what the sum holds so far is added instead. One bad batch then does not spoil the curve. But the sum starts again at zero after each log line, and once the *weights* are not numbers, every loss is filtered: the mean of nothing is zero, and the log shows a perfect score. Here is that rule, logging every second step, beside the events of the same six steps.

# %%
losses = [0.7, 0.6, math.nan, math.nan, math.nan, math.nan]

def filtered_log(losses: list[float], every: int = 2) -> list[float]:
    logged, total = [], 0.0
    for i, loss in enumerate(losses):
        total += total / (1 + i % every) if math.isnan(loss) else loss
        if (i + 1) % every == 0:
            logged.append(total / every)
            total = 0.0
    return logged

# %%
said = [from_json(to_json(Stepped(step=i, epoch=0.0, loss=x, lr=1e-3, grad_norm=1.0))).loss for i, x in enumerate(losses)]
filtered_log(losses), said

# %%
assert filtered_log(losses)[-1] == 0.0 and sum(math.isnan(x) for x in said) == 4

# %% [markdown]
# ## Exercises
#
# **1 (easy).** Write `best_metric`: from any iterable of events, the best value of one metric and the step it was reached at.

# %% tags=["exercise"]
def best_metric(events: Iterable[Event], name: str) -> tuple[float, int]:
    ...  # your code here

# %% tags=["solution"]
def best_metric(events: Iterable[Event], name: str) -> tuple[float, int]:
    return max((e.metrics[name], e.step) for e in events if isinstance(e, Evaluated))

# %%
scores = [Evaluated(step=s, epoch=1.0, loss=0.5, metrics={"accuracy": a}) for s, a in ((10, 0.7), (20, 0.9), (30, 0.8))]
assert best_metric(scores, "accuracy") == (0.9, 20)

# %% [markdown]
# **2 (medium).** Write `smoothed`: an iterator that takes events and yields the exponentially smoothed training loss, one value per `step` event, passing over everything else: $s_t = \beta s_{t-1} + (1-\beta)\,l_t$, started at the first loss.

# %% tags=["exercise"]
def smoothed(events: Iterable[Event], beta: float = 0.9) -> Iterator[float]:
    ...  # your code here

# %% tags=["solution"]
def smoothed(events: Iterable[Event], beta: float = 0.9) -> Iterator[float]:
    value = None
    for event in events:
        if isinstance(event, Stepped):
            value = event.loss if value is None else beta * value + (1 - beta) * event.loss
            yield value

# %%
mixed = [Stepped(step=1, epoch=0, loss=1.0, lr=1, grad_norm=1), scores[0], Stepped(step=2, epoch=0, loss=0.0, lr=1, grad_norm=1)]
assert [round(x, 6) for x in smoothed(mixed)] == [1.0, 0.9]

# %% [markdown]
# ## Summary
# - A training says what happened in seven kinds of frozen records; whoever wants to know reads them.
# - Commands are records too, and come back as `changed` events with the step they took effect at.
# - A journal is one JSON line per event behind a schema line. Any prefix of it is readable and can be continued.
#
# **What next:** lesson 14 draws these events, lesson 18 produces them. **Sources:** the JSON Lines convention (jsonlines.org); transformers' `TrainingArguments.logging_nan_inf_filter`.
