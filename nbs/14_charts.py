# %% [markdown]
# # Charts
#
# > From events to a picture: a curve of any length in bounded memory, drawn live, in the saved notebook, and as text.
#
# At the end you can watch any training through one object, say what a chart may leave out and what it must not, and draw a picture that stays in a saved notebook. Runs in about 10 s on a CPU.

# %%
#| default_exp charts

# %%
#| export
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

# %%
import json
import random
import statistics
import time

import matplotlib.pyplot as plt
from IPython.display import HTML

from ftnb.widgets.svg import stylesheet

# %% [markdown]
# ## A long curve on a narrow page
#
# A run may take 100,000 steps; a chart is 400 pixels wide. Something must be left out. The usual ways, every 250th point or a random thousand, leave out exactly what you look for: the one step where the loss jumped.
#
# So we keep *extremes*. The curve is cut into buckets of neighbouring steps, and each bucket keeps its lowest and its highest point. When there are too many buckets, neighbours merge in pairs: the lower of two lows, the higher of two highs. Memory is bounded, an update costs the same however long the run is, and the lowest and highest value ever seen are always in the picture.

# %%
#| export
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

# %% [markdown]
# A short curve is kept as it is.

# %%
curve = Series(max_buckets=8)
for x, y in enumerate([5.0, 3.0, 4.0, 2.0]):
    curve.add(x, y)
curve.points()

# %% [markdown]
# A long one keeps its peak, though the peak lasted for one step out of a thousand.

# %%
curve = Series(max_buckets=8)
for x in range(1000):
    curve.add(x, 9.0 if x == 617 else 1.0)
curve.width, curve.points()

# %%
assert max(y for _, y in curve.points()) == 9.0 and len(curve.points()) <= 17

# %% [markdown]
# ## A mean that starts right
#
# The loss of one batch is noisy, so a chart also draws a running mean, $m_t = \beta m_{t-1} + (1-\beta)\,y_t$. Started at $m_0 = 0$ it is far too low in its first steps: after one step it is $(1-\beta)\,y_1$. The weights given so far sum to $1-\beta^t$, and dividing by that repairs it. It is the bias correction of Adam. A wide mean also lags behind a curve that falls fast at first, so ours starts narrow and widens as the run goes on; the sum of weights is kept beside the sum of values, and the division stays right.

# %%
#| export
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

# %%
mean = RunningMean(span=20)
means = [mean.add(y) for y in (2.0, 2.0, 2.0)]
means

# %%
np.testing.assert_allclose(means, 2.0)

# %% [markdown]
# ## A history reads events
#
# `History` takes the events of lesson 13, one by one, and holds what a picture needs: six curves, the marks (a learning rate changed by hand, a pause, a phase), the best evaluation, and the time left. It knows nothing of the loop that sends the events. A lock lets one thread add while another draws.

# %%
#| export
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

# %%
mark_of(Changed(step=120, what="lr", old=2e-5, new=1e-4))

# %%
#| export
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

# %% [markdown]
# To try it, a training that never happened: losses that fall, an evaluation per epoch, a pause, and a learning rate raised by hand.

# %%
def pretend_training(num_steps: int = 600, steps_per_epoch: int = 200, seed: int = 0) -> list[Event]:
    draw, lr, seconds = random.Random(seed), 2e-4, 0.0
    events: list[Event] = [
        Started(step=0, num_steps=num_steps, steps_per_epoch=steps_per_epoch, num_epochs=3, num_examples=3200,
                num_parameters=500_000, num_trainable=500_000, device="cpu", precision="fp32", metric="accuracy")]
    for step in range(1, num_steps + 1):
        seconds += 0.05
        clean = 0.25 + 0.45 * math.exp(-step / 150)
        events.append(Stepped(
            step=step, time=seconds, epoch=step / steps_per_epoch, loss=max(0.02, clean + draw.gauss(0, 0.07)),
            lr=lr * min(step / 60, 1) * (1 - step / (num_steps + 1)), grad_norm=1.0, examples_per_second=320 + draw.gauss(0, 9)))
        if step == 250:
            events.append(Changed(step=step, time=seconds, what="lr", old=lr, new=4e-4))
            lr = 4e-4
        if step == 330:
            events.append(Changed(step=step, time=seconds, what="paused"))
            seconds += 40
            events.append(Changed(step=step, time=seconds, what="resumed"))
        if step % (steps_per_epoch // 2) == 0:
            metrics = {"accuracy": 0.9 - 0.4 * math.exp(-step / 150) - 0.00006 * step}
            events.append(Evaluated(step=step, time=seconds, epoch=step / steps_per_epoch, loss=clean + 0.03 + 0.00015 * step,
                                    metrics=metrics, best=step <= 500))
    return [*events, Finished(step=num_steps, time=seconds, reason="done", best_step=500, best_value=0.855)]


events = pretend_training()
halfway = History.from_events(events[:420])
describe(halfway.snapshot()[0])

# %% [markdown]
# The time left leaves the pause out: 40 seconds of it passed before this moment, and the estimate is what the remaining steps need.

# %%
remaining = 600 - halfway.step
assert abs(halfway.seconds_left - remaining * 0.05) < 0.1

# %% [markdown]
# ## The static picture
#
# A saved notebook, on GitHub or printed, has no kernel: its picture is a PNG. Matplotlib draws it through its object interface, never through `pyplot`, which keeps a global list of figures and belongs to the main thread. One lock stands around all drawing, because matplotlib's text machinery is shared. Glyphs that the first font lacks (a metric named in Chinese, say) are taken from any other installed font that has them. The drawing itself, in `ftnb/widgets/figure.py`, holds no idea worth a lesson.

# %%
#| export
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

# %%
plot_history(History.from_events(events))

# %% [markdown]
# Faint: the loss of single steps. Strong: its running mean. Dots: evaluations, the best one ringed. Dotted lines are epochs; dashed ones are what a person did, in the colour of what was changed.

# %% [markdown]
# ## The same picture without matplotlib
#
# Drawing with matplotlib takes tens of milliseconds, too much for a picture that changes four times a second while the same interpreter trains. An SVG is text: a path is a string of numbers, ready in a millisecond or two. It scales, follows a page's light or dark theme, and carries its own description for a screen reader.

# %%
#| export
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

# %%
HTML(f"<style>{stylesheet()}</style>" + history_html(halfway))

# %%
history_text(halfway)

# %%
svg = history_svg(halfway)
assert 'role="img"' in svg and "<title>running: step" in svg

# %% [markdown]
# The live chart of lesson 56 is the same drawing once more, in the browser (`ftnb/static/chart.js`): the kernel sends the summary and one block of float32, at most four times a second, and only while somebody looks. Where that cannot run, the HTML above takes its place; where no HTML can be shown, the line of text.
#
# ## The experiment: what a thinned-out curve shows
#
# **Claim.** In a curve of 100,000 steps with a spike of three steps, drawn with 400 points: every 250th step and a random 400 mostly miss the spike; the buckets always show it. Thirty seeds. The claim would be refuted if the bucketed curve missed one spike, or if the others showed most.

# %%
def spiked_curve(seed: int, num_steps: int = 100_000) -> np.ndarray:
    draw = np.random.default_rng(seed)
    steps = np.arange(num_steps)
    losses = 1 + 2 * np.exp(-steps / 20_000) + 0.05 * draw.standard_normal(num_steps)
    at = draw.integers(1000, num_steps - 1000)
    losses[at : at + 3] += 4
    return losses


def bucketed(losses: np.ndarray, max_points: int = 400) -> list[Point]:
    curve = Series()
    for step, loss in enumerate(losses.tolist()):
        curve.add(step, loss)
    return curve.points(max_points)

# %%
seen = {"every 250th": 0, "random 400": 0, "buckets": 0}
for seed in range(30):
    losses = spiked_curve(seed)
    chosen = np.random.default_rng(1000 + seed).choice(len(losses), 400, replace=False)
    seen["every 250th"] += bool(losses[::250].max() > 4.5)
    seen["random 400"] += bool(losses[chosen].max() > 4.5)
    seen["buckets"] += bool(max(y for _, y in bucketed(losses)) == losses.max())
seen

# %%
losses = spiked_curve(3)
ways = {
    "every 250th": [(x, losses[x]) for x in range(0, len(losses), 250)],
    "random 400": [(x, losses[x]) for x in sorted(np.random.default_rng(3).choice(len(losses), 400, replace=False))],
    "buckets": bucketed(losses),
}
fig, axes = plt.subplots(1, 3, figsize=(8.75, 2.6), dpi=80, sharey=True, layout="constrained")
for ax, (name, points) in zip(axes, ways.items(), strict=True):
    ax.plot(*zip(*points, strict=True), linewidth=1)
    ax.set(title=f"{name}: {len(points)} points", xlabel="step")
    ax.set_xticks([0, 50_000, 100_000])
axes[0].set_ylabel("loss")
plt.show()

# %%
assert seen["buckets"] == 30 and max(seen["every 250th"], seen["random 400"]) < 15

# %% [markdown]
# The buckets pay for it with a thicker band: the picture shows the range of the noise, not its density. The running mean drawn above it carries the trend.
#
# ## What it costs
#
# The second claim is about time: a snapshot costs the same after 100,000 steps as after 1,000, and one event costs microseconds. Beside it, the obvious way: keep every point and send all as JSON. The two are timed in turn, so that a busy machine slows both.

# %%
def milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


lengths, ours, naive, adding = (1_000, 10_000, 100_000), [], [], []
history, everything = History(), []
for until in lengths:
    new = [Stepped(step=s, epoch=0.0, loss=1 + s % 7, lr=1e-4, grad_norm=1.0) for s in range(len(everything), until)]
    adding.append(milliseconds(lambda new=new: [history.add(event) for event in new]) / len(new))
    everything += [(event.step, event.loss) for event in new]
    pairs = [(milliseconds(history.snapshot), milliseconds(lambda: json.dumps(everything))) for _ in range(9)]  # noqa: B023
    ours.append(statistics.median(pair[0] for pair in pairs))
    naive.append(statistics.median(pair[1] for pair in pairs))

# %%
fig, ax = plt.subplots(figsize=(7.5, 2.8), dpi=80, layout="constrained")
ax.loglog(lengths, naive, "o-", label="every point as JSON")
ax.loglog(lengths, ours, "o-", label="snapshot (all curves)")
ax.loglog(lengths, adding, "o-", label="taking in one event")
ax.set(xlabel="steps so far", ylabel="milliseconds", title="Cost of one update (median of 9, in turn)")
ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %%
summary, points = history.snapshot()
len(points), len(json.dumps(summary)), len(json.dumps(everything))  # bytes: points, summary, the obvious way

# %%
assert len(points) <= 8 * 1000  # two float32 for each of at most 1,000 points, however long the run

# %% [markdown]
# ## The story: where did my spike go?
#
# While PaLM's largest model (540 billion parameters) was trained, its loss jumped about twenty times, at irregular steps. The way out was to restart from a checkpoint about 100 steps before and skip 200 to 500 batches. Whoever steers like that must see the jump. TensorBoard, by default, loads a random thousand points of each curve (a reservoir sample), and its README answers a question that comes up again and again: "Is my data being downsampled? Am I really seeing all the data?" A jump of a few steps in a run of 100,000 is then most likely not drawn. Here is a reservoir sample of a thousand, over two hundred samples of one curve with one jump of three steps.

# %%
def reservoir(values: np.ndarray, size: int, seed: int) -> np.ndarray:
    # A uniform sample without replacement: what a reservoir holds once the curve has ended.
    return values[np.random.default_rng(seed).choice(len(values), size, replace=False)]


losses = spiked_curve(0)
shown = sum(reservoir(losses, 1000, seed).max() > 4.5 for seed in range(200))
f"the jump is drawn in {shown} of 200 samples"

# %%
assert shown < 20

# %% [markdown]
# ## Exercises
#
# **1 (easy).** A batch's loss was NaN. Where does it go? Write `count_bad`: how many losses of a list of events a chart must leave out.

# %% tags=["exercise"]
def count_bad(events: list[Event]) -> int:
    ...  # your code here

# %% tags=["solution"]
def count_bad(events: list[Event]) -> int:
    return sum(isinstance(event, Stepped) and not math.isfinite(event.loss) for event in events)

# %%
bad = [Stepped(step=s, epoch=0.0, loss=loss, lr=1e-4, grad_norm=1.0) for s, loss in enumerate((1.0, math.nan, math.inf), 1)]
assert count_bad(bad) == 2 == History.from_events(bad).curves["loss"].num_skipped

# %% [markdown]
# **2 (medium).** Write `sparkline`: a list of numbers as one line of the characters `▁▂▃▄▅▆▇█`, the lowest value lowest. It is a chart for a terminal, and it must not lose an extreme: cut the values into `width` stretches and draw each stretch's highest.

# %% tags=["exercise"]
def sparkline(values: list[float], width: int = 30) -> str:
    ...  # your code here

# %% tags=["solution"]
def sparkline(values: list[float], width: int = 30) -> str:
    cuts = np.array_split(np.array(values), min(width, len(values)))
    highs = np.array([cut.max() for cut in cuts])
    low, high = min(values), max(values)
    levels = (7 * (highs - low) / ((high - low) or 1)).round().astype(int)
    return "".join("▁▂▃▄▅▆▇█"[level] for level in levels)

# %%
line = sparkline([event.loss for event in events if isinstance(event, Stepped)])
line

# %%
assert len(line) == 30 and "█" in line and sparkline([0.0] * 500 + [1.0] + [0.0] * 500, 10).count("█") == 1

# %% [markdown]
# ## Summary
# - Thin out a curve by extremes, never by skipping: what you look for is short.
# - A running mean must be divided by the weight it has seen, or its start is wrong.
# - One snapshot holds the whole picture in a few kilobytes; static, live, HTML and text forms draw the same one.
#
# **What next:** the training loop of the next lessons sends these events; lesson 56 draws them live. **Sources:** Jugel et al. (2014), "M4: A Visualization-Oriented Time Series Data Aggregation", PVLDB 7(10); Kingma and Ba (2015), arXiv:1412.6980; Chowdhery et al. (2022), "PaLM", arXiv:2204.02311, section 5.1; the README of tensorflow/tensorboard; Okabe and Ito, "Color Universal Design", for the palette.
