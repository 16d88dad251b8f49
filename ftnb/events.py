# Exported from nbs/13_events.py: edit the lesson, then run `make export`.
"""What a training says about itself, as plain data: everything that watches a run reads this and nothing else."""

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

__all__ = [
    "Event",
    "Started",
    "Stepped",
    "Evaluated",
    "Saved",
    "Changed",
    "Warned",
    "Finished",
    "Pause",
    "Resume",
    "Stop",
    "Evaluate",
    "SetLr",
    "SetParts",
    "Command",
    "SCHEMA_VERSION",
    "KINDS",
    "JournalError",
    "NewerJournalError",
    "to_json",
    "from_json",
    "Journal",
    "read_journal",
    "what_counts",
]


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


def to_json(event: Event) -> str:
    """Write an event as one line of strict JSON (no newline inside, no bare NaN)."""
    fields = {f.name: _encode(getattr(event, f.name)) for f in dataclasses.fields(event)}
    return json.dumps({"kind": event.kind, **fields}, allow_nan=False, ensure_ascii=False)


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
