# Exported from nbs/14_charts.py: edit the lesson, then run `make export`.
"""From events to a picture: a curve of any length in bounded memory, drawn live, in the saved notebook, and as text."""

import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np

from ftnb.events import Changed, Evaluated, Event, Finished, Started, Stepped, Warned
from ftnb.widgets.figure import Picture, draw_figure
from ftnb.widgets.svg import draw_svg, format_duration, format_number, header_html

__all__ = [
    "Point",
    "Series",
    "RunningMean",
    "CURVES",
    "MAX_MARKS",
    "Mark",
    "mark_of",
    "History",
    "describe",
    "plot_history",
    "history_svg",
    "history_html",
    "history_text",
]


Point = tuple[float, float]


def _merge_pairs(points: list[Point], pick: Any) -> list[Point]:
    """Keep one of every two neighbours: the lower (`pick=min`) or the higher (`pick=max`)."""
    return [pick(points[i : i + 2], key=itemgetter(1)) for i in range(0, len(points), 2)]


class Series:
    """A curve of any length in bounded memory that keeps its extremes.

    Args:
        max_buckets: how many buckets are kept; each holds its lowest and its highest point.

    Attributes:
        width: how many values a full bucket stands for; a power of two.
        last: the last point added, or None.
        num_skipped: values that were not finite; they have no place on an axis.

    Source: after Jugel et al. (2014), "M4: A Visualization-Oriented Time Series Data Aggregation".
    """

    def __init__(self, max_buckets: int = 512) -> None:
        self.max_buckets, self.width, self.num_skipped = max_buckets, 1, 0
        self.last: Point | None = None
        self._low: list[Point] = []
        self._high: list[Point] = []
        self._filled = 0  # values in the last bucket

    def add(self, x: float, y: float) -> None:
        """Append a point; `x` must not decrease. A value that is not finite is counted and left out."""
        if not math.isfinite(y):
            self.num_skipped += 1
            return
        self.last = (x, y)
        if self._filled == 0:
            self._low.append(self.last)
            self._high.append(self.last)
        else:
            self._low[-1] = min(self._low[-1], self.last, key=itemgetter(1))
            self._high[-1] = max(self._high[-1], self.last, key=itemgetter(1))
        self._filled = (self._filled + 1) % self.width
        if self._filled == 0 and len(self._low) >= self.max_buckets:
            self._low, self._high = _merge_pairs(self._low, min), _merge_pairs(self._high, max)
            self.width *= 2

    def points(self, max_points: int = 1000) -> list[Point]:
        """At most `max_points` points in order: every bucket's extremes, and the last point."""
        low, high, each = self._low, self._high, 1 if self.width == 1 else 2
        while each * len(low) > max_points - 1 and len(low) > 1:
            low, high, each = _merge_pairs(low, min), _merge_pairs(high, max), 2
        kept = sorted({*low, *high})
        if self.last is not None and kept[-1] != self.last:
            kept.append(self.last)
        return kept


class RunningMean:
    """An exponential mean over about `span` values, fewer at the start, and right from the first value on.

    Source: the bias correction of Kingma and Ba (2015), "Adam: A Method for Stochastic Optimization", section 3.
    """

    def __init__(self, span: float) -> None:
        self.span = max(span, 1.0)
        self._sum, self._weight, self._count = 0.0, 0.0, 0

    @property
    def value(self) -> float:
        """The mean so far; NaN before the first value."""
        return self._sum / self._weight if self._count else math.nan

    def add(self, y: float) -> float:
        """Take in a value (one that is not finite is left out) and return the mean."""
        if math.isfinite(y):
            beta = 1 - 2 / (min(self.span, 5 + self._count / 8) + 1)
            self._sum = beta * self._sum + (1 - beta) * y
            self._weight = beta * self._weight + 1 - beta
            self._count += 1
        return self.value


# Curve → share of the drawn points. The raw loss has most to show; a run is evaluated rarely.
CURVES = {"loss": 0.4, "smooth": 0.2, "lr": 0.15, "speed": 0.1, "valid_loss": 0.075, "metric": 0.075}
MAX_MARKS = 100
_PAUSE, _RESUME = {"pause", "paused"}, {"resume", "resumed"}
_STATES = {"done": "done", "early_stopping": "done", "stopped": "stopped", "failed": "failed"}


@dataclass(frozen=True)
class Mark:
    """Something worth a line in the picture. `kind` is "lr", "phase", "pause", "warning" or "other"."""

    step: int
    kind: str
    label: str
    hint: str


def mark_of(event: Changed) -> Mark:
    """How a change is marked: a short label in the picture, a full sentence for the pointer."""
    old, new = (format_number(v) if isinstance(v, int | float) else v for v in (event.old, event.new))
    name = {"lr": "learning rate"}.get(event.what, event.what)
    change = f"{name} {old} → {new}" if old is not None else f"{name} {new}" if new is not None else name
    hint = change + (f" ({event.group})" if event.group else "") + f" at step {event.step}"
    if event.what in ("lr", "phase"):
        return Mark(event.step, event.what, f"lr {new}" if event.what == "lr" else str(new), hint)
    if event.what in _PAUSE:
        return Mark(event.step, "pause", "pause", f"paused at step {event.step}")
    return Mark(event.step, "other", event.what, hint)


class History:
    """What a picture of a training needs, fed by its events, in bounded memory. Safe to draw while it grows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.step, self.epoch, self.seconds = 0, 0.0, 0.0
        self.version = 0  # how many events were taken in
        self.curves = {name: Series() for name in CURVES}
        self.last: dict[str, float] = {}
        self.best: Point | None = None
        self.peak_lr: float | None = None  # as last set by a person
        self.metric, self.marks, self.note = "", list[Mark](), ""
        self._means = {name: RunningMean(20) for name in ("smooth", "speed", "pace")}
        self._paused_at: float | None = None
        self._first_phase: Mark | None = None
        self._pauses, self._worked = 0.0, 0.0

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> "History":
        """The history of a finished or read-back training."""
        history = cls()
        for event in events:
            history.add(event)
        return history

    def restart(self, events: Iterable[Event]) -> None:
        """Forget everything and take in these events: the training went back to a snapshot."""
        fresh = {name: value for name, value in vars(History.from_events(events)).items() if name != "_lock"}
        with self._lock:
            version = self.version
            self.__dict__.update(fresh)
            self.version += version + 1

    def add(self, event: Event) -> None:
        """Take in one event; any thread may call it."""
        with self._lock:
            self.version += 1
            self.step, self.seconds = max(self.step, event.step), max(self.seconds, event.time)
            match event:
                case Started():
                    self._start(event)
                case Stepped():
                    self._take_step(event)
                case Evaluated() if event.split == "valid":
                    self._evaluate(event)
                case Changed():
                    self._change(event)
                case Warned():
                    self.note = event.message
                case Finished():
                    self.finished = event
                    self.note = event.message or self.note

    def _start(self, event: Started) -> None:
        self.started, self.finished, self.metric = event, None, event.metric
        short = min(max(event.num_steps / 40, 5), 200)
        # A pace over a whole epoch spreads the time of its evaluation evenly over its steps.
        spans = {"smooth": short, "speed": short, "pace": max(event.steps_per_epoch, 20)}
        self._means = {name: RunningMean(span) for name, span in spans.items()}
        self._worked = event.time - self._pauses

    def _take_step(self, event: Stepped) -> None:
        self.epoch = event.epoch
        speed = event.examples_per_second
        values = {"loss": event.loss, "smooth": self._means["smooth"].add(event.loss), "lr": event.lr}
        if math.isfinite(speed):
            values["speed"] = self._means["speed"].add(speed)
        for name, value in values.items():
            self.curves[name].add(event.step, value)
            self.last[name] = value
        if not math.isfinite(event.loss):
            self.note = f"The loss was {event.loss} at step {event.step}; it is left out of the curve."
            self._mark(Mark(event.step, "warning", str(event.loss), f"loss {event.loss} at step {event.step}"))
        worked = event.time - self._pauses
        self._means["pace"].add(worked - self._worked)
        self._worked = worked

    def _evaluate(self, event: Evaluated) -> None:
        self.epoch = event.epoch
        self.metric = self.metric or next(iter(event.metrics), "")
        value = event.metrics.get(self.metric, math.nan)
        for name, number in {"valid_loss": event.loss, "metric": value}.items():
            self.curves[name].add(event.step, number)
            self.last[name] = number
        if event.best and math.isfinite(value):
            self.best = (event.step, value)

    def _change(self, event: Changed) -> None:
        if event.what in _RESUME:
            if self._paused_at is not None:
                pause = event.time - self._paused_at
                self._pauses, self._paused_at = self._pauses + pause, None
                hint = f"paused for {format_duration(pause)} at step {event.step}"
                self._mark(Mark(event.step, "pause", "pause", hint))
            return
        if event.what in _PAUSE:
            self._paused_at = event.time
        if event.what == "lr" and event.group is None and isinstance(event.new, int | float):
            self.peak_lr = float(event.new)
        if event.what == "phase" and event.old is None:
            self._first_phase = mark_of(event)  # worth a mark only if there is a second one
        elif event.what != "evaluate":  # its dot is mark enough
            if event.what == "phase" and self._first_phase is not None:
                self._mark(self._first_phase)
                self._first_phase = None
            self._mark(mark_of(event))

    def _mark(self, mark: Mark) -> None:
        """Add a mark; a later one of the same kind at the same step takes its place."""
        kept = [m for m in self.marks if (m.step, m.kind) != (mark.step, mark.kind)]
        self.marks = [*kept, mark][-MAX_MARKS:]

    @property
    def state(self) -> str:
        """The state as far as events tell it: idle, running, paused, done, stopped or failed."""
        if self.finished is not None:
            return _STATES.get(self.finished.reason, "done")
        if self.started is None and self.step == 0:
            return "idle"
        return "running" if self._paused_at is None else "paused"

    @property
    def seconds_left(self) -> float | None:
        """The time left at the recent pace, pauses left out; None when nothing can be said."""
        if self.started is None or self.finished is not None or not self.curves["lr"].last:
            return None
        pace = self._means["pace"].value
        return max(self.started.num_steps - self.step, 0) * pace if math.isfinite(pace) else None

    def _facts(self, state: str) -> dict[str, Any]:
        """The numbers of a summary, without the curves."""
        start, best = self.started, self.best
        num_steps = start.num_steps if start else self.step
        last = {**self.last, "loss": self.last.get("smooth")}
        return {
            "state": state, "finished": self.finished is not None, "note": self.note, "metric": self.metric,
            "step": self.step, "num_steps": num_steps, "progress": min(self.step / num_steps, 1) if num_steps else 0.0,
            "steps_per_epoch": start.steps_per_epoch if start else 0,
            "epoch": round(self.epoch, 4), "num_epochs": start.num_epochs if start else math.ceil(self.epoch),
            "seconds": self.seconds, "eta": self.seconds_left,
            "last": {name: _finite(last.get(name)) for name in (*CURVES, "loss")},
            "best": {"step": best[0], "value": best[1]} if best else None,
            "marks": [vars(mark) for mark in self.marks],
        }  # fmt: skip

    def snapshot(self, max_points: int = 1000, state: str | None = None) -> tuple[dict[str, Any], bytes]:
        """The whole picture as plain data: a small summary, and the points of all curves in one float32 block.

        Args:
            max_points: how many points all curves together may have.
            state: the run's own word for its state; None takes what the events tell.

        Returns:
            (summary, points). `summary["series"]` says where each curve lies in `points`: `count` steps from
            `start` on, then `count` values, little-endian float32.
        """
        with self._lock:
            summary = self._facts(state or self.state)
            curves = {name: self.curves[name].points(int(share * max_points)) for name, share in CURVES.items()}
        starts = np.cumsum([0, *(2 * len(points) for points in curves.values())]).tolist()
        summary["series"] = [
            {"name": name, "start": start, "count": len(points)}
            for (name, points), start in zip(curves.items(), starts, strict=False)
        ]
        columns = [np.array(points, dtype="<f4").T.ravel() for points in curves.values() if points]
        summary["text"] = describe(summary)
        return summary, np.concatenate(columns).tobytes() if columns else b""


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: what is not finite is left empty."""
    return value if value is not None and math.isfinite(value) else None


def describe(summary: dict[str, Any]) -> str:
    """The picture in one sentence: the text alternative, and the last rung of the ladder."""
    metric, last, best = summary["metric"] or "metric", summary["last"], summary["best"]
    values = {"loss": last["loss"], "validation loss": last["valid_loss"], metric: last["metric"]}
    parts = [f"{name} {format_number(value)}" for name, value in values.items() if value is not None]
    if best is not None:
        parts.append(f"best {metric} {format_number(best['value'])} at step {best['step']}")
    if not summary["finished"] and last["lr"] is not None:
        parts.append(f"learning rate {format_number(last['lr'])}")
    if summary["eta"] is not None and summary["state"] != "failed":
        parts.append(f"{format_duration(summary['eta'])} left")
    steps = f"step {summary['step']} of {summary['num_steps']} in {format_duration(summary['seconds'])}"
    return ", ".join([f"{summary['state']}: {steps}", *parts])


def plot_history(
    history: History, *, width: float = 8.75, height: float = 4.0, log: bool = False, state: str | None = None
) -> Picture:
    """Draw a history as a static picture.

    Args:
        history: what to draw; it may still be growing.
        state: what to call its state; by default what its events say.
        width: in inches, at 80 dots an inch.
        height: in inches.
        log: a logarithmic loss axis.

    Returns:
        A figure with four plots (loss, metric, learning rate, speed) and one line that says how it went. It belongs
        to no pyplot state, and any thread may draw it.
    """
    summary, points = history.snapshot(state=state)
    return draw_figure(summary, points, width=width, height=height, log=log)


def history_svg(history: History, *, width: float = 700, height: float = 310, log: bool = False) -> str:
    """Draw a history as one `<svg>` element, with `role="img"`, a title and a label that say it in words.

    Args:
        history: what to draw; it may still be growing.
        width: in pixels; the element scales to its place, so this sets how large the text is beside the curves.
        height: in pixels.
        log: a logarithmic loss axis.
    """
    summary, points = history.snapshot()
    return draw_svg(summary, points, width, height, log)


def history_html(
    history: History, *, state: str | None = None, max_points: int = 1000, width: float = 700
) -> str:
    """State, progress, last values and picture as HTML that needs no script: for pages where no live chart can be."""
    summary, points = history.snapshot(max_points, state)
    return f'<div class="ftnb">{header_html(summary)}{draw_svg(summary, points, width)}</div>'


def history_text(history: History, *, state: str | None = None) -> str:
    """The history in one line of text."""
    return describe(history.snapshot(state=state)[0])
