"""Pictures with boxes as examples for batches, and boxes drawn on pictures for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ftnb.transforms import ImageTransform
from ftnb.vision.examples import ImageExamples, picture_sheet
from ftnb.widgets.figure import Picture, font_families


class BoxExamples:
    """Rows with a picture and boxes; each is decoded, changed at random in training, and made tensors when asked for.

    Args:
        rows: with the columns "image", "boxes" ([x1, y1, x2, y2] in pixels) and "labels" (names), or "image" alone.
        transform: from a picture and its boxes to tensors.
        labels: the classes, in the order of the model's outputs.
        train: whether to change pictures at random.

    Indexing gives {"pixel_values": float tensor of shape (3, height, width), "boxes": (n, 4) in pixels of that,
    "labels": (n,)}; boxes that a random change has moved out of the picture are gone.
    """

    def __init__(self, rows: Dataset, transform: ImageTransform, labels: Sequence[str], *, train: bool = False) -> None:
        self.rows, self.transform, self.train = rows, transform, train
        self.pictures = ImageExamples(rows, transform)
        ids = {label: i for i, label in enumerate(labels)}
        known = {"boxes", "labels"} <= set(rows.column_names)
        self.boxes: list[list[list[float]]] = rows["boxes"][:] if known else [[]] * len(rows)
        names: list[list[str]] = rows["labels"][:] if known else [[]] * len(rows)
        self.label_ids = [torch.tensor([ids[name] for name in of_picture], dtype=torch.long) for of_picture in names]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        out = self.transform(self.pictures.picture(i), boxes=self.boxes[i], train=self.train)
        labels = self.label_ids[i][out["kept"]]
        return {"pixel_values": out["pixel_values"], "boxes": out["boxes"], "labels": labels}


def stack_boxes(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Examples of `BoxExamples` as one batch: "pixel_values", shape (batch, 3, height, width), and a list "targets"."""
    return {
        "pixel_values": torch.stack([example["pixel_values"] for example in examples]),
        "targets": [{"boxes": example["boxes"], "labels": example["labels"]} for example in examples],
    }


@dataclass(frozen=True)
class Drawn:
    """A box to draw: [x1, y1, x2, y2] in pixels of its picture, a few words, a colour, and whether it is dashed."""

    box: Sequence[float]
    text: str
    color: str
    dashed: bool = False


def draw_boxes(axes: Axes, boxes: Sequence[Drawn]) -> None:
    """Draw boxes over the picture that the axes show; every word stands above its box, or in it at the upper edge."""
    height = max(axes.get_ylim())
    words: dict[str, Any] = {"fontsize": 7.5, "color": "#000000", "family": font_families(), "clip_on": True}
    for drawn in boxes:
        # imshow puts the middle of the first pixel at 0, boxes put its left edge there
        x1, y1, x2, y2 = (value - 0.5 for value in drawn.box)
        style = (0, (3, 2)) if drawn.dashed else "solid"
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#000000", linewidth=2.6, alpha=0.45)
        )
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=drawn.color, linewidth=1.4, linestyle=style)
        )
        if drawn.text:
            ground = {"facecolor": drawn.color, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
            inside = y1 < 0.12 * height
            axes.text(max(x1, 0), y1, drawn.text, va="top" if inside else "bottom", bbox=ground, **words)


def box_sheet(
    pictures: Sequence[Any],
    titles: Sequence[str],
    boxes: Sequence[Sequence[Drawn]],
    caption: str,
    legend: Mapping[str, tuple[str, bool]] | None = None,
    columns: int = 4,
) -> Picture:
    """A sheet of pictures with boxes.

    Args:
        pictures: uint8 arrays of shape (height, width, 3).
        titles: what to write above each.
        boxes: for each picture, what to draw on it.
        caption: a sentence above the sheet.
        legend: meaning → (colour, dashed), below the sheet.
        columns: pictures a row.
    """
    figure = picture_sheet(
        pictures, titles, caption, columns=columns, draw=lambda axes, i: draw_boxes(axes, boxes[i]), side=1.6
    )
    if legend:
        lines = [
            Line2D([], [], color=color, linewidth=1.8, linestyle=(0, (2, 1.2)) if dashed else "solid", label=meaning)
            for meaning, (color, dashed) in legend.items()
        ]
        figure.set_figheight(figure.get_figheight() + 0.3)
        figure.legend(handles=lines, loc="outside lower left", ncols=len(lines), fontsize=7, frameon=False)
    return figure
