"""The picture of a snapshot by matplotlib: static, for a saved notebook, a report or a file."""

import io
import math
import threading
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ftnb.widgets.svg import MAX_EPOCH_LINES, PALETTE, Curve, format_number, step_range, unpack

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
    """Write the marks' labels along the top of the plot, leaving out what would overlap."""
    free_from, per_letter = -1.0, step_range(summary) / 70
    for mark in summary["marks"]:
        if mark["step"] >= free_from:
            color = MARK_COLORS[mark["kind"]]
            position = (mark["step"], 1.0)
            axes.annotate(mark["label"], position, (3, -8), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=color, fontsize=8)  # fmt: skip
            free_from = mark["step"] + per_letter * (len(mark["label"]) + 2)


def _draw(figure: Figure, summary: dict[str, Any], curves: dict[str, Curve], log: bool) -> None:
    grid = figure.add_gridspec(3, 2, width_ratios=(1.75, 1))
    loss = figure.add_subplot(grid[:, 0])
    metric, lr, speed = (figure.add_subplot(grid[row, 1]) for row in range(3))
    loss.plot(*curves["loss"], color=PALETTE["loss"], alpha=0.32, linewidth=0.9)
    loss.plot(*curves["smooth"], color=PALETTE["loss"], linewidth=2, label="train")
    loss.plot(*curves["valid_loss"], "o-", color=PALETTE["valid"], markersize=4, linewidth=1.4, label="validation")
    loss.set_yscale("log" if log else "linear")
    metric.plot(*curves["metric"], "o-", color=PALETTE["metric"], markersize=4, linewidth=1.4)
    lr.plot(*curves["lr"], color=PALETTE["lr"], linewidth=1.5)
    speed.plot(*curves["speed"], color=PALETTE["speed"], linewidth=1.2)
    for axes, title, ticks in ((loss, "loss", 6), (metric, summary["metric"] or "metric", 3),
                               (lr, "learning rate", 3), (speed, "examples per second", 3)):  # fmt: skip
        _style(axes, title, summary, ticks)
    for axes in (lr, speed):
        axes.set_ylim(bottom=0)
    for axes in (metric, lr):
        axes.tick_params(labelbottom=False)
    if summary["best"]:
        metric.plot(summary["best"]["step"], summary["best"]["value"], "o", markersize=9, mfc="none", mec="#333333")
    _label_marks(loss, summary)
    loss.legend(
        frameon=False,
        fontsize=8,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.985),
        ncols=2,
        borderpad=0,
        labelcolor="#333333",
    )
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
