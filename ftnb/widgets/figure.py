"""The picture of a snapshot by matplotlib: static, for a saved notebook, a report or a file."""

import io
import math
import threading
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ftnb.widgets.svg import MAX_EPOCH_LINES, PALETTE, Curve, format_number, step_range, unpack, value_range

_DRAWING = threading.RLock()
_STEPS = [1, 2, 2.5, 5, 10]
_FALLBACKS = ("Noto Sans CJK", "Noto Sans", "Source Han", "WenQuanYi", "Hiragino", "PingFang", "Microsoft YaHei",
              "Malgun Gothic", "Yu Gothic", "Arial Unicode")  # fmt: skip


def font_families() -> list[str]:
    """Fonts to draw with, in order: the default, then installed ones with glyphs beyond Latin, Greek and Cyrillic."""
    installed = font_manager.fontManager.get_font_names()
    return ["DejaVu Sans", *(name for start in _FALLBACKS for name in sorted(installed) if name.startswith(start))]


class Picture(Figure):
    """A figure that shows itself as the last value of a cell, whether or not pyplot was ever imported."""

    def png(self) -> bytes:
        """The picture as a PNG file; any thread may call it."""
        with _DRAWING, io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()


def _style(axes: Axes, title: str, summary: dict[str, Any], num_ticks: int) -> None:
    """Frame, grid, epochs and commands, alike in all four plots."""
    axes.set_facecolor("white")
    axes.set_title(title, loc="left", fontsize=9, fontweight="bold", pad=4, color="#222222")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=8, color="#999999", labelcolor="#333333", length=3)
    axes.grid(axis="y", color="#000000", alpha=0.1, linewidth=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(num_ticks, steps=_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(0 if abs(value) < 1e-12 else value)))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_STEPS))
    steps, per_epoch = step_range(summary), summary["steps_per_epoch"]
    axes.set_xlim(0, steps)
    count = math.floor(steps / per_epoch) if per_epoch else 0
    for k in range(1, count + 1 if count <= MAX_EPOCH_LINES else 0):
        axes.axvline(k * per_epoch, color="#000000", alpha=0.3, linewidth=0.8, linestyle=(0, (1, 3)))
    for mark in summary["marks"]:
        axes.axvline(mark["step"], color=MARK_COLORS[mark["kind"]], linewidth=0.9, linestyle=(0, (4, 3)))


MARK_COLORS = {"lr": PALETTE["lr"], "pause": "#8a5a00", "warning": "#b3261e", "phase": "#555555", "other": "#555555"}


def _label_marks(axes: Axes, summary: dict[str, Any]) -> None:
    """Write the marks' labels in two lines along the top, leaving out what would overlap or stick out."""
    steps, free_from = step_range(summary), [-1.0, -1.0]
    for mark in summary["marks"]:
        until = mark["step"] + steps / 70 * (len(mark["label"]) + 2)
        line = next((i for i, free in enumerate(free_from) if mark["step"] >= free), None)
        if line is not None and until <= steps * 1.02:
            color = MARK_COLORS[mark["kind"]]
            position = (mark["step"], 1.0)
            halo = [withStroke(linewidth=3, foreground="white")]  # other marks' lines may cross the label
            axes.annotate(mark["label"], position, (3, -8 - 10 * line), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=color, fontsize=8, path_effects=halo)  # fmt: skip
            free_from[line] = until


def _make_logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.autoscale(axis="y")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _line(axes: Axes, curve: Curve, color: str, **style: Any) -> None:
    """A curve; of a single point, a dot."""
    axes.plot(*curve, color=color, marker="o" if len(curve[0]) == 1 else "", markersize=3, **style)


def _draw(figure: Figure, summary: dict[str, Any], curves: dict[str, Curve], log: bool) -> None:
    grid = figure.add_gridspec(3, 2, width_ratios=(1.75, 1))
    loss = figure.add_subplot(grid[:, 0])
    metric, lr, speed = (figure.add_subplot(grid[row, 1]) for row in range(3))
    # Dots on the frame are drawn whole; they take no part in the layout, which an empty unclipped line would upset.
    whole: dict[str, Any] = {"clip_on": False, "in_layout": False}
    dots = {"marker": "o", "markersize": 4, "linewidth": 1.4, "zorder": 3, **whole}
    _line(loss, curves["loss"], PALETTE["loss"], alpha=0.32, linewidth=0.9)
    _line(loss, curves["smooth"], PALETTE["loss"], linewidth=2, label="train")
    loss.plot(*curves["valid_loss"], color=PALETTE["valid"], label="validation", **dots)
    metric.plot(*curves["metric"], color=PALETTE["metric"], **dots)
    _line(lr, curves["lr"], PALETTE["lr"], linewidth=1.5)
    _line(speed, curves["speed"], PALETTE["speed"], linewidth=1.2)
    losses = [curves[name] for name in ("loss", "smooth", "valid_loss")]
    log = log and min((y for _, ys in losses for y in ys), default=0) > 0
    for axes, title, ticks, shown in (
        (loss, "loss", 6, losses), (metric, summary["metric"] or "metric", 3, [curves["metric"]]),
        (lr, "learning rate", 3, [curves["lr"]]), (speed, "examples per second", 3, [curves["speed"]]),
    ):  # fmt: skip
        _style(axes, title, summary, ticks)
        axes.set_ylim(*value_range(shown, from_zero=axes in (lr, speed)))
    if log:
        _make_logarithmic(loss)
    for axes in (metric, lr):
        axes.tick_params(labelbottom=False)
    if best := summary["best"]:
        metric.plot(best["step"], best["value"], "o", markersize=9, mfc="none", mec="#333333", zorder=4, **whole)
    _label_marks(loss, summary)
    loss.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=2, borderpad=0,
                labelcolor="#333333")  # fmt: skip
    loss.set_xlabel("step", fontsize=8, color="#333333", loc="right", labelpad=1)


def draw_figure(
    summary: dict[str, Any], points: bytes, *, width: float = 8.75, height: float = 4.0, log: bool = False
) -> Picture:
    """Draw a snapshot (the two parts of `History.snapshot`) with matplotlib's object interface; any thread may.

    Args:
        summary: the summary.
        points: its float32 block.
        width: in inches, at 80 dots an inch.
        height: in inches.
        log: a logarithmic loss axis.
    """
    # Colours and fonts are given one by one: a reader's style sheet must not leave dark text on a dark page, and
    # changing the global settings, even for a moment, would reach into figures that other threads draw.
    with _DRAWING:
        figure = Picture(figsize=(width, height), dpi=80, layout="constrained", facecolor="white")
        figure.suptitle(summary["text"], x=0.01, ha="left", fontsize=8.5, color="#333333")
        _draw(figure, summary, unpack(summary, points), log)
        families = font_families()
        for text in figure.findobj(Text):
            text.set_fontfamily(families)
    return figure
