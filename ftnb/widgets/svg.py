"""The picture of a snapshot as SVG and HTML text, without a browser and without matplotlib.

`ftnb/static/chart.js` draws the same picture in the browser, function by function; a test holds the two together.
"""

import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

# Okabe and Ito's colours, told apart by colour-blind readers; green and purple darkened to 3:1 on white.
PALETTE = {"loss": "#0072b2", "valid": "#d55e00", "metric": "#008560", "lr": "#a4508b", "speed": "#6b6b6b"}

MAX_EPOCH_LINES = 20

Curve = tuple[list[float], list[float]]
# Left, top, right, bottom of one plot's frame in pixels.
Box = tuple[float, float, float, float]


def stylesheet() -> str:
    """The CSS that every form of the chart shares."""
    return (resources.files("ftnb") / "static" / "chart.css").read_text(encoding="utf-8")


def unpack(summary: dict[str, Any], points: bytes) -> dict[str, Curve]:
    """Cut a snapshot's float32 block into its curves: name → (steps, values)."""
    values = np.frombuffer(points, dtype="<f4").astype(float)
    curves = {}
    for part in summary["series"]:
        start, count = part["start"], part["count"]
        curves[part["name"]] = (
            values[start : start + count].tolist(),
            values[start + count : start + 2 * count].tolist(),
        )
    return curves


def format_number(value: float | None) -> str:
    """Three significant digits, an exponent for the very small and very large, a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return str(math.floor(value + 0.5)) if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def format_duration(seconds: float | None) -> str:
    """0:42, 12:05 or 3:07:30."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = math.floor(seconds + 0.5)
    minutes = f"{whole // 60 % 60}:{whole % 60:02d}"
    return minutes if whole < 3600 else f"{whole // 3600}:{minutes.zfill(5)}"


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def value_range(curves: Sequence[Curve], from_zero: bool) -> tuple[float, float]:
    """The range of all values, with a margin; it holds every extreme."""
    values = [y for _, ys in curves for y in ys]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if from_zero:
        return 0.0, high * 1.08 if high > 0 else 1.0
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def step_range(summary: dict[str, Any]) -> float:
    """The last step on the axis: an eighth, a quarter, half or all of the plan while running; what was done, after."""
    step, total = max(summary["step"], 1), summary["num_steps"]
    if summary["finished"] or step >= total:
        return float(step)
    return next(total / part for part in (8, 4, 2, 1) if step <= total / part)


class _Plot:
    """One frame of the picture: where values fall, and the marks in it."""

    def __init__(self, box: Box, steps: float, low: float, high: float, log: bool = False) -> None:
        self.box, self.steps, self.log = box, steps, log
        self.low, self.high = (math.log10(low), math.log10(high)) if log else (low, high)

    def x(self, step: float) -> float:
        left, _, right, _ = self.box
        return left + (right - left) * min(step / self.steps, 1)

    def y(self, value: float) -> float:
        _, top, _, bottom = self.box
        level = math.log10(value) if self.log else value
        return bottom - (bottom - top) * (level - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        if not self.log:
            return nice_ticks(self.low, self.high, count)
        levels = range(math.floor(self.low), math.ceil(self.high) + 1)
        fine = [m * 10.0**k for k in levels for m in (1, 2, 5)]
        return [v for v in fine if self.low <= math.log10(v) <= self.high]

    def grid(self, count: int) -> str:
        left, _, right, _ = self.box
        lines = []
        for value in self.ticks(count):
            y = self.y(value)
            lines.append(f'<line class="g" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            lines.append(f'<text class="t" x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
        return "".join(lines)

    def vertical(self, step: float, cls: str, hint: str = "") -> str:
        _, top, _, bottom = self.box
        title = f"<title>{escape(hint)}</title>" if hint else ""
        x = self.x(step)
        return f'<line class="{cls}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}">{title}</line>'

    def line(self, curve: Curve, cls: str, dots: bool = False) -> str:
        pairs = [(self.x(s), self.y(v)) for s, v in zip(*curve, strict=True)]
        if not pairs:
            return ""
        path = f'<path class="{cls}" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in pairs) + '"/>'
        circles = pairs if dots or len(pairs) == 1 else []
        return path + "".join(f'<circle class="{cls}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in circles)

    def steps_axis(self, count: int) -> str:
        _, _, right, bottom = self.box
        names = []
        for step in nice_ticks(0, self.steps, count):
            x = self.x(step)
            anchor = "end" if x > right - 8 else "middle"
            names.append(
                f'<text class="t" x="{x:.1f}" y="{bottom + 15:.1f}" text-anchor="{anchor}">{format_number(step)}</text>'
            )
        return "".join(names)


def _tick(value: float) -> str:
    return format_number(0.0 if abs(value) < 1e-12 else value)


def _heading(box: Box, text: str, cls: str = "h") -> str:
    return f'<text class="{cls}" x="{box[0]:.1f}" y="{box[1] - 8:.1f}">{escape(text)}</text>'


def _legend(box: Box) -> str:
    x, y = box[2], box[1] - 12
    return (
        f'<path class="loss" d="M{x - 118:.1f} {y:.1f}L{x - 102:.1f} {y:.1f}"/>'
        f'<text class="t" x="{x - 98:.1f}" y="{y + 4:.1f}">train</text>'
        f'<circle class="valid" cx="{x - 60:.1f}" cy="{y:.1f}" r="3"/>'
        f'<text class="t" x="{x - 53:.1f}" y="{y + 4:.1f}">validation</text>'
    )


def _epochs(plots: Sequence[_Plot], summary: dict[str, Any]) -> str:
    per_epoch = summary["steps_per_epoch"]
    count = math.floor(plots[0].steps / per_epoch) if per_epoch else 0
    count = count if count <= MAX_EPOCH_LINES else 0  # many lines say nothing
    steps = [k * per_epoch for k in range(1, count + 1)]
    return "".join(plot.vertical(step, "e") for plot in plots for step in steps)


def _marks(plots: Sequence[_Plot], summary: dict[str, Any]) -> str:
    parts, free_from = [], [-1.0, -1.0]  # two lines of labels: a change made in a pause stands below the pause
    for mark in summary["marks"]:
        parts += [plot.vertical(mark["step"], f"m m-{mark['kind']}", mark["hint"]) for plot in plots]
        x, top = plots[0].x(mark["step"]), plots[0].box[1]
        line = next((i for i, free in enumerate(free_from) if x >= free), None)
        if line is not None and x < plots[0].box[2] - 6 * len(mark["label"]):
            place = f'x="{x + 4:.1f}" y="{top + 9 + 12 * line:.1f}"'
            parts.append(f'<text class="t k-{mark["kind"]}" {place}>{escape(mark["label"])}</text>')
            free_from[line] = x + 10 + 6 * len(mark["label"])
    return "".join(parts)


def _boxes(width: float, height: float) -> tuple[Box, Box, Box, Box]:
    """The frames of loss (left) and of metric, learning rate and speed (right, one below the other)."""
    split, bottom = math.floor(width * 0.6), height - 22
    right, gap = split + 58, 26
    tall = (bottom - 24 - 2 * gap) / 3
    small = [(float(right), 24 + k * (tall + gap), width - 8.0, 24 + k * (tall + gap) + tall) for k in range(3)]
    return (44.0, 24.0, float(split), float(bottom)), small[0], small[1], small[2]


def draw_svg(summary: dict[str, Any], points: bytes, width: float = 700, height: float = 310, log: bool = False) -> str:
    """Draw a snapshot as one `<svg>` element.

    Args:
        summary: the summary of `History.snapshot`.
        points: its float32 block.
        width: in pixels; the element scales, so this sets the proportion of text to picture.
        height: in pixels.
        log: a logarithmic loss axis; passed over when a loss is not positive.
    """
    curves = unpack(summary, points)
    steps = step_range(summary)
    losses = [curves[name] for name in ("loss", "smooth", "valid_loss")]
    all_losses = [y for _, ys in losses for y in ys]
    log = log and bool(all_losses) and min(all_losses) > 0
    low, high = (min(all_losses) * 0.9, max(all_losses) * 1.1) if log else value_range(losses, from_zero=False)
    boxes = _boxes(width, height)
    loss = _Plot(boxes[0], steps, low, high, log)
    metric = _Plot(boxes[1], steps, *value_range([curves["metric"]], from_zero=False))
    lr = _Plot(boxes[2], steps, *value_range([curves["lr"]], from_zero=True))
    speed = _Plot(boxes[3], steps, *value_range([curves["speed"]], from_zero=True))
    plots, best = (loss, metric, lr, speed), summary["best"]
    ring = ""
    if best is not None:
        ring = f'<circle class="best" cx="{metric.x(best["step"]):.1f}" cy="{metric.y(best["value"]):.1f}" r="6"/>'
    text = escape(summary["text"])
    return "".join(
        (
            f'<svg class="ftnb-svg" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text}">',
            f"<title>{text}</title>",
            loss.grid(7),
            *(plot.grid(3) for plot in plots[1:]),
            _epochs(plots, summary),
            _marks(plots, summary),
            _heading(boxes[0], "loss"),
            _legend(boxes[0]),
            _heading(boxes[1], summary["metric"] or "metric"),
            _heading(boxes[2], "learning rate"),
            _heading(boxes[3], "examples per second"),
            loss.line(curves["loss"], "raw"),
            loss.line(curves["smooth"], "loss"),
            loss.line(curves["valid_loss"], "valid", dots=True),
            metric.line(curves["metric"], "metric", dots=True),
            ring,
            lr.line(curves["lr"], "lr"),
            speed.line(curves["speed"], "speed"),
            loss.steps_axis(6),
            speed.steps_axis(3),
            "</svg>",
        )
    )


def header_html(summary: dict[str, Any]) -> str:
    """State, progress and the last values, above the picture."""
    state, percent = summary["state"], 100 * summary["progress"]
    where = f"epoch {format_number(summary['epoch'])} of {summary['num_epochs']} · "
    where += f'step <span class="ftnb-step">{summary["step"]}</span> of {summary["num_steps"]}'
    left = f"{format_duration(summary['seconds'])} so far"
    if summary["eta"] is not None:
        left = f"{format_duration(summary['eta'])} left · " + left
    note = f'<div class="ftnb-note">{escape(summary["note"])}</div>' if summary["note"] else ""
    values = "".join(
        f'<span><span class="ftnb-key-{key}">{mark}</span> {escape(name)} '
        f"<b>{format_number(summary['last'][key])}</b></span>"
        for key, mark, name in value_names(summary)
    )
    return (
        f'<div class="ftnb-head"><span class="ftnb-state ftnb-state-{state}">{state}</span>'
        f'<span>{where}</span><span class="ftnb-left">{left}</span></div>'
        f'<div class="ftnb-bar ftnb-bar-{state}" role="progressbar" aria-label="progress of the run" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent:.0f}"><div style="width:{percent:.1f}%"></div></div>'
        f'{note}<div class="ftnb-values">{values}</div>'
    )


def value_names(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Key, symbol and name of the values shown above the picture."""
    return [
        ("loss", "▬", "loss"),
        ("valid_loss", "●", "validation loss"),
        ("metric", "●", summary["metric"] or "metric"),
        ("lr", "▬", "learning rate"),
        ("speed", "▬", "examples/s"),
    ]
